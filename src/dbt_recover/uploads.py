"""Artifacts that another program uploaded, as the lesson does it, made into invocations:

    <date>/{manifest,run_results,catalog,sources}.json    the last upload of that date
    latest/...                                            the same once more

Reads only. A folder holds what one dbt command left, of a pipeline its last one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import msgspec

from . import layout
from .artifacts import RunResults, read_run_results
from .compact_graph import encode_graph
from .context import Identity
from .errors import DamagedError, RefusedError
from .finished import check_executed, finished_commit
from .graph import Graph
from .layout import FORMAT_VERSION, RunPlace
from .manifest import read_manifest
from .model import Artifact, RunInfo, default_run_id
from .records import Commit, Results, summarise
from .storage.base import MissingKey, Storage

RUN_RESULTS, MANIFEST = "run_results.json", "manifest.json"

_HEAD = 1 << 16
"""Bytes of run_results.json in which dbt says which invocation it is of."""
_LARGEST = 4 << 30
_TIME = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}")
_UNREADABLE = "unreadable"
_AGAIN = "upload manifest.json and run_results.json of the same dbt command, as dbt wrote them"


@dataclass(frozen=True)
class Upload:
    """A folder, as far as a look at its beginning tells."""

    folder: str
    run: RunInfo
    """With the id that `archive` would give it, and the folder's date as logical date."""
    invocation_id: str
    damage: DamagedError | None = None
    """Why it cannot be read, if it cannot."""

    @property
    def place(self) -> RunPlace:
        """Where the archive would keep the run."""
        return RunPlace.of(self.run.run_id, self.run.began)

    @property
    def identity(self) -> Identity:
        """What the folder adds to what dbt says."""
        return Identity(self.run.run_id, logical_date=self.run.logical_date)


@dataclass(frozen=True)
class Contents:
    """What is made of a folder's manifest and run results."""

    commit: Commit
    """Its artifacts have no hash: nobody wrote one down."""
    results: bytes
    graph: bytes


def folders(storage: Storage) -> list[str]:
    """Days, newest first, then latest: where artifacts may be."""
    names = storage.folders("")
    dated = [n for n in reversed(names) if layout.is_date(n)]
    return dated + [n for n in names if f"{n}/" == layout.LATEST]


def look(storage: Storage, folder: str) -> Upload | None:
    """What the folder is about, from the beginning of its run results where dbt says it there.
    None if it has none."""
    date = folder if layout.is_date(folder) else ""
    try:
        began, invocation_id = _told_by(storage, folder)
    except MissingKey:
        return None
    except DamagedError as exc:
        if not date:
            return None
        # It is shown, as a failure, and says why when it is asked for.
        run = RunInfo(f"{date}-{_UNREADABLE}", f"{date}T00:00:00Z", date)
        return Upload(folder, run, f"{_UNREADABLE}-{date}", exc)
    return Upload(folder, RunInfo(default_run_id(began, invocation_id), began, date), invocation_id)


def _told_by(storage: Storage, folder: str) -> tuple[str, str]:
    key = f"{folder}/{RUN_RESULTS}"
    with closing(storage.open(key)) as stream:
        began, invocation_id = _metadata(stream.read(_HEAD))
    if not began or not invocation_id:
        ran = read(storage, folder)
        began, invocation_id = ran.started_at, ran.invocation_id
    if not _TIME.match(began):
        raise DamagedError(f"{storage.url}/{key} does not say when dbt began", hint=_AGAIN)
    return began, invocation_id or "unknown-" + hashlib.sha256(key.encode()).hexdigest()[:16]


def _metadata(head: bytes) -> tuple[str, str]:
    """When the invocation began and its id; empty for what is not there."""
    text = head.decode("utf-8", "replace")
    at = text.find("{", text.find('"metadata"'))
    try:
        metadata: Any = json.JSONDecoder().raw_decode(text, at)[0] if at >= 0 else {}
    except (ValueError, RecursionError):
        return "", ""
    found = [metadata.get(name) for name in ("invocation_started_at", "invocation_id")]
    began, invocation_id = (value if isinstance(value, str) else "" for value in found)
    return began, invocation_id


