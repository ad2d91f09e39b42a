"""Invocations and attempts, merged into what is true now: the latest word per node wins, and what
was meant to run and did not is a word, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dbt_recover.graph import Graph, Node
from dbt_recover.model import (
    IN_FLIGHT,
    NEVER_BEGAN,
    UNRECORDED,
    Invocation,
    NodeResult,
    Recorded,
    RunInfo,
    RunState,
    default_run_id,
)
from dbt_recover.runstate import (
    counts,
    describe,
    failed_nodes,
    in_order,
    merge,
    rebuilt_above,
    relations_read_by,
    settings_apart,
    told_apart,
    unsettled,
)

untimed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""A machine at work elsewhere is no failure."""

RUN = RunInfo("daily/1", "2026-01-31T06:00:00Z")


def invocation(
    number: int,
    results: Mapping[str, str],
    *,
    attempt: int = 1,
    lost: Iterable[str] = (),
    complete: bool = True,
    **fields: Any,
) -> Recorded:
    """The run's invocation `number`, in order of beginning. `lost` were in flight when it died."""
    fields.setdefault("exit_code", 1)
    made = Invocation(
        f"i{number}", RUN, attempt=attempt, began=f"2026-01-31T06:{number:02d}:00Z", **fields
    )
    found = {uid: NodeResult(uid, status) for uid, status in results.items()}
    return Recorded(made, found, frozenset(lost), complete and not lost)


def statuses(state: RunState) -> dict[str, str]:
    """Each node's own last word."""
    return {uid: node.result.status for uid, node in state.nodes.items()}


# ---- one attempt, several commands -------------------------------------------------------------


def test_layered_steps_are_one_run() -> None:
    # Each command overwrites target/run_results.json; the run is all of them.
    state = merge(
        [
            invocation(1, {"model.stg": "success"}, step="run_staging"),
            invocation(2, {"test.stg": "pass"}, step="test_staging"),
            invocation(3, {"model.fct": "error", "model.rpt": "skipped"}, step="run_core"),
        ],
        {},
    )
    assert statuses(state) == {
        "model.stg": "success",
        "test.stg": "pass",
        "model.fct": "error",
        "model.rpt": "skipped",
    }
    assert [i.step for i in state.invocations] == ["run_staging", "test_staging", "run_core"]
    assert [n.index for n in state.nodes.values()] == [0, 1, 2, 2]
    assert state.attempts == 1
    assert state.run == RUN


def test_a_step_that_ran_twice_counts_by_its_last_word() -> None:
    # Airflow tried the task again under the same run.
    state = merge([invocation(1, {"model.a": "error"}), invocation(2, {"model.a": "success"})], {})
    assert statuses(state) == {"model.a": "success"}
    assert state.nodes["model.a"].invocation_id == "i2"


def test_parallel_steps_on_different_machines() -> None:
    # The one that began last and ended first says nothing about the other's nodes.
    state = merge(
        [
            invocation(2, {"model.b": "success"}, host="worker-2", ended="2026-01-31T06:03:00Z"),
            invocation(1, {"model.a": "error"}, host="worker-1", ended="2026-01-31T06:30:00Z"),
        ],
        {},
    )
    assert statuses(state) == {"model.a": "error", "model.b": "success"}
    assert [i.host for i in state.invocations] == ["worker-1", "worker-2"]


def test_a_later_step_has_the_last_word_whatever_its_attempt() -> None:
    # The next step's first try comes after the second try of the one before it.
    retry = invocation(1, {"model.a": "success"}, attempt=2)
    late = invocation(59, {"model.a": "error"})
    assert in_order([late, retry]) == [retry, late]
    assert statuses(merge([late, retry], {})) == {"model.a": "error"}


# ---- the same node with several settings -------------------------------------------------------


def of_day(number: int, results: Mapping[str, str], day: int, **fields: Any) -> Recorded:
    """An invocation with a var."""
    return invocation(number, results, args={"vars": {"day": day}}, **fields)


