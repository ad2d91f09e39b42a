"""The planning rules of DESIGN.md on graphs of a few nodes, written inline, and their invariants on
random ones. No dbt, no archive: run state + graph + policy -> plan.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dbt_recover.command_line import DbtCommand
from dbt_recover.errors import RefusedError
from dbt_recover.graph import BUILDABLE, TESTS, Graph, Node
from dbt_recover.model import (
    IN_FLIGHT,
    SUCCESSES,
    UNRECORDED,
    Invocation,
    NodeResult,
    Recorded,
    RunInfo,
    RunState,
)
from dbt_recover.plan import Changes, Plan, PlannedNode, Policy, idempotent, make_plan
from dbt_recover.reconcile import new_above, reconfigured, successors
from dbt_recover.retry_command import retry_command, state_file, strategy_for
from dbt_recover.runstate import merge, rebuilt_above, relations_read_by
from dbt_recover.stages import Group, check_favored

untimed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""A machine at work elsewhere is no failure."""

RUN = RunInfo("daily/1", "2026-01-31T06:00:00Z")
Words: TypeAlias = Mapping[str, str | NodeResult]
"""unique_id -> its status, or its whole result."""

SAME = Changes()
"""Nothing was edited."""


# ---- builders ----------------------------------------------------------------------------------


def node(uid: str, parents: str = "", **fields: Any) -> Node:
    """`node("model.b", "model.a")`: a table unless it says otherwise; its name is what follows
    the type."""
    kind, name = uid.split(".", 1)
    if kind in BUILDABLE:
        fields.setdefault("materialized", "table" if kind == "model" else kind)
    return Node(uid, kind, name, package_name="shop", depends_on=parents.split(), **fields)


def graph(*nodes: Node) -> Graph:
    """A project of these nodes."""
    return Graph(nodes, project_name="shop")


def recorded(statuses: Words, attempt: int = 1, **fields: Any) -> tuple[Recorded, frozenset[str]]:
    """An invocation that left these words, and what it was meant to execute."""
    results: dict[str, NodeResult] = {}
    for uid, word in statuses.items():
        if word not in (IN_FLIGHT, UNRECORDED):
            results[uid] = NodeResult(uid, word) if isinstance(word, str) else word
    complete = results.keys() == statuses.keys()
    made = Invocation(
        f"i{attempt}", RUN, attempt=attempt, began=f"2026-01-31T0{attempt}", exit_code=1, **fields
    )
    in_flight = frozenset(uid for uid, word in statuses.items() if word == IN_FLIGHT)
    return Recorded(made, results, in_flight, complete), frozenset(statuses)


def state(*attempts: Words, **fields: Any) -> RunState:
    """A run of one invocation per attempt, with these last words."""
    made = [recorded(words, number, **fields) for number, words in enumerate(attempts, start=1)]
    return merge(
        [record for record, _ in made],
        {record.invocation.invocation_id: intended for record, intended in made},
    )


def causes(plan: Plan) -> dict[str, str]:
    """What runs again, and the word for why."""
    return {n.unique_id: n.cause for n in plan.nodes}


def reasons(plan: Plan) -> dict[str, str]:
    """What runs again, and the sentence for why."""
    return {n.unique_id: n.reason for n in plan.nodes}


def codes(plan: Plan) -> set[str]:
    """The warnings."""
    return {w.code for w in plan.warnings}


CHAIN = graph(
    node("seed.raw"),
    node("model.stg", "seed.raw"),
    node("model.fct", "model.stg"),
    node("model.rpt", "model.fct"),
    node("model.other", "seed.raw"),
    node("test.stg", "model.stg"),
    node("test.fct", "model.fct"),
)
"""raw -> stg -> fct -> rpt, and other beside; stg and fct have a test each."""

WELL = {
    "seed.raw": "success",
    "model.stg": "success",
    "test.stg": "pass",
    "model.fct": "success",
    "test.fct": "pass",
    "model.rpt": "success",
    "model.other": "success",
}


# ---- rule 1: what did not succeed --------------------------------------------------------------


def test_a_run_that_went_well_has_nothing_to_plan() -> None:
    plan = make_plan(state(WELL), CHAIN, changes=SAME)
    assert plan == Plan(())


@pytest.mark.parametrize("status", ["error", "runtime error", "fail", "partial success"])
def test_a_failed_model_runs_again_with_what_it_skipped(status: str) -> None:
    words = {**WELL, "model.fct": status, "test.fct": "skipped", "model.rpt": "skipped"}
    plan = make_plan(state(words), CHAIN, changes=SAME)
    assert causes(plan) == {"model.fct": "failed", "test.fct": "skipped", "model.rpt": "skipped"}
    assert reasons(plan)["model.rpt"] == "skipped because fct failed"
    assert plan.nodes[0].status == status
    assert plan.nodes[-1].because == ("model.fct",)
    assert (plan.left_alone, plan.warnings) == ((), ())


def test_skipped_through_models_that_were_skipped_themselves() -> None:
    words = dict.fromkeys(WELL, "skipped") | {"seed.raw": "error"}
    plan = make_plan(state(words), CHAIN, changes=SAME)
    assert plan.ids[0] == "seed.raw"
    assert reasons(plan)["model.rpt"] == "skipped because raw failed"
    assert causes(plan).keys() == WELL.keys()


def test_skipped_through_a_failed_test() -> None:
    words = {**WELL, "test.stg": "fail"}
    words |= dict.fromkeys(["model.fct", "test.fct", "model.rpt"], "skipped")
    plan = make_plan(state(words), CHAIN, changes=SAME)
    assert causes(plan) == {
        "model.stg": "tested",
        "test.stg": "failed",
        "model.fct": "skipped",
        "test.fct": "skipped",
        "model.rpt": "skipped",
    }
    assert reasons(plan)["model.stg"] == "its test stg failed"
    assert reasons(plan)["model.rpt"] == "skipped because test stg failed"
    # As dbt build runs them: what reads stg waits for its test.
    assert plan.ids[:3] == ("model.stg", "test.stg", "model.fct")


def test_skipped_through_its_own_unit_test() -> None:
    project = graph(node("model.a"), node("unit_test.a", "model.a"), node("model.b", "model.a"))
    words = {"unit_test.a": "fail", "model.a": "skipped", "model.b": "skipped"}
    plan = make_plan(state(words), project, changes=SAME)
    assert causes(plan) == {
        "unit_test.a": "failed",
        "model.a": "skipped",
        "model.b": "skipped",
    }
    assert reasons(plan)["model.a"] == "skipped because test a failed"


def test_skipped_by_fail_fast_has_no_cause_above() -> None:
    words = {**WELL, "model.fct": "error", "test.fct": "skipped", "model.rpt": "skipped"}
    plan = make_plan(state({**words, "model.other": "skipped"}), CHAIN, changes=SAME)
    (other,) = [n for n in plan.nodes if n.unique_id == "model.other"]
    assert other.cause == "skipped"
    assert other.because == ()
    assert "fail-fast" in other.reason


def test_two_causes_are_counted() -> None:
    project = graph(node("model.a"), node("model.b"), node("model.c", "model.a model.b"))
    words = {"model.a": "error", "model.b": "error", "model.c": "skipped"}
    plan = make_plan(state(words), project, changes=SAME)
    assert reasons(plan)["model.c"] == "skipped because a failed (and 1 more)"
    assert plan.nodes[-1].because == ("model.a", "model.b")


def test_a_cause_out_of_sight_is_seen_through() -> None:
    # The ephemeral model has no result of its own.
    project = graph(
        node("model.a"),
        node("model.e", "model.a", materialized="ephemeral"),
        node("model.b", "model.e"),
    )
    plan = make_plan(state({"model.a": "error", "model.b": "skipped"}), project, changes=SAME)
    assert reasons(plan)["model.b"] == "skipped because a failed"


