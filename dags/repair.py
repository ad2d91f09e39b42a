"""Repair a failed dbt run: by hand with a form, and on its own what time can mend."""

from __future__ import annotations

import json
import logging
from datetime import datetime, timedelta, timezone

import pendulum
from airflow import __version__ as AIRFLOW_VERSION

from recover_alert import alert_on_failure, tell_slack
from recover_dbt import (
    LOCKED,
    NOT_FOUND,
    POOL,
    REFUSED,
    AirflowFailException,
    BaseOperator,
    Command,
    ask,
    ask_json,
    environment,
)

try:  # Airflow 3
    from airflow.sdk import DAG, Param, task
except ImportError:  # Airflow 2
    from airflow.decorators import task
    from airflow.models.dag import DAG
    from airflow.models.param import Param

ApprovalOperator = None
if tuple(int(part) for part in AIRFLOW_VERSION.split(".")[:2]) >= (3, 1):
    # A person approves in the UI or through the API. On 2.x this import raises.
    from airflow.providers.standard.operators.hitl import ApprovalOperator

log = logging.getLogger("recover_dbt")
EVERY = timedelta(minutes=30)
"""How often dbt_repair_scheduled looks."""

END = r"(?![\s\S])"
"""The end of a value, in Python and in the browser: $ would let a line break pass."""
NO_DOTS = r"(?!.*\.\.)"
ALLOWED = {
    "drift": "other code was edited",
    "non-idempotent": "rows may be added twice",
    "other-project": "it is another dbt project",
    "other-target": "it is another target",
    "unknown-scope": "more may be left undone",
    "older-run": "a later run has built the same",
}
TESTS, STRATEGIES = ("rebuild", "recheck"), ("auto", "select", "retry", "defer")

PARAMS = {
    "run": Param(
        "latest-failed",
        type="string",
        title="Run",
        description="Which run: latest-failed, a day (its latest failed run), or a run id as in "
        "the alert.",
        pattern=rf"^{NO_DOTS}\w[\w.:+/@=~-]*( [\w.:+/@=~-]+)*{END}",
        maxLength=300,
        examples=[
            "latest-failed",
            "2026-01-31",
            "analytics_dbt_pipeline/scheduled__2026-01-31T06:00:00+00:00",
        ],
    ),
    "dry_run": Param(
        ApprovalOperator is None,
        type="boolean",
        title="Dry run",
        description="Show the plan and stop. "
        + (
            "This Airflow has no approvals, so this is on: look at the plan in the log of the task "
            "`plan`, then trigger again with this off."
            if ApprovalOperator is None
            else "With this off the plan waits for approval."
        ),
        examples=[True, False],
    ),
    "strategy": Param(
        "auto",
        type="string",
        title="Strategy",
        description="How dbt is told what to run. auto picks what keeps the promise on this dbt.",
        enum=list(STRATEGIES),
        examples=list(STRATEGIES),
    ),
    "tests": Param(
        "rebuild",
        type="string",
        title="Failed tests",
        description="rebuild: first build the models again that a failed test tests. recheck: only "
        "run the test again (the data was mended in the table itself).",
        enum=list(TESTS),
        examples=list(TESTS),
    ),
    "select": Param(
        "",
        type=["null", "string"],
        title="Only these",
        description="A dbt selection: only these nodes of the plan. Empty: all of it.",
        pattern=rf"^{NO_DOTS}([\w@+*][\w.:+*@,/-]*( [\w@+*][\w.:+*@,/-]*)*)?{END}",
        maxLength=1000,
        examples=["stg_events+", "tag:staging", "path:models/marts stg_accounts"],
    ),
    "vars": Param(
        None,
        type=["null", "object"],
        title="Vars",
        description="dbt vars laid over those of the run, which are restored. Secrets that read "
        "***** in the record have to be given again, through the worker's environment.",
        examples=[{"run_date": "2026-01-31"}],
    ),
    "target": Param(
        "",
        type=["null", "string"],
        title="Target",
        description="Another dbt target than the run's. Empty: the run's own. Needs other-target "
        "allowed below.",
        pattern=rf"^([A-Za-z_][\w-]*)?{END}",
        maxLength=100,
        examples=["prod", "dev"],
    ),
    "allow": Param(
        [],
        type="array",
        title="Go on though",
        description="What a refused repair asked for: "
        + "; ".join(f"{name}: {what}" for name, what in ALLOWED.items()),
        items={"type": "string", "enum": list(ALLOWED)},
        examples=list(ALLOWED),
    ),
}


