"""Microbatch models: only the batches that failed or are missing run again, whatever ended the run.

Each row says which dbt invocation wrote it, so that the table itself tells which batches ran again.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from projects import MATRIX, RELAY, Checkout, Table, dbt_of, written

pytestmark = pytest.mark.slow

DAYS = [f"2026-01-0{n}" for n in range(1, 6)]
MICROBATCH: Mapping[str, str] = {
    **{k: RELAY[k] for k in ("dbt_project.yml", "profiles.yml", "macros/hold.sql")},
    "models/source_rows.sql": "{{ config(event_time='ts') }}\n"
    "select i as id, timestamp '2026-01-01 06:00:00' + interval (i // 2) day as ts"
    " from range(10) as r(i)\n",
    "models/daily.sql": """\
{{ config(materialized='incremental', incremental_strategy='microbatch', event_time='ts',
          batch_size='day', begin='2026-01-01', lookback=0, concurrent_batches=false) }}
{% set batch = model.batch.id if model.batch else '' %}
select id, ts, {{ hold(batch) }} + {{ fail(batch) }} as zero, '{{ invocation_id }}' as written_by
from {{ ref('source_rows') }}
""",
    "models/report.sql": "select count(*) as n, min(zero) as zero from {{ ref('daily') }}\n",
}
DAILY, REPORT = "model.relay.daily", "model.relay.report"
COMMAND = ("build", "--event-time-start", "2026-01-01", "--event-time-end", "2026-01-06")
EXEC = ("exec", "--", "dbt", *COMMAND)


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    made = written(tmp_path_factory.mktemp("clean-batches") / "here", MICROBATCH)
    assert made.dbt(*COMMAND).code == 0
    return comparable(made.tables())


@pytest.fixture
def here(tmp_path: Path) -> Checkout:
    return written(tmp_path / "here", MICROBATCH).having(DBT_RECOVER_ARCHIVE=tmp_path / "archive")


def comparable(tables: Mapping[str, Table]) -> dict[str, Any]:
    """Without who wrote a row."""
    return {
        name: sorted(row.rpartition(", '")[0] if name.endswith(".daily") else row for row in rows)
        for name, (_, rows) in tables.items()
    }


def writers(checkout: Checkout) -> dict[str, tuple[str, int]]:
    """Day -> which invocation wrote it (by order of first writing), and how many rows it has."""
    rows = checkout.sql(
        "select strftime(ts, '%Y-%m-%d'), min(written_by), max(written_by), count(*)"
        " from daily group by 1 order by 1"
    )
    assert all(first == last for _, first, last, _ in rows)
    known = list(dict.fromkeys(by for _, by, _, _ in rows))
    return {day: (f"invocation {known.index(by)}", count) for day, by, _, count in rows}


def wrote(first: list[str], *others: list[str]) -> dict[str, tuple[str, int]]:
    days = [first, *others]
    return {d: (f"invocation {n}", 2) for n, group in enumerate(days) for d in group}


def planned_batches(checkout: Checkout) -> list[str]:
    """Days of the batches that `plan` means to run; the model is the only one with batches."""
    nodes = {n["unique_id"]: n for n in checkout.recover("plan", "-o", "json").json["nodes"]}
    assert set(nodes) == {DAILY, REPORT}
    assert nodes[DAILY]["action"] == "run_batches"
    return [start[:10] for start, _ in nodes[DAILY]["batches"]]


def elsewhere(here: Checkout, name: str) -> Checkout:
    return here.elsewhere(here.home.with_name(name))


def killed_in(batch: str, checkout: Checkout, *words: str) -> None:
    """Run until this batch is at work; then dbt is killed."""
    with checkout.having(HOLD=batch).start(*words) as running:
        running.holds_batch(batch)
        running.signal_dbt(signal.SIGKILL)
        assert running.end().code in (1, 137)


def test_only_the_failed_batch_runs_again(here: Checkout, clean: dict[str, Any]) -> None:
    assert here.having(FAIL="20260103").recover(*EXEC).code == 1
    assert here.run_results()[DAILY] == "partial success"
    assert list(writers(here)) == [DAYS[0], DAYS[1], DAYS[3], DAYS[4]]
    laptop = elsewhere(here, "laptop")
    assert planned_batches(laptop) == [DAYS[2]]
    retried = laptop.recover("retry", "-o", "json")
    assert (retried.code, retried.json["outcome"]) == (0, "recovered"), retried
    assert sorted(retried.json["executed"]) == [DAILY, REPORT]
    assert writers(laptop) == dict(
        sorted(wrote([DAYS[0], DAYS[1], DAYS[3], DAYS[4]], [DAYS[2]]).items())
    )
    assert comparable(laptop.tables()) == clean
    again = laptop.recover("retry", "-o", "json")
    assert (again.code, again.json["outcome"]) == (0, "already_complete")


# dbt-duckdb has no microbatch strategy before 1.10, and dbt v2 records no batches.
@pytest.mark.matrix
@pytest.mark.parametrize("version", [v for v in MATRIX if v in ("1.10", "1.12")] + ["1.11"])
def test_a_kill_between_batches_is_no_success(
    version: str, here: Checkout, clean: dict[str, Any]
) -> None:
    """Twice: the retry is killed, too. Each attempt goes on where the one before was stopped."""
    here = here.having(**dbt_of(version))
    killed_in("20260103", here, *EXEC)
    shown = here.recover("show", "-o", "json").json
    assert shown["counts"].get("success") == 1, "that is source_rows"
    laptop = elsewhere(here, "laptop")
    assert planned_batches(laptop) == DAYS[2:]

    killed_in("20260104", laptop, "retry")
    third = elsewhere(here, "third")
    assert planned_batches(third) == DAYS[3:]
    retried = third.recover("retry", "-o", "json")
    assert (retried.code, retried.json["outcome"]) == (0, "recovered"), retried
    assert writers(third) == wrote(DAYS[:2], DAYS[2:3], DAYS[3:])
    assert comparable(third.tables()) == clean


@pytest.mark.matrix
@pytest.mark.skipif("v2" not in MATRIX, reason="DBT_RECOVER_MATRIX does not name v2")
def test_dbt_v2_says_nothing_of_batches(here: Checkout, clean: dict[str, Any]) -> None:
    """So the whole model runs again, once a batch failed: never less than what is missing."""
    here = here.having(**dbt_of("v2"))
    failed = here.having(FAIL="20260103").recover(*EXEC)
    assert failed.code == 1, failed
    laptop = elsewhere(here, "laptop")
    nodes = {n["unique_id"]: n for n in laptop.recover("plan", "-o", "json").json["nodes"]}
    assert {uid: n["action"] for uid, n in nodes.items()} == {DAILY: "run", REPORT: "run"}
    retried = laptop.recover("retry", "-o", "json")
    assert (retried.code, retried.json["outcome"]) == (0, "recovered"), retried
    assert comparable(laptop.tables()) == clean


def test_an_interrupt_in_a_batch(here: Checkout, clean: dict[str, Any]) -> None:
    with here.having(HOLD="20260102").start(*EXEC) as running:
        running.holds_batch("20260102")
        running.signal_group(signal.SIGTERM)
        running.end()
    laptop = elsewhere(here, "laptop")
    assert planned_batches(laptop) == DAYS[1:]
    assert laptop.recover("retry").code == 0
    assert writers(laptop) == wrote(DAYS[:1], DAYS[1:])
    assert comparable(laptop.tables()) == clean


def test_a_kill_in_the_first_batch(here: Checkout, clean: dict[str, Any]) -> None:
    """Nothing of the model is done: all of it runs again."""
    killed_in("20260101", here, *EXEC)
    laptop = elsewhere(here, "laptop")
    nodes = {n["unique_id"]: n for n in laptop.recover("plan", "-o", "json").json["nodes"]}
    assert (nodes[DAILY]["action"], nodes[DAILY]["cause"]) == ("run", "in_flight")
    retried = laptop.recover("retry")
    assert retried.code == 0, retried
    assert "--event-time-end" in laptop.calls[0].argv, "batches of today are none of this run's"
    assert writers(laptop) == wrote(DAYS)
    assert comparable(laptop.tables()) == clean


def test_a_retry_of_batches_that_fails_again(here: Checkout, clean: dict[str, Any]) -> None:
    """Two failed; one is mended first, then the other."""
    assert here.having(FAIL="20260102,20260104").recover(*EXEC).code == 1
    second = elsewhere(here, "second").having(FAIL="20260104")
    failing = second.recover("retry", "-o", "json")
    assert (failing.code, failing.json["outcome"]) == (1, "failing"), failing
    third = elsewhere(here, "third")
    assert planned_batches(third) == [DAYS[3]]
    assert third.recover("retry").code == 0
    assert writers(third)[DAYS[0]] == ("invocation 0", 2)
    assert len({by for by, _ in writers(third).values()}) == 3
    assert comparable(third.tables()) == clean
