"""The place of one case: a dbt project, its DuckDB file, its archive, and every dbt that ran there.

dbt is started through a script that keeps its argv, and its JSON events by a hard link: what counts
as executed is dbt's own word, whoever started it and however it ended.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
from _equivalence_warm import CLIENT

BIN = Path(sys.executable).parent

_DBT = """\
#!/bin/sh
call="$EQ_CALLS/$(printf %03d "$(ls "$EQ_CALLS" | wc -l)")"
mkdir "$call"
printf '%s\\n' "$@" > "$call/argv"
if [ -z "$DBT_LOG_PATH" ]; then
  export DBT_LOG_PATH="$call/log" DBT_LOG_FORMAT_FILE=json DBT_LOG_LEVEL_FILE=debug
  export DBT_LOG_FILE_MAX_BYTES=0
fi
mkdir -p "$DBT_LOG_PATH"
: >> "$DBT_LOG_PATH/dbt.log"
ln "$DBT_LOG_PATH/dbt.log" "$call/events"
exec "$EQ_REAL_DBT" "$@"
"""

PATIENCE = 150.0
"""Seconds after which something hangs."""


class Stuck(Exception):
    """Something did not end, or did not begin."""


@dataclass(frozen=True)
class Ran:
    """A process that ended."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Execution:
    """dbt worked on a node."""

    unique_id: str
    status: str
    """As dbt finished it; empty if it never did."""
    call: int
    began: int
    ended: int
    """Positions in the order of all events of all calls; `ended` is huge if it did not end."""


NEVER = 1 << 60

Table = tuple[str, tuple[tuple[str, str], ...], Counter[str]]
"""Kind (a view's with its definition), columns, rows."""


@dataclass(frozen=True)
class Kill:
    """When and how a running dbt is ended."""

    signal: int
    """SIGINT and SIGTERM go to the process that was started, SIGKILL to it and to its dbt."""
    node: str = ""
    """unique_id of the node that is slow, so that it is in flight; empty: any moment will do."""
    slow: str = ""
    """Its name in control.slow."""
    settle: bool = False
    """Whether everything else that can run is waited for first."""
    events: int = 0
    """Where there is no node: how many nodes have to have begun or ended first."""
    delay: float = 0.0
    """Then how many seconds more."""
    only_dbt: bool = False
    """SIGKILL hits dbt alone, as the kernel's out-of-memory killer does."""

    @property
    def story(self) -> str:
        """In words."""
        if not self.node:
            return f"{self._signal} at event {self.events} and {1000 * self.delay:.0f} ms later"
        when = "when all else had run" if self.settle else "as it began"
        return f"{self._signal} while {self.slow} was at work, {when}"

    @property
    def _signal(self) -> str:
        return "SIGKILL to dbt alone" if self.only_dbt else signal.Signals(self.signal).name


@contextmanager
def warm_dbt(home: Path) -> Iterator[Path]:
    """An executable that is dbt, without the time that its imports take (see _equivalence_warm)."""
    address = str(home / "dbt.socket")
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("_equivalence_warm.py")), address],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    client = home / "warm-dbt"
    client.write_text(CLIENT.format(python=sys.executable, address=address))
    client.chmod(0o755)
    try:
        while not Path(address).exists():
            if server.poll() is not None:
                raise Stuck("dbt could not be loaded")
            time.sleep(0.05)
        yield client
    finally:
        assert server.stdin is not None
        server.stdin.close()
        server.wait()


