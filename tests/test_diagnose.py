"""Classes of failure: every pattern on its own sample, and what must not be guessed."""

from __future__ import annotations

import re
from pathlib import Path

import duckdb
import pytest

from dbt_recover.diagnose import (
    CLASSES,
    CODE,
    DATA,
    ORDER,
    PERMISSION,
    TRANSIENT,
    UNKNOWN,
    Evidence,
    Pattern,
    classify,
    diagnose,
    diagnoses,
    patterns,
    unwrap,
)
from dbt_recover.model import Invocation, NodeResult, NodeState, RunInfo, RunState

WORDS = {"seen", "reported", "source", "made"}
SEEN_ON = {"duckdb", "postgres", "snowflake", "*"}
"""Whose real programs are in the tests: of Snowflake, its connector."""
NAMES = {"*": "any (SQLSTATE, dbt's own)", "redshift": "redshift, besides PostgreSQL's"}
ADAPTERS = {"snowflake", "duckdb", "postgres", "redshift", "bigquery", "databricks"}
AMBIGUOUS = {"57014", "02000", "08001", "22000", "42000", "HY000", "XX000"}


def name(pattern: Pattern) -> str:
    return f"{pattern.adapters[0]}-{pattern.kind}-{pattern.error_class}"


@pytest.mark.parametrize("pattern", patterns(), ids=name)
def test_a_sample_gets_its_class_by_its_own_pattern(pattern: Pattern) -> None:
    adapters = [a for a in pattern.adapters if a != "*"] or ["databricks", "snowflake"]
    for adapter in adapters:
        found, evidence = classify(pattern.sample, adapter)
        assert (found, evidence.by) == (pattern.error_class, pattern.kind)
    if pattern.kind == "code":
        assert evidence.code == pattern.code
    if pattern.kind == "sqlstate":
        assert evidence.sqlstate == pattern.sqlstate
    # And no other one of the same kind, which would win only by standing earlier.
    others = [
        p
        for p in patterns()
        if p is not pattern
        and p.error_class != pattern.error_class
        and set(p.adapters) & set(adapters)
        and p.kind == pattern.kind == "text"
        and classify_by(p, pattern.sample)
    ]
    assert others == []


def classify_by(pattern: Pattern, message: str) -> bool:
    return any(re.search(pattern.text, ln, re.IGNORECASE) for ln in unwrap(message).lines)


@pytest.mark.parametrize("pattern", patterns(), ids=name)
def test_an_adapter_that_is_not_known_changes_no_class(pattern: Pattern) -> None:
    assert classify(pattern.sample)[0] == pattern.error_class


def test_the_file_keeps_its_own_rules() -> None:
    said = {a for p in patterns() for a in p.adapters}
    assert said >= ADAPTERS
    for pattern in patterns():
        assert sum(bool(getattr(pattern, k)) for k in ORDER) == 1, pattern
        assert pattern.error_class in CLASSES[:-1]
        assert pattern.source.startswith("https://")
        assert pattern.sqlstate not in AMBIGUOUS
        assert pattern.words in WORDS
        assert pattern.words != "seen" or set(pattern.adapters) & SEEN_ON
    for adapter in ADAPTERS:
        classes = {p.error_class for p in patterns() if {adapter, "*"} & set(p.adapters)}
        assert {TRANSIENT, PERMISSION, CODE, DATA} <= classes, adapter


def test_the_docs_say_whose_words_the_samples_are_in() -> None:
    kinds = ("seen", "reported", "source", "made")
    lines = ["| adapter | " + " | ".join(kinds) + " |", "| --- |" + " --- |" * len(kinds)]
    for adapter in [*sorted(ADAPTERS), "*"]:
        own = [p.words for p in patterns() if p.adapters[0] == adapter]
        lines.append(
            f"| {NAMES.get(adapter, adapter)} | "
            + " | ".join(str(own.count(k)) for k in kinds)
            + " |"
        )
    page = (Path(__file__).parents[1] / "docs" / "failures.md").read_text()
    assert "\n".join(lines) in page, "\n".join(lines)


