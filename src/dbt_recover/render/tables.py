"""Tables and sentences for people."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING

from tabulate import tabulate

from ..diagnose import Diagnosis, diagnoses, gave_up, uncolored
from ..graph import Graph
from ..model import (
    FAILURES,
    IN_FLIGHT,
    SKIPPED,
    UNRECORDED,
    RunState,
    RunSummary,
    as_word,
    listing,
)
from ..plan import Plan, Standing, name_of
from ..runstate import counts, describe, failed_nodes

if TYPE_CHECKING:
    from ..carry_out import Retried

_WIDTH = 100


def runs(summaries: Sequence[RunSummary], archive: str) -> str:
    """The table of `runs`."""
    if not summaries:
        return f"no runs match in {archive}"
    rows = [
        (
            s.run.began.replace("T", " ")[:16],
            s.run.run_id,
            s.status,
            s.command,
            s.total,
            s.failed or "",
            s.attempts,
            duration(s.seconds),
        )
        for s in summaries
    ]
    headers = ("began (UTC)", "run", "status", "commands", "nodes", "not ok", "attempts", "took")
    return tabulate(rows, headers=headers, disable_numparse=True)


def duration(seconds: float) -> str:
    """3.2 s, 4 min 05 s, 2 h 07 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def body(message: str) -> list[str]:
    """All lines of dbt's message without its envelope."""
    lines = [line.rstrip() for line in uncolored(message).splitlines() if line.strip()]
    return lines[1:] if len(lines) > 1 and " Error in " in lines[0] else lines


def show(state: RunState, graph: Graph, *, full: bool = False) -> str:
    """One run: how it stands, its invocations, what failed and why, what that held up."""
    run = state.run
    parts = [
        f"run {run.run_id}: {describe(state)}",
        f"began {run.began.replace('T', ' ')[:19]} UTC"
        + (f", logical date {run.logical_date}" if run.logical_date else ""),
        "",
        tabulate(
            [
                (
                    i.attempt,
                    i.step,
                    command_of(i.argv, i.command),
                    ending(i.end, i.exit_code),
                    i.target,
                    i.began.replace("T", " ")[11:19],
                )
                for i in state.invocations
            ],
            headers=("attempt", "step", "command", "ended", "target", "began"),
            disable_numparse=True,
        ),
        "",
        "nodes: "
        + (
            ", ".join(f"{n} {status}" for status, n in sorted(counts(state).items()))
            or "none known"
        ),
    ]
    parts += [f"note: {w}" for w in state.warnings]
    for cause in gave_up(state):
        parts += ["", f"dbt itself gave up ({cause.error_class}): {cause.summary}"]
    parts += _failures(state, graph, full)
    for title, status in (
        ("skipped", SKIPPED),
        ("never started", UNRECORDED),
        ("in flight when dbt ended", IN_FLIGHT),
    ):
        names = [
            name_of(graph, u) for u in sorted(state.nodes) if state.nodes[u].result.status == status
        ]
        if names:
            parts += ["", f"{title} ({len(names)}): {listing(names, None if full else 12)}"]
    slow = sorted(state.nodes.values(), key=lambda n: -n.result.execution_time)[:5]
    took = [
        f"{name_of(graph, n.result.unique_id)} {duration(n.result.execution_time)}"
        for n in slow
        if n.result.execution_time > 0
    ]
    if took:
        parts += ["", f"slowest: {', '.join(took)}"]
    if describe(state) == "failed":
        parts += ["", f"next: dbt-recover plan {as_word(run.run_id)}"]
    return "\n".join(parts)


def command_of(argv: Sequence[str], command: str) -> str:
    """The dbt command as one would type it, cut to a table's width."""
    words = [PurePath(argv[0]).name, *argv[1:]] if argv else ["dbt", command]
    text = shlex.join(words)
    return text if len(text) <= 60 else text[:57] + "..."


def ending(end: str, code: int | None) -> str:
    """How an invocation ended, in words."""
    if end == "exit" or not end:
        return f"exit {code}" if code is not None else "exit"
    return f"{end} (exit {code})" if code is not None and code >= 0 else end


def _failures(state: RunState, graph: Graph, full: bool) -> list[str]:
    failed = failed_nodes(state)
    if not failed:
        return []
    causes = diagnoses(state)
    lines = ["", f"failed ({len(failed)}):"]
    for result in failed if full else failed[:20]:
        node = graph.nodes.get(result.unique_id)
        where = f"  {node.original_file_path}" if node and node.original_file_path else ""
        kind = result.unique_id.split(".", 1)[0]
        cause = causes[result.unique_id]
        lines.append(
            f"  {kind} {name_of(graph, result.unique_id)}: {result.status}"
            f" ({cause.error_class}){where}"
        )
        message = body(result.message)
        if not full and len(message) > 1 and message[1].strip().startswith("Traceback "):
            message = [cause.summary]  # what a Python model raised is in its last lines
        lines += [f"    {text.strip()}" for text in (message if full else message[:6])]
        lines += _query(cause, result.message)
    if not full and len(failed) > 20:
        lines.append(
            f"  and {len(failed) - 20} more: dbt-recover show {as_word(state.run.run_id)} --full"
        )
    return lines


