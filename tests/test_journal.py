"""The journal on what dbt really wrote: whole, cut at every byte, reordered across threads,
repeated, rotated, mixed with others' lines. However little of it is there, no node is called done
that was not. The streams are described in fixtures/events/README.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import cache
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dbt_recover.artifacts import read_run_results
from dbt_recover.journal import Journal, Record, fold
from dbt_recover.journal_v1 import parse_event
from dbt_recover.model import NodeResult

untimed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""A machine at work elsewhere is no failure."""

EVENTS = Path(__file__).parent / "fixtures" / "events"
PLAIN = "one_failure_one_failed_test"
MICROBATCH = "failed_batch"

stream_names = pytest.mark.parametrize("name", [PLAIN, MICROBATCH])


@dataclass(frozen=True)
class Line:
    """One line of a stream."""

    raw: bytes
    thread: str
    event: str
    node: str
    record: Record | None


@dataclass(frozen=True)
class Stream:
    """A recorded stream and what is true of its invocation."""

    invocation_id: str
    lines: tuple[Line, ...]
    results: dict[str, NodeResult]
    """By dbt's own run_results.json, without hooks: no NodeFinished tells of them."""
    ends: dict[str, Line]
    """The line that says how the node ended: of a microbatch model the one after all batches."""


@cache
def stream(name: str) -> Stream:
    """One of the two."""
    data = (EVENTS / f"{name}.run_results.json").read_bytes()
    own = read_run_results(data)
    lines = tuple(_line(raw) for raw in (EVENTS / f"{name}.jsonl").read_bytes().splitlines())
    return Stream(
        own.invocation_id,
        lines,
        {u: r for u, r in own.results.items() if not u.startswith("operation.")},
        {ln.node: ln for ln in lines if ln.event == "NodeFinished"},
    )


def _line(raw: bytes) -> Line:
    event: dict[str, Any] = json.loads(raw)
    node = event["data"].get("node_info", {}).get("unique_id", "")
    info = event["info"]
    return Line(raw, info["thread"], info["name"], node, parse_event(raw))


def folded(recorded: Stream, lines: Iterable[Line]) -> Journal:
    """What these lines say of the stream's invocation."""
    return fold([ln.record for ln in lines if ln.record is not None], recorded.invocation_id)


def says_only_what_is_true(recorded: Stream, lines: Sequence[Line]) -> None:
    """Assert it of the journal of these lines, whichever they are."""
    journal = folded(recorded, lines)
    ended = {ln.node for ln in lines if recorded.ends.get(ln.node) is ln}
    for uid, result in journal.results.items():
        truth = recorded.results[uid]
        if result.status == "partial success":
            # Some of its batches are done; that may be all that is known.
            assert result.batches_done, uid
        else:
            assert uid in ended
            assert result.status == truth.status, uid
        spans = [*truth.batches_done, *truth.batches_failed]
        assert all(batch in truth.batches_done for batch in result.batches_done), uid
        assert all(batch in spans for batch in result.batches_failed), uid
        assert not [b for b in result.batches_done if b in result.batches_failed], uid
    assert not journal.in_flight & journal.results.keys()


# ---- the whole stream --------------------------------------------------------------------------


@stream_names
def test_the_whole_stream_says_what_dbt_says(name: str) -> None:
    recorded = stream(name)
    journal = folded(recorded, recorded.lines)

    assert journal.results.keys() == recorded.results.keys()
    for uid, own in recorded.results.items():
        found = journal.results[uid]
        assert found.status == own.status, uid
        assert found.message == own.message, uid
        assert found.thread == own.thread, uid
        # The events carry single precision.
        assert found.execution_time == pytest.approx(own.execution_time, rel=1e-5), uid
        if own.relation_name:
            assert found.relation_name == own.relation_name, uid
        if uid.startswith("test."):
            assert found.failures == own.failures, uid
        if own.status == "partial success":
            assert found.batches_done == own.batches_done
            assert found.batches_failed == own.batches_failed
        assert not own.started_at or found.started_at <= own.started_at, uid
        assert found.completed_at >= own.completed_at or own.status == "skipped", uid


