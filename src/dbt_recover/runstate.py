"""A run's invocations, merged into what is true now: pure.

The latest word per node wins, in the order of attempts and of beginning. What an invocation meant
to execute and did not record is a word too (never started, in flight): so a killed retry does not
leave an older success standing.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence

import msgspec

from .graph import BUILDABLE, TESTS, Graph
from .model import (
    FAILURES,
    IN_FLIGHT,
    NEVER_BEGAN,
    NEVER_EXECUTED,
    SKIPPED,
    SUCCESSES,
    UNRECORDED,
    Invocation,
    NodeResult,
    NodeState,
    Recorded,
    RunState,
)


def in_order(recorded: Iterable[Recorded]) -> list[Recorded]:
    """By beginning: a retry's is never before what it went on from (execute.run_recorded). Declared
    steps that never began come first, in the order of the declaration (which their ids carry): any
    word on a node is later than theirs."""

    def key(record: Recorded) -> tuple[bool, str, str]:
        invocation = record.invocation
        begun = invocation.end != NEVER_BEGAN
        return begun, invocation.began if begun else "", invocation.invocation_id

    return sorted(recorded, key=key)


def merge(
    recorded: Sequence[Recorded],
    intended: Mapping[str, frozenset[str]],
    warnings: Sequence[str] = (),
    *,
    graph: Graph | None = None,
    any_target: bool = False,
    apart: Container[str] = (),
) -> RunState:
    """The run's state. A retry into another target says nothing of the run's own relations, and
    counts only with `any_target`.

    `intended`: invocation_id -> what it was meant to execute, for those that did not come to
    their own end (see load._intended). An invocation that ended by itself recorded it all.
    `graph` tells which nodes are ephemeral: dbt records those as skipped when it stops early, and
    never again, since there is nothing to execute. `apart`: nodes whose executions with other
    settings are of something else (see settings_apart): each of them has to have ended well.
    """
    ordered = in_order(recorded)
    words = _Words([r.invocation for r in ordered], apart, any_target=any_target)
    ephemeral = _ephemeral(graph)
    for index, record in enumerate(ordered):
        invocation = record.invocation
        lost: list[NodeResult] = []
        if not record.complete:
            meant = intended.get(invocation.invocation_id, frozenset()) | record.in_flight
            lost = [
                NodeResult(uid, IN_FLIGHT if uid in record.in_flight else UNRECORDED)
                for uid in sorted(meant - record.results.keys())
            ]
        words.forget(invocation.replaced)
        if record.complete and invocation.exit_code == 0:
            # Hooks run with every command; not every dbt lists them among its results.
            words.forget([u for u in words.last if u.startswith("operation.")])
        for result in (*lost, *record.results.values()):
            uid = result.unique_id
            # dbt 1.10 and later list exposures among the results; there is nothing to execute.
            if uid in ephemeral or uid.startswith(NEVER_EXECUTED):
                continue
            # dbt v2 writes what has nothing to do as skipped; a run that ended well skipped
            # nothing because of a failure.
            if result.status == SKIPPED and invocation.exit_code == 0:
                result = msgspec.structs.replace(result, status="no-op")
            words.say(NodeState(result, invocation.attempt, invocation.invocation_id, index))
    if graph is not None:
        words.read_too_early(graph, ordered, intended)
    first = ordered[0].invocation.run
    return RunState(
        first, [r.invocation for r in ordered], words.now(), list(warnings), words.waiting
    )


class _Words:
    """The last word on each node; on one that is apart, the last with each setting."""

    def __init__(
        self, invocations: list[Invocation], apart: Container[str], *, any_target: bool
    ) -> None:
        self.last: dict[str, NodeState] = {}
        self._each: dict[str, dict[int, NodeState]] = {}
        self._invocations = invocations
        self._settings = settings_apart(invocations)
        self._apart = apart
        self._any_target = any_target

    def say(self, word: NodeState) -> None:
        uid = word.result.unique_id
        each = self._each.get(uid)
        before = self.last.get(uid)
        if before is not None and self._elsewhere(word.index, [*(each or {}).values(), before]):
            return
        if uid in self._apart:
            each = self._each.setdefault(uid, {})
            setting = self._settings[word.index]
            if setting < 0:  # a retry that was given other vars: of what it was planned for
                setting = next(
                    iter(_unsettled(each)), self._settings[before.index] if before else 0
                )
            before = each.get(setting)
            each[setting] = word = self._with_batches(word, before)
        else:
            word = self._with_batches(word, before)
        self.last[uid] = word

    def _with_batches(self, word: NodeState, before: NodeState | None) -> NodeState:
        """A retry may run some batches of a microbatch model: of the others the earlier word holds.
        dbt repeats one of the retry's own among the successful."""
        if before is None or self._invocations[word.index].intended is None:
            return word
        old, new = before.result, word.result
        if not (old.batches_done or old.batches_failed):
            return word
        missing = {tuple(b) for b in new.batches_failed}
        done = {tuple(b) for b in new.batches_done} - missing
        left = {tuple(b) for b in old.batches_failed} - done - missing
        kept = {tuple(b) for b in old.batches_done} - left - missing
        if new.status in SUCCESSES:
            done, left = done | left, set()
        status = (
            "partial success" if new.status == "error" and missing and kept | done else new.status
        )
        result = msgspec.structs.replace(
            new,
            status=status,
            batches_done=[list(b) for b in sorted(done | kept)],
            batches_failed=[list(b) for b in sorted(missing | left)],
        )
        return msgspec.structs.replace(word, result=result)

    def _elsewhere(self, index: int, before: Iterable[NodeState]) -> bool:
        """Whether it is a retry into a target where none of this was built."""
        invocation = self._invocations[index]
        own = _target(invocation)
        if self._any_target or invocation.intended is None or not own:
            return False
        targets = {_target(self._invocations[w.index]) for w in before}
        return "" not in targets and own not in targets

    def read_too_early(
        self, graph: Graph, ordered: Sequence[Recorded], intended: Mapping[str, frozenset[str]]
    ) -> None:
        """What a declared step that never began was to execute, and an earlier step had executed
        before what it reads was built: a test of two layers, in the first one's step. The step that
        did not come would have done it again."""
        for index, record in enumerate(ordered):
            invocation = record.invocation
            if invocation.end != NEVER_BEGAN:
                continue
            for uid in intended.get(invocation.invocation_id, frozenset()):
                word = self.last.get(uid)
                if word is None or word.result.status not in SUCCESSES or uid not in graph.nodes:
                    continue
                if graph.nodes[uid].resource_type == "unit_test":
                    continue  # it reads no rows
                above = [self.last.get(p) for p in relations_read_by(graph, uid)]
                if any(a is not None and a.index > word.index for a in above):
                    result = NodeResult(uid, UNRECORDED)
                    self.last[uid] = NodeState(
                        result, invocation.attempt, invocation.invocation_id, index
                    )

    def forget(self, gone: Iterable[str]) -> None:
        for uid in gone:
            self.last.pop(uid, None)
            self._each.pop(uid, None)

    def now(self) -> dict[str, NodeState]:
        """Of nodes that are apart the words with one setting: the first that anything is left of.
        So that what is planned together belongs together."""
        left = self._left()
        chosen = min(left, default=max(self._settings[-1:], default=0))
        return {
            uid: self._each[uid].get(chosen, word) if uid in self._each else word
            for uid, word in self.last.items()
        }

    def _left(self) -> set[int]:
        return {s for each in self._each.values() for s in _unsettled(each)}

    @property
    def waiting(self) -> int:
        """How many settings are not the chosen one, and have something left."""
        return max(len(self._left()) - 1, 0)


