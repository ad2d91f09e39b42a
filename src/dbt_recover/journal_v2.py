"""dbt v2's telemetry -> journal records.

v2 (Fusion) writes OpenTelemetry spans as JSON lines to `--otel-file-name` while it runs; its
`--log-format-file json` is still text. A node is a span of type NodeProcessed: started, ended with
an outcome, or neither when dbt died. Measured on 2.0.0rc196.
"""

from __future__ import annotations

from datetime import datetime, timezone

import msgspec

from .journal import Record
from .model import NodeResult

FILE = "otel.jsonl"

_NODE = "v1.public.events.fusion.node.NodeProcessed"
_INVOCATION = "v1.public.events.fusion.invocation.Invocation"
_ARTIFACT = "v1.public.events.fusion.artifact.ArtifactWritten"
_WANTED = (b"NodeProcessed", b".Invocation", b"ArtifactWritten")

_OUTCOMES = {
    "NODE_OUTCOME_SUCCESS": "success",
    "NODE_OUTCOME_ERROR": "error",
    "NODE_OUTCOME_SKIPPED": "skipped",
}
_TEST_OUTCOMES = {
    "TEST_OUTCOME_PASSED": "pass",
    "TEST_OUTCOME_WARNED": "warn",
    "TEST_OUTCOME_FAILED": "fail",
}
_ARTIFACTS = {
    "ARTIFACT_TYPE_MANIFEST": "WritableManifest",
    "ARTIFACT_TYPE_RUN_RESULTS": "RunExecutionResult",
}


class _Test(msgspec.Struct):
    test_outcome: str = ""
    failing_rows: int | None = None


class _Process(msgspec.Struct):
    version: str = ""


class _Attributes(msgspec.Struct):
    unique_id: str = ""
    materialization: str = ""
    node_outcome: str = ""
    node_test_detail: _Test | None = None
    duration_ms: int = 0
    invocation_id: str = ""
    process_info: _Process | None = None
    artifact_type: str = ""
    relative_path: str = ""


class _Span(msgspec.Struct):
    record_type: str = ""
    trace_id: str = ""
    event_type: str = ""
    start_time_unix_nano: int = 0
    end_time_unix_nano: int = 0
    attributes: _Attributes | None = None


_span = msgspec.json.Decoder(_Span, strict=False)


def parse_span(line: bytes, root: str) -> Record | None:
    """The record of one line of v2's telemetry; None if it says nothing of interest or is cut
    short. `root` is the project's directory: v2 names artifacts relative to it."""
    if not any(name in line for name in _WANTED):
        return None
    try:
        span = _span.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    said = span.attributes
    if said is None:
        return None
    ident, ended = _uuid(span.trace_id), span.record_type == "SpanEnd"
    at = _iso(span.end_time_unix_nano if ended else span.start_time_unix_nano)
    if said.materialization == "NODE_MATERIALIZATION_EPHEMERAL":
        return None
    if span.event_type == _NODE and said.unique_id:
        return _node(span, said, ident, at, ended)
    if span.event_type == _INVOCATION:
        if ended:
            return Record("end", ident, at)
        version = said.process_info.version if said.process_info else ""
        return Record("invocation", ident, at, dbt_version=version)
    if span.event_type == _ARTIFACT and ended and said.artifact_type in _ARTIFACTS:
        path = f"{root}/{said.relative_path}"
        return Record("artifact", ident, at, path=path, status=_ARTIFACTS[said.artifact_type])
    return None


def _node(span: _Span, said: _Attributes, ident: str, at: str, ended: bool) -> Record | None:
    started = _iso(span.start_time_unix_nano)
    if not ended:
        return Record("start", ident, at, node=said.unique_id, started_at=started)
    status = _OUTCOMES.get(said.node_outcome, "")
    test = said.node_test_detail
    if status == "success" and test is not None:
        # Passed is the enum's zero, which v2 leaves out.
        status = _TEST_OUTCOMES.get(test.test_outcome or "TEST_OUTCOME_PASSED", "")
    elif status == "success" and said.unique_id.startswith(("test.", "unit_test.")):
        status = "pass"
    if not status:
        return None  # cancelled, or an outcome we do not know: not done
    result = NodeResult(
        unique_id=said.unique_id,
        status=status,
        execution_time=said.duration_ms / 1000,
        started_at=started,
        completed_at=at,
        failures=test.failing_rows if test else None,
    )
    return Record("finish", ident, at, node=said.unique_id, started_at=started, result=result)


def _uuid(trace: str) -> str:
    if len(trace) != 32:
        return trace
    return "-".join((trace[:8], trace[8:12], trace[12:16], trace[16:20], trace[20:]))


def _iso(nanoseconds: int) -> str:
    if not nanoseconds:
        return ""
    moment = datetime.fromtimestamp(nanoseconds / 1e9, timezone.utc)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
