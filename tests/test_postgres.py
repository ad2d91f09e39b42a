"""A second real warehouse behind a socket: PostgreSQL, with what only other sessions can do to a
run: its backend ended, a deadlock, a right taken away.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dbt_recover.diagnose import classify, patterns
from dbt_recover.errors import EXIT_STILL_FAILING
from postgres_server import Postgres, postgres_server
from projects import Checkout, written
from servers import ServerUnavailable
from snowflake_server import WAREHOUSES
from tcp_front import tcp_front

pytestmark = pytest.mark.slow

_PROFILES = """
pg:
  target: prod
  outputs:
    prod:
      type: postgres
      host: 127.0.0.1
      port: "{{ env_var('PG_PORT') | int }}"
      user: "{{ env_var('PG_USER', 'transformer') }}"
      password: unused
      dbname: postgres
      schema: "{{ env_var('PG_SCHEMA') }}"
      threads: 2
      connect_timeout: 2
      retries: 0
"""

# `hold` waits for a lock that the test holds: a query that is at work for as long as it is needed.
FILES = {
    "dbt_project.yml": "name: pg\nversion: '1.0'\nprofile: pg\n"
    "models: {pg: {+materialized: table}}\n",
    "profiles.yml": _PROFILES,
    "seeds/raw.csv": "id,v\n1,10\n2,20\n",
    "models/first.sql": "select id, v from {{ ref('raw') }}",
    "models/held.sql": "select id, v, pg_advisory_xact_lock(hashtext('{{ this.schema }}'))::text as x"
    " from {{ ref('first') }}",
    "models/last.sql": "select * from {{ ref('held') }}",
    "models/deadly.sql": "{{ config(pre_hook=['lock table {{ target.schema }}.a',"
    " 'lock table {{ target.schema }}.b']) }}\nselect 1 as id from {{ ref('first') }} limit 1",
    "models/schema.yml": "version: 2\nmodels:\n"
    "  - {name: last, columns: [{name: id, data_tests: [unique]}]}\n",
}
FIRST, HELD, LAST, DEADLY = (f"model.pg.{n}" for n in ("first", "held", "last", "deadly"))


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    if not (WAREHOUSES / "dbt").exists():
        pytest.skip("no dbt-postgres here: make .venvs/warehouses")
    try:
        with postgres_server() as found:
            found.sql("create role transformer login")
            yield found
    except ServerUnavailable as reason:
        pytest.skip(str(reason))


def project(home: Path, server: Postgres, schema: str) -> Checkout:
    server.sql(f"create schema {schema} authorization transformer")
    server.sql(f"create table {schema}.a (); create table {schema}.b ()")
    server.sql(f"grant all on all tables in schema {schema} to transformer")
    return written(home, FILES).having(
        REAL_DBT=WAREHOUSES / "dbt", PG_PORT=server.port, PG_SCHEMA=schema
    )


def failures(here: Checkout) -> dict[str, tuple[str, str]]:
    shown = here.recover("show", "-o", "json").json
    return {n["unique_id"]: (n["class"], n["evidence"]["matched"]) for n in shown["failed"]}


def recovers(here: Checkout, server: Postgres, schema: str, nodes: list[str], *flags: str) -> None:
    """The retry runs exactly these, and the tables are those of a clean build."""
    ran = here.recover("retry", "-o", "json", *flags)
    assert (ran.code, ran.json["outcome"]) == (0, "recovered"), ran
    assert sorted(u for u in ran.json["executed"] if u.startswith("model.")) == sorted(nodes)
    found = server.tables(schema)
    assert found["last"] == ["1|10|", "2|20|"]
    assert (found["first"], found["held"]) == (["1|10", "2|20"], ["1|10|", "2|20|"])
    assert found["deadly"] == ["1"]


def session(server: Postgres, text: str) -> Any:
    """Another session of psql, which has carried this out and stays until its stdin is closed."""
    other = subprocess.Popen(
        [
            *(str(server.binaries / "psql"), "-XqAt", "-h", "127.0.0.1", "-p", str(server.port)),
            *("-U", "postgres", "-d", "postgres"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdin
    assert other.stdout
    other.stdin.write(f"{text};\nselect 'done';\n")
    other.stdin.flush()
    while other.stdout.readline() != "done\n":
        assert other.poll() is None
    return other


def test_a_backend_is_ended_in_the_middle_of_a_query(server: Postgres, tmp_path: Path) -> None:
    here = project(tmp_path / "here", server, "ended")
    holder = session(server, "select pg_advisory_lock(hashtext('ended'))")
    try:
        with here.start("exec", "--", "dbt", "build") as running:
            waiting = (
                "from pg_stat_activity where wait_event = 'advisory' and usename = 'transformer'"
            )
            server.waits(f"select count(*) = 1 {waiting}")
            server.sql(f"select pg_terminate_backend(pid) {waiting}")
            assert running.end().code == 1
    finally:
        holder.communicate("")
    # Whether the server's own words still arrive depends on who closes first.
    ((failed, (error_class, matched)),) = failures(here).items()
    assert (failed, error_class) == (HELD, "transient")
    assert matched in (
        "terminating connection due to administrator command",
        "server closed the connection unexpectedly",
    )
    assert "held: error (transient)" in here.recover("show").out
    recovers(here, server, "ended", [HELD, LAST], "--on", "transient")


def test_the_wire_to_the_server(server: Postgres, tmp_path: Path) -> None:
    """Nobody listens, then somebody who never says a word; and an answer that ends in the middle."""
    schema = "wire"
    here = project(tmp_path / "here", server, schema)
    with tcp_front(server.port, opened=False) as tcp:
        here = here.having(PG_PORT=tcp.port)
        build = ("dbt", "build", "--exclude", "deadly")
        with here.start(
            "exec", "--retry-transient", "3", "--backoff", "1", "--", *build
        ) as running:
            running.until(lambda: "retry 1 of 3 in" in running.ran().err, "refused")
            tcp.mute = True
            tcp.open()
            running.until(lambda: "retry 2 of 3 in" in running.ran().err, "not answered")
            tcp.mute = False
            ran = running.end()
        assert ran.code == 0, ran.out + ran.err
        assert (
            f'connection to server at "127.0.0.1", port {tcp.port} failed: Connection refused'
            in (ran.out)
        )
        # connect_timeout: 2 of the profile.
        assert "timeout expired" in ran.out
        assert "recovered by attempt 3: " in ran.err
        shown = here.recover("show", "-o", "json").json
        assert [i["class"] for i in shown["invocations"]] == ["transient", "transient", None]

        holder = session(server, f"select pg_advisory_lock(hashtext('{schema}'))")
        try:
            with here.start("exec", "--", *build) as running:
                asks = "from pg_stat_activity where wait_event = 'advisory' and usename = 'transformer'"
                server.waits(f"select count(*) = 1 {asks}")
                tcp.cut(int(server.sql(f"select client_port {asks}")), 3)
                holder.communicate("")
                assert running.end().code == 1
        finally:
            holder.communicate("")
        ((failed, (error_class, _)),) = failures(here).items()
        assert (failed, error_class) == (HELD, "transient")
        ran = here.recover("retry", "--on", "transient", "-o", "json")
        assert (ran.code, ran.json["outcome"]) == (0, "recovered"), ran
        assert server.tables(schema)["last"] == ["1|10|", "2|20|"]


def test_two_runs_in_a_deadlock(server: Postgres, tmp_path: Path) -> None:
    schema = "deadlock"
    here = project(tmp_path / "here", server, schema)
    # The other run has taken b, and wants a when this one has it.
    other = session(server, f"begin; lock table {schema}.b")
    try:
        with here.start("exec", "--", "dbt", "build") as running:
            server.waits(
                "select count(*) = 1 from pg_stat_activity where wait_event_type = 'Lock' and "
                "usename = 'transformer' and query like '%deadlock.b%'"
            )
            other.stdin.write(f"set deadlock_timeout = '600s'; lock table {schema}.a;\n")
            other.stdin.flush()
            assert running.end().code == 1
    finally:
        other.communicate("rollback;\n")
    assert failures(here) == {DEADLY: ("transient", "deadlock detected")}
    assert here.plan() == [DEADLY]
    recovers(here, server, schema, [DEADLY], "--on", "transient")


def test_a_right_is_taken_away_and_given_back(server: Postgres, tmp_path: Path) -> None:
    schema = "rights"
    here = project(tmp_path / "here", server, schema)
    server.sql(f"revoke all on {schema}.b from transformer")
    assert here.recover("exec", "--retry-transient", "2", "--", "dbt", "build").code == 1
    assert failures(here) == {DEADLY: ("permission", "permission denied for")}
    assert len(here.calls) == 1, "a permission is not waited for"
    refused = here.recover("retry", "--on", "transient")
    assert refused.code == EXIT_STILL_FAILING
    assert "grant what is missing" in refused.err
    told = here.recover("notify").out
    assert "model deadly: error (permission)" in told
    assert "permission denied for table b" in told
    server.sql(f"grant all on {schema}.b to transformer")
    recovers(here, server, schema, [DEADLY])


def test_other_words_of_the_server(server: Postgres, tmp_path: Path) -> None:
    """Real messages of PostgreSQL, each from a model of its own."""
    says = {
        "code_column": ("select nonsense from {{ ref('first') }}", "code"),
        "code_syntax": ("select from from {{ ref('first') }}", "code"),
        "code_table": ("select * from nowhere, {{ ref('first') }}", "code"),
        "data_cast": ("select cast('2,388.00' as int) as x from {{ ref('first') }}", "data"),
        "data_zero": ("select id / 0 as x from {{ ref('first') }}", "data"),
        "data_range": ("select 2147483647 + id as x from {{ ref('first') }}", "data"),
        "timeout": (
            (
                "{{ config(pre_hook=\"set local statement_timeout = '50ms'\") }}"
                "select pg_sleep(30)::text as x from {{ ref('first') }}"
            ),
            "timeout",
        ),
        "lock": (
            (
                "{{ config(pre_hook=[\"set local lock_timeout = '50ms'\","
                " 'lock table {{ target.schema }}.b']) }}select 1 as x from {{ ref('first') }}"
            ),
            "transient",
        ),
    }
    here = project(tmp_path / "here", server, "words")
    for name, (text, _) in says.items():
        (here.root / "models" / f"{name}.sql").write_text(text)
    other = session(server, "begin; lock table words.b")
    try:
        command = ("dbt", "build", "--exclude", "held+", "deadly")
        assert here.recover("exec", "--", *command).code == 1
    finally:
        other.communicate("rollback;\n")
    found = {u.split(".")[2]: error_class for u, (error_class, _) in failures(here).items()}
    assert found == {name: expected for name, (_, expected) in says.items()}


# What makes PostgreSQL say so, by sessions that wait for each other.
_SAY = """
import json, sys, threading, time
import psycopg2
port = int(sys.argv[1])
said, opened = {}, []
def connect(**how):
    con = psycopg2.connect(**{
        **dict(host="127.0.0.1", port=port, user="postgres", dbname="postgres"), **how})
    con.autocommit = True
    opened.append(con)
    return con
