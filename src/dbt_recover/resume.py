"""`exec`, as a task that is tried again should do it: only what its earlier tries left undone."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

import msgspec

from . import checkout
from .archive import HEARTBEAT_LOST_AFTER, HEARTBEAT_SECONDS, Archive
from .carry_out import NothingRan, Retried, retry
from .command_line import DbtCommand, scrubbed, secret_values, starred
from .context import Identity, Where
from .diagnose import diagnoses, gave_up, of_dbt
from .errors import (
    LockedError,
    NotFoundError,
    RecoverError,
    RefusedError,
    StorageError,
    UsageError,
)
from .execute import Exited, exec_command
from .insist import Patience, in_the_way, insist, say_why_not
from .latest import keep_latest
from .layout import RunPlace
from .leftovers import deliver_leftovers, spool_home
from .load import LoadedRun, load
from .model import Invocation
from .pipeline import same_step
from .plan import Plan
from .recover import Options, plan_run
from .restore import Overrides
from .standing import standing


def exec_or_resume(
    where: Where,
    argv: Sequence[str],
    identity: Identity,
    resume: bool,
    patience: Patience | None = None,
) -> int:
    """Run the command, or, with `resume`, what earlier invocations of this step in this run left
    undone; then, with patience, what failed, again. Returns the exit code."""
    try:
        ended = _exec_or_resume(where, argv, identity, resume)
    except NothingRan as exc:
        if patience is None or exc.cause is None:
            raise
        ended = Exited(exc.code, identity.run_id)
    if patience is None or not ended.run_id or ended.code not in (1, 2) or ended.interrupted:
        return ended.code
    cause = of_dbt(ended.invocation) if ended.invocation else None
    if cause is not None and cause.error_class not in patience.classes:
        # Said here: where dbt cannot even parse, there is no plan to look at.
        say_why_not(where.say, [cause], ended.run_id)
        return ended.code
    whole = not identity.run_id
    identity = msgspec.structs.replace(identity, run_id=ended.run_id)
    return _again(where, argv, identity, patience, whole, ended.code)


def _again(
    where: Where,
    argv: Sequence[str],
    identity: Identity,
    patience: Patience,
    whole: bool,
    code: int,
) -> int:
    """Retry this step of the run, in which dbt exited with `code`, while its failures are of a
    class that time can mend. `whole`: it is all there is to the run."""
    command = DbtCommand.parse(argv)
    project = checkout.open_project(command, where.environ, where.cwd, for_dbt=True)
    options = Options(overrides=_overrides(command))
    attempt = 0

    def look() -> tuple[LoadedRun, Plan]:
        nonlocal attempt
        # Afresh: what was listed before the last attempt does not count.
        found = _earlier(
            msgspec.structs.replace(where, archive=Archive(where.archive.storage)),
            identity,
            command,
            project,
        )
        if found is None:
            raise NotFoundError("what this step has done so far cannot be read from the archive")
        attempt = found[0].state.attempts + 1
        return found[1], plan_run(found[1], options, project)

    def once(part: LoadedRun, plan: Plan) -> Retried:
        return retry(
            where,
            part,
            plan,
            options,
            launcher=command.launcher,
            attempt=attempt,
            step=identity.step,
        )

    seconds = patience.pause(1)
    try:
        run, plan = look()
        if not diagnoses(run.state) and not gave_up(run.state):
            where.say("dbt-recover: not retried: dbt does not say why it failed")
            return code
        if plan.nodes and not in_the_way(run.state, plan.ids, patience.classes):
            where.say(f"dbt-recover: retry 1 of {patience.attempts} in {seconds:.0f} s")
            time.sleep(seconds)
        done = insist(look, once, patience, where.say)
    except NothingRan as exc:
        if exc.cause is None:
            where.say(f"dbt-recover: not retried: {exc.message}")
        return exc.code
    except RecoverError as exc:
        # dbt has failed, and that is what the exit code says.
        where.say(f"dbt-recover: not retried: {exc.message}\n  {exc.next_step}")
        return code
    if done.outcome == "recovered":
        where.say(
            f"dbt-recover: run {done.run_id} recovered by attempt {done.attempt}: "
            f"{len(done.executed)} of {done.total} nodes run again"
        )
        if whole:
            keep_latest(where.archive, done.run_id, (), where.say)
    return done.exit_code


def _exec_or_resume(where: Where, argv: Sequence[str], identity: Identity, resume: bool) -> Exited:
    if not resume:
        return exec_command(where, argv, identity)
    if not identity.run_id:
        raise UsageError(
            "--resume needs to know the run",
            hint="pass --run-id ID; under Airflow it is known by itself",
        )
    command = DbtCommand.parse(argv)
    project = checkout.open_project(command, where.environ, where.cwd, for_dbt=True)
    earlier = _earlier(where, identity, command, project)
    if earlier is None:
        return exec_command(where, argv, identity)
    whole, part = earlier
    options = Options(overrides=_overrides(command))
    plan = plan_run(part, options, project)
    if not plan.nodes:
        found = standing(part, plan, options, where.archive)
        if found.outcome == "refused":  # a hook alone has failed
            raise RefusedError(found.message, hint=found.next_step)
        where.say(
            f"dbt-recover: this step of run {identity.run_id} is complete: "
            f"{len(part.state.nodes)} nodes, nothing to run again"
        )
        return Exited(0, identity.run_id)
    where.say(
        f"dbt-recover: resuming run {identity.run_id}: {len(plan.nodes)} of "
        f"{len(part.state.nodes)} nodes of this step are left"
    )
    done = retry(
        where,
        part,
        plan,
        options,
        launcher=command.launcher,
        attempt=whole.state.attempts + 1,
        step=identity.step,
    )
    _say_outcome(where, done)
    return Exited(done.exit_code, done.run_id, done.outcome == "interrupted")


def _earlier(
    where: Where, identity: Identity, command: DbtCommand, project: checkout.Project
) -> tuple[LoadedRun, LoadedRun] | None:
    """The run and, of it, this step; None if there is nothing to go on from."""
    try:
        where.archive.check()
        deliver_leftovers(where, spool_home(where, project), quiet=True)
        place = where.archive.find(identity.run_id)
        if place is None:
            return None
        whole, ours = _ended(where, identity, command, place, project)
    except StorageError as exc:
        where.say(f"dbt-recover: earlier tries are not known ({exc.message}); running all of it")
        return None
    except RecoverError as exc:
        if exc.exit_code == 10:  # no archive yet, or a run without invocations
            return None
        raise
    if not ours:
        return None
    part = whole.step({i.invocation_id for i in ours})
    if not part.state.nodes or part.state.warnings:
        # Nothing was recorded, or what was meant is not known: the command itself says it.
        return None
    return whole, part


def _ended(
    where: Where,
    identity: Identity,
    command: DbtCommand,
    place: RunPlace,
    project: checkout.Project,
) -> tuple[LoadedRun, list[Invocation]]:
    """The run, and what it has of this step, once nobody is at work on that: a worker that was
    lost a moment ago is at work to all others until its heartbeat is old, and a task's try is too
    good to be used up by that. LockedError if the heartbeat goes on."""
    until = time.monotonic() + HEARTBEAT_LOST_AFTER + HEARTBEAT_SECONDS
    said = False
    while True:
        whole = load(where.archive, place, project=project)
        ours = _of_this_step(whole, identity, command)
        # Or the whole run is: somebody retries it, and this step with it.
        at_work = [i for i in whole.running if i in ours or i.scope == "run"]
        if not at_work:
            return whole, ours
        what = "a retry" if at_work[0].scope == "run" else "this step"
        who = (
            f"{what} of run {identity.run_id} is still at work: process {at_work[0].pid} on "
            f"{at_work[0].host}"
        )
        if time.monotonic() > until:
            raise LockedError(who, hint="wait until it has ended, or end it there")
        if not said:
            where.say(f"dbt-recover: {who}, or was a moment ago; waiting to see")
            said = True
        time.sleep(_LOOK_AGAIN_SECONDS)


_LOOK_AGAIN_SECONDS = 3.0


def _of_this_step(whole: LoadedRun, identity: Identity, command: DbtCommand) -> list[Invocation]:
    """Earlier tries of the command itself, and what resumed them: that is recorded with the nodes
    it was about instead of a selection."""
    tries = [i for i in whole.state.invocations if _is_this_step(i, identity, command)]
    ids = {i.invocation_id for i in tries}
    about: set[str] = set()
    for record in whole.recorded:
        ident = record.invocation.invocation_id
        if ident in ids:
            about |= record.results.keys() | whole.intended.get(ident, frozenset())
    resumed = [
        i
        for i in whole.state.invocations
        if i.intended is not None
        and i.scope != "run"
        and i.step == identity.step
        and not about.isdisjoint(i.intended)
    ]
    return [*tries, *resumed]


def _is_this_step(invocation: Invocation, identity: Identity, command: DbtCommand) -> bool:
    if invocation.scope == "run" or invocation.intended is not None:
        return False
    if identity.step != invocation.step:
        return False
    if not invocation.argv:  # archived without exec
        return bool(identity.step)
    # One task can run several commands, and mapped ones share their task's id.
    other = DbtCommand.parse(invocation.argv)
    return same_step(other, command) and _same_vars(invocation, command)


def _same_vars(invocation: Invocation, command: DbtCommand) -> bool:
    """Whether the vars are the same, as far as they were recorded."""
    recorded = invocation.args.get("vars") or {}
    given = command.args().get("vars", {})
    if starred(recorded):
        return True
    ours, theirs = (
        json.dumps(v, sort_keys=True, default=str)  # a date is text where dbt recorded it
        for v in (scrubbed(given, secret_values()), recorded)
    )
    return ours == theirs


def _overrides(command: DbtCommand) -> Overrides:
    """What this try's own words say."""
    return Overrides(
        vars=command.args().get("vars", {}),
        target=command.value("--target") or "",
        project_dir=command.value("--project-dir") or "",
        profiles_dir=command.value("--profiles-dir") or "",
        target_path=command.value("--target-path") or "",
    )


def _say_outcome(where: Where, done: Retried) -> None:
    if done.exit_code:
        where.say(f"dbt-recover: recorded as run {done.run_id}; next: dbt-recover plan")
