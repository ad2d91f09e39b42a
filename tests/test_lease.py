"""One retry at a time per run: who holds it is named, who died is followed, who was stopped for too long
can no longer publish, and clocks that disagree do no harm.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

import killed_work
from archives import Altered, contents, made, place_of, spooled
from conftest import Bucket
from dbt_recover import lease as lease_module
from dbt_recover import prune as prune_module
from dbt_recover.archive import Archive
from dbt_recover.errors import DamagedError, LockedError, NotFoundError
from dbt_recover.lease import Holder, Lease, unlock
from dbt_recover.storage.local import LocalStorage
from killed_work import RUN
from killing import Place, start

PLACE = place_of(RUN)


@pytest.fixture(params=["directory", pytest.param("moto", marks=pytest.mark.cluster)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Of an archive without runs."""
    if request.param == "directory":
        made_place = Place(str(tmp_path / "archive"))
    else:
        bucket: Bucket = request.getfixturevalue("s3_bucket")
        made_place = Place(bucket.url, bucket.options)
    Archive(made_place.open()).check(create=True)
    return made_place


@pytest.fixture
def local(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "archive")


def on_another_machine(
    patch: pytest.MonkeyPatch, *modules: ModuleType, name: str = "another"
) -> None:
    """From now on this process is not where the holders are: their pids say nothing to it."""
    for module in modules or (lease_module, prune_module):
        patch.setattr(module, "this_machine", lambda: name)


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for it; a minute is longer than anything here takes."""
    give_up = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < give_up, f"waited in vain: {what}"
        time.sleep(0.05)


def taken(archive: Archive) -> Lease | None:
    """The lease, if it can be had."""
    try:
        return Lease(archive, PLACE).__enter__()
    except LockedError:
        return None


@pytest.fixture
def stopped(place: Place, tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """A retry that holds the lease for two seconds at a time, and is stopped while its dbt runs;
    its pid, and where it writes what becomes of it."""
    home = tmp_path / "retry"
    home.mkdir()
    _, spool = spooled(Archive(place.open()), RUN, tmp_path / "spools")
    child = start(killed_work.retry_under_lease, place, str(spool.path), str(home), 2.0)
    until((home / "began").exists, "dbt began")
    os.kill(child.pid, signal.SIGSTOP)
    yield child.pid, home
    os.kill(child.pid, signal.SIGKILL)
    child.wait()


def test_stopped_past_its_expiry_it_cannot_publish(
    place: Place, stopped: tuple[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pid, home = stopped
    on_another_machine(monkeypatch)
    archive = Archive(place.open())
    found: list[Lease] = []

    def had() -> bool:
        lease = taken(archive)
        found.extend([lease] if lease else [])
        return bool(found)

    until(had, "it expired")
    (ours,) = found
    os.kill(pid, signal.SIGCONT)
    until((home / "told").exists, "the stopped one has ended")
    said = (home / "told").read_text()
    assert "was lost" in said
    assert "not published" in said
    assert (home / "interrupted").exists()  # its dbt
    assert list(Archive(place.open()).runs()) == []
    ours.fence()
    ours.__exit__(None, None, None)
    assert [k for k in contents(place.open()) if k != "archive.json"] == []


def test_stopped_and_nobody_came_it_stops_all_the_same(
    place: Place, stopped: tuple[int, Path]
) -> None:
    # Whether somebody took it over meanwhile cannot be known while dbt runs on.
    pid, home = stopped
    time.sleep(2.5)
    os.kill(pid, signal.SIGCONT)
    until((home / "told").exists, "it has ended")
    assert "was lost" in (home / "told").read_text()
    assert (home / "interrupted").exists()


def test_on_the_same_machine_a_stopped_holder_is_no_dead_one(
    place: Place, stopped: tuple[int, Path]
) -> None:
    time.sleep(2.5)
    with pytest.raises(LockedError, match=f"process {stopped[0]}"):
        Lease(Archive(place.open()), PLACE).__enter__()


def test_asked_while_it_is_being_renewed_it_is_still_ours(local: LocalStorage) -> None:
    written = threading.Event()

    class Slow(Altered):
        """What is written is there some time before its writer knows."""

        def write(self, key: str, body: Any, **conditions: Any) -> str:
            etag = super().write(key, body, **conditions)
            if conditions.get("if_match") is not None:
                written.set()
                time.sleep(0.5)
            return etag

    archive = Archive(Slow(local))
    archive.check(create=True)
    with Lease(archive, PLACE, ttl=12.0) as lease:  # renewed after two seconds
        assert written.wait(60)
        lease.fence()


def test_the_holder_is_named(local: LocalStorage) -> None:
    with Lease(Archive(local), PLACE, airflow_run="manual__1"):
        with pytest.raises(LockedError) as caught:
            Lease(Archive(local), PLACE).__enter__()
        assert caught.value.exit_code == 11
        for part in (f"process {os.getpid()}", "Airflow run manual__1", f"run {RUN.run_id}"):
            assert part in caught.value.message
        assert f"dbt-recover unlock {RUN.run_id}" in caught.value.hint
        with Lease(Archive(local), place_of(made("other"))):
            pass  # another run is another lease


def test_two_hosts_name_each_other(local: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    for mine, theirs in (("a", "b"), ("b", "a")):
        monkeypatch.setattr(lease_module, "who", lambda mine=mine: f"oncall@{mine}, process 1")
        on_another_machine(monkeypatch, name=mine)
        with Lease(Archive(local), PLACE):
            monkeypatch.setattr(
                lease_module, "who", lambda theirs=theirs: f"oncall@{theirs}, process 1"
            )
            on_another_machine(monkeypatch, name=theirs)
            with pytest.raises(LockedError) as caught:
                Lease(Archive(local), PLACE).__enter__()
            told.append(caught.value.message)
    assert ["oncall@a" in told[0], "oncall@b" in told[1]] == [True, True]


def test_who_died_is_followed(local: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = Holder(1, "gone@lost, process 1", "elsewhere", "1:1", "n", generation=3, ttl=60.0)
    etag = local.write(PLACE.lease, msgspec.json.encode(dead))
    with pytest.raises(LockedError, match=r"gone@lost"):
        Lease(Archive(local), PLACE).__enter__()
    os.utime(local.root / PLACE.lease, (time.time() - 61,) * 2)
    with Lease(Archive(local), PLACE):
        holder = msgspec.json.decode(local.read(PLACE.lease).data, type=Holder)
        assert holder.generation == 4
        assert local.read(PLACE.lease).etag != etag


def test_unlock(local: LocalStorage) -> None:
    archive = Archive(local)
    with Lease(archive, PLACE) as held:
        assert f"process {os.getpid()}" in unlock(Archive(local), PLACE)
        with pytest.raises(LockedError, match="was lost"):
            held.fence()
    with pytest.raises(NotFoundError, match="is not locked"):
        unlock(archive, PLACE)
    local.write(PLACE.lease, b"{")
    with pytest.raises(DamagedError) as caught:
        Lease(archive, PLACE).__enter__()
    assert "unlock" in caught.value.hint
    assert "damaged" in unlock(archive, PLACE)
    # exec --resume holds the lease of one step.
    with Lease(archive, PLACE.of_step("staging")):
        assert f"process {os.getpid()}" in unlock(Archive(local), PLACE)
        assert contents(local) == {}


# ---- clocks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("minutes", [-10, 10])
def test_a_machine_whose_clock_is_off_takes_nothing_over(
    place: Place, minutes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time
    with Lease(Archive(place.open()), PLACE) as held:
        with pytest.MonkeyPatch.context() as patch:
            on_another_machine(patch)
            if place.s3:
                # Of a bucket the store's Date counts; and a signature 15 minutes off is refused.
                patch.setattr(time, "time", lambda: now() + minutes * 60)
                other = Archive(place.open())
            else:
                other = Archive(SharedDisk(Path(place.url), minutes * 60.0, patch))
            with pytest.raises(LockedError):
                Lease(other, PLACE).__enter__()
        held.fence()


class SharedDisk(LocalStorage):
    """A directory on a file server, seen from a machine whose clock is off."""

    def __init__(self, root: Path, off: float, patch: pytest.MonkeyPatch) -> None:
        super().__init__(root)
        now = time.time
        patch.setattr(time, "time", lambda: now() + off)


def test_a_run_at_work_on_a_shared_disk_is_seen_after_a_first_write(
    local: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    local.write("live/x", b"1")
    other = SharedDisk(local.root, 600.0, monkeypatch)
    other.write("y", b"1")
    assert other.read("live/x").age < 60
    assert abs(other.clock() - (time.time() - 600)) < 60
