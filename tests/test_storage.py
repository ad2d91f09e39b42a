"""What every store must do, asked of each of them: a directory, S3 as moto has it, S3 as a real
server (SeaweedFS) has it, Azure as its own emulator (Azurite) has it, Google as a stand-in of ours
has it. What only one of them can do wrong is in test_storage_local.py and
test_storage_s3.py and test_storage_objects.py.
"""

from __future__ import annotations

import io
import os
import threading
import tracemalloc
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import pytest

from conftest import Bucket, fresh_bucket
from dbt_recover.errors import DamagedError, UsageError
from dbt_recover.storage import Storage, open_storage
from dbt_recover.storage.base import Entry, MissingKey, PreconditionFailed
from other_stores import OtherStore

MIB = 1 << 20
ON_S3 = [pytest.param(name, marks=pytest.mark.cluster) for name in ("moto", "seaweedfs")]
ON_OTHERS = [pytest.param(name, marks=pytest.mark.cluster) for name in ("azurite", "google")]


@pytest.fixture(scope="session")
def bucket_on(request: pytest.FixtureRequest) -> Callable[[str], Bucket]:
    """One bucket on each server for all tests; each test has a prefix of its own."""
    made: dict[str, Bucket] = {}

    def bucket(name: str) -> Bucket:
        if name not in made:
            made[name] = fresh_bucket(request.getfixturevalue(name))
        return made[name]

    return bucket


@pytest.fixture(params=["directory", *ON_S3, *ON_OTHERS])
def store(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    bucket_on: Callable[[str], Bucket],
    monkeypatch: pytest.MonkeyPatch,
) -> Storage:
    """An empty store, of each kind."""
    if request.param == "directory":
        return open_storage(str(tmp_path / "archive"))
    if request.param in ("azurite", "google"):
        other: OtherStore = request.getfixturevalue(request.param)
        for name, value in other.environment.items():
            monkeypatch.setenv(name, value)
        return open_storage(f"{other.url}/{uuid.uuid4().hex}")
    bucket = bucket_on(request.param)
    return open_storage(f"s3://{bucket.name}/{uuid.uuid4().hex}", bucket.options)


