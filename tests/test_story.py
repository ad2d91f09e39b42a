"""What people do with a failed run, from the first look to the last retry, on real dbt: on another
machine, in several steps, with another target, with the fix half done.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from conftest import Bucket
from dbt_recover.errors import EXIT_STILL_FAILING, DbtError, RefusedError
from projects import Checkout, checkout, demo, failed, listing, with_status, without

slow = pytest.mark.slow

DAILY = "model.two_independent_failures.orders_daily"
ORDERS = "model.two_independent_failures.orders_report"
STG_TICKETS = "model.two_independent_failures.stg_tickets"
TICKETS = "model.two_independent_failures.tickets_report"
UNIQUE_TICKETS = "test.two_independent_failures.unique_stg_tickets_ticket_id.8a1a5dfba4"
TOTALS = "model.model_error.order_totals"
TOP = "model.model_error.top_customers"
UNIQUE_TOTALS = "test.model_error.unique_order_totals_customer.d3493fbb01"


# Shared by the tests that begin with a failure of these: each works on a copy.


@pytest.fixture(scope="module")
def model_error_once(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    return failed("model_error", tmp_path_factory.mktemp("model_error") / "here")


@pytest.fixture
def model_error(model_error_once: Checkout, tmp_path: Path) -> Checkout:
    """A model has failed; its test and a model below it were skipped."""
    return model_error_once.copied(tmp_path / "here")


@pytest.fixture(scope="module")
def two_failures_once(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    return failed("two_independent_failures", tmp_path_factory.mktemp("two") / "here")


@pytest.fixture
def two_failures(two_failures_once: Checkout, tmp_path: Path) -> Checkout:
    """A model has failed in one branch, a test in another."""
    return two_failures_once.copied(tmp_path / "here")


@slow
@pytest.mark.parametrize("kind", ["directory", "s3"])
def test_a_night_and_a_morning(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """The demo's story. The retry happens where nothing is known but the project and the URL."""
    if kind == "s3":
        bucket: Bucket = request.getfixturevalue("s3_bucket")
        worker = demo(tmp_path / "worker").having(
            **bucket.environment, DBT_RECOVER_ARCHIVE=bucket.url
        )
    else:
        worker = demo(tmp_path / "worker").having(DBT_RECOVER_ARCHIVE=tmp_path / "kept" / "runs")

    night = worker.recover("exec", "--", "dbt", "build")
    assert night.code == 1
    assert "next: dbt-recover plan" in night.err

    laptop = worker.elsewhere(tmp_path / "laptop")
    (run,) = laptop.recover("runs", "-o", "json").json["runs"]
    assert (run["status"], run["attempts"], run["commands"]) == ("failed", 1, "build")
    assert run["run_id"] in night.err
    shown = laptop.recover("show").out
    assert "model stg_contracts: error" in shown
    assert 'Could not convert string "2,388.00" to DECIMAL' in shown
    assert "test unique_stg_accounts_account_id: fail" in shown
    assert "Got 1 result, configured to fail if != 0" in shown

    laptop.mend()
    planned = laptop.recover("plan", "-o", "json").json
    reasons = {node["unique_id"]: node["reason"] for node in planned["nodes"]}
    assert not any(warning["stops"] for warning in planned["warnings"])
    assert "edited since the run" in reasons["seed.b2b_analytics.raw_crm_accounts"]
    assert reasons["model.b2b_analytics.stg_contracts"] == "error here"
    assert "snapshot.b2b_analytics.accounts_snapshot" in reasons
    untouched = ("raw_product_events", "raw_invoices", "fct_daily_usage", "product_adoption")
    assert not [uid for uid in reasons if uid.split(".")[2] in untouched]
    assert not (laptop.root / "target").exists()
    assert laptop.calls == []

    morning = laptop.recover("retry")
    assert morning.code == 0, morning
    assert f"run {run['run_id']} recovered by attempt 2" in morning.out
    assert [uid for call in laptop.calls for uid in call.executed] == sorted(reasons)
    assert laptop.tables() == laptop.clean_build(tmp_path / "clean")

    # The worker learns of it from the archive.
    (run,) = worker.recover("runs", "-o", "json").json["runs"]
    assert (run["status"], run["attempts"]) == ("recovered", 2)
    again = worker.recover("retry")
    assert again.code == 0
    assert "already complete" in again.out
    assert len(worker.calls) == 1
    if kind == "directory":
        assert not (laptop.root / ".dbt-recover" / "archive.json").exists()


