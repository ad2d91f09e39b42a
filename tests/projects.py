"""Tiny dbt projects on DuckDB files of their own, and what really happened to them.

Every dbt that starts in a `Checkout` goes through a script on its PATH that keeps dbt's argv, exit
code and JSON events: what a test believes of dbt does not come from the code under test.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import duckdb

import dbt_recover

FIXTURES = Path(__file__).parent / "fixtures" / "projects"
ARTIFACTS = FIXTURES.with_name("artifacts")
NAMES = sorted(p.parent.name for p in FIXTURES.glob("*/expect.json"))
DEMO = Path(dbt_recover.__file__).parent / "demo_project"
REAL_DBT = Path(sys.executable).with_name("dbt")

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
fi
"$REAL_DBT" "$@"
code=$?
echo $code > "$call/exit"
if [ -f "$DBT_LOG_PATH/dbt.log" ]; then cp "$DBT_LOG_PATH/dbt.log" "$call/events"; fi
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
        return self.run(sys.executable, "-m", "dbt_recover.cli", *words)

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
    for line in events.read_text().splitlines() if events.exists() else ():
        event = json.loads(line)
        if event["info"]["name"] == "NodeFinished":
            data = event["data"]
            # Not node_info.node_status: of a skipped model it says "started".
            finished[data["node_info"]["unique_id"]] = data["run_result"]["status"]
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
