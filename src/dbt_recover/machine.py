"""Which machine this is, and whether a process of it lives."""

from __future__ import annotations

import hashlib
import os
from functools import cache
from pathlib import Path


@cache
def this_machine() -> str:
    """A name for this boot of this machine, or of this container: a pid recorded under another
    name means nothing here."""
    parts = [os.uname().nodename]
    for source in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        path = Path(source)
        try:
            parts.append(str(path.readlink()) if path.is_symlink() else path.read_text())
        except OSError:
            parts.append("")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def process_mark(pid: int) -> str:
    """`pid:start`, which no later process with the same pid shares; without the start where the
    system does not tell it, or when the process is gone."""
    return f"{pid}:{_start(pid)}".rstrip(":")


def process_lives(mark: str) -> bool:
    """Whether the process that `process_mark` named is still there."""
    pid, _, start = mark.partition(":")
    try:
        os.kill(int(pid), 0)
    except PermissionError:
        return True
    except (ProcessLookupError, ValueError):
        return False
    return not start or _start(int(pid)) == start


def _start(pid: int) -> str:
    """When the process began, in the kernel's ticks; empty if that cannot be told, or if it is a
    zombie: it has ended, and only its parent has not looked yet."""
    try:
        # The second field is the program's name in parentheses and can hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def who() -> str:
    """user@host, process 123: for a person who finds something locked."""
    import getpass  # imports much, and only records say who

    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{os.uname().nodename}, process {os.getpid()}"
