"""Every way to recover from a broken run, and what each comes to."""

from __future__ import annotations

import json
import math
import random
import shlex
import shutil
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from _equivalence_case import Case, Result, Situation, Void, prepare
from _equivalence_failures import NoVictim
from _equivalence_judge import differences, holding
from _equivalence_room import Ran, Room, Stuck

REFUSED = 12
_FLAGS = ("non-idempotent", "drift", "unknown-scope", "older-run")


def _judge(s: Situation, case: Case, way: str, ran: Ran) -> Result:
    executed = s.recovered()
    held = holding(s.room.executions(), s.clean.manifest, s.edited, s.calls)
    differing = differences(s.room.tables(), s.clean.tables)
    open_tests = sorted(s.clean.tests - held)
    right = not differing and not open_tests and ran.code == 0
    result = Result(
        way,
        "right" if right else "wrong",
        ran.code,
        [e.unique_id for e in executed],
        differing,
        open_tests,
        output="" if right else (ran.out[-1500:] + ran.err[-1500:]),
    )
    result.extra = dict.fromkeys([u for u in result.executed if u not in s.smallest], "")
    return result


def _twice(s: Situation, command: Callable[..., Ran]) -> Ran:
    """Once; or, where the failure says so, once with a kill and once more."""
    if s.failure.retry_kill:
        command(kill=s.failure.retry_kill)
    return command(kill=None)


def _dbt_recover(s: Situation, case: Case) -> None:
    room = s.room
    if s.failure.lost_disk:
        shutil.rmtree(room.project / "target")  # it needs none of it
    notes: list[str] = []
    reasons: dict[str, str] = {}
    if s.failure.retry_kill:
        room.recover("retry", *s.run, kill=s.failure.retry_kill)
    before, tables = len(room.argvs()), room.tables()
    planned = room.recover("plan", *s.run, "--ask-dbt", "-o", "json")
    if planned.code == 0:
        document = json.loads(planned.out)
        reasons = {n["unique_id"]: f"{n['cause']}: {n['reason']}" for n in document["nodes"]}
    elif planned.code != REFUSED:
        notes.append(f"plan exits with {planned.code}: {planned.err[-400:]}")
    done = room.recover("retry", *s.run, "-o", "json")
    if done.code == REFUSED:
        if room.executions(before) or differences(room.tables(), tables):
            notes.append("refused, and yet something was executed or changed")
        again = room.recover(*_advised(done.err, s.run))
        allowed = _judge(s, case, "dbt-recover", again)
        result = Result(
            "dbt-recover",
            "refused",
            done.code,
            [],
            if_allowed=allowed.verdict,
            differences=allowed.differences,
            open_tests=allowed.open_tests,
            output=done.err[-1500:] + ("" if allowed.verdict == "right" else again.err[-1500:]),
        )
        case.results["dbt-recover"] = result
    else:
        result = case.results["dbt-recover"] = _judge(s, case, "dbt-recover", done)
        executed = {e.unique_id for e in room.executions(before)}
        try:
            said = json.loads(done.out)
        except ValueError:
            notes.append(f"stdout of retry is no JSON: {done.out[-200:]!r}")
        else:
            if set(said["executed"]) != executed:
                notes.append(
                    f"it says it executed {sorted(said['executed'])}, dbt {sorted(executed)}"
                )
        if done.code == 0 and reasons.keys() != executed:
            notes.append(
                f"planned and not executed: {sorted(reasons.keys() - executed)},"
                f" executed and not planned: {sorted(executed - reasons.keys())}"
            )
    for uid in result.extra:
        result.extra[uid] = reasons.get(uid, "executed by the retry that was killed")
    result.notes = notes


def _advised(refusal: str, run: Sequence[str]) -> list[str]:
    """What the refusal says to do instead, as words after `dbt-recover`."""
    _, again, command = refusal.partition("run the command again: dbt-recover ")
    if again:
        return shlex.split(command.splitlines()[0])
    if "--full-refresh, or" in refusal and "append-only" not in refusal:
        return ["retry", *run, "-o", "json", "--full-refresh"]
    return ["retry", *run, "-o", "json", *(f"--allow-{f}" for f in _FLAGS)]


def _dbt_retry(s: Situation, case: Case) -> None:
    ran = _twice(s, lambda kill: s.room.dbt("retry", kill=kill))
    case.results["dbt retry"] = _judge(s, case, "dbt retry", ran)


def _by_state(way: str, words: Sequence[str]) -> Callable[[Situation, Case], None]:
    def recover(s: Situation, case: Case) -> None:
        # The flags of the command that failed, as whoever types it would repeat them.
        flags = _without_selection(s.steps[s.last_step][1], words[0])

        def command(kill: Any) -> Ran:
            state, target = s.room.here / "state", s.room.project / "target"
            shutil.rmtree(state, ignore_errors=True)
            state.mkdir()
            for name in ("manifest.json", "run_results.json"):
                if (target / name).exists():
                    shutil.copy2(target / name, state / name)
            return s.room.dbt(*words, "--state", str(state), *flags, kill=kill)

        case.results[way] = _judge(s, case, way, _twice(s, command))

    return recover


