"""Archives made without dbt, object by object as `exec` makes them, and stores that fail."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from dbt_recover.archive import Archive
from dbt_recover.compact_graph import encode_graph
from dbt_recover.journal import Record
from dbt_recover.layout import FORMAT_VERSION, RunPlace
from dbt_recover.load import LoadedRun, load
from dbt_recover.machine import this_machine
from dbt_recover.manifest import read_manifest
from dbt_recover.model import SUCCESSES, Artifact, Invocation, NodeResult, RunInfo
from dbt_recover.naming import resolve
from dbt_recover.publish import Publication, Spool, SpoolState
from dbt_recover.records import Commit, Results, Verdict
from dbt_recover.storage.base import Blob, Entry, Stat, Storage
from projects import ARTIFACTS

PROJECT = "two_independent_failures"
DAILY, REPORT = (f"model.{PROJECT}.{n}" for n in ("orders_daily", "orders_report"))
ORDERS, TICKETS = (f"model.{PROJECT}.stg_{n}" for n in ("orders", "tickets"))
GOOD = {ORDERS: "success", TICKETS: "success", DAILY: "success", REPORT: "success"}
BAD = {**GOOD, DAILY: "error", REPORT: "skipped"}


@dataclass(frozen=True)
class Made:
    """One invocation, and what it is to leave."""

    run_id: str
    began: str = "2026-01-31T06:00:00Z"
    """Of the run."""
    invocation_id: str = ""
    statuses: Mapping[str, str] = field(default_factory=lambda: GOOD)
    attempt: int = 1
    command: str = "build"
    step: str = ""
    later: int = 0
    """Seconds by which the invocation began after the run."""
    catalog: str = ""
    verdict: Verdict | None = None
    manifest: bool = True
    seconds: float = 0.0
    """Each node's execution_time."""


def made(run_id: str, statuses: Mapping[str, str] = GOOD, **changed: Any) -> Made:
    """An invocation of a run; without an id of its own it is named after run and attempt."""
    one = Made(run_id, statuses=statuses, **changed)
    ident = one.invocation_id or f"{run_id}-{one.attempt}-{one.step or 'only'}"
    return replace(one, invocation_id=ident)


def publish(storage: Storage, one: Made) -> Commit:
    """Archive it, as `exec` does when dbt has ended."""
    archive = Archive(storage)
    archive.check(create=True)
    with tempfile.TemporaryDirectory() as directory:
        commit, spool = spooled(archive, one, Path(directory))
        publication = Publication(archive, spool)
        return publication.finish(commit)


def begin(storage: Storage, one: Made, *, lives: bool = False) -> RunPlace:
    """Archive what `exec` has archived when dbt is half through: no commit record."""
    archive = Archive(storage)
    archive.check(create=True)
    with tempfile.TemporaryDirectory() as directory:
        commit, spool = spooled(archive, one, Path(directory))
        publication = Publication(archive, spool)
        invocation = publication.begin(commit.invocation)
        publication.send_segments(invocation.invocation_id)
        publication.send(invocation.invocation_id, "graph.json.zst")
        if lives:
            publication.heartbeat(invocation)
        assert publication.place is not None
        return publication.place


