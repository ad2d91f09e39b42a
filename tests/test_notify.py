"""The alert: what it says, what it never says, Slack's limits, and webhooks that misbehave."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from slack_sdk.models.blocks import Block

from dbt_recover import redact
from dbt_recover.alert import FAILED, RECOVERED, Alert, alert_of
from dbt_recover.diagnose import diagnose, patterns
from dbt_recover.errors import UsageError
from dbt_recover.graph import Graph, Node
from dbt_recover.layout import RunPlace
from dbt_recover.load import LoadedRun
from dbt_recover.model import Invocation, NodeResult, NodeState, RunInfo, RunState
from dbt_recover.notify import check_url, post
from dbt_recover.render import alerts, slack, tables
from projects import ARTIFACTS, Checkout, checkout

slow = pytest.mark.slow
RUN = RunInfo("nightly 2026-01-31", "2026-01-31T06:00:00Z")


def run_of(states: dict[str, NodeState], graph: Graph, *invocations: Invocation) -> LoadedRun:
    state = RunState(RUN, list(invocations), states)
    place = RunPlace.of(RUN.run_id, RUN.began)
    return LoadedRun(place, [], graph, graph, graph, state, {})


def invocation(attempt: int, began: str, ended: str) -> Invocation:
    return Invocation(
        f"i{attempt}", RUN, attempt=attempt, began=began, ended=ended, adapter_type="duckdb"
    )


FIRST = invocation(1, "2026-01-31T06:00:00Z", "2026-01-31T06:10:00Z")
CAST = (
    "Runtime Error in model {0} (models/{0}.sql)\n"
    '  Conversion Error: Could not convert string "jane@example.com" to INT32\n\n'
    "  LINE 3: select secret_column from customers\n"
    "                 ^\n"
    "  compiled code at target/run/shop/models/{0}.sql"
)


def failed_run(number: int) -> LoadedRun:
    """`number` models that failed on a cast, each with a skipped model and an exposure below."""
    nodes, states = [], {}
    for n in range(number):
        bad, below = f"model.shop.bad_{n:03d}", f"model.shop.below_{n:03d}"
        nodes += [
            Node(bad, "model", f"bad_{n:03d}", original_file_path=f"models/bad_{n:03d}.sql"),
            Node(below, "model", f"below_{n:03d}", depends_on=[bad]),
            Node(
                f"exposure.shop.board_{n:03d}",
                "exposure",
                f"board_{n:03d}",
                depends_on=[below],
                owner="Sales <ops>",
            ),
        ]
        message = CAST.format(f"bad_{n:03d}")
        states[bad] = NodeState(NodeResult(bad, "error", message, query_id=f"q{n}"), 1, "i1", 0)
        states[below] = NodeState(NodeResult(below, "skipped"), 1, "i1", 0)
    return run_of(states, Graph(nodes), FIRST)


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner)
    elif isinstance(value, str):
        yield value


def is_valid(message: dict[str, Any]) -> None:
    """By Slack's own models of its blocks, and by the limits that they do not hold."""
    assert set(message) == {"text", "blocks"}
    assert len(message["blocks"]) <= slack.MAX_BLOCKS
    for block in Block.parse_all(message["blocks"]):
        block.validate_json()
    for block in message["blocks"]:
        if block["type"] == "section":
            assert 0 < len(block["text"]["text"]) <= slack.MAX_SECTION
            assert block["text"]["text"].count("```") % 2 == 0, "a fence is cut"
    assert sum(map(len, texts(message["blocks"]))) < 13_500


# What it says


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("number", [1, 11, 60, 400])
def test_slack_takes_a_message_about_any_number_of_failures(number: int, full: bool) -> None:
    alert = alert_of(failed_run(number), full=full, log_url="https://airflow/log?a=1|2>")
    message = slack.message(alert, full=full)
    is_valid(message)
    said = "\n".join(texts(message))
    assert f"{number} failed, {number} not built, of {2 * number} nodes" in message["text"]
    assert "```dbt-recover retry 'nightly 2026-01-31'```" in said
    assert "bad_000" in said
    assert "below_000" in said
    assert "board_000 (Sales &lt;ops&gt;)" in said
    shown = sum("*model* `bad_" in t for t in texts(message))
    assert shown >= min(number, 11)
    if shown < number:
        assert f"and {number - shown} more failed" in said


