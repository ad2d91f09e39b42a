"""How a run stands of which nothing is to run again: what `plan` says of it is what `retry` does."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from archives import BAD, DAILY, GOOD, PROJECT, REPORT, begin, loaded, made, publish
from dbt_recover.archive import Archive
from dbt_recover.decision import Standing
from dbt_recover.errors import EXIT_STILL_FAILING, LockedError, RefusedError
from dbt_recover.recover import Options, plan_run
from dbt_recover.storage.local import LocalStorage
from projects import Checkout, Ran, checkout

HOOK = f"operation.{PROJECT}.{PROJECT}-on-run-end-0"
slow = pytest.mark.slow


@pytest.fixture
def store(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "archive")


def stands(store: LocalStorage, run_id: str, *, preview: bool = False, **given: object) -> Standing:
    run = loaded(store, run_id)
    plan = plan_run(run, Options(**given), None, archive=Archive(store), preview=preview)  # type: ignore[arg-type]
    assert plan.nodes == ()
    assert plan.standing is not None
    return plan.standing


def command(store: LocalStorage, *words: object) -> Ran:
    """dbt-recover where there is no project and no dbt."""
    home = Path(store.root).parent / "laptop"
    (home / "project").mkdir(parents=True, exist_ok=True)
    (home / "calls").mkdir(exist_ok=True)
    here = Checkout(home, home, {}, environ={"DBT_RECOVER_ARCHIVE": str(store.root)})
    return here.recover(*words)


def test_a_whole_run(store: LocalStorage) -> None:
    publish(store, made("night"))
    found = stands(store, "night")
    assert (found.outcome, found.listed, found.next_step) == ("already_complete", "success", "")
    assert found.message == "nothing of run night is to run again: it is whole"
    ran = command(store, "plan", "night")
    assert (ran.code, ran.out) == (0, "run night: nothing to run again\n")


def test_one_with_nodes_to_run_has_none(store: LocalStorage) -> None:
    publish(store, made("night", BAD))
    planned = command(store, "plan", "night", "-o", "json").json
    assert planned["nodes"]
    assert (planned["nothing_to_run"], planned["text"]) == (None, None)
    told = command(store, "plan", "night", "-o", "json", "--text").json
    assert told["text"] + "\n" == command(store, "plan", "night").out


def test_a_selection_that_leaves_nothing(store: LocalStorage) -> None:
    publish(store, made("night", BAD))
    found = stands(store, "night", select=("stg_orders",))
    assert found.outcome == "failing"
    assert "is not whole, and --select or --exclude leaves nothing of its plan" in found.message
    assert "without orders_daily, orders_report" in found.message
    ran = command(store, "retry", "night", "--select", "stg_orders", "-o", "json")
    assert (ran.code, ran.json["outcome"]) == (EXIT_STILL_FAILING, "failing")
    assert {n["unique_id"] for n in ran.json["still_failing"]} == {DAILY, REPORT}
    assert found.message in command(store, "plan", "night", "--select", "stg_orders").out


def test_a_hook_alone_has_failed(store: LocalStorage) -> None:
    """In the second step; it is that command which is to be typed again."""
    publish(store, made("night", step="first"))
    publish(store, made("night", GOOD | {HOOK: "error"}, step="the second", command="run", later=5))
    found = stands(store, "night")
    assert (found.outcome, found.listed) == ("refused", "failed")
    assert f"but {HOOK} failed, and dbt runs a hook only with a command" in found.message
    again = "dbt-recover exec --run-id night --step 'the second' -- dbt run\n"
    assert again in found.next_step
    refused = command(store, "retry", "night")
    assert refused.code == RefusedError.exit_code
    for said in (refused.err, command(store, "plan", "night").out):
        assert found.message in said
        assert again in said

    # Taken as whole, for all that.
    ignored = stands(store, "night", ignore_failed_hooks=True)
    assert (ignored.outcome, ignored.listed) == ("already_complete", "failed")
    assert f"it is whole, {HOOK} aside" in ignored.message
    shown = command(store, "plan", "night", "--ignore-failed-hooks").out
    assert "  have it listed as whole: dbt-recover retry night\n" in shown
    done = command(store, "retry", "night", "--ignore-failed-hooks", "-o", "json")
    assert (done.code, done.json["outcome"]) == (0, "already_complete")
    assert stands(store, "night").outcome == "already_complete"
    assert command(store, "retry", "night").code == 0


def test_one_at_work(store: LocalStorage) -> None:
    begin(store, made("night"), lives=True)
    run = loaded(store, "night")
    done = msgspec.structs.replace(run, state=msgspec.structs.replace(run.state, nodes={}))
    found = plan_run(done, Options(), None, archive=Archive(store)).standing
    assert found is not None
    assert (found.outcome, found.listed) == ("running", "")
    ran = command(store, "retry", "night")
    assert ran.code == LockedError.exit_code
    assert found.message in ran.err
    assert found.next_step in ran.err


def test_what_a_command_was_to_execute_is_not_known(store: LocalStorage) -> None:
    begin(store, made("night", step="first"))
    run = loaded(store, "night")
    unknown = msgspec.structs.replace(
        run,
        intended={},
        state=msgspec.structs.replace(run.state, nodes={}, warnings=["who knows"]),
    )
    plan = plan_run(unknown, Options(), None, preview=True)
    assert plan.standing is not None
    assert plan.standing.outcome == "unknown"
    plan = plan_run(unknown, Options(allow_unknown_scope=True), None)
    assert plan.standing is not None
    assert (plan.standing.outcome, plan.standing.message) == ("refused", "who knows")
    assert "dbt-recover exec --run-id night --step first -- dbt build" in plan.standing.next_step
    # No flag helps where there is nothing to go on with.
    assert [(w.code, w.flag) for w in plan.warnings] == [("unknown_scope", "")]


@slow
def test_a_hook_that_fails_in_each_attempt(tmp_path: Path) -> None:
    """Nothing calls the run whole: not a retry that ran its nodes, not the next try of a task."""
    here = checkout("model_error", tmp_path / "here")
    project = here.root / "dbt_project.yml"
    project.write_text(project.read_text() + "\non-run-end: select * from nowhere_at_all\n")
    step = ("exec", "--run-id", "night", "--step", "build")
    build = ("--", "dbt", *here.expect.command)
    assert here.recover(*step, *build).code == 1
    here.mend()
    retried = here.recover("retry", "-o", "json")
    assert (retried.code, retried.json["outcome"]) == (EXIT_STILL_FAILING, "failing"), retried
    assert sorted(retried.json["executed"]) == sorted(here.expect.retry)
    (left,) = retried.json["still_failing"]
    assert left["unique_id"].startswith("operation.")
    assert "nowhere_at_all" in left["message"]

    calls = len(here.calls)
    for words in (("retry",), (*step, "--resume", *build)):
        refused = here.recover(*words)
        assert refused.code == RefusedError.exit_code, refused
        assert "dbt runs a hook only with a command" in refused.err
    assert here.recover("retry", "--ignore-failed-hooks").code == 0
    assert here.recover("runs", "-o", "json").json["runs"][0]["status"] == "recovered"
    assert here.recover(*step, "--resume", *build).code == 0
    assert len(here.calls) == calls