# What DuckDB is asked so that it says the sample: by the first words of its error.
ASKED: dict[str, tuple[str, ...]] = {
    "Parser Error:": ("select * form raw_orders",),
    "Binder Error:": ("select order_totl from raw_orders",),
    "Catalog Error:": ("select * from raw_order",),
    "Not implemented Error:": ("alter table raw_orders add constraint x check (order_id > 0)",),
    "Conversion Error:": (
        "select cast(annual_value as decimal(12,2)) from (values ('2,388.00')) as c(annual_value)",
    ),
    "Invalid Input Error:": ("select strptime('31.01.2026', '%Y-%m-%d')",),
    "Constraint Error:": (
        "create table k (order_id int primary key)",
        "insert into k values (7)",
        "insert into k values (7)",
    ),
    "Out of Range Error:": ("select 2147483647::int * 2::int",),
    "Permission Error:": (
        "set enable_external_access = false",
        "select * from read_csv('/data/orders.csv')",
    ),
    "TransactionContext Error:": ("begin", "update raw_orders set order_id = 3"),
    "Out of Memory Error:": (
        "set memory_limit = '10MB'",
        "set temp_directory = ''",
        "select count(*) from (select distinct hash(i) from range(3000000) as r(i))",
    ),
}


@pytest.mark.parametrize("begins", ASKED)
def test_duckdb_says_its_samples(begins: str) -> None:
    (pattern,) = [
        p
        for p in patterns()
        if "duckdb" in p.adapters and unwrap(p.sample).lines[0].startswith(begins)
    ]
    assert pattern.words == "seen"
    with duckdb.connect() as asked:
        asked.execute("create table raw_orders as select 1 as order_id, 2.5 as order_total")
        with asked.cursor() as other:
            other.execute("begin")
            if begins.startswith("Transaction"):
                other.execute("update raw_orders set order_id = 2")
            *before, last = ASKED[begins]
            for statement in before:
                asked.execute(statement)
            with pytest.raises(duckdb.Error) as raised:
                asked.execute(last)
    said, sample = (re.sub(r"[\d.]+/[\d.]+", "", t) for t in (str(raised.value), pattern.sample))
    assert said.splitlines()[0] == sample.splitlines()[1].strip()
    assert classify(f"Runtime Error in model m (m.sql)\n  {raised.value}", "duckdb") == classify(
        pattern.sample, "duckdb"
    )


# dbt v2's drivers name themselves first. As reported, but for a Go client's message of no dbt.
V2 = (
    (  # https://github.com/dbt-labs/dbt-fusion/issues/468
        (
            "snowflake: Failed to run operation invalid operation: AdapterError: ADBC error: "
            "[Snowflake] 000900 (42601): SQL compilation error:\nEmpty SQL statement. "
            "(SQLSTATE: 42601, Vendor code: 900)"
        ),
        (CODE, Evidence("sqlstate", "42601", "000900", "42601")),
        "000900 (42601): SQL compilation error: Empty SQL statement. (SQLSTATE: 42601, ",
    ),
    (  # https://github.com/dbt-labs/dbt-fusion/issues/288
        (
            "snowflake: dbt1000: ADBC error: [Snowflake] 390144 (08004): JWT token is invalid. "
            "[ce50495e-84cd-4ec5-9643-777bf4fb397a] (SQLSTATE: 08004, Vendor code: 390144)"
        ),
        (PERMISSION, Evidence("text", "390144 (08004): JWT token is invalid", "390144", "08004")),
        "390144 (08004): JWT token is invalid. [ce50495e-",
    ),
    (  # https://github.com/dbt-labs/dbt-fusion/issues/1416
        (
            "bigquery: dbt1308: [BigQuery] googleapi: Error 400: Unrecognized name: tables at [34:34], "
            "invalidQuery"
        ),
        (CODE, Evidence("text", "Unrecognized name:")),
        "Unrecognized name: tables at [34:34], invalidQuery",
    ),
    (  # https://github.com/m-lab/etl-gardener/issues/272
        (
            "bigquery: [BigQuery] googleapi: Error 400: Could not serialize access to table "
            "mlab-sandbox:tmp_ndt.tcpinfo due to concurrent update, invalidQuery"
        ),
        (
            TRANSIENT,
            Evidence(
                "text",
                "Could not serialize access to table mlab-sandbox:tmp_ndt.tcpinfo due to concurrent "
                "update",
            ),
        ),
        "Could not serialize access to table mlab-sandbox:tmp_ndt.tcpinfo due to",
    ),
)


@pytest.mark.parametrize("told, expected, summary", V2)
def test_what_dbt_v2_s_drivers_say(told: str, expected: tuple[str, Evidence], summary: str) -> None:
    adapter, _, said = told.partition(": ")
    found = diagnose(NodeResult("model.p.m", "error", said), adapter)
    assert (found.error_class, found.evidence) == expected
    assert found.summary.startswith(summary)


