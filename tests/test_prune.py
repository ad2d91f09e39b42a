"""prune: what is kept and why, and that a run goes as a whole or not at all."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archives import (
    BAD,
    GOOD,
    Altered,
    Dying,
    Killed,
    Made,
    begin,
    contents,
    loaded,
    made,
    place_of,
    publish,
    until_done,
)
from conftest import Bucket
from dbt_recover import layout
from dbt_recover.archive import Archive
from dbt_recover.errors import NotFoundError, StorageError, UsageError
from dbt_recover.latest import publish_latest
from dbt_recover.layout import RunPlace
from dbt_recover.lease import Lease
from dbt_recover.prune import Candidate, Decision, Policy, decide, plan_prune, prune
from dbt_recover.records import Verdict
from dbt_recover.storage import Storage, open_storage
from dbt_recover.storage.local import LocalStorage
from dbt_recover.verify import verify

NOW = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)
EVERYTHING = Policy(keep_days=0)

# The decision


def candidate(
    run_id: str, days: float = 10, status: str = "success", command: str = "build"
) -> Candidate:
    """A run that began so many days ago."""
    began = (NOW - timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Candidate(RunPlace.of(run_id, began), status, command)


def kept(decision: Decision) -> list[str]:
    return [judged.run.run_id for judged in decision.keep]


def reasons(decision: Decision) -> dict[str, str]:
    return {j.run.run_id: "; ".join(j.reasons) for j in (*decision.keep, *decision.drop)}


RUNS = [
    candidate("etl/1", 50, "success"),
    candidate("etl/2", 40, "success"),
    candidate("etl/3", 30, "failed"),
    candidate("ml/1", 35, "recovered"),
    candidate("a", 45, "success", "build"),
    candidate("b", 20, "failed", "build"),
    candidate("c", 10, "success", "build"),
    candidate("d", 5, "failed", "test"),
]


def test_by_age() -> None:
    decision = decide(RUNS, Policy(keep_days=15), {}, NOW)
    assert kept(decision) == ["d", "c", "etl/3"]
    said = reasons(decision)
    assert said["c"] == "within 15 days"
    assert said["b"] == "older than 15 days"
    assert said["etl/3"] == "the last run of `etl` has failed, and it is that run"


def test_by_count() -> None:
    decision = decide(RUNS, Policy(keep_last=3), {}, NOW)
    assert kept(decision) == ["d", "c", "b", "etl/3"]
    assert reasons(decision)["ml/1"] == "not among the last 3"
    assert reasons(decision)["b"] == "among the last 3"


def test_by_last_success_of_each_pipeline() -> None:
    decision = decide(RUNS, Policy(keep_last_success=True), {}, NOW)
    assert kept(decision) == ["d", "c", "etl/3", "ml/1", "etl/2"]
    assert reasons(decision)["etl/2"] == "the last whole run of `etl`"
    assert reasons(decision)["a"] == "not the last whole run of `build`"


def test_any_option_keeps() -> None:
    both = Policy(keep_days=15, keep_last=3)
    decision = decide(RUNS, both, {}, NOW)
    assert kept(decision) == ["d", "c", "b", "etl/3"]
    assert reasons(decision)["a"] == "older than 15 days; not among the last 3"
    assert reasons(decision)["d"].count(";") == 2


def test_what_is_held_at_work_or_damaged_stays() -> None:
    runs = [candidate("a", 90), candidate("b", 90, "running"), candidate("c", 90, "damaged")]
    runs.append(candidate("d", 90))
    decision = decide(runs, EVERYTHING, {"a": "somebody is retrying it"}, NOW)
    assert sorted(kept(decision)) == ["a", "b", "c"]
    assert reasons(decision)["a"] == "somebody is retrying it"
    assert reasons(decision)["b"] == "it is at work"
    assert "verify" in reasons(decision)["c"]


def test_a_policy_says_what_to_keep() -> None:
    with pytest.raises(UsageError, match="nothing says what to keep") as caught:
        Policy()
    assert "--keep-days" in caught.value.hint


ids = st.sampled_from(["etl/1", "etl/2", "etl/3", "ml/1", "ml/2", "x", "y", "z"])
statuses = st.sampled_from(["success", "recovered", "failed", "running", "damaged"])
some_runs = st.lists(
    st.builds(candidate, ids, st.integers(0, 60), statuses, st.sampled_from(["build", "test"])),
    unique_by=lambda run: run.run_id,
    max_size=8,
)
policies = st.builds(
    lambda days, last, success: Policy(days, last, success or (days is None and last is None)),
    st.none() | st.integers(0, 60),
    st.none() | st.integers(1, 8),
    st.booleans(),
)
holds = st.dictionaries(ids, st.just("held"), max_size=3)


@given(some_runs, policies, holds)
def test_every_decision(runs: list[Candidate], policy: Policy, held: dict[str, str]) -> None:
    decision = decide(runs, policy, held, NOW)
    judged = (*decision.keep, *decision.drop)
    newest_first = sorted(runs, key=lambda r: r.place.name, reverse=True)
    keep = set(kept(decision))

    # Each run once, in order, and none without a reason.
    assert sorted(j.run.run_id for j in judged) == sorted(r.run_id for r in runs)
    for part in (decision.keep, decision.drop):
        assert [j.run for j in part] == [r for r in newest_first if r in [j.run for j in part]]
    assert all(j.reasons for j in judged)

    # What stays in any case.
    assert {r.run_id for r in runs if r.run_id in held} <= keep
    assert {r.run_id for r in runs if r.status in ("running", "damaged")} <= keep

    # Each option by its own words.
    if policy.keep_last is not None:
        assert {r.run_id for r in newest_first[: policy.keep_last]} <= keep
    if policy.keep_days is not None:
        since = NOW - timedelta(days=policy.keep_days)
        assert {
            r.run_id
            for r in runs
            if datetime.fromisoformat(r.place.began.replace("Z", "+00:00")) >= since
        } <= keep
    for pipeline in {r.pipeline for r in runs}:
        mine = [r for r in newest_first if r.pipeline == pipeline]
        whole = [r for r in mine if r.status in ("success", "recovered")]
        if policy.keep_last_success and whole:
            assert whole[0].run_id in keep
        # Somebody may still have to retry the last one; of failed ones only that.
        if mine[0].status == "failed":
            assert mine[0].run_id in keep

    # The order in which runs come says nothing; one more option never drops more.
    assert decide(runs[::-1], policy, held, NOW) == decision
    more = Policy(policy.keep_days, policy.keep_last, keep_last_success=True)
    assert keep <= set(kept(decide(runs, more, held, NOW)))


# The archive

OLD = made("etl/1", BAD, began="2026-01-01T06:00:00Z")
OLD_RETRY = made("etl/1", GOOD, began=OLD.began, attempt=2, later=30, verdict=Verdict(True, 0, 4))
STEPS = [
    made("etl/2", GOOD, began="2026-01-02T06:00:00Z", step="one"),
    made("etl/2", BAD, began="2026-01-02T06:00:00Z", step="two", later=20),
]
ALONE = made("alone", GOOD, began="2026-01-03T06:00:00Z", catalog="{}")
LAST = made("etl/3", GOOD, began="2026-02-28T06:00:00Z")


@pytest.fixture(params=["directory", pytest.param("s3", marks=pytest.mark.cluster)])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """An empty archive."""
    if request.param == "directory":
        return LocalStorage(tmp_path / "kept")
    bucket: Bucket = request.getfixturevalue("s3_bucket")
    return open_storage(bucket.url, bucket.options)


@pytest.fixture
def local(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "kept")


def fill(storage: Storage, *all_: Made) -> None:
    for one in all_ or (OLD, OLD_RETRY, *STEPS, ALONE, LAST):
        publish(storage, one)


def remove(storage: Storage, policy: Policy = EVERYTHING) -> list[str]:
    """Plan and do it; the runs that went."""
    archive = Archive(storage)
    done = prune(archive, plan_prune(archive, policy, NOW))
    assert done.skipped == ()
    return sorted(done.removed)


def prune_in(storage: Storage, policy: Policy | None = None) -> None:
    """Plan and do it."""
    archive = Archive(storage)
    prune(archive, plan_prune(archive, policy or Policy(keep_days=7), NOW))


def run_ids(storage: Storage) -> list[str]:
    return sorted(s.run.run_id for s in Archive(storage).runs())


def keys_of(storage: Storage, one: Made) -> list[str]:
    """All keys that speak of its run."""
    place = place_of(one)
    named = (f"/{place.part}/", f"/{place.part}.json", f"~{place.part}/")
    return [k for k in contents(storage) if any(n in k for n in named)]


def test_the_plan_changes_nothing(storage: Storage) -> None:
    fill(storage)
    before = contents(storage)
    plan = plan_prune(Archive(storage), Policy(keep_days=7), NOW)
    assert contents(storage) == before
    assert [j.run.run_id for j in plan.decision.drop] == ["alone", "etl/2", "etl/1"]
    assert [j.run.status for j in plan.decision.drop] == ["success", "failed", "recovered"]
    assert plan.unfinished == ()


def test_removes_whole_runs_and_nothing_else(storage: Storage) -> None:
    fill(storage)
    before = contents(storage)
    gone = [k for one in (OLD, *STEPS, ALONE) for k in keys_of(storage, one)]
    gone += [layout.invocation_pointer(o.invocation_id) for o in (OLD, OLD_RETRY, *STEPS, ALONE)]
    assert remove(storage, Policy(keep_days=7)) == ["alone", "etl/1", "etl/2"]
    assert contents(storage) == {k: v for k, v in before.items() if k not in gone}
    assert run_ids(storage) == ["etl/3"]
    assert verify(Archive(storage)).findings == ()
    assert remove(storage, Policy(keep_days=7)) == []


def test_a_lease_that_cannot_be_read_holds_its_run_and_no_other(local: LocalStorage) -> None:
    fill(local)
    local.write(place_of(ALONE).lease, b"garbage")
    assert remove(local, Policy(keep_days=7)) == ["etl/1", "etl/2"]
    assert run_ids(local) == ["alone", "etl/3"]


def test_a_removed_run_can_be_made_anew(local: LocalStorage) -> None:
    fill(local, ALONE)
    before = contents(local)
    assert remove(local) == ["alone"]
    assert list(contents(local)) == ["archive.json"]
    fill(local, ALONE)
    assert contents(local).keys() == before.keys()


def test_a_run_with_a_long_and_odd_id(local: LocalStorage) -> None:
    one = made(f"analytics/manual__2026-01-31T06:00:00+00:00 é~{'x' * 200}")
    fill(local, one)
    assert remove(local) == [place_of(one).run_id]
    assert list(contents(local)) == ["archive.json"]


def test_orphans_and_strange_keys_of_the_run_go_with_it(local: LocalStorage) -> None:
    fill(local, ALONE, LAST)
    local.write(place_of(ALONE).data("nobody", "x"), b"1")
    local.write(place_of(ALONE).records("nobody") + "note.txt", b"1")
    local.write(f"runs/{place_of(ALONE).name}/note.txt", b"1")
    local.write(f"runs/{place_of(ALONE).date}/note.txt", b"not the run's")
    assert remove(local, Policy(keep_days=7)) == ["alone"]
    assert keys_of(local, ALONE) == []
    assert local.stat(f"runs/{place_of(ALONE).date}/note.txt") is not None


def test_pointers_of_another_run_stay(local: LocalStorage) -> None:
    """The id was used again; the pointer is the later run's."""
    fill(local, ALONE)
    pointer = layout.run_pointer("alone")
    moved = local.read(pointer).data.replace(b"2026-01-03", b"2026-02-03")
    local.write(pointer, moved)
    assert remove(local) == ["alone"]
    assert local.read(pointer).data == moved


