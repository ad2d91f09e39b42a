"""Run state + graph + policy -> plan: which nodes to run again, each with its reason, and which
not. A pure function: no I/O, no clock, no dbt. The rules are those of DESIGN.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from .blame import Blame
from .graph import BUILDABLE, TESTS, Graph, Node
from .model import (
    FAILURES,
    IN_FLIGHT,
    NEVER_BEGAN,
    SKIPPED,
    SUCCESSES,
    UNRECORDED,
    NodeResult,
    NodeState,
    RunState,
)
from .reconcile import new_above, successors
from .runstate import readers, rebuilt_above, tested_by


@dataclass(frozen=True)
class Changes:
    """What differs between the archived project and the one at hand."""

    nodes: frozenset[str] = frozenset()
    """Nodes whose own file, or a macro they call, was edited."""
    files: tuple[str, ...] = ()
    """All project files that were edited, added or removed."""
    structural: tuple[str, ...] = ()
    """Edited files that may change which nodes there are: YAML, and files added or removed."""
    known: bool = True
    """False if the archive has nothing to compare with."""


@dataclass(frozen=True)
class Policy:
    """What the user asked for."""

    tests: str = "rebuild"
    """rebuild: run the models of a failed test again, then the test. recheck: the test alone."""
    select: frozenset[str] | None = None
    """Narrow the plan to these; None is all."""
    exclude: frozenset[str] = frozenset()
    full_refresh: bool = False
    allow_drift: bool = False
    allow_non_idempotent: bool = False


@dataclass(frozen=True)
class PlannedNode:
    """One node to run again."""

    unique_id: str
    cause: str
    """failed, skipped, never_started, in_flight, unknown_status, batches, tested, edited, stale,
    test_of_rebuilt."""
    reason: str
    """The cause as a sentence for a person."""
    because: tuple[str, ...] = ()
    """The nodes the reason speaks of."""
    resource_type: str = ""
    status: str = ""
    """Its last status."""
    seconds: float | None = None
    """How long it took when it last succeeded in this run, where it did."""
    batches: tuple[tuple[str, str], ...] = ()
    """Of a microbatch model: [start, end] of the batches to run; empty if dbt is to decide."""
    some_batches: bool = False
    """Whether these are fewer than the run had."""
    invocation: int = 0
    """Position of the invocation, in the run, whose vars and target it ran with."""

    @property
    def action(self) -> str:
        """run, test, or run_batches for the failed batches of a microbatch model."""
        if self.some_batches:
            return "run_batches"
        return "test" if self.resource_type in TESTS else "run"


@dataclass(frozen=True)
class LeftAlone:
    """A node that someone might expect in the plan."""

    unique_id: str
    reason: str


@dataclass(frozen=True)
class PlanWarning:
    """Something to know before going on; with a flag: it stops the retry until that is given."""

    code: str
    message: str
    flag: str = ""
    """The flag that allows it; empty if the warning stops nothing."""
    allowed: bool = False


@dataclass(frozen=True)
class Plan:
    """The decision, in the order of execution."""

    nodes: tuple[PlannedNode, ...]
    left_alone: tuple[LeftAlone, ...] = ()
    warnings: tuple[PlanWarning, ...] = ()
    dropped: tuple[str, ...] = field(default=())
    """Nodes that must run for the run to be whole, and that --select or --exclude leaves out."""
    replaced: Mapping[str, str] = field(default_factory=dict)
    """Nodes that are gone from the project -> what runs in their place, or ''."""

    @property
    def ids(self) -> tuple[str, ...]:
        """unique_ids in order."""
        return tuple(n.unique_id for n in self.nodes)

    @property
    def blockers(self) -> tuple[PlanWarning, ...]:
        """Warnings that stop the retry."""
        return tuple(w for w in self.warnings if w.flag and not w.allowed)


@dataclass(frozen=True)
class _Draft:
    """One node on its way into the plan."""

    cause: str
    reason: str
    because: tuple[str, ...] = ()


def make_plan(
    state: RunState,
    graph: Graph,
    policy: Policy | None = None,
    changes: Changes | None = None,
    current: Graph | None = None,
) -> Plan:
    """Decide. `graph` is the run's own graph; nodes of the run that it lacks are planned by their
    own status alone. `current` is today's graph, where it is known to differ."""
    policy = policy or Policy()
    changes = changes or Changes(known=False)
    left: list[LeftAlone] = []
    warnings: list[PlanWarning] = []
    drafts: dict[str, _Draft] = {}
    scope = set(state.nodes)
    blame = Blame(state, graph)

    for uid, node in state.nodes.items():
        draft = _own_word(uid, node, state, graph, blame)
        if draft is None:
            continue
        if uid.startswith("operation."):
            left.append(
                LeftAlone(uid, f"hook: {node.result.status}; dbt runs hooks with every command")
            )
            continue
        drafts[uid] = draft
        if draft.cause == "unknown_status":
            warnings.append(
                PlanWarning(
                    "unknown_status",
                    f"{name_of(graph, uid)} has a status this dbt-recover does not know: "
                    f"{node.result.status!r}; it is taken as not done",
                )
            )
    for uid, parent in rebuilt_above(state, graph).items():
        if uid not in drafts:
            drafts[uid] = _stale(graph, uid, parent)
    if policy.tests == "rebuild":
        _tested_by_failed(drafts, graph, scope)
    _edited(drafts, changes, graph, scope, left)
    _closure(drafts, graph, scope, changes)
    if not changes.known and drafts:
        warnings.append(
            PlanWarning(
                "drift_unknown",
                "the archive does not say what the project's files were: edits since the run "
                "cannot be seen",
            )
        )
    warnings += _drift(drafts, changes, graph, policy)
    warnings += _not_idempotent(drafts, state, graph, policy)
    chosen, dropped = _narrow(drafts, policy)
    left += [LeftAlone(uid, "left out by --select or --exclude") for uid in dropped]
    replaced = successors(graph, current, chosen) if current is not None else {}
    today = current or graph
    for uid, successor in replaced.items():
        draft = chosen.pop(uid)
        if successor:
            draft = replace(draft, reason=f"{draft.reason} (then {name_of(graph, uid)})")
            chosen.setdefault(successor, draft)
        else:
            left.append(LeftAlone(uid, "no longer in the project"))
    for uid in new_above(graph, today, chosen):
        word = state.nodes.get(uid)
        built = word is not None and word.result.status in SUCCESSES
        if _is_buildable(today, uid) and not built:
            chosen[uid] = _Draft("edited", "new since the run, and what failed depends on it")
    origin = {new: old for old, new in replaced.items()}
    nodes = tuple(
        _planned(
            uid, chosen[uid], state.nodes.get(origin.get(uid, uid)), today, policy.full_refresh
        )
        for uid in today.order(chosen, tests_first=True)
    )
    return Plan(nodes, tuple(left), tuple(warnings), tuple(dropped), replaced)


