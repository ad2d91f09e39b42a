"""What only S3, or the way to it, can do wrong: lost answers, refusals, broken connections, stores
that ignore what they are asked. And how an archive's URL and options become requests.
"""

from __future__ import annotations

import gc
import io
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from botocore.awsrequest import AWSPreparedRequest, AWSResponse

from conftest import Bucket, fresh_bucket
from dbt_recover import config
from dbt_recover.errors import DamagedError, NotFoundError, RecoverError, StorageError, UsageError
from dbt_recover.storage import open_storage
from dbt_recover.storage.base import MissingKey, PreconditionFailed
from dbt_recover.storage.options import S3Options
from dbt_recover.storage.s3 import S3Storage, _age
from servers import (
    READER_KEY,
    Fault,
    Proxy,
    S3Server,
    ServerUnavailable,
    free_ports,
    proxy_to,
    rclone_server,
    xml_error,
)

cluster = pytest.mark.cluster


def s3(bucket: str, prefix: str = "archive", **options: Any) -> S3Storage:
    """The store, typed as what it is."""
    store = open_storage(f"s3://{bucket}/{prefix}", options)
    assert isinstance(store, S3Storage)
    return store


@pytest.fixture
def behind_proxy(s3_bucket: Bucket) -> Iterator[tuple[S3Storage, Proxy]]:
    """A store on moto, and the proxy between."""
    with proxy_to(s3_bucket.server) as proxy:
        yield s3(s3_bucket.name, endpoint_url=proxy.endpoint_url, max_attempts=3), proxy


# ---- answers that never come -------------------------------------------------------------------


