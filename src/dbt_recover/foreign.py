"""Runs that somebody else archived, as the lesson does it (see uploads.py): read, never changed.

`DatedFolders` is a store that shows such a prefix in the archive's own format: each folder is a run
with one invocation, put together when it is asked for. What is written goes to the archive's own
tree beside the folders (runs/, data/, ids/, ...). A folder's run is copied there before the lease
of it is taken or anything is added to it: from then on it is a run like any other.

Such a prefix has no archive.json, and gets none: that is how it is told from an archive.
"""

from __future__ import annotations

import builtins
import hashlib
import io
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import msgspec
import zstandard

from . import layout, uploads
from .artifacts import read_run_results
from .layout import FORMAT_VERSION, RunPlace, encode_id
from .publish import Publication, Spool, SpoolState
from .records import Begun, InvocationPointer, RunPointer
from .storage.base import Blob, Entry, MissingKey, Stat, Storage, is_since
from .uploads import Contents, Upload

# As model.default_run_id, or uploads.look of what it cannot read, names a run.
_PART = re.compile(r"\d{4}-\d{2}-\d{2}-.{1,40}")
_FOLDERS_TRIED = 20


class DatedFolders:
    """A store with another writer's dated folders in it, which are shown as runs."""

    def __init__(self, ours: Storage, folders: builtins.list[str]) -> None:
        self.ours = ours
        """The store as it is."""
        self.url = ours.url
        self._folders = folders
        self._contents: dict[str, Contents] = {}
        self._summaries: dict[str, str] = {}
        self._copied: set[str] = set()
        self._lock = threading.Lock()

    @classmethod
    def found(cls, storage: Storage) -> DatedFolders | None:
        """The view of a store that holds such folders, None for any other store."""
        if isinstance(storage, cls):
            return storage
        folders = uploads.folders(storage)
        for folder in folders[:_FOLDERS_TRIED]:
            if storage.stat(f"{folder}/{uploads.RUN_RESULTS}") is not None:
                return cls(storage, folders)
        return None

    def is_theirs(self, place: RunPlace) -> bool:
        """Whether a run is in a dated folder (and perhaps copied, too)."""
        return place.name in self._uploads

    # The store, with the runs of the folders in it

    def read(self, key: str, *, max_bytes: int | None = None) -> Blob:
        """As of any store; what the folders hold is put together."""
        try:
            return self.ours.read(key, max_bytes=max_bytes)
        except MissingKey:
            data = self._made(key)
            if data is None:
                raise
            return Blob(data, hashlib.sha256(data).hexdigest(), 0.0)

    def open(self, key: str) -> BinaryIO:
        """As of any store."""
        try:
            return self.ours.open(key)
        except MissingKey:
            data = self._made(key)
            if data is None:
                raise
            return io.BytesIO(data)

    def list(self, prefix: str, *, since: str = "") -> Iterator[Entry]:
        """As of any store; of the folders' runs their records and pointers, not their data."""
        own = [*self.ours.list(prefix, since=since)]
        if not prefix.startswith((layout.RUNS, "ids/runs/")):
            return iter(own)
        listed = (layout.parse_record_key(e.key) for e in own)
        copied = {e.invocation_id for e in listed if e is not None and e.kind == "summary"}
        keys = {e.key for e in own}
        made = [
            Entry(key, 0)
            for upload in self._uploads.values()
            if upload.invocation_id not in copied
            for key in self._keys(upload, prefix)
            if key.startswith(prefix) and is_since(key, prefix, since) and key not in keys
        ]
        return iter(sorted([*own, *made], key=lambda e: e.key))

    def folders(self, prefix: str) -> builtins.list[str]:
        """As of any store; the days on which the folders' runs began are among those of runs/."""
        found = set(self.ours.folders(prefix))
        if prefix == layout.RUNS:
            found |= {u.place.date for u in self._uploads.values()}
        return sorted(found)

    def stat(self, key: str) -> Stat | None:
        """Of objects that are there as they are."""
        return self.ours.stat(key)

    def write(
        self,
        key: str,
        body: bytes | BinaryIO,
        *,
        if_absent: bool = False,
        if_match: str | None = None,
    ) -> str:
        """As of any store; the run of a folder is copied before anything is added to it."""
        upload = self._upload_of(key)
        if upload is not None:
            self._copy(upload)
        return self.ours.write(key, body, if_absent=if_absent, if_match=if_match)

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        """As of any store; the archive asks for no key of a folder."""
        self.ours.delete(key, if_match=if_match)

    # The folders

    @cached_property
    def _uploads(self) -> dict[str, Upload]:
        """Place -> folder. Of folders with the same invocation (a dbt that fails early leaves the
        results of the day before) it is the oldest's."""
        # By name: days in their order, then latest.
        with ThreadPoolExecutor(8) as pool:
            looks = [*pool.map(lambda f: uploads.look(self.ours, f), sorted(self._folders))]
        found: dict[str, Upload] = {}
        for upload in looks:
            if upload is not None:
                found.setdefault(upload.invocation_id, upload)
        return {u.place.name: u for u in found.values()}

    def _upload_of(self, key: str) -> Upload | None:
        """The folder that a key of our tree would be about."""
        parts = key.split("/")
        place = "/".join(parts[1:3]) if parts[0] in ("runs", "data") and len(parts) > 3 else ""
        if place:
            part = parts[2].partition("~")[2]
        elif parts[0] == "leases" or parts[:2] == ["ids", "runs"]:
            part = parts[-1].removesuffix(".json")
        else:
            return None
        # Asked first: to know the folders costs a request for each.
        if not _PART.fullmatch(part):
            return None
        if place:
            return self._uploads.get(place)
        return next((u for u in self._uploads.values() if u.place.part == part), None)

    # What is made of them

    def _keys(self, upload: Upload, prefix: str) -> Iterator[str]:
        place, ident = upload.place, upload.invocation_id
        records = place.records(ident)
        if records.startswith(prefix) or prefix.startswith(records):
            yield place.begun(ident)
            yield place.commit(ident)
            if place.name not in self._summaries:
                self._summaries[place.name] = uploads.summary_key(self.ours, upload)
            yield self._summaries[place.name]
        yield layout.run_pointer(upload.run.run_id)

    def _made(self, key: str) -> bytes | None:
        if key.startswith("ids/invocations/"):
            for known in self._uploads.values():
                if layout.invocation_pointer(known.invocation_id) == key:
                    run = known.run
                    return _json(InvocationPointer(FORMAT_VERSION, run.run_id, run.began))
        upload = None if key.startswith("leases/") else self._upload_of(key)
        if upload is None:
            return None
        if key.startswith("ids/"):
            return _json(RunPointer(FORMAT_VERSION, upload.run))
        invocation, _, name = key.split("/", 3)[3].partition("/")
        if invocation != encode_id(upload.invocation_id):
            return None
        if key.startswith(layout.DATA):
            return self._data(upload, name.removesuffix(".zst"))
        commit = self._read(upload).commit
        records = {"commit.json": commit, "begun.json": Begun(FORMAT_VERSION, commit.invocation)}
        return _json(records[name]) if name in records else None

    def _data(self, upload: Upload, name: str) -> bytes | None:
        if name == "results.json":
            data = self._read(upload).results
        elif name == "graph.json":
            data = self._read(upload).graph
        elif name in layout.ARTIFACTS:
            data = self.ours.read(f"{upload.folder}/{name}").data
        else:
            return None
        return zstandard.ZstdCompressor(level=1).compress(data)

    def _read(self, upload: Upload) -> Contents:
        name = upload.place.name
        if name not in self._contents:
            # A plan looks at one run after another, and at each several times.
            self._contents = {name: uploads.put_together(self.ours, upload)}
        return self._contents[name]

    def _copy(self, upload: Upload) -> None:
        """Make it a run of our own tree, as `archive` would have. Done once, by whoever."""
        with self._lock:
            name, ident = upload.place.name, upload.invocation_id
            if name in self._copied:
                return
            # The summary is what publishing writes last.
            if next(self.ours.list(upload.place.records(ident) + "~"), None) is None:
                self._publish(upload)
            self._copied.add(name)

    def _publish(self, upload: Upload) -> None:
        from .archive import Archive

        contents = self._read(upload)
        with tempfile.TemporaryDirectory(prefix="dbt-recover-") as directory:
            home = Path(directory)
            spool = Spool.create(home, SpoolState(self.url, [], contents.commit.invocation))
            kept = []
            for name in layout.ARTIFACTS:
                with suppress(MissingKey):
                    self._fetch(f"{upload.folder}/{name}", home / name)
                    kept.append(spool.keep_file(name, home / name))
            ran = read_run_results((home / uploads.RUN_RESULTS).read_bytes())
            uploads.check_same(self.ours, upload, ran)
            kept.append(spool.keep_bytes("graph.json", contents.graph))
            kept.append(spool.keep_bytes("results.json", contents.results))
            # With the same nonce whoever copies it: another's commit is as good as ours.
            nonce = hashlib.sha256(upload.invocation_id.encode()).hexdigest()[:16]
            commit = msgspec.structs.replace(contents.commit, artifacts=kept, nonce=nonce)
            Publication(Archive(self.ours), spool).finish(commit)

    def _fetch(self, key: str, path: Path) -> None:
        with closing(self.ours.open(key)) as stream, path.open("wb") as file:
            shutil.copyfileobj(stream, file, 1 << 20)


def own(storage: Storage) -> Storage:
    """The store without another writer's folders."""
    return storage.ours if isinstance(storage, DatedFolders) else storage


def _json(record: msgspec.Struct) -> bytes:
    return msgspec.json.encode(record)
