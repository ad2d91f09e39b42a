"""`doctor`: whether everything that `exec` and `retry` need is there, and how to mend what is not.

Writes one object of its own below probe/ in the archive and removes it; S3 stores are asked with
a second one whether they refuse conditional writes. Starts dbt for no more than its version.
"""

from __future__ import annotations

import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from . import dbt, layout
from .archive import HEARTBEAT_LOST_AFTER, Archive
from .checkout import Project
from .errors import DbtError, NotFoundError, RecoverError, StorageError
from .foreign import own
from .machine import process_lives, this_machine
from .model import as_word
from .naming import resolve
from .prune import is_live, leases
from .publish import find_spools
from .storage.base import PreconditionFailed, Storage

OK, WARN, FAIL = "ok", "warn", "fail"

_PROBE = "probe/"
_SKEW_SECONDS = 5.0
"""By which clocks may differ before it is said; nothing of ours compares two clocks."""
_VERSION_SECONDS = 20
_SUPPORTED = ((1, 8), (1, 12))


@dataclass(frozen=True)
class Check:
    """One line."""

    name: str
    state: str
    """ok, warn or fail."""
    what: str
    mend: str = ""
    exit_code: int = 0
    """Of the error that a failure is."""


@dataclass(frozen=True)
class Diagnosis:
    """All lines."""

    checks: tuple[Check, ...]

    @property
    def exit_code(self) -> int:
        """0 if nothing failed, else that of the first failure."""
        return next((c.exit_code for c in self.checks if c.state == FAIL), 0)


@dataclass(frozen=True)
class Surroundings:
    """What a command would work with. Opening the archive or the project may raise."""

    archive: Callable[[], Archive]
    project: Callable[[], Project | None]
    environ: Mapping[str, str]
    dbt: str | None = None
    spool: Path | None = None


def examine(around: Surroundings) -> Diagnosis:
    """Look at all of it. Raises nothing that is one of our errors: it is a line."""
    checks: list[Check] = []
    archive = _opened(around, checks)
    if archive is not None:
        checks += _probe(own(archive.storage))
    checks.append(_dbt(around))
    checks += _project(around, archive)
    if archive is not None:
        checks += _guarded("leases", lambda: _leases(archive))
    return Diagnosis(tuple(checks))


def _failed(name: str, error: RecoverError, mend: str = "") -> Check:
    return Check(name, FAIL, error.message, error.hint or mend, error.exit_code)


def _guarded(name: str, look: Callable[[], Iterator[Check]]) -> list[Check]:
    checks: list[Check] = []
    try:
        checks.extend(look())
    except RecoverError as exc:
        checks.append(_failed(name, exc))
    return checks


# The archive


def _opened(around: Surroundings, checks: list[Check]) -> Archive | None:
    """The archive, if it can be reached: without that the rest of it is not asked."""
    try:
        archive = around.archive()
        archive.storage.folders("")
    except RecoverError as exc:
        checks.append(_failed("archive", exc, "check --archive, the network and the credentials"))
        return None
    checks.append(_marker(archive))
    return archive


def _marker(archive: Archive) -> Check:
    try:
        archive.check()
    except NotFoundError as exc:
        mend = "the first `dbt-recover exec -- dbt build` makes one; else check --archive"
        return Check("archive", WARN, exc.message, mend)
    except RecoverError as exc:
        return _failed("archive", exc)
    if archive.dated:
        what = f"{archive.url} holds dated folders that another program writes; they are read only"
        return Check("archive", OK, what)
    return Check("archive", OK, f"{archive.url}, format version {layout.FORMAT_VERSION}")


def _probe(storage: Storage) -> Iterator[Check]:
    """What may be done, by doing it to an object of our own."""
    key, body = f"{_PROBE}{secrets.token_hex(8)}", secrets.token_bytes(16)
    written = _tried("write", lambda: storage.write(key, body, if_absent=True))
    yield written
    if written.state == FAIL:
        return
    yield _tried("read", lambda: _same(storage.read(key, max_bytes=64).data, body))
    yield _tried("list", lambda: _same([e.key for e in storage.list(key)], [key]))
    yield from _guarded("clock", lambda: _clocks(storage, key))
    yield from _guarded("conditions", lambda: _conditions(storage, key))
    yield _tried("delete", lambda: _deleted(storage, key))


