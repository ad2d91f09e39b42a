"""doctor: each thing that exec and retry need, broken once, is named with what mends it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from archives import BAD, GOOD, PROJECT, Altered, begin, contents, made, place_of, publish
from conftest import Bucket, fresh_bucket
from dbt_recover import checkout as checkouts
from dbt_recover.archive import Archive
from dbt_recover.doctor import Check, Diagnosis, Surroundings, dbt_version, examine
from dbt_recover.errors import (
    DamagedError,
    DbtError,
    NotFoundError,
    StorageError,
    UsageError,
)
from dbt_recover.lease import Holder, Lease
from dbt_recover.model import Invocation, RunInfo
from dbt_recover.publish import Spool, SpoolState
from dbt_recover.storage import Storage, open_storage
from dbt_recover.storage.base import Blob, Entry, Stat
from dbt_recover.storage.local import LocalStorage
from projects import REAL_DBT, Checkout, checkout
from servers import ServerUnavailable, rclone_server

NAMES = [
    *("archive", "write", "read", "list", "clock", "conditions", "delete"),
    *("dbt", "project", "spool", "leases"),
]


@pytest.fixture
def project(tmp_path: Path) -> checkouts.Project:
    return checkouts.read_project(checkout(PROJECT, tmp_path / "here").root)


@pytest.fixture
def local(tmp_path: Path) -> LocalStorage:
    """An archive with one run of the project."""
    store = LocalStorage(tmp_path / "kept")
    publish(store, made("night", GOOD))
    return store


@pytest.fixture
def around(project: checkouts.Project, local: LocalStorage) -> Surroundings:
    """Where everything is as it should be."""
    return with_store(
        Surroundings(lambda: Archive(local), lambda: project, {}, str(REAL_DBT)), local
    )


def with_store(around: Surroundings, storage: Storage) -> Surroundings:
    return replace(around, archive=lambda: Archive(storage))


def line(found: Diagnosis, name: str) -> Check:
    """The worst one of this name."""
    order = ("fail", "warn", "ok")
    return min((c for c in found.checks if c.name == name), key=lambda c: order.index(c.state))


def only(found: Diagnosis, state: str) -> list[str]:
    return [c.name for c in found.checks if c.state == state]


def test_all_is_well(around: Surroundings, local: LocalStorage) -> None:
    before = contents(local)
    found = examine(around)
    assert [c.name for c in found.checks] == NAMES
    assert only(found, "ok") == NAMES
    assert found.exit_code == 0
    assert "version 1.11." in line(found, "dbt").what
    assert "as the archive's latest run" in line(found, "project").what
    assert contents(local) == before


@pytest.mark.cluster
def test_all_is_well_in_a_bucket(around: Surroundings, s3_bucket: Bucket) -> None:
    storage = open_storage(s3_bucket.url, s3_bucket.options)
    publish(storage, made("night", GOOD))
    before = contents(storage)
    found = examine(with_store(around, storage))
    assert only(found, "ok") == NAMES
    assert contents(storage) == before


# The archive


def test_no_archive_yet(around: Surroundings, tmp_path: Path) -> None:
    found = examine(with_store(around, LocalStorage(tmp_path / "nowhere")))
    assert only(found, "warn") == ["archive"]
    assert "exec -- dbt build" in line(found, "archive").mend
    assert found.exit_code == 0


def test_an_archive_of_a_newer_version(around: Surroundings, local: LocalStorage) -> None:
    local.write("archive.json", b'{"format": "dbt-recover", "version": 9}')
    found = examine(around)
    assert only(found, "fail") == ["archive"]
    assert "version 9" in line(found, "archive").what
    assert "upgrade" in line(found, "archive").mend
    assert found.exit_code == DamagedError.exit_code


@pytest.mark.parametrize("error", [UsageError, StorageError, NotFoundError])
def test_no_way_to_the_archive(error: type[Any], around: Surroundings) -> None:
    def archive() -> Archive:
        raise error("there is no way")

    found = examine(replace(around, archive=archive))
    assert [c.name for c in found.checks] == ["archive", "dbt", "project", "spool"]
    assert only(found, "fail") == ["archive"]
    assert line(found, "archive").mend
    assert found.exit_code == error.exit_code


class Refusing(Altered):
    """A store that does not permit one thing."""

    def __init__(self, storage: Storage, what: str) -> None:
        super().__init__(storage)
        self.what = what

    def _check(self, what: str, key: str) -> None:
        if self.what == what and key.startswith("probe/"):
            raise StorageError(f"403 AccessDenied: {what} {key}")

    def write(self, key: str, body: Any, **conditions: Any) -> str:
        self._check("write", key)
        return self.inner.write(key, body, **conditions)

    def read(self, key: str, *, max_bytes: int | None = None) -> Blob:
        self._check("read", key)
        return self.inner.read(key, max_bytes=max_bytes)

    def list(self, prefix: str, *, since: str = "") -> Iterator[Entry]:
        self._check("list", prefix)
        return self.inner.list(prefix, since=since)

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        self._check("delete", key)
        self.inner.delete(key, if_match=if_match)


@pytest.mark.parametrize("what", ["write", "read", "list", "delete"])
def test_a_missing_right(what: str, around: Surroundings, local: LocalStorage) -> None:
    found = examine(with_store(around, Refusing(local, what)))
    assert only(found, "fail") == [what]
    assert "AccessDenied" in line(found, what).what
    assert "s3:" in line(found, what).mend
    assert found.exit_code == StorageError.exit_code


def test_a_cache_in_front_of_the_store(around: Surroundings, local: LocalStorage) -> None:
    class Cache(Altered):
        def read(self, key: str, *, max_bytes: int | None = None) -> Blob:
            blob = self.inner.read(key, max_bytes=max_bytes)
            return blob._replace(data=b"old") if key.startswith("probe/") else blob

    found = examine(with_store(around, Cache(local)))
    assert only(found, "fail") == ["read"]
    assert "cache" in line(found, "read").mend


def test_a_store_that_ignores_conditions(around: Surroundings, local: LocalStorage) -> None:
    class Careless(Altered):
        def write(self, key: str, body: Any, **conditions: Any) -> str:
            return self.inner.write(key, body)

    found = examine(with_store(around, Careless(local)))
    assert only(found, "fail") == ["conditions"]
    assert found.exit_code == StorageError.exit_code
    assert "If-None-Match" in line(found, "conditions").mend


def test_the_store_is_asked_for_conditions_itself(
    around: Surroundings, local: LocalStorage
) -> None:
    class Asked(Altered):
        def preconditions_honoured(self) -> bool:
            return False

    assert only(examine(with_store(around, Asked(local))), "fail") == ["conditions"]


@pytest.mark.cluster
def test_rclone_ignores_conditions(around: Surroundings, tmp_path: Path) -> None:
    try:
        with rclone_server(tmp_path) as server:
            bucket = fresh_bucket(server)
            found = examine(with_store(around, open_storage(bucket.url, bucket.options)))
    except ServerUnavailable as reason:
        pytest.skip(str(reason))
    assert only(found, "fail") == ["conditions"]
    assert found.exit_code == StorageError.exit_code


def test_clocks(around: Surroundings, local: LocalStorage) -> None:
    class Ahead(Altered):
        def clock(self) -> float:
            return time.time() + 100

    class Stopped(Altered):
        def stat(self, key: str) -> Stat | None:
            found = self.inner.stat(key)
            return found._replace(age=3600.0) if found and key.startswith("probe/") else found

    behind = examine(with_store(around, Ahead(local)))
    assert only(behind, "warn") == ["clock"]
    assert "100 s behind the store" in line(behind, "clock").what
    assert behind.exit_code == 0
    old = examine(with_store(around, Stopped(local)))
    assert only(old, "fail") == ["clock"]
    assert "3600 s old" in line(old, "clock").what


def test_leases(around: Surroundings, local: LocalStorage) -> None:

    with Lease(Archive(local), place_of(made("night"))):
        held = line(examine(around), "leases")
    assert (held.state, held.exit_code) == ("warn", 0)
    assert "run night is being retried by" in held.what
    gone = Holder(1, "oncall@laptop, process 1", "another machine", "1:1", "n", ttl=0.0)
    local.write("leases/night.json", msgspec.json.encode(gone))
    local.write("leases/odd.json", b"{")
    time.sleep(0.01)
    left = line(examine(around), "leases")
    assert "oncall@laptop, process 1 was stopped" in left.what
    assert "takes over" in left.mend


# This machine


def test_no_dbt(around: Surroundings) -> None:
    found = examine(replace(around, dbt="/nowhere/dbt"))
    assert only(found, "fail") == ["dbt"]
    assert found.exit_code == DbtError.exit_code
    assert "--dbt PATH" in line(found, "dbt").mend


def _script(path: Path, text: str) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def test_a_dbt_that_is_no_program(around: Surroundings, tmp_path: Path) -> None:
    found = examine(replace(around, dbt=_script(tmp_path / "bin" / "dbt", "#!/nowhere/sh\n")))
    assert only(found, "fail") == ["dbt"]
    broken = _script(tmp_path / "bin" / "dbt2", "#!/bin/sh\necho broken >&2\nexit 3\n")
    found = examine(replace(around, dbt=broken))
    assert "broken" in line(found, "dbt").what


@pytest.mark.parametrize(
    "said,state,version",
    [
        ("Core:\n  - installed: 1.9.4\n  - latest: 1.11.0", "ok", "1.9.4"),
        ("dbt 2.0.0-preview.12", "ok", "2.0.0-preview.12"),
        ("Core:\n  - installed: 1.4.1", "warn", "1.4.1"),
        ("Core:\n  - installed: 1.13.0", "warn", "1.13.0"),
        ("hello", "warn", ""),
    ],
)
def test_the_version_of_a_script(
    said: str, state: str, version: str, around: Surroundings, tmp_path: Path
) -> None:
    dbt = _script(tmp_path / "bin" / "dbt", f"#!/bin/sh\ncat <<'.'\n{said}\n.\n")
    assert dbt_version(dbt, {"PATH": "/usr/bin:/bin"}) == version
    assert line(examine(replace(around, dbt=dbt)), "dbt").state == state


def test_the_version_of_an_environment(tmp_path: Path) -> None:
    # Through a link, as pipx and uv make them; dbt itself is not started.
    (tmp_path / "dbt").symlink_to(REAL_DBT)
    began = time.monotonic()
    assert dbt_version(str(tmp_path / "dbt"), {}).startswith("1.11.")
    assert time.monotonic() - began < 30


def test_no_project(around: Surroundings) -> None:
    found = examine(replace(around, project=lambda: None))
    assert only(found, "warn") == ["project"]
    assert "spool" not in [c.name for c in found.checks]
    assert "--project-dir" in line(found, "project").mend


def test_a_project_that_cannot_be_read(around: Surroundings) -> None:
    def project() -> checkouts.Project:
        raise UsageError("no dbt_project.yml in /x", hint="go there")

    found = examine(replace(around, project=project))
    assert only(found, "fail") == ["project"]
    assert found.exit_code == UsageError.exit_code


def test_another_project(
    around: Surroundings, project: checkouts.Project, local: LocalStorage
) -> None:
    other = msgspec.structs.replace(project, name="elsewhere")
    found = examine(replace(around, project=lambda: other))
    assert only(found, "warn") == ["project"]
    assert f"latest run is of project {PROJECT}" in line(found, "project").what
    # Of a run at work, too.
    begin(local, made("now", BAD, began="2026-02-03T06:00:00Z"))
    assert only(examine(replace(around, project=lambda: other)), "warn") == ["project"]


def test_records_that_wait(
    around: Surroundings, project: checkouts.Project, local: LocalStorage, tmp_path: Path
) -> None:
    home = project.root / ".dbt-recover" / "spool"
    invocation = Invocation("i", RunInfo("weekly", "2026-01-31T06:00:00Z"), machine="elsewhere")
    spool = Spool.create(home, SpoolState(local.url, [], invocation))
    waiting = line(examine(around), "spool")
    assert waiting.state == "warn"
    assert "1 records wait" in waiting.what
    assert "weekly" in waiting.what
    assert "archive --resume" in waiting.mend
    assert only(examine(replace(around, spool=tmp_path / "other")), "warn") == []
    (spool.path / "spool.json").write_text("{")
    assert line(examine(around), "spool").exit_code == DamagedError.exit_code
    shutil.rmtree(spool.path)
    (home.with_name("fenced") / "1").mkdir(parents=True)
    fenced = line(examine(around), "spool")
    assert (fenced.state, "lost their lease" in fenced.what) == ("warn", True)


def test_the_first_failure_decides(around: Surroundings, local: LocalStorage) -> None:
    both = replace(with_store(around, Refusing(local, "read")), dbt="/nowhere/dbt")
    found = examine(both)
    assert only(found, "fail") == ["read", "dbt"]
    assert found.exit_code == StorageError.exit_code


# The command


def test_the_command(tmp_path: Path) -> None:
    here: Checkout = checkout(PROJECT, tmp_path / "here")
    store = LocalStorage(tmp_path / "kept")
    publish(store, made("night", GOOD))
    words = ("--archive", store.root, "--dbt", REAL_DBT, "doctor")
    ran = here.recover(*words)
    assert (ran.code, ran.err) == (0, "")
    assert [row.split()[1] for row in ran.out.splitlines()] == NAMES
    document = here.recover(*words, "-o", "json").json
    assert document["ok"]
    assert [c["name"] for c in document["checks"]] == NAMES
    assert here.calls == []

    broken = here.recover("--archive", store.root, "--dbt", "/nowhere/dbt", "doctor", "-o", "json")
    assert broken.code == DbtError.exit_code
    assert not broken.json["ok"]
    assert here.recover("--archive", "s4://x/y", "doctor").code == UsageError.exit_code
