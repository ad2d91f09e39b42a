"""exec and archive: an invocation of dbt, recorded, whatever its end.

What is known of it is put together here from three sources that can each be missing or of another
invocation: dbt's exit, its run_results.json and manifest.json, and the journal.
"""

from __future__ import annotations

import os
import secrets
import socket
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import msgspec

from . import checkout, dbt, journal_v2, layout
from .archive import Archive, Commit, Results, Verdict
from .artifacts import RunResults, read_run_results
from .command_line import RUNNING, DbtCommand, scrub, secret_values
from .errors import DamagedError, DbtError, LockedError, RecoverError, RefusedError, UsageError
from .graph import Graph
from .journal import Journal, fold
from .layout import FORMAT_VERSION
from .machine import process_lives, process_mark, this_machine
from .manifest import encode_graph, read_manifest
from .model import (
    SKIPPED,
    SUCCESSES,
    Artifact,
    Invocation,
    NodeResult,
    Recorded,
    RunInfo,
    default_run_id,
)
from .publish import AlreadyArchived, Publication, Spool, SpoolState, find_spools
from .recorder import Recorder, read_log
from .restore import find_root
from .scope import selected
from .text_log import TextLog

Say = Callable[[str], None]


@dataclass(frozen=True)
class Where:
    """What belongs to this machine and this call, not to the run."""

    archive: Archive
    environ: Mapping[str, str]
    cwd: Path
    say: Say
    """For a person, on stderr."""
    spool: Path | None = None
    """Where spools are kept; None is `.dbt-recover/spool` in the project."""


@dataclass(frozen=True)
class Identity:
    """Which run an invocation belongs to, as far as the caller knows."""

    run_id: str = ""
    step: str = ""
    attempt: int = 1
    scope: str = ""
    logical_date: str = ""
    tries: int = 1
    """Airflow's try number."""
    airflow: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, environ: Mapping[str, str], run_id: str = "", step: str = "") -> Identity:
        """From flags, or from what Airflow exports to its tasks (AIRFLOW_CTX_*)."""
        found = {
            k.removeprefix("AIRFLOW_CTX_").lower(): v
            for k, v in environ.items()
            if k.startswith("AIRFLOW_CTX_")
        }
        dag, dag_run = found.get("dag_id", ""), found.get("dag_run_id", "")
        return cls(
            run_id=run_id or (f"{dag}/{dag_run}" if dag and dag_run else ""),
            step=step or found.get("task_id", ""),
            tries=int(found["try_number"]) if found.get("try_number", "").isdigit() else 1,
            logical_date=found.get("logical_date") or found.get("execution_date") or "",
            airflow={k: v for k, v in found.items() if k not in ("dag_email", "dag_owner")},
        )


@dataclass(frozen=True)
class Task:
    """What a retry adds to an invocation: its exact nodes, and what that makes of the run."""

    intended: Sequence[str]
    replaced: Mapping[str, str]
    judge: Callable[[Recorded], Verdict]
    """How the whole run stands after this invocation."""
    keep_going: Callable[[], bool] = lambda: True
    """Asked while dbt runs; dbt is interrupted when it says no."""
    fence: Callable[[], None] = lambda: None
    """Raises LockedError if this attempt must not be published."""
    argv: Sequence[str] = ()
    """What is recorded instead of the real argv, whose selection means nothing to others."""


@dataclass(frozen=True)
class Outcome:
    """How a recorded invocation ended."""

    ended: dbt.Ended
    recorded: Recorded
    run_id: str


