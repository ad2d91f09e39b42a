"""The benchmarks run, small, and check what they measure. Nothing is asserted on time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(name: str, *arguments: str) -> str:
    """What a benchmark prints."""
    ran = subprocess.run(
        [sys.executable, str(BENCHMARKS / f"{name}.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_startup() -> None:
    assert "--help takes" in run("startup", "--runs", "1")


@pytest.mark.slow
def test_parsing_a_task_per_model() -> None:
    printed = run("dag_parse", "--models", "20", "--runs", "1")
    assert "no Airflow here" in printed or "a DAG of 20 tasks" in printed


def test_plan_of_a_large_manifest() -> None:
    text = run("plan", "--manifest-mb", "1", "--runs", "1")
    assert "manifest.json of 1 MB" in text
    assert "memory of plan" in text


@pytest.mark.slow
def test_plan_has_what_dbt_lists() -> None:
    text = run("plan", "--models", "20", "--runs", "1")
    assert "the plan has them all" in text
    assert "times faster" in text


@pytest.mark.slow
def test_exec_overhead() -> None:
    text = run("exec_overhead", "--models", "5", "--pairs", "1", "--json-log")
    assert "memory of the recorder" in text
    assert "a node's result is in the archive after" in text


@pytest.mark.slow
def test_archive_of_many_runs() -> None:
    small = ("--archived", "60", "--days", "3", "--runs", "1", "--delay", "0.1", "--pairs", "1")
    text = run("archive", *small, "--models", "30")
    assert "makes 3 requests; goal at most 3: met" in text
    assert "runs --date D takes" in text
    assert "of them; goal at least 8: met" in text
    assert "under exec dbt takes" in text


@pytest.mark.slow
def test_start_of_recovery(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    text = run("recovery_start", "--models", "20", "--runs", "1", "--yaml", "--json", str(figures))
    assert "times as long to its first node; goal at most 0.5" in text
    starts = json.loads(figures.read_text())["starts"]
    nodes = {name: [start["nodes"] for start in found] for name, found in starts.items()}
    assert nodes["dbt-recover retry"] == nodes["dbt retry"] != [0]
