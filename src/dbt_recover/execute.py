"""exec: an invocation of dbt, recorded and archived whatever its end."""

from __future__ import annotations

import gc
import os
import shlex
import shutil
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import msgspec

from . import checkout, dbt, dbt_plugin, journal_v2
from .clock import after
from .command_line import (
    COMMANDS,
    RUNNING,
    DbtCommand,
    scrub,
    scrubbed,
    secret_values,
)
from .context import Identity, Where, own_version
from .errors import DbtError, LockedError, RecoverError, StorageError
from .interrupts import Interrupts
from .leftovers import deliver_leftovers, spool_home, temporary_home
from .machine import process_mark, this_machine
from .model import (
    Invocation,
    Recorded,
    RunInfo,
)
from .profiles import check_variables
from .publish import AlreadyArchived, Publication, Spool, SpoolState
from .query_tag import query_tag
from .recorder import Recorder
from .records import Commit, Verdict
from .surroundings import surrounding_args
from .text_log import LogForm, TextLog


@dataclass(frozen=True)
class Task:
    """What a retry adds to an invocation: its exact nodes, and what that makes of the run."""

    intended: Sequence[str]
    replaced: Mapping[str, str]
    judge: Callable[[Recorded], Verdict]
    """How the whole run stands after this invocation."""
    secrets: Sequence[str] = ()
    """Values given again for vars that were secret: not to be recorded."""
    went_before: Sequence[str] = ()
    """When the invocations began that it goes on from: it begins later, whatever the clock of this
    machine says."""
    keep_going: Callable[[], bool] = lambda: True
    """Asked while dbt runs; dbt is interrupted when it says no."""
    fence: Callable[[], None] = lambda: None
    """Raises LockedError if this attempt must not be published."""
    mark: str = ""
    """Of the command that it resumes, where it is one step of the run."""
    argv: Sequence[str] = ()
    """What is recorded instead of the real argv, whose selection means nothing to others."""


class NotKept(StorageError):
    """dbt has ended, and what it did could not be written down: a full disk."""

    def __init__(self, message: str, ended: dbt.Ended) -> None:
        super().__init__(
            message,
            hint="what had reached the archive before is known to it; make room, and look: "
            "dbt-recover plan",
        )
        self.ended = ended


@dataclass(frozen=True)
class Outcome:
    """How a recorded invocation ended."""

    ended: dbt.Ended
    recorded: Recorded
    run_id: str
    delivered: bool = True
    """Whether the archive has it."""


