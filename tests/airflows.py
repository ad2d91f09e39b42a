"""Airflow in its own environment (.venvs/airflow, .venvs/airflow-2.11), and a small company whose
dbt project the DAGs run: raw data in one DuckDB file, the warehouse in another.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import duckdb
import pytest

import dbt_recover
from projects import REAL_DBT, Checkout, Table, dbt_of, demo, written

DAGS = Path(__file__).parents[1] / "dags"
VERSIONS = ("3.3", "2.11")
DAY = "2026-01-28"
"""A Wednesday."""
SUNDAY = "2026-01-25"
_VENVS = REAL_DBT.parents[2] / ".venvs"
_SOURCE = Path(dbt_recover.__file__).parents[1]

_PROJECT: Mapping[str, str] = {
    "dbt_project.yml": """\
name: company
profile: company
flags: {send_anonymous_usage_stats: false}
models:
  company:
    +materialized: table
    staging: {+tags: staging}
    intermediate: {+tags: intermediate}
    marts:
      finance: {+tags: finance_mart}
      marketing: {+tags: marketing_mart}
""",
    "profiles.yml": """\
company:
  target: dev
  outputs:
    dev:
      type: duckdb
      path: "{{ env_var('FIXTURE_DB') }}"
      attach: [{path: "{{ env_var('RAW_DB') }}", alias: raw}]
      threads: 2
""",
    "models/staging/stg_views.sql": """\
{{ config(materialized='incremental', unique_key='id') }}
select id, account_id, event_timestamp from raw.fivetran_events.page_views
where cast(event_timestamp as date) = cast('{{ var("run_date") }}' as date)
""",
    # The gate holds it for hours when it has many rows.
    "models/staging/stg_accounts.sql": """\
select id, name, amount from raw.fivetran_salesforce.account
where (select max(a.n + b.n + c.n) from raw.main.gate a, raw.main.gate b, raw.main.gate c) >= 0""",
    "models/staging/staging.yml": """\
models:
  - {name: stg_views, columns: [{name: id, data_tests: [unique, not_null]}]}
  - {name: stg_accounts, columns: [{name: id, data_tests: [unique]}]}
""",
    "models/intermediate/int_views.sql": """\
select account_id, count(*) as views from {{ ref('stg_views') }} group by 1""",
    "models/intermediate/int_contracts.sql": """\
select id as account_id, cast(amount as decimal(12, 2)) as amount from {{ ref('stg_accounts') }}""",
    "models/marts/finance/fct_revenue.sql": """\
select sum(amount) as amount, cast('{{ var("run_date") }}' as date) as day
from {{ ref('int_contracts') }}""",
    "models/marts/marketing/fct_engagement.sql": """\
select a.name, v.views from {{ ref('int_views') }} v
join {{ ref('stg_accounts') }} a on a.id = v.account_id""",
    "models/marts/marts.yml": """\
models:
  - {name: fct_revenue, columns: [{name: amount, data_tests: [not_null]}]}
  - {name: fct_engagement, columns: [{name: views, data_tests: [not_null]}]}
""",
}
MODELS = frozenset(f"model.company.{Path(name).stem}" for name in _PROJECT if name.endswith(".sql"))


def python_of(version: str) -> Path:
    """The Python of an Airflow's environment; skips with the reason if it is not here."""
    name = "airflow" if version == "3.3" else f"airflow-{version}"
    python = _VENVS / name / "bin" / "python"
    if not python.exists():
        pytest.skip(f"no Airflow {version} here: make .venvs/{name}")
    return python