_RIGHTS = {
    "write": "exec, archive and retry need it (s3:PutObject); runs, show, plan and fetch do not",
    "read": "everything needs it (s3:GetObject)",
    "list": "everything needs it (s3:ListBucket on the prefix)",
    "delete": "retry and prune need it (s3:DeleteObject)",
}


def _tried(name: str, act: Callable[[], object]) -> Check:
    try:
        act()
    except RecoverError as exc:
        return Check(name, FAIL, exc.message, exc.hint or _RIGHTS[name], exc.exit_code)
    return Check(name, OK, "permitted")


def _same(found: object, expected: object) -> None:
    if found != expected:
        raise StorageError(
            "what was written is not what is there",
            hint="is this a cache or a proxy in front of the store? Name the store itself",
        )


def _deleted(storage: Storage, key: str) -> None:
    storage.delete(key)
    _same(storage.stat(key), None)


def _clocks(storage: Storage, key: str) -> Iterator[Check]:
    """By the store's own clock the probe is new; and how far this machine's is from it."""
    stat = storage.stat(key)
    if stat is None:
        return
    if stat.age > HEARTBEAT_LOST_AFTER:
        yield Check(
            "clock",
            FAIL,
            f"the store says that what was written now is {stat.age:.0f} s old",
            "leases and signs of life would expire at once; mend the store's clock",
            StorageError.exit_code,
        )
        return
    ahead = _ahead(storage)
    if ahead is None:
        yield Check("clock", OK, f"the store's own: a new object is {stat.age:.0f} s old")
    elif abs(ahead) > _SKEW_SECONDS:
        yield Check(
            "clock",
            WARN,
            f"this machine is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the store",
            "dates of runs are this machine's: set its clock (leases do not depend on it)",
        )
    else:
        yield Check("clock", OK, f"within {_SKEW_SECONDS:.0f} s of the store's")


def _ahead(storage: Storage) -> float | None:
    """Seconds by which this machine's clock is ahead of the store's; None if it cannot be told."""
    clock: Callable[[], float] | None = getattr(storage, "clock", None)
    return time.time() - clock() if clock is not None else None


def _conditions(storage: Storage, key: str) -> Iterator[Check]:
    ask: Callable[[], bool] | None = getattr(storage, "preconditions_honoured", None)
    if ask() if ask is not None else _refuses_both(storage, key):
        yield Check("conditions", OK, "a write under a condition that does not hold is refused")
        return
    yield Check(
        "conditions",
        FAIL,
        "the store accepts writes whatever their condition: two retries of a run, or two writers of "
        "an invocation, would both win",
        "use a store that honours If-None-Match and If-Match, or a newer version of this one",
        StorageError.exit_code,
    )


def _refuses_both(storage: Storage, key: str) -> bool:
    return _refuses(lambda: storage.write(key, b"2", if_absent=True)) and _refuses(
        lambda: storage.write(key, b"2", if_match='"0"')
    )


def _refuses(write: Callable[[], object]) -> bool:
    try:
        write()
    except PreconditionFailed:
        return True
    return False


def _leases(archive: Archive) -> Iterator[Check]:
    found = leases(archive.storage)
    for part, holder, age in found:
        run_id = layout.decode_id(part)
        if is_live(holder, age):
            what = f"run {run_id} is being retried by {holder.holder}"
            mend = f"wait; if it is gone for good: dbt-recover unlock {as_word(run_id)}"
        else:
            what = f"run {run_id}: {holder.holder} was stopped while it retried it"
            mend = f"nothing: dbt-recover retry {as_word(run_id)} takes over"
        yield Check("leases", WARN, f"{what} (last sign of life {age:.0f} s ago)", mend)
    if not found:
        yield Check("leases", OK, "none held")


# This machine