def run(con, *statements):
    for statement in statements:
        con.cursor().execute(statement)
def saying(name, do, *args, **how):
    try:
        do(*args, **how)
    except psycopg2.Error as exc:
        said[name] = str(exc)
def waits():
    while True:
        cursor = connect().cursor()
        cursor.execute("select count(*) from pg_stat_activity where wait_event_type = 'Lock'")
        if cursor.fetchone()[0]:
            return
        opened.pop().close()
        time.sleep(0.02)
def behind(name, first, second, then):
    one, other = connect(), connect()
    run(one, "begin", first)
    thread = threading.Thread(target=saying, args=(name, run, other, *second))
    thread.start()
    waits()
    saying(name, run, one, then)
    thread.join()
    for con in opened:
        con.close()
    opened.clear()
run(connect(), "create schema words2", "create table words2.t as select 1 as id",
    "create table words2.u as select 1 as id", "create table words2.raw_orders ()",
    "grant usage on schema words2 to transformer", "create role knocks login password 'right'",
    "create role stays", "create role crowd login connection limit 1")
saying("role", connect, user="gone")
saying("login", connect, user="stays")
saying("password", connect, user="knocks", password="wrong")
saying("barred", connect, user="barred")
saying("database", connect, dbname="gone")
saying("crowd", lambda: [connect(user="crowd") for _ in range(2)])
closed = connect()
run(connect(), f"select pg_terminate_backend({closed.info.backend_pid})")
saying("closed", run, closed, "select 1")
saying("statement", run, connect(), "set statement_timeout = 50", "select pg_sleep(30)")
saying("temporary", run, connect(), "set temp_file_limit = '1MB'", "set work_mem = '64kB'",
       "select count(*) from (select md5(g::text) as m from generate_series(1, 100000) as g "
       "order by 1) as s")
