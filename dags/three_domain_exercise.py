"""The lesson's exercise: three layers of the demo project on DuckDB, tested one after another."""

from __future__ import annotations

import json
import logging
import os
from datetime import datetime, timezone
from typing import Any

from recover_airflow import DAG, AirflowException, CronDataIntervalTimetable, SqlSensor, task
from recover_alert import summarise
from recover_dbt import Context, ask_json, data_day, is_sunday, run_of
from recover_layers import Layer, build_layers

log = logging.getLogger("three_domain_exercise")

LAYERS = (
    Layer("staging", full_refresh=is_sunday),
    Layer("core"),
    Layer("reporting"),
)


def at_least_100(rows: int) -> bool:
    """What the sensor waits for."""
    return rows >= 100


def log_failure(context: Context) -> None:
    """on_failure_callback: one line of JSON in the log that an alerting system can pick up."""
    try:
        instance = context["ti"]
        failure = {
            "event": "dbt_task_failed",
            "dag": instance.dag_id,
            "task": instance.task_id,
            "run": instance.run_id,
            "try": instance.try_number,
            "exception": str(context.get("exception"))[:500],
            "log": getattr(instance, "log_url", None),
            "failed": failed_nodes(context),
        }
        line = json.dumps(failure)
        log.error("%s", line)
        print(f"ALERT {line}")
    except Exception:
        log.exception("the alert could not be made")


def failed_nodes(context: Context) -> list[dict[str, Any]] | None:
    """What failed in the run, as the archive has it; None if it cannot say, which hides nothing."""
    try:
        shown = ask_json(["show", "-o", "json", "--", run_of(context)], context)
    except (AirflowException, ValueError) as error:
        log.info("%s", error)
        return None
    keys = ("unique_id", "status", "class", "message")
    return [{key: node[key] for key in keys} for node in shown["failed"]]


with DAG(
    dag_id="three_domain_exercise",
    schedule=CronDataIntervalTimetable("0 6 * * *", timezone="UTC"),
    start_date=datetime(2024, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    max_active_runs=1,
    default_args={"owner": "data-engineering", "on_failure_callback": log_failure},
    user_defined_macros={"data_day": data_day},
    tags=["dbt", "exercise"],
    doc_md="""
### Three domains

`staging`, `core` and `reporting` of the project that `dbt-recover demo` shows, each followed by its
tests. Set `DBT_PROJECT_DIR` to a copy of it and `DBT_RECOVER_SENSOR_CONN_ID` to a connection that
reads its database.
""",
) as dag:
    wait_for_events = SqlSensor(
        task_id="wait_for_raw_events",
        conn_id=os.environ.get("DBT_RECOVER_SENSOR_CONN_ID", "duckdb_default"),
        sql="""
            SELECT COUNT(*)
            FROM raw_product_events
            WHERE CAST(CAST(event_at AS TIMESTAMP) AS DATE) = '{{ data_day(dag_run) }}'
        """,
        success=at_least_100,
        mode="reschedule",
        poke_interval=300,
        timeout=7200,
    )

    @task
    def parse_dbt_run_results(**context: Any) -> dict[str, Any]:
        """Total, successes, errors and the slowest model, printed and returned."""
        totals = summarise(context)
        models = [name for name, _ in totals["slowest"] if name.startswith("model.")]
        print(f"total models and tests run: {totals['total']}")
        print(f"successes: {totals['success']}")
        print(f"errors: {totals['error']}")
        print(f"slowest model: {models[0] if models else 'none'}")
        return totals

    first, last = build_layers(LAYERS)
    wait_for_events >> first
    # After a failure, too, and without turning the DAG run green: see analytics_pipeline.py.
    last >> parse_dbt_run_results().as_teardown()
