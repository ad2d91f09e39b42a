"""An archived file, piece by piece: a manifest of 159 MB need not be held in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import zstandard

from . import layout
from .errors import DamagedError
from .model import Artifact
from .storage.base import MissingKey, Storage

_CHUNK = 1 << 20


def intact(storage: Storage, artifact: Artifact) -> Iterator[bytes]:
    """The file as dbt wrote it. DamagedError, at the latest after the last piece, if it is not what
    the commit record names: who writes it somewhere waits for the end before it is used."""
    key, digest, size = artifact.key, hashlib.sha256(), 0
    if not key.startswith(layout.DATA):
        raise DamagedError(f"a commit record names {key!r}, outside of {layout.DATA}")
    try:
        source = storage.open(key)
    except MissingKey as exc:
        raise DamagedError(f"{key} is missing from {storage.url}") from exc
    with closing(source):
        try:
            with zstandard.ZstdDecompressor().stream_reader(source) as reader:
                while chunk := reader.read(_CHUNK):
                    size += len(chunk)
                    if size > artifact.size:
                        raise DamagedError(f"{key} grows beyond the {artifact.size} bytes it had")
                    digest.update(chunk)
                    yield chunk
        except zstandard.ZstdError as exc:
            raise DamagedError(f"{key} is damaged or cut short: {exc}") from exc
    if size < artifact.size:
        raise DamagedError(f"{key} is cut short: it holds {size} bytes of {artifact.size}")
    if artifact.sha256 and digest.hexdigest() != artifact.sha256:
        raise DamagedError(f"{key} in {storage.url} is not what was written (sha256)")


def save(storage: Storage, artifact: Artifact, path: Path) -> None:
    """Write the file to path. DamagedError if it is not intact; then there is nothing at path."""
    try:
        with path.open("wb") as file:
            for piece in intact(storage, artifact):
                file.write(piece)
    except DamagedError:
        path.unlink(missing_ok=True)
        raise
