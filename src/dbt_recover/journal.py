"""dbt's events -> node results, for when dbt leaves none.

Two steps, so that nothing is lost between them: journal_v1 and journal_v2 turn one line of dbt's
log into one small record, without memory; records go to the archive as they are (JSON lines);
`fold` reads any number of them, in any order, repeated or cut short, and never calls a node done
that was not.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta, timezone

import msgspec

from .model import FAILURES, NodeResult


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of the journal."""

    event: str
    """invocation, start, finish, said, batch_start, batch_finish, query, artifact, error, end."""
    invocation_id: str = ""
    at: str = ""
    node: str = ""
    started_at: str = ""
    """dbt's node_started_at: tells the executions of one node (its batches) apart."""
    result: NodeResult | None = None
    batch: str = ""
    """The batch's label as dbt prints it: 2026-01-31, 2026-01-31T06, 2026-01, 2026."""
    batch_index: int = 0
    batch_total: int = 0
    status: str = ""
    path: str = ""
    dbt_version: str = ""
    adapter_type: str = ""
    target: str = ""
    node_count: int = 0
    success: bool | None = None
    query_id: str = ""
    """The warehouse's id of a query that failed, where the adapter says it."""
    message: str = ""
    """Why dbt itself gave up; with a node (`said`), why that failed."""


class Journal(msgspec.Struct):
    """What a set of records says of one invocation."""

    invocation_id: str = ""
    began: str = ""
    last: str = ""
    """Time of the last record."""
    dbt_version: str = ""
    adapter_type: str = ""
    target: str = ""
    node_count: int | None = None
    """How many nodes dbt selected, where it said so."""
    ended: bool = False
    error: str = ""
    """Why dbt itself gave up, where it did; empty if what failed were nodes."""
    results: dict[str, NodeResult] = {}
    in_flight: frozenset[str] = frozenset()
    """Started, and no word of their end."""
    artifacts: dict[str, str] = {}
    """dbt's artifact type -> path it was written to."""
    queries: dict[str, str] = {}
    """unique_id -> id of its last query that failed."""
    words: dict[str, str] = {}
    """unique_id -> why it failed, where dbt says that apart (v2)."""

    def completed(self, result: NodeResult) -> NodeResult:
        """A failure with the id of the query that failed and with why, where dbt's own record lacks
        them."""
        if result.status not in FAILURES:
            return result
        return msgspec.structs.replace(
            result,
            query_id=result.query_id or self.queries.get(result.unique_id, ""),
            message=result.message or self.words.get(result.unique_id, ""),
        )


class _Execution(msgspec.Struct):
    """All that is known of one node."""

    starts: set[str] = set()
    batch_starts: set[str] = set()
    finishes: dict[str, NodeResult] = {}
    batches: dict[str, str] = {}
    """label -> status; empty while it runs."""
    first: tuple[int, str] | None = None
    """(index, label) of some batch, from which the others follow."""
    total: int = 0
    query: tuple[str, str] = ("", "")
    """(time, id) of the last query that failed."""
    said: tuple[str, str] = ("", "")
    """(time, words) of its last error."""


def fold(records: Iterable[Record], invocation_id: str = "") -> Journal:
    """What is true after these records, of that invocation or of the first one met.

    Order and repetition do not matter, and what is missing from either end of the stream can only
    make a node look less done. A microbatch model fires `finish` once per batch under its own id: only the one that
    belongs to the model's own start counts.
    """
    journal = Journal(invocation_id)
    why: tuple[str, str] | None = None
    nodes: dict[str, _Execution] = {}
    for record in records:
        if not journal.invocation_id:
            journal.invocation_id = record.invocation_id
        if record.invocation_id != journal.invocation_id:
            continue
        if record.at:
            journal.began = min(journal.began or record.at, record.at)
            journal.last = max(journal.last, record.at)
        if record.node:
            _node_record(nodes.setdefault(record.node, _Execution()), record)
        elif record.event == "artifact":
            journal.artifacts[record.status] = record.path
        elif record.event == "end":
            journal.ended = True
        elif record.event == "error":
            # What dbt says first is what the others follow from.
            why = min(why or (record.at, record.message), (record.at, record.message))
        else:
            journal.dbt_version = record.dbt_version or journal.dbt_version
            journal.adapter_type = record.adapter_type or journal.adapter_type
            journal.target = record.target or journal.target
            if record.target:
                journal.node_count = record.node_count
    journal.error = why[1] if why else ""
    in_flight = set()
    for uid, execution in nodes.items():
        if execution.query[1]:
            journal.queries[uid] = execution.query[1]
        if execution.said[1]:
            journal.words[uid] = execution.said[1]
        result = _outcome(uid, execution)
        if result is not None:
            journal.results[uid] = journal.completed(result)
        elif execution.starts:
            in_flight.add(uid)
    journal.in_flight = frozenset(in_flight)
    return journal


