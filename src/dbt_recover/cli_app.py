"""What the global options mean: the archive, the project, the run that RUN names.

As in cli.py, modules are imported when a command asks for what they make.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .cli_options import echo

if TYPE_CHECKING:
    from .archive import Archive
    from .checkout import Project
    from .command_line import DbtCommand
    from .context import Where
    from .load import Asking, LoadedRun
    from .pipeline import Pipeline
    from .plan import Plan
    from .recover import Options


_held: list[object] = []
"""What was read: taken apart, object by object, when nobody needs it any more, it would take longer than
to make a plan of it. It goes with the process (cli.main)."""


class App:
    """What the global options say, made into things when a command asks for them."""

    def __init__(self, context: click.Context, **options: Any) -> None:
        self.context = context
        self.options = options
        self.verbose: bool = options["verbose"]
        self.from_memory = False
        """Whether what is known of the project's files from the last time will do."""
        self._found: Project | None = None

    def project(self) -> Project | None:
        """The dbt project that --project-dir names or that we are in."""
        self._found = self._found or self._project(None)
        return self._found

    def project_of(self, command: tuple[str, ...]) -> Project | None:
        """The project that a dbt command is about."""
        from .command_line import DbtCommand

        return self._project(DbtCommand.parse(command))

    def _project(self, command: DbtCommand | None) -> Project | None:
        """One that cannot be read is without a name: dbt says best what is wrong with it, and
        looking at past runs needs none."""
        from . import checkout
        from .errors import UsageError

        given = self.options["project_dir"] or ""
        environ = {**os.environ, **({"DBT_PROJECT_DIR": given} if given else {})}
        try:
            return checkout.open_project(
                command, environ, Path.cwd(), for_dbt=True, from_memory=self.from_memory
            )
        except UsageError:
            if given or (command is not None and command.value("--project-dir")):
                raise
            return None

    def archive(self, project: Project | None = None, *, check: bool = True) -> Archive:
        """The archive that --archive names, or the one in the project's `.dbt-recover/`."""
        from .archive import Archive
        from .config import s3_options
        from .errors import UsageError
        from .storage import open_storage

        url = self.options["archive"]
        base = self.file().path.parent if url and self._from_file("archive") else None
        if not url:
            project = project or self.project()
            if project is None:
                raise UsageError(
                    "which archive? There is no --archive, and this is not a dbt project",
                    hint="pass --archive URL (DBT_RECOVER_ARCHIVE), or go to the dbt project",
                )
            url = str(project.root / ".dbt-recover")
        s3 = s3_options(self.file(), self.options["s3"], os.environ)
        archive = Archive(open_storage(url, s3, base=base))
        if check:
            archive.check()
        return archive

    def file(self) -> Any:
        """The configuration file."""
        return self.context.meta["dbt_recover.file"]

    def _from_file(self, name: str) -> bool:
        source = self.context.get_parameter_source(name)
        return source is click.core.ParameterSource.DEFAULT_MAP

    def where(self, archive: Archive) -> Where:
        """Where dbt will run, and who is told."""
        from .context import Where

        spool = self.options["spool"]
        environ = dict(os.environ)
        if self.options["project_dir"]:
            environ["DBT_PROJECT_DIR"] = str(Path(self.options["project_dir"]).resolve())
        if self.options["no_query_tag"]:
            environ["DBT_RECOVER_QUERY_TAG"] = ""
        return Where(
            archive, environ, Path.cwd(), self.say, Path(spool).resolve() if spool else None
        )

    def say(self, text: str) -> None:
        """To the person, on stderr."""
        echo(text, err=True)

    def pipelines(self) -> tuple[Pipeline, ...]:
        """The declared pipelines."""
        if not self.file().pipeline:
            return ()
        from .pipeline import read_pipelines

        return read_pipelines(self.file().pipeline, str(self.file().path))

    def deliver(self, archive: Archive) -> None:
        """What a recorder that was killed here knew more of a run than the archive does."""
        project = self.project()
        if project is not None and not self.options["spool"] and os.access(project.root, os.W_OK):
            waiting = project.root / ".dbt-recover" / "spool"
            if not waiting.is_dir():
                return  # nothing waits: nothing to import
        from .leftovers import deliver_leftovers, spool_home

        where = self.where(archive)
        deliver_leftovers(where, spool_home(where, project), quiet=True)

    def load(
        self,
        archive: Archive,
        run: str,
        logical_date: str | None,
        asking: Asking | None = None,
        *,
        later: bool = False,
    ) -> LoadedRun:
        """The run that RUN names. `later`: whoever asks will look for later runs, too."""
        from .load import load
        from .naming import resolve

        place = resolve(archive, run, logical_date=logical_date or "")
        if later:
            archive.list_since(place.date)
        loaded = load(
            archive, place, project=self.project(), pipelines=self.pipelines(), asking=asking
        )
        _held.append(loaded)
        return loaded

    def plan(
        self,
        archive: Archive,
        run: str,
        logical_date: str | None,
        options: Options,
        *,
        ask: bool,
    ) -> tuple[LoadedRun, Plan]:
        """The run that RUN names, and what is to be done about it."""
        from .recover import plan_run

        asking: Asking | None = None
        if ask:
            from .asking import Dbt

            asking = Dbt(self.where(archive), options.overrides, self.options["dbt"])
        loaded = self.load(archive, run, logical_date, asking, later=True)
        made = plan_run(
            loaded,
            options,
            self.project(),
            archive=archive,
            pipelines=self.pipelines(),
            asking=asking,
            preview=not ask,
        )
        if options.favor_state:
            from .stages import check_favored, stages

            check_favored(stages(made, loaded), loaded.graph)
        return loaded, made
