"""The only user of subprocess: an argv in, how it ended out.

dbt runs in a process group of its own, so that a SIGTERM sent to ours (Airflow's BashOperator
sends it to the whole group) does not kill it before it could cancel its queries. The first SIGINT
or SIGTERM we get is passed on as SIGINT, a second one, or a grace that ran out, kills. If we die,
the kernel interrupts dbt (Linux): a dbt that nobody records does not go on.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any

from .errors import DbtError

GRACE_SECONDS = 20.0
"""How long an interrupted dbt may take to cancel its queries before it is killed."""

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Ended:
    """How a dbt process ended."""

    exit_code: int
    """dbt's own; negative for the signal that ended it."""
    interrupted: int = 0
    """The signal we were sent meanwhile, 0 if none."""
    killed: bool = False
    """Whether it had to be killed."""


def find_dbt(given: str | None, environ: Mapping[str, str]) -> str:
    """The dbt executable: as given, on PATH, or beside our own Python. DbtError if there is none."""
    candidates = [given] if given else ["dbt"]
    for name in candidates:
        found = shutil.which(name, path=environ.get("PATH"))
        if found:
            return found
    beside = Path(sys.executable).with_name("dbt")
    if not given and beside.exists():
        return str(beside)
    what = repr(given) if given else "dbt is not on PATH, and"
    raise DbtError(
        f"{what} cannot be found" if given else f"{what} not beside {sys.executable} either",
        hint="install it (pip install dbt-core dbt-YOURADAPTER) or pass --dbt PATH",
    )


def check_executable(name: str, environ: Mapping[str, str], cwd: Path) -> None:
    """DbtError if there is no such program."""
    given = str(Path(cwd, name)) if os.sep in name else name
    if shutil.which(given, path=environ.get("PATH")) is None:
        raise DbtError(
            f"cannot start {name}: there is no such program",
            hint="check the command after `--`, or --dbt PATH",
        )


def run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path,
    stdout: IO[Any] | int | None = None,
    keep_going: Callable[[], bool] = lambda: True,
    on_start: Callable[[int], None] = lambda _pid: None,
) -> Ended:
    """Run dbt to its end, with its output where ours goes (or to stdout, if given).

    `keep_going` is called several times a second; when it returns False dbt is interrupted.
    DbtError if it cannot be started.
    """
    with _Signals() as signals:
        try:
            process = subprocess.Popen(
                argv,
                env=dict(env),
                cwd=cwd,
                stdout=stdout,
                # Runs before any other thread of ours takes a lock: the recorder only reads files.
                preexec_fn=_child_setup(os.getpid()),  # noqa: PLW1509
            )
        except OSError as exc:
            raise DbtError(
                f"cannot start {argv[0]}: {exc.strerror}",
                hint="check the command after `--`, or --dbt PATH",
            ) from exc
        signals.target = process.pid
        on_start(process.pid)
        if signals.received:
            signals.interrupt()
        while True:
            try:
                process.wait(timeout=0.2)
                break
            except subprocess.TimeoutExpired:
                signals.enforce()
                if not keep_going():
                    signals.interrupt()
        return Ended(process.returncode, signals.received, signals.killed)


def capture(argv: Sequence[str], *, env: Mapping[str, str], cwd: Path | None = None) -> str:
    """What a short command prints. DbtError if it fails, or if it cannot be started."""
    try:
        done = subprocess.run(
            argv, env=dict(env), capture_output=True, text=True, check=False, cwd=cwd
        )
    except OSError as exc:
        raise DbtError(f"cannot start {argv[0]}: {exc.strerror}") from exc
    if done.returncode != 0:
        raise DbtError(f"{argv[0]} failed: {done.stderr.strip()[-500:]}")
    return done.stdout


def _child_setup(parent: int) -> Callable[[], None]:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None

    def setup() -> None:
        os.setpgid(0, 0)
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
            if os.getppid() != parent:
                os.kill(os.getpid(), signal.SIGINT)

    return setup


class _Signals:
    """Passes SIGINT and SIGTERM on to dbt while it runs."""

    def __init__(self) -> None:
        self.target = 0
        self.received = 0
        self.killed = False
        self._deadline: float | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        first = not self.received
        self.received = self.received or number
        if not self.target:
            return
        if first:
            self.interrupt()
        else:
            self._kill()

    def interrupt(self) -> None:
        """Ask dbt to stop, once."""
        if self._deadline is None:
            self._deadline = time.monotonic() + GRACE_SECONDS
            self._send(signal.SIGINT)

    def enforce(self) -> None:
        """Kill a dbt that was asked to stop and did not."""
        if self._deadline is not None and time.monotonic() > self._deadline:
            self._kill()

    def _kill(self) -> None:
        self.killed = True
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        try:
            os.killpg(self.target, number)
        except ProcessLookupError:
            return
