"""The recovery of a run on every dbt that DBT_RECOVER_MATRIX names: it failed, was killed, was
interrupted, or ran without `exec`. Each retry happens in another checkout.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from projects import (
    LATE,
    MART,
    MART_ID,
    MATRIX,
    RELAY,
    SIDE,
    STG,
    TOP,
    Checkout,
    Running,
    dbt_of,
    relay_model,
    written,
)
from test_insist import lock

pytestmark = [pytest.mark.matrix, pytest.mark.slow]

# A branch whose model can fail, and one whose test can: stg -> side, stg -> late -> mart -> top.
FILES: Mapping[str, str] = {
    **{name: text for name, text in RELAY.items() if not name.startswith("seeds/")},
    "models/staging/stg.sql": relay_model("stg", "(values (1, 10), (2, 20)) as raw(id, v)"),
    "models/staging/late.sql": relay_model(
        "late", "{{ ref('stg') }}", columns="nullif(id, {{ env_var('WRONG', '0') }}) as id, v"
    ),
    "models/schema.yml": RELAY["models/schema.yml"].replace("name: stg", "name: late"),
}
LATE_ID = "test.relay.not_null_late_id.04813b8541"
NODES = frozenset({STG, LATE, LATE_ID, SIDE, MART, MART_ID, TOP})


@pytest.fixture(scope="session", params=MATRIX)
def version(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture
def here(version: str, tmp_path: Path) -> Checkout:
    made = written(tmp_path / "here", FILES)
    return made.having(DBT_RECOVER_ARCHIVE=tmp_path / "archive", **dbt_of(version))


CLEAN: dict[str, Any] = {}


def clean(here: Checkout, version: str) -> dict[str, Any]:
    """The rows of a clean build by the same dbt."""
    if version not in CLEAN:
        CLEAN[version] = rows(here.clean_build(here.home.with_name("clean")))
    return {**CLEAN[version]}


def rows(tables: Mapping[str, Any]) -> dict[str, Any]:
    """What is in the tables; v2 names some types otherwise."""
    return {name.rpartition(".")[2]: content for name, (_, content) in tables.items()}


def recover(here: Checkout, left: frozenset[str] | set[str], *flags: str) -> Checkout:
    laptop = here.elsewhere(here.home.with_name("laptop"))
    retried = laptop.recover("retry", "-o", "json", *flags)
    assert (retried.code, retried.json["outcome"]) == (0, "recovered"), retried
    assert sorted(uid for call in laptop.calls for uid in call.executed) == sorted(left)
    again = laptop.recover("retry", "-o", "json")
    assert (again.code, again.json["outcome"]) == (0, "already_complete"), again
    return laptop


def test_an_error_and_a_failed_test_within_a_selection(here: Checkout, version: str) -> None:
    select = ("--select", "stg+", "--exclude", "top")
    broken = here.having(FAIL="side", WRONG=1)
    ran = broken.recover("exec", "--", "dbt", "build", *select)
    assert (ran.code, here.calls[0].exit_code) == (1, 1), ran
    shown = here.recover("show", "-o", "json").json
    assert [n["unique_id"] for n in shown["failed"]] == [SIDE, LATE_ID]
    assert all(n["message"] for n in shown["failed"])
    laptop = recover(here, {SIDE, LATE, LATE_ID, MART, MART_ID})
    expected = clean(here, version)
    del expected["top"]
    assert rows(laptop.tables()) == expected


def _stop(here: Checkout, end: Callable[[Running], None], codes: tuple[int, ...]) -> set[str]:
    with here.having(HOLD="late").start("exec", "--", "dbt", "build") as running:
        running.holds(LATE)
        end(running)
        ran = running.end()
        assert ran.code in codes, ran
        done = running.succeeded()
    assert STG in done
    assert LATE not in done
    return done


def test_a_kill(here: Checkout, version: str) -> None:
    done = _stop(here, lambda running: running.signal_dbt(signal.SIGKILL), (137,))
    laptop = recover(here, NODES - done)
    assert rows(laptop.tables()) == clean(here, version)


@pytest.mark.skipif("v2" not in MATRIX, reason="DBT_RECOVER_MATRIX does not name v2")
def test_the_telemetry_file_of_v2_is_the_users_too(tmp_path: Path) -> None:
    made = written(tmp_path / "here", FILES)
    here = made.having(DBT_RECOVER_ARCHIVE=tmp_path / "archive", **dbt_of("v2"))
    ran = here.recover("exec", "--", "dbt", "build", "--otel-file-name", "mine.jsonl")
    assert ran.code == 0, ran
    assert LATE in (here.root / "logs/mine.jsonl").read_text()
    (run,) = here.recover("runs", "-o", "json").json["runs"]
    assert (run["status"], run["total"]) == ("success", len(NODES))


@pytest.mark.skipif("v2" not in MATRIX, reason="DBT_RECOVER_MATRIX does not name v2")
def test_dbt_v2_gives_up(tmp_path: Path) -> None:
    """It then records every node as an error that says nothing, built or not. Why is known all the
    same: the warehouse is locked, a hook fails, the project cannot be parsed."""
    here = written(tmp_path / "here", FILES).having(**dbt_of("v2"))
    (project := here.root / "dbt_project.yml").write_text(
        project.read_text()
        + "on-run-end: [\"insert into {{ env_var('AUDIT', 'stg') }} values (3, 30, 0)\"]\n"
    )
    words = ("exec", "--retry-transient", "3", "--backoff", "2", "--", "dbt", "build")
    with lock(here.database) as holder, here.start(*words) as running:
        running.until(lambda: "retry 1 of 3 in" in running.ran().err, "it says that it waits")
        shown = here.recover("show", "-o", "json").json
        assert shown["counts"] == {"never started": len(NODES)}
        assert shown["invocations"][0]["class"] == "transient"
        told = here.recover("notify").out
        assert "failed: dbt itself gave up (transient), 5 not built, of 7 nodes" in told
        assert "IO Error: Could not set lock on file" in told
        assert holder.stdin
        holder.stdin.close()
        ran = running.end()
    assert ran.code == 0, ran
    assert ": 7 of 8 nodes run again" in ran.err  # the eighth is the hook

    # A second run within the minute is one of its own, although v2's ids begin with the time.
    broken = here.having(AUDIT="nowhere")
    assert broken.recover("exec", "--", "dbt", "build").code == 1
    statuses = [r["status"] for r in here.recover("runs", "-o", "json").json["runs"]]
    assert statuses == ["failed", "recovered"]
    shown = here.recover("show", "-o", "json").json
    assert [(n["unique_id"].split(".")[0], n["class"]) for n in shown["failed"]] == [
        ("operation", "code")
    ]
    assert shown["counts"] == {"pass": 2, "success": 5, "error": 1}
    refused = here.recover("retry")
    assert refused.code == 12
    assert "on-run-end-0 failed" in refused.err

    (here.root / "models/marts/top.sql").write_text("select {{ nonsense( }}")
    ran = here.recover("exec", "--retry-transient", "1", "--", "dbt", "build")
    assert ran.code == 1
    assert "not retried: dbt itself failed with class code: " in ran.err


def test_an_interrupt(here: Checkout, version: str) -> None:
    """v1 ends with 2, v2 with 1 as if a node had failed."""
    codes = (1,) if version == "v2" else (2,)
    done = _stop(here, lambda running: running.signal_group(signal.SIGINT), codes)
    laptop = recover(here, NODES - done)
    assert rows(laptop.tables()) == clean(here, version)


def test_an_interrupt_that_reaches_dbt_alone(here: Checkout, version: str) -> None:
    """Somebody ran `kill -INT`: nobody told dbt-recover."""
    codes = (1,) if version == "v2" else (2,)
    done = _stop(here, lambda running: running.signal_dbt(signal.SIGINT), codes)
    assert set(here.plan()) >= {LATE, MART, MART_ID, TOP}
    laptop = recover(here, NODES - done)
    assert rows(laptop.tables()) == clean(here, version)


# v2's run_results.json says nothing of vars, target and selection.
_ALLOWED: Mapping[str, tuple[str, ...]] = {"v2": ("--allow-unknown-settings",)}


@pytest.mark.parametrize("fails", [False, True])
def test_a_run_without_exec_is_archived(fails: bool, here: Checkout, version: str) -> None:
    ran = here.having(FAIL="mart" if fails else "").dbt("build")
    assert ran.code == int(fails), ran
    archived = here.recover("archive")
    assert archived.code == 0, archived
    (run,) = here.recover("runs", "-o", "json").json["runs"]
    assert run["status"] == ("failed" if fails else "success")
    if fails:
        recover(here, {MART, MART_ID, TOP}, *_ALLOWED.get(version, ()))


def test_vars_and_a_selection_without_exec(here: Checkout, version: str) -> None:
    """A run of a part, archived afterwards, is a run of that part."""
    ran = here.having(FAIL="side").dbt("run", "--select", "stg", "side", "--vars", "{day: 7}")
    assert ran.code == 1, ran
    archived = here.recover("archive")
    assert archived.code == 0
    allowed = _ALLOWED.get(version, ())
    if allowed:
        assert "exec" in archived.err
        stopped = here.recover("retry")
        assert (stopped.code, len(here.calls)) == (12, 1), stopped
        assert "vars" in stopped.err
        allowed = (*allowed, "--vars", "{day: 7}")
    laptop = recover(here, {SIDE}, *allowed)
    assert "top" not in rows(laptop.tables())
    assert any("day" in word for word in laptop.calls[-1].argv)


def test_the_state_that_fetch_writes_is_taken_by_dbt(here: Checkout, version: str) -> None:
    """By every command that takes one, on another machine: the failed nodes and what hangs on
    them, or what was edited since."""
    assert here.having(FAIL="mart").recover("exec", "--", "dbt", "build").code == 1
    state = here.home.with_name("state")
    fetched = here.recover("fetch", "--to", state)
    assert fetched.code == 0, fetched
    ways = {
        "select": ("build", "--select", "result:error+", "--state", state),
        "retry": ("retry", "--state", state),
        "modified": ("build", "--select", "state:modified+", "--defer", "--state", state),
    }
    for way, words in ways.items():
        laptop = here.elsewhere(here.home.with_name(way))
        if way == "modified":
            edited = laptop.root / "models/staging/side.sql"
            edited.write_text(edited.read_text() + "-- edited\n")
        ran = laptop.dbt(*map(str, words))
        assert ran.code == 0, ran
        expected = {SIDE} if way == "modified" else {MART, MART_ID, TOP}
        assert set(laptop.calls[0].executed) == expected, way
