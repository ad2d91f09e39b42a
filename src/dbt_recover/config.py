"""Configuration from a file; flags and environment are click's, and win over it.

`dbt_recover.toml` (or `[tool.dbt-recover]` in pyproject.toml), found upwards from where the command
runs, becomes click's default_map: every option of every command can stand in it by its name.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .errors import UsageError

S3_OPTIONS = frozenset(
    {
        "endpoint_url",
        "region",
        "profile",
        "role_arn",
        "path_style",
        "sse",
        "sse_kms_key_id",
        "acl",
        "expected_bucket_owner",
        "requester_pays",
        "storage_class",
        "ca_bundle",
        "checksum",
        "max_attempts",
        "connect_timeout",
        "read_timeout",
    }
)


class File(NamedTuple):
    """A configuration file, read."""

    path: Path | None
    options: Mapping[str, Any]
    """Global options by name, and a table per command."""
    s3: Mapping[str, Any]
    pipeline: Any = None
    """The declared pipelines, as pipeline.read_pipelines takes them."""


def read_file(given: str | None, start: Path) -> File:
    """The file that is named, or the nearest one upwards from start; UsageError if it is not
    what it should be."""
    path = Path(given) if given else _find(start)
    if path is None:
        return File(None, {}, {})
    table = _table(path)
    s3 = table.pop("s3", {})
    if not isinstance(s3, dict):
        raise UsageError(f"{path}: [s3] must be a table")
    unknown = sorted(s3.keys() - S3_OPTIONS)
    if unknown:
        raise UsageError(
            f"{path}: unknown option in [s3]: {', '.join(unknown)}",
            hint="there are: " + ", ".join(sorted(S3_OPTIONS)),
        )
    pipeline = table.pop("pipeline", None)
    options = {k.replace("-", "_"): _names(v) for k, v in table.items()}
    return File(path, options, s3, pipeline)


def _names(value: Any) -> Any:
    if isinstance(value, dict):
        return {k.replace("-", "_"): v for k, v in value.items()}
    return value


def _find(start: Path) -> Path | None:
    for directory in (start, *start.parents):
        if (directory / "dbt_recover.toml").is_file():
            return directory / "dbt_recover.toml"
        pyproject = directory / "pyproject.toml"
        if pyproject.is_file() and b"[tool.dbt-recover" in pyproject.read_bytes():
            return pyproject
    return None


def _table(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except OSError as exc:
        raise UsageError(f"cannot read {path}: {exc.strerror}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise UsageError(f"{path} is not TOML: {exc}") from exc
    if path.name == "pyproject.toml":
        document = document.get("tool", {}).get("dbt-recover", {})
    return dict(document)


def check_names(file: File, known: Mapping[str, Sequence[str]]) -> None:
    """UsageError for an option that no command has. `known`: '' -> global options, command ->
    its options."""
    for key, value in file.options.items():
        if isinstance(value, dict) and key in known:
            for name in value:
                if name not in known[key]:
                    raise UsageError(
                        f"{file.path}: {key} has no option {name!r}",
                        hint="there are: " + ", ".join(known[key]),
                    )
        elif key not in known[""]:
            raise UsageError(
                f"{file.path}: unknown option {key!r}",
                hint="there are: "
                + ", ".join([*known[""], "s3", "pipeline", *(k for k in known if k)]),
            )


def s3_options(file: File, flags: Sequence[str], environ: Mapping[str, str]) -> dict[str, Any]:
    """`--s3 NAME=VALUE` over DBT_RECOVER_S3_NAME over the file's [s3]. UsageError for others."""
    options = dict(file.s3)
    known = {f"DBT_RECOVER_S3_{name.upper()}" for name in S3_OPTIONS}
    for variable in sorted(v for v in environ if v.startswith("DBT_RECOVER_S3_")):
        if variable not in known:
            raise UsageError(
                f"there is no S3 option for {variable}",
                hint="there are: " + ", ".join(sorted(known)),
            )
    for name in S3_OPTIONS:
        if f"DBT_RECOVER_S3_{name.upper()}" in environ:
            options[name] = environ[f"DBT_RECOVER_S3_{name.upper()}"]
    for flag in flags:
        name, equals, value = flag.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or name not in S3_OPTIONS:
            raise UsageError(
                f"--s3 {flag}: write NAME=VALUE with a known name",
                hint="there are: " + ", ".join(sorted(S3_OPTIONS)),
            )
        options[name] = value
    return {k: _typed(k, v) for k, v in options.items()}


def _typed(name: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if name in ("path_style", "requester_pays"):
        if value.lower() not in ("true", "false", "1", "0", "yes", "no", "on", "off"):
            raise UsageError(f"S3 option {name} is true or false, not {value!r}")
        return value.lower() in ("true", "1", "yes", "on")
    if name in ("max_attempts", "connect_timeout", "read_timeout"):
        try:
            return int(value) if name == "max_attempts" else float(value)
        except ValueError:
            raise UsageError(f"S3 option {name} is a number, not {value!r}") from None
    return value
