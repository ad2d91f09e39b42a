"""The only user of subprocess: an argv in, how it ended out.

dbt runs in a process group of its own, so that a SIGTERM sent to ours (Airflow's BashOperator
sends it to the whole group) does not kill it before it could cancel its queries. The first SIGINT
or SIGTERM we get is passed on as SIGINT, a second one, or a grace that ran out, kills. If we die
without a word, a guard interrupts dbt: a dbt that nobody records does not go on.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from .errors import DbtError
from .interrupts import GRACE_SECONDS, Interrupts

# Reads a pipe whose other end only we hold. At a word from us it leaves; when the pipe ends without
# one, we have died: dbt gets one SIGINT (a second one within milliseconds can leave dbt 1.11
# hanging in its ROLLBACK), and SIGKILL if it is still there after a while. A
# prctl(PR_SET_PDEATHSIG) signals once per thread of the dying parent.
_GUARD = """
read -r word && exit
kill -s INT -- "-$1" || exit
n=0
while [ $n -lt "$2" ] && kill -s 0 -- "-$1"; do sleep 1; n=$((n + 1)); done
kill -s KILL -- "-$1"
"""


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
    interrupts: Interrupts,
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
    try:
        process = subprocess.Popen(
            argv,
            env=dict(env),
            cwd=cwd,
            stdout=stdout,
            # Only a system call; Popen has `process_group` from Python 3.11 on.
            preexec_fn=_own_group,  # noqa: PLW1509
        )
    except OSError as exc:
        raise DbtError(
            f"cannot start {argv[0]}: {exc.strerror}",
            hint="check the command after `--`, or --dbt PATH",
        ) from exc
    with _guarded(process.pid):
        interrupts.watch(process.pid)
        on_start(process.pid)
        while True:
            try:
                process.wait(timeout=0.2)
                break
            except subprocess.TimeoutExpired:
                interrupts.enforce()
                if not keep_going():
                    interrupts.stop_dbt()
        ended = Ended(process.returncode, interrupts.received, interrupts.killed)
        interrupts.watch(0)
    return ended


def _own_group() -> None:
    os.setpgid(0, 0)
    # It is what we interrupt dbt with, and started with `&` in a script we ignore it ourselves.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def _guarded(group: int) -> Iterator[None]:
    """Have dbt's process group interrupted if the block is left by an error or by our death. Where
    no guard can be had, dbt runs without one."""
    try:
        guard = _guard(group)
    except OSError:
        yield
        return
    assert guard.stdin is not None
    try:
        yield
    except BaseException:
        guard.stdin.close()
        raise
    with suppress(BrokenPipeError):
        guard.communicate(b"done\n")


def _guard(group: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["/bin/sh", "-c", _GUARD, "dbt-recover-guard", str(group), str(int(GRACE_SECONDS))],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # What is sent to our group, or typed on our terminal, is not for it.
        start_new_session=True,
    )


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
