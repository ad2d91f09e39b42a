"""What the archive's listings say: which runs there are, and how far each has come.

No object is read here; archive.py does. One command reads one state of the archive: what was listed
once is not listed again.
"""

from __future__ import annotations

import hashlib

import msgspec

from . import layout
from .errors import NotFoundError
from .layout import Listed, RunPlace, Summary
from .storage.base import Storage


class RunEntries(msgspec.Struct):
    """What a listing says of one run."""

    place: RunPlace
    begun: set[str] = set()
    committed: set[str] = set()
    summaries: dict[str, Summary] = {}

    @property
    def open(self) -> set[str]:
        """Invocations without a commit record."""
        return self.begun - self.committed


class Listings:
    """The store of an archive, as far as listing goes."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._listed: dict[str, list[Listed]] = {}
        self._dates: list[str] | None = None
        self._since = ""
        self.pruned: set[RunPlace] = set()
        """Runs, among those listed so far, that somebody began to remove: they are not there."""

    @property
    def url(self) -> str:
        """What the user would type to name it."""
        return self.storage.url

    def dates(self) -> list[str]:
        """Days that have runs, newest first."""
        if self._dates is None:
            days = self.storage.folders(layout.RUNS)
            self._dates = sorted((d for d in days if layout.is_date(d)), reverse=True)
        return self._dates

    def entries(self, date: str) -> list[RunEntries]:
        """The runs of a day, oldest first; one listing."""
        runs: dict[str, RunEntries] = {}
        for listed in self._day(date):
            _add(runs, listed)
        # A word without a record of ours is nobody's: it is left out.
        return [runs[n] for n in sorted(runs) if runs[n].begun or runs[n].committed]

    def entry(self, place: RunPlace) -> RunEntries:
        """One run's entries. NotFoundError if it has none."""
        runs: dict[str, RunEntries] = {}
        for listed in self._of(place):
            _add(runs, listed)
        if not any(r.begun or r.committed for r in runs.values()):
            raise NotFoundError(f"run {place.run_id} has no invocation in {self.url}")
        return runs[place.name]

    def state_of(self, place: RunPlace, *, fresh: bool = False) -> str:
        """Changes whenever an invocation of the run begins or is committed."""
        if fresh:
            self._listed.clear()
            self._since = ""
        words = sorted(f"{e.invocation_id} {e.kind}" for e in self._of(place))
        return hashlib.sha256("\n".join(words).encode()).hexdigest()

    def _of(self, place: RunPlace) -> list[Listed]:
        if place.date in self._listed:
            return [e for e in self._listed[place.date] if e.place == place]
        if place.name not in self._listed:
            self._listed[place.name] = self._list(place.records())
        return self._listed[place.name]

    def _day(self, date: str) -> list[Listed]:
        if date not in self._listed:
            self._listed[date] = self._list(f"{layout.RUNS}{date}/")
        return self._listed[date]

    def list_since(self, date: str) -> None:
        """List this day and all after it at once, where their days were not listed yet: what a
        plan needs of a run and of later ones costs one request for each 1,000 of their keys."""
        if self._since and self._since <= date:
            return
        if self._dates is not None:
            for day in self._dates:
                if day >= date:
                    self._day(day)
        else:
            days: dict[str, list[Listed]] = {}
            for listed in self._list(layout.RUNS, date):
                days.setdefault(listed.place.date, []).append(listed)
            self._listed = {**days, **self._listed}
        self._since = date

    def everything(self) -> list[RunEntries]:
        """All runs, oldest first, by one listing: pointers are not asked."""
        runs: dict[str, RunEntries] = {}
        for listed in self._list(layout.RUNS):
            _add(runs, listed)
        return [runs[name] for name in sorted(runs)]

    def _list(self, prefix: str, since: str = "") -> list[Listed]:
        items = self.storage.list(prefix, since=since)
        parsed = (layout.parse_record_key(item.key) for item in items)
        found = [listed for listed in parsed if listed is not None]
        self.pruned.update(e.place for e in found if e.kind == "pruned")
        return [e for e in found if e.place not in self.pruned]

    def later_than(self, place: RunPlace) -> list[RunEntries]:
        """Runs that began after this one, oldest first."""
        self.list_since(place.date)
        days = sorted(d for d in self._listed if layout.is_date(d) and d >= place.date)
        later = [e for d in days for e in self.entries(d)]
        return [e for e in later if e.place.name > place.name and e.place.part != place.part]


def _add(runs: dict[str, RunEntries], listed: Listed) -> None:
    entries = runs.setdefault(listed.place.name, RunEntries(listed.place))
    if listed.kind == "begun":
        entries.begun.add(listed.invocation_id)
    elif listed.kind == "commit":
        entries.committed.add(listed.invocation_id)
    elif listed.summary is not None:
        entries.summaries[listed.invocation_id] = listed.summary


def last_words(summaries: list[Summary]) -> list[Summary]:
    """Of each command of a step the latest word; one that speaks for the whole run replaces all
    before it."""
    latest: dict[tuple[str, str], Summary] = {}
    for summary in sorted(summaries, key=lambda s: (s.attempt, s.ended)):
        if summary.scope == "run":
            latest.clear()
        latest[summary.step, summary.mark] = summary
    return list(latest.values())


def status_of(summaries: list[Summary], has_open: bool, running: bool) -> str:
    """One word for the run: running, failed, recovered, success."""
    if running:
        return "running"
    if has_open or not summaries or any(s.state != "ok" for s in last_words(summaries)):
        return "failed"
    return "recovered" if any(s.attempt > 1 for s in summaries) else "success"


def commands_of(summaries: list[Summary]) -> str:
    """The dbt commands of the run's first attempt, in order."""
    first = [s.command for s in sorted(summaries, key=lambda s: s.ended) if s.attempt == 1]
    return ", ".join(dict.fromkeys(c for c in first if c))
