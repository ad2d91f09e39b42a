"""An archive in Google Cloud Storage (gs://) or Azure Blob Storage (az://), through obstore.

What `if_match` takes is what the service compares: on Google the generation, on Azure the ETag. As on
S3 each write carries a nonce, so that a refusal which was brought about by our own lost answer is told
from another's write. Neither service's delete takes a condition through obstore: a conditional delete
looks first and leaves a small gap, which a lease survives, since its holder asks again before it
publishes.
"""

from __future__ import annotations

import builtins
import io
import os
import random
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import obstore
from obstore import exceptions as said
from obstore.store import AzureStore, GCSStore

from ..errors import StorageError, UsageError
from .base import (
    Blob,
    Entry,
    MissingKey,
    PreconditionFailed,
    Stat,
    check_folder,
    check_key,
    check_listing,
    check_size,
    is_key,
    is_since,
    just_before,
    same_bytes,
    whole,
)
from .objects_errors import InDoubt, explain
from .store_clock import StoreClock

if TYPE_CHECKING:
    from obstore import GetResult, PutMode
    from typing_extensions import Buffer

_CHUNK = 1 << 20
_NONCE = "nonce"
_TRIES = 5
# Of a write whose answer was lost or that obstore does not repeat by itself, above those.
_WRITES = 3
# Seconds; doubled with each try, and of that a random part is waited.
_BACKOFF = 0.1
_ERRORS = (said.BaseError, OSError, ValueError)
_T = TypeVar("_T")


