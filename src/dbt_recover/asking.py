"""What only the dbt at hand can tell: today's graph of the project, and what a command selects.

What most plans do without is imported where it is used, as in recover.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from . import checkout
from .context import Where
from .errors import DbtError, exit_code_of
from .graph import Graph
from .interrupts import Interrupts
from .model import Invocation
from .profiles import check_variables, unneeded_target
from .restore import Overrides


class Dbt:
    """Asks the dbt at hand; the other side of load.Asking."""

    def __init__(self, where: Where, overrides: Overrides, dbt: str | None) -> None:
        self._where = where
        self._overrides = overrides
        self._dbt = dbt

    def graph(self, invocation: Invocation, prepare: Callable[[Path], None] | None = None) -> Graph:
        """Today's graph. DbtError if the project cannot be parsed."""
        from .dbt import find_dbt
        from .dbt import run as run_dbt
        from .manifest import read_manifest
        from .restore import restored
        from .surroundings import without_settings

        where = self._where
        executable = find_dbt(self._dbt, where.environ)
        base = restored(invocation, self._overrides, launcher=(executable,), cwd=where.cwd)
        kept = [o for o in base.options if o.name in _PARSE_FLAGS]
        command = msgspec.structs.replace(base, command="parse", options=tuple(kept))
        project = checkout.open_project(command, where.environ, where.cwd, for_dbt=True)
        environ = without_settings(where.environ)
        typed = bool(self._overrides.target or invocation.args.get("target"))
        command = unneeded_target(command, typed, project, environ, where.cwd)
        check_variables(command, project, environ, where.cwd)
        target = checkout.target_path(project, command, where.environ)
        if prepare is not None:
            prepare(target)
        # dbt's words belong on stderr here: stdout is the plan's.
        with Interrupts() as interrupts:
            ended = run_dbt(
                command.argv(), interrupts, env=environ, cwd=where.cwd, stdout=sys.stderr
            )
        path = target / "manifest.json"
        if interrupts.received:
            raise SystemExit(exit_code_of(interrupts.received))
        if ended.exit_code != 0 or not path.is_file():
            raise DbtError(
                f"dbt could not parse the project (exit code {ended.exit_code})",
                hint="its output above says why; mend it and retry again",
            )
        return read_manifest(path.read_bytes(), name=str(path))[1]

    def scope(self, invocation: Invocation) -> frozenset[str] | None:
        """What the invocation selects, by `dbt ls`."""
        from .dbt import find_dbt
        from .scope import ask_dbt

        return ask_dbt(
            invocation,
            self._overrides,
            executable=find_dbt(self._dbt, self._where.environ),
            environ=self._where.environ,
            cwd=self._where.cwd,
        )


_PARSE_FLAGS = frozenset(
    {"--profiles-dir", "--project-dir", "--profile", "--target", "--vars", "--target-path"}
)
