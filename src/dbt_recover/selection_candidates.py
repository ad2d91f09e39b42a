"""The nodes that a selection can find, with what the methods need of them computed once. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import TypeAlias, TypeVar

from dbt_recover.graph import Graph, Node
from dbt_recover.selection_rules import Rules

# These stand beside the `nodes` of a manifest, and some methods look at `nodes` only.
_BESIDE_NODES = frozenset(
    {
        "exposure",
        "function",
        "metric",
        "saved_query",
        "semantic_model",
        "source",
        "unit_test",
    }
)

Parts: TypeAlias = tuple[str, ...]

_K = TypeVar("_K", str, Parts)


class Candidates:
    """The nodes that can be selected, with what several methods need computed once."""

    def __init__(self, graph: Graph, rules: Rules) -> None:
        self.graph = graph
        self.rules = rules
        self.every = [
            n
            for n in graph.nodes.values()
            if rules.saved_queries_everywhere or n.resource_type != "saved_query"
        ]

    def of_type(self, *resource_types: str) -> list[Node]:
        return [n for n in self.graph.nodes.values() if n.resource_type in resource_types]

    @cached_property
    def parsed(self) -> list[Node]:
        """What dbt keeps in the `nodes` of its manifest."""
        return [n for n in self.graph.nodes.values() if n.resource_type not in _BESIDE_NODES]

    @cached_property
    def named(self) -> list[tuple[str, str, str, str]]:
        """Of each node that `fqn:` looks at: unique_id, name, `name_v2` if it has versions, and the
        fqn with dots."""
        rows = []
        for node in self.graph.nodes.values():
            fqn = node.fqn
            if node.resource_type == "source" or not fqn:
                continue
            if node.version and node.resource_type == "model" and len(fqn) > 1:
                name, versioned = fqn[-2], "_".join(fqn[-2:])
            else:
                name, versioned = fqn[-1], ""
            rows.append((node.unique_id, name, versioned, ".".join(fqn)))
        return rows

    @cached_property
    def by_name(self) -> dict[str, list[str]]:
        return _collected((name, uid) for uid, name, _, _ in self.named)

    @cached_property
    def by_versioned_name(self) -> dict[str, list[str]]:
        return _collected((versioned, uid) for uid, _, versioned, _ in self.named if versioned)

    @cached_property
    def by_fqn(self) -> list[tuple[str, str]]:
        """(fqn with a dot after each part, unique_id), with and without its package, sorted."""
        rows = [(f"{dotted}.", uid) for uid, _, _, dotted in self.named]
        rows += [(dotted.partition(".")[2], uid) for dotted, uid in rows]
        rows.sort()
        return rows

    @cached_property
    def by_file(self) -> dict[Parts, list[str]]:
        """The file in which nodes are written, as the parts of its path."""
        return _collected((parts_of(n.original_file_path), n.unique_id) for n in self.every)

    @cached_property
    def by_patch(self) -> dict[Parts, list[str]]:
        """The YAML file that configures nodes, as the parts of its path."""
        return _collected(
            (parts_of(n.patch_path.partition("://")[2]), n.unique_id)
            for n in self.every
            if n.patch_path
        )

    @cached_property
    def paths(self) -> dict[Parts, bool]:
        """Each path of the project that we know of -> whether it is a directory.

        dbt looks at the disk. We know the files that made nodes and macros, and those archived.
        """
        graph = self.graph
        own = graph.project_name
        files = {parts_of(path) for path in (*graph.files, *graph.macro_files.values())}
        for node in graph.nodes.values():
            if node.package_name == own or not own:
                files.add(parts_of(node.original_file_path))
            package, _, patch = node.patch_path.partition("://")
            if patch and (package == own or not own):
                files.add(parts_of(patch))
        files.discard(())
        result = dict.fromkeys(files, False)
        result.update(dict.fromkeys({f[:i] for f in files for i in range(len(f))}, True))
        return result

    @cached_property
    def doubtful(self) -> set[Parts]:
        """Paths at which packages have something, where the archive lacks the list of the project's
        files: it may have a file there that makes no node, and then dbt means the package's too."""
        if self.graph.files:
            return set()
        theirs = {*self.by_file, *self.by_patch}
        return {f[:i] for f in theirs for i in range(1, len(f) + 1)} - self.paths.keys()


def parts_of(path: str) -> Parts:
    """A path as dbt wrote it, also on Windows, in parts."""
    return tuple(p for p in path.replace("\\", "/").split("/") if p not in ("", "."))


def _collected(pairs: Iterable[tuple[_K, str]]) -> dict[_K, list[str]]:
    result: dict[_K, list[str]] = {}
    for key, uid in pairs:
        result.setdefault(key, []).append(uid)
    return result
