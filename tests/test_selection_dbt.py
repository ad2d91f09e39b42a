"""Our node selection against dbt's own, on random projects and random expressions.

Finds dbt's Python by DBT_RECOVER_TEST_DBT_PYTHON, else uses the one that runs the tests. With
DBT_RECOVER_SELECTION_CASES=3000 it tries so many expressions (300 by default), and with
DBT_RECOVER_SELECTION_SEED=7 other projects.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dbt_recover.checkout import file_hashes, read_project
from dbt_recover.compact_graph import decode_graph, encode_graph
from dbt_recover.graph import Graph
from dbt_recover.manifest import read_graph
from dbt_recover.selection import Selection, Unsupported, select
from selection_project import MODES, RandomProject

CASES = int(os.environ.get("DBT_RECOVER_SELECTION_CASES", "300"))
SEED = int(os.environ.get("DBT_RECOVER_SELECTION_SEED", "1"))
PROJECTS = 3


def dbt_python() -> str:
    python = os.environ.get("DBT_RECOVER_TEST_DBT_PYTHON")
    if python:
        return python
    if importlib.util.find_spec("dbt") and importlib.util.find_spec("dbt.adapters"):
        return sys.executable
    pytest.skip("no dbt in this environment, and DBT_RECOVER_TEST_DBT_PYTHON is not set")


def arguments(selection: Selection) -> list[str]:
    argv = ["--indirect-selection", selection.indirect_selection]
    if selection.selector:
        argv += ["--selector", selection.selector]
    for option, values in (
        ("--select", selection.select),
        ("--exclude", selection.exclude),
        ("--resource-type", selection.resource_types),
        ("--exclude-resource-type", selection.exclude_resource_types),
    ):
        # With "=", for dbt's own command line would take "-m" or "" for something else.
        argv += [f"{option}={value}" for value in values]
    return argv


def ask_dbt(project: Path, commands: list[list[str]]) -> tuple[str, list[list[str] | None]]:
    done = subprocess.run(
        [dbt_python(), str(Path(__file__).with_name("dbt_ls_oracle.py"))],
        input=json.dumps({"project": str(project), "commands": commands}),
        capture_output=True,
        text=True,
        cwd=project,
        env={**os.environ, "DBT_SEND_ANONYMOUS_USAGE_STATS": "false"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout)
    return answer["version"], answer["answers"]


def ours(graph: Graph, selection: Selection, command: str) -> list[str] | str:
    try:
        return sorted(select(graph, selection, command))
    except Unsupported as error:
        return f"unsupported: {error}"


def dbt_version() -> tuple[int, int]:
    found = subprocess.run(
        [dbt_python(), "-c", "import dbt.version; print(dbt.version.__version__)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    major, minor = found.split(".")[:2]
    return int(major), int(minor)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(PROJECTS))
def test_selects_what_dbt_selects(tmp_path: Path, number: int) -> None:
    project = RandomProject(
        tmp_path, SEED * 1000 + number, functions=dbt_version() >= (1, 11) and number > 0
    )
    cases: list[tuple[str, Selection]] = [("ls", Selection())]
    for _ in range(CASES // PROJECTS):
        selection = project.selection()
        if project.maybe(0.5):
            types = tuple(project.random.sample(["model", "test", "seed", "unit_test", "all"], 2))
            field = (
                "resource_types"
                if project.maybe(0.7) or "all" in types
                else "exclude_resource_types"
            )
            selection = Selection(**{**vars(selection), field: types})
        cases.append(("ls", selection))
    # What is executed differs from what is listed. These take a second each, so they are few.
    for command in ("build", "run", "test", "seed", "snapshot"):
        cases.append((command, Selection()))
        cases.append((command, project.selection()))
    cases += [
        ("build", Selection(resource_types=types))
        for types in (("test",), ("test", "unit_test"), ("model", "unit_test"), ("unit_test",))
    ]
    cases += [("ls", Selection(("raw_a raw_b",), indirect_selection=mode)) for mode in MODES]
    version, answers = ask_dbt(tmp_path, [[c, *arguments(s)] for c, s in cases])

    read = read_graph((tmp_path / "target" / "manifest.json").read_bytes())
    assert read.dbt_version == version
    # As the archive has it: dbt looks for paths on the disk, and a file may make no node.
    read.files = file_hashes(read_project(tmp_path))
    graph = decode_graph(encode_graph(read))
    assert graph.nodes == read.nodes
    wrong = []
    for (command, selection), expected in zip(cases, answers, strict=True):
        got = ours(graph, selection, command)
        if expected is None:
            if isinstance(got, list):
                wrong.append(f"{command} {selection}: dbt refuses, we find {got}")
        elif isinstance(got, str):
            wrong.append(f"{command} {selection}: {got}")
        elif got != expected:
            more, less = sorted(set(got) - set(expected)), sorted(set(expected) - set(got))
            wrong.append(f"{command} {selection}: too many {more}, missing {less}")
    assert not wrong, f"dbt {version}, {len(wrong)} of {len(cases)}:\n" + "\n".join(wrong[:10])
    # Expressions that find nothing would prove nothing.
    assert sum(bool(a) for a in answers) > len(answers) / 3
