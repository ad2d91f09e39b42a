"""The archive in a directory: published, listed, found and loaded again; with two publishers, with
one that is killed at every write, and with objects that are not what was written.
"""

from __future__ import annotations

import builtins
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import pytest
import zstandard

from dbt_recover import layout
from dbt_recover.archive import Archive
from dbt_recover.compact_graph import encode_graph
from dbt_recover.context import Identity, Where
from dbt_recover.errors import DamagedError, NotFoundError, RecoverError, UsageError
from dbt_recover.finished import archive_finished
from dbt_recover.graph import Graph, Node
from dbt_recover.journal import Record
from dbt_recover.layout import RunPlace
from dbt_recover.model import SUCCESSES, Invocation, NodeResult, Recorded, RunInfo
from dbt_recover.naming import resolve
from dbt_recover.publish import AlreadyArchived, Publication, Spool, SpoolState
from dbt_recover.records import Commit, Results, decompress
from dbt_recover.storage.base import Blob, Entry, Stat, Storage
from dbt_recover.storage.local import LocalStorage
from dbt_recover.verify import verify

FIXTURES = Path(__file__).parent / "fixtures" / "artifacts"

MANIFEST = b'{"metadata": {}, "nodes": {"model.shop.a": {}}}'
GRAPH = encode_graph(Graph([Node("model.shop.a", "model", "a")], project_name="shop"))


# ---- stores that count, and that die -----------------------------------------------------------


@dataclass
class Watched:
    """A directory that remembers what was asked of it."""

    inner: LocalStorage
    calls: builtins.list[tuple[str, str]] = field(default_factory=builtins.list)
    """(method, key), of all that touched an object or listed."""

    def __post_init__(self) -> None:
        self.url = self.inner.url

    def read(self, key: str, *, max_bytes: int | None = None) -> Blob:
        self.calls.append(("read", key))
        return self.inner.read(key, max_bytes=max_bytes)

    def open(self, key: str) -> BinaryIO:
        self.calls.append(("open", key))
        return self.inner.open(key)

    def write(
        self,
        key: str,
        body: bytes | BinaryIO,
        *,
        if_absent: bool = False,
        if_match: str | None = None,
    ) -> str:
        self.calls.append(("write", key))
        return self.inner.write(key, body, if_absent=if_absent, if_match=if_match)

    def list(self, prefix: str, *, since: str = "") -> Iterator[Entry]:
        self.calls.append(("list", prefix))
        return self.inner.list(prefix, since=since)

    def folders(self, prefix: str) -> builtins.list[str]:
        self.calls.append(("folders", prefix))
        return self.inner.folders(prefix)

    def stat(self, key: str) -> Stat | None:
        self.calls.append(("stat", key))
        return self.inner.stat(key)

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        self.calls.append(("delete", key))
        self.inner.delete(key, if_match=if_match)

    def asked(self, *methods: str) -> builtins.list[str]:
        """Keys of these methods, in order."""
        return [key for method, key in self.calls if method in methods]


class KilledError(BaseException):
    """The process is gone: nobody catches it."""


class Dying(Watched):
    """A directory whose writer is killed right before its nth change."""

    def __init__(self, inner: LocalStorage, changes: int) -> None:
        super().__init__(inner)
        self.left = changes

    def write(
        self,
        key: str,
        body: bytes | BinaryIO,
        *,
        if_absent: bool = False,
        if_match: str | None = None,
    ) -> str:
        self._count()
        return super().write(key, body, if_absent=if_absent, if_match=if_match)

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        self._count()
        super().delete(key, if_match=if_match)

    def _count(self) -> None:
        if not self.left:
            raise KilledError
        self.left -= 1


# ---- an invocation, ready to be archived -------------------------------------------------------


@dataclass
class Made:
    """What a recorder has ready: a spool and the commit that it decided on."""

    spool: Spool
    commit: Commit

    def publish(self, archive: Archive) -> Commit:
        """Bring it to the archive, as `exec` does at its end."""
        archive.check(create=True)
        return Publication(archive, self.spool).finish(self.commit)


@dataclass
class Maker:
    """Makes invocations, in order of their numbers."""

    home: Path
    nonces: int = 0

    def make(
        self,
        run_id: str = "r1",
        number: int = 1,
        *,
        began: str = "2026-01-31T06:00:00.000000Z",
        statuses: dict[str, str] | None = None,
        **fields: Any,
    ) -> Made:
        """One of that run, that left these statuses."""
        statuses = {"model.shop.a": "success"} if statuses is None else statuses
        failed = not SUCCESSES.issuperset(statuses.values())
        fields.setdefault("exit_code", 1 if failed else 0)
        invocation = Invocation(
            f"{run_id}-i{number}",
            RunInfo(run_id, began, fields.pop("logical_date", "")),
            command="build",
            began=began[:17] + f"{number:02d}.000000Z",
            ended=began[:17] + f"{number + 10:02d}.000000Z",
            **fields,
        )
        spool = Spool.create(self.home, SpoolState("", [], invocation))
        results = Results(1, [NodeResult(uid, status) for uid, status in statuses.items()])
        artifacts = [
            spool.keep_bytes("manifest.json", MANIFEST),
            spool.keep_bytes("graph.json", GRAPH),
            spool.keep_bytes("results.json", msgspec.json.encode(results)),
        ]
        spool.keep_segment(1, [Record("invocation", invocation.invocation_id)])
        spool.keep_segment(2, [Record("end", invocation.invocation_id)])
        self.nonces += 1
        commit = Commit(1, invocation, True, artifacts, segments=2, nonce=f"n{self.nonces}")
        return Made(spool, commit)


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    """Its spools are beside the archive."""
    return Maker(tmp_path / "spools")