class ObjectStorage:
    """Objects below `prefix` in a bucket (gs) or container (az)."""

    def __init__(self, scheme: str, bucket: str, prefix: str) -> None:
        self.url = f"{scheme}://{bucket}/{prefix}".rstrip("/")
        self._root = f"{prefix}/" if prefix else ""
        self._google = scheme == "gs"
        self._seen = False
        endpoint = _endpoint(self._google)
        self._clock = StoreClock(endpoint)
        options: Any = {
            "client_options": {
                "allow_http": endpoint.startswith("http://"),
                "connect_timeout": "5s",
                # Of a whole request, and an upload of 200 MB is one; a silent store is noticed by
                # the other.
                "timeout": "600s",
                "read_timeout": "60s",
                "user_agent": "dbt-recover",
            },
            "retry_config": {"max_retries": _TRIES - 1, "retry_timeout": timedelta(seconds=60)},
        }
        try:
            # Any: one class or the other, with the same methods.
            self._store: Any = (GCSStore if self._google else AzureStore)(bucket, **options)
        except _ERRORS as error:
            raise UsageError(
                f"{self.url}: {str(error).partition(chr(10))[0]}", hint=_credentials(self._google)
            ) from error

    def read(self, key: str, *, max_bytes: int | None = None) -> Blob:
        """The object's bytes. `MissingKey` if there is none, `DamagedError` beyond max_bytes."""
        with closing(self._open(key)) as stream:
            check_size(self._name(key), stream.size, max_bytes)
            data = whole(stream)
        meta = stream.answer.meta
        return Blob(data, self._etag(meta), self._age(meta["last_modified"]))

    def open(self, key: str) -> BinaryIO:
        """A stream over the object, for the caller to close. `MissingKey` if there is none."""
        return io.BufferedReader(self._open(key), _CHUNK)

    def write(
        self,
        key: str,
        body: bytes | BinaryIO,
        *,
        if_absent: bool = False,
        if_match: str | None = None,
    ) -> str:
        """Store the object whole or not at all, and return its etag."""
        nonce = uuid.uuid4().hex
        mode: PutMode = "overwrite"
        if if_match is not None:
            mode = {"version": if_match} if self._google else {"e_tag": if_match}
        elif if_absent:
            mode = "create"

        def put() -> Any:
            content = io.BytesIO(body) if isinstance(body, bytes) else body
            content.seek(0)
            return obstore.put(
                self._store, self._path(key), content, mode=mode, attributes={_NONCE: nonce}
            )

        for attempt in range(1, _WRITES + 1):
            try:
                return self._etag(self._send(put, "Writing", key))
            except (PreconditionFailed, MissingKey) as refusal:
                if etag := self._ours(key, nonce, body):
                    return etag
                message = f"{self._name(key)} has been written or changed by another"
                raise PreconditionFailed(message) from refusal
            except InDoubt:
                with suppress(StorageError):
                    if etag := self._ours(key, nonce, body):
                        return etag
                if attempt == _WRITES:
                    raise
                time.sleep(random.uniform(0, _BACKOFF * 2**attempt))
        raise AssertionError("unreachable: the last try returned or raised")

    def list(self, prefix: str, *, since: str = "") -> Iterator[Entry]:
        """All objects whose key begins with prefix, in ascending key order; see Storage."""
        found = self._list(check_listing(prefix, since), since)
        # Azure lists an account with a hierarchical namespace as a walk through directories.
        return found if self._google else iter(sorted(found, key=lambda entry: entry.key))

    def folders(self, prefix: str) -> builtins.list[str]:
        """Names directly below `prefix` that have something below them, sorted."""
        below = self._root + check_folder(prefix)
        answer = self._send(
            lambda: obstore.list_with_delimiter(self._store, below.rstrip("/") or None),
            "Listing",
            prefix,
        )
        found = {common[len(below) :].rstrip("/") for common in answer["common_prefixes"]}
        return sorted(filter(is_key, found))

    def stat(self, key: str) -> Stat | None:
        """None if there is no such object."""
        path = self._path(key)
        try:
            meta = self._send(lambda: obstore.head(self._store, path), "Looking at", key)
        except MissingKey:
            if not self._seen:
                self.folders("")  # it, unlike the answer to a HEAD, says whether there is a bucket
            return None
        return Stat(meta["size"], self._etag(meta), self._age(meta["last_modified"]))

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        """Remove it; absent is fine. `PreconditionFailed` if if_match is given and differs."""
        path = self._path(key)
        if if_match is not None:
            found = self.stat(key)
            if found is None:
                return
            if found.etag != if_match:
                raise PreconditionFailed(f"{self._name(key)} has been changed by another")
        with suppress(MissingKey):
            self._send(lambda: obstore.delete(self._store, path), "Deleting", key)

    def clock(self) -> float:
        """The store's time, in seconds since 1970. StorageError if it does not say."""
        return self._clock.time()

    def preconditions_honoured(self) -> bool:
        """Whether conditional writes are refused as they should be. Writes an object of its own and
        removes it."""
        key = f"probe/{uuid.uuid4().hex}"
        first = self.write(key, b"1", if_absent=True)
        try:
            self.write(key, b"2", if_match=first)
            return self._refuses(key, if_absent=True) and self._refuses(key, if_match=first)
        finally:
            self.delete(key)

    def _refuses(self, key: str, *, if_absent: bool = False, if_match: str | None = None) -> bool:
        try:
            self.write(key, b"3", if_absent=if_absent, if_match=if_match)
        except PreconditionFailed:
            return True
        return False

    def _path(self, key: str) -> str:
        return self._root + check_key(key)

    def _name(self, key: str) -> str:
        return f"{self.url}/{key}"

    def _etag(self, meta: Any) -> str:
        return str(meta["version"] if self._google else meta["e_tag"])

    def _age(self, modified: datetime) -> float:
        """By the store's clock alone. Where it does not tell the time: young, the safe side, on
        which no lease is taken over."""
        try:
            return max(0.0, self.clock() - modified.timestamp())
        except StorageError:
            return 0.0

    def _send(self, act: Callable[[], _T], doing: str, key: str) -> _T:
        """One request, its errors explained. What may pass was tried again by obstore."""
        try:
            answer = act()
        except _ERRORS as error:
            hint = _credentials(self._google)
            raise explain(error, f"{doing} {self._name(key)}", self.url, hint) from error
        self._seen = True
        return answer

    def _open(self, key: str) -> _Stream:
        path = self._path(key)
        answer = self._send(lambda: obstore.get(self._store, path), "Reading", key)
        return _Stream(answer, self._name(key))

    def _ours(self, key: str, nonce: str, body: bytes | BinaryIO) -> str | None:
        """The etag of what is there if this very write put it there, byte for byte."""
        try:
            stream = self._open(key)
        except MissingKey:
            return None
        with closing(stream):
            if stream.answer.attributes.get(_NONCE) != nonce:
                return None
            return self._etag(stream.answer.meta) if same_bytes(stream, body) else None

    def _list(self, prefix: str, since: str) -> Iterator[Entry]:
        # obstore's prefixes are folders: what is beside `prefix` in its folder is passed over.
        folder = (self._root + prefix).rpartition("/")[0]
        start = self._root + prefix + just_before(since) if since else (self._root + prefix)[:-1]
        while start.rpartition("/")[2] in (".", ".."):
            start = start[:-1]  # no path, to obstore
        pages = self._send(
            lambda: obstore.list(
                self._store, folder or None, offset=start or None, chunk_size=1000
            ),
            "Listing",
            prefix,
        )
        while page := self._send(lambda: next(pages, None), "Listing", prefix):
            for item in page:
                key = item["path"][len(self._root) :]
                if key.startswith(prefix):
                    if is_since(key, prefix, since) and is_key(key):
                        yield Entry(key, item["size"])
                elif self._google and key > prefix:
                    return


