"""One case: a project, a failure, its mending, and every way to recover from it."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from _equivalence_failures import KINDS, NEEDS_BUILD, RUN_ID, Failure, NoVictim, presumed
from _equivalence_judge import Clean, clean_run, differences, holding, smallest
from _equivalence_project import DAYS, RUN_DAY, YESTERDAY, Project, day_flags, draw
from _equivalence_room import Execution, Ran, Room, Stuck, Table

REFUSED = 12
_FLAGS = ("non-idempotent", "drift", "unknown-scope", "older-run")


class Void(Exception):
    """The case does not test what it should: nothing fits, or nothing failed."""


@dataclass
class Result:
    """What a way to recover came to."""

    way: str
    verdict: str
    """right, wrong, refused; `wrong` also if the command did not say that all is well."""
    exit_code: int
    executed: list[str]
    """Every execution, in order."""
    differences: list[str] = field(default_factory=list)
    open_tests: list[str] = field(default_factory=list)
    """Tests in scope that do not hold."""
    extra: dict[str, str] = field(default_factory=dict)
    """Executed and not in the smallest set -> dbt-recover's reason."""
    notes: list[str] = field(default_factory=list)
    """What else is not as it should be."""
    if_allowed: str = ""
    """After a refusal: the verdict when the flag that it names is given."""
    output: str = ""


@dataclass
class Case:
    """One case, done."""

    seed: int
    kind: str
    index: int
    story: str = ""
    void: str = ""
    nodes: int = 0
    scope: int = 0
    history: bool = False
    commands: list[str] = field(default_factory=list)
    smallest: list[str] = field(default_factory=list)
    results: dict[str, Result] = field(default_factory=dict)

    @property
    def reproduction(self) -> str:
        """The command that does it again."""
        return f"--seed {self.seed} --only {self.kind} --case {self.index}"

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "reproduction": self.reproduction}


@dataclass
class Situation:
    """A broken run, mended: what the ways to recover start from."""

    room: Room
    project: Project
    failure: Failure
    steps: list[tuple[str, list[str]]]
    """Name and dbt words of each command; the name is empty unless it is a pipeline."""
    clean: Clean
    broken: dict[str, Table]
    calls: int
    """How many dbts had run when it was mended."""
    edited: set[str]
    last_step: int
    """The one that failed or was the last to run."""
    smallest: set[str] = field(default_factory=set)

    @property
    def run(self) -> list[str]:
        """RUN, for dbt-recover."""
        return [RUN_ID] if self.steps[0][0] else []

    def recovered(self) -> list[Execution]:
        """What has been executed since."""
        return self.room.executions(self.calls)


def run_case(
    seed: int,
    kind: str,
    index: int,
    ways: Sequence[str],
    *,
    max_nodes: int,
    home: Path,
    dbt: Path | None = None,
) -> Case:
    """Do it all, in a directory that must not exist yet."""
    case = Case(seed, kind, index)
    try:
        situation = _prepare(
            case, random.Random(f"{seed}/{kind}/{index}"), max_nodes, Room(home, dbt)
        )
        for way in ways:
            situation.room.restore("broken")
            try:
                WAYS[way](situation, case)
            except Stuck as exc:
                case.results[way] = Result(way, "wrong", -1, [], notes=[f"stuck: {exc}"])
    except (Void, NoVictim, Stuck) as exc:
        case.void = str(exc) or "no node fits"
    return case


# ---- the failure -----------------------------------------------------------------------------


