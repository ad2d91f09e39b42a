"""Inside dbt, when `exec` runs it: a cheaper JSON log.

dbt writes each event to its JSON log with all it knows of the node, a tenth of a millisecond and
more every time, though the journal is read from a few kinds of them. In an environment that has both
dbt and dbt-recover, dbt comes by here through its search for plugins, and the other events are
written with what the user's own dbt.log needs. Where dbt does not come by, or is another one inside
than is known here, its log stays as it was: longer, and read all the same.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

VARIABLE = "DBT_RECOVER_LOG"
"""Environment variable: the log to write in this way."""
JOURNALLED = frozenset(
    {
        "NodeStart",
        "NodeFinished",
        "LogStartBatch",
        "LogBatchResult",
        "MainReportVersion",
        "ConcurrencyLine",
        "ArtifactWritten",
        "CommandCompleted",
        "AdapterRegistered",
        "LogHookStartLine",
        "LogHookEndLine",
        "MainEncounteredError",
    }
)
"""The events that the journal is read from, by name."""
QUERY = "Snowflake query id: "
"""And those with this text."""
_NODE = ("unique_id", "node_status", "node_started_at", "node_finished_at", "materialized")
_RESULT = ("status", "message", "execution_time", "num_failures", "thread")


def shorten() -> list[type]:
    """Have the log that the environment names written in this way. Returns the plugins there are
    for dbt: none. Source of what it touches: dbt_common/events/logger.py, 1.8-1.12.
    """
    events: Any = sys.modules.get("dbt_common.events.event_manager_client")
    try:
        for logger in events.get_event_manager().loggers:
            handlers = logger._python_logger.handlers if logger._python_logger else []
            files = {getattr(h, "baseFilename", "") for h in handlers}
            # dbt asks for a plugin's name twice; what has a line of its own is ours already.
            fresh = type(logger).__name__ == "_JsonLogger" and "create_line" not in vars(logger)
            if fresh and os.environ[VARIABLE] in files:
                logger.create_line = _shorter(logger.create_line, logger.scrubber)
    except (AttributeError, TypeError):
        pass
    return []


def _shorter(whole: Callable[[Any], str], scrubber: Callable[[str], str]) -> Callable[[Any], str]:
    def line(event: Any) -> str:
        try:
            info = event.info
            shown: dict[str, Any] = {}
            if info.name in ("NodeStart", "NodeFinished"):
                shown["data"] = _of_node(event.data, finished=info.name == "NodeFinished")
            elif info.name in JOURNALLED or QUERY in info.msg:
                return whole(event)
            said = {
                **shown,
                "info": {
                    "name": info.name,
                    "level": info.level,
                    "msg": info.msg,
                    "thread": info.thread,
                    "ts": _stamp(info.ts.seconds, info.ts.nanos),
                    "invocation_id": info.invocation_id,
                },
            }
            return scrubber(json.dumps(said))
        except Exception:  # noqa: BLE001 - whatever it is, dbt is not to fail for it
            return whole(event)

    return line


def _of_node(data: Any, *, finished: bool) -> dict[str, Any]:
    """What the journal keeps of the two events that every node has."""
    node = data.node_info
    shown: dict[str, Any] = {"node_info": {name: getattr(node, name) for name in _NODE}}
    shown["node_info"]["node_relation"] = {"relation_name": node.node_relation.relation_name}
    if finished:
        result = data.run_result
        shown["run_result"] = {name: getattr(result, name) for name in _RESULT}
        shown["run_result"]["execution_time"] = round(result.execution_time, 6)  # of 32 bits
        response = result.adapter_response
        if "query_id" in response:
            shown["run_result"]["adapter_response"] = {"query_id": response["query_id"]}
    return shown


def _stamp(seconds: int, nanos: int) -> str:
    return f"{_second(seconds)}.{nanos // 1000:06}Z"


@lru_cache(maxsize=2)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
