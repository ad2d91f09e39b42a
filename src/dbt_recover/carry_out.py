"""A plan, carried out: as few dbt commands as its settings allow, each on exactly its nodes,
through a synthesised state directory; then the outcome."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import msgspec

from . import checkout
from .approved import check_approved
from .command_line import starred
from .context import Identity, Where
from .dbt import find_dbt
from .diagnose import Diagnosis, diagnoses, gave_up, of_dbt
from .errors import (
    EXIT_RECOVERED,
    EXIT_STILL_FAILING,
    DbtError,
    LockedError,
    RefusedError,
    exit_code_of,
)
from .execute import Outcome, Task, exit_code, run_recorded
from .interrupts import Interrupts
from .lease import Lease
from .load import LoadedRun
from .model import FAILURES, SKIPPED, NodeResult, Recorded, RunState, as_word
from .parse_state import give_parse_state
from .plan import Plan, PlannedNode, Policy, make_plan
from .profiles import unneeded_target
from .records import Verdict, mark_of
from .recover import Options
from .restore import restored
from .retry_command import retry_command, state_file, strategy_for
from .runstate import unsettled
from .stages import Group, blocked, stages
from .standing import at_work, standing
from .state_dir import write_manifest
from .surroundings import without_settings


@dataclass(frozen=True)
class Retried:
    """What a retry came to."""

    run_id: str
    attempt: int
    outcome: str
    """recovered, failing, already_complete, refused or interrupted."""
    executed: tuple[str, ...] = ()
    still_failing: tuple[NodeResult, ...] = ()
    exit_code: int = EXIT_RECOVERED
    seconds: float = 0.0
    total: int = 0
    elsewhere: str = ""
    """The target, where it was another than the run's: the run itself is then as it was."""
    why: Mapping[str, Diagnosis] = field(default_factory=dict)
    """Of what is still failing, the class of its failure."""
    gave_up: Sequence[Diagnosis] = ()
    """Why dbt itself gave up, where that has left nodes undone."""


class NothingRan(DbtError):
    """dbt gave up before it ran a node."""

    def __init__(self, message: str, *, hint: str, code: int, cause: Diagnosis | None) -> None:
        super().__init__(message, hint=hint)
        self.code = code
        """dbt's exit code."""
        self.cause = cause
        """Why, where dbt said it."""


def _verdict(state: RunState, run: LoadedRun, options: Options) -> Verdict:
    left = len(make_plan(state, run.graph, Policy(tests=options.tests)).nodes)
    left += len(_failed_hooks(state, options))
    return Verdict(not left and not state.warnings, left, len(state.nodes))


def _failed_hooks(state: RunState, options: Options) -> list[NodeResult]:
    """Hooks whose last word keeps the run from being whole: no plan has them."""
    if options.ignore_failed_hooks:
        return []
    left = unsettled(state)
    return [left[uid].result for uid in sorted(left) if uid.startswith("operation.")]


def retry(
    where: Where,
    run: LoadedRun,
    plan: Plan,
    options: Options,
    *,
    dbt: str | None = None,
    launcher: tuple[str, ...] = (),
    attempt: int = 0,
    step: str | None = None,
    stdout: IO[Any] | int | None = None,
) -> Retried:
    """Carry the plan out, as the run's next attempt (or the one given), for the whole run (or the
    step given), with `dbt` (or what else starts it: ('poetry', 'run', 'dbt')). Raises LockedError while the run is at work, RefusedError while a
    warning is not allowed, DbtError when dbt ended before it ran a node."""
    run_id = run.place.run_id
    attempt = attempt or run.state.attempts + 1
    if run.running:
        said, hint = at_work(run)
        raise LockedError(said, hint=hint)
    if not plan.nodes:
        return _nothing_to_do(where, run, plan, options)
    if options.approved is not None:
        check_approved(plan, options.approved, run_id)
    refuse(plan)
    launcher = launcher or (find_dbt(dbt, where.environ),)
    identity = Identity(
        run_id=run_id,
        step=step or "",
        attempt=attempt,
        scope="run" if step is None else "",
        logical_date=run.state.run.logical_date,
    )
    airflow = where.environ.get("AIRFLOW_CTX_DAG_RUN_ID", "")
    place = run.lease_place(step)
    with (
        Interrupts() as interrupts,
        Lease(where.archive, place, interrupts.patiently, airflow_run=airflow) as lease,
    ):
        return _under_lease(
            where, run, plan, options, identity, launcher, stdout, lease, interrupts
        )