def _prepare(case: Case, rng: random.Random, max_nodes: int, room: Room) -> Situation:
    kind = case.kind
    project = _fitting(rng, kind, max_nodes)
    case.history = kind == "layered" or rng.random() < 0.6
    steps = _commands(rng, project, kind, case.history)
    days = DAYS[YESTERDAY - 1 :] if case.history else DAYS
    flags = ["--vars", json.dumps({"run_day": RUN_DAY})]
    room.sql(
        "create schema raw",
        "create schema control",
        "create table control.slow (node varchar, n bigint)",
        "create table control.broken (node varchar)",
    )
    if case.history:
        room.write(project.files(days=YESTERDAY))
        _load(room, project, {}, YESTERDAY)
        words = ["build", *flags, *day_flags(project, DAYS[:YESTERDAY])]
        _must(room.recover("exec", "--", "dbt", *words) if rng.random() < 0.5 else room.dbt(*words))
    _load(room, project, {}, len(DAYS))
    shutil.rmtree(room.calls)
    room.calls.mkdir()
    room.save("before")

    full = [
        (
            name,
            [*words, *flags, *(day_flags(project, days) if words[0] in ("run", "build") else [])],
        )
        for name, words in steps
    ]
    room.write(project.files())
    for _, words in full:
        _must(room.dbt(*words))
    clean = clean_run(room.tables(), room.manifest(), room.executions())
    partial_parse = (room.project / "target" / "partial_parse.msgpack").read_bytes()

    failure = KINDS[kind](rng, project, clean.scope)
    if failure.always:
        # The hook that the project has from now on belongs to the clean run as well.
        room.sql("create table control.needed (n int)")
    room.restore("before")
    full = [(name, [*words, *failure.flags]) for name, words in full]
    (room.project / "target").mkdir(exist_ok=True)
    (room.project / "target" / "partial_parse.msgpack").write_bytes(partial_parse)
    if rng.random() < 0.5:
        # Another worker than yesterday's.
        (room.project / "target" / "run_results.json").unlink(missing_ok=True)
    case.nodes = sum(n.relation for n in project.nodes.values()) + len(project.tests)
    case.scope = len(clean.scope)
    case.story = failure.story
    case.commands = [" ".join(words) for _, words in full]
    last, ended_itself = _fail(rng, room, project, failure, full)
    calls = len(room.argvs())
    happened = room.executions()
    _mend(room, project, failure, ended_itself)
    room.save("broken")
    situation = Situation(
        room,
        project,
        failure,
        full,
        clean,
        room.tables(),
        calls,
        _edited(project, failure),
        last,
    )
    situation.smallest = smallest(clean, situation.broken, happened, situation.edited, calls)
    case.smallest = sorted(situation.smallest)
    return situation


def _fitting(rng: random.Random, kind: str, max_nodes: int) -> Project:
    """A project in which something can fail this way."""
    for _ in range(50):
        size, calm = rng.randint(10, max_nodes), rng.random() < 0.6
        project = draw(rng, size, calm=calm, pipeline=kind == "layered")
        try:
            KINDS[kind](random.Random(rng.random()), project, presumed(project))
        except NoVictim:
            continue
        return project
    raise NoVictim


def _must(ran: Ran) -> None:
    if ran.code != 0:
        raise Void(f"the clean run fails: {ran.out[-1500:]}{ran.err[-500:]}")


def _commands(
    rng: random.Random, project: Project, kind: str, history: bool
) -> list[tuple[str, list[str]]]:
    if kind == "layered":
        return _pipeline(rng, project)
    choice = rng.random()
    if kind in NEEDS_BUILD or not history or choice < 0.65:
        return [("", ["build"])]
    names = [n.name for n in project.of("model") if n.materialized != "ephemeral"]
    if choice < 0.75:
        return [("", ["run"])]
    if choice < 0.9:
        chosen = rng.sample(names, min(len(names), rng.randint(1, 3)))
        return [
            (
                "",
                [
                    "build",
                    "--select",
                    *(rng.choice(("+{}", "+{}+", "{}+", "@{}")).format(n) for n in chosen),
                ],
            )
        ]
    return [("", ["build", "--exclude", *rng.sample(names, min(len(names), 2))])]


def _pipeline(rng: random.Random, project: Project) -> list[tuple[str, list[str]]]:
    """Layer after layer; either `run` and `test` of each, or its `build`."""
    steps: list[tuple[str, list[str]]] = []
    if project.of("seed"):
        steps.append(("seeds", ["seed"]))
    tested = {
        project.nodes[t.node].layer for t in project.tests if project.nodes[t.node].kind == "model"
    }
    apart = rng.random() < 0.6
    for layer in range(project.layers):
        tag = f"tag:l{layer}"
        if apart:
            steps.append((f"run_{layer}", ["run", "--select", tag]))
            if layer in tested:
                steps.append((f"test_{layer}", ["test", "--select", tag]))
        else:
            steps.append((f"build_{layer}", ["build", "--select", tag]))
    if project.of("snapshot"):
        steps.append(("snapshots", ["snapshot"]))
    return steps


