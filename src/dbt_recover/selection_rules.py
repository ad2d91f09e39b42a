"""What differs between dbt's versions in selecting nodes: a run meant what its own dbt made of it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dbt_recover.graph import BUILDABLE, TESTS


class Unsupported(Exception):
    """We do not evaluate this selection, for the reason that the message gives; ask `dbt ls`."""


@dataclass(frozen=True)
class Rules:
    """How the dbt that ran selects; its minor versions differ."""

    build_types: frozenset[str]
    """Resource types that `dbt build` executes."""
    list_types: frozenset[str]
    """Resource types that `dbt ls` lists unless told otherwise."""
    blank_nodes_connect: bool
    """Whether the operators walk through nodes that have no code (1.9)."""
    empty_keeps_relatives: bool
    """Whether `+x` means anything under `--indirect-selection empty` (1.9)."""
    saved_queries_everywhere: bool
    """Whether `tag:`, `path:` and such look at saved queries (1.9)."""
    tests_include_unit_tests: bool
    """Whether the resource type `test`, asked for alone, brings the unit tests along (before 1.9)."""
    wildcard_matches_name: bool
    """Whether `stg_*` finds a model in a folder below the top one (1.11.16, 1.12.6)."""
    selector_is_method: bool
    """Whether `selector:name` is evaluated where it stands rather than copied there (1.12)."""

    @classmethod
    def of(cls, dbt_version: str) -> Rules:
        """The rules of a version of dbt; those of the newest for an unknown one."""
        found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", dbt_version)
        version = tuple(int(part or 0) for part in found.groups()) if found else _NEWEST
        if version[0] >= 2:
            raise Unsupported(f"dbt {dbt_version} selects by rules of its own")
        if not (1, 8, 0) <= version < (1, 13, 0):
            raise Unsupported(f"dbt {dbt_version} may select by other rules than 1.8 to 1.12")
        since_9 = version >= (1, 9, 0)
        function = {"function"} if version >= (1, 11, 0) else set()
        return cls(
            build_types=frozenset(
                BUILDABLE
                | TESTS
                | {"saved_query"}
                | ({"exposure"} if version >= (1, 10, 0) else set())
                | function
            ),
            list_types=frozenset(BUILDABLE | TESTS | _UNBUILT | {"saved_query"} | function),
            blank_nodes_connect=since_9,
            empty_keeps_relatives=since_9,
            saved_queries_everywhere=since_9,
            tests_include_unit_tests=not since_9,
            wildcard_matches_name=version >= (1, 12, 6) or (1, 11, 16) <= version < (1, 12, 0),
            selector_is_method=version >= (1, 12, 0),
        )


_NEWEST = (1, 12, 6)

_UNBUILT = frozenset({"source", "exposure", "metric", "semantic_model"})

RESOURCE_TYPES = _UNBUILT | {
    *BUILDABLE,
    *TESTS,
    "analysis",
    "doc",
    "fixture",
    "function",
    "group",
    "macro",
    "operation",
    "rpc",
    "saved_query",
    "sql_operation",
}
"""What dbt accepts as a resource type."""
