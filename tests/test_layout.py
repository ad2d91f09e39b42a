"""Every key that is built is taken apart again into what it was built from, for any run id that
Airflow or a person can think of; nobody else's key is taken for ours.
"""

from __future__ import annotations

import re

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dbt_recover import layout
from dbt_recover.errors import UsageError
from dbt_recover.layout import Listed, RunPlace, Summary, parse_record_key
from dbt_recover.storage.base import check_key, is_key

untimed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""A machine at work elsewhere is no failure."""

BEGAN = "2026-01-31T06:00:01.123456Z"
INVOCATION = "54f133f5-87a4-45c4-be76-ed2dede460dd"

ODD_IDS = [
    "manual__2026-01-31T06:00:00+00:00",
    "daily_shop/scheduled__2026-01-31T06:00:00.123456+00:00",
    ".",
    "..",
    "../../etc/passwd",
    "/",
    "a//b",
    "~",
    "a~b",
    "%",
    "%7E",
    "%2E",
    "=",
    "a\nb",
    "\0",
    " ",
    ".hidden",
    "-",
    "ä" * 60,
    "\N{SNOWMAN}",
    "x" * 500,
    "/" * 500,
    "\N{GRINNING FACE}" * 500,
]

ids = st.one_of(
    st.sampled_from(ODD_IDS),
    st.text(min_size=1, max_size=80),
    st.text(alphabet=":+/.~%=- \n0aZ\u00e9", min_size=1, max_size=40),
    st.text(min_size=200, max_size=500),
)
"""Run ids."""

short_ids = ids.filter(lambda text: len(layout.encode_id(text)) < 100)


def all_keys(place: RunPlace, invocation_id: str) -> list[str]:
    """Every key that belongs to an invocation of the run."""
    return [
        layout.run_pointer(place.run_id),
        layout.invocation_pointer(invocation_id),
        place.begun(invocation_id),
        place.commit(invocation_id),
        place.data(invocation_id, "manifest.json.zst"),
        place.segment(invocation_id, 1),
        place.segment(invocation_id, 999_999),
        place.heartbeat(invocation_id),
        place.lease,
        SUMMARY.key(place, invocation_id),
    ]


SUMMARY = Summary(
    attempt=1,
    state="failed",
    failed=3,
    total=12,
    seconds=61.5,
    ended="2026-01-31T06:01:03Z",
    command="build",
    step="run_staging",
    scope="step",
    logical_date="2026-01-30T00:00:00",
    mark="5a1c93d2",
)


# ---- ids ---------------------------------------------------------------------------------------


@untimed
@given(run_id=short_ids)
def test_an_id_comes_back(run_id: str) -> None:
    assert layout.decode_id(layout.encode_id(run_id)) == run_id
    assert layout.run_of_pointer(layout.run_pointer(run_id)) == run_id
    assert RunPlace.of(run_id, BEGAN).run_id == run_id


@pytest.mark.parametrize("run_id", ODD_IDS, ids=lambda text: ascii(text)[:40])
def test_a_place_leads_back_to_itself(run_id: str) -> None:
    # A retry names the run by what the place says: it has to be the same run.
    place = RunPlace.of(run_id, BEGAN)
    assert RunPlace.of(place.run_id, place.began) == place
    assert layout.run_pointer(place.run_id) == layout.run_pointer(run_id)


@untimed
@given(run_id=ids, other=ids)
@example("a~b", "a%7Eb")
@example(".", "%2E")
@example("x" * 500, "x" * 501)
@example("A", "a")
def test_different_ids_have_different_keys(run_id: str, other: str) -> None:
    same = layout.encode_id(run_id) == layout.encode_id(other)
    assert same == (run_id == other)


def test_a_long_id_looks_like_no_short_one() -> None:
    assert "=" in layout.encode_id("x" * 500)
    assert "=" not in layout.encode_id("a=b")


@untimed
@given(run_id=ids)
def test_an_id_is_one_component_that_hides_nothing(run_id: str) -> None:
    part = layout.encode_id(run_id)
    assert 0 < len(part) <= 120
    assert re.fullmatch(r"[A-Za-z0-9_.%=-]+", part)
    assert not part.startswith(".")


@untimed
@given(run_id=short_ids, cut=st.integers(0, 80))
def test_a_beginning_lists_the_run(run_id: str, cut: int) -> None:
    prefix = layout.run_pointer_prefix(run_id[:cut])
    assert layout.run_pointer(run_id).startswith(prefix)


def test_bytes_that_are_no_text_are_a_usage_error() -> None:
    # What Python makes of an argument that is not UTF-8.
    with pytest.raises(UsageError):
        layout.encode_id("\udcff")


# ---- keys --------------------------------------------------------------------------------------


@untimed
@given(run_id=ids, invocation_id=ids, step=st.text(), command=st.text())
def test_every_key_can_be_held_by_every_store(
    run_id: str, invocation_id: str, step: str, command: str
) -> None:
    place = RunPlace.of(run_id, BEGAN)
    for key in all_keys(place, invocation_id):
        assert check_key(key) == key
    assert is_key(_summary(step, command, "").key(place, invocation_id))


def _summary(step: str, command: str, logical_date: str) -> Summary:
    return Summary(1, "ok", 0, 1, 0.0, "", command, step, "run", logical_date)


@untimed
@given(run_id=ids, invocation_id=ids)
def test_no_two_keys_of_an_invocation_are_the_same(run_id: str, invocation_id: str) -> None:
    keys = all_keys(RunPlace.of(run_id, BEGAN), invocation_id)
    assert len(set(keys)) == len(keys)


def test_the_tree_is_as_documented() -> None:
    place = RunPlace.of("daily/run:1", BEGAN)
    middle = "2026-01-31/060001~daily%2Frun%3A1"
    summary = "~1~failed~3~12~61.5~20260131T060103~build~run_staging~step~2026-01-30T00%3A00%3A00~5a1c93d2"
    assert place.name == middle
    assert place.began == "2026-01-31T06:00:01Z"
    assert all_keys(place, "i") == [
        "ids/runs/daily%2Frun%3A1.json",
        "ids/invocations/i.json",
        f"runs/{middle}/i/begun.json",
        f"runs/{middle}/i/commit.json",
        f"data/{middle}/i/manifest.json.zst",
        f"data/{middle}/i/journal/000001.jsonl.zst",
        f"data/{middle}/i/journal/999999.jsonl.zst",
        "live/daily%2Frun%3A1/i",
        "leases/daily%2Frun%3A1.json",
        f"runs/{middle}/i/{summary}",
    ]


def test_segments_are_listed_in_their_order() -> None:
    place = RunPlace.of("r", BEGAN)
    keys = [place.segment("i", n) for n in range(1, 1100)]
    assert sorted(keys) == keys
    assert all(k.startswith(place.segments("i")) for k in keys)


@untimed
@given(a=short_ids, b=short_ids)
def test_no_run_is_listed_with_another(a: str, b: str) -> None:
    ours, theirs = RunPlace.of(a, BEGAN), RunPlace.of(b, BEGAN)
    if a != b:
        assert not theirs.begun("i").startswith(ours.records())


# ---- taking apart ------------------------------------------------------------------------------


@untimed
@given(run_id=short_ids, invocation_id=short_ids)
def test_records_come_back(run_id: str, invocation_id: str) -> None:
    place = RunPlace.of(run_id, BEGAN)
    begun = parse_record_key(place.begun(invocation_id))
    commit = parse_record_key(place.commit(invocation_id))
    assert begun == Listed(place, invocation_id, "begun")
    assert commit == Listed(place, invocation_id, "commit")
    assert begun.place.run_id == run_id


days = st.dates().map(lambda d: d.isoformat())
stamps = st.one_of(
    st.just(""),
    st.datetimes().map(lambda t: t.replace(microsecond=0).isoformat() + "Z"),
)


@untimed
@given(
    run_id=ids,
    summary=st.builds(
        Summary,
        attempt=st.integers(1, 10_000),
        state=st.sampled_from(["ok", "failed"]),
        failed=st.integers(0, 10_000),
        total=st.integers(0, 100_000),
        seconds=st.integers(0, 10**7).map(lambda tenths: tenths / 10),
        ended=stamps,
        command=st.text(alphabet="abcdefghijklmnopqrstuvwxyz-~/% ", max_size=6),
        step=st.text(max_size=6).filter(lambda t: len(layout.encode_id(t)) <= 60),
        scope=st.sampled_from(["run", "step"]),
        logical_date=st.one_of(st.just(""), days, stamps.map(lambda t: t[:19])),
    ),
)
def test_a_summary_comes_back(run_id: str, summary: Summary) -> None:
    place = RunPlace.of(run_id, BEGAN)
    listed = parse_record_key(summary.key(place, INVOCATION))
    assert listed == Listed(place, INVOCATION, "summary", summary)


@untimed
@given(step=st.text(max_size=300))
def test_any_step_is_listed(step: str) -> None:
    listed = parse_record_key(_summary(step, "build", "").key(RunPlace.of("r", BEGAN), "i"))
    assert listed is not None
    assert listed.summary is not None
    assert bool(listed.summary.step) == bool(step)


def test_two_long_steps_stay_two() -> None:
    # Airflow's task ids: groups within groups, up to 250 characters. In a listing the last word of
    # each step counts, so two steps that look like one hide a failure.
    group = "warehouse_refresh.staging.customer_relationship_management.salesforce."
    words = set()
    for task in ("accounts", "opportunities"):
        key = _summary(group + task, "build", "").key(RunPlace.of("r", BEGAN), "i")
        listed = parse_record_key(key)
        assert listed is not None
        assert listed.summary is not None
        words.add(listed.summary.step)
    assert len(words) == 2


def test_a_summary_of_a_later_version_is_read() -> None:
    place = RunPlace.of("r", BEGAN)
    listed = parse_record_key(SUMMARY.key(place, "i") + "~more~and~more")
    assert listed == Listed(place, "i", "summary", SUMMARY)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/",
        "runs/",
        "archive.json",
        "runs/2026-01-31",
        "runs/2026-01-31/060001~r/i",
        "runs/2026-01-31/060001~r/i/",
        "runs/2026-01-31/060001~r/i/begun.json/more",
        "runs/2026-01-31/060001~r/i/notes.txt",
        "runs/2026-01-31/060001~r/i/.begun.json",
        "runs/2026-01-31/060001~r/i/begun.json.tmp",
        "runs/2026-01-31/060001~r/i/~",
        "runs/2026-01-31/060001~r/i/~1~ok~0~1~0.0~~build~step",
        "runs/2026-01-31/060001~r/i/~one~ok~0~1~0.0~~build~~step~",
        "runs/2026-01-31/060001~r/i/~1~ok~0~1~fast~~build~~step~",
        "runs/2026-01-31/060001/i/begun.json",
        "runs/2026-01-31/0600~r/i/begun.json",
        "runs/2026-01-31/06000x~r/i/begun.json",
        "runs/2026-1-31/060001~r/i/begun.json",
        "runs/latest/060001~r/i/begun.json",
        "data/2026-01-31/060001~r/i/commit.json",
        "2026-01-31/060001~r/i/commit.json",
        "runs/runs/2026-01-31/060001~r/i/commit.json",
        "2026-01-31/manifest.json",
    ],
)
def test_a_foreign_key_says_nothing(key: str) -> None:
    assert parse_record_key(key) is None


@untimed
@given(key=st.one_of(st.text(), st.text().map("runs/2026-01-31/060001~r/i/".__add__)))
def test_no_key_raises(key: str) -> None:
    parse_record_key(key)


@untimed
@given(fields=st.lists(st.text(alphabet="0123456789.-eE_+nafi%7~T", max_size=8), max_size=14))
def test_no_summary_raises(fields: list[str]) -> None:
    parse_record_key("runs/2026-01-31/060001~r/i/~" + "~".join(fields))