# What must not go


def test_what_is_retried_stays(storage: Storage) -> None:
    fill(storage, ALONE)
    archive = Archive(storage)
    with Lease(archive, place_of(ALONE)):
        plan = plan_prune(archive, EVERYTHING, NOW)
    (judged,) = plan.decision.keep
    assert "is retrying it" in judged.reasons[0]


def test_a_run_of_which_a_step_is_resumed_stays(local: LocalStorage) -> None:
    long = made("dag/" + "x" * 150)
    fill(local, *STEPS, long, ALONE)
    archive = Archive(local)
    with (
        Lease(archive, place_of(STEPS[0]).of_step("two")),
        Lease(archive, place_of(long).of_step("two")),
    ):
        plan = plan_prune(archive, EVERYTHING, NOW)
    assert [j.run.run_id for j in plan.decision.drop] == ["alone"]


def test_a_lease_taken_after_the_decision_is_respected(local: LocalStorage) -> None:
    fill(local, ALONE)
    archive = Archive(local)
    plan = plan_prune(archive, EVERYTHING, NOW)
    before = contents(local)
    with Lease(Archive(local), place_of(ALONE)):
        done = prune(archive, plan)
    ((run_id, why),) = done.skipped
    assert run_id == "alone"
    assert "is being retried by" in why
    assert (done.removed, done.objects) == ((), 0)
    assert contents(local) == before


