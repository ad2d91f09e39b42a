"""What the DAGs beside this file share: dbt-recover called from a task, and what its exit codes
mean. recover_layers.py has the steps of a pipeline, recover_alert.py what tells people.

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
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from recover_airflow import AirflowException, AirflowFailException

Context = Mapping[str, Any]
POOL = os.environ.get("DBT_RECOVER_POOL", "default_pool")
ASK_SECONDS = 300
"""How long a command may take that only reads the archive."""
PARSE_SECONDS = 1800
"""And one that may have to let dbt parse the project."""
_STOP_SECONDS = 40
"""dbt-recover leaves within 30 s of SIGTERM, its record kept."""

log = logging.getLogger("recover_dbt")

# ---- exit codes --------------------------------------------------------------------------------

WRONG, NOT_FOUND, LOCKED, REFUSED = 2, 10, 11, 12
MEANINGS = {
    1: "nodes are failing",
    WRONG: "dbt or dbt-recover was called wrongly, or dbt could not parse the project",
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
        """What it said last, as one text: which nodes dbt says have failed, its own words with what
        to do next, which is indented below them; else the end of dbt's."""
        said = [_COLOURS.sub("", line).rstrip() for line in self.said]
        # Not dbt's message: it can quote a row, and this text can end in an alert.
        failed = {match[1]: match[0] for line in said if (match := _FAILED.search(line))}
        told: list[str] = []
        for line in said:
            if line.startswith("dbt-recover: resuming"):
                continue
            if line.startswith(("Error", "dbt-recover:", "error")):
                told.append(line.removeprefix("dbt-recover: "))
            elif told and (line.startswith(("  ", "also: "))):
                told.append(line)
        return "\n".join([*list(failed.values())[:5], *told[-10:]] or said[-5:])

    def failure(self, what: str) -> AirflowException:
        """The exception for an exit code that is not 0. What another try cannot mend does not
        get one."""
        meaning = MEANINGS.get(self.code, f"exit code {self.code}")
        made = AirflowFailException if self.code in (REFUSED, NOT_FOUND, 13) else AirflowException
        return made(f"{what}: {meaning} (exit code {self.code})\n{self.why}")


_FAILED = re.compile(r"(?:Error|Failure) in [a-z_]+ (\S+) \(.*\)$")
_COLOURS = re.compile("\x1b\\[[0-9;]*m")


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
            project = env.get("DBT_PROJECT_DIR")
            if project and not Path(project).is_dir():
                wrong = (
                    f"there is no directory {project} here. Set DBT_PROJECT_DIR to the dbt project"
                )
            else:
                wrong = (
                    f"{executable()} cannot be started ({error.strerror}). Set DBT_RECOVER_BIN to "
                    "the dbt-recover"
                )
            raise AirflowFailException(f"{wrong} on this worker, {socket.gethostname()}") from error

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
            ended.said = [*(line.rstrip("\n") for line in out[-200:]), *ended.said]
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


def ask(
    words: Sequence[str], context: Context | None = None, *, seconds: float = ASK_SECONDS
) -> Ended:
    """A command that reads the archive and ends soon; its stdout is kept."""
    return Command(words, environment(context), capture=True).wait(seconds)


def ask_json(
    words: Sequence[str], context: Context | None = None, *, seconds: float = ASK_SECONDS
) -> Any:
    """The same, of a command with `-o json`. Raises for any exit code but 0."""
    ended = ask(words, context, seconds=seconds)
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