@pytest.mark.parametrize("uid", ["seed.s", "snapshot.s"])
def test_seeds_and_snapshots_run_again_as_models_do(uid: str) -> None:
    project = graph(node(uid), node("model.a", uid), node("test.s", uid))
    words = {uid: "error", "model.a": "skipped", "test.s": "skipped"}
    plan = make_plan(state(words), project, changes=SAME)
    assert causes(plan) == {uid: "failed", "model.a": "skipped", "test.s": "skipped"}
    assert plan.warnings == ()
    assert [n.action for n in plan.nodes if n.unique_id == uid] == ["run"]


def test_never_started_and_in_flight() -> None:
    words = {**WELL, "model.fct": IN_FLIGHT, "test.fct": UNRECORDED, "model.rpt": UNRECORDED}
    plan = make_plan(state(words), CHAIN, changes=SAME)
    assert causes(plan) == {
        "model.fct": "in_flight",
        "test.fct": "never_started",
        "model.rpt": "never_started",
    }


def test_an_unknown_status_is_not_done_and_said() -> None:
    plan = make_plan(state({**WELL, "model.rpt": "quarantined"}), CHAIN, changes=SAME)
    assert causes(plan) == {"model.rpt": "unknown_status"}
    (warning,) = plan.warnings
    assert warning.code == "unknown_status"
    assert "rpt" in warning.message
    assert "'quarantined'" in warning.message
    assert plan.blockers == ()


@pytest.mark.parametrize("status", sorted(SUCCESSES))
def test_successes_are_left_alone(status: str) -> None:
    words = {**WELL, "model.fct": status, "model.rpt": "error"}
    assert causes(make_plan(state(words), CHAIN, changes=SAME)) == {"model.rpt": "failed"}


def test_a_node_the_graph_does_not_know_is_planned_by_its_own_word() -> None:
    words = {**WELL, "model.ghost": "error", "test.ghost": "skipped"}
    plan = make_plan(state(words), CHAIN, changes=SAME)
    assert causes(plan) == {"model.ghost": "failed", "test.ghost": "skipped"}
    assert [n.action for n in plan.nodes] == ["run", "test"]


def test_without_any_graph_each_word_counts() -> None:
    words = {"model.a": "error", "model.b": "skipped", "test.b": "skipped", "model.c": "success"}
    plan = make_plan(state(words), graph(), changes=SAME)
    assert set(plan.ids) == {"model.a", "model.b", "test.b"}


# ---- rule 2: what was built on what is rebuilt -------------------------------------------------


def test_what_was_built_on_a_rebuilt_model_is_stale() -> None:
    # Layered steps: what is below was built although the test had failed.
    plan = make_plan(state(WELL, {"test.stg": "fail"}), CHAIN, changes=SAME)
    assert causes(plan) == {
        "model.stg": "tested",
        "test.stg": "failed",
        "model.fct": "stale",
        "test.fct": "test_of_rebuilt",
        "model.rpt": "stale",
    }
    assert reasons(plan)["model.fct"] == "was built on stg, which is rebuilt"
    assert reasons(plan)["test.fct"] == "tests fct, which is rebuilt"
    assert plan.nodes[-1].because == ("model.fct",)


def test_a_neighbour_of_the_run_is_never_planned() -> None:
    words = {k: v for k, v in WELL.items() if k not in ("model.rpt", "test.fct")}
    plan = make_plan(state({**words, "model.stg": "error"}), CHAIN, changes=SAME)
    assert causes(plan) == {
        "model.stg": "failed",
        "test.stg": "test_of_rebuilt",
        "model.fct": "stale",
    }


def test_a_table_out_of_scope_between_nodes_of_the_run_keeps_its_rows() -> None:
    project = graph(node("model.a"), node("model.x", "model.a"), node("model.b", "model.x"))
    plan = make_plan(state({"model.a": "error", "model.b": "success"}), project, changes=SAME)
    assert causes(plan) == {"model.a": "failed"}


@pytest.mark.parametrize("materialized", ["view", "ephemeral"])
def test_a_view_out_of_scope_shows_the_new_rows(materialized: str) -> None:
    project = graph(
        node("model.a"),
        node("model.x", "model.a", materialized=materialized),
        node("model.y", "model.x", materialized=materialized),
        node("model.b", "model.y"),
        node("test.y", "model.y"),
    )
    words = {"model.a": "error", "model.b": "success", "test.y": "pass"}
    plan = make_plan(state(words), project, changes=SAME)
    assert causes(plan) == {"model.a": "failed", "model.b": "stale", "test.y": "test_of_rebuilt"}


def test_a_unit_test_reads_no_rows() -> None:
    project = graph(node("model.a"), node("model.b", "model.a"), node("unit_test.b", "model.b"))
    words = {"model.a": "error", "model.b": "success", "unit_test.b": "pass"}
    plan = make_plan(state(words), project, changes=SAME)
    assert causes(plan) == {"model.a": "failed", "model.b": "stale"}


def test_a_unit_test_runs_again_when_its_model_was_edited() -> None:
    project = graph(node("model.b"), node("unit_test.b", "model.b"))
    words = {"unit_test.b": "pass", "model.b": "error"}
    plan = make_plan(state(words), project, changes=Changes(frozenset({"model.b"})))
    assert causes(plan) == {"model.b": "failed", "unit_test.b": "test_of_rebuilt"}


def test_what_a_later_attempt_rebuilt_makes_older_successes_stale() -> None:
    # The second attempt was narrowed to stg.
    plan = make_plan(state(WELL, {"model.stg": "success"}), CHAIN, changes=SAME)
    assert causes(plan) == {
        "test.stg": "test_of_rebuilt",
        "model.fct": "stale",
        "test.fct": "test_of_rebuilt",
        "model.rpt": "stale",
    }


def test_what_a_later_attempt_built_in_order_is_not_stale() -> None:
    again = {k: WELL[k] for k in ("model.stg", "test.stg", "model.fct", "test.fct", "model.rpt")}
    assert make_plan(state(WELL, again), CHAIN, changes=SAME).nodes == ()


def test_a_retry_killed_half_way_goes_on_where_it_stopped() -> None:
    first = {**WELL, "test.stg": "fail"}
    first |= dict.fromkeys(["model.fct", "test.fct", "model.rpt"], "skipped")
    second = {
        "model.stg": "success",
        "test.stg": "pass",
        "model.fct": IN_FLIGHT,
        "test.fct": UNRECORDED,
        "model.rpt": UNRECORDED,
    }
    plan = make_plan(state(first, second), CHAIN, changes=SAME)
    assert causes(plan) == {
        "model.fct": "in_flight",
        "test.fct": "never_started",
        "model.rpt": "never_started",
    }


# ---- rule 3: failed tests ----------------------------------------------------------------------


def test_recheck_runs_the_test_alone() -> None:
    first = {**WELL, "test.stg": "fail"}
    plan = make_plan(state(first), CHAIN, Policy(tests="recheck"), changes=SAME)
    assert causes(plan) == {"test.stg": "failed"}
    assert plan.nodes[0].action == "test"


def test_recheck_builds_what_the_test_skipped() -> None:
    first = {**WELL, "test.stg": "fail", "model.fct": "skipped", "test.fct": "skipped"}
    plan = make_plan(state({**first, "model.rpt": "skipped"}), CHAIN, Policy("recheck"), SAME)
    assert plan.ids == ("test.stg", "model.fct", "test.fct", "model.rpt")


def test_a_test_of_two_models_rebuilds_both() -> None:
    project = graph(
        node("model.a"),
        node("model.b"),
        node("test.ab", "model.a model.b"),
        node("model.c", "model.a"),
    )
    words = {"model.a": "success", "model.b": "success", "test.ab": "error", "model.c": "success"}
    plan = make_plan(state(words), project, changes=SAME)
    assert causes(plan) == {
        "model.a": "tested",
        "model.b": "tested",
        "test.ab": "failed",
        "model.c": "stale",
    }


