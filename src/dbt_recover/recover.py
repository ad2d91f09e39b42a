"""plan and retry: load a run, decide, run dbt on exactly the planned nodes, say the outcome."""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from . import checkout
from .archive import Archive, Verdict
from .artifacts import synthesise_run_results
from .command_line import DbtCommand, starred
from .dbt import find_dbt
from .dbt import run as run_dbt
from .errors import (
    EXIT_INTERRUPTED,
    EXIT_RECOVERED,
    EXIT_STILL_FAILING,
    EXIT_TERMINATED,
    DbtError,
    LockedError,
    RefusedError,
    UsageError,
)
from .execute import Identity, Outcome, Task, Where, run_recorded, selected
from .graph import BUILDABLE, TESTS, Graph
from .layout import RunPlace
from .manifest import read_manifest
from .model import FAILURES, SKIPPED, Invocation, NodeResult, Recorded, RunState
from .plan import Plan, PlannedNode, PlanWarning, Policy, make_plan
from .restore import Overrides, restored
from .runstate import in_order, merge, unsettled
from .selection import Selection, Unsupported, select

STRATEGIES = ("auto", "select", "retry", "defer")


@dataclass(frozen=True)
class LoadedRun:
    """A run as the archive has it, and what is true of it."""

    place: RunPlace
    recorded: Sequence[Recorded]
    graph: Graph
    """Of the latest invocation that left one."""
    origin: Graph
    """Of the earliest one, where nodes of the run are missing from the latest; else the same."""
    state: RunState
    intended: Mapping[str, frozenset[str]]
    """invocation_id -> what it was meant to execute, of those that did not come to their end."""

    @property
    def running(self) -> list[Invocation]:
        """Invocations that are at work right now."""
        return [r.invocation for r in self.recorded if r.invocation.end == "running"]


@dataclass(frozen=True)
class Options:
    """What the user asked of plan and retry."""

    strategy: str = "auto"
    tests: str = "rebuild"
    select: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    overrides: Overrides = field(default_factory=Overrides)
    allow_drift: bool = False
    allow_non_idempotent: bool = False
    allow_other_project: bool = False
    allow_other_target: bool = False


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


def load(archive: Archive, place: RunPlace) -> LoadedRun:
    """Read a run. Small objects only: commit records, node results, one compact graph."""
    recorded = in_order(archive.load(place))
    graph = next((g for r in reversed(recorded) if (g := archive.graph(r)) is not None), None)
    intended: dict[str, frozenset[str]] = {}
    unknown: list[str] = []
    for record in recorded:
        if not record.complete:
            known = _intended(archive, record, graph)
            if known is not None:
                intended[record.invocation.invocation_id] = known
            else:
                unknown.append(_unknown(record.invocation))
    state = merge(recorded, intended, unknown)
    graph = origin = graph or Graph([])
    if not graph.nodes.keys() >= {u for u in state.nodes if not u.startswith("operation.")}:
        origin = next((g for r in recorded if (g := archive.graph(r)) is not None), graph)
    return LoadedRun(place, recorded, graph, origin, state, intended)


def _own_intentions(recorded: Sequence[Recorded]) -> dict[str, frozenset[str]]:
    return {
        r.invocation.invocation_id: frozenset(r.invocation.intended)
        for r in recorded
        if not r.complete and r.invocation.intended is not None
    }


def _verdict(state: RunState, run: LoadedRun, options: Options) -> Verdict:
    left = make_plan(state, run.graph, Policy(tests=options.tests)).nodes
    return Verdict(not left, len(left), len(state.nodes))


def _intended(archive: Archive, record: Recorded, latest: Graph | None) -> frozenset[str] | None:
    invocation = record.invocation
    if invocation.intended is not None:
        return frozenset(invocation.intended)
    graph = archive.graph(record) or latest
    return selected(graph, invocation.args, invocation.command) if graph is not None else None


def _unknown(invocation: Invocation) -> str:
    what = " ".join(invocation.argv) or f"dbt {invocation.command}"
    if not invocation.argv and not invocation.args:
        return f"{what} ended early, and what it was meant to execute is not known"
    return (
        f"`{what}` ended early, and its selection cannot be evaluated from the archive: nodes it "
        "never began are not known"
    )


