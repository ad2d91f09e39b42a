"""Fail, fix, retry, on real dbt: of every fixture project exactly the nodes run again that have
to, and the warehouse is then that of a clean build.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from projects import NAMES, checkout, with_status, without


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_retry_runs_what_has_to_run_and_nothing_else(name: str, tmp_path: Path) -> None:
    here = checkout(name, tmp_path / "here")
    expect = here.expect

    ran = here.recover("exec", "--", "dbt", *expect.command)
    (first,) = here.calls
    assert (ran.code, first.exit_code) == (1, 1), ran
    assert with_status(here.run_results(), "error", "fail", "runtime error") == expect.fails
    assert with_status(here.run_results(), "skipped") == expect.skipped
    # Under --fail-fast dbt records as skipped what its last thread still built meanwhile.
    built = [uid for uid in expect.skipped if first.finished.get(uid) == "success"]
    skipped, retry = without(expect.skipped, *built), without(expect.retry, *built)
    shown = here.recover("show", "-o", "json").json
    assert sorted(node["unique_id"] for node in shown["failed"]) == expect.fails
    assert shown["skipped"] == skipped
    for failure in shown["failed"]:
        assert failure["message"], failure

    before = here.plan()
    if name == "diamond_with_shared_parent":
        # The parent, and so the left side, have to run only once it is known that it was edited.
        assert before == sorted([*expect.fails, *skipped])
    else:
        assert before == retry
    here.mend()
    assert here.plan() == retry
    assert len(here.calls) == 1, "plan started dbt"

    retried = here.recover("retry", "-o", "json")
    assert retried.code == 0, retried
    assert retried.json["outcome"] == "recovered"
    assert retried.json["attempt"] == 2
    assert retried.json["still_failing"] == []
    assert sorted(retried.json["executed"]) == retry
    # dbt's own word: its events, and the file it wrote.
    (second,) = here.calls[1:]
    assert second.executed == retry
    assert second.finished.keys() == here.run_results().keys() == set(retry)

    assert here.tables() == here.clean_build(tmp_path / "clean")

    again = here.recover("--dbt", here.dbt_path, "retry", "-o", "json")
    assert (again.code, again.json["outcome"]) == (0, "already_complete"), again
    told = here.recover("--dbt", here.dbt_path, "retry")
    assert told.code == 0
    assert "already complete" in told.out
    assert len(here.calls) == 2, "retry of a whole run started dbt"
    assert here.recover("runs", "-o", "json").json["runs"][0]["status"] == "recovered"
