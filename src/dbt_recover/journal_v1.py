"""dbt Core's JSON events -> journal records: one line of its log, without memory.

Source of the events: dbt/events/types.py and dbt_common/events/types.proto of dbt-core 1.8-1.12.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from .dbt_plugin import JOURNALLED, QUERY
from .journal import Record
from .model import NodeResult

_WANTED = (*(f'"{name}"'.encode() for name in JOURNALLED), QUERY.encode())


class _Info(msgspec.Struct):
    name: str = ""
    invocation_id: str = ""
    ts: str = ""


class _Event(msgspec.Struct):
    info: _Info
    data: msgspec.Raw = msgspec.Raw(b"{}")


class _Relation(msgspec.Struct):
    relation_name: str = ""


class _NodeInfo(msgspec.Struct):
    unique_id: str = ""
    node_status: str = ""
    node_started_at: str = ""
    node_finished_at: str = ""
    node_relation: _Relation | None = None
    materialized: str = ""


class _RunResult(msgspec.Struct):
    status: str = ""
    message: str | None = None
    execution_time: float = 0.0
    num_failures: int | None = None
    thread: str = ""
    adapter_response: dict[str, Any] | None = None


class _Data(msgspec.Struct):
    node_info: _NodeInfo | None = None
    run_result: _RunResult | None = None
    description: str = ""
    batch_index: int = 0
    total_batches: int = 0
    status: str = ""
    execution_time: float = 0.0
    artifact_path: str = ""
    artifact_type: str = ""
    node_count: int = 0
    target_name: str = ""
    version: str = ""
    adapter_name: str = ""
    success: bool | None = None
    base_msg: str = ""
    exc: str = ""


_event = msgspec.json.Decoder(_Event, strict=False)
_data = msgspec.json.Decoder(_Data, strict=False)


def parse_event(line: bytes) -> Record | None:
    """The record of one line of dbt's JSON log; None for lines that say nothing of interest,
    are cut short, or are not JSON."""
    if not any(name in line for name in _WANTED):
        return None
    try:
        event = _event.decode(line)
        make = _MAKERS.get(event.info.name)
        if make is None:
            return None
        data = _data.decode(event.data)
        if data.node_info is not None and data.node_info.materialized == "ephemeral":
            return None  # dbt starts and finishes them, and executes nothing
        return make(event.info, data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _start(info: _Info, data: _Data) -> Record | None:
    node = data.node_info
    if node is None or not node.unique_id:
        return None
    return Record(
        "start",
        info.invocation_id,
        info.ts,
        node=node.unique_id,
        started_at=node.node_started_at,
    )


def _finish(info: _Info, data: _Data) -> Record | None:
    node, run = data.node_info, data.run_result
    if node is None or not node.unique_id or run is None:
        return None
    # run_result.status is the word that goes into run_results.json.
    status = run.status or node.node_status
    is_test = node.unique_id.startswith(("test.", "unit_test."))
    result = NodeResult(
        unique_id=node.unique_id,
        status=status,
        message=run.message or "",
        execution_time=run.execution_time,
        started_at=_utc(node.node_started_at),
        completed_at=_utc(node.node_finished_at),
        failures=run.num_failures if is_test else None,
        query_id=str((run.adapter_response or {}).get("query_id") or ""),
        relation_name=node.node_relation.relation_name if node.node_relation else "",
        thread=run.thread,
    )
    return _ended(info, node, result)


def _ended(info: _Info, node: _NodeInfo, result: NodeResult) -> Record:
    return Record(
        "finish",
        info.invocation_id,
        info.ts,
        node=node.unique_id,
        started_at=node.node_started_at,
        result=result,
    )


def _query(info: _Info, data: _Data) -> Record | None:
    """dbt-snowflake says the id of a query that failed here, and nowhere else."""
    node = data.node_info
    _, said, query_id = data.base_msg.partition(QUERY)
    if node is None or not node.unique_id or not said or query_id in ("", "None"):
        return None
    return Record("query", info.invocation_id, info.ts, node=node.unique_id, query_id=query_id)


def _batch(info: _Info, data: _Data, event: str) -> Record | None:
    node = data.node_info
    if node is None or not data.description.startswith("batch "):
        return None
    return Record(
        event,
        info.invocation_id,
        info.ts,
        node=node.unique_id,
        started_at=node.node_started_at,
        batch=data.description.split(" ")[1],
        batch_index=data.batch_index,
        batch_total=data.total_batches,
        status=node.node_status,
    )


def _hook(info: _Info, data: _Data) -> Record | None:
    """on-run-start and on-run-end: dbt fires no NodeStart and NodeFinished for them."""
    node = data.node_info
    if node is None or not node.unique_id:
        return None
    if info.name == "LogHookStartLine":
        return _start(info, data)
    result = NodeResult(node.unique_id, data.status, execution_time=data.execution_time)
    return _ended(info, node, result)


_MAKERS: dict[str, Callable[[_Info, _Data], Record | None]] = {
    "NodeStart": _start,
    "NodeFinished": _finish,
    "AdapterEventDebug": _query,
    "LogStartBatch": lambda i, d: _batch(i, d, "batch_start"),
    "LogBatchResult": lambda i, d: _batch(i, d, "batch_finish"),
    "MainReportVersion": lambda i, d: Record(
        "invocation", i.invocation_id, i.ts, dbt_version=d.version.removeprefix("=")
    ),
    "AdapterRegistered": lambda i, d: Record(
        "invocation", i.invocation_id, i.ts, adapter_type=d.adapter_name
    ),
    "ConcurrencyLine": lambda i, d: Record(
        "invocation", i.invocation_id, i.ts, target=d.target_name, node_count=d.node_count
    ),
    "ArtifactWritten": lambda i, d: Record(
        "artifact", i.invocation_id, i.ts, path=d.artifact_path, status=d.artifact_type
    ),
    "LogHookStartLine": _hook,
    "LogHookEndLine": _hook,
    "MainEncounteredError": lambda i, d: Record(
        "error", i.invocation_id, i.ts, message=d.exc.strip()
    ),
    "CommandCompleted": lambda i, d: Record("end", i.invocation_id, i.ts, success=d.success),
}


def _utc(stamp: str) -> str:
    return stamp + "Z" if stamp and not stamp.endswith("Z") and "+" not in stamp else stamp