def plan_run(
    run: LoadedRun,
    options: Options,
    project: checkout.Project | None,
    parse: Callable[[LoadedRun], Graph] | None = None,
) -> Plan:
    """The plan for this run, with what the project at hand says.

    Where edits may have changed which nodes there are, today's graph is needed: from the
    project's own target/manifest.json if that is newer than every edit, else from `parse`, which
    starts dbt; without it the plan says that it does not know.
    """
    changes = checkout.changes(run.graph, project) if project is not None else None
    current: Graph | None = None
    unparsed: tuple[PlanWarning, ...] = ()
    if project is not None and changes is not None and changes.structural:
        current = checkout.fresh_graph(project)
        if current is None and parse is not None:
            current = parse(run)
        elif current is None:
            names = ", ".join(changes.structural[:3])
            unparsed = (
                PlanWarning(
                    "not_parsed",
                    f"{names} changed since the run: which nodes there are today is known when "
                    "dbt has parsed the project; retry does that first",
                ),
            )
    policy = Policy(
        tests=options.tests,
        select=_narrowed(run.graph, options.select) if options.select else None,
        exclude=_narrowed(run.graph, options.exclude) if options.exclude else frozenset(),
        full_refresh=options.overrides.full_refresh,
        allow_drift=options.allow_drift,
        allow_non_idempotent=options.allow_non_idempotent,
    )
    if current is None and run.origin is not run.graph:
        current = run.graph
    plan = make_plan(run.state, run.origin, policy, changes, current)
    if not plan.nodes:
        return plan
    around = _surroundings(run, plan, options, project)
    return replace(plan, warnings=(*plan.warnings, *around, *unparsed))


def parse_with(where: Where, options: Options, dbt: str | None) -> Callable[[LoadedRun], Graph]:
    """A function that lets dbt parse the project as the run was set and returns its graph."""

    def parse(run: LoadedRun) -> Graph:
        invocation = next(
            (i for i in reversed(run.state.invocations) if i.intended is None),
            run.state.invocations[0],
        )
        executable = find_dbt(dbt, where.environ)
        base = restored(invocation, options.overrides, dbt=executable, cwd=where.cwd)
        kept = [o for o in base.options if o.name in _PARSE_FLAGS]
        command = replace(base, command="parse", options=tuple(kept))
        project = checkout.open_project(command, where.environ, where.cwd)
        # dbt's words belong on stderr here: stdout is the plan's.
        ended = run_dbt(command.argv(), env=where.environ, cwd=where.cwd, stdout=sys.stderr)
        path = checkout.target_path(project, command, where.environ) / "manifest.json"
        if ended.exit_code != 0 or not path.is_file():
            raise DbtError(
                f"dbt could not parse the project (exit code {ended.exit_code})",
                hint="its output above says why; mend it and retry again",
            )
        return read_manifest(path.read_bytes(), name=str(path))[1]

    return parse


_PARSE_FLAGS = frozenset(
    {"--profiles-dir", "--project-dir", "--profile", "--target", "--vars", "--target-path"}
)


def _narrowed(graph: Graph, words: tuple[str, ...]) -> frozenset[str]:
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


