"""verify names everything that is not what it should be, and nothing else: neither what a killed
writer leaves, nor what others keep in the same place.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import zstandard

from archives import (
    BAD,
    GOOD,
    Altered,
    Dying,
    Made,
    begin,
    loaded,
    made,
    place_of,
    publish,
    until_done,
)
from conftest import Bucket
from dbt_recover import layout
from dbt_recover.archive import Archive
from dbt_recover.errors import DamagedError, NotFoundError, StorageError
from dbt_recover.latest import publish_latest
from dbt_recover.lease import Lease
from dbt_recover.model import RunInfo
from dbt_recover.naming import locate
from dbt_recover.publish import register_run
from dbt_recover.records import Verdict
from dbt_recover.storage import Storage, open_storage
from dbt_recover.storage.base import Blob, Entry, MissingKey
from dbt_recover.storage.local import LocalStorage
from dbt_recover.verify import verify

NIGHT = made("analytics/scheduled__2026-01-31T06:00:00+00:00", BAD)
RETRY = made(
    NIGHT.run_id, GOOD, attempt=2, later=30, verdict=Verdict(whole=True, failed=0, total=4)
)
DAY = made("day", GOOD, began="2026-02-01T06:00:00Z", catalog='{"nodes": {}}')
LOST = made("lost", BAD, began="2026-02-02T06:00:00Z")
ONES = (NIGHT, RETRY, DAY)


def fill(storage: Storage) -> None:
    """A run with a retry, a whole one, and one whose machine was lost."""
    for one in ONES:
        publish(storage, one)
    begin(storage, LOST)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("verify") / "kept"
    fill(LocalStorage(root))
    return root


@pytest.fixture
def kept(filled: Path, tmp_path: Path) -> LocalStorage:
    """An archive with three runs in it, in a directory."""
    shutil.copytree(filled, tmp_path / "kept")
    return LocalStorage(tmp_path / "kept")


@pytest.fixture(params=["directory", pytest.param("s3", marks=pytest.mark.cluster)])
def storage(request: pytest.FixtureRequest) -> Storage:
    """The same, in a bucket, too."""
    if request.param == "directory":
        kept: LocalStorage = request.getfixturevalue("kept")
        return kept
    bucket: Bucket = request.getfixturevalue("s3_bucket")
    store = open_storage(bucket.url, bucket.options)
    fill(store)
    return store


def test_a_sound_archive(storage: Storage) -> None:
    report = verify(Archive(storage))
    assert report.findings == ()
    assert (report.runs, report.runs_there, report.invocations) == (3, 3, 4)
    # Pointers, records, data; archive.json and the summaries are not read as objects.
    assert report.objects == 3 + 4 + 3 + 4 + 3 * 3 + 1 + 4 * 2
    assert report.stored > 10_000
    assert report.exit_code == 0


def test_what_is_at_work_and_settled_is_sound(kept: LocalStorage) -> None:
    begin(kept, made("now", BAD, began="2026-02-03T06:00:00Z"), lives=True)
    archive = Archive(kept)
    archive.settle(place_of(LOST), 1, 4, "")
    publish_latest(archive, loaded(kept, "day"))
    with Lease(archive, place_of(NIGHT)):
        assert verify(archive).findings == ()


# Damage


@dataclass(frozen=True)
class Damage:
    """What is done to the archive, and what is to be said of it."""

    do: Callable[[Storage], None]
    key: str
    """A part of the key that is named."""
    wrong: str
    run: Made = NIGHT
    faults: int = 1


def _change(
    key: str, change: Callable[[bytes], bytes], *, new: bool = False
) -> Callable[[Storage], None]:
    def do(storage: Storage) -> None:
        storage.write(key, change(b"" if new else storage.read(key).data))

    return do


def _edit(key: str, change: Callable[[Any], None]) -> Callable[[Storage], None]:
    """Change a JSON object."""

    def edited(data: bytes) -> bytes:
        document = json.loads(data)
        document.pop("sha256", None)  # a hash of its own text: whoever forges leaves it out
        change(document)
        return json.dumps(document).encode()

    return _change(key, edited)


def _other_machine(data: bytes) -> bytes:
    """A value of the record is another."""
    assert b'"machine": "' in data
    return data.replace(b'"machine": "', b'"machine": "9', 1)


def _gone(key: str) -> Callable[[Storage], None]:
    return lambda storage: storage.delete(key)


def _add(key: str, data: bytes) -> Callable[[Storage], None]:
    return _change(key, lambda _: data, new=True)


def _move(key: str, to: str) -> Callable[[Storage], None]:
    def do(storage: Storage) -> None:
        storage.write(to, storage.read(key).data)

    return do


def _flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def _cut(data: bytes) -> bytes:
    return data[:-10]


def _other(_: bytes) -> bytes:
    return zstandard.compress(b'{"version": 1, "results": []}')


def _data(one: Made, name: str) -> str:
    return place_of(one).data(one.invocation_id, name)


COMMIT = place_of(NIGHT).commit(NIGHT.invocation_id)
BEGUN = place_of(NIGHT).begun(NIGHT.invocation_id)
OPEN = place_of(LOST).begun(LOST.invocation_id)
RUN_POINTER = layout.run_pointer(NIGHT.run_id)
POINTER = layout.invocation_pointer(NIGHT.invocation_id)
RESULTS = _data(NIGHT, "results.json.zst")
MANIFEST = _data(NIGHT, "manifest.json.zst")
GRAPH = _data(NIGHT, "graph.json.zst")
SEGMENT = _data(NIGHT, "journal/000001.jsonl.zst")
ELSEWHERE = place_of(NIGHT).commit("another")


def _forge(**changes: Any) -> Callable[[Any], None]:
    return lambda commit: commit.update(changes)


def _forge_artifact(**changes: Any) -> Callable[[Any], None]:
    """Of results.json, the last of them."""
    return lambda commit: commit["artifacts"][-1].update(changes)


def _bomb(storage: Storage) -> None:
    """A small object that says of itself, and grows to, more than it had."""
    storage.write(RESULTS, zstandard.compress(bytes(300_000_000)))


def _lie(storage: Storage) -> None:
    (item,) = storage.list(place_of(DAY).records(DAY.invocation_id) + "~")
    storage.delete(item.key)
    storage.write(item.key.replace("~ok~0~", "~failed~3~"), b"")


def _journal_moved(storage: Storage) -> None:
    for name in ("journal/000001.jsonl.zst", "journal/000002.jsonl.zst"):
        _move(_data(DAY, name), _data(LOST, name))(storage)


DAMAGES = {
    "commit_cut": Damage(_change(COMMIT, _cut), COMMIT, "is damaged"),
    "commit_empty": Damage(_change(COMMIT, lambda d: b""), COMMIT, "is damaged"),
    "commit_a_web_page": Damage(_change(COMMIT, lambda d: b"<html>"), COMMIT, "is damaged"),
    "commit_deep": Damage(_change(COMMIT, lambda d: b"[" * 100_000), COMMIT, "is damaged"),
    "commit_rotten": Damage(_change(COMMIT, _other_machine), COMMIT, "not what was written"),
    "commit_laid_out_anew": Damage(
        _change(COMMIT, lambda d: json.dumps(json.loads(d)).encode()), COMMIT, "not laid out"
    ),
    "begun_rotten": Damage(_change(BEGUN, _other_machine), BEGUN, "not what was written"),
    "commit_newer": Damage(_edit(COMMIT, _forge(version=2)), COMMIT, "has format version 2"),
    "commit_versionless": Damage(_edit(COMMIT, _forge(version=0)), COMMIT, "has format version 0"),
    "commit_of_another_run": Damage(
        _edit(COMMIT, lambda c: c["invocation"]["run"].update(run_id="day")), COMMIT, "record of"
    ),
    "commit_of_another_day": Damage(
        _edit(COMMIT, lambda c: c["invocation"]["run"].update(began="2026-01-30T06:00:00Z")),
        COMMIT,
        "is the record of 2026-01-30/060000~",
    ),
    "commit_of_another_invocation": Damage(
        _edit(COMMIT, lambda c: c["invocation"].update(invocation_id="x")), COMMIT, "record of"
    ),
    "commit_copied": Damage(_move(COMMIT, ELSEWHERE), "another", "", faults=2),
    "begun_cut": Damage(_change(BEGUN, _cut), BEGUN, "is damaged"),
    "begun_of_another": Damage(
        _edit(BEGUN, lambda c: c["invocation"].update(invocation_id="x")), BEGUN, "record of"
    ),
    "open_begun_cut": Damage(_change(OPEN, _cut), OPEN, "is damaged", LOST),
    "artifact_gone": Damage(_gone(MANIFEST), MANIFEST, "missing"),
    "artifact_flipped": Damage(_change(MANIFEST, _flipped), MANIFEST, ""),
    "artifact_cut": Damage(_change(MANIFEST, _cut), MANIFEST, "cut short"),
    "artifact_empty": Damage(_change(MANIFEST, lambda d: b""), MANIFEST, "cut short"),
    "artifact_not_compressed": Damage(_change(MANIFEST, lambda d: b"{}"), MANIFEST, "damaged"),
    "artifact_of_another": Damage(_change(RESULTS, _other), RESULTS, "cut short"),
    "artifact_grows": Damage(_bomb, RESULTS, "grows beyond"),
    "artifact_altered": Damage(
        _change(GRAPH, lambda d: zstandard.compress(_flipped(zstandard.decompress(d)))),
        GRAPH,
        "is not what was written (sha256)",
    ),
    "hash_forged": Damage(_edit(COMMIT, _forge_artifact(sha256="0" * 64)), RESULTS, "sha256"),
    "size_forged": Damage(_edit(COMMIT, _forge_artifact(size=10)), RESULTS, "grows beyond"),
    "key_outside_of_data": Damage(
        _edit(COMMIT, _forge_artifact(key="archive.json")), COMMIT, "names 'archive.json'"
    ),
    "key_of_another_run": Damage(
        _edit(COMMIT, _forge_artifact(key=_data(DAY, "results.json.zst"))), COMMIT, "not its own"
    ),
    "key_upwards": Damage(
        _edit(COMMIT, _forge_artifact(key="data/../../etc/passwd")), COMMIT, "not its own"
    ),
    "segment_gone": Damage(_gone(SEGMENT), SEGMENT, "there are 1 of 2 journal segments"),
    "segment_cut": Damage(_change(SEGMENT, _cut), SEGMENT, "cut short"),
    "segment_of_no_records": Damage(
        _change(SEGMENT, lambda d: zstandard.compress(b'{"event": 1}\n')), SEGMENT, "no record"
    ),
    "segments_forged": Damage(
        _edit(COMMIT, _forge(segments=10**15)), "journal/000003", "there are 2 of 10"
    ),
    "open_segment_cut": Damage(
        _change(_data(LOST, "journal/000001.jsonl.zst"), _cut), "journal/000001", "", LOST
    ),
    "run_pointer_gone": Damage(_gone(RUN_POINTER), RUN_POINTER, "is missing"),
    "run_pointer_cut": Damage(_change(RUN_POINTER, _cut), RUN_POINTER, "is damaged"),
    "run_pointer_elsewhere": Damage(
        _edit(RUN_POINTER, lambda p: p["run"].update(began="2026-01-30T06:00:00Z")),
        RUN_POINTER,
        "points to run analytics/scheduled__2026-01-31T06:00:00+00:00, begun 2026-01-30",
    ),
    "invocation_pointer_gone": Damage(_gone(POINTER), POINTER, "is missing"),
    "invocation_pointer_elsewhere": Damage(
        _edit(POINTER, lambda p: p.update(run_id="day")), POINTER, "points to run day"
    ),
    "summary_lies": Damage(_lie, "~failed~3~", "instead of ok, 0 of 4", DAY),
    "summary_twice": Damage(
        _add(f"{place_of(DAY).records(DAY.invocation_id)}~9~failed~9~9~1.0~~build~x~run~", b""),
        "~9~failed~9~9~",
        "does not agree",
        DAY,
    ),
    "summary_of_nothing": Damage(
        _add(f"{place_of(DAY).records('ghost')}~1~ok~0~9~1.0~~build~x~step~", b""),
        "ghost",
        "a summary without a commit record",
        DAY,
    ),
    "journal_of_another": Damage(
        _journal_moved,
        place_of(LOST).segments(LOST.invocation_id),
        "is the journal of another invocation, day-1-only",
        LOST,
    ),
    "open_begun_of_another": Damage(
        _edit(OPEN, lambda b: b["invocation"]["run"].update(run_id="day")), OPEN, "record of", LOST
    ),
    "lease_damaged": Damage(_add("leases/day.json", b"{"), "leases/day.json", "is damaged", DAY),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named(name: str, kept: LocalStorage) -> None:
    damage = DAMAGES[name]
    damage.do(kept)
    report = verify(Archive(kept))
    assert report.exit_code == DamagedError.exit_code
    assert len(report.faults) == damage.faults, report.faults
    for note in report.notes:
        # A consequence, where the object was replaced, or is no longer named.
        assert "as stored" in note.wrong or note.key == RESULTS
    for fault in report.faults:
        assert damage.key in fault.key
        assert damage.wrong in fault.wrong
        assert fault.mend
        assert fault.run_id == damage.run.run_id
    # It is found alone, too, and the other runs are sound.
    archive = Archive(kept)
    if name in ("journal_of_another", "open_begun_of_another"):
        # There is no hash of what is open; it is not taken for this run's all the same.
        with pytest.raises(DamagedError, match=r"of another|is the record of"):
            archive.load(place_of(LOST))
    if name != "lease_damaged":
        assert verify(archive, run=place_of(damage.run)).faults == report.faults
    for other in {NIGHT.run_id: NIGHT, DAY.run_id: DAY, LOST.run_id: LOST}.values():
        if other.run_id != damage.run.run_id:
            assert verify(archive, run=place_of(other)).faults == ()


@pytest.mark.cluster
@pytest.mark.parametrize("name", ["artifact_flipped", "commit_cut", "segment_gone", "summary_lies"])
def test_damage_in_a_bucket(name: str, s3_bucket: Bucket) -> None:
    storage = open_storage(s3_bucket.url, s3_bucket.options)
    fill(storage)
    damage = DAMAGES[name]
    damage.do(storage)
    (fault,) = verify(Archive(storage)).faults
    assert damage.key in fault.key
    assert damage.wrong in fault.wrong


def test_all_faults_at_once(kept: LocalStorage) -> None:
    names = ["commit_cut", "summary_lies", "open_begun_cut", "lease_damaged"]
    for name in names:
        DAMAGES[name].do(kept)
    faults = verify(Archive(kept)).faults
    assert sorted(DAMAGES[n].key in f.key for n in names for f in faults).count(True) == 4


def test_a_link_is_not_followed(kept: LocalStorage, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes((kept.root / MANIFEST).read_bytes())
    (kept.root / MANIFEST).unlink()
    (kept.root / MANIFEST).symlink_to(secret)
    (fault,) = verify(Archive(kept)).faults
    assert fault.key == MANIFEST
    assert "link" in fault.wrong


# What is no fault


def test_a_killed_writer_leaves_no_fault(tmp_path: Path) -> None:
    """At whatever step, before it or after it."""
    steps = 0
    for after in (False, True):

        def killed(step: int, after: bool = after) -> None:
            storage = LocalStorage(tmp_path / f"{step}{after}")
            publish(Dying(storage, step, after=after), NIGHT)

        for step in until_done(killed):
            storage = LocalStorage(tmp_path / f"{step}{after}")
            assert verify(Archive(storage)).faults == (), step
            publish(storage, NIGHT)
            assert verify(Archive(storage)).findings == (), step
            steps += 1
    assert steps > 20


def test_a_missing_summary_is_a_note(kept: LocalStorage) -> None:
    (item,) = kept.list(place_of(DAY).records(DAY.invocation_id) + "~")
    kept.delete(item.key)
    report = verify(Archive(kept))
    assert [(n.key, n.run_id) for n in report.notes] == [(item.key, "day")]
    assert report.exit_code == 0


def _age(storage: LocalStorage, prefix: str, seconds: float) -> None:
    for path in (storage.root / prefix).rglob("*"):
        if path.is_file():
            os.utime(path, (time.time() - seconds,) * 2)


@pytest.mark.parametrize(
    "prefix,named",
    [
        ("data/2026-01-30/060000~gone/1/", "data/2026-01-30/060000~gone/"),
        (_data(DAY, "")[:-1] + "x/", _data(DAY, "")[:-1] + "x/"),
    ],
)
def test_orphans_older_than_a_day(prefix: str, named: str, kept: LocalStorage) -> None:
    kept.write(f"{prefix}manifest.json.zst", b"12345")
    kept.write(f"{prefix}journal/000001.jsonl.zst", b"12345")
    assert verify(Archive(kept)).findings == ()
    _age(kept, prefix, 90_000)
    report = verify(Archive(kept))
    (note,) = report.notes
    assert note.key == named
    assert note.wrong == "holds 2 objects (10 bytes) that belong to no invocation"
    assert report.exit_code == 0


def test_data_that_no_commit_names_is_a_note(kept: LocalStorage) -> None:
    key = _data(DAY, "secret.json.zst")
    kept.write(key, b"x")
    (note,) = verify(Archive(kept)).findings
    assert (note.key, note.fault) == (key, False)
    kept.delete(key)
    # Its writer was killed before it could remove this one.
    kept.write(_data(DAY, "manifest.early.json.zst"), b"x")
    assert verify(Archive(kept)).findings == ()


def _renamed(commit: Any) -> None:
    (catalog,) = (a for a in commit["artifacts"] if a["name"] == "catalog.json")
    catalog["name"] = "later.json"
    catalog["key"] = catalog["key"].replace("catalog.json", "later.json")


def test_an_unknown_kind_of_artifact_is_a_note(kept: LocalStorage) -> None:
    commit = place_of(DAY).commit(DAY.invocation_id)
    old, new = _data(DAY, "catalog.json.zst"), _data(DAY, "later.json.zst")
    kept.write(new, kept.read(old).data)
    kept.delete(old)
    _edit(commit, _renamed)(kept)
    (note,) = verify(Archive(kept)).findings
    assert (note.key, note.fault) == (new, False)


def test_stored_otherwise_but_the_same_is_a_note(kept: LocalStorage) -> None:
    plain = zstandard.decompress(kept.read(MANIFEST).data)
    kept.write(MANIFEST, zstandard.compress(plain, level=19))
    (note,) = verify(Archive(kept)).findings
    assert (note.key, note.fault) == (MANIFEST, False)


def test_a_pointer_to_nothing_is_a_note(kept: LocalStorage) -> None:
    kept.write("ids/runs/weekly%2F1.json", b"{}")
    (note,) = verify(Archive(kept)).findings
    assert (note.key, note.run_id, note.fault) == ("ids/runs/weekly%2F1.json", "weekly/1", False)


def test_a_half_removed_run_is_a_note(kept: LocalStorage) -> None:
    kept.write(place_of(DAY).pruned, b'{"version": 1, "invocations": []}')
    kept.delete(_data(DAY, "results.json.zst"))
    (note,) = verify(Archive(kept)).findings
    assert (note.key, note.fault) == (place_of(DAY).pruned, False)
    assert "prune" in note.mend


def test_a_damaged_mark_is_a_fault_and_keeps_no_other_run(kept: LocalStorage) -> None:
    place = place_of(NIGHT)
    kept.write(place.pruned, b'{"version": 1, "invo')
    kept.delete(layout.run_pointer(NIGHT.run_id))
    (fault,) = verify(Archive(kept)).faults
    assert (fault.key, fault.run_id) == (place.pruned, NIGHT.run_id)
    pruned = run(kept.root, "prune", "--keep-last", "1", "--yes", "-o", "json")
    assert pruned.returncode == 0, pruned.stderr
    document = json.loads(pruned.stdout)
    assert document["removed"] == ["day"]
    (left,) = document["skipped"]
    assert left["run_id"] == NIGHT.run_id
    assert "is damaged" in left["reason"]
    assert "dbt-recover verify" in left["reason"]
    # As verify says.
    kept.write(place.pruned, fault.mend.removeprefix("write ").partition(" there")[0].encode())
    again = run(kept.root, "prune", "--keep-last", "1", "--yes", "-o", "json")
    assert json.loads(again.stdout)["removed"] == [NIGHT.run_id]
    assert not [e.key for e in kept.list("") if place.part in e.key]


def test_a_run_removed_meanwhile_is_sound(kept: LocalStorage) -> None:
    class Removing(Altered):
        def read(self, key: str, *, max_bytes: int | None = None) -> Blob:
            if "~day/" in key:
                for item in [*self.inner.list(f"runs/{place_of(DAY).name}/")]:
                    self.inner.delete(item.key)
                raise MissingKey(key)
            return self.inner.read(key, max_bytes=max_bytes)

    report = verify(Archive(Removing(kept)))
    assert report.faults == ()


def test_keys_of_others_are_passed_over(kept: LocalStorage) -> None:
    class WithOddKeys(Altered):
        def list(self, prefix: str, *, since: str = "") -> Iterator[Entry]:
            yield from self.inner.list(prefix, since=since)
            if prefix.startswith("runs/"):
                for odd in ("notes.txt", "2026-01-31/x", "2026-13-99/060000~x", "../../x", "a\nb"):
                    yield Entry(f"{prefix}{odd}", 1)
                yield Entry("runs/2026-01-31/060000~a\nb/c/~1~ok", 1)
                yield Entry("runs/2026-01-31/06~b/c/commit.json", 1)

    assert verify(Archive(WithOddKeys(kept)), run=place_of(DAY)).faults == ()
    for key in ("runs/readme.txt", "runs/2026-01-31/x/y/z/commit.json", "data/notes/x/y", "x"):
        kept.write(key, b"?")
    assert verify(Archive(kept)).findings == ()


def test_latest_half_written_is_a_note(kept: LocalStorage) -> None:
    assert publish_latest(Archive(kept), loaded(kept, "day")).written
    kept.write("latest/manifest.json", b"{}")
    kept.delete("latest/catalog.json")
    report = verify(Archive(kept))
    assert [n.key for n in report.notes] == ["latest/manifest.json", "latest/catalog.json"]
    kept.write("latest/pointer.json", b"{")
    (note,) = verify(Archive(kept)).findings
    assert note.key == "latest/pointer.json"


# Which runs


def test_one_run(kept: LocalStorage) -> None:
    DAMAGES["commit_cut"].do(kept)
    report = verify(Archive(kept), run=place_of(DAY))
    assert (report.runs, report.runs_there, report.faults) == (1, 1, ())


def test_a_sample(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    for number in range(12):
        publish(storage, made(f"run-{number}", began=f"2026-01-31T06:{number:02d}:00Z"))
        storage.delete(layout.run_pointer(f"run-{number}"))

    def looked_at(seed: int, size: int = 4) -> list[str]:
        report = verify(Archive(storage), sample=size, seed=seed)
        assert (report.runs, report.runs_there, report.seed) == (min(size, 12), 12, seed)
        return [f.run_id for f in report.faults]

    assert len(looked_at(1)) == 4
    assert looked_at(1) == looked_at(1)
    assert len({tuple(looked_at(seed)) for seed in range(5)}) > 1
    assert len(looked_at(1, 100)) == 12


def test_a_store_out_of_reach_is_no_damage(kept: LocalStorage) -> None:
    class Gone(Altered):
        def read(self, key: str, *, max_bytes: int | None = None) -> Blob:
            raise StorageError(f"cannot read {key}")

    with pytest.raises(StorageError):
        verify(Archive(Gone(kept)))


def test_an_empty_archive(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    Archive(storage).check(create=True)
    report = verify(Archive(storage))
    assert (report.runs, report.findings) == (0, ())


# The command


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "dbt_recover", "--archive", *map(str, words)]
    return subprocess.run(argv, capture_output=True, text=True, cwd=Path(sys.prefix))


def test_the_command(kept: LocalStorage) -> None:
    sound = run(kept.root, "verify")
    assert (sound.returncode, sound.stderr) == (0, "")
    assert "3 runs, 4 invocations, 32 objects" in sound.stdout
    assert "no fault" in sound.stdout

    DAMAGES["artifact_flipped"].do(kept)
    DAMAGES["run_pointer_gone"].do(kept)
    broken = run(kept.root, "verify", "-o", "json")
    assert broken.returncode == DamagedError.exit_code
    document = json.loads(broken.stdout)
    assert sorted(f["key"] for f in document["faults"]) == [MANIFEST, RUN_POINTER]
    assert document["runs"] == document["runs_there"] == 3
    text = run(kept.root, "verify")
    assert text.returncode == DamagedError.exit_code
    assert MANIFEST in text.stdout
    assert "2 faults" in text.stdout

    assert run(kept.root, "verify", "day").returncode == 0
    sample = run(kept.root, "verify", "--sample", "1", "--seed", "3")
    assert "1 run of 3 (seed 3)" in sample.stdout
    assert run(kept.root, "verify", "day", "--sample", "1").returncode == 2
    assert run(kept.root, "verify", "weekly").returncode == 10


def _records_gone(storage: Storage) -> None:
    for item in list(storage.list(place_of(NIGHT).records())):
        storage.delete(item.key)


def _swap(one: str, other: str) -> Callable[[Storage], None]:
    def do(storage: Storage) -> None:
        bodies = storage.read(one).data, storage.read(other).data
        storage.write(other, bodies[0])
        storage.write(one, bodies[1])

    return do


INDEX_DAMAGES: dict[str, tuple[Callable[[Storage], None], str]] = {
    "run_pointer_cut": (DAMAGES["run_pointer_cut"].do, RUN_POINTER),
    "run_pointer_gone": (DAMAGES["run_pointer_gone"].do, RUN_POINTER),
    "run_pointers_swapped": (_swap(RUN_POINTER, layout.run_pointer("day")), RUN_POINTER),
    "invocation_pointer_cut": (_change(POINTER, _cut), POINTER),
    "invocation_pointer_gone": (DAMAGES["invocation_pointer_gone"].do, POINTER),
    "invocation_pointers_swapped": (
        _swap(POINTER, layout.invocation_pointer(DAY.invocation_id)),
        POINTER,
    ),
    "records_gone": (_records_gone, place_of(NIGHT).records()),
}


@pytest.mark.parametrize("name", INDEX_DAMAGES)
def test_a_run_is_found_though_what_leads_to_it_is_damaged(name: str, kept: LocalStorage) -> None:
    damage, key = INDEX_DAMAGES[name]
    damage(kept)
    asked = [NIGHT.run_id, NIGHT.invocation_id]
    for spec in asked if name != "records_gone" else asked[:1]:
        found = run(kept.root, "verify", spec, "-o", "json")
        assert found.returncode == DamagedError.exit_code, found.stderr
        (fault,) = json.loads(found.stdout)["faults"]
        assert (fault["key"], fault["run_id"]) == (key, NIGHT.run_id)
        assert fault["mend"]


@pytest.mark.skipif(shutil.which("jq") is None, reason="no jq here")
@pytest.mark.parametrize("key", [RUN_POINTER, POINTER])
def test_a_pointer_is_written_anew_as_verify_says(key: str, kept: LocalStorage) -> None:
    kept.delete(key)
    (fault,) = verify(Archive(kept), run=place_of(NIGHT)).faults
    command = fault.mend.partition("write it anew: ")[2]
    written = subprocess.run(["sh", "-c", command], cwd=kept.root, check=True, capture_output=True)
    kept.write(key, written.stdout)
    assert verify(Archive(kept)).findings == ()
    assert locate(Archive(kept), NIGHT.run_id) == place_of(NIGHT)


def test_a_pointer_to_nothing_is_no_run(kept: LocalStorage) -> None:
    kept.write(layout.run_pointer("ghost"), kept.read(RUN_POINTER).data)
    shown = run(kept.root, "show", "ghost")
    assert shown.returncode == DamagedError.exit_code
    assert "points to another run" in shown.stderr
    assert "dbt-recover verify ghost" in shown.stderr
    register_run(Archive(kept), RunInfo("begun", "2026-02-04T06:00:00Z"))
    assert run(kept.root, "verify", "begun").returncode == NotFoundError.exit_code
