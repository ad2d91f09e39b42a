"""A plan as few dbt commands: which nodes can share one, and what waits for another. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .errors import RefusedError
from .graph import TESTS, Graph
from .load import LoadedRun
from .model import FAILURES, SKIPPED, Invocation, Recorded
from .plan import Plan, PlannedNode, name_of
from .restore import Overrides, restored
from .runstate import relations_read_by


@dataclass(frozen=True)
class Group:
    """Planned nodes that one dbt command can run."""

    invocation: Invocation
    """Whose vars, target and flags they run with."""
    nodes: tuple[PlannedNode, ...]
    command: str = "build"


def stages(plan: Plan, run: LoadedRun) -> list[Group]:
    """The plan as few dbt commands as its settings and its order allow. Nodes that ran with
    the same settings share a command, unless something of other settings lies between them."""
    settings = [_settings(i) for i in run.state.invocations]
    if len({settings[n.invocation] for n in plan.nodes}) == 1:
        return _split(Group(run.state.invocations[plan.nodes[0].invocation], plan.nodes), run.graph)
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
        part
        for _, nodes in sorted(groups.items(), key=lambda item: item[0])
        for part in _split(
            Group(run.state.invocations[nodes[0].invocation], tuple(nodes)), run.graph
        )
    ]


def _split(group: Group, graph: Graph) -> list[Group]:
    """`dbt build` runs a unit test only beside its model; alone it takes `dbt test`, which is
    given the unit tests first: in a build they come before their models, too."""
    planned = {n.unique_id for n in group.nodes}
    alone = {
        n.unique_id
        for n in group.nodes
        if n.resource_type == "unit_test"
        and n.unique_id in graph.nodes
        and planned.isdisjoint(graph.nodes[n.unique_id].tested)
    }
    if not alone:
        return [group]
    first = tuple(n for n in group.nodes if n.unique_id in alone)
    rest = tuple(n for n in group.nodes if n.unique_id not in alone)
    parts = [replace(group, nodes=first, command="test")]
    return parts + ([replace(group, nodes=rest)] if rest else [])


def _settings(invocation: Invocation) -> str:
    command = restored(invocation, Overrides())
    return " ".join(sorted(w for w in command.argv()[len(command.launcher) :] if w))


def blocked(node: PlannedNode, graph: Graph, added: Sequence[Recorded]) -> bool:
    """Whether something above it failed in an earlier command of this attempt."""
    failed = {
        uid
        for r in added
        for uid, result in r.results.items()
        if result.status in FAILURES or result.status == SKIPPED
    }
    if not failed:
        return False
    above = graph.ancestors([node.unique_id])
    broken_tests = {u for u in failed if u in graph.nodes and graph.nodes[u].resource_type in TESTS}
    tested = {p for t in broken_tests for p in graph.parents.get(t, ())}
    return bool(above & (failed | tested))


def check_favored(groups: Sequence[Group], graph: Graph) -> None:
    """RefusedError if a later command would read the run's relation of what an earlier one builds:
    --favor-state knows only what its own command builds."""
    built: set[str] = set()
    for group in groups:
        own = {n.unique_id for n in group.nodes}
        for uid in sorted(own & graph.nodes.keys()):
            again = sorted(built.intersection(relations_read_by(graph, uid)) - own)
            if again:
                raise RefusedError(
                    f"this retry takes several dbt commands, and with --favor-state "
                    f"{name_of(graph, uid)} would read the run's {name_of(graph, again[0])}, "
                    "which an earlier one of them builds anew",
                    hint="leave --favor-state out, with a target that has no relations of its own",
                )
        built |= own