def test_settings_are_vars_target_and_window() -> None:
    made = [
        invocation(1, {}, target="dev"),
        invocation(2, {}, target="dev", args={"vars": {}, "threads": 4}),
        invocation(3, {}, target="prod"),
        invocation(4, {}, target="dev", args={"vars": {"b": 1, "a": 2}}),
        invocation(5, {}, args={"vars": {"a": 2, "b": 1}}),  # it died before it said its target
        invocation(6, {}, target="dev", args={"event_time_start": "2026-01-01"}),
        invocation(7, {}, target="dev", args={"event_time_start": "2026-01-01T00:00:00"}),
        invocation(8, {}, target="dev", args={"vars": {"a": 3}}, attempt=2, intended=[]),
    ]
    assert settings_apart([r.invocation for r in made]) == [0, 0, 1, 2, 2, 3, 3, -1]


def test_what_another_day_has_built_is_no_word_on_this_day() -> None:
    # A loop, or a mapped task, over an incremental model; the table below it is built anew each time.
    apart = {"model.log"}
    made = [
        of_day(1, {"model.log": "error", "model.all": "skipped"}, 1),
        of_day(2, {"model.log": "error", "model.all": "skipped"}, 2),
        of_day(3, {"model.log": "success", "model.all": "success"}, 3),
    ]
    state = merge(made, {}, apart=apart)
    assert statuses(state) == {"model.log": "error", "model.all": "success"}
    assert state.nodes["model.log"].index == 0
    assert statuses(merge(made, {})) == {"model.log": "success", "model.all": "success"}

    made.append(of_day(4, {"model.log": "success"}, 1, attempt=2, intended=["model.log"]))
    state = merge(made, {}, apart=apart)
    assert (state.nodes["model.log"].result.status, state.nodes["model.log"].index) == ("error", 1)
    assert (merge(made[:3], {}, apart=apart).waiting, state.waiting) == (1, 0)

    made.append(of_day(5, {"model.log": "success"}, 2, attempt=3, intended=["model.log"]))
    state = merge(made, {}, apart=apart)
    assert describe(state) == "recovered"
    assert state.nodes["model.log"].index == 4


def test_a_retry_with_other_vars_is_about_what_was_planned() -> None:
    made = [of_day(1, {"model.a": "success"}, 1), of_day(2, {"model.a": "error"}, 2)]
    made.append(of_day(3, {"model.a": "success"}, 7, attempt=2, intended=["model.a"]))
    assert describe(merge(made, {}, apart={"model.a"})) == "recovered"


def test_a_target_s_failure_is_not_made_up_for_by_another_target() -> None:
    made = [
        invocation(1, {"model.a": "error"}, target="east"),
        invocation(2, {"model.a": "success"}, target="west"),
        invocation(3, {"model.a": "success"}, target="east", attempt=2, intended=["model.a"]),
    ]
    assert statuses(merge(made[:2], {}, apart={"model.a"})) == {"model.a": "error"}
    assert statuses(merge(made, {}, apart={"model.a"})) == {"model.a": "success"}
    elsewhere = invocation(3, {"model.a": "success"}, target="try", attempt=2, intended=["model.a"])
    assert statuses(merge([*made[:2], elsewhere], {}, apart={"model.a"})) == {"model.a": "error"}


def test_a_declared_step_that_never_began_is_not_what_another_day_did() -> None:
    never = of_day(2, {}, 2, complete=False, end=NEVER_BEGAN)
    state = merge(
        [of_day(1, {"model.a": "success"}, 1), never],
        {"i2": frozenset({"model.a"})},
        apart={"model.a"},
    )
    assert statuses(state) == {"model.a": UNRECORDED}


def test_a_test_of_two_layers_waits_for_the_step_of_the_second() -> None:
    project = Graph(
        [
            Node("model.a", "model", materialized="table"),
            Node("model.b", "model", materialized="table"),
            Node("test.a", "test", depends_on=["model.a"]),
            Node("test.ab", "test", depends_on=["model.a", "model.b"]),
        ]
    )
    made = [
        invocation(1, {"model.a": "success"}),
        invocation(2, {"test.a": "pass", "test.ab": "pass"}),
        invocation(3, {"model.b": "success"}),
        invocation(4, {}, complete=False, end=NEVER_BEGAN),
    ]
    meant = {"i4": frozenset({"test.a", "test.ab"})}
    found = statuses(merge(made, meant, graph=project))
    assert (found["test.a"], found["test.ab"]) == ("pass", UNRECORDED)
    retry = invocation(5, {"test.ab": "pass"}, attempt=2, intended=["test.ab"])
    assert describe(merge([*made, retry], meant, graph=project)) == "recovered"