def test_a_test_of_a_view_is_about_the_view() -> None:
    # As a test of a table is about the table, and not about what it reads.
    project = graph(
        node("model.a"),
        node("model.v", "model.a", materialized="view"),
        node("test.v", "model.v"),
    )
    words = {"model.a": "success", "model.v": "success", "test.v": "fail"}
    plan = make_plan(state(words), project, changes=SAME)
    assert causes(plan) == {"model.v": "tested", "test.v": "failed"}


def test_a_test_of_an_ephemeral_is_about_what_that_reads() -> None:
    project = graph(
        node("model.a"),
        node("model.e", "model.a", materialized="ephemeral"),
        node("test.e", "model.e"),
    )
    plan = make_plan(state({"model.a": "success", "test.e": "fail"}), project, changes=SAME)
    assert causes(plan) == {"model.a": "tested", "test.e": "failed"}


def test_a_test_of_a_view_on_a_source_says_nothing_of_other_readers() -> None:
    project = graph(
        node("source.s"),
        node("model.v", "source.s", materialized="view"),
        node("model.other", "source.s"),
        node("test.v", "model.v"),
    )
    words = {"model.v": "success", "model.other": "success", "test.v": "fail"}
    for mended in ("model.v", "test.v"):
        plan = make_plan(state(words), project, changes=Changes(frozenset({mended}), (mended,)))
        assert causes(plan) == {"model.v": "tested", "test.v": "failed"}
    plan = make_plan(state(words), project)  # nobody knows what was edited
    assert causes(plan) == {"model.v": "tested", "test.v": "failed"}


RAW = graph(
    node("source.s"),
    node("model.stg", "source.s"),
    node("model.fct", "model.stg"),
    node("test.fct", "model.fct"),
    node("model.other", "source.s"),
    node("model.below", "model.other"),
    node("model.apart"),
)


def test_rows_that_were_mended_outside_of_the_project() -> None:
    words = dict.fromkeys([u for u in RAW.nodes if u.startswith("model.")], "success")
    plan = make_plan(state(words | {"test.fct": "fail"}), RAW, changes=SAME)
    assert causes(plan) == {
        "model.stg": "source",
        "model.fct": "tested",
        "test.fct": "failed",
        "model.other": "source",
        "model.below": "stale",
    }
    recheck = make_plan(state(words | {"test.fct": "fail"}), RAW, Policy(tests="recheck"), SAME)
    assert causes(recheck) == {"test.fct": "failed"}


def test_rows_of_another_run_s_table_may_have_been_mended() -> None:
    project = graph(
        node("seed.s"),
        node("model.stg", "seed.s"),
        node("model.strict", "model.stg"),
        node("model.other", "model.stg"),
        node("model.apart", "seed.s"),
    )
    failed = NodeResult("model.strict", "error", "Conversion Error: Could not convert")
    words: Words = {"model.strict": failed, "model.other": "success", "model.apart": "success"}
    plan = make_plan(state(words), project, changes=SAME)
    assert causes(plan) == {"model.strict": "failed", "model.other": "source"}
    # Where the run itself makes them, they are what they were.
    plan = make_plan(state({**words, "model.stg": "success"}), project, changes=SAME)
    assert causes(plan) == {"model.strict": "failed"}


@pytest.mark.parametrize(
    "message, rebuilt",
    [
        ("Conversion Error: Could not convert string 'oops' to INT64", True),
        ('invalid input syntax for type integer: "oops"', True),
        ("100038 (22018): Numeric value 'oops' is not recognized", True),
        ("100090 (42P18): Duplicate row detected during DML action", True),
        ("Binder Error: column no_such_column not found", False),
        ("002003 (42S02): Object 'X' does not exist or not authorized", False),
        ("server closed the connection unexpectedly", False),
        ("Invalid Input Error: connection reset by peer", False),
        ("", False),
    ],
)
def test_an_error_that_is_about_rows(message: str, rebuilt: bool) -> None:
    failed = NodeResult("model.stg", "error", message)
    words: Words = {"model.stg": failed, "model.other": "success", "model.fct": "skipped"}
    plan = make_plan(state(words), RAW, changes=SAME)
    assert ("model.other" in causes(plan)) is rebuilt
    mended = Changes(frozenset({"model.stg"}), ("models/stg.sql",))
    assert "model.other" not in causes(make_plan(state(words), RAW, changes=mended))


def test_an_append_from_mended_rows_is_not_run_twice_unasked() -> None:
    project = graph(
        node("source.s"),
        node("model.strict", "source.s"),
        node("model.log", "source.s", materialized="incremental", incremental_strategy="append"),
    )
    failed = NodeResult("model.strict", "error", "Conversion Error: ...")
    plan = make_plan(state({"model.strict": failed, "model.log": "success"}), project, changes=SAME)
    assert [w.code for w in plan.blockers] == ["non_idempotent"]


def test_a_test_without_its_model_in_the_run_runs_alone() -> None:
    plan = make_plan(state({"test.stg": "fail", "test.fct": "pass"}), CHAIN, changes=SAME)
    assert causes(plan) == {"test.stg": "failed"}


def test_a_warning_is_a_success() -> None:
    assert make_plan(state({**WELL, "test.stg": "warn"}), CHAIN, changes=SAME).nodes == ()


SOURCE = graph(
    node("source.s"),
    node("model.a", "source.s"),
    node("model.b", "source.s"),
    node("model.c", "model.a"),
    node("test.s", "source.s"),
)


def test_a_test_of_a_source_rebuilds_its_readers_in_the_run() -> None:
    words = {"test.s": "fail", "model.a": "success", "model.c": "success"}
    plan = make_plan(state(words), SOURCE, changes=SAME)
    assert causes(plan) == {"test.s": "failed", "model.a": "tested", "model.c": "stale"}
    assert reasons(plan)["model.a"] == "reads s, whose test s failed"
    # dbt build lets readers wait for the test of a source, too.
    assert plan.ids == ("test.s", "model.a", "model.c")


def test_a_test_of_a_source_that_skipped_its_readers() -> None:
    words = {"test.s": "fail", "model.a": "skipped", "model.b": "skipped", "model.c": "skipped"}
    plan = make_plan(state(words), SOURCE, changes=SAME)
    assert causes(plan)["model.c"] == "skipped"
    assert reasons(plan)["model.c"] == "skipped because test s failed"


@pytest.mark.parametrize("materialized", ["view", "ephemeral"])
def test_readers_of_a_source_are_found_through_views(materialized: str) -> None:
    # Staging models that only rename columns are rarely tables, and not always in the run.
    project = graph(
        node("source.s"),
        node("model.stg", "source.s", materialized=materialized),
        node("model.a", "model.stg"),
        node("test.s", "source.s"),
    )
    plan = make_plan(state({"test.s": "fail", "model.a": "success"}), project, changes=SAME)
    assert causes(plan).keys() == {"test.s", "model.a"}


# ---- edits -------------------------------------------------------------------------------------


def test_an_edit_above_a_failure_is_the_fix() -> None:
    words = {**WELL, "model.rpt": "error"}
    plan = make_plan(state(words), CHAIN, changes=Changes(frozenset({"model.stg"})))
    assert causes(plan) == {
        "model.stg": "edited",
        "test.stg": "test_of_rebuilt",
        "model.fct": "stale",
        "test.fct": "test_of_rebuilt",
        "model.rpt": "failed",
    }
    assert reasons(plan)["model.stg"] == "edited since the run, above rpt"
    assert (plan.warnings, plan.left_alone) == ((), ())


def test_an_edit_of_what_failed_needs_no_word() -> None:
    words = {**WELL, "model.rpt": "error"}
    plan = make_plan(state(words), CHAIN, changes=Changes(frozenset({"model.rpt"})))
    assert causes(plan) == {"model.rpt": "failed"}
    assert plan.warnings == ()


