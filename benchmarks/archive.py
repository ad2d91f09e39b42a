"""An archive of many runs in a bucket: what `runs --date` costs against a bare boto3 listing of that
day, as whole processes; and how small an invocation is kept.

python benchmarks/archive.py [--archived 10000] [--days 100] [--runs 5] [--models 60]

The bucket is moto's, in this process; both sides ask it alike.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from datetime import date, timedelta
from pathlib import Path

import _projects
from _timing import alternate, environment, goal, line, measure, median
from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.moto_server.werkzeug_app import MotoRequestHandler
from moto.s3.models import s3_backends
from moto.server import ThreadedMotoServer

from dbt_recover.archive import Archive
from dbt_recover.context import Identity, Where
from dbt_recover.finished import archive_finished
from dbt_recover.layout import RunPlace, Summary, invocation_pointer, run_pointer
from dbt_recover.storage.local import LocalStorage

BUCKET, PREFIX = "runs", "archive"
REQUESTS, RATIO, SMALLER = 3, 1.5, 8.0
_REQUESTS: list[str] = []

# What whoever wrote a script for it would write.
_BARE = f"""
import boto3, sys
pages = boto3.client("s3").get_paginator("list_objects_v2").paginate(
    Bucket={BUCKET!r}, Prefix="{PREFIX}/runs/" + sys.argv[1] + "/")
print(sum(len(page.get("Contents", ())) for page in pages))
"""


def main() -> None:
    """Parse the command line and print what was measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--archived", type=int, default=10_000)
    parser.add_argument("--days", type=int, default=100)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--models", type=int, default=60, help="of the project that dbt builds")
    given = parser.parse_args()
    # Its own log of requests, kept instead of printed.
    setattr(  # noqa: B010 - mypy takes no assignment to a method
        MotoRequestHandler, "log_request", lambda self, *_: _REQUESTS.append(self.requestline)
    )
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        _listing(f"http://{host}:{port}", given.archived, given.days, given.runs)
    finally:
        server.stop()
    _size(given.models)


def _listing(endpoint: str, archived: int, days: int, runs: int) -> None:
    day = _fill(archived, days)
    with tempfile.TemporaryDirectory(prefix="dbt-recover-benchmark-") as directory:
        cwd = Path(directory)
        env = environment() | {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }
        ours_argv = ["dbt-recover", "--archive", f"s3://{BUCKET}/{PREFIX}", "runs"]
        ours_argv += ["--date", day, "--limit", str(archived)]
        bare_argv = [sys.executable, "-c", _BARE, day]
        _REQUESTS.clear()
        measure(ours_argv, cwd=cwd, env=env)  # so that both have their bytecode
        requests = len(_REQUESTS)
        ours, bare = alternate(
            runs,
            lambda: measure(ours_argv, cwd=cwd, env=env),
            lambda: measure(bare_argv, cwd=cwd, env=env),
        )
    print(
        f"{archived} runs archived on {days} days, {archived // days} of them on the day asked for"
    )
    print(line("dbt-recover runs --date D", ours))
    print(line("a bare boto3 listing of D", bare))
    print(goal(f"runs --date D makes {requests} requests", requests, REQUESTS))
    ratio = median(ours) / median(bare)
    print(goal(f"runs --date D takes {ratio:.2f} times as long", ratio, RATIO))


def _fill(archived: int, days: int) -> str:
    """All keys that the runs have in the listing; one of the days."""
    store = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    store.create_bucket(BUCKET, "us-east-1")

    def put(key: str, body: bytes = b"") -> None:
        store.put_object(BUCKET, f"{PREFIX}/{key}", body)

    put("archive.json", b'{"format": "dbt-recover", "version": 1}')
    first = date(2026, 1, 1)
    for number in range(archived):
        day = (first + timedelta(days=number % days)).isoformat()
        began = f"{day}T{number // days % 24:02d}:{number % 60:02d}:00Z"
        place, ident = RunPlace.of(f"night-{number}", began), f"invocation-{number}"
        state = "failed" if number % 10 == 0 else "ok"
        word = Summary(1, state, 1, 40, 60.0, began[:19], "build", "=0123abcd", "step")
        for key in (place.begun(ident), place.commit(ident), word.key(place, ident)):
            put(key)
        put(run_pointer(place.run_id))
        put(invocation_pointer(ident))
    return (first + timedelta(days=days // 2)).isoformat()


def _size(models: int) -> None:
    """Archive what dbt leaves of a build; all that is kept of it against what dbt wrote."""
    with tempfile.TemporaryDirectory(prefix="dbt-recover-benchmark-") as directory:
        root = Path(directory) / "project"
        _projects.write(root, _projects.layered(models), tests=True)
        measure(["dbt", "--quiet", "build"], cwd=root, env=environment())
        storage = LocalStorage(Path(directory) / "archive")
        where = Where(Archive(storage), {}, root, print)
        archive_finished(where, root / "target", Identity(run_id="measured"))
        kept = sum(entry.size for entry in storage.list(""))
        raw = sum(
            (root / "target" / n).stat().st_size for n in ("manifest.json", "run_results.json")
        )
    print(
        f"{raw} bytes that dbt wrote of {models} models are kept in {kept}, index and records too"
    )
    print(goal(f"1/{raw / kept:.1f} of them", raw / kept, SMALLER, at_least=True))


if __name__ == "__main__":
    main()
