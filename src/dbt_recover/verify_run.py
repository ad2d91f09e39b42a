"""One run of the archive, held to what its records say; for verify.py."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import msgspec

from . import layout
from .compact_graph import decode_graph
from .errors import DamagedError
from .journal import Record
from .layout import FORMAT_VERSION, RunPlace, Summary, encode_id, parse_record_key
from .model import Artifact
from .records import (
    MAX_RECORD,
    Begun,
    Commit,
    InvocationPointer,
    Mark,
    Results,
    RunPointer,
    decode_record,
    decompress,
    summarise,
)
from .storage.base import MissingKey, Storage
from .stream import intact

T = TypeVar("T")

_LARGEST_DECODED = 4 * MAX_RECORD
_ORPHAN_SECONDS = 86400.0
"""Younger data without a record may belong to a writer that is only slow."""

_BRING_BACK = "bring the object back from a backup or an older version of it; until then "
_UPGRADE = "upgrade dbt-recover: pip install -U dbt-recover"


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be."""

    key: str
    wrong: str
    mend: str
    """What to do about it."""
    run_id: str = ""
    fault: bool = True
    """Else it is a note: worth knowing, and no harm."""


@dataclass
class RunListing:
    """What a listing says of one run."""

    begun: set[str] = field(default_factory=set)
    committed: set[str] = field(default_factory=set)
    summaries: dict[str, list[Summary]] = field(default_factory=dict)
    pruned: bool = False


def list_runs(storage: Storage, prefix: str) -> dict[RunPlace, RunListing]:
    found: dict[RunPlace, RunListing] = {}
    for item in storage.list(prefix):
        entry = parse_record_key(item.key)
        if entry is None:
            continue  # a later addition, or somebody else's
        listed = found.setdefault(entry.place, RunListing())
        if entry.kind == "pruned":
            listed.pruned = True
        elif entry.kind == "begun":
            listed.begun.add(entry.invocation_id)
        elif entry.kind == "commit":
            listed.committed.add(entry.invocation_id)
        elif entry.summary is not None:
            listed.summaries.setdefault(entry.invocation_id, []).append(entry.summary)
    return found


