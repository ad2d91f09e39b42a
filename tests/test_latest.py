"""latest/: plain files of the last whole run, of which a reader can tell that they belong together."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from archives import (
    BAD,
    DAILY,
    GOOD,
    PROJECT,
    Altered,
    Dying,
    begin,
    contents,
    loaded,
    made,
    publish,
    until_done,
)
from conftest import Bucket
from dbt_recover import layout
from dbt_recover.archive import Archive
from dbt_recover.errors import DamagedError
from dbt_recover.latest import POINTER, Published, faults_of_latest, publish_latest
from dbt_recover.load import load
from dbt_recover.naming import resolve
from dbt_recover.pipeline import read_pipelines
from dbt_recover.records import Verdict
from dbt_recover.storage import Storage, open_storage
from dbt_recover.storage.local import LocalStorage

FIRST = made("first", GOOD, began="2026-01-31T06:00:00Z", catalog='{"nodes": {"of": "first"}}')
SECOND = made("second", GOOD, began="2026-02-01T06:00:00Z")
FAILED = made("failed", BAD, began="2026-02-02T06:00:00Z")
FIXED = made("failed", {DAILY: "success"}, began=FAILED.began, attempt=2, later=30)


@pytest.fixture(params=["directory", pytest.param("s3", marks=pytest.mark.cluster)])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """An archive with two whole runs."""
    if request.param == "directory":
        store: Storage = LocalStorage(tmp_path / "kept")
    else:
        bucket: Bucket = request.getfixturevalue("s3_bucket")
        store = open_storage(bucket.url, bucket.options)
    publish(store, FIRST)
    publish(store, SECOND)
    return store


@pytest.fixture
def local(tmp_path: Path) -> LocalStorage:
    """The same in a directory."""
    store = LocalStorage(tmp_path / "kept")
    publish(store, FIRST)
    publish(store, SECOND)
    return store


def put(storage: Storage, run_id: str) -> Published:
    return publish_latest(Archive(storage), loaded(storage, run_id))


def pointer(storage: Storage) -> Any:
    return json.loads(storage.read(POINTER).data)


def seen(storage: Storage) -> str | None:
    """The run that a careful reader sees: the pointer, then the files, and their hashes compared;
    None if he can tell that they do not belong together."""
    if storage.stat(POINTER) is None:
        return None
    named = pointer(storage)
    for name in ("manifest.json", "run_results.json"):
        file = named.get("files", {}).get(name)
        if file is None or storage.stat(f"latest/{name}") is None:
            return None
        if hashlib.sha256(storage.read(f"latest/{name}").data).hexdigest() != file["sha256"]:
            return None
    run_id: str = named["run"]["run_id"]
    manifest = json.loads(storage.read("latest/manifest.json").data)
    results = json.loads(storage.read("latest/run_results.json").data)
    assert manifest["metadata"]["invocation_id"].startswith(run_id)
    assert results["metadata"]["invocation_id"].startswith(run_id)
    return run_id


def test_the_plain_files_of_a_whole_run(storage: Storage) -> None:
    assert put(storage, "first") == Published(True)
    assert seen(storage) == "first"
    assert sorted(contents(storage, "latest/")) == [
        *("latest/catalog.json", "latest/manifest.json", "latest/pointer.json"),
        "latest/run_results.json",
    ]
    results = json.loads(storage.read("latest/run_results.json").data)
    assert {r["unique_id"]: r["status"] for r in results["results"]} == GOOD
    named = pointer(storage)
    assert named["version"] == 1
    assert named["run"]["invocation_id"] == FIRST.invocation_id
    assert "updating" not in named
    for name, file in named["files"].items():
        data = storage.read(f"latest/{name}").data
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (file["sha256"], file["size"])
    assert list(faults_of_latest(storage)) == []


def test_a_later_run_replaces_an_earlier_one(storage: Storage) -> None:
    put(storage, "first")
    assert put(storage, "second").written
    assert seen(storage) == "second"
    # It has no catalog: the earlier one stays, and it is said whose it is.
    assert b"first" in storage.read("latest/catalog.json").data
    assert pointer(storage)["files"]["catalog.json"]["run_id"] == "first"
    assert list(faults_of_latest(storage)) == []


def test_an_earlier_run_never_replaces_a_later_one(storage: Storage) -> None:
    put(storage, "second")
    before = contents(storage, "latest/")
    refused = put(storage, "first")
    assert (refused.written, refused.why) == (False, "a newer run is there: second")
    assert contents(storage, "latest/") == before


def test_the_same_again_changes_nothing(local: LocalStorage) -> None:
    put(local, "first")
    before = contents(local, "latest/")
    assert put(local, "first").written
    assert contents(local, "latest/") == before


def test_a_recovered_run_is_merged_over_its_attempts(local: LocalStorage) -> None:
    publish(local, FAILED)
    why = put(local, "failed")
    assert (why.written, why.why) == (False, "2 of its nodes are not done")
    assert local.stat(POINTER) is None
    rest = {**{u: "success" for u, s in BAD.items() if s != "success"}}
    publish(local, made("failed", rest, began=FAILED.began, attempt=2, later=30,
                        verdict=Verdict(True, 0, 4)))  # fmt: skip
    assert put(local, "failed").written
    assert seen(local) == "failed"
    results = json.loads(local.read("latest/run_results.json").data)
    assert {r["unique_id"]: r["status"] for r in results["results"]} == GOOD
    named = pointer(local)["run"]
    assert (named["attempt"], named["invocation_id"]) == (2, "failed-2-only")


def test_a_run_of_several_steps_moves_on_with_each(local: LocalStorage) -> None:
    began = "2026-02-03T06:00:00Z"
    publish(local, made("etl/1", GOOD, began=began, step="one"))
    assert put(local, "etl/1").written
    publish(local, made("etl/1", GOOD, began=began, step="two", later=20))
    early = loaded(local, "etl/1")
    assert put(local, "etl/1").written
    assert pointer(local)["run"]["invocation_id"] == "etl/1-1-two"
    publish(local, made("etl/1", BAD, began=began, step="three", later=40))
    assert not put(local, "etl/1").written
    # Who read the run before its last step comes too late.
    publish(local, made("etl/1", BAD | GOOD, began=began, attempt=2, later=50))
    assert put(local, "etl/1").written
    assert not publish_latest(Archive(local), early).written
    assert pointer(local)["run"]["attempt"] == 2


def test_a_declared_step_that_never_began_is_missing(local: LocalStorage) -> None:
    publish(local, made("etl/1", GOOD, began="2026-02-03T06:00:00Z", step="one"))
    steps = [{"name": "one", "command": "dbt build"}, {"name": "two", "command": "dbt test"}]
    pipelines = read_pipelines({"run": "etl/*", "steps": steps}, "here")
    archive = Archive(local)
    run = load(archive, resolve(archive, "etl/1"), pipelines=pipelines)
    assert not publish_latest(archive, run).written


@pytest.mark.parametrize("lives", [True, False])
def test_a_run_without_its_end_is_not_whole(lives: bool, local: LocalStorage) -> None:
    began = "2026-02-03T06:00:00Z"
    publish(local, made("etl/1", GOOD, began=began, step="one"))
    begin(local, made("etl/1", BAD, began=began, step="two", later=20), lives=lives)
    assert not put(local, "etl/1").written
    assert local.stat(POINTER) is None


def test_a_step_and_an_empty_run_are_not_published(local: LocalStorage) -> None:
    run = loaded(local, "first")
    part = run.step({FIRST.invocation_id})
    assert publish_latest(Archive(local), part).why == "it is one step of a run"
    publish(local, made("empty", {}, began="2026-02-03T06:00:00Z"))
    assert put(local, "empty").why == "it has executed nothing"
    publish(local, made("bare", GOOD, began="2026-02-03T06:00:00Z", manifest=False))
    assert "left no manifest.json" in put(local, "bare").why
    assert seen(local) is None


def test_what_another_writes_is_not_touched(local: LocalStorage) -> None:
    local.write("latest/manifest.json", b"theirs")
    assert "another program" in put(local, "first").why
    assert contents(local, "latest/") == {"latest/manifest.json": b"theirs"}


def test_only_names_from_the_list_are_written(local: LocalStorage, tmp_path: Path) -> None:
    """A commit record that names more, and names it so that it would lie elsewhere."""
    run = loaded(local, "first")
    key = run.place.commit(FIRST.invocation_id)
    commit = json.loads(local.read(key).data)
    del commit["sha256"]  # of its own text: whoever forges leaves it out
    (catalog,) = (a for a in commit["artifacts"] if a["name"] == "catalog.json")
    for name in ("../../evil.json", "/tmp/evil.json", "graph.gpickle", "pointer.json"):
        commit["artifacts"].insert(0, {**catalog, "name": name})
    local.write(key, json.dumps(commit).encode())
    assert put(local, "first").written
    assert len(contents(local, "latest/")) == 4
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]
    # And one that names as its own what is not.
    catalog["key"] = "archive.json"
    local.write(key, json.dumps(commit).encode())
    local.delete(POINTER)
    for name in ("manifest.json", "run_results.json", "catalog.json"):
        local.delete(f"latest/{name}")
    with pytest.raises(DamagedError, match=r"'archive.json', outside of data/"):
        put(local, "first")
    assert seen(local) is None


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"version": 2}'])
def test_a_damaged_pointer_is_named(body: bytes, local: LocalStorage) -> None:
    local.write(POINTER, body)
    with pytest.raises(DamagedError, match=r"latest/pointer\.json"):
        put(local, "first")
    assert [key for key, _ in faults_of_latest(local)] == [POINTER]


def test_a_damaged_artifact_is_not_published(local: LocalStorage) -> None:
    put(local, "first")
    run = loaded(local, "second")
    key = run.place.data(SECOND.invocation_id, "manifest.json.zst")
    local.write(key, local.read(key).data[:-9])
    with pytest.raises(DamagedError):
        publish_latest(Archive(local), run)
    assert seen(local) == "first"


def test_a_pointer_that_names_other_files(local: LocalStorage) -> None:
    put(local, "first")
    named = pointer(local)
    named["files"]["../archive.json"] = named["files"]["manifest.json"]
    local.write(POINTER, json.dumps(named).encode())
    ((key, wrong),) = faults_of_latest(local)
    assert key == POINTER
    assert "no file of latest/" in wrong


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_any_step_a_reader_can_tell(
    after: bool, tmp_path: Path, local: LocalStorage
) -> None:
    put(local, "first")
    sights = []

    def there(step: int) -> LocalStorage:
        return LocalStorage(tmp_path / str(step))

    def killed(step: int) -> None:
        shutil.copytree(local.root, there(step).root)
        put(Dying(there(step), step, after=after), "second")

    for step in until_done(killed):
        sights.append(seen(there(step)))
        # An older one does not take over from the newer one that is gone; the newer one goes on.
        assert not put(there(step), "first").written or sights[-1] == "first"
        assert put(there(step), "second").written
        assert seen(there(step)) == "second"
    assert len(sights) >= 4
    assert set(sights) <= {"first", None, "second"}
    assert None in sights


class Meanwhile(Altered):
    """A store in which another acts right before the write number `step`."""

    def __init__(self, storage: Storage, step: int, act: Callable[[], object]) -> None:
        super().__init__(storage)
        self.left, self.act = step, act

    def write(self, key: str, body: Any, **conditions: Any) -> str:
        if self.left == 0:
            self.act()
        self.left -= 1
        return self.inner.write(key, body, **conditions)


class MeanwhileAsking(Meanwhile):
    """The same, right after a look at the pointer."""

    def stat(self, key: str) -> Any:
        found = self.inner.stat(key)
        if key == POINTER:
            if self.left == 0:
                self.act()
            self.left -= 1
        return found

    def write(self, key: str, body: Any, **conditions: Any) -> str:
        return self.inner.write(key, body, **conditions)


@pytest.mark.parametrize("kind", [Meanwhile, MeanwhileAsking])
@pytest.mark.parametrize("step", range(5))
def test_whoever_is_overtaken_the_newer_run_stays(
    step: int, kind: type[Meanwhile], local: LocalStorage
) -> None:
    """The older one is at work, and the newer one comes and goes in the middle of it."""
    put(kind(local, step, lambda: put(local, "second")), "first")
    # One that came after the older one's end is there alone, too.
    put(local, "second")
    assert seen(local) == "second"


@pytest.mark.parametrize("kind", [Meanwhile, MeanwhileAsking])
@pytest.mark.parametrize("step", range(4))
def test_an_older_run_that_comes_in_between_gives_way(
    step: int, kind: type[Meanwhile], local: LocalStorage
) -> None:
    come = []
    assert put(kind(local, step, lambda: come.append(put(local, "first"))), "second").written
    assert seen(local) == "second"
    assert len(come) == (0 if kind is MeanwhileAsking and step > 1 else 1)


def test_a_run_whose_hook_failed_is_not_whole(local: LocalStorage) -> None:
    hook = {f"operation.{PROJECT}.{PROJECT}-on-run-end-0": "error"}
    publish(local, made("hooked", GOOD | hook, began="2026-02-03T06:00:00Z"))
    assert put(local, "hooked").why == "1 of its nodes are not done"


def test_two_writers_of_the_same(local: LocalStorage) -> None:
    for step in range(5):
        put(Meanwhile(local, step, lambda: put(local, "second")), "second")
        assert seen(local) == "second"
        local.delete(POINTER)
        for name in ("manifest.json", "run_results.json"):
            local.delete(f"latest/{name}")


def test_nothing_else_is_written(local: LocalStorage) -> None:
    before = set(contents(local))
    put(local, "first")
    put(local, "second")
    assert {k for k in contents(local) if not k.startswith(layout.LATEST)} == before
