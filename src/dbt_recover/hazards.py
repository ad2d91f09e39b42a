"""What could go wrong if a plan were carried out: planning rule 7, as far as the graph tells. Pure."""

from __future__ import annotations

import shlex

import msgspec

from .decision import Changes, Draft, PlanWarning, Policy, is_buildable, name_of
from .graph import Graph, Node
from .model import SUCCESSES, RunState, as_word


def drift(
    drafts: dict[str, Draft], changes: Changes, graph: Graph, policy: Policy
) -> list[PlanWarning]:
    above = graph.ancestors(drafts)
    outside = sorted(
        u
        for u in changes.nodes
        if u not in drafts and not (u in above and graph.nodes[u].materialized == "ephemeral")
    )
    if not outside or not drafts:
        return []
    names = ", ".join(name_of(graph, u) for u in outside[:5])
    more = f" and {len(outside) - 5} more" if len(outside) > 5 else ""
    return [
        PlanWarning(
            "drift",
            f"edited since the run, outside of the plan: {names}{more}. The retry runs today's "
            "code; what is outside of the plan keeps what the run built with the old code",
            flag="--allow-drift",
            allowed=policy.allow_drift,
        )
    ]


def idempotent(node: Node) -> bool:
    """Whether running the node twice leaves what running it once does."""
    if node.resource_type == "snapshot" or node.materialized == "snapshot":
        return False
    if node.materialized != "incremental":
        return True
    if node.incremental_strategy == "append":
        return False
    return (
        node.unique_key
        or node.microbatch
        or node.incremental_strategy in ("insert_overwrite", "replace_where")
    )


def not_idempotent(
    drafts: dict[str, Draft], state: RunState, graph: Graph, policy: Policy
) -> list[PlanWarning]:
    """Nodes whose earlier execution may stand in the table when they run again."""
    twice: list[str] = []
    stay: list[str] = []
    for uid, draft in drafts.items():
        node = graph.nodes.get(uid)
        if node is None or not is_buildable(graph, uid) or node.microbatch:
            continue
        full_refresh = policy.full_refresh or _ran_with_full_refresh(state, uid)
        if node.materialized == "incremental" and full_refresh:
            continue
        replaced = draft.cause in ("stale", "tested", "edited", "source")
        if not idempotent(node) and (replaced or _may_have_committed(uid, draft, state, graph)):
            twice.append(uid)
        elif node.materialized == "incremental" and replaced:
            stay.append(uid)
    found: list[PlanWarning] = []
    if twice:
        found.append(
            PlanWarning(
                "non_idempotent",
                f"{_names(graph, twice)}: append-only or snapshot, and what it wrote before may "
                "stand; running it again can add the same rows twice. Look at the table first, "
                "restore it if need be, or rebuild an incremental with --full-refresh",
                flag="--allow-non-idempotent",
                allowed=policy.allow_non_idempotent,
            )
        )
    if stay:
        found.append(
            PlanWarning(
                "merged_rows",
                f"{_names(graph, stay)}: incremental, and already fed with data that is replaced "
                "now: rows that the new data does not have stay in it, and what its own filter "
                "passes over is not corrected; --full-refresh rebuilds it",
            )
        )
    return found


def _names(graph: Graph, uids: list[str]) -> str:
    names = ", ".join(name_of(graph, u) for u in sorted(uids)[:5])
    return names + (f" and {len(uids) - 5} more" if len(uids) > 5 else "")


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
    config = msgspec.json.decode(graph.config_of(graph.nodes[uid]))
    return bool(isinstance(config, dict) and (config.get("post-hook") or config.get("post_hook")))


def _ran_with_full_refresh(state: RunState, uid: str) -> bool:
    node = state.nodes.get(uid)
    return node is not None and bool(state.invocations[node.index].args.get("full_refresh"))


def command_again(state: RunState, graph: Graph, about: str = "") -> str:
    """The line that runs a command of the run again: that which `about`, a hook, belongs to, else
    the first. Without what would write the same rows twice."""
    invocation = state.first
    if about in state.nodes:
        own = state.invocations[state.nodes[about].index]
        if own.intended is None:  # a retry's command lacks its selection
            invocation = own
    twice = sorted(
        name_of(graph, uid)
        for uid, node in state.nodes.items()
        if node.result.status in SUCCESSES
        and is_buildable(graph, uid)
        and uid in graph.nodes
        and not idempotent(graph.nodes[uid])
    )
    argv = [
        *(invocation.argv or ["dbt", invocation.command]),
        *(["--exclude", *twice] if twice else []),
    ]
    step = f" --step {shlex.quote(invocation.step)}" if invocation.step else ""
    return f"dbt-recover exec --run-id {as_word(state.run.run_id)}{step} -- {shlex.join(argv)}"
