"""A store that ignores the conditions of writes cannot hold leases or commits: it is found out before
the first of them, cheaply, and refused.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from archives import BAD, made, place_of, publish
from conftest import Bucket, fresh_bucket
from dbt_recover.archive import Archive
from dbt_recover.errors import StorageError
from dbt_recover.lease import Lease
from dbt_recover.storage import open_storage
from projects import ARTIFACTS, Checkout, checkout
from servers import S3Server, ServerUnavailable, proxy_to, rclone_server

RUN = made("nightly-1", BAD)


@pytest.fixture(scope="module")
def careless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[S3Server, Path]]:
    """`rclone serve s3`, and the directory it serves."""
    home = tmp_path_factory.mktemp("rclone")
    try:
        with rclone_server(home) as server:
            yield server, home
    except ServerUnavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture
def bucket(careless: tuple[S3Server, Path]) -> tuple[Bucket, Path]:
    """A bucket there, with an archive that was copied into it, and where its files are."""
    server, home = careless
    made_bucket = fresh_bucket(server)
    root = home / made_bucket.name / "archive"
    publish(open_storage(str(root)), RUN)
    return made_bucket, root


@pytest.fixture
def project(tmp_path: Path) -> Checkout:
    """A project with artifacts of a finished dbt."""
    here = checkout("two_independent_failures", tmp_path / "here")
    shutil.copytree(ARTIFACTS / "good", here.root / "target")
    return here


def files(root: Path) -> dict[str, bytes]:
    """Everything there."""
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.mark.cluster
@pytest.mark.parametrize("words", [("archive",), ("retry",)], ids=lambda w: w[0])
def test_commits_and_leases_are_refused(
    words: tuple[str, ...], bucket: tuple[Bucket, Path], project: Checkout
) -> None:
    there, root = bucket
    before = files(root)
    here = replace(project, environ={**project.environ, **there.environment})
    ran = here.recover("--archive", there.url, *words)
    assert ran.code == StorageError.exit_code, ran
    assert "accepts writes whatever their condition (If-None-Match, If-Match)" in ran.err
    assert "Traceback" not in ran.err
    assert files(root) == before

    seen = here.recover("--archive", there.url, "runs")
    assert (seen.code, "nightly-1" in seen.out) == (0, True)


@pytest.mark.cluster
def test_no_archive_is_begun_there(careless: tuple[S3Server, Path]) -> None:
    there = fresh_bucket(careless[0])
    for _ in range(2):
        storage = open_storage(there.url, there.options)
        with pytest.raises(StorageError, match="whatever their condition"):
            Archive(storage).check(create=True)
        assert [e.key for e in storage.list("")] == ["archive.json"]


@pytest.mark.cluster
def test_a_lease_beside_dated_folders_is_refused(careless: tuple[S3Server, Path]) -> None:
    server, home = careless
    there = fresh_bucket(server)
    shutil.copytree(ARTIFACTS / "good", home / there.name / "archive" / "2026-01-31")
    archive = Archive(open_storage(there.url, there.options))
    archive.check()
    assert archive.dated
    with pytest.raises(StorageError, match="whatever their condition"):
        Lease(archive, place_of(RUN)).__enter__()


@pytest.mark.cluster
def test_asking_costs_three_requests_once(s3_bucket: Bucket) -> None:
    publish(open_storage(s3_bucket.url, s3_bucket.options), RUN)
    with proxy_to(s3_bucket.server) as proxy:
        storage = open_storage(s3_bucket.url, {"endpoint_url": proxy.endpoint_url})
        before = storage.read("archive.json").data
        proxy.seen.clear()
        for _ in range(3):
            Archive(storage).check_conditions()
        assert [line.partition(" ")[0] for line in proxy.seen] == ["GET", "PUT", "PUT"]
        assert storage.read("archive.json").data == before


def test_aws_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    # Nobody answers for AWS here: a request would fail.
    Archive(open_storage("s3://bucket/archive", {"region": "eu-central-1"})).check_conditions()


def test_nor_is_a_directory(tmp_path: Path) -> None:
    Archive(open_storage(str(tmp_path))).check_conditions()
    assert list(tmp_path.iterdir()) == []
