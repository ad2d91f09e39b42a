"""Again and again, with a bound: a run whose failures are of a class that time can mend.

Nothing is retried while a failure of another class is among what would run again: it would fail
again, and a person has to know.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from .carry_out import NothingRan, Retried
from .context import Say
from .diagnose import ADVICE, TRANSIENT, Diagnosis, diagnoses, gave_up
from .errors import EXIT_STILL_FAILING
from .load import LoadedRun
from .model import RunState, as_word
from .plan import Plan

BACKOFF_SECONDS = 30.0
LONGEST_PAUSE = 900.0


@dataclass(frozen=True)
class Patience:
    """What may be retried, how often, and how long to wait between."""

    classes: frozenset[str] = frozenset({TRANSIENT})
    attempts: int = 3
    """At most so many retries."""
    backoff: float = BACKOFF_SECONDS
    """Seconds before the second retry; doubles each time, up to LONGEST_PAUSE."""

    def pause(self, done: int, chance: Callable[[], float] = random.random) -> float:
        """Seconds to wait after so many retries: half to one and a half of what it would be, so
        that many workers that failed together do not come back together."""
        length = min(self.backoff * 2.0 ** min(done - 1, 32), LONGEST_PAUSE)
        return length * (0.5 + chance())


def in_the_way(state: RunState, planned: Sequence[str], classes: frozenset[str]) -> list[Diagnosis]:
    """Failures of another class among what would run again, dbt's own first. Hooks run again with
    any command."""
    ids = set(planned)
    return _others([*gave_up(state, ids), *_among(diagnoses(state), ids)], classes)


def _among(causes: Mapping[str, Diagnosis], ids: Container[str]) -> list[Diagnosis]:
    return [c for u, c in causes.items() if u in ids or u.startswith("operation.")]


def _others(causes: Iterable[Diagnosis], classes: frozenset[str]) -> list[Diagnosis]:
    return [c for c in causes if c.error_class not in classes]


def insist(
    look: Callable[[], tuple[LoadedRun, Plan]],
    once: Callable[[LoadedRun, Plan], Retried],
    patience: Patience,
    say: Say,
    wait: Callable[[float], None] = time.sleep,
) -> Retried:
    """Retry until the run is whole, a failure of another class stands in the way, or the attempts
    are used up. `look` reads the run anew and plans; `once` is carry_out.retry, and may raise what
    that raises: NothingRan counts as a retry, and is raised where no other one has run anything."""
    so_far: Retried | None = None
    for number in range(1, patience.attempts + 1):
        run, plan = look()
        others = in_the_way(run.state, plan.ids, patience.classes)
        if plan.nodes and others:
            say_why_not(say, others, run.place.run_id)
            return so_far or _not_retried(run, plan)
        stopped: NothingRan | None = None
        try:
            done = once(run, plan)
        except NothingRan as exc:
            if exc.cause is None:
                raise
            stopped, failing = exc, [exc.cause]
        else:
            so_far = done if so_far is None else _both(so_far, done)
            if done.outcome != "failing":
                return so_far
            nodes = {r.unique_id for r in done.still_failing}
            failing = [*done.gave_up, *_among(done.why, nodes)]
        others = _others(failing, patience.classes)
        first = f": {_who(failing[0])}: {failing[0].summary}" if failing else ""
        if others:
            say_why_not(say, others, run.place.run_id)
        elif number == patience.attempts:
            say(f"dbt-recover: still failing after {number} of {number} retries{first}")
        else:
            seconds = patience.pause(number)
            say(f"dbt-recover: retry {number + 1} of {patience.attempts} in {seconds:.0f} s{first}")
            wait(seconds)
            continue
        if so_far is None and stopped is not None:
            raise stopped
        break
    assert so_far is not None
    return so_far


def _who(cause: Diagnosis) -> str:
    return cause.unique_id or "dbt itself"


def say_why_not(say: Say, others: Sequence[Diagnosis], run_id: str) -> None:
    """What stands in the way of a retry, and what to do about it."""
    for cause in others[:5]:
        say(
            f"dbt-recover: not retried: {_who(cause)} failed with class {cause.error_class}: "
            f"{cause.summary}\n  {ADVICE[cause.error_class]}, then: dbt-recover retry {as_word(run_id)}"
        )
    if len(others) > 5:
        say(f"dbt-recover: and {len(others) - 5} more: dbt-recover show {as_word(run_id)}")


def _not_retried(run: LoadedRun, plan: Plan) -> Retried:
    causes = diagnoses(run.state)
    left = [u for u in plan.ids if u in causes] or plan.ids
    failing = tuple(run.state.nodes[u].result for u in left if u in run.state.nodes)
    return Retried(
        run.place.run_id,
        run.state.attempts,
        "failing",
        still_failing=failing,
        exit_code=EXIT_STILL_FAILING,
        total=len(run.state.nodes),
        why=causes,
    )


def _both(before: Retried, after: Retried) -> Retried:
    """What both came to, as one."""
    executed = tuple(sorted({*before.executed, *after.executed}))
    return replace(after, executed=executed, seconds=before.seconds + after.seconds)
