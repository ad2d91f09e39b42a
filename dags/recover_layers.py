"""The steps of a pipeline that runs through dbt-recover, and its layers as data."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from recover_airflow import BaseOperator
from recover_dbt import POOL, Command, Context, dbt, environment

RETRY_DELAY = timedelta(seconds=float(os.environ.get("DBT_RECOVER_RETRY_SECONDS", "300")))

log = logging.getLogger("recover_dbt")

RUN_TASK: dict[str, Any] = {
    "retries": 2,
    "retry_delay": RETRY_DELAY,
    "retry_exponential_backoff": True,
    "execution_timeout": timedelta(hours=2),
}
"""Of tasks that build: time mends what a warehouse refuses now."""
TEST_TASK: dict[str, Any] = {
    "retries": 1,
    "retry_delay": min(RETRY_DELAY, timedelta(minutes=2)),
    "retry_exponential_backoff": False,
    "execution_timeout": timedelta(minutes=30),
}
"""Of tasks that test: a failed test is mostly the data's, and another try delays the alert."""


class DbtStep(BaseOperator):
    """One dbt command, as a step of the run that this DAG run is.

    `words`: the dbt command and its arguments, without `dbt`. A task's own next try runs only what
    the one before left undone. `variables`: dbt's vars, with templates. `pipeline`: all steps of
    the run as (task id, words), so that a retry can go on with those that never began.
    """

    template_fields: Sequence[str] = ("words", "variables")
    ui_color = "#ffe3d3"

    def __init__(
        self,
        *,
        words: Sequence[str],
        variables: Mapping[str, str] | None = None,
        full_refresh: Callable[[Any], bool] | None = None,
        pipeline: Sequence[tuple[str, Sequence[str]]] = (),
        own_target: bool = False,
        **kwargs: Any,
    ) -> None:
        """`full_refresh`: asked with the DAG run. `own_target`: this task runs beside another dbt,
        so it writes into a target directory of its own."""
        super().__init__(**{"pool": POOL, **kwargs})
        self.words = list(words)
        self.variables = dict(variables or {})
        self.full_refresh = full_refresh
        self.pipeline = pipeline
        self.own_target = own_target
        self._command: Command | None = None

    def execute(self, context: Context) -> None:
        """Run it. Raises what its exit code means."""
        words = list(self.words)
        if self.full_refresh is not None and self.full_refresh(context["dag_run"]):
            words.append("--full-refresh")
        if self.variables:
            words.append(f"--vars={json.dumps(self.variables)}")
        env = environment(context)
        if self.own_target:
            target = env.get("DBT_TARGET_PATH") or "target"
            env["DBT_TARGET_PATH"] = str(Path(target, self.task_id))
        with tempfile.TemporaryDirectory(prefix="dbt-steps-") as room:
            declared = []
            if self.pipeline:
                file = Path(room, "pipeline.json")
                steps = [{"name": n, "command": ["dbt", *w]} for n, w in self.pipeline]
                file.write_text(json.dumps(steps))
                declared = [f"--pipeline={file}"]
            # Cleared, perhaps after a repair: what that has built of this step is not built again,
            # though the task itself never began.
            if getattr(context["dag_run"], "clear_number", 0):
                declared.append("--resume")
            log.info("dbt %s", " ".join(words))
            self._command = Command(["exec", *declared, "--", dbt(), *words], env)
            ended = self._command.wait()
        if ended.code:
            raise ended.failure(f"dbt {words[0]}, step {self.task_id}")

    def on_kill(self) -> None:
        """dbt cancels its queries, and what it has done is recorded."""
        if self._command is not None:
            self._command.stop()


@dataclass(frozen=True)
class Layer:
    """One line of a pipeline: run its groups at once, then test them."""

    name: str
    groups: Mapping[str, str] | None = None
    """Task -> dbt selection; None is one group with the tag of the layer's name."""
    tested: bool = True
    full_refresh: Callable[[Any], bool] | None = None
    """When to rebuild incremental models from nothing."""

    @property
    def selections(self) -> Mapping[str, str]:
        """Task -> dbt selection."""
        return self.groups if self.groups is not None else {self.name: f"tag:{self.name}"}

    def steps(self) -> tuple[list[tuple[str, list[str]]], list[tuple[str, list[str]]]]:
        """Its runs and its tests, as (task id, dbt command)."""
        runs = [
            (f"dbt_run_{group}", ["run", "--select", selection])
            for group, selection in self.selections.items()
        ]
        # Not dbt's default, which adds each test that touches the layer: one that also reads a
        # model of a later layer fails before that is built. It runs in the later layer's tests.
        chosen = ["--indirect-selection=buildable", "--select", *self.selections.values()]
        tests = [(f"dbt_test_{self.name}", ["test", *chosen])]
        return runs, tests if self.tested else []


def build_layers(layers: Sequence[Layer]) -> tuple[list[DbtStep], list[DbtStep]]:
    """The tasks of the layers, one layer after another, in the DAG at hand. Returns the first and
    the last ones."""
    variables = {"run_date": "{{ data_day(dag_run) }}"}
    pipeline = [step for layer in layers for part in layer.steps() for step in part]
    stages: list[list[DbtStep]] = []
    for layer in layers:
        runs, tests = layer.steps()
        stages.append(
            [
                DbtStep(
                    task_id=task_id,
                    words=words,
                    variables=variables,
                    full_refresh=layer.full_refresh,
                    pipeline=pipeline,
                    own_target=len(runs) > 1,
                    **RUN_TASK,
                )
                for task_id, words in runs
            ]
        )
        if tests:
            ((task_id, words),) = tests
            stages.append(
                [
                    DbtStep(
                        task_id=task_id,
                        words=words,
                        variables=variables,
                        pipeline=pipeline,
                        **TEST_TASK,
                    )
                ]
            )
    for number, after in enumerate(stages[1:]):
        for before in stages[number]:
            before.set_downstream(after)
    return stages[0], stages[-1]