def _under_lease(
    where: Where,
    run: LoadedRun,
    plan: Plan,
    options: Options,
    identity: Identity,
    launcher: tuple[str, ...],
    stdout: IO[Any] | int | None,
    lease: Lease,
    interrupts: Interrupts,
) -> Retried:
    # The run as it was read may be older than the lease: somebody may just have ended.
    if where.archive.state_of(run.place, fresh=True) != run.seen:
        raise LockedError(
            f"run {run.place.run_id} has changed since it was read: another was at work on it",
            hint=f"look again: dbt-recover plan {as_word(run.place.run_id)}",
        )
    for record in run.recorded:
        # Asked again: by now the store's own clock is known where it differs from this machine's.
        ident = record.invocation.invocation_id
        if record.invocation.end == "lost" and where.archive.alive(run.place, ident):
            raise LockedError(
                f"run {run.place.run_id} is still at work: it gives signs of life",
                hint="wait until it has ended; if that machine is gone, this passes in a minute",
            )
    groups = stages(plan, run)
    began = time.monotonic()
    added: list[Recorded] = []
    executed: list[str] = []
    for group in groups:
        nodes = [n for n in group.nodes if not blocked(n, run.graph, added)]
        if not nodes:
            continue
        task = Task(
            [n.unique_id for n in nodes],
            plan.replaced,
            lambda record: _verdict(run.restate([*added, record]), run, options),
            went_before=[
                *(i.began for i in run.state.invocations),
                *(r.invocation.began for r in added),
            ],
            keep_going=lease.held,
            fence=lease.fence,
            mark=mark_of(run.state.first) if run.scope is not None else "",
        )
        outcome = _run_group(
            where,
            run,
            replace(group, nodes=tuple(nodes)),
            options,
            identity,
            launcher,
            task,
            stdout,
            interrupts,
        )
        added.append(outcome.recorded)
        executed += _executed(outcome)
        if not outcome.recorded.results and not interrupts.received:
            raise _ran_nothing(outcome, nodes)
        if interrupts.received:
            break
    # Of a retry into another target it is said how that went; the run itself stays as it was.
    state = run.restate(added, any_target=True)
    seconds = time.monotonic() - began
    done = _outcome(run, state, identity.attempt, executed, interrupts.received, seconds, options)
    own = {n.unique_id: run.state.invocations[n.invocation].target for n in plan.nodes}
    elsewhere = {r.invocation.target for r in added} - set(own.values()) - {""}
    if "" in own.values():
        elsewhere = set()  # it died before it said which target it had: the profile's
    return replace(done, elsewhere=min(elsewhere, default=""))


def refuse(plan: Plan) -> None:
    """RefusedError if a warning stops the plan."""
    if plan.blockers:
        first = plan.blockers[0]
        others = "".join(f"\nalso: {w.message} ({w.flag})" for w in plan.blockers[1:])
        raise RefusedError(first.message + others, hint=f"to go on all the same: {first.flag}")


def _ran_nothing(outcome: Outcome, nodes: Sequence[PlannedNode]) -> DbtError:
    if outcome.ended.exit_code == 0:
        return DbtError(
            f"dbt found none of the planned nodes in this project: {nodes[0].unique_id}"
            + (f" and {len(nodes) - 1} more" if len(nodes) > 1 else ""),
            hint="is this the project, and the version of it, that the run was made with?",
        )
    return NothingRan(
        f"dbt ended with exit code {outcome.ended.exit_code} before it ran a node",
        hint="its output above says why; mend it and retry again",
        code=exit_code(outcome.ended),
        cause=of_dbt(outcome.recorded.invocation),
    )


def refused(run: LoadedRun) -> Retried:
    """The outcome of a retry that a warning stopped."""
    return Retried(run.place.run_id, run.state.attempts, "refused", total=len(run.state.nodes))