class RunLook:
    """One run, looked at."""

    def __init__(self, storage: Storage, place: RunPlace, listed: RunListing) -> None:
        self.storage, self.place, self.listed = storage, place, listed
        self.findings: list[Finding] = []
        self.invocations = len(listed.begun | listed.committed)
        self.objects = 0
        self.stored = 0
        if listed.pruned:
            self._marked()
            return
        prefix = f"{layout.DATA}{place.name}/"
        self.data = {item.key: item.size for item in storage.list(prefix)}
        self.expected: set[str] = set()
        self._pointer()
        for ident in sorted(listed.committed):
            self._committed(ident)
        for ident in sorted(listed.begun - listed.committed):
            self._open(ident)
        self._left_over()
        if any(f.fault for f in self.findings) and self._gone():
            self.findings = []

    def _gone(self) -> bool:
        """Whether the run was removed while it was looked at."""
        now = list_runs(self.storage, self.place.records()).get(self.place)
        return now is None or now.pruned

    def _marked(self) -> None:
        """A run that is being removed: nothing else of it is looked at."""
        key, idents = self.place.pruned, self.listed.begun | self.listed.committed
        whole = msgspec.json.encode(Mark(FORMAT_VERSION, sorted(idents))).decode()
        mend = f"write {whole} there and prune again, or remove it, and what is left is there again"
        if self._record(key, Mark, mend, instead=True) is not None:
            self._note(
                key,
                "the run is half removed: a prune was stopped",
                "finish it: dbt-recover prune with any --keep option and --yes",
            )
        elif self.storage.stat(key) is None:
            self.findings = []  # another prune has finished it meanwhile

    def _fault(self, key: str, wrong: str, mend: str) -> None:
        self.findings.append(Finding(key, wrong, mend, self.place.run_id))

    def _note(self, key: str, wrong: str, mend: str) -> None:
        self.findings.append(Finding(key, wrong, mend, self.place.run_id, fault=False))

    def _record(self, key: str, type_: type[T], without: str, *, instead: bool = False) -> T | None:
        """A small JSON object; a fault if it is not there, damaged or newer than we know. `without`:
        how it is until it is brought back; or, `instead`, what else to do."""
        self.objects += 1
        mend = without if instead else _BRING_BACK + without
        try:
            data = self.storage.read(key, max_bytes=MAX_RECORD).data
            self.stored += len(data)
            return decode_record(data, type_, key)
        except MissingKey:
            self._fault(key, "is missing", mend)
            return None
        except DamagedError as exc:
            self._fault(key, exc.message.removeprefix(f"{key} "), exc.hint or mend)
            return None

    def _pointer(self) -> None:
        key = layout.run_pointer(self.place.run_id)
        ident = min(self.listed.committed or self.listed.begun, default="")
        without = (
            f"the run is found by its date ({self.place.date}) and not by its id. Or write it anew: "
            f"jq '{{version: 1, run: .invocation.run}}' {self._said(ident)}"
        )
        pointer = self._record(key, RunPointer, without)
        if pointer is not None and RunPlace.of(pointer.run.run_id, pointer.run.began) != self.place:
            self._fault(
                key,
                f"points to run {pointer.run.run_id}, begun {pointer.run.began}, instead of "
                f"{layout.RUNS}{self.place.name}/",
                _BRING_BACK + without,
            )

    def _said(self, ident: str) -> str:
        """Key of a record of this invocation."""
        committed = ident in self.listed.committed
        return self.place.commit(ident) if committed else self.place.begun(ident)

    def _invocation_pointer(self, ident: str) -> None:
        key = layout.invocation_pointer(ident)
        without = (
            "this invocation could be archived twice. Or write it anew: jq '.invocation.run | "
            f"{{version: 1, run_id, began}}' {self._said(ident)}"
        )
        pointer = self._record(key, InvocationPointer, without)
        if pointer is not None and RunPlace.of(pointer.run_id, pointer.began) != self.place:
            self._fault(
                key,
                f"points to run {pointer.run_id}, begun {pointer.began}, instead of "
                f"{layout.RUNS}{self.place.name}/",
                _BRING_BACK + without,
            )

    def _same(self, key: str, record: Begun | Commit, ident: str) -> bool:
        """Whether the record says what its key says."""
        invocation = record.invocation
        place = RunPlace.of(invocation.run.run_id, invocation.run.began)
        said = f"{place.name}/{encode_id(invocation.invocation_id)}"
        if said == f"{self.place.name}/{encode_id(ident)}":
            return True
        self._fault(key, f"is the record of {said}", "it was moved or forged: remove it")
        return False

    def _committed(self, ident: str) -> None:
        key = self.place.commit(ident)
        self.expected |= {self.place.data(ident, "manifest.early.json.zst")}
        commit = self._record(key, Commit, "this run cannot be shown or retried")
        self._invocation_pointer(ident)
        if ident in self.listed.begun:
            begun = self.place.begun(ident)
            record = self._record(begun, Begun, "nothing is missing: commit.json says it all")
            if record is not None:
                self._same(begun, record, ident)
        if commit is None or not self._same(key, commit, ident):
            # What is its data, nobody can tell.
            self.expected |= {k for k in self.data if k.startswith(self.place.data(ident, ""))}
            return
        results: Results | None = None
        readable = True
        for artifact in commit.artifacts:
            found = self._artifact(key, ident, artifact)
            if artifact.name == "results.json":
                results, readable = found, found is not None
        self._segments(ident, commit.segments)
        if readable:
            self._summary(ident, summarise(commit, results))

    def _artifact(self, commit: str, ident: str, artifact: Artifact) -> Any:
        """Its hash, and that it can be read as what it is; the node results are handed back."""
        key = artifact.key
        folder, usual = self.place.data(ident, ""), f"{artifact.name}.zst"
        name = key[len(folder) :]
        # With a token before it where another writer, who did not commit, had been there first.
        if not key.startswith(folder) or (name != usual and not _beside(name, usual)):
            self._fault(
                commit,
                f"names {key[:200]!r} as its {artifact.name[:80]!r}, which is not its own",
                "it was forged: nothing is read from there; bring the record back from a backup",
            )
            return None
        self.expected.add(key)
        if artifact.name not in _KNOWN:
            self._note(key, "is of a kind that this version does not know", _UPGRADE)
        self.objects += 1
        self.stored += self.data.get(key, 0)
        if artifact.stored_size and self.data.get(key, 0) != artifact.stored_size:
            self._stored(key, artifact)
        decode = _DECODED.get(artifact.name) if artifact.size <= _LARGEST_DECODED else None
        pieces: list[bytes] = []
        try:
            for piece in intact(self.storage, artifact):
                pieces += [piece] if decode is not None else []
            return decode(b"".join(pieces)) if decode is not None else None
        except DamagedError as exc:
            wrong = exc.message.removeprefix(f"{key} ")
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            wrong = f"is damaged: {exc}"
        self._fault(key, wrong, _BRING_BACK + _WITHOUT.get(artifact.name, "it is not restored"))
        return None

    def _stored(self, key: str, artifact: Artifact) -> None:
        if key in self.data:
            self._note(
                key,
                f"has {self.data[key]} bytes as stored, and had {artifact.stored_size} when it was "
                "written",
                "nothing, as long as its content is right",
            )

    def _segments(self, ident: str, count: int) -> None:
        """Journal segments: all that the commit record counts, and all that are there."""
        prefix = self.place.segments(ident)
        there = {k for k in self.data if k.startswith(prefix)}
        # A forged count can be anything.
        numbers = range(1, min(count, len(there) + 1) + 1)
        missing = [n for n in numbers if self.place.segment(ident, n) not in there]
        if missing:
            self._fault(
                self.place.segment(ident, missing[0]),
                f"is missing: there are {len(there)} of {count} journal segments",
                _BRING_BACK + "nothing is lost: results.json says the same",
            )
        self._read_segments(ident, there)

    def _read_segments(self, ident: str, keys: Iterable[str]) -> None:
        decoder = msgspec.json.Decoder(Record)
        of: set[str] = set()
        for key in sorted(keys):
            self.expected.add(key)
            self.objects += 1
            try:
                data = self.storage.read(key, max_bytes=MAX_RECORD).data
                self.stored += len(data)
                for line in decompress(data, key).splitlines():
                    of.add(encode_id(decoder.decode(line).invocation_id))
            except MissingKey:
                continue  # removed since it was listed
            except DamagedError as exc:
                wrong = exc.message.removeprefix(f"{key} ")
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
                wrong = f"holds a line that is no record: {exc}"
            else:
                continue
            self._fault(key, wrong, _BRING_BACK + "an invocation without commit is not planned")
        if of and encode_id(ident) not in of:
            self._fault(
                self.place.segments(ident),
                f"is the journal of another invocation, {layout.decode_id(min(of))}",
                "it was moved there: "
                + _BRING_BACK
                + "an invocation without commit is not planned",
            )

    def _summary(self, ident: str, summary: Summary) -> None:
        expected = parse_record_key(summary.key(self.place, ident))
        listed = self.listed.summaries.get(ident, [])
        if not listed:
            self._note(
                summary.key(self.place, ident),
                "is missing: its writer was stopped after the commit record",
                "nothing; listings read the commit record instead",
            )
        for found in listed:
            if expected is not None and found != expected.summary:
                self._fault(
                    found.key(self.place, ident),
                    "does not agree with the commit record: a listing shows "
                    f"{found.state}, {found.failed} of {found.total} not ok, instead of "
                    f"{summary.state}, {summary.failed} of {summary.total}",
                    f"remove it; {summary.key(self.place, ident)} is right",
                )

    def _open(self, ident: str) -> None:
        """An invocation at work, or lost: begun, and its journal."""
        self._invocation_pointer(ident)
        begun = self._record(self.place.begun(ident), Begun, "this run cannot be shown or retried")
        if begun is not None:
            self._same(self.place.begun(ident), begun, ident)
        mine = self.place.data(ident, "")
        self.expected |= {k for k in self.data if k.startswith(mine)}
        segments = {k for k in self.data if k.startswith(self.place.segments(ident))}
        self._read_segments(ident, segments)

    def _left_over(self) -> None:
        known = {encode_id(i) for i in self.listed.begun | self.listed.committed}
        unowned: dict[str, list[str]] = {}
        for key in sorted(self.data.keys() - self.expected):
            part = key.split("/")[3]
            if part in known:
                self._note(key, "is named by no commit record", "nothing; it goes with the run")
            else:
                unowned.setdefault(part, []).append(key)
        for part, keys in unowned.items():
            prefix = f"{layout.DATA}{self.place.name}/{part}/"
            self.findings += orphans(self.storage, prefix, {k: self.data[k] for k in keys})
        for ident in self.listed.summaries.keys() - self.listed.committed - {layout.SETTLED}:
            self._fault(
                self.listed.summaries[ident][0].key(self.place, ident),
                "is a summary without a commit record: that was there, and is lost",
                "bring the invocation's commit.json back from a backup; without one, what the "
                "invocation did is not known, and the run is refused",
            )


