"""dbt's run_results.json, read into the model (manifest.py reads manifest.json).

Tolerant of unknown fields and statuses; refuses, naming the file, what is truncated, not JSON, or
of a schema version it does not know. Schemas: https://schemas.getdbt.com/dbt/run-results/v6.json
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from .errors import DamagedError
from .model import NodeResult

NEWEST_RUN_RESULTS = 6

_T = TypeVar("_T")


class _Metadata(msgspec.Struct, frozen=True):
    dbt_schema_version: str = ""
    dbt_version: str = ""
    generated_at: str = ""
    invocation_id: str | None = None
    invocation_started_at: str | None = None


class _Timing(msgspec.Struct, frozen=True):
    name: str = ""
    started_at: str | None = None
    completed_at: str | None = None


class _Batches(msgspec.Struct, frozen=True):
    successful: list[list[str]] = []
    failed: list[list[str]] = []


class _Result(msgspec.Struct, frozen=True):
    unique_id: str
    status: str
    timing: list[_Timing] = []
    thread_id: str | None = None
    execution_time: float | None = None
    adapter_response: dict[str, Any] | None = None
    message: str | int | None = None
    failures: int | None = None
    relation_name: str | None = None
    batch_results: _Batches | None = None


class _Header(msgspec.Struct, frozen=True):
    metadata: _Metadata


class _RunResults(msgspec.Struct, frozen=True):
    metadata: _Metadata
    results: list[_Result]
    args: dict[str, Any] = {}
    elapsed_time: float | None = None


class RunResults(msgspec.Struct, frozen=True):
    """run_results.json, in our words."""

    invocation_id: str
    dbt_version: str
    started_at: str
    """When the invocation began; of dbt before 1.10, which does not say, when its first node did
    (or, without nodes, when the file was written)."""
    generated_at: str
    args: dict[str, Any]
    results: dict[str, NodeResult]
    elapsed: float


def schema_number(url: str) -> int | None:
    """12 from `https://schemas.getdbt.com/dbt/manifest/v12.json`; None if it does not say."""
    found = re.search(r"/v(\d+)(?:\.json)?$", url)
    return int(found[1]) if found else None


def read_run_results(data: bytes, name: str = "run_results.json") -> RunResults:
    """Decode run_results.json (v4 to v6). DamagedError names what is wrong with `name`."""
    if not data.strip():
        raise DamagedError(
            f"{name} is empty (0 bytes of content)",
            hint="dbt was probably killed while writing it; archive runs with "
            "`dbt-recover exec -- dbt ...`, which does not depend on this file",
        )
    # The version first: a newer one may have any shape.
    _check_schema(_decode(data, _Header, name).metadata.dbt_schema_version, name)
    raw = _decode(data, _RunResults, name)
    results = {r.unique_id: _result(r) for r in raw.results}
    began = [r.started_at for r in results.values() if r.started_at]
    meta = raw.metadata
    return RunResults(
        invocation_id=meta.invocation_id or "",
        dbt_version=meta.dbt_version,
        started_at=meta.invocation_started_at or min(began, default=meta.generated_at),
        generated_at=meta.generated_at,
        args=raw.args,
        results=results,
        elapsed=raw.elapsed_time or 0.0,
    )


def _check_schema(url: str, name: str) -> None:
    if url and "/run-results/" not in url:
        raise DamagedError(f"{name} does not look like dbt's run results: its schema is {url}")
    number = schema_number(url)
    if number is not None and number > NEWEST_RUN_RESULTS:
        raise DamagedError(
            f"{name} has schema run-results/v{number}, newer than this dbt-recover knows "
            f"(v{NEWEST_RUN_RESULTS})",
            hint="upgrade dbt-recover: pip install -U dbt-recover",
        )


def _decode(data: bytes, type_: type[_T], name: str) -> _T:
    try:
        return msgspec.json.decode(data, type=type_)
    except msgspec.ValidationError as exc:
        raise DamagedError(f"{name} does not look like dbt's run results: {exc}") from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise DamagedError(
            f"{name} is truncated or not JSON: {exc}",
            hint="it may have been cut short by a kill or a full disk; it was not used",
        ) from exc


def _result(raw: _Result) -> NodeResult:
    starts = [t.started_at for t in raw.timing if t.started_at]
    ends = [t.completed_at for t in raw.timing if t.completed_at]
    batches = raw.batch_results or _Batches()
    return NodeResult(
        unique_id=raw.unique_id,
        status=raw.status,
        message="" if raw.message is None else str(raw.message),
        execution_time=raw.execution_time or 0.0,
        started_at=min(starts, default=""),
        completed_at=max(ends, default=""),
        failures=raw.failures,
        query_id=str((raw.adapter_response or {}).get("query_id") or ""),
        relation_name=raw.relation_name or "",
        batches_done=batches.successful or (),
        batches_failed=batches.failed or (),
        thread=raw.thread_id or "",
    )


def synthesise_run_results(
    results: list[dict[str, Any]],
    *,
    args: dict[str, Any],
    started_at: str,
    dbt_version: str,
    invocation_id: str,
) -> bytes:
    """A run_results.json (v6) that any dbt from 1.8 on accepts as `--state`.

    `results`: {"unique_id", "status"} and optionally "message", "batch_results". `args` gets
    `which` and, for dbt v2, `command`. dbt derives the windows of microbatch models from
    `started_at`, so it is the original invocation's.
    """
    document = {
        "metadata": {
            "dbt_schema_version": "https://schemas.getdbt.com/dbt/run-results/v6.json",
            "dbt_version": dbt_version,
            "generated_at": started_at,
            "invocation_id": invocation_id,
            "invocation_started_at": started_at,
            "env": {},
        },
        "results": [
            {
                "status": r["status"],
                "timing": [],
                "thread_id": "Thread-1",
                "execution_time": 0.0,
                "adapter_response": {},
                "message": r.get("message"),
                "failures": None,
                "unique_id": r["unique_id"],
                "compiled": None,
                "compiled_code": None,
                "relation_name": None,
                "batch_results": r.get("batch_results"),
            }
            for r in results
        ],
        "elapsed_time": 0.0,
        "args": args,
    }
    return msgspec.json.encode(document)