@stream_names
def test_the_whole_stream_says_what_the_invocation_was(name: str) -> None:
    recorded = stream(name)
    journal = fold(ln.record for ln in recorded.lines if ln.record is not None)
    assert journal.invocation_id == recorded.invocation_id
    assert (journal.dbt_version, journal.adapter_type) == ("1.11.16", "duckdb")
    assert journal.target == "dev"
    assert journal.ended
    assert journal.in_flight == frozenset()
    assert journal.artifacts["WritableManifest"] == "/srv/analytics/target/manifest.json"
    assert journal.artifacts["RunExecutionResult"] == "/srv/analytics/target/run_results.json"
    assert journal.began < journal.last


def test_dbt_says_how_many_nodes_it_selected() -> None:
    # Of the plain stream dbt counts the exposure, and not the hook.
    for name in (PLAIN, MICROBATCH):
        recorded = stream(name)
        assert folded(recorded, recorded.lines).node_count == len(recorded.results)


def test_the_streams_hold_what_they_are_for() -> None:
    plain, microbatch = stream(PLAIN), stream(MICROBATCH)
    assert {r.status for r in plain.results.values()} == (
        {"success", "error", "skipped", "pass", "warn", "fail", "no-op"}
    )
    finishes = [ln for ln in microbatch.lines if ln.event == "NodeFinished"]
    assert len(finishes) > len(microbatch.results), "batches finish under their model's id"
    of_batches = {ln.thread for ln in microbatch.lines if ln.node == "model.shop.all_done"}
    assert len(of_batches) > 1, "batches of one model run on several threads"


# ---- cut short ---------------------------------------------------------------------------------


@stream_names
def test_a_line_that_is_cut_short_says_nothing(name: str) -> None:
    for line in stream(name).lines:
        for end in range(len(line.raw)):
            assert parse_event(line.raw[:end]) is None


@stream_names
def test_cut_at_every_byte_no_node_is_done_too_early(name: str) -> None:
    # Inside a line nothing changes (the test above), so every byte is every line.
    recorded = stream(name)
    for count in range(len(recorded.lines) + 1):
        seen = recorded.lines[:count]
        says_only_what_is_true(recorded, seen)
        journal = folded(recorded, seen)
        for uid, end in recorded.ends.items():
            if end in seen:
                assert journal.results[uid].status == recorded.results[uid].status
            elif any(ln.node == uid for ln in seen if ln.event == "NodeStart"):
                assert uid in journal.in_flight or journal.results[uid].batches_done
            else:
                assert uid not in journal.results
                assert uid not in journal.in_flight


def test_killed_between_batches_the_model_is_partly_done() -> None:
    recorded = stream(MICROBATCH)
    uid = "model.shop.all_done"
    first = next(i for i, ln in enumerate(recorded.lines) if _is_batch_end(ln, uid))
    journal = folded(recorded, recorded.lines[: first + 1])
    result = journal.results[uid]
    assert result.status == "partial success"
    assert result.message == "stopped after 1 of 4 batches"
    assert result.batches_done == [["2026-11-18T00:00:00+00:00", "2026-11-19T00:00:00+00:00"]]
    assert [b[0][:10] for b in result.batches_failed] == ["2026-11-19", "2026-11-20", "2026-11-21"]


def _is_batch_end(line: Line, uid: str) -> bool:
    return line.event == "LogBatchResult" and line.node == uid


def test_killed_in_its_first_batch_the_model_is_in_flight() -> None:
    recorded = stream(MICROBATCH)
    uid = "model.shop.all_done"
    first = next(i for i, ln in enumerate(recorded.lines) if _is_batch_end(ln, uid))
    journal = folded(recorded, recorded.lines[:first])
    assert uid in journal.in_flight
    assert uid not in journal.results


@stream_names
def test_the_beginning_may_be_missing_too(name: str) -> None:
    # A log that was rotated away: any window of the stream.
    recorded = stream(name)
    count = len(recorded.lines)
    for begin in range(count):
        for end in range(begin, count, 3):
            says_only_what_is_true(recorded, recorded.lines[begin:end])


@stream_names
def test_any_two_lines_may_be_missing(name: str) -> None:
    recorded = stream(name)
    telling = [ln for ln in recorded.lines if ln.node]
    for gone in combinations(telling, 2):
        says_only_what_is_true(recorded, [ln for ln in recorded.lines if ln not in gone])


