"""The archive, written: one invocation at a time, commit record last.

An invocation is first kept in a *spool*, a local directory with everything that has to reach the
archive; `deliver` brings it there and can be repeated until it succeeds, from the same directory,
by whoever finds it. So an archive that is out of reach costs nothing but time.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import zstandard

from . import layout
from .archive import Archive
from .errors import DamagedError, RefusedError, StorageError
from .journal import Record
from .layout import FORMAT_VERSION, RunPlace
from .machine import process_mark
from .model import Artifact, Invocation, RunInfo
from .records import (
    Begun,
    Commit,
    InvocationPointer,
    Results,
    RunPointer,
    SignOfLife,
    decompress,
    sealed,
    summarise,
)
from .storage.base import PreconditionFailed

COMPRESSION_LEVEL = 8
"""Of zstd. A higher one takes more memory than a recorder should, for 2 % less."""
_USELESS = (
    "it cannot be delivered any more: see what the archive has of the run (dbt-recover plan), then "
    "remove its directory"
)
_GONE = "gone-"
"""Begins the name of a spool that is being removed."""


class AlreadyArchived(RefusedError):
    """This invocation is in the archive; `run_id` says where."""

    def __init__(self, invocation_id: str, run_id: str) -> None:
        super().__init__(f"invocation {invocation_id} is already archived, in run {run_id}")
        self.run_id = run_id


class SpoolState(msgspec.Struct, frozen=True, omit_defaults=True):
    """spool.json: what is being recorded, and for which archive."""

    archive: str
    processes: list[str]
    """Marks (see machine.process_mark) of the recorder and of its dbt."""
    invocation: Invocation
    project_root: str = ""
    target_path: str = ""


class Spool:
    """A local directory that holds one invocation until the archive has it. Whoever works on it
    holds its lock, which the kernel takes back when the process ends, however it ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = -1

    def hold(self) -> bool:
        """Take the lock; False if another has it. A file system without locks has none to say
        so."""
        if self._lock >= 0:
            return True
        try:
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            (self.path / "lock").stat()
        except (BlockingIOError, FileNotFoundError):  # another has it, or has just delivered it
            self.release()
            return False
        except OSError:
            return True
        return True

    def release(self) -> None:
        """Let others have it."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    @classmethod
    def create(cls, parent: Path, state: SpoolState) -> Spool:
        """A new one below parent. StorageError if it cannot be written."""
        spool = cls(parent / f"{os.getpid()}-{secrets.token_hex(4)}")
        for gone in parent.glob(f"{_GONE}*"):
            shutil.rmtree(gone, ignore_errors=True)
        try:
            (spool.path / "objects" / "journal").mkdir(parents=True, mode=0o700)
            spool.save(state)
        except OSError as exc:
            spool.remove()
            raise StorageError(
                f"cannot write {parent}: {exc.strerror}",
                hint="dbt-recover keeps its journal there; make it writable or pass "
                "--spool DIR (DBT_RECOVER_SPOOL)",
            ) from exc
        return spool

    def save(self, state: SpoolState) -> None:
        """Write spool.json, whole or not at all."""
        self._write("spool.json", msgspec.json.encode(state))

    def state(self) -> SpoolState:
        """Read spool.json; DamagedError if it is not whole."""
        try:
            return msgspec.json.decode((self.path / "spool.json").read_bytes(), type=SpoolState)
        except (OSError, msgspec.DecodeError) as exc:
            raise DamagedError(
                f"{self.path}/spool.json cannot be read: {exc}", hint=_USELESS
            ) from exc

    def _write(self, name: str, data: bytes) -> None:
        path = self.path / name
        temporary = path.with_name(path.name + ".part")
        temporary.write_bytes(data)
        temporary.replace(path)

    def object_path(self, name: str) -> Path:
        """Where an object of the data prefix is kept."""
        return self.path / "objects" / name

    def keep_file(self, name: str, source: Path) -> Artifact:
        """Compress source to `<name>.zst`, hashing what was read."""
        target = self.object_path(name + ".zst")
        temporary = target.with_name(target.name + ".part")
        digest = hashlib.sha256()
        compressor = zstandard.ZstdCompressor(level=COMPRESSION_LEVEL, write_checksum=True)
        with source.open("rb") as raw, temporary.open("wb") as out:
            size = os.fstat(raw.fileno()).st_size
            with compressor.stream_writer(out, size=size, closefd=False) as writer:
                while chunk := raw.read(1 << 20):
                    digest.update(chunk)
                    writer.write(chunk)
        temporary.replace(target)
        return Artifact(name, "", digest.hexdigest(), size, target.stat().st_size)

    def keep_bytes(self, name: str, data: bytes) -> Artifact:
        """The same for data at hand."""
        target = self.object_path(name + ".zst")
        temporary = target.with_name(target.name + ".part")
        stored = _compress(data)
        temporary.write_bytes(stored)
        temporary.replace(target)
        return Artifact(name, "", hashlib.sha256(data).hexdigest(), len(data), len(stored))

    def kept(self, name: str) -> Artifact:
        """An object kept earlier, looked at again. DamagedError if it is not whole."""
        path = self.object_path(name + ".zst")
        stored = path.read_bytes()
        data = decompress(stored, str(path), limit=1 << 40)
        return Artifact(name, "", hashlib.sha256(data).hexdigest(), len(data), len(stored))

    def keep_segment(self, number: int, records: list[Record]) -> None:
        """Write a journal segment."""
        encoder = msgspec.json.Encoder()
        body = b"".join(encoder.encode(r) + b"\n" for r in records)
        target = self.object_path(f"journal/{number:06d}.jsonl.zst")
        temporary = target.with_name(target.name + ".part")
        temporary.write_bytes(_compress(body))
        temporary.replace(target)

    def segments(self) -> list[Path]:
        """Journal segments kept so far, in order."""
        return sorted((self.path / "objects" / "journal").glob("*.jsonl.zst"))

    def keep_commit(self, commit: Commit) -> None:
        """Decide what will be committed; from here on `deliver` can be done by anybody."""
        self._write("commit.json", msgspec.json.encode(commit))

    def commit(self) -> Commit | None:
        """What was decided, if it was."""
        path = self.path / "commit.json"
        if not path.exists():
            return None
        try:
            return msgspec.json.decode(path.read_bytes(), type=Commit)
        except msgspec.DecodeError as exc:
            raise DamagedError(f"{path} is damaged: {exc}", hint=_USELESS) from exc

    def remove(self) -> None:
        """Forget it; the archive has all of it."""
        # In one step no spool any more: half of one could not be delivered.
        gone = self.path.with_name(_GONE + self.path.name)
        try:
            self.path.rename(gone)
        except OSError:
            gone = self.path
        shutil.rmtree(gone, ignore_errors=True)
        self.release()


def _compress(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=COMPRESSION_LEVEL, write_checksum=True).compress(data)


def find_spools(parent: Path) -> list[Spool]:
    """Spools that somebody left, oldest first."""
    found = []
    for path in parent.glob("*/spool.json") if parent.is_dir() else ():
        with suppress(OSError):  # another delivers and removes it right now
            if not path.parent.name.startswith(_GONE):
                found.append((path.stat().st_mtime, path.parent))
    return [Spool(path) for _, path in sorted(found)]


class Publication:
    """Brings one invocation from its spool to the archive."""

    def __init__(self, archive: Archive, spool: Spool) -> None:
        self.archive = archive
        self.spool = spool
        self.place: RunPlace | None = None
        self.processes = [process_mark(os.getpid())]
        self._sent: dict[str, str] = {}
        self._token = secrets.token_hex(4)

    def begin(self, invocation: Invocation) -> Invocation:
        """Register run and invocation and write begun.json. Returns the invocation with the run
        as it is registered: its beginning is the first invocation's.

        AlreadyArchived if the invocation belongs to another run already.
        """
        run = register_run(self.archive, invocation.run)
        invocation = msgspec.structs.replace(invocation, run=run)
        place = RunPlace.of(run.run_id, run.began)
        self._claim(invocation, place)
        self._put(place.begun(invocation.invocation_id), sealed(Begun(FORMAT_VERSION, invocation)))
        self.place = place
        return invocation

    def _begun(self, invocation: Invocation) -> bool:
        """Whether all that `begin` wrote, perhaps hours ago, is there."""
        place, archive, ident = self.place, self.archive, invocation.invocation_id
        return (
            place is not None
            and RunPlace.of(invocation.run.run_id, invocation.run.began) == place
            and archive.find(invocation.run.run_id) == place
            and archive.run_of_invocation(ident) == place
            and archive.storage.stat(place.begun(ident)) is not None
        )

    def _claim(self, invocation: Invocation, place: RunPlace) -> None:
        key = layout.invocation_pointer(invocation.invocation_id)
        body = msgspec.json.encode(
            InvocationPointer(FORMAT_VERSION, invocation.run.run_id, invocation.run.began)
        )
        try:
            self.archive.storage.write(key, body, if_absent=True)
        except PreconditionFailed:
            owner = self.archive.run_of_invocation(invocation.invocation_id)
            if owner is not None and owner.name != place.name:
                raise AlreadyArchived(invocation.invocation_id, owner.run_id) from None

    def send(self, invocation_id: str, name: str) -> str:
        """Bring one object of the spool to the archive, unless it was sent before. Returns its
        key: another than usual if somebody who died had left something else there."""
        if name in self._sent or self.place is None:
            return self._sent.get(name, "")
        key = self.place.data(invocation_id, name)
        with self.spool.object_path(name).open("rb") as body:
            try:
                self.archive.storage.write(key, body, if_absent=True)
            except PreconditionFailed:
                body.seek(0)
                mine = body.read()
                if self.archive.storage.read(key).data != mine:
                    key = self.place.data(invocation_id, f"{self._token}-{name}")
                    self._put(key, mine)
        self._sent[name] = key
        return key

    def send_segments(self, invocation_id: str) -> None:
        """Bring the journal segments that are not there yet."""
        for path in self.spool.segments():
            self.send(invocation_id, f"journal/{path.name}")

    def heartbeat(self, invocation: Invocation) -> None:
        """Say that the invocation is still running."""
        if self.place is not None:
            sign = SignOfLife(invocation.host, invocation.machine, self.processes)
            body = msgspec.json.encode(sign)
            self.archive.storage.write(self.place.heartbeat(invocation.invocation_id), body)

    def finish(self, commit: Commit) -> Commit:
        """Everything first, the commit record last. Returns it as it is in the archive.

        AlreadyArchived if somebody else committed this invocation.
        """
        before = set(self._sent)
        invocation = commit.invocation
        if not self._begun(invocation):
            invocation = self.begin(invocation)
        place = self.place
        assert place is not None
        ident = invocation.invocation_id
        if before:
            # Sent while dbt was at work, perhaps hours ago: is it still there?
            there = {e.key for e in self.archive.storage.list(place.data(ident, ""))}
            for name in [n for n in before if self._sent[n] not in there]:
                del self._sent[name]
        artifacts = []
        for artifact in commit.artifacts:
            key = self.send(ident, artifact.name + ".zst")
            artifacts.append(msgspec.structs.replace(artifact, key=key))
        self.send_segments(ident)
        commit = msgspec.structs.replace(commit, invocation=invocation, artifacts=artifacts)
        key = place.commit(ident)
        try:
            self.archive.storage.write(key, sealed(commit), if_absent=True)
        except PreconditionFailed:
            if self.archive.commit_of(place, ident).nonce != commit.nonce:
                complete_listing(self.archive, place, ident)
                raise AlreadyArchived(ident, invocation.run.run_id) from None
        results = self._results()
        self._put(summarise(commit, results).key(place, ident), b"")
        self.archive.storage.delete(place.heartbeat(ident))
        if any(a.name == "manifest.json" for a in artifacts):
            # The final manifest says all that the early one did.
            self.archive.storage.delete(place.data(ident, "manifest.early.json.zst"))
        return commit

    def _results(self) -> Results | None:
        path = self.spool.object_path("results.json.zst")
        if not path.exists():
            return None
        try:
            return msgspec.json.decode(decompress(path.read_bytes(), str(path)), type=Results)
        except msgspec.DecodeError as exc:
            raise DamagedError(f"{path} is damaged: {exc}", hint=_USELESS) from exc

    def _put(self, key: str, body: Any) -> None:
        try:
            self.archive.storage.write(key, body, if_absent=True)
        except PreconditionFailed:
            # Ours from an earlier try, or the same from another worker: objects are written once.
            return


def complete_listing(archive: Archive, place: RunPlace, invocation_id: str) -> None:
    """Write what `runs` shows of a committed invocation, if its writer died before it could."""
    prefix = place.records(invocation_id) + "~"
    if next(archive.storage.list(prefix), None) is None:
        key = archive.summary_of(place, invocation_id).key(place, invocation_id)
        with suppress(PreconditionFailed):
            archive.storage.write(key, b"", if_absent=True)


def register_run(archive: Archive, run: RunInfo) -> RunInfo:
    """Make the run known, or join it: the first writer's beginning is everybody's."""
    key = layout.run_pointer(run.run_id)
    body = msgspec.json.encode(RunPointer(FORMAT_VERSION, run))
    try:
        archive.storage.write(key, body, if_absent=True)
        return run
    except PreconditionFailed:
        pass  # it is known
    # Somebody who removes the run can have been faster: then it is made anew.
    return archive.registered(run.run_id) or register_run(archive, run)
