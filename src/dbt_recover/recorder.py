"""While dbt runs: follow its JSON log, keep the journal, bring it to the archive.

A thread reads what dbt appended a few times a second; node results go to the spool and to the
archive within seconds of a node finishing, the manifest as soon as dbt has written it. Whatever
goes wrong here is remembered and told afterwards: dbt's work goes on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import msgspec

from . import checkout, journal_v2
from .archive import HEARTBEAT_SECONDS
from .command_line import secret_values
from .compact_graph import encode_graph
from .errors import DamagedError, RecoverError
from .interrupts import Interrupts
from .journal import Journal, Record, fold
from .journal_v1 import parse_event
from .manifest import read_manifest
from .model import Artifact, Invocation, default_run_id
from .publish import AlreadyArchived, Publication, Spool
from .text_log import LogForm, TextLog

POLL_SECONDS = 0.2
SEGMENT_SECONDS = 2.0
RETRY_SECONDS = 5.0


@dataclass
class Recorder:
    """One invocation, from dbt's first event to its last."""

    spool: Spool
    publication: Publication | None
    """None when what was recorded is only put together, later."""
    invocation: Invocation
    project: checkout.Project
    text_log: TextLog = field(default_factory=lambda: TextLog(LogForm()))
    """Where dbt would have written its log."""
    records: list[Record] = field(default_factory=list)
    graph: Artifact | None = None
    early_manifest: Artifact | None = None
    """The manifest as dbt wrote it before the first node."""
    trouble: str = ""
    """Why the archive could not be reached, if it could not; empty when it can."""

    def __post_init__(self) -> None:
        self.log_directory = self.spool.path / "log"
        self.log_directory.mkdir(exist_ok=True)
        self._log = _Tail(self.log_directory / "dbt.log")
        self._spans = _Tail(self.log_directory / journal_v2.FILE)
        self._hidden = secret_values()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="dbt-recover-journal")
        self._unsent = 0
        self._number = 0
        self._last_segment = 0.0
        self._last_beat = 0.0
        self._not_before = 0.0
        self._manifest_seen = False
        self._dbt_id = ""

    def start(self) -> None:
        """Begin to follow."""
        self._thread.daemon = True
        self._thread.start()

    def take_up(self, records: list[Record]) -> None:
        """Go on from what a recorder that died had read."""
        self.records = records
        self._dbt_id = records[0].invocation_id if records else ""
        # What is damaged is as good as not there: the rest can still be known.
        with suppress(FileNotFoundError, DamagedError):
            self.early_manifest = self.spool.kept("manifest.early.json")
        with suppress(FileNotFoundError, DamagedError):
            self.graph = self.spool.kept("graph.json")
        self._number = len(self.spool.segments())
        self._unsent = len(records)

    def stop(self, interrupts: Interrupts) -> Journal:
        """Read to the end of the log and say what it holds. A request that is under way is waited
        for as long as there is time."""
        self._stop.set()
        if self._thread.is_alive() and not interrupts.join(self._thread):
            # It can only send what has been kept; it does not touch the records any more.
            self.trouble = "it does not answer in time"
        self._read(last=True)
        self._keep_segment()
        self.text_log.close()
        return fold(self.records, self._dbt_id)

    def _follow(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            try:
                self._read()
                self._look_at_manifest()
                self._send()
            except OSError as exc:
                # A full disk, for one. dbt has the same trouble, and says it better.
                self.trouble = f"the journal cannot be kept: {exc}"

    def _read(self, *, last: bool = False) -> None:
        for lines in self._log.read(last=last):
            self.text_log.write(lines)
            self._take(map(parse_event, lines))
        root = str(self.project.root)
        for lines in self._spans.read(last=last):
            self._take(journal_v2.parse_span(line, root, self._hidden) for line in lines)

    def _take(self, found: Iterable[Record | None]) -> None:
        for record in found:
            if record is not None:
                self.records.append(record)
                self._dbt_id = self._dbt_id or record.invocation_id

    def _look_at_manifest(self) -> None:
        """Keep the manifest as soon as dbt has written it; it will write it again at its end."""
        if self._manifest_seen:
            return
        path = next(
            (
                r.path
                for r in self.records
                if r.event == "artifact"
                and r.status.endswith("Manifest")
                and r.path.endswith("/manifest.json")
            ),
            "",
        )
        if path:
            self._manifest_seen = True
            self.early_manifest = self.keep_manifest(Path(path), "manifest.early.json")

    def keep_manifest(self, path: Path, name: str) -> Artifact | None:
        """Keep the manifest, and its compact graph with today's file hashes, if it is this
        invocation's."""
        try:
            data = path.read_bytes()
            info, graph = read_manifest(data)
        except (OSError, DamagedError):
            return None
        if self._dbt_id and info.invocation_id != self._dbt_id:
            return None
        if self.graph is None:
            graph.files = checkout.file_hashes(self.project)
            self.graph = self.spool.keep_bytes("graph.json", encode_graph(graph))
        return self.spool.keep_bytes(name, data)

    def _keep_segment(self) -> None:
        fresh = self.records[self._unsent :]
        if fresh:
            self._number += 1
            self.spool.keep_segment(self._number, fresh)
            self._unsent = len(self.records)

    def _send(self) -> None:
        now = time.monotonic()
        if now - self._last_segment >= SEGMENT_SECONDS:
            self._last_segment = now
            self._keep_segment()
        if not self._dbt_id or now < self._not_before:
            return
        self.attempt(self._bring)

    def _bring(self) -> None:
        ident, publication = self._dbt_id, self.publication
        if publication is None:
            return
        if publication.place is None:
            publication.archive.check(create=True)
            run = self.invocation.run
            if not run.run_id:
                run = msgspec.structs.replace(run, run_id=default_run_id(run.began, ident))
            self.invocation = publication.begin(
                msgspec.structs.replace(self.invocation, invocation_id=ident, run=run)
            )
        if self.early_manifest is not None:
            publication.send(ident, "graph.json.zst")
            publication.send(ident, "manifest.early.json.zst")
        publication.send_segments(ident)
        if time.monotonic() - self._last_beat >= HEARTBEAT_SECONDS:
            publication.heartbeat(self.invocation)
            self._last_beat = time.monotonic()

    def attempt(self, action: Callable[[], None]) -> None:
        """Do something with the archive; remember why it did not work."""
        try:
            action()
            self.trouble = ""
        except AlreadyArchived as exc:
            self.trouble = exc.message
            self._not_before = float("inf")
        except RecoverError as exc:
            self.trouble = exc.message
            self._not_before = time.monotonic() + RETRY_SECONDS


class _Tail:
    """Reads what a file has grown by, in whole lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stream: BinaryIO | None = None
        self._rest = b""

    def read(self, *, last: bool = False) -> Iterator[list[bytes]]:
        """Lines since the last call; with `last` also one without an end, and the file is closed."""
        if self._stream is None:
            if not self._path.exists():
                return
            self._stream = self._path.open("rb")
        while chunk := self._stream.read(1 << 20):
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            yield lines
        if last:
            self._stream.close()
            if self._rest:
                yield [self._rest]


def read_log(directory: Path, root: str) -> list[Record]:
    """All records of a log directory that a recorder left."""
    records = [
        parse_event(line)
        for lines in _Tail(directory / "dbt.log").read(last=True)
        for line in lines
    ]
    spans = _Tail(directory / journal_v2.FILE).read(last=True)
    hidden = secret_values()
    records += [journal_v2.parse_span(line, root, hidden) for lines in spans for line in lines]
    return [r for r in records if r is not None]
