"""What came of it: whether the warehouse is right, whether the tests hold, and how little would
have done.

The smallest set. A relation changes only when its own node is executed. So every node in scope whose
relation, in the broken warehouse, is missing or differs from the clean run's has to be executed
(of a view its definition and its columns count: its rows are those of what it reads). And these are
enough, in the order of the graph: each of them reads parents that either never differed or have been
executed before it. To these come the tests that passed in the clean run and have no valid pass: the
last execution passed, and nothing that the test reads (through views and ephemeral models) was built
or has to be built after it. That set looks into the tables, which no planner can do; where it is not
reachable, because an incremental or a snapshot has taken wrong rows for good, no set is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from _equivalence_room import NEVER, Execution, Table

PASSED = ("pass", "warn", "success")
BUILT = ("model.", "seed.", "snapshot.")
TESTS = ("test.", "unit_test.")


@dataclass(frozen=True)
class Clean:
    """The clean run: what is to be reached."""

    tables: Mapping[str, Table]
    manifest: Mapping[str, Any]
    scope: frozenset[str]
    """Everything it executed."""
    tests: frozenset[str]
    """Tests in scope that hold at its end."""

    def relations(self) -> dict[str, str]:
        """unique_id -> `schema.name`, of what is in scope and stands in the warehouse."""
        return {
            uid: f"{node['schema']}.{node['alias']}"
            for uid, node in self.manifest["nodes"].items()
            if uid in self.scope and uid.startswith(BUILT)
        }


def clean_run(
    tables: Mapping[str, Table], manifest: Mapping[str, Any], executions: Sequence[Execution]
) -> Clean:
    """From what the clean run left."""
    scope = frozenset(e.unique_id for e in executions)
    return Clean(tables, manifest, scope, frozenset(holding(executions, manifest, ())))


def read_by(manifest: Mapping[str, Any], test: str) -> set[str]:
    """Relations whose rows a test reads: its parents, through views and ephemeral models."""
    nodes, units = manifest["nodes"], manifest.get("unit_tests", {})
    start = nodes.get(test) or units.get(test)
    if start is None or test.startswith("unit_test."):
        return set()
    found: set[str] = set()
    stack = list(start["depends_on"]["nodes"])
    while stack:
        uid = stack.pop()
        if uid in found:
            continue
        found.add(uid)
        if uid in nodes and nodes[uid]["config"].get("materialized") in ("view", "ephemeral"):
            stack += nodes[uid]["depends_on"]["nodes"]
    return found


def holding(
    executions: Sequence[Execution],
    manifest: Mapping[str, Any],
    edited: Collection[str],
    mended_at: int = 0,
) -> set[str]:
    """Tests whose last execution passed and came after the last build of what they read; unit
    tests of edited models: after the mending (`mended_at`: the first call after it)."""
    last_of_call: dict[int, int] = {}
    for e in executions:
        ends = [p for p in (e.began, e.ended) if p != NEVER]
        last_of_call[e.call] = max(last_of_call.get(e.call, 0), *ends)
    built: dict[str, int] = {}
    tested: dict[str, Execution] = {}
    for e in executions:
        if e.unique_id.startswith(BUILT):
            if e.status in ("error", "skipped"):
                continue  # it left the relation as it was
            end = last_of_call[e.call] if e.ended == NEVER else e.ended
            built[e.unique_id] = max(end, built.get(e.unique_id, 0))
        else:
            tested[e.unique_id] = e
    found = set()
    for uid, e in tested.items():
        if e.status not in PASSED:
            continue
        if uid.startswith("unit_test."):
            unit = manifest.get("unit_tests", {}).get(uid, {})
            if unit.get("model") in edited and e.call < mended_at:
                continue
        elif any(built.get(r, 0) > e.began for r in read_by(manifest, uid)):
            continue
        found.add(uid)
    return found


def smallest(
    clean: Clean,
    broken: Mapping[str, Table],
    executions: Sequence[Execution],
    edited: Collection[str],
    mended_at: int,
) -> set[str]:
    """The fewest nodes that lead from the broken warehouse to the clean one."""
    build = {
        uid
        for uid, name in clean.relations().items()
        if _differs(broken.get(name), clean.tables.get(name))
    }
    held = holding(executions, clean.manifest, edited, mended_at)
    tests = {t for t in clean.tests if t not in held or read_by(clean.manifest, t) & build}
    return build | tests


def _differs(one: Table | None, other: Table | None) -> bool:
    if one is None or other is None:
        return one is not other
    if one[0] != "table" or other[0] != "table":
        return one[:2] != other[:2]
    return one != other


LEFTOVERS = ("__dbt_tmp", "__dbt_backup", "__dbt_new_data")


def differences(found: Mapping[str, Table], wanted: Mapping[str, Table]) -> list[str]:
    """What is not as it should be, one short line each; dbt's temporary relations do not count."""
    lines = []
    for name in sorted(found.keys() | wanted.keys()):
        one, other = found.get(name), wanted.get(name)
        if one == other or any(word in name for word in LEFTOVERS):
            continue
        if one is None or other is None:
            lines.append(f"{name} {'is missing' if one is None else 'should not be there'}")
        elif one[:2] != other[:2]:
            lines.append(f"{name} has another kind, definition or columns")
        else:
            more, less = one[2] - other[2], other[2] - one[2]
            lines.append(
                f"{name}: {sum(more.values())} rows too many, {sum(less.values())} missing"
                f" (such as {_first(more)}, {_first(less)})"
            )
    return lines


def _first(rows: Iterable[str]) -> str:
    return next(iter(sorted(rows)), "-")
