"""The command for schedulers that run each model by itself: graph. As in cli.py, which registers
it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from .cli_app import App


@click.command()
@click.argument("run", default="latest")
@click.option("--to", required=True, metavar="FILE", help="The file to write.")
@click.option(
    "--manifest", metavar="FILE", help="Of this manifest.json, rather than of a run in the archive."
)
@click.option("--logical-date", default="", metavar="DATE", help="The run of this Airflow date.")
@click.pass_obj
def graph(app: App, run: str, to: str, manifest: str | None, logical_date: str) -> None:
    """Write models, their tests and their order as a small file, for a DAG with a task per model.

    It holds names and selections only, and reading it takes milliseconds, where the manifest takes
    seconds.
    """
    from .errors import DamagedError, UsageError
    from .manifest import read_graph
    from .task_graph import task_graph, write

    if manifest is not None:
        try:
            data = Path(manifest).read_bytes()
        except OSError as exc:
            raise UsageError(f"cannot read {manifest}: {exc.strerror}", hint=_ANEW) from exc
        try:
            read = read_graph(data, name=manifest)
        except DamagedError as exc:
            raise DamagedError(exc.message, hint=exc.hint or _ANEW) from exc
    else:
        loaded = app.load(app.archive(), run, logical_date)
        read = loaded.graph
        if not read.nodes:
            raise UsageError(
                f"run {loaded.place.run_id} left no manifest",
                hint="dbt parse, then: dbt-recover graph --manifest target/manifest.json --to FILE",
            )
    made = task_graph(read)
    write(made, Path(to))
    click.echo(f"wrote {to}: {len(made['nodes'])} tasks")


_ANEW = "write it with: dbt parse"

COMMANDS = (graph,)
