"""What a dbt command is told by its environment and its project, not by its words: pure.

dbt records it only if it comes to its end; `exec` reads it when dbt begins, and `retry` types it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TRUE = frozenset({"1", "true", "t", "yes", "y", "on"})
_ENVIRONMENT_FLAGS = frozenset(
    {"full_refresh", "empty", "fail_fast", "favor_state", "defer", "store_failures", "warn_error"}
)
_ENVIRONMENT_LISTS = frozenset({"resource_types", "exclude_resource_types"})
_ENVIRONMENT_TEXTS = frozenset(
    {"target", "profile", "indirect_selection", "event_time_start", "event_time_end", "sample"}
    | {"state", "defer_state"}
)
_IN_PROJECT = frozenset({"fail_fast", "warn_error", "indirect_selection"})


def surrounding_args(environ: Mapping[str, str], flags: Mapping[str, Any]) -> dict[str, Any]:
    """What the environment (DBT_FULL_REFRESH=1, ...), or else `flags:` of dbt_project.yml, adds to
    the args of a command; what is typed goes before it. Names: dbt/cli/params.py."""
    found = {k: v for k, v in flags.items() if k in _IN_PROJECT and v not in (None, False, "")}
    for name in _ENVIRONMENT_FLAGS | _ENVIRONMENT_LISTS | _ENVIRONMENT_TEXTS:
        text = next((environ[v] for v in _variables(name) if environ.get(v)), "")
        if not text:
            continue
        if name in _ENVIRONMENT_FLAGS:
            found[name] = text.strip().lower() in _TRUE
        else:
            found[name] = text.split() if name in _ENVIRONMENT_LISTS else text
    return found


def without_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without what `surrounding_args` reads: the command says it."""
    names = _ENVIRONMENT_FLAGS | _ENVIRONMENT_LISTS | _ENVIRONMENT_TEXTS
    gone = {v for name in names for v in _variables(name)}
    return {k: v for k, v in environ.items() if k not in gone}


_FORMER = {
    "state": ("DBT_ARTIFACT_STATE_PATH",),
    "defer": ("DBT_DEFER_TO_STATE",),
    "favor_state": ("DBT_FAVOR_STATE_MODE",),
}
"""Old names, which dbt still heeds more than the new ones and more than what is typed."""


def _variables(name: str) -> tuple[str, ...]:
    return (*_FORMER.get(name, ()), f"DBT_ENGINE_{name.upper()}", f"DBT_{name.upper()}")
