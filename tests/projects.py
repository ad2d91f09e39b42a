"""Tiny dbt projects on DuckDB files of their own, and what really happened to them.

Every dbt that starts in a `Checkout` goes through a script on its PATH that keeps dbt's argv, exit
code and JSON events: what a test believes of dbt does not come from the code under test.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import duckdb
import pytest

import dbt_recover

FIXTURES = Path(__file__).parent / "fixtures" / "projects"
ARTIFACTS = FIXTURES.with_name("artifacts")
NAMES = sorted(p.parent.name for p in FIXTURES.glob("*/expect.json"))
DEMO = Path(dbt_recover.__file__).parent / "demo_project"
REAL_DBT = Path(sys.executable).with_name("dbt")
DBT_RECOVER = (sys.executable, "-m", "dbt_recover")

# What belongs to this machine or to a run, and not to a checkout.
_LEFT_BEHIND = ("target", "logs", ".dbt-recover", "*.duckdb*", ".user.yml")

# dbt writes its events as JSON where `exec` and `retry` tell it to, else beside our notes.
_WRAPPER = """\
#!/bin/sh
call="$DBT_CALLS/$(printf %03d "$(ls "$DBT_CALLS" | wc -l)")"
mkdir "$call"
printf '%s\\n' "$@" > "$call/argv"
if [ -z "$DBT_LOG_PATH" ]; then
  export DBT_LOG_PATH="$call/log" DBT_LOG_FORMAT_FILE=json DBT_LOG_LEVEL_FILE=debug
  export DBT_OTEL_FILE_NAME=otel.jsonl
fi
"$REAL_DBT" "$@"
code=$?
echo $code > "$call/exit"
if [ -f "$DBT_LOG_PATH/dbt.log" ]; then cp "$DBT_LOG_PATH/dbt.log" "$call/events"; fi
if [ -f "$DBT_LOG_PATH/otel.jsonl" ]; then cp "$DBT_LOG_PATH/otel.jsonl" "$call/events"; fi
exit $code
"""


@dataclass(frozen=True)
class Expect:
    """expect.json, see fixtures/projects/README.md."""

    command: list[str]
    fails: list[str]
    skipped: list[str]
    retry: list[str]
    why: str


@dataclass(frozen=True)
class Ran:
    """A process that ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """stdout, which is to be one JSON document and nothing else."""
        return json.loads(self.out)


@dataclass(frozen=True)
class Call:
    """One execution of dbt, as dbt itself told it."""

    argv: list[str]
    exit_code: int
    finished: Mapping[str, str]
    """unique_id -> status, of its NodeFinished events."""

    @property
    def executed(self) -> list[str]:
        """Nodes that it worked on."""
        return sorted(u for u, s in self.finished.items() if s != "skipped")

    def value(self, flag: str) -> str | None:
        """What follows a flag in argv."""
        return self.argv[self.argv.index(flag) + 1] if flag in self.argv else None


Table = tuple[list[tuple[str, str]], Counter[str]]
T = TypeVar("T")


