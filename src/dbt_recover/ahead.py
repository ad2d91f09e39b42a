"""Something that takes its time and leaves the interpreter alone (a request, a hash), begun before
it is needed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """What `function` returns or raises, by a thread of its own, which keeps no process alive."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._value: list[T] = []
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._value.append(self._function())
        except Exception as exc:  # noqa: BLE001  # it belongs to who asks for the value
            self._error = exc

    def result(self) -> T:
        """Wait for it."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._value.pop()
