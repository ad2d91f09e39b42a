"""Where an archive's bytes are kept: `open_storage(url)` picks the backend by the URL's scheme."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from ..errors import UsageError
from .base import Storage, check_key

if TYPE_CHECKING:
    from .options import S3Options

# One letter before the colon is no scheme. `s3:bucket` and `s3:/bucket` are typing errors that
# must not become directories.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(//)?")
_EXAMPLES = {
    "s3": "s3://bucket/prefix",
    "gs": "gs://bucket/prefix",
    "az": "az://container/prefix",
}
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
# Leaves room for the archive's own keys (900) within S3's 1,024.
_MAX_PREFIX = 120
_ACCEPTED = (
    "accepted are a directory, file:///directory, s3://bucket/prefix, gs://bucket/prefix and "
    "az://container/prefix"
)


def open_storage(
    url: str,
    s3: S3Options | Mapping[str, object] | None = None,
    *,
    base: Path | None = None,
) -> Storage:
    """The store that `url` names; a relative path is below `base`, else below the current
    directory. Nothing is created or contacted yet. `UsageError` for a URL of another kind."""
    text = url.strip()
    if not text:
        raise UsageError("the archive's URL is empty", hint=_ACCEPTED)
    scheme = _SCHEME.match(text)
    if scheme is None:
        return _directory(Path(text).expanduser(), base)
    name = scheme.group(1).lower()
    if scheme.group(2) and name == "file":
        return _directory(_file_url(text), base)
    if scheme.group(2) and name == "s3":
        return _bucket(text, s3)
    if scheme.group(2) and name in ("gs", "az"):
        return _objects(text, name)
    raise UsageError(
        f"not a URL an archive can have: {text}",
        hint=f"{_ACCEPTED}; write ./ before a path that has a colon in it",
    )


def _file_url(text: str) -> Path:
    parts = urlsplit(text)
    path = unquote(parts.path)
    if parts.netloc not in ("", "localhost"):
        raise UsageError(f"{text} names another host", hint=f"file:///{parts.netloc}{path}")
    if not path or parts.query or parts.fragment or "\0" in path:
        raise UsageError(f"{text} does not name a directory", hint=_ACCEPTED)
    return Path(path)


def _directory(path: Path, base: Path | None) -> Storage:
    from .local import LocalStorage

    return LocalStorage((base or Path.cwd()) / path)


def _bucket(text: str, s3: S3Options | Mapping[str, object] | None) -> Storage:
    bucket, prefix = _split(text)
    if bucket.endswith("--x-s3"):
        # They list in no order and know no StartAfter, on which the archive's listings rest.
        raise UsageError(
            f"{text}: a directory bucket (S3 Express) cannot hold an archive",
            hint="name a general purpose bucket",
        )
    from .options import S3Options

    options = s3 if isinstance(s3, S3Options) else S3Options.from_mapping(s3 or {})
    try:
        from .s3 import S3Storage
    except ImportError as error:
        raise UsageError(
            f"{text} needs boto3, which is not installed here ({error})",
            hint="pip install 'boto3>=1.36'",
        ) from error
    return S3Storage(bucket, prefix, options)


def _objects(text: str, scheme: str) -> Storage:
    bucket, prefix = _split(text)
    try:
        from .objects import ObjectStorage
    except ImportError as error:
        raise UsageError(
            f"{text} needs obstore, which is not installed here ({error})",
            hint="pip install 'dbt-recover[objects]'",
        ) from error
    return ObjectStorage(scheme, bucket, prefix)


def _split(text: str) -> tuple[str, str]:
    """Bucket and prefix."""
    scheme, _, rest = text.partition("://")
    bucket, _, prefix = rest.partition("/")
    prefix = prefix.strip("/")
    if not _BUCKET.fullmatch(bucket):
        what = f"{bucket!r} is not a bucket's name" if bucket else "it names no bucket"
        raise UsageError(f"{text}: {what}", hint=_EXAMPLES[scheme.lower()])
    if prefix:
        try:
            check_key(prefix)
        except UsageError as error:
            raise UsageError(f"{text}: {error.message}", hint=error.hint) from error
    if len(prefix) > _MAX_PREFIX:
        raise UsageError(
            f"{text}: the prefix has {len(prefix)} characters",
            hint=f"it can have {_MAX_PREFIX}: the archive's own keys have to fit behind it",
        )
    return bucket, prefix


__all__ = ["Storage", "open_storage"]
