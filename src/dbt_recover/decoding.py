"""Large JSON documents -> typed records: what damage is called, and the collector kept out."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from mmap import mmap
from typing import TypeAlias, TypeVar

import msgspec

from .errors import DamagedError

Buffer: TypeAlias = bytes | bytearray | memoryview | mmap
"""What can be read from. Nothing of it is kept by `read_graph`: a mapped file can be closed."""

_T = TypeVar("_T")


@contextmanager
def collector_paused() -> Iterator[None]:
    """Decoding makes no cycles, and the collector would walk each list made so far, many times."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def decode(decoder: msgspec.json.Decoder[_T], data: Buffer, name: str, what: str) -> _T:
    """Decode it; DamagedError for what is empty, cut short, or not a dbt `what`; `name` is what
    errors call it."""
    if not len(data):
        raise DamagedError(f"{name} is empty")
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        raise DamagedError(f"{name} is not a dbt {what}: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DamagedError(f"{name} is not whole JSON: {error}") from error
    except RecursionError as error:
        raise DamagedError(f"{name} is not a dbt {what}: it is nested too deeply") from error
