"""The whole story on Snowflake's adapter and wire protocol: see docs/snowflake.md for what is the
real thing here and what is played back.
"""

from __future__ import annotations

import base64
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15

from projects import Checkout, demo
from servers import ServerUnavailable
from snowflake_server import WAREHOUSES, Front, Rule, error, snowflake_server, tables
from tcp_front import tcp_front

pytestmark = pytest.mark.slow

# fakesnow cannot run a unit test, nor an incremental model or a snapshot a second time. It sums
# decimals as floats, whose last digit depends on the order: not for a test of equal sums.
LEFT_OUT = (
    *("--exclude", "resource_type:unit_test", "fct_daily_usage+", "resource_type:snapshot"),
    "mrr_is_a_twelfth_of_running_contracts",
)

_PROFILE = """
every:
  target: &every
      type: snowflake
      account: "{{ env_var('SNOWFLAKE_ACCOUNT') }}"
      user: "{{ env_var('SNOWFLAKE_USER') }}"
      query_tag: finance, every night
      role: TRANSFORMER
      warehouse: TRANSFORMING_WH
      database: "{{ env_var('SNOWFLAKE_DATABASE', 'ANALYTICS') }}"
      schema: dbt_prod
      threads: 4
      host: localhost
      port: "{{ env_var('PORT') | int }}"
      protocol: http
      reuse_connections: "{{ env_var('REUSE', 'True') | as_bool }}"
b2b_analytics:
  target: "{{ env_var('TARGET', 'prod') }}"
  outputs:
    prod:
      <<: *every
      password: "{{ env_var('SNOWFLAKE_PASSWORD') }}"
    repair:
      <<: *every
      private_key_path: "{{ env_var('KEY') }}"
      private_key_passphrase: "{{ env_var('PASSPHRASE') }}"
      schema: dbt_repair
    token:
      <<: *every
      authenticator: oauth
      token: "{{ env_var('TOKEN') }}"
"""
SECRETS = {
    "SNOWFLAKE_PASSWORD": "geheim-geheim",
    "PASSPHRASE": "offen-sesam",
    "TOKEN": "ver:1-hint:2147-ETMsDgAAAZzz",
}


