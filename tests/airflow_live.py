"""A whole Airflow 3 on loopback, driven through its REST API, and the end of a task's machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import ProxyHandler, Request, build_opener

from airflows import Company, python_of
from servers import free_ports

T = TypeVar("T")


class Airflow:
    """A running Airflow 3 and its REST API, as its UI uses it."""

    def __init__(self, port: int, scheduler_log: Path) -> None:
        self._port = port
        self._scheduler_log = scheduler_log
        self._token = ""

    def call(self, method: str, path: str, body: object = None) -> Any:
        """The API's answer. Raises HTTPError for a refusal."""
        headers = {"Content-Type": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        request = Request(
            f"http://127.0.0.1:{self._port}{path}",
            method=method,
            headers=headers,
            data=None if body is None else json.dumps(body).encode(),
        )
        with _OPENER.open(request, timeout=30) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def ready(self, *components: str) -> bool:
        """Whether these are healthy and the DAGs are known."""
        try:
            health = self.call("GET", "/api/v2/monitor/health")
            if any((health.get(c) or {}).get("status") != "healthy" for c in components):
                return False
            self._token = self._token or self.call("GET", "/auth/token")["access_token"]
            return bool(self.call("GET", "/api/v2/dags")["total_entries"] >= 5)
        except (OSError, KeyError, ValueError):
            return False

    def trigger(self, dag: str, conf: object, day: str | None = None) -> str:
        """Unpause and trigger; the run id."""
        self.call("PATCH", f"/api/v2/dags/{dag}", {"is_paused": False})
        body = {"logical_date": f"{day}T06:00:00Z" if day else None, "conf": conf}
        run: str = self.call("POST", f"/api/v2/dags/{dag}/dagRuns", body)["dag_run_id"]
        return run

    def state(self, dag: str, run: str) -> str:
        """Of a DAG run."""
        state: str = self.call("GET", f"/api/v2/dags/{dag}/dagRuns/{quote(run)}")["state"]
        return state

    def tasks(self, dag: str, run: str) -> dict[str, Any]:
        """Task -> its instance."""
        found = self.call("GET", f"/api/v2/dags/{dag}/dagRuns/{quote(run)}/taskInstances")
        return {t["task_id"]: t for t in found["task_instances"]}

    def ended(self, dag: str, run: str) -> str | None:
        """Its state once it has ended."""
        state = self.state(dag, run)
        return state if state in ("success", "failed") else None

    @property
    def log(self) -> str:
        """Of the scheduler; with LocalExecutor of the tasks, too."""
        return self._scheduler_log.read_text(errors="replace")

    def states(self, dag: str, run: str) -> dict[str, str]:
        """Task -> its state."""
        return {name: t["state"] for name, t in self.tasks(dag, run).items()}

    def answer(self, dag: str, run: str, task: str, option: str) -> bool:
        """Answer what a task asks; False while it has not asked yet, or its scheduler has not seen
        that it waits: to that a task which is answered and queued again looks like one that was
        lost, and is marked as failed. A person is never so quick."""
        if f"TaskInstance Finished: dag_id={dag}, task_id={task}, run_id={run}," not in self.log:
            return False
        path = f"/api/v2/dags/{dag}/dagRuns/{quote(run)}/taskInstances/{task}/-1/hitlDetails"
        try:
            self.call("GET", path)
        except HTTPError as error:
            if error.code == 404:
                return False
            raise
        self.call("PATCH", path, {"chosen_options": [option], "params_input": {}})
        return True

    def xcom(self, dag: str, run: str, task: str) -> Any:
        """What a task returned."""
        found = self.call(
            "GET",
            f"/api/v2/dags/{dag}/dagRuns/{quote(run)}/taskInstances/{task}/xcomEntries/return_value",
        )["value"]
        return json.loads(found) if isinstance(found, str) else found


_OPENER = build_opener(ProxyHandler({}))


def until(condition: Callable[[], T | None], what: str, seconds: float = 240) -> T:
    """What the condition answers once it is true."""
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        if found := condition():
            return found
        time.sleep(1)
    raise AssertionError(f"not in {seconds:.0f} s: {what}")


@contextmanager
def standalone(made: Company) -> Iterator[Airflow]:
    """Scheduler, DAG processor, triggerer and API server, with LocalExecutor, on loopback."""
    (port,) = free_ports(1)
    environment = made.environment() | airflow_settings(port)
    with processes(made, [(["standalone"], environment)]):
        airflow = Airflow(port, made.home / "standalone-0.log")
        parts = ("metadatabase", "scheduler", "dag_processor")
        until(lambda: airflow.ready(*parts), f"Airflow answers: {made.home}/standalone-0.log")
        yield airflow


def airflow_settings(port: int) -> dict[str, str]:
    """Of an Airflow on loopback that starts no run by itself."""
    return {
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "AIRFLOW__CORE__PARALLELISM": "4",
        "AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE": "False",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
        "AIRFLOW__API_AUTH__JWT_SECRET": "a secret of this test and of nothing else, long enough for SHA512 tokens",
    }


@contextmanager
def processes(
    made: Company, commands: list[tuple[list[str], Mapping[str, str]]]
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """`airflow COMMAND` of each, in process groups of their own, which end with the context."""
    airflow = str(python_of(made.version).with_name("airflow"))
    started: list[subprocess.Popen[bytes]] = []
    try:
        for number, (words, environment) in enumerate(commands):
            with (made.home / f"{words[0]}-{number}.log").open("wb") as log:
                started.append(
                    subprocess.Popen(
                        [airflow, *words],
                        env=dict(environment),
                        cwd=made.home,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
        yield started
    finally:
        for process in started:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in started:
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def kill_step(made: Company, words: str) -> None:
    """SIGKILL to the task of this step and to all it has started: its machine is gone."""
    for pid in step_processes(made, words):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def step_processes(made: Company, words: str) -> list[int]:
    """Airflow's process of the task that runs this step, dbt-recover, dbt."""
    mark = f"FIXTURE_DB={made.here.database}".encode()
    of_step: list[int] = []
    for directory in Path("/proc").iterdir():
        try:
            if not directory.name.isdigit() or mark not in (directory / "environ").read_bytes():
                continue
            line = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            parent = int((directory / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if words in line and "airflow" not in line.partition(" ")[0]:
            of_step.append(int(directory.name))
            if "dbt_recover.cli exec" in line:
                of_step.insert(0, parent)
    assert len(of_step) >= 3, of_step
    return of_step
