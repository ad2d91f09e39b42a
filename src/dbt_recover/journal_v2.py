"""dbt v2's telemetry -> journal records.

v2 (Fusion) writes OpenTelemetry spans as JSON lines to `--otel-file-name` while it runs; its
`--log-format-file json` is still text. A node is a span of type NodeProcessed: started, ended with
an outcome, or neither when dbt died. Why it failed is in a log record of its own, which names the
node, or none where dbt itself gave up. Measured on 2.0.0rc196.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timezone

import msgspec

from .command_line import scrub
from .journal import Record
from .model import NodeResult

FILE = "otel.jsonl"

_NODE = "v1.public.events.fusion.node.NodeProcessed"
_INVOCATION = "v1.public.events.fusion.invocation.Invocation"
_ARTIFACT = "v1.public.events.fusion.artifact.ArtifactWritten"
_HOOK = "v1.public.events.fusion.hook.HookProcessed"
_LOG = "v1.public.events.fusion.log.LogMessage"
_WANTED = (b"NodeProcessed", b"HookProcessed", b".Invocation", b"ArtifactWritten", b'"ERROR"')

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


class _Status(msgspec.Struct):
    message: str | None = None


class _Attributes(msgspec.Struct):
    unique_id: str = ""
    hook_outcome: str = ""
    code_name: str = ""
    code_line: int = 0
    materialization: str = ""
    node_outcome: str = ""
    node_test_detail: _Test | None = None
    duration_ms: int = 0
    invocation_id: str = ""
    process_info: _Process | None = None
    artifact_type: str = ""
    relative_path: str = ""


class _Span(msgspec.Struct):
    """A span's begin or end, or a log record."""

    record_type: str = ""
    trace_id: str = ""
    event_type: str = ""
    start_time_unix_nano: int = 0
    end_time_unix_nano: int = 0
    time_unix_nano: int = 0
    severity_text: str = ""
    body: str | None = None
    status: _Status | None = None
    attributes: _Attributes | None = None


_span = msgspec.json.Decoder(_Span, strict=False)


def parse_span(line: bytes, root: str, hidden: Sequence[str] = ()) -> Record | None:
    """The record of one line of v2's telemetry; None if it says nothing of interest or is cut
    short. `root` is the project's directory: v2 names artifacts relative to it. `hidden`: values
    that an error must not keep."""
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
    if span.event_type == _LOG and span.severity_text == "ERROR":
        return _error(span, said, ident, hidden)
    if span.event_type == _HOOK and said.unique_id:
        return _hook(span, said, ident, at, ended, hidden)
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


def _hook(
    span: _Span, said: _Attributes, ident: str, at: str, ended: bool, hidden: Sequence[str]
) -> Record:
    """on-run-start and on-run-end; success is the enum's zero, which v2 leaves out."""
    started = _iso(span.start_time_unix_nano)
    if not ended:
        return Record("start", ident, at, node=said.unique_id, started_at=started)
    failed = said.hook_outcome == "HOOK_OUTCOME_ERROR"
    result = NodeResult(
        unique_id=said.unique_id,
        status="error" if failed else "success",
        message=_words(span.status.message if span.status and failed else "", hidden),
        execution_time=(span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
        started_at=started,
        completed_at=at,
    )
    return Record("finish", ident, at, node=said.unique_id, started_at=started, result=result)


def _error(span: _Span, said: _Attributes, ident: str, hidden: Sequence[str]) -> Record | None:
    """Why a node failed, or, where none is named, why dbt gave up. A failed hook has its own span."""
    message = _words(span.body, hidden)
    if not message or said.relative_path == "<RUN_OPERATION>":
        return None
    at = _iso(span.time_unix_nano)
    if said.unique_id:
        return Record("said", ident, at, node=said.unique_id, message=message)
    if said.code_line and said.code_name != "DbDriverFailed":
        # About a line of the project's files. dbt Core has an envelope for it.
        message = f"Compilation Error\n  {message}"
    return Record("error", ident, at, message=message)


_BACKTRACE = re.compile(r"\n {2,}0: ")


def _words(text: str | None, hidden: Sequence[str]) -> str:
    """The error without dbt's own backtrace, and without where in the project it was."""
    said = scrub(_BACKTRACE.split(text or "", maxsplit=1)[0], hidden)
    nowhere = ("  --> ", "(in <RUN_OPERATION>:")
    return "\n".join(ln for ln in said.split("\n") if not ln.startswith(nowhere)).strip()


def _uuid(trace: str) -> str:
    if len(trace) != 32:
        return trace
    return "-".join((trace[:8], trace[8:12], trace[12:16], trace[16:20], trace[20:]))


def _iso(nanoseconds: int) -> str:
    if not nanoseconds:
        return ""
    moment = datetime.fromtimestamp(nanoseconds / 1e9, timezone.utc)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