def _query(cause: Diagnosis, message: str) -> list[str]:
    """Where to find it in the warehouse's history, if the message does not say it itself."""
    query_id = cause.evidence.query_id
    return [f"    query {query_id}"] if query_id and query_id not in message else []


def plan(made: Plan, state: RunState, graph: Graph) -> str:
    """What a retry will do and why, and what it leaves alone."""
    run_id = state.run.run_id
    causes = diagnoses(state)
    if not made.nodes:
        known = "" if not state.warnings else " as far as is known"
        parts = [f"run {run_id}: nothing to run again{known}"]
    else:
        rows = [
            (
                number,
                node.resource_type.replace("_", " "),
                name_of(graph, node.unique_id),
                node.reason
                + (f" ({causes[node.unique_id].error_class})" if node.unique_id in causes else ""),
                f"{node.seconds:.1f}" if node.seconds is not None else "",
            )
            for number, node in enumerate(made.nodes, 1)
        ]
        parts = [
            f"run {run_id}: {len(made.nodes)} of {len(state.nodes)} nodes to run again",
            "",
            tabulate(
                rows,
                headers=("", "type", "node", "why", "took (s)"),
                disable_numparse=True,
                maxcolwidths=[None, None, 60, 70, None],
            ),
        ]
    if made.left_alone:
        shown = [f"  {name_of(graph, n.unique_id)}: {n.reason}" for n in made.left_alone[:20]]
        if len(made.left_alone) > 20:
            shown.append(f"  and {len(made.left_alone) - 20} more (see -o json)")
        parts += ["", "left alone:", *shown]
    parts += [
        line
        for warning in made.warnings
        for line in _warning(warning.message, warning.flag, warning.allowed)
    ]
    if made.standing is not None:
        parts += _standing(made.standing, [warning.message for warning in made.warnings])
    at_work = any(warning.code == "at_work" for warning in made.warnings)
    if made.nodes and not made.blockers and not at_work:
        parts += ["", f"next: dbt-recover retry {as_word(run_id)}"]
    return "\n".join(parts)


def _standing(found: Standing, told: Sequence[str]) -> Iterable[str]:
    """How a run stands of which nothing is to run again; not what its warnings have told."""
    if found.outcome == "unknown":
        return
    if found.outcome != "already_complete" and found.message not in told:
        yield ""
        yield found.message
    if found.command:
        yield from ("", f"next: {found.command}")
    elif found.next_step:
        yield f"  {found.next_step}"


def _warning(message: str, flag: str, allowed: bool) -> Iterable[str]:
    yield ""
    if flag and not allowed:
        yield f"stops the retry: {message}"
        yield f"  to go on all the same: {flag}"
    else:
        yield f"note: {message}" + (f" (allowed by {flag})" if flag else "")


def outcome(done: Retried, graph: Graph) -> str:
    """The last words of a retry."""
    run = f"run {done.run_id}"
    if done.outcome == "already_complete":
        return f"{run} is already complete: {done.total} nodes, nothing to run again"
    share = f"{len(done.executed)} of {done.total} nodes run again in {duration(done.seconds)}"
    if done.outcome == "recovered" and done.elsewhere:
        return f"{run}: {share}, in target {done.elsewhere}; in its own target the run is as it was"
    if done.outcome == "recovered":
        return f"{run} recovered by attempt {done.attempt}: {share}"
    if done.outcome == "interrupted":
        return (
            f"{run}: attempt {done.attempt} was interrupted after {len(done.executed)} nodes\n"
            f"next: dbt-recover retry {as_word(done.run_id)}"
        )
    if done.exit_code == 0:
        return f"{run}: {done.outcome}"
    lines = [f"{run} is still failing after attempt {done.attempt}: {share}"]
    for result in done.still_failing[:20]:
        kind = result.unique_id.split(".", 1)[0]
        cause = done.why.get(result.unique_id)
        told = f" ({cause.error_class})" if cause else ""
        lines.append(f"  {kind} {name_of(graph, result.unique_id)}: {result.status}{told}")
        lines += [f"    {text.strip()}" for text in body(result.message)[:4]]
    if any(r.status in FAILURES for r in done.still_failing):
        lines.append(f"mend the cause, then: dbt-recover retry {as_word(done.run_id)}")
    return "\n".join(lines)