def test_what_is_something_else_with_each_setting() -> None:
    def project(schema: str) -> Graph:
        return Graph(
            [
                Node("model.same", "model", relation_name="main.same", materialized="table"),
                Node("model.log", "model", relation_name="main.log", materialized="incremental"),
                Node("snapshot.s", "snapshot", relation_name="main.s"),
                Node("model.moved", "model", relation_name=f"{schema}.moved", materialized="view"),
                Node("test.same", "test", depends_on=["model.same"]),
                Node("test.moved", "test", depends_on=["model.moved", "model.same"]),
                Node("unit_test.moved", "unit_test", depends_on=["model.moved"]),
            ]
        )

    kept = {"model.log", "snapshot.s"}
    assert told_apart([project("a")]) == told_apart([project("a"), project("a")]) == kept
    assert told_apart([project("a"), project("b")]) == kept | {"model.moved", "test.moved"}


# ---- batches -----------------------------------------------------------------------------------


def test_of_batches_that_a_retry_left_alone_the_earlier_word_holds() -> None:
    days = [[f"2026-01-0{n}", f"2026-01-0{n + 1}"] for n in range(1, 6)]

    def ran(number: int, status: str, done: list[int], failed: list[int]) -> Recorded:
        made = invocation(number, {}, attempt=number, intended=["m"] if number > 1 else None)
        result = NodeResult(
            "m",
            status,
            batches_done=[days[n - 1] for n in done],
            batches_failed=[days[n - 1] for n in failed],
        )
        return msgspec.structs.replace(made, results={"m": result})

    def now(*made: Recorded) -> tuple[str, list[int], list[int]]:
        result = merge(made, {}).nodes["m"].result
        done, failed = (
            [days.index(b) + 1 for b in s] for s in (result.batches_done, result.batches_failed)
        )
        return result.status, done, failed

    first = ran(1, "partial success", [2, 4], [1, 3, 5])
    # dbt repeats one that it was given among the successful ones.
    assert now(first, ran(2, "success", [1, 3, 5, 1], [])) == ("success", [1, 2, 3, 4, 5], [])
    again = ran(2, "partial success", [3, 1], [1, 5])
    assert now(first, again) == ("partial success", [2, 3, 4], [1, 5])
    assert now(first, again, ran(3, "success", [1, 5, 1], []))[1:] == ([1, 2, 3, 4, 5], [])
    assert now(first, ran(2, "error", [1], [1, 3, 5])) == ("partial success", [2, 4], [1, 3, 5])
    # Killed in its first one: the journal cannot tell which ones would have followed.
    assert now(first, ran(2, "partial success", [1], [2, 3])) == (
        "partial success",
        [1, 4],
        [2, 3, 5],
    )
    # All of it, again.
    assert now(first, ran(2, "error", [1], [1, 2, 3, 4, 5])) == ("error", [], [1, 2, 3, 4, 5])
    lost = invocation(2, {}, attempt=2, intended=["m"], lost=["m"])
    assert now(first, lost) == (IN_FLIGHT, [2, 4], [1, 3, 5])


# ---- what was meant to run and did not ---------------------------------------------------------


def test_a_killed_invocation_leaves_in_flight_and_never_started() -> None:
    killed = invocation(1, {"model.a": "success"}, lost=["model.b"], exit_code=-9)
    everything = frozenset({"model.a", "model.b", "model.c"})
    state = merge([killed], {"i1": everything})
    assert statuses(state) == {
        "model.a": "success",
        "model.b": IN_FLIGHT,
        "model.c": UNRECORDED,
    }


def test_in_flight_is_known_without_the_selection() -> None:
    killed = invocation(1, {}, lost=["model.b"])
    assert statuses(merge([killed], {})) == {"model.b": IN_FLIGHT}


