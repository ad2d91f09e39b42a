"""A retry that is held to a plan which somebody has approved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from archives import BAD, DAILY, REPORT, made, publish
from dbt_recover.approved import Approved, ApprovedNode, ApprovedRun, check_approved, read_approved
from dbt_recover.decision import Plan, PlannedNode
from dbt_recover.errors import DbtError, RefusedError, UsageError
from dbt_recover.storage.local import LocalStorage
from test_standing import command

ONE, TWO = ("2026-01-01", "2026-01-02"), ("2026-01-02", "2026-01-03")


def approved(*nodes: ApprovedNode) -> Approved:
    return Approved(ApprovedRun("night"), nodes)


def check(now: PlannedNode, *shown: ApprovedNode) -> None:
    check_approved(Plan((now,)), approved(*shown), "night")


def test_the_same_or_less_is_run() -> None:
    check(PlannedNode("model.a", "failed", ""), ApprovedNode("model.a"), ApprovedNode("model.b"))
    check(PlannedNode("model.a", "batches", "", batches=(ONE,)), ApprovedNode("model.a"))
    check(
        PlannedNode("model.a", "batches", "", batches=(ONE,)), ApprovedNode("model.a", (TWO, ONE))
    )


@pytest.mark.parametrize(
    "now, shown",
    [
        (PlannedNode("model.b", "failed", ""), ApprovedNode("model.a")),
        (PlannedNode("model.a", "failed", ""), ApprovedNode("model.a", (ONE,))),
        (
            PlannedNode("model.a", "batches", "", batches=(ONE, TWO)),
            ApprovedNode("model.a", (ONE,)),
        ),
    ],
    ids=["another node", "all batches", "another batch"],
)
def test_more_is_refused(now: PlannedNode, shown: ApprovedNode) -> None:
    with pytest.raises(RefusedError, match=f"New in it: {now.unique_id}") as refused:
        check(now, shown)
    assert refused.value.next_step == "look at it again: dbt-recover plan night"


def test_another_run_is_a_mistake() -> None:
    with pytest.raises(UsageError, match="is the plan of run night, and this is run day"):
        check_approved(Plan(()), approved(), "day")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"run": {}, "nodes": []}', '{"nodes": [1]}'])
def test_a_file_that_is_no_plan(text: str, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_text(text)
    with pytest.raises(UsageError, match=r"--approved .*plan\.json: "):
        read_approved(str(file))
    with pytest.raises(UsageError, match="No such file"):
        read_approved(str(tmp_path / "none"))


def test_retry_is_held_to_what_plan_printed(tmp_path: Path) -> None:
    store = LocalStorage(tmp_path / "archive")
    publish(store, made("night", BAD))
    printed = command(store, "plan", "night", "-o", "json").out
    shown = json.loads(printed)
    assert [n["unique_id"] for n in shown["nodes"]] == [DAILY, REPORT]
    file = tmp_path / "plan.json"
    file.write_text(printed)
    # Nothing stands in its way but that there is no dbt here.
    allowed = command(store, "--dbt", "/no/such/dbt", "retry", "night", "--approved", file)
    assert (allowed.code, "/no/such/dbt" in allowed.err) == (DbtError.exit_code, True), allowed
    file.write_text(json.dumps({**shown, "nodes": shown["nodes"][:1]}))
    refused = command(store, "retry", "night", "--approved", file, "-o", "json")
    assert (refused.code, refused.json["outcome"]) == (RefusedError.exit_code, "refused")
    assert f"the plan of run night is another one by now. New in it: {REPORT}" in refused.err
