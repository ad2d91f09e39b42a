"""What can go wrong on the way to Google's and Azure's stores. What every store does is asked of them
in test_storage.py.
"""

from __future__ import annotations

import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from dbt_recover.archive import Archive
from dbt_recover.errors import LockedError, NotFoundError, StorageError, UsageError
from dbt_recover.layout import RunPlace
from dbt_recover.lease import Lease
from dbt_recover.storage import open_storage
from dbt_recover.storage.base import MissingKey, PreconditionFailed, Storage
from dbt_recover.storage.objects import ObjectStorage
from other_stores import OtherStore, azure_environment, google_environment
from servers import Fault, Proxy, S3Server, proxy_to, xml_error

pytestmark = pytest.mark.cluster


def opened(url: str) -> ObjectStorage:
    """A prefix of its own."""
    storage = open_storage(f"{url}/{uuid.uuid4().hex}")
    assert isinstance(storage, ObjectStorage)
    return storage


@pytest.fixture(params=["azurite", "google"])
def other(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> OtherStore:
    """Each of them, reached without a detour."""
    store: OtherStore = request.getfixturevalue(request.param)
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    return store


@pytest.fixture
def behind_proxy(
    other: OtherStore, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[ObjectStorage, Proxy]]:
    """Reached through a proxy that breaks what passes."""
    made = google_environment if other.scheme == "gs" else azure_environment
    with proxy_to(S3Server(other.address)) as proxy:
        for name, value in made(proxy.endpoint_url).items():
            monkeypatch.setenv(name, value)
        yield opened(other.url), proxy


# ---- writes whose answer is lost -----------------------------------------------------------------


@pytest.mark.parametrize("condition", ["plain", "if_absent", "if_match"])
def test_a_lost_answer_to_our_own_write_is_success(
    behind_proxy: tuple[ObjectStorage, Proxy], condition: str
) -> None:
    storage, proxy = behind_proxy
    before = storage.write("x", b"before") if condition == "if_match" else None
    proxy.faults.append(Fault("PUT", lose_answer=True))
    etag = storage.write("x", b"mine", if_absent=condition == "if_absent", if_match=before)
    blob = storage.read("x")
    assert (blob.data, blob.etag) == (b"mine", etag)


@pytest.mark.parametrize("condition", ["if_absent", "if_match"])
def test_a_lost_answer_and_then_another_writer(
    behind_proxy: tuple[ObjectStorage, Proxy], condition: str
) -> None:
    storage, proxy = behind_proxy
    before = storage.write("x", b"before") if condition == "if_match" else None

    def another() -> None:
        storage.write("x", b"theirs")

    proxy.faults.append(Fault("PUT", lose_answer=True, then=another))
    with pytest.raises(PreconditionFailed):
        storage.write("x", b"mine", if_absent=condition == "if_absent", if_match=before)
    assert storage.read("x").data == b"theirs"


# ---- what may pass ---------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [500, 503, 429])
def test_what_may_pass_is_tried_again(
    behind_proxy: tuple[ObjectStorage, Proxy], status: int
) -> None:
    storage, proxy = behind_proxy
    for method in ("PUT", "GET"):
        proxy.faults.append(Fault(method, 2, answer=xml_error(status, "ServerBusy")))
    storage.write("x", b"1", if_absent=True)
    assert storage.read("x").data == b"1"


def test_but_not_for_ever(behind_proxy: tuple[ObjectStorage, Proxy]) -> None:
    storage, proxy = behind_proxy
    storage.write("x", b"1")
    proxy.seen.clear()
    proxy.faults.append(Fault("GET", 1000, answer=xml_error(503, "ServerBusy", "later")))
    with pytest.raises(StorageError, match=r"Reading .*/x failed, after several tries: ServerBusy"):
        storage.read("x")
    assert len([line for line in proxy.seen if line.startswith("GET")]) == 5


def test_a_broken_read_goes_on_where_it_stopped(behind_proxy: tuple[ObjectStorage, Proxy]) -> None:
    storage, proxy = behind_proxy
    body = bytes(range(256)) * 4000
    storage.write("x", body)
    proxy.faults.append(Fault("GET", cut_at=100_000))
    assert storage.read("x").data == body


def test_a_read_that_always_breaks_off_fails(behind_proxy: tuple[ObjectStorage, Proxy]) -> None:
    storage, proxy = behind_proxy
    storage.write("x", b"0123456789" * 1000)
    proxy.faults.append(Fault("GET", 1000, cut_at=0))
    with pytest.raises(StorageError, match="x"):
        storage.read("x")


# ---- what does not -----------------------------------------------------------------------------------


def test_a_bucket_that_is_missing(other: OtherStore) -> None:
    storage = open_storage(f"{other.scheme}://no-such-bucket/x")
    for act in (
        lambda: storage.read("k"),
        lambda: storage.write("k", b""),
        lambda: storage.stat("k"),
        lambda: list(storage.list("")),
        lambda: storage.folders(""),
    ):
        with pytest.raises(NotFoundError, match="no such bucket") as caught:
            act()
        assert not isinstance(caught.value, MissingKey)


def test_what_is_not_permitted_says_what_it_takes(
    behind_proxy: tuple[ObjectStorage, Proxy],
) -> None:
    storage, proxy = behind_proxy
    proxy.faults.append(Fault("PUT", answer=xml_error(403, "AccessDenied", "not you")))
    with pytest.raises(StorageError, match="not permitted: AccessDenied: not you") as caught:
        storage.write("x", b"1")
    assert "Storage Blob Data Contributor" in caught.value.hint
    assert len([line for line in proxy.seen if line.startswith("PUT")]) == 1


def test_credentials_that_are_wrong(azurite: OtherStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in azure_environment(azurite.address, "d3Jvbmc=").items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StorageError, match="does not accept the credentials") as caught:
        opened(azurite.url).read("x")
    assert "AZURE_STORAGE_ACCOUNT_KEY" in caught.value.hint


@pytest.mark.parametrize(
    "url, hint",
    [("az://container/x", "AZURE_STORAGE_ACCOUNT_NAME"), ("gs://bucket/x", "GOOGLE_APPLICATION")],
)
def test_no_credentials(url: str, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere.json")
    with pytest.raises(UsageError) as caught:
        open_storage(url)
    assert hint in caught.value.hint


def test_nobody_at_the_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in azure_environment("http://127.0.0.1:9").items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StorageError, match="after several tries") as caught:
        open_storage("az://container/x").read("k")
    assert "network" in caught.value.hint


@pytest.mark.parametrize(
    "url", ["gs://", "az:///x", "gs://b", "gs://bucket/a b", "az://bucket/" + "x" * 130]
)
def test_what_is_no_bucket(url: str) -> None:
    with pytest.raises(UsageError):
        open_storage(url)


def test_without_the_extra_it_is_named(tmp_path: Path) -> None:
    # In a process that cannot import obstore, as one that was installed without it.
    code = (
        "import sys; sys.modules['obstore'] = None\n"
        "from dbt_recover.cli import main\n"
        "sys.argv = ['dbt-recover', '--archive', 'gs://bucket/x', 'runs']\n"
        "main()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert "gs://bucket/x needs obstore" in ended.stderr
    assert "pip install 'dbt-recover[objects]'" in ended.stderr
    assert "Traceback" not in ended.stderr


# ---- time and leases -----------------------------------------------------------------------------------


def test_age_is_by_the_clock_of_the_store(
    azurite: OtherStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in azurite.environment.items():
        monkeypatch.setenv(name, value)
    storage = opened(azurite.url)
    storage.write("x", b"1")
    now = time.time
    # This machine's clock is ten minutes off; nothing is asked of it.
    monkeypatch.setattr(time, "time", lambda: now() + 600)
    stat = storage.stat("x")
    assert stat is not None
    assert stat.age < 60
    assert storage.read("x").age < 60
    assert abs(storage.clock() - now()) < 60


def test_a_store_that_does_not_tell_the_time_makes_nothing_old(
    other: OtherStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = opened(other.url)
    storage.write("x", b"1")
    monkeypatch.setattr(storage, "_clock", type(storage._clock)("http://127.0.0.1:9"))
    assert storage.read("x").age == 0.0
    with pytest.raises(StorageError, match="does not tell the time"):
        storage.clock()


def test_preconditions_are_honoured(other: OtherStore) -> None:
    storage = opened(other.url)
    assert storage.preconditions_honoured()
    assert list(storage.list("")) == []


def test_one_lease(other: OtherStore) -> None:
    storage: Storage = opened(other.url)
    archive, place = Archive(storage), RunPlace.of("r1", "2026-01-31T06:00:00Z")
    archive.check(create=True)
    with Lease(archive, place) as held:
        with pytest.raises(LockedError, match="being retried by"), Lease(archive, place):
            raise AssertionError("two held it")
        held.fence()
    with Lease(archive, place):
        pass
    assert storage.stat(place.lease) is None