# ---- disorder ----------------------------------------------------------------------------------


def interleavings(lines: Sequence[Line]) -> st.SearchStrategy[list[Line]]:
    """The lines in another order that keeps the order within each thread."""
    names = sorted({ln.thread for ln in lines})

    def weave(choices: list[int]) -> list[Line]:
        queues = [[ln for ln in lines if ln.thread == n] for n in names]
        woven = []
        for choice in choices:
            left = [q for q in queues if q]
            woven.append(left[choice % len(left)].pop(0))
        return woven

    # Thread by thread is the smallest example.
    return st.lists(st.integers(0, len(names) - 1), min_size=len(lines), max_size=len(lines)).map(
        weave
    )


@untimed
@given(data=st.data(), name=st.sampled_from([PLAIN, MICROBATCH]))
def test_reordered_across_threads_and_cut(data: st.DataObject, name: str) -> None:
    recorded = stream(name)
    woven = data.draw(interleavings(recorded.lines))
    seen = woven[: data.draw(st.integers(0, len(woven)))]
    says_only_what_is_true(recorded, seen)
    for uid, end in recorded.ends.items():
        if end in seen:
            assert folded(recorded, seen).results[uid].status == recorded.results[uid].status


@untimed
@given(data=st.data(), name=st.sampled_from([PLAIN, MICROBATCH]))
def test_neither_order_nor_repetition_matters(data: st.DataObject, name: str) -> None:
    recorded = stream(name)
    kept = data.draw(st.lists(st.sampled_from(recorded.lines), unique_by=id))
    again = data.draw(st.lists(st.sampled_from(kept))) if kept else []
    disorder = data.draw(st.permutations([*kept, *again]))
    assert folded(recorded, disorder) == folded(recorded, kept)


@untimed
@given(data=st.data(), name=st.sampled_from([PLAIN, MICROBATCH]))
def test_rotated_into_files_that_are_read_in_any_order(data: st.DataObject, name: str) -> None:
    recorded = stream(name)
    places = st.integers(0, len(recorded.lines))
    cuts = [0, *sorted(data.draw(st.lists(places, max_size=4))), len(recorded.lines)]
    files = [recorded.lines[a:b] for a, b in pairwise(cuts)]
    lines = [ln for file in data.draw(st.permutations(files)) for ln in file]
    assert folded(recorded, lines) == folded(recorded, recorded.lines)


@untimed
@given(data=st.data(), name=st.sampled_from([PLAIN, MICROBATCH]))
def test_rotated_in_the_middle_of_a_line(data: st.DataObject, name: str) -> None:
    recorded = stream(name)
    at = data.draw(st.integers(0, len(recorded.lines) - 1))
    line = recorded.lines[at].raw
    cut = data.draw(st.integers(1, len(line) - 1))
    assert [parse_event(line[:cut]), parse_event(line[cut:])] == [None, None]
    says_only_what_is_true(recorded, [ln for ln in recorded.lines if ln.raw is not line])


# ---- others' lines -----------------------------------------------------------------------------


def test_another_invocation_of_the_same_nodes_says_nothing() -> None:
    # The same project right before, when everything went well.
    recorded = stream(PLAIN)
    another = b"00000000-0000-0000-0000-000000000000"
    well = [
        _as_if_well(ln.raw).replace(recorded.invocation_id.encode(), another)
        for ln in recorded.lines
    ]
    records = [r for raw in well if (r := parse_event(raw)) is not None]
    assert {r.status for r in fold(records).results.values()} == {"success", "pass", "no-op"}

    own = [ln.record for ln in recorded.lines if ln.record is not None]
    for count in range(len(own) + 1):
        woven = [r for pair in zip(records, own[:count], strict=False) for r in pair]
        woven += [*own[len(records) : count], *records[count:]]
        assert fold(woven, recorded.invocation_id) == fold(own[:count], recorded.invocation_id)


def _as_if_well(raw: bytes) -> bytes:
    for bad, good in ((b"error", b"success"), (b"skipped", b"success")):
        raw = raw.replace(b'status": "%s"' % bad, b'status": "%s"' % good)
    for bad in (b"fail", b"warn"):
        raw = raw.replace(b'status": "%s"' % bad, b'status": "pass"')
    return raw


