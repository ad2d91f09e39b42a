"""Why a node failed, as a class: pure. The patterns are in failure_patterns/.

The message is taken out of dbt's envelope (`Database Error in model NAME (PATH)`), then tried
against specific text, the six-digit code, SQLSTATE and the first words, in this order. What nothing
matches is `unknown`, and never retried by itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

import msgspec

from .failure_patterns.entry import (
    CODE,
    DATA,
    ORDER,
    PERMISSION,
    QUOTA,
    TIMEOUT,
    TRANSIENT,
    UNKNOWN,
    Pattern,
)
from .model import FAILURES, NodeResult, RunState

ADVICE: Mapping[str, str] = {
    TRANSIENT: "the same again may work",
    TIMEOUT: "make the query cheaper, or raise the limit of time",
    PERMISSION: "grant what is missing, or mend the credentials",
    CODE: "mend the code (or create what it names)",
    DATA: "mend the data, or the code that reads it",
    QUOTA: "raise the limit, or wait until it begins anew",
    UNKNOWN: "look at the message",
}
"""class -> what a person does about it."""


class Evidence(msgspec.Struct, frozen=True):
    """What the class was told by."""

    by: str = ""
    """text, code, sqlstate, prefix, status (a failed test); empty for unknown."""
    matched: str = ""
    """What matched: the words found, the code, the prefix."""
    code: str = ""
    """Snowflake's six digits."""
    sqlstate: str = ""
    query_id: str = ""


class Diagnosis(msgspec.Struct, frozen=True):
    """Of one failed node."""

    unique_id: str
    error_class: str
    summary: str
    """The first line of the real error."""
    evidence: Evidence


class Unwrapped(msgspec.Struct, frozen=True):
    """A message without dbt's envelope."""

    kind: str
    """Database, Runtime, Compilation, ...: of the innermost envelope; empty if there was none."""
    lines: tuple[str, ...]


_ENVELOPE = re.compile(r"^\s*(\w+) Error(?: in [\w ]+? \S.*\(.*\))?\s*$")
_COMPILED_AT = re.compile(r"^\s*compiled (?:code|sql) at ", re.IGNORECASE)
_UNIT_TEST = re.compile(r"^\s*An error occurred during execution of unit test ")


def unwrap(message: str) -> Unwrapped:
    """Take dbt's envelopes off: they can be one in another. Lines lose their outer spaces, the
    path of the compiled file goes, and empty lines too."""
    lines = [ln for ln in message.splitlines() if ln.strip() and not _COMPILED_AT.match(ln)]
    kind = ""
    while len(lines) > 1:
        envelope = _ENVELOPE.match(lines[0])
        if envelope:
            kind = envelope[1]
        elif not (_UNIT_TEST.match(lines[0]) and _ENVELOPE.match(lines[1])):
            break
        lines = lines[1:]
    return Unwrapped(kind, tuple(ln.strip() for ln in lines))


_CODE = re.compile(
    r"^(\d{6})(?: \((\w{5})\))?: (?:([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}): )?"
)
_SQLSTATE = re.compile(r"\bSQLSTATE: (\w{5})\b")
_SQL_FOLLOWS = "== SQL =="  # Databricks
_QUOTED = re.compile(r"(?!(?<=n)'t\b)'[^']*'|\"[^\"]*\"")
_QUOTED_CODE = re.compile(r"^(?:LINE \d+: |\^)")


def classify(message: str, adapter: str = "", query_id: str = "") -> tuple[str, Evidence]:
    """The class of an error message, and what tells it. `adapter`: dbt's adapter type; if it is
    not known, the patterns of all are tried."""
    error = unwrap(message)
    # A line of the user's SQL, quoted by the warehouse, is not what the warehouse says.
    lines = [ln for ln in error.lines if not _QUOTED_CODE.match(ln)]
    if _SQL_FOLLOWS in lines:
        lines = lines[: lines.index(_SQL_FOLLOWS)]
    # Nor are the values and names that it puts in quotes; and what dbt could not compile no
    # warehouse has seen.
    told = [] if error.kind == "Compilation" else [(ln, _QUOTED.sub("''", ln)) for ln in lines]
    first = lines[0] if lines else ""
    found = _CODE.match(first)
    stated = [m[1] for ln in lines if (m := _SQLSTATE.search(ln))]
    code = (found[1] or "") if found else ""
    sqlstate = ((found[2] or "") if found else "") or (stated[0] if stated else "")
    query = query_id or ((found[3] or "") if found else "")

    def evidence(by: str, matched: str) -> Evidence:
        return Evidence(by, matched, code, sqlstate, query)

    for kind in ORDER:
        for pattern in _of_kind(kind):
            if adapter and not {adapter, "*"} & set(pattern.adapters):
                continue
            if kind == "text":
                expression = _compiled(pattern.text)
                quotes = "'" in pattern.text or '"' in pattern.text
                for line, bare in told:
                    if match := expression.search(line if quotes else bare):
                        return pattern.error_class, evidence(kind, match[0].strip())
            elif kind == "code" and code == pattern.code:
                return pattern.error_class, evidence(kind, code)
            elif kind == "sqlstate" and sqlstate == pattern.sqlstate:
                return pattern.error_class, evidence(kind, sqlstate)
            elif kind == "prefix":
                said = f"dbt:{error.kind}" if pattern.prefix.startswith("dbt:") else first
                if said.startswith(pattern.prefix):
                    return pattern.error_class, evidence(kind, pattern.prefix.removeprefix("dbt:"))
    return UNKNOWN, evidence("", "")


def diagnose(result: NodeResult, adapter: str = "") -> Diagnosis:
    """Of a node that failed. A test that found rows (`fail`) is about the data."""
    if result.status == "fail":
        error_class, evidence = DATA, Evidence("status", "fail", query_id=result.query_id)
    else:
        error_class, evidence = classify(result.message, adapter, result.query_id)
    summary = _summary(unwrap(result.message).lines) or result.status
    return Diagnosis(result.unique_id, error_class, summary, evidence)


def _summary(lines: tuple[str, ...]) -> str:
    """The first line; Snowflake's says only what kind of error it is, and the second which."""
    if len(lines) > 1 and (lines[0].endswith(":") or "SQL compilation error:" in lines[0]):
        return f"{lines[0]} {lines[1]}"
    return lines[0] if lines else ""


def diagnoses(state: RunState) -> dict[str, Diagnosis]:
    """unique_id -> why, of every node whose last word is a failure."""
    adapters = [i.adapter_type for i in state.invocations]
    return {
        uid: diagnose(node.result, adapters[node.index] if node.index < len(adapters) else "")
        for uid, node in state.nodes.items()
        if node.result.status in FAILURES
    }


@cache
def patterns() -> tuple[Pattern, ...]:
    """All of failure_patterns/."""
    from .failure_patterns import any_adapter, bigquery, databricks, duckdb, postgres, snowflake

    modules = (snowflake, postgres, bigquery, databricks, duckdb, any_adapter)
    return tuple(pattern for module in modules for pattern in module.PATTERNS)


@cache
def _of_kind(kind: str) -> list[Pattern]:
    return [p for p in patterns() if p.kind == kind]


@cache
def _compiled(text: str) -> re.Pattern[str]:
    # Each when it is first tried: those of other adapters would cost more than a whole plan.
    return re.compile(text, re.IGNORECASE)
