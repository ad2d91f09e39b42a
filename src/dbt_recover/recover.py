"""plan: what the project at hand, the archive and the user say, put together.

What most plans do without is imported where it is used: people wait for `plan`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from . import checkout
from .archive import Archive
from .errors import DamagedError, RefusedError, UsageError
from .graph import Graph
from .load import Asking, LoadedRun
from .model import SUCCESSES, Invocation, as_word
from .plan import Changes, Plan, PlanWarning, Policy, make_plan, name_of
from .restore import Overrides
from .storage.base import MissingKey

if TYPE_CHECKING:
    from .approved import Approved
    from .pipeline import Pipeline

STRATEGIES = ("auto", "select", "retry", "defer")


class Options(msgspec.Struct, frozen=True):
    """What the user asked of plan and retry."""

    strategy: str = "auto"
    favor_state: bool = False
    """With strategy defer: what is not built is read where the run built it, whatever the target has."""
    tests: str = "rebuild"
    select: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    overrides: Overrides = msgspec.field(default_factory=Overrides)
    allow_drift: bool = False
    allow_non_idempotent: bool = False
    allow_other_project: bool = False
    allow_other_target: bool = False
    allow_unknown_scope: bool = False
    allow_unknown_settings: bool = False
    allow_older_run: bool = False
    ignore_failed_hooks: bool = False
    approved: Approved | None = None
    """A plan that was looked at: nothing that is not in it is run."""


def plan_run(
    run: LoadedRun,
    options: Options,
    project: checkout.Project | None,
    *,
    archive: Archive | None = None,
    pipelines: Sequence[Pipeline] = (),
    asking: Asking | None = None,
    preview: bool = False,
) -> Plan:
    """The plan for this run, with what the project at hand says.

    Where edits may have changed which nodes there are, today's graph is needed: from the
    project's own target/manifest.json if that is newer than every edit, else from `asking`, which
    starts dbt; without it the plan says that it does not know. `preview`: nothing is carried out
    here, and the retry that will be has somebody to ask.
    """
    other = _other_project(run, project)
    if other and not options.allow_other_project:
        asking = None  # it will be refused; nothing is parsed there
    changes = _changes(run, project, archive) if project is not None else None
    policy = Policy(
        tests=options.tests,
        select=_narrowed(run.graph, options.select) if options.select else None,
        exclude=_narrowed(run.graph, options.exclude) if options.exclude else frozenset(),
        full_refresh=options.overrides.full_refresh,
        allow_drift=options.allow_drift,
        allow_non_idempotent=options.allow_non_idempotent,
    )
    if asking is not None and not make_plan(run.state, run.origin, policy, changes).nodes:
        asking = None  # nothing to do: nothing to parse for
    current: Graph | None = None
    unparsed: tuple[PlanWarning, ...] = ()
    if project is not None and changes is not None and changes.structural:
        current = checkout.fresh_graph(project)
        if current is None and asking is not None:
            current = asking.graph(run.state.first, partial(_prepared, archive, run))
        elif current is None:
            names = ", ".join(changes.structural[:3])
            unparsed = (
                PlanWarning(
                    "not_parsed",
                    f"{names} changed since the run: which nodes there are today is known when "
                    "dbt has parsed the project; retry does that first",
                ),
            )
    if current is not None and changes is not None:
        also = _reconfigured(run, archive, current, changes.structural)
        changes = msgspec.structs.replace(changes, nodes=changes.nodes | also)
    if current is None and run.origin is not run.graph:
        current = run.graph
    plan = make_plan(run.state, run.origin, policy, changes, current)
    if not plan.nodes:
        from .standing import standing

        return msgspec.structs.replace(
            plan,
            warnings=(*plan.warnings, *_unknown_scope(run, options, preview, empty=True)),
            standing=standing(run, plan, options, archive, preview=preview),
        )
    around = [
        *_at_work(run),
        *_unknown_scope(run, options, preview),
        *_surroundings(run, plan, options, project),
        *_unknown_settings(run, plan, options),
        *_undeclared(run, pipelines),
        *_other_settings(run),
    ]
    if archive is not None:
        around += _built_later(archive, run, plan, options)
    return msgspec.structs.replace(plan, warnings=(*plan.warnings, *around, *unparsed))


def _prepared(archive: Archive | None, run: LoadedRun, target: Path) -> None:
    """What dbt had parsed for the run is put there: it parses again what was edited."""
    from .parse_state import give_parse_state

    if archive is not None:
        give_parse_state(archive, run, target)


_LATER_RUNS = 20
"""How many later runs are looked into; whoever retries an older one has to ask for it anyway."""


def _changes(run: LoadedRun, project: checkout.Project, archive: Archive | None) -> Changes:
    """What was edited since the run; not what a later attempt has already run with today's code."""
    changes = checkout.changes(run.base, project)
    if archive is None or not changes.nodes or run.base is run.graph:
        return changes
    still = set(changes.nodes)
    for index, record in enumerate(run.recorded):
        ran = {
            uid
            for uid in still
            if uid in run.state.nodes
            and run.state.nodes[uid].index == index
            and run.state.nodes[uid].result.status in SUCCESSES
        }
        if record.invocation.attempt > 1 and ran and (graph := archive.graph(record)) is not None:
            still -= ran - checkout.changes(graph, project).nodes
    return msgspec.structs.replace(changes, nodes=frozenset(still))


