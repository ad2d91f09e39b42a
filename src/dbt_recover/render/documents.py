"""JSON for programs; docs/json.md lists the keys, a test holds them to it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from ..diagnose import Diagnosis, diagnoses, of_dbt
from ..model import IN_FLIGHT, SKIPPED, UNRECORDED, NodeResult, RunState, RunSummary
from ..plan import Plan
from ..runstate import counts, describe, failed_nodes

if TYPE_CHECKING:
    from ..carry_out import Retried


def dump(document: Any) -> str:
    """One JSON document, indented."""
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode()


def run_of(state: RunState) -> dict[str, Any]:
    """What identifies a run and how it stands."""
    return {
        "run_id": state.run.run_id,
        "began": state.run.began,
        "date": state.run.date,
        "logical_date": state.run.logical_date or None,
        "status": describe(state),
        "attempts": state.attempts,
        "total": len(state.nodes),
    }


def runs(summaries: Iterable[RunSummary]) -> dict[str, Any]:
    """`runs -o json`."""
    return {
        "runs": [
            {
                "run_id": s.run.run_id,
                "began": s.run.began,
                "date": s.run.date,
                "logical_date": s.run.logical_date or None,
                "status": s.status,
                "commands": s.command,
                "attempts": s.attempts,
                "invocations": s.invocations,
                "total": s.total,
                "not_ok": s.failed,
                "seconds": s.seconds,
                "ended": s.ended or None,
            }
            for s in summaries
        ]
    }


def why(diagnosis: Diagnosis | None) -> dict[str, Any]:
    """The class of a failure and what it was told by; nulls of what did not fail."""
    if diagnosis is None:
        return {"class": None, "evidence": None}
    said = diagnosis.evidence
    return {
        "class": diagnosis.error_class,
        "evidence": {
            "by": said.by or None,
            "matched": said.matched or None,
            "code": said.code or None,
            "sqlstate": said.sqlstate or None,
            "query_id": said.query_id or None,
        },
    }


def node(result: NodeResult, diagnosis: Diagnosis | None = None) -> dict[str, Any]:
    """One node's last word."""
    return {
        "unique_id": result.unique_id,
        "status": result.status,
        "message": result.message or None,
        **why(diagnosis),
        "execution_time": result.execution_time,
        "query_id": result.query_id or None,
    }


def show(state: RunState) -> dict[str, Any]:
    """`show -o json`."""

    def having(status: str) -> list[str]:
        return sorted(u for u, n in state.nodes.items() if n.result.status == status)

    slow = sorted(state.nodes.values(), key=lambda n: -n.result.execution_time)[:5]
    causes = diagnoses(state)
    return {
        "run": run_of(state),
        "invocations": [
            {
                "invocation_id": i.invocation_id,
                "attempt": i.attempt,
                "step": i.step or None,
                "command": i.command,
                "argv": i.argv,
                "target": i.target or None,
                "dbt_version": i.dbt_version or None,
                "began": i.began,
                "ended": i.ended or None,
                "end": i.end,
                "exit_code": i.exit_code,
                "host": i.host or None,
                "error": i.error or None,
                **why(of_dbt(i)),
            }
            for i in state.invocations
        ],
        "counts": counts(state),
        "failed": [node(r, causes.get(r.unique_id)) for r in failed_nodes(state)],
        "skipped": having(SKIPPED),
        "never_started": having(UNRECORDED),
        "in_flight": having(IN_FLIGHT),
        "slowest": [
            {"unique_id": n.result.unique_id, "execution_time": n.result.execution_time}
            for n in slow
        ],
        "warnings": list(state.warnings),
    }


def plan(made: Plan, state: RunState, text: str | None = None) -> dict[str, Any]:
    """`plan -o json`; `nodes` is exactly what dbt will execute, in the graph's order. `text`: the
    same for people."""
    causes = diagnoses(state)
    found = made.standing
    return {
        "run": run_of(state),
        "nodes": [
            {
                "unique_id": n.unique_id,
                "action": n.action,
                "cause": n.cause,
                "reason": n.reason,
                "because": list(n.because),
                "resource_type": n.resource_type,
                "status": n.status or None,
                **why(causes.get(n.unique_id)),
                "seconds": n.seconds,
                "batches": [list(b) for b in n.batches],
            }
            for n in made.nodes
        ],
        "left_alone": [{"unique_id": n.unique_id, "reason": n.reason} for n in made.left_alone],
        "warnings": [
            {
                "code": w.code,
                "message": w.message,
                "stops": bool(w.flag) and not w.allowed,
                "flag": w.flag or None,
            }
            for w in made.warnings
        ],
        "nothing_to_run": found
        and {
            "outcome": found.outcome,
            "message": found.message,
            "next_step": found.next_step or None,
            "listed": found.listed or None,
        },
        "text": text,
    }


def retried(done: Retried) -> dict[str, Any]:
    """`retry -o json`."""
    return {
        "run_id": done.run_id,
        "attempt": done.attempt,
        "outcome": done.outcome,
        "executed": list(done.executed),
        "still_failing": [
            {
                "unique_id": r.unique_id,
                "status": r.status,
                "message": r.message or None,
                **why(done.why.get(r.unique_id)),
            }
            for r in done.still_failing
        ],
    }