def _load(room: Room, project: Project, bad: dict[str, dict[int, str]], days: int) -> None:
    """Fill the raw tables."""
    for source in project.of("source"):
        rows = [
            f"({i}, {'null' if v == 'null' else repr(v)}, date '{d}')"
            for i, v, d in project.rows(source.name, days, bad.get(source.name, {}))
        ]
        room.sql(
            f"create or replace table raw.{source.name} (id int, v varchar, day date)",
            f"insert into raw.{source.name} values {', '.join(rows)}",
        )


def _fail(
    rng: random.Random,
    room: Room,
    project: Project,
    failure: Failure,
    steps: list[tuple[str, list[str]]],
) -> tuple[int, bool]:
    """The run, under `exec`. Returns the last step that began, and whether dbt came to its end."""
    room.write(project.files({**failure.defects, **failure.always}, bad=failure.seeds))
    _load(room, project, failure.sources, len(DAYS))
    for node in failure.broken:
        room.sql(f"insert into control.broken values ('{node}')")
    if steps[0][0]:
        _declare(room, steps)
    stop = rng.randrange(1, len(steps)) if failure.between_steps and len(steps) > 1 else None
    ran = Ran(0, "", "")
    number = 0
    for number, (name, words) in enumerate(steps):
        if number == stop:
            return number - 1, True
        named = ["--run-id", RUN_ID, "--step", name] if name else []
        ran = room.recover("exec", *named, "--", "dbt", *words, kill=failure.kill)
        if ran.code != 0:
            break
    if ran.code == 0 and not failure.may_succeed:
        raise Void("the run did not fail")
    return number, ran.code == 1


def _declare(room: Room, steps: list[tuple[str, list[str]]]) -> None:
    lines = ["[[pipeline]]", f'run = "{RUN_ID.split("/")[0]}/*"']
    for name, words in steps:
        lines += [
            "[[pipeline.steps]]",
            f'name = "{name}"',
            f"command = {json.dumps(['dbt', *words])}",
        ]
    (room.project / "dbt_recover.toml").write_text("\n".join(lines) + "\n")


def _mend(room: Room, project: Project, failure: Failure, ended_itself: bool) -> None:
    room.write(project.files(failure.always))
    if failure.sources:
        _load(room, project, {}, len(DAYS))
    room.sql("delete from control.slow", "delete from control.broken")
    if failure.always:
        room.sql("create table if not exists control.needed (n int)")
    # What the lesson's own archiving would have kept: artifacts of a dbt that came to its end.
    lesson = room.here / "lesson"
    lesson.mkdir()
    for name in ("manifest.json", "run_results.json"):
        source = room.project / "target" / name
        if source.exists() and (ended_itself or not failure.lost_disk):
            shutil.copy2(source, lesson / name)
    if failure.lost_disk:
        room.lose_disk()
        (room.project / "target").mkdir()
        for path in lesson.iterdir():
            shutil.copy2(path, room.project / "target" / path.name)


def _edited(project: Project, failure: Failure) -> set[str]:
    """Nodes whose code the mending changes."""
    found = {project.nodes[n].unique_id for n in failure.defects if n in project.nodes}
    if "macro:scaled" in failure.defects:
        found |= {n.unique_id for n in project.nodes.values() if n.scaled}
    return found


# ---- ways to recover -------------------------------------------------------------------------


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
    case.results[way] = result
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
        again = room.recover("retry", *s.run, "-o", "json", *(f"--allow-{f}" for f in _FLAGS))
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
        result = _judge(s, case, "dbt-recover", done)
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


def _dbt_retry(s: Situation, case: Case) -> None:
    _judge(s, case, "dbt retry", _twice(s, lambda kill: s.room.dbt("retry", kill=kill)))


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

        _judge(s, case, way, _twice(s, command))

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

    _judge(s, case, "everything again", _twice(s, command))


def _smallest(s: Situation, case: Case) -> None:
    """The smallest set itself, executed: that it is enough is checked, not only argued."""
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
        for u in case.smallest
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
    _judge(s, case, "the smallest set", ran)


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


def in_scope(uids: Collection[str], scope: Collection[str]) -> list[str]:
    """Those in scope, sorted."""
    return sorted(set(uids) & set(scope))