@pytest.fixture
def store(tmp_path: Path) -> LocalStorage:
    """Where the archive is."""
    return LocalStorage(tmp_path / "archive")


def archive(store: Storage) -> Archive:
    """As the next command sees it: each reads one state of the archive."""
    return Archive(store)


def listed(store: Storage) -> list[tuple[str, str]]:
    """(run id, status), newest first."""
    return [(s.run.run_id, s.status) for s in archive(store).runs()]


def only(store: Storage) -> tuple[RunPlace, list[Recorded]]:
    """The one run there is."""
    place = resolve(archive(store), "latest")
    return place, archive(store).load(place)


# ---- there and back ----------------------------------------------------------------------------


def test_what_was_published_is_loaded(store: LocalStorage, maker: Maker) -> None:
    statuses = {"model.shop.a": "success", "model.shop.b": "error"}
    made = maker.make(statuses=statuses, step="build", logical_date="2026-01-30T00:00:00")
    done = made.publish(archive(store))

    place, (recorded,) = only(store)
    assert place == RunPlace.of("r1", "2026-01-31T06:00:00Z")
    assert recorded.invocation == done.invocation == made.commit.invocation
    assert {u: r.status for u, r in recorded.results.items()} == statuses
    assert recorded.complete
    graph = archive(store).graph(recorded)
    assert graph is not None
    assert graph.nodes.keys() == {"model.shop.a"}
    by_name = {a.name: a for a in archive(store).commit_of(place, "r1-i1").artifacts}
    assert archive(store).artifact_bytes(by_name["manifest.json"]) == MANIFEST

    (summary,) = archive(store).runs()
    assert (summary.status, summary.attempts, summary.invocations) == ("failed", 1, 1)
    assert (summary.failed, summary.total, summary.seconds) == (1, 2, 10.0)
    assert (summary.command, summary.ended) == ("build", "2026-01-31T06:00:11Z")
    assert summary.run.logical_date == "2026-01-30T00:00:00"


def test_nothing_but_the_documented_keys_is_written(store: LocalStorage, maker: Maker) -> None:
    maker.make().publish(archive(store))
    middle = "2026-01-31/060000~r1/r1-i1"
    keys = [entry.key for entry in store.list("")]
    summary = next(key for key in keys if "/~" in key)
    assert sorted(set(keys) - {summary}) == [
        "archive.json",
        f"data/{middle}/graph.json.zst",
        f"data/{middle}/journal/000001.jsonl.zst",
        f"data/{middle}/journal/000002.jsonl.zst",
        f"data/{middle}/manifest.json.zst",
        f"data/{middle}/results.json.zst",
        "ids/invocations/r1-i1.json",
        "ids/runs/r1.json",
        f"runs/{middle}/begun.json",
        f"runs/{middle}/commit.json",
    ]


def test_the_commit_record_comes_after_all_it_names(store: LocalStorage, maker: Maker) -> None:
    watched = Watched(store)
    maker.make().publish(archive(watched))
    written = watched.asked("write")
    place = RunPlace.of("r1", "2026-01-31T06:00:00Z")
    at = written.index(place.commit("r1-i1"))
    assert [k for k in written if k.startswith("data/")] == [
        k for k in written[:at] if k.startswith("data/")
    ]
    assert written.index(place.begun("r1-i1")) < at


def test_what_was_written_while_dbt_ran_is_not_written_again_at_its_end(
    store: LocalStorage, maker: Maker
) -> None:
    def at_its_end(made: Made, lost: str) -> list[str]:
        watched = Watched(store)
        archive(watched).check(create=True)
        publication = Publication(archive(watched), made.spool)
        ident = publication.begin(made.commit.invocation).invocation_id
        publication.send(ident, "graph.json.zst")
        for item in [e for e in store.list("") if lost and e.key.endswith(lost)]:
            store.delete(item.key)
        watched.calls.clear()
        publication.finish(made.commit)
        return [key.rpartition("/")[2] for key in watched.asked("write")]

    last = ["manifest.json.zst", "results.json.zst", "000001.jsonl.zst", "000002.jsonl.zst"]
    *written, word = at_its_end(maker.make("r1"), lost="")
    assert written == [*last, "commit.json"]
    assert word.startswith("~")
    for run_id, lost in (("r2", "begun.json"), ("r3", "r3.json"), ("r4", "r4-i1.json")):
        # Somebody removed it in the hours that dbt took.
        assert lost in at_its_end(maker.make(run_id), lost)
        assert store.stat(f"data/2026-01-31/060000~{run_id}/{run_id}-i1/graph.json.zst")
        assert resolve(archive(store), run_id).run_id == run_id


def test_invocations_join_the_run_that_the_first_one_began(
    store: LocalStorage, maker: Maker
) -> None:
    # The second step ran after midnight; the run is where it began.
    maker.make("daily/1", 1, began="2026-01-31T23:59:00Z").publish(archive(store))
    second = maker.make("daily/1", 2, began="2026-02-01T00:01:00Z").publish(archive(store))
    assert second.invocation.run.began == "2026-01-31T23:59:00Z"
    assert archive(store).dates() == ["2026-01-31"]
    _, recorded = only(store)
    assert [r.invocation.invocation_id for r in recorded] == ["daily/1-i1", "daily/1-i2"]


