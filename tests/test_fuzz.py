"""Records, journals, leases and pointers that are not what was written: any bytes end in one of our
errors, which name the object, and never in a traceback or in a lie. Half a minute in all.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from archives import BAD, GOOD, begin, made, place_of, publish
from dbt_recover.archive import Archive
from dbt_recover.errors import RecoverError
from dbt_recover.latest import publish_latest, run_of_latest
from dbt_recover.lease import Lease, unlock
from dbt_recover.load import load
from dbt_recover.naming import resolve
from dbt_recover.plan import Policy, make_plan
from dbt_recover.prune import leases
from dbt_recover.storage.local import LocalStorage
from dbt_recover.verify import verify

WHOLE, FAILED, LOST = (
    made("r1", GOOD),
    made("r2", BAD, began="2026-01-31T07:00:00Z"),
    made("r3", BAD),
)
CALM = settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalStorage:
    """A whole run, a failed one, a lost one, latest/ and a lease."""
    monkeypatch.setattr("os.fsync", lambda fd: None)
    storage = LocalStorage(tmp_path / "archive")
    publish(storage, WHOLE)
    publish(storage, FAILED)
    begin(storage, LOST, lives=True)
    archive = Archive(storage)
    publish_latest(archive, load(archive, place_of(WHOLE)))
    lease = Lease(archive, place_of(FAILED))
    lease._take()
    return storage


def everything(storage: LocalStorage) -> list[Callable[[], object]]:
    """All that reads an archive."""

    def read(run_id: str) -> None:
        archive = Archive(storage)
        archive.check()
        run = load(archive, resolve(archive, run_id))
        make_plan(run.state, run.graph, Policy())

    return [
        lambda: list(Archive(storage).runs()),
        lambda: resolve(Archive(storage), "r"),
        *(lambda run_id=run_id: read(run_id) for run_id in ("r1", "r2", "r3", "latest-failed")),
        lambda: leases(storage),
        lambda: run_of_latest(storage),
        lambda: Lease(Archive(storage), place_of(FAILED))._take(),
        lambda: verify(Archive(storage)),
    ]


def survives(storage: LocalStorage) -> None:
    """Each reader comes to its end or says what is wrong."""
    for read in everything(storage):
        try:
            read()
        except RecoverError as said:
            told = (bool(said.message), said.exit_code)
            assert told in {(True, code) for code in (2, 10, 11, 13)}, said  # noqa: PT017


def mutate(data: bytes, kind: str, seed: int, text: bytes) -> bytes:
    """Otherwise than it was."""
    dice = random.Random(seed)
    if not data:
        return text
    at = dice.randrange(len(data))
    if kind == "flip":
        return data[:at] + bytes([data[at] ^ (1 << dice.randrange(8))]) + data[at + 1 :]
    if kind == "cut":
        return data[:at]
    if kind == "insert":
        return data[:at] + text + data[at:]
    if kind == "swap":
        end = min(len(data), at + dice.randrange(1, 40))
        return data[:at] + text + data[end:]
    return text


MUTATION = st.tuples(
    st.integers(0, 10_000),
    st.sampled_from(["flip", "cut", "insert", "swap", "all"]),
    st.integers(0, 1 << 30),
    st.one_of(
        st.binary(max_size=60),
        st.sampled_from(
            [
                b"null",
                b"[]",
                b"{}",
                b'"x"',
                b"1e999",
                b"-1",
                b"9" * 400,
                b"NaN",
                b"\xff\xfe",
                b"../../x",
                b"[" * 5000,
                b'{"version":1}',
                b'{"version":99}',
                b'{"version":-1}',
                b"\\ud800",
            ]
        ),
    ),
)


@CALM
@given(changes=st.lists(MUTATION, min_size=1, max_size=3), inside=st.booleans())
@example(changes=[(0, "all", 0, b"")], inside=False)
def test_any_object_can_be_anything(
    changes: list[tuple[int, str, int, bytes]], inside: bool, store: LocalStorage
) -> None:
    files = sorted(p for p in store.root.rglob("*") if p.is_file())
    before: dict[Path, bytes] = {}
    try:
        for which, kind, seed, text in changes:
            path = files[which % len(files)]
            data = before.setdefault(path, path.read_bytes())
            if inside and path.suffix == ".zst":
                # As somebody who can write could: whole to zstd, and other than it was.
                plain = zstandard.ZstdDecompressor().decompress(data)
                changed = zstandard.ZstdCompressor().compress(mutate(plain, kind, seed, text))
            else:
                changed = mutate(path.read_bytes(), kind, seed, text)
            path.write_bytes(changed)
        survives(store)
    finally:
        for path, data in before.items():
            path.write_bytes(data)


def test_the_untouched_archive_is_read(store: LocalStorage) -> None:
    assert not verify(Archive(store)).faults
    assert unlock(Archive(store), place_of(FAILED))
    survives(store)
