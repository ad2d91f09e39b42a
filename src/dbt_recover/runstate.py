"""A run's invocations, merged into what is true now: pure.

The latest word per node wins, in the order of attempts and of beginning. What an invocation meant
to execute and did not record is a word too (never started, in flight): so a killed retry does not
leave an older success standing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from .graph import BUILDABLE, TESTS, Graph
from .model import (
    FAILURES,
    IN_FLIGHT,
    NEVER_BEGAN,
    NEVER_EXECUTED,
    SKIPPED,
    SUCCESSES,
    UNRECORDED,
    Invocation,
    NodeResult,
    NodeState,
    Recorded,
    RunState,
)


def in_order(recorded: Iterable[Recorded]) -> list[Recorded]:
    """By beginning: a retry's is never before what it went on from (execute.run_recorded). Declared
    steps that never began come first, in the order of the declaration (which their ids carry): any
    word on a node is later than theirs."""

    def key(record: Recorded) -> tuple[bool, str, str]:
        invocation = record.invocation
        begun = invocation.end != NEVER_BEGAN
        return begun, invocation.began if begun else "", invocation.invocation_id

    return sorted(recorded, key=key)


def merge(
    recorded: Sequence[Recorded],
    intended: Mapping[str, frozenset[str]],
    warnings: Sequence[str] = (),
    *,
    graph: Graph | None = None,
    any_target: bool = False,
) -> RunState:
    """The run's state. A retry into another target says nothing of the run's own relations, and
    counts only with `any_target`.

    `intended`: invocation_id -> what it was meant to execute, for those that did not come to
    their own end (see load._intended). An invocation that ended by itself recorded it all.
    `graph` tells which nodes are ephemeral: dbt records those as skipped when it stops early, and
    never again, since there is nothing to execute.
    """
    ordered = in_order(recorded)
    nodes: dict[str, NodeState] = {}
    ephemeral = _ephemeral(graph)
    for index, record in enumerate(ordered):
        invocation = record.invocation

        def say(
            result: NodeResult, index: int = index, invocation: Invocation = invocation
        ) -> None:
            # dbt 1.10 and later list exposures among the results; there is nothing to execute.
            uid = result.unique_id
            if uid in ephemeral or uid.startswith(NEVER_EXECUTED):
                return
            before = nodes.get(uid)
            if before is not None and not any_target and invocation.intended is not None:
                target = ordered[before.index].invocation.target
                if target and invocation.target and target != invocation.target:
                    return
            nodes[uid] = NodeState(result, invocation.attempt, invocation.invocation_id, index)

        for gone in invocation.replaced:
            nodes.pop(gone, None)
        if not record.complete:
            lost = intended.get(invocation.invocation_id, frozenset()) | record.in_flight
            for uid in sorted(lost - record.results.keys()):
                say(NodeResult(uid, IN_FLIGHT if uid in record.in_flight else UNRECORDED))
        if record.complete and invocation.exit_code == 0:
            # Hooks run with every command; not every dbt lists them among its results.
            for uid in [u for u in nodes if u.startswith("operation.")]:
                del nodes[uid]
        for result in record.results.values():
            # dbt v2 writes what has nothing to do as skipped; a run that ended well skipped
            # nothing because of a failure.
            if result.status == SKIPPED and invocation.exit_code == 0:
                result = msgspec.structs.replace(result, status="no-op")
            say(result)
    first = ordered[0].invocation.run
    return RunState(first, [r.invocation for r in ordered], nodes, list(warnings))


def _ephemeral(graph: Graph | None) -> set[str]:
    nodes = graph.nodes.values() if graph is not None else ()
    return {n.unique_id for n in nodes if n.materialized == "ephemeral"}


def unsettled(state: RunState) -> dict[str, NodeState]:
    """The nodes that keep the run from being whole, by their own last word; hooks included."""
    return {u: n for u, n in state.nodes.items() if n.result.status not in SUCCESSES}


def rebuilt_above(state: RunState, graph: Graph) -> dict[str, str]:
    """Successes that a later attempt made untrue: node -> the parent that was rebuilt after it.

    Within the first attempt the order is the pipeline's own, and a clean run has the same.
    """
    stale: dict[str, str] = {}
    if state.attempts < 2:
        return stale
    for uid, node in state.nodes.items():
        if node.result.status not in SUCCESSES or uid not in graph.nodes:
            continue
        if graph.nodes[uid].resource_type not in BUILDABLE | TESTS - {"unit_test"}:
            continue
        for parent in relations_read_by(graph, uid):
            above = state.nodes.get(parent)
            if (
                above is not None
                and above.attempt > 1
                and above.index > node.index
                and above.result.status in SUCCESSES
            ):
                stale[uid] = parent
                break
    return stale


def relations_read_by(graph: Graph, uid: str) -> list[str]:
    """Parents whose rows the node reads, looking through ephemeral models and views: themselves
    in the list (views), as well as what they read."""
    return _upwards(graph, uid, ("ephemeral", "view"))


def tested_by(graph: Graph, test: str) -> list[str]:
    """The relations that a test is about: its parents, and what ephemeral ones among them read."""
    return _upwards(graph, test, ("ephemeral",))


def _upwards(graph: Graph, uid: str, through: tuple[str, ...]) -> list[str]:
    seen: set[str] = set()
    found: list[str] = []
    stack = list(graph.parents.get(uid, ()))
    while stack:
        parent = stack.pop()
        if parent in seen:
            continue
        seen.add(parent)
        node = graph.nodes[parent]
        if node.materialized != "ephemeral":
            found.append(parent)
        if node.materialized in through:
            stack.extend(graph.parents[parent])
    return found


def readers(graph: Graph, uid: str, scope: set[str]) -> Iterator[str]:
    """Nodes of the scope, tests too, that read the node's rows: its children, and what reads them
    through ephemeral models and through views that are not in the scope."""
    seen: set[str] = set()
    stack = list(graph.children.get(uid, ()))
    while stack:
        child = stack.pop()
        if child in seen:
            continue
        seen.add(child)
        if child in scope:
            yield child
        elif graph.nodes[child].materialized in ("ephemeral", "view"):
            stack.extend(graph.children[child])


def describe(state: RunState) -> str:
    """One word for the run: success, recovered, failed."""
    if unsettled(state) or (state.warnings and not state.nodes):
        return "failed"
    return "recovered" if state.attempts > 1 else "success"


def counts(state: RunState) -> dict[str, int]:
    """status -> number of nodes."""
    result: dict[str, int] = {}
    for node in state.nodes.values():
        result[node.result.status] = result.get(node.result.status, 0) + 1
    return result


def failed_nodes(state: RunState) -> list[NodeResult]:
    """What failed itself (not what was skipped or lost), in a stable order."""
    return sorted(
        (n.result for n in state.nodes.values() if n.result.status in FAILURES),
        key=lambda r: r.unique_id,
    )
