"""What a dbt command was meant to execute: evaluated on the archived graph, or asked of dbt.

dbt records what it selected nowhere but in its results; an invocation that ended early has to be
asked again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from . import dbt
from .command_line import RUNNING, SELECTION, DbtCommand
from .errors import DbtError
from .graph import EXECUTABLE, TESTS, Graph
from .model import Invocation
from .restore import Overrides, restored
from .selection import Selection, Unsupported, select
from .surroundings import without_settings


def selected(graph: Graph, args: Mapping[str, Any], command: str) -> frozenset[str] | None:
    """What a command with these args executes; None where it is not ours to evaluate."""

    def words(name: str) -> tuple[str, ...]:
        value = args.get(name) or ()
        return (value,) if isinstance(value, str) else tuple(str(v) for v in value)

    if command not in RUNNING - {"retry"}:
        return None
    selection = Selection(
        select=words("select") or words("models"),
        exclude=words("exclude"),
        selector=str(args.get("selector") or ""),
        resource_types=words("resource_types"),
        exclude_resource_types=words("exclude_resource_types"),
        indirect_selection=str(args.get("indirect_selection") or "eager"),
    )
    try:
        return frozenset(select(graph, selection, command))
    except Unsupported:
        return None


_TYPES = {
    "build": EXECUTABLE,
    "run": frozenset({"model"}),
    "test": TESTS,
    "seed": frozenset({"seed"}),
    "snapshot": frozenset({"snapshot"}),
}


class _Listed(msgspec.Struct):
    unique_id: str = ""


def ask_dbt(
    invocation: Invocation,
    overrides: Overrides,
    *,
    executable: str,
    environ: Mapping[str, str],
    cwd: Path,
) -> frozenset[str] | None:
    """The same by `dbt ls`, on the project as it is here. None if dbt cannot tell: the selection
    needs a state directory that is not here, or dbt fails."""
    if invocation.command not in _TYPES:
        return None
    original = DbtCommand.parse(invocation.argv or ["dbt", invocation.command])
    base = restored(invocation, overrides, launcher=(executable,), cwd=cwd)
    words = [w for o in base.options if o.name in _LISTING_FLAGS for w in o.typed]
    words += _selection_words(original, invocation.args)
    state = original.value("--state")
    if state is not None:
        if not Path(cwd, state).is_dir():
            return None
        words += ["--state", state]
    argv = [executable, "--quiet", "ls", *words, "--output", "json", "--output-keys", "unique_id"]
    try:
        text = dbt.capture(argv, env=without_settings(environ), cwd=cwd)
    except DbtError:
        return None
    types = _TYPES[invocation.command]
    found = set()
    for line in text.splitlines():
        start = line.find("{")
        if start < 0:
            continue
        try:
            uid = msgspec.json.decode(line[start:].encode(), type=_Listed).unique_id
        except msgspec.DecodeError:
            continue
        if uid.split(".", 1)[0] in types:
            found.add(uid)
    return frozenset(found)


_LISTING_FLAGS = frozenset(
    {"--profiles-dir", "--project-dir", "--profile", "--target", "--vars", "--target-path"}
)


def _selection_words(original: DbtCommand, args: Mapping[str, Any]) -> list[str]:
    """As typed; what was not typed but given by the environment or the project, as recorded."""
    words = [w for o in original.options if o.name in SELECTION for w in o.typed]
    for key, flag in (
        ("select", "--select"),
        ("exclude", "--exclude"),
        ("selector", "--selector"),
        ("indirect_selection", "--indirect-selection"),
        ("resource_types", "--resource-type"),
        ("exclude_resource_types", "--exclude-resource-type"),
    ):
        value = args.get(key) or ()
        values = value.split() if isinstance(value, str) else [str(v) for v in value]
        if values and not original.has(flag):
            words += [w for v in values for w in (flag, v)]
    return words
