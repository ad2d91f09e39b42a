"""Retrying what time can mend, with a bound: a real lock on a DuckDB file that a model attaches."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from dbt_recover.carry_out import NothingRan, Retried
from dbt_recover.diagnose import Diagnosis, Evidence
from dbt_recover.errors import EXIT_STILL_FAILING, UsageError
from dbt_recover.insist import LONGEST_PAUSE, Patience, in_the_way, insist
from dbt_recover.load import LoadedRun
from dbt_recover.model import Invocation, NodeResult, NodeState, RunInfo, RunState
from dbt_recover.plan import Plan
from projects import RELAY, Checkout, written

slow = pytest.mark.slow

FILES = {
    "dbt_project.yml": "name: locked\nversion: '1.0'\nprofile: relay\n"
    "models: {locked: {+materialized: table}}\n",
    "profiles.yml": RELAY["profiles.yml"],
    "models/first.sql": "select 1 as id",
    "models/reader.sql": "{{ config(pre_hook=\"attach if not exists '{{ env_var('OTHER') }}' as "
    "other (read_only)\") }}\nselect rows.id from other.main.rows, {{ ref('first') }} as f\n",
    "models/last.sql": "select id, {{ env_var('COLUMN', 'id') }} as x from {{ ref('reader') }}\n",
}
FIRST, READER, LAST = (f"model.locked.{n}" for n in ("first", "reader", "last"))

_HOLDER = """
import duckdb, sys
con = duckdb.connect(sys.argv[1])
con.execute("create or replace table rows as select 7 as id")
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def lock(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that has the file; it lets go when its stdin is closed."""
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdin
    assert holder.stdout
    try:
        assert holder.stdout.readline() == b"held\n"
        yield holder
    finally:
        holder.stdin.close()
        holder.wait(30)
        holder.stdout.close()


def project(home: Path) -> Checkout:
    return written(home, FILES).having(OTHER=home / "other.duckdb")


def show(here: Checkout) -> dict[str, object]:
    found: dict[str, object] = here.recover("show", "-o", "json").json
    return found


@pytest.mark.parametrize("chance, factor", [(0.0, 0.5), (0.5, 1.0), (1.0, 1.5)])
def test_pauses_double_up_to_a_bound_with_chance(chance: float, factor: float) -> None:
    patience = Patience(backoff=10)
    pauses = [patience.pause(n, lambda: chance) for n in (1, 2, 3, 400)]
    assert pauses == [10 * factor, 20 * factor, 40 * factor, LONGEST_PAUSE * factor]


@slow
def test_exec_retries_a_lock_and_stops_at_another_class(tmp_path: Path) -> None:
    here = project(tmp_path / "here").having(COLUMN="nonsense")
    with lock(tmp_path / "here" / "other.duckdb") as holder:
        command = ("exec", "--retry-transient", "3", "--backoff", "4", "--", "dbt", "build")
        with here.start(*command) as running:
            running.until(lambda: "retry 1 of 3 in" in running.ran().err, "it says that it waits")
            assert holder.stdin
            holder.stdin.close()
            holder.wait(30)
            ran = running.end()
    assert ran.code == 1, ran
    # The lock was gone, and the next model has a column that is not there: no third attempt.
    assert f"not retried: {LAST} failed with class code" in ran.err
    assert "mend the code" in ran.err
    shown = here.recover("show", "-o", "json").json
    assert [i["attempt"] for i in shown["invocations"]] == [1, 2]
    assert [(n["unique_id"], n["class"]) for n in shown["failed"]] == [(LAST, "code")]
    assert shown["counts"]["success"] == 2

    # Its attempts are no steps, after which others might have to come.
    assert "steps" not in here.recover("plan").out

    # exec's own kind of ending, and one who waits for it in vain.
    again = here.recover("exec", "--retry-transient", "2", "--", "dbt", "build")
    assert again.code == 1
    assert len(here.calls) == 1, "dbt was started once, by this exec"

    mended = here.having(COLUMN="id")
    assert mended.recover("retry", "--on", "code", "--attempts", "1").code == 0
    assert mended.calls[-1].executed == [LAST]


@slow
def test_retry_on_transient_is_bounded_and_recovers(tmp_path: Path) -> None:
    here = project(tmp_path / "here")
    with lock(tmp_path / "here" / "other.duckdb"):
        assert here.recover("exec", "--", "dbt", "build").code == 1
        (failed,) = here.recover("show", "-o", "json").json["failed"]
        assert failed["class"] == "transient"
        assert "Could not set lock on file" in failed["evidence"]["matched"]
        planned = here.recover("plan", "-o", "json").json["nodes"]
        assert [(n["unique_id"], n["class"]) for n in planned] == [
            (READER, "transient"),
            (LAST, None),
        ]

        ran = here.recover(
            "retry", "--on", "transient", "--attempts", "2", "--backoff", "0.1", "-o", "json"
        )
        assert ran.code == EXIT_STILL_FAILING, ran
        assert (ran.json["outcome"], ran.json["attempt"]) == ("failing", 3)
        assert ran.json["executed"] == [READER]
        assert ran.json["still_failing"][0]["class"] == "transient"
        assert "still failing after 2 of 2 retries" in ran.err

        # Waiting is no work to be interrupted: it just ends.
        with here.start("retry", "--on", "transient", "--backoff", "600") as running:
            running.until(lambda: "retry 2 of 3 in" in running.ran().err, "it waits")
            # Not SIGINT, which a shell lets its background jobs ignore.
            running.signal(signal.SIGTERM)
            assert running.end().code == -signal.SIGTERM

    calls = len(here.calls)
    refused = here.recover("retry", "--on", "code")
    assert refused.code == EXIT_STILL_FAILING
    assert f"not retried: {READER} failed with class transient" in refused.err
    assert len(here.calls) == calls, "dbt was not started"

    ran = here.recover("retry", "--on", "transient")
    assert ran.code == 0, ran
    assert "recovered by attempt 5" in ran.out
    assert here.calls[-1].executed == [LAST, READER]
    assert here.recover("retry", "--on", "transient").code == 0


def test_how_often_without_what_is_no_sense(tmp_path: Path) -> None:
    ran = project(tmp_path / "here").recover("retry", "--attempts", "2")
    assert ran.code == UsageError.exit_code
    assert "--on transient" in ran.err


@slow
def test_a_dbt_that_cannot_connect_at_all(tmp_path: Path) -> None:
    """The warehouse itself is locked: dbt ends before its first node."""
    here = project(tmp_path / "here").having(COLUMN="nonsense")
    (here.root / "models" / "reader.sql").write_text("select id from {{ ref('first') }}")
    with lock(here.database) as holder:
        assert here.recover("exec", "--", "dbt", "build").code == 2
        shown = here.recover("show", "-o", "json").json
        assert shown["counts"] == {"never started": 3}
        assert [(i["exit_code"], i["class"]) for i in shown["invocations"]] == [(2, "transient")]
        assert "Could not set lock on file" in shown["invocations"][0]["error"]
        assert "dbt itself gave up (transient): IO Error" in here.recover("show").out
        told = here.recover("notify").out
        assert "failed: dbt itself gave up (transient), 3 not built" in told

        refused = here.recover("retry", "--on", "code")
        assert refused.code == EXIT_STILL_FAILING
        assert "not retried: dbt itself failed with class transient" in refused.err
        assert len(here.calls) == 1, "dbt was not started"

        command = ("retry", "--on", "transient", "--attempts", "2", "--backoff", "4", "-o", "json")
        with here.start(*command) as running:
            running.until(lambda: "retry 2 of 2 in" in running.ran().err, "it says that it waits")
            assert holder.stdin
            holder.stdin.close()
            holder.wait(30)
            ran = running.end()
    # It connects now, and a column is not there.
    assert (ran.code, ran.json["attempt"]) == (EXIT_STILL_FAILING, 3), ran
    assert f"not retried: {LAST} failed with class code" in ran.err
    assert sorted(ran.json["executed"]) == sorted([FIRST, READER, LAST])

    # Nor is what dbt cannot even parse tried again.
    (here.root / "models" / "first.sql").write_text("select {{ nonsense( }}")
    ran = here.recover("exec", "--retry-transient", "2", "--", "dbt", "build")
    assert ran.code == 2
    assert "not retried: dbt itself failed with class code: " in ran.err
    assert "mend the code" in ran.err
    assert len(here.calls) == 2, "one more, by this exec"


def test_a_dbt_that_never_runs_a_node_is_bounded_too() -> None:
    causes = [Diagnosis("", "transient", "connection refused", Evidence())] * 3
    run = SimpleNamespace(
        state=RunState(RunInfo("r", ""), [], {}), place=SimpleNamespace(run_id="r")
    )
    said: list[str] = []
    waited: list[float] = []

    def once(*_: object) -> Retried:
        raise NothingRan("dbt ended", hint="", code=2, cause=causes.pop())

    def tried(attempts: int) -> None:
        with pytest.raises(NothingRan) as raised:
            insist(
                lambda: cast("tuple[LoadedRun, Plan]", (run, Plan(()))),
                once,
                Patience(attempts=attempts, backoff=10),
                said.append,
                waited.append,
            )
        assert raised.value.code == 2

    tried(2)
    assert len(waited) == 1
    assert said[-1].endswith("still failing after 2 of 2 retries: dbt itself: connection refused")
    causes[:] = [Diagnosis("", "permission", "no password", Evidence())]
    tried(2)
    assert (len(waited), causes) == (1, [])
    assert "not retried: dbt itself failed with class permission: no password" in said[-1]


def test_a_failed_hook_would_fail_again() -> None:
    """It is in no plan, and runs with any command."""
    run = RunInfo("r", "")
    states = {
        "model.p.m": NodeState(NodeResult("model.p.m", "error", "deadlock detected"), 1, "i", 0),
        "operation.p.h": NodeState(
            NodeResult("operation.p.h", "error", "permission denied for table t"), 1, "i", 0
        ),
    }
    state = RunState(run, [Invocation("i", run, adapter_type="postgres")], states)
    (cause,) = in_the_way(state, ["model.p.m"], frozenset({"transient"}))
    assert (cause.unique_id, cause.error_class) == ("operation.p.h", "permission")


@pytest.mark.parametrize("status, stops", [("error", True), ("never started", False)])
def test_what_says_nothing(status: str, stops: bool) -> None:
    """A failure without a word is unknown, and never retried by itself; what a kill left undone is
    no failure."""
    run = RunInfo("r", "")
    states = {"model.p.m": NodeState(NodeResult("model.p.m", status), 1, "i", 0)}
    state = RunState(run, [Invocation("i", run, adapter_type="snowflake")], states)
    found = in_the_way(state, ["model.p.m"], frozenset({"transient"}))
    assert [(c.error_class, c.summary) for c in found] == ([("unknown", "error")] if stops else [])
