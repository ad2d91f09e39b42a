"""What the repair DAGs share: the form's params, the retry as a task, and who is told of it."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from recover_airflow import (
    HAS_APPROVALS,
    AirflowException,
    AirflowFailException,
    AirflowSkipException,
    BaseOperator,
    Param,
)
from recover_alert import escaped, tell_slack
from recover_dbt import (
    LOCKED,
    NOT_FOUND,
    POOL,
    REFUSED,
    WRONG,
    Command,
    Context,
    Ended,
    ask,
    environment,
)

log = logging.getLogger("recover_dbt")

# ---- the form ----------------------------------------------------------------------------------

END = r"(?![\s\S])"
"""The end of a value, in Python and in the browser: $ would let a line break pass."""
NO_DOTS = r"(?!.*\.\.)"
ALLOWED = {
    "drift": "other code was edited",
    "non-idempotent": "rows may be added twice",
    "other-project": "it is another dbt project",
    "other-target": "it is another target",
    "unknown-scope": "more may be left undone",
    "unknown-settings": "dbt v2 ran without exec: vars and target are those given here",
    "older-run": "a later run has built the same",
    "failed-hooks": "a hook failed, and what it should have done was done by other means",
}
"""What a repair can be allowed -> what is known to whoever allows it. The flag is `--allow-NAME`."""
FLAGS = {"failed-hooks": "--ignore-failed-hooks"}
"""Those whose flag is another."""
TESTS, STRATEGIES = ("rebuild", "recheck"), ("auto", "select", "retry", "defer")

PARAMS: dict[str, Param] = {
    "run": Param(
        "latest-failed",
        type="string",
        title="Run",
        description="Which run: latest-failed; a run id as in the alert; or a day, of which it is "
        "the latest failed run. A day is the UTC day on which the run began, not the day or the "
        "timezone that its DAG run is about.",
        pattern=rf"^{NO_DOTS}\w[\w.:+/@=~-]*( [\w.:+/@=~-]+)*{END}",
        maxLength=300,
        examples=[
            "latest-failed",
            "2026-01-31",
            "analytics_dbt_pipeline/scheduled__2026-01-31T06:00:00+00:00",
        ],
    ),
    "dry_run": Param(
        not HAS_APPROVALS,
        type="boolean",
        title="Dry run",
        description="Show the plan and stop. "
        + (
            "This Airflow has no approvals, so this is on: look at the plan in the log of the task "
            "`plan`, then trigger again with this off."
            if not HAS_APPROVALS
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
        description="A dbt selection: only these nodes of the plan. Empty: all of it. Names, tags and "
        "paths, with + and *, separated by blanks; no quotes.",
        pattern=rf"^{NO_DOTS}([\w@+*][\w.:+*@,/-]*( [\w@+*][\w.:+*@,/-]*)*)?{END}",
        maxLength=1000,
        examples=["stg_events+", "tag:staging", "path:models/marts stg_accounts"],
    ),
    "vars": Param(
        None,
        type=["null", "object"],
        title="Vars",
        description="dbt vars laid over those of the run, which are restored. They are shown with "
        "this DAG run, so give a secret through the workers' environment (docs/airflow.md), and "
        "then leave this empty: it replaces the vars given there, all of them.",
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


def checked(params: Mapping[str, Any]) -> dict[str, Any]:
    """The params once more as the schema has them: conf can come in on ways that no form checks.
    Raises AirflowFailException for what is not as it should be."""
    for name, param in PARAMS.items():
        try:
            Param(param.value, **param.schema).resolve(params[name])
        except Exception as error:  # noqa: BLE001 - Airflow's and jsonschema's own
            raise AirflowFailException(f"param {name} is refused: {error}") from None
    return dict(params)


def options(params: Mapping[str, Any]) -> list[str]:
    """The params as words of `plan` and `retry`: each value is part of one word, after its `=`."""
    words = [f"--strategy={params['strategy']}", f"--tests={params['tests']}"]
    if params["select"]:
        words += [f"--select={each}" for each in params["select"].split()]
    if params["vars"]:
        words.append(f"--vars={json.dumps(params['vars'])}")
    if params["target"]:
        words.append(f"--target={params['target']}")
    return words + [flag_of(each) for each in params["allow"]]


def flag_of(name: str) -> str:
    """The option that allows it."""
    return FLAGS.get(name, f"--allow-{name}")


# ---- the retry ---------------------------------------------------------------------------------


def refusal(run: str, why: str) -> AirflowFailException:
    """What to say when a warning stops a retry; `why` names the flags that allow it."""
    known = [name for name in ALLOWED if re.search(rf"{flag_of(name)}(?![\w-])", why)]
    again = f"\nThen trigger dbt_repair again with run {run}"
    if known:
        again = (
            f"\nIf that is fine, trigger dbt_repair again with run {run} and, under `Go on though` "
            f"(allow): {json.dumps(known)}"
        )
    return AirflowFailException(
        f"refused for safety, nothing was run: {why}{again} (exit code {REFUSED})"
    )


def what_stops(made: Mapping[str, Any]) -> AirflowException | None:
    """What a retry of this plan would end with before it began; None if nothing stops it."""
    run, nothing = made["run"]["run_id"], made["nothing_to_run"]
    if nothing is None:
        busy = [w["message"] for w in made["warnings"] if w["code"] == "at_work"]
        if busy:
            return AirflowFailException(f"locked, nothing was run: {busy[0]} (exit code {LOCKED})")
        stops = [f"{w['message']} ({w['flag']})" for w in made["warnings"] if w["stops"]]
        return refusal(run, "\nalso: ".join(stops)) if stops else None
    why = f"{nothing['message']}\n  {nothing['next_step']}"
    if nothing["outcome"] == "already_complete":
        return None
    if nothing["outcome"] == "running":
        return AirflowFailException(f"locked, nothing was run: {why} (exit code {LOCKED})")
    if nothing["outcome"] == "refused":
        return refusal(run, why)
    return AirflowFailException(
        f"nothing was run: {why}\nThen trigger dbt_repair again with `Only these` (select) empty, or "
        "with some of these (exit code 1)"
    )


def failure(run: str, ended: Ended) -> AirflowException:
    """What to raise for a plan or a retry that ended with another exit code than 0."""
    if ended.code == LOCKED:
        return AirflowFailException(
            f"locked, nothing was run: somebody is at work on run {run}\n{ended.why} "
            f"(exit code {LOCKED})"
        )
    if ended.code == REFUSED:
        return refusal(run, ended.why)
    if ended.code in (WRONG, NOT_FOUND):  # its own words name the param
        return AirflowFailException(f"{ended.why} (exit code {ended.code})")
    return ended.failure(f"repair of run {run}")


def outcome(run: str, ended: Ended) -> dict[str, Any]:
    """The JSON of a retry that ended. Raises what its exit code means."""
    done: dict[str, Any] = json.loads(ended.out) if ended.out.strip() else {}
    failing = [
        f"{node['unique_id']} ({node['class']}): {node['message'] or node['status']}"
        for node in done.get("still_failing", ())
    ]
    if ended.code == 1 and failing:
        more = f"\nand {len(failing) - 5} more" if len(failing) > 5 else ""
        raise AirflowException(
            f"run {run}: {len(failing)} still failing (exit code 1). Mend the cause, then "
            "trigger dbt_repair again\n" + "\n".join(failing[:5]) + more
        )
    if ended.code:
        raise failure(run, ended)
    if done["outcome"] == "already_complete":
        log.info("run %s is complete: nothing to do", done["run_id"])
    else:
        log.info("run %s: %s, %s nodes run", done["run_id"], done["outcome"], len(done["executed"]))
    return done


def at_work(context: Context, run: str) -> str:
    """Why a run of this Airflow must be left alone: its own tasks would run beside the retry, also
    while none is at work, between two of them or before a next try. '' if nothing is known."""
    dag_id, _, run_id = run.partition("/")
    try:
        task_instance = context["ti"]
        if hasattr(task_instance, "get_dagrun_state"):
            state = task_instance.get_dagrun_state(dag_id=dag_id, run_id=run_id)
        else:  # Airflow 2
            from airflow.models.dagrun import DagRun

            state = next((found.state for found in DagRun.find(dag_id=dag_id, run_id=run_id)), "")
    except Exception as error:  # noqa: BLE001 - a run of no Airflow, or of another one
        log.debug("%s is no DAG run of this Airflow: %s", run, error)
        return ""
    state = str(getattr(state, "value", state))
    if state not in ("queued", "running"):
        return ""
    return (
        f"locked, nothing was run: Airflow's own DAG run {run_id} of {dag_id} is {state}. Wait until "
        f"it has ended, or mark it as failed there (exit code {LOCKED})"
    )


class Retry(BaseOperator):
    """`dbt-recover retry` of one run. Returns its JSON; fails with what its exit code means."""

    template_fields: Sequence[str] = ("run", "words")
    ui_color = "#d3f0e0"

    def __init__(
        self,
        *,
        run: str,
        words: Sequence[str] = (),
        by_itself: bool = False,
        again: bool = False,
        **kwargs: Any,
    ) -> None:
        """`run`: its id. `words`: options of retry. `by_itself`: nobody has asked for this and
        nobody waits for it, so it gives way to whoever is at work, and Slack is told how it went.
        `again`: so was this tried before, and dbt did not begin, so Slack is not told that again."""
        super().__init__(**{"pool": POOL, "retries": 0, **kwargs})
        self.run = run
        self.words = list(words)
        self.by_itself = by_itself
        self.again = again
        self._command: Command | None = None

    def execute(self, context: Context) -> dict[str, Any]:
        """Retry, and say what came of it."""
        if busy := at_work(context, self.run):
            raise (AirflowSkipException if self.by_itself else AirflowFailException)(busy)
        try:
            done = self._retry(self.words)
        except AirflowSkipException:
            raise
        except AirflowException as error:
            # A retry that runs dbt moves the run's end: the next round's is not `again`.
            if self.by_itself and not (self.again and isinstance(error, AirflowFailException)):
                why = str(error).partition("\n")[0]
                tell_of(self.run, f"{context['ti'].dag_id}: {why}")
            raise
        if self.by_itself:
            tell_of(self.run, f"{context['ti'].dag_id}: {done['outcome']}")
        return done

    def _retry(self, words: Sequence[str]) -> dict[str, Any]:
        words = ["retry", *words, "-o", "json", "--", self.run]
        self._command = Command(words, environment(), capture=True)
        ended = self._command.wait()
        if ended.code == LOCKED and self.by_itself:
            raise AirflowSkipException(f"somebody else is at work on it\n{ended.why}")
        return outcome(self.run, ended)

    def on_kill(self) -> None:
        """dbt cancels its queries, and what it has done is recorded."""
        if self._command is not None:
            self._command.stop()


def tell_of(run: str, said: str = "") -> None:
    """What `dbt-recover notify` says of a run, to the log and to Slack, below what `said` says; only
    that if the run cannot be read. Never raises: it decides nothing about the run."""
    said = escaped(said, 2900)
    try:
        ended = ask(["notify", "--to=slack", "--print", "--always", "--", run])
        if ended.code:
            raise ended.failure(f"dbt-recover notify {run}")
        message = json.loads(ended.out)
    except (AirflowException, ValueError) as error:
        log.error("%s", error)  # noqa: TRY400 - the command's own words say it
        known = f"dbt run {escaped(run)}: its record cannot be read"
        tell_slack({"text": f"{said}\n{known}" if said else known})
        return
    log.info("%s", message.get("text"))
    if said:
        text = {"type": "mrkdwn", "text": said}
        message.setdefault("blocks", []).insert(0, {"type": "section", "text": text})
    tell_slack(message)
