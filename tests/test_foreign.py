"""Artifacts that another program uploaded as the lesson does, `<prefix>/<date>/<artifact>` and
`latest/`: shown, planned, retried and fetched from; and never changed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from archives import (
    GOOD,
    Altered,
    Dying,
    contents,
    loaded,
    made,
    publish,
    until_done,
)
from conftest import Bucket
from dbt_recover import layout
from dbt_recover.archive import Archive
from dbt_recover.errors import DamagedError, LockedError, NotFoundError, RecoverError, RefusedError
from dbt_recover.foreign import DatedFolders, own
from dbt_recover.latest import publish_latest
from dbt_recover.layout import RunPlace
from dbt_recover.lease import Lease
from dbt_recover.naming import resolve
from dbt_recover.prune import Policy, plan_prune
from dbt_recover.storage import Storage, open_storage
from dbt_recover.storage.base import Blob, Entry
from dbt_recover.storage.local import LocalStorage
from dbt_recover.verify import verify
from projects import ARTIFACTS, Checkout, checkout

PROJECT = "two_independent_failures"
INVOCATION = json.loads((ARTIFACTS / "good" / "run_results.json").read_text())["metadata"][
    "invocation_id"
]


def artifacts(
    kind: str = "good", *, invocation: str = INVOCATION, day: str = "2026-11-22"
) -> dict[str, bytes]:
    """name -> content, of a set of fixtures/artifacts; as if of another invocation and day."""
    found = {}
    for path in (ARTIFACTS / kind).iterdir():
        text = path.read_text().replace(INVOCATION, invocation)
        found[path.name] = text.replace("2026-11-22", day).encode()
    return found


def upload(storage: Storage, folder: str, files: dict[str, bytes]) -> None:
    """As the lesson's task does: one object after another, over what is there."""
    for name, data in files.items():
        storage.write(f"{folder}/{name}", data)


def opened(storage: Storage) -> Archive:
    archive = Archive(storage)
    archive.check()
    return archive


@pytest.fixture(params=["directory", pytest.param("s3", marks=pytest.mark.cluster)])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """A store with two days, and latest."""
    if request.param == "directory":
        store: Storage = LocalStorage(tmp_path / "kept")
    else:
        bucket: Bucket = request.getfixturevalue("s3_bucket")
        store = open_storage(bucket.url, bucket.options)
    fill(store)
    return store


@pytest.fixture
def local(tmp_path: Path) -> LocalStorage:
    """The same in a directory."""
    store = LocalStorage(tmp_path / "kept")
    fill(store)
    return store


SECOND = "22222222-0000-4000-8000-000000000000"
FIRST_RUN, SECOND_RUN = f"2026-11-22-{INVOCATION[:8]}", "2026-11-23-22222222"


def fill(storage: Storage) -> None:
    upload(storage, "2026-11-21", artifacts())
    second = artifacts(invocation=SECOND, day="2026-11-23")
    upload(storage, "2026-11-22", second)
    upload(storage, "latest", second)


def run_ids(storage: Storage, **filters: Any) -> list[str]:
    return [s.run.run_id for s in opened(storage).runs(**filters)]


# Shown


def test_each_day_is_a_run(storage: Storage) -> None:
    before = contents(storage)
    archive = opened(storage)
    assert archive.dated
    second, first = archive.runs()
    assert (first.run.run_id, second.run.run_id) == (FIRST_RUN, SECOND_RUN)
    assert first.run.began == "2026-11-22T15:35:34Z"
    assert first.run.logical_date == "2026-11-21"
    assert (first.status, first.command, first.failed, first.total) == ("failed", "build", 4, 8)
    assert first.seconds == 1.7
    run = loaded(storage, FIRST_RUN)
    assert run.state.run.run_id == FIRST_RUN
    assert len(run.graph.nodes) == 8
    (record,) = run.recorded
    assert (record.complete, record.invocation.exit_code) == (True, 1)
    assert contents(storage) == before


@pytest.mark.parametrize(
    "spec,run_id",
    [
        ("latest", SECOND_RUN),
        ("latest-failed", SECOND_RUN),
        ("2026-11-22", FIRST_RUN),  # began then, and not the folder of that day
        ("2026-11-23", SECOND_RUN),
        ("2026-11-21", FIRST_RUN),  # none began then: the folder
        (FIRST_RUN, FIRST_RUN),
        ("2026-11-22-3", FIRST_RUN),
        (INVOCATION, FIRST_RUN),
        (SECOND, SECOND_RUN),
    ],
)
def test_a_run_is_found(spec: str, run_id: str, local: LocalStorage) -> None:
    assert resolve(opened(local), spec).run_id == run_id


