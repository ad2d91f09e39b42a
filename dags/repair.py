"""Repair a failed dbt run by hand, with a form."""

from __future__ import annotations

import json
import logging
import tempfile
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from recover_airflow import DAG, HAS_APPROVALS, AirflowFailException, ApprovalOperator, task
from recover_dbt import PARSE_SECONDS, Context, ask, ask_json
from recover_repair import (
    PARAMS,
    Retry,
    at_work,
    checked,
    failure,
    options,
    tell_of,
    what_stops,
)

log = logging.getLogger("recover_dbt")


def planned(words: list[str], run: str) -> dict[str, Any]:
    """The plan of a run, its table among it. Raises AirflowException if there is none."""
    # What the archive does not say, dbt is asked here, as retry will: what is approved is all of it.
    words = ["plan", "--ask-dbt", "--text", *words, "-o", "json", "--", run]
    ended = ask(words, seconds=PARSE_SECONDS)
    if ended.code:
        raise failure(run, ended)
    made: dict[str, Any] = json.loads(ended.out)
    return made


def why_not(made: dict[str, Any], context: Context) -> str:
    """Why a plan that was made is not carried out; '' if it is to be."""
    nothing = made["nothing_to_run"]
    if context["params"]["dry_run"]:
        return "a dry run: nothing is run. Trigger again with dry_run off to do it"
    # With nothing to run but listed as failed: `retry` has it listed as whole.
    if nothing and nothing["listed"] != "failed":
        return f"nothing to do: {nothing['message']}"
    return ""


class RetryAsApproved(Retry):
    """The retry of what the task `plan` has shown, and of no more than that."""

    def execute(self, context: Context) -> dict[str, Any]:
        """Retry. Fails if more would run now than was shown."""
        with tempfile.TemporaryDirectory(prefix="dbt-repair-") as room:
            file = Path(room, "plan.json")
            file.write_text(json.dumps(context["ti"].xcom_pull(task_ids="plan")))
            self.words = [*options(checked(context["params"])), f"--approved={file}"]
            return super().execute(context)


with DAG(
    dag_id="dbt_repair",
    schedule=None,
    start_date=datetime(2024, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    max_active_runs=1,
    params=PARAMS,
    default_args={"owner": "data-engineering", "retries": 0},
    tags=["dbt", "repair"],
    doc_md="""
### Repair a failed dbt run

Mend the cause first: the data, the code or the rights. Then trigger this. `plan` shows in its log
what would run again and why; on Airflow 3.1 and later it then waits for approval, under *Required
actions*, and rejects itself after a day. `retry` runs those nodes and no others. No failed run is
success, too. One repair at a time: this one waits, queued, while an earlier one waits for its answer.
""",
) as repair:

    @task
    def plan(**context: Any) -> dict[str, Any]:
        """The plan: its table in the log, its JSON for the next tasks. Pins the run."""
        params = checked(context["params"])
        run = params["run"]
        if run == "latest-failed":
            failed = ask_json(["runs", "--status=failed", "--limit=1", "-o", "json"])["runs"]
            if not failed:
                nothing = {"listed": None, "message": "there is no failed run"}
                return {"run": None, "nodes": [], "nothing_to_run": nothing, "text": ""}
            run = failed[0]["run_id"]
        made = planned(options(params), run)
        log.info("%s", made["text"])
        if not params["dry_run"]:
            if busy := at_work(context, made["run"]["run_id"]):
                raise AirflowFailException(busy)
            if wrong := what_stops(made):
                raise wrong
        return made

    @task.short_circuit(ignore_downstream_trigger_rules=False)
    def go_on(made: Any, **context: Any) -> bool:
        """Whether there is something to do, and it is wanted."""
        if not_wanted := why_not(made, context):
            log.info("%s", not_wanted)
        return not not_wanted

    @task(retries=1)
    def summary(made: Any, **context: Any) -> None:
        """How the run stands now, to Slack."""
        if not made or not made["run"]:
            log.info("nothing to tell")
            return
        if why_not(made, context):
            log.info("%s", made["text"])
            return
        answer = context["ti"].xcom_pull(task_ids="approve") or {}
        if answer.get("chosen_options") == ["Reject"]:
            log.info("rejected, or not answered in a day: nothing was run")
            return
        done = context["ti"].xcom_pull(task_ids="retry")
        which = "approve or retry" if HAS_APPROVALS else "retry"
        said = done["outcome"] if done else f"not recovered; the log of its task {which} says why"
        tell_of(made["run"]["run_id"], f"dbt_repair: {said}")

    made = plan()
    retry = RetryAsApproved(
        task_id="retry", run="{{ ti.xcom_pull(task_ids='plan')['run']['run_id'] }}"
    )
    told = summary(made).as_teardown()
    if HAS_APPROVALS:
        approve = ApprovalOperator(
            task_id="approve",
            subject="{% set made = ti.xcom_pull(task_ids='plan') %}"
            "{% if made['nodes'] %}Run {{ made['nodes'] | length }} nodes of dbt run "
            "{{ made['run']['run_id'] }} again?"
            "{% else %}Take dbt run {{ made['run']['run_id'] }} as whole? Nothing of it is to run "
            "again{% endif %}",
            body="```\n{{ ti.xcom_pull(task_ids='plan')['text'] }}\n```",
            defaults="Reject",
            response_timeout=timedelta(hours=24),
            # Answered within a second, as a program does, Airflow's scheduler can take the task for
            # lost. A second try asks again; it runs nothing.
            retries=1,
            retry_delay=timedelta(seconds=5),
        )
        go_on(made) >> approve >> retry >> told
    else:
        go_on(made) >> retry >> told