def checked(params):
    """The params once more as the schema has them: conf can come in on ways that no form checks.
    Raises AirflowFailException for what is not as it should be."""
    for name, param in PARAMS.items():
        try:
            Param(param.value, **param.schema).resolve(params[name])
        except Exception as error:  # noqa: BLE001 - Airflow's and jsonschema's own
            raise AirflowFailException(f"param {name} is refused: {error}") from None
    return dict(params)


def options(params):
    """The params as words of `plan` and `retry`: each value is part of one word, after its `=`."""
    words = [f"--strategy={params['strategy']}", f"--tests={params['tests']}"]
    if params["select"]:
        words += [f"--select={each}" for each in params["select"].split()]
    if params["vars"]:
        words.append(f"--vars={json.dumps(params['vars'])}")
    if params["target"]:
        words.append(f"--target={params['target']}")
    return words + [f"--allow-{each}" for each in params["allow"]]


class Retry(BaseOperator):
    """`dbt-recover retry` of one run. Returns its JSON; fails with what its exit code means."""

    template_fields = ("run", "words")
    ui_color = "#d3f0e0"

    def __init__(self, *, run, words=(), **kwargs):
        """`run`: the run's id. `words`: options; or `options_of`, what makes them of the params."""
        super().__init__(**{"pool": POOL, "retries": 0, **kwargs})
        self.run = run
        self.words = list(words)
        self._command = None

    def execute(self, context):
        """Retry, and say what came of it."""
        words = list(self.words)
        if context["ti"].dag_id == "dbt_repair":
            words += options(checked(context["params"]))
        env = environment()
        self._command = Command(["retry", *words, "-o", "json", "--", self.run], env, capture=True)
        ended = self._command.wait()
        done = json.loads(ended.out) if ended.out.strip() else {"run_id": self.run}
        if ended.code == LOCKED:
            raise AirflowFailException(f"locked: somebody is at work on {self.run}\n{ended.why}")
        if ended.code == REFUSED:
            raise AirflowFailException(
                f"refused for safety; nothing was run. To go on, trigger again with what it names "
                f"under `Go on though`:\n{ended.why}"
            )
        if ended.code:
            for node in done.get("still_failing", ()):
                log.error("%s: %s: %s", node["unique_id"], node["class"], node["message"])
            raise ended.failure(f"retry of {self.run}")
        if done["outcome"] == "already_complete":
            log.info("run %s is complete: nothing to do", done["run_id"])
        else:
            log.info(
                "run %s: %s, %s nodes run", done["run_id"], done["outcome"], len(done["executed"])
            )
        return done

    def on_kill(self):
        """dbt cancels its queries, and what it has done is recorded."""
        if self._command is not None:
            self._command.stop()