LOCKED = (
    "000625",
    "57014",
    (
        "Statement '01b43b22-0509-2fce-0003-29019743c0af' has locked table 'STG_INVOICES' in "
        "transaction 1715330074481000000 and this lock has not yet been released."
    ),
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    try:
        with snowflake_server(tmp_path_factory.mktemp("snowflake")) as front:
            yield front
    except ServerUnavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture
def front(server: Front) -> Iterator[Front]:
    yield server
    server.rules.clear()
    server.login = server.tcp = None
    server.seen.clear()
    server.logins.clear()
    server.canceled.set()
    server.canceled.clear()


def project(home: Path, front: Front, database: str) -> Checkout:
    """The demo project on a database of its own."""
    here = demo(home).having(
        REAL_DBT=WAREHOUSES / "dbt",
        SNOWFLAKE_ACCOUNT="fakesnow",
        SNOWFLAKE_USER="dbt",
        **SECRETS,
        KEY=home / "key.p8",
        SNOWFLAKE_DATABASE=database,
        PORT=front.tcp.port if front.tcp else front.port,
    )
    (here.root / "profiles.yml").write_text(_PROFILE)
    return here


@pytest.fixture(scope="module")
def clean(server: Front, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a mended project leaves on an empty database."""
    here = project(tmp_path_factory.mktemp("clean") / "here", server, "CLEAN")
    here.mend()
    done = here.dbt("build", *LEFT_OUT)
    assert done.code == 0, done.out
    return tables(server, "CLEAN")


def private_key(path: Path) -> rsa.RSAPrivateKey:
    """A key as Snowflake's documentation has one made: PKCS#8, with a passphrase."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    encryption = serialization.BestAvailableEncryption(SECRETS["PASSPHRASE"].encode())
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    )
    return key


def keeps_no_secret(here: Checkout) -> None:
    """Nothing that was recorded has a credential in it."""
    files = [p for p in (here.root / ".dbt-recover").rglob("*") if p.is_file()]
    assert files
    for path in files:
        data = path.read_bytes()
        if path.suffix == ".zst":
            with zstandard.ZstdDecompressor().stream_reader(data) as reader:
                data = reader.read()
        for secret in SECRETS.values():
            assert secret.encode() not in data, path


STG_CONTRACTS = "model.b2b_analytics.stg_contracts"
STG_INVOICES = "model.b2b_analytics.stg_invoices"
STG_PLANS = "model.b2b_analytics.stg_plans"
FCT_CONTRACTS = "model.b2b_analytics.fct_contracts"


def created(name: str) -> str:
    """What the query has in it that builds this model: its comment."""
    return f'"node_id": "model.b2b_analytics.{name}"'


def building(front: Front, name: str, **what: Any) -> Rule:
    """A rule for the query that builds a model: the first one of its node."""
    return front.add(Rule(created(name), **what))


def failures(here: Checkout) -> dict[str, dict[str, Any]]:
    return {n["unique_id"]: n for n in here.recover("show", "-o", "json").json["failed"]}


def test_a_pipeline_in_layers_fails_and_is_recovered(
    front: Front, clean: dict[str, Any], tmp_path: Path
) -> None:
    here = project(tmp_path / "here", front, "LAYERS")
    steps = (
        ("staging", ("tag:raw", "tag:staging")),
        ("core", ("tag:core",)),
        ("reporting", ("tag:reporting",)),
    )
    commands = {n: ["dbt", "build", "--select", *s, *LEFT_OUT] for n, s in steps}
    (here.root / "dbt_recover.toml").write_text(
        "".join(
            ['[[pipeline]]\nrun = "nightly/*"\n']
            + [
                f'[[pipeline.steps]]\nname = "{n}"\ncommand = "{" ".join(c)}"\n'
                for n, c in commands.items()
            ]
        )
    )
    night = here.recover(
        "exec", "--run-id", "nightly/1", "--step", "staging", "--", *commands["staging"]
    )
    assert night.code == 1

    failed = failures(here)
    cast = failed[STG_CONTRACTS]
    assert cast["class"] == "data"
    evidence = cast["evidence"]
    assert (evidence["by"], evidence["code"], evidence["sqlstate"]) == ("code", "100035", "22007")
    assert len(evidence["query_id"]) == 36
    assert evidence["query_id"] == cast["query_id"]
    assert evidence["query_id"] in here.recover("show").out
    # Every query leads back to it.
    tag = '"run": {"run_id":"nightly/1","attempt":1,"step":"staging"}'
    assert [q for q in front.seen if created("stg_contracts") in q and tag in q]
    # The query_tag of the user's own profile is what it was.
    tags = [login["SESSION_PARAMETERS"]["QUERY_TAG"] for login in front.logins]
    assert set(tags) == {"finance, every night"}
    assert not [q for q in front.seen if "query_tag" in q.lower()]

    here.mend()
    planned = {n["unique_id"]: n["class"] for n in here.recover("plan", "-o", "json").json["nodes"]}
    assert planned[STG_CONTRACTS] == "data"
    assert planned[FCT_CONTRACTS] is None
    front.seen.clear()
    ran = here.recover("--no-query-tag", "retry", "-o", "json")
    assert (ran.code, ran.json["outcome"]) == (0, "recovered"), ran
    commented = [q for q in front.seen if created("stg_contracts") in q]
    assert commented
    assert all('"run": null' in q for q in commented)
    assert sorted(planned) == sorted(ran.json["executed"])
    assert tables(front, "LAYERS") == clean


def test_in_another_schema_on_top_of_production_then_in_its_own(
    front: Front, clean: dict[str, Any], tmp_path: Path
) -> None:
    here = project(tmp_path / "here", front, "DEFER")
    assert here.recover("exec", "--", "dbt", "build", *LEFT_OUT).code == 1
    before = tables(front, "DEFER")
    here.mend()
    planned = here.plan()
    key = private_key(here.home / "key.p8")
    front.logins.clear()
    ran = here.recover("retry", "--strategy", "defer", "--target", "repair", "-o", "json")
    assert (ran.code, ran.json["outcome"]) == (0, "recovered"), ran
    assert {login["AUTHENTICATOR"] for login in front.logins} == {"SNOWFLAKE_JWT"}
    for login in front.logins:
        signed, _, signature = login["TOKEN"].rpartition(".")
        raw = base64.urlsafe_b64decode(signature + "==")
        key.public_key().verify(raw, signed.encode(), PKCS1v15(), hashes.SHA256())
    keeps_no_secret(here)
    assert here.calls[-1].executed == planned
    after = tables(front, "DEFER")
    built = sorted(after.keys() - before.keys())
    assert "DBT_REPAIR.FCT_CONTRACTS" in built
    assert "DBT_REPAIR.FCT_PAYMENTS" not in built
    assert {name: after[name] for name in before} == before
    for name in built:
        assert after[name] == clean[name.replace("DBT_REPAIR", "DBT_PROD")], name

    # Production still lacks it; dbt's own retry as the means.
    assert here.plan() == planned
    ran = here.recover("retry", "--strategy", "retry", "-o", "json")
    assert (ran.code, ran.json["outcome"]) == (0, "recovered"), ran
    assert here.calls[-1].argv[0] == "retry"
    now = tables(front, "DEFER")
    assert {k: v for k, v in now.items() if k.startswith("DBT_PROD.")} == clean


@pytest.mark.parametrize("how", ["ctrl-c", "sigkill"])
def test_ended_in_the_middle_of_a_query(
    how: str, front: Front, clean: dict[str, Any], tmp_path: Path
) -> None:
    here = project(tmp_path / "here", front, "MIDDLE_" + how[0])
    here.mend()
    held = building(front, "stg_contracts", hold=True)
    with here.start("exec", "--", "dbt", "build", *LEFT_OUT) as running:
        running.until(held.came.is_set, "the query is at work")
        running.dbt()
        if how == "ctrl-c":
            running.signal(signal.SIGINT)
            ran = running.end()
            assert ran.code not in (0, 1), ran
            assert front.canceled.is_set(), "the session was told to cancel"
        else:
            # dbt dies with its queries at work: the session stays behind in the warehouse.
            running.signal_dbt(signal.SIGKILL)
            running.signal_group(signal.SIGKILL)
            running.process.wait()
            running.dbt_ended()
    shown = here.recover("show", "-o", "json").json
    assert shown["run"]["status"] == "failed"
    assert STG_CONTRACTS in [*shown["in_flight"], *shown["never_started"]] + [
        n["unique_id"] for n in shown["failed"]
    ]
    ran = here.recover("retry", "-o", "json")
    assert (ran.code, ran.json["outcome"]) == (0, "recovered"), ran
    assert tables(front, "MIDDLE_" + how[0]) == clean


def test_answers_of_the_service_are_told_apart(front: Front, tmp_path: Path) -> None:
    here = project(tmp_path / "here", front, "ANSWERS")
    here.mend()
    building(
        front,
        "stg_contracts",
        answer=(
            "000630",
            "57014",
            "Statement reached its statement or warehouse timeout of 1,200 second(s) and was canceled.",
        ),
    )
    building(
        front,
        "stg_invoices",
        answer=LOCKED,
    )
    building(
        front,
        "stg_plans",
        answer=(
            "003001",
            "42501",
            "SQL access control error:\nInsufficient privileges to operate on schema 'DBT_PROD'",
        ),
    )
    building(
        front,
        "stg_accounts",
        times=9,
        answer=(
            "390114",
            "08001",
            "Authentication token has expired.  The user must authenticate again.",
        ),
    )
    building(
        front,
        "stg_product_events",
        answer=(
            "090073",
            "22000",
            (
                "Warehouse 'TRANSFORMING_WH' cannot be resumed because resource monitor 'MONTHLY' has "
                "exceeded its quota."
            ),
        ),
    )
    build = ("dbt", "build", "--select", "tag:raw", "tag:staging", *LEFT_OUT)
    assert here.recover("exec", "--", *build).code == 1
    failed = failures(here)
    assert {u.split(".")[2]: (n["class"], n["evidence"]["code"]) for u, n in failed.items()} == {
        "stg_contracts": ("timeout", "000630"),
        "stg_invoices": ("transient", "000625"),
        "stg_plans": ("permission", "003001"),
        "stg_accounts": ("transient", "390114"),
        "stg_product_events": ("quota", "090073"),
    }
    assert "warehouse 'transforming_wh' cannot" in here.recover("notify").out.lower()
    assert all(len(n["query_id"] or "") == 36 for n in failed.values())
    # A retry that is for the transient ones alone is not for this run.
    stopped = here.recover("retry", "--on", "transient")
    assert stopped.code == 1
    assert f"not retried: {STG_CONTRACTS} failed with class timeout" in stopped.err
    assert len(here.calls) == 1


def test_a_lock_and_a_bad_line_pass_by_themselves(
    front: Front, clean: dict[str, Any], tmp_path: Path
) -> None:
    here = project(tmp_path / "here", front, "WEATHER")
    here.mend()
    building(
        front,
        "stg_invoices",
        answer=LOCKED,
    )
    # What the connector itself tries again: a connection that breaks before the query or after it.
    reset = building(front, "stg_plans", reset=True)
    lost = building(front, "dim_accounts", lose_answer=True)
    slow = building(front, "stg_contracts", delay=1.0)
    ran = here.recover(
        "exec", "--retry-transient", "2", "--backoff", "0.1", "--", "dbt", "build", *LEFT_OUT
    )
    assert ran.code == 0, ran.out + ran.err
    assert "recovered by attempt 2" in ran.err
    for rule in (reset, lost, slow):
        assert rule.came.is_set()
    shown = here.recover("show", "-o", "json").json
    assert [i["attempt"] for i in shown["invocations"]] == [1, 2]
    assert [i["exit_code"] for i in shown["invocations"]] == [1, 0]
    assert here.calls[-1].executed[0].startswith("model.b2b_analytics.fct_payments")
    assert tables(front, "WEATHER") == clean


def test_the_service_does_not_let_one_in(front: Front, tmp_path: Path) -> None:
    """At the first connection, so that nothing runs; then with a wrong password; then in the
    middle, where only what has a connection goes on."""
    with tcp_front(front.port) as tcp:
        front.tcp = tcp
        here = project(tmp_path / "here", front, "LOGIN").having(REUSE="False")
        names = ("raw_plans", "raw_invoices", "stg_plans", "stg_invoices")
        command = ("dbt", "build", "--threads", "1", "--select", *names)
        words = ("exec", "--retry-transient", "2", "--backoff", "4", "--", *command)
        refused = "Incorrect username or password was specified."
        front.login = (503, b"")
        with here.start(*words, "--exclude", "resource_type:test") as running:
            running.until(lambda: "retry 1 of 2 in" in running.ran().err, "it says that it waits")
            front.login = (200, error("390100", "08001", refused))
            ran = running.end()
        assert ran.code == 2, "as dbt did"
        assert "250001: Could not connect to Snowflake backend" in ran.out
        assert "not retried: dbt itself failed with class permission: 390100 (28000)" in ran.err
        assert "mend the credentials" in ran.err
        told = here.recover("notify").out
        assert "dbt itself gave up (permission)" in told
        assert refused in told

        front.login = None
        building(front, "stg_invoices", shut=True)
        ran = here.recover("retry")
        assert ran.code == 1, ran
        ((failed, said),) = failures(here).items()
        assert (failed, said["class"], said["evidence"]["code"]) == (
            STG_PLANS,
            "transient",
            "250001",
        )
        assert here.plan() == [STG_PLANS]
        tcp.open()
        ran = here.recover("retry", "--on", "transient", "-o", "json")
        assert (ran.code, ran.json["executed"]) == (0, [STG_PLANS]), ran


def test_the_service_is_gone_for_good(front: Front, tmp_path: Path) -> None:
    """In the middle of a query the connector asks again without end: who started it gives up."""
    with tcp_front(front.port) as tcp:
        front.tcp = tcp
        mine = '{"mine": 1}'
        here = project(tmp_path / "here", front, "GONE")
        here = here.having(TARGET="token", DBT_RECOVER_QUERY_TAG=mine)
        gone = building(front, "stg_plans", gone=True)
        command = ("dbt", "build", "--select", "raw_plans", "stg_plans")
        with here.start("exec", "--", *command, "--exclude", "resource_type:test") as running:
            running.until(gone.came.is_set, "the service is gone")
            running.dbt()
            running.signal(signal.SIGTERM)
            ran = running.end()
        assert ran.code not in (0, 1), ran
        assert here.recover("show", "-o", "json").json["in_flight"] == [STG_PLANS]
        tcp.open()
        ran = here.recover("retry", "-o", "json")
        assert (ran.code, ran.json["executed"]) == (0, [STG_PLANS]), ran
        said = {(login["AUTHENTICATOR"], login["TOKEN"]) for login in front.logins}
        assert said == {("OAUTH", SECRETS["TOKEN"])}
        tagged = [q for q in front.seen if created("stg_plans") in q]
        assert tagged
        assert all(f'"run": {mine}' in q for q in tagged)
        keeps_no_secret(here)


# The connector waits a minute for an answer, and dbt-snowflake cannot be told otherwise.
_IMPATIENT = """
try:
    from snowflake.connector import network
    network.DEFAULT_SOCKET_CONNECT_TIMEOUT = 6
except ImportError:
    pass
"""


def test_bytes_that_do_not_arrive(front: Front, clean: dict[str, Any], tmp_path: Path) -> None:
    """The connector asks again, and for as long as it takes: no node fails."""
    with tcp_front(front.port) as tcp:
        front.tcp = tcp
        (tmp_path / "sitecustomize.py").write_text(_IMPATIENT)
        paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
        here = project(tmp_path / "here", front, "BYTES").having(PYTHONPATH=paths)
        here.mend()
        cut = building(front, "stg_plans", cut=100)
        silent = building(front, "stg_invoices", silent=True)
        gone = building(front, "dim_accounts", gone=True)
        with here.start("exec", "--", "dbt", "build", *LEFT_OUT) as running:
            running.until(gone.came.is_set, "the whole service is gone")
            tcp.open()
            ran = running.end()
        assert ran.code == 0, ran.out + ran.err
        assert cut.came.is_set()
        assert silent.came.is_set()
        assert tables(front, "BYTES") == clean
