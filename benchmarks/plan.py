"""`dbt-recover plan` against `dbt ls --select result:error+ --state DIR`, as whole processes.

The project is generated: 3,000 models in ten layers and a test for each, on DuckDB. dbt itself
parses it, so the manifest and partial_parse.msgpack are real. run_results.json is not: building
6,000 nodes takes minutes and says nothing more, so it is synthesised in dbt's own schema: five
models failed, all below them was skipped. Before anything is timed, the plan is compared with what
dbt lists.

With --manifest-mb N there is no dbt at all: the manifest is synthetic and of that size (159 is
28,000 nodes), and `archive` and `plan` are measured on it, above all their memory.

    python benchmarks/plan.py [--models 3000] [--runs 5] [--only plan|ls]
    python benchmarks/plan.py --manifest-mb 159
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import _projects
from _timing import Measured, alternate, environment, goal, line, measure, median

FASTER = 100
MEMORY_MB = 150


def main() -> None:
    """Parse the command line, make the project, print what was measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=int, default=3000)
    parser.add_argument("--runs", type=int, default=5, help="rounds; plan runs five times in each")
    parser.add_argument("--only", choices=["plan", "ls"], help="measure one side alone")
    parser.add_argument("--manifest-mb", type=int, metavar="N", help="a synthetic manifest instead")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work here, and leave it")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dbt-recover-benchmark-") as temporary:
        room = given.keep or Path(temporary)
        if given.manifest_mb:
            _large(room / "project", given.manifest_mb, given.runs)
        else:
            _against_dbt(room / "project", given.models, given.runs, given.only)


def _against_dbt(root: Path, count: int, runs: int, only: str | None) -> None:
    env = environment()
    if not root.exists():
        _make(root, count, env)
    state = root.parent / "state"
    plan_argv = ["dbt-recover", "plan", "-o", "json"]
    ls_argv = ["dbt", "--quiet", "ls", "--select", "result:error+", "--state", str(state)]

    def plan() -> Measured:
        return measure(plan_argv, cwd=root, env=env)

    def ls() -> Measured:
        return measure(ls_argv, cwd=root, env=env)

    if only is None:
        keys = ["--output", "json", "--output-keys", "unique_id"]
        listed = measure([*ls_argv, *keys], cwd=root, env=env).stdout.splitlines()
        expected = {json.loads(text)["unique_id"] for text in listed if text.startswith("{")}
        planned = {n["unique_id"] for n in json.loads(plan().stdout)["nodes"]}
        if not expected or expected - planned:
            sys.exit(f"the plan lacks {len(expected - planned)} of {len(expected)} listed nodes")
        print(
            f"{count} models, {count} tests: dbt ls lists {len(expected)} nodes, the plan has "
            f"them all ({len(planned)} in it)"
        )
    sides = {"plan": [plan] * 5, "ls": [ls]}
    chosen = [only] if only else list(sides)
    found = alternate(runs, *(side for name in chosen for side in sides[name]))
    merged: dict[str, list[Measured]] = {}
    names = [name for name in chosen for _ in sides[name]]
    for name, results in zip(names, found, strict=True):
        merged.setdefault(name, []).extend(results)
    titles = {"plan": "dbt-recover plan -o json", "ls": "dbt ls --select result:error+"}
    for name in chosen:
        print(line(titles[name], merged[name]))
    if only is None:
        ratio = median(merged["ls"]) / median(merged["plan"])
        print(goal(f"plan is {ratio:.0f} times faster", ratio, FASTER, at_least=True))


def _make(root: Path, count: int, env: dict[str, str]) -> None:
    models = _projects.layered(count)
    _projects.write(root, models, tests=True)
    print(f"dbt parses {count} models and {count} tests ...", file=sys.stderr)
    parsed = measure(["dbt", "--quiet", "parse"], cwd=root, env=env)
    print(line("dbt parse", [parsed]))
    target = root / "target"
    _synthesise(target, models)
    state = root.parent / "state"
    shutil.copytree(target, state, ignore=shutil.ignore_patterns("partial_parse.msgpack"))
    archived = measure(["dbt-recover", "archive"], cwd=root, env=env)
    print(line("dbt-recover archive", [archived]))


def _synthesise(target: Path, models: list[_projects.Model]) -> None:
    """run_results.json for target/manifest.json. In a process of its own, for its memory would
    count as that of the processes measured later."""
    code = (
        "import json, sys, pathlib, _projects\n"
        "target, count = pathlib.Path(sys.argv[1]), int(sys.argv[2])\n"
        "manifest = json.loads((target / 'manifest.json').read_bytes())\n"
        "tested = {u: n['attached_node'].split('.')[2] for u, n in manifest['nodes'].items()\n"
        "          if n['resource_type'] == 'test'}\n"
        "meta = manifest['metadata']\n"
        "body = _projects.run_results(\n"
        "    _projects.statuses(_projects.layered(count), tested),\n"
        "    invocation_id=meta['invocation_id'], dbt_version=meta['dbt_version'])\n"
        "(target / 'run_results.json').write_text(json.dumps(body))\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(target), str(len(models))],
        cwd=Path(__file__).parent,
        check=True,
    )


def _large(root: Path, megabytes: int, runs: int) -> None:
    env = environment()
    if not root.exists():
        count = _projects.big_manifest(root, megabytes)
        size = (root / "target" / "manifest.json").stat().st_size
        print(f"{count} nodes, manifest.json of {size / 1e6:.0f} MB")
    archived = []
    for _ in range(runs):
        shutil.rmtree(root / ".dbt-recover", ignore_errors=True)
        archived.append(measure(["dbt-recover", "archive"], cwd=root, env=env))
    planned = [
        measure(["dbt-recover", "plan", "-o", "json"], cwd=root, env=env) for _ in range(runs)
    ]
    print(line("dbt-recover archive", archived))
    print(line("dbt-recover plan -o json", planned))
    peak = max(m.peak_mb for m in planned)
    print(goal(f"memory of plan: {peak:.0f} MB", peak, MEMORY_MB))


if __name__ == "__main__":
    main()