@pytest.mark.parametrize("spec", ["1999-12-31", "weekly", "2026-11-22-x", "33333333-0000"])
def test_no_such_run(spec: str, local: LocalStorage) -> None:
    with pytest.raises(NotFoundError):
        resolve(opened(local), spec)


def test_by_date(local: LocalStorage) -> None:
    assert run_ids(local, since="2026-11-23", until="2026-11-23") == [SECOND_RUN]
    assert run_ids(local, since="2026-11-21", until="2026-11-21") == [FIRST_RUN]
    assert run_ids(local, since="2026-11-20", until="2026-11-20") == []
    assert run_ids(local, logical_date="2026-11-22") == [SECOND_RUN]
    assert run_ids(local, since="2026-11-23") == [SECOND_RUN]
    assert run_ids(local, limit=1) == [SECOND_RUN]


def test_latest_alone(tmp_path: Path) -> None:
    store = LocalStorage(tmp_path)
    upload(store, "latest", artifacts())
    assert run_ids(store) == [FIRST_RUN]
    assert loaded(store, "latest").state.run.logical_date == ""


def test_results_that_stayed_from_the_day_before(local: LocalStorage) -> None:
    """dbt could not parse, left the old file, and it was uploaded once more."""
    upload(local, "2026-11-23", artifacts(invocation=SECOND, day="2026-11-23"))
    assert run_ids(local) == [SECOND_RUN, FIRST_RUN]
    assert loaded(local, SECOND_RUN).state.run.logical_date == "2026-11-22"


def test_an_upload_replaced_by_a_later_one(local: LocalStorage) -> None:
    third = "33333333-0000-4000-8000-000000000000"
    upload(local, "2026-11-22", artifacts(invocation=third, day="2026-11-24"))
    upload(local, "latest", artifacts(invocation=third, day="2026-11-24"))
    assert run_ids(local) == ["2026-11-24-33333333", FIRST_RUN]


def test_artifacts_of_an_older_dbt(tmp_path: Path) -> None:
    """Without the time at which the invocation began."""
    store = LocalStorage(tmp_path)
    upload(store, "2026-11-21", artifacts("older_schema_v5"))
    (summary,) = opened(store).runs()
    assert summary.status == "failed"
    assert loaded(store, "latest").graph.nodes


def test_only_run_results_make_a_run(tmp_path: Path) -> None:
    store = LocalStorage(tmp_path)
    upload(store, "2026-11-21", {"manifest.json": artifacts()["manifest.json"]})
    with pytest.raises(NotFoundError, match="no archive"):
        opened(store)
    upload(store, "2026-11-22", artifacts())
    assert run_ids(store) == [FIRST_RUN]


# What is wrong with an upload


@dataclass(frozen=True)
class Wrong:
    """An upload, and what is said of it."""

    files: dict[str, bytes]
    error: type[RecoverError]
    naming: str


def _damaged(name: str, change: Callable[[bytes], bytes]) -> dict[str, bytes]:
    files = artifacts()
    return {**files, name: change(files[name])}


def _unlike(data: bytes) -> bytes:
    """The manifest of another project's invocation."""
    return data.replace(INVOCATION.encode(), SECOND.encode()).replace(b"orders_daily", b"x")


