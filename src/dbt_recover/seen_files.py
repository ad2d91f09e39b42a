"""What is known of a project's files from one `plan` to the next: reading thousands of files to
hash them, and YAML at all, costs more than all else that `plan` does.

A hash is taken from memory only while size, both times and inode of the file are what they were.
A file that was touched less than two seconds before it was read is not remembered: it could be
written again without a change in any of these. `exec` and `retry` read every file all the same.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

_SETTLED_NS = 2_000_000_000
"""No file system in use keeps times more coarsely."""

_Entry = tuple[int, int, int, int, str]
"""Size, mtime and ctime in ns, inode; SHA-256 in hex."""


class _Memory(msgspec.Struct, gc=False):
    files: dict[str, _Entry] = {}
    """Name relative to the project -> what it was."""
    settings_of: str = ""
    """SHA-256 of the dbt_project.yml whose settings these are."""
    settings: dict[str, Any] = {}


class SeenFiles:
    """What is remembered of one project."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known = self._now = _Memory()
        with suppress(OSError, msgspec.DecodeError, RecursionError):
            self._known = msgspec.msgpack.decode(path.read_bytes(), type=_Memory)
        self._now = _Memory({}, self._known.settings_of, self._known.settings)

    @classmethod
    def of(cls, root: Path, environ: Mapping[str, str]) -> SeenFiles:
        """Of the project there: in the user's cache directory ($XDG_CACHE_HOME or ~/.cache)."""
        given = environ.get("XDG_CACHE_HOME")
        home = Path(given) if given else Path.home() / ".cache"
        name = hashlib.sha256(os.fsencode(root)).hexdigest()[:32]
        return cls(home / "dbt-recover" / f"{name}.msgpack")

    def sha256(self, name: str, path: str, stat: os.stat_result) -> str:
        """Of the file's bytes, in hex. OSError if it has to be read and cannot be."""
        known = self._known.files.get(name)
        signature = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
        if known is not None and known[:4] == signature:
            self._now.files[name] = known
            return known[4]
        began = time.time_ns()
        digest = sha256_of(path)
        if max(stat.st_mtime_ns, stat.st_ctime_ns) < began - _SETTLED_NS:
            self._now.files[name] = (*signature, digest)
        return digest

    def settings(self, text: bytes) -> Mapping[str, Any] | None:
        """What was remembered of a dbt_project.yml with these bytes."""
        known = hashlib.sha256(text).hexdigest() == self._known.settings_of
        return self._known.settings if known else None

    def remember(self, text: bytes, settings: Mapping[str, Any]) -> None:
        """What this dbt_project.yml says."""
        self._now.settings_of = hashlib.sha256(text).hexdigest()
        self._now.settings = dict(settings)

    def keep(self) -> None:
        """For the next time; where that cannot be written, it is not kept."""
        if self._now == self._known:
            return
        import tempfile

        with suppress(OSError, TypeError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self.path.parent)
            with os.fdopen(handle, "wb") as file:
                file.write(msgspec.msgpack.encode(self._now))
            Path(name).replace(self.path)


def sha256_of(path: str) -> str:
    """Of a file's bytes, in hex."""
    with open(path, "rb") as file:  # noqa: PTH123  # thousands of them: a Path each would tell
        return hashlib.sha256(file.read()).hexdigest()