def name_of(graph: Graph, uid: str) -> str:
    """The name people use for a node: `dim_customers`, `orders.v2`, a test's own name."""
    node = graph.nodes.get(uid)
    if node is not None and node.name:
        return f"{node.name}.v{node.version}" if node.version else node.name
    parts = uid.split(".")
    if parts[0] in ("test", "unit_test") and len(parts) > 3 and parts[0] == "test":
        return parts[-2]
    return ".".join(parts[2:]) or uid


def _own_word(
    uid: str, node: NodeState, state: RunState, graph: Graph, blame: Blame
) -> _Draft | None:
    status = node.result.status
    if status in SUCCESSES:
        return None
    if status == "partial success":
        done, missing = len(node.result.batches_done), len(node.result.batches_failed)
        if done + missing:
            return _Draft("batches", f"{missing} of {done + missing} batches failed or are missing")
        return _Draft("failed", "some of its batches failed")
    if status in FAILURES:
        word = "failed" if status == "fail" else status
        return _Draft("failed", f"{word} here")
    if status == SKIPPED:
        return _skipped(uid, graph, blame)
    if status == UNRECORDED:
        invocation = state.invocations[node.index]
        if invocation.end == NEVER_BEGAN:
            return _Draft("never_started", f"never started: step {invocation.step} never began")
        return _Draft("never_started", "never started: dbt ended before it")
    if status == IN_FLIGHT:
        return _Draft("in_flight", "was in flight when dbt ended: its query may have committed")
    return _Draft("unknown_status", f"unknown status {status!r}")


def _skipped(uid: str, graph: Graph, blame: Blame) -> _Draft:
    causes = blame.causes(uid)
    if not causes:
        return _Draft("skipped", "skipped when dbt stopped early (fail-fast or a failed hook)")
    first = causes[0]
    kind = "test " if first.split(".", 1)[0] in TESTS else ""
    more = f" (and {len(causes) - 1} more)" if len(causes) > 1 else ""
    return _Draft(
        "skipped", f"skipped because {kind}{name_of(graph, first)} failed{more}", tuple(causes)
    )


