"""The dbt project at hand: where it is, where dbt writes, and what its files are.

Reads files only; never starts dbt.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from .errors import DamagedError, UsageError
from .graph import Graph
from .plan import Changes
from .restore import find_root
from .seen_files import SeenFiles, sha256_of

if TYPE_CHECKING:
    from .command_line import DbtCommand

_SUFFIXES = (".sql", ".py", ".csv", ".yml", ".yaml", ".md")
_ROOT_FILES = ("dbt_project.yml", "packages.yml", "dependencies.yml", "selectors.yml")
_PATHS = {
    "model-paths": ["models"],
    "seed-paths": ["seeds"],
    "snapshot-paths": ["snapshots"],
    "test-paths": ["tests"],
    "macro-paths": ["macros"],
    "function-paths": ["functions"],
}


_SETTINGS = frozenset(
    {"name", "profile", "target-path", "log-path", "flags", "packages-install-path", *_PATHS}
)
VARS = "dbt_project.yml#vars"
"""Among the hashes of files: that of the vars, which any node may read."""
_PACKAGES = "dbt_packages/"
"""How the files of local packages are named, wherever dbt puts packages."""


class Project(msgspec.Struct, frozen=True):
    """A dbt project on this machine."""

    root: Path
    name: str
    settings: Mapping[str, Any]
    """Those of dbt_project.yml that are about paths, its name, its profile and its flags; of its
    vars a hash."""
    seen: SeenFiles | None = None
    """Where hashes of its files may be taken from."""

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
    from_memory: bool = False,
) -> Project:
    """The project a command is about: --project-dir, DBT_PROJECT_DIR, or from here upwards.

    UsageError when there is none or its dbt_project.yml cannot be read; `for_dbt` leaves the
    latter for dbt to say. `from_memory`: what is known of its files since the last time will do
    (see seen_files.py).
    """
    given = (command.value("--project-dir") if command else None) or environ.get("DBT_PROJECT_DIR")
    root = Path(cwd, given).resolve() if given else find_root(cwd)
    if root is None or not (root / "dbt_project.yml").is_file():
        where = given or f"{cwd} or above it"
        raise UsageError(
            f"no dbt_project.yml in {where}",
            hint="go to the dbt project, or pass --project-dir DIR",
        )
    seen = SeenFiles.of(root, environ) if from_memory else None
    return read_project(root, for_dbt=for_dbt, seen=seen)


def read_project(root: Path, seen: SeenFiles | None = None, *, for_dbt: bool = False) -> Project:
    """Read dbt_project.yml; Jinja in it is left as text. UsageError if it cannot be read, or,
    `for_dbt`, a project without name and settings."""
    try:
        return _read(root, seen)
    except UsageError:
        if for_dbt:
            return Project(root, "", {})
        raise


def _read(root: Path, seen: SeenFiles | None) -> Project:
    path = root / "dbt_project.yml"
    try:
        text = path.read_bytes()
    except OSError as exc:
        raise UsageError(f"cannot read {path}: {exc}") from exc
    settings = seen.settings(text) if seen is not None else None
    if settings is None:
        settings = _settings(text, path)
        if seen is not None:
            seen.remember(text, settings)
    return Project(root, str(settings["name"]), settings, seen)


def _settings(text: bytes, path: Path) -> dict[str, Any]:
    import yaml

    try:
        settings = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as exc:
        raise UsageError(f"cannot read {path}: {exc}") from exc
    if not isinstance(settings, dict) or "name" not in settings:
        raise UsageError(f"{path} is not a dbt project: it has no name")
    kept = {k: v for k, v in settings.items() if k in _SETTINGS}
    if "vars" in settings:
        kept["vars"] = hashlib.sha256(repr(settings["vars"]).encode()).hexdigest()
    return kept


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
    change what dbt builds; and VARS, the hash of its vars. Of a file written after `until` (ISO, UTC) the content at that time is
    not known: its hash is empty, which equals no other."""
    limit = datetime.fromisoformat(until.replace("Z", "+00:00")).timestamp() if until else None
    seen = project.seen
    found: dict[str, str] = {}
    for name, path, stat in _files(project):
        try:
            if limit is not None and stat.st_mtime > limit:
                found[name] = ""
            else:
                found[name] = seen.sha256(name, path, stat) if seen is not None else sha256_of(path)
        except OSError:
            continue
    if "vars" in project.settings:
        found[VARS] = str(project.settings["vars"]) if found.get("dbt_project.yml") else ""
    if seen is not None:
        seen.keep()
    return found


