"""A run, read from the archive and completed by what it was meant to execute."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from . import checkout
from .archive import Archive
from .graph import Graph
from .layout import RunPlace
from .model import NEVER_BEGAN, NEVER_EXECUTED, Invocation, Recorded, RunState
from .runstate import in_order, merge, settings_apart, told_apart

if TYPE_CHECKING:
    from .pipeline import Pipeline, Step


class Asking(Protocol):
    """Who may start dbt to learn what the archive does not say."""

    def graph(self, invocation: Invocation, prepare: Callable[[Path], None] | None = None) -> Graph:
        """Today's graph of the project, parsed by dbt. DbtError if it cannot be parsed. `prepare`
        is called with dbt's target path before that."""

    def scope(self, invocation: Invocation) -> frozenset[str] | None:
        """What the invocation selects, asked of `dbt ls`; None if dbt cannot tell."""


class LoadedRun(msgspec.Struct, frozen=True):
    """A run as the archive has it, and what is true of it."""

    place: RunPlace
    recorded: Sequence[Recorded]
    """In order; declared steps that never began are among them, without results."""
    graph: Graph
    """Of the latest invocation that left one."""
    origin: Graph
    """Of the earliest one, where nodes of the run are missing from the latest; else the same."""
    base: Graph
    """Of the first attempt: what today's files are compared with."""
    state: RunState
    intended: Mapping[str, frozenset[str]]
    """invocation_id -> what it was meant to execute, of those that did not come to their end."""
    seen: str = ""
    """What the run's listing said when it was read (Archive.state_of)."""
    scope: set[str] | None = None
    """Where it is only a part of the run: the nodes of that part."""
    apart: frozenset[str] = frozenset()
    """Nodes whose executions with other settings are of something else."""

    @property
    def running(self) -> list[Invocation]:
        """Invocations that are at work right now."""
        return [r.invocation for r in self.recorded if r.invocation.end == "running"]

    def lease_place(self, step: str | None) -> RunPlace:
        """What a retry of the run, or of one step of it, has to hold the lease of."""
        return self.place if step is None else self.place.of_step(step)

    def restate(self, added: Sequence[Recorded], *, any_target: bool = False) -> RunState:
        """The run's state with these invocations added; see runstate.merge."""
        own = {
            r.invocation.invocation_id: frozenset(r.invocation.intended)
            for r in added
            if not r.complete and r.invocation.intended is not None
        }
        state = merge(
            [*self.recorded, *added],
            {**self.intended, **own},
            self.state.warnings,
            graph=self.graph,
            any_target=any_target,
            apart=self.apart,
        )
        if self.scope is None:
            return state
        # Hooks run with any command, also where the part has not recorded any yet.
        nodes = {
            uid: node
            for uid, node in state.nodes.items()
            if uid in self.scope or uid.startswith("operation.")
        }
        return RunState(state.run, state.invocations, nodes, state.warnings)

    def step(self, invocation_ids: set[str]) -> LoadedRun:
        """Of the run only what these invocations were about; whatever later retries made of it
        counts too."""
        kept = [
            r
            for r in self.recorded
            if r.invocation.invocation_id in invocation_ids or r.invocation.scope == "run"
        ]
        scope: set[str] = set()
        for record in kept:
            ident = record.invocation.invocation_id
            if ident in invocation_ids:
                scope |= record.results.keys() | self.intended.get(ident, frozenset())
        intended = {r.invocation.invocation_id: frozenset[str]() for r in kept}
        intended |= {k: v for k, v in self.intended.items() if k in intended}
        unknown = [
            _unknown(r.invocation)
            for r in kept
            if not r.complete and r.invocation.invocation_id not in self.intended
        ]
        merged = merge(kept, intended, unknown, graph=self.graph, apart=self.apart)
        nodes = {uid: node for uid, node in merged.nodes.items() if uid in scope}
        state = RunState(merged.run, merged.invocations, nodes, merged.warnings)
        return msgspec.structs.replace(
            self, recorded=kept, state=state, intended=intended, scope=scope
        )


def load(
    archive: Archive,
    place: RunPlace,
    *,
    project: checkout.Project | None = None,
    pipelines: Sequence[Pipeline] = (),
    asking: Asking | None = None,
) -> LoadedRun:
    """Read a run. Small objects only: commit records, node results, one compact graph.

    What ended early is completed from the archived graph; where that does not say, from the
    project's own manifest or, if `asking` may, from dbt. What stays unknown is in the state's
    warnings.
    """
    seen = archive.state_of(place)
    recorded = in_order(archive.load(place, with_graph=True))
    graph = next((g for r in reversed(recorded) if (g := archive.graph(r)) is not None), None)
    recorded = in_order([*recorded, *_steps(recorded, pipelines, place.run_id)])
    early = [r for r in recorded if not r.complete]
    if graph is None and early:
        # dbt v2 writes its manifest at its end only, and a dbt that cannot parse writes none.
        graph = checkout.fresh_graph(project) if project is not None else None
        if graph is None and asking is not None:
            graph = asking.graph(early[0].invocation)
    intended: dict[str, frozenset[str]] = {}
    unknown: list[str] = []
    for record in early:
        known = _intended(archive, record, graph, asking)
        if known is not None:
            intended[record.invocation.invocation_id] = known
        else:
            unknown.append(_unknown(record.invocation))
    apart = _apart(archive, recorded, graph)
    state = merge(recorded, intended, unknown, graph=graph, apart=apart)
    graph = origin = graph or Graph([])
    if not graph.nodes.keys() >= {u for u in state.nodes if not u.startswith("operation.")}:
        origin = next((g for r in recorded if (g := archive.graph(r)) is not None), graph)
    base = graph
    if any(r.invocation.attempt > 1 for r in recorded):
        firsts = [r for r in reversed(recorded) if r.invocation.attempt == 1]
        base = next((g for r in firsts if (g := archive.graph(r)) is not None), graph)
    return LoadedRun(place, recorded, graph, origin, base, state, intended, seen, None, apart)


