"""The classes of failure, and the shape of a pattern that tells one."""

from __future__ import annotations

import msgspec

TRANSIENT, TIMEOUT, PERMISSION = "transient", "timeout", "permission"
CODE, DATA, QUOTA, UNKNOWN = "code", "data", "quota", "unknown"
CLASSES = (TRANSIENT, TIMEOUT, PERMISSION, CODE, DATA, QUOTA, UNKNOWN)

ORDER = ("text", "code", "sqlstate", "prefix")
"""The kinds of pattern, in the order of trial."""


class Pattern(msgspec.Struct, frozen=True):
    """Exactly one of text, code, sqlstate, prefix is set."""

    error_class: str
    """transient: the same again may work. timeout: a limit of time that somebody set. permission,
    code, data: a person has to change something. quota: a limit of money, memory, disk or number."""
    adapters: tuple[str, ...]
    """dbt's adapter types that say it; ("*",) is any."""
    text: str = ""
    """A regular expression, searched line by line in the error that dbt's envelope holds."""
    code: str = ""
    """Snowflake's six digits."""
    sqlstate: str = ""
    """Where the adapter passes it on. Never 57014, 02000 or 08001, which each mean several things,
    and none of the general ones (22000, 42000)."""
    prefix: str = ""
    """The first words of the error; "dbt:" stands for the envelope's own kind."""
    source: str = ""
    """Where the message is documented, reported or written in source."""
    sample: str = ""
    """The message in the shape the source describes, in dbt's envelope; names of models are made
    up, and where the source gives only the code, so are the words."""

    @property
    def kind(self) -> str:
        """text, code, sqlstate or prefix."""
        return next(k for k in ORDER if getattr(self, k))
