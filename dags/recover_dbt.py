"""What the DAGs beside this file share: the command line called from a task, and the layers of a
pipeline as data. recover_alert.py has what tells people.

Imports Airflow and the standard library only. dbt and dbt-recover live in an environment of their
own, found through the worker's environment:

| variable                                  | what it is                                          |
| ----------------------------------------- | --------------------------------------------------- |
| DBT_RECOVER_BIN                           | the dbt-recover executable; else the one on PATH     |
| DBT_RECOVER_DBT                           | the dbt executable; else the one beside dbt-recover  |
| DBT_PROJECT_DIR, DBT_PROFILES_DIR         | where the dbt project and profiles.yml are           |
| DBT_RECOVER_ARCHIVE                       | where runs are kept, for all workers the same        |
| DBT_RECOVER_POOL                          | the Airflow pool of tasks that start dbt             |
| DBT_RECOVER_RETRY_SECONDS                 | before a task's second try; default 300              |
| DBT_RECOVER_SLACK_CONN_ID                 | Airflow connection; default slack_data_alerts        |

No shell is started anywhere: a command is a list of words, and what a person or Airflow says (a
param, conf, a run id) is one whole word after `--option=`, or stands in the environment.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any

try:  # Airflow 3
    from airflow.sdk import BaseOperator
    from airflow.sdk.exceptions import AirflowException, AirflowFailException
except ImportError:  # Airflow 2
    from airflow.exceptions import AirflowException, AirflowFailException
    from airflow.models.baseoperator import BaseOperator

Context = Mapping[str, Any]
POOL = os.environ.get("DBT_RECOVER_POOL", "default_pool")
RETRY_DELAY = timedelta(seconds=float(os.environ.get("DBT_RECOVER_RETRY_SECONDS", "300")))
ASK_SECONDS = 300
"""How long a command may take that only reads the archive."""
_STOP_SECONDS = 40
"""dbt-recover leaves within 30 s of SIGTERM, its record kept."""

log = logging.getLogger("recover_dbt")

# ---- exit codes --------------------------------------------------------------------------------

NOT_FOUND, LOCKED, REFUSED = 10, 11, 12
MEANINGS = {
    1: "nodes are failing",
    2: "dbt or dbt-recover was called wrongly, or dbt could not parse the project",
    NOT_FOUND: "there is no such run or archive",
    LOCKED: "somebody else is at work on this run",
    REFUSED: "refused for safety",
    13: "the archive is damaged",
    14: "the archive cannot be reached",
    15: "dbt did not start, or died before it ran a node",
    130: "interrupted",
    143: "interrupted",
}
"""docs/exit-codes.md. 0 is recovered, or nothing to do, and says which."""


@dataclass
class Ended:
    """A command that ended: its exit code, stdout (where it was asked for), the end of stderr."""

    code: int
    out: str = ""
    said: list[str] = field(default_factory=list)

    @property
    def why(self) -> str:
        """What it said last, as one text."""
        told = [line for line in self.said if line.startswith(("Error", "dbt-recover:", "error"))]
        return "\n".join(told[-5:] or self.said[-5:])

    def failure(self, what: str) -> AirflowException:
        """The exception for an exit code that is not 0. What another try cannot mend does not
        get one."""
        meaning = MEANINGS.get(self.code, f"exit code {self.code}")
        made = AirflowFailException if self.code in (REFUSED, NOT_FOUND, 13) else AirflowException
        return made(f"{what}: {meaning} (exit code {self.code})\n{self.why}")


# ---- a command ---------------------------------------------------------------------------------


def executable() -> str:
    """The dbt-recover of this worker."""
    return os.environ.get("DBT_RECOVER_BIN") or "dbt-recover"


def dbt() -> str:
    """The dbt of this worker."""
    return os.environ.get("DBT_RECOVER_DBT") or "dbt"


def environment(context: Context | None = None, **more: str) -> dict[str, str]:
    """The worker's, with dbt-recover's own directory first on PATH, and who is calling."""
    made = dict(os.environ)
    bin_directory = str(Path(executable()).parent)
    if Path(executable()).is_absolute():
        made["PATH"] = os.pathsep.join((bin_directory, made.get("PATH", os.defpath)))
    # What makes of all tasks of a DAG run one run. Airflow exports them, too; not in callbacks.
    if context is not None:
        task_instance, dag_run = context["ti"], context.get("dag_run")
        made["AIRFLOW_CTX_DAG_ID"] = task_instance.dag_id
        made["AIRFLOW_CTX_DAG_RUN_ID"] = task_instance.run_id
        made["AIRFLOW_CTX_TASK_ID"] = task_instance.task_id
        made["AIRFLOW_CTX_TRY_NUMBER"] = str(task_instance.try_number)
        logical_date = getattr(dag_run, "logical_date", None)
        if logical_date is not None:
            made["AIRFLOW_CTX_LOGICAL_DATE"] = logical_date.isoformat()
    return made | more


class Command:
    """dbt-recover at work. Its output goes to the task's log as it comes."""

    def __init__(self, words: Sequence[str], env: Mapping[str, str], capture: bool = False) -> None:
        """`capture`: keep stdout instead of logging it."""
        self._capture = capture
        try:
            self._process = subprocess.Popen(
                [executable(), *words],
                env=dict(env),
                cwd=env.get("DBT_PROJECT_DIR") or None,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                # Airflow's signals reach it through stop(), which gives it the time to record.
                start_new_session=True,
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509
            )
        except OSError as error:
            raise AirflowFailException(
                f"{executable()} cannot be started: {error.strerror}. Set DBT_RECOVER_BIN to "
                "dbt-recover's path on this worker, and DBT_PROJECT_DIR to the dbt project's"
            ) from error

    def wait(self, seconds: float | None = None) -> Ended:
        """Until it ends; it is stopped if this is interrupted, or lasts longer."""
        ended = Ended(0)
        out: list[str] = []
        readers = [
            threading.Thread(target=self._read, args=(stream, keep, quiet), daemon=True)
            for stream, keep, quiet in (
                (self._process.stdout, out, self._capture),
                (self._process.stderr, ended.said, False),
            )
        ]
        for reader in readers:
            reader.start()
        try:
            ended.code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            ended.said.append(f"stopped after {seconds:.0f} seconds")
            ended.code = 124
        finally:
            self.stop()
            for reader in readers:
                reader.join(5)
        if ended.code < 0:
            ended.code = 128 - ended.code
        ended.out = "".join(out)
        if not self._capture:
            ended.said = [*(line.rstrip("\n") for line in out[-20:]), *ended.said]
        return ended

    def stop(self) -> None:
        """SIGTERM, and time to leave a record; then SIGKILL to all of it."""
        if self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    @staticmethod
    def _read(stream: Any, keep: list[str], quiet: bool) -> None:
        for line in stream:
            keep.append(line if quiet else line.rstrip("\n") + "\n")
            if not quiet:
                log.info("%s", line.rstrip("\n"))