def _nothing_to_do(where: Where, run: LoadedRun, plan: Plan, options: Options) -> Retried:
    """The plan is empty: the run is whole, or what is left is not dbt's to run again."""
    archive = where.archive
    found = standing(run, plan, options, archive)
    if found.outcome == "refused":
        raise RefusedError(found.message, hint=found.next_step)
    done = Retried(run.place.run_id, run.state.attempts, found.outcome, total=len(run.state.nodes))
    if found.outcome == "failing":
        left = unsettled(run.state)
        return replace(
            done,
            still_failing=tuple(left[u].result for u in plan.dropped if u in left),
            exit_code=EXIT_STILL_FAILING,
            why=diagnoses(run.state),
        )
    if found.listed == "failed":
        archive.settle(run.place, done.attempt, done.total, run.state.run.logical_date)
    return done


def _run_group(
    where: Where,
    run: LoadedRun,
    group: Group,
    options: Options,
    identity: Identity,
    launcher: tuple[str, ...],
    task: Task,
    stdout: IO[Any] | int | None,
    interrupts: Interrupts,
) -> Outcome:
    base = restored(group.invocation, options.overrides, launcher=launcher, cwd=where.cwd)
    environ = without_settings(where.environ)
    project = checkout.open_project(base, where.environ, where.cwd, for_dbt=True)
    typed = bool(options.overrides.target or group.invocation.args.get("target"))
    base = unneeded_target(base, typed, project, environ, where.cwd)
    strategy = strategy_for(options.strategy, group)
    with tempfile.TemporaryDirectory(prefix="dbt-recover-state-") as directory:
        state = Path(directory)
        (state / "run_results.json").write_bytes(state_file(group, base))
        if strategy == "defer":
            write_manifest(where.archive, run, state)
        command = retry_command(
            base, group.command, strategy, state, favor_state=options.favor_state
        )
        give_parse_state(where.archive, run, checkout.target_path(project, command, where.environ))
        return run_recorded(
            msgspec.structs.replace(where, environ=environ),
            command.argv(),
            identity,
            interrupts,
            task=replace(task, argv=base.argv(), secrets=_given_again(group, options)),
            stdout=stdout,
        )


def _given_again(group: Group, options: Options) -> list[str]:
    """Values of --vars whose names the run recorded as secret."""
    recorded = group.invocation.args.get("vars") or {}
    names = {path.split(".")[0] for path in starred(recorded) if path}
    return [text for name in names for text in _texts(options.overrides.vars.get(name))]


def _texts(value: object) -> list[str]:
    if isinstance(value, Mapping):
        return [text for v in value.values() for text in _texts(v)]
    if isinstance(value, list):
        return [text for v in value for text in _texts(v)]
    return [] if value is None or value == "" else [str(value)]


def _executed(outcome: Outcome) -> list[str]:
    return sorted(
        uid
        for uid, result in outcome.recorded.results.items()
        if result.status != SKIPPED and not uid.startswith("operation.")
    )


def _outcome(
    run: LoadedRun,
    state: RunState,
    attempt: int,
    executed: list[str],
    interrupted: int,
    seconds: float,
    options: Options,
) -> Retried:
    left = make_plan(state, run.graph, Policy(tests=options.tests))
    failing = []
    for node in left.nodes:
        result = state.nodes[node.unique_id].result if node.unique_id in state.nodes else None
        if result is not None and result.status in FAILURES:
            failing.append(result)
    failing += _failed_hooks(state, options)
    if interrupted and (left.nodes or failing):
        outcome = "interrupted"
        code = exit_code_of(interrupted)
    elif left.nodes or failing:
        outcome, code = "failing", EXIT_STILL_FAILING
        if not failing:
            failing = [
                state.nodes[n.unique_id].result for n in left.nodes if n.unique_id in state.nodes
            ]
    else:
        outcome, code = "recovered", EXIT_RECOVERED
    return Retried(
        run.place.run_id,
        attempt,
        outcome,
        tuple(executed),
        tuple(failing),
        code,
        seconds,
        len(state.nodes),
        why=diagnoses(state),
        gave_up=gave_up(state),
    )
