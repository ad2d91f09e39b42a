"""One tree of errors; each class carries its exit code.

A message names the thing and says what is wrong; `next_step` is what to do or type then.
The table in docs/exit-codes.md is checked against this module by a test.
"""

from __future__ import annotations

import signal


class RecoverError(Exception):
    """Base of all errors that are shown to a person without a traceback."""

    exit_code = 2
    usual_hint = "what can be given: dbt-recover --help"
    """What to do where nobody knows better."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        """What to do about this very error, if whoever raised it knows."""

    @property
    def next_step(self) -> str:
        """What to do about it."""
        return self.hint or self.usual_hint


class UsageError(RecoverError):
    """A wrong argument, option or configuration value."""

    exit_code = 2


class NotFoundError(RecoverError):
    """No such archive, run or object."""

    exit_code = 10
    usual_hint = "see what there is: dbt-recover runs"


class LockedError(RecoverError):
    """Somebody else is at work on this run; the message names the holder."""

    exit_code = 11
    usual_hint = "wait until that has ended, then try again"


class RefusedError(RecoverError):
    """Going on could break the warehouse or the promise; the hint names the flag that allows it."""

    exit_code = 12
    usual_hint = "see what would be done: dbt-recover plan"


class DamagedError(RecoverError):
    """Something that was read is truncated, altered, not what it says, or of an unknown version."""

    exit_code = 13
    usual_hint = (
        "bring it back from a backup or an older version of it; all that is wrong: "
        "dbt-recover verify"
    )


class StorageError(RecoverError):
    """The archive's storage cannot be reached, or does not permit the operation."""

    exit_code = 14
    usual_hint = "try again; what is wrong, and how to mend it: dbt-recover doctor"


class DbtError(RecoverError):
    """dbt was not found, did not start, or died before it ran a node."""

    exit_code = 15
    usual_hint = "see whether it runs by itself: dbt debug; and what is here: dbt-recover doctor"


EXIT_RECOVERED = 0
EXIT_STILL_FAILING = 1
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


def exit_code_of(number: int) -> int:
    """What a retry that this signal interrupted exits with."""
    return EXIT_TERMINATED if number == signal.SIGTERM else EXIT_INTERRUPTED


EXIT_CODES: dict[int, str] = {
    EXIT_RECOVERED: "recovered, or already complete (the output says which)",
    EXIT_STILL_FAILING: "nodes are still failing",
    UsageError.exit_code: "usage or configuration error",
    NotFoundError.exit_code: "no such archive or run",
    LockedError.exit_code: "locked by another (named)",
    RefusedError.exit_code: "refused for safety (the message names the flag that allows it)",
    DamagedError.exit_code: "damaged or unreadable archive or artifact",
    StorageError.exit_code: "storage unreachable or not permitted",
    DbtError.exit_code: "dbt did not start, or died before running a node",
    EXIT_INTERRUPTED: "interrupted (Ctrl-C, SIGINT)",
    EXIT_TERMINATED: "interrupted (SIGTERM)",
}
