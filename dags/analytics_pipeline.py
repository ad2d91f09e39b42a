"""The lesson's pipeline: wait for the raw data, build it layer by layer, test, sum up."""

from __future__ import annotations

import os
from datetime import datetime, timezone
from typing import Any

from recover_airflow import DAG, CronDataIntervalTimetable, SqlSensor, task
from recover_alert import alert_on_failure, summarise, summary_text, tell_slack
from recover_dbt import data_day, is_sunday
from recover_layers import RETRY_DELAY, Layer, build_layers

LAYERS = (
    Layer("staging", full_refresh=is_sunday),
    Layer("intermediate", tested=False),
    Layer("marts", {"finance_marts": "tag:finance_mart", "marketing_marts": "tag:marketing_mart"}),
)

CONN_ID = os.environ.get("DBT_RECOVER_SENSOR_CONN_ID", "snowflake_default")
WAITING: dict[str, Any] = {
    "conn_id": CONN_ID,
    "mode": "reschedule",  # the worker is free between two looks
    "poke_interval": 300,
    "timeout": 7200,  # from the first look; then it fails, and nothing runs on old data
    "soft_fail": False,
    "retries": 2,  # a lost connection; not a timeout, which is final
}

with DAG(
    dag_id="analytics_dbt_pipeline",
    # Daily for the day before, on Airflow 2 and 3 alike: a cron string means different days there.
    schedule=CronDataIntervalTimetable("0 6 * * *", timezone="UTC"),
    start_date=datetime(2024, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    max_active_runs=1,  # two dbts on the same tables spoil them
    default_args={
        "owner": "data-engineering",
        "retry_delay": RETRY_DELAY,
        "on_failure_callback": alert_on_failure,
    },
    user_defined_macros={"data_day": data_day},
    tags=["dbt", "analytics", "production"],
    doc_md="""
### Analytics

Waits for last night's product events and this morning's CRM sync, then builds staging,
intermediate, and the finance and marketing marts. All dbt commands of a DAG run form one run in the
archive. A task's next try runs only what is left; a failed run is repaired as a whole by `dbt_repair`
or `dbt-recover retry`. Staging is rebuilt from nothing on Sundays.

A layer is one line in `LAYERS`.
""",
) as dag:
    wait_for_events = SqlSensor(
        task_id="wait_for_product_events",
        sql="""
            SELECT COUNT(*)
            FROM raw.fivetran_events.page_views
            WHERE CAST(event_timestamp AS DATE) = '{{ data_day(dag_run) }}'
              AND event_timestamp >= '{{ data_day(dag_run) }} 23:45:00'
        """,
        **WAITING,
    )
    wait_for_crm = SqlSensor(
        task_id="wait_for_salesforce_crm",
        sql="""
            SELECT COUNT(*)
            FROM raw.fivetran_salesforce.account
            WHERE _fivetran_synced >= '{{ macros.ds_add(data_day(dag_run), 1) }} 04:00:00'
        """,
        **WAITING,
    )

    @task(retries=1)
    def summary(**context: Any) -> dict[str, Any]:
        """Totals of the run, whether it succeeded or not."""
        totals = summarise(context)
        text = summary_text(totals)
        print(text)
        tell_slack({"text": text})
        return totals

    first, last = build_layers(LAYERS)
    for sensor in (wait_for_events, wait_for_crm):
        sensor >> first
    # A teardown runs after a failure, too, and does not decide how the DAG run ends: a last task
    # with trigger_rule="all_done" would turn a failed run green.
    last >> summary().as_teardown()