class _Stream(io.RawIOBase):
    """An object from start to end; obstore goes on by itself where a connection broke."""

    def __init__(self, answer: GetResult, name: str) -> None:
        super().__init__()
        self.answer = answer
        self.size: int = answer.meta["size"]
        self._name = name
        self._chunks: Any = None
        self._rest = memoryview(b"")
        self._got = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def close(self) -> None:
        """Also drops the connection if there is more to come."""
        self._chunks = None
        super().close()

    def readinto(self, buffer: Buffer, /) -> int:
        """StorageError when the object cannot be had to its end."""
        view = memoryview(buffer).cast("B")
        if not self._rest and self._got < self.size:
            self._rest = self._next()
            self._got += len(self._rest)
        count = min(len(view), len(self._rest))
        view[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def _next(self) -> memoryview:
        try:
            if self._chunks is None:
                self._chunks = iter(self.answer.stream(min_chunk_size=_CHUNK))
            chunk = next(self._chunks, None)
        except _ERRORS as error:
            raise explain(error, f"Reading {self._name}", self._name, "") from error
        if not chunk:
            raise StorageError(
                f"{self._name} ended after {self._got} of {self.size} bytes", hint="try again"
            )
        return memoryview(bytes(chunk))


def _endpoint(google: bool) -> str:
    """Where requests go, as obstore finds it."""
    if google:
        return os.environ.get("GOOGLE_BASE_URL", "https://storage.googleapis.com")
    for name in ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"):
        if os.environ.get(name):
            return os.environ[name]
    account = os.environ.get("AZURE_STORAGE_ACCOUNT_NAME", "")
    return f"https://{account}.blob.core.windows.net"


def _credentials(google: bool) -> str:
    if google:
        return (
            "name a service account's file in GOOGLE_APPLICATION_CREDENTIALS, or: "
            "gcloud auth application-default login"
        )
    return (
        "set AZURE_STORAGE_ACCOUNT_NAME, and AZURE_STORAGE_ACCOUNT_KEY or AZURE_CLIENT_ID, "
        "AZURE_TENANT_ID and AZURE_CLIENT_SECRET, or AZURE_USE_AZURE_CLI=true after az login"
    )
