"""What could go wrong if a plan were carried out: planning rule 7, as far as the graph tells. Pure."""

from __future__ import annotations

import msgspec

from .decision import Changes, Draft, PlanWarning, Policy, is_buildable, name_of
from .graph import Graph, Node
from .model import SUCCESSES, RunState, listing


def drift(
    drafts: dict[str, Draft], changes: Changes, state: RunState, graph: Graph, policy: Policy
) -> list[PlanWarning]:
    found = _other_vars(drafts, state, graph, policy) if changes.other_vars else []
    above = graph.ancestors(drafts)
    outside = sorted(
        u
        for u in changes.nodes
        if u not in drafts
        # Hooks run with every command, as they are now.
        and graph.nodes[u].resource_type != "operation"
        and not (u in above and graph.nodes[u].materialized == "ephemeral")
    )
    if not outside or not drafts:
        return found
    return [
        *found,
        PlanWarning(
            "drift",
            f"edited since the run, outside of the plan: {_names(graph, outside)}. The retry runs today's "
            "code; what is outside of the plan keeps what the run built with the old code",
            flag="--allow-drift",
            allowed=policy.allow_drift,
        ),
    ]


def _other_vars(
    drafts: dict[str, Draft], state: RunState, graph: Graph, policy: Policy
) -> list[PlanWarning]:
    built = [
        u
        for u, node in state.nodes.items()
        if u not in drafts and node.result.status in SUCCESSES and is_buildable(graph, u)
    ]
    if not drafts or not built:
        return []
    return [
        PlanWarning(
            "drift",
            "vars in dbt_project.yml were edited since the run. Who reads them is not known: the "
            f"retry leaves {_names(graph, built)} as built with the old ones",
            flag="--allow-drift",
            allowed=policy.allow_drift,
        )
    ]


def idempotent(node: Node) -> bool:
    """Whether running the node twice leaves what running it once does."""
    if node.resource_type == "snapshot":
        return False
    if node.materialized != "incremental":
        return node.resource_type != "model" or node.materialized in _REPLACING
    if node.microbatch or node.incremental_strategy in ("insert_overwrite", "replace_where"):
        return True
    return node.unique_key and node.incremental_strategy in _BY_KEY


_REPLACING = frozenset(
    {"", "table", "view", "ephemeral", "materialized_view", "external"}
    | {"dynamic_table", "streaming_table", "distributed_table", "dictionary", "table_function"}
)
"""Materializations whose execution leaves the same whatever was there. Of a project's own one
nobody knows."""

_BY_KEY = frozenset({"", "default", "merge", "delete+insert", "distributed_incremental", "legacy"})
"""Strategies that replace the rows with the key; of a project's own one nobody knows."""


def not_idempotent(
    drafts: dict[str, Draft], changes: Changes, state: RunState, graph: Graph, policy: Policy
) -> list[PlanWarning]:
    """Nodes whose earlier execution may stand in the table when they run again."""
    twice: list[str] = []
    stay: list[str] = []
    passed_over: list[str] = []
    for uid, draft in drafts.items():
        node = graph.nodes.get(uid)
        if node is None or not is_buildable(graph, uid) or node.microbatch:
            continue
        if node.materialized == "incremental" and _refreshed(uid, state, graph, policy):
            continue
        replaced = draft.cause in ("stale", "tested", "edited", "source")
        if not idempotent(node) and (replaced or _may_have_committed(uid, draft, state, graph)):
            twice.append(uid)
        elif node.materialized == "incremental" and replaced:
            keeps = _looks_at_itself(node, graph) and not _test_mended(draft, changes, graph)
            (passed_over if keeps else stay).append(uid)
    found: list[PlanWarning] = []
    if twice:
        found.append(
            PlanWarning(
                "non_idempotent",
                f"{_names(graph, twice)}: append-only, snapshot, or of a materialization that "
                "dbt-recover does not know, and what it wrote before may stand; running it again "
                "can add the same rows twice. Look at the table first, restore it if need be, or "
                "rebuild an incremental with --full-refresh",
                flag="--allow-non-idempotent",
                allowed=policy.allow_non_idempotent,
            )
        )
    if passed_over:
        found.append(
            PlanWarning(
                "passed_over",
                f"{_names(graph, passed_over)}: incremental, and already fed with data that is "
                "replaced now: what its own filter (is_incremental) passes over would stay wrong in "
                "it; --full-refresh rebuilds it",
                flag="--full-refresh, or --allow-non-idempotent",
                allowed=policy.allow_non_idempotent,
            )
        )
    if stay:
        found.append(
            PlanWarning(
                "merged_rows",
                f"{_names(graph, stay)}: incremental, and already fed with data that is replaced "
                "now: rows that the new data does not have stay in it; --full-refresh rebuilds it",
            )
        )
    return found


def _test_mended(draft: Draft, changes: Changes, graph: Graph) -> bool:
    """Whether its rows were found wrong by a test that was itself edited, and no node above it was:
    the rows may have been right, and the test will say."""
    if draft.cause != "tested":
        return False
    test = graph.nodes[draft.because[0]]
    edited = test.unique_id in changes.nodes or test.original_file_path in changes.files
    return edited and not graph.ancestors([test.unique_id]) & changes.nodes


def _looks_at_itself(node: Node, graph: Graph) -> bool:
    """Whether it asks if it is there already, itself or by a macro: then it takes only new rows."""
    seen: set[str] = set()
    stack = list(node.macros)
    while stack:
        macro = stack.pop()
        if macro.endswith(".is_incremental"):
            return True
        if macro not in seen:
            seen.add(macro)
            stack += graph.macros.get(macro, ())
    return False


def _names(graph: Graph, uids: list[str]) -> str:
    return listing([name_of(graph, u) for u in sorted(uids)], 5)


def _may_have_committed(uid: str, draft: Draft, state: RunState, graph: Graph) -> bool:
    """Whether a node that did not succeed may have written all the same."""
    if draft.cause == "in_flight":
        return True
    word = state.nodes.get(uid)
    if word is None:
        return False
    end = state.invocations[word.index].end
    if draft.cause == "failed":
        # Stopped from outside, or by a hook of its own that ran after its query.
        return end in ("interrupted", "killed") or _has_post_hook(uid, graph)
    if draft.cause == "never_started" and end == "lost":
        # Of a lost machine the archive did not hear the last seconds.
        parents = [state.nodes[p] for p in graph.parents[uid] if p in state.nodes]
        return all(p.result.status in SUCCESSES for p in parents)
    return False


def _has_post_hook(uid: str, graph: Graph) -> bool:
    config = _config(uid, graph)
    return bool(config.get("post-hook") or config.get("post_hook"))


def _config(uid: str, graph: Graph) -> dict[str, object]:
    config = msgspec.json.decode(graph.config_of(graph.nodes[uid]))
    return config if isinstance(config, dict) else {}


def _refreshed(uid: str, state: RunState, graph: Graph, policy: Policy) -> bool:
    """Whether dbt builds it anew: its own config says so before any flag does."""
    own = _config(uid, graph).get("full_refresh")
    if own is not None:
        return bool(own)
    node = state.nodes.get(uid)
    before = node is not None and state.invocations[node.index].args.get("full_refresh")
    return policy.full_refresh or bool(before)