def test_slack_takes_one_failure_however_long_its_words() -> None:
    name = "m" * 5000
    message = f"Database Error in model x (y)\n  {'<b>`*' * 9000}"
    nodes = Graph([Node(f"model.shop.{name}", "model", name, original_file_path="p" * 5000)])
    state = NodeState(NodeResult(f"model.shop.{name}", "error", message), 1, "i1", 0)
    run = run_of({f"model.shop.{name}": state}, nodes, FIRST)
    for full in (False, True):
        is_valid(slack.message(alert_of(run, full=full), full=full))


def test_an_error_of_a_megabyte_is_cut() -> None:
    message = "Database Error in model a (a.sql)\n  " + "syntax error " * 100_000
    run = run_of(
        {"model.shop.a": NodeState(NodeResult("model.shop.a", "error", message), 1, "i1", 0)},
        Graph([Node("model.shop.a", "model", "a")]),
        FIRST,
    )
    assert len(json.dumps(alerts.document(alert_of(run)))) < 2_000
    assert len(json.dumps(alerts.document(alert_of(run, full=True)))) < 25_000


def test_why_dbt_itself_gave_up_is_told_of() -> None:
    error = (
        'Runtime Error\n  Database error while listing schemas in database "SHOP"\n'
        "  Database Error\n    250001: Could not connect to Snowflake backend after 2 attempt(s)."
        "Aborting password=hunter2"
    )
    first = msgspec.structs.replace(FIRST, adapter_type="snowflake", error=error)
    ids = [f"model.shop.m{n}" for n in range(3)]
    left = {u: NodeState(NodeResult(u, "never started"), 1, "i1", 0) for u in ids}
    alert = alert_of(run_of(left, Graph([Node(u, "model", u[-2:]) for u in ids]), first))
    message = slack.message(alert)
    is_valid(message)
    assert "failed: dbt itself gave up (transient), 3 not built" in message["text"]
    for said in (json.dumps(message), json.dumps(alerts.document(alert)), alerts.text(alert)):
        assert "250001: Could not connect to Snowflake backend" in said
        assert "hunter2" not in said
        assert "listing schemas" not in said


def test_nothing_in_a_message_mentions_or_links() -> None:
    message = "Database Error in model a (a.sql)\n  syntax <!channel> <https://x|y> & `z`"
    run = run_of(
        {"model.shop.a": NodeState(NodeResult("model.shop.a", "error", message), 1, "i1", 0)},
        Graph([Node("model.shop.a", "model", "a")]),
        FIRST,
    )
    said = "\n".join(texts(slack.message(alert_of(run, full=True), full=True)))
    assert "<!channel>" not in said
    assert "<https" not in said
    assert "&lt;!channel&gt;" in said


def test_a_failed_tests_exposures_are_those_of_what_it_tests() -> None:
    graph = Graph(
        [
            Node("model.shop.m", "model", "m"),
            Node("test.shop.t.1", "test", "t", depends_on=["model.shop.m"]),
            Node("exposure.shop.e", "exposure", "e", depends_on=["model.shop.m"], owner="O"),
        ]
    )
    states = {
        "model.shop.m": NodeState(NodeResult("model.shop.m", "success"), 1, "i1", 0),
        "test.shop.t.1": NodeState(
            NodeResult("test.shop.t.1", "fail", "Got 3 results, configured to fail if != 0"),
            1,
            "i1",
            0,
        ),
    }
    alert = alert_of(run_of(states, graph, FIRST))
    assert [(e.name, e.owner) for e in alert.exposures] == [("e", "O")]
    assert (alert.failures[0].kind, alert.failures[0].error_class) == ("test", "data")
    assert alert.failures[0].error == "Got 3 results, configured to fail if != 0"