@slow
def test_the_demo_command_tells_the_story(tmp_path: Path) -> None:
    here = demo(tmp_path / "here")
    told = here.recover("demo", "--keep", tmp_path / "room")
    assert told.code == 0, told
    assert "recovered by attempt 2" in told.out
    assert "already complete" in told.out
    assert re.search(r"\d+ tables and views, row by row: equal to the clean build", told.out)


@slow
def test_retry_with_half_of_the_fix_and_again(two_failures: Checkout, tmp_path: Path) -> None:
    here = two_failures
    here.mend("models/orders_daily.sql")
    first = here.recover("retry", "-o", "json")
    assert first.code == EXIT_STILL_FAILING
    assert (first.json["outcome"], first.json["attempt"]) == ("failing", 2)
    assert here.calls[-1].executed == sorted(first.json["executed"])
    assert here.calls[-1].executed == [DAILY, ORDERS, STG_TICKETS, UNIQUE_TICKETS]
    (left,) = first.json["still_failing"]
    assert (left["unique_id"], left["status"]) == (UNIQUE_TICKETS, "fail")
    assert "Got 1 result, configured to fail if != 0" in left["message"]

    # Nothing was mended since; what is whole by now is left alone.
    second = here.recover("retry")
    assert second.code == EXIT_STILL_FAILING
    assert "unique_stg_tickets_ticket_id" in second.out
    assert here.calls[-1].executed == [STG_TICKETS, UNIQUE_TICKETS]

    here.mend()
    third = here.recover("retry", "-o", "json")
    assert (third.code, third.json["outcome"], third.json["attempt"]) == (0, "recovered", 4)
    assert here.calls[-1].executed == [STG_TICKETS, TICKETS, UNIQUE_TICKETS]
    assert here.tables() == here.clean_build(tmp_path / "clean")
    assert len(here.recover("show", "-o", "json").json["invocations"]) == 4


@slow
@pytest.mark.parametrize("strategy, command", [("select", "build"), ("retry", "retry")])
def test_strategies_run_the_same_nodes(
    strategy: str, command: str, model_error: Checkout, tmp_path: Path
) -> None:
    model_error.mend()
    ran = model_error.recover("retry", "--strategy", strategy, "-o", "json")
    assert (ran.code, ran.json["outcome"]) == (0, "recovered"), ran
    assert model_error.calls[-1].argv[0] == command
    assert model_error.calls[-1].executed == sorted(ran.json["executed"])
    assert model_error.calls[-1].executed == model_error.expect.retry
    assert model_error.tables() == model_error.clean_build(tmp_path / "clean")


_TWO_SCHEMAS = """
fixture:
  target: dev
  outputs:
    dev: {type: duckdb, path: "{{ env_var('FIXTURE_DB') }}", schema: development}
    prod: {type: duckdb, path: "{{ env_var('FIXTURE_DB') }}", schema: production}
"""


@slow
def test_defer_builds_in_another_target_on_top_of_the_runs_own(tmp_path: Path) -> None:
    here = checkout("model_error", tmp_path / "here")
    (here.root / "profiles.yml").write_text(_TWO_SCHEMAS)
    assert here.recover("exec", "--", "dbt", "build").code == 1
    before = here.tables()

    # In another checkout: the state it defers to comes from the archive.
    other = here.elsewhere(tmp_path / "other").having(
        DBT_RECOVER_ARCHIVE=here.root / ".dbt-recover"
    )
    other.mend()
    ran = other.recover("retry", "--strategy", "defer", "--target", "prod", "-o", "json")
    assert ran.code == 0, ran
    (call,) = other.calls
    assert call.executed == sorted(ran.json["executed"]) == here.expect.retry
    after = here.tables()
    built = without(after, *before)
    assert built == ["warehouse.production.order_totals", "warehouse.production.top_customers"]
    assert {name: after[name] for name in before} == before
    clean = other.clean_build(tmp_path / "clean")
    for name in built:
        assert after[name] == clean[name.replace("production", "development")]

    # dev, for which the run was made, still lacks what failed: its run is not whole.
    assert other.recover("runs", "-o", "json").json["runs"][0]["status"] == "failed"
    assert other.plan() == here.expect.retry


