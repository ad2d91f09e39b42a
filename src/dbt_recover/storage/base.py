"""What the archive asks of a store, and nothing more.

Keys are `/`-separated, relative, of printable ASCII without `..`, `//`, backslash or control
characters (`check_key`). All methods raise `StorageError` (exit 14) when the store cannot be
reached or does not permit the call, after a bounded number of tries of what may pass.
"""

from __future__ import annotations

import builtins
import io
import re
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple, Protocol

from ..errors import DamagedError, RecoverError, UsageError

_KEY = re.compile(r"[A-Za-z0-9!_.*'()~@=+,%-]+(/[A-Za-z0-9!_.*'()~@=+,%-]+)*")
_MAX_KEY = 900
_MAX_PART = 240
_CHUNK = 1 << 20


class MissingKey(RecoverError):
    """No object has this key (an expected answer, caught by the archive)."""

    exit_code = 10


class PreconditionFailed(RecoverError):
    """`if_absent` or `if_match` did not hold: somebody else was there first."""

    exit_code = 11


class Entry(NamedTuple):
    """One listed object."""

    key: str
    size: int
    """Bytes as stored."""


class Stat(NamedTuple):
    """What a store knows of one object."""

    size: int
    etag: str
    """Changes whenever the content does; what `if_match` takes."""
    age: float
    """Seconds since it was last written, by the store's own clock (not this machine's)."""


class Blob(NamedTuple):
    """An object read whole."""

    data: bytes
    etag: str
    age: float
    """Seconds since it was last written, by the store's own clock."""


class Storage(Protocol):
    """A flat, strongly consistent key-value store with conditional writes."""

    url: str
    """What the user would type to name it."""

    def read(self, key: str, *, max_bytes: int | None = None) -> Blob:
        """The object's bytes. `MissingKey` if there is none, `DamagedError` beyond max_bytes."""

    def open(self, key: str) -> BinaryIO:
        """A stream over the object, for the caller to close. `MissingKey` if there is none."""

    def write(
        self,
        key: str,
        body: bytes | BinaryIO,
        *,
        if_absent: bool = False,
        if_match: str | None = None,
    ) -> str:
        """Store the object whole or not at all, and return its etag.

        `body` as a stream is seekable and read from its start, more than once if tried again.
        `PreconditionFailed` when the condition does not hold; a response lost on the way to us
        after our own write took effect counts as success (the content is read back).
        """

    def list(self, prefix: str, *, since: str = "") -> Iterator[Entry]:
        """All objects whose key begins with prefix, in ascending key order. With `since` prefix is
        a folder, and what is below a name in it that sorts before `since` is not listed."""

    def folders(self, prefix: str) -> builtins.list[str]:
        """Names directly below `prefix` (ends in `/` or is empty) that have something below them,
        sorted, without slashes."""

    def stat(self, key: str) -> Stat | None:
        """None if there is no such object."""

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        """Remove it; absent is fine. `PreconditionFailed` if if_match is given and differs."""


def check_size(name: str, size: int, most: int | None) -> None:
    """DamagedError for an object that is larger than one of its kind can be."""
    if most is not None and size > most:
        raise DamagedError(
            f"{name} has {size} bytes, more than the {most} that an object of this kind can have"
        )


def whole(stream: BinaryIO | io.RawIOBase) -> bytes:
    """All that is left of a stream."""
    return b"".join(iter(lambda: stream.read(_CHUNK) or b"", b""))


def same_bytes(stream: BinaryIO | io.RawIOBase, body: bytes | BinaryIO) -> bool:
    """Whether the stream holds what was to be written, byte for byte."""
    expected = io.BytesIO(body) if isinstance(body, bytes) else body
    expected.seek(0)
    while chunk := stream.read(_CHUNK):
        if chunk != expected.read(len(chunk)):
            return False
    return not expected.read(1)


def check_key(key: str) -> str:
    """Return `key` if every store can hold it and it stays below the root; else UsageError."""
    parts = key.split("/")
    if (
        len(key) > _MAX_KEY
        or not _KEY.fullmatch(key)
        or any(p in (".", "..") or len(p) > _MAX_PART for p in parts)
    ):
        raise UsageError(
            f"not a key an archive can hold: {key[:120]!r}",
            hint="a prefix, and a key, is made of letters, digits and !_.*'()~@=+,%- with single "
            "slashes between its parts, none of them . or .. or longer than 240 characters",
        )
    return key


def is_key(text: str) -> bool:
    """Whether `check_key` accepts it. Listings leave out what it does not: files of other tools,
    our temporary ones, the empty `folder/` objects of S3 consoles."""
    try:
        check_key(text)
    except UsageError:
        return False
    return True


def check_prefix(prefix: str) -> str:
    """Return `prefix` if a key can begin with it (the empty one begins all); else UsageError."""
    # A whole key of the greatest length is a prefix, too.
    if not is_key(prefix):
        check_key(prefix + "x")
    return prefix


def check_listing(prefix: str, since: str) -> str:
    """Return `prefix` if it can be listed, from `since` on; else UsageError."""
    return check_folder(prefix) if since else check_prefix(prefix)


def is_since(key: str, prefix: str, since: str) -> bool:
    """Whether a listing of `prefix` from `since` on has the key."""
    return not since or key[len(prefix) :].partition("/")[0] >= since


def just_before(since: str) -> str:
    """A name before `since` with next to nothing in between, in the order of keys and in that of a
    walk through folders, which differ where a name is the beginning of another."""
    last = chr(ord(since[-1]) - 1)
    return f"{since[:-1]}{'.' if last == '/' else last}~"


def check_folder(prefix: str) -> str:
    """Return `prefix` if it is empty or a prefix that ends in a slash; else UsageError."""
    if prefix and not prefix.endswith("/"):
        raise UsageError(f"not a folder, it must end in a slash: {prefix[:120]!r}")
    return check_prefix(prefix)
