"""Repair a failed dbt run by hand, with a form."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

import pendulum

from recover_airflow import DAG, HAS_APPROVALS, AirflowFailException, ApprovalOperator, task
from recover_dbt import PARSE_SECONDS, Context, ask, ask_json
from recover_repair import (
    PARAMS,
    Retry,
    at_work,
    checked,
    failure,
    options,
    outcome,
    refusal,
    tell_of,
)

log = logging.getLogger("recover_dbt")


def planned(words: list[str], run: str) -> tuple[dict[str, Any], str]:
    """The plan of a run, as data and as a table. Raises AirflowException if there is none."""
    # What the archive does not say, dbt is asked here, as retry will: what is approved is all of it.
    words = ["plan", "--ask-dbt", *words]
    ended = ask([*words, "--", run], seconds=PARSE_SECONDS)
    if ended.code:
        raise failure(run, ended)
    made: dict[str, Any] = ask_json([*words, "-o", "json", "--", run], seconds=PARSE_SECONDS)
    return made, ended.out


class RetryAsApproved(Retry):
    """The retry of what the task `plan` has shown, and of no more than that."""

    def execute(self, context: Context) -> dict[str, Any]:
        """Retry. Fails if more would run now than was shown."""
        self.words = options(checked(context["params"]))
        shown = {node["unique_id"] for node in context["ti"].xcom_pull(task_ids="plan")["nodes"]}
        made, table = planned(self.words, self.run)
        more = sorted({node["unique_id"] for node in made["nodes"]} - shown)
        if more:
            log.info("%s", table)
            raise AirflowFailException(
                f"nothing was run: the plan is another one by now. New in it: {', '.join(more[:10])}"
                f"{f' and {len(more) - 10} more' if len(more) > 10 else ''}. Trigger dbt_repair again"
            )
        return super().execute(context)


with DAG(
    dag_id="dbt_repair",
    schedule=None,
    start_date=pendulum.datetime(2024, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,
    params=PARAMS,
    default_args={"owner": "data-engineering", "retries": 0},
    tags=["dbt", "repair"],
    doc_md="""
### Repair a failed dbt run

Mend the cause first: the data, the code or the rights. Then trigger this. `plan` shows in its log
what would run again and why; on Airflow 3.1 and later it then waits for approval, under *Required
actions*, and rejects itself after a day. `retry` runs those nodes. No failed run is success, too.
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
                log.info("there is no failed run: nothing to do")
                return {"run": None, "nodes": [], "text": "there is no failed run"}
            run = failed[0]["run_id"]
        made, text = planned(options(params), run)
        busy = at_work(context, made["run"]["run_id"])
        log.info("%s", text)
        if busy and not params["dry_run"]:
            raise AirflowFailException(busy)
        if not made["nodes"] and made["run"]["status"] == "failed" and not params["dry_run"]:
            # Not complete for that: `select` may have left nothing, or a hook alone has failed.
            # With nothing to run `retry` starts no dbt; it says how the run stands.
            run = made["run"]["run_id"]
            words = ["retry", *options(params), "-o", "json", "--", run]
            outcome(run, ask(words, seconds=PARSE_SECONDS))
            return {**made, "text": text}
        stops = [f"{w['message']} ({w['flag']})" for w in made["warnings"] if w["stops"]]
        if stops and not params["dry_run"]:
            raise refusal(made["run"]["run_id"], "\nalso: ".join(stops))
        return {**made, "text": text}

    @task.short_circuit(ignore_downstream_trigger_rules=False)
    def go_on(made: Any, **context: Any) -> bool:
        """Whether there is something to run, and it is wanted."""
        if not made["nodes"]:
            log.info("nothing to do")
            return False
        if context["params"]["dry_run"]:
            log.info("a dry run: nothing is run. Trigger again with dry_run off to do it")
            return False
        return True

    @task(retries=1)
    def summary(made: Any, **context: Any) -> None:
        """How the run stands now, to Slack."""
        if not made or not made["run"]:
            log.info("nothing to tell")
            return
        if context["params"]["dry_run"] or not made["nodes"]:
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
            subject="Run {{ ti.xcom_pull(task_ids='plan')['nodes'] | length }} nodes of dbt run "
            "{{ ti.xcom_pull(task_ids='plan')['run']['run_id'] }} again?",
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
