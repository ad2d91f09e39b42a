"""The commands that record: exec, archive. As in cli.py, which registers them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .cli_options import echo, patience, patience_options, run_id_option

if TYPE_CHECKING:
    from .cli_app import App


@click.command("exec", context_settings={"allow_interspersed_args": False})
@run_id_option
@click.option("--step", default="", help="Its name in the run.  [default: Airflow's task id]")
@click.option(
    "--resume/--no-resume",
    default=None,
    help="Run only what this step's earlier tries in this run left undone.  [default: under "
    "Airflow from the second try on]",
)
@click.option(
    "--pipeline",
    metavar="FILE",
    help="The steps that the run is to have, as JSON: recorded, so that a retry can go on with "
    "those that never began.",
)
@patience_options("--retry-transient", "Where all failures are transient, retry up to N times.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="-- dbt COMMAND...")
@click.pass_obj
def exec_(
    app: App,
    /,
    run_id: str,
    step: str,
    resume: bool | None,
    pipeline: str | None,
    retry_transient: int | None,
    backoff: float | None,
    command: tuple[str, ...],
) -> None:
    """Run dbt unchanged and archive the invocation, whatever its end. Exits as dbt did."""
    from .context import Identity
    from .pipeline import read_steps

    steps = read_steps(Path(pipeline)) if pipeline else ()
    where = app.where(app.archive(app.project_of(command), check=False))
    again = patience(("transient",) if retry_transient else (), retry_transient, backoff)
    identity = Identity.of(where.environ, run_id, step, steps)
    if resume is None:
        resume = identity.tries > 1 and bool(identity.run_id)
    if resume or again:
        from .resume import exec_or_resume

        sys.exit(exec_or_resume(where, command, identity, resume, again))
    from .execute import exec_command  # dbt waits for what is imported before it

    sys.exit(exec_command(where, command, identity).code)


@click.command()
@click.option(
    "--target-dir",
    default="target",
    show_default=True,
    metavar="DIR",
    help="Where dbt left its artifacts.",
)
@run_id_option
@click.option("--step", default="", help="Its name in the run.")
@click.option("--allow-mixed", is_flag=True, help="Accept a manifest of another invocation.")
@click.option("--resume", is_flag=True, help="Deliver records that earlier could not be delivered.")
@click.pass_obj
def archive(
    app: App, target_dir: str, run_id: str, step: str, allow_mixed: bool, resume: bool
) -> None:
    """Archive what a dbt command that ran without exec left in its target directory."""
    from .context import Identity
    from .finished import archive_finished
    from .leftovers import resume_spools

    where = app.where(app.archive(check=False))
    if resume:
        echo(resume_spools(where, app.project()))
        return
    identity = Identity.of(os.environ, run_id, step)
    done = archive_finished(where, Path(target_dir), identity, allow_mixed=allow_mixed)
    if done.before and identity.run_id not in ("", done.run_id):
        app.say(
            f"dbt-recover: nothing was added to run {identity.run_id}: an invocation belongs to one run"
        )
    echo(
        f"already archived, in run {done.run_id}"
        if done.before
        else f"archived as run {done.run_id}"
    )


COMMANDS = (exec_, archive)