def test_what_to_paste_where_a_hook_failed_is_the_command_that_it_belongs_to() -> None:
    """dbt runs hooks only with a command, so that a retry would refuse."""
    hook = "operation.shop.shop-on-run-end-0"
    graph = Graph(
        [
            Node("model.shop.m", "model", "m"),
            Node("model.shop.log", "model", "log", materialized="incremental"),
        ]
    )
    build = msgspec.structs.replace(FIRST, step="load", argv=["dbt", "build", "--select", "a b"])
    states = {
        "model.shop.m": NodeState(NodeResult("model.shop.m", "success"), 1, "i0", 0),
        "model.shop.log": NodeState(NodeResult("model.shop.log", "success"), 1, "i0", 0),
        hook: NodeState(NodeResult(hook, "error", "permission denied for table t"), 1, "i1", 1),
    }
    alert = alert_of(run_of(states, graph, FIRST, build))
    line = (
        "dbt-recover exec --run-id 'nightly 2026-01-31' --step load -- dbt build --select 'a b' "
        "--exclude log"
    )
    assert alert.command == line
    assert alerts.document(alert)["command"] == line
    states["model.shop.m"] = NodeState(NodeResult("model.shop.m", "skipped"), 1, "i0", 0)
    assert alert_of(run_of(states, graph, FIRST, build)).command == (
        "dbt-recover retry 'nightly 2026-01-31'"
    )


@pytest.mark.parametrize("error_class", ["quota", "timeout", "transient", "permission", "code"])
def test_the_names_that_a_warehouse_quotes_are_told(error_class: str) -> None:
    said = "Warehouse 'LOADING' cannot be resumed because resource monitor 'MONTHLY' has exceeded"
    assert redact.line(said, error_class) == said


def test_the_notice_of_recovery_closes_the_loop() -> None:
    ids = [f"model.shop.m{n}" for n in range(41)]
    states = {
        u: NodeState(NodeResult(u, "success"), 2 if n < 3 else 1, "", 1 if n < 3 else 0)
        for n, u in enumerate(ids)
    }
    second = invocation(2, "2026-01-31T07:00:00Z", "2026-01-31T07:00:38Z")
    alert = alert_of(run_of(states, Graph([]), FIRST, second))
    assert alert.status == RECOVERED
    said = "recovered by attempt 2: 3 of 41 nodes re-run, 38.0 s"
    assert said in alerts.headline(alert)
    message = slack.message(alert)
    is_valid(message)
    assert said in message["text"]
    assert "retry" not in "\n".join(texts(message["blocks"]))


def test_show_is_for_eyes() -> None:
    """No colors of dbt's, which are letters here, and of a Python model what it raised."""
    messages = {
        "unit_test.shop.m.u": "\n\n\x1b[32mactual\x1b[0m differs from \x1b[31mexpected\x1b[0m:\n\n@@,n",
        "model.shop.p": (
            "Runtime Error in model p (models/p.py)\n  Python model failed:\n  Traceback (most recent "
            "call last):\n" + '    File "x.py", line 9, in model\n' * 9 + "  KeyError: 'plan'"
        ),
    }
    states = {
        uid: NodeState(NodeResult(uid, "error", said), 1, "i1", 0) for uid, said in messages.items()
    }
    shown = tables.show(run_of(states, Graph([]), FIRST).state, Graph([]))
    assert "\x1b" not in shown
    assert "    actual differs from expected:\n    @@,n\n" in shown
    assert "    Python model failed: KeyError: 'plan'\n" in shown


# What it never says


@pytest.mark.parametrize("kind", ["slack", "webhook", "stdout"])
def test_values_secrets_and_sql_stay_out_of_it(kind: str) -> None:
    hidden = "a value of a secret variable"
    run = failed_run(1)
    uid = "model.shop.bad_000"
    worse = run.state.nodes[uid].result.message.replace(
        "INT32", f"INT32 password=hunter2 token: xoxb-1-2 {hidden}"
    )
    run.state.nodes[uid] = NodeState(NodeResult(uid, "error", worse), 1, "i1", 0)

    def rendered(full: bool) -> str:
        alert = alert_of(run, full=full, hidden=[hidden])
        if kind == "stdout":
            return alerts.text(alert, full=full)
        made = slack.message(alert, full=full) if kind == "slack" else alerts.document(alert)
        return json.dumps(made)

    for full in (False, True):
        said = rendered(full)
        assert "Could not convert string" in said
        for secret in ("hunter2", "xoxb", hidden, "secret_column", "compiled code", "LINE 3"):
            assert secret not in said, (full, secret)
    assert "jane@example.com" not in rendered(full=False)
    assert "jane@example.com" in rendered(full=True)


