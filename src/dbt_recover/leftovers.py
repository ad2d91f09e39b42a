"""Records that could not be delivered when they were made, and those of recorders that died."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from . import checkout
from .context import Where
from .errors import DamagedError, RecoverError, StorageError, UsageError
from .evidence import put_together
from .journal import fold
from .machine import process_lives, process_mark, this_machine
from .publish import AlreadyArchived, Publication, Spool, SpoolState, find_spools
from .recorder import Recorder, read_log
from .records import Commit


def resume_spools(where: Where, project: checkout.Project | None) -> str:
    """`archive --resume`: deliver what waits; says what was done."""
    if where.spool is None and project is None:
        raise UsageError("this is not a dbt project", hint="pass --spool DIR or --project-dir DIR")
    home = spool_home(where, project)
    waiting: list[RecoverError] = []
    delivered = deliver_leftovers(where, home, waiting=waiting)
    if waiting:
        last = waiting[-1]
        if isinstance(last, DamagedError):
            raise last
        raise StorageError(f"{len(waiting)} still wait in {home}: {last.message}", hint=last.hint)
    if not delivered:
        return f"nothing waits in {home}"
    return "delivered: " + ", ".join(f"run {r}" for r in delivered)


def spool_home(where: Where, project: checkout.Project | None) -> Path:
    """Where spools are kept here: as said, in the project, or, where that cannot be written (a
    project in a container image), among the temporary files of this user."""
    if where.spool is not None:
        return where.spool
    if project is not None and os.access(project.root, os.W_OK):
        return project.root / ".dbt-recover" / "spool"
    return Path(tempfile.gettempdir()) / f"dbt-recover-{os.getuid()}" / "spool"


def deliver_leftovers(
    where: Where, home: Path, *, quiet: bool = False, waiting: list[RecoverError] | None = None
) -> list[str]:
    """Bring to the archive what earlier recordings could not, and what died with its recorder.
    Returns the run ids delivered; why others could not be is said and added to `waiting`."""
    delivered = []
    for spool in find_spools(home):
        try:
            state = spool.state()
            if state.archive != where.archive.url or _lives(state):
                continue
            commit = spool.commit() or _close(spool, state)
            if commit is None:
                spool.remove()
                continue
            where.archive.check(create=True)
            done = Publication(where.archive, spool).finish(commit)
        except AlreadyArchived:
            spool.remove()
            continue
        except RecoverError as exc:
            if not quiet:
                where.say(f"dbt-recover: {spool.path} still waits: {exc.message}")
            if waiting is not None:
                waiting.append(exc)
            continue
        spool.remove()
        delivered.append(done.invocation.run.run_id)
    return delivered


def _close(spool: Spool, state: SpoolState) -> Commit | None:
    """Write the commit that a recorder which was killed could not; None if dbt had said nothing."""
    records = read_log(spool.path / "log", state.project_root)
    if not records:
        return None
    journal = fold(records)
    project = checkout.read_project(Path(state.project_root), for_dbt=True)
    recorder = Recorder(spool, None, state.invocation, project)
    recorder.take_up(records)
    commit, _ = put_together(spool, recorder, journal, None, state)
    spool.keep_commit(commit)
    return commit


def _lives(state: SpoolState) -> bool:
    """Whether the recorder of this spool, or its dbt, may still be at work."""
    if state.invocation.machine != this_machine():
        return True  # another machine's, on a shared disk: its to finish
    own = process_mark(os.getpid())
    return any(process_lives(mark) for mark in state.processes if mark != own)