def test_an_edit_elsewhere_is_drift() -> None:
    words = {**WELL, "model.rpt": "error"}
    edited = Changes(frozenset({"model.other"}))
    plan = make_plan(state(words), CHAIN, changes=edited)
    assert causes(plan) == {"model.rpt": "failed"}
    (warning,) = plan.blockers
    assert (warning.code, warning.flag) == ("drift", "--allow-drift")
    assert "other" in warning.message
    assert [left.unique_id for left in plan.left_alone] == ["model.other"]

    allowed = make_plan(state(words), CHAIN, Policy(allow_drift=True), edited)
    assert allowed.nodes == plan.nodes
    assert codes(allowed) == {"drift"}
    assert allowed.blockers == ()


def test_edited_vars_are_drift_where_anything_was_built_with_the_old_ones() -> None:
    changes = Changes(files=("dbt_project.yml",), other_vars=True)
    plan = make_plan(state({**WELL, "model.rpt": "error"}), CHAIN, changes=changes)
    (warning,) = plan.blockers
    assert (warning.code, warning.flag) == ("drift", "--allow-drift")
    assert "fct" in warning.message
    words = dict.fromkeys(WELL, "error") | {"test.stg": "pass"}
    assert make_plan(state(words), CHAIN, changes=changes).blockers == ()


def test_an_edit_out_of_the_run_is_drift_even_above_a_failure() -> None:
    # The retry would not build it: what failed would read the old rows.
    words = {k: v for k, v in WELL.items() if k != "model.stg"}
    edited = Changes(frozenset({"model.stg"}))
    plan = make_plan(state({**words, "model.fct": "error"}), CHAIN, changes=edited)
    assert "model.stg" not in plan.ids
    assert [w.code for w in plan.blockers] == ["drift"]


def test_an_edited_hook_is_no_drift() -> None:
    project = graph(*CHAIN.nodes.values(), node("operation.hook"))
    words = {**WELL, "model.rpt": "error"}
    plan = make_plan(state(words), project, changes=Changes(frozenset({"operation.hook"})))
    assert plan.warnings == ()


def test_edits_are_nothing_to_a_run_that_went_well() -> None:
    plan = make_plan(state(WELL), CHAIN, changes=Changes(frozenset({"model.stg", "model.other"})))
    assert plan == Plan(())


def test_without_file_hashes_it_says_that_it_cannot_see_edits() -> None:
    plan = make_plan(state({**WELL, "model.rpt": "error"}), CHAIN, changes=Changes(known=False))
    assert codes(plan) == {"drift_unknown"}
    assert plan.blockers == ()
    assert make_plan(state(WELL), CHAIN, changes=Changes(known=False)).warnings == ()


def test_an_edited_ephemeral_above_a_failure_is_the_fix() -> None:
    # There is nothing to build of it; what reads it is built with it.
    project = graph(
        node("model.a"),
        node("model.e", "model.a", materialized="ephemeral"),
        node("model.b", "model.e"),
    )
    edited = Changes(frozenset({"model.e"}))
    words = {"model.a": "success", "model.b": "error"}
    plan = make_plan(state(words), project, changes=edited)
    assert causes(plan) == {"model.b": "failed"}
    assert plan.blockers == ()


def test_an_edited_ephemeral_above_a_failure_reaches_its_other_readers() -> None:
    # As an edited table above a failure does: they were built with the old code.
    project = graph(
        node("model.e", materialized="ephemeral"),
        node("model.b", "model.e"),
        node("model.c", "model.e"),
    )
    words = {"model.b": "error", "model.c": "success"}
    plan = make_plan(state(words), project, changes=Changes(frozenset({"model.e"})))
    assert causes(plan).keys() == {"model.b", "model.c"}
    assert plan.blockers == ()


def test_an_edited_function_above_a_failure_is_the_fix() -> None:
    # dbt 1.11 builds functions (UDFs) as nodes.
    project = graph(node("function.f"), node("model.b", "function.f"))
    words = {"function.f": "success", "model.b": "error"}
    plan = make_plan(state(words), project, changes=Changes(frozenset({"function.f"})))
    assert plan.ids == ("function.f", "model.b")
    assert plan.blockers == ()


# ---- rule 7: what may have committed -----------------------------------------------------------

APPEND: dict[str, Any] = {
    "materialized": "incremental",
    "incremental_strategy": "append",
    "unique_key": True,
}
NO_KEY: dict[str, Any] = {"materialized": "incremental"}
MERGE: dict[str, Any] = {"materialized": "incremental", "unique_key": True}
OVERWRITE: dict[str, Any] = {
    "materialized": "incremental",
    "incremental_strategy": "insert_overwrite",
}
MICROBATCH: dict[str, Any] = {
    "materialized": "incremental",
    "incremental_strategy": "microbatch",
    "microbatch": True,
}


def above_and(uid: str = "model.b", **fields: Any) -> Graph:
    """a -> the node of that kind, and a test of a."""
    return graph(node("model.a"), node(uid, "model.a", **fields), node("test.a", "model.a"))


RISKY: list[tuple[str, dict[str, Any]]] = [
    ("model.b", APPEND),
    ("model.b", NO_KEY),
    (
        "model.b",
        {"materialized": "incremental", "incremental_strategy": "ours", "unique_key": True},
    ),
    ("snapshot.b", {}),
]
SAFE: list[tuple[str, dict[str, Any]]] = [
    ("model.b", {}),
    ("model.b", {"materialized": "view"}),
    ("model.b", MERGE),
    ("model.b", OVERWRITE),
    ("model.b", MICROBATCH),
    ("seed.b", {}),
]


@pytest.mark.parametrize("uid, fields", RISKY)
@pytest.mark.parametrize("how", ["in flight", "stale", "tested", "edited"])
def test_what_may_have_committed_and_cannot_run_twice_stops_the_retry(
    uid: str, fields: dict[str, Any], how: str
) -> None:
    project = above_and(uid, **fields)
    words = {"model.a": "success", "test.a": "pass", uid: "success"}
    edited: frozenset[str] = frozenset()
    if how == "in flight":
        words[uid] = IN_FLIGHT
    elif how == "stale":
        words["test.a"] = "fail"
    else:
        project = graph(*project.nodes.values(), node("model.c", uid), node("test.b", uid))
        if how == "tested":
            words["test.b"] = "fail"
        else:
            words["model.c"], edited = "error", frozenset({uid})
    plan = make_plan(state(words), project, changes=Changes(edited))
    assert uid in plan.ids
    (warning,) = plan.blockers
    assert (warning.code, warning.flag) == ("non_idempotent", "--allow-non-idempotent")
    assert "b" in warning.message

    allowed = make_plan(state(words), project, Policy(allow_non_idempotent=True), Changes(edited))
    assert (allowed.nodes, allowed.blockers) == (plan.nodes, ())


@pytest.mark.parametrize("uid, fields", RISKY)
@pytest.mark.parametrize("status", ["error", "skipped", UNRECORDED])
def test_what_failed_or_never_ran_has_committed_nothing(
    uid: str, fields: dict[str, Any], status: str
) -> None:
    words = {"model.a": "success", "test.a": "pass", uid: status}
    plan = make_plan(state(words), above_and(uid, **fields), changes=SAME)
    assert plan.ids == (uid,)
    assert plan.warnings == ()


@pytest.mark.parametrize("uid, fields", SAFE)
@pytest.mark.parametrize("status", [IN_FLIGHT, "stale"])
def test_what_can_run_twice_stops_nothing(uid: str, fields: dict[str, Any], status: str) -> None:
    words = {"model.a": "success", "test.a": "pass", uid: status}
    if status == "stale":
        words |= {"test.a": "fail", uid: "success"}
    plan = make_plan(state(words), above_and(uid, **fields), changes=SAME)
    assert uid in plan.ids
    assert plan.blockers == ()


@pytest.mark.parametrize("fields", [APPEND, NO_KEY])
def test_a_full_refresh_leaves_nothing_twice(fields: dict[str, Any]) -> None:
    words = {"model.a": "success", "test.a": "pass", "model.b": IN_FLIGHT}
    project = above_and(**fields)
    assert make_plan(state(words), project, Policy(full_refresh=True), SAME).warnings == ()
    # The run itself was one.
    was_one = state(words, args={"full_refresh": True})
    assert make_plan(was_one, project, changes=SAME).warnings == ()


