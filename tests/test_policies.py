"""The IAM policies of docs/archive-format.md allow every request that a reader, a writer and a pruner
make, and a reader's allow no change; each request is seen as botocore is about to send it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime, timezone
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

from archives import BAD, GOOD, Made, begin, loaded, made, place_of, publish, spooled
from conftest import Bucket
from dbt_recover.archive import Archive
from dbt_recover.doctor import Surroundings, examine
from dbt_recover.latest import publish_latest
from dbt_recover.lease import Lease, unlock
from dbt_recover.prune import Policy, plan_prune, prune
from dbt_recover.publish import Publication
from dbt_recover.state_dir import fetch
from dbt_recover.storage import open_storage
from dbt_recover.storage.s3 import S3Storage
from dbt_recover.verify import verify

FORMAT = Path(__file__).parents[1] / "docs" / "archive-format.md"
BUCKET, PREFIX = "company-dbt-runs", "analytics"
ACTIONS = {
    "PutObject": "s3:PutObject",
    "GetObject": "s3:GetObject",
    "HeadObject": "s3:GetObject",
    "DeleteObject": "s3:DeleteObject",
    "ListObjectsV2": "s3:ListBucket",
}
FAILED, WHOLE = made("night", BAD), made("day", GOOD, began="2026-02-01T06:00:00Z", catalog="{}")


def statements(*roles: str) -> list[dict[str, Any]]:
    """Of these policies, together."""
    found = re.findall(r"<!-- policy: (\w+) -->\n```json\n(.*?)```", FORMAT.read_text(), re.DOTALL)
    policies = {role: json.loads(text)["Statement"] for role, text in found}
    return [one for role in roles for one in policies[role]]


def several(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def allowed(action: str, resource: str, prefix: str, policy: list[dict[str, Any]]) -> bool:
    """Whether a statement allows it, as IAM matches names."""
    for one in policy:
        wanted = one.get("Condition", {}).get("StringLike", {}).get("s3:prefix")
        if (
            action in several(one["Action"])
            and any(fnmatchcase(resource, r) for r in several(one["Resource"]))
            and (wanted is None or any(fnmatchcase(prefix, w) for w in several(wanted)))
        ):
            return True
    return False


Request = tuple[str, str, str]


@pytest.fixture
def requests(s3_bucket: Bucket) -> tuple[S3Storage, list[Request]]:
    """An archive with a failed and a whole run, and what was asked of it since."""
    storage = open_storage(f"s3://{s3_bucket.name}/{PREFIX}", s3_bucket.options)
    assert isinstance(storage, S3Storage)
    for one in (FAILED, WHOLE):
        publish(storage, one)
    seen: list[Request] = []

    def note(params: dict[str, Any], model: Any, **_: Any) -> None:
        assert params["Bucket"] == s3_bucket.name
        key = f"/{params['Key']}" if "Key" in params else ""
        seen.append((ACTIONS[model.name], f"arn:aws:s3:::{BUCKET}{key}", params.get("Prefix", "")))

    storage._client.meta.events.register("provide-client-params.s3", note)
    return storage, seen


def reads(storage: S3Storage, tmp: Path) -> None:
    """runs, show, plan, fetch, verify; of a run that is there and of one that is not."""
    archive = Archive(storage)
    archive.check()
    list(archive.runs())
    run = loaded(storage, "night")
    loaded(storage, FAILED.invocation_id)
    (tmp / "state").mkdir()
    fetch(archive, run, tmp / "state", None, {})
    assert not verify(Archive(storage)).faults
    storage.clock()


def writes(storage: S3Storage, tmp: Path) -> None:
    """exec, retry, unlock, doctor, latest/."""
    archive = Archive(storage)
    archive.check(create=True)
    other = made("dawn", BAD, began="2026-01-15T06:00:00Z")
    begin(storage, other, lives=True)
    commit, spool = spooled(archive, other, tmp)
    spool.keep_bytes("manifest.early.json", b"{}")
    publication = Publication(archive, spool)
    publication.begin(commit.invocation)
    publication.send(other.invocation_id, "manifest.early.json.zst")
    publication.finish(commit)
    publish_latest(archive, loaded(storage, "day"))
    with Lease(Archive(storage), place_of(FAILED)) as lease:
        lease.fence()
        unlock(Archive(storage), place_of(FAILED))
    archive.settle(place_of(FAILED), 2, 4, "")
    found = examine(Surroundings(lambda: Archive(storage), lambda: None, {}))
    assert {c.state for c in found.checks if c.name in ("write", "delete", "clock")} == {"ok"}


def prunes(storage: S3Storage, _: Path) -> None:
    """All runs but the last."""
    archive = Archive(storage)
    now = datetime(2026, 3, 1, tzinfo=timezone.utc)
    assert prune(archive, plan_prune(archive, Policy(keep_last=1), now)).objects


ROLES: list[tuple[Callable[[S3Storage, Path], None], tuple[str, ...], set[str]]] = [
    (reads, ("reader",), {"s3:ListBucket", "s3:GetObject"}),
    (writes, ("reader", "writer"), set(ACTIONS.values())),
    (prunes, ("reader", "writer", "pruner"), set(ACTIONS.values())),
]


@pytest.mark.cluster
@pytest.mark.parametrize("act, roles, actions", ROLES, ids=[r[1][-1] for r in ROLES])
def test_a_role_s_policy_allows_what_it_does(
    act: Callable[[S3Storage, Path], None],
    roles: tuple[str, ...],
    actions: set[str],
    requests: tuple[S3Storage, list[Request]],
    tmp_path: Path,
) -> None:
    storage, seen = requests
    if act is prunes:
        publish(storage, newer())
    seen.clear()
    act(storage, tmp_path)
    policy = statements(*roles)
    assert {r for r in seen if not allowed(*r, policy)} == set()
    assert {action for action, _, _ in seen} == actions
    if len(roles) > 1:
        assert {r for r in seen if not allowed(*r, statements(*roles[:-1]))}


def newer() -> Made:
    """So that the failed run is not the last of its pipeline, which prune keeps."""
    return made("later", GOOD, began="2026-02-02T06:00:00Z")


@pytest.mark.parametrize(
    "action, key, roles, answer",
    [
        ("s3:PutObject", "archive.json", ("reader",), False),
        ("s3:DeleteObject", "leases/x.json", ("reader",), False),
        ("s3:DeleteObject", "runs/d/r/i/commit.json", ("reader", "writer"), False),
        ("s3:DeleteObject", "data/d/r/i/results.json.zst", ("reader", "writer"), False),
        ("s3:DeleteObject", "data/d/r/i/results.json.zst", ("reader", "writer", "pruner"), True),
    ],
)
def test_a_role_may_do_no_more(action: str, key: str, roles: tuple[str, ...], answer: bool) -> None:
    resource = f"arn:aws:s3:::{BUCKET}/{PREFIX}/{key}"
    assert allowed(action, resource, "", statements(*roles)) is answer
    outside = resource.replace(PREFIX, "finance")
    assert not allowed(action, outside, "", statements("reader", "writer", "pruner"))
