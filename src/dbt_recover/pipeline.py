"""The declared pipeline: which steps a run should have, so that a retry can resume those that
never began. Without a declaration nobody can know: dbt sees one command at a time.

    [[pipeline]]
    run = "analytics/*"          # which runs it is about, a glob on the run id; default all
    [[pipeline.steps]]
    name = "run_staging"         # as in `exec --step`, or Airflow's task id
    command = "dbt run --select tag:staging"
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from .command_line import RUNNING, SELECTION, DbtCommand
from .errors import UsageError
from .model import DeclaredStep, Invocation

_SHAPE = (
    'write [[pipeline]] with run = "...", and [[pipeline.steps]] with name = "..." and '
    'command = "dbt run --select ..."'
)


@dataclass(frozen=True)
class Step:
    """One dbt command of a pipeline."""

    name: str
    command: DbtCommand


@dataclass(frozen=True)
class Pipeline:
    """Steps in their order, and the runs they are about."""

    run: str
    steps: tuple[Step, ...]


def read_pipelines(table: Any, source: str) -> tuple[Pipeline, ...]:
    """From the configuration file's `pipeline`; UsageError names what is wrong in `source`."""
    entries = [table] if isinstance(table, Mapping) else table or []
    if not isinstance(entries, list):
        raise UsageError(f"{source}: pipeline must be a table or an array of tables", hint=_SHAPE)
    return tuple(_pipeline(entry, source) for entry in entries)


def _pipeline(entry: Any, source: str) -> Pipeline:
    if not isinstance(entry, Mapping) or entry.keys() - {"run", "steps"}:
        raise UsageError(f"{source}: a pipeline has `run` and `steps`, nothing else", hint=_SHAPE)
    steps = entry.get("steps")
    if not isinstance(steps, Sequence) or isinstance(steps, str) or not steps:
        raise UsageError(
            f"{source}: a pipeline needs steps",
            hint=_SHAPE,
        )
    made = tuple(_step(s, source) for s in steps)
    names = [s.name for s in made]
    if len(set(names)) < len(names):
        raise UsageError(
            f"{source}: two steps of a pipeline have the same name", hint="give each its own"
        )
    return Pipeline(str(entry.get("run", "*")), made)


def _step(entry: Any, source: str) -> Step:
    if not isinstance(entry, Mapping) or entry.keys() != {"name", "command"}:
        raise UsageError(f"{source}: a step has `name` and `command`: {entry!r}", hint=_SHAPE)
    words = entry["command"]
    argv = shlex.split(words) if isinstance(words, str) else [str(w) for w in words]
    command = DbtCommand.parse(argv)
    if command.command not in RUNNING - {"retry"}:
        raise UsageError(
            f"{source}: step {entry['name']}: {words!r} is no dbt command that executes nodes",
            hint="build, run, test, seed or snapshot",
        )
    return Step(str(entry["name"]), command)


def read_steps(path: Path) -> tuple[DeclaredStep, ...]:
    """From a JSON file, a list of {"name", "command"} as under [[pipeline.steps]]; UsageError names
    what is wrong in it."""
    try:
        document = json.loads(path.read_bytes())
    except OSError as exc:
        raise UsageError(f"cannot read {path}: {exc.strerror}") from exc
    except ValueError as exc:
        raise UsageError(f"{path} is not JSON: {exc}") from exc
    made = _pipeline({"steps": document}, str(path)).steps
    return tuple(DeclaredStep(s.name, s.command.argv()) for s in made)


def declared(invocations: Sequence[Invocation]) -> Pipeline | None:
    """What the run's own record says of its steps: `exec --pipeline`, of the first that said it."""
    steps = next((i.pipeline for i in invocations if i.pipeline), None)
    if steps is None:
        return None
    read = [Step(s.name, DbtCommand.parse(s.argv)) for s in steps]
    return Pipeline("*", tuple(s for s in read if s.command.command in RUNNING - {"retry"}))


def pipeline_of(pipelines: Sequence[Pipeline], run_id: str) -> Pipeline | None:
    """The first one that is about this run."""
    return next((p for p in pipelines if fnmatchcase(run_id, p.run)), None)


def never_begun(
    pipeline: Pipeline, begun: Sequence[tuple[str, Sequence[str]]]
) -> list[tuple[int, Step]]:
    """Steps of which no invocation is known, with their position. `begun`: (step name, argv)
    of the run's invocations; one without a name counts for the step with the same command."""
    names = {name for name, _ in begun if name}
    commands = [DbtCommand.parse(argv) for name, argv in begun if argv and not name]
    return [
        (position, step)
        for position, step in enumerate(pipeline.steps)
        if step.name not in names and not any(same_step(step.command, c) for c in commands)
    ]


def same_step(one: DbtCommand, other: DbtCommand) -> bool:
    """Whether two commands are the same step, perhaps of different days: the same dbt command
    with the same selection."""
    return _shape(one) == _shape(other)


def _shape(command: DbtCommand) -> tuple[str, tuple[str, ...]]:
    chosen = sorted(" ".join((o.name, *o.values)) for o in command.options if o.name in SELECTION)
    return command.command, tuple(chosen)