@pytest.mark.parametrize("own", [True, False])
def test_a_model_s_own_full_refresh_goes_before_the_flag(own: bool) -> None:
    words = {"model.a": "success", "test.a": "pass", "model.b": IN_FLIGHT}
    config = msgspec.Raw(msgspec.json.encode({"full_refresh": own}))
    project = above_and(**APPEND, config=config)
    for policy in (Policy(), Policy(full_refresh=True)):
        plan = make_plan(state(words), project, policy, SAME)
        assert [w.code for w in plan.blockers] == ([] if own else ["non_idempotent"])


@pytest.mark.parametrize("how", ["in flight", "stale"])
def test_of_a_materialization_of_the_project_s_own_nobody_knows_what_it_adds(how: str) -> None:
    words = {"model.a": "success", "test.a": "pass", "model.b": "success"}
    words |= {"test.a": "fail"} if how == "stale" else {"model.b": how}
    plan = make_plan(state(words), above_and(materialized="insert_by_period"), changes=SAME)
    (warning,) = plan.blockers
    assert (warning.code, warning.flag) == ("non_idempotent", "--allow-non-idempotent")
    for word in ("skipped", "error"):
        words["model.b"] = word
        plan = make_plan(state(words), above_and(materialized="insert_by_period"), changes=SAME)
        assert plan.blockers == ()


def test_no_full_refresh_helps_a_snapshot() -> None:
    words = {"model.a": "success", "test.a": "pass", "snapshot.b": IN_FLIGHT}
    plan = make_plan(state(words), above_and("snapshot.b"), Policy(full_refresh=True), SAME)
    assert [w.code for w in plan.blockers] == ["non_idempotent"]


def test_a_stale_merge_says_what_it_cannot_undo() -> None:
    words = {"model.a": "success", "test.a": "fail", "model.b": "success"}
    plan = make_plan(state(words), above_and(**MERGE), changes=SAME)
    assert codes(plan) == {"merged_rows"}
    assert plan.blockers == ()


@pytest.mark.parametrize("macros", [["macro.dbt.is_incremental"], ["macro.shop.new_rows"]])
def test_an_incremental_that_takes_only_new_rows_keeps_the_wrong_ones(macros: list[str]) -> None:
    words = {"model.a": "success", "test.a": "fail", "model.b": "success"}
    nodes = above_and(**MERGE, macros=macros).nodes.values()
    project = Graph(nodes, macros={"macro.shop.new_rows": ["macro.dbt.is_incremental"]})
    plan = make_plan(state(words), project, changes=SAME)
    (warning,) = plan.blockers
    assert (warning.code, "--full-refresh" in warning.flag) == ("passed_over", True)
    for policy in (Policy(full_refresh=True), Policy(allow_non_idempotent=True)):
        assert make_plan(state(words), project, policy, SAME).blockers == ()
    # Nor are they wrong for sure where it was the test that was mended.
    words = {"model.a": "success", "test.a": "pass", "model.b": "success", "test.b": "fail"}
    tested = Graph([*nodes, node("test.b", "model.b")], macros=project.macros)
    for edited, stops in ((set[str](), True), ({"test.b"}, False), ({"test.b", "model.b"}, True)):
        plan = make_plan(state(words), tested, changes=Changes(frozenset(edited)))
        assert ("passed_over" in codes(plan)) is stops, edited
    # It has taken nothing of a failed run.
    words = {"model.a": "success", "test.a": "fail", "model.b": "success"}
    words["model.b"] = "skipped"
    assert make_plan(state(words), project, changes=SAME).warnings == ()


def test_idempotent() -> None:
    assert not any(idempotent(node(uid, **fields)) for uid, fields in RISKY)
    assert all(idempotent(node(uid, **fields)) for uid, fields in SAFE)


# ---- rule 4: microbatch ------------------------------------------------------------------------

DAYS = [
    [f"2026-01-{day}T00:00:00+00:00", f"2026-01-{day + 1}T00:00:00+00:00"] for day in (28, 29, 30)
]


def batches(done: list[list[str]], failed: list[list[str]]) -> NodeResult:
    """The result of a microbatch model of which some batches failed."""
    return NodeResult("model.b", "partial success", batches_done=done, batches_failed=failed)


def test_only_the_failed_batches_run_again() -> None:
    words: Words = {"model.a": "success", "test.a": "pass", "model.b": batches(DAYS[:2], DAYS[2:])}
    plan = make_plan(state(words), above_and(**MICROBATCH), changes=SAME)
    (planned,) = plan.nodes
    assert (planned.cause, planned.action) == ("batches", "run_batches")
    assert planned.reason == "1 of 3 batches failed or are missing"
    assert planned.batches == tuple((b[0], b[1]) for b in DAYS[2:])


def test_without_a_batch_that_is_done_the_model_runs_whole() -> None:
    words: Words = {"model.a": "success", "test.a": "pass", "model.b": batches([], DAYS)}
    (planned,) = make_plan(state(words), above_and(**MICROBATCH), changes=SAME).nodes
    assert planned.action == "run"


def test_without_word_of_its_batches_the_model_runs_whole() -> None:
    words: Words = {"model.a": "success", "test.a": "pass", "model.b": "partial success"}
    (planned,) = make_plan(state(words), above_and(**MICROBATCH), changes=SAME).nodes
    assert (planned.cause, planned.action) == ("failed", "run")


def test_batches_built_on_a_rebuilt_parent_are_stale_too() -> None:
    words: Words = {"model.a": "success", "test.a": "fail", "model.b": batches(DAYS[:2], DAYS[2:])}
    plan = make_plan(state(words), above_and(**MICROBATCH), changes=SAME)
    (planned,) = [n for n in plan.nodes if n.unique_id == "model.b"]
    assert (planned.cause, planned.action) == ("stale", "run")
    # All that the run had, and not those of today.
    assert planned.batches == tuple((b[0], b[1]) for b in DAYS)


def test_a_full_refresh_runs_all_batches() -> None:
    words: Words = {"model.a": "success", "test.a": "pass", "model.b": batches(DAYS[:2], DAYS[2:])}
    policy = Policy(full_refresh=True)
    (planned,) = make_plan(state(words), above_and(**MICROBATCH), policy, SAME).nodes
    assert planned.action == "run"


# ---- rule 5: never ----------------------------------------------------------------------------


def test_hooks_are_reported_and_never_planned() -> None:
    hook = "operation.shop.shop-on-run-end-0"
    plan = make_plan(state({**WELL, hook: "error"}), CHAIN, changes=SAME)
    assert plan.nodes == ()
    assert [left.unique_id for left in plan.left_alone] == [hook]
    assert "error" in plan.left_alone[0].reason


def test_a_failed_hook_at_the_start_skips_everything() -> None:
    words = dict.fromkeys(WELL, "skipped") | {"operation.shop.shop-on-run-start-0": "error"}
    plan = make_plan(state(words), CHAIN, changes=SAME)
    assert causes(plan) == dict.fromkeys(WELL, "skipped")
    assert "hook" in reasons(plan)["model.fct"]


# ---- rule 6: what is gone ----------------------------------------------------------------------


def accepted(uid: str, about: str = "model.stg", column: str = "status", **fields: Any) -> Node:
    """A generic test: its id ends in a hash of its arguments."""
    fields = {
        "attached_node": about,
        "column_name": column,
        "test_name": "accepted_values",
    } | fields
    return node(uid, about, **fields)


WITH_TEST = graph(
    *[n for n in CHAIN.nodes.values() if n.unique_id != "test.stg"], accepted("test.values.1")
)


