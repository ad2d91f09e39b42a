"""Ways to fail, and what mends them: each is drawn for a project whose clean run is known."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace

from _equivalence_project import NAME, Node, Project, Test
from _equivalence_room import Kill

Scope = Collection[str]
"""unique_ids that the clean run executes."""

BAD = "-900000"
WORD = "oops"
RUN_ID = "eq/nightly"


class NoVictim(Exception):
    """The project has no node that this failure fits."""


@dataclass(frozen=True)
class Failure:
    """What is wrong, in the project, in the data, or with the machine."""

    story: str = ""
    """In words."""
    defects: dict[str, str] = field(default_factory=dict)
    """Of the project's files; mending takes them away (see Project.files)."""
    always: dict[str, str] = field(default_factory=dict)
    """The same for what stays."""
    seeds: dict[str, dict[int, str]] = field(default_factory=dict)
    """Bad values: seed -> id -> value."""
    sources: dict[str, dict[int, str]] = field(default_factory=dict)
    """The same in raw tables; None is null."""
    broken: tuple[str, ...] = ()
    """Nodes in control.broken."""
    flags: tuple[str, ...] = ()
    """Of the dbt command."""
    kill: Kill | None = None
    """How the run is ended."""
    between_steps: bool = False
    """Of a pipeline: whether everything ends between two steps, with nothing failed."""
    lost_disk: bool = False
    retry_kill: Kill | None = None
    """How the first try to recover is ended."""
    may_succeed: bool = False
    """Whether the run is allowed not to fail."""

    def also(self, other: Failure) -> Failure:
        """Both at once."""
        return replace(
            self,
            story=f"{self.story}; {other.story}",
            defects={**self.defects, **other.defects},
            seeds={**self.seeds, **other.seeds},
            sources={**self.sources, **other.sources},
            broken=(*self.broken, *other.broken),
        )


def _scoped(project: Project, scope: Scope, *kinds: str) -> list[Node]:
    return [n for n in project.of(*kinds) if n.unique_id in scope]


def _pick(rng: random.Random, project: Project, scope: Scope, fit: list[Node]) -> Node:
    """One of them, rather one with something below it."""
    if not fit:
        raise NoVictim
    parents = [
        n for n in fit if any(project.nodes[c].unique_id in scope for c in project.below(n.name))
    ]
    return rng.choice(parents if parents and rng.random() < 0.8 else fit)


def executes(project: Project, scope: Scope, test: Test) -> bool:
    """Whether the clean run executes the test (generic tests are told by name and node)."""
    if test.kind == "unit":
        return f"unit_test.{NAME}.{test.node}.{test.name}" in scope
    if test.kind in ("singular", "pair"):
        return f"test.{NAME}.{test.name}" in scope
    word = f"{'source_' if project.nodes[test.node].kind == 'source' else ''}{test.kind}_"
    return any(u.startswith(f"test.{NAME}.{word}") and f"_{test.node}_" in u for u in scope)


def presumed(project: Project) -> set[str]:
    """About what a `dbt build` executes, for a first look."""
    found = {n.unique_id for n in project.nodes.values() if n.relation}
    for test in project.tests:
        word = "source_" if project.nodes[test.node].kind == "source" else ""
        found |= {
            f"test.{NAME}.{test.name}",
            f"unit_test.{NAME}.{test.node}.{test.name}",
            f"test.{NAME}.{word}{test.kind}_{test.node}_",
        }
    return found


# ---- faults ----------------------------------------------------------------------------------


def sql_error(rng: random.Random, project: Project, scope: Scope) -> Failure:
    """A column that does not exist; mended in the model."""
    fit = _scoped(project, scope, "model", "snapshot")
    fit += [
        n
        for n in project.of("model")
        if n.materialized == "ephemeral"
        and any(project.nodes[c].unique_id in scope for c in project.children(n.name))
    ]
    node = _pick(rng, project, scope, fit)
    what = node.materialized or node.kind
    return Failure(f"SQL error in {what} {node.name}", {node.name: "sql"})


def _checks(project: Project, scope: Scope, name: str) -> list[Test]:
    found = project.tests_of(name, "at_least", "singular", warn=False)
    return [t for t in found if executes(project, scope, t)]


