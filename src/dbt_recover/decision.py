"""What a plan is made of: what it is decided from, and the decision with its reasons."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from .graph import BUILDABLE, TESTS, Graph


class Changes(msgspec.Struct, frozen=True):
    """What differs between the archived project and the one at hand."""

    nodes: frozenset[str] = frozenset()
    """Nodes whose own file, or a macro they call, was edited."""
    files: tuple[str, ...] = ()
    """All project files that were edited, added or removed."""
    structural: tuple[str, ...] = ()
    """Edited files that may change which nodes there are: YAML, and files added or removed."""
    known: bool = True
    """False if the archive has nothing to compare with."""
    other_vars: bool = False
    """Whether the vars in dbt_project.yml were edited: which nodes read them is not recorded."""


class Policy(msgspec.Struct, frozen=True):
    """What the user asked for."""

    tests: str = "rebuild"
    """rebuild: run the models of a failed test again, then the test. recheck: the test alone."""
    select: frozenset[str] | None = None
    """Narrow the plan to these; None is all."""
    exclude: frozenset[str] = frozenset()
    full_refresh: bool = False
    allow_drift: bool = False
    allow_non_idempotent: bool = False


class PlannedNode(msgspec.Struct, frozen=True):
    """One node to run again."""

    unique_id: str
    cause: str
    """failed, skipped, never_started, in_flight, unknown_status, batches, tested, edited, source,
    stale, test_of_rebuilt."""
    reason: str
    """The cause as a sentence for a person."""
    because: tuple[str, ...] = ()
    """The nodes the reason speaks of."""
    resource_type: str = ""
    status: str = ""
    """Its last status."""
    seconds: float | None = None
    """How long it took when it last succeeded: in this run, else in the last whole one where
    that was looked at (durations.py); None if in neither."""
    batches: tuple[tuple[str, str], ...] = ()
    """Of a microbatch model: [start, end] of the batches to run; empty if dbt is to decide."""
    some_batches: bool = False
    """Whether these are fewer than the run had."""
    microbatch: bool = False
    invocation: int = 0
    """Position of the invocation, in the run, whose vars and target it ran with."""

    @property
    def action(self) -> str:
        """run, test, or run_batches for the failed batches of a microbatch model."""
        if self.some_batches:
            return "run_batches"
        return "test" if self.resource_type in TESTS else "run"


class LeftAlone(msgspec.Struct, frozen=True):
    """A node that someone might expect in the plan."""

    unique_id: str
    reason: str


class PlanWarning(msgspec.Struct, frozen=True):
    """Something to know before going on; with a flag: it stops the retry until that is given."""

    code: str
    message: str
    flag: str = ""
    """The flag that allows it; empty if the warning stops nothing."""
    allowed: bool = False


class Standing(msgspec.Struct, frozen=True):
    """How a run stands of which nothing is to run again."""

    outcome: str
    """already_complete, failing, refused: what a retry says of it. running: it is at work.
    unknown: dbt is to be asked first."""
    message: str
    """A sentence for a person."""
    next_step: str = ""
    """What to do about it; empty if nothing."""
    command: str = ""
    """The line to paste, where it is no `retry`."""
    listed: str = ""
    """How the archive lists it: a retry that finds it complete writes that there."""


class Plan(msgspec.Struct, frozen=True):
    """The decision, in the order of execution."""

    nodes: tuple[PlannedNode, ...]
    left_alone: tuple[LeftAlone, ...] = ()
    warnings: tuple[PlanWarning, ...] = ()
    dropped: tuple[str, ...] = ()
    """Nodes that must run for the run to be whole, and that --select or --exclude leaves out."""
    replaced: Mapping[str, str] = {}
    """Nodes that are gone from the project -> what runs in their place, or ''."""
    standing: Standing | None = None
    """How the run stands, where there is nothing to run and that was looked at (standing.py)."""

    @property
    def ids(self) -> tuple[str, ...]:
        """unique_ids in order."""
        return tuple(n.unique_id for n in self.nodes)

    @property
    def blockers(self) -> tuple[PlanWarning, ...]:
        """Warnings that stop the retry."""
        return tuple(w for w in self.warnings if w.flag and not w.allowed)


class Draft(msgspec.Struct, frozen=True):
    """One node on its way into the plan."""

    cause: str
    reason: str
    because: tuple[str, ...] = ()


def name_of(graph: Graph, uid: str) -> str:
    """The name people use for a node: `dim_customers`, `orders.v2`, a test's own name."""
    node = graph.nodes.get(uid)
    if node is not None and node.name:
        return f"{node.name}.v{node.version}" if node.version else node.name
    parts = uid.split(".")
    if parts[0] in ("test", "unit_test") and len(parts) > 3 and parts[0] == "test":
        return parts[-2]
    return ".".join(parts[2:]) or uid


def is_buildable(graph: Graph, uid: str) -> bool:
    node = graph.nodes.get(uid)
    if node is None:
        return uid.split(".", 1)[0] in BUILDABLE
    # A function (UDF, dbt 1.11) holds no rows, but what calls it has to be built after it.
    return node.resource_type in BUILDABLE | {"function"} and node.materialized != "ephemeral"
