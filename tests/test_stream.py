"""An archived file, piece by piece: what is not what was written is never taken for it."""

from __future__ import annotations

import hashlib
import tracemalloc
from pathlib import Path

import pytest
import zstandard

from dbt_recover.errors import DamagedError
from dbt_recover.model import Artifact
from dbt_recover.storage.local import LocalStorage
from dbt_recover.stream import intact, save

KEY = "data/2026-01-31/060000~r/i/manifest.json.zst"
BODY = b'{"nodes": {}}' * 1000


def artifact(body: bytes = BODY, key: str = KEY) -> Artifact:
    return Artifact("manifest.json", key, hashlib.sha256(body).hexdigest(), len(body))


@pytest.fixture
def store(tmp_path: Path) -> LocalStorage:
    kept = LocalStorage(tmp_path / "kept")
    kept.write(KEY, zstandard.compress(BODY))
    return kept


def test_the_file_as_it_was(store: LocalStorage, tmp_path: Path) -> None:
    assert b"".join(intact(store, artifact())) == BODY
    save(store, artifact(), tmp_path / "manifest.json")
    assert (tmp_path / "manifest.json").read_bytes() == BODY


@pytest.mark.parametrize("body", [b"", b"x"])
def test_small_files(body: bytes, store: LocalStorage) -> None:
    store.write(KEY, zstandard.compress(body))
    assert b"".join(intact(store, artifact(body))) == body


@pytest.mark.parametrize("key", ["archive.json", "runs/x/y/z/commit.json", "../../etc/passwd", ""])
def test_a_key_outside_of_data_is_refused(key: str, store: LocalStorage) -> None:
    with pytest.raises(DamagedError, match="outside of data/"):
        list(intact(store, artifact(key=key)))


@pytest.mark.parametrize(
    "stored,said",
    [
        (b"", "cut short"),
        (zstandard.compress(BODY)[:-3], "cut short"),
        (b"plain", "damaged"),
        (zstandard.compress(BODY[:-1]), "cut short"),
        (zstandard.compress(BODY + b"x"), "grows beyond"),
        (zstandard.compress(BODY[:-1] + b"x"), "not what was written"),
    ],
)
def test_damage_is_named_and_nothing_is_left(
    stored: bytes, said: str, store: LocalStorage, tmp_path: Path
) -> None:
    store.write(KEY, stored)
    with pytest.raises(DamagedError, match=said) as caught:
        save(store, artifact(), tmp_path / "manifest.json")
    assert KEY in caught.value.message
    assert not (tmp_path / "manifest.json").exists()


def test_a_missing_file(store: LocalStorage, tmp_path: Path) -> None:
    store.delete(KEY)
    with pytest.raises(DamagedError, match="is missing"):
        save(store, artifact(), tmp_path / "manifest.json")


def test_a_bomb_and_a_large_file_take_little_memory(store: LocalStorage, tmp_path: Path) -> None:
    size = 200_000_000
    digest = hashlib.sha256()
    for _ in range(20):
        digest.update(bytes(size // 20))
    store.write(KEY, zstandard.compress(bytes(size)))
    large = Artifact("manifest.json", KEY, digest.hexdigest(), size)
    tracemalloc.start()
    try:
        save(store, large, tmp_path / "large")
        with pytest.raises(DamagedError, match="grows beyond the 10 bytes"):
            list(intact(store, Artifact("x", KEY, "", 10)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (tmp_path / "large").stat().st_size == size
    assert peak < 32_000_000
