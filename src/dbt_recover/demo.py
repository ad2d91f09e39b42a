"""`dbt-recover demo`: a night that goes wrong, on an embedded DuckDB project, told as it happens.

Everything is real: dbt, the failure, the archive, the retry, and the comparison at the end.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from . import dbt
from .errors import DbtError, UsageError
from .interrupts import Interrupts

Echo = Callable[[str], None]

_DATABASE = "b2b_analytics.duckdb"


def run_demo(echo: Echo, *, keep: Path | None = None, dbt_path: str | None = None) -> int:
    """Tell the story. Returns 0 if the recovered warehouse equals that of a clean build, else 1.

    DbtError if there is no dbt with the DuckDB adapter; UsageError if `keep` exists already.
    """
    executable = dbt.find_dbt(dbt_path, os.environ)
    if keep is not None and keep.exists():
        raise UsageError(f"{keep} exists already", hint="name a directory that does not exist yet")
    with tempfile.TemporaryDirectory(prefix="dbt-recover-demo-") as temporary:
        room = keep.resolve() if keep else Path(temporary)
        return _Story(echo, room, executable).tell(kept=keep is not None)


class _Story:
    def __init__(self, echo: Echo, room: Path, executable: str) -> None:
        self.echo = echo
        self.project = room / "b2b_analytics"
        self.clean = room / "clean"
        self.dbt = executable
        self.environ = {
            k: v for k, v in os.environ.items() if not k.startswith(("DBT_RECOVER_", "AIRFLOW_CTX"))
        } | {
            "DBT_RECOVER_DBT": executable,
            "DBT_RECOVER_DEMO_DB": _DATABASE,
            "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
            "PATH": f"{Path(executable).resolve().parent}{os.pathsep}{os.environ.get('PATH', '')}",
        }

    def tell(self, *, kept: bool) -> int:
        """All chapters, in order."""
        source = Path(__file__).with_name("demo_project")
        junk = shutil.ignore_patterns("target", "logs", ".dbt-recover", "*.duckdb*", ".user.yml")
        shutil.copytree(source, self.project, ignore=junk)

        self._chapter("03:00. The nightly build of a small B2B company runs, under `exec`.")
        code = self._recover("exec", "--", "dbt", "--quiet", "build")
        if code != 1:
            raise DbtError(
                f"the demo's dbt build was to end with exit code 1, and ended with {code}",
                hint="the demo needs dbt-core and dbt-duckdb: pip install 'dbt-recover[dbt]'",
            )
        self._chapter("03:05. The pager rings. What happened tonight?")
        self._recover("runs")
        self._chapter("What failed, and why?")
        self._recover("show")
        self._chapter(
            "The CRM's export has amounts like 2,388.00, and one account twice. The CRM is put "
            "right, and\n# the mended export arrives."
        )
        self._mend(self.project)
        self._chapter("What has to run again?")
        self._recover("plan")
        self._chapter("One command. It runs those nodes and nothing else.")
        code = self._recover("retry")
        if code != 0:
            return code
        self._chapter("Is there anything left to do?")
        self._recover("retry")
        self._chapter("Proof: the same data built from nothing, in another database, and compared.")
        return self._prove(kept)

    def _chapter(self, text: str) -> None:
        self.echo(f"\n# {text}\n")

    def _recover(self, *words: str) -> int:
        self.echo(f"$ dbt-recover {' '.join(words)}")
        self._flush()
        argv = [sys.executable, "-m", "dbt_recover", *words]
        with Interrupts() as interrupts:
            return dbt.run(argv, interrupts, env=self.environ, cwd=self.project).exit_code

    def _mend(self, project: Path) -> None:
        mended = project / "mended"
        for path in sorted(mended.iterdir()):
            self.echo(f"$ cp mended/{path.name} seeds/")
            shutil.copy(path, project / "seeds" / path.name)

    def _prove(self, kept: bool) -> int:
        junk = shutil.ignore_patterns("target", "logs", ".dbt-recover", "*.duckdb*")
        shutil.copytree(self.project, self.clean, ignore=junk)
        self.echo("$ dbt --quiet build   # in a fresh copy, on an empty database")
        self._flush()
        with Interrupts() as interrupts:
            argv = [self.dbt, "--quiet", "build"]
            dbt.run(argv, interrupts, env=self.environ, cwd=self.clean)
        tables = compare(self.dbt, self.project / _DATABASE, self.clean / _DATABASE, self.environ)
        differing = [name for name, equal in tables.items() if not equal]
        if differing or not tables:
            self.echo("these tables differ: " + ", ".join(differing or ["there are none"]))
            return 1
        self.echo(f"{len(tables)} tables and views, row by row: equal to the clean build")
        if kept:
            self.echo(f"\nthe project and its archive are in {self.project}")
        return 0

    def _flush(self) -> None:
        # Our words and dbt's go to the same place, in order.
        sys.stdout.flush()


_COMPARE = """
import duckdb, json, sys
def tables(path):
    con = duckdb.connect(path, read_only=True)
    names = con.execute("select table_schema, table_name from information_schema.tables").fetchall()
    found = {}
    for schema, name in names:
        # dbt's own columns hold the time of the build.
        columns = [r[0] for r in con.execute(
            "select column_name from information_schema.columns "
            "where table_schema = ? and table_name = ? order by column_name", [schema, name]
        ).fetchall() if not r[0].startswith("dbt_")]
        listed = ", ".join('"%s"' % c for c in columns)
        rows = con.execute('select %s from "%s"."%s"' % (listed, schema, name)).fetchall()
        found["%s.%s" % (schema, name)] = (columns, sorted(map(repr, rows)))
    return found
a, b = tables(sys.argv[1]), tables(sys.argv[2])
print(json.dumps({n: a.get(n) == b.get(n) for n in sorted(a.keys() | b.keys())}))
"""


def compare(executable: str, left: Path, right: Path, environ: dict[str, str]) -> dict[str, bool]:
    """Table name -> whether both DuckDB files hold the same rows, apart from dbt's own columns.
    Asked of the Python that dbt runs in: it has the duckdb module."""
    beside = Path(executable).resolve().with_name("python")
    python = str(beside) if beside.exists() else sys.executable
    text = dbt.capture([python, "-c", _COMPARE, str(left), str(right)], env=environ)
    tables: dict[str, bool] = json.loads(text)
    return tables
