"""The methods of dbt's node selection (`tag:`, `path:`, `config.materialized:`, ...), pure.

Each takes the candidates and a value and answers with unique_ids. They follow dbt's own code to the
letter, oddities included: a run meant what its dbt made of the selection.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from fnmatch import translate
from pathlib import PurePosixPath
from typing import Any, TypeAlias

import msgspec

from dbt_recover.graph import TESTS
from dbt_recover.selection_candidates import Candidates, Parts, parts_of
from dbt_recover.selection_rules import RESOURCE_TYPES, Unsupported

_WILDCARD = re.compile(r"[*?[]")

Method: TypeAlias = Callable[[Candidates, list[str], Any], Iterable[str]]
"""candidates, arguments (the parts of the method's name after its first dot), value -> unique_ids.

The value is a string, but for `config`, where YAML may give a number or a boolean.
"""


def matcher(pattern: str) -> Callable[[str], bool]:
    """dbt's wildcards: `*`, `?` and `[...]`; upper and lower case differ."""
    if not _WILDCARD.search(pattern):
        return lambda text: text == pattern
    match = re.compile(translate(pattern)).match
    return lambda text: match(text) is not None


def _fqn(candidates: Candidates, _: list[str], value: str) -> Iterable[str]:
    """A name, or the beginning of a dotted path to it, with or without the package."""
    parts = value.split(".")
    yield from candidates.by_name.get(value, ())
    yield from candidates.by_versioned_name.get("_".join(parts[-2:]), ())
    wild = next((i for i, part in enumerate(parts) if set(part) & set("*?[]")), None)
    if wild is not None:
        yield from _fqn_pattern(candidates, value, wild)
        return
    rows, prefix = candidates.by_fqn, f"{value}."
    for index in range(bisect_left(rows, (prefix, "")), len(rows)):
        if not rows[index][0].startswith(prefix):
            return
        yield rows[index][1]


def _fqn_pattern(candidates: Candidates, value: str, wild: int) -> Iterable[str]:
    """Parts before the first one with a wildcard, which is `wild`, are literal."""
    parts = value.split(".")
    literal = "".join(f"{part}." for part in parts[:wild])
    matches = matcher(".".join(parts[wild:]))
    # The pattern has to be no longer than the fqn, even if its `*` would match nothing.
    dots = len(parts)
    for dotted, uid in candidates.by_fqn:
        if (
            dotted.startswith(literal)
            and dotted.count(".") >= dots
            and matches(dotted[len(literal) : -1])
        ):
            yield uid
    if candidates.rules.wildcard_matches_name and len(parts) == 1:
        yield from (
            uid for name, uids in candidates.by_name.items() if matches(name) for uid in uids
        )


def _tag(candidates: Candidates, _: list[str], value: str) -> Iterable[str]:
    matches = matcher(value)
    return [n.unique_id for n in candidates.every if any(map(matches, n.tags))]


def _group(candidates: Candidates, _: list[str], value: str) -> Iterable[str]:
    matches = matcher(value)
    nodes = [*candidates.parsed, *candidates.of_type("metric")]
    return [n.unique_id for n in nodes if n.group and matches(n.group)]


def _access(candidates: Candidates, _: list[str], value: str) -> Iterable[str]:
    return [n.unique_id for n in candidates.of_type("model") if n.access == value]


def _source(candidates: Candidates, _: list[str], value: str) -> Iterable[str]:
    """`source`, `source.table` or `package.source.table`."""
    parts = value.split(".")
    if len(parts) > 3:
        raise Unsupported(f'"{value}" is not source, source.table or package.source.table')
    package = matcher(parts[0] if len(parts) == 3 else "*")
    source, table = map(matcher, (parts[-2:] if len(parts) > 1 else (parts[0], "*")))
    return [
        n.unique_id
        for n in candidates.of_type("source")
        if package(n.package_name) and source(n.source_name) and table(n.name)
    ]


def _named(resource_type: str) -> Method:
    """The method for a type whose nodes are called `name` or `package.name`."""

    def method(candidates: Candidates, _: list[str], value: str) -> Iterable[str]:
        parts = value.split(".")
        if len(parts) > 2:
            raise Unsupported(f'"{value}" is neither name nor package.name of a {resource_type}')
        package = matcher(parts[0] if len(parts) == 2 else "*")
        name = matcher(parts[-1])
        return [
            n.unique_id
            for n in candidates.of_type(resource_type)
            if package(n.package_name) and name(n.name)
        ]

    return method


def _path(candidates: Candidates, _: list[str], value: str) -> Iterable[str]:
    """A file or directory of the project, or what a glob finds of them.

    dbt compares paths and not packages: a package's `models/staging/x.sql` is under the project's
    `models/staging`, if the project has one.
    """
    found = _globbed(candidates, value)
    for parts, uids in candidates.by_file.items():
        if parts in found or any(parts[:i] in found for i in range(len(parts))):
            yield from uids
    for parts, uids in candidates.by_patch.items():
        if parts in found:
            yield from uids


def _globbed(candidates: Candidates, pattern: str) -> set[Parts]:
    """As Python's `Path.glob` on the project's directory."""
    parts = parts_of(pattern)
    if not parts or pattern.startswith("/") or ".." in parts or "\\" in pattern:
        raise Unsupported(f'"{pattern}" is not a path below the project')
    if any("**" in part and part != "**" for part in parts):
        raise Unsupported(f'"{pattern}": what ** means inside a name differs between Pythons')
    directories_only = pattern.endswith("/") or parts[-1] == "**"
    if not _WILDCARD.search(pattern):
        known = candidates.paths.get(parts)
        if known is None and parts in candidates.doubtful:
            raise Unsupported(f'"{pattern}": whether the project has it is not in the archive')
        return {parts} if known or (known is False and not directories_only) else set()
    tests = [None if part == "**" else matcher(part) for part in parts]
    if any(_glob_matches(path, tests) for path in candidates.doubtful):
        raise Unsupported(f'"{pattern}": which files the project has is not in the archive')
    return {
        path
        for path, is_directory in candidates.paths.items()
        if (is_directory or not directories_only) and _glob_matches(path, tests)
    }


def _glob_matches(path: Parts, tests: Sequence[Callable[[str], bool] | None]) -> bool:
    """Whether each part passes its test, where None stands for any number of parts."""
    if not tests:
        return not path
    if tests[0] is None:
        return any(_glob_matches(path[i:], tests[1:]) for i in range(len(path) + 1))
    return bool(path) and tests[0](path[0]) and _glob_matches(path[1:], tests[1:])


def _file(candidates: Candidates, _: list[str], value: str) -> Iterable[str]:
    """The name of the file, with or without its suffix."""
    matches = matcher(value)
    for parts, uids in candidates.by_file.items():
        name = parts[-1] if parts else ""
        if matches(name) or matches(PurePosixPath(name).stem):
            yield from uids


def _package(candidates: Candidates, _: list[str], value: str) -> Iterable[str]:
    if value == "this" and candidates.graph.project_name:
        value = candidates.graph.project_name
    matches = matcher(value)
    return [n.unique_id for n in candidates.every if matches(n.package_name)]


def _config(candidates: Candidates, arguments: list[str], value: object) -> Iterable[str]:
    """A value anywhere in the config, or an item of a list there. The words true and false, in any
    case, stand for the booleans."""
    if not arguments:
        return
    word = str(value).lower()
    boolean = {"true": True, "false": False}.get(word)
    any_case = arguments == ["severity"]
    for uid, found in _configured(candidates, arguments):
        if isinstance(found, list):
            # `in` compares with ==, as dbt does: a YAML selector's 1 finds True.
            if value in found or (boolean is not None and boolean in found):
                yield uid
        elif (
            value == found
            or (boolean is not None and found is boolean)
            or (any_case and isinstance(found, str) and found.lower() == word)
        ):
            yield uid


def _configured(candidates: Candidates, arguments: list[str]) -> Iterable[tuple[str, object]]:
    """(unique_id, what its config has there) of the nodes that have something there."""
    # Of each config only the one key is built: the whole would take most of the time.
    one_key = msgspec.defstruct(
        "_OneKey", [("value", Any, msgspec.UNSET)], rename={"value": arguments[0]}
    )
    decode = msgspec.json.Decoder(one_key).decode
    graph = candidates.graph
    shared = [decode(config).value for config in graph.configs]  # type: ignore[attr-defined]
    for node in (*candidates.parsed, *candidates.of_type("source")):
        found: Any = (
            decode(node.config).value  # type: ignore[attr-defined]
            if node.config_at < 0
            else shared[node.config_at]
        )
        for name in arguments[1:]:
            # dbt tries the attribute first: `config.meta.items` is a method there, never the key.
            if not isinstance(found, dict) or hasattr(found, name) or name not in found:
                break
            found = found[name]
        else:
            if found is not msgspec.UNSET:
                yield node.unique_id, found


def _resource_type(candidates: Candidates, _: list[str], value: str) -> Iterable[str]:
    if value not in RESOURCE_TYPES:
        raise Unsupported(f'"{value}" is not a resource type')
    return [n.unique_id for n in candidates.every if n.resource_type == value]


def _test_name(candidates: Candidates, _: list[str], value: str) -> Iterable[str]:
    """The name of a generic test (`not_null`), or of one unit test."""
    matches = matcher(value)
    for node in candidates.of_type(*TESTS):
        name = node.name if node.resource_type == "unit_test" else node.test_name
        if name and matches(name):
            yield node.unique_id


def _test_type(candidates: Candidates, _: list[str], value: str) -> Iterable[str]:
    # dbt asks whether the value is in these two words, so a piece of one will do.
    generic = value in ("generic", "schema") or value in "data"
    singular = (not generic and value in "singular") or value in "data"
    unit = not generic and not singular and value in "unit"
    if not generic and not singular and not unit:
        raise Unsupported(f'"{value}" is not generic, singular, unit or data')
    for node in candidates.of_type(*TESTS):
        wanted = (
            unit if node.resource_type == "unit_test" else generic if node.test_name else singular
        )
        if wanted:
            yield node.unique_id


def _version(candidates: Candidates, _: list[str], value: str) -> Iterable[str]:
    if value not in ("latest", "prerelease", "old", "none"):
        raise Unsupported(f'"{value}" is not latest, prerelease, old or none')
    for node in candidates.of_type("model"):
        version, latest = node.version, node.latest_version
        if value == "none":
            wanted = not version
        elif value == "latest":
            wanted = bool(version) and version == latest
        elif not version or not latest:
            wanted = False
        elif value == "old":
            wanted = _is_before(version, latest)
        else:
            wanted = _is_before(latest, version)
        if wanted:
            yield node.unique_id


def _is_before(version: str, other: str) -> bool:
    try:
        return float(version) < float(other)
    except ValueError:
        return version < other


METHODS: dict[str, Method] = {
    "access": _access,
    "config": _config,
    "exposure": _named("exposure"),
    "file": _file,
    "fqn": _fqn,
    "group": _group,
    "metric": _named("metric"),
    "package": _package,
    "path": _path,
    "resource_type": _resource_type,
    "saved_query": _named("saved_query"),
    "semantic_model": _named("semantic_model"),
    "source": _source,
    "tag": _tag,
    "test_name": _test_name,
    "test_type": _test_type,
    "unit_test": _named("unit_test"),
    "version": _version,
}

COMPARING = frozenset({"result", "source_status", "state"})
"""Methods that compare with artifacts of another run. To evaluate them, give `Candidates` those
artifacts and METHODS a function for each; until then they are left to dbt."""
