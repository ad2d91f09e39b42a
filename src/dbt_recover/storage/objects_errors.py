"""What Google's and Azure's stores, or the way to them, say, in the same tree as S3's errors."""

from __future__ import annotations

import re

from obstore import exceptions as said

from ..errors import NotFoundError, RecoverError, StorageError
from .base import MissingKey, PreconditionFailed

_CODE = re.compile(r"<Code>([^<]+)</Code>|x-ms-error-code[\"']?: [\"']?(\w+)")
_MESSAGE = re.compile(r"<(?:Message|Details)>([^<\n]+)")
_STATUS = re.compile(r"status code: (\d{3})")
_NO_BUCKET = frozenset({"NoSuchBucket", "ContainerNotFound"})
_SIGNATURE = frozenset(
    {"AuthenticationFailed", "AuthorizationFailure", "InvalidAuthenticationInfo"}
)
_TOKEN = re.compile(r"token request|credential", re.IGNORECASE)


class InDoubt(StorageError):
    """The request may have taken effect: its answer never came, or was that something broke."""


def explain(error: Exception, failed: str, url: str, credentials: str) -> RecoverError:
    """The error to raise instead. `failed` is what was being done; `credentials` says where they
    come from."""
    text = str(error).partition("\n\nDebug source")[0]
    code = next((a or b for a, b in _CODE.findall(text)), "")
    status = next((int(s) for s in _STATUS.findall(text)), 0)
    if code in _NO_BUCKET or (isinstance(error, FileNotFoundError) and "bucket does not" in text):
        return NotFoundError(f"no such bucket: {url}", hint="check the name and the account")
    if isinstance(error, FileNotFoundError):
        return MissingKey(f"{failed}: there is no such object")
    if isinstance(error, said.AlreadyExistsError | said.PreconditionError):
        return PreconditionFailed(f"{failed}: it has been written or changed by another")
    what = _said(text, code)
    if _TOKEN.search(text):
        return StorageError(f"{failed}: no credentials: {what}", hint=credentials)
    if isinstance(error, said.UnauthenticatedError) or status == 401 or code in _SIGNATURE:
        return StorageError(
            f"{failed}: the store does not accept the credentials: {what}", hint=credentials
        )
    if isinstance(error, said.PermissionDeniedError) or status == 403:
        return StorageError(
            f"{failed} is not permitted: {what}",
            hint="writing takes the right to create, read, list and delete objects (Storage Object "
            "User; Storage Blob Data Contributor); reading the one to read and list them",
        )
    if status and status < 500 and status not in (408, 409, 429):
        return StorageError(f"{failed} failed: {what}")
    if isinstance(error, ValueError) and not isinstance(error, said.BaseError):
        return StorageError(f"{failed} failed: {what}")
    return InDoubt(
        f"{failed} failed, after several tries: {what}",
        hint="check the network, the endpoint and the proxy settings; then try again",
    )


def _said(text: str, code: str) -> str:
    """In a line."""
    message = _MESSAGE.search(text)
    if code:
        return f"{code}: {message.group(1).strip()}" if message else code
    return " ".join(text.split())[:300]