def test_what_changed_after_the_decision_stays(local: LocalStorage) -> None:
    fill(local, OLD)
    archive = Archive(local)
    plan = plan_prune(archive, Policy(keep_days=7), NOW)
    assert not plan.decision.drop  # the last of its pipeline, and failed
    fill(local, OLD_RETRY)
    plan = plan_prune(Archive(local), EVERYTHING, NOW)
    begin(local, made("etl/1", BAD, began=OLD.began, attempt=3, later=40), lives=True)
    before = contents(local)
    done = prune(archive, plan)
    assert "has changed" in done.skipped[0][1]
    assert contents(local) == before


def test_what_is_at_work_stays(local: LocalStorage) -> None:
    begin(local, made("now", BAD, began="2026-01-01T06:00:00Z"), lives=True)
    begin(local, made("lost/1", BAD, began="2026-01-01T06:00:00Z"))
    fill(local, made("lost/2", GOOD, began="2026-01-02T06:00:00Z"))
    assert remove(local) == ["lost/1", "lost/2"]
    assert run_ids(local) == ["now"]
    assert verify(Archive(local)).findings == ()


def test_what_latest_is_of_stays(local: LocalStorage) -> None:
    fill(local, ALONE, OLD, OLD_RETRY)
    assert publish_latest(Archive(local), loaded(local, "alone")).written
    plan = plan_prune(Archive(local), EVERYTHING, NOW)
    assert reasons(plan.decision)["alone"] == "latest/ is of it"
    assert remove(local) == ["etl/1"]