def test_a_retry_that_died_before_dbt_said_its_target_says_nothing_of_another_one() -> None:
    first = invocation(1, {"model.a": "error"}, target="prod", args={"target": "prod"})
    told: dict[str, Any] = {"attempt": 2, "intended": ["model.a"], "complete": False}
    for target, word, index in (("nosuch", "error", 0), ("prod", UNRECORDED, 1)):
        died = invocation(2, {}, args={"target": target}, **told)
        state = merge([first, died], {"i2": frozenset({"model.a"})})
        assert (statuses(state), state.nodes["model.a"].index) == ({"model.a": word}, index)


def test_an_end_of_its_own_leaves_nothing_open() -> None:
    whole = invocation(1, {"model.a": "success"}, exit_code=0)
    state = merge([whole], {"i1": frozenset({"model.a", "model.b"})})
    assert statuses(state) == {"model.a": "success"}


def test_a_retry_killed_half_way_voids_older_successes() -> None:
    first = invocation(
        1, {"model.a": "success", "test.a": "fail", "model.b": "skipped", "model.c": "success"}
    )
    meant = frozenset({"model.a", "test.a", "model.b"})
    killed = invocation(2, {"model.a": "success"}, attempt=2, lost=["test.a"], scope="run")
    state = merge([first, killed], {"i2": meant})
    assert statuses(state) == {
        "model.a": "success",
        "test.a": IN_FLIGHT,
        "model.b": UNRECORDED,
        "model.c": "success",
    }
    assert state.nodes["model.a"].attempt == 2
    assert state.nodes["model.c"].attempt == 1
    assert state.attempts == 2


def test_a_retry_killed_before_it_rebuilt_a_success_leaves_no_success() -> None:
    first = invocation(1, {"model.a": "success", "test.a": "fail"})
    killed = invocation(2, {}, attempt=2, complete=False)
    state = merge([first, killed], {"i2": frozenset({"model.a", "test.a"})})
    assert statuses(state) == {"model.a": UNRECORDED, "test.a": UNRECORDED}


def test_a_third_attempt_settles_what_the_second_left() -> None:
    state = merge(
        [
            invocation(1, {"model.a": "error", "model.b": "skipped"}),
            invocation(2, {"model.a": "success"}, attempt=2, lost=["model.b"]),
            invocation(3, {"model.b": "success"}, attempt=3, exit_code=0),
        ],
        {},
    )
    assert statuses(state) == {"model.a": "success", "model.b": "success"}
    assert describe(state) == "recovered"


# ---- words that mean something else ------------------------------------------------------------


def test_v2_says_skipped_of_what_has_nothing_to_do() -> None:
    # An ephemeral model, a saved query: dbt v1 says no-op or nothing.
    state = merge([invocation(1, {"model.a": "skipped"}, exit_code=0)], {})
    assert statuses(state) == {"model.a": "no-op"}
    assert describe(state) == "success"


@pytest.mark.parametrize("exit_code", [1, 2, -15, None])
def test_skipped_in_a_run_that_failed_is_skipped(exit_code: int | None) -> None:
    state = merge([invocation(1, {"model.a": "skipped"}, exit_code=exit_code)], {})
    assert statuses(state) == {"model.a": "skipped"}


def test_hooks_have_a_word_each() -> None:
    start, end = "operation.shop.shop-on-run-start-0", "operation.shop.shop-on-run-end-0"
    first = invocation(1, {start: "success", "model.a": "success", end: "error"})
    state = merge([first], {})
    assert describe(state) == "failed"
    assert unsettled(state).keys() == {end}

    again = invocation(2, {start: "success", end: "success"}, attempt=2, exit_code=0)
    assert describe(merge([first, again], {})) == "recovered"


def test_a_command_that_ended_well_ran_its_hooks() -> None:
    """Not every dbt lists them among its results."""
    end = "operation.shop.shop-on-run-end-0"
    first = invocation(1, {"model.a": "success", end: "error"})
    failing = invocation(2, {"model.a": "error"}, attempt=2)
    assert unsettled(merge([first, failing], {})).keys() == {"model.a", end}
    again = invocation(3, {"model.a": "success"}, attempt=3, exit_code=0)
    assert describe(merge([first, failing, again], {})) == "recovered"