@dataclass(frozen=True)
class Checkout:
    """A dbt project, the DuckDB files it builds in, and the calls of dbt that were made in it."""

    home: Path
    """Holds project/, calls/ and bin/dbt."""
    warehouse: Path
    """Holds the DuckDB files."""
    mended: Mapping[str, Path]
    """File of the project -> the one that mends it."""
    fixture: Path | None = None
    environ: Mapping[str, str] = field(default_factory=dict)
    """Added to what every process gets."""

    @property
    def root(self) -> Path:
        """The project's directory, where everything runs."""
        return self.home / "project"

    @property
    def database(self) -> Path:
        """The DuckDB file of target dev."""
        return self.warehouse / "warehouse.duckdb"

    @property
    def dbt_path(self) -> Path:
        """The script that stands for dbt and keeps its calls."""
        return self.home / "bin" / "dbt"

    @property
    def expect(self) -> Expect:
        """What the fixture promises."""
        assert self.fixture is not None
        return Expect(**json.loads((self.fixture / "expect.json").read_text()))

    @property
    def calls(self) -> list[Call]:
        """Every dbt that ran here, in order."""
        return [_call(p) for p in sorted((self.home / "calls").iterdir())]

    def having(self, **environ: object) -> Checkout:
        """The same with these variables."""
        return replace(self, environ={**self.environ, **{k: str(v) for k, v in environ.items()}})

    def recover(self, *words: object) -> Ran:
        """dbt-recover, in the project."""
        return self.run(*DBT_RECOVER, *words)

    def plan(self, *words: object) -> list[str]:
        """unique_ids of `plan`, sorted."""
        ran = self.recover("plan", *words, "-o", "json")
        assert ran.code == 0, ran
        return sorted(node["unique_id"] for node in ran.json["nodes"])

    def dbt(self, *words: object) -> Ran:
        """dbt itself, in the project."""
        return self.run("dbt", *words)

    def run(self, *argv: object) -> Ran:
        """Any command, in the project."""
        done = subprocess.run(
            [str(word) for word in argv],
            cwd=self.root,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    @contextmanager
    def start(
        self, *words: object, tty: int | None = None, program: tuple[str, ...] = DBT_RECOVER
    ) -> Iterator[Running]:
        """dbt-recover, left at work; with dbt itself on PATH, not the script that stands for it,
        so that signals reach who they would reach. On the terminal `tty`, if one is given."""
        environ = self._environment()
        real = os.pathsep.join((str(Path(environ["REAL_DBT"]).parent), environ["PATH"]))
        output = self.home / f"output-{len(list(self.home.glob('output-*')))}"
        output.mkdir()
        with (output / "out").open("wb") as out, (output / "err").open("wb") as err:
            process = subprocess.Popen(
                [*program, *map(str, words)],
                cwd=self.root,
                env=environ | {"PATH": real},
                stdin=subprocess.DEVNULL if tty is None else tty,
                stdout=out if tty is None else tty,
                stderr=err if tty is None else tty,
                start_new_session=True,
                # So that the kernel sends it SIGINT for a Ctrl-C; Python 3.11 has no word for it.
                preexec_fn=None if tty is None else _own_terminal,  # noqa: PLW1509
            )
        running = Running(process, output)
        try:
            yield running
        finally:
            running.stop()

    def _environment(self) -> dict[str, str]:
        ours = ("DBT_", "AIRFLOW_", "FIXTURE_")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
        return kept | {
            "PATH": f"{self.dbt_path.parent}{os.pathsep}{kept.get('PATH', os.defpath)}",
            "REAL_DBT": str(REAL_DBT),
            "DBT_CALLS": str(self.home / "calls"),
            "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
            "DO_NOT_TRACK": "1",
            "FIXTURE_DB": str(self.database),
            "FIXTURE_PROD_DB": str(self.warehouse / "warehouse_prod.duckdb"),
            "DBT_RECOVER_DEMO_DB": str(self.database),
            **self.environ,
        }

    def mend(self, *only: str) -> None:
        """Remove the cause of the failure: all of it, or that in these files of the project."""
        for name in only or self.mended:
            # Not its time of writing: an editor leaves today's.
            shutil.copyfile(self.mended[name], self.root / name)
        if not only and self.fixture is not None:
            self._sql(self.fixture / "fix" / "fix.sql")

    def set_up(self) -> None:
        """Run setup.sql, where the fixture has one."""
        if self.fixture is not None:
            self._sql(self.fixture / "setup.sql")

    def _sql(self, path: Path) -> None:
        if path.exists():
            self.sql(path.read_text())

    def sql(self, text: str) -> list[Any]:
        """Ask the warehouse."""
        with duckdb.connect(str(self.database)) as connection:
            return connection.execute(text).fetchall()

    def tables(self) -> dict[str, Table]:
        """`file.schema.table` -> columns and rows, of every table and view of every DuckDB file.

        Rows without what dbt writes of its own time into snapshots.
        """
        found: dict[str, Table] = {}
        for path in sorted(self.warehouse.glob("*.duckdb")):
            with duckdb.connect(str(path), read_only=True) as connection:
                for schema, name in connection.execute(
                    "select table_schema, table_name from information_schema.tables"
                    " where table_catalog = current_database()"
                ).fetchall():
                    found[f"{path.stem}.{schema}.{name}"] = _table(connection, schema, name)
        return found

    def run_results(self, target: str = "target") -> dict[str, str]:
        """unique_id -> status, as the last dbt wrote it."""
        document = json.loads((self.root / target / "run_results.json").read_text())
        return {r["unique_id"]: r["status"] for r in document["results"]}

    def args(self) -> dict[str, Any]:
        """The args that the last dbt says it had."""
        document = json.loads((self.root / "target" / "run_results.json").read_text())
        args: dict[str, Any] = document["args"]
        return args

    def elsewhere(self, home: Path) -> Checkout:
        """A second checkout of the project as it is now, on the same warehouse: no target/, no
        archive, no calls."""
        return _lay_out(replace(self, home=home), self.root)

    def copied(self, home: Path) -> Checkout:
        """All of it once more, with its own copy of the warehouse and of the archive in it."""
        assert self.warehouse == self.home
        shutil.copytree(self.home, home)
        return replace(self, home=home, warehouse=home)

    def clean_build(self, home: Path) -> dict[str, Table]:
        """The tables that the fixture's command leaves on an empty warehouse, once mended."""
        clean = replace(self, home=home, warehouse=home)
        _lay_out(clean, self.root)
        clean.set_up()
        clean.mend()
        command = self.expect.command if self.fixture is not None else ["build"]
        done = clean.dbt(*command)
        assert done.code == 0, done.out
        return clean.tables()


def checkout(name: str, home: Path) -> Checkout:
    """The fixture project of this name, ready to fail."""
    fixture = FIXTURES / name
    fix = fixture / "fix"
    files = [p for p in fix.rglob("*") if p.is_file() and p != fix / "fix.sql"]
    mended = {p.relative_to(fix).as_posix(): p for p in files}
    made = _lay_out(Checkout(home, home, mended, fixture), fixture)
    made.set_up()
    return made


def demo(home: Path) -> Checkout:
    """The project of `dbt-recover demo`."""
    mended = {f"seeds/{p.name}": p for p in (DEMO / "mended").iterdir()}
    return _lay_out(Checkout(home, home, mended), DEMO)


def failed(name: str, home: Path) -> Checkout:
    """The fixture project after its command has failed under `exec`."""
    made = checkout(name, home)
    ran = made.recover("exec", "--", "dbt", *made.expect.command)
    assert ran.code == 1, ran
    return made


def listing(directory: Path) -> dict[str, bytes]:
    """Every file below a directory and what is in it; the directories themselves, too."""
    return {
        str(p.relative_to(directory)): p.read_bytes() if p.is_file() else b"<directory>"
        for p in sorted(directory.rglob("*"))
    }


def with_status(results: Mapping[str, str], *statuses: str) -> list[str]:
    """Sorted unique_ids of the results that have one of these."""
    return sorted(u for u, status in results.items() if status in statuses)


def without(ids: Iterable[str], *gone: str) -> list[str]:
    """Sorted, without these."""
    return sorted(set(ids) - set(gone))


def _lay_out(made: Checkout, source: Path) -> Checkout:
    ignored = shutil.ignore_patterns(*_LEFT_BEHIND)
    shutil.copytree(source, made.root, ignore=ignored)
    shutil.rmtree(made.root / "fix", ignore_errors=True)
    for name in ("expect.json", "setup.sql"):
        (made.root / name).unlink(missing_ok=True)
    (made.home / "calls").mkdir()
    made.dbt_path.parent.mkdir()
    made.dbt_path.write_text(_WRAPPER)
    made.dbt_path.chmod(0o755)
    return made


def _call(directory: Path) -> Call:
    finished: dict[str, str] = {}
    events = directory / "events"
    for line in events.read_bytes().splitlines() if events.exists() else ():
        kind, uid, status = node_event(line)
        if kind == "finish":
            finished[uid] = status
    argv = (directory / "argv").read_text().splitlines()
    return Call(argv, int((directory / "exit").read_text()), finished)


def _table(connection: duckdb.DuckDBPyConnection, schema: str, name: str) -> Table:
    columns = connection.execute(
        "select column_name, data_type from information_schema.columns"
        " where table_catalog = current_database() and table_schema = ? and table_name = ?"
        " order by ordinal_position",
        [schema, name],
    ).fetchall()
    if any(column == "dbt_scd_id" for column, _ in columns):
        columns = [c for c in columns if not c[0].startswith("dbt_")]
    listed = ", ".join(f'"{column}"' for column, _ in columns)
    rows = connection.execute(f'select {listed} from "{schema}"."{name}"').fetchall()
    return columns, Counter(map(repr, rows))


# ---- dbt at work, stopped at a known moment ----------------------------------------------------


def written(home: Path, files: Mapping[str, str]) -> Checkout:
    """A checkout of a project that is written down in a test: path -> text."""
    source = home.with_name(f"{home.name}-source")
    for name, text in files.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text)
    return _lay_out(Checkout(home, home, {}), source)


