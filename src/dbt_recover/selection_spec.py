"""What a selection says, as a tree of criteria: from the command line and from YAML selectors.

As dbt reads them (dbt/graph/cli.py and selector_spec.py there). What dbt refuses to read is
`Unsupported` here: `dbt ls` then says so in its own words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from dbt_recover.selection_methods import matcher
from dbt_recover.selection_rules import Rules, Unsupported

INDIRECT_SELECTIONS = frozenset({"buildable", "cautious", "eager", "empty"})


@dataclass(frozen=True)
class Criterion:
    """One `2+method.argument:value+3`."""

    method: str
    arguments: tuple[str, ...]
    value: Any
    childrens_parents: bool
    parents: bool
    parents_depth: int | None
    children: bool
    children_depth: int | None
    indirect: str


@dataclass(frozen=True)
class Group:
    """Parts, combined. A difference is the first part less all others."""

    operation: Literal["union", "intersection", "difference"]
    parts: tuple[Spec, ...]
    indirect: str = "eager"
    """Tells whether tests join once all their parents are there, each by another part."""


class Everything:
    """What a command without selection is for."""


Spec: TypeAlias = "Criterion | Group | Everything"

_WRITTEN = re.compile(
    r"(?P<childrens_parents>@)?"
    r"(?:(?P<parents_depth>\d*)(?P<parents>\+))?"
    r"(?:(?P<method>[\w.]+):)?(?P<value>.*?)"
    r"(?:(?P<children>\+)(?P<children_depth>\d*))?"
)


def union_of(written: Iterable[str], indirect: str) -> Group:
    intersections = (
        Group("intersection", tuple(_written(p, indirect) for p in part.split(",")), indirect)
        for argument in written
        for part in argument.split(" ")
    )
    return Group("union", tuple(intersections), indirect)


def _written(written: str, indirect: str) -> Criterion:
    match = _WRITTEN.fullmatch(written)
    if match is None:
        raise Unsupported(f'"{written}" is not a selection')
    return _criterion(match.groupdict(), written, indirect)


def _criterion(fields: Mapping[str, Any], written: object, indirect: str) -> Criterion:
    """From the parts of what was written, or from a dictionary of a YAML selector."""
    if "value" not in fields:
        raise Unsupported(f"{written} has no value to search for")
    value = fields["value"]
    if fields.get("method") is None:
        value = str(value)
        # A path or a file name is known by its looks.
        if "/" in value:
            name = "path"
        elif value.lower().endswith((".sql", ".py", ".csv")):
            name = "file"
        else:
            name = "fqn"
        arguments: list[str] = []
    else:
        name, *arguments = str(fields["method"]).split(".")
    if name != "config" and not isinstance(value, str):
        raise Unsupported(f"{written}: the value of {name} is not text")
    criterion = Criterion(
        method=name,
        arguments=tuple(arguments),
        value=value,
        childrens_parents=bool(fields.get("childrens_parents")),
        parents=bool(fields.get("parents")),
        parents_depth=_depth(fields.get("parents_depth"), written),
        children=bool(fields.get("children")),
        children_depth=_depth(fields.get("children_depth"), written),
        indirect=str(fields.get("indirect_selection", indirect)),
    )
    if criterion.children and criterion.childrens_parents:
        raise Unsupported(f'{written}: "@" and a "+" behind exclude each other')
    if criterion.indirect not in INDIRECT_SELECTIONS:
        raise Unsupported(f'"{criterion.indirect}" is not a mode of indirect selection')
    return criterion


def _depth(value: object, written: object) -> int | None:
    # The text "0" is a depth of nothing; YAML's number 0 is none at all. So dbt has it.
    if not value:
        return None
    try:
        return int(str(value))
    except ValueError:
        raise Unsupported(f"{written}: {value} is not a number of generations") from None


class Definitions:
    """YAML selectors, as dbt resolved them into the manifest, or as they are written.

    Those of a manifest can be out of date: dbt's partial parsing keeps the old ones when nothing but
    selectors.yml has changed, while the command itself follows the file.
    """

    def __init__(self, selectors: Mapping[str, object], rules: Rules, indirect: str) -> None:
        self._selectors = selectors
        self._rules = rules
        self._indirect = indirect
        self._open: list[str] = []

    def default(self) -> Spec | None:
        """The selector with `default: true`."""
        for name, selector in self._selectors.items():
            default = selector.get("default", False) if isinstance(selector, dict) else False
            if not isinstance(default, bool):
                raise Unsupported(f'selector "{name}": default is neither true nor false')
            if default:
                return self.named(name)
        return None

    def matching(self, pattern: str) -> list[Spec]:
        matches = matcher(pattern)
        found = [self.named(name) for name in sorted(self._selectors) if matches(name)]
        if not found:
            raise Unsupported(f'no selector "{pattern}" in the manifest')
        return found

    def named(self, name: str) -> Spec:
        selector = self._selectors.get(name)
        if not isinstance(selector, dict) or "definition" not in selector:
            raise Unsupported(f'no selector "{name}" in the manifest')
        if name in self._open:
            raise Unsupported(f'selector "{name}" refers to itself')
        self._open.append(name)
        try:
            return self._parsed(selector["definition"])
        finally:
            self._open.pop()

    def _parsed(self, definition: object) -> Spec:
        if isinstance(definition, str):
            return _written(definition, self._indirect)
        if not isinstance(definition, dict):
            raise Unsupported(f"{definition} is not a definition of a selector")
        if "union" in definition:
            return self._combined("union", definition["union"])
        if "intersection" in definition:
            return self._combined("intersection", definition["intersection"])
        if len(definition) == 1:
            ((method, value),) = definition.items()
            return _criterion({"method": method, "value": value}, definition, self._indirect)
        if definition.get("method") == "selector" and not self._rules.selector_is_method:
            return self.named(str(definition.get("value")))
        if "method" not in definition or "value" not in definition:
            raise Unsupported(f"{definition} has no method and value")
        base = _criterion(definition, definition, self._indirect)
        excluded = self._excluded(definition) if "exclude" in definition else None
        return base if excluded is None else Group("difference", (base, excluded))

    def _combined(self, operation: Literal["union", "intersection"], definitions: object) -> Spec:
        # Groups of YAML selectors are eager, whatever the command line says: so dbt makes them.
        parts: list[Spec] = []
        excluded: Spec | None = None
        for definition in _list(definitions):
            if isinstance(definition, dict) and "exclude" in definition:
                # dbt takes nothing but the exclusion from it, even if it has a method too.
                if excluded is not None:
                    raise Unsupported("a selector has two exclusions side by side")
                excluded = self._excluded(definition)
            else:
                parts.append(self._parsed(definition))
        group = Group(operation, tuple(parts))
        return group if excluded is None else Group("difference", (group, excluded))

    def _excluded(self, definition: Mapping[str, object]) -> Spec | None:
        parts = [self._parsed(part) for part in _list(definition["exclude"])]
        return parts[0] if len(parts) == 1 else Group("union", tuple(parts)) if parts else None


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise Unsupported(f"{value} stands in a selector where a list is expected")
    return value
