"""The smallest set of the equivalence benchmark is the smallest: on small graphs every smaller set is
tried, in a model of what dbt does with a warehouse.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Collection, Iterator
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from _equivalence_judge import Clean, holding, smallest
from _equivalence_room import Execution

VIEWS = ("view", "table", "table")


class World:
    """A project of up to six models and tests on them, and a warehouse. A table's rows are told by
    the code it was built with and the rows that it read; a view has its code and no rows."""

    def __init__(self, random: Random) -> None:
        self.kinds: dict[str, str] = {}
        self.parents: dict[str, list[str]] = {}
        for number in range(random.randint(1, 6)):
            uid = f"model.p.m{number}"
            above = random.sample(list(self.kinds), min(len(self.kinds), random.randint(0, 2)))
            self.kinds[uid], self.parents[uid] = random.choice(VIEWS), above
        for number in range(random.randint(0, 3)):
            uid = f"test.p.t{number}"
            self.parents[uid] = random.sample(list(self.kinds), min(len(self.kinds), 2))
        self.order = self._order()
        self.stored: dict[str, str] = {}
        self.history: list[Execution] = []

    def _order(self) -> list[str]:
        """An order in which dbt could build: parents first, the tests at the end."""
        return [*self.kinds, *(u for u in self.parents if u.startswith("test."))]

    def rows(self, uid: str) -> str:
        """What a reader of the relation sees now."""
        stored = self.stored.get(uid, "missing")
        if self.kinds[uid] == "table" or stored == "missing":
            return stored
        return f"{stored}({', '.join(map(self.rows, self.parents[uid]))})"

    def execute(self, chosen: Collection[str], right: dict[str, str] | None, call: int) -> None:
        """One `dbt build` of exactly these. A test passes if what it reads is right (always, while
        it is not known what is right)."""
        for uid in self.order:
            if uid not in chosen:
                continue
            status = "success"
            if uid in self.kinds:
                read = ", ".join(map(self.rows, self.parents[uid]))
                self.stored[uid] = uid if self.kinds[uid] == "view" else f"{uid}({read})"
            elif right is not None and any(self.rows(p) != right[p] for p in self.parents[uid]):
                status = "fail"
            at = 2 * len(self.history)
            self.history.append(Execution(uid, status, call, at, at + 1))

    def tables(self) -> dict[str, Any]:
        """The warehouse as the benchmark reads it."""
        return {
            f"main.{uid}": (
                ("table", (), Counter([stored]))
                if self.kinds[uid] == "table"
                else (f"view {stored}", (), Counter([self.rows(uid)]))
            )
            for uid, stored in self.stored.items()
        }

    def manifest(self) -> dict[str, Any]:
        nodes = {
            uid: {
                "schema": "main",
                "alias": uid,
                "depends_on": {"nodes": parents},
                "config": {"materialized": self.kinds.get(uid, "test")},
            }
            for uid, parents in self.parents.items()
        }
        return {"nodes": nodes}

    def broken(self, random: Random) -> None:
        """Nobody knows how: relations are missing or hold what is wrong, some tests ran, some before
        a relation was built that they read."""
        for uid in self.order:
            if uid in self.kinds and random.random() < 0.5:
                self.stored[uid] = random.choice(["wrong", uid])
            if uid in self.kinds and random.random() < 0.2:
                self.stored.pop(uid, None)


def reached(world: World, clean: Clean) -> bool:
    """Whether the warehouse is the clean one, and every test holds."""
    held = holding(world.history, clean.manifest, ())
    return world.tables() == clean.tables and clean.tests <= held


def sets_of(scope: Collection[str], size: int) -> Iterator[set[str]]:
    """All of that size."""
    yield from map(set, combinations(sorted(scope), size))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32))
def test_no_smaller_set_does_it(seed: int) -> None:
    random = Random(seed)
    world = World(random)
    world.execute(world.order, None, 0)
    right = {uid: world.rows(uid) for uid in world.kinds}
    scope, tests = frozenset(world.order), frozenset(world.parents.keys() - world.kinds.keys())
    clean = Clean(world.tables(), world.manifest(), scope, tests)

    # The run that failed: a part of the project was built, in two goes, and then things went wrong.
    world.stored, world.history = {}, []
    world.execute({u for u in world.order if random.random() < 0.7}, right, 0)
    world.execute({u for u in world.order if random.random() < 0.3}, right, 1)
    world.broken(random)
    before, history = dict(world.stored), list(world.history)

    found = smallest(clean, world.tables(), world.history, (), 2)

    def does_it(chosen: set[str]) -> bool:
        world.stored, world.history = dict(before), list(history)
        world.execute(chosen, right, 2)
        return reached(world, clean)

    assert does_it(found)
    for size in range(len(found)):
        assert not any(map(does_it, sets_of(scope, size))), f"{size} do it, not {len(found)}"
