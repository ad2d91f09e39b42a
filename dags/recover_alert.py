"""How a run stands, for people: the summary and the alert, from the archive, by any worker."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

from recover_airflow import AirflowException
from recover_dbt import NOT_FOUND, Context, ask, run_of

SLACK_CONN_ID = os.environ.get("DBT_RECOVER_SLACK_CONN_ID", "slack_data_alerts")
SLACK_SECONDS = 10
"""How long a webhook may take."""

log = logging.getLogger("recover_dbt")


def summarise(context: Context) -> dict[str, Any]:
    """Totals of this DAG run's dbt run, as the archive has them: from any worker."""
    run = run_of(context)
    ended = ask(["show", "-o", "json", "--", run], context)
    if ended.code == NOT_FOUND:
        log.info("run %s: dbt did not begin", run)
        return _totals(run, {"run": {"status": "never began", "total": 0}, "counts": {}})
    if ended.code:
        raise ended.failure(f"dbt-recover show {run}")
    return _totals(run, json.loads(ended.out))


def _totals(run: str, shown: Mapping[str, Any]) -> dict[str, Any]:
    counts = shown["counts"]
    return {
        "run": run,
        "status": shown["run"]["status"],
        "total": shown["run"]["total"],
        "success": sum(counts.get(s, 0) for s in ("success", "pass", "warn", "no-op", "reused")),
        "error": sum(
            counts.get(s, 0) for s in ("error", "fail", "runtime error", "partial success")
        ),
        "skipped": counts.get("skipped", 0),
        "never_started": len(shown.get("never_started", ())),
        "failed_models": [node["unique_id"] for node in shown.get("failed", ())],
        "slowest": [
            [node["unique_id"], round(node["execution_time"], 1)]
            for node in shown.get("slowest", ())[:5]
        ],
    }


def summary_text(totals: Mapping[str, Any]) -> str:
    """The totals for people, in Slack's notation."""
    whole = totals["status"] in ("success", "recovered")
    mark = ":white_check_mark:" if whole else ":warning:"
    counted = [("success", "succeeded"), ("error", "failed"), ("skipped", "skipped")]
    counted.append(("never_started", "not begun"))
    lines = [
        f"{mark} *dbt run {totals['status']}* `{totals['run']}`",
        f"{totals['total']} nodes: " + ", ".join(f"{totals[k]} {word}" for k, word in counted),
    ]
    if totals["failed_models"]:
        lines.append("failed: " + ", ".join(f"`{name}`" for name in totals["failed_models"][:20]))
    if totals["slowest"]:
        lines.append("slowest: " + ", ".join(f"`{n}` {s:.1f} s" for n, s in totals["slowest"]))
    return "\n".join(lines)


# ---- the alert ---------------------------------------------------------------------------------


def alert_on_failure(context: Context) -> None:
    """on_failure_callback: what failed, why, what it holds up and the line to paste, to Slack; to
    the log if Slack cannot be told. Needs the archive only, none of the failed worker's files.
    Never raises: the failure itself must not be lost for it."""
    try:
        tell_slack(_alert(context))
    except Exception:
        log.exception("the alert could not be made; the task has failed all the same")


def _alert(context: Context) -> dict[str, Any]:
    task_instance = context["ti"]
    link = getattr(task_instance, "log_url", "") or ""
    words = ["notify", "--to=slack", "--print", "--", run_of(context)]
    so_far = ""
    try:
        if link.startswith(("http://", "https://")):
            words.insert(3, f"--log-url={link}")
        ended = ask(words, context)
        if ended.code == 0 and ended.out.strip():
            message: dict[str, Any] = json.loads(ended.out)
            also = {"type": "mrkdwn", "text": "Or in Airflow: trigger `dbt_repair`."}
            message.setdefault("blocks", []).append({"type": "section", "text": also})
            return message
        reason = ended.why
        if ended.code == 0:
            so_far = _failed_so_far(context)
    except (AirflowException, ValueError) as error:
        reason = str(error)
    # dbt never began (a sensor gave up, no archive), or other tasks of the run are still at work:
    # Airflow's own words then.
    log.info("dbt-recover has nothing to tell of this run: %s", reason)
    said = str(context.get("exception") or "").strip() or "it does not say why"
    text = (
        f":red_circle: *{escaped(task_instance.dag_id)}*: task `{escaped(task_instance.task_id)}` "
        f"failed, run `{escaped(task_instance.run_id)}`\n{escaped(said.splitlines()[0], 500)}{so_far}"
    )
    return {"text": f"{text}\n<{escaped(link).replace('|', '%7C')}|Log>" if link else text}


def _failed_so_far(context: Context) -> str:
    """What has failed in a run of which other tasks are still at work; '' if nothing has."""
    words = ["notify", "--to=webhook", "--print", "--always", "--", run_of(context)]
    ended = ask(words, context)
    if ended.code or not ended.out.strip():
        return ""
    alert = json.loads(ended.out)
    causes = [
        *(("dbt itself", cause) for cause in alert["gave_up"]),
        *((f"`{escaped(cause['name'])}`", cause) for cause in alert["failed"]),
    ]
    if not causes:
        return ""
    lines = [
        f"{name} ({cause['class']}): {escaped(cause['error'].partition(chr(10))[0], 300)}"
        for name, cause in causes[:5]
    ]
    more = [f"and {len(causes) - 5} more"] if len(causes) > 5 else []
    head = "Failed so far; other tasks of the run are still at work:"
    return "\n".join(["", head, *lines, *more, "When they have ended, trigger `dbt_repair`."])


def escaped(text: str, limit: int = 1000) -> str:
    """At most so many characters of a text, as Slack wants them: none is a link or a mention."""
    text = text[:limit]
    for sign, written in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(sign, written)
    return text


def tell_slack(message: Mapping[str, Any]) -> bool:
    """Post a message through Airflow's Slack provider; into the log if that fails or hangs.
    Returns whether Slack took it. Never raises."""
    try:
        from airflow.providers.slack.hooks.slack_webhook import SlackWebhookHook

        hook = SlackWebhookHook(slack_webhook_conn_id=SLACK_CONN_ID, timeout=SLACK_SECONDS)
        told = _within(SLACK_SECONDS * 2, lambda: hook.send_dict(dict(message)))
    except Exception as error:  # noqa: BLE001 - whatever Slack's library raises
        # Not the traceback: it can hold the webhook's address, which is a secret.
        why = type(error).__name__
        if why == "AirflowNotFoundException":
            why = f"there is no Airflow connection {SLACK_CONN_ID}: docs/airflow.md"
        log.error("Slack was not told (%s). The message:\n%s", why, _text(message))  # noqa: TRY400
        return False
    if not told:
        log.error("Slack did not answer in time. The message:\n%s", _text(message))
    return told


def _within(seconds: float, post: Callable[[], object]) -> bool:
    """Whether the call came back; its exception is raised here. A webhook that sends a byte now and
    then outlasts every timeout of a socket."""
    failed: list[BaseException] = []

    def work() -> None:
        try:
            post()
        except BaseException as error:  # noqa: BLE001 - raised below, in the caller's thread
            failed.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    return not thread.is_alive()


def _text(message: Any) -> str:
    """Every text of a message, in its order, each once."""
    found: dict[str, None] = {}
    waiting = [message]
    while waiting:
        part = waiting.pop(0)
        if isinstance(part, Mapping):
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part
        elif isinstance(part, str) and " " in part:
            found[part] = None
    return "\n".join(found)