ODD_LINES = [
    b"",
    b"\n",
    b"\x00\xff\xfe",
    b'"NodeFinished"',
    b"[]",
    b"{}",
    b"null",
    b'not JSON, but it says "NodeFinished"',
    b'{"info": {"name": "NodeFinished"}}',
    b'{"info": {"name": "NodeFinished"}, "data": null}',
    b'{"info": {"name": "NodeFinished"}, "data": {}}',
    b'{"info": {"name": "NodeFinished"}, "data": {"node_info": null, "run_result": null}}',
    b'{"info": {"name": "NodeFinished"}, "data": {"node_info": [], "run_result": 1}}',
    b'{"info": {"name": "NodeFinished"}, "data": {"node_info": {"unique_id": ""}, "run_result": {}}}',
    b'{"info": {"name": "NodeStart"}, "data": {"node_info": {"unique_id": {}}}}',
    b'{"info": {"name": "NodeStart"}, "data": {"node_info": {"unique_id": "model.shop.\xff"}}}',
    b'{"info": {"name": "LogStartBatch"}, "data": {"description": "batch "}}',
    b'{"info": {"name": "ConcurrencyLine"}, "data": {"node_count": "many"}}',
    b'{"info": {"name": "NodeExecuting"}, "data": {"x": "NodeStart"}}',
    b'{"info": {"name": "NodeStart"}, "data": {"x": ' + b"[" * 100_000,
    b'{"info": {"name": "NodeStart"}, "data": {"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}",
]


@pytest.mark.parametrize("raw", ODD_LINES, ids=lambda raw: repr(raw[:60]))
def test_an_odd_line_says_nothing(raw: bytes) -> None:
    assert parse_event(raw) is None


@untimed
@given(raw=st.binary(), at=st.integers(0, 10_000), name=st.sampled_from([PLAIN, MICROBATCH]))
def test_a_damaged_line_raises_nothing(raw: bytes, at: int, name: str) -> None:
    for line in stream(name).lines[:20]:
        cut = at % len(line.raw)
        parse_event(line.raw[:cut] + raw + line.raw[cut + len(raw) :])


def test_fields_of_a_later_dbt_do_no_harm() -> None:
    recorded = stream(PLAIN)
    for line in recorded.lines:
        event = json.loads(line.raw)
        event["later"] = event["info"]["later"] = event["data"]["later"] = [{"x": 1}]
        assert parse_event(json.dumps(event).encode()) == line.record


def test_without_an_id_the_first_one_met_counts() -> None:
    records = [Record("invocation", "a", dbt_version="1.11"), Record("end", "b")]
    journal = fold(records)
    assert (journal.invocation_id, journal.dbt_version, journal.ended) == ("a", "1.11", False)
    assert fold([]) == Journal()


# ---- the labels of batches ---------------------------------------------------------------------

LABELS = {"hour": "%Y-%m-%dT%H", "day": "%Y-%m-%d", "month": "%Y-%m", "year": "%Y"}
"""As dbt writes them (MicrobatchBuilder.format_batch_start)."""


def batches(label: str, index: int, total: int) -> NodeResult:
    """What the journal makes of a model of which one batch is done, and nothing else known."""
    uid = "model.shop.m"
    begun = Record(
        "batch_start",
        "i",
        node=uid,
        started_at="1",
        batch=label,
        batch_index=index,
        batch_total=total,
    )
    records = [
        Record("start", "i", node=uid, started_at="0"),
        Record("start", "i", node=uid, started_at="1"),
        begun,
        msgspec.structs.replace(begun, event="batch_finish", status="success"),
    ]
    return fold(records).results[uid]