def test_a_test_whose_arguments_were_edited_is_followed() -> None:
    today = graph(
        *[n for n in WITH_TEST.nodes.values() if n.unique_id != "test.values.1"],
        accepted("test.values.2"),
    )
    words = {k: v for k, v in WELL.items() if k != "test.stg"} | {"test.values.1": "fail"}
    plan = make_plan(state(words), WITH_TEST, Policy("recheck"), SAME, today)
    assert plan.ids == ("test.values.2",)
    assert plan.replaced == {"test.values.1": "test.values.2"}
    assert plan.nodes[0].cause == "failed"
    assert plan.nodes[0].status == "fail"
    assert "values.1" in plan.nodes[0].reason

    rebuilt = make_plan(state(words), WITH_TEST, None, SAME, today)
    assert rebuilt.ids[:2] == ("model.stg", "test.values.2")


def test_a_test_that_was_removed_is_reported_and_stops_nothing() -> None:
    today = graph(*[n for n in WITH_TEST.nodes.values() if n.unique_id != "test.values.1"])
    words = {k: v for k, v in WELL.items() if k != "test.stg"}
    words |= {"test.values.1": "fail", "model.fct": "skipped", "test.fct": "skipped"}
    plan = make_plan(state({**words, "model.rpt": "skipped"}), WITH_TEST, None, SAME, today)
    assert plan.ids == ("model.stg", "model.fct", "test.fct", "model.rpt")
    assert [(left.unique_id, left.reason) for left in plan.left_alone] == [
        ("test.values.1", "no longer in the project")
    ]
    assert plan.replaced == {"test.values.1": ""}


def test_a_renamed_model_is_followed_by_its_text() -> None:
    old = graph(node("model.a", checksum="c1"), node("model.b", "model.a", checksum="c2"))
    new = graph(node("model.a2", checksum="c1"), node("model.b", "model.a2", checksum="c3"))
    plan = make_plan(state({"model.a": "error", "model.b": "skipped"}), old, None, SAME, new)
    assert plan.ids == ("model.a2", "model.b")
    assert plan.replaced == {"model.a": "model.a2"}


def test_a_removed_model_is_reported() -> None:
    new = graph(*[n for n in CHAIN.nodes.values() if n.unique_id != "model.rpt"])
    plan = make_plan(state({**WELL, "model.rpt": "error"}), CHAIN, None, SAME, new)
    assert plan.nodes == ()
    assert plan.left_alone[0].reason == "no longer in the project"


def test_a_model_that_is_new_above_a_failure_is_built_first() -> None:
    new = graph(
        *[n for n in CHAIN.nodes.values() if n.unique_id != "model.rpt"],
        node("model.mapping"),
        node("model.beside"),
        node("model.rpt", "model.fct model.mapping"),
    )
    plan = make_plan(state({**WELL, "model.rpt": "error"}), CHAIN, None, SAME, new)
    assert plan.ids == ("model.mapping", "model.rpt")
    assert causes(plan)["model.mapping"] == "edited"


def test_a_new_model_that_an_earlier_retry_built_is_not_built_again() -> None:
    # The first graph is compared with today's when a node of the run is in neither but the first.
    new = graph(
        *[n for n in CHAIN.nodes.values() if n.unique_id not in ("model.rpt", "test.stg")],
        node("model.mapping"),
        node("model.rpt", "model.fct model.mapping"),
    )
    again = {"model.mapping": "success", "model.rpt": "error"}
    plan = make_plan(state({**WELL, "model.rpt": "error"}, again), CHAIN, None, SAME, new)
    assert causes(plan) == {"model.rpt": "failed"}


def test_successors() -> None:
    one, other = accepted("test.v.1"), accepted("test.v.2", column="kind")
    old = graph(node("model.stg"), one, other)
    new = graph(node("model.stg"), accepted("test.v.3"), accepted("test.v.4", column="kind"))
    both = ["test.v.1", "test.v.2"]
    assert successors(old, new, both) == {"test.v.1": "test.v.3", "test.v.2": "test.v.4"}
    assert successors(old, old, both) == {}
    assert successors(old, new, ["model.stg", "model.unknown"]) == {}


@pytest.mark.parametrize(
    "candidate",
    [
        accepted("test.v.3", about="model.fct"),
        accepted("test.v.3", column="kind"),
        accepted("test.v.3", test_name="not_null"),
        accepted("test.v.3", test_namespace="dbt_utils"),
        node("model.v", "model.stg"),
    ],
    ids=["another model", "another column", "another test", "another package's", "no test"],
)
def test_what_is_about_something_else_is_no_successor(candidate: Node) -> None:
    old = graph(node("model.stg"), node("model.fct"), accepted("test.v.1"))
    new = graph(node("model.stg"), node("model.fct"), candidate)
    assert successors(old, new, ["test.v.1"]) == {"test.v.1": ""}


def test_of_two_possible_successors_neither_is_chosen() -> None:
    old = graph(node("model.stg"), accepted("test.v.1"))
    new = graph(node("model.stg"), accepted("test.v.3"), accepted("test.v.4"))
    assert successors(old, new, ["test.v.1"]) == {"test.v.1": ""}


def test_a_renamed_singular_test_is_followed_by_its_text() -> None:
    old = graph(node("model.stg"), node("test.old", "model.stg", checksum="c"))
    kept = graph(node("model.stg"), node("test.new", "model.stg", checksum="c"))
    edited = graph(node("model.stg"), node("test.new", "model.stg", checksum="d"))
    assert successors(old, kept, ["test.old"]) == {"test.old": "test.new"}
    assert successors(old, edited, ["test.old"]) == {"test.old": ""}


def test_new_above() -> None:
    new = graph(
        *CHAIN.nodes.values(),
        node("model.new"),
        node("model.more", "model.new"),
        node("model.below", "model.more"),
    )
    assert new_above(CHAIN, new, ["model.below"]) == {"model.more", "model.new"}
    assert new_above(CHAIN, new, ["model.rpt"]) == set()


def test_what_was_configured_otherwise_in_yaml() -> None:
    def project(patch: str = "", relation: str = "main.b", **config: object) -> Graph:
        return graph(
            node("model.a"),
            node(
                "seed.b",
                config=msgspec.Raw(msgspec.json.encode(config)),
                patch_path=patch and f"shop://{patch}",
                relation_name=relation,
            ),
        )

    old = project("seeds/b.yml", column_types={"v": "text"}, meta={}, tags=["x"])
    new = project("seeds/b.yml", column_types={"v": "int"}, meta={"owner": "x"})
    assert reconfigured(old, new, {"seeds/b.yml"}) == {"seed.b"}
    assert reconfigured(old, new, {"dbt_project.yml"}) == {"seed.b"}
    assert reconfigured(old, project(column_types={"v": "int"}), {"seeds/b.yml"}) == {"seed.b"}
    assert reconfigured(old, new, {"models/a.yml"}) == set()
    assert reconfigured(old, new, {"dbt_packages/shop/seeds/b.yml"}) == {"seed.b"}
    newer = Graph(new.nodes.values(), dbt_version="1.12.0")
    assert reconfigured(old, newer, {"seeds/b.yml"}) == {"seed.b"}
    more = project("seeds/b.yml", column_types={"v": "text"}, full_refresh=False)
    assert reconfigured(old, more, {"seeds/b.yml"}) == {"seed.b"}
    newer = Graph(more.nodes.values(), dbt_version="1.12.0")
    assert reconfigured(old, newer, {"seeds/b.yml"}) == set()
    words = project("seeds/b.yml", column_types={"v": "text"}, meta={"owner": "x"}, group=None)
    assert reconfigured(old, words, {"seeds/b.yml"}) == set()
    # Parsed for another target, or with other vars: it tells nothing of edits.
    there = project("seeds/b.yml", "dev.b", column_types={"v": "int"})
    assert reconfigured(old, there, {"seeds/b.yml"}) == set()


# ---- --select and --exclude --------------------------------------------------------------------

FAILED = {**WELL, "model.fct": "error", "test.fct": "skipped", "model.rpt": "skipped"}


def test_select_narrows_and_says_what_it_leaves_out() -> None:
    plan = make_plan(state(FAILED), CHAIN, Policy(select=frozenset({"model.fct"})), SAME)
    assert plan.ids == ("model.fct",)
    assert plan.dropped == ("model.rpt", "test.fct")
    assert {left.unique_id for left in plan.left_alone} == {"model.rpt", "test.fct"}


