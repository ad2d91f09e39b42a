"""What an alert says of a run: pure, and redacted before it is rendered anywhere."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from . import redact
from .diagnose import ADVICE, Diagnosis, diagnoses, gave_up, unwrap
from .graph import TESTS, Graph
from .load import LoadedRun
from .model import IN_FLIGHT, SKIPPED, UNRECORDED, RunState, as_word
from .plan import name_of
from .runstate import describe, unsettled
from .standing import command_of_hook

FAILED, RECOVERED, SUCCESS, RUNNING = "failed", "recovered", "success", "running"


@dataclass(frozen=True)
class Failure:
    """A node that failed itself."""

    unique_id: str
    kind: str
    """model, test, seed, ..."""
    name: str
    status: str
    error_class: str
    advice: str
    error: str
    """The first line of the real error, redacted; all of it with `full`."""
    path: str = ""
    query_id: str = ""


@dataclass(frozen=True)
class GaveUp:
    """Why dbt itself gave up."""

    error_class: str
    advice: str
    error: str
    """As a Failure's."""


@dataclass(frozen=True)
class Exposure:
    """Who reads what was not built."""

    name: str
    owner: str


@dataclass(frozen=True)
class Alert:
    """What happened to a run."""

    run_id: str
    status: str
    """failed, recovered, success or running."""
    date: str
    attempts: int
    total: int
    failures: tuple[Failure, ...] = ()
    gave_up: tuple[GaveUp, ...] = ()
    """Where dbt itself did, as when it cannot connect, and has left nodes undone."""
    blocked: tuple[str, ...] = ()
    """Names of models, seeds and snapshots that were not built."""
    exposures: tuple[Exposure, ...] = ()
    again: int = 0
    """Of a recovered run: how many nodes the later attempts ran."""
    seconds: float = 0.0
    """Of a recovered run: time spent in the later attempts; else in all of it."""
    log_url: str = ""
    command: str = ""
    """The line to paste."""


_LEFT = frozenset({SKIPPED, UNRECORDED, IN_FLIGHT})


def alert_of(
    run: LoadedRun, *, full: bool = False, log_url: str = "", hidden: Iterable[str] = ()
) -> Alert:
    """The run as it stands. `hidden`: values that must not appear."""
    state, graph, hidden = run.state, run.graph, tuple(hidden)
    causes = diagnoses(state)
    left = {u for u, n in state.nodes.items() if n.result.status in _LEFT}
    later = [i for i in state.invocations if i.attempt > 1]
    recovered = describe(state) == RECOVERED
    return Alert(
        run_id=state.run.run_id,
        status=RUNNING if run.running else describe(state),
        date=state.run.began.replace("T", " ")[:16],
        attempts=state.attempts,
        total=len(state.nodes),
        failures=tuple(
            _failure(state, graph, causes[u], full, hidden)
            for u in sorted(causes, key=lambda u: (u.split(".")[0] in TESTS, u))
        ),
        gave_up=tuple(
            GaveUp(
                c.error_class,
                ADVICE[c.error_class],
                _line(c, hidden),
            )
            for c in gave_up(state)
        ),
        blocked=tuple(
            name_of(graph, u) for u in sorted(left) if u.split(".")[0] not in {*TESTS, "operation"}
        ),
        exposures=_exposures(graph, {*causes, *left}),
        again=sum(n.attempt > 1 for n in state.nodes.values()) if recovered else 0,
        seconds=sum(
            _seconds(i.began, i.ended) for i in (later if recovered else state.invocations)
        ),
        log_url=log_url,
        command=_command(state, graph),
    )


def _command(state: RunState, graph: Graph) -> str:
    """Hooks alone are no retry's: dbt runs them only with a command."""
    left = sorted(unsettled(state))
    if left and all(uid.startswith("operation.") for uid in left):
        return command_of_hook(state, graph, left[0])
    return f"dbt-recover retry {as_word(state.run.run_id)}"


def _failure(
    state: RunState, graph: Graph, cause: Diagnosis, full: bool, hidden: tuple[str, ...]
) -> Failure:
    uid = cause.unique_id
    result = state.nodes[uid].result
    node = graph.nodes.get(uid)
    return Failure(
        uid,
        uid.split(".", 1)[0],
        name_of(graph, uid),
        result.status,
        cause.error_class,
        ADVICE[cause.error_class],
        _cut(redact.whole(unwrap(result.message).lines, hidden), _LONGEST_WHOLE)
        if full
        else _line(cause, hidden),
        node.original_file_path if node else "",
        cause.evidence.query_id,
    )


_LONGEST, _LONGEST_WHOLE = 1000, 20_000
"""Characters of an error; a warehouse can quote a megabyte of somebody's JSON."""


def _line(cause: Diagnosis, hidden: tuple[str, ...]) -> str:
    return _cut(redact.line(cause.summary, cause.error_class, hidden), _LONGEST)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _exposures(graph: Graph, untrue: set[str]) -> tuple[Exposure, ...]:
    """Those below what failed or was not built; below what a failed test is about, too."""
    tested = {p for u in untrue if u.split(".")[0] in TESTS for p in graph.parents.get(u, ())}
    below = graph.descendants((untrue | tested) & graph.nodes.keys())
    found = [graph.nodes[u] for u in sorted(below) if graph.nodes[u].resource_type == "exposure"]
    return tuple(Exposure(n.name, n.owner) for n in found)


def _seconds(began: str, ended: str) -> float:
    try:
        return max((_moment(ended) - _moment(began)).total_seconds(), 0.0)
    except ValueError:
        return 0.0


def _moment(stamp: str) -> datetime:
    return datetime.fromisoformat(stamp.replace("Z", "+00:00"))
