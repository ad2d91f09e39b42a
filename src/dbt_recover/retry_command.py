"""How dbt is told to execute a group of planned nodes and no other: a synthesised state directory,
and a command that selects by it. Pure."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec

from .artifacts import synthesise_run_results
from .command_line import DbtCommand
from .stages import Group


def strategy_for(wanted: str, group: Group) -> str:
    """auto: select, which passes over nodes that are gone and takes every flag; dbt's own retry
    where single batches of a microbatch model have to run, or all of those that it would have had
    when the run began: to `build` these would be those of today."""
    if wanted != "auto":
        return wanted
    if any(n.batches for n in group.nodes):
        return "retry"
    said = group.invocation.args.get("event_time_end")
    by_clock = not said and any(n.microbatch for n in group.nodes)
    return "retry" if by_clock and _knows_when(group.invocation.dbt_version) else "select"


def _knows_when(version: str) -> bool:
    """Whether the `retry` of this dbt goes by the time of the invocation that is retried."""
    numbers = re.match(r"1\.(\d+)", version)
    return numbers is not None and int(numbers[1]) >= 10


def retry_command(
    base: DbtCommand, command: str, strategy: str, state: Path, *, favor_state: bool = False
) -> DbtCommand:
    """`base`, the settings of the run, as a command that executes what the state directory lists."""
    if strategy == "retry":
        kept = [o for o in base.options if o.name in _RETRY_FLAGS]
        return msgspec.structs.replace(base, command="retry", options=tuple(kept)).adding(
            "--state", str(state)
        )
    chosen = msgspec.structs.replace(base, command=command).adding(
        "--select", "result:error", "--indirect-selection", "empty", "--state", str(state)
    )
    if strategy == "defer":
        chosen = chosen.adding("--defer", *(["--favor-state"] if favor_state else []))
    return chosen.without(_NOT_FOR_TESTS) if command == "test" else chosen


_NOT_FOR_TESTS = frozenset(
    {"--full-refresh", "--empty", "--sample", "--event-time-start", "--event-time-end", "--show"}
)

_RETRY_FLAGS = frozenset(
    {"--profiles-dir", "--project-dir", "--profile", "--target", "--threads", "--vars", "--debug"}
    | {"--quiet", "--no-quiet", "--use-colors", "--no-use-colors", "--log-format", "--log-level"}
    | {"--no-partial-parse", "--partial-parse", "--target-path"}
    | {"--warn-error", "--no-warn-error", "--warn-error-options"}
)

_ARGS_OF_STATE = (
    *("event_time_end", "event_time_start", "fail_fast", "full_refresh", "profile"),
    *("sample", "target", "threads", "vars"),
)

_FLAGS_OF_STATE = {
    "defer": "--defer",
    "empty": "--empty",
    "favor_state": "--favor-state",
    "store_failures": "--store-failures",
}
"""Those of `build` that its `retry` takes from the state only."""


def state_file(group: Group, base: DbtCommand) -> bytes:
    """run_results.json that names the nodes of the group, and no other, as failed."""
    original = group.invocation
    args = {**original.args, **base.args()}
    deferred = base.value("--defer-state")
    results: list[dict[str, Any]] = []
    for node in group.nodes:
        entry: dict[str, Any] = {"unique_id": node.unique_id, "status": "error"}
        if node.batches:
            # dbt runs what is listed as failed, provided that anything is listed as successful.
            entry["batch_results"] = {
                "successful": [list(node.batches[0])],
                "failed": [list(b) for b in node.batches],
            }
        results.append(entry)
    return synthesise_run_results(
        results,
        args={
            "which": group.command,
            "command": group.command,
            **{k: args[k] for k in _ARGS_OF_STATE if args.get(k) not in (None, "", {}, [])},
            **{k: True for k, flag in _FLAGS_OF_STATE.items() if base.has(flag)},
            # It does not take the other dbt flag for this from there.
            **({"state": deferred} if deferred else {}),
        },
        started_at=original.began,
        dbt_version=original.dbt_version,
        invocation_id=original.invocation_id,
    )