def tell_of(run):
    """What `dbt-recover notify` says of a run, to the log and to Slack."""
    ended = ask(["notify", "--to=slack", "--print", "--always", "--", run])
    if ended.code:
        log.error("%s", ended.failure(f"dbt-recover notify {run}"))
        return
    message = json.loads(ended.out)
    log.info("%s", message.get("text"))
    tell_slack(message)


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
actions*, and rejects itself after a day. `retry` runs exactly that. No failed run is success, too.
""",
) as repair:

    @task
    def plan(**context):
        """The plan: its table in the log, its JSON for the next tasks. Pins the run."""
        params = checked(context["params"])
        run = params["run"]
        if run == "latest-failed":
            failed = ask_json(["runs", "--status=failed", "--limit=1", "-o", "json"])["runs"]
            if not failed:
                log.info("there is no failed run: nothing to do")
                return {"run": None, "nodes": [], "text": "there is no failed run"}
            run = failed[0]["run_id"]
        words = ["plan", *options(params)]
        shown = ask([*words, "--", run])
        if shown.code == NOT_FOUND:
            raise AirflowFailException(f"there is no run {run}\n{shown.why}")
        if shown.code:
            raise shown.failure(f"plan of {run}")
        log.info("%s", shown.out)
        made = ask_json([*words, "-o", "json", "--", run])
        if not made["nodes"]:
            log.info("run %s is complete: nothing to do", made["run"]["run_id"])
        return {**made, "text": shown.out}

    @task.short_circuit(ignore_downstream_trigger_rules=False)
    def go_on(made, **context):
        """Whether there is something to run, and it is wanted."""
        if not made["nodes"]:
            log.info("nothing to do")
            return False
        if context["params"]["dry_run"]:
            log.info("a dry run: nothing is run. Trigger again with dry_run off to do it")
            return False
        return True

    @task(retries=1)
    def summary(made, **context):
        """How the run stands now, to Slack."""
        if not made or not made["run"]:
            log.info("nothing to tell")
        elif context["params"]["dry_run"] or not made["nodes"]:
            log.info("%s", made["text"])
        else:
            tell_of(made["run"]["run_id"])

    made = plan()
    retry = Retry(task_id="retry", run="{{ ti.xcom_pull(task_ids='plan')['run']['run_id'] }}")
    told = summary(made).as_teardown()
    if ApprovalOperator is not None:
        approve = ApprovalOperator(
            task_id="approve",
            subject="Run {{ ti.xcom_pull(task_ids='plan')['nodes'] | length }} nodes of dbt run "
            "{{ ti.xcom_pull(task_ids='plan')['run']['run_id'] }} again?",
            body="```\n{{ ti.xcom_pull(task_ids='plan')['text'] }}\n```",
            defaults="Reject",
            response_timeout=timedelta(hours=24),
        )
        go_on(made) >> approve >> retry >> told
    else:
        go_on(made) >> retry >> told


with DAG(
    dag_id="dbt_repair_scheduled",
    schedule=EVERY,
    start_date=pendulum.datetime(2024, 1, 1, tz="UTC"),
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
            description="Retries of one run at most, with growing pauses between them.",
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
    default_args={
        "owner": "data-engineering",
        "retries": 0,
        "on_failure_callback": alert_on_failure,
    },
    tags=["dbt", "repair"],
    doc_md="""
### Retry what time can mend

Off until you unpause it. Looks at the failed runs of the last day. One whose failures are all
transient (a lock, a lost connection: `docs/failures.md`) is retried, with a bound; any other is
reported once and left to a person.
""",
) as repair_scheduled:

    @task
    def find(**context):
        """Run ids of failed runs whose failures are all transient; reports the others."""

        def report(run, why):
            log.error("%s: %s", run["run_id"], why)
            # Once: in the first round after its quiet time.
            if ended > latest - EVERY:
                tell_of(run["run_id"])

        now = datetime.now(timezone.utc)
        since = (now - timedelta(days=1)).strftime("%Y-%m-%d")
        latest = now - timedelta(minutes=context["params"]["quiet_minutes"])
        found = []
        for run in ask_json(["runs", "--status=failed", f"--since={since}", "-o", "json"])["runs"]:
            ended = datetime.fromisoformat((run["ended"] or run["began"]).replace("Z", "+00:00"))
            if ended > latest:
                log.info("%s: ended just now, left alone", run["run_id"])
                continue
            shown = ask_json(["show", "-o", "json", "--", run["run_id"]])
            classes = sorted({node["class"] for node in shown["failed"]})
            if shown["run"]["attempts"] > context["params"]["attempts"]:
                report(run, f"still failing after {shown['run']['attempts']} attempts")
            elif classes == ["transient"]:
                log.info("%s: transient, retried", run["run_id"])
                found.append(run["run_id"])
            else:
                report(run, f"not retried: {', '.join(classes) or 'it was cut off'}")
        return found

    Retry.partial(
        task_id="retry",
        words=["--on=transient", "--attempts={{ params.attempts }}"],
        max_active_tis_per_dag=1,
    ).expand(run=find())