def _dbt(around: Surroundings) -> Check:
    path = "dbt"
    try:
        path = dbt.find_dbt(around.dbt, around.environ)
        version = dbt_version(path, around.environ)
    except DbtError as exc:
        return _failed("dbt", exc)
    except OSError as exc:
        what, mend = f"{path} cannot be started: {exc.strerror}", "name another with --dbt PATH"
        return Check("dbt", FAIL, what, mend, DbtError.exit_code)
    number = re.match(r"(\d+)\.(\d+)", version)
    if number is None:
        mend = f"see what it says: {path} --version"
        return Check("dbt", WARN, f"{path} does not say its version", mend)
    known = (int(number[1]), int(number[2]))
    if not (_SUPPORTED[0] <= known <= _SUPPORTED[1] or known[0] == 2):
        mend = "tried are dbt Core 1.8 to 1.12 and dbt 2; try `dbt-recover plan` before `retry`"
        return Check("dbt", WARN, f"{path}, version {version}", mend)
    return Check("dbt", OK, f"{path}, version {version}")


_ASK = """\
from importlib import metadata
for name in ("dbt-core", "dbt"):
    try:
        print(metadata.version(name))
        break
    except metadata.PackageNotFoundError:
        pass
"""


def dbt_version(path: str, environ: Mapping[str, str]) -> str:
    """The version of a dbt executable; empty if it does not say. `dbt --version` takes seconds and
    asks PyPI for newer ones, so that the environment it is in is asked first."""
    python = Path(path).resolve().with_name("python")
    if python.exists():
        said = dbt.capture([str(python), "-I", "-c", _ASK], env=environ).strip()
        if said:
            return said
    # Not in a Python environment: a script of somebody's, or dbt 2 as a single file.
    bound = shutil.which("timeout", path=environ.get("PATH"))
    argv = [path, "--version"]
    said = dbt.capture([bound, str(_VERSION_SECONDS), *argv] if bound else argv, env=environ)
    found = re.search(r"\b\d+\.\d+\.\d+[0-9A-Za-z.+-]*", said)
    return found[0] if found else ""


def _project(around: Surroundings, archive: Archive | None) -> Iterator[Check]:
    try:
        project = around.project()
    except RecoverError as exc:
        yield _failed("project", exc)
        return
    if project is None:
        mend = "exec and retry run in a dbt project: go there, or pass --project-dir DIR"
        yield Check("project", WARN, "there is none here", mend)
    else:
        yield _matching(project, archive)
    home = around.spool or (project.root / ".dbt-recover" / "spool" if project else None)
    if home is not None:
        yield from _guarded("spool", lambda: _spool(home))


def _matching(project: Project, archive: Archive | None) -> Check:
    if not project.name:
        what = f"{project.root}/dbt_project.yml cannot be read"
        return Check("project", FAIL, what, "dbt parse says what is wrong with it")
    what = f"{project.name} in {project.root}"
    recorded = _latest_project(archive) if archive is not None else ""
    if recorded and recorded != project.name:
        return Check(
            "project",
            WARN,
            f"{what}; the archive's latest run is of project {recorded}",
            "is it the archive of another project? Check --archive and --project-dir",
        )
    return Check("project", OK, what + (", as the archive's latest run" if recorded else ""))


def _latest_project(archive: Archive) -> str:
    try:
        place = resolve(archive, "latest")
        entries = archive.entry(place)
        for ident in sorted(entries.committed):
            return archive.commit_of(place, ident).invocation.project_name
        for ident in sorted(entries.begun):
            return archive.begun_of(place, ident).invocation.project_name
    except RecoverError:
        return ""  # no run, or one that `verify` has something to say about
    return ""


def _spool(home: Path) -> Iterator[Check]:
    waiting = []
    for spool in find_spools(home):
        state = spool.state()
        at_work = state.invocation.machine == this_machine() and any(
            process_lives(mark) for mark in state.processes
        )
        if not at_work:
            run_id = state.invocation.run.run_id or state.invocation.began
            waiting.append(f"{run_id} (for {state.archive})")
    if waiting:
        what = f"{len(waiting)} records wait in {home}: {', '.join(waiting[:3])}"
        yield Check("spool", WARN, what, "deliver them: dbt-recover archive --resume")
    else:
        yield Check("spool", OK, f"nothing waits in {home}")
    fenced = home.with_name("fenced")
    kept = sorted(p.name for p in fenced.iterdir()) if fenced.is_dir() else []
    if kept:
        yield Check(
            "spool",
            WARN,
            f"{fenced} keeps {len(kept)} attempts that lost their lease and were not published",
            "look at them, then remove them; dbt-recover plan says what the run still needs",
        )