def test_what_cannot_be_read_stays(local: LocalStorage) -> None:
    place = begin(local, made("lost", BAD))
    local.write(place.begun("lost-1-only"), b"{")
    assert remove(local) == []


# Killed in the middle


def _whole(storage: Storage, one: Made) -> bool:
    """Whether the run is there, with all that it had; AssertionError if it is there in part."""
    archive = Archive(storage)
    listed = {s.run.run_id: s for s in archive.runs()}
    try:
        run = loaded(storage, one.run_id)
    except NotFoundError:
        assert one.run_id not in listed
        return False
    summary = listed[one.run_id]
    assert (summary.status, summary.invocations) == ("recovered", 2)
    assert [r.invocation.attempt for r in run.recorded] == [1, 2]
    assert run.graph.nodes
    place = place_of(one)
    for record in run.recorded:
        for artifact in archive.commit_of(place, record.invocation.invocation_id).artifacts:
            archive.artifact_bytes(artifact)
    return True


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_any_step_the_run_is_complete_or_invisible(
    after: bool, tmp_path: Path, local: LocalStorage
) -> None:
    fill(local, OLD, OLD_RETRY, LAST)
    ends = []

    def there(step: int) -> LocalStorage:
        return LocalStorage(tmp_path / str(step))

    def killed(step: int) -> None:
        shutil.copytree(local.root, there(step).root)
        prune_in(Dying(there(step), step, after=after))

    for step in until_done(killed):
        storage = there(step)
        ends.append(_whole(storage, OLD))
        assert verify(Archive(storage)).faults == (), step
        # Its process is gone, and so its lease is nobody's; a second run of prune ends it.
        storage.delete(place_of(OLD).lease)
        expected = ["etl/1"] if keys_of(storage, OLD) else []
        assert remove(storage, Policy(keep_days=7)) == expected, step
        assert keys_of(storage, OLD) == []
        assert run_ids(storage) == ["etl/3"]
        assert verify(Archive(storage)).findings == ()
    assert len(ends) > 20
    # Complete up to the mark, which comes right after the lease, and never again.
    assert ends.index(False) == (1 if after else 2)
    assert not any(ends[ends.index(False) :])