_KNOWN = frozenset(
    {*layout.ARTIFACTS, layout.PARSE_STATE, "manifest.early.json", "graph.json", "results.json"}
)
_WITHOUT = {
    "results.json": "this run cannot be shown or retried",
    "graph.json": "this run cannot be planned or retried",
    "manifest.json": "fetch and retry --strategy defer of this run are refused",
    layout.PARSE_STATE: "a retry on a fresh machine lets dbt parse the whole project",
    "manifest.early.json": "fetch and retry --strategy defer of this run are refused",
}


def _beside(name: str, usual: str) -> bool:
    return re.fullmatch(f"[0-9a-f]{{8}}-{re.escape(usual)}", name) is not None


def _decode_results(data: bytes) -> Results:
    return msgspec.json.decode(data, type=Results)


_DECODED: Mapping[str, Callable[[bytes], object]] = {
    "results.json": _decode_results,
    "graph.json": partial(decode_graph, name="graph.json"),
}


def orphans(storage: Storage, prefix: str, data: Mapping[str, int]) -> Sequence[Finding]:
    stats = [storage.stat(key) for key in data]
    ages = [stat.age for stat in stats if stat is not None]
    if not ages or min(ages) < _ORPHAN_SECONDS:
        return []
    return [
        Finding(
            prefix,
            f"holds {len(ages)} objects ({sum(data.values())} bytes) that belong to no invocation",
            "remove them if nobody knows better; nothing reads them",
            fault=False,
        )
    ]