def test_exclude_narrows_too() -> None:
    policy = Policy(exclude=frozenset({"test.fct", "model.other"}))
    plan = make_plan(state(FAILED), CHAIN, policy, SAME)
    assert plan.ids == ("model.fct", "model.rpt")
    assert plan.dropped == ("test.fct",)


def test_select_adds_nothing() -> None:
    everything = frozenset(WELL)
    plan = make_plan(state(FAILED), CHAIN, Policy(select=everything), SAME)
    assert plan.nodes == make_plan(state(FAILED), CHAIN, changes=SAME).nodes
    assert plan.dropped == ()
    assert make_plan(state(WELL), CHAIN, Policy(select=everything), SAME) == Plan(())


def test_what_is_left_out_stays_to_be_done() -> None:
    narrowed = make_plan(state(FAILED), CHAIN, Policy(select=frozenset({"model.fct"})), SAME)
    done = dict.fromkeys(narrowed.ids, "success")
    assert make_plan(state(FAILED, done), CHAIN, changes=SAME).ids == ("test.fct", "model.rpt")


# ---- what is said of a node --------------------------------------------------------------------


def test_seconds_are_those_of_the_last_success() -> None:
    words: Words = {
        **WELL,
        "model.stg": NodeResult("model.stg", "success", execution_time=12.5),
        "model.fct": NodeResult("model.fct", "error", execution_time=0.5),
        "test.stg": "fail",
    }
    plan = make_plan(state(words), CHAIN, changes=SAME)
    seconds = {n.unique_id: n.seconds for n in plan.nodes}
    assert seconds["model.stg"] == 12.5
    assert seconds["model.fct"] is None


def test_a_node_runs_with_the_settings_it_ran_with() -> None:
    made = [
        recorded({"model.stg": "success"}),
        recorded({"model.fct": "error", "model.rpt": "skipped"}, attempt=2),
    ]
    plan = make_plan(merge([r for r, _ in made], {}), CHAIN, changes=SAME)
    assert {n.unique_id: n.invocation for n in plan.nodes} == {"model.fct": 1, "model.rpt": 1}


@pytest.mark.parametrize(
    "version, window, strategy",
    [("1.11.2", None, "retry"), ("1.11.2", "2026-02-01", "select")]
    + [(v, None, "select") for v in ("1.9.4", "2.0.0", "")],
)
def test_a_microbatch_model_gets_the_batches_of_the_day_of_the_run(
    version: str, window: str | None, strategy: str
) -> None:
    """dbt's `retry` knows when the run began, from 1.10 on; `build` goes by today's clock."""
    args = {"event_time_start": "2026-01-01", "event_time_end": window} if window else {}
    words = {"model.a": "error", "test.a": "skipped", "model.b": "skipped"}
    run = state(words, dbt_version=version, args=args)
    plan = make_plan(run, above_and(**MICROBATCH), changes=SAME)
    assert strategy_for("auto", Group(run.invocations[0], plan.nodes)) == strategy
    plain = make_plan(run, above_and(), changes=SAME)
    assert strategy_for("auto", Group(run.invocations[0], plain.nodes)) == "select"


def test_what_dbt_retry_takes_from_the_state_only() -> None:
    invocation = recorded({"model.stg": "error"})[0].invocation
    words = (
        "dbt build --empty --store-failures --defer --favor-state --defer-state prod --warn-error"
    )
    base = DbtCommand.parse(words.split())
    group = Group(invocation, (PlannedNode("model.stg", "failed", ""),))
    args = msgspec.json.decode(state_file(group, base))["args"]
    flags = dict.fromkeys(("defer", "empty", "favor_state", "store_failures"), True)
    assert args.items() >= {**flags, "state": "prod"}.items()
    typed = retry_command(base, "build", "retry", Path("here")).argv()
    assert typed == ["dbt", "retry", "--warn-error", "--state", "here"]


def test_favored_state_has_nothing_that_another_command_of_the_retry_builds() -> None:
    invocation = recorded({"model.stg": "success"})[0].invocation

    def group(*uids: str) -> Group:
        return Group(invocation, tuple(PlannedNode(uid, "failed", "") for uid in uids))

    check_favored([group("model.stg", "model.fct"), group("model.other")], CHAIN)
    with pytest.raises(RefusedError, match="fct would read the run's stg"):
        check_favored([group("model.stg"), group("model.fct")], CHAIN)


# ---- order -------------------------------------------------------------------------------------


def test_the_plan_is_in_the_order_of_the_graph() -> None:
    plan = make_plan(state(dict.fromkeys(WELL, "skipped")), CHAIN, changes=SAME)
    place = {uid: at for at, uid in enumerate(plan.ids)}
    for first, then in [
        ("seed.raw", "model.stg"),
        ("model.stg", "test.stg"),
        ("test.stg", "model.fct"),
        ("model.fct", "test.fct"),
        ("test.fct", "model.rpt"),
        ("seed.raw", "model.other"),
    ]:
        assert place[first] < place[then]


def test_the_order_holds_through_what_is_not_planned() -> None:
    project = graph(node("model.z"), node("model.m", "model.z"), node("model.a", "model.m"))
    words = {"model.z": "error", "model.a": "error"}
    assert make_plan(state(words), project, changes=SAME).ids == ("model.z", "model.a")


def test_a_test_of_two_models_holds_up_nobody() -> None:
    # dbt adds no such edge: the test could wait for itself.
    project = graph(node("model.a"), node("model.b", "model.a"), node("test.ab", "model.a model.b"))
    words = dict.fromkeys(project.nodes, "skipped")
    assert make_plan(state(words), project, changes=SAME).ids == ("model.a", "model.b", "test.ab")


def test_a_unit_test_runs_before_its_model() -> None:
    # So does dbt build: a model whose unit test fails is not built.
    project = graph(node("model.a"), node("unit_test.a", "model.a"))
    words = {"unit_test.a": "fail", "model.a": "skipped"}
    assert make_plan(state(words), project, changes=SAME).ids == ("unit_test.a", "model.a")


def test_the_order_is_the_same_in_every_process() -> None:
    # `plan -o json` is compared with that of yesterday, and Python's sets differ between processes.
    code = (
        "from dbt_recover.graph import Graph, Node\n"
        "roots = [f'model.r{n}' for n in range(9)]\n"
        "graph = Graph([Node(r) for r in roots] + [Node('model.a', depends_on=roots)])\n"
        "print(graph.order(graph.nodes))"
    )
    orders = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            stdout=subprocess.PIPE,
            check=True,
        ).stdout
        for seed in range(4)
    }
    assert len(orders) == 1


# ---- properties --------------------------------------------------------------------------------

KINDS: list[tuple[str, dict[str, Any]]] = [
    ("seed", {"materialized": "seed"}),
    ("snapshot", {"materialized": "snapshot"}),
    ("source", {}),
    ("model", {"materialized": "table"}),
    ("model", {"materialized": "view"}),
    ("model", {"materialized": "ephemeral"}),
    ("model", MERGE),
    ("model", MICROBATCH),
    ("test", {}),
    ("unit_test", {}),
]
WORDS: list[str] = [
    *("success", "error", "fail", "skipped", "partial success", "runtime error", "reused"),
    *(IN_FLIGHT, UNRECORDED, "quarantined"),
]


def _id(n: Node) -> str:
    return n.unique_id


@st.composite
def projects(draw: st.DrawFn) -> Graph:
    """Up to nine nodes; the parents of each come before it."""
    nodes: list[Node] = []
    for number in range(draw(st.integers(1, 9))):
        kind, fields = draw(st.sampled_from(KINDS))
        parents = [n for n in nodes if n.resource_type not in TESTS]
        if kind in TESTS:
            parents = [n for n in parents if kind == "test" or n.resource_type == "model"]
            most = 1 if kind == "unit_test" else 2
        else:
            most = 0 if kind in ("seed", "source") else 3
        some = st.lists(st.sampled_from(parents), unique_by=_id, max_size=most)
        chosen = draw(some) if parents else []
        if kind in TESTS and not chosen:
            kind, fields = "model", {"materialized": "table"}
        uids = " ".join(n.unique_id for n in chosen)
        nodes.append(node(f"{kind}.n{number}", uids, **fields))
    return graph(*nodes)


