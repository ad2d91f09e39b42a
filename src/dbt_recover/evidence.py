"""What an invocation of dbt left, put together from three sources that can each be missing or of
another invocation: dbt's exit, its run_results.json and manifest.json, and the journal.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from . import dbt, layout
from .artifacts import RunResults, read_run_results
from .clock import now
from .command_line import scrub, scrubbed, secret_values
from .errors import DamagedError
from .journal import Journal
from .layout import FORMAT_VERSION
from .model import (
    SKIPPED,
    SUCCESSES,
    Artifact,
    Invocation,
    NodeResult,
    Recorded,
    RunInfo,
    default_run_id,
)
from .publish import Spool, SpoolState
from .recorder import Recorder
from .records import Commit, Results


def put_together(
    spool: Spool, recorder: Recorder, journal: Journal, ended: dbt.Ended | None, state: SpoolState
) -> tuple[Commit, Recorded]:
    """What the invocation left, as commit record and as the model. `ended` is None when nobody
    saw the end."""
    target = Path(state.target_path)
    own = _own_run_results(journal, target)
    invocation_id = journal.invocation_id or f"unknown-{secrets.token_hex(8)}"
    artifacts: list[Artifact] = []
    manifest = Path(journal.artifacts.get("WritableManifest", target / "manifest.json"))
    if journal.invocation_id and (kept := recorder.keep_manifest(manifest, "manifest.json")):
        artifacts.append(kept)
    elif recorder.early_manifest is not None:
        # dbt was killed before or while it wrote the final one.
        artifacts.append(recorder.early_manifest)
    if own is not None:
        artifacts.append(spool.keep_file("run_results.json", own[1]))
    parsed = target / layout.PARSE_STATE
    if not (ended and ended.exit_code == 0) and journal.invocation_id and parsed.is_file():
        # It may be an earlier one's: dbt finds out what of it still holds.
        artifacts.append(spool.keep_file(layout.PARSE_STATE, parsed))
    if recorder.graph is not None:
        artifacts.append(recorder.graph)
    results = merge_results(own[0].results if own else {}, journal)
    in_flight = sorted(journal.in_flight - results.keys())
    given_up = (own[0].results.keys() if own else set()) - results.keys()
    # Where dbt could not even parse, it does not know what it was to execute.
    parsed_all = not journal.error.startswith(_BLANKET)
    never_started = sorted(given_up - journal.in_flight) if parsed_all else []
    artifacts.append(
        spool.keep_bytes(
            "results.json",
            msgspec.json.encode(
                Results(
                    FORMAT_VERSION, sorted(results.values(), key=by_id), in_flight, never_started
                )
            ),
        )
    )
    complete = not given_up and is_complete(ended, own is not None, journal, results)
    base = recorder.invocation
    end = _end(ended, complete)
    invocation = msgspec.structs.replace(
        base,
        invocation_id=invocation_id,
        run=_named(base.run, invocation_id),
        args=_args(own[0].args if own else {}, base),
        dbt_version=journal.dbt_version or (own[0].dbt_version if own else ""),
        adapter_type=journal.adapter_type,
        target=journal.target,
        ended=now() if ended else journal.last,
        exit_code=ended.exit_code if ended else None,
        end=end,
        node_count=journal.node_count,
        # An interrupted dbt has only done what it was told.
        error=scrub(journal.error, secret_values()) if end == "exit" else "",
    )
    commit = Commit(
        FORMAT_VERSION,
        invocation,
        complete,
        artifacts,
        segments=len(spool.segments()),
        nonce=secrets.token_hex(8),
    )
    return commit, Recorded(
        invocation,
        results,
        frozenset(in_flight),
        complete,
        recorder.graph,
        frozenset(never_started),
    )


def by_id(result: NodeResult) -> str:
    return result.unique_id


def _named(run: RunInfo, invocation_id: str) -> RunInfo:
    if run.run_id:
        return run
    return msgspec.structs.replace(run, run_id=default_run_id(run.began, invocation_id))


def _args(recorded: dict[str, Any], invocation: Invocation) -> dict[str, Any]:
    """dbt's own word where there is one; of a retry, what it restored."""
    if invocation.intended is not None:
        return invocation.args
    # dbt 1.11 itself leaves the value of a DBT_ENV_SECRET_* variable in the vars it records.
    args: dict[str, Any] = scrubbed({**invocation.args, **recorded}, secret_values())
    return args


def _end(ended: dbt.Ended | None, complete: bool) -> str:
    if ended is None:
        return "lost"
    if ended.killed or ended.exit_code < 0:
        return "killed"
    return "interrupted" if ended.interrupted and not complete else "exit"


def is_complete(
    ended: dbt.Ended | None,
    has_results: bool,
    journal: Journal,
    results: Mapping[str, NodeResult],
) -> bool:
    """Whether dbt came to its own end and recorded every node it had selected."""
    if ended is None or ended.exit_code not in (0, 1):
        return False
    if ended.interrupted and ended.exit_code and journal.dbt_version.startswith("2"):
        return False  # dbt v2 that was interrupted records all nodes, as errors, and exits with 1
    nodes = sum(1 for uid in results if not uid.startswith("operation."))
    if has_results:
        return journal.node_count is None or nodes >= journal.node_count
    # With --no-write-json the journal is all there is.
    return journal.ended and journal.node_count is not None and nodes >= journal.node_count


_BLANKET = "Compilation Error"
"""What dbt v2 records of each node, built ones too, when something else than a node has ended it."""


def merge_results(recorded: Mapping[str, NodeResult], journal: Journal) -> dict[str, NodeResult]:
    """dbt's file, with what the journal knows better: under --fail-fast dbt records a model as
    skipped that it had built; and what the file lacks."""
    merged = dict(journal.results)
    second = journal.dbt_version.startswith("2")
    for uid, result in recorded.items():
        seen = journal.results.get(uid)
        if second and (result.status, result.message) == ("error", _BLANKET):
            continue  # it may not even have been started
        # And dbt v2 that was interrupted records all nodes as errors.
        doubtful = {SKIPPED, "error"} if second else {SKIPPED}
        if result.status in doubtful and seen is not None and seen.status in SUCCESSES:
            continue
        merged[uid] = journal.completed(result)
    return merged


def _own_run_results(journal: Journal, target: Path) -> tuple[RunResults, Path] | None:
    """run_results.json if it is this invocation's; an older one stays where it is."""
    path = Path(journal.artifacts.get("RunExecutionResult", target / "run_results.json"))
    if not journal.invocation_id:
        return None
    try:
        found = read_run_results(path.read_bytes())
    except (OSError, DamagedError):
        return None
    return (found, path) if found.invocation_id == journal.invocation_id else None