def fill(store: Storage, keys: list[str]) -> None:
    """An object under each key, its body the key's last character, so that all have one byte."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: store.write(key, key[-1:].encode()), keys))


def keys_of(entries: Iterator[Entry]) -> list[str]:
    """The keys of a listing, as it gives them."""
    return [entry.key for entry in entries]


# ---- reading and writing ---------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 3 * MIB + 1])
def test_reads_back_what_was_written(store: Storage, size: int) -> None:
    body = os.urandom(size)
    etag = store.write("runs/1/x.bin", body)

    blob = store.read("runs/1/x.bin")
    assert blob.data == body
    assert blob.etag == etag
    assert blob.age >= 0
    with store.open("runs/1/x.bin") as stream:
        assert stream.read() == body
    assert list(store.list("")) == [Entry("runs/1/x.bin", size)]


def test_a_stream_is_stored_from_its_start(store: Storage) -> None:
    stream = io.BytesIO(b"0123456789")
    stream.seek(7)
    store.write("x", stream)
    assert store.read("x").data == b"0123456789"


def test_reads_a_stream_in_pieces(store: Storage) -> None:
    store.write("x", b"ab" * 50_000)
    with store.open("x") as stream:
        assert stream.read(3) == b"aba"
        assert stream.read(4) == b"baba"
        assert len(stream.read()) == 100_000 - 7
        assert stream.read(1) == b""


def test_a_plain_write_replaces(store: Storage) -> None:
    first = store.write("x", b"one")
    second = store.write("x", b"two")
    assert first != second
    assert store.read("x").data == b"two"


def test_refuses_to_read_more_than_expected(store: Storage) -> None:
    store.write("x", b"12345")
    assert store.read("x", max_bytes=5).data == b"12345"
    with pytest.raises(DamagedError, match=r"x has 5 bytes, more than the 4"):
        store.read("x", max_bytes=4)


def test_an_empty_store_has_nothing(store: Storage) -> None:
    assert list(store.list("")) == []
    assert list(store.list("runs/2026-01-31/")) == []
    assert store.folders("") == []
    assert store.folders("runs/") == []
    assert store.stat("x") is None
    store.delete("a/b/x")
    with pytest.raises(MissingKey, match="x"):
        store.read("x")
    with pytest.raises(MissingKey, match="a/b/x"):
        store.open("a/b/x")


def test_stat_says_size_etag_and_age(store: Storage) -> None:
    etag = store.write("a/x", b"12345")
    stat = store.stat("a/x")
    assert stat is not None
    assert (stat.size, stat.etag) == (5, etag)
    # An hour allows for any clock; that the age is not counted from 1970, nor negative, shows.
    assert 0 <= stat.age < 3600
    assert store.stat("a") is None


@pytest.mark.slow
@pytest.mark.parametrize("store", ["directory", *ON_S3, ON_OTHERS[0]], indirect=True)
def test_a_large_object_takes_little_memory(store: Storage, tmp_path: Path) -> None:
    # Not on the stand-in for Google, which keeps objects in the memory of this process.
    size = 200 * MIB
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as file:
        file.truncate(size - 1)
        file.seek(size - 1)
        file.write(b"!")

    tracemalloc.start()
    try:
        with sparse.open("rb") as body:
            etag = store.write("large", body)
        got = 0
        with store.open("large") as stream:
            while chunk := stream.read(MIB):
                got += len(chunk)
                last = chunk[-1:]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    stat = store.stat("large")
    store.delete("large")

    assert stat is not None
    assert (stat.size, stat.etag) == (size, etag)
    assert (got, last) == (size, b"!")
    assert peak < 32 * MIB


# ---- keys --------------------------------------------------------------------------------------

ODD_NAMES = [
    "2026-01-31/060000~manual__2026-01-31T06%3A00%3A00%2B00%3A00/commit.json",
    "runs/~1~failed~3~12~5.0~20260131T060012~build~~run~",
    "!_.*'()~@=+,%-",
    ".hidden/.x",
    "..x/...",
    "-rf",
    "%2E%2E/%00",
    "a+b/c+d",
    "a=1,b=2/@/(1)",
    "CASE/case",
    "x" * 240 + "/" + "y" * 240,
]


@pytest.mark.parametrize("key", ODD_NAMES, ids=lambda key: key[:20])
def test_odd_but_allowed_names(store: Storage, key: str) -> None:
    store.write(key, key.encode(), if_absent=True)
    assert store.read(key).data == key.encode()
    assert keys_of(store.list("")) == [key]
    assert keys_of(store.list(key)) == [key]
    assert store.folders("") == [key.partition("/")[0]] * (1 if "/" in key else 0)
    stat = store.stat(key)
    assert stat is not None
    assert stat.size == len(key)
    store.delete(key)
    assert store.stat(key) is None


@pytest.mark.parametrize(
    "key",
    ["", "../x", "a/../x", "./x", "/abs", "a//b", "a/", "a\\b", "a\nb", "a\0b", "a b", "é", "a#b",
     "x" * 241, "/".join(["x" * 200] * 5)],
)  # fmt: skip
def test_refuses_what_is_no_key(store: Storage, key: str) -> None:
    attempts: list[Callable[[], object]] = [
        lambda: store.read(key),
        lambda: store.open(key),
        lambda: store.write(key, b""),
        lambda: store.stat(key),
        lambda: store.delete(key),
    ]
    for attempt in attempts:
        with pytest.raises(UsageError, match="not a key"):
            attempt()


@pytest.mark.parametrize("prefix", ["../", "/", "a//", "a/../b", "a\\", "a\0"])
def test_refuses_to_list_outside(store: Storage, prefix: str) -> None:
    with pytest.raises(UsageError):
        list(store.list(prefix))
    with pytest.raises(UsageError):
        store.folders(prefix)


# ---- listing -----------------------------------------------------------------------------------


def test_lists_thousands_in_order(store: Storage) -> None:
    # More than two pages of S3, in folders and beside them.
    keys = [f"runs/2026-01-{i % 28 + 1:02d}/{i:05d}.json" for i in range(2300)]
    keys += [f"runs/2026-01-{i % 28 + 1:02d}-{i}" for i in range(200)]
    fill(store, keys)
    keys.sort()

    entries = list(store.list("runs/"))
    assert [entry.key for entry in entries] == keys
    assert {entry.size for entry in entries} == {1}
    late = [key for key in keys if key >= "runs/2026-01-20"]
    assert keys_of(store.list("runs/", since="2026-01-20")) == late
    day = [key for key in keys if key.startswith("runs/2026-01-07/")]
    assert keys_of(store.list("runs/2026-01-07/")) == day
    assert store.folders("runs/") == [f"2026-01-{day:02d}" for day in range(1, 29)]


def test_order_is_that_of_keys_and_not_of_a_file_tree(store: Storage) -> None:
    keys = ["A", "a!/x", "a+b", "a-", "a-b-c/x", "a-b/x", "a.b/c.d/e", "a.b/c/e", "a/b", "a/c-d"]
    keys += ["a/c.d/x", "a/c/d", "a/c0", "a0/x", "a=1/x", "aa", "b", "~"]
    assert keys == sorted(keys)
    fill(store, keys[::-1])

    for prefix in ("", "a", "a-", "a-b", "a-b/", "a.", "a/", "a/c", "a/c.", "b", "c/"):
        expected = [key for key in keys if key.startswith(prefix)]
        assert keys_of(store.list(prefix)) == expected
    for prefix in ("", "a/", "a.b/", "c/"):
        for since in ["A", "a", "a-", "a-b", "a-b-c", "a.", "a0", "a1", "b", "c", "c.", "zzz", "~"]:
            below = [(key, key[len(prefix) :]) for key in keys if key.startswith(prefix)]
            expected = [key for key, rest in below if rest.split("/")[0] >= since]
            assert keys_of(store.list(prefix, since=since)) == expected, (prefix, since)
    with pytest.raises(UsageError, match="must end in a slash"):
        store.list("a", since="a")


def test_a_prefix_need_not_be_a_folder(store: Storage) -> None:
    fill(store, ["runs/2025-12-31/x", "runs/2026-01-01/x", "runs/2026-01-02/x", "run", "runsx"])
    assert keys_of(store.list("runs/2026-01-0")) == ["runs/2026-01-01/x", "runs/2026-01-02/x"]
    assert keys_of(store.list("runs/2026-01-02/x")) == ["runs/2026-01-02/x"]
    assert keys_of(store.list("run")) == [
        *("run", "runs/2025-12-31/x", "runs/2026-01-01/x", "runs/2026-01-02/x", "runsx")
    ]
    assert keys_of(store.list("runs/2026-01-02/x/")) == []


def test_folders_are_those_with_something_below(store: Storage) -> None:
    fill(store, ["a/b/c/x", "a/b-c/x", "a/file", "z"])
    assert store.folders("") == ["a"]
    assert store.folders("a/") == ["b", "b-c"]
    assert store.folders("a/b/c/") == []
    assert store.folders("nowhere/") == []
    with pytest.raises(UsageError, match="must end in a slash"):
        store.folders("a")


@pytest.mark.parametrize("store", ["directory", ON_S3[0], *ON_OTHERS], indirect=True)
def test_a_folder_goes_with_its_last_object(store: Storage) -> None:
    # SeaweedFS still names it for some seconds.
    fill(store, ["a/gone/deep/x", "a/stays/x", "a/stays/y"])
    store.delete("a/gone/deep/x")
    store.delete("a/stays/x")
    assert store.folders("a/") == ["stays"]


def test_lists_while_others_write(store: Storage) -> None:
    before = [f"k/{i:03d}" for i in range(0, 100, 2)]
    fill(store, before)
    listing = store.list("k/")
    first = next(listing)
    fill(store, [f"k/{i:03d}" for i in range(1, 100, 2)])
    store.delete("k/098")
    listed = [first.key, *keys_of(listing)]
    # What came or went meanwhile may be there or not; what was there all the time is there once.
    assert set(before) - {"k/098"} <= set(listed)
    assert listed == sorted(set(listed))


# ---- conditions --------------------------------------------------------------------------------


def test_if_absent_never_replaces(store: Storage) -> None:
    etag = store.write("x", b"first", if_absent=True)
    with pytest.raises(PreconditionFailed):
        store.write("x", b"second", if_absent=True)
    # The same bytes by another writer are not "ours" either: there is one winner.
    with pytest.raises(PreconditionFailed):
        store.write("x", io.BytesIO(b"first"), if_absent=True)
    blob = store.read("x")
    assert (blob.data, blob.etag) == (b"first", etag)
    store.delete("x")
    store.write("x", b"third", if_absent=True)


def test_if_match_replaces_only_what_was_seen(store: Storage) -> None:
    first = store.write("lease", b"one")
    second = store.write("lease", b"two", if_match=first)
    with pytest.raises(PreconditionFailed):
        store.write("lease", b"three", if_match=first)
    assert store.read("lease").data == b"two"
    assert store.read("lease").etag == second
    store.delete("lease")
    with pytest.raises(PreconditionFailed):
        store.write("lease", b"four", if_match=second)
    assert store.stat("lease") is None


def test_delete(store: Storage) -> None:
    first = store.write("a/x", b"one")
    second = store.write("a/x", b"two")
    store.write("a/y", b"beside")
    with pytest.raises(PreconditionFailed):
        store.delete("a/x", if_match=first)
    assert store.read("a/x").data == b"two"
    store.delete("a/x", if_match=second)
    assert store.stat("a/x") is None
    store.delete("a/x")
    store.delete("a/x", if_match=second)
    assert keys_of(store.list("")) == ["a/y"]


@pytest.mark.parametrize("store", ["directory", ON_S3[1], *ON_OTHERS], indirect=True)
def test_of_sixteen_writers_one_wins(store: Storage) -> None:
    # Not on moto, whose conditional writes are not safe against races.
    barrier = threading.Barrier(16)

    def compete(key: str, body: bytes, etag: str | None) -> bytes | None:
        barrier.wait(60)
        try:
            store.write(key, body, if_absent=etag is None, if_match=etag)
        except PreconditionFailed:
            return None
        return body

    with ThreadPoolExecutor(16) as pool:
        for key in ("leases/a", "leases/b"):
            for condition in ("if_absent", "if_match"):
                etag = store.read(key).etag if condition == "if_match" else None
                # Never the same bytes twice: the same bytes may well have the same etag.
                bodies = [f"{condition} {number}".encode() for number in range(16)]
                results = pool.map(compete, [key] * 16, bodies, [etag] * 16)
                winners = [body for body in results if body is not None]
                assert winners == [store.read(key).data]
    assert keys_of(store.list("")) == ["leases/a", "leases/b"]


def test_a_reader_never_sees_half_of_a_write(store: Storage) -> None:
    bodies = [bytes([letter]) * (MIB + letter) for letter in b"abc"]
    store.write("x", bodies[0])
    done = threading.Event()

    def rewrite() -> None:
        try:
            for turn in range(12):
                body: bytes | BinaryIO = bodies[turn % 3]
                store.write("x", body if turn % 2 else io.BytesIO(bodies[turn % 3]))
        finally:
            done.set()

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(rewrite)
        while not done.is_set():
            assert store.read("x").data in bodies
            assert [e.size for e in store.list("")] in [[len(body)] for body in bodies]
        writer.result()
