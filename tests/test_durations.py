"""How long nodes took, taken from the last whole run where this one does not say."""

from __future__ import annotations

from pathlib import Path

import pytest

from archives import BAD, DAILY, GOOD, REPORT, loaded, made, publish
from dbt_recover.archive import Archive
from dbt_recover.durations import with_durations
from dbt_recover.latest import POINTER, publish_latest
from dbt_recover.plan import make_plan
from dbt_recover.storage.local import LocalStorage


@pytest.fixture
def store(tmp_path: Path) -> LocalStorage:
    """A whole run, in which each node took 3 s, and later one that failed after 1 s each."""
    made_store = LocalStorage(tmp_path / "kept")
    publish(made_store, made("whole", GOOD, seconds=3.0))
    publish(made_store, made("failed", BAD, began="2026-02-02T06:00:00Z", seconds=1.0))
    return made_store


def seconds(store: LocalStorage) -> dict[str, float | None]:
    """Of what the failed run leaves to do."""
    run = loaded(store, "failed")
    plan = with_durations(Archive(store), run, make_plan(run.state, run.graph))
    return {n.unique_id: n.seconds for n in plan.nodes}


def test_of_the_last_whole_run(store: LocalStorage) -> None:
    publish_latest(Archive(store), loaded(store, "whole"))
    assert seconds(store) == {DAILY: 3.0, REPORT: 3.0}


def test_without_one_nothing_is_said(store: LocalStorage) -> None:
    assert seconds(store) == {DAILY: None, REPORT: None}


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"run": {"run_id": "gone", "began": "2026-01-01T00:00:00Z"}}', b"[]"]
)
def test_what_cannot_be_read_stops_nothing(body: bytes, store: LocalStorage) -> None:
    store.write(POINTER, body)
    assert seconds(store) == {DAILY: None, REPORT: None}
