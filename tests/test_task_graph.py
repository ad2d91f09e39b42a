"""The graph as tasks: what goes together, what waits for what, and that dbt selects exactly that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dbt_recover.errors import UsageError
from dbt_recover.graph import Graph, Node
from dbt_recover.task_graph import task_graph, write
from projects import Checkout, demo


def node(uid: str, *parents: str, **more: Any) -> Node:
    kind, package, *name = uid.split(".")
    return Node(
        uid,
        kind,
        name[-1],
        fqn=[package, *name],
        depends_on=list(parents),
        original_file_path=f"{kind}s/{'/'.join(name)}.sql",
        **more,
    )


def tasks(*nodes: Node) -> dict[str, tuple[list[str], list[str]]]:
    made = task_graph(Graph(list(nodes)))["nodes"]
    order = [n["task"] for n in made]
    for each in made:
        assert all(order.index(a) < order.index(each["task"]) for a in each["after"])
    return {n["task"]: (n["select"], n["after"]) for n in made}


def test_a_test_goes_with_the_last_of_its_models() -> None:
    found = tasks(
        node("model.p.b", "model.p.a"),
        node("model.p.a", "seed.p.s", "source.p.raw.x"),
        node("seed.p.s"),
        node("model.p.c"),
        node("test.p.of_a", "model.p.a"),
        node("test.p.a_and_b", "model.p.b", "model.p.a"),
        node("test.p.a_and_c", "model.p.a", "model.p.c"),
        node("test.p.of_source", "source.p.raw.x"),
        node("unit_test.p.b.unit", "model.p.b", tested=["model.p.b"]),
    )
    assert found == {
        "seed.p.s": (["fqn:p.s"], []),
        "model.p.a": (["fqn:p.a", "fqn:p.of_a"], ["seed.p.s"]),
        "model.p.b": (["fqn:p.b", "fqn:p.a_and_b", "fqn:p.b.unit"], ["model.p.a"]),
        "model.p.c": (["fqn:p.c"], []),
        "test.p.a_and_c": (["fqn:p.a_and_c"], ["model.p.a", "model.p.c"]),
        "test.p.of_source": (["fqn:p.of_source"], []),
    }


def test_ephemeral_models_have_no_task_and_pass_on_what_is_above() -> None:
    found = tasks(
        node("model.p.a"),
        node("model.p.e", "model.p.a", materialized="ephemeral"),
        node("model.p.f", "model.p.e", materialized="ephemeral"),
        node("model.p.b", "model.p.f"),
        node("test.p.of_e", "model.p.f"),
    )
    assert found == {
        "model.p.a": (["fqn:p.a", "fqn:p.of_e"], []),
        "model.p.b": (["fqn:p.b"], ["model.p.a"]),
    }


def test_a_model_with_the_name_of_a_folder_and_one_with_a_long_name() -> None:
    long = "model.p." + "x" * 300
    found = tasks(node("model.p.a"), node("model.p.a.b"), node(long), node("test.p.t", long))
    assert found["model.p.a"] == (["fqn:p.a,path:models/a.sql"], [])
    assert found["model.p.a.b"] == (["fqn:p.a.b"], [])
    assert all(len(name) <= 250 for name in found)
    assert len(found) == 3


def test_it_is_written_at_once(tmp_path: Path) -> None:
    file = tmp_path / "graph.json"
    file.write_text("old")
    write({"version": 1, "nodes": []}, file)
    assert json.loads(file.read_text()) == {"version": 1, "nodes": []}
    assert [p.name for p in tmp_path.iterdir()] == ["graph.json"]
    with pytest.raises(UsageError, match="cannot write"):
        write({}, tmp_path / "none" / "graph.json")


@pytest.mark.slow
def test_dbt_selects_exactly_the_nodes_of_each_task(tmp_path: Path) -> None:
    """Of the demo project: every node once, in one task; from the manifest and from the archive."""
    here = demo(tmp_path / "here")
    here.mend()
    ran = here.recover("exec", "--", "dbt", "build")
    assert ran.code == 0, ran
    graphs = [_drawn(here, "--manifest", "target/manifest.json"), _drawn(here, "latest")]
    assert graphs[0] == graphs[1]
    built = [u for u in here.run_results() if not u.startswith("exposure.")]
    selected = sorted(
        line
        for each in graphs[0]["nodes"]
        if each["task"].endswith(("stg_accounts", "account_health", "raw_plans"))
        for line in _listed(here, each["select"])
    )
    assert {"model.b2b_analytics.stg_accounts", "model.b2b_analytics.account_health"} < set(
        selected
    )
    assert "unit_test.b2b_analytics.account_health.health_of_an_account" in selected
    assert len(selected) == len(set(selected))
    assert set(selected) <= set(built)
    assert sum(len(each["select"]) for each in graphs[0]["nodes"]) == len(built)


def _drawn(here: Checkout, *words: str) -> Any:
    ran = here.recover("graph", *words, "--to", here.home / "graph.json")
    assert ran.code == 0, ran
    return json.loads((here.home / "graph.json").read_text())


def _listed(here: Checkout, selection: list[str]) -> list[str]:
    words = ("--quiet", "ls", "--output", "json", "--output-keys", "unique_id")
    ran = here.dbt(*words, "--indirect-selection", "empty", "--select", *selection)
    assert ran.code == 0, ran
    return [json.loads(line)["unique_id"] for line in ran.out.splitlines()]
