"""Why a node was skipped: the failures above it, models and tests. Pure."""

from __future__ import annotations

from .graph import TESTS, Graph
from .model import FAILURES, SUCCESSES, RunState


class Blame:
    """Finds causes, each node's once: a wide project has thousands of nodes skipped by one."""

    def __init__(self, state: RunState, graph: Graph) -> None:
        self._state = state
        self._graph = graph
        self._above: dict[str, frozenset[str]] = {}

    def causes(self, uid: str) -> list[str]:
        """What failed above the node, models before tests; empty if it was skipped for nothing
        above it: --fail-fast, or a hook."""
        found = self._causes_above(uid) | self._failed_tests(uid, {"unit_test"})
        return sorted(found, key=lambda u: (u.startswith(("test.", "unit_test.")), u))

    def _causes_above(self, uid: str) -> frozenset[str]:
        stack = [uid]
        while stack:
            current = stack[-1]
            if current in self._above:
                stack.pop()
                continue
            asked = [p for p in self._graph.parents.get(current, ()) if self._passes_on(p)]
            missing = [p for p in asked if p not in self._above]
            if missing:
                stack.extend(missing)
                continue
            found: set[str] = set()
            for parent in self._graph.parents.get(current, ()):
                if self._failed(parent):
                    found.add(parent)
                    continue
                broken = self._failed_tests(parent, TESTS) - {current}
                found |= broken or (self._above[parent] if parent in asked else frozenset())
            self._above[current] = frozenset(found)
            stack.pop()
        return self._above[uid]

    def _failed(self, uid: str) -> bool:
        word = self._state.nodes.get(uid)
        return word is not None and word.result.status in FAILURES

    def _passes_on(self, uid: str) -> bool:
        """Whether what is below may have been skipped for a reason above this node: it was not
        built itself, or it is none that is built (ephemeral)."""
        word = self._state.nodes.get(uid)
        return word is None or word.result.status not in SUCCESSES | FAILURES

    def _failed_tests(self, uid: str, types: frozenset[str] | set[str]) -> frozenset[str]:
        return frozenset(
            test
            for test in self._graph.children.get(uid, ())
            if self._graph.nodes[test].resource_type in types and self._failed(test)
        )
