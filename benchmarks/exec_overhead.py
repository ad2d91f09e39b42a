"""What `dbt-recover exec` costs around `dbt build`: wall time, CPU time and memory.

A project of 1,000 fast models on DuckDB is built with and without `exec`, in pairs, in changing
order; each build begins with an empty database and the same partial_parse.msgpack. The ratio is the
median of the ratios of the pairs. Memory is that of the dbt-recover process, without dbt, which
runs in a process of its own; both sides are sampled, so that sampling costs them the same. On a
machine that does other work, believe the CPU time more than the wall time.

With --json-log a third side is dbt alone with its JSON log, which is what `exec` costs where dbt is
in another environment than dbt-recover, and cannot be asked for a shorter one.

How late a node's result reaches the archive is read from the archive: from the node's end, by dbt's
clock, to the time of the journal segment that has it.

    python benchmarks/exec_overhead.py [--models 1000] [--pairs 5] [--threads 4] [--json-log]
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

import _projects
import zstandard
from _timing import Measured, alternate, environment, goal, line, measure

WALL = 1.02
MEMORY_MB = 60
LATE_SECONDS = 5


def main() -> None:
    """Parse the command line, make the project, print what was measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--json-log", action="store_true", help="measure dbt's JSON log alone, too")
    given = parser.parse_args()
    env = environment()
    with tempfile.TemporaryDirectory(prefix="dbt-recover-benchmark-") as temporary:
        root = Path(temporary) / "project"
        _projects.write(root, _projects.layered(given.models), tests=False, threads=given.threads)
        build = ["dbt", "--quiet", "build"]

        def once(argv: Sequence[str], **added: str) -> Measured:
            shutil.rmtree(root / "logs", ignore_errors=True)
            for path in root.glob("warehouse.duckdb*"):
                path.unlink()
            return measure(argv, cwd=root, env=env | added, sample=True)

        sides = [
            lambda: once(["dbt-recover", "exec", "--", *build]),
            lambda: once(build),
        ]
        if given.json_log:
            log = {
                "DBT_LOG_FORMAT_FILE": "json",
                "DBT_LOG_LEVEL_FILE": "debug",
                "DBT_LOG_FILE_MAX_BYTES": "0",
            }
            sides.append(lambda: once(build, **log))
        once(build)  # parses, so that no measured build has to
        with_exec, plain, *json_log = alternate(given.pairs, *sides)
        late = max(_delays(root / ".dbt-recover"))
    _report(given.models, with_exec, plain)
    print(goal(f"a node's result is in the archive after {late:.1f} s at most", late, LATE_SECONDS))
    for found in json_log:
        print(line("dbt alone with a JSON log", found))
        least = min(found, key=_cpu).cpu
        print(f"its cpu: {least:.2f} s, {least / min(plain, key=_cpu).cpu:.3f} times plain dbt's")


def _delays(archive: Path) -> Iterator[float]:
    """Seconds from each node's end to its being archived."""
    for segment in archive.glob("data/*/*/*/journal/*.jsonl.zst"):
        with segment.open("rb") as stream:
            text = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(stream))
            records = [json.loads(line) for line in text]
        for record in records:
            if record["event"] == "finish":
                ended = datetime.fromisoformat(
                    record["result"]["completed_at"].replace("Z", "+00:00")
                )
                yield segment.stat().st_mtime - ended.timestamp()


def _cpu(measured: Measured) -> float:
    return measured.cpu


def _report(models: int, with_exec: list[Measured], plain: list[Measured]) -> None:
    print(line(f"dbt build, {models} models", plain))
    print(line("the same under exec", with_exec))
    pairs = list(zip(with_exec, plain, strict=True))
    ratios = [ours.seconds / bare.seconds for ours, bare in pairs]
    # Of the least disturbed run of each side: what else the machine does only adds.
    ours, bare = min(with_exec, key=_cpu), min(plain, key=_cpu)
    memory = max(m.own_peak_mb for m in with_exec)
    wall = statistics.median(ratios)
    print("wall ratio of each pair: " + ", ".join(f"{r:.3f}" for r in ratios))
    print(
        f"cpu, least of each side: {ours.cpu:.2f} s to {bare.cpu:.2f} s, "
        f"{ours.cpu / bare.cpu:.3f} times; of these {ours.own_cpu:.2f} s in dbt-recover itself"
    )
    print(goal(f"exec takes {wall:.3f} times the wall time", wall, WALL))
    print(goal(f"memory of the recorder: {memory:.0f} MB", memory, MEMORY_MB))


if __name__ == "__main__":
    main()