@pytest.mark.parametrize("state", ["57014", "02000", "08001"])
def test_an_ambiguous_sqlstate_alone_says_nothing(state: str) -> None:
    message = f"Database Error in model m (models/m.sql)\n  000999 ({state}): Something happened."
    found, evidence = classify(message, "snowflake")
    assert found == UNKNOWN
    assert evidence == Evidence("", "", "000999", state, "")


@pytest.mark.parametrize(
    "message",
    [
        "000604 (57014): SQL execution canceled",
        "000603 (XX000): 01a3d923-0000-5073-0000-88c1000885a6: SQL execution internal error:",
        "canceling statement due to user request",
        "INTERRUPT Error: Interrupted!",
        "IO Error: Cannot open file",
        "250001 (08001): Failed to connect to DB: x.snowflakecomputing.com:443.",
        "",
    ],
)
def test_what_could_be_several_things_is_unknown(message: str) -> None:
    assert classify(f"Database Error in model m (models/m.sql)\n  {message}")[0] == UNKNOWN


def test_text_beats_code_and_code_beats_sqlstate() -> None:
    quota = "090073 (42501): Warehouse 'W' cannot be resumed because resource monitor 'M' has exceeded its quota."
    assert classify(quota, "snowflake")[1].by == "text"
    known = "000904 (42501): SQL compilation error"
    assert classify(known, "snowflake")[:1] == (CODE,)
    assert classify("000999 (42501): no", "snowflake")[0] == PERMISSION


def test_another_adapters_words_are_not_taken_for_its_own() -> None:
    deadlock = "Database Error in model m (models/m.sql)\n  deadlock detected"
    assert classify(deadlock, "postgres")[0] == TRANSIENT
    assert classify(deadlock, "duckdb")[0] == UNKNOWN


def test_sql_quoted_by_the_warehouse_is_not_its_word() -> None:
    message = (
        "Runtime Error in model m (models/m.sql)\n"
        '  Binder Error: Referenced column "x" not found\n\n'
        "  LINE 3: select x, 'IO Error: Could not set lock on file'\n"
        "                 ^\n"
    )
    assert classify(message, "duckdb")[0] == CODE


@pytest.mark.parametrize(
    "message, summary",
    [
        (
            (
                "Database Error in model m (models/m.sql)\n  1023\n  DETAIL:  Serializable isolation "
                "violation on table - 100167"
            ),
            "1023 DETAIL:  Serializable isolation violation on table - 100167",
        ),
        (
            (
                "Database Error in model m (models/m.py)\n  100357 (P0000): Python Interpreter Error:\n"
                '  Traceback (most recent call last):\n    File "_udf_code.py", line 9, in main\n'
                "  KeyError: 'plan'\n   in function MODEL with handler main"
            ),
            "100357 (P0000): Python Interpreter Error: KeyError: 'plan'",
        ),
        (
            (
                "Runtime Error in model m (models/m.py)\n  Python model failed:\n"
                '  Traceback (most recent call last):\n    File "<string>", line 9, in <module>'
            ),
            "Python model failed: Traceback (most recent call last):",
        ),
        (
            (
                "Database Error in model m (models/m.sql)\n  000904 (42000): SQL compilation error: "
                "error line 3\n  invalid identifier 'X'"
            ),
            "000904 (42000): SQL compilation error: error line 3 invalid identifier 'X'",
        ),
        (  # as dbt writes it of a unit test
            (
                "\n\n\x1b[32mactual\x1b[0m differs from \x1b[31mexpected\x1b[0m:\n\n\x1b[0;1m@@"
                "\x1b[0m\x1b[33m,\x1b[0m\x1b[0;1mn\x1b[0m\n\x1b[31;1m3\x1b[34;1m→\x1b[32;1m2\x1b[0m"
            ),
            "actual differs from expected: @@,n",
        ),
    ],
)
def test_a_summary_says_which_error_it_is(message: str, summary: str) -> None:
    assert diagnose(NodeResult("model.p.m", "error", message)).summary == summary