def wrong_logic(rng: random.Random, project: Project, scope: Scope) -> Failure:
    """A model makes wrong rows and its own test finds them; mended in the model."""
    fit = [n for n in _scoped(project, scope, "model") if _checks(project, scope, n.name)]
    node = _pick(rng, project, scope, fit)
    return Failure(
        f"wrong rows by {node.materialized} {node.name}, whose test fails", {node.name: "logic"}
    )


def wrong_above(rng: random.Random, project: Project, scope: Scope) -> Failure:
    """A model, a macro or an ephemeral model makes wrong rows, and a test further down finds them."""
    if rng.random() < 0.25:
        users = [n for n in _scoped(project, scope, "model") if n.scaled]
        if any(_checks(project, scope, n.name) for n in users):
            return Failure(
                f"wrong macro, called by {', '.join(n.name for n in users)}",
                {"macro:scaled": "logic"},
            )
    pairs = []
    for node in project.of("model"):
        if node.relation and (node.unique_id not in scope or _checks(project, scope, node.name)):
            continue
        pairs += [
            (node, below)
            for below in sorted(project.below(node.name))
            if _checks(project, scope, below)
            and all(
                len(project.nodes[m].parents) == 1 or m in project.children(node.name)
                for m in project.below(node.name) & {below, *project.above(below)}
            )
        ]
    if not pairs:
        raise NoVictim
    hidden = [p for p in pairs if p[0].materialized == "ephemeral"]
    node, below = rng.choice(hidden if hidden and rng.random() < 0.4 else pairs)
    return Failure(
        f"wrong rows by {node.materialized} {node.name}, found by a test of {below}",
        {node.name: "logic"},
    )


def wrong_test(rng: random.Random, project: Project, scope: Scope) -> Failure:
    """A test asks for too much; mended in its arguments, its SQL or its expected rows."""
    fit = [
        t
        for t in project.tests
        if t.kind in ("at_least", "singular", "pair", "unit")
        and not t.warn
        and executes(project, scope, t)
    ]
    if not fit:
        raise NoVictim
    by_kind: dict[str, list[Test]] = {}
    for test in fit:
        by_kind.setdefault(test.kind, []).append(test)
    test = rng.choice(by_kind[rng.choice(sorted(by_kind))])
    return Failure(f"{test.kind} test of {test.node} asks for too much", {test.name: "test"})


def transient(rng: random.Random, project: Project, scope: Scope) -> Failure:
    """A query ends in an error once; nothing is edited."""
    fit = [n for n in _scoped(project, scope, "model", "snapshot") if n.can_wait]
    node = _pick(rng, project, scope, fit)
    name = node.name + rng.choice(("", "", "_after" if node.hook else ""))
    return Failure(f"transient error in {node.materialized or node.kind} {name}", broken=(name,))


def _row(rng: random.Random, project: Project, name: str) -> int:
    """A row that no model filters out."""
    fit = [i for i in project.data[name] if i % 2 and i % 3 and i % 5]
    if not fit:
        raise NoVictim
    return rng.choice(fit)


def bad_seed(rng: random.Random, project: Project, scope: Scope) -> Failure:
    """A value in a seed that is no number, or that a test does not like; mended in the CSV."""
    fit: list[tuple[Node, str]] = []
    for seed in _scoped(project, scope, "seed"):
        readers = [project.nodes[c] for c in project.children(seed.name)]
        readers = [r for r in readers if r.unique_id in scope and r.kind == "model"]
        if any(r.strict for r in readers):
            fit.append((seed, WORD))
        if any(_checks(project, scope, r.name) and len(r.parents) == 1 for r in readers):
            fit += [(seed, BAD)] * 2
    if not fit:
        raise NoVictim
    seed, value = rng.choice(fit)
    return Failure(
        f"{value!r} in {seed.name}", seeds={seed.name: {_row(rng, project, seed.name): value}}
    )


def _readers(project: Project, scope: Scope, source: str) -> list[Node]:
    """What reads its rows and stands in the warehouse, ephemeral models looked through."""
    found = []
    for child in project.children(source):
        node = project.nodes[child]
        if node.materialized == "ephemeral":
            found += _readers(project, scope, child)
        elif node.unique_id in scope:
            found.append(node)
    return found


