"""The archived graph against today's: what became of nodes that are gone. Pure.

Editing a generic test's arguments changes its unique_id; renaming a model does too. Such a node is
matched to its successor, or reported as gone, and does not stop the rest.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import msgspec

from .graph import BUILDABLE, TESTS, Graph, Node


def successors(old: Graph, new: Graph, ids: Iterable[str]) -> dict[str, str]:
    """For each of these nodes that today's project lacks: its successor, or '' if it has none."""
    added = [n for uid, n in new.nodes.items() if uid not in old.nodes]
    result: dict[str, str] = {}
    for uid in sorted(ids):
        if uid in new.nodes or uid not in old.nodes:
            continue
        node = old.nodes[uid]
        candidates = [n for n in added if n.unique_id not in result.values()]
        result[uid] = _successor(node, candidates)
    return result


def _successor(node: Node, added: list[Node]) -> str:
    if node.resource_type in TESTS:
        same = [
            n
            for n in added
            if n.resource_type == node.resource_type
            and (n.test_name, n.test_namespace) == (node.test_name, node.test_namespace)
            and _about(n) == _about(node)
        ]
        # A singular test that was renamed keeps its text.
        same = [n for n in same if n.test_name or n.checksum == node.checksum]
        return same[0].unique_id if len(same) == 1 else ""
    same = [
        n
        for n in added
        if n.resource_type == node.resource_type and node.checksum and n.checksum == node.checksum
    ]
    return same[0].unique_id if len(same) == 1 else ""


def _about(node: Node) -> tuple[str, str]:
    return node.attached_node or ",".join(sorted(node.depends_on)), node.column_name


def new_above(old: Graph, new: Graph, ids: Iterable[str]) -> set[str]:
    """Nodes that the run's project did not have and on which these depend today."""
    return {uid for uid in new.ancestors(ids) if uid not in old.nodes}


def reconfigured(old: Graph, new: Graph, files: Collection[str]) -> set[str]:
    """Nodes that leave another relation because one of these YAML files, or dbt_project.yml, was
    edited. A node whose relation has another name was parsed for another target."""
    found = set()
    for uid, node in old.nodes.items():
        other = new.nodes.get(uid)
        if other is None or node.resource_type not in BUILDABLE:
            continue
        own = {n.patch_path.partition("://")[2] or n.original_file_path for n in (node, other)}
        own |= {f"dbt_packages/{node.package_name}/{path}" for path in own}
        touched = "dbt_project.yml" in files or not own.isdisjoint(files)
        if not touched or node.relation_name != other.relation_name:
            continue
        before, after = _of_rows(old, node), _of_rows(new, other)
        if old.dbt_version != new.dbt_version:  # they can have keys of their own
            before, after = (
                {k: c[k] for k in before.keys() & after.keys()} for c in (before, after)
            )
        if before != after:
            found.add(uid)
    return found


_NOT_OF_ROWS = frozenset(
    {"access", "contract", "docs", "enabled", "freshness", "group", "meta", "on_error"}
    | {"persist_docs", "tags"}
)


def _of_rows(graph: Graph, node: Node) -> dict[str, object]:
    config = msgspec.json.decode(graph.config_of(node))
    return {k: v for k, v in config.items() if k not in _NOT_OF_ROWS and v not in (None, [], {})}
