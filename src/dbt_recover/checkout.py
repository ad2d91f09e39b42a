"""The dbt project at hand: where it is, where dbt writes, and what its files are.

Reads files only; never starts dbt.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from .command_line import DbtCommand
from .errors import DamagedError, UsageError
from .graph import Graph
from .manifest import read_manifest
from .plan import Changes
from .restore import find_root

_SUFFIXES = frozenset({".sql", ".py", ".csv", ".yml", ".yaml", ".md"})
_ROOT_FILES = ("dbt_project.yml", "packages.yml", "dependencies.yml", "selectors.yml")
_PATHS = {
    "model-paths": ["models"],
    "seed-paths": ["seeds"],
    "snapshot-paths": ["snapshots"],
    "test-paths": ["tests"],
    "macro-paths": ["macros"],
    "function-paths": ["functions"],
}


@dataclass(frozen=True)
class Project:
    """A dbt project on this machine."""

    root: Path
    name: str
    settings: Mapping[str, Any]

    @property
    def target_path(self) -> Path:
        """Where dbt writes its artifacts unless it is told otherwise."""
        return self.root / str(self.settings.get("target-path") or "target")

    @property
    def log_path(self) -> Path:
        """Where dbt writes its log unless it is told otherwise."""
        return self.root / str(self.settings.get("log-path") or "logs")


def open_project(
    command: DbtCommand | None,
    environ: Mapping[str, str],
    cwd: Path,
    *,
    for_dbt: bool = False,
) -> Project:
    """The project a command is about: --project-dir, DBT_PROJECT_DIR, or from here upwards.

    UsageError when there is none or its dbt_project.yml cannot be read; `for_dbt` leaves the
    latter for dbt to say.
    """
    given = (command.value("--project-dir") if command else None) or environ.get("DBT_PROJECT_DIR")
    root = Path(cwd, given).resolve() if given else find_root(cwd)
    if root is None or not (root / "dbt_project.yml").is_file():
        where = given or f"{cwd} or above it"
        raise UsageError(
            f"no dbt_project.yml in {where}",
            hint="go to the dbt project, or pass --project-dir DIR",
        )
    return read_project(root, for_dbt=for_dbt)


def read_project(root: Path, *, for_dbt: bool = False) -> Project:
    """Read dbt_project.yml; Jinja in it is left as text. UsageError if it cannot be read, or,
    `for_dbt`, a project without name and settings."""
    try:
        return _read(root)
    except UsageError:
        if for_dbt:
            return Project(root, "", {})
        raise


def _read(root: Path) -> Project:
    import yaml

    path = root / "dbt_project.yml"
    try:
        settings = yaml.load(
            path.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        )
    except (OSError, yaml.YAMLError) as exc:
        raise UsageError(f"cannot read {path}: {exc}") from exc
    if not isinstance(settings, dict) or "name" not in settings:
        raise UsageError(f"{path} is not a dbt project: it has no name")
    return Project(root, str(settings["name"]), settings)


def target_path(project: Project, command: DbtCommand, environ: Mapping[str, str]) -> Path:
    """Where this command writes its artifacts."""
    given = command.value("--target-path") or environ.get("DBT_TARGET_PATH")
    return project.root / given if given else project.target_path


def log_path(project: Project, command: DbtCommand, environ: Mapping[str, str]) -> Path:
    """Where this command would write dbt.log."""
    given = command.value("--log-path") or environ.get("DBT_LOG_PATH")
    return project.root / given if given else project.log_path


def file_hashes(project: Project, *, until: str = "") -> dict[str, str]:
    """Path relative to the project, with slashes -> sha256 of its bytes, for every file that can
    change what dbt builds. Of a file written after `until` (ISO, UTC) the content at that time is
    not known: its hash is empty, which equals no other."""
    limit = datetime.fromisoformat(until.replace("Z", "+00:00")).timestamp() if until else None
    found: dict[str, str] = {}
    for path in _files(project):
        try:
            late = limit is not None and path.stat().st_mtime > limit
            digest = "" if late else hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError:
            continue
        found[path.relative_to(project.root).as_posix()] = digest
    return found


def _files(project: Project) -> Iterator[Path]:
    for name in _ROOT_FILES:
        if (project.root / name).is_file():
            yield project.root / name
    roots = {str(p) for key, default in _PATHS.items() for p in _setting(project, key, default)}
    for root in sorted(roots):
        for directory, subdirectories, files in os.walk(project.root / root):
            subdirectories[:] = [d for d in subdirectories if not d.startswith(".")]
            for name in files:
                if Path(name).suffix.lower() in _SUFFIXES:
                    yield Path(directory, name)


def _setting(project: Project, key: str, default: list[str]) -> list[str]:
    value = project.settings.get(key, default)
    return value if isinstance(value, list) else default


def changes(graph: Graph, project: Project) -> Changes:
    """What was edited since the graph was archived, as files and as the nodes they make."""
    if not graph.files:
        return Changes(known=False)
    now = file_hashes(project)
    edited = {p for p in now.keys() | graph.files.keys() if now.get(p) != graph.files.get(p)}
    if not edited:
        return Changes()
    by_file: dict[str, list[str]] = {}
    for node in graph.nodes.values():
        if node.package_name == project.name and not _is_yaml(node.original_file_path):
            by_file.setdefault(node.original_file_path.replace("\\", "/"), []).append(
                node.unique_id
            )
    nodes = {uid for path in edited for uid in by_file.get(path, ())}
    macros = {uid for uid, path in graph.macro_files.items() if path in edited}
    if macros:
        nodes |= _using(graph, macros)
    structural = {p for p in edited if p not in now or p not in graph.files or _is_yaml(p)}
    return Changes(frozenset(nodes), tuple(sorted(edited)), tuple(sorted(structural)))


def _is_yaml(path: str) -> bool:
    return path.endswith((".yml", ".yaml"))


def fresh_graph(project: Project) -> Graph | None:
    """The graph of the project's own manifest.json, if dbt wrote that after the last edit of any
    project file."""
    path = project.target_path / "manifest.json"
    try:
        written = path.stat().st_mtime
        if any(f.stat().st_mtime >= written for f in _files(project)):
            return None
        return read_manifest(path.read_bytes(), name=str(path))[1]
    except (OSError, DamagedError):
        return None


def _using(graph: Graph, macros: set[str]) -> set[str]:
    """Nodes that call one of the macros, directly or through other macros."""
    callers: dict[str, list[str]] = {}
    for macro, called in graph.macros.items():
        for name in called:
            callers.setdefault(name, []).append(macro)
    reached, stack = set(macros), list(macros)
    while stack:
        for caller in callers.get(stack.pop(), ()):
            if caller not in reached:
                reached.add(caller)
                stack.append(caller)
    return {n.unique_id for n in graph.nodes.values() if not reached.isdisjoint(n.macros)}