def _stale(graph: Graph, uid: str, parent: str) -> _Draft:
    if graph.nodes[uid].resource_type in TESTS:
        return _Draft(
            "test_of_rebuilt", f"tests {name_of(graph, parent)}, which is rebuilt", (parent,)
        )
    return _Draft("stale", f"was built on {name_of(graph, parent)}, which is rebuilt", (parent,))


def _tested_by_failed(drafts: dict[str, _Draft], graph: Graph, scope: set[str]) -> None:
    """Rule 3: what a failed test tests is rebuilt before it; of a source, its readers are."""
    for test in [u for u, d in drafts.items() if d.cause == "failed"]:
        node = graph.nodes.get(test)
        if node is None or node.resource_type != "test":
            continue
        reason = f"its test {name_of(graph, test)} failed"
        for parent in tested_by(graph, test):
            if parent in scope and parent not in drafts and _is_buildable(graph, parent):
                drafts[parent] = _Draft("tested", reason, (test,))
            elif graph.nodes[parent].resource_type == "source":
                of_source = f"reads {name_of(graph, parent)}, whose test {node.name} failed"
                for uid in readers(graph, parent, scope):
                    if uid not in drafts and _is_buildable(graph, uid):
                        drafts[uid] = _Draft("tested", of_source, (test,))


def _edited(
    drafts: dict[str, _Draft],
    changes: Changes,
    graph: Graph,
    scope: set[str],
    left: list[LeftAlone],
) -> None:
    """An edit above a failure is the fix: it has to be built before what failed."""
    above = graph.ancestors(drafts)
    for uid in sorted(changes.nodes):
        if uid in above and graph.nodes[uid].materialized == "ephemeral":
            # Nothing is built of it; its code is in what reads it.
            for reader in readers(graph, uid, scope):
                drafts.setdefault(
                    reader,
                    _Draft("stale", f"reads {name_of(graph, uid)}, which was edited", (uid,)),
                )
            continue
        if uid in drafts or uid not in scope:
            continue
        if uid in above and _is_buildable(graph, uid):
            below = sorted(graph.descendants([uid]) & drafts.keys())
            first = next((u for u in below if drafts[u].cause == "failed"), below[0])
            drafts[uid] = _Draft(
                "edited", f"edited since the run, above {name_of(graph, first)}", (first,)
            )
        elif drafts:
            left.append(
                LeftAlone(uid, "edited since the run, but nothing that failed depends on it")
            )


def _closure(drafts: dict[str, _Draft], graph: Graph, scope: set[str], changes: Changes) -> None:
    """Rule 2: everything in scope that reads what is rebuilt, and its tests."""
    frontier = [u for u in drafts if _is_buildable(graph, u)]
    while frontier:
        rebuilt = frontier.pop()
        for uid in readers(graph, rebuilt, scope):
            if uid in drafts:
                if drafts[uid].cause == "batches":
                    # Its other batches were built on rows that are replaced now.
                    drafts[uid] = _stale(graph, uid, rebuilt)
                continue
            # A unit test reads no relation; only an edit can change its outcome.
            if graph.nodes[uid].resource_type == "unit_test" and rebuilt not in changes.nodes:
                continue
            drafts[uid] = _stale(graph, uid, rebuilt)
            if _is_buildable(graph, uid):
                frontier.append(uid)


def _is_buildable(graph: Graph, uid: str) -> bool:
    node = graph.nodes.get(uid)
    if node is None:
        return uid.split(".", 1)[0] in BUILDABLE
    # A function (UDF, dbt 1.11) holds no rows, but what calls it has to be built after it.
    return node.resource_type in BUILDABLE | {"function"} and node.materialized != "ephemeral"


def _drift(
    drafts: dict[str, _Draft], changes: Changes, graph: Graph, policy: Policy
) -> list[PlanWarning]:
    above = graph.ancestors(drafts)
    outside = sorted(
        u
        for u in changes.nodes
        if u not in drafts and not (u in above and graph.nodes[u].materialized == "ephemeral")
    )
    if not outside or not drafts:
        return []
    names = ", ".join(name_of(graph, u) for u in outside[:5])
    more = f" and {len(outside) - 5} more" if len(outside) > 5 else ""
    return [
        PlanWarning(
            "drift",
            f"edited since the run, outside of the plan: {names}{more}. The retry runs today's "
            "code; what is outside of the plan keeps what the run built with the old code",
            flag="--allow-drift",
            allowed=policy.allow_drift,
        )
    ]