_VERSIONS = ("1.8", "1.9", "1.10", "1.11", "1.12", "v2")
_NAMED = os.environ.get("DBT_RECOVER_MATRIX", "1.11")
MATRIX = _VERSIONS if _NAMED == "all" else tuple(_NAMED.split(","))
"""The dbt versions to run on."""


def dbt_of(version: str) -> dict[str, str]:
    """Variables under which a `Checkout` uses this dbt. Skips with the reason if it is not here."""
    venvs = REAL_DBT.parents[2] / ".venvs"
    dbt = REAL_DBT if version == "1.11" else venvs / f"dbt-{version}" / "bin" / "dbt"
    if not dbt.exists():
        pytest.skip(f"no dbt {version} here: make .venvs/dbt-{version}")
    library = venvs / "dbt-v2" / "lib-duckdb"
    if version == "v2" and not (library / "libduckdb.so").exists():
        pytest.skip("no libduckdb.so for dbt v2 here: make .venvs/dbt-v2 gets it with npm")
    return {"REAL_DBT": str(dbt)} | ({"LD_LIBRARY_PATH": str(library)} if version == "v2" else {})


# DuckDB ends the cross join when dbt is interrupted; opening the pipe cannot be interrupted.
_HOLD = """\
{% macro hold(name) -%}
  {%- set n = 100000 if name in env_var('HOLD', '').split(',') else 1 -%}
  (select min(x.range + y.range) from range({{ n }}) as x, range({{ n }}) as y, range({{ n }}) as z)
{%- endmacro %}
{% macro wait(name) -%}
  {%- if env_var('WAIT', '') == name -%}
    (select count(*) * 0 from read_csv('{{ env_var("GATE") }}', header=false, columns={'x': 'int'}))
  {%- else -%} 0 {%- endif -%}
{%- endmacro %}
{% macro fail(name) -%}
  {%- if name in env_var('FAIL', '').split(',') -%} cast('broken' as int) {%- else -%} 0 {%- endif -%}
{%- endmacro %}
"""

