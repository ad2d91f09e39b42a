"""The process that writes is killed at every step, in a directory and in a bucket: afterwards the run is invisible, open or complete, never in between, and doing it again completes it. And
many that publish the same invocation at once: one wins, the others are told.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import pytest

import killed_work
from archives import contents, place_of, publish, spooled
from conftest import Bucket, fresh_bucket
from dbt_recover.archive import Archive
from dbt_recover.errors import NotFoundError
from dbt_recover.latest import (
    FILES,
    POINTER,
    faults_of_latest,
    publish_latest,
    run_of_latest,
)
from dbt_recover.load import load
from dbt_recover.naming import resolve
from dbt_recover.publish import Spool, find_spools
from dbt_recover.verify import verify
from killed_work import OLDER, RUN, WHOLE
from killing import Place, one_client, start, until_done
from projects import ARTIFACTS
from servers import S3Server


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody pulls the plug here."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    with one_client():
        yield


@dataclass
class Home:
    """Makes places for archives, each empty, and keeps what belongs to them apart."""

    tmp: Path
    bucket: Bucket | None

    def place(self) -> Place:
        """A new one."""
        name = uuid.uuid4().hex[:8]
        if self.bucket is None:
            return Place(str(self.tmp / name / "archive"))
        return Place(f"s3://{self.bucket.name}/{name}", self.bucket.options)

    def spool(self) -> tuple[str, str]:
        """A directory of spools with one in it, of RUN; and that one's path."""
        home = self.tmp / uuid.uuid4().hex[:8] / "spools"
        _, spool = spooled(Archive(Place(str(self.tmp / "none")).open()), RUN, home)
        return str(home), str(spool.path)


ON_MOTO, ON_SEAWEEDFS = (
    pytest.param(name, marks=pytest.mark.cluster) for name in ("moto", "seaweedfs")
)


@pytest.fixture(params=["directory", ON_MOTO])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Home:
    """In each kind of store. Who writes alone can do so on moto, which is quick."""
    if request.param == "directory":
        return Home(tmp_path, None)
    server: S3Server = request.getfixturevalue(request.param)
    return Home(tmp_path, fresh_bucket(server))


def state(place: Place, run_id: str = "r1") -> str:
    """invisible, open or complete: all that a reader can ask agrees on it."""
    listed = {s.run.run_id: s.status for s in Archive(place.open()).runs()}
    archive = Archive(place.open())
    try:
        found = resolve(archive, run_id)
        (recorded,) = archive.load(found)
    except NotFoundError:
        assert run_id not in listed
        return "invisible"
    assert listed[run_id] == "failed"  # RUN has a failed node; an open one is lost
    if not recorded.complete:
        assert recorded.invocation.end == "lost"
        return "open"
    for artifact in archive.commit_of(found, recorded.invocation.invocation_id).artifacts:
        archive.artifact_bytes(artifact)
    assert {r.status for r in recorded.results.values()} == {"success", "error", "skipped"}
    return "complete"


def in_order(seen: list[str], *expected: str) -> None:
    """The run only ever becomes more visible, and each state was met."""
    assert list(dict.fromkeys(seen)) == list(expected)


def sound(place: Place) -> None:
    """Nothing is at fault, nothing is left over."""
    report = verify(Archive(place.open()))
    assert report.findings == ()
    assert not [k for k in contents(place.open()) if k.startswith(("live/", "leases/"))]


def test_exec_s_publishing(home: Home) -> None:
    seen = []
    for place, spool in until_done(
        killed_work.publish_as_exec_does, lambda: (home.place(), home.spool()[1])
    ):
        seen.append(state(place))
        assert not verify(Archive(place.open())).faults
        killed_work.publish_as_exec_does(place.open(), spool)
        assert state(place) == "complete"
        sound(place)
    in_order(seen, "invisible", "open", "complete")


def adopted(place: Place, spools: str) -> tuple[Place, str]:
    """The spools, as if kept for this archive."""
    (spool,) = [Spool(p.parent) for p in Path(spools).glob("*/spool.json")]
    spool.save(msgspec.structs.replace(spool.state(), archive=place.open().url))
    return place, spools


def test_the_delivery_of_a_spool(home: Home) -> None:
    seen = []
    for place, spools in until_done(
        killed_work.deliver, lambda: adopted(home.place(), home.spool()[0])
    ):
        seen.append(state(place))
        killed_work.deliver(place.open(), spools)
        assert state(place) == "complete"
        sound(place)
        # Nothing waits; the rest of a directory that was being removed goes with the next one.
        assert not find_spools(Path(spools))
        spooled(Archive(place.open()), RUN, Path(spools))
        assert len(list(Path(spools).iterdir())) == 1
    in_order(seen, "invisible", "open", "complete")