@dataclass(frozen=True)
class Company:
    """A checkout of the project, its raw data, and an Airflow's home beside them."""

    here: Checkout
    version: str = "3.3"
    environ: Mapping[str, str] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        """AIRFLOW_HOME."""
        return self.here.home / f"airflow-{self.version}"

    @property
    def raw_file(self) -> Path:
        """The DuckDB file that the connectors write to; apart from the warehouse."""
        return self.here.home / "raw" / "raw.duckdb"

    def environment(self) -> dict[str, str]:
        """Of Airflow's processes: nothing of this machine's, nothing of the tests' Python."""
        python = python_of(self.version)
        self.home.mkdir(exist_ok=True)
        duck = json.dumps({"conn_type": "duckdb", "host": str(self.raw_file)})
        ours = ("DBT_", "AIRFLOW_", "FIXTURE_", "PYTHON", "VIRTUAL_ENV")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
        return kept | {
            "PATH": os.pathsep.join((str(python.parent), "/usr/bin", "/bin")),
            "PYTHONPATH": str(DAGS),
            "AIRFLOW_HOME": str(self.home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
            "AIRFLOW_CONN_SNOWFLAKE_DEFAULT": duck,
            "AIRFLOW_CONN_DUCKDB_DEFAULT": duck,
            "DBT_RECOVER_BIN": str(self.here.dbt_path.with_name("dbt-recover")),
            "DBT_RECOVER_DBT": str(self.here.dbt_path),
            "DBT_RECOVER_ARCHIVE": str(self.here.home / "archive"),
            "DBT_RECOVER_RETRY_SECONDS": "1",
            "DBT_PROJECT_DIR": str(self.here.root),
            "DBT_CALLS": str(self.here.home / "calls"),
            "REAL_DBT": str(REAL_DBT),
            "FIXTURE_DB": str(self.here.database),
            "RAW_DB": str(self.raw_file),
            "DBT_RECOVER_DEMO_DB": str(self.here.database),
            "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
            "DO_NOT_TRACK": "1",
            "no_proxy": "127.0.0.1",
            **self.environ,
        }

    def python(self, script: str, *words: str, timeout: float = 240) -> Any:
        """What a script in Airflow's Python wrote as JSON to the file of its first argument."""
        answer = self.home / "answer.json"
        environment = self.environment()
        done = subprocess.run(
            [str(python_of(self.version)), "-c", script, str(answer), *words],
            env=environment,
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        (self.home / "log").write_text(done.stdout + done.stderr)
        assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
        return json.loads(answer.read_text())

    @property
    def log(self) -> str:
        """What the last script and its tasks said."""
        return (self.home / "log").read_text()

    def migrate(self) -> None:
        """Make Airflow's database."""
        done = subprocess.run(
            [str(python_of(self.version).with_name("airflow")), "db", "migrate"],
            env=self.environment(),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]

    def dag_tests(self, *steps: Mapping[str, Any] | str | int) -> list[Ran]:
        """`dag.test()` one after another, each made by `a_run`; between them MEND mends the model,
        and a number is that of a process to end."""
        file = str(self.here.root / BROKEN)
        listed: list[Mapping[str, Any]] = []
        for step in steps:
            if isinstance(step, str):
                listed.append({"text": step, "file": file})
            else:
                listed.append({"process": step} if isinstance(step, int) else step)
        made = self.python(_DAG_TEST, json.dumps(listed), timeout=280)
        return [Ran(m["state"], m["tasks"], m["xcoms"]) for m in made]

    def mend(self) -> None:
        """Teach int_contracts to read the numbers."""
        (self.here.root / BROKEN).write_text(MEND)

    def raw(self, sql: str) -> None:
        """Change the raw data."""
        with duckdb.connect(str(self.raw_file)) as connection:
            connection.execute(sql)

    def clean(self, *, day: str = DAY) -> dict[str, Table]:
        """What plain dbt makes of the raw data as they are now, on an empty warehouse."""
        other = self.here.elsewhere(self.here.home / "clean")
        fresh = Checkout(other.home, other.home, {}, environ=self.here.environ)
        fresh = fresh.having(RAW_DB=self.raw_file)
        done = fresh.dbt("build", "--vars", json.dumps({"run_date": day}))
        assert done.code == 0, done.out
        return fresh.tables()

    def recover(self, *words: str) -> Any:
        """dbt-recover on a laptop, with `-o json`."""
        at = self.here.having(RAW_DB=self.raw_file, DBT_RECOVER_ARCHIVE=self.here.home / "archive")
        ran = at.recover(*words, "-o", "json")
        assert ran.code == 0, ran
        return ran.json

    def executed(self, *, since: int = 0) -> list[list[str]]:
        """unique_ids of the models that each dbt worked on."""
        calls = self.here.calls[since:]
        return [m for c in calls if (m := [u for u in c.executed if u.startswith("model.")])]


@dataclass(frozen=True)
class Ran:
    """A DAG run that ended."""

    state: str
    tasks: Mapping[str, str]
    xcoms: Mapping[str, Any]


def a_run(
    dag: str, *, conf: object = None, day: str = DAY, skip: str = "", due: str = ""
) -> dict[str, Any]:
    """For `dag_tests`. `skip`: tasks to mark as successful; `day`: of its logical date; `due`: when
    it was to run (Airflow 3), if not now."""
    return {"dag_id": dag, "conf": conf, "day": day, "skip": skip, "due": due}


def a_state(dag: str, state: str) -> dict[str, Any]:
    """For `dag_tests`: its latest run is in this state by now."""
    return {"of": dag, "state": state}


def company(home: Path, version: str = "3.3", **environ: str) -> Company:
    """Raw data of DAY that int_contracts cannot cast, complete by the morning after."""
    dbt_of("1.11")
    here = written(home, _PROJECT)
    return _with_bin(Company(here, version, environ))


def demo_company(home: Path, version: str = "3.3", **environ: str) -> Company:
    """The demo project, mended, with its seeds as the raw data; they have 100 rows of DAY."""
    here = demo(home)
    here.mend()
    sensor = json.dumps({"conn_type": "duckdb", "host": str(here.database)})
    made = _with_bin(
        Company(here, version, {"AIRFLOW_CONN_DUCKDB_DEFAULT": sensor, **environ}), raw=False
    )
    seeded = here.dbt("seed")
    assert seeded.code == 0, seeded.out
    return made


def _with_bin(made: Company, *, raw: bool = True) -> Company:
    script = made.here.dbt_path.with_name("dbt-recover")
    script.write_text(
        f'#!/bin/sh\nPYTHONPATH={_SOURCE} exec {sys.executable} -m dbt_recover "$@"\n'
    )
    script.chmod(0o755)
    if raw:
        made.raw_file.parent.mkdir()
        made.raw(f"""
            create table gate as select 0 as n;
            create schema fivetran_events;
            create schema fivetran_salesforce;
            create table fivetran_events.page_views as
              select r.range as id, r.range % 3 as account_id,
                timestamp '{DAY} 00:00:00' + interval (r.range * 15) minute as event_timestamp
              from range(96) r;
            create table fivetran_salesforce.account as
              select * from (values (0, 'Fennel', '10.00'), (1, 'Sorrel', '2,388.00'),
                (2, 'Chervil', '7.50')) t(id, name, amount);
            alter table fivetran_salesforce.account add column _fivetran_synced timestamp;
            update fivetran_salesforce.account
              set _fivetran_synced = timestamp '{DAY} 05:00:00' + interval 1 day;
        """)
    return made


@dataclass
class Slack:
    """What Slack's incoming webhook was told; and how it behaves."""

    url: str = ""
    status: int = 200
    hangs: bool = False
    messages: list[dict[str, Any]] = field(default_factory=list)

    @property
    def connection(self) -> str:
        """Airflow's, as an environment variable holds it."""
        return json.dumps({"conn_type": "slackwebhook", "password": self.url})


@contextmanager
def slack(**behaviour: Any) -> Iterator[Slack]:
    """A webhook on loopback."""
    made = Slack(**behaviour)
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            """Quiet."""

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            made.messages.append(json.loads(body))
            if made.hangs:
                over.wait(120)
                return
            self.send_response(made.status)
            self.end_headers()
            self.wfile.write(b"ok" if made.status == 200 else b"no_service")

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    made.url = f"http://127.0.0.1:{httpd.server_address[1]}/services/T/B/secret"
    thread = threading.Thread(target=httpd.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield made
    finally:
        over.set()
        httpd.shutdown()
        thread.join()
        httpd.server_close()


HOLD = "insert into gate select range from range(1, 100000)"
LET_GO = "delete from gate where n > 0"
BROKEN = "models/intermediate/int_contracts.sql"
MEND = _PROJECT[BROKEN].replace("cast(amount", "cast(replace(amount, ',', '')")

_DAG_TEST = """
import inspect, json, os, signal, sys
from datetime import datetime
answer, steps = sys.argv[1:]
try:
    from airflow.dag_processing.dagbag import DagBag
except ImportError:
    from airflow.models import DagBag
from airflow.utils.session import create_session
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
bag = DagBag(os.environ["AIRFLOW__CORE__DAGS_FOLDER"])
assert not bag.import_errors, bag.import_errors

def once(dag_id, conf, day, skip, due):
    dag = bag.dags[dag_id]
    for task in dag.tasks:
        task.retries = 0
    options = {"run_conf": conf}
    if skip:
        options["mark_success_pattern"] = skip
    if day:
        known = inspect.signature(dag.test).parameters
        name = "logical_date" if "logical_date" in known else "execution_date"  # Airflow 2
        options[name] = datetime.fromisoformat(day + "T06:00:00+00:00")
    if due:
        options["run_after"] = datetime.fromisoformat(due)
    try:
        run = dag.test(**options)
    except Exception as error:
        return {"state": "refused", "tasks": {}, "xcoms": {"": f"{type(error).__name__}: {error}"}}
    found = {"state": str(getattr(run.state, "value", run.state)), "tasks": {}, "xcoms": {}}
    with create_session() as session:
        for ti in session.query(TaskInstance).filter_by(dag_id=dag_id, run_id=run.run_id):
            name = ti.task_id + (f"[{ti.map_index}]" if ti.map_index >= 0 else "")
            found["tasks"][name] = str(getattr(ti.state, "value", ti.state))
            found["xcoms"][name] = ti.xcom_pull(task_ids=ti.task_id, map_indexes=ti.map_index)
    return found

made = []
for step in json.loads(steps):
    if "file" in step:
        with open(step["file"], "w") as file:
            file.write(step["text"])
    elif "state" in step:
        with create_session() as session:
            runs = session.query(DagRun).filter_by(dag_id=step["of"]).order_by(DagRun.id.desc())
            runs.first().state = step["state"]
    elif "process" in step:
        os.kill(step["process"], signal.SIGKILL)
    else:
        made.append(once(**step))
with open(answer, "w") as file:
    json.dump(made, file, default=str)
"""
