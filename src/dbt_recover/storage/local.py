"""An archive in a directory.

An object appears by one rename or link of a file that is complete and on the disk, so that a reader
sees all of it or nothing, whenever the writer dies. Every path is walked descriptor by descriptor
without following symbolic links: what is checked is what is opened.

Names beginning with `.#` are ours and no keys (`#` is in none): `.##<random>` is a file being
written, `.#<name>` the lock of the object <name>. Those a killed process leaves can be deleted.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ..errors import DamagedError, UsageError
from .base import (
    Blob,
    Entry,
    MissingKey,
    PreconditionFailed,
    Stat,
    check_folder,
    check_key,
    check_listing,
    check_size,
    is_key,
    is_since,
)
from .local_errors import named, refuse_link
from .local_files import Reader, lock, save

# Of a write whose folder a concurrent delete removes as empty.
_TRIES = 20
_BUFFER = 1 << 17

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


_CLOCK_NOISE = 2.0
"""Seconds by which the times of files may differ from this machine's clock without a reason."""


class LocalStorage:
    """Objects as files below `root`, which is created by the first write."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = str(root)
        self._ahead = 0.0
        self._ahead_known = False

    def read(self, key: str, *, max_bytes: int | None = None) -> Blob:
        """The object's bytes. `MissingKey` if there is none, `DamagedError` beyond max_bytes."""
        with self._file(key) as file:
            info = file.info()
            check_size(str(self._path(key)), info.st_size, max_bytes)
            etag = file.etag()
            file.seek(0)
            return Blob(file.readall(), etag, self._age(info))

    def open(self, key: str) -> BinaryIO:
        """A stream over the object, for the caller to close. `MissingKey` if there is none."""
        return io.BufferedReader(self._file(key), _BUFFER)

    def write(
        self,
        key: str,
        body: bytes | BinaryIO,
        *,
        if_absent: bool = False,
        if_match: str | None = None,
    ) -> str:
        """Store the object whole or not at all, and return its etag."""
        *folders, name = check_key(key).split("/")
        with named("write", self._path(key)):
            for left in reversed(range(_TRIES)):
                try:
                    with self._folder(folders, create=True) as folder:
                        return self._write(folder, name, key, body, if_absent, if_match)
                except FileNotFoundError:
                    if not left:
                        raise
        raise AssertionError("unreachable: the last try returned or raised")

    def list(self, prefix: str, *, since: str = "") -> Iterator[Entry]:
        """All objects whose key begins with prefix, in ascending key order; see Storage.

        Symbolic links met on the way are left out, as are all other names that are no keys.
        """
        return self._list(check_listing(prefix, since), since)

    def folders(self, prefix: str) -> builtins.list[str]:
        """Names directly below `prefix` that have an object below them, sorted."""
        parts = check_folder(prefix).split("/")[:-1]
        with named("list", self.root / prefix):
            try:
                with self._folder(parts) as folder:
                    names = [n for n, is_folder in _entries(folder) if is_folder]
            except (FileNotFoundError, NotADirectoryError):
                return []
        return [n for n in sorted(names) if next(self._list(f"{prefix}{n}/", ""), None)]

    def stat(self, key: str) -> Stat | None:
        """None if there is no such object."""
        try:
            with self._file(key) as file:
                info = file.info()
                return Stat(info.st_size, file.etag(), self._age(info))
        except MissingKey:
            return None

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        """Remove it, and the folders that this leaves empty; absent is fine."""
        *folders, name = check_key(key).split("/")
        with named("delete", self._path(key)):
            try:
                with self._folder(folders) as folder:
                    # Asked first without the lock: a directory we may not write to, with nothing
                    # to delete, is no error.
                    if not self._is_object(folder, name, key):
                        return
                    with lock(folder, name, self._path(key)):
                        if not self._is_object(folder, name, key):
                            return
                        if if_match is not None:
                            self._compare(folder, name, key, if_match)
                        os.unlink(name, dir_fd=folder)
                        os.fsync(folder)
            except (FileNotFoundError, NotADirectoryError):
                return
        # Not empty, or used again this moment: then it stays.
        with suppress(OSError):
            for depth in reversed(range(len(folders))):
                with self._folder(folders[:depth]) as parent:
                    os.rmdir(folders[depth], dir_fd=parent)

    def _path(self, key: str) -> Path:
        """For messages only; what is opened is opened part by part."""
        return self.root / key

    @contextmanager
    def _folder(self, parts: builtins.list[str], *, create: bool = False) -> Iterator[int]:
        """A descriptor of that directory. FileNotFoundError or NotADirectoryError if it is none."""
        folder = self._open_root(create=create)
        try:
            for depth, part in enumerate(parts, start=1):
                inner = self._enter(folder, part, self.root.joinpath(*parts[:depth]), create)
                os.close(folder)
                folder = inner
            yield folder
        finally:
            os.close(folder)

    def _open_root(self, *, create: bool) -> int:
        # The root itself may be a link: the user named it.
        flags = _FOLDER & ~os.O_NOFOLLOW
        try:
            return os.open(self.root, flags)
        except NotADirectoryError as error:
            raise UsageError(f"{self.root} is not a directory", hint="name another") from error
        except FileNotFoundError:
            if not create:
                raise
        for path in reversed([self.root, *self.root.parents]):
            if not path.exists():
                with suppress(FileExistsError):
                    path.mkdir(mode=0o700)
        return os.open(self.root, flags)

    @staticmethod
    def _enter(folder: int, part: str, path: Path, create: bool) -> int:
        try:
            return os.open(part, _FOLDER, dir_fd=folder)
        except FileNotFoundError:
            if not create:
                raise
        except OSError as error:
            # Systems differ in what they call a link here: ELOOP, ENOTDIR, EMLINK.
            with suppress(PermissionError):
                refuse_link(os.lstat(part, dir_fd=folder).st_mode, path)
            error.filename = str(path)
            raise
        with suppress(FileExistsError):
            os.mkdir(part, 0o700, dir_fd=folder)
            os.fsync(folder)
        return os.open(part, _FOLDER, dir_fd=folder)

    def _file(self, key: str) -> Reader:
        *folders, name = check_key(key).split("/")
        path = self._path(key)
        with named("read", path):
            try:
                with self._folder(folders) as folder:
                    if not self._is_object(folder, name, key):
                        raise MissingKey(f"there is no {path}")
                    return Reader(folder, name, path)
            except (FileNotFoundError, NotADirectoryError) as error:
                raise MissingKey(f"there is no {path}") from error

    def _is_object(self, folder: int, name: str, key: str) -> bool:
        """DamagedError for what is neither object nor folder: a link, a FIFO, a device."""
        try:
            mode = os.lstat(name, dir_fd=folder).st_mode
        except FileNotFoundError:
            return False
        refuse_link(mode, self._path(key))
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise DamagedError(
                f"{self._path(key)} is neither a file nor a directory",
                hint="it is nothing that an archive has: move it away",
            )
        return stat.S_ISREG(mode)

    def _compare(self, folder: int, name: str, key: str, etag: str) -> None:
        with Reader(folder, name, self._path(key)) as file:
            current = file.etag()
        if current != etag:
            raise PreconditionFailed(f"{self._path(key)} has been changed by another")

    def _age(self, info: os.stat_result) -> float:
        """By the clock that sets the times of files: on a network disk that is the server's."""
        return max(0.0, time.time() + self._ahead - info.st_mtime)

    def clock(self) -> float:
        """The time by the disk's own clock, as far as something was written; else this machine's."""
        return time.time() + self._ahead

    def _learn_clock(self, folder: int, name: str) -> None:
        """From a file that was written just now."""
        if not self._ahead_known:
            ahead = os.stat(name, dir_fd=folder).st_mtime - time.time()
            # Less is the time that writing took.
            self._ahead = ahead if abs(ahead) > _CLOCK_NOISE else 0.0
            self._ahead_known = True

    def _write(
        self,
        folder: int,
        name: str,
        key: str,
        body: bytes | BinaryIO,
        if_absent: bool,
        if_match: str | None,
    ) -> str:
        exists = self._is_object(folder, name, key)
        temporary = ".##" + os.urandom(8).hex()
        try:
            if if_absent and exists:
                if not self._ahead_known:
                    # Who is refused a lease asks next how old the other's is.
                    save(folder, temporary, b"")
                    self._learn_clock(folder, temporary)
                raise PreconditionFailed(f"{self._path(key)} exists already")
            etag = save(folder, temporary, body)
            self._learn_clock(folder, temporary)
            if not (if_absent and self._link(folder, temporary, name, key)):
                with lock(folder, name, self._path(key)):
                    exists = self._is_object(folder, name, key)
                    if if_absent and exists:
                        raise PreconditionFailed(f"{self._path(key)} exists already")
                    if if_match is not None:
                        if not exists:
                            raise PreconditionFailed(f"{self._path(key)} is no longer there")
                        self._compare(folder, name, key, if_match)
                    os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
            os.fsync(folder)
            return etag
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=folder)

    def _link(self, folder: int, temporary: str, name: str, key: str) -> bool:
        """Publish if the name is free; False where the file system has no hard links."""
        try:
            os.link(temporary, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
        except FileExistsError as error:
            # Over NFS the answer to a link that was made can be lost, and the repeated call says
            # it exists: then our file has two names.
            if os.lstat(temporary, dir_fd=folder).st_nlink == 2:
                return True
            if not self._is_object(folder, name, key):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)) from error
            raise PreconditionFailed(f"{self._path(key)} exists already") from error
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                return False
            raise
        return True

    def _list(self, prefix: str, since: str) -> Iterator[Entry]:
        parts = prefix.split("/")[:-1]
        with named("list", self.root / prefix, self.root):
            try:
                with self._folder(parts) as folder:
                    yield from _walk(folder, "".join(f"{p}/" for p in parts), prefix, since)
            except (FileNotFoundError, NotADirectoryError):
                return


