"""The commands that look after the archive and the set-up: verify, prune, unlock, doctor.

As in cli.py, which registers them: parse, call one function, echo, exit.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .cli_options import echo

if TYPE_CHECKING:
    from .cli_app import App

F = TypeVar("F", bound=Callable[..., Any])


def _output(function: F) -> F:
    return click.option(
        "-o",
        "--output",
        type=click.Choice(["table", "json"]),
        default="table",
        show_default=True,
        help="Text for people or JSON for programs.",
    )(function)


@click.command()
@click.argument("run", default="")
@click.option("--sample", type=click.IntRange(1), metavar="N", help="Only N runs, by chance.")
@click.option(
    "--seed", type=int, help="What gives the same sample again.  [default: another each day]"
)
@_output
@click.pass_obj
def verify(app: App, run: str, sample: int | None, seed: int | None, output: str) -> None:
    """Read the whole archive, or one RUN, and name everything that is not what it should be."""
    from datetime import datetime, timezone

    from .naming import locate
    from .render import documents, upkeep
    from .verify import verify

    if run and sample is not None:
        raise click.UsageError("RUN or --sample, not both")
    archive = app.archive()
    place = locate(archive, run) if run else None
    today = datetime.now(timezone.utc).toordinal()
    report = verify(archive, run=place, sample=sample, seed=today if seed is None else seed)
    as_json = output == "json"
    echo(documents.dump(upkeep.verified_document(report)) if as_json else upkeep.verified(report))
    sys.exit(report.exit_code)


@click.command()
@click.option(
    "--keep-days", type=click.IntRange(0, 36500), metavar="N", help="Runs of the last N days."
)
@click.option("--keep-last", type=click.IntRange(1), metavar="N", help="The last N runs.")
@click.option(
    "--keep-last-success",
    is_flag=True,
    help="Of each pipeline (Airflow DAG, else dbt command) its last whole run.",
)
@click.option("--yes", is_flag=True, help="Do it. Without this the plan is shown.")
@_output
@click.pass_obj
def prune(app: App, /, yes: bool, output: str, **policy: Any) -> None:
    """Remove old runs. A run stays if any --keep option keeps it, and one of them must be given.

    Never removed: a run at work, one that is being retried, the one that latest/ is of, and the
    last run of a pipeline while it has failed.
    """
    from datetime import datetime, timezone

    from .prune import Policy, plan_prune, prune
    from .render import documents, upkeep

    wanted = Policy(**policy)
    archive = app.archive()
    plan = plan_prune(archive, wanted, datetime.now(timezone.utc))
    done = prune(archive, plan) if yes else None
    echo(
        documents.dump(upkeep.pruned_document(plan, done))
        if output == "json"
        else upkeep.pruned(plan, done, archive.url)
    )


@click.command()
@click.argument("run")
@click.pass_obj
def unlock(app: App, run: str) -> None:
    """Remove the lease of a run whose holder is gone. A holder that lives stops its dbt."""
    from .lease import unlock
    from .naming import resolve

    archive = app.archive()
    place = resolve(archive, run)
    echo(f"unlocked run {place.run_id}, which was held by {unlock(archive, place)}")


@click.command()
@_output
@click.pass_obj
def doctor(app: App, output: str) -> None:
    """Try what exec and retry need: the archive, dbt, the project; say how to mend what is not so."""
    from .doctor import Surroundings, examine
    from .render import documents, upkeep

    spool = app.options["spool"]
    around = Surroundings(
        partial(app.archive, check=False),
        app.project,
        os.environ,
        app.options["dbt"],
        Path(spool).resolve() if spool else None,
    )
    found = examine(around)
    as_json = output == "json"
    echo(documents.dump(upkeep.examined_document(found)) if as_json else upkeep.examined(found))
    sys.exit(found.exit_code)


COMMANDS = (verify, prune, unlock, doctor)
