"""What must not stand in a chat: row values that a warehouse quotes, credentials, SQL. Pure.

A guess can miss: what is sent by default is one line of an error with every quoted value of a
failure about data replaced, and never SQL. What is no error (a code, a name) stays readable.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import takewhile

from .command_line import STARS, scrub
from .diagnose import DATA, PERMISSION, SQL_FOLLOWS, UNKNOWN

_MAY_QUOTE_ROWS = frozenset({DATA, UNKNOWN})
"""Classes whose quotes can hold a row's values. Any other's hold names: of a table, a warehouse."""

_VALUES = (
    # From the first quote to the last: a value can hold quotes itself, of either kind.
    # The apostrophe of "can't" is no quote.
    re.compile(r"(?!(?<=n)'t\b)['\"].*['\"]"),
    re.compile(r"(?!(?<=n)'t\b)['\"].*$"),  # a quote that is cut off
    re.compile(r"(?<=\bvalue )(?=[-+.]?\d)\S+", re.IGNORECASE),  # Type INT64 with value 411111
    re.compile(r"(?<=\()-?\d[\d.]*(?: [-+*/%] -?\d[\d.]*)+(?=\))"),  # Overflow in ... (2 * 3)
    re.compile(r"(?<=\)=\()[^)\n]*(?=\))"),  # Key (id)=(7)
    re.compile(r"(?<= value: ).*|(?<=Row Values: ).*"),
    re.compile(r"(?<=Failing row contains ).*"),
    re.compile(r"(?<=division by zero: ).*"),
    re.compile(r"(?<=variant value ).*"),
)
_ADDRESS = re.compile(r"(?<![\w.+-])[\w.+-]+@[\w-]+\.[\w.-]+")
_SECRETS = (
    re.compile(
        r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL
    ),
    re.compile(r"https://hooks\.slack\.com/\S+"),
    re.compile(r"\bxox[a-z]-[\w-]+"),
    re.compile(r"\beyJ[\w-]{8,}(?:\.[\w-]+){0,2}"),
    re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    re.compile(r"\bgh[pousr]_\w{20,}|\bgithub_pat_\w+"),
    re.compile(r"\bdapi[0-9a-f]{16,}"),
    re.compile(r"(?<=://)[^\s/@:]+:[^\s/@]+(?=@)"),
    re.compile(r"(?<=\b[Bb]earer )\S+|(?<=\b[Bb]asic )[\w+/=]{8,}"),
    re.compile(r"\b[0-9a-fA-F]{32,}\b"),
    re.compile(r"\b(?=[\w+/]*\d)(?=[\w+/]*[A-Z])(?=[\w+/]*[a-z])[\w+/]{40,}={0,2}"),
)
_NAMED = re.compile(
    # Without what goes before the word, and bounded behind it: a message can hold a megabyte of
    # base64, and a name can have any length.
    r"(?P<name>(?:password|passwd|passphrase|pwd|secret|token|api[_-]?key|access[_-]?key|"
    r"private[_-]?key|credential)\w{0,64}[\"']?\s*[=:]\s*)(?P<value>\"[^\"]*\"|'[^']*'|[^\s,;&)}\]]+)",
    re.IGNORECASE,
)
_SQL = re.compile(r"^(?:LINE \d+: |\^|compiled (?:code|sql) at |\[SQL: )", re.IGNORECASE)


def without_secrets(text: str, hidden: Iterable[str] = ()) -> str:
    """Tokens, keys, `password=...` and the values in `hidden` as five stars."""
    text = scrub(text, hidden)
    for pattern in _SECRETS:
        text = pattern.sub(STARS, text)
    return _NAMED.sub(lambda m: m["name"] + STARS, text)


def line(text: str, error_class: str, hidden: Iterable[str] = ()) -> str:
    """One line of an error, for a chat."""
    text = without_secrets(text, hidden)
    if error_class in _MAY_QUOTE_ROWS:
        for pattern in _VALUES:
            text = pattern.sub(STARS, text)
    # Of a missing right it is the name of who lacks it.
    return text if error_class == PERMISSION else _ADDRESS.sub(STARS, text)


def whole(lines: Iterable[str], hidden: Iterable[str] = ()) -> str:
    """A whole error, for who asked for all of it: with values, without secrets and SQL."""
    said = takewhile(lambda ln: not SQL_FOLLOWS.match(ln), lines)
    return without_secrets("\n".join(ln for ln in said if not _SQL.match(ln)), hidden)
