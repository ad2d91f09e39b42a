"""Processes that are killed, with SIGKILL, right before the nth thing that they change:
a file (whatever opens, renames, links or removes one) or an object in a bucket (whatever request puts or
deletes one). The steps are not listed anywhere: the nth is the nth that happens.

Each is forked from a server that has imported all it needs, so that one costs milliseconds.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from dbt_recover.storage import Storage, open_storage, s3
from dbt_recover.storage.options import S3Options
from dbt_recover.storage.s3_client import connect
from servers import aws_environment

_CHANGES = frozenset(
    {"os.rename", "os.link", "os.symlink", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True)
class Place:
    """Where an archive is, for a process that opens it itself."""

    url: str
    s3: dict[str, Any] = field(default_factory=dict)
    environ: dict[str, str] = field(default_factory=aws_environment)

    def open(self) -> Storage:
        """It."""
        return open_storage(self.url, self.s3)


class _Countdown:
    """SIGKILL to this very process when it has been called so often."""

    def __init__(self, step: int) -> None:
        self.left = step

    def __call__(self) -> None:
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1


def _on_files(countdown: _Countdown) -> None:
    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in _CHANGES or (
            event == "open" and isinstance(args[2], int) and args[2] & _WRITING
        ):
            countdown()

    sys.addaudithook(hook)


def _on_requests(storage: Any, countdown: _Countdown) -> None:
    """Before each request that changes something: what has been answered when the next one leaves
    is what is there at any moment in between."""

    def before(request: Any, **_: Any) -> None:
        if request.method in ("PUT", "DELETE", "POST"):
            countdown()

    storage._client.meta.events.register("before-send.s3", before)


@contextmanager
def one_client() -> Iterator[None]:
    """All stores with the same options share a client meanwhile: making one takes longer than all
    that a step does with it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(s3, "connect", _connected)
        yield


@cache
def _connected(options: S3Options) -> Any:
    return connect(options)


@dataclass(frozen=True)
class Child:
    """A process that does something."""

    pid: int

    def wait(self) -> int:
        """Its exit code; negative for the signal that ended it."""
        return int(_ask("wait", self.pid))


def start(work: Callable[..., None], place: Place, *args: Any, step: int = -1) -> Child:
    """A process of its own that does `work(storage, *args)`; killed at its nth step, if any."""
    name = [work.__module__, work.__qualname__]
    return Child(int(_ask("start", name, asdict(place), list(args), step)))


def killed_at(step: int, work: Callable[..., None], place: Place, *args: Any) -> bool:
    """Whether the work was killed at its nth step; False if it came to its end."""
    code = start(work, place, *args, step=step).wait()
    assert code in (0, -signal.SIGKILL), f"step {step}: ended with {code}"
    return code != 0


def until_done(
    work: Callable[..., None], make: Callable[[], tuple[Any, ...]], *, least: int = 4
) -> Iterator[tuple[Any, ...]]:
    """Kill the work at its first step, its second, ... each time on what `make` made anew: a Place
    and the other arguments; yields them after each kill, until it comes to its end."""
    for step in range(1000):
        made = make()
        if not killed_at(step, work, *made):
            assert step > least
            return
        yield made
    raise AssertionError("not done after 1000 steps")


# ---- the server of processes ---------------------------------------------------------------------


def _ask(*words: Any) -> Any:
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps(words) + "\n")
    server.stdin.flush()
    answer = server.stdout.readline()
    assert answer, "the server of processes has ended"
    return json.loads(answer)


@cache
def _server() -> subprocess.Popen[str]:
    """Ends when this process does: its input ends then."""
    here = Path(__file__).parent
    paths = [str(here), str(here.parent / "src"), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )


def _serve() -> None:
    # A killed process loses nothing that it wrote; only a machine without power does.
    os.fsync = lambda fd: None
    # Under its own name, too: so tests and their work know it.
    for name in ("killing", "killed_work", "dbt_recover.storage.s3"):
        importlib.import_module(name)
    s3.connect = _connected  # type: ignore[attr-defined]
    for line in sys.stdin:
        command, *words = json.loads(line)
        if command == "start":
            Place(**words[1]).open()  # the child inherits the client
            pid = os.fork()
            if pid == 0:
                os.close(0)
                _do(*words)
            answer = pid
        else:
            answer = os.waitstatus_to_exitcode(os.waitpid(words[0], 0)[1])
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


def _do(name: list[str], where: dict[str, Any], args: list[Any], step: int) -> None:
    """The child: does the work and ends, with 1 and a traceback if that failed."""
    code = 1
    try:
        place = Place(**where)
        os.environ.update(place.environ)
        storage = place.open()
        if step >= 0:
            countdown = _Countdown(step)
            if place.s3:
                _on_requests(storage, countdown)
            else:
                _on_files(countdown)
        getattr(importlib.import_module(name[0]), name[1])(storage, *args)
        code = 0
    except Exception:  # noqa: BLE001 - the parent is told by the exit code
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
