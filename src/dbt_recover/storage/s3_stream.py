"""An object's bytes as a stream that survives a broken connection."""

from __future__ import annotations

import io
import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError
from urllib3.exceptions import HTTPError

from ..errors import StorageError
from .base import MissingKey, PreconditionFailed

if TYPE_CHECKING:
    from typing_extensions import Buffer

_BACKOFF = 0.1


class ObjectStream(io.RawIOBase):
    """Reads from start to end, and goes on where a broken or short answer left off.

    `again(position)` asks for the same object from there; it fails when the object has changed.
    """

    def __init__(
        self, answer: dict[str, Any], again: Callable[[int], dict[str, Any]], url: str, tries: int
    ) -> None:
        super().__init__()
        self.size: int = answer["ContentLength"]
        self._body: Any = answer["Body"]
        self._again = again
        self._url = url
        self._left = tries - 1
        self._tries = tries
        self._position = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def close(self) -> None:
        """Also drops the connection if there is more to come."""
        if not self.closed:
            self._body.close()
        super().close()

    def readinto(self, buffer: Buffer, /) -> int:
        """StorageError when the object cannot be had to its end."""
        view = memoryview(buffer).cast("B")
        while self._position < self.size:
            try:
                chunk = self._body.read(len(view))
                if chunk:
                    view[: len(chunk)] = chunk
                    self._position += len(chunk)
                    return len(chunk)
                self._resume(None)
            except (BotoCoreError, HTTPError, OSError) as error:
                self._resume(error)
        return 0

    def _resume(self, cause: Exception | None) -> None:
        self._body.close()
        if self._left <= 0:
            raise StorageError(
                f"{self._url} ended after {self._position} of {self.size} bytes, "
                f"{self._tries} times",
                hint="try again",
            ) from cause
        time.sleep(random.uniform(0, _BACKOFF * 2 ** (self._tries - self._left)))
        self._left -= 1
        try:
            answer = self._again(self._position)
        except (MissingKey, PreconditionFailed) as error:
            raise StorageError(
                f"{self._url} was replaced while it was read", hint="try again"
            ) from error
        self._body = answer["Body"]
        start = str(answer.get("ContentRange", ""))
        if self._position and not start.startswith(f"bytes {self._position}-"):
            raise StorageError(f"{self._url}: the store does not send parts of objects (Range)")