def now() -> str:
    """UTC, as dbt writes it."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def run_recorded(
    where: Where,
    argv: Sequence[str],
    identity: Identity,
    *,
    task: Task | None = None,
    stdout: IO[Any] | int | None = None,
) -> Outcome:
    """Run dbt under a recorder and archive the invocation, whatever its end.

    DbtError if dbt cannot be started (nothing is archived then).
    """
    command = DbtCommand.parse(argv)
    project = checkout.open_project(command, where.environ, where.cwd)
    home = where.spool or project.root / ".dbt-recover" / "spool"
    began = now()
    hidden = secret_values(where.environ)
    shown = DbtCommand.parse(task.argv if task else argv)
    invocation = Invocation(
        invocation_id="",
        run=RunInfo(identity.run_id, began, identity.logical_date, identity.airflow),
        attempt=identity.attempt,
        step=identity.step,
        argv=[scrub(w, hidden) for w in shown.argv()],
        command=shown.command,
        args=_scrubbed(shown.args(), hidden),
        project_name=project.name,
        began=began,
        host=socket.gethostname(),
        machine=this_machine(),
        pid=os.getpid(),
        recorder=_version(),
        intended=sorted(task.intended) if task else None,
        replaced=dict(task.replaced) if task else {},
        scope=identity.scope,
    )
    state = SpoolState(
        where.archive.url,
        [process_mark(os.getpid())],
        invocation,
        project_root=str(project.root),
        target_path=str(checkout.target_path(project, command, where.environ)),
    )
    _ignore_in_git(project)
    spool = Spool.create(home, state)
    publication = Publication(where.archive, spool)
    recorder = Recorder(spool, publication, invocation, project)
    recorder.text_log = TextLog(_text_log(project, command, where.environ))
    recorder.start()

    def started(pid: int) -> None:
        publication.processes.append(process_mark(pid))
        spool.save(msgspec.structs.replace(state, processes=publication.processes))

    try:
        ended = dbt.run(
            command.without(_LOG_FLAGS).argv(),
            env={**where.environ, **_log_environment(recorder)},
            cwd=where.cwd,
            stdout=stdout,
            keep_going=task.keep_going if task else lambda: True,
            on_start=started,
        )
    except DbtError:
        recorder.stop()
        spool.remove()
        raise
    journal = recorder.stop()
    commit, recorded = put_together(spool, recorder, journal, ended, state)
    if task is not None:
        _fenced(task, spool, home)
        commit = msgspec.structs.replace(commit, verdict=task.judge(recorded))
    spool.keep_commit(commit)
    if ended.interrupted and recorder.trouble:
        # Whoever interrupted us kills us soon; the archive has been out of reach all the while.
        _say_kept(where, spool, recorder.trouble)
        return Outcome(ended, recorded, commit.invocation.run.run_id)
    run_id = _deliver(where, publication, commit)
    if not ended.interrupted:
        deliver_leftovers(where, home, quiet=True)
    return Outcome(ended, recorded, run_id)


def _fenced(task: Task, spool: Spool, home: Path) -> None:
    try:
        task.fence()
    except LockedError as exc:
        # Kept for a person to look at, and where nothing delivers it.
        kept = home.with_name("fenced") / spool.path.name
        kept.parent.mkdir(exist_ok=True)
        spool.path.rename(kept)
        raise LockedError(f"{exc.message}; its record is kept in {kept}", hint=exc.hint) from exc


def exec_command(where: Where, argv: Sequence[str], identity: Identity) -> int:
    """`exec`: returns dbt's exit code, as a shell would give it."""
    command = DbtCommand.parse(argv)
    if command.command not in RUNNING:
        # deps, parse, docs, ...: no nodes, nothing to recover; run it as it is.
        return _exit_code(dbt.run(argv, env=where.environ, cwd=where.cwd))
    outcome = run_recorded(where, argv, identity)
    code = _exit_code(outcome.ended)
    if code:
        where.say(f"dbt-recover: recorded as run {outcome.run_id}; next: dbt-recover plan")
    return code


def _exit_code(ended: dbt.Ended) -> int:
    return ended.exit_code if ended.exit_code >= 0 else 128 - ended.exit_code