def run_recorded(
    where: Where,
    argv: Sequence[str],
    identity: Identity,
    interrupts: Interrupts,
    *,
    task: Task | None = None,
    stdout: IO[Any] | int | None = None,
) -> Outcome:
    """Run dbt under a recorder and archive the invocation, whatever its end.

    DbtError if dbt cannot be started (nothing is archived then).
    """
    gc.enable()  # the command line goes without; this can last for hours
    command = DbtCommand.parse(argv)
    project = checkout.open_project(command, where.environ, where.cwd, for_dbt=True)
    dbt.check_executable(command.launcher[0], where.environ, where.cwd)
    check_variables(command, project, where.environ, where.cwd)
    home = spool_home(where, project)
    began = after(task.went_before if task else ())
    hidden = [*(task.secrets if task else ()), *secret_values(where.environ)]
    shown = DbtCommand.parse(task.argv if task else argv)
    invocation = Invocation(
        invocation_id="",
        run=RunInfo(identity.run_id, began, identity.logical_date, identity.airflow),
        attempt=identity.attempt,
        step=identity.step,
        argv=[scrub(w, hidden) for w in shown.argv()],
        command=shown.command,
        args=scrubbed({**_around(project, where.environ), **shown.args()}, hidden),
        project_name=project.name,
        began=began,
        host=socket.gethostname(),
        machine=this_machine(),
        pid=os.getpid(),
        intended=sorted(task.intended) if task else None,
        replaced=dict(task.replaced) if task else {},
        scope=identity.scope,
        mark=task.mark if task else "",
        pipeline=[
            msgspec.structs.replace(s, argv=[scrub(w, hidden) for w in s.argv])
            for s in identity.pipeline
        ],
    )
    state = SpoolState(
        where.archive.url,
        [process_mark(os.getpid())],
        invocation,
        project_root=str(project.root),
        target_path=str(checkout.target_path(project, command, where.environ)),
    )
    _ignore_in_git(project)
    spool = _new_spool(where, home, state)
    publication = Publication(where.archive, spool)
    recorder = Recorder(spool, publication, invocation, project)
    form = LogForm.asked_for(project, command, where.environ)
    recorder.text_log = TextLog(form)

    def started(pid: int) -> None:
        publication.processes.append(process_mark(pid))
        # What is slow to import or to find is, where it can be, while dbt starts.
        recorder.invocation = msgspec.structs.replace(invocation, recorder=own_version())
        with suppress(OSError):  # a full disk is no reason to stop dbt
            spool.save(
                msgspec.structs.replace(
                    state, processes=publication.processes, invocation=recorder.invocation
                )
            )
        recorder.start()  # only now: a process with threads is not to be forked
        from . import evidence, latest  # noqa: F401

    try:
        ended = dbt.run(
            command.without(_LOG_FLAGS).argv(),
            interrupts,
            env={**query_tag(invocation), **where.environ, **_log_environment(recorder, form)},
            cwd=where.cwd,
            stdout=stdout,
            keep_going=task.keep_going if task else lambda: True,
            on_start=started,
        )
    except DbtError:
        recorder.stop(interrupts)
        spool.remove()
        raise
    try:
        journal = recorder.stop(interrupts)
        _hand_over_telemetry(recorder, project, command, where.environ)
        from .evidence import put_together

        commit, recorded = put_together(spool, recorder, journal, ended, state)
        if task is not None:
            commit = msgspec.structs.replace(commit, verdict=task.judge(recorded))
        spool.keep_commit(commit)
    except OSError as exc:
        raise NotKept(
            f"the record of this dbt cannot be kept in {spool.path}: {exc}", ended
        ) from exc
    try:
        run_id = _delivered(where, publication, commit, recorder, interrupts, task, home)
    finally:
        spool.release()
    return Outcome(ended, recorded, run_id or commit.invocation.run.run_id, bool(run_id))


def _delivered(
    where: Where,
    publication: Publication,
    commit: Commit,
    recorder: Recorder,
    interrupts: Interrupts,
    task: Task | None,
    home: Path,
) -> str:
    """Bring the record to the archive, as long as there is time. Returns the run it is in, empty
    if it is kept here; what that means is said. LockedError if the attempt must not be published.
    """
    trouble, found = recorder.trouble, []

    def deliver() -> None:
        if task is not None:
            _fenced(task, publication.spool, home)
        found.append(_publish(where, publication, commit))
        if not interrupts.received:
            deliver_leftovers(where, home, quiet=True)

    # When we have to leave soon, an archive that has been out of reach all the while is not
    # waited for once more.
    if not (trouble and interrupts.received):
        try:
            done = interrupts.patiently(deliver)
            trouble = "" if done or found else "it does not answer in time"
        except LockedError:
            raise
        except RecoverError as exc:
            trouble = exc.message
    if trouble:
        where.say(
            f"dbt-recover: the archive cannot be written: {trouble}\n"
            f"dbt-recover: the record is kept in {publication.spool.path}; the next exec or retry "
            "delivers it, or: dbt-recover archive --resume"
        )
    return found[0] if found else ""


def _new_spool(where: Where, home: Path, state: SpoolState) -> Spool:
    try:
        spool = Spool.create(home, state)
    except StorageError as exc:
        if home == temporary_home():
            raise
        spool = Spool.create(temporary_home(), state)
        where.say(f"dbt-recover: {exc.message}; the record is kept in {spool.path} meanwhile")
    spool.hold()
    return spool


def _around(project: checkout.Project, environ: Mapping[str, str]) -> dict[str, Any]:
    flags = project.settings.get("flags")
    return surrounding_args(environ, flags if isinstance(flags, dict) else {})


def _fenced(task: Task, spool: Spool, home: Path) -> None:
    try:
        task.fence()
    except LockedError as exc:
        # Kept for a person to look at, and where nothing delivers it.
        kept = home.with_name("fenced") / spool.path.name
        kept.parent.mkdir(exist_ok=True)
        spool.path.rename(kept)
        raise LockedError(f"{exc.message}; its record is kept in {kept}", hint=exc.hint) from exc


