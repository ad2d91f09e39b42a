"""Why a node failed, as a class: pure. The patterns are in failure_patterns.json.

The message is taken out of dbt's envelope (`Database Error in model NAME (PATH)`), then tried
against specific text, the six-digit code, SQLSTATE and the first words, in this order. What nothing
matches is `unknown`, and never retried by itself.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import cache
from itertools import takewhile
from pathlib import Path

import msgspec

from .model import FAILURES, IN_FLIGHT, UNRECORDED, Invocation, NodeResult, RunState

TRANSIENT, TIMEOUT, PERMISSION = "transient", "timeout", "permission"
CODE, DATA, QUOTA, UNKNOWN = "code", "data", "quota", "unknown"
CLASSES = (TRANSIENT, TIMEOUT, PERMISSION, CODE, DATA, QUOTA, UNKNOWN)

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
    """Of one failed node, or of dbt itself."""

    unique_id: str
    """Empty: of dbt itself, which gave up."""
    error_class: str
    summary: str
    """The first line of the real error."""
    evidence: Evidence


class Pattern(
    msgspec.Struct, frozen=True, rename={"error_class": "class"}, forbid_unknown_fields=True
):
    """An entry of failure_patterns.json; exactly one of text, code, sqlstate, prefix is set."""

    error_class: str
    """transient: the same again may work. timeout: a limit of time that somebody set. permission,
    code, data: a person has to change something. quota: a limit of money, memory, disk or number."""
    adapters: tuple[str, ...]
    """dbt's adapter types that say it; ("*",) is any."""
    source: str
    """Where the message is documented, reported or written in source."""
    words: str
    """Whose words the sample is in, its envelope apart. seen: said by the real program in our tests.
    reported: letter for letter as the source has them. source: the program's own text, its blanks
    filled in. made: made up after what the source describes, as no other was found."""
    sample: str
    """A message that it matches, in dbt's envelope."""
    text: str = ""
    """A regular expression, searched line by line in the error that dbt's envelope holds."""
    code: str = ""
    """Snowflake's six digits."""
    sqlstate: str = ""
    """Where the adapter passes it on. Never 57014, 02000 or 08001, which each mean several things,
    and none of the general ones (22000, 42000)."""
    prefix: str = ""
    """The first words of the error; "dbt:" stands for the envelope's own kind."""

    @property
    def kind(self) -> str:
        """text, code, sqlstate or prefix."""
        return next(k for k in ORDER if getattr(self, k))


ORDER = ("text", "code", "sqlstate", "prefix")
"""The kinds of pattern, in the order of trial; within each, the order of the file."""


class Unwrapped(msgspec.Struct, frozen=True):
    """A message without dbt's envelope."""

    kind: str
    """Database, Runtime, Compilation, ...: of the innermost envelope; empty if there was none."""
    lines: tuple[str, ...]


_ENVELOPE = re.compile(r"^\s*(\w+) Error(?: in [\w ]+? \S.*\(.*\))?\s*$")
_COMPILED_AT = re.compile(
    r"^\s*(?:compiled (?:code|sql) at |\(in \S+:\d+:\d+\)\s*$)", re.IGNORECASE
)
_DRIVER = re.compile(
    r"^\s*(?:Failed to create schema '.*' in database '.*' in remote for [\w.]+: )?"
    r"(?:(?:[\w ]+: )*\[(?:Snowflake|BigQuery|Databricks|Redshift|PostgreSQL|DuckDB)\] "
    r"(?:googleapi: Error 4\d\d: )?)?"
)
"""dbt v2's drivers name themselves before the warehouse's own words."""
_AROUND = re.compile(
    r"^\s*(?:An error occurred during execution of unit test |"
    r"Database error while listing schemas in database )"
)
"""Lines between two envelopes."""
_HOOK = re.compile(r"^\s*\S+\.on-run-(?:start|end)\.\d+ failed, error:\s*$")


_COLOR = re.compile("\x1b\\[[0-9;]*m")


def uncolored(text: str) -> str:
    """Without the colors that dbt writes into the message of a unit test."""
    return _COLOR.sub("", text)