@slow
def test_favor_state_reads_the_runs_relations_though_the_target_has_its_own(
    tmp_path: Path,
) -> None:
    here = checkout("model_error", tmp_path / "here")
    (here.root / "profiles.yml").write_text(_TWO_SCHEMAS)
    assert here.recover("exec", "--", "dbt", "build").code == 1
    here.sql("create schema production")
    here.sql("create table production.stg_orders as select 1 order_id, 'old' customer, 9 amount")
    here.mend()

    def totals(*words: str) -> object:
        ran = here.recover("retry", "--strategy", "defer", "--target", "prod", *words)
        assert ran.code == 0, ran
        return here.tables()["warehouse.production.order_totals"]

    # dbt's own rule: what the target has comes first.
    assert "old" in str(totals())
    clean = here.clean_build(tmp_path / "clean")
    assert totals("--favor-state") == clean["warehouse.development.order_totals"]

    alone = here.recover("retry", "--favor-state")
    assert (alone.code, "--strategy defer" in alone.err) == (2, True)


def test_dry_run_shows_the_plan_and_touches_nothing(model_error: Checkout) -> None:
    before = listing(model_error.home)
    shown = model_error.recover("retry", "--dry-run", "-o", "json")
    assert shown.code == 0
    assert sorted(n["unique_id"] for n in shown.json["nodes"]) == model_error.expect.retry
    assert shown.out == model_error.recover("plan", "-o", "json").out
    assert model_error.recover("retry", "--dry-run").out == model_error.recover("plan").out
    assert listing(model_error.home) == before