@pytest.mark.parametrize(
    "run_id", ["manual__2026-01-31T06:00:00+00:00", "dag/with space", "..", "x" * 300, "\n~%"]
)
def test_any_run_id_can_be_archived_and_found(
    store: LocalStorage, maker: Maker, run_id: str
) -> None:
    maker.make(run_id).publish(archive(store))
    place = resolve(archive(store), run_id)
    (recorded,) = archive(store).load(place)
    assert recorded.invocation.run.run_id == run_id
    # By the name that a listing shows it can be found, too.
    (summary,) = archive(store).runs()
    assert resolve(archive(store), summary.run.run_id) == place


def test_a_retry_of_a_listed_run_joins_it(store: LocalStorage, maker: Maker) -> None:
    # A retry knows the run by its place.
    for run_id in ("daily", "warehouse_refresh_" + "x" * 120):
        maker.make(run_id, statuses={"model.shop.a": "error"}).publish(archive(store))
        place = resolve(archive(store), run_id)
        maker.make(place.run_id, 2, attempt=2, scope="run").publish(archive(store))
        assert len(archive(store).load(place)) == 2


# ---- finding a run -----------------------------------------------------------------------------


@pytest.fixture
def week(store: LocalStorage, maker: Maker) -> LocalStorage:
    """Runs of three days: the last of them went well."""
    well, ill = {"model.shop.a": "success"}, {"model.shop.a": "error"}
    for run_id, began, statuses in [
        ("daily/2026-01-29", "2026-01-29T06:00:00Z", ill),
        ("daily/2026-01-30", "2026-01-30T06:00:00Z", ill),
        ("hourly/30-07", "2026-01-30T07:00:00Z", ill),
        ("hourly/30-08", "2026-01-30T08:00:00Z", well),
        ("daily/2026-01-31", "2026-01-31T06:00:00Z", well),
    ]:
        day = began[:10]
        maker.make(run_id, began=began, statuses=statuses, logical_date=day).publish(archive(store))
    return store


def test_runs_are_listed_newest_first(week: LocalStorage) -> None:
    assert listed(week) == [
        ("daily/2026-01-31", "success"),
        ("hourly/30-08", "success"),
        ("hourly/30-07", "failed"),
        ("daily/2026-01-30", "failed"),
        ("daily/2026-01-29", "failed"),
    ]


@pytest.mark.parametrize(
    "filters, count",
    [
        ({"since": "2026-01-30"}, 4),
        ({"until": "2026-01-30"}, 4),
        ({"since": "2026-01-30", "until": "2026-01-30"}, 3),
        ({"status": "failed"}, 3),
        ({"limit": 2}, 2),
        ({"logical_date": "2026-01-29"}, 1),
        ({"since": "2026-02-01"}, 0),
        ({"status": "failed", "limit": 1}, 1),
    ],
)
def test_a_listing_is_narrowed(week: LocalStorage, filters: dict[str, Any], count: int) -> None:
    assert len(list(archive(week).runs(**filters))) == count


@pytest.mark.parametrize(
    "spec, run_id",
    [
        ("latest", "daily/2026-01-31"),
        ("latest-failed", "hourly/30-07"),
        # A day is its latest failed run, else its latest.
        ("2026-01-29", "daily/2026-01-29"),
        ("2026-01-30", "hourly/30-07"),
        ("2026-01-31", "daily/2026-01-31"),
        ("daily/2026-01-30", "daily/2026-01-30"),
        ("daily/2026-01-29", "daily/2026-01-29"),
        ("hourly/30-07", "hourly/30-07"),
        # Beginnings.
        ("daily/2026-01-3" + "1", "daily/2026-01-31"),
        ("hourly/30-08", "hourly/30-08"),
        ("daily/2026-01-2", "daily/2026-01-29"),
        # dbt's invocation_id.
        ("hourly/30-08-i1", "hourly/30-08"),
    ],
)
def test_resolve(week: LocalStorage, spec: str, run_id: str) -> None:
    assert resolve(archive(week), spec).run_id == run_id


def test_resolve_by_logical_date(week: LocalStorage) -> None:
    found = resolve(archive(week), "latest", logical_date="2026-01-29")
    assert found.run_id == "daily/2026-01-29"
    with pytest.raises(NotFoundError, match="logical date 2020-01-01"):
        resolve(archive(week), "latest", logical_date="2020-01-01")


@pytest.mark.parametrize("spec", ["daily/", "hourly/30-0", "d"])
def test_an_ambiguous_beginning_lists_the_candidates(week: LocalStorage, spec: str) -> None:
    with pytest.raises(UsageError, match="is the beginning of") as caught:
        resolve(archive(week), spec)
    found = re.findall(r"^  (\S+)$", caught.value.message, re.MULTILINE)
    assert len(found) >= 2
    assert all(name.startswith(spec) for name in found)


