"""A plan that somebody has looked at: a retry does what it says, or less, and nothing else."""

from __future__ import annotations

from pathlib import Path

import msgspec

from .decision import Plan
from .errors import RefusedError, UsageError
from .model import as_word, listing


class ApprovedNode(msgspec.Struct, frozen=True):
    """A node of `plan -o json`, as far as it is compared."""

    unique_id: str
    batches: tuple[tuple[str, str], ...] = ()
    """Of a microbatch model; empty if all of it was to run."""


class ApprovedRun(msgspec.Struct, frozen=True):
    """Which run it was the plan of."""

    run_id: str


class Approved(msgspec.Struct, frozen=True):
    """A document of `plan -o json`, read again."""

    run: ApprovedRun
    nodes: tuple[ApprovedNode, ...]


def read_approved(file: str) -> Approved:
    """Raises UsageError for a file that is not there, or not a plan's document."""
    try:
        return msgspec.json.decode(Path(file).read_bytes(), type=Approved)
    except (OSError, msgspec.DecodeError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else str(exc)
        raise UsageError(
            f"--approved {file}: {why}", hint="write one: dbt-recover plan -o json > plan.json"
        ) from exc


def check_approved(plan: Plan, approved: Approved, run_id: str) -> None:
    """RefusedError if anything would run that was not shown; UsageError if it is of another run."""
    if approved.run.run_id != run_id:
        raise UsageError(
            f"--approved is the plan of run {approved.run.run_id}, and this is run {run_id}",
            hint=f"retry that one: dbt-recover retry {as_word(approved.run.run_id)}",
        )
    shown = {node.unique_id: node for node in approved.nodes}
    more = sorted(
        node.unique_id
        for node in plan.nodes
        if node.unique_id not in shown or _wider(node.batches, shown[node.unique_id].batches)
    )
    if more:
        raise RefusedError(
            f"the plan of run {run_id} is another one by now. New in it: {listing(more, 10)}",
            hint=f"look at it again: dbt-recover plan {as_word(run_id)}",
        )


def _wider(now: tuple[tuple[str, str], ...], shown: tuple[tuple[str, str], ...]) -> bool:
    return bool(shown) and (not now or not set(now) <= set(shown))