def resume_spools(where: Where, project: checkout.Project | None) -> str:
    """`archive --resume`: deliver what waits; says what was done."""
    home = where.spool or (project.root / ".dbt-recover" / "spool" if project else None)
    if home is None:
        raise UsageError("this is not a dbt project", hint="pass --spool DIR or --project-dir DIR")
    delivered = deliver_leftovers(where, home)
    if not delivered:
        return f"nothing waits in {home}"
    return "delivered: " + ", ".join(f"run {r}" for r in delivered)


_LOG_FLAGS = ("--log-path", "--log-format-file", "--log-level-file", "--log-file-max-bytes")


def _log_environment(recorder: Recorder) -> dict[str, str]:
    """Makes dbt write the JSON events that the journal is read from. By environment, so that the
    command stays the user's; dbt's screen output is not touched."""
    return {
        "DBT_LOG_PATH": str(recorder.log_directory),
        "DBT_OTEL_FILE_NAME": journal_v2.FILE,
        "DBT_LOG_FORMAT_FILE": "json",
        "DBT_LOG_LEVEL_FILE": "debug",
        "DBT_LOG_FILE_MAX_BYTES": "0",
    }


def _text_log(
    project: checkout.Project, command: DbtCommand, environ: Mapping[str, str]
) -> Path | None:
    level = command.value("--log-level-file") or environ.get("DBT_LOG_LEVEL_FILE") or ""
    if level.lower() == "none":
        return None
    return checkout.log_path(project, command, environ) / "dbt.log"


def _ignore_in_git(project: checkout.Project) -> None:
    """Keep what may hold secrets and row values out of the user's repository."""
    home = project.root / ".dbt-recover"
    try:
        home.mkdir(mode=0o700, exist_ok=True)
        if not (home / ".gitignore").exists():
            (home / ".gitignore").write_text("*\n")
    except OSError:
        return


def _scrubbed(value: Any, hidden: list[str]) -> Any:
    if isinstance(value, str):
        return scrub(value, hidden)
    if isinstance(value, dict):
        return {k: _scrubbed(v, hidden) for k, v in value.items()}
    if isinstance(value, list):
        return [_scrubbed(v, hidden) for v in value]
    return value


def _version() -> str:
    try:
        return metadata.version("dbt-recover")
    except metadata.PackageNotFoundError:
        return ""


def put_together(
    spool: Spool, recorder: Recorder, journal: Journal, ended: dbt.Ended | None, state: SpoolState
) -> tuple[Commit, Recorded]:
    """What the invocation left, as commit record and as the model. `ended` is None when nobody
    saw the end."""
    target = Path(state.target_path)
    own = _own_run_results(journal, target)
    invocation_id = journal.invocation_id or f"unknown-{secrets.token_hex(8)}"
    artifacts: list[Artifact] = []
    manifest = Path(journal.artifacts.get("WritableManifest", target / "manifest.json"))
    if journal.invocation_id and (kept := recorder.keep_manifest(manifest, "manifest.json")):
        artifacts.append(kept)
    elif recorder.early_manifest is not None:
        # dbt was killed before or while it wrote the final one.
        artifacts.append(recorder.early_manifest)
    if own is not None:
        artifacts.append(spool.keep_file("run_results.json", own[1]))
    if recorder.graph is not None:
        artifacts.append(recorder.graph)
    results = merge_results(own[0].results if own else {}, journal)
    in_flight = sorted(journal.in_flight - results.keys())
    artifacts.append(
        spool.keep_bytes(
            "results.json",
            msgspec.json.encode(
                Results(FORMAT_VERSION, sorted(results.values(), key=_by_id), in_flight)
            ),
        )
    )
    code = ended.exit_code if ended else None
    complete = is_complete(
        code, ended.interrupted if ended else 0, own is not None, journal, results
    )
    base = recorder.invocation
    invocation = msgspec.structs.replace(
        base,
        invocation_id=invocation_id,
        run=_named(base.run, invocation_id),
        args=_args(own[0].args if own else {}, base),
        dbt_version=journal.dbt_version or (own[0].dbt_version if own else ""),
        adapter_type=journal.adapter_type,
        target=journal.target,
        ended=now() if ended else journal.last,
        exit_code=code,
        end=_end(ended),
        node_count=journal.node_count,
    )
    commit = Commit(
        FORMAT_VERSION,
        invocation,
        complete,
        artifacts,
        segments=len(spool.segments()),
        nonce=secrets.token_hex(8),
    )
    return commit, Recorded(invocation, results, frozenset(in_flight), complete, recorder.graph)


