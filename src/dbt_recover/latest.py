"""latest/: dbt's plain files of the last whole run, for `--state` and for catalogues that want a
stable place.

    latest/manifest.json        of the run's latest invocation that left one
    latest/run_results.json     merged over the run, as `fetch` writes it
    latest/catalog.json         if there is one; perhaps an earlier run's
    latest/pointer.json         which run they are of, and the SHA-256 of each

Several objects cannot change at once. So pointer.json is written last: a reader whose files have
the hashes that one pointer.json names has files that belong together, and any other reader can tell
that they do not. A writer first enters itself there (`updating`), which a writer of an older run
respects, and a writer of a newer one takes over; each file is then written on the condition that it
is the one that was seen while the entry was still its own. So whoever is overtaken stops, and the
newest run's files are what stays.
"""

from __future__ import annotations

import hashlib
import secrets
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from . import layout, state_dir
from .archive import Archive
from .errors import DamagedError, RecoverError, RefusedError
from .foreign import DatedFolders
from .layout import FORMAT_VERSION
from .load import LoadedRun, load
from .model import NEVER_BEGAN
from .pipeline import Pipeline
from .plan import Policy, make_plan
from .records import MAX_RECORD
from .runstate import unsettled
from .storage.base import MissingKey, PreconditionFailed, Storage
from .stream import save

POINTER = layout.LATEST + "pointer.json"
FILES = ("manifest.json", "run_results.json", "catalog.json")

_TRIES = 5
_CHUNK = 1 << 20


class LatestFile(msgspec.Struct, frozen=True):
    """One file of latest/."""

    sha256: str
    size: int
    run_id: str


class LatestWord(msgspec.Struct, frozen=True, omit_defaults=True, order=True):
    """Which state of which run; the greater one is the later one."""

    began: str = ""
    """When the run began."""
    run_id: str = ""
    attempt: int = 0
    invocation_began: str = ""
    """Of the last invocation that is in it."""
    invocation_id: str = ""


class Latest(msgspec.Struct, frozen=True, omit_defaults=True):
    """latest/pointer.json."""

    version: int
    run: LatestWord = LatestWord()
    files: dict[str, LatestFile] = {}
    """Name -> what it is, of `run`; a catalog.json can be an earlier run's."""
    updating: LatestWord | None = None
    """A writer is at work, or was stopped: the files may already be others."""
    nonce: str = ""
    """Tells two writers of the same run apart."""


@dataclass(frozen=True)
class Published:
    """Whether latest/ is this run's now, and if not, why."""

    written: bool
    why: str = ""


class _Overtaken(RecoverError):
    """Somebody with a newer run is at work."""


def publish_latest(archive: Archive, run: LoadedRun) -> Published:
    """Make the run's files those of latest/, if it is whole and none newer is there.

    StorageError and DamagedError as the archive raises them; latest/ then is what it was, or can be
    told to be half written.
    """
    storage = archive.storage
    why = _why_not(run)
    if not why and isinstance(storage, DatedFolders):
        why = "latest/ is written by another program"
    if why:
        return Published(False, why)
    word = _word(run)
    with tempfile.TemporaryDirectory(prefix="dbt-recover-latest-") as directory:
        files: dict[str, LatestFile] = {}
        for attempt in range(_TRIES):
            before, etag = _pointer(storage)
            why = _ahead_of(word, before, storage, again=attempt > 0)
            if why or (before is not None and before.run == word and before.updating is None):
                return Published(not why, why)
            try:
                files = files or _fetch(archive, run, Path(directory))
                _replace(
                    storage, before or Latest(FORMAT_VERSION), etag, word, files, Path(directory)
                )
            except RefusedError as exc:
                return Published(False, exc.message)
            except (_Overtaken, PreconditionFailed):
                continue
            return Published(True)
    return Published(False, "others write there all the time")


def keep_latest(
    archive: Archive, run_id: str, pipelines: Sequence[Pipeline], say: Callable[[str], None]
) -> None:
    """`publish_latest` after a run has become whole. What goes wrong is said and stops nothing: the
    run itself is archived."""
    if archive.dated:
        return
    fresh = Archive(archive.storage)  # what was listed before the run was whole does not count
    try:
        place = fresh.find(run_id)
        if place is not None:
            publish_latest(fresh, load(fresh, place, pipelines=pipelines))
    except RecoverError as exc:
        say(f"dbt-recover: latest/ was not brought up to date: {exc.message}")


def _ahead_of(word: LatestWord, before: Latest | None, storage: Storage, *, again: bool) -> str:
    """Why latest/ is not for this run to write, if it is not."""
    if before is None:
        theirs = any(storage.stat(layout.LATEST + name) for name in FILES)
        return "latest/ is written by another program: it has no pointer.json" if theirs else ""
    newest = max(before.run, before.updating or before.run)
    if newest > word:
        return f"a newer run is there: {newest.run_id}"
    # Entered by another with the same: at first one that was stopped, later one that is at work.
    return "another is writing the same" if again and before.updating == word else ""


