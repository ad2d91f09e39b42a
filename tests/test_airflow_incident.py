"""The incident, end to end, on a real Airflow 3: scheduler, DAG processor, API server."""

from __future__ import annotations

from pathlib import Path
from urllib.error import HTTPError

import duckdb
import pytest

from airflow_live import Airflow, kill_step, standalone, until
from airflows import DAY, HOLD, LET_GO, Company, company

PIPELINE, REPAIR = "analytics_dbt_pipeline", "dbt_repair"
STG_VIEWS, STG_ACCOUNTS, INT_CONTRACTS, INT_VIEWS = (
    f"model.company.{name}" for name in ("stg_views", "stg_accounts", "int_contracts", "int_views")
)


def let_go(made: Company) -> bool:
    """False while the killed dbt's lock is still there."""
    try:
        made.raw(LET_GO)
    except duckdb.IOException:
        return False
    return True


@pytest.mark.airflow_cluster
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_task_and_wrong_data_then_a_repair(tmp_path: Path) -> None:
    """Staging is killed halfway, and its next try does the other half. Then the data break an
    intermediate model; they are mended; dbt_repair is triggered with a form's values, is rejected
    once, and then approved."""
    made = company(tmp_path / "c", DBT_RECOVER_POOL="dbt", DBT_RECOVER_RETRY_SECONDS="4")
    made.raw(HOLD)
    with standalone(made) as airflow:
        # One dbt at a time: DuckDB has one writer.
        airflow.call("POST", "/api/v2/pools", {"name": "dbt", "slots": 1})
        run = airflow.trigger(PIPELINE, {}, DAY)
        archived = f"{PIPELINE}/{run}"
        until(lambda: _has_built(made, archived), "stg_views is built, and recorded")
        # Somebody is too early: the pipeline is still at work.
        early = airflow.trigger(REPAIR, {"run": archived})
        assert until(lambda: airflow.ended(REPAIR, early), "it is told to wait") == "failed"
        assert airflow.states(REPAIR, early)["plan"] == "failed"
        assert f"Airflow's own DAG run {run} of {PIPELINE} is running" in airflow.log
        kill_step(made, "run --select tag:staging")
        until(lambda: let_go(made), "the warehouse is free")
        assert until(lambda: airflow.ended(PIPELINE, run), "the pipeline ends") == "failed"
        tasks = airflow.tasks(PIPELINE, run)
        assert {k: (t["state"], t["try_number"]) for k, t in tasks.items() if "dbt_run" in k} == {
            "dbt_run_staging": ("success", 2),
            "dbt_run_intermediate": ("failed", 3),
            "dbt_run_finance_marts": ("upstream_failed", 0),
            "dbt_run_marketing_marts": ("upstream_failed", 0),
        }
        assert tasks["summary"]["state"] == "success"

        for call in (made.here.home / "calls").iterdir():
            if not (call / "exit").exists():  # the one that was killed
                (call / "exit").write_text("137")
        # What had succeeded was not built again by any try.
        assert made.executed() == [
            [STG_ACCOUNTS],
            [INT_CONTRACTS, INT_VIEWS],
            *[[INT_CONTRACTS]] * 2,
        ]

        made.mend()
        form = {"run": "latest-failed", "dry_run": False, "strategy": "auto", "allow": []}
        for name, value in (
            ("run", "; rm -rf /"),
            ("select", "$(id)"),
            ("target", "--full-refresh"),
        ):
            with pytest.raises(HTTPError, match="400") as refused:
                airflow.trigger(REPAIR, {**form, name: value})
            refused.value.close()
        before = len(made.here.calls)
        rejected = airflow.trigger(REPAIR, form)
        repair, late = (airflow.trigger(REPAIR, form) for _ in range(2))
        assert _answered(airflow, rejected, "Reject")["retry"] == "skipped"
        assert made.here.calls[before:] == []
        assert _answered(airflow, repair, "Approve")["retry"] == "success"
        outcome = airflow.xcom(REPAIR, repair, "retry")
        # Triggered twice: the second one finds nothing to do, and asks nobody.
        assert until(lambda: airflow.ended(REPAIR, late), "the second one ends") == "success"
        assert airflow.states(REPAIR, late)["approve"] == "skipped"

        # Cleared in the UI, to have the DAG run green: what the repair has built is not built again,
        # though most of these tasks never began.
        before = len(made.here.calls)
        body = {"dry_run": False, "dag_run_id": run, "only_failed": True, "reset_dag_runs": True}
        airflow.call("POST", f"/api/v2/dags/{PIPELINE}/clearTaskInstances", body)
        until(lambda: airflow.state(PIPELINE, run) != "failed", "it is cleared")
        assert until(lambda: airflow.ended(PIPELINE, run), "the pipeline ends") == "success"
        assert made.here.calls[before:] == []
    assert (outcome["run_id"], outcome["outcome"]) == (archived, "recovered")
    executed = [u for u in outcome["executed"] if u.startswith("model.")]
    assert executed == [f"model.company.{n}" for n in ("fct_engagement", "fct_revenue")] + [
        INT_CONTRACTS
    ]
    assert made.here.tables() == made.clean()


def _answered(airflow: Airflow, repair: str, option: str) -> dict[str, str]:
    """The states of a repair's tasks, which ended well once its question was answered."""
    until(lambda: airflow.answer(REPAIR, repair, "approve", option), "approval is asked for")
    ended = until(lambda: airflow.ended(REPAIR, repair), "the repair ends")
    states = airflow.states(REPAIR, repair)
    assert ended == "success", states
    return states


def _has_built(made: Company, run: str) -> bool:
    ran = made.here.having(DBT_RECOVER_ARCHIVE=made.here.home / "archive").recover(
        "show", run, "-o", "json"
    )
    return ran.code == 0 and ran.json["counts"].get("success", 0) == 1