def test_envelopes_come_off_one_by_one() -> None:
    nested = (
        "Runtime Error in unit_test health_of_an_account (models/core/core.yml)\n"
        "  An error occurred during execution of unit test 'health_of_an_account'. There may be an "
        "error in the unit test definition: check the data types.\n"
        "   Database Error\n"
        '    001003 (42000): Parser Error: TEMPORARY table names can *only* use the "temp" catalog'
    )
    error = unwrap(nested)
    assert error.kind == "Database"
    assert error.lines[0].startswith("001003 (42000): Parser Error")
    assert unwrap("just words").lines == ("just words",)
    assert unwrap("Database Error").lines == ("Database Error",)
    assert unwrap("").lines == ()


def test_a_hook_is_read_like_a_node() -> None:
    told = 'shop.on-run-end.0 failed, error:\n Binder Error: Referenced column "x" was not found\n'
    said = diagnose(NodeResult("operation.shop.shop-on-run-end-0", "error", told), "duckdb")
    assert (said.error_class, said.summary[:13]) == (CODE, "Binder Error:")


def test_evidence_has_code_sqlstate_and_query_id() -> None:
    message = (
        "Database Error in model orders (models/orders.sql)\n"
        "  000904 (42000): 01b43b22-0509-2fce-0003-29019743c13b: SQL compilation error: error line 3\n"
        "  invalid identifier 'ORDER_TOTL'"
    )
    said = diagnose(NodeResult("model.p.orders", "error", message), "snowflake")
    assert said.evidence == Evidence(
        "code", "000904", "000904", "42000", "01b43b22-0509-2fce-0003-29019743c13b"
    )
    assert said.summary.startswith("000904 (42000)")
    told = diagnose(
        NodeResult("model.p.o", "error", message, query_id="of-the-adapter"), "snowflake"
    )
    assert told.evidence.query_id == "of-the-adapter"


def test_a_failed_test_is_about_data_and_an_errored_one_is_read() -> None:
    fail = NodeResult("test.p.t.1", "fail", "Got 2 results, configured to fail if != 0")
    assert diagnose(fail).error_class == DATA
    assert diagnose(fail).evidence.by == "status"
    error = NodeResult("test.p.t.1", "error", "Compilation Error in test t (m.yml)\n  undefined")
    assert diagnose(error).error_class == CODE


def test_a_runs_nodes_are_read_with_the_adapter_of_their_own_invocation() -> None:
    run = RunInfo("r", "2026-01-31T06:00:00Z")
    deadlock = NodeResult("model.p.a", "error", "deadlock detected")
    state = RunState(
        run,
        [
            Invocation("i1", run, adapter_type="postgres"),
            Invocation("i2", run, adapter_type="duckdb"),
        ],
        {
            "model.p.a": NodeState(deadlock, 1, "i1", 0),
            "model.p.b": NodeState(
                NodeResult("model.p.b", "error", "deadlock detected"), 1, "i2", 1
            ),
            "model.p.c": NodeState(NodeResult("model.p.c", "success"), 1, "i1", 0),
            "model.p.d": NodeState(NodeResult("model.p.d", "skipped"), 1, "i1", 0),
        },
    )
    assert {u: d.error_class for u, d in diagnoses(state).items()} == {
        "model.p.a": TRANSIENT,
        "model.p.b": UNKNOWN,
    }


@pytest.mark.parametrize(
    "adapter, message, expected",
    [
        ("postgres", "Compilation Error in model m (models/m.sql)\n  deadlock detected", CODE),
        (
            "bigquery",
            (
                "Database Error in model m (models/m.sql)\n  Could not cast literal "
                '"user exceeded rate limits" to type DATE'
            ),
            DATA,
        ),
        (
            "databricks",
            (
                "Database Error in model m (models/m.sql)\n  [CAST_INVALID_INPUT] The value "
                "'TEMPORARILY_UNAVAILABLE' of the type \"STRING\" cannot be cast"
            ),
            DATA,
        ),
        (
            "databricks",
            (
                "Database Error in model m (models/m.sql)\n  [UNRESOLVED_COLUMN] x\n"
                "  == SQL ==\n  select 'a' as b, DEADLINE_EXCEEDED"
            ),
            CODE,
        ),
        (
            "duckdb",
            (
                "Runtime Error in model m (models/m.sql)\n  Conversion Error: Could not convert "
                "string 'No space left on device' to INT32"
            ),
            DATA,
        ),
    ],
)
def test_the_user_s_own_words_are_not_the_warehouse_s(
    adapter: str, message: str, expected: str
) -> None:
    assert classify(message, adapter)[0] == expected
