"""The headline, small: random projects that fail in some way, and are recovered (see
benchmarks/equivalence.py). What it says of dbt-recover can be false here: the same judge finds the
other ways wrong.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
KINDS = ("sql_error", "source_far", "failed_test", "fail_fast", "ctrl_c", "sigkill", "layered")
OTHERS = ("dbt retry", "lesson")


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the benchmark writes of one case of each of these kinds."""
    path = tmp_path_factory.mktemp("equivalence") / "cases.json"
    words = ["--seed", "7", "--cases", str(len(KINDS)), "--max-nodes", "14", "--jobs", "2"]
    for kind in KINDS:
        words += ["--only", kind]
    for way in ("dbt-recover", *OTHERS, "the smallest set"):
        words += ["--recover", way]
    ran = subprocess.run(
        [sys.executable, str(BENCHMARKS / "equivalence.py"), *words, "--json", str(path)],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert "| way to recover" in ran.stdout, ran.stdout + ran.stderr
    found: dict[str, Any] = json.loads(path.read_text())
    found["exit_code"] = ran.returncode
    return found


def results(document: dict[str, Any], way: str) -> Iterator[dict[str, Any]]:
    """Of one way to recover, in all cases."""
    for case in document["cases"]:
        if not case["void"]:
            yield case["results"][way] | {"case": case["reproduction"]}


@pytest.mark.slow
def test_dbt_recover_is_right_or_refuses(document: dict[str, Any]) -> None:
    found = list(results(document, "dbt-recover"))
    assert len(found) >= len(KINDS) - 1
    wrong = [r for r in found if r["verdict"] == "wrong" or r["notes"]]
    assert not wrong
    assert document["exit_code"] == 0
    assert sum(r["verdict"] == "right" for r in found) >= len(KINDS) - 2
    for refused in (r for r in found if r["verdict"] == "refused"):
        assert refused["exit_code"] == 12


@pytest.mark.slow
def test_the_smallest_set_does_it(document: dict[str, Any]) -> None:
    for case in document["cases"]:
        ours = case["results"].get("dbt-recover")
        if ours and ours["verdict"] == "right":
            assert case["results"]["the smallest set"]["verdict"] == "right", case["reproduction"]
            assert len(ours["executed"]) >= len(case["smallest"])


@pytest.mark.slow
@pytest.mark.parametrize("way", OTHERS)
def test_the_judge_finds_others_wrong(way: str, document: dict[str, Any]) -> None:
    verdicts = [r["verdict"] for r in results(document, way)]
    assert "wrong" in verdicts


def test_a_view_is_the_same_however_dbt_inlines_ephemeral_models(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from _equivalence_room import definition

    inner = "(select 1 as n)"
    beside = (
        f"create view v as with __dbt__cte__a as {inner}, "
        "__dbt__cte__b as (select n from __dbt__cte__a) select n from __dbt__cte__b"
    )
    inside = (
        f"create view v as with __dbt__cte__a as {inner}, __dbt__cte__b as (with __dbt__cte__a as "
        f"{inner} select n from __dbt__cte__a) select n from __dbt__cte__b"
    )
    other = beside.replace("select 1", "select 2")
    with duckdb.connect() as connection:

        def kept(sql: str) -> str:
            connection.execute(sql.replace("create view", "create or replace view"))
            row = connection.execute("select sql from duckdb_views() where view_name = 'v'")
            return definition(str(row.fetchall()[0][0]))

        assert kept(beside) == kept(inside)
        assert kept(beside) != kept(other)


# The table in the README

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture
def quoted() -> list[list[str]]:
    """Its rows, the header first."""
    text = README.read_text("utf-8")
    lines = text[text.index("| way to recover") :].splitlines()
    table = list(itertools.takewhile(lambda line: line.startswith("|"), lines))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def test_the_readme_quotes_a_table_as_the_benchmark_prints_it(
    quoted: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import equivalence
    from _equivalence_case import Case, Result
    from _equivalence_ways import WAYS

    case = Case(1, "sql_error", 0, smallest=["model.eq.a"])
    case.results = {way: Result(way, "right", 0, ["model.eq.a", "model.eq.b"]) for way in WAYS}
    printed = equivalence._by_way([case], list(WAYS)).splitlines()
    header, *rows = [[c.strip() for c in line.strip("|").split("|")] for line in printed]
    assert quoted[0] == header
    assert [row[0] for row in quoted[2:]] == [row[0] for row in rows[1:]]
    for row in quoted[2:]:
        assert len(row) == len(header)
        assert re.fullmatch(r"\d+ %", row[2])
        assert re.fullmatch(r"[\d.]*", row[6])


def test_the_numbers_in_the_readme_add_up(quoted: list[list[str]]) -> None:
    rows = {row[0]: row for row in quoted[2:]}
    cases = {int(row[1]) for row in rows.values()}
    assert len(cases) == 1
    for row in rows.values():
        refused, wrong = (int(cell or 0) for cell in row[3:5])
        right = max(cases) - refused - wrong
        assert row[2] == f"{100 * right / max(cases):.0f} %"
    assert not rows["dbt-recover"][4], "the headline: never wrong"


def test_the_command_in_the_readme_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import _equivalence_failures
    import equivalence

    found = re.search(r"python benchmarks/equivalence\.py ([^`\n]+)", README.read_text("utf-8"))
    assert found
    monkeypatch.setattr(sys, "argv", ["equivalence.py", *found[1].split()])
    given = equivalence._arguments()
    assert given.cases >= len(_equivalence_failures.KINDS), "each way to fail"
    assert not given.only