def unwrap(message: str) -> Unwrapped:
    """Take dbt's envelopes off: they can be one in another. Lines lose their outer spaces, the
    path of the compiled file goes, and empty lines too."""
    said = uncolored(message).splitlines()
    lines = [ln for ln in said if ln.strip() and not _COMPILED_AT.match(ln)]
    kind = ""
    while len(lines) > 1:
        envelope = _ENVELOPE.match(lines[0])
        if envelope:
            kind = envelope[1]
        elif not _HOOK.match(lines[0]) and not (
            _AROUND.match(lines[0]) and _ENVELOPE.match(lines[1])
        ):
            break
        lines = lines[1:]
    lines[:1] = [_DRIVER.sub("", ln) for ln in lines[:1]]
    return Unwrapped(kind, tuple(ln.strip() for ln in lines))


_CODE = re.compile(
    r"^(\d{6})(?: \((\w{5})\))?: (?:([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}): )?"
)
_SQLSTATE = re.compile(r"\bSQLSTATE: (\w{5})\b")
SQL_FOLLOWS = re.compile(r"^(?:== SQL |-+ ?Query Job SQL Follows)")
"""After this line an error of Databricks or BigQuery is the user's SQL, to its end."""
_QUOTED = re.compile(r"(?!(?<=n)'t\b)'[^']*'|\"[^\"]*\"")
_QUOTED_CODE = re.compile(r"^(?:LINE \d+: |\^)")


def classify(message: str, adapter: str = "", query_id: str = "") -> tuple[str, Evidence]:
    """The class of an error message, and what tells it. `adapter`: dbt's adapter type; if it is
    not known, the patterns of all are tried."""
    error = unwrap(message)
    # A line of the user's SQL, quoted by the warehouse, is not what the warehouse says.
    lines = [ln for ln in error.lines if not _QUOTED_CODE.match(ln)]
    lines = list(takewhile(lambda ln: not SQL_FOLLOWS.match(ln), lines))
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


def of_dbt(invocation: Invocation) -> Diagnosis | None:
    """Why dbt itself gave up; None if it did not."""
    if not invocation.error:
        return None
    error_class, evidence = classify(invocation.error, invocation.adapter_type)
    summary = _summary(unwrap(invocation.error).lines)
    return Diagnosis("", error_class, summary, evidence)


def gave_up(state: RunState, among: Collection[str] | None = None) -> list[Diagnosis]:
    """Why dbt itself gave up, of each invocation that left nodes undone by that (those given, or
    any)."""
    left = {
        node.index
        for uid, node in state.nodes.items()
        if node.result.status in (UNRECORDED, IN_FLIGHT) and (among is None or uid in among)
    }
    if not state.nodes:
        left = {len(state.invocations) - 1}
    found = (of_dbt(i) for n, i in enumerate(state.invocations) if n in left)
    return [cause for cause in found if cause is not None]


_RAISED = re.compile(r"^[A-Za-z_][\w.]*(?:Error|Exception|Exit|Interrupt)\b(?::|$)")


def _summary(lines: tuple[str, ...]) -> str:
    """The first line, and where that says only what kind of error it is (Snowflake, a Python
    model) or is a bare number (Redshift), the one that says which."""
    first = lines[0] if lines else ""
    vague = first.endswith(":") or "SQL compilation error:" in first or first.isdigit()
    if len(lines) < 2 or not vague:
        return first
    raised = [ln for ln in lines[2:] if _RAISED.match(ln)]
    return f"{first} {raised[-1] if raised and lines[1].startswith('Traceback ') else lines[1]}"


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
    """All of failure_patterns.json, in its order; every entry is walked by tests/test_diagnose.py,
    in both directions: its sample gets its class by this very entry."""
    # JSON, for `plan` reads it each time: to parse TOML would take longer than to decide the plan.
    data = Path(__file__).with_name("failure_patterns.json").read_bytes()
    return msgspec.json.decode(data, type=tuple[Pattern, ...])


@cache
def _of_kind(kind: str) -> list[Pattern]:
    return [p for p in patterns() if p.kind == kind]


@cache
def _compiled(text: str) -> re.Pattern[str]:
    # Each when it is first tried: those of other adapters would cost more than a whole plan.
    return re.compile(text, re.IGNORECASE)
