"""What was mended outside of the run: rows of raw tables, and of relations that another run builds.
Pure.

A node whose data failed, and that runs again though nothing in it or above it was edited, can only
do better if the rows above it that this run does not make are others now. Then whatever else read
those tables in this run has the old rows in it, and is built again too. Which of the tables it was,
nobody can tell from here: all of them count. A lost connection or a column that does not exist says
nothing of the rows: after those nobody else is.
"""

from __future__ import annotations

import re

from .decision import Changes, Draft, is_buildable, name_of
from .diagnose import DATA, diagnose
from .graph import Graph
from .model import RunState
from .runstate import readers

_PASSING = re.compile(
    r"connection (?:reset|refused|closed|timed out)|server closed|time(?:d )?out|deadlock"
    r"|could not serialize|set lock|locked|rate limit|token has expired|try again",
    re.IGNORECASE,
)


def readers_of_mended_rows(
    drafts: dict[str, Draft],
    state: RunState,
    graph: Graph,
    changes: Changes,
    scope: set[str],
    *,
    tests: bool,
) -> dict[str, Draft]:
    """The nodes of the scope to build again because raw rows may have been mended, that are not
    in the plan yet. `tests`: whether failed tests count."""
    if not changes.known:
        return {}
    found: dict[str, Draft] = {}
    for failed in sorted(u for u, d in drafts.items() if d.cause in ("failed", "batches")):
        node = graph.nodes.get(failed)
        if node is None:
            continue
        above = graph.ancestors([failed])
        in_its_file = node.original_file_path.replace("\\", "/") in changes.files
        if in_its_file or failed in changes.nodes or above & changes.nodes:
            continue
        others = [
            (source, reader)
            for source in sorted(u for u in above if _not_made_here(u, graph, scope))
            for reader in readers(graph, source, scope)
            if is_buildable(graph, reader) and reader not in drafts
        ]
        # What a message means is asked last: that takes longer than the rest of the plan.
        if not others or not _of_data(failed, state, graph, tests=tests):
            continue
        for source, reader in others:
            reason = (
                f"reads {name_of(graph, source)}, as {name_of(graph, failed)} does; that failed on "
                "its rows and no code was edited, so the rows may be others now"
            )
            found.setdefault(reader, Draft("source", reason, (failed, source)))
    return found


def _not_made_here(uid: str, graph: Graph, scope: set[str]) -> bool:
    """A seed is as its file, and that was not edited."""
    node = graph.nodes[uid]
    if node.resource_type == "source":
        return True
    other = node.resource_type == "snapshot" or (
        node.resource_type == "model" and node.materialized not in ("view", "ephemeral")
    )
    return other and uid not in scope


def _of_data(failed: str, state: RunState, graph: Graph, *, tests: bool) -> bool:
    """Whether it failed on its rows, and not on its code or the connection."""
    node = state.nodes[failed]
    kind = graph.nodes[failed].resource_type
    if kind == "test" and node.result.status == "fail":
        return tests
    adapter = state.invocations[node.index].adapter_type if state.invocations else ""
    found = diagnose(node.result, adapter)
    return (
        kind != "unit_test"
        and found.error_class == DATA
        # DuckDB's error() is an Invalid Input Error whatever it says.
        and not _PASSING.search(node.result.message)
    )