@cluster
@pytest.mark.parametrize("condition", ["plain", "if_absent", "if_match"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_lost_answer_to_our_own_write_is_success(
    behind_proxy: tuple[S3Storage, Proxy], condition: str, stream: bool
) -> None:
    store, proxy = behind_proxy
    etag = store.write("x", b"before") if condition == "if_match" else None
    body = io.BytesIO(b"ours") if stream else b"ours"
    proxy.faults.append(Fault("PUT", lose_answer=True))
    written = store.write("x", body, if_absent=condition == "if_absent", if_match=etag)
    blob = store.read("x")
    assert (blob.data, blob.etag) == (b"ours", written)


@cluster
def test_lost_answers_to_every_try_are_success_if_it_is_there(
    behind_proxy: tuple[S3Storage, Proxy],
) -> None:
    store, proxy = behind_proxy
    proxy.faults.append(Fault("PUT", times=3, lose_answer=True))
    store.write("x", b"ours", if_absent=True)
    assert store.read("x").data == b"ours"


@cluster
def test_a_lost_answer_to_a_write_that_came_second_is_not(
    behind_proxy: tuple[S3Storage, Proxy], s3_bucket: Bucket
) -> None:
    store, proxy = behind_proxy
    other = s3(s3_bucket.name, **s3_bucket.options)
    other.write("x", b"same bytes", if_absent=True)
    proxy.faults.append(Fault("PUT", lose_answer=True))
    with pytest.raises(PreconditionFailed):
        store.write("x", b"same bytes", if_absent=True)


@cluster
def test_a_lost_answer_and_then_another_writer(
    behind_proxy: tuple[S3Storage, Proxy], s3_bucket: Bucket
) -> None:
    store, proxy = behind_proxy
    other = s3(s3_bucket.name, **s3_bucket.options)
    proxy.faults.append(Fault("PUT", lose_answer=True, then=lambda: _overwrite(other)))
    with pytest.raises(PreconditionFailed):
        store.write("x", b"ours", if_absent=True)
    assert store.read("x").data == b"theirs"


def _overwrite(other: S3Storage) -> None:
    other.write("x", b"theirs")


@cluster
def test_a_lost_answer_to_our_own_delete_is_success(
    behind_proxy: tuple[S3Storage, Proxy],
) -> None:
    store, proxy = behind_proxy
    etag = store.write("x", b"1")
    proxy.faults.append(Fault("DELETE", lose_answer=True))
    store.delete("x", if_match=etag)
    assert store.stat("x") is None


# ---- answers that may pass ---------------------------------------------------------------------

CONFLICT = xml_error(409, "ConditionalRequestConflict")


@cluster
@pytest.mark.parametrize(
    "answer",
    [
        CONFLICT,
        xml_error(500, "InternalError"),
        xml_error(503, "SlowDown"),
        xml_error(503, "ServiceUnavailable"),
        xml_error(400, "RequestTimeout"),
        b"",
    ],
    ids=["409", "500", "slow down", "503", "timeout", "reset"],
)
def test_what_may_pass_is_tried_again(behind_proxy: tuple[S3Storage, Proxy], answer: bytes) -> None:
    store, proxy = behind_proxy
    proxy.faults.append(Fault("PUT", times=2, answer=answer))
    store.write("x", io.BytesIO(b"whole"), if_absent=True)
    assert store.read("x").data == b"whole"
    assert [line.split()[0] for line in proxy.seen] == ["PUT", "PUT", "PUT", "GET"]


@cluster
@pytest.mark.parametrize(
    "answer, message",
    [
        (CONFLICT, "PutObject of s3://.*/archive/x failed: ConditionalRequestConflict"),
        (xml_error(503, "SlowDown"), "PutObject of .* failed on the store's side, 3 times: Slow"),
        (b"", "PutObject of s3://.*/archive/x: the connection broke"),
    ],
    ids=["409", "503", "reset"],
)
def test_but_not_for_ever(
    behind_proxy: tuple[S3Storage, Proxy], answer: bytes, message: str
) -> None:
    store, proxy = behind_proxy
    proxy.faults.append(Fault("PUT", times=99, answer=answer))
    with pytest.raises(StorageError, match=message):
        store.write("x", b"1", if_absent=True)
    assert len([line for line in proxy.seen if line.startswith("PUT")]) == 3


# ---- answers that break off ----------------------------------------------------------------------


@cluster
def test_a_broken_read_goes_on_where_it_stopped(behind_proxy: tuple[S3Storage, Proxy]) -> None:
    store, proxy = behind_proxy
    body = bytes(range(256)) * 4096
    store.write("x", body)
    proxy.faults += [Fault("GET", cut_at=300_000), Fault("GET", cut_at=0)]
    assert store.read("x").data == body
    proxy.faults += [Fault("GET", cut_at=0), Fault("GET", cut_at=5000)]
    with store.open("x") as stream:
        assert stream.read(10) == body[:10]
        assert stream.read() == body[10:]


@cluster
def test_a_read_that_always_breaks_off_fails(behind_proxy: tuple[S3Storage, Proxy]) -> None:
    store, proxy = behind_proxy
    store.write("x", b"0123456789")
    proxy.faults.append(Fault("GET", times=99, cut_at=2))
    with pytest.raises(StorageError, match=r"archive/x ended after 6 of 10 bytes, 3 times"):
        store.read("x")
    assert len(proxy.seen) == 1 + 3


@cluster
def test_a_read_does_not_go_on_in_another_object(behind_proxy: tuple[S3Storage, Proxy]) -> None:
    store, proxy = behind_proxy
    store.write("x", b"0123456789")
    proxy.faults.append(Fault("GET", cut_at=2, then=lambda: _overwrite(store)))
    with pytest.raises(StorageError, match="replaced while it was read"):
        store.read("x")


@cluster
def test_a_listing_without_an_end_is_refused(behind_proxy: tuple[S3Storage, Proxy]) -> None:
    store, proxy = behind_proxy
    page = b"<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>"
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(page)
    proxy.faults.append(Fault("GET", times=99, answer=head + page))
    with pytest.raises(StorageError, match="does not say where the next page begins"):
        list(store.list(""))


# ---- refusals ------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def seaweed_bucket(seaweedfs: S3Server) -> Bucket:
    """A bucket on SeaweedFS, which looks at credentials; moto takes any."""
    return fresh_bucket(seaweedfs)


def operations(store: S3Storage) -> list[tuple[str, Callable[[], object]]]:
    """One of each request, by the name S3 has for it."""
    return [
        ("PutObject", lambda: store.write("x", b"1")),
        ("GetObject", lambda: store.read("x")),
        ("GetObject", lambda: store.open("x")),
        ("HeadObject", lambda: store.stat("x")),
        ("DeleteObject", lambda: store.delete("x")),
        ("ListObjectsV2", lambda: list(store.list("runs/"))),
        ("ListObjectsV2", lambda: store.folders("runs/")),
    ]


@cluster
def test_who_may_only_read_is_told_what_it_takes_to_write(
    seaweed_bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3(seaweed_bucket.name, **seaweed_bucket.options).write("x", b"1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", READER_KEY)
    store = s3(seaweed_bucket.name, **seaweed_bucket.options)
    assert store.read("x").data == b"1"
    with pytest.raises(StorageError, match=r"PutObject of s3://.*/x is not permitted") as put:
        store.write("x", b"2")
    assert "s3:PutObject" in put.value.hint
    with pytest.raises(StorageError, match=r"DeleteObject of s3://.*/x is not permitted") as gone:
        store.delete("x")
    assert "s3:DeleteObject" in gone.value.hint


@cluster
def test_a_403_names_the_operation_and_the_action(behind_proxy: tuple[S3Storage, Proxy]) -> None:
    store, proxy = behind_proxy
    denied = xml_error(403, "AccessDenied")
    proxy.faults += [Fault(m, times=99, answer=denied) for m in ("PUT", "GET", "HEAD", "DELETE")]
    actions = {"HeadObject": "s3:GetObject", "ListObjectsV2": "s3:ListBucket"}
    for operation, attempt in operations(store):
        with pytest.raises(StorageError, match=rf"{operation} of s3://.* is not permitted") as c:
            attempt()
        assert actions.get(operation, f"s3:{operation}") in c.value.hint


@cluster
@pytest.mark.parametrize(
    "variable, value, message",
    [
        ("AWS_ACCESS_KEY_ID", "AKIDOESNOTEXIST00000", "does not accept the credentials: Invalid"),
        ("AWS_SECRET_ACCESS_KEY", "wrong", "does not accept the credentials: SignatureDoesNot"),
    ],
)
def test_credentials_that_are_wrong(
    seaweed_bucket: Bucket,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
    message: str,
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(StorageError, match=message) as caught:
        s3(seaweed_bucket.name, **seaweed_bucket.options).read("x")
    assert "aws sts get-caller-identity" in caught.value.hint


def test_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    for options in ({}, {"role_arn": "arn:aws:iam::123456789012:role/x"}):
        with pytest.raises(StorageError, match="no credentials") as caught:
            s3("bucket", endpoint_url="http://127.0.0.1:1", **options).read("x")
        assert "AWS_PROFILE" in caught.value.hint


@cluster
@pytest.mark.parametrize("server", ["moto", "seaweedfs"])
def test_a_bucket_that_is_missing(request: pytest.FixtureRequest, server: str) -> None:
    endpoint = request.getfixturevalue(server).endpoint_url
    for _, attempt in operations(s3("no-such-bucket", endpoint_url=endpoint)):
        with pytest.raises(NotFoundError, match="no such bucket: s3://no-such-bucket/archive"):
            attempt()


def test_nobody_at_the_endpoint() -> None:
    (port,) = free_ports(1)
    store = s3("bucket", endpoint_url=f"http://127.0.0.1:{port}")
    for operation, attempt in operations(store):
        with pytest.raises(StorageError, match=f"{operation} of .* cannot reach the store") as c:
            attempt()
        assert "endpoint_url" in c.value.hint


# botocore leaves the answer to a redirected request unread, and its socket to the collector.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.parametrize("answer", ["empty", "a way in a circle", "a page that is not there"])
def test_what_is_no_store(answer: str) -> None:
    """A proxy, a portal, a web server."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = b"<html>nothing here</html>" if answer.startswith("a page") else b""
            self.send_response(404 if page else 200 if answer == "empty" else 302)
            self.send_header("Location", self.path)
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        do_PUT = do_GET

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        store = s3("bucket", endpoint_url=f"http://127.0.0.1:{server.server_port}", max_attempts=1)
        calls: list[Callable[[], object]] = [
            lambda: store.write("x", b"", if_absent=True),
            lambda: list(store.list("x")) if answer != "empty" else store.read("x"),
        ]
        for call in calls:
            with pytest.raises(StorageError) as caught:
                call()
            if answer != "a way in a circle":
                assert "not an S3 store" in caught.value.message
                assert "endpoint_url" in caught.value.next_step
    finally:
        server.shutdown()
        server.server_close()
        del caught
        gc.collect()


ANSWERS = [
    (403, "ExpiredToken", StorageError, "credentials have expired", "aws sso login"),
    (403, "RequestTimeTooSkewed", StorageError, "clock is wrong", "timedatectl"),
    (400, "AuthorizationHeaderMalformed", StorageError, "another region", "AWS_REGION"),
    (301, "PermanentRedirect", StorageError, "another region", "AWS_REGION"),
    (400, "InvalidBucketName", UsageError, "not a bucket's name", "s3://bucket/prefix"),
    (404, "NoSuchBucket", NotFoundError, "no such bucket", "the endpoint"),
    (501, "NotImplemented", StorageError, "does not know", "conditional writes"),
    (503, "ServiceUnavailable", StorageError, "on the store's side, 3 times", "max_attempts"),
    (407, "407", StorageError, "a proxy on the way wants to know who asks", "HTTPS_PROXY"),
    (409, "OperationAborted", StorageError, "failed: OperationAborted", "try again"),
    (400, "EntityTooLarge", StorageError, "failed: EntityTooLarge", "dbt-recover doctor"),
]


@cluster
@pytest.mark.parametrize("status, code, error, message, hint", ANSWERS, ids=[a[1] for a in ANSWERS])
def test_other_refusals_say_what_to_do(
    behind_proxy: tuple[S3Storage, Proxy],
    status: int,
    code: str,
    error: type[RecoverError],
    message: str,
    hint: str,
) -> None:
    store, proxy = behind_proxy
    proxy.faults.append(Fault("PUT", times=99, answer=xml_error(status, code)))
    with pytest.raises(error, match=message) as caught:
        store.write("x", b"1")
    assert hint in caught.value.next_step
    assert f"{store.url}/x" in caught.value.message


# ---- stores that ignore what they are asked --------------------------------------------------------


@cluster
@pytest.mark.parametrize("server", ["moto", "seaweedfs"])
def test_these_honour_preconditions(request: pytest.FixtureRequest, server: str) -> None:
    bucket = fresh_bucket(request.getfixturevalue(server))
    store = s3(bucket.name, **bucket.options)
    assert store.preconditions_honoured()
    assert list(store.list("")) == []


@cluster
def test_rclone_does_not(tmp_path: Path) -> None:
    try:
        with rclone_server(tmp_path) as server:
            bucket = fresh_bucket(server)
            store = s3(bucket.name, **bucket.options)
            assert not store.preconditions_honoured()
            assert list(store.list("")) == []
    except ServerUnavailable as reason:
        pytest.skip(str(reason))


@cluster
def test_nor_does_one_that_never_heard_of_them(behind_proxy: tuple[S3Storage, Proxy]) -> None:
    store, proxy = behind_proxy
    proxy.faults.append(Fault("PUT", answer=xml_error(501, "NotImplemented")))
    assert not store.preconditions_honoured()


@cluster
def test_objects_that_are_no_keys_are_not_listed(s3_bucket: Bucket) -> None:
    client = s3_bucket.server.client()
    for key in ("archive/", "archive/a/", "archive/a/x", "archive/a/b c", "archive//x", "archiv"):
        client.put_object(Bucket=s3_bucket.name, Key=key, Body=b"")
    client.close()
    store = s3(s3_bucket.name, **s3_bucket.options)
    assert [entry.key for entry in store.list("")] == ["a/x"]
    assert store.folders("") == ["a"]


@cluster
def test_a_bucket_without_a_prefix(s3_bucket: Bucket) -> None:
    store = s3(s3_bucket.name, "", **s3_bucket.options)
    store.write("a/x", b"1")
    assert [entry.key for entry in store.list("")] == ["a/x"]
    assert store.folders("") == ["a"]
    assert store.url == f"s3://{s3_bucket.name}"


def test_age_is_by_the_clock_of_the_store() -> None:
    def age(date: str) -> float:
        written = datetime(2026, 1, 31, 6, 0, 0, tzinfo=timezone.utc)
        headers = {"date": date} if date else {}
        return _age({"ResponseMetadata": {"HTTPHeaders": headers}, "LastModified": written})

    assert age("Sat, 31 Jan 2026 06:00:30 GMT") == 30
    assert age("Sat, 31 Jan 2026 05:59:59 GMT") == 0
    # Nothing to go by: young, so that nobody's lease is taken over.
    assert age("") == 0


# ---- options ---------------------------------------------------------------------------------------


class Sent(Exception):
    """Ends a request before it leaves."""


@contextmanager
def requests_of(store: S3Storage) -> Iterator[list[AWSPreparedRequest]]:
    """What would be sent, without a network."""
    seen: list[AWSPreparedRequest] = []

    def keep(request: AWSPreparedRequest, **_: object) -> AWSResponse:
        seen.append(request)
        raise Sent

    events = store._client.meta.events
    events.register("before-send.s3", keep)
    yield seen
    events.unregister("before-send.s3", keep)


def header(request: AWSPreparedRequest, name: str) -> str:
    """Botocore keeps some as bytes."""
    value = request.headers.get(name, b"")
    return value.decode() if isinstance(value, bytes) else str(value)


def test_options_reach_every_request() -> None:
    store = s3(
        "bucket",
        region="eu-central-1",
        sse_kms_key_id="arn:aws:kms:eu-central-1:1:key/x",
        acl="bucket-owner-full-control",
        storage_class="STANDARD_IA",
        expected_bucket_owner="123456789012",
        requester_pays="yes",
    )
    with requests_of(store) as seen:
        for _, attempt in operations(store):
            with pytest.raises(Sent):
                attempt()
    assert len(seen) == len(operations(store))
    for request in seen:
        assert header(request, "x-amz-request-payer") == "requester"
        assert header(request, "x-amz-expected-bucket-owner") == "123456789012"
        assert request.url.startswith("https://bucket.s3.eu-central-1.amazonaws.com/")
    put = seen[0]
    assert put.method == "PUT"
    assert header(put, "x-amz-server-side-encryption") == "aws:kms"
    assert header(put, "x-amz-server-side-encryption-aws-kms-key-id").endswith("key/x")
    assert header(put, "x-amz-acl") == "bucket-owner-full-control"
    assert header(put, "x-amz-storage-class") == "STANDARD_IA"
    assert "dbt-recover" in header(put, "User-Agent")
    assert len(header(put, "x-amz-meta-nonce")) == 32


@pytest.mark.parametrize("checksum, sent", [("when_required", False), ("when_supported", True)])
def test_checksums_are_sent_only_when_asked_for(checksum: str, sent: bool) -> None:
    store = s3("bucket", region="eu-central-1", checksum=checksum)
    with requests_of(store) as seen, pytest.raises(Sent):
        store.write("x", b"1")
    names = {name.lower() for name in seen[0].headers}
    assert bool(names & {"x-amz-checksum-crc32", "x-amz-trailer"}) == sent


def test_each_write_has_a_nonce_of_its_own() -> None:
    store = s3("bucket", region="eu-central-1")
    with requests_of(store) as seen:
        for _ in range(2):
            with pytest.raises(Sent):
                store.write("x", b"1", if_absent=True)
    assert header(seen[0], "x-amz-meta-nonce") != header(seen[1], "x-amz-meta-nonce")
    assert header(seen[0], "If-None-Match") == "*"


@pytest.mark.parametrize(
    "endpoint, path_style, url",
    [
        ("http://127.0.0.1:9000", None, "http://127.0.0.1:9000/bucket/"),
        ("http://localhost:9000", None, "http://localhost:9000/bucket/"),
        ("http://minio:9000", None, "http://minio:9000/bucket/"),
        ("http://[::1]:9000", None, "http://[::1]:9000/bucket/"),
        ("https://s3.example.com", None, "https://s3.example.com/bucket/"),
        ("https://s3.example.com", "false", "https://bucket.s3.example.com/"),
        ("", None, "https://bucket.s3.eu-central-1.amazonaws.com/"),
        ("http://localhost:9000", "false", "http://bucket.localhost:9000/"),
        ("", True, "https://s3.eu-central-1.amazonaws.com/bucket/"),
    ],
)
def test_path_style(endpoint: str, path_style: object, url: str) -> None:
    store = s3("bucket", region="eu-central-1", endpoint_url=endpoint, path_style=path_style)
    with requests_of(store) as seen, pytest.raises(Sent):
        store.stat("x")
    assert seen[0].url == f"{url}archive/x"


def test_an_endpoint_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://localhost:9000")
    store = s3("bucket")
    with requests_of(store) as seen, pytest.raises(Sent):
        store.stat("x")
    assert seen[0].url == "http://localhost:9000/bucket/archive/x"


@cluster
def test_a_role_is_assumed_with_the_credentials_found(
    s3_bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    # moto answers for STS, too; the credentials it gives out begin with ASIA.
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", s3_bucket.server.endpoint_url)
    store = s3(
        s3_bucket.name, role_arn="arn:aws:iam::123456789012:role/archive", **s3_bucket.options
    )
    store.write("x", b"1")
    assert store.read("x").data == b"1"
    with requests_of(store) as seen, pytest.raises(Sent):
        store.stat("x")
    assert "Credential=ASIA" in header(seen[0], "Authorization")
    assert header(seen[0], "X-Amz-Security-Token")


@cluster
def test_a_role_that_may_not_be_assumed(s3_bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    with proxy_to(s3_bucket.server) as proxy:
        proxy.faults.append(Fault("POST", times=99, answer=xml_error(403, "AccessDenied")))
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", proxy.endpoint_url)
        store = s3(s3_bucket.name, role_arn="arn:aws:iam::1:role/x", **s3_bucket.options)
        with pytest.raises(StorageError, match=r"AssumeRole of s3://.* is not permitted") as caught:
            store.read("x")
    assert "sts:AssumeRole" in caught.value.hint


def test_a_profile_of_the_configuration_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config"
    config.write_text(
        "[profile prod]\nregion = eu-west-3\naws_access_key_id = AKIDPROD\n"
        "aws_secret_access_key = x\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.delenv("AWS_DEFAULT_REGION")  # it would come before the profile's
    with requests_of(store := s3("bucket", profile="prod")) as seen, pytest.raises(Sent):
        store.stat("x")
    assert "Credential=AKIDPROD" in header(seen[0], "Authorization")
    assert "eu-west-3" in seen[0].url
    with pytest.raises(UsageError, match="nowhere") as caught:
        s3("bucket", profile="nowhere")
    assert caught.value.hint == "aws configure list-profiles"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"endpoint": "https://x"}, "no s3 option 'endpoint'"),
        ({"endpoint_url": "s3.example.com"}, "endpoint_url is 's3.example.com'"),
        ({"sse": "AES"}, "sse is 'AES'; it can be AES256, aws:kms"),
        ({"sse": "AES256", "sse_kms_key_id": "x"}, "goes with sse = 'aws:kms'"),
        ({"checksum": "never"}, "checksum is 'never'"),
        ({"max_attempts": "many"}, "max_attempts is 'many'; it must be a number"),
        ({"max_attempts": 0}, "max_attempts is 0"),
        ({"connect_timeout": -1}, "connect_timeout is -1"),
        ({"path_style": "perhaps"}, "path_style is 'perhaps'"),
        ({"region": ["eu"]}, "region is .*; it must be text"),
        ({"ca_bundle": "/no/such.pem"}, "there is no file /no/such.pem"),
        ({"region": "not a region"}, "s3://bucket/archive"),
    ],
)
def test_options_that_are_wrong(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        s3("bucket", **options)


def test_options_from_text() -> None:
    given = {
        "path_style": "false",
        "requester_pays": "1",
        "max_attempts": "7",
        "read_timeout": "2.5",
        "expected_bucket_owner": 123456789012,
        "region": "",
        "profile": None,
    }
    assert S3Options.from_mapping(given) == S3Options(
        path_style=False,
        requester_pays=True,
        max_attempts=7,
        read_timeout=2.5,
        expected_bucket_owner="123456789012",
    )


# ---- the archive's URL -----------------------------------------------------------------------------


def test_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    base = Path("/srv/project")
    assert open_storage("archive").url == str(tmp_path / "archive")
    assert open_storage("./a:b").url == str(tmp_path / "a:b")
    assert open_storage("archive", base=base).url == "/srv/project/archive"
    assert open_storage("/var/archive", base=base).url == "/var/archive"
    assert open_storage("~/archive", base=base).url == "/home/me/archive"
    assert open_storage("file:///var/my%20archive").url == "/var/my archive"
    assert open_storage("file://localhost/var/archive").url == "/var/archive"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "url",
    ["", "  ", "hdfs://bucket/x", "https://bucket.s3.amazonaws.com/x", "s3:bucket", "s3:/bucket/x",
     "s3://", "s3:///prefix", "s3://bu cket/x", "s3://bucket/a//b", "s3://bucket/../x",
     "s3://bucket/x?y=1", "s3://arn:aws:s3:eu-west-1:1:accesspoint/a", "s3://name--usw2-az1--x-s3",
     "s3://bucket/" + "x" * 200, "file://", "file:relative", "file://host/dir"],
)  # fmt: skip
def test_what_is_no_archive(url: str) -> None:
    with pytest.raises(UsageError):
        open_storage(url)


def test_another_scheme_is_told_what_is_accepted() -> None:
    with pytest.raises(UsageError, match="hdfs://bucket/x") as caught:
        open_storage("hdfs://bucket/x")
    for accepted in ("directory", "file://", "s3://bucket/prefix"):
        assert accepted in caught.value.hint


def test_slashes_around_a_prefix_make_no_difference() -> None:
    assert s3("bucket", "/a/b/", region="eu-west-1").url == "s3://bucket/a/b"


def test_a_directory_needs_no_aws_library(tmp_path: Path) -> None:
    code = (
        "import sys; from dbt_recover.storage import open_storage\n"
        "from dbt_recover.storage.options import S3Options\n"
        "store = open_storage(sys.argv[1]); store.write('x', b'1'); S3Options(region='x')\n"
        "print([m for m in sys.modules if m in ('boto3', 'botocore', 'msgspec', 'urllib3')])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True
    )
    assert run.stdout.strip() == "[]", run.stderr


@cluster
def test_threads_share_a_store(s3_bucket: Bucket) -> None:
    store = s3(s3_bucket.name, **s3_bucket.options)
    barrier = threading.Barrier(8)

    def work(number: int) -> bytes:
        barrier.wait(60)
        store.write(f"k/{number}", b"%d" % number)
        return store.read(f"k/{number}").data

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [b"%d" % number for number in range(8)]
    with pytest.raises(MissingKey):
        store.read("k/8")
    with pytest.raises(DamagedError):
        store.read("k/1", max_bytes=0)


GIVEN = {
    "endpoint_url": "http://127.0.0.1:9",
    "region": "eu-central-1",
    "profile": "analytics",
    "role_arn": "arn:aws:iam::123456789012:role/dbt",
    "path_style": "true",
    "sse": "aws:kms",
    "sse_kms_key_id": "key-1",
    "acl": "bucket-owner-full-control",
    "expected_bucket_owner": "123456789012",
    "requester_pays": "true",
    "storage_class": "STANDARD_IA",
    "ca_bundle": __file__,
    "checksum": "when_supported",
    "max_attempts": "3",
    "connect_timeout": "0.5",
    "read_timeout": "7.5",
}


@pytest.mark.parametrize("name", sorted(GIVEN))
def test_each_option_can_be_a_flag_a_variable_or_in_the_file(name: str, tmp_path: Path) -> None:
    assert GIVEN.keys() == config.S3_OPTIONS
    text = GIVEN[name]
    nothing = config.File(None, {}, {})
    (tmp_path / "dbt_recover.toml").write_text(f'[s3]\n{name} = "{text}"\n')
    said = [
        config.s3_options(nothing, [f"{name}={text}"], {}),
        config.s3_options(nothing, [f"{name.replace('_', '-')}={text}"], {}),
        config.s3_options(nothing, (), {f"DBT_RECOVER_S3_{name.upper()}": text}),
        config.s3_options(config.read_file(None, tmp_path), (), {}),
    ]
    made = [getattr(S3Options.from_mapping(options), name) for options in said]
    assert made == [made[0]] * 4
    assert made[0] != getattr(S3Options(), name)