_PROFILES = """\
relay:
  target: dev
  outputs:
    dev: &dev
      type: duckdb
      path: "{{ env_var('FIXTURE_DB') }}"
      threads: "{{ env_var('THREADS', '1') | int }}"
      settings: {threads: 1}
    prod:
      <<: *dev
      path: "{{ env_var('FIXTURE_PROD_DB') }}"
"""


def relay_model(name: str, source: str, config: str = "", columns: str = "id, v") -> str:
    """A model that holds, waits or fails when it is named so."""
    extra = f"{{{{ hold('{name}') }}}} + {{{{ wait('{name}') }}}} + {{{{ fail('{name}') }}}}"
    head = f"{{{{ config({config}) }}}}\n" if config else ""
    return f"{head}select {columns}, {extra} as zero from {source}\n"


RELAY: Mapping[str, str] = {
    "dbt_project.yml": "name: relay\nversion: '1.0'\nprofile: relay\n"
    "models: {relay: {+materialized: table}}\n",
    "profiles.yml": _PROFILES,
    "macros/hold.sql": _HOLD,
    "seeds/raw.csv": "id,v\n1,10\n2,20\n3,30\n",
    "models/staging/stg.sql": relay_model("stg", "{{ ref('raw') }}", "tags='staging'"),
    "models/staging/late.sql": relay_model("late", "{{ ref('stg') }}", "tags='staging'"),
    "models/staging/side.sql": relay_model("side", "{{ ref('stg') }}", "tags='staging'"),
    "models/marts/mart.sql": relay_model("mart", "{{ ref('late') }}", "tags='marts'"),
    "models/marts/top.sql": relay_model("top", "{{ ref('mart') }}", "tags='marts'"),
    "models/schema.yml": "version: 2\nmodels:\n"
    "  - {name: stg, columns: [{name: id, data_tests: [not_null]}]}\n"
    "  - {name: mart, columns: [{name: id, data_tests: [unique]}]}\n",
}
"""raw -> stg -> late -> mart -> top and stg -> side, with a test of stg and one of mart. A model
named by HOLD holds until dbt is interrupted or killed; one named by WAIT until somebody writes to
the named pipe GATE; one named by FAIL fails."""