saying("table", run, connect(user="transformer"), "select * from words2.raw_orders")
saying("grant", run, connect(), "grant select on words2.t to nobody_of_this_name")
saying("column", run, connect(), "create table raw_orders ()", "select order_totl from raw_orders")
saying("cast", run, connect(), "select '2,388.00'::text::integer")
lock = "lock table words2."
behind("deadlock", lock + "t", ("set deadlock_timeout = '600s'", "begin", lock + "u", lock + "t"),
       lock + "u")
behind("serialize", "update words2.t set id = 2",
       ("begin isolation level repeatable read", "select * from words2.t",
        "update words2.t set id = 3"), "commit")
behind("tuple", "grant select on words2.t to transformer",
       ("grant select on words2.t to transformer",), "commit")
behind("catalog", "create schema words3", ("create schema words3",), "commit")
other = connect()
run(other, "begin", lock + "t")
saying("lock", run, connect(), "set lock_timeout = 50", "begin", lock + "t")
saying("reserved", lambda: [connect(user="transformer") for _ in range(20)])
saying("clients", lambda: [connect() for _ in range(20)])
print(json.dumps(said))
"""

SAID = {
    **dict.fromkeys(("role", "login", "password", "barred", "table"), "permission"),
    **dict.fromkeys(("database", "column", "grant"), "code"),
    **dict.fromkeys(("crowd", "deadlock", "serialize", "tuple", "catalog"), "transient"),
    **dict.fromkeys(("lock", "reserved", "clients", "closed"), "transient"),
    "statement": "timeout",
    "temporary": "quota",
    "cast": "data",
}


def test_postgres_says_its_samples(server: Postgres) -> None:
    done = subprocess.run(
        [str(WAREHOUSES / "python"), "-c", _SAY, str(server.port)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    said: dict[str, str] = json.loads(done.stdout)
    envelope = "Database Error in model m (models/m.sql)\n  "
    classes = {name: classify(envelope + text, "postgres")[0] for name, text in said.items()}
    assert classes == SAID, said
    heard = {_plain(line) for text in said.values() for line in text.splitlines()}
    samples = [p.sample for p in patterns() if "postgres" in p.adapters and p.words == "seen"]
    missing = {_plain(s.splitlines()[1]) for s in samples} - heard
    # Nobody listens: in test_the_wire_to_the_server.
    assert missing == {"connection to server at #, port # failed: Connection refused"}, said


def _plain(line: str) -> str:
    """Without what differs from one server to the next."""
    line = re.sub(r'"[\w.]+" \([\d.:]+\)|"127\.0\.0\.1"', "#", line.strip())
    return re.sub(r"(?<=port )\d+", "#", line)
