"""How many requests a command makes of an object store, whatever the size of the archive."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from archives import BAD, GOOD, made, publish
from conftest import Bucket
from dbt_recover.storage import open_storage
from projects import ARTIFACTS, Checkout, checkout
from servers import Proxy, proxy_to

pytestmark = pytest.mark.cluster


@pytest.fixture
def here(s3_bucket: Bucket, tmp_path: Path) -> Iterator[tuple[Checkout, Proxy]]:
    """A project whose archive in a bucket has a failed run of today and whole ones of other days; and
    the proxy that sees what is asked."""
    storage = open_storage(s3_bucket.url, s3_bucket.options)
    for day in range(1, 6):
        publish(storage, made(f"night-{day}", GOOD, began=f"2026-01-0{day}T06:00:00Z"))
    publish(storage, made("broken", BAD, began="2026-01-03T07:00:00Z"))
    with proxy_to(s3_bucket.server) as proxy:
        project = checkout("two_independent_failures", tmp_path / "here")
        shutil.copytree(ARTIFACTS / "good", project.root / "target")
        environ = {**s3_bucket.environment, "AWS_ENDPOINT_URL": proxy.endpoint_url}
        project = replace(
            project, environ={**project.environ, **environ, "DBT_RECOVER_ARCHIVE": s3_bucket.url}
        )
        assert project.recover("archive", "--run-id", "today").code == 0
        proxy.seen.clear()
        yield project, proxy


def test_a_day_s_runs(here: tuple[Checkout, Proxy]) -> None:
    project, proxy = here
    ran = project.recover("runs", "--since", "2026-01-03", "--until", "2026-01-03", "-o", "json")
    assert [run["run_id"] for run in ran.json["runs"]] == ["broken", "night-3"]
    assert len(proxy.seen) <= 3, proxy.seen
    assert not [line for line in proxy.seen if "2026-01-04" in line]


@pytest.mark.parametrize("command", ["show", "plan"])
@pytest.mark.parametrize("run", ["today", "latest-failed"])
def test_one_run(command: str, run: str, here: tuple[Checkout, Proxy]) -> None:
    project, proxy = here
    ran = project.recover(command, run, "-o", "json")
    assert (ran.code, ran.json["run"]["run_id"]) == (0, "today")
    assert len(proxy.seen) <= 6, proxy.seen
    assert not [line for line in proxy.seen if "manifest" in line]
    assert {line.partition(" ")[0] for line in proxy.seen} == {"GET"}


def test_plan_of_an_older_run(here: tuple[Checkout, Proxy]) -> None:
    # Later ones are found by one listing, however many days they are on; two are read.
    project, proxy = here
    ran = project.recover("plan", "broken", "-o", "json")
    assert "built_later" in [w["code"] for w in ran.json["warnings"]], ran.json
    assert len([line for line in proxy.seen if "list-type" in line]) == 1
    assert len(proxy.seen) <= 6 + 2 * 2, proxy.seen


def test_archive(here: tuple[Checkout, Proxy]) -> None:
    # What has been archived already costs next to nothing.
    project, proxy = here
    assert project.recover("archive").code == 0
    assert not [
        line for line in proxy.seen if line.startswith("PUT") and "archive.json" not in line
    ]
