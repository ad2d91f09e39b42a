"""An archive of many runs in a bucket: what `runs --date` costs against a bare boto3 listing of that
day, as whole processes; how small `exec` keeps an invocation; and whether a store that takes half a
second for every request makes dbt slower.

python benchmarks/archive.py [--archived 10000] [--days 100] [--runs 5] [--models 20 60]
                             [--delay 0.5] [--pairs 3]

The bucket is moto's, in this process; both sides ask it alike.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import date, timedelta
from pathlib import Path

import _projects
from _timing import Measured, alternate, environment, goal, line, measure, median
from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.moto_server.werkzeug_app import MotoRequestHandler
from moto.s3.models import s3_backends
from moto.server import ThreadedMotoServer

from dbt_recover.layout import LATEST, RunPlace, Summary, invocation_pointer, run_pointer
from dbt_recover.storage.local import LocalStorage

BUCKET, PREFIX = "runs", "archive"
REQUESTS, RATIO, SMALLER, SLOWER = 3, 1.5, 8.0, 1.02
_REQUESTS: list[str] = []

# Stands in for dbt on PATH, and writes down how long it took.
_TIMED = """#!/bin/sh
began=$(date +%s.%N)
{dbt} "$@"
code=$?
echo "$began $(date +%s.%N)" >> {times}
exit $code
"""

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
    parser.add_argument(
        "--models", type=int, nargs="+", default=[20, 60], help="of the projects that dbt builds"
    )
    parser.add_argument("--delay", type=float, default=0.5, help="of each request, in seconds")
    parser.add_argument("--pairs", type=int, default=3, help="of builds with and without a delay")
    given = parser.parse_args()
    # Its own log of requests, kept instead of printed.
    setattr(  # noqa: B010 - mypy takes no assignment to a method
        MotoRequestHandler, "log_request", lambda self, *_: _REQUESTS.append(self.requestline)
    )
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        env = environment() | {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }
        _listing(env, given.archived, given.days, given.runs)
        for models in given.models[:-1]:
            with tempfile.TemporaryDirectory(prefix="dbt-recover-benchmark-") as directory:
                _size(_project(Path(directory), models), models)
        with tempfile.TemporaryDirectory(prefix="dbt-recover-benchmark-") as directory:
            root = _project(Path(directory), given.models[-1])
            _size(root, given.models[-1])
            _delay(root, env, given.delay, given.pairs)
    finally:
        server.stop()


def _listing(env: Mapping[str, str], archived: int, days: int, runs: int) -> None:
    day = _fill(archived, days)
    with tempfile.TemporaryDirectory(prefix="dbt-recover-benchmark-") as directory:
        cwd = Path(directory)
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


def _project(directory: Path, models: int) -> Path:
    root = directory / "project"
    _projects.write(root, _projects.layered(models), tests=True)
    return root


def _size(root: Path, models: int) -> None:
    """All that `exec` keeps of a build against what dbt wrote."""
    archive = root.with_name("archive")
    build = ["exec", "--run-id", "measured", "--", "dbt", "--quiet", "build"]
    measure(["dbt-recover", "--archive", str(archive), *build], cwd=root, env=environment())
    # Its plain files are of one run only, however many there are.
    entries = [e for e in LocalStorage(archive).list("") if not e.key.startswith(LATEST)]
    kept = sum(entry.size for entry in entries)
    raw = sum((root / "target" / n).stat().st_size for n in ("manifest.json", "run_results.json"))
    print(
        f"{raw} bytes that dbt wrote of {models} models are kept in {kept}: artifacts, graph, "
        "results, journal, records and index"
    )
    print(goal(f"1/{raw / kept:.1f} of them", raw / kept, SMALLER, at_least=True))


def _delay(root: Path, env: Mapping[str, str], delay: float, pairs: int) -> None:
    """dbt's own wall time under exec, with a slow bucket and with a directory."""
    dbt = shutil.which("dbt", path=env["PATH"])
    timed, times = root.with_name("bin") / "dbt", root.with_name("times")
    timed.parent.mkdir()
    timed.write_text(_TIMED.format(dbt=dbt, times=times))
    timed.chmod(0o755)
    answer = MotoRequestHandler.run_wsgi

    def late(self: MotoRequestHandler) -> None:
        time.sleep(delay)
        answer(self)

    def once(url: str) -> Measured:
        for path in root.glob("warehouse.duckdb*"):
            path.unlink()
        argv = ["dbt-recover", "--archive", url, "exec", "--", str(timed), "--quiet", "build"]
        return measure(argv, cwd=root, env=env)

    setattr(MotoRequestHandler, "run_wsgi", late)  # noqa: B010 - as above
    _REQUESTS.clear()
    slow, quick = alternate(
        pairs,
        lambda: once(f"s3://{BUCKET}/slow"),
        lambda: once(str(root.with_name("archive"))),
    )
    setattr(MotoRequestHandler, "run_wsgi", answer)  # noqa: B010 - as above
    print(f"each of {len(_REQUESTS) // pairs} requests takes {delay:g} s longer")
    print(line("exec, a slow bucket", slow))
    print(line("exec, a directory", quick))
    seconds = [float(b) - float(a) for a, b in map(str.split, times.read_text().splitlines())]
    # As `alternate` ran them: the other one first in every second round.
    rounds = [seconds[i : i + 2][:: 1 if i % 4 == 0 else -1] for i in range(0, 2 * pairs, 2)]
    ratio = statistics.median(late / direct for late, direct in rounds)
    print("dbt alone, in pairs: " + ", ".join(f"{a:.2f} s to {b:.2f} s" for a, b in rounds))
    print(goal(f"under exec dbt takes {ratio:.3f} times as long", ratio, SLOWER))


if __name__ == "__main__":
    main()
