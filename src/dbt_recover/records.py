"""The archive's JSON objects; docs/archive-format.md describes each with a sample."""

from __future__ import annotations

import hashlib
import re
from datetime import datetime
from typing import TypeVar

import msgspec
import zstandard

from .errors import DamagedError
from .layout import FORMAT_VERSION, Summary
from .model import NEVER_EXECUTED, SUCCESSES, Artifact, Invocation, NodeResult, RunInfo

_T = TypeVar("_T")

MAX_RECORD = 64 * 1024 * 1024
"""Bytes beyond which a record is not read."""


class Marker(msgspec.Struct, frozen=True):
    """archive.json."""

    format: str = "dbt-recover"
    version: int = FORMAT_VERSION


class Verdict(msgspec.Struct, frozen=True):
    """How a run stands."""

    whole: bool
    failed: int
    """Nodes that still have to run."""
    total: int


class Commit(msgspec.Struct, frozen=True, omit_defaults=True):
    """commit.json: the invocation is there once this is."""

    version: int
    invocation: Invocation
    complete: bool
    """Whether dbt came to its own end and recorded every node."""
    artifacts: list[Artifact] = []
    segments: int = 0
    """How many journal segments belong to it."""
    verdict: Verdict | None = None
    """A retry's: how the whole run stands after it."""
    nonce: str = ""
    """Tells two writers of the same invocation apart."""
    sha256: str = ""
    """Of the record's own text without this line, see `sealed`."""


class Begun(msgspec.Struct, frozen=True, omit_defaults=True):
    """begun.json."""

    version: int
    invocation: Invocation
    sha256: str = ""
    """As in Commit."""


class Results(msgspec.Struct, frozen=True, omit_defaults=True):
    """results.json: node results of one invocation, dbt's file and the journal put together."""

    version: int
    results: list[NodeResult] = []
    in_flight: list[str] = []
    never_started: list[str] = []
    """All other nodes that it was meant to execute, where dbt v2 says so: it records them as failed."""


class SignOfLife(msgspec.Struct, frozen=True):
    """live/*: written again and again while an invocation runs."""

    host: str = ""
    machine: str = ""
    processes: list[str] = []
    """Marks (see machine.process_mark) of the recorder and of its dbt."""


class RunPointer(msgspec.Struct, frozen=True):
    version: int
    run: RunInfo


class InvocationPointer(msgspec.Struct, frozen=True):
    """ids/invocations/*.json."""

    version: int
    run_id: str
    began: str


class Mark(msgspec.Struct, frozen=True):
    """runs/*/~pruned: the run is being removed."""

    version: int
    invocations: list[str]
    """Those it had when that was decided."""


def summarise(commit: Commit, results: Results | None = None) -> Summary:
    """The listing's line for a commit; counts are 0 where the results are not at hand."""
    invocation = commit.invocation
    found = results.results if results else []
    nodes = [r for r in found if not r.unique_id.startswith(NEVER_EXECUTED)]
    bad = sum(1 for r in nodes if r.status not in SUCCESSES)
    ok = invocation.exit_code == 0 and commit.complete
    verdict = commit.verdict or Verdict(
        ok, 0 if ok else bad + len(results.in_flight if results else []), len(nodes)
    )
    return Summary(
        attempt=invocation.attempt,
        state="ok" if verdict.whole else "failed",
        failed=verdict.failed,
        total=verdict.total,
        seconds=seconds_between(invocation.began, invocation.ended),
        ended=invocation.ended[:19],
        command=invocation.command,
        step=invocation.step or "=" + mark_of(invocation),
        scope=invocation.scope or "step",
        logical_date=invocation.run.logical_date,
        mark=mark_of(invocation) if invocation.scope != "run" else "",
    )


def mark_of(invocation: Invocation) -> str:
    """The same for all tries of a command, and for what resumed it."""
    return invocation.mark or hashlib.sha256(repr(invocation.argv).encode()).hexdigest()[:8]


def seconds_between(began: str, ended: str) -> float:
    """Between two ISO times; 0 if either is missing."""
    try:
        start, end = (datetime.fromisoformat(t.replace("Z", "+00:00")) for t in (began, ended))
    except ValueError:
        return 0.0
    return max(0.0, (end - start).total_seconds())


class _Head(msgspec.Struct):
    version: int = FORMAT_VERSION


_SEAL = re.compile(rb',\n "sha256": "([0-9a-f]{64})"(?=\n}\Z)')


def sealed(record: Commit | Begun) -> bytes:
    """Its text, with its own hash as the last key: of the text as it is without that key."""
    text = msgspec.json.format(msgspec.json.encode(record), indent=1)
    digest = hashlib.sha256(text).hexdigest()
    return text.removesuffix(b"\n}") + f',\n "sha256": "{digest}"\n}}'.encode()


def decode_record(data: bytes, type_: type[_T], name: str) -> _T:
    """A record of the archive. DamagedError for one that is damaged, or of a version that is not
    known: its head is looked at first, since a newer one may have any shape."""
    seal = _SEAL.search(data)
    text = data[: seal.start()] + data[seal.end() :] if seal else b""
    if seal and hashlib.sha256(text).hexdigest() != seal[1].decode():
        raise DamagedError(f"{name} is not what was written (sha256)")
    try:
        version = msgspec.json.decode(data, type=_Head).version
        if not 1 <= version <= FORMAT_VERSION:
            raise DamagedError(
                f"{name} has format version {version}; this dbt-recover knows up to {FORMAT_VERSION}",
                hint="upgrade dbt-recover: pip install -U dbt-recover",
            )
        record = msgspec.json.decode(data, type=type_)
        if seal is None and isinstance(record, Commit | Begun) and record.sha256:
            raise DamagedError(f"{name} is not laid out as it was written: its hash says nothing")
        return record
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise DamagedError(f"{name} is damaged: {exc}") from exc


def decompress(data: bytes, name: str, *, limit: int = MAX_RECORD) -> bytes:
    """Undo zstd; DamagedError if it is cut short, altered, or grows beyond limit bytes."""
    try:
        size = zstandard.frame_content_size(data)
        # Asked before anything is allocated: a small object can claim to hold 10 GB.
        if size > limit:
            raise DamagedError(f"{name} would grow to {size} bytes; it should have {limit}")
        plain = zstandard.ZstdDecompressor().decompress(data, max_output_size=limit)
    except zstandard.ZstdError as exc:
        raise DamagedError(f"{name} is damaged or cut short: {exc}") from exc
    return plain