def _publish(where: Where, publication: Publication, commit: Commit) -> str:
    run_id = commit.invocation.run.run_id
    try:
        where.archive.check(create=True)
        publication.finish(commit)
    except AlreadyArchived as exc:
        where.say(f"dbt-recover: {exc.message}")
        run_id = exc.run_id
    publication.spool.remove()
    return run_id


@dataclass(frozen=True)
class Exited:
    """How `exec` ended."""

    code: int
    """dbt's, as a shell would give it."""
    run_id: str = ""
    """Empty if nothing was recorded."""
    interrupted: bool = False
    invocation: Invocation | None = None
    """As it was recorded."""


def exec_command(where: Where, argv: Sequence[str], identity: Identity) -> Exited:
    """`exec`: run the command, recorded if it runs nodes."""
    command = DbtCommand.parse(argv)
    if command.command not in RUNNING:
        # deps, parse, docs, ...: no nodes, nothing to recover; run it as it is.
        if command.command not in COMMANDS:
            where.say(
                f"dbt-recover: {' '.join(argv)!r} is no dbt command that is known here: it is run, "
                "and nothing is recorded"
            )
        with Interrupts() as interrupts:
            ended = dbt.run(argv, interrupts, env=where.environ, cwd=where.cwd)
            return Exited(exit_code(ended))
    with Interrupts() as interrupts:
        try:
            outcome = run_recorded(where, argv, identity, interrupts)
        except NotKept as exc:
            where.say(f"dbt-recover: {exc.message}\n  {exc.hint}")
            return Exited(exit_code(exc.ended), interrupted=bool(interrupts.received))
        code = exit_code(outcome.ended)
        if code == 0 and outcome.delivered and not identity.run_id and not interrupts.received:
            from .latest import keep_latest

            # A command by itself is a whole run; of one of several steps only a retry can say so.
            interrupts.patiently(lambda: keep_latest(where.archive, outcome.run_id, (), where.say))
    if code:
        there = command.value("--project-dir")
        there = f" --project-dir {shlex.quote(there)}" if there else ""
        kept = "recorded as" if outcome.delivered else "kept here, until the archive has it, as"
        where.say(f"dbt-recover: {kept} run {outcome.run_id}; next: dbt-recover{there} plan")
    invocation = outcome.recorded.invocation
    return Exited(code, outcome.run_id, bool(interrupts.received), invocation)


def exit_code(ended: dbt.Ended) -> int:
    """As a shell would give it."""
    return ended.exit_code if ended.exit_code >= 0 else 128 - ended.exit_code


_LOG_FLAGS = (
    "--otel-file-name",
    "--log-path",
    "--log-format-file",
    "--log-level-file",
    "--log-file-max-bytes",
)


def _log_environment(recorder: Recorder, form: LogForm) -> dict[str, str]:
    """Makes dbt write the JSON events that the journal is read from. By environment, so that the
    command stays the user's; dbt's screen output is not touched."""
    log = recorder.log_directory
    return {
        # Whoever wants JSON gets all of it.
        **({dbt_plugin.VARIABLE: str(log / "dbt.log")} if form.form != "json" else {}),
        "DBT_LOG_PATH": str(log),
        "DBT_OTEL_FILE_NAME": journal_v2.FILE,
        "DBT_LOG_FORMAT_FILE": "json",
        "DBT_LOG_LEVEL_FILE": "debug",
        "DBT_LOG_FILE_MAX_BYTES": "0",
    }


def _hand_over_telemetry(
    recorder: Recorder,
    project: checkout.Project,
    command: DbtCommand,
    environ: Mapping[str, str],
) -> None:
    """To where the user asked dbt v2 to write it; ours was read from another place."""
    name = command.value("--otel-file-name") or environ.get("DBT_OTEL_FILE_NAME")
    written = recorder.log_directory / journal_v2.FILE
    if name and written.exists():
        with suppress(OSError):
            target = checkout.log_path(project, command, environ) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(written, target)


def _ignore_in_git(project: checkout.Project) -> None:
    """Keep what may hold secrets and row values out of the user's repository."""
    home = project.root / ".dbt-recover"
    try:
        home.mkdir(mode=0o700, exist_ok=True)
        if not (home / ".gitignore").exists():
            (home / ".gitignore").write_text("*\n")
    except OSError:
        return