def _files(project: Project) -> Iterator[tuple[str, str, os.stat_result]]:
    """Relative name with slashes, path, and stat. Links are followed, as dbt does."""
    for name in _ROOT_FILES:
        path = project.root / name
        if path.is_file():
            yield name, str(path), path.stat()
    for start in sorted({str(p) for key, d in _PATHS.items() for p in _setting(project, key, d)}):
        directory = project.root / start
        name = os.path.relpath(directory, project.root).replace(os.sep, "/")
        yield from _below("" if name == "." else f"{name}/", str(directory))
    for package, home in _local_packages(project):
        for start in sorted(d for default in _PATHS.values() for d in default):
            yield from _below(f"{_PACKAGES}{package}/{start}/", f"{home}/{start}")


def _local_packages(project: Project) -> Iterator[tuple[str, str]]:
    """Name and directory of packages that are edited as the project is: dbt links them. Of others a
    version is installed, and packages.yml says which."""
    home = project.root / str(project.settings.get("packages-install-path") or _PACKAGES)
    with suppress(OSError):
        for entry in sorted(os.scandir(home), key=attrgetter("name")):
            if entry.is_symlink() and entry.is_dir():
                yield entry.name, entry.path


def _below(prefix: str, directory: str) -> Iterator[tuple[str, str, os.stat_result]]:
    """One generator for all directories: with one in another each file would pass through all."""
    waiting: list[tuple[str, str, frozenset[tuple[int, int]]]] = [(prefix, directory, frozenset())]
    while waiting:
        prefix, directory, above = waiting.pop()
        try:
            # Entries of an open directory are found without going through its whole path each time.
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            continue
        try:
            own = os.fstat(descriptor)
            here = above | {(own.st_dev, own.st_ino)}
            if len(here) == len(above):
                continue  # a link to a directory that it is in
            for entry in sorted(os.scandir(descriptor), key=attrgetter("name")):
                name = entry.name
                try:
                    if entry.is_dir():
                        if not name.startswith("."):
                            waiting.append((f"{prefix}{name}/", f"{directory}/{name}", here))
                    elif name.lower().endswith(_SUFFIXES):
                        yield prefix + name, f"{directory}/{name}", entry.stat()
                except OSError:
                    continue  # a link that leads nowhere, or a file that is gone by now
        except OSError:
            continue
        finally:
            os.close(descriptor)


def _setting(project: Project, key: str, default: list[str]) -> list[str]:
    value = project.settings.get(key, default)
    return value if isinstance(value, list) else default


def changes(graph: Graph, project: Project) -> Changes:
    """What was edited since the graph was archived, as files and as the nodes they make."""
    if not graph.files:
        return Changes(known=False)
    now = file_hashes(project)
    edited = {p for p in now.keys() | graph.files.keys() if now.get(p) != graph.files.get(p)}
    other_vars = VARS in edited
    edited.discard(VARS)
    packages = {p.split("/")[1] for p in edited if p.startswith(_PACKAGES)}
    if packages:
        # One that is not installed here is not a changed one.
        packages &= {name for name, _ in _local_packages(project)}
        edited = {p for p in edited if not p.startswith(_PACKAGES) or p.split("/")[1] in packages}
    if not edited:
        return Changes()
    by_file: dict[str, list[str]] = {}
    for node in graph.nodes.values():
        own = node.package_name == project.name
        if (own or node.package_name in packages) and not _is_yaml(node.original_file_path):
            path = node.original_file_path.replace("\\", "/")
            path = path if own else f"{_PACKAGES}{node.package_name}/{path}"
            by_file.setdefault(path, []).append(node.unique_id)
    nodes = {uid for path in edited for uid in by_file.get(path, ())}
    macros = {uid for uid, path in graph.macro_files.items() if path in edited}
    for package in packages:
        if any(p.startswith(f"{_PACKAGES}{package}/macros/") for p in edited):
            # Which file a package's macro is in is not recorded.
            called = {m for n in graph.nodes.values() for m in n.macros}
            called = called.union(graph.macros, *graph.macros.values())
            macros |= {m for m in called if m.startswith(f"macro.{package}.")}
    if macros:
        nodes |= _using(graph, macros)
    structural = {p for p in edited if p not in now or p not in graph.files or _is_yaml(p)}
    return Changes(
        frozenset(nodes), tuple(sorted(edited)), tuple(sorted(structural)), other_vars=other_vars
    )


def _is_yaml(path: str) -> bool:
    return path.endswith((".yml", ".yaml"))


def fresh_graph(project: Project) -> Graph | None:
    """The graph of the project's own manifest.json, if dbt wrote that after the last edit of any
    project file."""
    from .manifest import read_manifest

    path = project.target_path / "manifest.json"
    try:
        written = path.stat().st_mtime
        if any(stat.st_mtime >= written for _, _, stat in _files(project)):
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
