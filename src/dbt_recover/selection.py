"""dbt's node selection, evaluated on our graph: which nodes would a dbt command execute? Pure.

For the scope of a run that dbt did not record, without the twenty seconds that `dbt ls` takes. What
is not evaluated raises `Unsupported`, and so does what dbt itself would refuse: then `dbt ls` says
so in its own words. tests/test_selection_dbt.py compares with dbt on random projects.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from dbt_recover.graph import TESTS, Graph
from dbt_recover.selection_candidates import Candidates
from dbt_recover.selection_methods import COMPARING, METHODS
from dbt_recover.selection_rules import RESOURCE_TYPES, Rules, Unsupported
from dbt_recover.selection_spec import (
    INDIRECT_SELECTIONS,
    Criterion,
    Definitions,
    Everything,
    Group,
    Spec,
    union_of,
)

__all__ = ["Selection", "Unsupported", "select"]


@dataclass(frozen=True)
class Selection:
    """What a dbt command line says about which nodes it is for."""

    select: tuple[str, ...] = ()
    """Each a union (by spaces) of intersections (by commas), as --select takes them."""
    exclude: tuple[str, ...] = ()
    selector: str = ""
    """Name of a YAML selector; with one, dbt does not look at `select` and `exclude`."""
    resource_types: tuple[str, ...] = ()
    exclude_resource_types: tuple[str, ...] = ()
    indirect_selection: str = "eager"
    """eager, cautious, buildable or empty."""
    models: tuple[str, ...] = ()
    """--models: for `ls` it lists models only, elsewhere it is an old name of --select."""


def select(graph: Graph, selection: Selection, command: str) -> set[str]:
    """The unique_ids that `dbt COMMAND` would record a result for; for `ls`, those it would list.

    `command` is build, run, test, seed, snapshot or ls (list). Raises Unsupported.
    """
    if selection.indirect_selection not in INDIRECT_SELECTIONS:
        raise Unsupported(f'"{selection.indirect_selection}" is not a mode of indirect selection')
    rules = Rules.of(graph.dbt_version)
    evaluation = _Evaluation(graph, rules, _resource_types(selection, command, rules), command)
    definitions = Definitions(graph.selectors, rules, selection.indirect_selection)
    return evaluation.selected(_spec(selection, definitions), definitions)


def _spec(selection: Selection, definitions: Definitions) -> Spec:
    included = (*selection.select, *selection.models)
    if selection.selector:
        return definitions.named(selection.selector)
    if not included and not selection.exclude:
        return definitions.default() or Everything()
    indirect = selection.indirect_selection
    return Group(
        "difference",
        (
            union_of(included, indirect) if included else Everything(),
            union_of(selection.exclude, indirect),
        ),
    )


def _resource_types(selection: Selection, command: str, rules: Rules) -> frozenset[str]:
    """The types that the command executes, or lists."""
    only, without = selection.resource_types, selection.exclude_resource_types
    if command in ("run", "seed", "snapshot"):
        if only or without:
            raise Unsupported(f"dbt {command} takes no resource types")
        return frozenset({"model" if command == "run" else command})
    if command == "test":
        default = everything = TESTS
    elif command == "build":
        default = everything = rules.build_types
    elif command in ("ls", "list"):
        default = rules.list_types
        everything = default | {"analysis"}
        if selection.models:
            if selection.select or only:
                raise Unsupported("dbt ls takes --models alone")
            return frozenset({"model"})
    else:
        raise Unsupported(f"the selection of dbt {command} is not evaluated")
    types = set(only) or default
    if "all" in types:
        types = (types - {"all"}) | everything
    if "default" in types:
        types = (types - {"default"}) | default
    for name in {*types, *without} - RESOURCE_TYPES:
        raise Unsupported(f'"{name}" is not a resource type')
    types = frozenset(types) - set(without)
    if types == {"test"} and rules.tests_include_unit_tests:
        types = TESTS
    return types & TESTS if command == "test" else types


class _Evaluation:
    """One selection on one graph."""

    def __init__(
        self, graph: Graph, rules: Rules, resource_types: frozenset[str], command: str
    ) -> None:
        self._building = command == "build"
        self._listing = command in ("ls", "list")
        if not rules.blank_nodes_connect and not self._listing:
            graph = Graph(
                [n for n in graph.nodes.values() if not n.empty],
                project_name=graph.project_name,
                macro_files=graph.macro_files,
                files=graph.files,
                configs=graph.configs,
            )
        self._graph = graph
        self._rules = rules
        self._resource_types = resource_types
        self._candidates = Candidates(graph, rules)
        self._open: set[str] = set()

    @cached_property
    def _sources(self) -> set[str]:
        return {n.unique_id for n in self._candidates.of_type("source")}

    def selected(self, spec: Spec, definitions: Definitions) -> set[str]:
        """What the command executes, or lists."""
        selected = self._of_types(self._nodes(spec, definitions)[0])
        if self._listing:
            return selected
        nodes = self._graph.nodes
        # dbt compiles ephemeral models into their children and records no result for them.
        executed = {
            uid
            for uid in selected
            if nodes[uid].materialized != "ephemeral" or nodes[uid].resource_type != "model"
        }
        tests_alone = self._rules.tests_include_unit_tests and self._resource_types == TESTS
        if self._building and not tests_alone:
            # `dbt build` comes to a unit test by way of its model, and leaves it out without a word
            # when that is not selected. (dbt 1.8, told to build tests alone, runs it as a test.)
            executed -= {
                uid
                for uid in executed
                if nodes[uid].resource_type == "unit_test"
                and not selected.issuperset(nodes[uid].tested)
            }
        return executed

    def _of_types(self, selected: set[str]) -> set[str]:
        nodes, types = self._graph.nodes, self._resource_types
        return {
            uid
            for uid in selected
            if nodes[uid].resource_type in types and (self._listing or not nodes[uid].empty)
        }

    def _nodes(self, spec: Spec, definitions: Definitions) -> tuple[set[str], set[str]]:
        """(selected, tests that wait for the rest of their parents to be selected)."""
        if isinstance(spec, Everything):
            return set(self._graph.nodes), set()
        if isinstance(spec, Criterion):
            return self._of_criterion(spec, definitions)
        found = [self._nodes(part, definitions) for part in spec.parts]
        direct = _combined(spec.operation, [direct for direct, _ in found])
        indirect = _combined(spec.operation, [direct | waiting for direct, waiting in found])
        return self._joined(direct, indirect, spec.indirect), indirect

    def _of_criterion(self, spec: Criterion, definitions: Definitions) -> tuple[set[str], set[str]]:
        if spec.method == "selector" and self._rules.selector_is_method:
            found = self._of_selectors(spec.value, definitions)
            return found | self._relatives(spec, found), set()
        if spec.method in COMPARING:
            raise Unsupported(f"{spec.method}: compares with artifacts of another run")
        if spec.method not in METHODS:
            raise Unsupported(f'"{spec.method}" is not a method that we know')
        found = set(METHODS[spec.method](self._candidates, list(spec.arguments), spec.value))
        if spec.indirect == "empty":
            if self._rules.empty_keeps_relatives:
                found |= self._relatives(spec, found)
            return found, set()
        return self._with_tests(found | self._relatives(spec, found), spec.indirect)

    def _of_selectors(self, pattern: str, definitions: Definitions) -> set[str]:
        if pattern in self._open:
            raise Unsupported(f'selector "{pattern}" refers to itself')
        self._open.add(pattern)
        found: set[str] = set()
        for definition in definitions.matching(pattern):
            # dbt leaves out the types that the command does not execute before it looks for
            # relatives: `selector:sources+` is nothing under `dbt build`.
            found |= self._of_types(self._nodes(definition, definitions)[0])
        self._open.remove(pattern)
        return found

    def _relatives(self, spec: Criterion, found: set[str]) -> set[str]:
        graph, result = self._graph, set[str]()
        if spec.childrens_parents:
            family = found | graph.descendants(found)
            result |= family | graph.ancestors(family)
        if spec.parents:
            result |= graph.ancestors(found, depth=spec.parents_depth)
        if spec.children:
            result |= graph.descendants(found, depth=spec.children_depth)
        return result

    def _with_tests(self, selected: set[str], indirect: str) -> tuple[set[str], set[str]]:
        """The nodes with the tests of any of them; tests that want more come apart, for later."""
        graph = self._graph
        nodes, children = graph.nodes, graph.children
        tests = {
            child
            for uid in selected
            for child in children[uid]
            if nodes[child].resource_type in TESTS
        }
        if indirect == "eager":
            return selected | tests, set()
        reach = selected
        if indirect == "buildable":
            reach = selected | graph.ancestors(selected) | self._sources
        ready = {t for t in tests if reach.issuperset(nodes[t].depends_on)}
        return selected | ready, tests - ready

    def _joined(self, direct: set[str], indirect: set[str], mode: str) -> set[str]:
        """With the tests all of whose parents are there now that parts were combined."""
        if mode not in ("cautious", "buildable") or direct == indirect:
            return direct
        reach = direct
        if mode == "buildable":
            # Unlike in _with_tests, dbt counts only the sources above what is selected.
            reach = direct | self._graph.ancestors(direct)
        nodes = self._graph.nodes
        parsed = {n.unique_id for n in self._candidates.parsed}
        return direct | {
            uid for uid in indirect & parsed if reach.issuperset(nodes[uid].depends_on)
        }


def _combined(operation: str, parts: list[set[str]]) -> set[str]:
    if not parts:
        return set()
    if operation == "union":
        return set().union(*parts)
    if operation == "intersection":
        return set.intersection(*parts)
    return parts[0].difference(*parts[1:])