@pytest.fixture(scope="module")
def daily_once(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    here = checkout("vars_and_target", tmp_path_factory.mktemp("daily") / "here")
    variables = json.dumps({"run_date": "2026-01-15", "region": "eu"})
    flags = ("--vars", variables, "--target", "prod", "--threads", "3")
    assert here.recover("exec", "--", "dbt", "build", *flags).code == 1
    return here


@pytest.fixture
def daily(daily_once: Checkout, tmp_path: Path) -> Checkout:
    """Failed in target prod, with vars and threads that are not the defaults; mended since."""
    here = daily_once.copied(tmp_path / "here")
    here.mend()
    return here


@slow
def test_vars_target_and_threads_are_restored_elsewhere(daily: Checkout, tmp_path: Path) -> None:
    other = daily.elsewhere(tmp_path / "other").having(
        DBT_RECOVER_ARCHIVE=daily.root / ".dbt-recover"
    )
    ran = other.recover("retry", "-o", "json")
    assert (ran.code, ran.json["outcome"]) == (0, "recovered"), ran
    args = other.args()
    assert args["vars"] == {"run_date": "2026-01-15", "region": "eu"}
    assert (args["target"], args["threads"]) == ("prod", 3)
    assert daily.tables() == daily.clean_build(tmp_path / "clean")


@slow
def test_vars_and_threads_are_overridden_one_by_one(daily: Checkout) -> None:
    flags = ("--vars", "run_date: 2026-01-16x", "--threads", "1")
    assert daily.recover("retry", *flags).code == 0
    args = daily.args()
    assert args["vars"] == {"run_date": "2026-01-16x", "region": "eu"}
    assert (args["target"], args["threads"]) == ("prod", 1)
    _, rows = daily.tables()["warehouse_prod.main.usage_report"]
    assert list(rows) == ["('2026-01-16x', '2026-01-16x', 'prod', 3)"]


@slow
def test_another_target_is_refused_until_allowed(daily: Checkout) -> None:
    # One that is not there: dbt ends before it runs a node, and the run's own target stays.
    mistyped = daily.recover("retry", "--target", "nosuch", "--allow-other-target")
    assert mistyped.code == DbtError.exit_code, mistyped
    before = listing(daily.home)
    refused = daily.recover("retry", "--target", "dev", "-o", "json")
    assert refused.code == RefusedError.exit_code
    assert refused.json["outcome"] == "refused"
    assert "target prod" in refused.err
    assert "--allow-other-target" in refused.err
    assert listing(daily.home) == before

    assert daily.dbt("build", "--select", "daily_events", "--target", "dev").code == 0
    ran = daily.recover("retry", "--target", "dev", "--allow-other-target", "-o", "json")
    assert ran.code == 0, ran
    assert daily.args()["target"] == "dev"
    assert daily.calls[-1].executed == daily.expect.retry
    _, rows = daily.tables()["warehouse.main.usage_report"]
    assert list(rows) == ["('2026-01-15', '2026-01-15', 'dev', 3)"]
    # prod, for which the run was made, still lacks it.
    assert daily.plan() == daily.expect.retry


@slow
def test_recheck_runs_a_failed_test_without_its_model(tmp_path: Path) -> None:
    here = failed("failed_test_skips_model", tmp_path / "here")
    # Mended in the warehouse, by hand: a rebuild would bring the row back.
    here.sql("delete from stg_accounts where account_id = 2 and plan = 'team'")
    expected = without(
        here.expect.retry,
        "model.failed_test_skips_model.stg_accounts",
        "test.failed_test_skips_model.not_null_stg_accounts_account_id.182dfbc108",
    )
    assert here.plan("--tests", "recheck") == expected
    ran = here.recover("retry", "--tests", "recheck", "-o", "json")
    assert (ran.code, ran.json["outcome"]) == (0, "recovered"), ran
    assert here.calls[-1].executed == expected
    assert here.tables() == here.clean_build(tmp_path / "clean")


@slow
def test_select_and_exclude_leave_the_rest_for_later(
    two_failures: Checkout, tmp_path: Path
) -> None:
    here = two_failures
    here.mend()
    assert here.plan("--exclude", "orders_daily+") == [STG_TICKETS, TICKETS, UNIQUE_TICKETS]
    part = here.recover("retry", "--select", "orders_daily+", "-o", "json")
    assert (part.code, part.json["outcome"]) == (EXIT_STILL_FAILING, "failing"), part
    assert here.calls[-1].executed == sorted(part.json["executed"]) == [DAILY, ORDERS]
    assert UNIQUE_TICKETS in {node["unique_id"] for node in part.json["still_failing"]}

    part = here.recover("retry", "--exclude", "tickets_report", "-o", "json")
    assert (part.code, part.json["outcome"]) == (EXIT_STILL_FAILING, "failing"), part
    assert here.calls[-1].executed == [STG_TICKETS, UNIQUE_TICKETS]

    assert here.recover("retry").code == 0
    assert here.calls[-1].executed == [TICKETS]
    assert here.tables() == here.clean_build(tmp_path / "clean")


@slow
@pytest.mark.parametrize(
    "command", [("build", "--select", "result:error+"), ("retry",)], ids=["build", "retry"]
)
def test_a_fetched_state_serves_plain_dbt(
    command: tuple[str, ...], model_error: Checkout, tmp_path: Path
) -> None:
    other = model_error.elsewhere(tmp_path / "other").having(
        DBT_RECOVER_ARCHIVE=model_error.root / ".dbt-recover"
    )
    other.mend()
    fetched = other.recover("fetch", "--to", tmp_path / "state")
    assert fetched.code == 0, fetched
    assert sorted(p.name for p in (tmp_path / "state").iterdir()) == [
        "manifest.json",
        "run_results.json",
    ]
    done = other.dbt(*command, "--state", tmp_path / "state")
    assert done.code == 0, done.out
    assert other.calls[-1].executed == model_error.expect.retry
    assert model_error.tables() == model_error.clean_build(tmp_path / "clean")


@slow
def test_a_fetched_state_is_merged_over_the_attempts(two_failures: Checkout) -> None:
    here = two_failures
    here.mend("models/orders_daily.sql")
    assert here.recover("retry").code == EXIT_STILL_FAILING
    assert here.recover("fetch", "--to", "state").code == 0
    results = here.run_results("state")
    assert with_status(results, "error", "fail") == [UNIQUE_TICKETS]
    assert with_status(results, "skipped") == [TICKETS]
    assert {DAILY, ORDERS, STG_TICKETS} <= set(with_status(results, "success"))

    # dbt's own idea of a retry, with the model it would not run by itself mended and built.
    here.mend()
    assert here.dbt("run", "--select", "stg_tickets").code == 0
    assert here.dbt("retry", "--state", "state").code == 0
    assert here.calls[-1].executed == [TICKETS, UNIQUE_TICKETS]


@slow
def test_archive_of_what_ran_without_exec(tmp_path: Path) -> None:
    here = checkout("failed_test_skips_model", tmp_path / "here")
    assert here.dbt("build").code == 1
    archived = here.recover("archive", "--run-id", "nightly-2026-01-31")
    assert (archived.code, archived.out) == (0, "archived as run nightly-2026-01-31\n")
    assert (here.root / "target" / "run_results.json").exists()
    # A second task of the same DAG does the same: nothing happens.
    again = here.recover("archive")
    assert again.code == 0
    assert "nightly-2026-01-31" in again.out
    assert len(here.recover("runs", "-o", "json").json["runs"]) == 1

    here.mend()
    ran = here.recover("retry", "nightly-2026-01-31", "-o", "json")
    assert (ran.code, ran.json["outcome"]) == (0, "recovered"), ran
    assert here.calls[-1].executed == here.expect.retry
    assert here.tables() == here.clean_build(tmp_path / "clean")


@slow
def test_the_tasks_of_a_dag_run_are_one_run(tmp_path: Path) -> None:
    here = checkout("two_independent_failures", tmp_path / "here")
    airflow = {
        "AIRFLOW_CTX_DAG_ID": "nightly",
        "AIRFLOW_CTX_DAG_RUN_ID": "scheduled__2026-01-31T06:00:00+00:00",
        "AIRFLOW_CTX_LOGICAL_DATE": "2026-01-31T06:00:00+00:00",
        "AIRFLOW_CTX_TRY_NUMBER": "1",
    }
    run_id = "nightly/scheduled__2026-01-31T06:00:00+00:00"

    def task(name: str, *command: str) -> int:
        worker = here.having(**airflow, AIRFLOW_CTX_TASK_ID=name)
        return worker.recover("exec", "--", "dbt", *command).code

    assert task("staging", "run", "--select", "stg_orders", "stg_tickets", "calendar") == 0
    assert task("test_staging", "test", "--select", "stg_orders", "stg_tickets", "calendar") == 1
    # Its trigger rule is all_done: built on tickets that did not pass.
    reports = ("orders_daily", "orders_report", "tickets_report")
    assert task("reports", "run", "--select", *reports) == 1

    (run,) = here.recover("runs", "-o", "json").json["runs"]
    assert (run["run_id"], run["invocations"], run["attempts"]) == (run_id, 3, 1)
    assert run["status"] == "failed"
    shown = here.recover("show", "nightly/", "-o", "json").json
    assert [i["step"] for i in shown["invocations"]] == ["staging", "test_staging", "reports"]

    here.mend()
    # From a shell that knows nothing of Airflow.
    ran = here.recover("retry", "--logical-date", "2026-01-31", "-o", "json")
    assert (ran.code, ran.json["run_id"]) == (0, run_id), ran
    executed = [uid for call in here.calls[3:] for uid in call.executed]
    assert sorted(executed) == [DAILY, ORDERS, STG_TICKETS, TICKETS, UNIQUE_TICKETS]
    assert here.tables() == here.clean_build(tmp_path / "clean")
    assert here.recover("runs", "-o", "json").json["runs"][0]["status"] == "recovered"


_TIMES = re.compile(
    r"\d\d:\d\d:\d\d|\d+\.\d+s|\d+ hours? \d+ minutes? and \d+\.\d+ seconds?", re.MULTILINE
)


def _timeless(text: str, here: Checkout) -> list[str]:
    return _TIMES.sub("<time>", text.replace(str(here.home), "<home>")).splitlines()


@slow
@pytest.mark.parametrize(
    "code, words",
    [
        (0, ("build", "--select", "calendar", "--threads", "1")),
        (1, ("build", "--threads", "1")),
        (2, ("build", "--no-such-flag")),
        (2, ("build", "--target", "nowhere")),
        (2, ("build", "--select", "calendar", "--selector", "nosuch")),
    ],
    ids=["success", "failure", "usage", "profile", "selector"],
)
def test_exec_says_and_exits_as_dbt_does(code: int, words: tuple[str, ...], tmp_path: Path) -> None:
    plain = checkout("two_independent_failures", tmp_path / "plain")
    recorded = checkout("two_independent_failures", tmp_path / "recorded")
    expected = plain.dbt(*words)
    ran = recorded.recover("exec", "--", "dbt", *words)
    assert (ran.code, expected.code) == (code, code)
    assert _timeless(ran.out, recorded) == _timeless(expected.out, plain)
    ours = [line for line in ran.err.splitlines() if not line.startswith("dbt-recover:")]
    assert ours == expected.err.splitlines()
    assert recorded.tables() == plain.tables()