def test_nothing_executes_an_exposure() -> None:
    listed = {
        "model.a": "success",
        "exposure.board": "no-op",
        "metric.m": "error",
        "semantic_model.s": "skipped",
    }
    state = merge([invocation(1, listed)], {"i1": frozenset(listed)})
    assert statuses(state) == {"model.a": "success"}


def test_what_a_retry_replaced_is_gone() -> None:
    first = invocation(1, {"test.old": "fail", "test.removed": "fail", "model.a": "success"})
    retry = invocation(
        2,
        {"test.new": "pass"},
        attempt=2,
        exit_code=0,
        replaced={"test.old": "test.new", "test.removed": ""},
    )
    state = merge([first, retry], {})
    assert statuses(state) == {"model.a": "success", "test.new": "pass"}
    assert describe(state) == "recovered"


def test_what_came_back_after_it_was_replaced_counts_again() -> None:
    first = invocation(1, {"test.old": "fail"})
    second = invocation(2, {"test.new": "fail"}, attempt=2, replaced={"test.old": "test.new"})
    third = invocation(3, {"test.old": "pass"}, attempt=3, replaced={"test.new": "test.old"})
    assert statuses(merge([first, second, third], {})) == {"test.old": "pass"}


def test_warnings_are_kept() -> None:
    state = merge([invocation(1, {})], {}, ["`dbt build` ended early"])
    assert state.warnings == ["`dbt build` ended early"]


# ---- counting ----------------------------------------------------------------------------------


def test_counts_and_failures() -> None:
    state = merge(
        [
            invocation(
                1,
                {
                    "model.z": "error",
                    "model.a": "partial success",
                    "model.b": "success",
                    "model.c": "success",
                    "model.d": "skipped",
                    "model.e": "no-op",
                    "test.t": "fail",
                    "test.u": "warn",
                    "test.v": "quarantined",
                },
            )
        ],
        {},
    )
    assert counts(state) == {
        "error": 1,
        "partial success": 1,
        "success": 2,
        "skipped": 1,
        "no-op": 1,
        "fail": 1,
        "warn": 1,
        "quarantined": 1,
    }
    assert [r.unique_id for r in failed_nodes(state)] == ["model.a", "model.z", "test.t"]
    assert unsettled(state).keys() == {"model.z", "model.a", "model.d", "test.t", "test.v"}
    assert describe(state) == "failed"


@pytest.mark.parametrize("status", ["success", "pass", "warn", "no-op", "reused"])
def test_one_attempt_of_successes_is_a_success(status: str) -> None:
    state = merge([invocation(1, {"model.a": status})], {})
    assert describe(state) == "success"


# ---- properties --------------------------------------------------------------------------------

NODES = [f"model.{letter}" for letter in "abcde"]
words = st.sampled_from(["success", "error", "skipped", "fail", "pass"])


@st.composite
def recordings(draw: st.DrawFn) -> tuple[list[Recorded], dict[str, frozenset[str]]]:
    """Invocations of a run in order, and what those that ended early were meant to execute."""
    made: list[Recorded] = []
    intended: dict[str, frozenset[str]] = {}
    attempts = sorted(draw(st.lists(st.integers(1, 3), min_size=1, max_size=5)))
    for number, attempt in enumerate(attempts):
        results = draw(st.dictionaries(st.sampled_from(NODES), words))
        complete = draw(st.booleans())
        others = st.sets(st.sampled_from(NODES))
        lost = frozenset() if complete else draw(others) - results.keys()
        made.append(
            invocation(
                number,
                results,
                attempt=attempt,
                lost=lost,
                complete=complete,
                exit_code=draw(st.sampled_from([0, 1, None])),
            )
        )
        if not complete:
            intended[f"i{number}"] = frozenset(draw(others))
    return made, intended


@untimed
@given(recordings(), st.randoms(use_true_random=False))
def test_the_order_of_reading_does_not_matter(
    recorded: tuple[list[Recorded], dict[str, frozenset[str]]], random: Any
) -> None:
    made, intended = recorded
    shuffled = list(made)
    random.shuffle(shuffled)
    assert merge(shuffled, intended) == merge(made, intended)