def idempotent(node: Node) -> bool:
    """Whether running the node twice leaves what running it once does."""
    if node.resource_type == "snapshot" or node.materialized == "snapshot":
        return False
    if node.materialized != "incremental":
        return True
    if node.incremental_strategy == "append":
        return False
    return (
        node.unique_key
        or node.microbatch
        or node.incremental_strategy in ("insert_overwrite", "replace_where")
    )


def _not_idempotent(
    drafts: dict[str, _Draft], state: RunState, graph: Graph, policy: Policy
) -> list[PlanWarning]:
    """Nodes whose earlier execution may stand in the table when they run again."""
    risky: list[str] = []
    merged: list[str] = []
    for uid, draft in drafts.items():
        node = graph.nodes.get(uid)
        if node is None or not _is_buildable(graph, uid):
            continue
        committed = draft.cause in ("in_flight", "stale", "tested", "edited")
        if not committed:
            continue
        full_refresh = policy.full_refresh or _ran_with_full_refresh(state, uid)
        if node.materialized == "incremental" and full_refresh:
            continue
        if not idempotent(node):
            risky.append(uid)
        elif (
            node.materialized == "incremental"
            and not node.microbatch
            and draft.cause != "in_flight"
        ):
            merged.append(uid)
    found: list[PlanWarning] = []
    if risky:
        names = ", ".join(name_of(graph, u) for u in sorted(risky)[:5])
        more = f" and {len(risky) - 5} more" if len(risky) > 5 else ""
        found.append(
            PlanWarning(
                "non_idempotent",
                f"{names}{more}: append-only or snapshot, and what it wrote before may stand; "
                "running it again can add the same rows twice. Look at the table first, restore "
                "it if need be, or rebuild an incremental with --full-refresh",
                flag="--allow-non-idempotent",
                allowed=policy.allow_non_idempotent,
            )
        )
    if merged:
        names = ", ".join(name_of(graph, u) for u in sorted(merged)[:5])
        found.append(
            PlanWarning(
                "merged_rows",
                f"{names}: incremental, merged by its unique_key: rows it took from the replaced "
                "data and whose keys are now gone stay in it; --full-refresh rebuilds it",
            )
        )
    return found


def _ran_with_full_refresh(state: RunState, uid: str) -> bool:
    node = state.nodes.get(uid)
    return node is not None and bool(state.invocations[node.index].args.get("full_refresh"))


def _narrow(drafts: dict[str, _Draft], policy: Policy) -> tuple[dict[str, _Draft], list[str]]:
    chosen = {
        u: d
        for u, d in drafts.items()
        if (policy.select is None or u in policy.select) and u not in policy.exclude
    }
    return chosen, sorted(drafts.keys() - chosen.keys())


def _planned(
    uid: str, draft: _Draft, state: NodeState | None, graph: Graph, full_refresh: bool
) -> PlannedNode:
    node = graph.nodes.get(uid)
    result = state.result if state else None
    succeeded = result is not None and result.status in SUCCESSES
    batches = _batches(draft, result) if result is not None and not full_refresh else ()
    return PlannedNode(
        unique_id=uid,
        cause=draft.cause,
        reason=draft.reason,
        because=draft.because,
        resource_type=node.resource_type if node else uid.split(".", 1)[0],
        status=result.status if result else "",
        seconds=result.execution_time if result and succeeded else None,
        batches=batches,
        some_batches=bool(batches) and result is not None and len(batches) < _batch_count(result),
        invocation=state.index if state else 0,
    )


def _batches(draft: _Draft, result: NodeResult) -> tuple[tuple[str, str], ...]:
    """The failed and missing batches; all that the run had where their parent is rebuilt: left to
    itself dbt would choose those of today."""
    if not result.batches_done:
        return ()
    spans = result.batches_failed
    if draft.cause != "batches":
        spans = sorted([*result.batches_done, *result.batches_failed])
    return tuple((b[0], b[1]) for b in spans if len(b) == 2)


def _batch_count(result: NodeResult) -> int:
    return len(result.batches_done) + len(result.batches_failed)
