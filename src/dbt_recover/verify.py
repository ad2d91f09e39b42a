"""`verify`: whether the archive holds what it says, object by object. Reads only.

A fault is what no writer of ours leaves, however it ends: then something was altered, lost, or
written by another. What a killed writer or pruner leaves is at most a note.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from . import foreign, layout, lease
from .archive import Archive
from .errors import DamagedError, NotFoundError
from .latest import faults_of_latest
from .layout import RunPlace
from .model import as_word
from .records import MAX_RECORD
from .storage.base import MissingKey, Storage
from .verify_run import Finding, RunListing, RunLook, list_runs, orphans

_RUNS_AT_A_TIME = 8


@dataclass(frozen=True)
class Report:
    """What was looked at, and what was found."""

    url: str
    runs: int
    """Looked at."""
    runs_there: int
    invocations: int
    objects: int
    stored: int
    """Bytes read, as stored."""
    findings: tuple[Finding, ...]
    seed: int | None = None
    """Of a sample: what gives the same one again."""

    @property
    def faults(self) -> tuple[Finding, ...]:
        """Findings that make the archive damaged."""
        return tuple(f for f in self.findings if f.fault)

    @property
    def notes(self) -> tuple[Finding, ...]:
        """The others."""
        return tuple(f for f in self.findings if not f.fault)

    @property
    def exit_code(self) -> int:
        """0, or that of damage."""
        return DamagedError.exit_code if self.faults else 0


def verify(
    archive: Archive,
    *,
    run: RunPlace | None = None,
    sample: int | None = None,
    seed: int = 0,
) -> Report:
    """Look at one run, at as many as `sample` says (the same for the same seed), or at all of it.

    StorageError if the store cannot be read: then nothing is known.
    """
    # Folders of another writer carry no hashes to hold them to.
    storage = foreign.own(archive.storage)
    there = list_runs(storage, run.records() if run is not None else layout.RUNS)
    places = sorted(there, key=lambda place: place.name)
    findings: list[Finding] = []
    if storage is not archive.storage:
        wrong = "the dated folders there are another program's and carry no hashes: not verified"
        findings.append(Finding(archive.url, wrong, "nothing", fault=False))
    chosen = places
    if sample is not None:
        chosen = sorted(
            random.Random(seed).sample(places, min(sample, len(places))), key=lambda p: p.name
        )
    elif run is None:
        findings += _around(storage, there)
    elif not there:
        findings.append(_without_records(storage, run))
    with ThreadPoolExecutor(_RUNS_AT_A_TIME) as pool:
        looks = [*pool.map(lambda place: RunLook(storage, place, there[place]), chosen)]
    return Report(
        archive.url,
        len(chosen),
        len(places),
        sum(look.invocations for look in looks),
        sum(look.objects for look in looks),
        sum(look.stored for look in looks),
        tuple(f for look in looks for f in look.findings) + tuple(findings),
        seed if sample is not None else None,
    )


def _without_records(storage: Storage, run: RunPlace) -> Finding:
    """Of a run that its pointer leads to. NotFoundError if nothing says that it ever began."""
    data = next(storage.list(f"{layout.DATA}{run.name}/"), None)
    if data is None:
        raise NotFoundError(
            f"run {run.run_id} has no invocation in {storage.url}: its writer was stopped before "
            "dbt began, or it was pruned",
            hint="see what there is: dbt-recover runs",
        )
    return Finding(
        run.records(),
        "is missing, and with it all that is recorded of the run; its pointer and its data are there",
        "bring the objects below it back from a backup; without them the run cannot be shown or "
        "retried",
        run.run_id,
    )


def _around(storage: Storage, there: Mapping[RunPlace, RunListing]) -> list[Finding]:
    """What belongs to no run that is listed: data, pointers, leases, latest/."""
    known = {place.name for place in there}
    found: list[Finding] = []
    for date in filter(layout.is_date, storage.folders(layout.DATA)):
        for name in storage.folders(f"{layout.DATA}{date}/"):
            if f"{date}/{name}" not in known:
                prefix = f"{layout.DATA}{date}/{name}/"
                data = {item.key: item.size for item in storage.list(prefix)}
                found += orphans(storage, prefix, data)
    parts = {place.part for place in there}
    for item in storage.list("ids/runs/"):
        if item.key.endswith(".json") and item.key[9:-5] not in parts:
            found.append(
                Finding(
                    item.key,
                    "names a run without invocations: its writer was stopped, or a pruner",
                    "nothing; readers take it for no run",
                    layout.run_of_pointer(item.key),
                    fault=False,
                )
            )
    for item in storage.list("leases/"):
        try:
            lease.decode(storage.read(item.key, max_bytes=MAX_RECORD).data, item.key)
        except MissingKey:
            continue
        except DamagedError as exc:
            run_id = layout.decode_id(item.key.rsplit("/", 1)[1].removesuffix(".json"))
            mend = f"if nobody is at work on this run: dbt-recover unlock {as_word(run_id)}"
            found.append(Finding(item.key, exc.message.removeprefix(item.key + " "), mend, run_id))
    found += [
        Finding(key, wrong, "nothing: the next run that is whole writes it anew", fault=False)
        for key, wrong in faults_of_latest(storage)
    ]
    return found
