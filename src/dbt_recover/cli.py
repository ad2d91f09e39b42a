"""The command line: each command parses, calls one function, echoes, exits.

Modules are imported inside the commands: `dbt-recover --help` costs what click costs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .cli_app import App
from .cli_graph import COMMANDS as DRAWING
from .cli_notify import COMMANDS as TELLING
from .cli_options import (
    chosen,
    echo,
    on_option,
    output_option,
    patience,
    patience_options,
    planning_options,
)
from .cli_record import COMMANDS as RECORDING
from .cli_upkeep import COMMANDS as UPKEEP
from .errors import EXIT_INTERRUPTED, RecoverError, RefusedError

if TYPE_CHECKING:
    from .load import LoadedRun
    from .plan import Plan

F = TypeVar("F", bound=Callable[..., Any])


def _load_file(
    context: click.Context, _parameter: click.Parameter, value: str | None
) -> str | None:
    from .config import read_file

    file = read_file(value, Path.cwd())
    context.default_map = dict(file.options)
    context.meta["dbt_recover.file"] = file
    return value


@click.group(context_settings={"auto_envvar_prefix": "DBT_RECOVER"})
@click.version_option(package_name="dbt-recover")
@click.option(
    "--config",
    metavar="FILE",
    is_eager=True,
    callback=_load_file,
    help="Configuration; else dbt_recover.toml or [tool.dbt-recover], found upwards from here.",
)
@click.option(
    "--archive",
    metavar="URL",
    help="Where runs are kept: s3://bucket/prefix, gs://..., az://..., a path, file://.  [default: "
    ".dbt-recover/ "
    "beside dbt_project.yml]",
)
@click.option(
    "--s3", multiple=True, metavar="NAME=VALUE", help="An S3 option, as endpoint_url=https://..."
)
@click.option("--dbt", metavar="PATH", help="The dbt executable.  [default: dbt on PATH]")
@click.option("--project-dir", metavar="DIR", help="The dbt project, if it is not here.")
@click.option("--profiles-dir", metavar="DIR", help="Where profiles.yml is, for retry.")
@click.option("--spool", metavar="DIR", help="Where records wait for an archive out of reach.")
@click.option(
    "--no-query-tag", is_flag=True, help="Do not tell dbt the run in DBT_RECOVER_QUERY_TAG."
)
@click.option("-v", "--verbose", is_flag=True, help="Say more on stderr.")
@click.pass_context
def cli(context: click.Context, /, **options: Any) -> None:
    """Recover failed dbt runs: what failed, what has to run again, and one command that does it.

    RUN is latest, latest-failed, a date (2026-01-31), a run id or its beginning, the time when it
    began (2026-01-31T06:00:12Z), or a dbt invocation_id. Every option can also come from the environment (DBT_RECOVER_ARCHIVE,
    DBT_RECOVER_RETRY_THREADS) or from the configuration file.
    """
    from .config import check_names

    context.obj = App(context, **options)
    known = {
        "": [p.name or "" for p in cli.params],
        **{name: [p.name or "" for p in c.params] for name, c in cli.commands.items()},
    }
    check_names(context.meta["dbt_recover.file"], known)


@cli.command()
@click.option("--date", metavar="DAY", help="Only this UTC day.")
@click.option("--since", default="", metavar="DAY", help="From this UTC day on.")
@click.option("--until", default="", metavar="DAY", help="Up to this UTC day.")
@click.option(
    "--status",
    default="",
    type=click.Choice(["", "success", "recovered", "failed", "running"]),
    help="Only runs that stand so.",
)
@click.option("--logical-date", default="", metavar="DATE", help="Runs of this Airflow date.")
@click.option(
    "--limit", type=click.IntRange(1), default=20, show_default=True, help="At most so many."
)
@output_option
@click.pass_obj
def runs(app: App, /, date: str | None, output: str, **filters: Any) -> None:
    """Past runs, newest first."""
    from .naming import check_day
    from .render import documents, tables

    for day in (date, filters["since"], filters["until"]):
        check_day(day or "")
    filters.update({"since": date, "until": date} if date else {})
    kept = app.archive()
    found = list(kept.runs(**filters))
    as_json = output == "json"
    echo(documents.dump(documents.runs(found)) if as_json else tables.runs(found, kept.url))


@cli.command()
@click.argument("run", default="latest")
@click.option("--full", is_flag=True, help="Whole error messages and lists.")
@click.option("--logical-date", default="", metavar="DATE", help="The run of this Airflow date.")
@output_option
@click.pass_obj
def show(app: App, run: str, full: bool, logical_date: str, output: str) -> None:
    """One run: its invocations, what failed with the real error, what was held up."""
    from .render import documents, tables

    loaded = app.load(app.archive(), run, logical_date)
    echo(
        documents.dump(documents.show(loaded.state))
        if output == "json"
        else tables.show(loaded.state, loaded.graph, full=full)
    )


@cli.command()
@click.argument("run", default="latest-failed")
@planning_options
@click.option("--ask-dbt", is_flag=True, help="Let dbt tell what the archive does not say.")
@click.option("--text", is_flag=True, help="With -o json: the table, too, as one of its keys.")
@output_option
@click.pass_obj
def plan(
    app: App,
    /,
    run: str,
    output: str,
    logical_date: str | None,
    ask_dbt: bool,
    text: bool = False,
    **given: Any,
) -> None:
    """What retry would run again and why. Does not start dbt unless --ask-dbt is given."""
    from .durations import with_durations
    from .render import documents

    app.from_memory = not ask_dbt
    kept = app.archive(check=False)
    app.deliver(kept)
    kept.check()
    loaded, made = app.plan(kept, run, logical_date, chosen(app.options, given), ask=ask_dbt)
    if app.verbose or "://" not in kept.url:
        # Of another run: in a bucket that is four requests more for what decides nothing.
        made = with_durations(kept, loaded, made)
    table = ""
    if output != "json" or text:
        from .render import tables

        table = tables.plan(made, loaded.state, loaded.graph)
    echo(
        documents.dump(documents.plan(made, loaded.state, table or None))
        if output == "json"
        else table
    )


@cli.command()
@click.argument("run", default="latest-failed")
@planning_options
@on_option
@patience_options("--attempts", "With --on: at most N retries.  [default: 3]")
@click.option(
    "--approved",
    metavar="FILE",
    help="What `plan -o json` printed: refuse to run anything that is not in it.",
)
@click.option("--dry-run", is_flag=True, help="Show the plan and stop.")
@output_option
@click.pass_context
def retry(
    context: click.Context,
    /,
    run: str,
    output: str,
    dry_run: bool,
    logical_date: str | None,
    on: tuple[str, ...],
    attempts: int | None,
    backoff: float | None,
    **given: Any,
) -> None:
    """Run again what has to be, archive the attempt, and say whether the run is now whole.

    With --on it goes on while all failures are of these classes; one of another class stops it at
    once (exit 1, dbt is not started).
    """
    from .carry_out import Retried, refused, retry
    from .insist import insist
    from .latest import keep_latest
    from .render import documents, tables

    if dry_run:
        context.invoke(
            plan, run=run, output=output, logical_date=logical_date, ask_dbt=True, **given
        )
        return
    app: App = context.obj
    again = patience(on, attempts, backoff)
    options = chosen(app.options, given)
    kept = app.archive(check=False)
    app.deliver(kept)
    kept.check()
    seen: list[LoadedRun] = []

    def look() -> tuple[LoadedRun, Plan]:
        if seen:  # the same run as before, read afresh
            found = app.plan(app.archive(), seen[0].place.run_id, None, options, ask=True)
        else:
            found = app.plan(kept, run, logical_date, options, ask=True)
        seen.append(found[0])
        return found

    def once(loaded: LoadedRun, made: Plan) -> Retried:
        for warning in made.warnings:
            if not warning.flag or warning.allowed:
                app.say(f"note: {warning.message}")
        screen = sys.stderr if output == "json" else None
        return retry(app.where(kept), loaded, made, options, dbt=app.options["dbt"], stdout=screen)

    try:
        done = insist(look, once, again, app.say) if again else once(*look())
    except RefusedError:
        if output == "json" and seen:
            echo(documents.dump(documents.retried(refused(seen[-1]))))
        raise
    echo(
        documents.dump(documents.retried(done))
        if output == "json"
        else tables.outcome(done, seen[-1].graph)
    )
    if done.outcome in ("recovered", "already_complete") and not done.elsewhere:
        keep_latest(kept, done.run_id, app.pipelines(), app.say)
    sys.exit(done.exit_code)


@cli.command()
@click.argument("run", default="latest")
@click.option("--to", required=True, metavar="DIR", help="The state directory to write.")
@click.option("--logical-date", default="", metavar="DATE", help="The run of this Airflow date.")
@click.pass_obj
def fetch(app: App, run: str, to: str, logical_date: str) -> None:
    """Write a state directory for any dbt's --state, merged over the run's invocations."""
    from .state_dir import fetch

    kept = app.archive()
    loaded = app.load(kept, run, logical_date)
    fetch(kept, loaded, Path(to), app.project(), os.environ)
    echo(f"wrote {to}: manifest.json and run_results.json of run {loaded.place.run_id}")


@cli.command()
@click.option("--keep", metavar="DIR", help="Leave the project and its archive in this directory.")
@click.pass_obj
def demo(app: App, keep: str | None) -> None:
    """The whole story on an embedded DuckDB project, in a minute, nothing to configure."""
    from .demo import run_demo

    sys.exit(run_demo(click.echo, keep=Path(keep) if keep else None, dbt_path=app.options["dbt"]))


for _command in (*RECORDING, *UPKEEP, *TELLING, *DRAWING):
    cli.add_command(_command)


def main() -> None:
    """The console script. Leaves at once: to take everything apart, object by object, would cost
    a tenth of what `plan` takes."""
    code: object = 1
    try:
        run()
    except SystemExit as exc:
        code = 0 if exc.code is None else exc.code
    finally:
        # Whatever else it was has been printed by now, or is about to be.
        with suppress(BrokenPipeError):
            sys.stdout.flush()
            sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


def run() -> None:
    """The command line: one place where an error becomes an exit code."""
    try:
        sys.exit(cli(standalone_mode=False))
    except click.exceptions.Abort:
        sys.exit(EXIT_INTERRUPTED)
    except click.ClickException as exc:
        exc.show()
        sys.exit(exc.exit_code)
    except RecoverError as exc:
        echo(f"dbt-recover: {exc.message}", err=True)
        echo(f"  {exc.next_step}", err=True)
        sys.exit(exc.exit_code)
    except BrokenPipeError:
        # `dbt-recover runs | head`: nobody reads on, which is fine.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
