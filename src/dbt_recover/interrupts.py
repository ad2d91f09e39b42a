"""SIGINT, SIGTERM and SIGHUP while dbt is at work and while its record is on its way.

The first one interrupts dbt, a second one kills it, and all that is left to do afterwards has to
be done soon: whoever sent it kills us next.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

GRACE_SECONDS = 20.0
"""How long an interrupted dbt may take to cancel its queries before it is killed."""
LEAVE_SECONDS = 27.0
"""How long after the first signal we are gone: Kubernetes and systemd kill after 30."""
_SAME_SECONDS = 0.5
"""Within this a signal is the first one once more: sent to the process and to its group."""


class Interrupts:
    """Handles the signals from `with` to its end. For the main thread."""

    def __init__(self) -> None:
        self.received = 0
        """The first signal that came, 0 if none."""
        self.killed = False
        """Whether dbt had to be killed."""
        self._target = 0
        self._kill_at: float | None = None
        self._leave_at: float | None = None
        self._first_at = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # under nohup it stays unheard
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def watch(self, group: int) -> None:
        """From now on dbt is this process group; 0 when it has ended."""
        self._target, self._kill_at, self.killed = group, None, False
        if group and self.received:
            self.stop_dbt()

    def stop_dbt(self) -> None:
        """Ask dbt to stop, once."""
        if self._kill_at is None:
            self._kill_at = time.monotonic() + GRACE_SECONDS
            self._send(signal.SIGINT)

    def enforce(self) -> None:
        """Kill a dbt that was asked to stop and did not."""
        if self._kill_at is not None and time.monotonic() > self._kill_at:
            self._kill()

    def patiently(self, action: Callable[[], None]) -> bool:
        """Do what may take long, such as a request to a store that does not answer. False if it
        was left undone because we have to leave; it may go on until the process ends."""
        errors: list[BaseException] = []

        def work() -> None:
            try:
                action()
            except BaseException as exc:  # noqa: BLE001 - raised again below, by who waits
                errors.append(exc)

        thread = threading.Thread(target=work, name="dbt-recover-delivery", daemon=True)
        thread.start()
        done = self.join(thread)
        if errors:
            raise errors[0]
        return done

    def join(self, thread: threading.Thread) -> bool:
        """Wait for a daemon thread to end; False if we have to leave before it does."""
        while thread.is_alive():
            thread.join(0.1)
            if self._leave_at is not None and time.monotonic() > self._leave_at:
                return not thread.is_alive()
        return True

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.received:
            self.received, self._first_at = number, now
            self._leave_at = now + LEAVE_SECONDS
            if self._target:
                self.stop_dbt()
        elif now - self._first_at < _SAME_SECONDS:
            return
        elif self._target:
            self._kill()
        else:
            self._leave_at = now

    def _kill(self) -> None:
        self.killed = True
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        try:
            os.killpg(self._target, number)
        except ProcessLookupError:
            return