def _apart(archive: Archive, recorded: Sequence[Recorded], latest: Graph | None) -> frozenset[str]:
    """Which nodes are to be told apart by the settings they ran with, if these were several."""
    settings = settings_apart([r.invocation for r in recorded])
    if latest is None or len(set(settings) - {-1}) < 2:
        return frozenset()
    graphs: dict[int, Graph] = {}
    for record, setting in zip(recorded, settings, strict=True):
        if setting >= 0 and setting not in graphs and (graph := archive.graph(record)) is not None:
            graphs[setting] = graph
    return frozenset(told_apart(list(graphs.values()) or [latest]))


def _steps(
    recorded: Sequence[Recorded], pipelines: Sequence[Pipeline], run_id: str
) -> list[Recorded]:
    """Declared steps that never began, as invocations that recorded nothing."""
    original = [r.invocation for r in recorded if r.invocation.scope != "run"]
    if not original or not (pipelines or any(i.pipeline for i in original)):
        return []
    from .pipeline import declared, never_begun, pipeline_of

    pipeline = pipeline_of(pipelines, run_id) or declared(original)
    if pipeline is None:
        return []
    missing = never_begun(pipeline, [(i.step, i.argv) for i in original])
    return [_step_as_invocation(original[0], number, step) for number, step in missing]


def _step_as_invocation(model: Invocation, number: int, step: Step) -> Recorded:
    """The step with the vars and the target of the run, where its command gives none."""
    args = step.command.args()
    variables = {**(model.args.get("vars") or {}), **args.get("vars", {})}
    restored = {k: model.args[k] for k in ("target", "profile", "threads") if k in model.args}
    invocation = Invocation(
        invocation_id=f"step:{number:04d}:{step.name}",
        run=model.run,
        step=step.name,
        argv=step.command.argv(),
        command=step.command.command,
        args={**restored, **args, **({"vars": variables} if variables else {})},
        project_name=model.project_name,
        target=step.command.value("--target") or model.target,
        began=model.began,
        dbt_version=model.dbt_version,
        end=NEVER_BEGAN,
    )
    return Recorded(invocation, {}, frozenset(), complete=False)


def _intended(
    archive: Archive, record: Recorded, latest: Graph | None, asking: Asking | None
) -> frozenset[str] | None:
    invocation = record.invocation
    from .scope import selected

    graph = archive.graph(record) or latest
    known: frozenset[str] | None = None
    if invocation.intended is not None:
        known = frozenset(invocation.intended)
    elif record.never_started:
        known = record.never_started | record.in_flight | record.results.keys()
    elif graph is not None:
        known = selected(graph, invocation.args, invocation.command)
        if known is not None and not _as_many(known, invocation.node_count, graph):
            known = None
    if known is None and asking is not None:
        known = asking.scope(invocation)
        if known is not None and graph is not None and _more(known, invocation.node_count, graph):
            known = None  # a wrapper of dbt selects, for one
    if known is not None and graph is not None and known <= record.results.keys():
        # All that was left to do is what comes after the last node.
        last = (n for n in graph.nodes.values() if n.resource_type == "operation")
        known |= {n.unique_id for n in last if "on-run-end" in n.tags}
    return known


_LISTED = (*NEVER_EXECUTED, "saved_query.")


def _as_many(known: frozenset[str], count: int | None, graph: Graph) -> bool:
    """Whether these can be the nodes that dbt said it had selected so many of: a setting that was
    not recorded would show here. dbt 1.10 and later count exposures too."""
    if count is None:
        return True
    ours, listed = _counted(known, graph)
    return ours - listed <= count <= ours + listed


def _more(known: frozenset[str], count: int | None, graph: Graph) -> bool:
    """Whether there are more of them than dbt had selected; of today's project some may be gone."""
    ours, listed = _counted(known, graph)
    return count is not None and ours - listed > count


def _counted(known: frozenset[str], graph: Graph) -> tuple[int, int]:
    """How many nodes dbt counts of these, and how many it may count besides."""
    nodes = [graph.nodes[uid] for uid in known if uid in graph.nodes]
    listed = sum(1 for uid in graph.nodes if uid.startswith(_LISTED))
    return sum(1 for n in nodes if n.materialized != "ephemeral"), listed


def _unknown(invocation: Invocation) -> str:
    what = f"`{' '.join(invocation.argv) or f'dbt {invocation.command}'}`"
    if invocation.end == NEVER_BEGAN:
        return (
            f"step {invocation.step} ({what}) never began, and what it executes cannot be told from "
            "the archive: its nodes are missing here"
        )
    return (
        f"{what} ended early, and what it was meant to execute cannot be told from the archive: "
        "nodes that it never began may be missing here"
    )
