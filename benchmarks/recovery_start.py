"""How long a retry on a fresh worker takes to its first node: `dbt-recover retry` against `dbt retry`.

The project is generated: 3,000 models in ten layers and a test for each, on DuckDB. A model in the
middle fails under `dbt-recover exec -- dbt build`, and what is below it is skipped. Then the
model is mended, and a machine that has the project's files and nothing else recovers the run:
dbt-recover from the archive, dbt from a state directory with manifest.json and run_results.json of
the failed run. The clock runs from the start of the process to the line in which dbt says that it
starts its first node; there both are killed. Each round begins with a machine of its own.

With --yaml the fix also edits a YAML file, which may change what nodes there are: before the retry
dbt-recover then lets dbt parse the project, so that dbt starts twice, and half the time is not to be
had.

    python benchmarks/recovery_start.py [--models 3000] [--runs 3] [--yaml] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import _projects
from _timing import environment, goal, measure

LIMIT = 0.5

FIRST_NODE = re.compile(r"\b1 of (\d+) START ")
_BROKEN = "select error('not yet') as id, 'broken' as name\n"


@dataclass(frozen=True)
class Start:
    """One recovery, up to its first node."""

    seconds: float
    """Wall clock from the start of the process."""
    cpu: float
    """User and system time of it and of what it had started and waited for, and of the dbt at work."""
    nodes: int
    """How many nodes dbt said it would run."""


def main() -> None:
    """Parse the command line, let a run fail, print what was measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=int, default=3000)
    parser.add_argument("--runs", type=int, default=3, help="rounds, each with a fresh machine")
    parser.add_argument("--yaml", action="store_true", help="the fix edits a YAML file, too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work here, and leave it")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dbt-recover-benchmark-") as temporary:
        room = given.keep or Path(temporary)
        if not (room / "project").exists():
            _fail(room, given.models)
        found = _rounds(room, given.runs, yaml=given.yaml)
    ours, theirs = found["dbt-recover retry"], found["dbt retry"]
    for name, starts in found.items():
        seconds = [s.seconds for s in starts]
        print(
            f"{name:<28} first node after {statistics.median(seconds):7.2f} s"
            f"   (from {min(seconds):.2f} to {max(seconds):.2f})"
            f"   cpu {statistics.median(s.cpu for s in starts):7.2f} s   {starts[0].nodes} nodes"
        )
    ratio = _ratio(ours, theirs, lambda s: s.seconds)
    of_cpu = _ratio(ours, theirs, lambda s: s.cpu)
    print(f"by CPU time it takes {of_cpu:.2f} times as long")
    print(
        goal(f"dbt-recover retry takes {ratio:.2f} times as long to its first node", ratio, LIMIT)
    )
    if given.json:
        figures = {name: [asdict(s) for s in starts] for name, starts in found.items()}
        body = {"models": given.models, "yaml": given.yaml, "ratio": ratio, "cpu_ratio": of_cpu}
        given.json.write_text(json.dumps({**body, "starts": figures}, indent=2) + "\n")


def _ratio(ours: list[Start], theirs: list[Start], of: Callable[[Start], float]) -> float:
    """Median of the ratios of the rounds."""
    return statistics.median(of(a) / of(b) for a, b in zip(ours, theirs, strict=True))


def _fail(room: Path, count: int) -> None:
    """room/project, the files as mended; room/archive and room/state, what the failed run left."""
    models = _projects.layered(count)
    root = room / "work"
    _projects.write(root, models, tests=True)
    shutil.copytree(root, room / "project")
    first = models[count // 2]
    (root / first.path).write_text(_BROKEN)
    env = environment() | {"DBT_RECOVER_ARCHIVE": str(room / "archive")}
    build = ["dbt", "build", "--select", f"{first.name}+"]
    print(
        f"a build of {first.name}+ in {count} models and {count} tests fails ...", file=sys.stderr
    )
    measure(["dbt-recover", "exec", "--", *build], cwd=root, env=env, allowed=(1,))
    (room / "state").mkdir()
    for name in ("manifest.json", "run_results.json"):
        shutil.copy2(root / "target" / name, room / "state" / name)
    shutil.rmtree(root)


def _rounds(room: Path, runs: int, *, yaml: bool) -> dict[str, list[Start]]:
    sides: dict[str, list[str]] = {
        "dbt-recover retry": ["dbt-recover", "retry"],
        "dbt retry": ["dbt", "retry", "--state", "../state"],
    }
    found: dict[str, list[Start]] = {name: [] for name in sides}
    for round_ in range(runs):
        # In changing order: what else the machine does falls on both alike.
        for name in list(sides) if round_ % 2 == 0 else reversed(list(sides)):
            worker = _fresh_worker(room, yaml=yaml)
            found[name].append(_to_first_node(sides[name], worker))
            shutil.rmtree(worker)
            print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    nodes = {starts[0].nodes for starts in found.values()}
    if len(nodes) != 1:
        sys.exit(f"not the same work: {nodes} nodes")
    return found


def _fresh_worker(room: Path, *, yaml: bool) -> Path:
    """A directory with the project, a copy of the archive and of the state, and no cache."""
    worker = room / "worker"
    shutil.rmtree(worker, ignore_errors=True)
    worker.mkdir()
    for name in ("archive", "state"):
        shutil.copytree(room / name, worker / name)
    # The files are older than the run, but for what is mended.
    shutil.copytree(room / "project", worker / "project")
    if yaml:
        path = min((worker / "project" / "models").rglob("*.yml"))
        path.write_text(path.read_text() + "# mended\n")
    return worker


def _to_first_node(argv: Sequence[str], worker: Path) -> Start:
    env: Mapping[str, str] = environment() | {
        "DBT_RECOVER_ARCHIVE": str(worker / "archive"),
        "XDG_CACHE_HOME": str(worker / "cache"),
        "PYTHONUNBUFFERED": "1",
    }
    said: list[str] = []
    began = time.perf_counter()
    process = subprocess.Popen(
        argv,
        cwd=worker / "project",
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        for text in process.stdout:
            said.append(text)
            if found := FIRST_NODE.search(text):
                seconds = time.perf_counter() - began
                return Start(seconds, _cpu(process.pid), int(found[1]))
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    sys.exit(f"{' '.join(argv)} started no node:\n{''.join(said)[-2000:]}")


def _cpu(pid: int) -> float:
    """CPU seconds of a process and its descendants, those that have ended too."""
    import psutil

    process = psutil.Process(pid)
    total = 0.0
    for each in (process, *process.children(recursive=True)):
        times = each.cpu_times()
        total += times.user + times.system + times.children_user + times.children_system
    return total


if __name__ == "__main__":
    main()