def source_near(rng: random.Random, project: Project, scope: Scope) -> Failure:
    """A bad value in a raw table, and what fails is the only one that reads the table."""
    fit: list[tuple[Node, str]] = []
    for source in project.of("source"):
        readers = _readers(project, scope, source.name)
        if project.tests_of(source.name, "not_null") and any(
            executes(project, scope, t) for t in project.tests_of(source.name, "not_null")
        ):
            fit.append((source, "null"))
        if len(readers) != 1 or len(readers[0].parents) != 1:
            continue
        if readers[0].strict and readers[0].kind == "model" and readers[0].materialized != "view":
            fit.append((source, WORD))
        if _checks(project, scope, readers[0].name):
            fit.append((source, BAD))
    if not fit:
        raise NoVictim
    source, value = rng.choice(fit)
    return Failure(
        f"{value!r} in raw table {source.name}",
        sources={source.name: {_row(rng, project, source.name): value}},
    )


def source_far(rng: random.Random, project: Project, scope: Scope) -> Failure:
    """A bad value in a raw table that others have read already when something fails."""
    fit: list[tuple[Node, str]] = []
    for source in project.of("source"):
        readers = _readers(project, scope, source.name)
        strict = [r for r in readers if r.strict and r.kind == "model" and r.materialized != "view"]
        if strict and len(readers) > 1:
            fit.append((source, WORD))
        if readers and not any(_checks(project, scope, r.name) for r in readers):
            deep = [
                c
                for r in readers
                for c in project.children(r.name)
                if len(project.nodes[c].parents) == 1 and _checks(project, scope, c)
            ]
            fit += [(source, BAD)] * (2 * bool(deep))
    if not fit:
        raise NoVictim
    source, value = rng.choice(fit)
    return Failure(
        f"{value!r} in raw table {source.name}, read before something failed",
        sources={source.name: {_row(rng, project, source.name): value}},
    )


def failing_hook(rng: random.Random, project: Project, scope: Scope) -> Failure:
    """on-run-start fails: mended in dbt_project.yml, or by making the table that it reads."""
    then = "holding all up" if project.skips_after_hook else "and dbt goes on"
    if rng.random() < 0.5:
        return Failure(f"on-run-start writes into a missing table, {then}", {"hook:text": ""})
    return Failure(
        f"on-run-start reads a missing table, {then}",
        always={"hook:needs": ""},
        defects={"hook:table": ""},
    )


def kill(
    rng: random.Random, project: Project, scope: Scope, number: int, among: Scope | None = None
) -> Kill:
    """At a node that is drawn, before or after its commit."""
    fit: list[tuple[Node, str]] = []
    for node in _scoped(project, scope, "model", "snapshot"):
        if among is not None and node.unique_id not in among:
            continue
        if node.can_wait:
            fit += [(node, node.name)] * 2
        if node.hook:
            fit.append((node, f"{node.name}_after"))
    if not fit:
        raise NoVictim
    node, slow = rng.choice(fit)
    only = number == signal.SIGKILL and rng.random() < 0.3
    return Kill(number, node.unique_id, slow, settle=rng.random() < 0.6, only_dbt=only)


Fault = Callable[[random.Random, Project, Scope], Failure]


def _either(*faults: Fault) -> Fault:
    def draw(rng: random.Random, project: Project, scope: Scope) -> Failure:
        shuffled = rng.sample(faults, len(faults))
        for fault in shuffled:
            try:
                return fault(rng, project, scope)
            except NoVictim:
                continue
        raise NoVictim

    return draw


def _killed(number: int) -> Fault:
    def draw(rng: random.Random, project: Project, scope: Scope) -> Failure:
        chosen = kill(rng, project, scope, number)
        made = Failure(chosen.story, kill=chosen)
        if rng.random() < 0.25:
            try:
                made = made.also(sql_error(rng, project, set(scope) - {chosen.node}))
            except NoVictim:
                return made
            if any(
                chosen.node == project.nodes[n].unique_id
                for d in made.defects
                for n in (d, *project.below(d))
            ):
                return Failure(chosen.story, kill=chosen)  # it would never begin
        return made

    return draw