def _without_selection(words: Sequence[str], command: str) -> list[str]:
    kept: list[str] = []
    dropping = False
    for word in words[1:]:
        if word.startswith("--"):
            dropping = word in ("--select", "--exclude")
        if not dropping:
            kept.append(word)
    return kept


def _rebuild(s: Situation, case: Case) -> None:
    def command(kill: Any) -> Ran:
        ran = Ran(0, "", "")
        for _, words in s.steps:
            ran = s.room.dbt(*words, kill=kill)
            if ran.code != 0:
                break
        return ran

    case.results["everything again"] = _judge(s, case, "everything again", _twice(s, command))


def _smallest(s: Situation, case: Case) -> None:
    """The smallest set itself, executed: that it is enough is checked, not only argued."""
    case.results[ORACLE] = execute(s, case, case.smallest, ORACLE)


def execute(s: Situation, case: Case, nodes: Sequence[str], way: str) -> Result:
    """Exactly these nodes, by one dbt command."""
    state = s.room.here / "state"
    state.mkdir()
    results: list[dict[str, object]] = [
        {
            "unique_id": u,
            "status": "error",
            "timing": [],
            "thread_id": "",
            "execution_time": 0,
            "adapter_response": {},
            "message": None,
            "failures": None,
            "compiled": None,
            "compiled_code": None,
            "relation_name": None,
        }
        for u in nodes
    ]
    document = {
        "metadata": {
            "dbt_schema_version": "https://schemas.getdbt.com/dbt/run-results/v6.json",
            "dbt_version": "1.11.0",
        },
        "results": results,
        "elapsed_time": 0,
        "args": {"which": "build"},
    }
    (state / "run_results.json").write_text(json.dumps(document))
    flags = [w for w in _without_selection(s.steps[s.last_step][1], "build") if w != "--fail-fast"]
    if not any(f.startswith("--event") for f in flags):
        flags += next((_events(w) for _, w in s.steps if _events(w)), [])
    words = ["build", "--select", "result:error", "--indirect-selection", "empty"]
    ran = s.room.dbt(*words, "--state", str(state), *flags) if results else Ran(0, "", "")
    return _judge(s, case, way, ran)


def _brute_force(s: Situation, case: Case, most: int) -> None:
    """Whether a smaller set of nodes does it as well: executes every one there is, unless they
    are more than `most`."""
    scope, limit = sorted(s.clean.scope), len(case.smallest)
    if sum(math.comb(len(scope), size) for size in range(limit)) > most:
        return
    for size in range(limit):
        for chosen in combinations(scope, size):
            s.room.restore("broken")
            case.smaller_tried += 1
            if execute(s, case, chosen, "a smaller set").verdict == "right":
                case.smaller.append(sorted(chosen))


def _events(words: Sequence[str]) -> list[str]:
    if "--event-time-start" not in words:
        return []
    at = list(words).index("--event-time-start")
    return list(words[at : at + 4])


WAYS: dict[str, Callable[[Situation, Case], None]] = {
    "dbt-recover": _dbt_recover,
    "dbt retry": _dbt_retry,
    "lesson": _by_state("lesson", ["run", "--select", "result:error", "result:fail"]),
    "result:+": _by_state(
        "result:+", ["build", "--select", "result:error+", "result:fail+", "result:skipped+"]
    ),
    "everything again": _rebuild,
    "the smallest set": _smallest,
}
ORACLE = "the smallest set"


def run_case(
    seed: int,
    kind: str,
    index: int,
    ways: Sequence[str],
    *,
    sizes: tuple[int, int],
    home: Path,
    dbt: Path | None = None,
    brute_force: int = 0,
) -> Case:
    """Do it all, in a directory that must not exist yet."""
    for attempt in range(_DRAWS):
        # What is void is drawn again: the failure fits nothing, or did not come about.
        case = Case(seed, kind, index, sizes)
        rng = random.Random(f"{seed}/{kind}/{index}/{attempt}")
        _run(case, rng, ways, Room(home / str(attempt), dbt), brute_force)
        if not case.void:
            break
        shutil.rmtree(home / str(attempt))
    return case


_DRAWS = 4


def _run(
    case: Case,
    rng: random.Random,
    ways: Sequence[str],
    room: Room,
    brute_force: int,
) -> None:
    try:
        situation = prepare(case, rng, room)
        for way in ways:
            situation.room.restore("broken")
            try:
                WAYS[way](situation, case)
            except Stuck as exc:
                case.results[way] = Result(way, "wrong", -1, [], notes=[f"stuck: {exc}"])
        if brute_force:
            _brute_force(situation, case, brute_force)
    except (Void, NoVictim, Stuck) as exc:
        case.void = str(exc) or "no node fits"