def _surroundings(
    run: LoadedRun, plan: Plan, options: Options, project: checkout.Project | None
) -> list[PlanWarning]:
    """Rule 7, as far as it looks at where the retry happens."""
    found: list[PlanWarning] = []
    recorded_name = next((i.project_name for i in run.state.invocations if i.project_name), "")
    if project is not None and recorded_name and project.name != recorded_name:
        found.append(
            PlanWarning(
                "other_project",
                f"this is dbt project {project.name!r}; the run was of {recorded_name!r}",
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
        hidden = [p for p in starred(invocation.args.get("vars") or {}) if p]
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


def retry(
    where: Where,
    run: LoadedRun,
    plan: Plan,
    options: Options,
    *,
    dbt: str | None = None,
    stdout: IO[Any] | int | None = None,
) -> Retried:
    """Carry the plan out. Raises LockedError while the run is at work, RefusedError while a
    warning is not allowed, DbtError when dbt ended before it ran a node."""
    run_id = run.place.run_id
    attempt = run.state.attempts + 1
    if run.running:
        at_work = run.running[0]
        raise LockedError(
            f"run {run_id} is still at work: {at_work.command} on {at_work.host}, "
            f"process {at_work.pid}",
            hint="wait until it has ended; if that machine is gone, this passes in a minute",
        )
    if not plan.nodes:
        return _nothing_to_do(run, plan)
    refuse(plan)

    def merged(records: Sequence[Recorded]) -> RunState:
        return merge(records, {**run.intended, **_own_intentions(records)}, run.state.warnings)

    executable = find_dbt(dbt, where.environ)
    began = _clock()
    recorded = list(run.recorded)
    executed: list[str] = []
    interrupted = 0
    for group in stages(plan, run):
        nodes = [n for n in group.nodes if not _blocked(n, run.graph, recorded, attempt)]
        if not nodes:
            continue
        outcome = _run_group(
            where,
            run,
            replace(group, nodes=tuple(nodes)),
            options,
            attempt,
            executable,
            stdout,
            replaced=plan.replaced,
            judge=lambda record: _verdict(merged([*recorded, record]), run, options),
        )
        recorded.append(outcome.recorded)
        executed += _executed(outcome)
        interrupted = outcome.ended.interrupted
        if not outcome.recorded.results and not interrupted:
            raise _ran_nothing(outcome, nodes)
        if interrupted:
            break
    state = merged(recorded)
    return _outcome(run, state, attempt, executed, interrupted, _clock() - began, options)


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
    return DbtError(
        f"dbt ended with exit code {outcome.ended.exit_code} before it ran a node",
        hint="its output above says why; mend it and retry again",
    )


def refused(run: LoadedRun) -> Retried:
    """The outcome of a retry that a warning stopped."""
    return Retried(run.place.run_id, run.state.attempts, "refused", total=len(run.state.nodes))


def _clock() -> float:
    import time

    return time.monotonic()


def _nothing_to_do(run: LoadedRun, plan: Plan) -> Retried:
    settled = not unsettled(run.state) and not plan.dropped and not run.state.warnings
    if settled:
        return Retried(
            run.place.run_id, run.state.attempts, "already_complete", total=len(run.state.nodes)
        )
    if run.state.warnings:
        raise RefusedError(
            run.state.warnings[0],
            hint="run that command again: dbt-recover exec --run-id "
            f"{run.place.run_id} -- {' '.join(run.state.invocations[-1].argv) or 'dbt ...'}",
        )
    failing = tuple(n.result for n in unsettled(run.state).values())
    return Retried(
        run.place.run_id,
        run.state.attempts,
        "failing",
        still_failing=failing,
        exit_code=EXIT_STILL_FAILING,
        total=len(run.state.nodes),
    )


@dataclass(frozen=True)
class Group:
    """Planned nodes that one dbt command can run."""

    invocation: Invocation
    """Whose vars, target and flags they run with."""
    nodes: tuple[PlannedNode, ...]


def stages(plan: Plan, run: LoadedRun) -> list[Group]:
    """The plan as few dbt commands as its settings and its order allow. Nodes that ran with
    the same settings share a command, unless something of other settings lies between them."""
    settings = [_settings(i) for i in run.state.invocations]
    level: dict[str, int] = {}
    groups: dict[tuple[int, str], list[PlannedNode]] = {}
    by_id = {n.unique_id: n for n in plan.nodes}
    for node in plan.nodes:
        own = settings[node.invocation]
        rank = 0
        for above in run.graph.ancestors([node.unique_id]) & level.keys():
            apart = settings[by_id[above].invocation] != own
            rank = max(rank, level[above] + apart)
        level[node.unique_id] = rank
        groups.setdefault((rank, own), []).append(node)
    return [
        Group(run.state.invocations[nodes[0].invocation], tuple(nodes))
        for _, nodes in sorted(groups.items(), key=lambda item: item[0])
    ]


def _settings(invocation: Invocation) -> str:
    command = restored(invocation, Overrides())
    return " ".join(sorted(w for w in command.argv()[len(command.launcher) :] if w))


def _blocked(node: PlannedNode, graph: Graph, recorded: Sequence[Recorded], attempt: int) -> bool:
    """Whether something above it failed in an earlier command of this attempt."""
    failed = {
        uid
        for r in recorded
        if r.invocation.attempt == attempt
        for uid, result in r.results.items()
        if result.status in FAILURES or result.status == SKIPPED
    }
    if not failed:
        return False
    above = graph.ancestors([node.unique_id])
    broken_tests = {u for u in failed if u in graph.nodes and graph.nodes[u].resource_type in TESTS}
    tested = {p for t in broken_tests for p in graph.parents.get(t, ())}
    return bool(above & (failed | tested))


def _run_group(
    where: Where,
    run: LoadedRun,
    group: Group,
    options: Options,
    attempt: int,
    dbt: str,
    stdout: IO[Any] | int | None,
    replaced: Mapping[str, str],
    judge: Callable[[Recorded], Verdict],
) -> Outcome:
    base = restored(group.invocation, options.overrides, dbt=dbt, cwd=where.cwd)
    strategy = _strategy(options.strategy, group)
    with tempfile.TemporaryDirectory(prefix="dbt-recover-state-") as directory:
        state = Path(directory)
        (state / "run_results.json").write_bytes(_state_file(group, base))
        if strategy == "defer":
            write_manifest(where.archive, run, state)
        command = _command(base, strategy, state)
        identity = Identity(
            run_id=run.place.run_id,
            attempt=attempt,
            scope="run",
            logical_date=run.state.run.logical_date,
        )
        return run_recorded(
            replace(where, environ=_environment(where.environ)),
            command.argv(),
            identity,
            task=Task(base.argv(), [n.unique_id for n in group.nodes], replaced, judge),
            stdout=stdout,
        )


def _strategy(wanted: str, group: Group) -> str:
    """auto: select, which passes over nodes that are gone and takes every flag; dbt's own retry
    where single batches of a microbatch model have to run."""
    if wanted != "auto":
        return wanted
    return "retry" if any(n.action == "run_batches" for n in group.nodes) else "select"


def _command(base: DbtCommand, strategy: str, state: Path) -> DbtCommand:
    if strategy == "retry":
        kept = [o for o in base.options if o.name in _RETRY_FLAGS]
        return replace(base, command="retry", options=tuple(kept)).adding("--state", str(state))
    command = base.adding(
        "--select", "result:error", "--indirect-selection", "empty", "--state", str(state)
    )
    return command.adding("--defer") if strategy == "defer" else command


_RETRY_FLAGS = frozenset(
    {"--profiles-dir", "--project-dir", "--profile", "--target", "--threads", "--vars", "--debug"}
    | {"--quiet", "--no-quiet", "--use-colors", "--no-use-colors", "--log-format", "--log-level"}
    | {"--no-partial-parse", "--partial-parse", "--target-path"}
)

_ARGS_OF_STATE = (
    *("event_time_end", "event_time_start", "fail_fast", "full_refresh", "profile"),
    *("sample", "target", "threads", "vars"),
)


def _state_file(group: Group, base: DbtCommand) -> bytes:
    original = group.invocation
    args = {**original.args, **base.args()}
    results: list[dict[str, Any]] = []
    for node in group.nodes:
        entry: dict[str, Any] = {"unique_id": node.unique_id, "status": "error"}
        if node.action == "run_batches":
            entry["batch_results"] = {
                "successful": [list(b) for b in node.batches_done],
                "failed": [list(b) for b in node.batches_failed],
            }
        results.append(entry)
    return synthesise_run_results(
        results,
        args={
            "which": "build",
            "command": "build",
            **{k: args[k] for k in _ARGS_OF_STATE if args.get(k) not in (None, "", {}, [])},
        },
        started_at=original.began,
        dbt_version=original.dbt_version,
        invocation_id=original.invocation_id,
    )


_SELECTION_VARIABLES = frozenset(
    {
        "DBT_RESOURCE_TYPES",
        "DBT_EXCLUDE_RESOURCE_TYPES",
        "DBT_INDIRECT_SELECTION",
        "DBT_STATE",
        "DBT_DEFER_STATE",
    }
)


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Without what would select other nodes than the planned ones."""
    return {k: v for k, v in environ.items() if k not in _SELECTION_VARIABLES}


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
    if interrupted:
        outcome = "interrupted"
        code = EXIT_TERMINATED if interrupted == signal.SIGTERM else EXIT_INTERRUPTED
    elif left.nodes:
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
    )


def write_manifest(archive: Archive, run: LoadedRun, directory: Path) -> None:
    """Put the run's latest manifest.json into directory. RefusedError if it has none."""
    commits = [
        archive.commit_of(run.place, r.invocation.invocation_id)
        for r in reversed(run.recorded)
        if r.invocation.end not in ("lost", "running")
    ]
    for commit in commits:
        for artifact in commit.artifacts:
            if artifact.name in ("manifest.json", "manifest.early.json"):
                (directory / "manifest.json").write_bytes(archive.artifact_bytes(artifact))
                return
    raise RefusedError(
        f"run {run.place.run_id} left no manifest.json",
        hint="choose another run, or --strategy select",
    )


def fetch(
    archive: Archive, run: LoadedRun, directory: Path, project: checkout.Project | None
) -> None:
    """Write a state directory for dbt's --state: the run's manifest, and run_results.json merged
    over all its invocations and attempts."""
    if project is not None and directory.resolve() == project.target_path.resolve():
        raise UsageError(
            f"{directory} is the project's target path: dbt would overwrite the state there",
            hint="fetch to another directory, for example: dbt-recover fetch --to state",
        )
    directory.mkdir(parents=True, exist_ok=True)
    write_manifest(archive, run, directory)
    invocation = run.state.invocations[0]
    results = [
        {
            "unique_id": uid,
            "status": _dbt_status(node.result),
            "message": node.result.message or None,
        }
        for uid, node in sorted(run.state.nodes.items())
        if uid.split(".", 1)[0] in BUILDABLE | TESTS | {"operation"}
    ]
    body = synthesise_run_results(
        results,
        args={"which": "build", "command": "build", **invocation.args},
        started_at=invocation.began,
        dbt_version=invocation.dbt_version,
        invocation_id=run.state.invocations[-1].invocation_id,
    )
    (directory / "run_results.json").write_bytes(body)


def _dbt_status(result: NodeResult) -> str:
    known = FAILURES | {"success", "pass", "warn", SKIPPED}
    if result.status in known:
        return result.status
    if result.status in ("no-op", "reused"):
        return "success"
    return SKIPPED if result.status == "never started" else "error"