def _any_moment(rng: random.Random, project: Project, scope: Scope) -> Failure:
    number = rng.choice((signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGKILL))
    chosen = Kill(
        number,
        only_dbt=number == signal.SIGKILL and rng.random() < 0.3,
        events=rng.randint(0, int(1.6 * len(scope))),
        delay=rng.random() * rng.choice((0.001, 0.01, 0.1)),
    )
    return Failure(chosen.story, kill=chosen)


def _two_or_one(rng: random.Random, project: Project, scope: Scope) -> Failure:
    first = sql_error(rng, project, scope)
    if rng.random() < 0.3:
        try:
            second = _either(transient, wrong_logic, sql_error)(rng, project, scope)
        except NoVictim:
            return first
        if not second.defects.keys() & first.defects.keys():
            return first.also(second)
    return first


def _warn(rng: random.Random, project: Project, scope: Scope) -> Failure:
    if not any(t.warn and executes(project, scope, t) for t in project.tests):
        raise NoVictim
    if rng.random() < 0.3:
        return Failure("tests warn, nothing fails", may_succeed=True)
    fault = _either(sql_error, wrong_logic)(rng, project, scope)
    return replace(fault, story=f"tests warn; {fault.story}")


def _fail_fast(rng: random.Random, project: Project, scope: Scope) -> Failure:
    fault = _either(sql_error, wrong_logic, transient)(rng, project, scope)
    return replace(fault, flags=("--fail-fast",))


def _lost(rng: random.Random, project: Project, scope: Scope) -> Failure:
    fault = _either(
        sql_error, wrong_logic, transient, _killed(signal.SIGKILL), _killed(signal.SIGTERM)
    )(rng, project, scope)
    return replace(fault, lost_disk=True, story=f"{fault.story}; the disk is lost")


def _retry_killed(rng: random.Random, project: Project, scope: Scope) -> Failure:
    fault = _either(sql_error, wrong_logic, bad_seed, transient)(rng, project, scope)
    names = [*fault.defects, *fault.seeds, *(b.removesuffix("_after") for b in fault.broken)]
    below = {project.nodes[n].unique_id for name in names for n in (name, *project.below(name))}
    number = rng.choice((signal.SIGINT, signal.SIGTERM, signal.SIGKILL))
    chosen = replace(kill(rng, project, scope, number, below), only_dbt=False)
    return replace(fault, retry_kill=chosen, story=f"{fault.story}; the retry gets {chosen.story}")


def _yaml(rng: random.Random, project: Project, scope: Scope) -> Failure:
    fault = _either(wrong_logic, wrong_above)(rng, project, scope)
    if any(d not in project.nodes for d in fault.defects):
        raise NoVictim  # a macro is in no YAML
    return replace(
        fault, story=f"{fault.story}, by YAML", defects=dict.fromkeys(fault.defects, "yaml")
    )


def _layered(rng: random.Random, project: Project, scope: Scope) -> Failure:
    return _either(
        sql_error,
        wrong_logic,
        transient,
        bad_seed,
        lambda r, p, s: Failure("everything stops between two steps", between_steps=True),
        _killed(rng.choice((signal.SIGINT, signal.SIGTERM, signal.SIGKILL))),
    )(rng, project, scope)


KINDS: dict[str, Fault] = {
    "sql_error": _two_or_one,
    "bad_seed": bad_seed,
    "source_near": source_near,
    "source_far": source_far,
    "failed_test": wrong_logic,
    "warn": _warn,
    "fail_fast": _fail_fast,
    "on_run_start": failing_hook,
    "ctrl_c": _killed(signal.SIGINT),
    "sigterm": _killed(signal.SIGTERM),
    "sigkill": _killed(signal.SIGKILL),
    "any_moment": _any_moment,
    "lost_disk": _lost,
    "layered": _layered,
    "retry_killed": _retry_killed,
    "fix_above": wrong_above,
    "fix_test": wrong_test,
    "transient": transient,
    "fix_yaml": _yaml,
}
NEEDS_BUILD = (
    "bad_seed",
    "source_near",
    "source_far",
    "warn",
    "fix_above",
    "fix_test",
    "fix_yaml",
    "on_run_start",
)
"""Failures for which the command is a plain `dbt build`."""
