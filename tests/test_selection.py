"""dbt's selection syntax on small graphs; test_selection_dbt.py compares with dbt itself."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from dbt_recover.graph import Graph, Node
from dbt_recover.selection import Selection, Unsupported, select


def node(uid: str, *parents: str, config: dict[str, Any] | None = None, **fields: Any) -> Node:
    """`model.p.a`, in models/a.sql, below `parents`."""
    kind, package, *_, name = uid.split(".")
    fields.setdefault("name", name)
    fields.setdefault("fqn", [package, name])
    fields.setdefault("original_file_path", f"{kind}s/{name}.sql")
    return Node(
        unique_id=uid,
        resource_type=kind,
        package_name=package,
        depends_on=list(parents),
        config=msgspec.Raw(json.dumps(config or {}).encode()),
        **fields,
    )


def chain(**graph: Any) -> Graph:
    """a -> b -> c -> d, and a test on both a and c."""
    return Graph(
        [
            node("model.p.a"),
            node("model.p.b", "model.p.a"),
            node("model.p.c", "model.p.b"),
            node("model.p.d", "model.p.c"),
            node("test.p.ac", "model.p.a", "model.p.c", test_name="relationships"),
        ],
        project_name="p",
        **graph,
    )


def names(
    graph: Graph, *written: str, exclude: str = "", command: str = "ls", **options: Any
) -> str:
    """The names of what is selected, sorted, with spaces between."""
    selection = Selection(written, (exclude,) if exclude else (), **options)
    return " ".join(sorted(graph.nodes[u].name for u in select(graph, selection, command)))


@pytest.mark.parametrize(
    "written,expected",
    [
        ("c", "c"),
        ("+c", "a b c"),
        ("c+", "c d"),
        ("1+c", "b c"),
        ("0+c", "c"),
        ("c+1", "c d"),
        ("a+2", "a b c"),
        ("1+b+1", "a b c"),
        ("+b+", "a b c d"),
        ("@c", "a b c d"),
        ("a d", "a d"),
        ("+c,b+", "b c"),
        ("a,d", ""),
        ("+b d+,c+", "a b d"),
        ("none", ""),
        ("", ""),
    ],
)
def test_operators(written: str, expected: str) -> None:
    assert names(chain(), written, resource_types=("model",)) == expected


def test_childrens_parents_are_all_that_a_rebuild_below_needs() -> None:
    graph = Graph(
        [
            node("model.p.a"),
            node("model.p.b"),
            node("model.p.ab", "model.p.a", "model.p.b"),
            node("model.p.c"),
        ]
    )
    assert names(graph, "@a") == "a ab b"


def test_several_arguments_are_a_union_and_exclude_takes_away() -> None:
    assert names(chain(), "a", "c d", exclude="c", resource_types=("model",)) == "a d"
    assert names(chain(), exclude="a+1") == "c d"


@pytest.mark.parametrize(
    "written,mode,expected",
    [
        ("a", "eager", "a ac"),
        ("a", "cautious", "a"),
        ("a", "buildable", "a"),
        ("a", "empty", "a"),
        ("c", "eager", "ac c"),
        ("c", "cautious", "c"),
        # buildable: a is above c, so it has been built.
        ("c", "buildable", "ac c"),
        # The parents may come from different parts of a union, ...
        ("a c", "cautious", "a ac c"),
        ("a c", "buildable", "a ac c"),
        ("a c", "empty", "a c"),
        # ... and from the nodes that operators add.
        ("a+2", "cautious", "a ac b c"),
    ],
)
def test_indirect_selection(written: str, mode: str, expected: str) -> None:
    assert names(chain(), written, indirect_selection=mode) == expected


def test_excluding_one_parent_excludes_its_tests_unless_cautious() -> None:
    assert names(chain(), "a c", exclude="c") == "a"
    # Cautious is also the exclusion: it takes no test that has another parent.
    assert names(chain(), "a c", exclude="c", indirect_selection="cautious") == "a ac"


def test_buildable_counts_any_source_for_a_part_but_only_those_above_for_a_union() -> None:
    source = node("source.p.s.t", source_name="s")
    a, b = node("model.p.a"), node("model.p.b")
    one = node("test.p.a_s", "model.p.a", "source.p.s.t")
    assert names(Graph([source, a, one]), "a", indirect_selection="buildable") == "a a_s"
    two = node("test.p.a_b_s", "model.p.a", "model.p.b", "source.p.s.t")
    graph = Graph([source, a, b, two])
    assert names(graph, "a b", indirect_selection="buildable") == "a b"
    assert names(graph, "a b", "source:s", indirect_selection="buildable") == "a a_b_s b t"


def test_tests_of_a_source_and_unit_tests_come_along() -> None:
    graph = Graph(
        [
            node("source.p.s.t", source_name="s"),
            node("test.p.of_t", "source.p.s.t", test_name="not_null"),
            node("model.p.a", "source.p.s.t"),
            node("unit_test.p.a.u", "model.p.a", tested=["model.p.a"]),
        ]
    )
    assert names(graph, "source:s") == "of_t t"
    assert names(graph, "a") == "a u"
    assert names(graph, "a", indirect_selection="empty") == "a"


def methods() -> Graph:
    return Graph(
        [
            node(
                "model.p.orders",
                fqn=["p", "marts", "core", "orders"],
                original_file_path="models/marts/core/orders.sql",
                patch_path="p://models/all.yml",
                tags=["daily", "pii"],
                group="finance",
                access="public",
                config={
                    "materialized": "table",
                    "tags": ["daily"],
                    "enabled": True,
                    "unique_key": ["id", "day"],
                    "meta": {"owner": {"name": "ann"}, "items": "x", "on": True, "n": 3},
                },
            ),
            node(
                "model.q.theirs",
                fqn=["q", "marts", "theirs"],
                original_file_path="models/marts/theirs.sql",
                config={"materialized": "view"},
            ),
            node("seed.p.raw", original_file_path="seeds/raw.csv", tags=["daily"]),
            node("source.p.web.users", source_name="web", original_file_path="models/src.yml"),
            node(
                "test.p.not_null_orders",
                "model.p.orders",
                original_file_path="models/all.yml",
                test_name="not_null",
                config={"severity": "WARN"},
            ),
            node("test.p.check", "model.p.orders", original_file_path="tests/check.sql"),
            node("unit_test.p.orders.u", "model.p.orders", tested=["model.p.orders"]),
            node("exposure.p.board", "model.p.orders", original_file_path="models/board.yml"),
            node("metric.p.total", "model.p.orders", group="growth"),
            node("semantic_model.p.sem", "model.p.orders"),
            node("saved_query.p.saved", "metric.p.total"),
        ],
        files=dict.fromkeys(("dbt_project.yml", "models/marts/core/orders.sql"), "0" * 64),
        project_name="p",
    )


@pytest.mark.parametrize(
    "written,expected",
    [
        ("orders", "orders"),
        ("fqn:orders", "orders"),
        ("marts", "orders theirs"),
        ("p.marts", "orders"),
        ("marts.core.orders", "orders"),
        ("core", ""),
        ("marts.*", "orders theirs"),
        ("p.*.orders", "orders"),
        ("th*", "theirs"),
        ("tag:daily", "orders raw"),
        ("tag:p*", "orders"),
        ("path:models/marts", "orders theirs"),
        ("models/marts/", "orders theirs"),
        ("./models/marts", "orders theirs"),
        # A package's file is found where the project has one of the same name, and only there.
        ("models/marts/*", "orders"),
        ("models/marts/theirs.sql", ""),
        ("models/marts/core/orders.sql", "orders"),
        ("models/**/*.sql", "orders"),
        ("models/all.yml", "not_null_orders orders"),
        ("models/mar", ""),
        ("orders.sql", "orders"),
        ("file:orders", "orders"),
        ("file:*.csv", "raw"),
        ("raw.CSV", ""),
        ("package:q", "theirs"),
        ("package:this,tag:daily", "orders raw"),
        ("source:web", "users"),
        ("source:web.users", "users"),
        ("source:p.web.u*", "users"),
        ("source:q.web.users", ""),
        ("exposure:board", "board"),
        ("exposure:p.*", "board"),
        ("metric:total", "total"),
        ("semantic_model:sem", "sem"),
        ("saved_query:p.saved", "saved"),
        ("unit_test:u", "u"),
        ("group:fin*", "orders"),
        ("group:growth", "total"),
        ("access:public", "orders"),
        ("access:pub*", ""),
        ("resource_type:seed", "raw"),
        ("test_name:not_null", "not_null_orders"),
        ("test_name:u", "u"),
        ("test_type:generic", "not_null_orders"),
        ("test_type:singular", "check"),
        ("test_type:data", "check not_null_orders"),
        ("test_type:unit", "u"),
        ("config.materialized:table", "orders"),
        ("config.materialized:t*", ""),
        ("config.tags:daily", "orders"),
        ("config.unique_key:day", "orders"),
        ("config.enabled:true", "orders"),
        ("config.meta.owner.name:ann", "orders"),
        ("config.meta.on:TRUE", "orders"),
        ("config.meta.n:3", ""),
        ("config.meta.items:x", ""),
        ("config.meta.owner:ann", ""),
        ("config.severity:warn", "not_null_orders"),
        ("config.nothing.here:x", ""),
        ("config:x", ""),
    ],
)
def test_methods(written: str, expected: str) -> None:
    assert names(methods(), written, indirect_selection="empty") == expected


def test_a_path_needs_to_be_in_the_project_as_far_as_we_know() -> None:
    theirs = node("model.q.x", fqn=["q", "x"], original_file_path="models/only/x.sql")
    with pytest.raises(Unsupported, match="models/only"):
        names(Graph([theirs], project_name="p"), "models/only")
    with pytest.raises(Unsupported, match="models"):
        names(Graph([theirs], project_name="p"), "models/*/x.sql")
    files = {"dbt_project.yml": "0" * 64}
    assert names(Graph([theirs], project_name="p", files=files), "models/only") == ""
    files = {"models/only/README.md": "0" * 64}
    assert names(Graph([theirs], project_name="p", files=files), "models/only") == "x"


def versioned() -> Graph:
    def model(version: str) -> Node:
        return node(
            f"model.p.m.v{version}",
            name="m",
            fqn=["p", "marts", "m", f"v{version}"],
            version=version,
            latest_version="2",
        )

    return Graph([model("1"), model("2"), model("10"), node("model.p.plain")])


@pytest.mark.parametrize(
    "written,expected",
    [
        ("m", "1 10 2"),
        ("marts.m", "1 10 2"),
        ("m.v1", "1"),
        ("m_v1", "1"),
        ("marts.m.v2", "2"),
        ("m*", "1 10 2"),
        ("version:latest", "2"),
        ("version:old", "1"),
        ("version:prerelease", "10"),
        ("version:none", ""),
    ],
)
def test_versions(written: str, expected: str) -> None:
    graph = versioned()
    found = select(graph, Selection((written,)), "ls")
    assert " ".join(sorted(graph.nodes[uid].version for uid in found)).strip() == expected


def test_a_command_executes_its_types_and_neither_ephemeral_nor_blank_models() -> None:
    graph = Graph(
        [
            node("seed.p.raw"),
            node("model.p.view", materialized="view"),
            node("model.p.cte", materialized="ephemeral"),
            node("model.p.blank", empty=True),
            node("snapshot.p.snap"),
            node("test.p.check", "model.p.view"),
            node("unit_test.p.view.u", "model.p.view", tested=["model.p.view"]),
            node("analysis.p.look"),
            node("operation.p.hook"),
            node("exposure.p.board", "model.p.view"),
            node("function.p.twice"),
        ]
    )
    assert names(graph, command="run") == "view"
    assert names(graph, command="seed") == "raw"
    assert names(graph, command="snapshot") == "snap"
    assert names(graph, command="test") == "check u"
    assert names(graph, command="build") == "board check raw snap twice u view"
    assert names(graph, command="ls") == "blank board check cte raw snap twice u view"
    assert names(graph, command="ls", resource_types=("analysis",)) == "look"
    assert names(graph, command="build", resource_types=("model", "seed")) == "raw view"
    assert names(graph, command="test", exclude_resource_types=("unit_test",)) == "check"
    assert names(graph, command="ls", models=("view+",)) == "view"
    assert names(graph, command="run", models=("view+",)) == "view"


def test_build_runs_a_unit_test_only_with_its_model() -> None:
    graph = Graph(
        [
            node("model.p.cte", materialized="ephemeral"),
            node("unit_test.p.cte.u", "model.p.cte", tested=["model.p.cte"]),
        ]
    )
    assert names(graph, "unit_test:u", command="build") == ""
    assert names(graph, "unit_test:u", command="test") == "u"
    assert names(graph, "cte", command="build") == "u"


def test_what_differs_between_versions_of_dbt() -> None:
    def graph(version: str) -> Graph:
        nodes = [
            node("model.p.a", fqn=["p", "deep", "a"]),
            node("model.p.blank", "model.p.a", empty=True),
            node("model.p.z", "model.p.blank"),
            node("exposure.p.board", "model.p.z"),
            node("function.p.twice"),
            node("unit_test.p.z.u", "model.p.z", tested=["model.p.z"]),
        ]
        return Graph(nodes, dbt_version=version)

    def run(version: str, written: str, **options: Any) -> str:
        return names(graph(version), written, command="build", **options)

    assert run("1.8.9", "a+") == "a"
    assert run("1.9.0", "a+") == "a u z"
    assert run("1.10.2", "a+") == "a board u z"
    assert run("1.8.9", "+z", indirect_selection="empty") == "z"
    assert run("1.9.0", "+z", indirect_selection="empty") == "a z"
    assert run("1.10.0", "twice") == ""
    assert run("1.11.0", "twice") == "twice"
    for version, expected in [
        ("1.11.15", ""),
        ("1.11.16", "a"),
        ("1.12.5", ""),
        ("1.12.6", "a"),
        ("", "a"),
    ]:
        assert run(version, "[a]*") == expected
    assert names(graph("1.8.0"), command="build", resource_types=("test",)) == "u"
    assert names(graph("1.9.0"), command="build", resource_types=("test", "unit_test")) == ""
    for version in ("1.7.9", "1.13.0", "2.0.0-rc196"):
        with pytest.raises(Unsupported, match="rules"):
            run(version, "a")


def yaml_chain(*definitions: Any, version: str = "", **options: Any) -> str:
    """What the last of `definitions` selects; they are called s0, s1, ..."""
    selectors = {
        f"s{i}": {"name": f"s{i}", "definition": definition}
        for i, definition in enumerate(definitions)
    }
    graph = chain(selectors=selectors, dbt_version=version)
    return names(graph, selector=f"s{len(definitions) - 1}", **options)


@pytest.mark.parametrize(
    "definition,expected",
    [
        ("+b", "a b"),
        ({"fqn": "b"}, "b"),
        ({"method": "fqn", "value": "b", "parents": True, "children": True}, "a b c d"),
        ({"method": "fqn", "value": "c", "parents": True, "parents_depth": "1"}, "b c"),
        ({"method": "fqn", "value": "c", "parents": True, "parents_depth": 1}, "b c"),
        # dbt takes the number 0 for no limit.
        ({"method": "fqn", "value": "c", "parents": True, "parents_depth": 0}, "a b c"),
        ({"method": "fqn", "value": "d", "childrens_parents": True}, "a b c d"),
        ({"union": [{"method": "fqn", "value": "a"}, "d"]}, "a d"),
        ({"intersection": ["+c", "b+"]}, "b c"),
        ({"union": ["a+", {"exclude": ["c", "d"]}]}, "a b"),
        ({"method": "fqn", "value": "a", "children": True, "exclude": ["c+"]}, "a b"),
        ({"union": [{"intersection": ["+c", "b+"]}, {"union": ["d"]}]}, "b c d"),
        # In a group, dbt takes only the exclusion from a part that has one.
        ({"union": ["a", "d", {"method": "fqn", "value": "b", "exclude": ["d"]}]}, "a"),
    ],
)
def test_yaml_selectors(definition: Any, expected: str) -> None:
    assert yaml_chain(definition, resource_types=("model",)) == expected


def test_a_yaml_selector_has_its_own_indirect_selection() -> None:
    eager = {"method": "fqn", "value": "a", "indirect_selection": "eager"}
    assert yaml_chain(eager, indirect_selection="empty") == "a ac"
    # Its groups are eager, so they never join the tests of several parts.
    assert yaml_chain({"union": ["a", "c"]}, indirect_selection="cautious") == "a c"
    assert names(chain(), "a c", indirect_selection="cautious") == "a ac c"


def test_a_yaml_selector_can_inherit() -> None:
    inherits = {"method": "selector", "value": "s0"}
    without_tests = {"union": ["a", {"exclude": ["ac"]}]}
    assert yaml_chain("a+1", {"union": [inherits, "d"]}, version="1.11.0") == "a ac b d"
    assert yaml_chain("a+1", {"union": [inherits, "d"]}, version="1.12.0") == "a ac b d"
    # Since 1.12 it is a method, for which operators work, and which brings no tests along again.
    family = {**inherits, "children": True}
    assert yaml_chain(without_tests, family, version="1.11.0") == "a"
    assert yaml_chain(without_tests, family, version="1.12.0") == "a ac b c d"
    selectors = {"s0": {"name": "s0", "definition": "a"}}
    graph = chain(selectors=selectors, dbt_version="1.12.0")
    assert names(graph, "selector:s*+1") == "a ac b"


def test_the_default_selector_counts_when_nothing_is_selected() -> None:
    selectors = {"daily": {"name": "daily", "default": True, "definition": "b"}}
    graph = chain(selectors=selectors)
    assert names(graph) == "b"
    assert names(graph, "d") == "d"
    assert names(graph, exclude="a+1") == "c d"
    unclear = {"daily": {"name": "daily", "default": "{{ var('x') }}", "definition": "b"}}
    with pytest.raises(Unsupported, match="daily"):
        names(chain(selectors=unclear))


@pytest.mark.parametrize(
    "written",
    [
        "state:modified",
        "result:error",
        "source_status:fresher",
        "nonsense:x",
        "selector:none",
        "@a+",
        "resource_type:nonsense",
        "test_type:nonsense",
        "version:2",
        "source:a.b.c.d",
        "exposure:a.b.c",
        "/models",
        "../models/a.sql",
        "models/**a/b.sql",
        "path:",
    ],
)
def test_what_is_left_to_dbt(written: str) -> None:
    with pytest.raises(Unsupported):
        names(chain(), written)


@pytest.mark.parametrize(
    "options",
    [
        {"command": "source"},
        {"command": "run", "resource_types": ("model",)},
        {"command": "build", "resource_types": ("nonsense",)},
        {"indirect_selection": "nonsense"},
        {"selector": "nowhere"},
    ],
)
def test_commands_and_options_that_are_left_to_dbt(options: dict[str, Any]) -> None:
    with pytest.raises(Unsupported):
        names(chain(), **options)


@pytest.mark.parametrize(
    "definition",
    [
        {"method": "selector", "value": "s0"},
        {"method": "tag"},
        {"tag": ["a", "b"]},
        {"method": "tag", "value": 3},
        {"union": "a"},
        {"union": [{"exclude": ["a"]}, {"exclude": ["b"]}]},
        {"method": "fqn", "value": "a", "indirect_selection": "sometimes"},
        {"method": "fqn", "value": "a", "parents_depth": "many"},
        ["a"],
    ],
)
@pytest.mark.parametrize("version", ["1.11.0", "1.12.0"])
def test_yaml_selectors_that_are_left_to_dbt(definition: Any, version: str) -> None:
    with pytest.raises(Unsupported):
        yaml_chain(definition, version=version)