def _node_record(execution: _Execution, record: Record) -> None:
    if record.event == "start":
        execution.starts.add(record.started_at)
    elif record.event == "finish" and record.result is not None:
        execution.finishes[record.started_at] = record.result
    elif record.event == "query":
        execution.query = max(execution.query, (record.at, record.query_id))
    elif record.event == "said":
        execution.said = max(execution.said, (record.at, record.message))
    elif record.event in ("batch_start", "batch_finish"):
        execution.batch_starts.add(record.started_at)
        execution.total = max(execution.total, record.batch_total)
        execution.first = execution.first or (record.batch_index, record.batch)
        if record.event == "batch_finish":
            execution.batches[record.batch] = record.status
        else:
            execution.batches.setdefault(record.batch, "")


def _outcome(uid: str, execution: _Execution) -> NodeResult | None:
    own = execution.starts - execution.batch_starts
    first = min(own, default=None)
    done = [label for label, status in execution.batches.items() if status == "success"]
    if first is not None and first in execution.finishes and first == min(execution.starts):
        result = execution.finishes[first]
        if result.status == "partial success":
            return _with_batches(result, execution, done)
        full = _with_batches(result, execution, done)
        # Where single batches were retried, the others between them are not known.
        whole = result.status == "success" and len(full.batches_done) == execution.total
        return full if whole else result
    if done:
        # Killed between batches: some are in the table, the model is not done.
        partial = NodeResult(
            unique_id=uid,
            status="partial success",
            message=f"stopped after {len(done)} of {execution.total} batches",
        )
        return _with_batches(partial, execution, done)
    return None


def _with_batches(result: NodeResult, execution: _Execution, done: list[str]) -> NodeResult:
    """Add which batches are done and which are not, as dbt's batch_results would."""
    if execution.first is None:
        return result
    index, label = execution.first
    try:
        origin = _shift(label, 1 - index)
        labels = [_shift(origin, n) for n in range(execution.total)]
        spans = {lb: [_iso(lb), _iso(_shift(lb, 1))] for lb in labels}
    except (ValueError, OverflowError):
        return result  # a batch size that this version does not know: the whole model runs again
    return msgspec.structs.replace(
        result,
        batches_done=[spans[lb] for lb in labels if lb in done],
        batches_failed=[spans[lb] for lb in labels if lb not in done],
    )


def _shift(label: str, count: int) -> str:
    """The label of the batch `count` batches later."""
    numbers = [int(n) for n in label.replace("T", "-").split("-")]
    if len(numbers) <= 2:
        months = numbers[0] * 12 + (numbers[1] - 1 + count if len(numbers) == 2 else 12 * count)
        return f"{months // 12:04d}" + (f"-{months % 12 + 1:02d}" if len(numbers) == 2 else "")
    year, month, day, hour = [*numbers, 0][:4]
    moment = datetime(year, month, day, hour, tzinfo=timezone.utc)
    if len(numbers) == 3:
        return (moment + timedelta(days=count)).strftime("%Y-%m-%d")
    return (moment + timedelta(hours=count)).strftime("%Y-%m-%dT%H")


def _iso(label: str) -> str:
    """The beginning of a batch, as dbt writes it into batch_results."""
    date, _, hour = label.partition("T")
    date += "-01" * (2 - date.count("-"))
    return f"{date}T{hour or '00'}:00:00+00:00"