def spooled(archive: Archive, one: Made, home: Path) -> tuple[Commit, Spool]:
    ok = all(s in SUCCESSES for s in one.statuses.values())
    started = f"{one.began[:17]}{one.later:02d}Z"
    invocation = Invocation(
        one.invocation_id,
        RunInfo(one.run_id, one.began),
        attempt=one.attempt,
        step=one.step,
        argv=["dbt", one.command],
        command=one.command,
        dbt_version="1.11.16",
        project_name=PROJECT,
        target="dev",
        began=started,
        ended=f"{one.began[:17]}{one.later + 1:02d}Z",
        exit_code=0 if ok else 1,
        end="exit",
        machine=this_machine(),
        scope="run" if one.verdict else "",
    )
    spool = Spool.create(home, SpoolState(archive.url, [], invocation))
    results = [
        NodeResult(uid, status, execution_time=one.seconds)
        for uid, status in sorted(one.statuses.items())
    ]
    records = [Record("finish", one.invocation_id, node=r.unique_id, result=r) for r in results]
    spool.keep_segment(1, records[:2])
    spool.keep_segment(2, records[2:])
    kept: list[Artifact] = []
    if one.manifest:
        text = (ARTIFACTS / "good" / "manifest.json").read_text()
        old = json.loads(text)["metadata"]["invocation_id"]
        manifest = text.replace(old, one.invocation_id).encode()
        kept.append(spool.keep_bytes("manifest.json", manifest))
        kept.append(spool.keep_bytes("graph.json", encode_graph(read_manifest(manifest)[1])))
    if one.catalog:
        kept.append(spool.keep_bytes("catalog.json", one.catalog.encode()))
    document = msgspec.json.encode(Results(FORMAT_VERSION, results))
    kept.append(spool.keep_bytes("results.json", document))
    nonce = f"nonce-{one.invocation_id}"
    commit = Commit(FORMAT_VERSION, invocation, True, kept, 2, one.verdict, nonce)
    spool.keep_commit(commit)
    return commit, spool


def place_of(one: Made) -> RunPlace:
    """Where its run is."""
    return RunPlace.of(one.run_id, one.began)


def loaded(storage: Storage, run_id: str) -> LoadedRun:
    """The run, as a command loads it."""
    archive = Archive(storage)
    archive.check()
    return load(archive, resolve(archive, run_id))


def contents(storage: Storage, prefix: str = "") -> dict[str, bytes]:
    """Every object below a prefix."""
    return {item.key: storage.read(item.key).data for item in storage.list(prefix)}


class Killed(BaseException):
    """The process ends here: nothing that it would do afterwards is done."""


class Altered:
    """A store of which something is otherwise; what is not overridden goes through."""

    def __init__(self, storage: Storage) -> None:
        self.inner = storage
        self.url = storage.url

    def read(self, key: str, *, max_bytes: int | None = None) -> Blob:
        return self.inner.read(key, max_bytes=max_bytes)

    def open(self, key: str) -> BinaryIO:
        return self.inner.open(key)

    def write(
        self,
        key: str,
        body: bytes | BinaryIO,
        *,
        if_absent: bool = False,
        if_match: str | None = None,
    ) -> str:
        return self.inner.write(key, body, if_absent=if_absent, if_match=if_match)

    def list(self, prefix: str, *, since: str = "") -> Iterator[Entry]:
        return self.inner.list(prefix, since=since)

    def folders(self, prefix: str) -> Any:
        return self.inner.folders(prefix)

    def stat(self, key: str) -> Stat | None:
        return self.inner.stat(key)

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        self.inner.delete(key, if_match=if_match)


class Dying(Altered):
    """A store whose user is killed before (or after) the step with this number, from 0, that
    changes something."""

    def __init__(self, storage: Storage, step: int, *, after: bool = False) -> None:
        super().__init__(storage)
        self.left = step
        self.after = after

    def _step(self, act: Callable[[], Any]) -> Any:
        if self.left < 0 or (self.left == 0 and not self.after):
            self.left = -1
            raise Killed
        done = act()
        self.left -= 1
        if self.left < 0:
            raise Killed
        return done

    def write(self, key: str, body: Any, **conditions: Any) -> str:
        etag: str = self._step(lambda: self.inner.write(key, body, **conditions))
        return etag

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        self._step(lambda: self.inner.delete(key, if_match=if_match))


def until_done(act: Callable[[int], None], *, most: int = 200) -> Iterator[int]:
    """Kill `act(step)` at its first step, its second, ... until it comes to its end; yields after
    each kill."""
    for step in range(most):
        try:
            act(step)
        except Killed:
            yield step
        else:
            return
    raise AssertionError(f"not done after {most} steps")