def _by_id(result: NodeResult) -> str:
    return result.unique_id


def _named(run: RunInfo, invocation_id: str) -> RunInfo:
    if run.run_id:
        return run
    return msgspec.structs.replace(run, run_id=default_run_id(run.began, invocation_id))


def _args(recorded: dict[str, Any], invocation: Invocation) -> dict[str, Any]:
    """dbt's own word where there is one; of a retry, what it restored."""
    if invocation.intended is not None:
        return invocation.args
    return {**invocation.args, **recorded}


def _end(ended: dbt.Ended | None) -> str:
    if ended is None:
        return "lost"
    if ended.killed or ended.exit_code < 0:
        return "killed"
    return "interrupted" if ended.interrupted else "exit"


def is_complete(
    code: int | None,
    interrupted: int,
    has_results: bool,
    journal: Journal,
    results: Mapping[str, NodeResult],
) -> bool:
    """Whether dbt came to its own end and recorded every node it had selected."""
    nodes = sum(1 for uid in results if not uid.startswith("operation."))
    return (
        code in (0, 1)
        and not interrupted
        and has_results
        and (journal.node_count is None or nodes >= journal.node_count)
    )


def merge_results(recorded: Mapping[str, NodeResult], journal: Journal) -> dict[str, NodeResult]:
    """dbt's file, with what the journal knows better: under --fail-fast dbt records a model as
    skipped that it had built; and what the file lacks."""
    merged = dict(journal.results)
    for uid, result in recorded.items():
        seen = journal.results.get(uid)
        if result.status == SKIPPED and seen is not None and seen.status in SUCCESSES:
            continue
        merged[uid] = result
    return merged


def _own_run_results(journal: Journal, target: Path) -> tuple[RunResults, Path] | None:
    """run_results.json if it is this invocation's; an older one stays where it is."""
    path = Path(journal.artifacts.get("RunExecutionResult", target / "run_results.json"))
    if not journal.invocation_id:
        return None
    try:
        found = read_run_results(path.read_bytes())
    except (OSError, DamagedError):
        return None
    return (found, path) if found.invocation_id == journal.invocation_id else None


def _deliver(where: Where, publication: Publication, commit: Commit) -> str:
    """Bring it to the archive; if that does not work, say where it is kept and how to go on."""
    spool, run_id = publication.spool, commit.invocation.run.run_id
    try:
        where.archive.check(create=True)
        publication.finish(commit)
    except AlreadyArchived as exc:
        where.say(f"dbt-recover: {exc.message}")
        run_id = exc.run_id
    except RecoverError as exc:
        _say_kept(where, spool, exc.message)
        return run_id
    spool.remove()
    return run_id


def _say_kept(where: Where, spool: Spool, why: str) -> None:
    where.say(
        f"dbt-recover: the archive cannot be written: {why}\n"
        f"dbt-recover: the record is kept in {spool.path}; the next exec delivers it, or: "
        "dbt-recover archive --resume"
    )


def deliver_leftovers(where: Where, home: Path, *, quiet: bool = False) -> list[str]:
    """Bring to the archive what earlier recordings could not, and what died with its recorder.
    Returns the run ids delivered."""
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
                where.say(f"dbt-recover: {spool.path}: {exc.message}")
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
    project = checkout.read_project(Path(state.project_root))
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


