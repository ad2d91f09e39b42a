"""What verify, prune and doctor say: for people, and as JSON for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

if TYPE_CHECKING:
    from ..doctor import Diagnosis
    from ..prune import Done, Judged, Plan
    from ..verify import Report
    from ..verify_run import Finding


def verified(report: Report) -> str:
    """What `verify` found, faults first."""
    looked = _count(report.runs, "run")
    if report.seed is not None:
        looked += f" of {report.runs_there} (seed {report.seed})"
    looked += f", {_count(report.invocations, 'invocation')}, {_count(report.objects, 'object')}"
    faults = _count(len(report.faults), "fault")
    parts = [f"{report.url}: {looked}, {size(report.stored)} read: {faults}"]
    parts += [line for finding in report.faults for line in _finding("fault", finding)]
    parts += [line for finding in report.notes for line in _finding("note", finding)]
    return "\n".join(parts)


def _count(number: int, what: str) -> str:
    if not number:
        return f"no {what}"
    return f"{number} {what}{'s' if number > 1 else ''}"


def _finding(kind: str, finding: Finding) -> list[str]:
    run = f" in run {finding.run_id}" if finding.run_id else ""
    return ["", f"{kind}{run}: {finding.key}", f"  {finding.wrong}", f"  to do: {finding.mend}"]


def size(number: int) -> str:
    """12 bytes, 3.4 kB, 5.6 MB."""
    if number < 1000:
        return f"{number} bytes"
    for power, unit in enumerate(("kB", "MB", "GB"), 1):
        if number < 1000 ** (power + 1):
            return f"{number / 1000**power:.1f} {unit}"
    return f"{number / 1000**4:.1f} TB"


def verified_document(report: Report) -> dict[str, Any]:
    """`verify -o json`."""

    def findings(of: Sequence[Finding]) -> list[dict[str, Any]]:
        return [
            {"key": f.key, "run_id": f.run_id or None, "wrong": f.wrong, "mend": f.mend} for f in of
        ]

    return {
        "archive": report.url,
        "runs": report.runs,
        "runs_there": report.runs_there,
        "seed": report.seed,
        "invocations": report.invocations,
        "objects": report.objects,
        "stored_bytes": report.stored,
        "faults": findings(report.faults),
        "notes": findings(report.notes),
    }


def pruned(plan: Plan, done: Done | None, archive: str) -> str:
    """The decision, and what was done about it."""
    decision = plan.decision
    judged = [("keep", j) for j in decision.keep] + [("drop", j) for j in decision.drop]
    judged.sort(key=lambda item: item[1].run.place.name, reverse=True)
    rows = [
        (
            j.run.place.began.replace("T", " ")[:16],
            j.run.run_id,
            j.run.status,
            what,
            "; ".join(j.reasons),
        )
        for what, j in judged
    ]
    headers = ("began (UTC)", "run", "status", "", "why")
    parts = [tabulate(rows, headers=headers, disable_numparse=True)] if rows else []
    parts += [f"half removed by an earlier prune: {place.run_id}" for place in plan.unfinished]
    dropping = len(decision.drop) + len(plan.unfinished)
    if done is None:
        parts += [
            "",
            f"{_count(dropping, 'run')} to remove, {len(decision.keep)} to keep in {archive}",
        ]
        parts += ["nothing is removed until --yes is given"] if dropping else []
    else:
        parts += ["", f"removed {_count(len(done.removed), 'run')} ({done.objects} objects)"]
        parts += [f"left alone: {run_id}: {why}" for run_id, why in done.skipped]
    return "\n".join(parts).lstrip("\n")


def pruned_document(plan: Plan, done: Done | None) -> dict[str, Any]:
    """`prune -o json`."""

    def runs(of: Sequence[Judged]) -> list[dict[str, Any]]:
        return [
            {
                "run_id": j.run.run_id,
                "began": j.run.place.began,
                "status": j.run.status,
                "pipeline": j.run.pipeline or None,
                "reasons": list(j.reasons),
            }
            for j in of
        ]

    return {
        "keep": runs(plan.decision.keep),
        "drop": runs(plan.decision.drop),
        "unfinished": [place.run_id for place in plan.unfinished],
        "done": done is not None,
        "removed": list(done.removed) if done else [],
        "skipped": [{"run_id": r, "reason": why} for r, why in done.skipped] if done else [],
        "objects": done.objects if done else 0,
    }


def examined(diagnosis: Diagnosis) -> str:
    """A line for each check, with how to mend it below."""
    lines = []
    for check in diagnosis.checks:
        lines.append(f"{check.state:<4}  {check.name:<10}  {check.what}")
        if check.mend:
            lines.append(f"{'':<18}{check.mend}")
    return "\n".join(lines)


def examined_document(diagnosis: Diagnosis) -> dict[str, Any]:
    """`doctor -o json`."""
    return {
        "ok": diagnosis.exit_code == 0,
        "checks": [
            {"name": c.name, "state": c.state, "what": c.what, "mend": c.mend or None}
            for c in diagnosis.checks
        ],
    }
