"""Single files in an open directory: written whole, identified, locked."""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ..errors import StorageError
from .local_errors import named

if TYPE_CHECKING:
    from typing_extensions import Buffer

_CHUNK = 1 << 20
# Up to here the etag is the content's hash; beyond, hashing on every stat would cost too much.
_HASHED = 1 << 20
# A lock is held for a rename and one small hash; who holds it longer is stopped or gone.
_LOCK_SECONDS = 30.0
# Without O_NONBLOCK, opening a FIFO that somebody put there would wait for ever.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK


class Reader(io.FileIO):
    """A file whose read errors (a failing disk, a stale mount) are StorageErrors."""

    def __init__(self, folder: int, name: str, path: Path) -> None:
        super().__init__(os.open(name, _READ, dir_fd=folder), "rb")
        self._path = path

    def info(self) -> os.stat_result:
        """Of the open file, whatever has its name by now."""
        return os.fstat(self.fileno())

    def etag(self) -> str:
        """Changes with the content. Moves the position; to be asked first."""
        info = self.info()
        small = info.st_size <= _HASHED
        return _etag(info, hashlib.sha256(self.readall()).hexdigest() if small else "")

    def readinto(self, buffer: Buffer, /) -> int:
        with named("read", self._path):
            return super().readinto(buffer) or 0

    def readall(self) -> bytes:
        with named("read", self._path):
            return super().readall() or b""


def save(folder: int, name: str, body: bytes | BinaryIO) -> str:
    """Write a new file, onto the disk, and return its etag."""
    digest = hashlib.sha256()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    descriptor = os.open(name, flags, 0o600, dir_fd=folder)
    try:
        for chunk in _chunks(body):
            digest.update(chunk)
            rest = memoryview(chunk)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
        info = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    return _etag(info, digest.hexdigest())


def _chunks(body: bytes | BinaryIO) -> Iterator[bytes]:
    if isinstance(body, bytes):
        yield body
        return
    body.seek(0)
    while chunk := body.read(_CHUNK):
        yield chunk


def _etag(info: os.stat_result, digest: str) -> str:
    if info.st_size <= _HASHED:
        return digest
    # Objects are only ever replaced by new files, so that the inode or the time differs.
    return f"{info.st_size:x}-{info.st_mtime_ns:x}-{info.st_ino:x}"


@contextmanager
def lock(folder: int, name: str, path: Path) -> Iterator[None]:
    """Hold the object's lock, against threads and processes alike. It goes with its holder."""
    own = ".#" + name
    give_up = time.monotonic() + _LOCK_SECONDS
    while (descriptor := _try_lock(folder, own)) is None:
        if time.monotonic() > give_up:
            raise StorageError(
                f"cannot lock {path}: another process has held it for {_LOCK_SECONDS:.0f} s",
                hint=f"find it with: fuser {path.parent / own}",
            )
        time.sleep(0.002 + 0.01 * os.urandom(1)[0] / 256)
    try:
        yield
    finally:
        # Removed while it is held: who waits for it sees that its name is gone, and begins again.
        with suppress(FileNotFoundError):
            os.unlink(own, dir_fd=folder)
        os.close(descriptor)


def _try_lock(folder: int, own: str) -> int | None:
    descriptor = os.open(own, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600, dir_fd=folder)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), os.lstat(own, dir_fd=folder)):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None
