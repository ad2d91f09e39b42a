"""Records that could not be delivered when they were made, and those of recorders that died."""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from . import checkout
from .archive import HEARTBEAT_LOST_AFTER
from .context import Where
from .errors import (
    DamagedError,
    LockedError,
    RecoverError,
    RefusedError,
    StorageError,
    UsageError,
)
from .evidence import put_together
from .journal import fold
from .machine import process_lives, process_mark, this_machine
from .publish import AlreadyArchived, Publication, Spool, SpoolState, find_spools
from .recorder import Recorder, read_log
from .records import Commit


def resume_spools(where: Where, project: checkout.Project | None) -> str:
    """`archive --resume`: deliver what waits; says what was done, and what still waits and why.
    Raises the most serious of what stands in the way."""
    if where.spool is None and project is None:
        raise UsageError("this is not a dbt project", hint="pass --spool DIR or --project-dir DIR")
    home = spool_home(where, project)
    found = deliver_leftovers(where, home)
    if found.failed:
        worst = min(found.failed, key=_seriousness)
        count = len(found.failed)
        kind = next((k for k in _SERIOUS if isinstance(worst, k)), StorageError)
        raise kind(f"{count} still wait in {home}: {worst.message}", hint=worst.hint)
    if found.delivered:
        return "delivered: " + ", ".join(f"run {r}" for r in found.delivered)
    return f"nothing waits in {home}" if not found.left else f"nothing to deliver in {home}"


_SERIOUS: tuple[type[RecoverError], ...] = (DamagedError, RefusedError, LockedError)
"""All else is an archive that cannot be had, which is the least: it may pass by itself."""


def _seriousness(error: RecoverError) -> int:
    return next((n for n, kind in enumerate(_SERIOUS) if isinstance(error, kind)), len(_SERIOUS))


def spool_home(where: Where, project: checkout.Project | None) -> Path:
    """Where spools are kept here: as said, in the project, or, where that cannot be written (a
    project in a container image), among the temporary files of this user."""
    if where.spool is not None:
        return where.spool
    if project is not None and os.access(project.root, os.W_OK):
        return project.root / ".dbt-recover" / "spool"
    return temporary_home()


def temporary_home() -> Path:
    """Where spools are kept that found no other place."""
    return Path(tempfile.gettempdir()) / f"dbt-recover-{os.getuid()}" / "spool"


@dataclass
class Delivery:
    """What became of the spools that were found."""

    delivered: list[str] = field(default_factory=list)
    """Run ids."""
    left: int = 0
    """Not ours to deliver now."""
    failed: list[RecoverError] = field(default_factory=list)


def deliver_leftovers(where: Where, home: Path, *, quiet: bool = False) -> Delivery:
    """Bring to the archive what earlier recordings could not, and what died with its recorder.
    What cannot be delivered is said; one that is damaged does not stop the others."""
    found = Delivery()

    def say(text: str) -> None:
        if not quiet:
            where.say(f"dbt-recover: {text}")

    for spool in [s for h in dict.fromkeys((home, temporary_home())) for s in find_spools(h)]:
        try:
            state = spool.state()
            why = _not_ours(where, spool, state)
            if why:
                found.left += 1
                say(f"{spool.path} is left: {why}")
                continue
            commit = spool.commit() or _close(spool, state)
            where.archive.check(create=True)
            done = Publication(where.archive, spool).finish(commit)
            spool.remove()
            found.delivered.append(done.invocation.run.run_id)
        except AlreadyArchived:
            spool.remove()
        except RecoverError as exc:
            if not spool.path.exists():
                continue  # another has delivered it meanwhile
            found.failed.append(exc)
            if not quiet or isinstance(exc, DamagedError):
                where.say(f"dbt-recover: {spool.path} still waits: {exc.message}")
        except OSError as exc:
            if spool.path.exists():
                found.failed.append(StorageError(f"{spool.path} cannot be read: {exc}"))
                say(f"{spool.path} still waits: {exc}")
        finally:
            spool.release()
    return found


def _close(spool: Spool, state: SpoolState) -> Commit:
    """Write the commit that a recorder which was killed could not. dbt may have said nothing yet:
    then all that is known is that the command was begun."""
    records = read_log(spool.path / "log", state.project_root)
    journal = fold(records)
    project = checkout.read_project(Path(state.project_root), for_dbt=True)
    recorder = Recorder(spool, None, state.invocation, project)
    recorder.take_up(records)
    commit, _ = put_together(spool, recorder, journal, None, state)
    spool.keep_commit(commit)
    return commit


def _not_ours(where: Where, spool: Spool, state: SpoolState) -> str:
    """Why this spool is not to be delivered now; empty if it is."""
    if state.archive != where.archive.url:
        return f"it is for another archive, {state.archive}"
    if not spool.hold():
        return "somebody is at work on it"
    if spool.commit() is not None:
        return ""  # all is decided: whoever can reach the archive may bring it there
    if state.invocation.machine != this_machine():
        # Another boot of this machine, a container that is gone, or, on a shared disk without
        # locks, a machine that is at work.
        silent = time.time() - max(p.stat().st_mtime for p in (spool.path, *_logs(spool)))
        return "" if silent > HEARTBEAT_LOST_AFTER else "another machine wrote to it a moment ago"
    own = process_mark(os.getpid())
    lives = any(process_lives(mark) for mark in state.processes if mark != own)
    return "its dbt is still at work" if lives else ""


def _logs(spool: Spool) -> list[Path]:
    return [p for p in (spool.path / "log").glob("*") if p.is_file()]
