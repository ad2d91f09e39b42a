"""An archive in an S3 bucket, or in a store that speaks S3.

botocore repeats what may pass (500, 503, throttling, resets, timeouts). That makes a conditional
write ambiguous: the first try may have been carried out and its answer lost, and the second is then
refused because of ourselves. So each write carries a nonce of its own in the object's metadata, and
a refusal or a lost answer is followed by a look at what is there.
"""

from __future__ import annotations

import builtins
import io
import random
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from datetime import datetime
from email.utils import parsedate_to_datetime
from itertools import groupby
from operator import attrgetter
from typing import Any, BinaryIO

from botocore.exceptions import BotoCoreError, ClientError

from ..errors import NotFoundError, StorageError, UsageError
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
from .options import S3Options
from .s3_client import connect, is_aws
from .s3_errors import InDoubt, NotSupported, explain, no_store, status_of
from .s3_stream import ObjectStream

_CHUNK = 1 << 20
_WITH_ETAG = frozenset({"get_object", "put_object", "head_object"})
_NONCE = "nonce"
# Seconds; doubled with each try, and of that a random part is waited.
_BACKOFF = 0.1
# The beginning of a name, up to the first character that sorts before or with the slash.
_HEAD = re.compile("[^ -/]*")


class S3Storage:
    """Objects below `prefix` in a bucket."""

    def __init__(self, bucket: str, prefix: str, options: S3Options) -> None:
        self.url = f"s3://{bucket}/{prefix}".rstrip("/")
        self._root = f"{prefix}/" if prefix else ""
        self._options = options
        self._bucket_seen = False
        self._ignores_conditions: bool | None = None
        self._common: dict[str, str] = {"Bucket": bucket}
        if options.expected_bucket_owner:
            self._common["ExpectedBucketOwner"] = options.expected_bucket_owner
        if options.requester_pays:
            self._common["RequestPayer"] = "requester"
        try:
            self._client = connect(options)
        except (BotoCoreError, OSError) as error:
            raise explain(error, "Connecting", self.url) from error
        except ValueError as error:  # so botocore reports a malformed endpoint or region
            raise UsageError(f"{self.url}: {error}") from error

    def read(self, key: str, *, max_bytes: int | None = None) -> Blob:
        """The object's bytes. `MissingKey` if there is none, `DamagedError` beyond max_bytes."""
        answer = self._get(key)
        with closing(self._stream(key, answer)) as stream:
            check_size(self._name(key), stream.size, max_bytes)
            data = whole(stream)
        return Blob(data, answer["ETag"], _age(answer))

    def open(self, key: str) -> BinaryIO:
        """A stream over the object, for the caller to close. `MissingKey` if there is none."""
        return io.BufferedReader(self._stream(key, self._get(key)), _CHUNK)

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
        condition: dict[str, str] = {}
        if if_absent:
            condition["IfNoneMatch"] = "*"
        if if_match is not None:
            condition["IfMatch"] = if_match
        try:
            answer = self._call(
                "put_object",
                key,
                Body=body,
                Metadata={_NONCE: nonce},
                **condition,
                **self._placement(),
            )
        except (PreconditionFailed, MissingKey) as refusal:
            # If-Match on a key that is gone is a 404; nothing else can be, to a store.
            if isinstance(refusal, MissingKey) and if_match is None:
                raise no_store(self._name(key)) from refusal
            if etag := self._ours(key, nonce, body):
                return etag
            message = f"{self._name(key)} has been written or changed by another"
            raise PreconditionFailed(message) from refusal
        except InDoubt:
            with suppress(StorageError):
                if etag := self._ours(key, nonce, body):
                    return etag
            raise
        return str(answer["ETag"])

    def list(self, prefix: str, *, since: str = "") -> Iterator[Entry]:
        """All objects whose key begins with prefix, in ascending key order; see Storage."""
        return self._list(check_listing(prefix, since), since)

    def folders(self, prefix: str) -> builtins.list[str]:
        """Names directly below `prefix` that have something below them, sorted.

        SeaweedFS names a folder for some seconds after its last object was deleted.
        """
        below = self._root + check_folder(prefix)
        found = set()
        for page in self._pages(prefix, Delimiter="/"):
            for common in page.get("CommonPrefixes", ()):
                found.add(common["Prefix"][len(below) :].rstrip("/"))
        return sorted(filter(is_key, found))

    def stat(self, key: str) -> Stat | None:
        """None if there is no such object."""
        try:
            answer = self._call("head_object", key)
        except MissingKey:
            self._check_bucket()
            return None
        return Stat(answer["ContentLength"], answer["ETag"], _age(answer))

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        """Remove it; absent is fine. `PreconditionFailed` if if_match is given and differs."""
        condition = {}
        if if_match is not None:
            # Some stores that honour If-Match on a PUT ignore it on a DELETE: looking first leaves
            # those a small gap instead of an open door.
            found = self.stat(key)
            if found is None:
                return
            if found.etag != if_match:
                raise PreconditionFailed(f"{self._name(key)} has been changed by another")
            condition["IfMatch"] = if_match
        try:
            self._call("delete_object", key, **condition)
        except MissingKey:
            return
        except PreconditionFailed:
            # Our own delete, its answer lost, looks like this, too.
            if self.stat(key) is not None:
                raise

    def ignores_conditions(self, key: str) -> bool:
        """Whether the store writes whatever the condition, as some that speak S3 do.

        AWS's own is not asked; another one once: the object `key` is written as it is, under
        conditions that do not hold, so that nothing is changed where they are ignored.
        """
        if self._ignores_conditions is None:
            self._ignores_conditions = not is_aws(self._client) and not self._minds(key)
        return self._ignores_conditions

    def _minds(self, key: str) -> bool:
        try:
            body = self.read(key).data
        except MissingKey:
            return self.preconditions_honoured()
        return self._turns_down(key, body, {"IfNoneMatch": "*"}) and self._turns_down(
            key, body, {"IfMatch": f'"{"0" * 32}"'}
        )

    def _turns_down(self, key: str, body: bytes, condition: Mapping[str, str]) -> bool:
        try:
            self._call("put_object", key, Body=body, **condition, **self._placement())
        except (PreconditionFailed, MissingKey, NotSupported) as answer:
            return not isinstance(answer, NotSupported)
        return False

    def clock(self) -> float:
        """The store's time, in seconds since 1970. StorageError if it does not say."""
        # A request that whoever reads the archive may make.
        parameters = {"Prefix": self._root, "MaxKeys": 1, **self._common}
        answer = self._send("list_objects_v2", self.url, parameters)
        date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
        if not date:
            raise StorageError(f"{self.url}: the store's answers have no Date")
        return float(parsedate_to_datetime(date).timestamp())

    def preconditions_honoured(self) -> bool:
        """Whether the store refuses conditional writes as it should; some accept all of them.

        Writes an object of its own below the prefix and removes it.
        """
        key = f"probe/{uuid.uuid4().hex}"
        try:
            self.write(key, b"1", if_absent=True)
        except NotSupported:
            return False
        try:
            return self._refuses(key, if_absent=True) and self._refuses(
                key, if_match=f'"{"0" * 32}"'
            )
        finally:
            self.delete(key)

    def _refuses(self, key: str, *, if_absent: bool = False, if_match: str | None = None) -> bool:
        try:
            self.write(key, b"2", if_absent=if_absent, if_match=if_match)
        except PreconditionFailed:
            return True
        except NotSupported:
            return False
        return False

    def _name(self, key: str) -> str:
        return f"{self.url}/{key}"

    def _placement(self) -> dict[str, str]:
        o = self._options
        asked = {
            "ServerSideEncryption": o.sse or ("aws:kms" if o.sse_kms_key_id else ""),
            "SSEKMSKeyId": o.sse_kms_key_id,
            "ACL": o.acl,
            "StorageClass": o.storage_class,
        }
        return {name: value for name, value in asked.items() if value}

    def _call(self, method: str, key: str, **parameters: Any) -> dict[str, Any]:
        """One request about an object, its errors explained."""
        parameters |= {"Key": self._root + check_key(key), **self._common}
        return self._send(method, self._name(key), parameters)

    def _send(self, method: str, url: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        operation = "".join(word.capitalize() for word in method.split("_"))
        tries = self._options.max_attempts
        for attempt in range(1, tries + 1):
            body = parameters.get("Body")
            if body is not None and not isinstance(body, bytes):
                body.seek(0)
            try:
                answer: dict[str, Any] = getattr(self._client, method)(**parameters)
            except ClientError as error:
                # 409: two conditional writes met; which of them holds is known when it is over.
                if status_of(error) != 409 or attempt == tries:
                    raise explain(error, operation, url) from error
                time.sleep(random.uniform(0, _BACKOFF * 2**attempt))
            except (BotoCoreError, OSError) as error:
                raise explain(error, operation, url) from error
            except RecursionError as error:  # redirected, and again
                raise no_store(url) from error
            else:
                if method in _WITH_ETAG and "ETag" not in answer:
                    raise no_store(url)
                self._bucket_seen = True
                return answer
        raise AssertionError("unreachable: the last try returned or raised")

    def _get(self, key: str) -> dict[str, Any]:
        return self._call("get_object", key)

    def _stream(self, key: str, answer: dict[str, Any]) -> ObjectStream:
        def again(position: int) -> dict[str, Any]:
            part = {"Range": f"bytes={position}-"} if position else {}
            return self._call("get_object", key, IfMatch=answer["ETag"], **part)

        return ObjectStream(answer, again, self._name(key), self._options.max_attempts)

    def _ours(self, key: str, nonce: str, body: bytes | BinaryIO) -> str | None:
        """The etag of what is there if this very write put it there, byte for byte."""
        try:
            answer = self._get(key)
            with closing(self._stream(key, answer)) as stream:
                if answer.get("Metadata", {}).get(_NONCE) != nonce:
                    return None
                return str(answer["ETag"]) if same_bytes(stream, body) else None
        except MissingKey:
            return None

    def _check_bucket(self) -> None:
        """NotFoundError if the bucket is missing, which a HEAD of an object does not tell."""
        if self._bucket_seen:
            return
        try:
            self._send("head_bucket", self.url, self._common)
        except MissingKey as error:
            raise NotFoundError(
                f"no such bucket: {self.url}", hint="check the name, the endpoint and the account"
            ) from error
        except StorageError:
            return  # may not be looked at; then it is there

    def _pages(self, prefix: str, **parameters: Any) -> Iterator[dict[str, Any]]:
        parameters |= {"Prefix": self._root + prefix, **self._common}
        while True:
            try:
                page = self._send("list_objects_v2", self._name(prefix), parameters)
            except MissingKey as error:  # of a bucket that is missing a store says so
                raise no_store(self._name(prefix)) from error
            yield page
            if not page.get("IsTruncated"):
                return
            token = page.get("NextContinuationToken")
            if not token or token == parameters.get("ContinuationToken"):
                # Going on would read the same page for ever; stopping would hide what is there.
                raise StorageError(
                    f"ListObjectsV2 of {self._name(prefix)}: the store does not say where the next "
                    "page begins"
                )
            parameters["ContinuationToken"] = token

    def _list(self, prefix: str, since: str) -> Iterator[Entry]:
        start = self._root + prefix + just_before(since) if since else ""
        parameters = {"StartAfter": start} if start else {}
        found = (
            Entry(item["Key"][len(self._root) :], item["Size"])
            for page in self._pages(prefix, **parameters)
            for item in page.get("Contents", ())
        )
        for entry in found if is_aws(self._client) else _in_order(found, prefix):
            if is_since(entry.key, prefix, since) and is_key(entry.key):
                yield entry


def _in_order(entries: Iterator[Entry], prefix: str) -> Iterator[Entry]:
    """Entries of a store that may list as a directory walk does (SeaweedFS): `a/b` before `a-b`.

    That order and the one we promise differ only among keys with the same beginning up to the first
    character that sorts before or with the slash, and in both these stand together.
    """
    for _, group in groupby(entries, lambda entry: _head(entry.key, prefix)):
        yield from sorted(group, key=attrgetter("key"))


def _head(key: str, prefix: str) -> str:
    match = _HEAD.match(key, len(prefix))
    return match.group() if match else ""


def _age(answer: Mapping[str, Any]) -> float:
    """By the store's clock alone: its answer's Date less the object's Last-Modified."""
    date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    if not date:
        return 0.0  # against the rules of HTTP; young is the safe side: a lease is not taken over
    modified: datetime = answer["LastModified"]
    seconds: float = (parsedate_to_datetime(date) - modified).total_seconds()
    return max(0.0, seconds)
