"""The archive, read: open it, list runs, find one, load what its invocations left.

Writing is publish.py; every key comes from layout.py. What has no commit record is open: it is
shown as running while its heartbeat is fresh, and as lost after that, from its journal alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import msgspec

from . import layout
from .ahead import Ahead
from .clock import now
from .errors import DamagedError, NotFoundError, StorageError
from .graph import Graph
from .journal import Record, fold
from .layout import RunPlace, Summary
from .listings import Listings, RunEntries, commands_of, last_words, status_of
from .machine import process_lives, this_machine
from .model import Artifact, Invocation, Recorded, RunInfo, RunSummary, as_word
from .records import (
    MAX_RECORD,
    Begun,
    Commit,
    InvocationPointer,
    Marker,
    Results,
    RunPointer,
    SignOfLife,
    decode_record,
    decompress,
    summarise,
)
from .storage.base import MissingKey, PreconditionFailed, Storage

HEARTBEAT_SECONDS = 15
HEARTBEAT_LOST_AFTER = 60
"""Seconds without a sign of life after which a running invocation is taken for lost."""

MAX_ARTIFACT = 512 * 1024 * 1024
"""Bytes beyond which an artifact is not held in memory; manifests are streamed (stream.py)."""


class Archive(Listings):
    """A store that holds an archive of this format."""

    def __init__(self, storage: Storage) -> None:
        super().__init__(storage)
        self.dated = False
        """Whether another writer's dated folders are read as runs, too (see foreign.py)."""
        self._ahead: dict[str, Ahead[bytes]] = {}

    def check(self, *, create: bool = False) -> None:
        """Make sure that there is an archive of a version we know.

        NotFoundError (10) if there is none and create is false; DamagedError (13) for a marker
        that is not ours or of a newer version.
        """
        try:
            data = self.storage.read(layout.MARKER, max_bytes=65536).data
        except MissingKey:
            if self._take_dated_folders():
                if create:
                    self.check_conditions()
                return
            if not create and next(iter(self.storage.list(layout.RUNS)), None) is not None:
                raise DamagedError(
                    f"{self.url} has runs, but its {layout.MARKER} is missing",
                    hint="bring it back from a backup, or write "
                    f"{msgspec.json.encode(Marker()).decode()} there",
                ) from None
            if not create:
                raise NotFoundError(
                    f"there is no archive at {self.url}",
                    hint="check --archive (DBT_RECOVER_ARCHIVE); the first "
                    "`dbt-recover exec -- dbt build` makes one",
                ) from None
            body = msgspec.json.encode(Marker())
            try:
                self.storage.write(layout.MARKER, body, if_absent=True)
            except PreconditionFailed:
                self.check()
            self.check_conditions()
            return
        try:
            marker = self._decode(data, Marker, layout.MARKER)
        except DamagedError as exc:
            whole = msgspec.json.encode(Marker()).decode()
            hint = exc.hint or f"put back what an archive has there: {whole}; dbt-recover verify"
            raise DamagedError(exc.message, hint=hint) from exc
        if marker.format != "dbt-recover":
            raise DamagedError(
                f"{self.url}/{layout.MARKER} is not a dbt-recover archive's",
                hint="check --archive (DBT_RECOVER_ARCHIVE): something else keeps its files there",
            )
        if create:
            self.check_conditions()

    def check_conditions(self) -> None:
        """StorageError if the store ignores the conditions of writes: asked before the first commit
        or lease of a process, at no cost where the kind of store is known."""
        from .foreign import own

        ignores = getattr(own(self.storage), "ignores_conditions", None)
        if ignores is not None and ignores(layout.MARKER):
            raise StorageError(
                f"the store of {self.url} accepts writes whatever their condition (If-None-Match, "
                "If-Match): two retries of a run, or two writers of an invocation, would both win",
                hint="use a store that honours them, or a newer version of this one; what is there "
                "can still be read; see: dbt-recover doctor",
            )

    def _take_dated_folders(self) -> bool:
        from .foreign import DatedFolders

        view = DatedFolders.found(self.storage)
        self.storage = view or self.storage
        self.dated = view is not None
        return self.dated

    # Finding runs

    def summary(self, entries: RunEntries) -> RunSummary:
        """A line of `runs`. Reads an object only where a writer died at the wrong moment, and a
        heartbeat only of what has not ended."""
        words = dict(entries.summaries)
        begun = [self.begun_of(entries.place, i).invocation for i in sorted(entries.open)]
        for invocation_id in entries.committed - words.keys():
            # Killed between the commit and its summary: the commit says it all.
            words[invocation_id] = self.summary_of(entries.place, invocation_id)
        unended = self._unended(entries, words)
        running = any(self.alive(entries.place, i) for i in unended)
        status = status_of(list(words.values()), bool(unended), running)
        last = max(words.values(), key=lambda s: (s.attempt, s.ended), default=None)
        latest = last_words(list(words.values()))
        place = entries.place
        return RunSummary(
            run=RunInfo(
                place.run_id,
                place.began,
                logical_date=next((s.logical_date for s in words.values() if s.logical_date), ""),
            ),
            status=status,
            attempts=max((s.attempt for s in words.values()), default=1),
            invocations=len(words.keys() - {layout.SETTLED}) + len(entries.open),
            failed=sum(s.failed for s in latest),
            total=max((s.total for s in words.values() if s.scope == "run"), default=0)
            or sum(s.total for s in latest),
            seconds=sum(s.seconds for s in words.values()),
            command=commands_of(list(words.values()))
            or ", ".join(dict.fromkeys(i.command for i in begun)),
            ended=last.ended if last else "",
        )

    def _unended(self, entries: RunEntries, words: dict[str, Summary]) -> set[str]:
        """Open invocations that no later word on the whole run has settled."""
        settled = max((s.ended for s in words.values() if s.scope == "run"), default="")
        if not settled:
            return entries.open
        return {
            i for i in entries.open if self.begun_of(entries.place, i).invocation.began > settled
        }

    def alive(self, place: RunPlace, invocation_id: str) -> bool:
        """Whether the invocation gave a sign of life within the last minute. On the machine where
        it ran, whether its recorder or its dbt is still there."""
        try:
            beat = self.storage.read(place.heartbeat(invocation_id), max_bytes=MAX_RECORD)
        except MissingKey:
            return False
        sign: SignOfLife = self._decode(beat.data, SignOfLife, place.heartbeat(invocation_id))
        if sign.machine == this_machine():
            return any(process_lives(mark) for mark in sign.processes)
        return beat.age < HEARTBEAT_LOST_AFTER

    def runs(
        self,
        *,
        since: str = "",
        until: str = "",
        status: str = "",
        logical_date: str = "",
        limit: int | None = None,
    ) -> Iterator[RunSummary]:
        """Runs, newest first. since and until are days, both included."""
        if self.dated and since and since == until and since not in self.dates():
            yield from self.runs(status=status, logical_date=since, limit=limit)
            return
        count = 0
        for date in self.dates():
            if (since and date < since) or (until and date > until):
                continue
            for entries in reversed(self.entries(date)):
                summary = self.summary(entries)
                if status and summary.status != status:
                    continue
                if logical_date and not summary.run.logical_date.startswith(logical_date):
                    continue
                yield summary
                count += 1
                if limit is not None and count >= limit:
                    return

    def find(self, run_id: str) -> RunPlace | None:
        """The place of the run with exactly this id."""
        run = self.registered(run_id)
        return RunPlace.of(run.run_id, run.began) if run is not None else None

    def registered(self, run_id: str) -> RunInfo | None:
        """The run with exactly this id, as its first writer made it known. DamagedError if what
        should say so speaks of another."""
        key = layout.run_pointer(run_id)
        try:
            data = self.storage.read(key, max_bytes=MAX_RECORD).data
        except MissingKey:
            return None
        run: RunInfo = self._decode(data, RunPointer, key).run
        if layout.run_pointer(run.run_id) != key:
            raise DamagedError(
                f"{self.url}/{key} points to another run, {run.run_id}",
                hint=f"all that is wrong: dbt-recover verify {as_word(run_id)}",
            )
        return run

    def run_of_invocation(self, invocation_id: str) -> RunPlace | None:
        """The run a dbt invocation_id belongs to."""
        key = layout.invocation_pointer(invocation_id)
        try:
            data = self.storage.read(key, max_bytes=MAX_RECORD).data
        except MissingKey:
            return None
        pointer = self._decode(data, InvocationPointer, key)
        return RunPlace.of(pointer.run_id, pointer.began)

    def settle(self, place: RunPlace, attempt: int, total: int, logical_date: str) -> None:
        """Write into the listing that the run is whole: what `plan` found, and what the words of
        its single invocations did not add up to."""
        summary = Summary(attempt, "ok", 0, total, 0.0, now(), "", "", "run", logical_date)
        self.storage.write(summary.key(place, layout.SETTLED), b"", if_absent=True)

    # Loading a run

    def load(self, place: RunPlace, *, with_graph: bool = False) -> list[Recorded]:
        """All invocations of a run, with their results. Raises DamagedError for any that cannot
        be read whole: a plan from half a record would be wrong. `with_graph`: it is asked for next,
        and may be fetched meanwhile."""
        entries = self.entry(place)
        for ident in sorted(entries.summaries.keys() - entries.committed - {layout.SETTLED}):
            if not self.has(place, ident):
                raise DamagedError(
                    f"the commit record of invocation {ident} of run {place.run_id} is missing "
                    f"from {self.url}: what it did is not known",
                    hint=f"bring {place.commit(ident)} back from a backup of the archive; all that "
                    f"is wrong: dbt-recover verify {as_word(place.run_id)}",
                )
        # Of several, which one's it will be is not known yet.
        alone = with_graph and len(entries.committed) == 1
        committed = [self._load_committed(place, i, alone) for i in sorted(entries.committed)]
        return committed + [self._load_open(place, i) for i in sorted(entries.open)]

    def has(self, place: RunPlace, invocation_id: str) -> bool:
        """Whether the invocation is committed."""
        return self.storage.stat(place.commit(invocation_id)) is not None

    def commit_of(self, place: RunPlace, invocation_id: str) -> Commit:
        """The commit record."""
        key = place.commit(invocation_id)
        commit: Commit = self._decode(
            self.storage.read(key, max_bytes=MAX_RECORD).data, Commit, key
        )
        own = place.data(invocation_id, "")
        for artifact in commit.artifacts:
            if not artifact.key.startswith(own):
                raise DamagedError(f"{key} in {self.url} names {artifact.key!r}, outside of {own}")
        self._check_own(key, commit.invocation, place, invocation_id)
        return commit

    def _check_own(self, key: str, record: Invocation, place: RunPlace, invocation_id: str) -> None:
        """DamagedError if the record is of another invocation than its key: it was moved there."""
        said = RunPlace.of(record.run.run_id, record.run.began)
        if said != place or layout.encode_id(record.invocation_id) != layout.encode_id(
            invocation_id
        ):
            raise DamagedError(
                f"{key} in {self.url} is the record of invocation {record.invocation_id} of run "
                f"{record.run.run_id}"
            )

    def summary_of(self, place: RunPlace, invocation_id: str) -> Summary:
        """The listing's line of a committed invocation, from its commit record and results."""
        commit = self.commit_of(place, invocation_id)
        return summarise(commit, self._results(commit))

    def _results(self, commit: Commit) -> Results:
        for artifact in commit.artifacts:
            if artifact.name == "results.json":
                data = self.artifact_bytes(artifact)
                results: Results = self._decode(data, Results, artifact.key)
                return results
        return Results(layout.FORMAT_VERSION)

    def _load_committed(self, place: RunPlace, invocation_id: str, alone: bool) -> Recorded:
        commit = self.commit_of(place, invocation_id)
        graph = next((a for a in commit.artifacts if a.name == "graph.json"), None)
        if alone and graph is not None:
            self._ahead[graph.key] = Ahead(partial(self.artifact_bytes, graph))
        results = self._results(commit)
        return Recorded(
            commit.invocation,
            {r.unique_id: r for r in results.results},
            frozenset(results.in_flight),
            commit.complete,
            graph,
            frozenset(results.never_started),
        )

    def begun_of(self, place: RunPlace, invocation_id: str) -> Begun:
        """The record written when the invocation began."""
        key = place.begun(invocation_id)
        begun: Begun = self._decode(self.storage.read(key, max_bytes=MAX_RECORD).data, Begun, key)
        self._check_own(key, begun.invocation, place, invocation_id)
        return begun

    def _load_open(self, place: RunPlace, invocation_id: str) -> Recorded:
        begun = self.begun_of(place, invocation_id)
        records = list(self.journal_records(place, invocation_id))
        ident = begun.invocation.invocation_id
        if records and all(r.invocation_id != ident for r in records):
            raise DamagedError(
                f"{place.segments(invocation_id)} in {self.url} is the journal of another "
                f"invocation, {records[0].invocation_id}"
            )
        journal = fold(records, ident)
        alive = self.alive(place, invocation_id)
        invocation = msgspec.structs.replace(
            begun.invocation,
            end="running" if alive else "lost",
            ended="" if alive else journal.last,
            dbt_version=begun.invocation.dbt_version or journal.dbt_version,
            target=begun.invocation.target or journal.target,
        )
        graph_key = place.data(invocation_id, "graph.json.zst")
        found = self.storage.stat(graph_key)
        graph = Artifact("graph.json", graph_key, "", MAX_RECORD * 4, found.size) if found else None
        return Recorded(invocation, journal.results, journal.in_flight, False, graph)

    def journal_records(self, place: RunPlace, invocation_id: str) -> Iterator[Record]:
        """The records of the invocation's journal segments; a damaged segment is refused."""
        decoder = msgspec.json.Decoder(Record)
        for item in self.storage.list(place.segments(invocation_id)):
            data = decompress(self.storage.read(item.key, max_bytes=MAX_RECORD).data, item.key)
            for line in data.splitlines():
                try:
                    yield decoder.decode(line)
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
                    raise DamagedError(f"{item.key} holds a line that is no record") from exc

    def graph(self, record: Recorded) -> Graph | None:
        """The compact graph of an invocation; None if it left no manifest."""
        from .compact_graph import decode_graph

        if record.graph is None:
            return None
        ahead = self._ahead.pop(record.graph.key, None)
        return decode_graph(ahead.result() if ahead else self.artifact_bytes(record.graph))

    def artifact_bytes(self, artifact: Artifact) -> bytes:
        """The file as dbt wrote it, its hash checked. DamagedError if a bit of it differs."""
        if not artifact.key.startswith(layout.DATA):
            raise DamagedError(f"a commit record names {artifact.key!r}, outside of {layout.DATA}")
        try:
            stored = self.storage.read(artifact.key, max_bytes=MAX_ARTIFACT).data
        except MissingKey as exc:
            raise DamagedError(f"{artifact.key} is missing from {self.url}") from exc
        data = decompress(stored, artifact.key, limit=min(artifact.size, MAX_ARTIFACT))
        if artifact.sha256 and hashlib.sha256(data).hexdigest() != artifact.sha256:
            raise DamagedError(f"{artifact.key} in {self.url} is not what was written (sha256)")
        return data

    def _decode(self, data: bytes, type_: type[Any], key: str) -> Any:
        return decode_record(data, type_, f"{self.url}/{key}")
