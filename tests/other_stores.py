"""Stores that are not S3, on 127.0.0.1.

| store   | what it is                                                                          |
| ------- | ----------------------------------------------------------------------------------- |
| azurite | Microsoft's own emulator of Azure Blob Storage (npm; `make .venvs/azurite`)          |
| google  | ours: the part of Google's XML API that obstore speaks, with generations in memory.  |
|         | The emulators that can be installed here (gcp-storage-emulator, fake-gcs-server)     |
|         | answer that API's writes with 501 and 400.                                           |
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from servers import ServerUnavailable, free_ports

_AZURITE = Path(__file__).parent.parent / ".venvs/azurite/node_modules/.bin/azurite-blob"
# Azurite's own, published account: there is no other.
_ACCOUNT = "devstoreaccount1"
_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@dataclass(frozen=True)
class OtherStore:
    """A running store with a bucket that is empty."""

    scheme: str
    address: str
    bucket: str
    environment: dict[str, str]
    """Variables under which it is reached."""

    @property
    def url(self) -> str:
        """Of the bucket."""
        return f"{self.scheme}://{self.bucket}"


@contextmanager
def azurite(tmp: Path) -> Iterator[OtherStore]:
    """Azurite, in memory."""
    if not _AZURITE.exists():
        raise ServerUnavailable("no azurite here: make .venvs/azurite (needs npm)")
    (port,) = free_ports(1)
    command = [str(_AZURITE), "--blobHost", "127.0.0.1", "--blobPort", str(port), "--silent"]
    command += ["--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry"]
    tmp.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        command, cwd=tmp, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    name = f"test-{uuid.uuid4().hex[:12]}"
    try:
        _await_container(process, port, name)
        yield OtherStore("az", address, name, azure_environment(address))
    finally:
        process.kill()
        process.wait()


def azure_environment(address: str, key: str = _KEY) -> dict[str, str]:
    """Variables under which an Azurite at this address is reached."""
    return {
        "AZURE_STORAGE_ACCOUNT_NAME": _ACCOUNT,
        "AZURE_STORAGE_ACCOUNT_KEY": key,
        "AZURE_STORAGE_ENDPOINT": f"{address}/{_ACCOUNT}",
    }


def _await_container(process: subprocess.Popen[bytes], port: int, name: str) -> None:
    give_up = time.monotonic() + 60
    last = ""
    while time.monotonic() < give_up:
        if process.poll() is not None:
            raise ServerUnavailable(f"azurite ended with {process.returncode}")
        try:
            last = _make_container(port, name)
        except OSError as error:
            last = str(error)
        if not last:
            return
        time.sleep(0.2)
    raise ServerUnavailable(f"azurite was not ready after 60 s: {last}")


def _make_container(port: int, name: str) -> str:
    """What went wrong, if anything: obstore makes no containers."""
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2023-11-03"}
    lines = ["PUT", *[""] * 11, *(f"{k}:{v}" for k, v in sorted(headers.items()))]
    lines += [f"/{_ACCOUNT}/{_ACCOUNT}/{name}", "restype:container"]
    digest = hmac.new(base64.b64decode(_KEY), "\n".join(lines).encode(), hashlib.sha256).digest()
    headers["Authorization"] = f"SharedKey {_ACCOUNT}:{base64.b64encode(digest).decode()}"
    headers["Content-Length"] = "0"
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("PUT", f"/{_ACCOUNT}/{name}?restype=container", headers=headers)
        answer = connection.getresponse()
        text = answer.read().decode(errors="replace")
        return "" if answer.status == 201 else f"{answer.status} {text[:300]}"
    finally:
        connection.close()


@dataclass(frozen=True)
class _Object:
    data: bytes
    generation: int
    modified: float
    nonce: str


@dataclass
class _Bucket:
    objects: dict[str, _Object] = field(default_factory=dict)
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)
    nonces: dict[str, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    generation: int = 1000

    def put(self, key: str, data: bytes, nonce: str, condition: str | None) -> _Object | None:
        """None if the condition does not hold: `0` is that there is none."""
        with self.lock:
            there = self.objects.get(key)
            if condition is not None and int(condition) != (there.generation if there else 0):
                return None
            self.generation += 1
            made = _Object(data, self.generation, time.time(), nonce)
            self.objects[key] = made
            return made


_PAGE = 1000


@contextmanager
def google() -> Iterator[OtherStore]:
    """A stand-in for Google Cloud Storage, in this process."""
    name, bucket = f"test-{uuid.uuid4().hex[:12]}", _Bucket()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            """Quiet."""

        def _serve(self) -> None:
            parts = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked, _, key = parts.path.lstrip("/").partition("/")
            query = {k: v[0] for k, v in parse_qs(parts.query, keep_blank_values=True).items()}
            if unquote(asked) != name:
                code = "NoSuchBucket" if asked else "InvalidRequest"
                self._answer(404, _xml("Error", f"<Code>{code}</Code><Message>none</Message>"))
            elif not key:
                self._answer(200, _listing(bucket, query))
            else:
                getattr(self, f"_{self.command.lower()}")(unquote(key), query, body)

        def _put(self, key: str, query: dict[str, str], body: bytes) -> None:
            if "uploadId" in query:
                bucket.parts[query["uploadId"]][int(query["partNumber"])] = body
                self._answer(200, b"", {"ETag": f'"{query["partNumber"]}"'})
                return
            nonce = self.headers.get("x-goog-meta-nonce", "")
            made = bucket.put(key, body, nonce, self.headers.get("x-goog-if-generation-match"))
            if made is None:
                self._answer(412, _xml("Error", "<Code>PreconditionFailed</Code>"))
            else:
                self._answer(200, b"", _headers(made))

        def _post(self, key: str, query: dict[str, str], body: bytes) -> None:
            if "uploads" in query:
                ident = uuid.uuid4().hex
                bucket.parts[ident] = {}
                bucket.nonces[ident] = self.headers.get("x-goog-meta-nonce", "")
                inner = f"<Bucket>{name}</Bucket><Key>k</Key><UploadId>{ident}</UploadId>"
                self._answer(200, _xml("InitiateMultipartUploadResult", inner))
                return
            ident = query["uploadId"]
            data = b"".join(part for _, part in sorted(bucket.parts.pop(ident).items()))
            made = bucket.put(key, data, bucket.nonces.pop(ident), None)
            assert made is not None
            inner = f"<ETag>{_headers(made)['ETag']}</ETag>"
            self._answer(200, _xml("CompleteMultipartUploadResult", inner), _headers(made))

        def _get(self, key: str, _query: dict[str, str], _body: bytes) -> None:
            found = bucket.objects.get(key)
            if found is None:
                self._answer(404, _xml("Error", "<Code>NoSuchKey</Code>"))
                return
            condition, span = self.headers.get("If-Match"), self.headers.get("Range")
            headers = _headers(found)
            if condition is not None and condition != headers["ETag"]:
                self._answer(412, _xml("Error", "<Code>PreconditionFailed</Code>"))
                return
            if span is None:
                self._answer(200, found.data, headers)
                return
            first, _, last = span.removeprefix("bytes=").partition("-")
            end = min(int(last or len(found.data)) + 1, len(found.data))
            data = found.data[int(first) : end]
            headers["Content-Range"] = f"bytes {first}-{end - 1}/{len(found.data)}"
            self._answer(206, data, headers)

        _head = _get

        def _delete(self, key: str, _query: dict[str, str], _body: bytes) -> None:
            gone = bucket.objects.pop(key, None)
            self._answer(204 if gone else 404, b"")

        def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for header, value in (headers or {}).items():
                self.send_header(header, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _serve

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    thread = threading.Thread(target=httpd.serve_forever, args=(0.05,))
    thread.start()
    address = f"http://127.0.0.1:{httpd.server_address[1]}"
    try:
        yield OtherStore("gs", address, name, google_environment(address))
    finally:
        httpd.shutdown()
        thread.join()
        httpd.server_close()


def google_environment(address: str) -> dict[str, str]:
    """Variables under which a Google store at this address is reached."""
    return {
        "GOOGLE_BASE_URL": address,
        "GOOGLE_BEARER_TOKEN": "of-nobody",
        "GOOGLE_APPLICATION_CREDENTIALS": os.devnull + ".none",
    }


def _headers(found: _Object) -> dict[str, str]:
    return {
        "ETag": f'"{found.generation:x}"',
        "x-goog-generation": str(found.generation),
        "x-goog-meta-nonce": found.nonce,
        "Last-Modified": formatdate(found.modified, usegmt=True),
    }


def _xml(name: str, inner: str) -> bytes:
    return f"<?xml version='1.0' encoding='UTF-8'?><{name}>{inner}</{name}>".encode()


def _listing(bucket: _Bucket, query: dict[str, str]) -> bytes:
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    start = query.get("continuation-token") or query.get("start-after", "")
    with bucket.lock:
        objects = dict(bucket.objects)
    keys: list[str] = []
    common: set[str] = set()
    last, more = "", False
    for key in sorted(k for k in objects if k.startswith(prefix) and k > start):
        if len(keys) + len(common) >= _PAGE:
            more = True
            break
        head, cut, _ = key[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
        if cut:
            common.add(f"{prefix}{head}{cut}")
        else:
            keys.append(key)
        last = key
    inner = "".join(
        f"<Contents><Key>{escape(k)}</Key><Size>{len(objects[k].data)}</Size>"
        f"<LastModified>{time.strftime('%Y-%m-%dT%H:%M:%S.000Z', time.gmtime(objects[k].modified))}"
        f"</LastModified><ETag>{_headers(objects[k])['ETag']}</ETag></Contents>"
        for k in keys
    )
    inner += "".join(
        f"<CommonPrefixes><Prefix>{escape(p)}</Prefix></CommonPrefixes>" for p in sorted(common)
    )
    inner += f"<IsTruncated>{str(more).lower()}</IsTruncated>"
    if more:
        inner += f"<NextContinuationToken>{escape(last)}</NextContinuationToken>"
    return _xml("ListBucketResult", inner)