def _unsettled(each: Mapping[int, NodeState]) -> list[int]:
    return sorted(s for s, word in each.items() if word.result.status not in SUCCESSES)


def settings_apart(invocations: Sequence[Invocation]) -> list[int]:
    """A number for each invocation, the same for those with the same vars, window of time and
    target. -1 for a retry whose settings no other one had: it was given others."""
    known: list[tuple[bytes, str]] = []
    numbers = []
    for invocation in invocations:
        args = invocation.args
        window = (_DIGITS.sub("", str(args.get(k) or "")) for k in _WINDOW)
        rest = msgspec.json.encode(
            [args.get("vars") or {}, *(w.ljust(14, "0") for w in window)],
            enc_hook=str,
            order="sorted",
        )
        target = _target(invocation)
        # One that died early has not said its target.
        same = [
            n for n, (r, t) in enumerate(known) if r == rest and (t == target or not (t and target))
        ]
        if same:
            known[same[0]] = (rest, known[same[0]][1] or target)
        elif invocation.intended is None:
            known.append((rest, target))
        numbers.append(same[0] if same else len(known) - 1 if invocation.intended is None else -1)
    return numbers


_WINDOW = ("event_time_start", "event_time_end")
_DIGITS = re.compile(r"\D")


def _target(invocation: Invocation) -> str:
    """As dbt said it; of one that died before that, as it was told."""
    return invocation.target or str(invocation.args.get("target") or "")


