"""What dbt_plugin.py does inside dbt: seen from the log that a real dbt writes, and from stand-ins
for a dbt that is another one inside."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

import dbt_recover
from dbt_recover import dbt_plugin
from dbt_recover.dbt_plugin import JOURNALLED, VARIABLE, shorten
from dbt_recover.journal_v1 import parse_event
from dbt_recover.model import NodeResult
from projects import REAL_DBT, RELAY, written

_TIMES = {"at", "invocation_id", "started_at", "completed_at", "execution_time"}
EVENTS = "dbt_common.events.event_manager_client"


def test_the_journal_is_the_same(tmp_path: Path) -> None:
    """Of a build with a failure: every record; the other events are left with what a text log
    needs."""
    logs: dict[str, list[bytes]] = {}
    for name in ("whole", "short", "elsewhere"):
        here = written(tmp_path / name, RELAY)
        log = here.root / "logs/dbt.log"
        told = {"short": log, "elsewhere": log.with_name("another.log")}
        added = {VARIABLE: told[name]} if name in told else {}
        env = here.having(FAIL="mart", THREADS="1", DBT_LOG_FORMAT_FILE="json", **added)
        assert env.run(REAL_DBT, "build").code == 1
        logs[name] = log.read_bytes().splitlines()

    def journal(name: str) -> list[dict[str, Any]]:
        here = str(tmp_path / name)
        records = [r for r in map(parse_event, logs[name]) if r is not None]
        said = [json.loads(msgspec.json.encode(r).replace(here.encode(), b"HERE")) for r in records]
        for record in said:
            for part in (record, record.get("result", {})):
                for time in _TIMES & part.keys():
                    part[time] = type(part[time]).__name__
        return said

    assert journal("short") == journal("whole") == journal("elsewhere")
    (failed,) = (
        r["result"]
        for r in journal("short")
        if r["event"] == "finish" and r["node"] == "model.relay.mart"
    )
    assert failed["status"] == "error"
    assert "Error in model mart" in failed["message"]
    known: dict[str, set[str]] = {"short": set(), "whole": set(), "elsewhere": set()}
    for name, seen in known.items():
        for line in logs[name]:
            event = json.loads(line)
            assert event["info"].keys() >= {"name", "level", "msg", "thread", "ts", "invocation_id"}
            if "data" not in event:
                seen.add(event["info"]["name"])
            elif event["info"]["name"] == "NodeFinished":
                assert ("node_path" in event["data"]["node_info"]) is (name != "short")
    assert {"SQLQuery", "ConnectionUsed"} <= known["short"]
    assert not known["short"] & JOURNALLED
    assert not known["whole"] | known["elsewhere"]


def test_it_is_no_plugin_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert not hasattr(dbt_recover, "plugins")
    monkeypatch.setenv(VARIABLE, "/nowhere/dbt.log")
    assert dbt_recover.plugins == []


class _JsonLogger:
    """As in dbt_common."""

    def __init__(self, path: str) -> None:
        self._python_logger = SimpleNamespace(handlers=[SimpleNamespace(baseFilename=path)])

    def scrubber(self, text: str) -> str:
        return text.replace("hunter2", "*****")

    def create_line(self, _event: Any) -> str:
        return "whole"


def _line(monkeypatch: pytest.MonkeyPatch, event: Any) -> str:
    logger = _JsonLogger("/spool/log/dbt.log")
    monkeypatch.setenv(VARIABLE, "/spool/log/dbt.log")
    manager = SimpleNamespace(loggers=[logger])
    monkeypatch.setitem(sys.modules, EVENTS, SimpleNamespace(get_event_manager=lambda: manager))
    assert shorten() == shorten() == []
    return logger.create_line(event)


def _event(**info: Any) -> SimpleNamespace:
    stamp = SimpleNamespace(seconds=1_769_840_000, nanos=1_234_567)
    fields = {"level": "debug", "msg": "", "thread": "Thread-1", "ts": stamp, "invocation_id": "i"}
    return SimpleNamespace(info=SimpleNamespace(**{**fields, **info}))


def test_a_short_line(monkeypatch: pytest.MonkeyPatch) -> None:
    said = json.loads(_line(monkeypatch, _event(name="SQLQuery", msg="select 'hunter2'")))
    assert said == {
        "info": {
            "name": "SQLQuery",
            "level": "debug",
            "msg": "select '*****'",
            "thread": "Thread-1",
            "ts": "2026-01-31T06:13:20.001234Z",
            "invocation_id": "i",
        }
    }


def test_the_id_of_a_query_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    node = {"unique_id": "model.a", "node_status": "success", "materialized": "table"}
    times = {"node_started_at": "2026-01-31T06:00:00", "node_finished_at": "2026-01-31T06:00:01"}
    relation = SimpleNamespace(relation_name="main.a")
    result = {"status": "success", "message": "OK", "execution_time": 0.0832929611, "thread": "T"}
    event = _event(name="NodeFinished")
    event.data = SimpleNamespace(
        node_info=SimpleNamespace(**node, **times, node_relation=relation),
        run_result=SimpleNamespace(
            **result, num_failures=0, adapter_response={"query_id": "01b2", "code": "SUCCESS"}
        ),
    )
    record = parse_event(_line(monkeypatch, event).encode())
    assert record is not None
    assert record.result == NodeResult(
        "model.a",
        "success",
        message="OK",
        execution_time=0.083293,
        started_at="2026-01-31T06:00:00Z",
        completed_at="2026-01-31T06:00:01Z",
        query_id="01b2",
        relation_name="main.a",
        thread="T",
    )


@pytest.mark.parametrize("name", sorted(JOURNALLED - {"NodeStart", "NodeFinished"}))
def test_what_the_journal_reads_stays_whole(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert _line(monkeypatch, _event(name=name)) == "whole"


@pytest.mark.parametrize(
    "event",
    [
        _event(name="AdapterEventDebug", msg="Snowflake query id: 01b2"),
        _event(name="SQLQuery", ts="now"),
        _event(name="SQLQuery", msg=b"bytes"),
        _event(name="NodeFinished"),
        SimpleNamespace(),
    ],
)
def test_what_it_does_not_understand_stays_whole(
    monkeypatch: pytest.MonkeyPatch, event: Any
) -> None:
    assert _line(monkeypatch, event) == "whole"


@pytest.mark.parametrize(
    "module",
    [
        None,
        SimpleNamespace(),
        SimpleNamespace(get_event_manager=lambda: None),
        SimpleNamespace(get_event_manager=lambda: SimpleNamespace(loggers=[object()])),
        SimpleNamespace(get_event_manager=lambda: SimpleNamespace(loggers=None)),
    ],
)
def test_another_dbt_inside_is_left_alone(monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
    monkeypatch.setenv(VARIABLE, "/spool/log/dbt.log")
    monkeypatch.setitem(sys.modules, EVENTS, module)
    assert dbt_plugin.shorten() == []
