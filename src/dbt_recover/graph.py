"""The dependency graph of a dbt project: pure, no I/O.

`Node` is what planning and selection need of a manifest node, and the form in which the archive
keeps the compact graph beside the manifest. Every field has a default, so that an older or newer
writer's graph still reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from graphlib import TopologicalSorter

import msgspec

GRAPH_VERSION = 1

BUILDABLE = frozenset({"model", "seed", "snapshot"})
"""Resource types that leave a relation in the warehouse."""

TESTS = frozenset({"test", "unit_test"})

EXECUTABLE = BUILDABLE | TESTS | {"saved_query", "function"}
"""Resource types that `dbt build` executes."""


class Node(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One node of the manifest: model, seed, snapshot, test, unit test, source, exposure, ..."""

    unique_id: str
    resource_type: str = ""
    name: str = ""
    package_name: str = ""
    fqn: list[str] = []
    # Empty in most nodes, and then the one tuple that they share.
    tags: Sequence[str] = ()
    path: str = ""
    """Relative to the resource's root directory (dbt's `path`)."""
    original_file_path: str = ""
    """Relative to the project (of its package)."""
    patch_path: str = ""
    """`package://file.yml` of the YAML entry that configures this node, or empty."""
    checksum: str = ""
    """dbt's checksum of the file, when it is a sha256; else empty."""
    depends_on: list[str] = []
    """unique_ids of parents (nodes and sources)."""
    macros: Sequence[str] = ()
    """unique_ids of macros it depends on directly."""
    config: msgspec.Raw = msgspec.Raw(b"{}")
    """The manifest's config object as raw JSON, where it is not one of the graph's `configs`."""
    config_at: int = -1
    """Its place in the graph's `configs`; -1 if it is not there. Graph.config_of finds it."""
    materialized: str = ""
    incremental_strategy: str = ""
    unique_key: bool = False
    """Whether a unique_key is configured."""
    severity: str = ""
    """Of tests: `error` or `warn`, lower case."""
    attached_node: str = ""
    """Of generic tests: the node it was declared on."""
    tested: Sequence[str] = ()
    """Of unit tests: the model it tests. Of other tests the parents in depends_on are tested."""
    test_name: str = ""
    """Of generic tests: test_metadata.name."""
    test_namespace: str = ""
    column_name: str = ""
    source_name: str = ""
    group: str = ""
    access: str = ""
    version: str = ""
    latest_version: str = ""
    relation_name: str = ""
    owner: str = ""
    """Of exposures: the owner's name or e-mail."""
    microbatch: bool = False
    empty: bool = False
    """Whether the file holds nothing but white space: dbt selects such a node, and never runs it."""


class Graph:
    """Nodes and their edges. Disabled nodes are not in it."""

    def __init__(
        self,
        nodes: Iterable[Node],
        *,
        project_name: str = "",
        dbt_version: str = "",
        macros: Mapping[str, list[str]] | None = None,
        macro_files: Mapping[str, str] | None = None,
        files: Mapping[str, str] | None = None,
        configs: Sequence[msgspec.Raw] = (),
        selectors: Mapping[str, object] | None = None,
    ) -> None:
        self.nodes: dict[str, Node] = {n.unique_id: n for n in nodes}
        self.project_name = project_name
        self.dbt_version = dbt_version
        """Of the dbt that wrote the manifest: what a selection means differs between versions."""
        self.macros: dict[str, list[str]] = dict(macros or {})
        """macro unique_id -> macros it calls."""
        self.macro_files: dict[str, str] = dict(macro_files or {})
        """macro unique_id -> file path relative to its package (own project only)."""
        self.files: dict[str, str] = dict(files or {})
        """project file (posix path relative to the project) -> sha256 hex when it was archived."""
        self.configs = configs
        """Config objects as raw JSON, each once: thousands of nodes have few different ones."""
        self.selectors: dict[str, object] = dict(selectors or {})
        """YAML selectors by name, as dbt resolved them into the manifest."""

    def config_of(self, node: Node) -> msgspec.Raw:
        """The node's config object as raw JSON, decoded only by who asks for it."""
        return node.config if node.config_at < 0 else self.configs[node.config_at]

    @cached_property
    def parents(self) -> dict[str, list[str]]:
        """unique_id -> parents that are in the graph."""
        nodes = self.nodes
        known = nodes.__contains__
        # Nearly always all of them are, and then the node's own list will do.
        return {
            uid: n.depends_on
            if all(map(known, n.depends_on))
            else [p for p in n.depends_on if known(p)]
            for uid, n in nodes.items()
        }

    @cached_property
    def children(self) -> dict[str, list[str]]:
        """unique_id -> children that are in the graph."""
        result: dict[str, list[str]] = {uid: [] for uid in self.nodes}
        for uid, parents in self.parents.items():
            for parent in parents:
                result[parent].append(uid)
        return result

    def descendants(self, start: Iterable[str], *, depth: int | None = None) -> set[str]:
        """Everything below `start`, without `start` itself unless it is reached again."""
        return _walk(self.children, start, depth)

    def ancestors(self, start: Iterable[str], *, depth: int | None = None) -> set[str]:
        """Everything above `start`, without `start` itself unless it is reached again."""
        return _walk(self.parents, start, depth)

    def order(self, subset: Iterable[str], *, tests_first: bool = False) -> list[str]:
        """`subset` sorted so that parents come first; unknown ids come last. With tests_first as
        `dbt build` runs them: what reads a model waits for the model's tests."""
        wanted = set(subset)
        known = wanted & self.nodes.keys()
        # Ancestors link members of the subset through nodes that are not in it.
        region = known | self.ancestors(known)
        before = {uid: list(self.parents[uid]) for uid in sorted(region)}
        for test in sorted(known) if tests_first else ():
            parents = self.parents[test]
            if self.nodes[test].resource_type == "unit_test":
                # It reads nothing in the warehouse; its model waits for it.
                before[test] = []
                for model in self.nodes[test].tested or parents[:1]:
                    if model in before:
                        before[model].append(test)
            # dbt lets nobody wait for a test of several models: it could wait for itself.
            if self.nodes[test].resource_type == "test" and len(parents) == 1:
                for reader in self.children[parents[0]]:
                    if reader in before and self.nodes[reader].resource_type not in TESTS:
                        before[reader].append(test)
        order = TopologicalSorter(before).static_order()
        return [uid for uid in order if uid in known] + sorted(wanted - known)


def _walk(edges: Mapping[str, list[str]], start: Iterable[str], depth: int | None) -> set[str]:
    seen: set[str] = set()
    frontier = [uid for uid in start if uid in edges]
    while frontier and (depth is None or depth > 0):
        depth = None if depth is None else depth - 1
        following: list[str] = []
        for uid in frontier:
            for other in edges[uid]:
                if other not in seen:
                    seen.add(other)
                    following.append(other)
        frontier = following
    return seen