def read(storage: Storage, folder: str) -> RunResults:
    """The folder's run results, whole."""
    key = f"{folder}/{RUN_RESULTS}"
    with _hinted():
        return read_run_results(
            storage.read(key, max_bytes=_LARGEST).data, f"{storage.url}/{folder}/{RUN_RESULTS}"
        )


@contextmanager
def _hinted() -> Iterator[None]:
    """Say of what is damaged what to do."""
    try:
        yield
    except DamagedError as exc:
        raise DamagedError(exc.message, hint=exc.hint or _AGAIN) from exc


def summary_key(storage: Storage, upload: Upload) -> str:
    """The listing's line, from the run results alone: that dbt ended early is told by the
    manifest, which `show` and `plan` read and a listing does not."""
    began = upload.run.began
    ran = RunResults(upload.invocation_id, "", began, began, {}, {}, 0.0)
    complete = False
    with suppress(DamagedError, MissingKey, RefusedError):
        if upload.damage is None:
            ran = read(storage, upload.folder)
            check_executed(ran, RUN_RESULTS)
            complete = True
    commit = finished_commit(ran, "", Graph([]), upload.identity)
    commit = msgspec.structs.replace(commit, complete=complete)
    return summarise(commit, _results(ran)).key(upload.place, upload.invocation_id)


def put_together(storage: Storage, upload: Upload) -> Contents:
    """The invocation as the archive would have it. DamagedError or RefusedError name what is wrong
    with the folder's files."""
    if upload.damage is not None:
        raise upload.damage
    folder, where = upload.folder, f"{storage.url}/{upload.folder}"
    try:
        ran = read(storage, folder)
        manifest = storage.read(f"{folder}/{MANIFEST}", max_bytes=_LARGEST).data
    except MissingKey as exc:
        raise DamagedError(
            f"{exc.message}: the upload of this folder is not whole",
            hint=_AGAIN,
        ) from exc
    check_same(storage, upload, ran)
    check_executed(ran, f"{where}/{RUN_RESULTS}")
    with _hinted():
        info, graph = read_manifest(manifest, name=f"{where}/{MANIFEST}")
    unknown = [u for u in ran.results if not u.startswith("operation.") and u not in graph.nodes]
    if info.invocation_id != ran.invocation_id and unknown:
        raise RefusedError(
            f"{where}: {RUN_RESULTS} is of invocation {ran.invocation_id}, {MANIFEST} of "
            f"{info.invocation_id}, and lacks {len(unknown)} of its nodes ({unknown[0]}, ...)",
            hint=_AGAIN,
        )
    results, compact = msgspec.json.encode(_results(ran)), encode_graph(graph)
    sizes = {"graph.json": len(compact), "results.json": len(results), MANIFEST: len(manifest)}
    for name in layout.ARTIFACTS:
        stat = None if name == MANIFEST else storage.stat(f"{folder}/{name}")
        if stat is not None:
            sizes[name] = stat.size
    ident, place = upload.invocation_id, upload.place
    artifacts = [Artifact(n, place.data(ident, f"{n}.zst"), "", s) for n, s in sizes.items()]
    commit = finished_commit(ran, info.adapter_type, graph, upload.identity)
    invocation = msgspec.structs.replace(commit.invocation, invocation_id=ident, run=upload.run)
    commit = msgspec.structs.replace(commit, invocation=invocation, artifacts=artifacts)
    return Contents(commit, results, compact)


def check_same(storage: Storage, upload: Upload, ran: RunResults) -> None:
    """DamagedError if the folder's run results are no longer those that were looked at."""
    if ran.invocation_id and ran.invocation_id != upload.invocation_id:
        raise DamagedError(
            f"{storage.url}/{upload.folder} was uploaded anew while it was read",
            hint="look again: dbt-recover runs",
        )


def _results(ran: RunResults) -> Results:
    return Results(FORMAT_VERSION, [ran.results[uid] for uid in sorted(ran.results)])
