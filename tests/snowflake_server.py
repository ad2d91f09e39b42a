"""Snowflake's wire protocol on loopback: fakesnow's server, and a front before it that breaks what
passes, holds it, and plays back answers that only the real service gives.
"""

from __future__ import annotations

import gzip
import json
import socket
import struct
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from projects import PATIENCE, REAL_DBT
from servers import ServerUnavailable, free_ports
from tcp_front import TcpFront

WAREHOUSES = REAL_DBT.parents[2] / ".venvs" / "warehouses" / "bin"
"""The environment with dbt-snowflake, dbt-postgres and fakesnow."""

CANCELED = ("000604", "57014", "SQL execution canceled")
"""What a query is answered that `system$cancel_all_queries` ended."""


@dataclass
class Rule:
    """What is done to the next `times` queries whose text has this in it."""

    text: str
    times: int = 1
    answer: tuple[str, str, str] | None = None
    """(code, SQLSTATE, message): played back; the server never sees the query."""
    reset: bool = False
    """The connection is reset before the server sees the query."""
    lose_answer: bool = False
    """The server carries it out, and the connection is closed without a word."""
    delay: float = 0.0
    """Seconds to wait before the server sees it."""
    hold: bool = False
    """Kept until the session is canceled, or for good."""
    cut: int = 0
    """The server carries it out, and of the answer only so many bytes arrive."""
    silent: bool = False
    """The server carries it out, and the connection stays open without a word."""
    gone: bool = False
    """The whole service goes away: nobody listens any more, and all connections are reset."""
    shut: bool = False
    """Nobody is let in any more; whoever has a connection keeps it."""
    came: threading.Event = field(default_factory=threading.Event)


