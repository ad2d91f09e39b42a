"""How a run stands of which nothing is to run again: whole, or lacking what no node brings. Asked
by plan and by retry, so that both say the same.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from .decision import Plan, Standing, is_buildable, name_of
from .graph import Graph
from .hazards import idempotent
from .model import FAILURES, SUCCESSES, Invocation, RunState, as_word, listing
from .runstate import unsettled

if TYPE_CHECKING:
    from .archive import Archive
    from .load import LoadedRun
    from .recover import Options


def standing(
    run: LoadedRun, plan: Plan, options: Options, archive: Archive | None, *, preview: bool = False
) -> Standing:
    """Of a plan without nodes. `preview`: a retry would ask dbt first for what is not known."""
    run_id = run.place.run_id
    if run.running:
        return Standing("running", *at_work(run))
    if run.state.warnings:
        if preview:
            return Standing(
                "unknown",
                f"whether anything of run {run_id} is to run again is known when dbt was asked",
                f"dbt-recover plan {as_word(run_id)} --ask-dbt",
            )
        early = (r.invocation for r in run.recorded if not r.complete)
        unknown = next((i for i in early if i.invocation_id not in run.intended), run.state.first)
        line = command_again(run.state, run.graph, unknown)
        return Standing("refused", run.state.warnings[0], f"run that command again: {line}", line)
    if plan.dropped:
        left = unsettled(run.state)
        failed = {uid for uid in left if left[uid].result.status in FAILURES}
        first = sorted(plan.dropped, key=lambda uid: (uid not in failed, uid))
        names = [name_of(run.graph, uid) for uid in first]
        return Standing(
            "failing",
            f"run {run_id} is not whole, and --select or --exclude leaves nothing of its plan: "
            f"without {listing(names, 5)}",
            f"see all of it: dbt-recover plan {as_word(run_id)}",
        )
    left = unsettled(run.state)
    listed = "" if archive is None else archive.summary(archive.entry(run.place)).status
    hooks = [uid for uid in left if uid.startswith("operation.")]
    # Listed as whole: somebody has taken it so, for all its hooks.
    if hooks and not options.ignore_failed_hooks and listed not in ("success", "recovered"):
        hook = left[hooks[0]]
        line = command_of_hook(run.state, run.graph, hooks[0])
        return Standing(
            "refused",
            f"every node of run {run_id} was built, but {hooks[0]} "
            f"{'failed' if hook.result.status in FAILURES else 'did not end'}, and dbt "
            "runs a hook only with a command: what the hook should have done is missing",
            f"run the command again: {line}\n  or take the run as whole: --ignore-failed-hooks",
            line,
            listed,
        )
    aside = f", {listing(sorted(left), 5)} aside" if left else ""
    return Standing(
        "already_complete",
        f"nothing of run {run_id} is to run again: it is whole{aside}",
        f"have it listed as whole: dbt-recover retry {as_word(run_id)}"
        if listed == "failed"
        else "",
        listed=listed,
    )


def at_work(run: LoadedRun) -> tuple[str, str]:
    """Of a run with an invocation that has not ended: what to say, and what to do."""
    one = run.running[0]
    said = (
        f"run {run.place.run_id} is still at work: dbt {one.command}, recorded by process "
        f"{one.pid} on {one.host}"
    )
    return said, "wait until it has ended; if that machine is gone, this passes in a minute"


def command_of_hook(state: RunState, graph: Graph, hook: str) -> str:
    """The line that runs a hook of the run again: dbt does so only with a command."""
    own = state.invocations[state.nodes[hook].index]
    # A retry's command lacks its selection.
    return command_again(state, graph, own if own.intended is None else state.first)


def command_again(state: RunState, graph: Graph, invocation: Invocation) -> str:
    """The line that runs this command of the run again, without what would write the same rows
    twice."""
    twice = sorted(
        name_of(graph, uid)
        for uid, node in state.nodes.items()
        if node.result.status in SUCCESSES
        and is_buildable(graph, uid)
        and uid in graph.nodes
        and not idempotent(graph.nodes[uid])
    )
    argv = [
        *(invocation.argv or ["dbt", invocation.command]),
        *(["--exclude", *twice] if twice else []),
    ]
    step = f" --step {shlex.quote(invocation.step)}" if invocation.step else ""
    return f"dbt-recover exec --run-id {as_word(state.run.run_id)}{step} -- {shlex.join(argv)}"
