"""One case: a project, a failure, its mending, and every way to recover from it."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import asdict, dataclass, field
from typing import Any

from _equivalence_failures import KINDS, NEEDS_BUILD, RUN_ID, Failure, NoVictim, presumed
from _equivalence_judge import Clean, clean_run, smallest
from _equivalence_project import DAYS, RUN_DAY, YESTERDAY, Project, day_flags, draw
from _equivalence_room import Execution, Ran, Room, Table

SIZES = (10, 40)
"""How many nodes a project has unless the command says otherwise."""


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
    """After a refusal: the verdict when the flag that it names is given, or the command is run again
    as it says."""
    output: str = ""


@dataclass
class Case:
    """One case, done."""

    seed: int
    kind: str
    index: int
    sizes: tuple[int, int] = SIZES
    """Fewest and most nodes that its project was to have."""
    story: str = ""
    void: str = ""
    nodes: int = 0
    scope: int = 0
    history: bool = False
    commands: list[str] = field(default_factory=list)
    smallest: list[str] = field(default_factory=list)
    results: dict[str, Result] = field(default_factory=dict)
    smaller_tried: int = 0
    """How many smaller sets were executed (--brute-force)."""
    smaller: list[list[str]] = field(default_factory=list)
    """Those of them that did it: there should be none."""

    @property
    def reproduction(self) -> str:
        """The arguments that do it again."""
        words = f"--seed {self.seed} --only {self.kind} --case {self.index}"
        if self.sizes != SIZES:
            words += " --min-nodes {} --max-nodes {}".format(*self.sizes)
        return words

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


# ---- the failure -----------------------------------------------------------------------------


def prepare(case: Case, rng: random.Random, room: Room) -> Situation:
    kind = case.kind
    project = _fitting(rng, kind, case.sizes)
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


def _fitting(rng: random.Random, kind: str, sizes: tuple[int, int]) -> Project:
    """A project of so many nodes in which something can fail this way."""
    for _ in range(50):
        size, calm = rng.randint(*sizes), rng.random() < 0.6
        project = draw(rng, size, calm=calm, pipeline=kind == "layered")
        project.signed = kind == "fix_yaml"
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