# A task process that is killed outright must not leave dbt at work beside its next try.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


def _end_with_parent() -> None:
    assert _LIBC is not None
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def ask(words: Sequence[str], context: Context | None = None) -> Ended:
    """A command that reads the archive and ends soon; its stdout is kept."""
    return Command(words, environment(context), capture=True).wait(ASK_SECONDS)


def ask_json(words: Sequence[str], context: Context | None = None) -> Any:
    """The same, of a command with `-o json`. Raises for any exit code but 0."""
    ended = ask(words, context)
    if ended.code:
        raise ended.failure(f"dbt-recover {words[0]}")
    return json.loads(ended.out)


def run_of(context: Context) -> str:
    """The run that the tasks of this DAG run form in the archive."""
    return f"{context['ti'].dag_id}/{context['ti'].run_id}"


# ---- days --------------------------------------------------------------------------------------


def data_day(dag_run: Any) -> str:
    """The day a DAG run is about, as 2026-01-31: that of its logical date; of a run that was
    triggered without one (Airflow 3) the day before it was triggered. Templates have it, too."""
    moment = getattr(dag_run, "logical_date", None)
    if moment is None:
        moment = dag_run.run_after - timedelta(days=1)
    return str(moment.strftime("%Y-%m-%d"))


def is_sunday(dag_run: Any) -> bool:
    """Whether the day a DAG run is about is a Sunday."""
    return date.fromisoformat(data_day(dag_run)).weekday() == 6


# ---- steps -------------------------------------------------------------------------------------

RUN_TASK = {
    "retries": 2,
    "retry_delay": RETRY_DELAY,
    "retry_exponential_backoff": True,
    "execution_timeout": timedelta(hours=2),
}
"""Of tasks that build: time mends what a warehouse refuses now."""
TEST_TASK = {
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
            env["DBT_TARGET_PATH"] = f"target/{self.task_id}"
        with tempfile.TemporaryDirectory(prefix="dbt-steps-") as room:
            declared = []
            if self.pipeline:
                file = Path(room, "pipeline.json")
                steps = [{"name": n, "command": ["dbt", *w]} for n, w in self.pipeline]
                file.write_text(json.dumps(steps))
                declared = [f"--pipeline={file}"]
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