WRONG = {
    "no_manifest": Wrong(artifacts("no_manifest"), DamagedError, "manifest.json"),
    "not_json_manifest": Wrong(artifacts("not_json_manifest"), DamagedError, "manifest.json"),
    "newer_manifest": Wrong(artifacts("newer_manifest_version"), DamagedError, "v99"),
    "newer_run_results": Wrong(artifacts("newer_run_results_version"), DamagedError, "v99"),
    "truncated": Wrong(artifacts("truncated_run_results"), DamagedError, "truncated"),
    "empty": Wrong(artifacts("empty_run_results"), DamagedError, "is empty"),
    "web_page": Wrong(_damaged("run_results.json", lambda d: b"<html>"), DamagedError, "not JSON"),
    "a_list": Wrong(_damaged("run_results.json", lambda d: b"[]"), DamagedError, "run results"),
    "binary": Wrong(
        _damaged("run_results.json", lambda d: bytes(range(256))), DamagedError, "run_results.json"
    ),
    "deep": Wrong(
        _damaged("run_results.json", lambda d: b'{"metadata": ' + b"[" * 70_000), DamagedError, ""
    ),
    "no_time": Wrong(
        _damaged("run_results.json", lambda d: d.replace(b"2026-11-22T", b"yesterday ")),
        DamagedError,
        "does not say when",
    ),
    "other_project": Wrong(
        _damaged("manifest.json", _unlike), RefusedError, "lacks 1 of its nodes"
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_shown_and_said(name: str, local: LocalStorage) -> None:
    wrong = WRONG[name]
    for folder in ("2026-11-21", "2026-11-22", "latest"):
        for file in layout.ARTIFACTS:
            local.delete(f"{folder}/{file}")
    upload(local, "2026-11-20", wrong.files)
    other = "44444444-0000-4000-8000-000000000000"
    upload(local, "2026-11-24", artifacts(invocation=other, day="2026-11-25"))
    archive = opened(local)
    good, bad = archive.runs()
    assert (good.run.run_id, bad.status) == ("2026-11-25-44444444", "failed")
    with pytest.raises(wrong.error, match="2026-11-20") as caught:
        archive.load(resolve(archive, bad.run.run_id))
    assert wrong.naming in caught.value.message
    assert resolve(archive, "2026-11-20").run_id == bad.run.run_id
    assert loaded(local, good.run.run_id).graph.nodes
    with pytest.raises(wrong.error), Lease(archive, resolve(archive, bad.run.run_id)):
        pass


def test_a_manifest_written_anew_by_dbt_ls_is_taken(local: LocalStorage) -> None:
    """Another invocation, the same project: nothing that ran is missing in it."""
    upload(local, "2026-11-24", artifacts("two_invocations"))
    run = loaded(local, "2026-11-22-f440b459")
    assert len(run.graph.nodes) >= 8


def test_strange_names_are_passed_over(local: LocalStorage) -> None:
    before = run_ids(local)
    for odd in ("2026-1-1/run_results.json", "2026-11-19/notes.txt", "x/run_results.json"):
        local.write(odd, b"?")
    local.write("2026-11-18/graph.gpickle", b"?")
    local.write("latest/graph.gpickle", b"?")
    (local.root / "2026-11-17").mkdir()
    (local.root / "2026-11-17" / "a b\n.json").write_bytes(b"?")
    (local.root / "2026-11-16").symlink_to(local.root / "2026-11-21")
    assert run_ids(local) == before


@pytest.mark.parametrize("invocation", ["../../../etc", "a/b", "~", "é\\n", "x" * 300, "."])
def test_a_hostile_invocation_id(invocation: str, local: LocalStorage) -> None:
    upload(local, "2026-11-24", artifacts(invocation=invocation, day="2026-11-25"))
    archive = opened(local)
    run_id = next(iter(archive.runs())).run.run_id
    with Lease(archive, resolve(archive, run_id)):
        assert archive.load(resolve(archive, run_id))
    assert sorted(p.name for p in local.root.parent.iterdir()) == ["kept"]
    assert {k.split("/")[0] for k in contents(local)} - {"ids", "runs", "data"} == {
        *("2026-11-21", "2026-11-22", "2026-11-24", "latest")
    }


def test_only_known_names_are_copied(local: LocalStorage) -> None:
    local.write("2026-11-21/graph.gpickle", b"a pickle")
    local.write("2026-11-21/catalog.json", b'{"nodes": {}}')
    archive = opened(local)
    with Lease(archive, resolve(archive, FIRST_RUN)):
        pass
    names = {k.rsplit("/", 1)[1] for k in contents(local, "data/")}
    assert names == {
        f"{n}.json.zst" for n in ("manifest", "run_results", "catalog", "graph", "results")
    }


# Copied before anything is added


def theirs(storage: Storage) -> dict[str, bytes]:
    return {k: v for k, v in contents(own(storage)).items() if k[0] == "2" or k[:6] == "latest"}


def test_the_lease_copies_the_run(storage: Storage) -> None:
    before = contents(storage)
    archive = opened(storage)
    place = resolve(archive, FIRST_RUN)
    seen, listed = archive.state_of(place), [*archive.runs()]
    with Lease(archive, place):
        # To the retry that holds it the run has not changed.
        assert archive.state_of(place, fresh=True) == seen
    assert theirs(storage) == before
    again = opened(storage)
    assert [*again.runs()] == listed
    # There by itself now, as `archive` would have made it.
    plain = Archive(storage)
    (summary,) = plain.runs()
    assert summary == listed[1]
    commit = plain.commit_of(place, INVOCATION)
    for artifact in commit.artifacts:
        data = plain.artifact_bytes(artifact)
        if artifact.name in ("manifest.json", "run_results.json"):
            assert data == before[f"2026-11-21/{artifact.name}"]
    assert verify(plain).findings == ()
    assert storage.stat(layout.MARKER) is None


def test_copied_once(local: LocalStorage) -> None:
    for _ in range(2):
        archive = opened(local)
        with Lease(archive, resolve(archive, FIRST_RUN)):
            copied = contents(local, "data/") | contents(local, "runs/")
    assert contents(local, "data/") | contents(local, "runs/") == copied
    first, second = opened(local), opened(local)
    with (
        Lease(first, resolve(first, SECOND_RUN)),
        pytest.raises(LockedError),
        Lease(second, resolve(second, SECOND_RUN)),
    ):
        pass


@pytest.mark.parametrize("after", [False, True])
def test_killed_while_it_copies(after: bool, local: LocalStorage, tmp_path: Path) -> None:
    expected = [*opened(local).runs()]
    steps = []

    def there(step: int) -> LocalStorage:
        return LocalStorage(tmp_path / str(step))

    def killed(step: int) -> None:
        shutil.copytree(local.root, there(step).root)
        archive = opened(Dying(there(step), step, after=after))
        with Lease(archive, resolve(archive, FIRST_RUN)):
            pass

    for step in until_done(killed):
        steps.append(step)
        there(step).delete(RunPlace.of(FIRST_RUN, "2026-11-22T15:35:34Z").lease)
        assert [*opened(there(step)).runs()] == expected
        assert loaded(there(step), FIRST_RUN).graph.nodes
        archive = opened(there(step))
        with Lease(archive, resolve(archive, FIRST_RUN)):
            pass
        assert verify(Archive(there(step))).findings == ()
        assert [*opened(there(step)).runs()] == expected
    assert len(steps) > 8


def test_uploaded_anew_while_it_is_read(local: LocalStorage) -> None:
    archive = opened(local)
    place = resolve(archive, SECOND_RUN)
    archive.load(place)
    upload(local, "2026-11-22", artifacts(invocation="5" * 36, day="2026-11-24"))
    with pytest.raises(DamagedError, match="uploaded anew"), Lease(archive, place):
        pass
    assert contents(local, "runs/") == {}


def test_an_invocation_that_exec_archived_too_is_one_run(local: LocalStorage) -> None:
    publish(local, made("etl/1", GOOD, began="2026-11-22T15:35:34Z", invocation_id=INVOCATION))
    local.delete(layout.MARKER)
    assert run_ids(local) == [SECOND_RUN, "etl/1"]


# Beside them


def test_runs_of_our_own_lie_beside(local: LocalStorage) -> None:
    archive = Archive(local)
    archive.check(create=True)
    assert isinstance(archive.storage, DatedFolders)
    assert local.stat(layout.MARKER) is None
    publish(local, made("etl/1", GOOD, began="2026-11-24T06:00:00Z"))
    assert run_ids(local) == ["etl/1", SECOND_RUN, FIRST_RUN]
    before = theirs(local)
    assert not publish_latest(archive, loaded(local, "etl/1")).written
    assert theirs(local) == before


def test_an_archive_is_not_taken_for_folders(tmp_path: Path) -> None:
    store = LocalStorage(tmp_path)
    publish(store, made("etl/1", GOOD))
    upload(store, "2026-11-21", artifacts())
    archive = opened(store)
    assert not archive.dated
    assert run_ids(store) == ["etl/1"]


def test_verify_and_prune_leave_them_alone(local: LocalStorage) -> None:
    from datetime import datetime, timezone

    archive = opened(local)
    with Lease(archive, resolve(archive, FIRST_RUN)):
        pass
    report = verify(opened(local))
    assert (report.runs, report.faults) == (1, ())
    assert "not verified" in report.notes[0].wrong
    now = datetime(2027, 1, 1, tzinfo=timezone.utc)
    plan = plan_prune(opened(local), Policy(keep_days=1), now)
    assert plan.decision.drop == ()
    assert {j.reasons[0] for j in plan.decision.keep} == {"another program archived it"}


@dataclass
class Counting(Altered):
    """A store that counts what was asked of it."""

    inner: Storage
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.url = self.inner.url

    def read(self, key: str, *, max_bytes: int | None = None) -> Blob:
        self.asked.append(f"read {key}")
        return self.inner.read(key, max_bytes=max_bytes)

    def open(self, key: str) -> BinaryIO:
        self.asked.append(f"open {key}")
        return self.inner.open(key)

    def folders(self, prefix: str) -> Any:
        self.asked.append(f"folders {prefix}")
        return self.inner.folders(prefix)

    def list(self, prefix: str, *, since: str = "") -> Iterator[Entry]:
        self.asked.append(f"list {prefix}")
        return self.inner.list(prefix, since=since)


def test_an_archive_pays_nothing_for_it(tmp_path: Path) -> None:
    store = LocalStorage(tmp_path)
    publish(store, made("etl/1", GOOD))
    counting = Counting(store)
    archive = opened(counting)
    assert [*archive.runs(since="2026-01-31", until="2026-01-31")]
    assert counting.asked == ["read archive.json", "folders runs/", "list runs/2026-01-31/"]


def test_a_listing_reads_only_what_it_shows(local: LocalStorage) -> None:
    counting = Counting(local)
    assert len([*opened(counting).runs(limit=1)]) == 1
    assert [a for a in counting.asked if "manifest" in a] == []
    assert [a for a in counting.asked if a.startswith("read 2")] == [
        "read 2026-11-22/run_results.json"
    ]
    assert len(counting.asked) == len(set(counting.asked))


# From the command line, with a real dbt


@pytest.fixture(scope="module")
def uploaded_once(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A project whose build failed; what dbt left lies in target/."""
    here = checkout(PROJECT, tmp_path_factory.mktemp("foreign") / "here")
    assert here.dbt("build").code == 1
    return here


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["directory", pytest.param("s3", marks=pytest.mark.cluster)])
def test_from_the_first_look_to_the_last(
    kind: str, uploaded_once: Checkout, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    here = uploaded_once.copied(tmp_path / "here")
    if kind == "directory":
        store: Storage = LocalStorage(tmp_path / "kept")
        here = here.having(DBT_RECOVER_ARCHIVE=tmp_path / "kept")
    else:
        bucket: Bucket = request.getfixturevalue("s3_bucket")
        store = open_storage(bucket.url, bucket.options)
        here = here.having(**bucket.environment, DBT_RECOVER_ARCHIVE=bucket.url)
    names = ("manifest.json", "run_results.json")
    target = {n: (here.root / "target" / n).read_bytes() for n in names}
    upload(store, "2026-01-31", target)
    upload(store, "latest", target)
    before = contents(store)
    invocation = json.loads(target["run_results.json"])["metadata"]["invocation_id"]
    dbts = len(here.calls)

    (run,) = here.recover("runs", "-o", "json").json["runs"]
    assert run["run_id"] == f"{run['date']}-{invocation[:8]}"
    assert (run["status"], run["logical_date"]) == ("failed", "2026-01-31")
    assert here.recover("runs", "--date", "2026-01-31", "-o", "json").json["runs"] == [run]
    shown = here.recover("show", "2026-01-31")
    assert shown.code == 0, shown
    assert "Could not convert string '1,200'" in shown.out
    here.mend()
    assert here.plan("2026-01-31") == here.expect.retry
    assert here.recover("fetch", "--to", "state").code == 0
    statuses = json.loads((here.root / "state" / "run_results.json").read_text())["results"]
    assert {r["unique_id"]: r["status"] for r in statuses} == here.run_results()
    assert (here.root / "state" / "manifest.json").read_bytes() == target["manifest.json"]
    assert len(here.calls) == dbts
    assert contents(store) == before

    done = here.recover("retry", "-o", "json")
    assert done.code == 0, done
    assert sorted(done.json["executed"]) == here.expect.retry
    assert (done.json["attempt"], done.json["outcome"]) == (2, "recovered")
    assert here.tables() == here.clean_build(tmp_path / "clean")
    assert theirs(store) == before
    assert verify(Archive(store)).findings == ()

    (after,) = here.recover("runs", "-o", "json").json["runs"]
    assert (after["status"], after["attempts"]) == ("recovered", 2)
    assert here.recover("retry", "2026-01-31", "-o", "json").json["outcome"] == "already_complete"
    assert here.recover("fetch", "--to", "state").code == 0
    statuses = json.loads((here.root / "state" / "run_results.json").read_text())["results"]
    assert {r["status"] for r in statuses} == {"success", "pass"}
    assert here.recover("doctor").code == 0
    assert here.recover("verify").code == 0
    assert theirs(store) == before