@pytest.mark.parametrize("spec", ["weekly", "2026-01-28", "daily/2026-01-310", "~", "\n", "é"])
def test_an_unknown_run_lists_what_there_is(week: LocalStorage, spec: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        resolve(archive(week), spec)
    assert "hourly/30-08" in caught.value.hint
    assert caught.value.exit_code == 10


def test_the_exact_id_wins_over_longer_ones(store: LocalStorage, maker: Maker) -> None:
    for run_id in ("r", "r2", "r22"):
        maker.make(run_id).publish(archive(store))
    assert resolve(archive(store), "r2").run_id == "r2"


def test_an_id_that_differs_far_behind_is_another_run(store: LocalStorage, maker: Maker) -> None:
    # A long DAG id and Airflow's run id; only January's run is there.
    dag = (
        "warehouse_refresh_of_all_the_marts_of_the_northern_region_and_its_neighbours_by_the_hour/"
    )
    maker.make(dag + "scheduled__2026-01-31T06:00:00.000000+00:00").publish(archive(store))
    with pytest.raises(NotFoundError):
        resolve(archive(store), dag + "scheduled__2026-01-31T07:00:00.000000+00:00")
    with pytest.raises(NotFoundError):
        resolve(archive(store), dag + "scheduled__2026-02-28")


def test_a_beginning_of_a_long_id_finds_it(store: LocalStorage, maker: Maker) -> None:
    run_id = "warehouse_refresh_" * 9
    maker.make(run_id).publish(archive(store))
    place = resolve(archive(store), run_id)
    assert resolve(archive(store), "warehouse_refresh_warehouse") == place


def test_with_no_runs_everything_is_unknown(store: LocalStorage) -> None:
    archive(store).check(create=True)
    for spec in ("latest", "latest-failed", "2026-01-31", "r1"):
        with pytest.raises(NotFoundError) as caught:
            resolve(archive(store), spec)
        assert "exec" in caught.value.hint


def test_with_no_failed_run_latest_failed_is_the_latest(store: LocalStorage, maker: Maker) -> None:
    maker.make().publish(archive(store))
    assert resolve(archive(store), "latest-failed").run_id == "r1"


# ---- what a listing says -----------------------------------------------------------------------


def test_a_listing_reads_no_object_of_a_committed_run(week: LocalStorage) -> None:
    watched = Watched(week)
    assert len(list(archive(watched).runs())) == 5
    assert watched.asked("read", "open", "stat") == []
    assert watched.asked("folders") == ["runs/"]
    assert watched.asked("list") == ["runs/2026-01-31/", "runs/2026-01-30/", "runs/2026-01-29/"]


def test_a_day_s_listing_looks_at_that_day_alone(week: LocalStorage) -> None:
    watched = Watched(week)
    assert len(list(archive(watched).runs(since="2026-01-30", until="2026-01-30"))) == 3
    assert watched.asked("list") == ["runs/2026-01-30/"]


def test_loading_fetches_no_manifest(week: LocalStorage) -> None:
    watched = Watched(week)
    reader = archive(watched)
    for record in reader.load(resolve(reader, "hourly/30-07")):
        reader.graph(record)
    assert not [key for key in watched.asked("read", "open") if "manifest" in key]
    assert len(watched.asked("read", "open", "stat", "list", "folders")) <= 6


def test_a_retry_that_made_it_whole(store: LocalStorage, maker: Maker) -> None:
    maker.make(statuses={"model.shop.a": "error"}).publish(archive(store))
    assert listed(store) == [("r1", "failed")]
    maker.make(number=2, attempt=2, scope="run").publish(archive(store))
    assert listed(store) == [("r1", "recovered")]


def test_a_failed_step_is_not_hidden_by_the_next(store: LocalStorage, maker: Maker) -> None:
    ill = {"test.shop.t": "fail"}
    maker.make(number=1, step="test_staging", statuses=ill).publish(archive(store))
    maker.make(number=2, step="run_core").publish(archive(store))
    (summary,) = archive(store).runs()
    assert (summary.status, summary.failed, summary.total) == ("failed", 1, 2)


def test_a_failed_step_is_not_hidden_by_one_with_a_similar_name(
    store: LocalStorage, maker: Maker
) -> None:
    group = "warehouse_refresh.staging.customer_relationship_management.salesforce."
    ill = {"test.shop.t": "fail"}
    maker.make(number=1, step=group + "accounts", statuses=ill).publish(archive(store))
    maker.make(number=2, step=group + "opportunities").publish(archive(store))
    assert listed(store) == [("r1", "failed")]


def test_a_step_that_was_tried_again_counts_once(store: LocalStorage, maker: Maker) -> None:
    ill = {"model.shop.a": "error"}
    maker.make(number=1, step="run_core", statuses=ill).publish(archive(store))
    maker.make(number=2, step="run_core").publish(archive(store))
    assert listed(store) == [("r1", "success")]


def test_other_s_files_are_passed_over(week: LocalStorage) -> None:
    before = listed(week)
    for key in (
        "runs/2026-01-31/notes.txt",
        "runs/2026-01-31/060000~daily%2F2026-01-31/i/notes.txt",
        "runs/today/060000~x/i/commit.json",
        "2026-01-31/manifest.json",
        "latest/manifest.json",
    ):
        week.write(key, b"{}")
    assert listed(week) == before


# ---- two publishers ----------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 16])
def test_of_several_publishers_exactly_one_wins(
    store: LocalStorage, maker: Maker, count: int
) -> None:
    archive(store).check(create=True)
    made = [maker.make() for _ in range(count)]
    at_once = threading.Barrier(count)
    outcomes: dict[str, str] = {}

    def publish(one: Made) -> None:
        at_once.wait()
        try:
            Publication(Archive(store), one.spool).finish(one.commit)
            outcomes[one.commit.nonce] = "won"
        except AlreadyArchived as said:
            outcomes[one.commit.nonce] = said.run_id

    threads = [threading.Thread(target=publish, args=[one]) for one in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    place, (recorded,) = only(store)
    assert recorded.results.keys() == {"model.shop.a"}
    nonce = archive(store).commit_of(place, "r1-i1").nonce
    assert outcomes == {one.commit.nonce: "r1" for one in made} | {nonce: "won"}
    assert len([k for k in store.list("runs/") if "/~" in k.key]) == 1


def test_publishing_twice_says_where_it_is(store: LocalStorage, maker: Maker) -> None:
    maker.make().publish(archive(store))
    with pytest.raises(AlreadyArchived, match="r1-i1 is already archived, in run r1"):
        maker.make().publish(archive(store))


def test_the_same_publisher_may_do_it_again(store: LocalStorage, maker: Maker) -> None:
    made = maker.make()
    made.publish(archive(store))
    before = {e.key: store.read(e.key).data for e in store.list("")}
    made.publish(archive(store))
    assert {e.key: store.read(e.key).data for e in store.list("")} == before


def test_an_invocation_belongs_to_one_run(store: LocalStorage, maker: Maker) -> None:
    maker.make().publish(archive(store))
    other = maker.make("r2")
    moved = msgspec.structs.replace(other.commit.invocation, invocation_id="r1-i1")
    with pytest.raises(AlreadyArchived) as caught:
        Publication(archive(store), other.spool).finish(
            msgspec.structs.replace(other.commit, invocation=moved)
        )
    assert caught.value.run_id == "r1"
    assert listed(store) == [("r1", "success")]


def test_of_two_publishers_that_saw_different_things_the_winner_is_whole(
    store: LocalStorage, maker: Maker
) -> None:
    # The recorder was lost after it had sent some of its data; somebody else archives what dbt
    # left. What is committed has to be what is named.
    for sent in ("results.json.zst", "graph.json.zst", "manifest.json.zst"):
        number = len(sent)
        lost = maker.make(number=number, statuses={"model.shop.a": "error"})
        lost.spool.keep_bytes("graph.json", encode_graph(Graph([])))
        lost.spool.keep_bytes("manifest.json", b'{"of": "before the first node"}')
        publication = Publication(archive(store), lost.spool)
        archive(store).check(create=True)
        publication.begin(lost.commit.invocation)
        publication.send(f"r1-i{number}", sent)

        found = maker.make(number=number)
        commit = found.publish(archive(store))
        for artifact in commit.artifacts:
            archive(store).artifact_bytes(artifact)
    recorded = archive(store).load(resolve(archive(store), "r1"))
    assert {r.results["model.shop.a"].status for r in recorded} == {"success"}
    assert not [f for f in verify(archive(store)).faults if "forged" in f.mend]


# ---- killed at every write ---------------------------------------------------------------------


def kill_at_every_write(
    tmp_path: Path, do: Callable[[Storage], object]
) -> Iterator[tuple[LocalStorage, int]]:
    """A fresh directory for each change that `do` makes, in which it was killed before that."""
    for changes in range(100):
        store = LocalStorage(tmp_path / f"killed-{changes}")
        try:
            do(Dying(store, changes))
        except KilledError:
            yield store, changes
        else:
            assert changes > 5
            return
    raise AssertionError("it does not come to an end")


def look(store: LocalStorage) -> str:
    """invisible, open or complete: everything a reader can ask has to agree on it."""
    try:
        runs = list(archive(store).runs())
    except RecoverError as error:
        raise AssertionError("a listing must not fail") from error
    try:
        place = resolve(archive(store), "r1")
        (recorded,) = archive(store).load(place)
    except NotFoundError:
        assert runs == []
        return "invisible"
    (summary,) = runs
    assert recorded.invocation.run.run_id == "r1"
    if not recorded.complete:
        assert recorded.invocation.end == "lost"
        assert summary.status == "failed"
        return "open"
    commit = archive(store).commit_of(place, "r1-i1")
    for artifact in commit.artifacts:
        archive(store).artifact_bytes(artifact)
    assert recorded.results["model.shop.a"].status == "success"
    assert summary.status == "success"
    return "complete"


def test_killed_at_every_write_the_run_is_invisible_or_open_or_complete(
    tmp_path: Path, maker: Maker
) -> None:
    made = maker.make()
    seen = []
    for store, _ in kill_at_every_write(tmp_path, lambda s: made.publish(archive(s))):
        seen.append(look(store))
        made.publish(archive(store))
        assert look(store) == "complete"
    # In that order, and each of them at least once.
    assert sorted(seen, key=["invisible", "open", "complete"].index) == seen
    assert set(seen) == {"invisible", "open", "complete"}


def test_killed_at_every_write_somebody_else_can_do_it(tmp_path: Path, maker: Maker) -> None:
    # From another spool with the same content: `archive` on another machine.
    made = maker.make()
    for store, _ in kill_at_every_write(tmp_path, lambda s: made.publish(archive(s))):
        was = look(store)
        other = maker.make()
        if was == "complete":
            with pytest.raises(AlreadyArchived):
                other.publish(archive(store))
        else:
            other.publish(archive(store))
        assert look(store) == "complete"


def test_killed_twice_is_as_killed_once(tmp_path: Path, maker: Maker) -> None:
    made = maker.make()
    for store, changes in kill_at_every_write(tmp_path, lambda s: made.publish(archive(s))):
        with pytest.raises(KilledError):
            made.publish(archive(Dying(store, changes // 2)))
        look(store)
        made.publish(archive(store))
        assert look(store) == "complete"


def test_killed_while_it_runs(tmp_path: Path, maker: Maker) -> None:
    # The recorder's own order: begun, segments as they come, a heartbeat, then the end.
    made = maker.make()
    invocation = made.commit.invocation

    def work(store: Storage) -> None:
        archive(store).check(create=True)
        publication = Publication(archive(store), made.spool)
        begun = publication.begin(invocation)
        publication.heartbeat(msgspec.structs.replace(begun, machine="gone"))
        publication.send("r1-i1", "graph.json.zst")
        publication.send_segments("r1-i1")
        publication.finish(made.commit)

    for store, _ in kill_at_every_write(tmp_path, work):
        alive = any(e.key.startswith("live/") for e in store.list(""))
        for run_id, status in listed(store):
            (recorded,) = archive(store).load(resolve(archive(store), run_id))
            if not recorded.complete:
                assert recorded.invocation.end == ("running" if alive else "lost")
                assert status == ("running" if alive else "failed")
        work(store)
        assert look(store) == "complete"
        assert not [e.key for e in store.list("live/")]


def test_archiving_what_dbt_left_killed_at_every_write(tmp_path: Path) -> None:
    target = FIXTURES / "good"

    def run_archive(store: Storage) -> str:
        where = Where(archive(store), {}, tmp_path, lambda text: None)
        return archive_finished(where, target, Identity(run_id="r1")).run_id

    for store, _ in kill_at_every_write(tmp_path, run_archive):
        assert run_archive(store) == "r1"
        (recorded,) = archive(store).load(resolve(archive(store), "r1"))
        assert recorded.complete
        assert len(recorded.results) == 8


def test_archiving_into_a_run_that_is_half_gone_ends(tmp_path: Path) -> None:
    # Whoever removed it had come to the pointer of the run, not yet to that of the invocation.
    target = FIXTURES / "good"
    store = LocalStorage(tmp_path / "archive")
    where = Where(archive(store), {}, tmp_path, lambda text: None)
    archive_finished(where, target, Identity(run_id="r1"))
    place = resolve(archive(store), "r1")
    (ident,) = (r.invocation.invocation_id for r in archive(store).load(place))
    store.delete(place.commit(ident))
    store.delete(layout.run_pointer("r1"))
    pointer = layout.invocation_pointer(ident)
    store.write(pointer, store.read(pointer).data.replace(b"2026", b"2025"))
    where = Where(archive(store), {}, tmp_path, lambda text: None)
    with pytest.raises(AlreadyArchived):
        archive_finished(where, target, Identity(run_id="r1"))


def test_a_pointer_that_names_another_run_is_not_joined(store: LocalStorage, maker: Maker) -> None:
    maker.make().publish(archive(store))
    store.write(layout.run_pointer("r2"), store.read(layout.run_pointer("r1")).data)
    with pytest.raises(DamagedError, match="points to another run, r1"):
        maker.make(run_id="r2").publish(archive(store))
    assert len(archive(store).load(resolve(archive(store), "r1"))) == 1


# ---- objects that are not what was written -----------------------------------------------------


def damage(store: LocalStorage, key: str, data: bytes) -> None:
    """Put other bytes into the file; not through the store, which would wait for the disk."""
    (store.root / key).write_bytes(data)


def read_all(store: LocalStorage) -> list[tuple[Recorded, Graph | None, list[bytes]]]:
    """Everything that plan, show and fetch read of the one run."""
    reader = archive(store)
    place = resolve(reader, "r1")
    made = []
    for recorded in reader.load(place):
        artifacts = reader.commit_of(place, recorded.invocation.invocation_id).artifacts
        graph = reader.graph(recorded)
        made.append((recorded, graph, [reader.artifact_bytes(a) for a in artifacts]))
    return made


def data_keys(store: LocalStorage) -> list[str]:
    """Of the objects whose hashes the commit record has."""
    return [e.key for e in store.list("data/") if "/journal/" not in e.key]


def contents(store: LocalStorage) -> list[Any]:
    """The same, comparable."""
    return [(r, g and vars(g), files) for r, g, files in read_all(store)]


def test_a_flipped_bit_is_noticed_wherever_it_is(store: LocalStorage, maker: Maker) -> None:
    maker.make().publish(archive(store))
    whole = contents(store)
    for key in [*data_keys(store), resolve(archive(store), "r1").commit("r1-i1")]:
        data = store.read(key).data
        for at in range(len(data)):
            for bit in (1, 128):
                damage(store, key, data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :])
                try:
                    # Bits that mean nothing to zstd can be flipped.
                    assert contents(store) == whole
                except DamagedError as error:
                    assert key in str(error)  # noqa: PT017 # either is right
        damage(store, key, data)


def test_a_truncated_object_is_noticed_wherever_it_ends(store: LocalStorage, maker: Maker) -> None:
    maker.make().publish(archive(store))
    read_all(store)
    place = resolve(archive(store), "r1")
    for key in [*data_keys(store), place.commit("r1-i1"), layout.run_pointer("r1")]:
        data = store.read(key).data
        for end in range(len(data.rstrip())):
            damage(store, key, data[:end])
            with pytest.raises(DamagedError, match=re.escape(key)):
                read_all(store)
        damage(store, key, data)
    read_all(store)


def test_a_missing_object_is_noticed(store: LocalStorage, maker: Maker) -> None:
    maker.make().publish(archive(store))
    for key in data_keys(store):
        data = store.read(key).data
        store.delete(key)
        with pytest.raises(DamagedError, match=re.escape(key)):
            read_all(store)
        store.write(key, data)


def test_the_object_of_another_run_is_not_taken(store: LocalStorage, maker: Maker) -> None:
    # As big as the one it replaces.
    maker.make(statuses={"model.shop.a": "error"}).publish(archive(store))
    maker.make("r2", statuses={"model.shop.b": "error"}).publish(archive(store))
    mine, theirs = (
        RunPlace.of(run, "2026-01-31T06:00:00Z").data(f"{run}-i1", "results.json.zst")
        for run in ("r1", "r2")
    )
    store.write(mine, store.read(theirs).data)
    with pytest.raises(DamagedError, match="sha256"):
        read_all(store)


def bomb(size: int) -> bytes:
    """A zstd frame of a few bytes that says it holds `size`."""
    descriptor = bytes([0b1110_0000])  # the size has eight bytes, one segment, no checksum
    last_block_of_one_byte_repeated = ((1 << 17) << 3 | 0b011).to_bytes(3, "little") + b"x"
    return (
        b"\x28\xb5\x2f\xfd"
        + descriptor
        + size.to_bytes(8, "little")
        + last_block_of_one_byte_repeated
    )


def test_the_bomb_is_one() -> None:
    assert zstandard.frame_content_size(bomb(10_000_000_000)) == 10_000_000_000


def zeros(size: int) -> bytes:
    """A real one, whose header does not say how much it holds."""
    compressor = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    block = bytes(1 << 20)
    parts = [compressor.compress(block) for _ in range(size >> 20)]
    return b"".join([*parts, compressor.flush()])


@pytest.mark.parametrize("body", [bomb(10_000_000_000), zeros(256 << 20), b"", b"\0" * 100])
def test_a_bomb_is_refused(store: LocalStorage, maker: Maker, body: bytes) -> None:
    maker.make().publish(archive(store))
    for key in data_keys(store):
        data = store.read(key).data
        store.write(key, body)
        with pytest.raises(DamagedError, match=re.escape(key)):
            read_all(store)
        store.write(key, data)


def test_decompress_stops_at_the_limit() -> None:
    packed = zstandard.ZstdCompressor().compress(b"x" * 1000)
    assert decompress(packed, "name", limit=1000) == b"x" * 1000
    with pytest.raises(DamagedError, match="name would grow to 1000 bytes"):
        decompress(packed, "name", limit=999)
    with pytest.raises(DamagedError):
        decompress(zeros(2 << 20), "name", limit=1 << 20)


def test_a_commit_that_points_elsewhere_is_refused(store: LocalStorage, maker: Maker) -> None:
    maker.make().publish(archive(store))
    place = resolve(archive(store), "r1")
    commit = archive(store).commit_of(place, "r1-i1")
    for key in (
        "../secret",
        "/etc/passwd",
        "archive.json",
        "leases/r1.json",
        "data/../archive.json",
    ):
        artifacts = [msgspec.structs.replace(a, key=key) for a in commit.artifacts]
        changed = msgspec.structs.replace(commit, artifacts=artifacts)
        store.write(place.commit("r1-i1"), msgspec.json.encode(changed))
        with pytest.raises(RecoverError):
            read_all(store)


# ---- of an invocation that is open -------------------------------------------------------------


def begin(store: LocalStorage, made: Made) -> RunPlace:
    """It is lost after it sent its journal."""
    archive(store).check(create=True)
    publication = Publication(archive(store), made.spool)
    ident = publication.begin(made.commit.invocation).invocation_id
    publication.send(ident, "graph.json.zst")
    publication.send_segments(ident)
    return resolve(archive(store), "r1")


def test_a_flipped_bit_in_what_it_began_with_is_noticed(store: LocalStorage, maker: Maker) -> None:
    place = begin(store, maker.make())
    whole = archive(store).begun_of(place, "r1-i1").invocation
    key = place.begun("r1-i1")
    data = store.read(key).data
    for at in range(len(data)):
        for bit in (1, 128):
            damage(store, key, data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :])
            try:
                # Of the hash's own name, for one.
                assert archive(store).begun_of(place, "r1-i1").invocation == whole
            except DamagedError as error:
                assert key in str(error)  # noqa: PT017 # either is right


def journal(made: Made) -> None:
    """Its journal says that a is done, and b was in flight."""
    ident = made.commit.invocation.invocation_id
    done = NodeResult("model.shop.a", "success")
    made.spool.keep_segment(
        1,
        [
            Record("invocation", ident, at="2026-01-31T06:00:01Z", dbt_version="1.11.16"),
            Record("start", ident, node="model.shop.a", started_at="1"),
            Record("finish", ident, node="model.shop.a", started_at="1", result=done),
        ],
    )
    made.spool.keep_segment(
        2,
        [Record("start", ident, at="2026-01-31T06:00:09Z", node="model.shop.b", started_at="2")],
    )


def test_a_lost_invocation_is_read_from_its_journal(store: LocalStorage, maker: Maker) -> None:
    made = maker.make()
    journal(made)
    place = begin(store, made)
    (recorded,) = archive(store).load(place)
    assert not recorded.complete
    assert recorded.invocation.end == "lost"
    assert recorded.invocation.ended == "2026-01-31T06:00:09Z"
    assert recorded.invocation.dbt_version == "1.11.16"
    assert {u: r.status for u, r in recorded.results.items()} == {"model.shop.a": "success"}
    assert recorded.in_flight == {"model.shop.b"}
    assert archive(store).graph(recorded) is not None
    assert listed(store) == [("r1", "failed")]


def test_a_damaged_segment_is_refused(store: LocalStorage, maker: Maker) -> None:
    # A plan from half a journal would be wrong.
    made = maker.make()
    journal(made)
    place = begin(store, made)
    whole = archive(store).load(place)
    key = place.segment("r1-i1", 1)
    data = store.read(key).data
    pack = zstandard.ZstdCompressor().compress
    odd = [
        *(data[:end] for end in range(len(data))),
        bomb(10_000_000_000),
        zeros(128 << 20),
        pack(b"not JSON\n"),
        pack(b'{"event": 1}\n'),
        pack(b'{"event": "start", "node": "model.shop.\xff"}\n'),
        pack(b'{"event": "start", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"),
    ]
    for body in odd:
        damage(store, key, body)
        with pytest.raises(DamagedError, match=re.escape(key)):
            archive(store).load(place)
    for at in range(len(data)):
        damage(store, key, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        try:
            assert archive(store).load(place) == whole
        except DamagedError as error:
            assert key in str(error)  # noqa: PT017 # either is right


# ---- versions ----------------------------------------------------------------------------------


def test_a_newer_archive_is_refused_by_name(store: LocalStorage, maker: Maker) -> None:
    maker.make().publish(archive(store))
    store.write(layout.MARKER, b'{"format": "dbt-recover", "version": 2}')
    with pytest.raises(DamagedError, match="format version 2") as caught:
        archive(store).check()
    assert "upgrade" in caught.value.hint
    with pytest.raises(DamagedError, match="format version 2"):
        maker.make("r2").publish(archive(store))


@pytest.mark.parametrize(
    "marker",
    [
        b"",
        b"{",
        b"[]",
        b'{"format": "other", "version": 1}',
        b'{"version": "1"}',
        b"\xff",
        b"x" * 70_000,
    ],
    ids=lambda marker: repr(marker[:20]),
)
def test_a_marker_that_is_not_ours_is_refused(store: LocalStorage, marker: bytes) -> None:
    store.write(layout.MARKER, marker)
    with pytest.raises(DamagedError):
        archive(store).check(create=True)


def test_no_archive_is_not_found_and_nothing_is_made(store: LocalStorage) -> None:
    with pytest.raises(NotFoundError):
        archive(store).check()
    assert not store.root.exists()


def newer(store: LocalStorage, key: str) -> None:
    """Give the object the version of a later dbt-recover."""
    document = msgspec.json.decode(store.read(key).data)
    store.write(key, msgspec.json.encode({**document, "version": 2}))


def test_a_newer_commit_is_refused_by_name(store: LocalStorage, maker: Maker) -> None:
    maker.make().publish(archive(store))
    place = resolve(archive(store), "r1")
    newer(store, place.commit("r1-i1"))
    with pytest.raises(DamagedError, match="version 2"):
        archive(store).load(place)


def test_a_newer_begun_is_refused_by_name(store: LocalStorage, maker: Maker) -> None:
    place = begin(store, maker.make())
    newer(store, place.begun("r1-i1"))
    with pytest.raises(DamagedError, match="version 2"):
        archive(store).load(place)


def test_a_lost_commit_record_is_no_killed_run(store: LocalStorage, maker: Maker) -> None:
    """The listing's line is written after it: it was there."""
    made = maker.make()
    made.publish(archive(store))
    place = resolve(archive(store), "r1")
    store.delete(place.commit(made.commit.invocation.invocation_id))
    with pytest.raises(DamagedError, match=r"commit record of invocation r1-i1 .* is missing"):
        archive(store).load(place)
    (found,) = verify(archive(store)).findings
    assert "bring the invocation's commit.json back" in found.mend


def test_an_archive_without_its_marker(store: LocalStorage, maker: Maker) -> None:
    archive(store).check(create=True)
    marker = store.read(layout.MARKER).data
    maker.make().publish(archive(store))
    store.delete(layout.MARKER)
    with pytest.raises(DamagedError, match="has runs") as caught:
        archive(store).check()
    assert json.loads(caught.value.hint[caught.value.hint.index("{") :].removesuffix(" there"))
    assert json.loads(marker)["format"] == "dbt-recover"


def test_newer_results_are_refused_by_name(store: LocalStorage, maker: Maker) -> None:
    made = maker.make()
    later = msgspec.json.encode({"version": 2, "results": [], "in_flight": [], "more": 1})
    kept = made.spool.keep_bytes("results.json", later)
    artifacts = [kept if a.name == kept.name else a for a in made.commit.artifacts]
    made.commit = msgspec.structs.replace(made.commit, artifacts=artifacts)
    made.publish(archive(store))
    with pytest.raises(DamagedError, match="version 2"):
        archive(store).load(resolve(archive(store), "r1"))


@pytest.mark.parametrize("spec", ["r1", "r1-i1"], ids=["of the run", "of the invocation"])
def test_a_newer_pointer_is_refused_by_name(store: LocalStorage, maker: Maker, spec: str) -> None:
    maker.make().publish(archive(store))
    newer(store, layout.run_pointer("r1") if spec == "r1" else layout.invocation_pointer("r1-i1"))
    with pytest.raises(DamagedError, match="version 2"):
        resolve(archive(store), spec)


def test_a_newer_commit_of_another_shape_is_refused_by_name(
    store: LocalStorage, maker: Maker
) -> None:
    maker.make().publish(archive(store))
    place = resolve(archive(store), "r1")
    store.write(place.commit("r1-i1"), b'{"version": 2, "invocation": "elsewhere"}')
    with pytest.raises(DamagedError, match="version 2"):
        archive(store).load(place)