def faults_of_latest(storage: Storage) -> Iterator[tuple[str, str]]:
    """What a reader of latest/ would find wrong: (key, what)."""
    try:
        pointer, _ = _pointer(storage)
    except DamagedError as exc:
        yield POINTER, exc.message.removeprefix(f"{POINTER} ")
        return
    for name, file in pointer.files.items() if pointer is not None else ():
        key = layout.LATEST + name
        if name not in FILES:
            yield POINTER, f"names {name[:80]!r}, which is no file of latest/"
            continue
        try:
            with storage.open(key) as stream:
                digest = hashlib.sha256()
                while chunk := stream.read(_CHUNK):
                    digest.update(chunk)
        except MissingKey:
            yield key, "is missing"
            continue
        if digest.hexdigest() != file.sha256:
            yield key, f"is not the one that {POINTER} names: a writer was stopped in between"


def run_of_latest(storage: Storage) -> str:
    """The id of the run that latest/ is of; empty if there is none or it cannot be told."""
    try:
        pointer, _ = _pointer(storage)
    except DamagedError:
        return ""
    return pointer.run.run_id if pointer is not None else ""


def _why_not(run: LoadedRun) -> str:
    if run.scope is not None:
        return "it is one step of a run"
    if run.running:
        return "it is still at work"
    if run.state.warnings:
        return run.state.warnings[0]
    if not run.state.nodes:
        return "it has executed nothing"
    left = make_plan(run.state, run.graph, Policy()).ids or tuple(unsettled(run.state))
    return f"{len(left)} of its nodes are not done" if left else ""


def _word(run: LoadedRun) -> LatestWord:
    last = [i for i in run.state.invocations if i.end != NEVER_BEGAN][-1]
    began, run_id = run.state.run.began, run.place.run_id
    return LatestWord(began, run_id, last.attempt, last.began, last.invocation_id)


def _pointer(storage: Storage) -> tuple[Latest | None, str]:
    try:
        blob = storage.read(POINTER, max_bytes=MAX_RECORD)
        pointer = msgspec.json.decode(blob.data, type=Latest)
    except MissingKey:
        return None, ""
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise DamagedError(
            f"{POINTER} in {storage.url} is damaged: {exc}",
            hint="remove it; the next run that is whole writes it anew",
        ) from exc
    if pointer.version > FORMAT_VERSION:
        raise DamagedError(
            f"{POINTER} in {storage.url} has version {pointer.version}, newer than this "
            "dbt-recover knows",
            hint="upgrade dbt-recover: pip install -U dbt-recover",
        )
    return pointer, blob.etag


def _fetch(archive: Archive, run: LoadedRun, directory: Path) -> dict[str, LatestFile]:
    """Put the files into directory."""
    state_dir.fetch(archive, run, directory, None, {})
    for record in reversed(run.recorded):
        if record.invocation.end in ("lost", "running", NEVER_BEGAN):
            continue
        commit = archive.commit_of(run.place, record.invocation.invocation_id)
        catalog = next((a for a in commit.artifacts if a.name == "catalog.json"), None)
        if catalog is not None:
            save(archive.storage, catalog, directory / "catalog.json")
            break
    return {
        name: _described(directory / name, run.place.run_id)
        for name in FILES
        if (directory / name).exists()
    }


def _described(path: Path, run_id: str) -> LatestFile:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return LatestFile(digest.hexdigest(), path.stat().st_size, run_id)


def _replace(
    storage: Storage,
    before: Latest,
    etag: str,
    word: LatestWord,
    files: dict[str, LatestFile],
    directory: Path,
) -> None:
    entered = msgspec.structs.replace(before, updating=word, nonce=secrets.token_hex(8))
    etag = _write(storage, entered, etag)
    for name in files:
        _put(storage, layout.LATEST + name, directory / name, etag)
    done = Latest(FORMAT_VERSION, word, {**before.files, **files}, nonce=entered.nonce)
    _write(storage, done, etag)


def _write(storage: Storage, pointer: Latest, etag: str) -> str:
    body = msgspec.json.format(msgspec.json.encode(pointer), indent=1)
    if etag:
        return storage.write(POINTER, body, if_match=etag)
    return storage.write(POINTER, body, if_absent=True)


def _put(storage: Storage, key: str, path: Path, entry: str) -> None:
    for _ in range(_TRIES):
        seen = storage.stat(key)
        # Asked after the file was seen: who takes over from now on writes another one.
        pointer = storage.stat(POINTER)
        if pointer is None or pointer.etag != entry:
            break
        with path.open("rb") as body:
            try:
                if seen is None:
                    storage.write(key, body, if_absent=True)
                else:
                    storage.write(key, body, if_match=seen.etag)
                return
            except PreconditionFailed:
                continue  # by one that was overtaken by us, and has not noticed yet
    raise _Overtaken(f"{POINTER} was changed by another")