def _reconfigured(
    run: LoadedRun, archive: Archive | None, current: Graph, files: Sequence[str]
) -> set[str]:
    """What was edited in YAML; not what a later attempt has already run as it is configured now."""
    from .reconcile import reconfigured

    found = reconfigured(run.base, current, files)
    for uid in sorted(found):
        word = run.state.nodes.get(uid)
        if archive is None or word is None or word.attempt == 1:
            continue
        graph = archive.graph(run.recorded[word.index])
        if word.result.status in SUCCESSES and graph is not None:
            found -= {uid} - reconfigured(graph, current, files)
    return found


def _built_later(
    archive: Archive, run: LoadedRun, plan: Plan, options: Options
) -> list[PlanWarning]:
    """Yesterday's run with yesterday's vars, over tables that today's run has built."""
    planned = {n.unique_id: run.state.invocations[n.invocation].target for n in plan.nodes}
    unread: list[PlanWarning] = []
    for entries in reversed(archive.later_than(run.place)[-_LATER_RUNS:]):
        try:
            recorded = archive.load(entries.place)
        except (DamagedError, RefusedError, MissingKey) as exc:
            if not unread and any(uid.startswith(_RELATIONS) for uid in planned):
                unread.append(_later_unknown(entries.place.run_id, exc.message, options))
            continue
        built = {
            uid
            for record in recorded
            for uid, result in record.results.items()
            if result.status in SUCCESSES
            and uid.startswith(_RELATIONS)
            and uid in planned
            and record.invocation.target == planned[uid]
        }
        if built:
            first = min(built)
            return [
                PlanWarning(
                    "built_later",
                    f"run {entries.place.run_id} began later and has built {len(built)} of these "
                    f"nodes since ({name_of(run.graph, first)}, ...): this retry would put the "
                    "older run's results over them",
                    flag="--allow-older-run",
                    allowed=options.allow_older_run,
                )
            ]
    return unread


def _later_unknown(run_id: str, why: str, options: Options) -> PlanWarning:
    return PlanWarning(
        "later_unknown",
        f"run {run_id} began later, and whether it has built any of these nodes since is not known: "
        f"{why}",
        flag="--allow-older-run",
        allowed=options.allow_older_run,
    )


_RELATIONS = ("model.", "seed.", "snapshot.")


def _undeclared(run: LoadedRun, pipelines: Sequence[Pipeline]) -> list[PlanWarning]:
    """A run of several steps that stopped: what should have followed is known to its pipeline."""
    # What `exec --retry-transient` added is no further step.
    original = [i for i in run.state.invocations if i.scope != "run" and i.intended is None]
    several = len(original) > 1 or any(i.step for i in original)
    if run.scope is not None or not several:
        return []
    from .pipeline import declared, pipeline_of

    if pipeline_of(pipelines, run.place.run_id) or declared(original):
        return []
    last = original[-1]
    return [
        PlanWarning(
            "no_pipeline",
            f"this run has steps; whether any should have come after "
            f"{last.step or ' '.join(last.argv)!r} is not known here. Declare them under "
            "[[pipeline]] in dbt_recover.toml and a retry resumes those that never began",
        )
    ]


def _other_settings(run: LoadedRun) -> list[PlanWarning]:
    if not run.state.waiting:
        return []
    return [
        PlanWarning(
            "other_settings",
            f"this run executed nodes with several vars or targets, and this plan is of one; for "
            f"{run.state.waiting} more something is left: retry again after this one",
        )
    ]