@untimed
@given(recordings())
def test_the_latest_word_wins(
    recorded: tuple[list[Recorded], dict[str, frozenset[str]]],
) -> None:
    made, intended = recorded
    state = merge(made, intended)
    for uid in NODES:
        said = ""
        for record in made:
            if uid in record.results:
                status = record.results[uid].status
                well = record.invocation.exit_code == 0
                said = "no-op" if well and status == "skipped" else status
            elif uid in record.in_flight:
                said = IN_FLIGHT
            elif uid in intended.get(record.invocation.invocation_id, ()):
                said = UNRECORDED
        assert statuses(state).get(uid, "") == said


@untimed
@given(recordings())
def test_merging_twice_changes_nothing(
    recorded: tuple[list[Recorded], dict[str, frozenset[str]]],
) -> None:
    made, intended = recorded
    assert statuses(merge([*made, *made], intended)) == statuses(merge(made, intended))


# ---- what a later attempt made untrue ----------------------------------------------------------


def graph(*nodes: tuple[str, str, str]) -> Graph:
    """From (id, materialization, parents)."""
    return Graph(
        Node(uid, uid.split(".")[0], depends_on=parents.split(), materialized=materialized)
        for uid, materialized, parents in nodes
    )


CHAIN = graph(
    ("model.a", "table", ""),
    ("model.v", "view", "model.a"),
    ("model.e", "ephemeral", "model.v"),
    ("model.b", "table", "model.e"),
    ("test.b", "", "model.b"),
    ("unit_test.b", "", "model.b"),
)


def test_rows_are_read_through_views_and_ephemerals() -> None:
    assert set(relations_read_by(CHAIN, "model.b")) == {"model.v", "model.a"}
    assert relations_read_by(CHAIN, "test.b") == ["model.b"]
    assert relations_read_by(CHAIN, "model.gone") == []


def test_a_rebuilt_parent_makes_its_readers_stale() -> None:
    first = invocation(1, {"model.a": "success", "model.v": "success", "model.b": "success"})
    state = merge([first, invocation(2, {"model.a": "success"}, attempt=2)], {})
    assert rebuilt_above(state, CHAIN) == {"model.v": "model.a", "model.b": "model.a"}


def test_a_rebuilt_model_voids_its_test_but_not_its_unit_test() -> None:
    first = invocation(1, {"model.b": "success", "test.b": "pass", "unit_test.b": "pass"})
    state = merge([first, invocation(2, {"model.b": "success"}, attempt=2)], {})
    assert rebuilt_above(state, CHAIN) == {"test.b": "model.b"}


def test_within_an_attempt_the_order_is_the_pipeline_s_own() -> None:
    first = invocation(1, {"model.b": "success"})
    state = merge([first, invocation(2, {"model.a": "success"})], {})
    assert rebuilt_above(state, CHAIN) == {}


@pytest.mark.parametrize("status", ["error", "skipped"])
def test_a_parent_that_was_not_rebuilt_makes_nothing_stale(status: str) -> None:
    first = invocation(1, {"model.a": "error", "model.b": "success"})
    state = merge([first, invocation(2, {"model.a": status}, attempt=2)], {})
    assert rebuilt_above(state, CHAIN) == {}


def test_ephemeral_models_are_no_nodes() -> None:
    # `--fail-fast` and a failed hook leave them in run_results.json as skipped, and no dbt that
    # runs them again records anything.
    graph = Graph([Node("model.e", "model", materialized="ephemeral"), Node("model.a", "model")])
    stopped = invocation(1, {"model.e": "skipped", "model.a": "skipped"})
    again = invocation(2, {"model.a": "success"}, attempt=2)
    assert statuses(merge([stopped], {}, graph=graph)) == {"model.a": "skipped"}
    assert not unsettled(merge([stopped, again], {}, graph=graph))


@pytest.mark.parametrize(
    "ident, end",
    [
        ("4f7c2a10-9c1e-4b7a-8f00-0123456789ab", "4f7c2a10"),
        ("01a2068b-7e97-72b0-8415-ed016904b6df", "6904b6df"),  # dbt v2: the first part is the time
        ("unknown-c0ffee00c0ffee00", "c0ffee00"),
        ("7777", "7777"),
    ],
)
def test_the_id_of_a_run_that_nobody_named(ident: str, end: str) -> None:
    assert default_run_id("2026-01-31T06:00:00Z", ident) == f"2026-01-31-{end}"
