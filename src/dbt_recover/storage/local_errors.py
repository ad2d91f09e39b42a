"""What the operating system says, as errors that name the path and the way out."""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import DamagedError, StorageError

_FULL = "free some space there (df -h {path}), then run the command again"
_FORBIDDEN = "look at owner and mode (ls -ld {path} {object}) and who this process runs as (id)"
_DISK = "look at the disk and the mount (dmesg, mount)"
_HINTS = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EACCES: _FORBIDDEN,
    errno.EPERM: _FORBIDDEN,
    errno.EROFS: "the file system is mounted read-only: name a writable --archive",
    errno.EISDIR: "a directory archive cannot hold a key that is also a folder: move it away",
    errno.ENOTDIR: "a file is in the way of a folder: move it away, or name another --archive",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.EIO: _DISK,
    errno.ESTALE: _DISK,
    errno.ENOLCK: "this file system has no file locks, which an archive needs: name another one",
    errno.EOPNOTSUPP: "this file system lacks what an archive needs: name another one",
}


@contextmanager
def named(doing: str, path: Path, root: Path | None = None) -> Iterator[None]:
    """Turn an OSError inside into a StorageError: cannot <doing> <path>: why. With `root` the error
    may say in its filename what below that it is about."""
    try:
        yield
    except OSError as error:
        if root is not None and isinstance(error.filename, str):
            path = root / error.filename
        why = (error.strerror or str(error)).lower()
        # Of a whole file system the path as given is what `df` and `ls` can use.
        hint = _HINTS.get(error.errno or 0, "").format(path=path.parent, object=path)
        raise StorageError(f"cannot {doing} {path}: {why}", hint=hint) from error


def refuse_link(mode: int, path: Path) -> None:
    """DamagedError if mode is a symbolic link's: it could lead anywhere, so none is followed."""
    if stat.S_ISLNK(mode):
        raise DamagedError(
            f"{path} is a symbolic link; inside an archive none is followed",
            hint=f"replace it by what it points to (ls -l {path})",
        )
