"""What S3, or the way to it, says, as errors that name the operation, the key and the way out."""

from __future__ import annotations

from botocore import exceptions as aws
from botocore.exceptions import BotoCoreError, ClientError

from ..errors import NotFoundError, RecoverError, StorageError, UsageError
from .base import MissingKey, PreconditionFailed

_ACTIONS = {
    "PutObject": "s3:PutObject",
    "GetObject": "s3:GetObject",
    "HeadObject": "s3:GetObject",
    "DeleteObject": "s3:DeleteObject",
    "ListObjectsV2": "s3:ListBucket",
    "HeadBucket": "s3:ListBucket",
    "AssumeRole": "sts:AssumeRole",
}
_EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"})
_UNKNOWN_KEYS = frozenset(
    {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidClientTokenId", "InvalidToken"}
)
_OTHER_REGION = frozenset(
    {
        "301",
        "AuthorizationHeaderMalformed",
        "IllegalLocationConstraintException",
        "PermanentRedirect",
    }
)
_CHECK_KEYS = "check AWS_PROFILE, AWS_ACCESS_KEY_ID or the s3 option profile; ask: {ask}"
_ASK = "aws sts get-caller-identity"


class InDoubt(StorageError):
    """The request may have taken effect: its answer never came, or was that something broke."""


class NotSupported(StorageError):
    """The store does not know something that the request asked for."""


def no_store(url: str) -> StorageError:
    """Of an answer that no S3 store gives: a login page, a proxy's own."""
    return StorageError(
        f"{url}: what answers there is not an S3 store",
        hint="check the s3 option endpoint_url (AWS_ENDPOINT_URL), and whether a proxy or a login "
        "page stands in between",
    )


def status_of(error: ClientError) -> int:
    """The HTTP status of the answer."""
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return int(status)


def code_of(error: ClientError) -> str:
    """S3's error code; the status as text where the answer had no body (HEAD)."""
    return str(error.response.get("Error", {}).get("Code", ""))


def explain(error: ClientError | BotoCoreError | OSError, operation: str, url: str) -> RecoverError:
    """The error to raise instead. `url` is what the request was about."""
    if isinstance(error, ClientError):
        # Assuming a role happens inside other operations.
        return _from_answer(error, error.operation_name or operation, url)
    return _from_way(error, operation, url)


def _from_answer(error: ClientError, operation: str, url: str) -> RecoverError:
    code, status = code_of(error), status_of(error)
    said = str(error.response.get("Error", {}).get("Message", "")) or f"status {status}"
    failed = f"{operation} of {url}"
    if code == "NoSuchBucket":
        return NotFoundError(
            f"no such bucket: {url}", hint="check the name, the endpoint and the account"
        )
    if status == 404 and not code:  # a page, and none of S3's words in it
        return no_store(url)
    if code in ("NoSuchKey", "404", "NotFound"):
        return MissingKey(f"there is no {url}")
    if status == 412:
        return PreconditionFailed(f"{url} has been written or changed by another")
    if code == "InvalidBucketName":
        return UsageError(f"{url}: not a bucket's name: {said}", hint="s3://bucket/prefix")
    if code in _EXPIRED:
        return StorageError(
            f"{failed}: the credentials have expired ({said})",
            hint=f"renew them (aws sso login), then ask: {_ASK}",
        )
    if code in _UNKNOWN_KEYS:
        return StorageError(
            f"{failed}: the store does not accept the credentials: {code}: {said}",
            hint=_CHECK_KEYS.format(ask=_ASK),
        )
    if code == "RequestTimeTooSkewed":
        return StorageError(
            f"{failed}: this machine's clock is wrong ({said})", hint="set it: timedatectl"
        )
    if code in _OTHER_REGION or status == 301:
        return _other_region(error, failed, said)
    if status in (401, 403):
        return StorageError(f"{failed} is not permitted: {code}: {said}", hint=_allow(operation))
    if status == 501 or code == "NotImplemented":
        return NotSupported(
            f"{failed}: the store does not know what was asked of it ({said})",
            hint="an archive needs conditional writes (If-None-Match, If-Match)",
        )
    if status >= 500 or code == "SlowDown":
        return InDoubt(
            f"{failed} failed on the store's side, {_tries(error)}: {code}: {said}",
            hint="it is down or overloaded: try again later, or each request more often: the s3 "
            "option max_attempts",
        )
    if status == 407:
        return StorageError(
            f"{failed}: a proxy on the way wants to know who asks ({said})",
            hint="name it as http://user:password@host:port in HTTPS_PROXY, or except the store "
            "from it in NO_PROXY",
        )
    if status == 409:
        return StorageError(
            f"{failed} failed: {code}: {said}",
            hint="others write the same object all the time: try again",
        )
    return StorageError(f"{failed} failed: {code}: {said}")


def _other_region(error: ClientError, failed: str, said: str) -> RecoverError:
    headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    region = headers.get("x-amz-bucket-region") or error.response.get("Error", {}).get("Region")
    where = f"in region {region}" if region else "in another region"
    return StorageError(
        f"{failed}: the bucket is {where} ({said})",
        hint=f"set the s3 option region{f' to {region}' if region else ''}, or AWS_REGION",
    )


def _allow(operation: str) -> str:
    action = _ACTIONS.get(operation, f"s3:{operation}")
    if operation == "AssumeRole":
        return f"it takes {action} for this identity, and the role's trust policy to name it"
    hint = f"it takes {action} for this identity (and in the bucket's policy)"
    if operation in ("GetObject", "HeadObject"):
        hint += "; without s3:ListBucket a missing object looks like this, too"
    if operation == "PutObject":
        hint += "; s3:GetObject to replace or delete on a condition, s3:PutObjectAcl with an ACL"
        hint += ", kms:GenerateDataKey with aws:kms"
    return hint


def _tries(error: ClientError) -> str:
    retries = error.response.get("ResponseMetadata", {}).get("RetryAttempts", 0)
    return f"{int(retries) + 1} times"


def _from_way(error: BotoCoreError | OSError, operation: str, url: str) -> RecoverError:
    failed = f"{operation} of {url}"
    if isinstance(error, aws.ProfileNotFound):
        return UsageError(f"{url}: {error}", hint="aws configure list-profiles")
    if isinstance(error, aws.ParamValidationError | aws.InvalidRegionError):
        return UsageError(f"{failed}: {error}")
    if isinstance(error, aws.NoCredentialsError | aws.PartialCredentialsError):
        return StorageError(
            f"{failed}: {'incomplete' if 'Partial' in type(error).__name__ else 'no'} credentials "
            f"({error})",
            hint=_CHECK_KEYS.format(ask=_ASK),
        )
    if isinstance(error, aws.SSOError | aws.TokenRetrievalError):
        return StorageError(f"{failed}: {error}", hint="aws sso login")
    if isinstance(error, aws.CredentialRetrievalError | aws.MetadataRetrievalError):
        return StorageError(f"{failed}: {error}", hint=_CHECK_KEYS.format(ask=_ASK))
    if isinstance(error, aws.SSLError):
        return StorageError(
            f"{failed}: {error}", hint="set the s3 option ca_bundle to your authority's PEM file"
        )
    if isinstance(error, aws.HTTPClientError):  # resets and read timeouts among them
        return InDoubt(f"{failed}: the connection broke: {error}", hint="try again")
    if isinstance(error, aws.ConnectionError):
        return StorageError(
            f"{failed}: cannot reach the store: {error}",
            hint="check the s3 option endpoint_url, the network and the proxy settings",
        )
    return StorageError(f"{failed}: {error}")
