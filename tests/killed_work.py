"""What the processes of test_killed.py do: each changes an archive, from its beginning to its end."""

from __future__ import annotations

import os
import time
from datetime import datetime, timezone
from pathlib import Path

from archives import BAD, GOOD, made, place_of
from dbt_recover.archive import Archive
from dbt_recover.context import Identity, Where
from dbt_recover.dbt import run as run_dbt
from dbt_recover.errors import LockedError
from dbt_recover.finished import archive_finished
from dbt_recover.interrupts import Interrupts
from dbt_recover.latest import publish_latest
from dbt_recover.lease import Lease
from dbt_recover.leftovers import deliver_leftovers
from dbt_recover.load import load
from dbt_recover.prune import Policy, plan_prune, prune
from dbt_recover.publish import AlreadyArchived, Publication, Spool
from dbt_recover.storage.base import Storage

RUN = made("r1", BAD, catalog="{}")
OLDER = made("r0", GOOD, began="2026-01-30T06:00:00Z")
WHOLE = made("r2", GOOD, began="2026-02-01T06:00:00Z", catalog="{}")


def quiet(_: str) -> None:
    """Nobody listens."""


def publish_as_exec_does(storage: Storage, spool: str) -> None:
    """What the recorder brings while dbt runs, then the rest and the commit."""
    archive, kept = Archive(storage), Spool(Path(spool))
    archive.check(create=True)
    publication = Publication(archive, kept)
    commit = kept.commit()
    assert commit is not None
    begun = publication.begin(commit.invocation)
    publication.heartbeat(begun)
    publication.send(begun.invocation_id, "graph.json.zst")
    publication.send_segments(begun.invocation_id)
    publication.heartbeat(begun)
    publication.finish(commit)


def deliver(storage: Storage, home: str) -> None:
    """What the next exec does with a spool that waits."""
    deliver_leftovers(Where(Archive(storage), {}, Path(home), quiet), Path(home))


def archive_target(storage: Storage, target: str) -> None:
    """`dbt-recover archive`."""
    where = Where(Archive(storage), {}, Path(target), quiet)
    archive_finished(where, Path(target), Identity(run_id="r1"))


def update_latest(storage: Storage) -> None:
    """latest/, of the run WHOLE."""
    archive = Archive(storage)
    done = publish_latest(archive, load(archive, place_of(WHOLE)))
    assert done.written or done.why == "a newer run is there: r2", done


def hold_lease(storage: Storage) -> None:
    """Take it, look, give it back."""
    with Lease(Archive(storage), place_of(RUN)) as lease:
        lease.fence()


def prune_old(storage: Storage) -> None:
    """Remove all runs but the newest."""
    archive = Archive(storage)
    policy = Policy(keep_last=1)
    prune(archive, plan_prune(archive, policy, datetime(2026, 3, 1, tzinfo=timezone.utc)))


def compete(storage: Storage, spool: str, gate: str, told: str) -> None:
    """Publish at the moment at which all others do; write down whether it was won, or what was
    said instead."""
    archive, kept = Archive(storage), Spool(Path(spool))
    commit = kept.commit()
    assert commit is not None
    while not Path(gate).exists():
        time.sleep(0.001)
    try:
        archive.check(create=True)
        Publication(archive, kept).finish(commit)
        outcome = "won"
    except AlreadyArchived as exc:
        outcome = exc.message
    Path(told).write_text(outcome)


def retry_under_lease(storage: Storage, spool: str, home: str, ttl: float) -> None:
    """As `retry`: dbt runs while the lease is held, and its record is published if it still is.
    What stands for dbt writes down that it was interrupted."""
    archive, kept, here = Archive(storage), Spool(Path(spool)), Path(home)
    commit = kept.commit()
    assert commit is not None
    archive.check(create=True)
    dbt_ = f"trap 'touch {here}/interrupted; exit 2' INT; touch {here}/began; while :; do sleep 0.1; done"
    try:
        with Interrupts() as signals, Lease(archive, place_of(RUN), ttl=ttl) as lease:
            run_dbt(
                ["sh", "-c", dbt_], signals, env=dict(os.environ), cwd=here, keep_going=lease.held
            )
            lease.fence()
            Publication(archive, kept).finish(commit)
            outcome = "published"
    except LockedError as exc:
        outcome = exc.message
    (here / "told").write_text(outcome)