def test_archive(home: Home) -> None:
    def make() -> tuple[Place, str]:
        target = home.tmp / uuid.uuid4().hex[:8] / "target"
        shutil.copytree(ARTIFACTS / "good", target)
        return home.place(), str(target)

    whole = None
    for place, target in until_done(killed_work.archive_target, make):
        assert not verify(Archive(place.open())).faults
        killed_work.archive_target(place.open(), target)
        sound(place)
        keys = sorted(k for k in contents(place.open()) if not k.startswith("data/"))
        whole = whole or keys
        assert keys == whole


def test_latest(home: Home) -> None:
    def make() -> tuple[Place]:
        place = home.place()
        for one in (OLDER, WHOLE):
            publish(place.open(), one)
        archive = Archive(place.open())
        assert publish_latest(archive, load(archive, place_of(OLDER))).written
        return (place,)

    seen = []
    for (place,) in until_done(killed_work.update_latest, make):
        # Files of one run, or a reader is told that they are not.
        storage = place.open()
        mixed = list(faults_of_latest(storage))
        which = {storage.read(f"latest/{n}").data for n in FILES if storage.stat(f"latest/{n}")}
        assert which
        seen.append("mixed" if mixed else run_of_latest(storage))
        killed_work.update_latest(storage)
        assert (list(faults_of_latest(storage)), run_of_latest(storage)) == ([], "r2")
        assert b'"updating"' not in storage.read(POINTER).data
        sound(place)
    in_order([*seen, "r2"], "r0", "mixed", "r2")


def test_a_lease(home: Home) -> None:
    def make() -> tuple[Place]:
        place = home.place()
        Archive(place.open()).check(create=True)
        return (place,)

    for (place,) in until_done(killed_work.hold_lease, make, least=1):
        # The dead holder is nobody: the next one takes over at once, and gives it back.
        killed_work.hold_lease(place.open())
        assert [e.key for e in place.open().list("")] == ["archive.json"]


def test_prune(home: Home) -> None:
    def make() -> tuple[Place]:
        place = home.place()
        for one in (OLDER, WHOLE):
            publish(place.open(), one)
        return (place,)

    seen = []
    for (place,) in until_done(killed_work.prune_old, make):
        there = [s.run.run_id for s in Archive(place.open()).runs()]
        assert there in (["r2", "r0"], ["r2"])
        if "r0" in there:
            archive = Archive(place.open())
            (recorded,) = archive.load(resolve(archive, "r0"))
            assert recorded.complete
        seen.append("there" if "r0" in there else "gone")
        killed_work.prune_old(place.open())
        assert [s.run.run_id for s in Archive(place.open()).runs()] == ["r2"]
        sound(place)
        assert not [k for k in contents(place.open()) if "r0" in k]
    in_order(seen, "there", "gone")


# ---- many at once ------------------------------------------------------------------------------------


@pytest.mark.parametrize("home", ["directory", ON_SEAWEEDFS], indirect=True)
@pytest.mark.parametrize("count", [2, 16])
def test_of_several_processes_exactly_one_publishes(home: Home, count: int) -> None:
    place = home.place()
    gate = home.tmp / "gate"
    children = []
    for number in range(count):
        one = replace(RUN, catalog=f'{{"by": {number}}}')
        commit, spool = spooled(Archive(place.open()), one, home.tmp / f"spool-{number}")
        spool.keep_commit(msgspec.structs.replace(commit, nonce=f"nonce-{number}"))
        told = str(home.tmp / f"nonce-{number}")
        children.append(start(killed_work.compete, place, str(spool.path), str(gate), told))
    gate.touch()
    assert [child.wait() for child in children] == [0] * count
    outcomes = {p.name: p.read_text() for p in home.tmp.glob("nonce-*")}

    archive = Archive(place.open())
    found = resolve(archive, "r1")
    winner = archive.commit_of(found, RUN.invocation_id)
    already = f"invocation {RUN.invocation_id} is already archived, in run r1"
    assert outcomes == {f"nonce-{n}": already for n in range(count)} | {winner.nonce: "won"}
    # What is committed is what the winner had: its own catalog, whole.
    named = {a.name: a for a in winner.artifacts}
    by = winner.nonce.removeprefix("nonce-")
    assert archive.artifact_bytes(named["catalog.json"]) == f'{{"by": {by}}}'.encode()
    assert not verify(archive).faults
    assert state(place) == "complete"
