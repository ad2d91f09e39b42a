"""RUN on the command line: which run of the archive it names."""

from __future__ import annotations

from . import layout
from .archive import Archive
from .errors import DamagedError, NotFoundError, UsageError
from .layout import RunPlace
from .listings import RunEntries
from .records import MAX_RECORD, RunPointer, decode_record


def resolve(archive: Archive, spec: str, *, logical_date: str = "") -> RunPlace:
    """The run that `latest`, `latest-failed`, a day, an id or its beginning, the time when it began, or
    a dbt invocation_id names.

    NotFoundError lists what there is instead; UsageError lists candidates if it is ambiguous.
    """
    if spec in ("latest", "latest-failed"):
        return _latest(archive, failed=spec == "latest-failed", logical_date=logical_date)
    if layout.is_date(spec):
        found = [archive.summary(e) for e in archive.entries(spec)]
        if found:
            failed = [s for s in found if s.status == "failed"]
            run = (failed or found)[-1].run
            return RunPlace.of(run.run_id, run.began)
        if archive.dated:
            return _latest(archive, failed=True, logical_date=spec)
        raise NotFoundError(
            f"no run began on {spec} (UTC) in {archive.url}", hint=_about(archive, spec)
        )
    place = archive.find(spec) or _began_at(archive, spec)
    if place is not None:
        return place
    candidates = [
        run_id
        for item in archive.storage.list(layout.run_pointer_prefix(spec))
        if (run_id := _pointed(archive, item.key)).startswith(spec)
    ]
    if len(candidates) == 1 and (place := archive.find(candidates[0])) is not None:
        return place
    if candidates:
        listed = "".join(f"\n  {c}" for c in candidates[:10])
        more = f"\n  and {len(candidates) - 10} more" if len(candidates) > 10 else ""
        raise UsageError(
            f"{spec!r} is the beginning of {len(candidates)} runs:{listed}{more}",
            hint="type more of the id",
        )
    owner = archive.run_of_invocation(spec)
    if owner is not None and _has(archive.entry(owner), spec):
        return owner
    raise NotFoundError(f"no run {spec!r} in {archive.url}", hint=_what_there_is(archive))


def locate(archive: Archive, spec: str) -> RunPlace:
    """For `verify`: as `resolve`, and where what an id leads by is damaged, missing or another's, the
    run or invocation of exactly this id is found by a listing of all runs."""
    try:
        return resolve(archive, spec)
    except (DamagedError, NotFoundError):
        part = layout.encode_id(spec)
        for entries in archive.everything():
            if entries.place.part == part or _has(entries, spec):
                return entries.place
        raise


def _has(entries: RunEntries, invocation_id: str) -> bool:
    part = layout.encode_id(invocation_id)
    return any(layout.encode_id(i) == part for i in entries.begun | entries.committed)


def _began_at(archive: Archive, spec: str) -> RunPlace | None:
    """The run that began at this time, to the second: `2026-01-31T06:00:12Z`."""
    if not layout.is_date(spec[:10]) or spec[10:11] != "T" or len(spec) < 19:
        return None
    found = [e.place for e in archive.entries(spec[:10]) if e.place.began[:19] == spec[:19]]
    return found[0] if len(found) == 1 else None


def _pointed(archive: Archive, key: str) -> str:
    """The run id a pointer is about; of a long one the key has only the beginning."""
    run_id = layout.run_of_pointer(key)
    if not layout.is_shortened(run_id):
        return run_id
    data = archive.storage.read(key, max_bytes=MAX_RECORD).data
    return decode_record(data, RunPointer, f"{archive.url}/{key}").run.run_id


def _latest(archive: Archive, *, failed: bool, logical_date: str) -> RunPlace:
    newest: RunPlace | None = None
    for date in archive.dates():
        for entries in reversed(archive.entries(date)):
            summary = archive.summary(entries)
            if logical_date and not summary.run.logical_date.startswith(logical_date):
                continue
            newest = newest or entries.place
            if not failed or summary.status == "failed":
                return entries.place
    if newest is not None:
        # Nothing failed: the newest run, which a retry will find whole, or running.
        return newest
    if logical_date:
        raise NotFoundError(f"no run with logical date {logical_date} in {archive.url}")
    raise NotFoundError(
        f"the archive at {archive.url} has no runs yet",
        hint="record one: dbt-recover exec -- dbt build",
    )


def _about(archive: Archive, day: str) -> str:
    """Whoever works with Airflow may mean the day that a run is about."""
    runs = archive.runs(limit=20)
    about = next((s.run.run_id for s in runs if s.run.logical_date.startswith(day)), "")
    meant = f"Airflow's date {day} has the run {about}; " if about else ""
    return meant + _what_there_is(archive)


def _what_there_is(archive: Archive) -> str:
    recent = [s.run.run_id for s in archive.runs(limit=5)]
    if not recent:
        return "the archive has no runs yet; record one: dbt-recover exec -- dbt build"
    return "the latest runs are " + ", ".join(recent) + "; see dbt-recover runs"


def check_day(text: str) -> None:
    """UsageError unless text is empty or a day that exists."""
    from datetime import date

    try:
        known = not text or (layout.is_date(text) and date.fromisoformat(text) is not None)
    except ValueError:
        known = False
    if not known:
        raise UsageError(f"not a day: {text!r}", hint="write it as 2026-01-31")