@dataclass
class Front:
    """The address that dbt is given."""

    port: int
    upstream: int
    rules: list[Rule] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    """The text of every query, in order."""
    logins: list[dict[str, Any]] = field(default_factory=list)
    """What each login said of itself: LOGIN_NAME, AUTHENTICATOR, TOKEN, SESSION_PARAMETERS, ..."""
    canceled: threading.Event = field(default_factory=threading.Event)
    tcp: TcpFront | None = None
    """What is before this one, for `cut`, `silent` and `gone`."""
    login: tuple[int, bytes] | None = None
    """(HTTP status, body) that a login is answered, instead of the server's."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, rule: Rule) -> Rule:
        with self.lock:
            self.rules.append(rule)
        return rule

    def rule(self, text: str) -> Rule | None:
        with self.lock:
            self.seen.append(text)
            for rule in self.rules:
                if rule.times and rule.text in text:
                    rule.times -= 1
                    return rule
        return None


def error(code: str, sqlstate: str, message: str) -> bytes:
    """An error as Snowflake answers it, with the id of the query."""
    data = {"errorCode": code, "sqlState": sqlstate, "queryId": str(uuid.uuid4())}
    return json.dumps({"data": data, "code": code, "message": message, "success": False}).encode()


@contextmanager
def snowflake_server(directory: Path) -> Iterator[Front]:
    """fakesnow behind a front. ServerUnavailable says why there is none."""
    program = WAREHOUSES / "fakesnow"
    if not program.exists():
        raise ServerUnavailable("no fakesnow here: make .venvs/warehouses")
    (port,) = free_ports(1)
    with (directory / "fakesnow.log").open("wb") as log:
        process = subprocess.Popen(
            [str(program), "-s", "-p", str(port)], stdout=log, stderr=log, cwd=directory
        )
    try:
        give_up = time.monotonic() + PATIENCE
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > give_up:
                    said = (directory / "fakesnow.log").read_text()[-500:]
                    raise ServerUnavailable(f"fakesnow does not start: {said}") from None
                time.sleep(0.1)
        with _front(port) as front:
            yield front
    finally:
        process.kill()
        process.wait()


@contextmanager
def _front(upstream: int) -> Iterator[Front]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            plain = gzip.decompress(body) if self.headers.get("Content-Encoding") else body
            rule = None
            if self.path.startswith("/session/v1/login-request"):
                front.logins.append(json.loads(plain)["data"])
                if front.login:
                    return self._answer(front.login[1], front.login[0])
            if self.path.startswith("/queries/v1/query-request"):
                text = str(json.loads(plain)["sqlText"])
                rule = front.rule(text)
                if "system$cancel_all_queries" in text.lower():
                    # fakesnow does not know it.
                    front.canceled.set()
                    return self._answer(error("000603", "XX000", "not here"))
            if rule is not None:
                rule.came.set()
                time.sleep(rule.delay)
                if rule.answer is not None:
                    return self._answer(error(*rule.answer))
                if front.tcp is not None:
                    self._break(rule, front.tcp)
                if rule.reset:
                    return self._reset()
                if rule.hold:
                    if front.canceled.wait(PATIENCE):
                        return self._answer(error(*CANCELED))
                    return self._reset()
            content = self._forward(body)
            if content is None or (rule is not None and rule.lose_answer):
                return self._reset()
            return self._answer(content)

        def _break(self, rule: Rule, tcp: TcpFront) -> None:
            if rule.cut:
                tcp.cut(self.client_address[1], rule.cut)
            if rule.silent:
                tcp.hold(self.client_address[1])
            if rule.gone:
                tcp.close()
            if rule.shut:
                tcp.shut()

        def _forward(self, body: bytes) -> bytes | None:
            server = HTTPConnection("127.0.0.1", upstream, timeout=PATIENCE)
            kept = ("host", "connection", "accept-encoding")
            try:
                headers = {k: v for k, v in self.headers.items() if k.lower() not in kept}
                server.request(self.command, self.path, body, headers)
                answer = server.getresponse()
                content = answer.read()
            except (OSError, HTTPException):
                return None
            finally:
                server.close()
            if answer.status != 200:
                # What fakesnow has no word for is an error of SQL, not of the service: the
                # connector would try it again and again.
                said = json.loads(content).get("message", "unsupported") if content else "empty"
                return error("001003", "42000", f"SQL compilation error:\n{said[:300]}")
            return _with_query_id(content)

        def _answer(self, content: bytes, status: int = 200) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _reset(self) -> None:
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.close_connection = True
            self.connection.close()

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        # A dbt that was killed leaves threads behind that hold for long.
        block_on_close = False

        def handle_error(self, *args: object) -> None:
            """Clients that go away are what is tested."""

    server = Server(("127.0.0.1", 0), Handler)
    front = Front(server.server_address[1], upstream)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield front
    finally:
        front.canceled.set()
        server.shutdown()
        thread.join()
        server.server_close()


def _with_query_id(content: bytes) -> bytes:
    """fakesnow's errors lack the id of the query, which Snowflake's have."""
    document: dict[str, Any] = json.loads(content)
    data = document.get("data")
    if document.get("success") is False and isinstance(data, dict) and not data.get("queryId"):
        data["queryId"] = str(uuid.uuid4())
        return json.dumps(document).encode()
    return content


_ASK = """
import json, sys
import snowflake.connector
port, database = int(sys.argv[1]), sys.argv[2]
con = snowflake.connector.connect(
    account="fakesnow", host="localhost", port=port, protocol="http", user="u", password="p",
    database=database, schema="information_schema")
cur = con.cursor()
names = cur.execute(
    "select table_schema, table_name from information_schema.tables "
    "where table_schema <> 'INFORMATION_SCHEMA'").fetchall()
found = {}
def plain(value):  # fakesnow sums decimals as floats
    return round(value, 6) if isinstance(value, float) else value
for schema, name in names:
    cur.execute(f'select * from {database}."{schema}"."{name}"')
    columns = [c.name for c in cur.description]
    kept = [i for i, c in enumerate(columns) if not c.startswith("DBT_")]
    found[f"{schema}.{name}"] = [
        [columns[i] for i in kept],
        sorted(repr([plain(row[i]) for i in kept]) for row in cur.fetchall())]
print(json.dumps(found))
"""


def tables(front: Front, database: str) -> dict[str, Any]:
    """SCHEMA.NAME -> [columns, sorted rows] of all tables and views, without dbt's own columns."""
    done = subprocess.run(
        [str(WAREHOUSES / "python"), "-c", _ASK, str(front.upstream), database],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found
