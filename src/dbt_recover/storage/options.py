"""What a user can say about an S3 store. Apart from the backend: reading a configuration must not
import botocore, which costs half a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from ..errors import UsageError

_CHOICES = {
    "sse": ("AES256", "aws:kms", "aws:kms:dsse"),
    "checksum": ("when_required", "when_supported"),
}
_BOOLEANS = frozenset({"path_style", "requester_pays"})
_NUMBERS: Mapping[str, type[int] | type[float]] = {
    "max_attempts": int,
    "connect_timeout": float,
    "read_timeout": float,
}
_FOR_EVER = 1_000_000
_WORDS = {"true": True, "yes": True, "on": True, "1": True}
_WORDS |= {"false": False, "no": False, "off": False, "0": False}


@dataclass(frozen=True, slots=True)
class S3Options:
    """How to reach a bucket, and what to ask of each request. An empty string is: not said."""

    endpoint_url: str = ""
    """Of a store that is not AWS's."""
    region: str = ""
    profile: str = ""
    """A section of ~/.aws/config; its own role_arn, SSO, ... work as they do for the aws CLI."""
    role_arn: str = ""
    """A role to assume with the credentials found, renewed as it expires."""
    path_style: bool | None = None
    """None: as botocore does, on any endpoint but AWS's own; many have no `bucket.host` in DNS."""
    sse: str = ""
    """AES256, aws:kms, aws:kms:dsse; implied by sse_kms_key_id."""
    sse_kms_key_id: str = ""
    acl: str = ""
    """A canned ACL such as bucket-owner-full-control."""
    expected_bucket_owner: str = ""
    """An account id; a bucket of the same name in other hands is then refused by S3."""
    requester_pays: bool = False
    storage_class: str = ""
    ca_bundle: str = ""
    """A PEM file, for an endpoint whose certificate the machine does not know."""
    checksum: Literal["when_required", "when_supported"] = "when_required"
    """when_required, when_supported. The latter, botocore's own default, adds trailers that some
    stores reject and some keep as part of the file; the archive has its own SHA-256 anyway."""
    max_attempts: int = 5
    """Of each request, the first included."""
    connect_timeout: float = 5.0
    """Seconds."""
    read_timeout: float = 60.0
    """Seconds without a byte."""

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if value and value not in allowed:
                raise UsageError(f"s3 option {name} is {value!r}; it can be {', '.join(allowed)}")
        if self.endpoint_url and not self.endpoint_url.startswith(("http://", "https://")):
            raise UsageError(
                f"s3 option endpoint_url is {self.endpoint_url!r}",
                hint="begin it with https:// (or http://)",
            )
        for name in _NUMBERS:
            if not 0 < getattr(self, name) < _FOR_EVER:
                raise UsageError(
                    f"s3 option {name} is {getattr(self, name)}; it must be above 0 and below "
                    f"{_FOR_EVER}"
                )
        if self.ca_bundle and not Path(self.ca_bundle).is_file():
            raise UsageError(f"s3 option ca_bundle: there is no file {self.ca_bundle}")
        if self.sse_kms_key_id and self.sse == "AES256":
            raise UsageError("s3 option sse_kms_key_id goes with sse = 'aws:kms', not AES256")

    @classmethod
    def from_mapping(cls, given: Mapping[str, object]) -> S3Options:
        """From a configuration table or environment variables: None and "" are not said,
        text is parsed."""
        known = [f.name for f in fields(cls)]
        parsed: dict[str, Any] = {}
        for name, value in given.items():
            if name not in known:
                raise UsageError(f"no s3 option {name!r}", hint=f"there are: {', '.join(known)}")
            if value is not None and value != "":
                parsed[name] = _parse(name, value)
        return cls(**parsed)


def _parse(name: str, value: object) -> bool | int | float | str:
    if name in _BOOLEANS:
        if isinstance(value, bool):
            return value
        word = str(value).strip().lower()
        if word in _WORDS:
            return _WORDS[word]
        raise UsageError(f"s3 option {name} is {value!r}; it can be true or false")
    if name in _NUMBERS:
        try:
            return _NUMBERS[name](str(value))
        except ValueError as error:
            raise UsageError(f"s3 option {name} is {value!r}; it must be a number") from error
    # Account ids look like numbers in TOML and YAML; a list or a table is a mistake.
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UsageError(f"s3 option {name} is {value!r}; it must be text")
    return str(value).strip()
