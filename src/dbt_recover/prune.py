"""`prune`: which runs to keep, and why; and the removal of the others.

`decide` is pure: it says of each run whether it is kept or dropped, with the reasons; the same
decision is shown (without --yes) or carried out.

A run is many objects, perhaps of several invocations, and no store removes them at once. So first a
mark is written into the run, `~pruned`, which names the invocations to remove: with it every reader
takes the run for not there. Then go, in this order: the pointer by which the run is found, so that
nobody joins it; of each invocation its pointer, its sign of life, its data, its records; the mark.
Before the mark the run is complete, after it invisible, whenever the pruner is killed: never does
it look lost or failed because half of it is gone. The next prune finds the mark and goes on. The
records go after the data they name, so that it knows what is left; the mark goes last.

The lease of the run is held meanwhile: what is retried is not removed, and what is being removed
is not retried. An invocation that was begun after the mark was written is not the mark's: it stays,
and the run is there again, with that invocation alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

import msgspec

from . import layout
from .archive import Archive
from .errors import DamagedError, LockedError, NotFoundError, UsageError
from .foreign import DatedFolders
from .latest import run_of_latest
from .layout import FORMAT_VERSION, RunPlace, encode_id
from .lease import Holder, Lease, decode
from .listings import RunEntries
from .machine import process_lives, this_machine
from .model import as_word
from .records import MAX_RECORD, Mark, decode_record
from .storage.base import MissingKey, PreconditionFailed, Storage

_RUNS_AT_A_TIME = 8


@dataclass(frozen=True)
class Policy:
    """What is kept. UsageError if nothing says so: an empty policy would keep nothing."""

    keep_days: float | None = None
    """Runs that began within so many days."""
    keep_last: int | None = None
    """The newest so many runs."""
    keep_last_success: bool = False
    """Of each pipeline its last whole run."""

    def __post_init__(self) -> None:
        if self.keep_days is None and self.keep_last is None and not self.keep_last_success:
            raise UsageError(
                "nothing says what to keep",
                hint="pass --keep-days N, --keep-last N or --keep-last-success; a run stays if any "
                "of them keeps it",
            )


@dataclass(frozen=True)
class Candidate:
    """A run, as far as the decision needs it."""

    place: RunPlace
    status: str
    """success, recovered, failed, running; `damaged` if its records cannot be read."""
    command: str = ""
    seen: frozenset[str] = frozenset()
    """What its listing said when the decision was made."""

    @property
    def run_id(self) -> str:
        """Its id."""
        return self.place.run_id

    @property
    def pipeline(self) -> str:
        """What it is a run of: the Airflow DAG, or the dbt commands of a run without one."""
        dag, slash, _ = self.run_id.partition("/")
        return dag if slash else self.command


@dataclass(frozen=True)
class Judged:
    """A run, and why it is kept or dropped."""

    run: Candidate
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Decision:
    """What to do with each run, newest first."""

    keep: tuple[Judged, ...]
    drop: tuple[Judged, ...]


@dataclass(frozen=True)
class Plan:
    """A decision, and what an earlier prune has left half done."""

    decision: Decision
    unfinished: tuple[RunPlace, ...] = ()


@dataclass(frozen=True)
class Done:
    """What a prune has removed."""

    removed: tuple[str, ...]
    """Run ids."""
    skipped: tuple[tuple[str, str], ...]
    """Run ids and why they were not removed after all."""
    objects: int


def decide(
    runs: Iterable[Candidate], policy: Policy, held: Mapping[str, str], now: datetime
) -> Decision:
    """Of each run whether to keep it, and why. `held`: run id -> why it must not go.

    Kept whatever the policy says: what is held or at work, what cannot be read, and of each
    pipeline the last run if it has failed: nothing has made up for it yet, and `retry` means it.
    """
    ordered = sorted(runs, key=lambda run: run.place.name, reverse=True)
    since = None
    if policy.keep_days is not None:
        since = (now - timedelta(days=policy.keep_days)).strftime("%Y-%m-%dT%H:%M:%SZ")
    last: set[str] = set()
    last_success: set[str] = set()
    keep: list[Judged] = []
    drop: list[Judged] = []
    for rank, run in enumerate(ordered, 1):
        why = [held[run.run_id]] if run.run_id in held else []
        against: list[str] = []
        if run.status == "running":
            why.append("it is at work")
        if run.status == "damaged":
            why.append("it cannot be read whole: see dbt-recover verify")
        if run.status == "failed" and run.pipeline not in last:
            why.append(f"the last run of {_named(run.pipeline)} has failed, and it is that run")
        if since is not None:
            recent = run.place.began >= since
            (why if recent else against).append(
                f"{'within' if recent else 'older than'} {policy.keep_days:g} days"
            )
        if policy.keep_last is not None:
            among = rank <= policy.keep_last
            (why if among else against).append(
                f"{'among' if among else 'not among'} the last {policy.keep_last}"
            )
        if policy.keep_last_success:
            newest = run.status in _WHOLE and run.pipeline not in last_success
            (why if newest else against).append(
                f"{'the' if newest else 'not the'} last whole run of {_named(run.pipeline)}"
            )
        last.add(run.pipeline)
        if run.status in _WHOLE:
            last_success.add(run.pipeline)
        (keep if why else drop).append(Judged(run, tuple(why or against)))
    return Decision(tuple(keep), tuple(drop))


_WHOLE = frozenset({"success", "recovered"})


def _named(pipeline: str) -> str:
    return f"`{pipeline}`" if pipeline else "its kind"


def plan_prune(archive: Archive, policy: Policy, now: datetime) -> Plan:
    """Decide about all runs of the archive. Reads only; a listing for each day, and of each run
    no object, as `runs` does."""
    runs = []
    for date in archive.dates():
        for entries in archive.entries(date):
            status, command = "damaged", ""
            try:
                summary = archive.summary(entries)
                status, command = summary.status, summary.command
            except (DamagedError, MissingKey):
                pass
            runs.append(Candidate(entries.place, status, command, _words(entries)))
    held = _held(archive.storage, [run.place for run in runs])
    unfinished = sorted(archive.pruned, key=lambda place: place.name)
    return Plan(decide(runs, policy, held, now), tuple(unfinished))


def prune(archive: Archive, plan: Plan) -> Done:
    """Carry the plan out. What has changed since it was made is left alone, and said."""
    storage = archive.storage

    def one(run: Candidate | RunPlace) -> str | int:
        try:
            return _finish(storage, run) if isinstance(run, RunPlace) else _remove(storage, run)
        except DamagedError as exc:
            return f"{exc.message}: {exc.next_step}"
        except (LockedError, NotFoundError) as exc:
            return exc.message  # one that cannot go does not keep the others

    going: list[Candidate | RunPlace] = [
        *plan.unfinished,
        *(judged.run for judged in plan.decision.drop),
    ]
    with ThreadPoolExecutor(_RUNS_AT_A_TIME) as pool:
        ends = [*zip((run.run_id for run in going), pool.map(one, going), strict=True)]
    _remove_dead_leases(storage)
    return Done(
        tuple(run_id for run_id, end in ends if isinstance(end, int)),
        tuple((run_id, end) for run_id, end in ends if isinstance(end, str)),
        sum(end for _, end in ends if isinstance(end, int)),
    )


def leases(storage: Storage) -> list[tuple[str, Holder, float]]:
    """Every lease that is there: the part of its key that names the run, its holder, its age.
    Damaged ones are left out; `verify` names them."""
    return [(part, holder, age) for part, holder, age in _all_leases(storage) if holder]


def _all_leases(storage: Storage) -> list[tuple[str, Holder | None, float]]:
    """The same with the damaged ones, whose holder is None."""
    found: list[tuple[str, Holder | None, float]] = []
    for item in storage.list("leases/"):
        part = item.key.removeprefix("leases/").removesuffix(".json")
        try:
            blob = storage.read(item.key, max_bytes=MAX_RECORD)
        except MissingKey:
            continue
        try:
            found.append((part, decode(blob.data, item.key), blob.age))
        except DamagedError:
            found.append((part, None, blob.age))
    return found


def _remove_dead_leases(storage: Storage) -> None:
    """Leases of holders that died: they hold nothing, and of a run that was removed nobody would
    ever take one over. Damaged ones stay: `verify` names them."""
    for item in storage.list("leases/"):
        with suppress(MissingKey, DamagedError, PreconditionFailed):
            blob = storage.read(item.key, max_bytes=MAX_RECORD)
            if not is_live(decode(blob.data, item.key), blob.age):
                storage.delete(item.key, if_match=blob.etag)


def is_live(holder: Holder, age: float) -> bool:
    """Whether it is still held, as `lease` sees it."""
    if holder.machine == this_machine():
        return process_lives(holder.process)
    return age <= holder.ttl


def _held(storage: Storage, places: Sequence[RunPlace]) -> dict[str, str]:
    """Runs that must not go, and why."""
    held: dict[str, str] = {}
    live = [
        (part, f"{holder.holder} is retrying it" if holder else "")
        for part, holder, age in _all_leases(storage)
        if holder is None or is_live(holder, age)
    ]
    latest = run_of_latest(storage)
    for place in places:
        run_id = place.run_id
        if isinstance(storage, DatedFolders) and storage.is_theirs(place):
            held[run_id] = "another program archived it"
        elif run_id == latest:
            held[run_id] = "latest/ is of it"
        for part, why in live:
            if part == place.part or _is_step(part, run_id):
                held[run_id] = why or (
                    "its lease cannot be read; if nobody is at work on it: dbt-recover unlock "
                    + as_word(run_id)
                )
    return held


def _is_step(part: str, run_id: str) -> bool:
    """Whether a lease is of a step of the run. Of a long id the key has the beginning only, and
    then any that could be is."""
    text = layout.decode_id(part)
    head, equals, _ = text.rpartition("=")
    beginning = f"{run_id}/"
    return text.startswith(beginning) or bool(equals and head and beginning.startswith(head))


def _remove(storage: Storage, run: Candidate) -> int:
    """How many objects went. LockedError if it is retried, NotFoundError if it is not as it was."""
    place = run.place
    # Of its own: what another has listed may be old.
    archive = Archive(storage)
    with Lease(archive, place):
        entries = archive.entry(place)
        if _words(entries) != run.seen:
            raise NotFoundError(f"run {place.run_id} has changed since it was looked at")
        invocations = sorted({*entries.begun, *entries.committed, *entries.summaries})
        mark = msgspec.json.encode(Mark(FORMAT_VERSION, invocations))
        try:
            storage.write(place.pruned, mark, if_absent=True)
        except PreconditionFailed:
            raise NotFoundError(f"run {place.run_id} is being removed by another") from None
        return _finish(storage, place)


def _words(entries: RunEntries) -> frozenset[str]:
    kinds = {"begun": entries.begun, "commit": entries.committed, "summary": entries.summaries}
    return frozenset(f"{kind} {i}" for kind, idents in kinds.items() for i in idents)


def _finish(storage: Storage, place: RunPlace) -> int:
    """Remove what the mark names, and the mark; again and again until it is done."""
    try:
        blob = storage.read(place.pruned, max_bytes=MAX_RECORD)
        mark = decode_record(blob.data, Mark, f"{storage.url}/{place.pruned}")
        marked = {encode_id(i) for i in mark.invocations}
    except MissingKey:
        return 0  # another was faster
    except DamagedError as exc:
        hint = exc.hint or "what to do: dbt-recover verify"
        raise DamagedError(exc.message, hint=hint) from exc
    records, data = f"{layout.RUNS}{place.name}/", f"{layout.DATA}{place.name}/"
    found = [item.key for item in storage.list(records) if item.key != place.pruned]
    found_data = [item.key for item in storage.list(data)]
    parsed = [e for e in map(layout.parse_record_key, found) if e is not None]
    others = {encode_id(e.invocation_id) for e in parsed if e.kind in ("begun", "commit")} - marked
    if not others:
        _delete_pointer(storage, layout.run_pointer(place.run_id), place)
        # Then all that is below the run's own prefixes is of it.
        marked |= {key[len(data) :].partition("/")[0] for key in found_data}
        marked |= {key[len(records) :].partition("/")[0] for key in found}
    count = 0
    for part in sorted(marked):
        invocation_id = layout.decode_id(part)
        _delete_pointer(storage, layout.invocation_pointer(invocation_id), place)
        storage.delete(place.heartbeat(invocation_id))
        for key in [k for k in found_data if k[len(data) :].partition("/")[0] == part]:
            storage.delete(key)
            count += 1
        for key in [k for k in found if k[len(records) :].partition("/")[0] == part]:
            storage.delete(key)
            count += 1
    storage.delete(place.pruned)
    return count


class _Pointer(msgspec.Struct, frozen=True):
    """What both kinds of pointer say, each in its way."""

    run_id: str = ""
    began: str = ""
    run: _Pointer | None = None


def _delete_pointer(storage: Storage, key: str, place: RunPlace) -> None:
    """Unless it points elsewhere: then it is another run's."""
    try:
        blob = storage.read(key, max_bytes=MAX_RECORD)
        pointer = msgspec.json.decode(blob.data, type=_Pointer)
    except MissingKey:
        return
    except (msgspec.DecodeError, UnicodeDecodeError, DamagedError):
        pointer = _Pointer()  # damaged, and its name says whose it was
    named = pointer.run or pointer
    if not named.run_id or RunPlace.of(named.run_id, named.began) == place:
        storage.delete(key)
