"""A cluster: CeleryExecutor, Redis, PostgreSQL, two workers with disks of their own and an archive on
S3. The worker that runs staging is lost. `make test-cluster`."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from airflow_live import (
    Airflow,
    airflow_settings,
    processes,
    step_processes,
    until,
)
from airflows import DAY, HOLD, MEND, Company, company
from projects import Checkout
from servers import S3Server, ServerUnavailable, free_ports, seaweedfs_server
from test_airflow_incident import (
    INT_CONTRACTS,
    PIPELINE,
    REPAIR,
    STG_ACCOUNTS,
    let_go,
)

_POSTGRES = Path("/usr/lib/postgresql")


@contextmanager
def redis() -> Iterator[str]:
    """Its URL."""
    server = shutil.which("redis-server")
    if server is None:
        pytest.skip("no redis-server here (on Debian: apt-get install redis-server)")
    (port,) = free_ports(1)
    words = [server, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.kill()
        process.wait()


@contextmanager
def postgres() -> Iterator[str]:
    """Host, port and database as in a URL. It does not run as root; then as its own user."""
    places = os.pathsep.join([os.environ["PATH"], *map(str, _POSTGRES.glob("*/bin"))])
    initdb, server = (shutil.which(name, path=places) for name in ("initdb", "postgres"))
    if initdb is None or server is None:
        pytest.skip("no PostgreSQL here (on Debian: apt-get install postgresql)")
    user = "postgres" if os.geteuid() == 0 else None
    home = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    (port,) = free_ports(1)
    try:
        if user:
            shutil.chown(home, user)
        data = str(home / "data")
        options = ["-D", data, "-A", "trust", "-U", "airflow", "-E", "UTF8", "--no-sync"]
        subprocess.run(
            [initdb, *options], check=True, user=user, cwd=home, stdout=subprocess.DEVNULL
        )
        words = [server, "-D", data, "-p", str(port), "-h", "127.0.0.1", "-k", str(home), "-F"]
        process = subprocess.Popen(
            words, user=user, cwd=home, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            until((home / f".s.PGSQL.{port}").exists, "PostgreSQL listens", 60)
            yield f"airflow@127.0.0.1:{port}/postgres"
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(30)
    finally:
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def cluster(
    made: Company, disks: list[Checkout], broker: str, database: str, store: S3Server
) -> Iterator[tuple[Airflow, list[subprocess.Popen[bytes]]]]:
    """The API and the two workers."""
    (port,) = free_ports(1)
    common: Mapping[str, str] = {
        **made.environment(),
        **airflow_settings(port),
        **store.environment(),
        "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
        "AIRFLOW__CELERY__BROKER_URL": broker,
        "AIRFLOW__CELERY__RESULT_BACKEND": f"db+postgresql+psycopg2://{database}",
        "AIRFLOW__CELERY__WORKER_CONCURRENCY": "2",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"postgresql+psycopg2://{database}",
    }
    Company(made.here, made.version, {**made.environ, **common}).migrate()
    workers: list[tuple[list[str], Mapping[str, str]]] = []
    for number, disk in enumerate(disks):
        temporary = disk.home / "tmp"
        temporary.mkdir()
        own = {
            "DBT_PROJECT_DIR": str(disk.root),
            "DBT_RECOVER_SPOOL": str(disk.home / "spool"),
            "TMPDIR": str(temporary),
            "AIRFLOW_HOME": str(disk.home),
            "WORKER": str(number),
        }
        words = ["celery", "worker", "--skip-serve-logs", "--celery-hostname", f"w{number}@%h"]
        workers.append((words, {**common, **own}))
    others = [
        ([name], common) for name in ("api-server", "scheduler", "dag-processor", "triggerer")
    ]
    with processes(made, [*others, *workers]) as started:
        airflow = Airflow(port, made.home / "scheduler-1.log")
        parts = ("metadatabase", "scheduler", "dag_processor")
        until(lambda: airflow.ready(*parts), f"Airflow answers: logs in {made.home}")
        yield airflow, started[-2:]


@pytest.mark.airflow_cluster
@pytest.mark.timeout(900)
def test_a_lost_worker(tmp_path: Path) -> None:
    """The other worker does what the lost one left of staging, and then the repair: from the archive
    alone, on a disk where none of it has been."""
    made = company(tmp_path / "c", DBT_RECOVER_POOL="dbt", DBT_RECOVER_ARCHIVE="s3://runs/company")
    disks = [made.here.elsewhere(tmp_path / f"disk-{n}") for n in range(2)]
    made.raw(HOLD)
    try:
        store = seaweedfs_server(tmp_path / "weed")
        with store as s3, redis() as broker, postgres() as database:
            s3.client().create_bucket(Bucket="runs")
            archive = made.here.having(DBT_RECOVER_ARCHIVE="s3://runs/company", **s3.environment())
            with cluster(made, disks, broker, database, s3) as (airflow, workers):
                airflow.call("POST", "/api/v2/pools", {"name": "dbt", "slots": 1})
                run = airflow.trigger(PIPELINE, {}, DAY)
                until(lambda: _has_built(archive, f"{PIPELINE}/{run}"), "stg_views is recorded")
                lost = _lose_worker(made, workers)
                until(lambda: let_go(made), "the warehouse is free")
                ended = until(lambda: airflow.ended(PIPELINE, run), "the pipeline ends", 400)
                tasks = airflow.tasks(PIPELINE, run)
                assert (ended, tasks["dbt_run_staging"]["state"]) == ("failed", "success")
                assert tasks["dbt_run_staging"]["try_number"] == 2

                other = disks[1 - lost]
                (other.root / "models/intermediate/int_contracts.sql").write_text(MEND)
                made.mend()
                repair = airflow.trigger(REPAIR, {"run": "latest-failed", "dry_run": False})
                until(lambda: airflow.answer(REPAIR, repair, "approve", "Approve"), "approval")
                ended = until(lambda: airflow.ended(REPAIR, repair), "the repair ends")
                assert ended == "success", airflow.states(REPAIR, repair)
                assert airflow.xcom(REPAIR, repair, "retry")["outcome"] == "recovered"
    except ServerUnavailable as reason:
        pytest.skip(str(reason))
    for call in (made.here.home / "calls").iterdir():
        if not (call / "exit").exists():
            (call / "exit").write_text("137")
    # The second try of staging did its other half only.
    models = made.executed()
    assert models[0] == [STG_ACCOUNTS]
    assert all(STG_ACCOUNTS not in each for each in models[1:])
    assert INT_CONTRACTS in models[-1]
    assert made.here.tables() == made.clean()


def _has_built(archive: Checkout, run: str) -> bool:
    ran = archive.recover("show", run, "-o", "json")
    return ran.code == 0 and ran.json["counts"].get("success", 0) == 1


def _lose_worker(made: Company, workers: list[subprocess.Popen[bytes]]) -> int:
    """SIGKILL to the worker that runs staging and to everything on it; which one it was."""
    pids = step_processes(made, "run --select tag:staging")
    environ = Path(f"/proc/{pids[-1]}/environ").read_bytes().split(b"\0")
    (number,) = (int(e.partition(b"=")[2]) for e in environ if e.startswith(b"WORKER="))
    # At once: nothing on it may see the other's end.
    os.killpg(workers[number].pid, signal.SIGSTOP)
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    os.killpg(workers[number].pid, signal.SIGKILL)
    return number