RAW, STG, LATE = "seed.relay.raw", "model.relay.stg", "model.relay.late"
MART, TOP, SIDE = "model.relay.mart", "model.relay.top", "model.relay.side"
STG_ID = "test.relay.not_null_stg_id.b8516e7472"
MART_ID = "test.relay.unique_mart_id.64fd3f9a60"
RELAY_NODES = frozenset({RAW, STG, STG_ID, LATE, SIDE, MART, MART_ID, TOP})

PATIENCE = 90.0
"""Seconds after which what should have happened is taken for missing."""


@dataclass
class Running:
    """A dbt-recover at work, the leader of a session, and what its dbt tells of itself: read from
    dbt's own file of events, which stays readable here when it is unlinked."""

    process: subprocess.Popen[bytes]
    output: Path
    _dbt: int = 0
    _logs: list[BinaryIO] = field(default_factory=list)
    _lines: list[bytes] = field(default_factory=list)

    def dbt(self) -> int:
        """The pid of the dbt that is recorded; waits until there is one."""
        if not self._dbt:
            self._dbt = self.until(self._find_dbt, "dbt was started")
        return self._dbt

    def _find_dbt(self) -> int:
        for pid in _children(self.process.pid):
            if "/spool/" in _environ_of(pid).get("DBT_LOG_PATH", ""):
                return pid
        return 0

    def lines(self) -> list[bytes]:
        """What dbt has logged so far."""
        if not self._logs and (home := _environ_of(self.dbt()).get("DBT_LOG_PATH")):
            logs = (Path(home, "dbt.log"), Path(home, "otel.jsonl"))
            self._logs = [p.open("rb") for p in logs if p.exists()]
        for log in self._logs:
            at = log.tell()
            while (line := log.readline()).endswith(b"\n"):
                self._lines.append(line)
                at = log.tell()
            log.seek(at)
        return self._lines

    def events(self) -> list[tuple[str, str, str]]:
        """(start or finish, unique_id, status), in order, so far."""
        return [e for e in map(node_event, self.lines()) if e[0]]

    def succeeded(self) -> set[str]:
        """Nodes that dbt has finished well, so far."""
        good = ("success", "pass", "warn")
        return {uid for kind, uid, status in self.events() if kind == "finish" and status in good}

    def begun(self, unique_id: str) -> None:
        """Wait until dbt has begun with this node."""
        self.until(lambda: ("start", unique_id, "") in self.events(), f"{unique_id} began")

    def holds(self, unique_id: str) -> None:
        """Wait until the query of a node that HOLD names is at work. dbt says only that it is
        about to send it, and what is not at work yet cannot be interrupted."""
        self.begun(unique_id)
        self._works(unique_id)

    def holds_batch(self, batch: str) -> None:
        """The same for a batch of a microbatch model: 20260131."""
        day = f"{batch[:4]}-{batch[4:6]}-{batch[6:]}".encode()
        self.until(
            lambda: any(b'"LogStartBatch"' in at and day in at for at in self.lines()),
            f"batch {batch} began",
        )
        self._works(batch)

    def _works(self, what: str) -> None:
        before = _ticks(self.dbt())
        self.until(lambda: _ticks(self.dbt()) > before + 40, f"{what} is at work")

    def until(self, look: Callable[[], T], what: str) -> T:
        """Wait until look() is true; fails loudly when it ends before, or never does."""
        give_up = time.monotonic() + PATIENCE
        while not (found := look()):
            ended = self.process.poll() is not None
            if ended and (found := look()):
                break
            assert not ended, f"it ended before {what}: {self.ran()}"
            assert time.monotonic() < give_up, f"it never happened that {what}: {self.ran()}"
            time.sleep(0.02)
        return found

    def signal(self, number: int) -> None:
        """To dbt-recover alone."""
        self.process.send_signal(number)

    def signal_group(self, number: int) -> None:
        """To its process group, as Airflow's BashOperator does."""
        os.killpg(self.process.pid, number)

    def signal_dbt(self, number: int) -> None:
        """To dbt alone, if it has not just ended."""
        with suppress(ProcessLookupError):
            os.kill(self.dbt(), number)

    def end(self) -> Ran:
        """Wait until it has ended."""
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not end: {self.ran()}") from None
        return self.ran()

    def dbt_ended(self) -> None:
        """Wait until its dbt has ended, whoever is left to look after it."""
        give_up = time.monotonic() + PATIENCE
        while _lives(self._dbt):
            assert time.monotonic() < give_up, f"dbt lives on: {self.ran()}"
            time.sleep(0.02)

    def ran(self) -> Ran:
        """How it ended; the exit code is 999 while it has not."""
        code = self.process.poll()
        texts = [(self.output / n).read_text(errors="replace") for n in ("out", "err")]
        return Ran(999 if code is None else code, *texts)

    def stop(self) -> None:
        """Kill what is left of it."""
        if self._dbt and _lives(self._dbt):
            with suppress(ProcessLookupError):
                os.kill(self._dbt, signal.SIGKILL)
        self.process.kill()
        self.process.wait()
        for log in self._logs:
            log.close()