class Room:
    """A directory `here` in which everything happens, and copies of it."""

    def __init__(self, home: Path, dbt: Path | None = None) -> None:
        self.home = home
        self.real_dbt = dbt or BIN / "dbt"
        self.here = home / "here"
        self.project = self.here / "project"
        self.database = self.here / "warehouse.duckdb"
        self.archive = self.here / "archive"
        self.calls = self.here / "calls"
        (home / "bin").mkdir(parents=True)
        script = home / "bin" / "dbt"
        script.write_text(_DBT)
        script.chmod(0o755)
        for directory in (self.project, self.calls):
            directory.mkdir(parents=True)

    # -- its contents --------------------------------------------------------------------------

    def write(self, files: Mapping[str, str]) -> None:
        """Make the project's files these; leave alone those that are as they should be."""
        for path in [
            p
            for d in ("models", "seeds", "snapshots", "tests", "macros")
            for p in (self.project / d).rglob("*")
            if p.is_file()
        ]:
            if path.relative_to(self.project).as_posix() not in files:
                path.unlink()
        for name, text in files.items():
            path = self.project / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists() or path.read_text() != text:
                path.write_text(text)

    def sql(self, *statements: str) -> list[Any]:
        """Ask the warehouse; the rows of the last statement."""
        rows: list[Any] = []
        with self._connect() as connection:
            for statement in statements:
                rows = connection.execute(statement).fetchall()
        return rows

    def _connect(self) -> duckdb.DuckDBPyConnection:
        deadline = time.monotonic() + 30
        while True:
            try:
                return duckdb.connect(str(self.database))
            except duckdb.IOException:
                # A dbt that was killed a moment ago.
                if time.monotonic() > deadline:
                    raise Stuck("a dbt that was killed lives on") from None
                time.sleep(0.1)

    def save(self, name: str) -> None:
        """Keep a copy of everything as it is."""
        shutil.copytree(self.here, self.home / name)

    def restore(self, name: str) -> None:
        """Everything as it was."""
        shutil.rmtree(self.here)
        shutil.copytree(self.home / name, self.here)

    def lose_disk(self) -> None:
        """A new machine: the project as it is in git, the archive, the warehouse."""
        for name in ("target", "logs", ".dbt-recover", ".user.yml"):
            path = self.project / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def tables(self) -> dict[str, Table]:
        """`schema.name` -> what is in it, of everything but the switches.

        Of snapshots without dbt's columns, but with whether a row is the valid one.
        """
        with self._connect() as connection:
            views = dict(
                connection.execute(
                    "select schema_name || '.' || view_name, sql from duckdb_views()"
                    " where not internal"
                ).fetchall()
            )
            names = connection.execute(
                "select table_schema, table_name from information_schema.tables"
                " where table_schema <> 'control'"
            ).fetchall()
            return {
                f"{schema}.{name}": _table(connection, schema, name, views)
                for schema, name in names
            }

    # -- processes -----------------------------------------------------------------------------

    def environment(self) -> dict[str, str]:
        """Of every process in the room."""
        ours = ("DBT_", "AIRFLOW_", "EQ_")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
        return kept | {
            "PATH": f"{self.home / 'bin'}{os.pathsep}{BIN}{os.pathsep}{kept.get('PATH', os.defpath)}",
            "EQ_REAL_DBT": str(self.real_dbt),
            "EQ_CALLS": str(self.calls),
            "EQ_DATABASE": str(self.database),
            "DBT_RECOVER_ARCHIVE": str(self.archive),
            "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
            "DO_NOT_TRACK": "1",
        }

    def dbt(self, *words: str, kill: Kill | None = None) -> Ran:
        """dbt, without dbt-recover."""
        return self._run(["dbt", *words], kill)

    def recover(self, *words: str, kill: Kill | None = None) -> Ran:
        """dbt-recover."""
        return self._run([sys.executable, "-m", "dbt_recover", *words], kill)

    def _run(self, argv: Sequence[str], kill: Kill | None) -> Ran:
        if kill and kill.node:
            # A sum over this many rows takes minutes.
            self.sql(f"insert into control.slow values ('{kill.slow}', 60000000000)")
        before = len(self._calls())
        out, err = self.home / "out", self.home / "err"
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen(
                argv,
                cwd=self.project,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
            try:
                if kill:
                    self._end(process, kill, before)
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                _kill_all(process.pid)
                process.wait()
                raise Stuck(f"{' '.join(argv[-6:])} did not end") from None
        if kill and kill.node:
            self.sql("delete from control.slow")
        return Ran(
            process.returncode, out.read_text("utf-8", "replace"), err.read_text("utf-8", "replace")
        )

    def _end(self, process: subprocess.Popen[bytes], kill: Kill, before: int) -> None:
        """Wait for the moment, then kill."""
        deadline = time.monotonic() + PATIENCE

        def waited(done: Callable[[], bool]) -> bool:
            while not done():
                if process.poll() is not None:
                    return False  # it ended before the moment came
                if time.monotonic() > deadline:
                    _kill_all(process.pid)
                    raise Stuck(f"{kill.node} never began")
                time.sleep(0.01)
            return True

        def began() -> bool:
            return any(
                name == "NodeStart" and uid == kill.node
                for call in self._calls()[before:]
                for name, uid, _ in read_events(call)
            )

        def moment() -> bool:
            calls = self._calls()[before:]
            return bool(calls) and sum(len(list(read_events(c))) for c in calls) >= kill.events

        if not waited(began if kill.node else moment):
            return
        time.sleep(kill.delay)
        if kill.settle:
            size, since = -1, time.monotonic()

            def quiet() -> bool:
                nonlocal size, since
                now = sum((c / "events").stat().st_size for c in self._calls()[before:])
                if now != size:
                    size, since = now, time.monotonic()
                return time.monotonic() - since > 0.7

            waited(quiet)
        children = _children(process.pid)
        with suppress(ProcessLookupError):  # it has just come to its own end
            if kill.signal != signal.SIGKILL:
                os.killpg(process.pid, kill.signal)
                return
            if kill.only_dbt and children:
                for child in children:
                    os.kill(child, signal.SIGKILL)
                return
        _kill_all(process.pid)

    # -- what dbt says it did ------------------------------------------------------------------

    def _calls(self) -> list[Path]:
        return sorted(p for p in self.calls.iterdir() if (p / "events").exists())

    def argvs(self) -> list[list[str]]:
        """Of every dbt that ran, in order."""
        return [(c / "argv").read_text().splitlines() for c in self._calls()]

    def executions(self, since: int = 0) -> list[Execution]:
        """What the calls from this one on executed, in order."""
        found: list[Execution] = []
        position = 0
        for number, call in enumerate(self._calls()):
            began: dict[str, int] = {}
            ended: dict[str, tuple[str, int]] = {}
            for name, uid, status in read_events(call):
                position += 1
                if name == "NodeStart":
                    began.setdefault(uid, position)
                else:  # of a microbatch model there are several, and the last one counts
                    ended[uid] = (status, position)
            for uid in began.keys() | ended.keys():
                status, end = ended.get(uid, ("", NEVER))
                if status == "skipped" or uid.startswith("operation.") or number < since:
                    continue
                found.append(Execution(uid, status, number, began.get(uid, end), end))
        return sorted(found, key=lambda e: (e.call, e.began))

    def manifest(self) -> dict[str, Any]:
        """dbt's, of the last command."""
        document: dict[str, Any] = json.loads(
            (self.project / "target" / "manifest.json").read_text()
        )
        return document


def read_events(call: Path) -> Iterable[tuple[str, str, str]]:
    """(NodeStart or NodeFinished, unique_id, status) in order."""
    for line in (call / "events").read_bytes().splitlines():
        if b'"NodeStart"' not in line and b'"NodeFinished"' not in line:
            continue
        try:
            event = json.loads(line)
        except ValueError:
            continue  # cut off by a kill
        name, data = event["info"]["name"], event["data"]
        if name in ("NodeStart", "NodeFinished"):
            # dbt starts and finishes ephemeral models, too, and executes nothing.
            if data["node_info"].get("materialized") == "ephemeral":
                continue
            # Not node_info.node_status: of a skipped model it says "started".
            status = data["run_result"]["status"] if name == "NodeFinished" else ""
            yield name, data["node_info"]["unique_id"], status


def _children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    with suppress(OSError):
        return [int(word) for word in path.read_text().split()]
    return []


def _kill_all(pid: int) -> None:
    """The process and what it started, so that none of them sees another one die."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        for child in _children(pid):
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        os.kill(pid, signal.SIGKILL)


_EPHEMERAL = re.compile(r"__dbt__cte__(\w+) AS \(")


def definition(sql: str) -> str:
    """A view's, in a form that does not depend on how dbt put ephemeral models into it: it compiles
    them in several threads, and one that reads another has that inside it, or beside it, as it
    happens."""
    ephemeral: dict[str, str] = {}

    def without(text: str) -> str:
        while found := _EPHEMERAL.search(text):
            depth, end = 1, found.end()
            while depth:
                depth += {"(": 1, ")": -1}.get(text[end], 0)
                end += 1
            ephemeral[found[1]] = without(text[found.end() : end - 1])
            text = text[: found.start()] + text[end:]
        return " ".join(text.replace("WITH ", " ").replace(",", " ").split())

    own = without(sql)
    return "\n".join([own, *(f"{name}: {text}" for name, text in sorted(ephemeral.items()))])


def _table(
    connection: duckdb.DuckDBPyConnection, schema: str, name: str, views: Mapping[str, str]
) -> Table:
    columns = connection.execute(
        "select column_name, data_type from information_schema.columns"
        " where table_schema = ? and table_name = ? order by ordinal_position",
        [schema, name],
    ).fetchall()
    kind = views.get(f"{schema}.{name}", "table")
    kind = kind if kind == "table" else definition(kind)
    listed = [f'"{column}"' for column, _ in columns]
    if any(column == "dbt_scd_id" for column, _ in columns):
        columns = [c for c in columns if not c[0].startswith("dbt_")]
        listed = [f'"{column}"' for column, _ in columns] + ["dbt_valid_to is null"]
    try:
        rows = connection.execute(f'select {", ".join(listed)} from "{schema}"."{name}"').fetchall()
    except duckdb.Error as exc:
        rows = [(f"cannot be read: {str(exc)[:200]}",)]
    return kind, tuple(columns), Counter(map(repr, rows))