def test_killed_while_going_on(local: LocalStorage) -> None:
    """Each prune is killed at its fifth step: they come to an end together."""
    fill(local, OLD, OLD_RETRY, LAST)
    for _ in range(60):
        try:
            prune_in(Dying(local, 4))
        except Killed:
            local.delete(place_of(OLD).lease)
            continue
        break
    assert keys_of(local, OLD) == []
    assert run_ids(local) == ["etl/3"]


@pytest.mark.cluster
def test_killed_in_a_bucket(s3_bucket: Bucket) -> None:
    storage = open_storage(s3_bucket.url, s3_bucket.options)
    fill(storage, OLD, OLD_RETRY, LAST)
    with pytest.raises(Killed):
        prune_in(Dying(storage, 9))
    assert not _whole(storage, OLD)
    assert remove(storage, Policy(keep_days=7)) == ["etl/1"]
    assert keys_of(storage, OLD) == [place_of(OLD).lease]


def test_an_invocation_begun_after_the_mark_stays(local: LocalStorage) -> None:
    fill(local, OLD, OLD_RETRY)
    with pytest.raises(Killed):
        prune_in(Dying(local, 2), EVERYTHING)
    # Another machine joins the run, whose pointer is still there.
    late = made("etl/1", GOOD, began=OLD.began, attempt=3, later=40)
    publish(local, late)
    assert run_ids(local) == []
    assert remove(local) == ["etl/1"]
    (summary,) = Archive(local).runs()
    assert (summary.run.run_id, summary.invocations) == ("etl/1", 1)
    assert verify(Archive(local)).faults == ()


def test_a_store_that_fails(local: LocalStorage) -> None:
    """The others are removed all the same, and the next prune ends it."""
    fill(local)

    class Failing(Altered):
        def delete(self, key: str, *, if_match: str | None = None) -> None:
            if "alone" in key and key.endswith("results.json.zst"):
                raise StorageError(f"cannot delete {key}")
            self.inner.delete(key, if_match=if_match)

    with pytest.raises(StorageError, match="cannot delete data/2026-01-03"):
        prune_in(Failing(local))
    assert run_ids(local) == ["etl/3"]
    assert remove(local, Policy(keep_days=7)) == ["alone"]
    assert verify(Archive(local)).findings == ()


# The command


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "dbt_recover", "--archive", *map(str, words)]
    return subprocess.run(argv, capture_output=True, text=True, cwd=Path(sys.prefix))


def test_the_command(local: LocalStorage) -> None:
    fill(local)
    before = contents(local)
    refused = run(local.root, "prune", "--yes")
    assert refused.returncode == UsageError.exit_code
    assert "--keep-last" in refused.stderr

    plan = run(local.root, "prune", "--keep-last", "1")
    assert plan.returncode == 0
    assert "3 runs to remove, 1 to keep" in plan.stdout
    assert "nothing is removed until --yes" in plan.stdout
    assert contents(local) == before
    document = json.loads(run(local.root, "prune", "--keep-last", "1", "-o", "json").stdout)
    assert [r["run_id"] for r in document["drop"]] == ["alone", "etl/2", "etl/1"]
    assert document["keep"][0]["pipeline"] == "etl"
    assert (document["done"], document["removed"]) == (False, [])

    words = ("prune", "--keep-last-success", "--yes", "-o", "json")
    done = json.loads(run(local.root, *words).stdout)
    assert sorted(done["removed"]) == ["etl/1", "etl/2"]
    assert done["done"]
    assert run_ids(local) == ["alone", "etl/3"]
    assert "removed no run" in run(local.root, "prune", "--keep-days", "9999", "--yes").stdout
