"""Retry what time can mend, and report the rest. Off until it is unpaused."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta, timezone
from typing import Any

from recover_airflow import DAG, AirflowException, Param, task
from recover_alert import alert_on_failure
from recover_dbt import Context, ask_json
from recover_repair import Retry, tell_of

log = logging.getLogger("recover_dbt")
EVERY = timedelta(minutes=30)
"""How often it looks."""


def this_round(context: Context) -> datetime:
    """When this round was due, so that each failed run is new in exactly one."""
    dag_run = context["dag_run"]
    due: datetime = getattr(dag_run, "run_after", None) or dag_run.data_interval_end
    return due


def why_not(run: str, attempts: int) -> tuple[str, int]:
    """Why a failed run is not retried, or ''; and if it is, how many retries it has left."""
    made = ask_json(["plan", "-o", "json", "--", run])
    nothing = made["nothing_to_run"]
    if nothing and nothing["outcome"] != "unknown":
        return f"not retried: {nothing['message']}", 0
    # Not `show`: this knows which dbt, having given up itself, has left nodes undone.
    alert = ask_json(["notify", "--to=webhook", "--print", "--always", "--", run])
    classes = sorted({cause["class"] for cause in (*alert["failed"], *alert["gave_up"])})
    if not classes:
        return "not retried: dbt was cut off, and nothing says why", 0
    if classes != ["transient"]:
        return f"not retried: not all that failed is transient ({', '.join(classes)})", 0
    shown = ask_json(["show", "-o", "json", "--", run])
    # The tries of Airflow's own tasks have a step; a retry of the run has none.
    retried = {i["attempt"] for i in shown["invocations"] if i["attempt"] > 1 and not i["step"]}
    left = attempts - len(retried)
    if left < 1:
        return f"still failing after {len(retried)} retries", left
    stops = [f"not retried: {w['message']}" for w in made["warnings"] if w["stops"]]
    return (stops[0] if stops else ""), left


with DAG(
    dag_id="dbt_repair_scheduled",
    schedule=EVERY,
    start_date=datetime(2024, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    max_active_runs=1,
    is_paused_upon_creation=True,
    params={
        "attempts": Param(
            3,
            type="integer",
            minimum=1,
            maximum=10,
            title="Attempts",
            description="Retries of one run at most, with growing pauses between them. The tries of "
            "Airflow's own tasks do not count.",
            examples=[1, 3],
        ),
        "quiet_minutes": Param(
            60,
            type="integer",
            minimum=0,
            maximum=1440,
            title="Quiet minutes",
            description="A run that ended less than this ago is left alone: Airflow may still be "
            "trying its task again.",
            examples=[60],
        ),
    },
    default_args={"owner": "data-engineering", "retries": 0},
    tags=["dbt", "repair"],
    doc_md="""
### Retry what time can mend

Off until you unpause it. Looks at the failed runs of the last day. One whose failures are all
transient (a lock, a lost connection: `docs/failures.md`) is retried, with a bound; any other is
reported once and left to a person.
""",
) as repair_scheduled:

    @task(on_failure_callback=alert_on_failure)
    def find(**context: Any) -> list[dict[str, Any]]:
        """The failed runs whose failures are all transient, as arguments of Retry; reports the
        others."""
        attempts = context["params"]["attempts"]
        due = this_round(context)
        latest = due - timedelta(minutes=context["params"]["quiet_minutes"])
        since = (due - timedelta(days=1)).strftime("%Y-%m-%d")
        asked = ["runs", "--status=failed", f"--since={since}", "--limit=1000", "-o", "json"]
        found = []
        for run in ask_json(asked)["runs"]:
            name = run["run_id"]
            ended = datetime.fromisoformat((run["ended"] or run["began"]).replace("Z", "+00:00"))
            if ended > latest:
                log.info("%s: ended just now, left alone", name)
                continue
            try:
                reason, left = why_not(name, attempts)
            except AirflowException as error:  # one that cannot be read does not hold up the others
                reason, left = f"not retried: {error}", 0
            if not reason:
                log.info("%s: transient, retried", name)
                words = ["--on=transient", f"--attempts={left}"]
                found.append({"run": name, "words": words, "again": ended <= latest - EVERY})
                continue
            log.error("%s: %s", name, reason)
            # Once: in the first round after its quiet time.
            if ended > latest - EVERY:
                tell_of(name, f"dbt_repair_scheduled: {reason}")
        return found

    Retry.partial(
        task_id="retry",
        by_itself=True,
        max_active_tis_per_dag=1,
        map_index_template="{{ task.run }}",
    ).expand_kwargs(find())