def _own_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY)


def node_event(line: bytes) -> tuple[str, str, str]:
    """(start or finish, unique_id, status) of a line of dbt's log; empty words if it has none."""
    if b'"NodeStart"' in line or b'"NodeFinished"' in line:
        event = json.loads(line)
        data = event["data"]
        if event["info"]["name"] == "NodeStart":
            return "start", data["node_info"]["unique_id"], ""
        if event["info"]["name"] == "NodeFinished":
            # Not node_info.node_status: of a skipped model it says "started".
            return "finish", data["node_info"]["unique_id"], data["run_result"]["status"]
    if b".NodeProcessed" in line:
        span = json.loads(line)
        said = span["attributes"]
        if span["record_type"] == "SpanStart":
            return "start", said["unique_id"], ""
        test = said.get("node_test_detail", {}).get("test_outcome", "TEST_OUTCOME_PASSED")
        word = "fail" if test == "TEST_OUTCOME_FAILED" else said.get("node_outcome", "")
        return "finish", said["unique_id"], word.removeprefix("NODE_OUTCOME_").lower()
    return "", "", ""


def _children(parent: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if stat.read_text().rpartition(")")[2].split()[1] == str(parent):
                found.append(int(stat.parent.name))
    return found


def _environ_of(pid: int) -> dict[str, str]:
    try:
        words = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return {}
    return dict(w.split("=", 1) for w in words if "=" in w)


def _ticks(pid: int) -> int:
    """Processor time, in hundredths of a second."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
