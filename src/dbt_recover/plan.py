"""Run state + graph + policy -> plan: which nodes to run again, each with its reason, and which
not. A pure function: no I/O, no clock, no dbt. The rules are those of DESIGN.md.
"""

from __future__ import annotations

import msgspec

from .blame import Blame
from .decision import (
    Changes,
    Draft,
    LeftAlone,
    Plan,
    PlannedNode,
    PlanWarning,
    Policy,
    Standing,
    is_buildable,
    name_of,
)
from .graph import TESTS, Graph
from .hazards import drift, idempotent, not_idempotent
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
from .outside import readers_of_mended_rows
from .reconcile import new_above, successors
from .runstate import readers, rebuilt_above, tested_by

__all__ = [
    "Changes",
    "LeftAlone",
    "Plan",
    "PlanWarning",
    "PlannedNode",
    "Policy",
    "Standing",
    "idempotent",
    "make_plan",
    "name_of",
]


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
    drafts: dict[str, Draft] = {}
    scope = set(state.nodes)
    blame = Blame(state, graph)

    for uid, node in state.nodes.items():
        if node.result.status in SUCCESSES:
            continue
        draft = _own_word(uid, node, state, graph, blame)
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
    drafts |= readers_of_mended_rows(
        drafts, state, graph, changes, scope, tests=policy.tests == "rebuild"
    )
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
    warnings += drift(drafts, changes, state, graph, policy)
    warnings += not_idempotent(drafts, changes, state, graph, policy)
    chosen, dropped = _narrow(drafts, policy)
    left += [LeftAlone(uid, "left out by --select or --exclude") for uid in dropped]
    replaced = successors(graph, current, chosen) if current is not None else {}
    today = current or graph
    for uid, successor in replaced.items():
        draft = chosen.pop(uid)
        if successor:
            draft = msgspec.structs.replace(
                draft, reason=f"{draft.reason} (then {name_of(graph, uid)})"
            )
            chosen.setdefault(successor, draft)
        else:
            left.append(LeftAlone(uid, "no longer in the project"))
    for uid in new_above(graph, today, chosen):
        word = state.nodes.get(uid)
        built = word is not None and word.result.status in SUCCESSES
        if is_buildable(today, uid) and not built:
            chosen[uid] = Draft("edited", "new since the run, and what failed depends on it")
    origin = {new: old for old, new in replaced.items()}
    nodes = tuple(
        _planned(
            uid, chosen[uid], state.nodes.get(origin.get(uid, uid)), today, policy.full_refresh
        )
        for uid in today.order(chosen, tests_first=True)
    )
    return Plan(nodes, tuple(left), tuple(warnings), tuple(dropped), replaced)


def _own_word(uid: str, node: NodeState, state: RunState, graph: Graph, blame: Blame) -> Draft:
    status = node.result.status
    if status == "partial success":
        done, missing = len(node.result.batches_done), len(node.result.batches_failed)
        if done + missing:
            return Draft("batches", f"{missing} of {done + missing} batches failed or are missing")
        return Draft("failed", "some of its batches failed")
    if status in FAILURES:
        word = "failed" if status == "fail" else status
        return Draft("failed", f"{word} here")
    if status == SKIPPED:
        return _skipped(uid, graph, blame)
    if status == UNRECORDED:
        invocation = state.invocations[node.index]
        if invocation.end == NEVER_BEGAN:
            return Draft("never_started", f"never started: step {invocation.step} never began")
        return Draft("never_started", "never started: dbt ended before it")
    if status == IN_FLIGHT:
        return Draft("in_flight", "was in flight when dbt ended: its query may have committed")
    return Draft("unknown_status", f"unknown status {status!r}")


def _skipped(uid: str, graph: Graph, blame: Blame) -> Draft:
    causes = blame.causes(uid)
    if not causes:
        return Draft("skipped", "skipped when dbt stopped early (fail-fast or a failed hook)")
    first = causes[0]
    kind = "test " if first.split(".", 1)[0] in TESTS else ""
    more = f" (and {len(causes) - 1} more)" if len(causes) > 1 else ""
    return Draft(
        "skipped", f"skipped because {kind}{name_of(graph, first)} failed{more}", tuple(causes)
    )


def _stale(graph: Graph, uid: str, parent: str) -> Draft:
    if graph.nodes[uid].resource_type in TESTS:
        return Draft(
            "test_of_rebuilt", f"tests {name_of(graph, parent)}, which is rebuilt", (parent,)
        )
    return Draft("stale", f"was built on {name_of(graph, parent)}, which is rebuilt", (parent,))


def _tested_by_failed(drafts: dict[str, Draft], graph: Graph, scope: set[str]) -> None:
    """Rule 3: what a failed test tests is rebuilt before it; of a source, its readers are."""
    for test in [u for u, d in drafts.items() if d.cause == "failed"]:
        node = graph.nodes.get(test)
        if node is None or node.resource_type != "test":
            continue
        reason = f"its test {name_of(graph, test)} failed"
        for parent in tested_by(graph, test):
            if parent in scope and parent not in drafts and is_buildable(graph, parent):
                drafts[parent] = Draft("tested", reason, (test,))
            elif graph.nodes[parent].resource_type == "source":
                of_source = f"reads {name_of(graph, parent)}, whose test {node.name} failed"
                for uid in readers(graph, parent, scope):
                    if uid not in drafts and is_buildable(graph, uid):
                        drafts[uid] = Draft("tested", of_source, (test,))


def _edited(
    drafts: dict[str, Draft],
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
                    Draft("stale", f"reads {name_of(graph, uid)}, which was edited", (uid,)),
                )
            continue
        if uid in drafts or uid not in scope:
            continue
        if uid in above and is_buildable(graph, uid):
            below = sorted(graph.descendants([uid]) & drafts.keys())
            first = next((u for u in below if drafts[u].cause == "failed"), below[0])
            drafts[uid] = Draft(
                "edited", f"edited since the run, above {name_of(graph, first)}", (first,)
            )
        elif drafts:
            left.append(
                LeftAlone(uid, "edited since the run, but nothing that failed depends on it")
            )


def _closure(drafts: dict[str, Draft], graph: Graph, scope: set[str], changes: Changes) -> None:
    """Rule 2: everything in scope that reads what is rebuilt, and its tests."""
    frontier = [u for u in drafts if is_buildable(graph, u)]
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
            if is_buildable(graph, uid):
                frontier.append(uid)


def _narrow(drafts: dict[str, Draft], policy: Policy) -> tuple[dict[str, Draft], list[str]]:
    chosen = {
        u: d
        for u, d in drafts.items()
        if (policy.select is None or u in policy.select) and u not in policy.exclude
    }
    return chosen, sorted(drafts.keys() - chosen.keys())


def _planned(
    uid: str, draft: Draft, state: NodeState | None, graph: Graph, full_refresh: bool
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
        microbatch=node is not None and node.microbatch,
        some_batches=bool(batches) and result is not None and len(batches) < _batch_count(result),
        invocation=state.index if state else 0,
    )


def _batches(draft: Draft, result: NodeResult) -> tuple[tuple[str, str], ...]:
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