def _hidden(invocation: Invocation) -> list[str]:
    variables = invocation.args.get("vars")
    if not variables:
        return []
    from .command_line import starred

    return [p for p in starred(variables) if p]


def _narrowed(graph: Graph, words: tuple[str, ...]) -> frozenset[str]:
    from .selection import Selection, Unsupported, select

    known = {w for w in words if w in graph.nodes}
    rest = tuple(w for w in words if w not in known)
    try:
        chosen = select(graph, Selection(select=rest), "build") if rest else set()
    except Unsupported as exc:
        raise UsageError(
            f"--select/--exclude {' '.join(rest)}: {exc}",
            hint="use names, tags, paths or unique_ids here",
        ) from exc
    return frozenset(known | chosen)


def _other_project(run: LoadedRun, project: checkout.Project | None) -> str:
    recorded = next((i.project_name for i in run.state.invocations if i.project_name), "")
    if project is None or not recorded or project.name in ("", recorded):
        return ""
    return f"this is dbt project {project.name!r}; the run was of {recorded!r}"


def _unknown_settings(run: LoadedRun, plan: Plan, options: Options) -> list[PlanWarning]:
    """dbt v2 writes hardly more than the command's name into run_results.json."""
    for number in sorted({n.invocation for n in plan.nodes}):
        invocation = run.state.invocations[number]
        if invocation.argv or not invocation.dbt_version.startswith("2"):
            continue  # recorded by exec, which knows what was typed; or dbt Core, which says it
        if invocation.args.keys().isdisjoint({"vars", "target", "full_refresh"}):
            return [
                PlanWarning(
                    "unknown_settings",
                    f"dbt {invocation.dbt_version} was run without exec, and does not record which "
                    "vars, target and --full-refresh it was given: the retry gives it none but "
                    "those you type",
                    "--allow-unknown-settings",
                    options.allow_unknown_settings,
                )
            ]
    return []


def _at_work(run: LoadedRun) -> list[PlanWarning]:
    return [
        PlanWarning(
            "at_work",
            f"the run is still at work (dbt {i.command}, process {i.pid} on {i.host}): this is what "
            "would be left if it ended now, and retry does nothing until it has",
        )
        for i in run.running[:1]
    ]


def _unknown_scope(
    run: LoadedRun, options: Options, preview: bool, *, empty: bool = False
) -> list[PlanWarning]:
    if preview and run.state.warnings:
        more = len(run.state.warnings) - 1
        also = f", and so for {more} more of its commands" if more else ""
        return [
            PlanWarning(
                "not_parsed",
                f"{run.state.warnings[0]}{also}. retry asks dbt first; to see now what it will run: "
                f"dbt-recover plan {as_word(run.place.run_id)} --ask-dbt",
            )
        ]
    # Of a plan without nodes there is nothing to go on with: its standing says what to do.
    flag = "" if empty else "--allow-unknown-scope"
    return [
        PlanWarning("unknown_scope", text, flag, options.allow_unknown_scope)
        for text in run.state.warnings
    ]


def _surroundings(
    run: LoadedRun, plan: Plan, options: Options, project: checkout.Project | None
) -> list[PlanWarning]:
    """Rule 7, as far as it looks at where the retry happens."""
    found: list[PlanWarning] = []
    other = _other_project(run, project)
    if other:
        found.append(
            PlanWarning(
                "other_project",
                other,
                flag="--allow-other-project",
                allowed=options.allow_other_project,
            )
        )
    targets = {run.state.invocations[n.invocation].target for n in plan.nodes} - {""}
    wanted = options.overrides.target
    if wanted and targets - {wanted} and options.strategy != "defer":
        found.append(
            PlanWarning(
                "other_target",
                f"the run was built in target {', '.join(sorted(targets))}; {wanted} has its own "
                "relations, and what the plan leaves alone may be missing there",
                flag="--allow-other-target, or --strategy defer",
                allowed=options.allow_other_target,
            )
        )
    for index in sorted({n.invocation for n in plan.nodes}):
        invocation = run.state.invocations[index]
        hidden = _hidden(invocation)
        missing = [p for p in hidden if p.split(".")[0] not in options.overrides.vars]
        if missing:
            found.append(
                PlanWarning(
                    "secret_vars",
                    f"var {', '.join(missing)} was a secret and is recorded as *****",
                    flag=f"""--vars '{{"{missing[0].split(".")[0]}": ...}}'""",
                )
            )
    return found