@pytest.mark.parametrize(
    "size, label, index, begins",
    [
        ("hour", "2026-12-31T23", 1, ["2026-12-31T23", "2027-01-01T00", "2027-01-01T01"]),
        ("hour", "2027-01-01T00", 2, ["2026-12-31T23", "2027-01-01T00", "2027-01-01T01"]),
        ("day", "2028-02-28", 1, ["2028-02-28", "2028-02-29", "2028-03-01"]),
        ("day", "2026-03-01", 3, ["2026-02-27", "2026-02-28", "2026-03-01"]),
        ("month", "2026-12", 1, ["2026-12", "2027-01", "2027-02"]),
        ("month", "2026-01", 3, ["2025-11", "2025-12", "2026-01"]),
        ("month", "2026-12", 3, ["2026-10", "2026-11", "2026-12"]),
        ("year", "2026", 1, ["2026", "2027", "2028"]),
        ("year", "2026", 3, ["2024", "2025", "2026"]),
    ],
)
def test_the_other_batches_follow_from_one(
    size: str, label: str, index: int, begins: list[str]
) -> None:
    result = batches(label, index, 3)
    spans = sorted([*result.batches_done, *result.batches_failed])
    assert [_label(size, begin) for begin, _ in spans] == begins
    assert [_label(size, begin) for begin, _ in result.batches_done] == [label]
    assert [end for _, end in spans[:-1]] == [begin for begin, _ in spans[1:]]


def _label(size: str, iso: str) -> str:
    return datetime.fromisoformat(iso).strftime(LABELS[size])


@untimed
@given(
    size=st.sampled_from(sorted(LABELS)),
    moment=st.datetimes(datetime(1990, 1, 1), datetime(2090, 1, 1)),  # noqa: DTZ001 # hypothesis wants them naive
    total=st.integers(1, 40),
    data=st.data(),
)
def test_batches_are_those_of_the_calendar(
    size: str, moment: datetime, total: int, data: st.DataObject
) -> None:
    index = data.draw(st.integers(1, total))
    bounds = [_floor(size, moment.replace(tzinfo=timezone.utc))]
    for _ in range(total):
        bounds.append(_next(size, bounds[-1]))
    result = batches(bounds[index - 1].strftime(LABELS[size]), index, total)
    texts = [b.isoformat() for b in bounds]
    spans = [list(pair) for pair in pairwise(texts)]
    assert result.batches_done == [spans[index - 1]]
    assert result.batches_failed == [s for s in spans if s != spans[index - 1]]


def _floor(size: str, moment: datetime) -> datetime:
    moment = moment.replace(minute=0, second=0, microsecond=0)
    if size != "hour":
        moment = moment.replace(hour=0)
    if size in ("month", "year"):
        moment = moment.replace(day=1)
    return moment.replace(month=1) if size == "year" else moment


def _next(size: str, moment: datetime) -> datetime:
    far = {"hour": timedelta(hours=1), "day": timedelta(days=1), "month": timedelta(days=31)}
    return _floor(size, moment + far.get(size, timedelta(days=366)))


def test_a_label_of_an_unknown_kind_does_not_stop_the_rest() -> None:
    # A later dbt with batches of a quarter of an hour: the model is not done, and that is enough.
    result = batches("2026-01-31T06:15", 1, 4)
    assert result.status == "partial success"


def test_the_id_of_a_query_that_failed_is_kept_with_the_failure() -> None:
    """dbt-snowflake says it in its debug log, and nowhere else."""
    uid = "model.p.orders"

    def said(at: str, query_id: str) -> bytes:
        event = {
            "info": {"name": "AdapterEventDebug", "invocation_id": "i", "ts": at},
            "data": {
                "base_msg": f"Snowflake query id: {query_id}",
                "name": "Snowflake",
                "node_info": {"unique_id": uid, "node_started_at": "0"},
            },
        }
        return json.dumps(event).encode()

    parsed = [parse_event(said("2", "second")), parse_event(said("1", "first"))]
    assert [r.query_id for r in parsed if r is not None] == ["second", "first"]
    assert parse_event(said("1", "None")) is None
    records = [
        Record("start", "i", node=uid, started_at="0"),
        *(r for r in parsed if r is not None),
        Record(
            "finish",
            "i",
            node=uid,
            started_at="0",
            result=NodeResult(uid, "error", "no such table"),
        ),
    ]
    assert fold(records).results[uid].query_id == "second"
    good = msgspec.structs.replace(records[-1], result=NodeResult(uid, "success", query_id="mine"))
    assert fold([*records[:-1], good]).results[uid].query_id == "mine"
    lost = msgspec.structs.replace(records[-1], result=NodeResult(uid, "success"))
    assert fold([*records[:-1], lost]).results[uid].query_id == ""