def archive_finished(
    where: Where, target: Path, identity: Identity, *, allow_mixed: bool = False
) -> str:
    """Archive what a dbt that ran without `exec` left in its target directory. Returns the run id.

    Nothing is written unless all of it holds: DamagedError for a file that cannot be read,
    RefusedError for files of different invocations or older than the run they are to join.
    """
    run_results, manifest = target / "run_results.json", target / "manifest.json"
    for path in (run_results, manifest):
        if not path.is_file():
            raise UsageError(
                f"there is no {path}",
                hint="pass --target-dir DIR with the artifacts of a finished dbt command; a killed "
                "dbt leaves none: run it as `dbt-recover exec -- dbt ...`",
            )
    ran = read_run_results(run_results.read_bytes(), str(run_results))
    info, graph = read_manifest(manifest.read_bytes(), name=str(manifest))
    if ran.invocation_id != info.invocation_id and not allow_mixed:
        raise RefusedError(
            f"{run_results} is of invocation {ran.invocation_id}, {manifest} of "
            f"{info.invocation_id}: dbt parse, ls, compile or docs rewrite the manifest",
            hint="archive right after the dbt command, or accept it with --allow-mixed if the "
            "project is the same",
        )
    where.archive.check(create=True)
    place = where.archive.find(identity.run_id) if identity.run_id else None
    if place is not None and ran.started_at[:19] < place.began[:19]:
        raise RefusedError(
            f"{run_results} was made at {ran.started_at}, before run {identity.run_id} began "
            f"({place.began}): dbt has not written results in this run",
            hint="dbt probably failed before it ran a node; look at its output",
        )
    owner = where.archive.run_of_invocation(ran.invocation_id)
    if owner is not None:
        where.say(f"dbt-recover: already archived, in run {owner.run_id}")
        return owner.run_id
    root = find_root(target.resolve())
    if root is not None:
        graph.files = checkout.file_hashes(checkout.read_project(root), until=ran.generated_at)
    commit = _finished_commit(ran, info.adapter_type, graph, identity)
    with tempfile.TemporaryDirectory(prefix="dbt-recover-") as directory:
        spool = Spool.create(
            Path(directory),
            SpoolState(where.archive.url, [], commit.invocation),
        )
        results = Results(FORMAT_VERSION, sorted(ran.results.values(), key=_by_id))
        kept = [spool.keep_file(n, target / n) for n in layout.ARTIFACTS if (target / n).is_file()]
        kept.append(spool.keep_bytes("graph.json", encode_graph(graph)))
        kept.append(spool.keep_bytes("results.json", msgspec.json.encode(results)))
        done = Publication(where.archive, spool).finish(
            msgspec.structs.replace(commit, artifacts=kept)
        )
    return done.invocation.run.run_id


def _finished_commit(
    ran: RunResults, adapter_type: str, graph: Graph, identity: Identity
) -> Commit:
    began = ran.started_at
    run_id = identity.run_id or default_run_id(began, ran.invocation_id)
    command = str(ran.args.get("which") or ran.args.get("command") or "")
    scope = selected(graph, ran.args, command)
    # An interrupted dbt records only what it finished, and does not say that it was interrupted.
    complete = scope is None or scope <= ran.results.keys()
    failed = any(r.status not in SUCCESSES for r in ran.results.values())
    invocation = Invocation(
        invocation_id=ran.invocation_id,
        run=RunInfo(run_id, began, identity.logical_date, identity.airflow),
        step=identity.step,
        command=command,
        args=ran.args,
        dbt_version=ran.dbt_version,
        adapter_type=adapter_type,
        project_name=graph.project_name,
        target=str(ran.args.get("target") or ""),
        began=began,
        ended=ran.generated_at,
        exit_code=(1 if failed else 0) if complete else None,
        end="exit" if complete else "interrupted",
        recorder=_version(),
    )
    return Commit(FORMAT_VERSION, invocation, complete, nonce=secrets.token_hex(8))
