"""The command that tells others: notify. As in cli.py, which registers it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from .cli_options import echo

if TYPE_CHECKING:
    from .cli_app import App


@click.command()
@click.argument("run", default="latest")
@click.option(
    "--to",
    type=click.Choice(["slack", "webhook", "stdout"]),
    default="stdout",
    show_default=True,
    help="Where it goes: Slack's incoming webhook, any other as JSON, or here as text.",
)
@click.option(
    "--webhook-url",
    metavar="URL",
    help="Where to post. It is a secret: rather set the variable than the flag.",
)
@click.option("--print", "only_print", is_flag=True, help="Print what would be posted, as JSON.")
@click.option("--log-url", default="", metavar="URL", help="A link to the log, as Airflow's.")
@click.option("--full", is_flag=True, help="Whole errors, with the values that they quote.")
@click.option("--always", is_flag=True, help="Also of a run that succeeded at once, or is at work.")
@click.option("--logical-date", default="", metavar="DATE", help="The run of this Airflow date.")
@click.pass_obj
def notify(
    app: App,
    run: str,
    to: str,
    webhook_url: str | None,
    only_print: bool,
    log_url: str,
    full: bool,
    always: bool,
    logical_date: str,
) -> None:
    """Tell of a run that failed or recovered: what, why, what it holds up, and the line to paste.

    One line of each error, with quoted values and secrets replaced; never SQL. A webhook that fails
    or hangs is said on stderr within 10 seconds, and the exit code stays 0.
    """
    from .alert import FAILED, RECOVERED, alert_of
    from .command_line import secret_values
    from .errors import UsageError
    from .notify import check_url, post
    from .render import alerts, slack

    if log_url:
        check_url(log_url, "--log-url")
    if to != "stdout" and not only_print:
        if not webhook_url:
            raise UsageError(
                f"--to {to} needs the webhook's address",
                hint="set DBT_RECOVER_NOTIFY_WEBHOOK_URL, or webhook_url under [notify] in "
                "dbt_recover.toml",
            )
        check_url(webhook_url, "the webhook's address")
    hidden = [*secret_values(os.environ), *([webhook_url] if webhook_url else [])]
    loaded = app.load(app.archive(), run, logical_date)
    alert = alert_of(loaded, full=full, log_url=log_url, hidden=hidden)
    if alert.status not in (FAILED, RECOVERED) and not always:
        app.say(f"nothing to tell: {alerts.headline(alert)} (--always tells it all the same)")
        return
    if to == "stdout":
        echo(alerts.text(alert, full=full))
        return
    made = slack.message(alert, full=full) if to == "slack" else alerts.document(alert)
    if only_print:
        import json

        click.echo(json.dumps(made, ensure_ascii=False))
        return
    trouble = post(webhook_url or "", made)
    app.say(
        f"dbt-recover: {to} was not told of run {alert.run_id}: {trouble}"
        if trouble
        else f"{to} was told: {alerts.headline(alert)}"
    )


COMMANDS = (notify,)
