"""The dependency graph as tasks, for a scheduler that runs each model by itself. Pure, but for
`write`."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .errors import UsageError
from .graph import TESTS, Graph, Node

VERSION = 1
BUILT = ("model", "seed", "snapshot")
_LONGEST = 250
"""Airflow's longest task id."""


def task_graph(graph: Graph) -> dict[str, Any]:
    """{"version", "nodes": [{"task", "folder", "select", "after"}]}, parents before children.

    A task is a model, seed or snapshot and its tests. A test of several of them goes with the one
    that depends on all others; where there is none, it is a task of its own. `select` is for
    `dbt build --indirect-selection empty --select`; `after` are the tasks to wait for.
    """
    built = {
        u: n
        for u, n in graph.nodes.items()
        if n.resource_type in BUILT and n.materialized != "ephemeral"
    }
    prefixes = _shared_prefixes(graph)
    tests: dict[str, list[str]] = {u: [] for u in built}
    alone: list[str] = []
    for uid, node in sorted(graph.nodes.items()):
        if node.resource_type in TESTS:
            home = _home(graph, _parents(graph, node.tested or node.depends_on, built))
            if home is None:
                alone.append(uid)
            else:
                tests[home].append(uid)
    made = [
        {
            "task": _task_id(uid),
            "folder": _folder(graph.nodes[uid]),
            "select": [_selector(graph.nodes[u], prefixes) for u in (uid, *tests.get(uid, ()))],
            "after": sorted(
                _task_id(p) for p in _parents(graph, graph.nodes[uid].depends_on, built)
            ),
        }
        for uid in (*built, *alone)
    ]
    return {"version": VERSION, "nodes": _in_order(made)}


def write(document: dict[str, Any], path: Path) -> None:
    """As JSON, at once: who reads it sees the old one or the new one. UsageError if it cannot be
    written."""
    try:
        with tempfile.NamedTemporaryFile(
            "w", dir=path.parent, prefix=f".{path.name}.", delete=False, encoding="utf-8"
        ) as file:
            json.dump(document, file, indent=1)
        os.chmod(file.name, 0o644)  # noqa: PTH101 - others read it
        Path(file.name).replace(path)
    except OSError as exc:
        raise UsageError(f"cannot write {path}: {exc.strerror}") from exc


def _parents(graph: Graph, above: Iterable[str], built: dict[str, Node]) -> set[str]:
    """What has a task among these, and above what has none of them (ephemeral models)."""
    found: set[str] = set()
    waiting, seen = list(above), set[str]()
    while waiting:
        uid = waiting.pop()
        if uid in seen:
            continue
        seen.add(uid)
        if uid in built:
            found.add(uid)
        elif uid in graph.nodes:
            waiting += graph.nodes[uid].depends_on
    return found


def _home(graph: Graph, parents: set[str]) -> str | None:
    """The parent that is built after all others."""
    for parent in sorted(parents):
        if parents - {parent} <= graph.ancestors([parent]):
            return parent
    return None


def _shared_prefixes(graph: Graph) -> set[tuple[str, ...]]:
    """Names of folders: an fqn that is one selects what is in the folder, too."""
    others = [n for n in graph.nodes.values() if n.resource_type not in TESTS]
    return {tuple(n.fqn[:end]) for n in others for end in range(1, len(n.fqn))}


def _selector(node: Node, prefixes: set[tuple[str, ...]]) -> str:
    chosen = "fqn:" + ".".join(node.fqn)
    if tuple(node.fqn) in prefixes and node.resource_type not in TESTS:
        chosen += f",path:{node.original_file_path}"
    return chosen


def _folder(node: Node) -> str:
    return Path(node.original_file_path).parent.as_posix()


def _task_id(uid: str) -> str:
    if len(uid) <= _LONGEST:
        return uid
    return f"{uid[: _LONGEST - 11]}-{hashlib.sha256(uid.encode()).hexdigest()[:10]}"


def _in_order(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    by_task = {n["task"]: n for n in nodes}
    done: dict[str, dict[str, Any]] = {}
    for first in sorted(by_task):
        waiting = [first]
        while waiting:
            task = waiting[-1]
            missing = [a for a in by_task[task]["after"] if a not in done]
            if task not in done and missing:
                waiting += missing
            else:
                done.setdefault(task, by_task[task])
                waiting.pop()
    return list(done.values())
