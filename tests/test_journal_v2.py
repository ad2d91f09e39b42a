"""The journal on what dbt v2 really wrote: see fixtures/events/README.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dbt_recover.diagnose import diagnose
from dbt_recover.evidence import merge_results
from dbt_recover.journal import Journal, Record, fold
from dbt_recover.journal_v2 import parse_span
from dbt_recover.model import NodeResult

EVENTS = Path(__file__).parent / "fixtures" / "events"
FIRST, READER, LAST = (f"model.locked.{n}" for n in ("first", "reader", "last"))
HOOK = "operation.locked.locked-on-run-end-0"


def records(name: str) -> list[Record]:
    lines = (EVENTS / f"{name}.jsonl").read_bytes().splitlines()
    return [r for ln in lines if (r := parse_span(ln, "/srv/analytics")) is not None]


def statuses(journal: Journal) -> dict[str, str]:
    return {uid: r.status for uid, r in journal.results.items()}


def test_a_failure_has_its_words_although_dbt_is_killed_after_it() -> None:
    found = records("v2_one_failure")
    at = next(n for n, r in enumerate(found) if r.event == "finish" and r.node == READER)
    journal = fold(found[: at + 1])
    assert statuses(journal) == {FIRST: "success", READER: "error"}
    assert (journal.ended, journal.error) == (False, "")
    said = diagnose(journal.results[READER])
    assert said.error_class == "code"
    assert said.summary == 'Binder Error: Referenced column "nope" not found in FROM clause!'
    assert "unknown" not in journal.results[READER].message
    assert "pthread" not in journal.results[READER].message


@pytest.mark.parametrize("name", ["v2_one_failure", "v2_failed_hook"])
def test_neither_order_nor_repetition_matters(name: str) -> None:
    found = records(name)
    ident = found[0].invocation_id
    assert fold(found[::-1] + found, ident) == fold(found, ident)


@pytest.mark.parametrize("name", ["v2_one_failure", "v2_failed_hook"])
def test_a_line_cut_anywhere_raises_nothing(name: str) -> None:
    for line in (EVENTS / f"{name}.jsonl").read_bytes().splitlines():
        assert parse_span(line[: len(line) // 2], "") is None


def test_what_dbt_built_before_a_hook_failed_is_built() -> None:
    """dbt v2 then records every node as failed, with a word for all."""
    journal = fold(records("v2_failed_hook"))
    recorded = {
        uid: NodeResult(uid, "error", "Compilation Error") for uid in (FIRST, READER, LAST, "x.y.z")
    }
    merged = merge_results(recorded, journal)
    assert {uid: r.status for uid, r in merged.items()} == {
        **dict.fromkeys((FIRST, READER, LAST), "success"),
        HOOK: "error",
    }
    said = diagnose(merged[HOOK], "duckdb")
    assert (said.error_class, said.summary) == (
        "code",
        "Catalog Error: Table with name nowhere does not exist!",
    )
    assert merged[HOOK].message.splitlines()[-1] == 'Did you mean "pg_indexes"?'
    assert journal.error == ""


_DRIVER = {"code": 1308, "code_name": "DbDriverFailed"}
_WHERE = "Failed to create schema 'main' in database 'w' in remote for model.l.r: "
_BACKTRACE = "\n   0: <unknown>\n   1: start_thread\n"


@pytest.mark.parametrize(
    "body, attributes, expected",
    [
        (
            _WHERE + 'IO Error: Could not set lock on file "/w": Conflicting lock' + _BACKTRACE,
            _DRIVER,
            ("transient", 'IO Error: Could not set lock on file "/w": Conflicting lock'),
        ),
        (
            _WHERE + "[Snowflake] 390100 (08004): Incorrect username or password was specified.",
            _DRIVER,
            ("permission", "390100 (08004): Incorrect username or password was specified."),
        ),
        (
            "Ref 'nope' not found in project.\n  --> models/reader.sql:1:15" + _BACKTRACE,
            {"code": 1048, "code_name": "DependencyNotFound", "code_line": 1},
            ("code", "Ref 'nope' not found in project."),
        ),
    ],
)
def test_why_dbt_itself_gave_up(
    body: str, attributes: dict[str, Any], expected: tuple[str, str]
) -> None:
    record = parse_span(log(body, attributes), "")
    assert record
    assert record.event == "error"
    said = diagnose(NodeResult("", "error", fold([record]).error))
    assert (said.error_class, said.summary) == expected


def test_an_error_keeps_no_secret() -> None:
    record = parse_span(log("no such token: geheim", _DRIVER), "", ["geheim"])
    assert record
    assert record.message == "no such token: *****"


def log(body: str, attributes: dict[str, Any]) -> bytes:
    """An error as dbt v2 logs it."""
    made = {
        "record_type": "LogRecord",
        "trace_id": "01a2065c0af57a319ced006607aa0220",
        "time_unix_nano": "1795402998000000000",
        "severity_text": "ERROR",
        "event_type": "v1.public.events.fusion.log.LogMessage",
        "body": body,
        "attributes": attributes,
    }
    return json.dumps(made, separators=(",", ":")).encode()