VALUES = ["2,388.00", "31.01.2026", "perhaps", "order_id: 7", "2147483647", "256.0 KiB"]


@pytest.mark.parametrize("pattern", patterns(), ids=lambda p: f"{p.adapters[0]}-{p.error_class}")
def test_no_sample_of_a_failure_about_data_keeps_its_values(pattern: Any) -> None:
    said = diagnose(NodeResult("model.p.m", "error", pattern.sample), pattern.adapters[0])
    line = redact.line(said.summary, said.error_class)
    if pattern.error_class == "data":
        assert not [v for v in VALUES[:5] if v in line], line
    assert line.split()[0].strip(":") in said.summary


@pytest.mark.parametrize(
    "text, gone",
    [
        ("Key (id)=(jane) already exists.", "jane"),
        ("Failing row contains (1, jane).", "jane"),
        ("Bad int64 value: jane", "jane"),
        ("Row Values: [jane]", "jane"),
        ('Could not cast "it\'s jane" to DATE', "jane"),
        ("cut off in the middle of 'jane", "jane"),
        ("it said \\'jane\\' twice 'O''Hara'", "Hara"),
        ("password=jane", "jane"),
        ('{"api_key": "jane doe"}', "jane"),
        ("SNOWFLAKE_PASSWORD: jane", "jane"),
        ("Authorization: Bearer jane.doe", "jane"),
        ("postgres://user:jane@host/db", "jane"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJqYW5lIn0.c2ln", "eyJ"),
        ("AKIAIOSFODNN7EXAMPLE", "AKIA"),
        ("https://hooks.slack.com/services/T0/B0/xyz", "T0/B0"),
        ("dapi0123456789abcdef0123456789abcdef", "dapi"),
        ("-----BEGIN PRIVATE KEY-----\njane\n-----END PRIVATE KEY-----", "jane"),
    ],
)
def test_redaction(text: str, gone: str) -> None:
    assert gone not in redact.line(text, "data")
    if gone == "jane" and not text.startswith(("Key", "Fail", "Bad", "Row", "Could", "cut")):
        assert gone not in redact.line(text, "code")


def test_names_stay_readable_where_a_failure_is_about_code() -> None:
    said = "000904 (42000): 01b43b22-0509-2fce-0003-29019743c13b: invalid identifier 'ORDER_TOTL'"
    assert redact.line(said, "code") == said
    lock = "Statement '01b43b22-0509-2fce-0003-29019743c0af' has locked table 'MODELS'"
    assert redact.line(lock, "transient") == lock


# Webhooks


@dataclass
class Hook:
    """A server that plays Slack. `answers` are used up in order; then 200."""

    url: str
    answers: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    received: list[Any] = field(default_factory=list)
    hang: threading.Event = field(default_factory=threading.Event)
    hanging: bool = False


@contextmanager
def hook(tls: Path | None = None) -> Iterator[Hook]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.headers["Content-Type"] == "application/json"
            made.received.append((self.path, json.loads(body)))
            if made.hanging:
                made.hang.wait(60)
            status, headers = made.answers.pop(0) if made.answers else (200, {})
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(b"ok")

    class Server(ThreadingHTTPServer):
        def handle_error(self, *args: object) -> None:
            """Clients that go away are what is tested."""

    server = Server(("127.0.0.1", 0), Handler)
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    scheme = "https" if tls else "http"
    made = Hook(f"{scheme}://127.0.0.1:{server.server_address[1]}/services/T0/B0/geheim")
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield made
    finally:
        made.hang.set()
        server.shutdown()
        thread.join()
        server.server_close()


def self_signed(path: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    return path


def test_a_webhook_that_answers() -> None:
    with hook() as there:
        assert post(there.url, {"text": "x"}) == ""
        assert there.received == [("/services/T0/B0/geheim", {"text": "x"})]


@pytest.mark.parametrize(
    "answers, posts, trouble",
    [
        ([(500, {}), (200, {})], 2, ""),
        ([(429, {"Retry-After": "1"}), (200, {})], 2, ""),
        ([(503, {}), (503, {}), (200, {})], 2, "it answered 503"),
        ([(404, {})], 1, "it answered 404"),
        ([(302, {"Location": "http://127.0.0.1:9/elsewhere"})], 1, "it answered 302"),
    ],
)
def test_what_a_webhook_may_answer(
    answers: list[tuple[int, dict[str, str]]], posts: int, trouble: str
) -> None:
    with hook() as there:
        there.answers = answers
        assert post(there.url, {}).startswith(trouble)
        assert len(there.received) == posts


def _hangs(there: Hook) -> None:
    there.hanging = True


def _asks_for_patience(there: Hook) -> None:
    there.answers = [(429, {"Retry-After": "3600"})]


@pytest.mark.parametrize("how", [_hangs, _asks_for_patience])
def test_a_webhook_that_keeps_one_waiting_is_left(how: Callable[[Hook], None]) -> None:
    with hook() as there:
        how(there)
        began = time.monotonic()
        assert post(there.url, {}, bound=1.0) in (
            "no answer within 1 s",
            "it cannot be reached: TimeoutError",
            "it answered 429 Too Many Requests",
        )
        assert time.monotonic() - began < 30, "the bound was 1 s"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\x00\xff nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 404 /services/geheim is not here\r\nContent-Length: 999999999\r\n\r\nx",
    ],
)
def test_answers_that_are_none(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with server.accept()[0] as client:
                client.recv(1 << 16)
                client.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        trouble = post(f"http://127.0.0.1:{server.getsockname()[1]}/services/geheim", {})
        thread.join()
    assert trouble.startswith("it ")
    assert "geheim" not in trouble


def test_nobody_there_and_a_certificate_of_its_own(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        trouble = post(f"http://127.0.0.1:{free.getsockname()[1]}/geheim", {})
    assert "Connection refused" in trouble
    assert "geheim" not in trouble
    with hook(self_signed(tmp_path / "pem")) as there:
        trouble = post(there.url, {})
        assert "CERTIFICATE_VERIFY_FAILED" in trouble
        assert there.received == []


@pytest.mark.parametrize("url", ["", "ftp://x/y", "hooks.slack.com/x", "https://:80", "http://a b"])
def test_what_is_no_address_is_refused_without_being_repeated(url: str) -> None:
    with pytest.raises(UsageError) as raised:
        check_url(url, "it")
    assert not url or url not in raised.value.message


# The command


@pytest.fixture(scope="module")
def archived_once(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    here = checkout("two_independent_failures", tmp_path_factory.mktemp("archived") / "here")
    shutil.copytree(ARTIFACTS / "good", here.root / "target")
    assert here.recover("archive", "--run-id", "nightly-1").code == 0
    return here


def test_notify_tells_slack_and_keeps_the_address_to_itself(archived_once: Checkout) -> None:
    with hook() as there:
        here = archived_once.having(DBT_RECOVER_NOTIFY_WEBHOOK_URL=there.url)
        printed = here.recover("notify", "--to", "slack", "--print")
        assert (printed.code, there.received) == (0, []), printed
        assert printed.json["text"]
        ran = here.recover("notify", "--to", "slack", "--log-url", "https://airflow.example/log")
        assert ran.code == 0, ran
        ((_, message),) = there.received
        is_valid(message)
        assert "dbt-recover retry nightly-1" in json.dumps(message)
        assert "<https://airflow.example/log|log>" in json.dumps(message)
        ran_json = here.recover("notify", "nightly-1", "--to", "webhook")
        assert ran_json.code == 0
        assert there.received[1][1]["event"] == "failed"
        assert there.received[1][1]["command"] == "dbt-recover retry nightly-1"

        there.answers = [(500, {}), (500, {})]
        failed = here.recover("notify", "--to", "slack")
        assert failed.code == 0, "an alert that is lost fails nothing"
        assert "slack was not told of run nightly-1: it answered 500" in failed.err
        for said in (ran, ran_json, failed):
            assert "geheim" not in said.out + said.err
    for path in (here.root / ".dbt-recover").rglob("*"):
        assert not path.is_file() or b"geheim" not in path.read_bytes()


def test_notify_on_stdout_and_without_an_address(archived_once: Checkout) -> None:
    ran = archived_once.recover("notify")
    assert ran.code == 0
    assert ran.out.splitlines()[0].startswith("dbt run nightly-1 failed: ")
    assert ran.out.splitlines()[-1] == "dbt-recover retry nightly-1"
    for to in ("slack", "webhook"):
        ran = archived_once.recover("notify", "--to", to)
        assert ran.code == UsageError.exit_code
        assert "DBT_RECOVER_NOTIFY_WEBHOOK_URL" in ran.err


def test_the_address_can_come_from_the_file(archived_once: Checkout, tmp_path: Path) -> None:
    here = archived_once.copied(tmp_path / "here")
    with hook() as there:
        (here.root / "dbt_recover.toml").write_text(
            f'[notify]\nto = "slack"\nwebhook_url = "{there.url}"\n'
        )
        assert here.recover("notify").code == 0
        assert len(there.received) == 1


@slow
def test_a_run_that_recovers_is_told_of(tmp_path: Path) -> None:
    here = checkout("model_error", tmp_path / "here")
    assert here.recover("exec", "--", "dbt", *here.expect.command).code == 1
    assert "order_totals: error" in here.recover("notify").out
    here.mend()
    assert here.recover("retry").code == 0
    told = here.recover("notify").out
    assert f"recovered by attempt 2: {len(here.expect.retry)} of " in told
    assert "dbt-recover retry" not in told


def test_alerts_of_other_ends() -> None:
    plain = Alert("r", "success", "2026-01-31 06:00", 1, 3, seconds=2.0)
    assert alerts.headline(plain) == "dbt run r succeeded: 3 nodes, 2.0 s"
    is_valid(slack.message(plain))
    lost = Alert("r", FAILED, "2026-01-31 06:00", 2, 3, blocked=("a",))
    assert alerts.headline(lost) == (
        "dbt run r failed after attempt 2: it did not come to its end, 1 not built, of 3 nodes"
    )
    is_valid(slack.message(lost))


@pytest.mark.parametrize(
    "text, shown",
    [
        (
            "Type INT64 with value 4111111111111111 can't be cast because it's out of range",
            "Type INT64 with value ***** can't be cast",
        ),
        (
            "100071 (22000): Failed to cast variant value 4111111111111111 to FIXED(10,0)",
            "100071 (22000): Failed to cast variant value *****",
        ),
        ("customer 4111.jane+x@shop.example.com has no plan", "customer ***** has no plan"),
    ],
)
def test_a_value_without_quotes_is_a_value(text: str, shown: str) -> None:
    for error_class in ("data", "unknown"):
        said = redact.line(text, error_class)
        assert "4111" not in said
        assert said.startswith(shown)


@pytest.mark.parametrize(
    "message",
    [
        "[UNRESOLVED_COLUMN.WITH_SUGGESTION] x\n== SQL (of VIEW `v`) ==\nselect geheim\n--^^^",
        "[PARSE_SYNTAX_ERROR] Syntax error\n\n== SQL ==\nselect geheim\n--^^^\nfrom x",
        "400 Syntax error\n\n-----Query Job SQL Follows-----\n\n   1:select geheim",
    ],
)
def test_sql_that_follows_an_error_goes_out_with_no_alert(message: str) -> None:
    run = run_of(
        {"model.shop.a": NodeState(NodeResult("model.shop.a", "error", message), 1, "i1", 0)},
        Graph([Node("model.shop.a", "model", "a")]),
        FIRST,
    )
    for full in (False, True):
        assert "geheim" not in alerts.text(alert_of(run, full=full), full=full)


def test_an_address_is_a_name_only_where_a_right_is_missing() -> None:
    said = "User 4111.jane@shop.example.com does not have USE CATALOG"
    assert redact.line(said, "permission") == said
    for error_class in ("code", "transient", "timeout", "quota", "data", "unknown"):
        assert redact.line(said, error_class) == "User ***** does not have USE CATALOG"


@pytest.mark.parametrize("word", ["x" * 1_000_000, "token" * 100_000, "a.b-" * 100_000])
def test_a_long_word_is_no_burden(word: str) -> None:
    assert redact.line(word, "data")


def test_a_secret_has_a_name_of_any_length() -> None:
    named = "a" * 100 + "_password=hunter2"
    assert "hunter2" not in redact.line(named, "code")
