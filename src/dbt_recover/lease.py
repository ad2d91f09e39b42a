"""One retry at a time per run: a lease in the archive's own store.

Created with if-absent, renewed and taken over with if-match, so that of two only one succeeds. Its
age is told by the store's clock, and how long ago we renewed it by our monotonic one: clocks that
disagree do no harm. A holder that could not renew in time stops its dbt and cannot publish.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable
from types import TracebackType

import msgspec

from .archive import Archive
from .errors import DamagedError, LockedError, NotFoundError, StorageError
from .layout import FORMAT_VERSION, RunPlace
from .machine import process_lives, process_mark, this_machine, who
from .model import as_word
from .records import decode_record
from .storage.base import MissingKey, PreconditionFailed

TTL_SECONDS = 60.0


class Holder(msgspec.Struct, frozen=True, omit_defaults=True):
    """leases/*.json: who is at work on a run."""

    version: int
    holder: str
    """user@host, process and Airflow run, for a person."""
    machine: str
    process: str
    """Mark (see machine.process_mark)."""
    nonce: str
    generation: int = 1
    """Counts takeovers."""
    ttl: float = TTL_SECONDS
    renewed: int = 0
    """Counts renewals, so that each one changes the object."""


class Lease:
    """Held from `with` to its end, unless it is lost."""

    def __init__(
        self,
        archive: Archive,
        place: RunPlace,
        patiently: Callable[[Callable[[], None]], object] = lambda release: release(),
        *,
        airflow_run: str = "",
        ttl: float = TTL_SECONDS,
    ) -> None:
        self._archive = archive
        self._place = place
        self._patiently = patiently
        """Releases it, or gives up: then it expires by itself."""
        self._ttl = ttl
        self._record = Holder(
            FORMAT_VERSION,
            who() + (f", Airflow run {airflow_run}" if airflow_run else ""),
            this_machine(),
            process_mark(os.getpid()),
            secrets.token_hex(8),
            ttl=ttl,
        )
        self._etag = ""
        self._renewed = 0.0
        self._lost = ""
        self._writing = threading.Lock()
        """Held while the lease in the store and what is known of it here may differ."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="dbt-recover-lease", daemon=True)

    def __enter__(self) -> Lease:
        """Take it. LockedError names the holder if it is taken; StorageError if the store would
        give it to two."""
        self._archive.check_conditions()
        self._take()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._patiently(self._release)

    def _release(self) -> None:
        self._thread.join()
        if not self._lost:
            try:
                self._archive.storage.delete(self._place.lease, if_match=self._etag)
            except (PreconditionFailed, StorageError):
                return  # it expires by itself

    def held(self) -> bool:
        """Whether it is still ours; False at the latest when it could have been taken over."""
        if not self._lost and time.monotonic() - self._renewed > self._ttl * 0.8:
            self._lost = f"it could not be renewed for {self._ttl:.0f} s"
        return not self._lost

    def fence(self) -> None:
        """LockedError unless the store says that it is ours, now: asked before publishing."""
        with self._writing:
            stat = self._archive.storage.stat(self._place.lease) if self.held() else None
            ours = stat is not None and stat.etag == self._etag
        if not ours:
            why = self._lost or "another has taken it"
            raise LockedError(
                f"the lease on run {self._place.run_id} was lost ({why}): this attempt is not "
                "published",
                hint=f"see who is at work: dbt-recover show {as_word(self._place.run_id)}",
            )

    def _take(self) -> None:
        key, storage = self._place.lease, self._archive.storage
        began = time.monotonic()
        try:
            self._etag = storage.write(key, msgspec.json.encode(self._record), if_absent=True)
        except PreconditionFailed:
            self._take_over()
        # Counted from before the request: the store's clock began at the earliest then.
        self._renewed = began

    def _take_over(self) -> None:
        key, storage = self._place.lease, self._archive.storage
        try:
            blob = storage.read(key)
        except MissingKey:
            self._take()
            return
        other = decode(blob.data, key)
        if not _expired(other, blob.age):
            raise LockedError(
                f"run {self._place.run_id} is being retried by {other.holder} (last sign of life "
                f"{blob.age:.0f} s ago)",
                hint="wait until it has ended; if it is gone for good, its lease expires "
                f"{max(0.0, other.ttl - blob.age):.0f} s from now, or: dbt-recover unlock "
                f"{self._place.run_id}",
            )
        self._record = msgspec.structs.replace(self._record, generation=other.generation + 1)
        try:
            self._etag = storage.write(key, msgspec.json.encode(self._record), if_match=blob.etag)
        except PreconditionFailed:
            raise LockedError(
                f"run {self._place.run_id} was taken by another a moment ago",
                hint=f"see who: dbt-recover retry {as_word(self._place.run_id)}",
            ) from None

    def _renew(self) -> None:
        while not self._stop.wait(self._ttl / 6):
            began = time.monotonic()
            record = msgspec.structs.replace(self._record, renewed=self._record.renewed + 1)
            if not self.held():
                return
            try:
                with self._writing:
                    self._etag = self._archive.storage.write(
                        self._place.lease, msgspec.json.encode(record), if_match=self._etag
                    )
            except PreconditionFailed:
                self._lost = "another has taken it"
                return
            except StorageError:
                continue  # tried again; `held` decides when that is too late
            self._record, self._renewed = record, began


def _expired(other: Holder, age: float) -> bool:
    if other.machine == this_machine():
        return not process_lives(other.process)
    return age > other.ttl


def decode(data: bytes, key: str) -> Holder:
    """DamagedError if it is no lease."""
    try:
        return decode_record(data, Holder, key)
    except DamagedError as exc:
        hint = exc.hint or "if nobody is at work on this run: dbt-recover unlock RUN"
        raise DamagedError(exc.message, hint=hint) from exc


def unlock(archive: Archive, place: RunPlace) -> str:
    """Remove the leases of a run and of its steps, whoever holds them, and say whose they were.
    NotFoundError if there is none. Its holder, if it lives, notices, stops its dbt and does not publish."""
    stem, storage = place.lease.removesuffix(".json"), archive.storage
    holders = []
    for item in list(storage.list(stem)):
        # Its own, and those of its steps: exec --resume holds one of the step alone.
        if item.key != place.lease and not item.key.startswith(stem + "%2F"):
            continue
        try:
            holders.append(decode(storage.read(item.key).data, item.key).holder)
        except MissingKey:
            continue
        except DamagedError:
            holders.append("somebody (the lease was damaged)")
        storage.delete(item.key)
    if not holders:
        raise NotFoundError(
            f"run {place.run_id} is not locked",
            hint=f"nothing is in the way of: dbt-recover retry {as_word(place.run_id)}",
        )
    return ", and ".join(holders)