def _ephemeral(graph: Graph | None) -> set[str]:
    nodes = graph.nodes.values() if graph is not None else ()
    return {n.unique_id for n in nodes if n.materialized == "ephemeral"}


def unsettled(state: RunState) -> dict[str, NodeState]:
    """The nodes that keep the run from being whole, by their own last word; hooks included."""
    return {u: n for u, n in state.nodes.items() if n.result.status not in SUCCESSES}


def rebuilt_above(state: RunState, graph: Graph) -> dict[str, str]:
    """Successes that a later attempt made untrue: node -> the parent that was rebuilt after it.

    Within the first attempt the order is the pipeline's own, and a clean run has the same.
    """
    stale: dict[str, str] = {}
    if state.attempts < 2:
        return stale
    for uid, node in state.nodes.items():
        if node.result.status not in SUCCESSES or uid not in graph.nodes:
            continue
        if graph.nodes[uid].resource_type not in BUILDABLE | TESTS - {"unit_test"}:
            continue
        for parent in relations_read_by(graph, uid):
            above = state.nodes.get(parent)
            if (
                above is not None
                and above.attempt > 1
                and above.index > node.index
                and above.result.status in SUCCESSES
            ):
                stale[uid] = parent
                break
    return stale


def relations_read_by(graph: Graph, uid: str) -> list[str]:
    """Parents whose rows the node reads, looking through ephemeral models and views: themselves
    in the list (views), as well as what they read."""
    return _upwards(graph, uid, ("ephemeral", "view"))


def tested_by(graph: Graph, test: str) -> list[str]:
    """The relations that a test is about: its parents, and what ephemeral ones among them read."""
    return _upwards(graph, test, ("ephemeral",))


def _upwards(graph: Graph, uid: str, through: tuple[str, ...]) -> list[str]:
    seen: set[str] = set()
    found: list[str] = []
    stack = list(graph.parents.get(uid, ()))
    while stack:
        parent = stack.pop()
        if parent in seen:
            continue
        seen.add(parent)
        node = graph.nodes[parent]
        if node.materialized != "ephemeral":
            found.append(parent)
        if node.materialized in through:
            stack.extend(graph.parents[parent])
    return found


def readers(graph: Graph, uid: str, scope: set[str]) -> Iterator[str]:
    """Nodes of the scope, tests too, that read the node's rows: its children, and what reads them
    through ephemeral models and through views that are not in the scope."""
    seen: set[str] = set()
    stack = list(graph.children.get(uid, ()))
    while stack:
        child = stack.pop()
        if child in seen:
            continue
        seen.add(child)
        if child in scope:
            yield child
        elif graph.nodes[child].materialized in ("ephemeral", "view"):
            stack.extend(graph.children[child])


def told_apart(graphs: Sequence[Graph]) -> set[str]:
    """Of a run with several settings, each with its graph: nodes that are something else in each.
    Those whose relation has another name, and what tests them; and those that keep what earlier
    executions wrote: a later one with other vars does not make up for them."""
    named: dict[str, set[str]] = {}
    for graph in graphs:
        for uid, node in graph.nodes.items():
            if node.resource_type in BUILDABLE:
                named.setdefault(uid, set()).add(node.relation_name)
    moved = {uid for uid, names in named.items() if len(names) > 1}
    found = set(moved)
    for graph in graphs:
        for uid, node in graph.nodes.items():
            keeps = node.materialized == "incremental" or node.resource_type == "snapshot"
            of_moved = node.resource_type == "test" and moved.intersection(tested_by(graph, uid))
            if keeps or of_moved:
                found.add(uid)
    return found


def describe(state: RunState) -> str:
    """One word for the run: success, recovered, failed."""
    if unsettled(state) or (state.warnings and not state.nodes):
        return "failed"
    return "recovered" if state.attempts > 1 else "success"


def counts(state: RunState) -> dict[str, int]:
    """status -> number of nodes."""
    result: dict[str, int] = {}
    for node in state.nodes.values():
        result[node.result.status] = result.get(node.result.status, 0) + 1
    return result


def failed_nodes(state: RunState) -> list[NodeResult]:
    """What failed itself (not what was skipped or lost), in a stable order."""
    return sorted(
        (n.result for n in state.nodes.values() if n.result.status in FAILURES),
        key=lambda r: r.unique_id,
    )
