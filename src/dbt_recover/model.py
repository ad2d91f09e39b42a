"""The records that pass between stages: frozen, without behaviour beyond what they can say of
themselves. Times are UTC ISO 8601 strings as dbt writes them (`2026-01-31T06:00:01.123456Z`),
durations are seconds. A status is an open string: dbt adds new ones.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

import msgspec

SUCCESSES = frozenset({"success", "pass", "warn", "no-op", "reused"})
FAILURES = frozenset({"error", "fail", "runtime error", "partial success"})
SKIPPED = "skipped"
UNRECORDED = "never started"
"""Ours: intended, and no word of it."""
NEVER_BEGAN = "never began"
"""`end` of a declared step that has no invocation."""
IN_FLIGHT = "in flight"
"""Ours: started, and no word of its end; its query may have committed."""
NEVER_EXECUTED = ("exposure.", "metric.", "semantic_model.")
"""Beginnings of ids that dbt 1.10 and later list among the results, with nothing to execute."""


def as_word(run_id: str) -> str:
    """A run id as it is typed after a command: it can hold blanks and anything else."""
    return shlex.quote(run_id)


def listing(names: Sequence[str], limit: int | None) -> str:
    """a, b, c and 4 more."""
    if limit is None or len(names) <= limit:
        return ", ".join(names)
    return ", ".join(names[:limit]) + f" and {len(names) - limit} more"


class NodeResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is known of one execution of one node."""

    unique_id: str
    status: str
    message: str = ""
    execution_time: float = 0.0
    started_at: str = ""
    completed_at: str = ""
    failures: int | None = None
    """Rows a test found, where dbt counts them."""
    query_id: str = ""
    relation_name: str = ""
    # Of nearly all nodes there are none, and then the one tuple that they share.
    batches_done: Sequence[list[str]] = ()
    """Of microbatch models: [start, end] of batches that succeeded."""
    batches_failed: Sequence[list[str]] = ()
    thread: str = ""


class RunInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """What identifies a run."""

    run_id: str
    began: str
    """UTC; its first ten characters are the run's date."""
    logical_date: str = ""
    """Airflow's, when there is one."""
    airflow: dict[str, str] = {}
    """AIRFLOW_CTX_* of the first invocation, lower-case names without the prefix."""

    @property
    def date(self) -> str:
        """The UTC day on which the run began."""
        return self.began[:10]


def default_run_id(began: str, invocation_id: str) -> str:
    """The id of a run that nobody named: its day and the beginning of dbt's invocation_id; of that
    of dbt v2 the end, for it begins with the time (UUID version 7), the same for a minute."""
    ident = invocation_id.removeprefix("unknown-")
    by_time = len(ident) == 36 and ident[14] == "7"
    return f"{began[:10]}-{ident[-8:] if by_time else ident[:8]}"


class DeclaredStep(msgspec.Struct, frozen=True, omit_defaults=True):
    """A step that a run is to have."""

    name: str
    argv: list[str] = []


class Invocation(msgspec.Struct, frozen=True, omit_defaults=True):
    """One execution of a dbt command, as it is recorded in the archive."""

    invocation_id: str
    """dbt's own, or one of ours if dbt died before it said one."""
    run: RunInfo
    attempt: int = 1
    step: str = ""
    argv: list[str] = []
    """As given (a retry's without its selection, which is `intended`), secrets replaced by
    `*****`."""
    command: str = ""
    """build, run, test, seed, snapshot, ..."""
    args: dict[str, Any] = {}
    """dbt's own args from run_results.json, or the same read from argv if dbt left none."""
    dbt_version: str = ""
    adapter_type: str = ""
    project_name: str = ""
    target: str = ""
    began: str = ""
    ended: str = ""
    exit_code: int | None = None
    """dbt's; negative for the signal that killed it; None if nobody saw the end."""
    end: str = ""
    """exit, interrupted, killed, lost; `running` while its heartbeat is fresh."""
    host: str = ""
    machine: str = ""
    """Tells this boot of this machine (or container) from others: where `pid` means something."""
    pid: int = 0
    recorder: str = ""
    """dbt-recover's version."""
    node_count: int | None = None
    """How many nodes dbt said it had selected."""
    error: str = ""
    """Why dbt itself gave up, in its words, as when it cannot connect at all; empty if what failed
    were nodes."""
    intended: list[str] | None = None
    """The unique_ids it was to execute, where known exactly: a retry's plan."""
    replaced: dict[str, str] = {}
    """A retry's: nodes that were gone from the project -> what ran in their place, or ''."""
    scope: str = ""
    """`run` if it spoke for the whole run (a retry), else empty: for its step."""
    mark: str = ""
    """Of what resumes a step: the mark of the command that it resumes (records.mark_of)."""
    pipeline: list[DeclaredStep] = []
    """The steps of its run in their order, as its caller declared them (`exec --pipeline`)."""


class Artifact(msgspec.Struct, frozen=True, omit_defaults=True):
    """One archived file, as the commit record names it."""

    name: str
    """`manifest.json`, `run_results.json`, ..."""
    key: str
    sha256: str
    """Of the file as dbt wrote it."""
    size: int
    """Bytes of the file as dbt wrote it."""
    stored_size: int = 0


class Recorded(msgspec.Struct, frozen=True):
    """An invocation with what it left."""

    invocation: Invocation
    results: dict[str, NodeResult]
    """Final results by unique_id."""
    in_flight: frozenset[str]
    complete: bool
    """True if dbt ended by itself and its own run_results.json was archived."""
    graph: Artifact | None = None
    """The compact graph of its manifest; None if it left none."""
    never_started: frozenset[str] = frozenset()
    """All other nodes that it was meant to execute, where it did not complete and said so."""


class NodeState(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is true of a node now: the latest word over all invocations and attempts."""

    result: NodeResult
    attempt: int
    invocation_id: str
    index: int
    """Position of that invocation among the run's, in order."""


class RunState(msgspec.Struct, frozen=True):
    """A run, merged over its invocations and attempts."""

    run: RunInfo
    invocations: list[Invocation]
    """In order of attempt and beginning."""
    nodes: dict[str, NodeState]
    """Every node the run was meant to execute."""
    warnings: list[str] = []
    """What could not be known, one sentence each."""
    waiting: int = 0
    """With how many other settings (vars, target) there is something left to do: `nodes` are with
    the first of them."""

    @property
    def first(self) -> Invocation:
        """The invocation that the run began with."""
        begun = (i for i in self.invocations if i.end != NEVER_BEGAN)
        return next(begun, self.invocations[0])

    @property
    def attempts(self) -> int:
        """The number of attempts so far, the original included."""
        return max((i.attempt for i in self.invocations), default=0)


class RunSummary(msgspec.Struct, frozen=True, omit_defaults=True):
    """A line of `runs`: what a listing tells without reading any object."""

    run: RunInfo
    status: str
    """success, recovered, failed, running."""
    attempts: int
    invocations: int
    failed: int
    """Nodes failed, skipped or lost, as counted by the last word on each step."""
    total: int
    seconds: float
    command: str
    ended: str = ""