@st.composite
def runs(draw: st.DrawFn) -> tuple[Graph, list[dict[str, str]]]:
    """A project, and the words of one to three attempts on some of its nodes."""
    project = draw(projects())
    executable = [
        uid
        for uid, n in project.nodes.items()
        if n.resource_type != "source" and n.materialized != "ephemeral"
    ]
    executable.append("operation.shop.hook-0")
    some = st.dictionaries(st.sampled_from(executable), st.sampled_from(WORDS))
    words = st.sampled_from(WORDS)
    all_of_them = st.fixed_dictionaries(dict.fromkeys(executable, words))
    first = draw(all_of_them | some)
    later = []
    if first:
        again = st.dictionaries(st.sampled_from(sorted(first)), st.sampled_from(WORDS))
        later = draw(st.lists(again, max_size=2))
    return project, [first, *later]


policies = st.builds(Policy, tests=st.sampled_from(["rebuild", "recheck"]))
edits = st.sets(st.integers(0, 8))


def edited(project: Graph, numbers: Iterable[int]) -> Changes:
    """These nodes of it were edited."""
    uids = list(project.nodes)
    return Changes(frozenset(uids[n] for n in numbers if n < len(uids)))


@untimed
@given(runs(), policies, edits)
def test_the_plan_stays_within_the_run(
    run: tuple[Graph, list[dict[str, str]]], policy: Policy, numbers: set[int]
) -> None:
    project, attempts = run
    merged = state(*attempts)
    plan = make_plan(merged, project, policy, edited(project, numbers))
    assert set(plan.ids) <= merged.nodes.keys()
    assert len(set(plan.ids)) == len(plan.ids)


@untimed
@given(runs(), policies, edits)
def test_the_plan_has_all_that_did_not_succeed(
    run: tuple[Graph, list[dict[str, str]]], policy: Policy, numbers: set[int]
) -> None:
    project, attempts = run
    merged = state(*attempts)
    plan = make_plan(merged, project, policy, edited(project, numbers))
    missing = {
        uid
        for uid, n in merged.nodes.items()
        if n.result.status not in SUCCESSES and not uid.startswith("operation.")
    }
    assert missing <= set(plan.ids)


@untimed
@given(runs(), policies, edits)
def test_the_plan_has_all_that_reads_what_it_rebuilds(
    run: tuple[Graph, list[dict[str, str]]], policy: Policy, numbers: set[int]
) -> None:
    project, attempts = run
    merged = state(*attempts)
    planned = set(make_plan(merged, project, policy, edited(project, numbers)).ids)
    rebuilt = {uid for uid in planned if project.nodes[uid].resource_type in BUILDABLE}
    for uid in merged.nodes.keys() & project.nodes.keys():
        if project.nodes[uid].resource_type in BUILDABLE | {"test"}:
            read = rebuilt.intersection(relations_read_by(project, uid))
            assert uid in planned or not read, f"{uid} reads {read}"


@untimed
@given(runs(), policies, edits)
def test_no_success_runs_again_without_a_reason(
    run: tuple[Graph, list[dict[str, str]]], policy: Policy, numbers: set[int]
) -> None:
    project, attempts = run
    merged = state(*attempts)
    changes = edited(project, numbers)
    plan = make_plan(merged, project, policy, changes)
    planned = set(plan.ids)
    rebuilt_before = rebuilt_above(merged, project)
    for n in plan.nodes:
        assert n.reason
        if n.status not in SUCCESSES:
            continue
        assert n.because
        if n.cause in ("tested", "edited"):
            assert planned.issuperset(n.because)
        elif n.cause == "source":
            failed, source = n.because
            assert failed in planned
            assert merged.nodes[failed].result.status not in SUCCESSES
            assert project.nodes[source].resource_type == "source"
            assert source in project.ancestors([failed]) & project.ancestors([n.unique_id])
            assert not changes.nodes & {failed, *project.ancestors([failed])}
        else:
            assert n.cause in ("stale", "test_of_rebuilt")
            built_on = planned | changes.nodes
            assert built_on.issuperset(n.because) or n.unique_id in rebuilt_before


@untimed
@given(runs(), policies, edits)
def test_carried_out_well_it_leaves_nothing_to_do(
    run: tuple[Graph, list[dict[str, str]]], policy: Policy, numbers: set[int]
) -> None:
    project, attempts = run
    plan = make_plan(state(*attempts), project, policy, edited(project, numbers))
    done = dict.fromkeys(plan.ids, "success")
    again = make_plan(state(*attempts, done), project, policy, SAME)
    assert again.nodes == ()


@untimed
@given(runs(), policies)
def test_carried_out_half_the_rest_remains(
    run: tuple[Graph, list[dict[str, str]]], policy: Policy
) -> None:
    # Killed anywhere: what was planned and is not done is planned again.
    project, attempts = run
    first = make_plan(state(*attempts), project, policy, SAME)
    half = len(first.ids) // 2
    words = dict.fromkeys(first.ids[:half], "success") | dict.fromkeys(first.ids[half:], UNRECORDED)
    second = make_plan(state(*attempts, words), project, policy, SAME)
    assert set(second.ids) == set(first.ids[half:])


@untimed
@given(projects(), st.integers(1, 3), policies, edits)
def test_a_run_of_successes_has_an_empty_plan(
    project: Graph, attempts: int, policy: Policy, numbers: set[int]
) -> None:
    words = {
        uid: "success"
        for uid, n in project.nodes.items()
        if n.resource_type != "source" and n.materialized != "ephemeral"
    }
    if words:
        merged = state(*[words] * attempts)
        assert make_plan(merged, project, policy, edited(project, numbers)) == Plan(())


@untimed
@given(runs(), policies, edits, st.randoms(use_true_random=False))
def test_the_order_of_reading_does_not_matter(
    run: tuple[Graph, list[dict[str, str]]], policy: Policy, numbers: set[int], random: Any
) -> None:
    project, attempts = run
    changes = edited(project, numbers)
    plan = make_plan(state(*attempts), project, policy, changes)

    nodes = list(project.nodes.values())
    random.shuffle(nodes)
    shuffled = []
    for words in attempts:
        items = list(words.items())
        random.shuffle(items)
        shuffled.append(dict(items))
    again = make_plan(state(*shuffled), graph(*nodes), policy, changes)
    assert causes(again) == causes(plan)
    assert {w.code for w in again.warnings} == {w.code for w in plan.warnings}
    assert again.dropped == plan.dropped


@untimed
@given(runs(), policies, edits)
def test_parents_come_before_children(
    run: tuple[Graph, list[dict[str, str]]], policy: Policy, numbers: set[int]
) -> None:
    project, attempts = run
    plan = make_plan(state(*attempts), project, policy, edited(project, numbers))
    for at, uid in enumerate(plan.ids):
        if project.nodes[uid].resource_type != "unit_test":
            assert not project.ancestors([uid]).intersection(plan.ids[at:])


@untimed
@given(runs(), policies, st.sets(st.integers(0, 8)), st.sets(st.integers(0, 8)))
def test_narrowed_it_is_the_same_plan_with_less(
    run: tuple[Graph, list[dict[str, str]]], policy: Policy, some: set[int], others: set[int]
) -> None:
    project, attempts = run
    select, exclude = edited(project, some).nodes, edited(project, others).nodes
    whole = make_plan(state(*attempts), project, policy, SAME)
    narrow = Policy(policy.tests, select, exclude)
    plan = make_plan(state(*attempts), project, narrow, SAME)
    assert set(plan.ids) == set(whole.ids) & select - exclude
    assert set(plan.dropped) == set(whole.ids) - set(plan.ids)
    assert causes(plan).items() <= causes(whole).items()