def _entries(folder: int) -> list[tuple[str, bool]]:
    """Names that can be (part of) a key, and whether each is a folder. No links, no devices."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            is_folder = entry.is_dir(follow_symlinks=False)
            if (is_folder or entry.is_file(follow_symlinks=False)) and is_key(entry.name):
                found.append((entry.name, is_folder))
    return found


def _walk(folder: int, base: str, prefix: str, since: str) -> Iterator[Entry]:
    """Objects below an open directory in the order of their keys.

    A folder sorts as its name and a slash: `a-b` comes before `a/b`. One that can hold nothing of
    prefix, or nothing from since on, is not opened.
    """
    paths = (f"{base}{name}/" if is_folder else base + name for name, is_folder in _entries(folder))
    for path in sorted(paths):
        if not is_since(path, prefix, since):
            continue
        name = path[len(base) :].rstrip("/")
        if not path.endswith("/"):
            if path.startswith(prefix) and is_key(path):
                try:
                    size = os.lstat(name, dir_fd=folder).st_size
                except FileNotFoundError:
                    continue  # deleted since
                except OSError as error:
                    error.filename = path
                    raise
                yield Entry(path, size)
        elif path.startswith(prefix) or prefix.startswith(path):
            try:
                inner = os.open(name, _FOLDER, dir_fd=folder)
            except (FileNotFoundError, NotADirectoryError):
                continue  # gone, or replaced, since it was listed
            except OSError as error:
                error.filename = path
                raise
            try:
                yield from _walk(inner, path, prefix, since)
            finally:
                os.close(inner)
