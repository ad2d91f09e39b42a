"""manifest.json and the compact graph: what is read, and how damage is told."""

from __future__ import annotations

import gc
import json
import mmap
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dbt_recover.compact_graph import decode_graph, encode_graph
from dbt_recover.errors import DamagedError
from dbt_recover.graph import GRAPH_VERSION, Graph, Node
from dbt_recover.manifest import read_graph, read_manifest

SCHEMA = "https://schemas.getdbt.com/dbt/manifest/v12.json"


def manifest(*nodes: dict[str, Any], **sections: Any) -> dict[str, Any]:
    metadata = {
        "dbt_schema_version": SCHEMA,
        "dbt_version": "1.11.16",
        "generated_at": "2026-11-22T14:57:11.250824Z",
        "invocation_id": "c1e2d57e",
        "project_name": "p",
        "adapter_type": "duckdb",
        "env": {"unknown": "field"},
    }
    return {"metadata": metadata, "nodes": {n["unique_id"]: n for n in nodes}, **sections}


def read(document: dict[str, Any]) -> Graph:
    return read_graph(json.dumps(document).encode())


def read_only(**fields: Any) -> Graph:
    uid = fields.setdefault("unique_id", "model.p.a")
    fields.setdefault("resource_type", uid.split(".")[0])
    return read(manifest(fields))


def read_one(**fields: Any) -> Node:
    (node,) = read_only(**fields).nodes.values()
    return node


def test_equal_configs_are_kept_once() -> None:
    shared = {"materialized": "view", "meta": {"a": 1}}
    graph = read(
        manifest(
            {"unique_id": "model.p.a", "config": shared},
            {"unique_id": "model.p.b", "config": {"materialized": "table"}},
            {"unique_id": "model.p.c", "config": shared},
        )
    )
    assert len(graph.configs) == 2
    again = decode_graph(encode_graph(graph))
    found = [json.loads(bytes(again.config_of(n))) for n in again.nodes.values()]
    assert found == [shared, {"materialized": "table"}, shared]


def test_reads_a_model() -> None:
    graph = read_only(
        name="a",
        package_name="p",
        fqn=["p", "marts", "a"],
        tags=["daily"],
        path="marts/a.sql",
        original_file_path="models/marts/a.sql",
        patch_path="p://models/all.yml",
        checksum={"name": "sha256", "checksum": "73df"},
        depends_on={"macros": ["macro.p.m", None], "nodes": ["source.p.s.t"]},
        config={
            "materialized": "incremental",
            "incremental_strategy": "microbatch",
            "unique_key": ["id"],
            "group": "finance",
            "meta": {"é": 1},
        },
        raw_code="select 1",
        access="public",
        version=2.0,
        latest_version="2",
        relation_name='"db"."main"."a"',
        columns={"skipped": {}},
    )
    (node,) = graph.nodes.values()
    assert msgspec.structs.replace(node, config_at=-1) == Node(
        unique_id="model.p.a",
        resource_type="model",
        name="a",
        package_name="p",
        fqn=["p", "marts", "a"],
        tags=["daily"],
        path="marts/a.sql",
        original_file_path="models/marts/a.sql",
        patch_path="p://models/all.yml",
        checksum="73df",
        depends_on=["source.p.s.t"],
        macros=["macro.p.m"],
        materialized="incremental",
        incremental_strategy="microbatch",
        unique_key=True,
        group="finance",
        access="public",
        version="2",
        latest_version="2",
        relation_name='"db"."main"."a"',
        microbatch=True,
    )
    assert json.loads(bytes(graph.config_of(node)))["meta"] == {"é": 1}


def test_reads_a_generic_test() -> None:
    node = read_one(
        unique_id="test.p.not_null.a",
        config={"severity": "WARN", "unique_key": None},
        checksum={"name": "none", "checksum": ""},
        test_metadata={"name": "not_null", "namespace": "dbt_utils", "kwargs": {}},
        attached_node="model.p.a",
        column_name="id",
        raw_code="{{ test_not_null(**_dbt_generic_test_kwargs) }}",
    )
    assert (node.severity, node.test_name, node.test_namespace) == ("warn", "not_null", "dbt_utils")
    assert (node.attached_node, node.column_name, node.checksum) == ("model.p.a", "id", "")
    assert not node.unique_key
    assert not node.empty


def test_reads_what_stands_beside_nodes() -> None:
    graph = read(
        manifest(
            sources={"source.p.s.t": {"source_name": "s", "name": "t"}},
            exposures={
                "exposure.p.e": {"owner": {"name": None, "email": ["a@x", "b@x"]}},
                "exposure.p.f": {"owner": {"name": "ann"}, "tags": "daily"},
            },
            metrics={"metric.p.m": {"depends_on": {"nodes": ["semantic_model.p.sm"]}}},
            semantic_models={"semantic_model.p.sm": {}},
            saved_queries={"saved_query.p.q": {}},
            unit_tests={
                "unit_test.p.a.u": {
                    "checksum": "f00",
                    "config": {"tags": ["unit"]},
                    "depends_on": {"nodes": ["model.p.a"]},
                }
            },
            functions={"function.p.f": {"raw_code": ""}},
            macros={
                "macro.p.m": {
                    "package_name": "p",
                    "original_file_path": "macros/m.sql",
                    "depends_on": {"macros": ["macro.q.n"]},
                },
                "macro.q.n": {"package_name": "q", "original_file_path": "macros/n.sql"},
            },
            selectors={"daily": {"name": "daily", "definition": {"method": "tag"}}},
        )
    )
    types = {uid: node.resource_type for uid, node in graph.nodes.items()}
    assert types == {uid: uid.split(".")[0] for uid in types}
    assert len(types) == 8
    assert graph.nodes["source.p.s.t"].source_name == "s"
    assert graph.nodes["exposure.p.e"].owner == "a@x, b@x"
    assert graph.nodes["exposure.p.f"].owner == "ann"
    assert graph.nodes["exposure.p.f"].tags == ["daily"]
    assert graph.nodes["unit_test.p.a.u"].tested == ["model.p.a"]
    assert graph.nodes["unit_test.p.a.u"].tags == ["unit"]
    assert not graph.nodes["function.p.f"].empty
    assert graph.macros == {"macro.p.m": ["macro.q.n"], "macro.q.n": []}
    assert graph.macro_files == {"macro.p.m": "macros/m.sql"}
    assert graph.selectors["daily"] == {"name": "daily", "definition": {"method": "tag"}}


@pytest.mark.parametrize(
    "code,empty",
    [
        ("", True),
        (" \n\t\r\f\v\u00a0\u2003", True),
        ("\\n", False),
        (" \u00e9", False),
        ("\n\nselect 1", False),
        (None, False),
    ],
)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_a_model_is_empty_as_dbt_has_it(code: str | None, empty: bool, ascii_only: bool) -> None:
    document = manifest({"unique_id": "model.p.a", "resource_type": "model", "raw_code": code})
    graph = read_graph(json.dumps(document, ensure_ascii=ascii_only).encode())
    assert graph.nodes["model.p.a"].empty is empty


def test_a_seed_or_a_node_without_code_is_not_empty() -> None:
    assert not read_one(unique_id="seed.p.a", raw_code="").empty
    assert not read_one(unique_id="model.p.a").empty


def test_a_disabled_node_is_not_in_the_graph() -> None:
    off = {"unique_id": "test.p.t", "resource_type": "test", "config": {"enabled": False}}
    assert read(manifest(off)).nodes == {}


def test_odd_configs_are_read() -> None:
    assert read_one(config=None).materialized == ""
    assert read_one(config=None).config == msgspec.Raw(b"{}")
    node = read_one(config={"materialized": 3, "severity": None, "group": [], "unique_key": ""})
    assert (node.materialized, node.severity, node.group, node.unique_key) == ("", "", "", False)


def test_says_where_the_manifest_comes_from() -> None:
    info, graph = read_manifest(json.dumps(manifest()).encode())
    assert info.project_name == graph.project_name == "p"
    assert info.dbt_version == graph.dbt_version == "1.11.16"
    assert info.invocation_id == "c1e2d57e"
    assert info.generated_at == "2026-11-22T14:57:11.250824Z"
    assert info.adapter_type == "duckdb"
    assert info.dbt_schema_version == SCHEMA


@pytest.mark.parametrize("version", [9, 10, 11, 12, 20])
def test_known_schemas(version: int) -> None:
    document = manifest()
    document["metadata"]["dbt_schema_version"] = SCHEMA.replace("v12", f"v{version}")
    assert read(document).project_name == "p"


@pytest.mark.parametrize(
    "data,message",
    [
        (b"", "manifest.json is empty"),
        (b"\x00\x01", "not whole JSON"),
        (b'{"metadata": {}, "nodes": {"model.p', "not whole JSON"),
        (b'{"metadata": {"project_name": "\xff"}}', "not whole JSON"),
        (b"[]", "not a dbt manifest"),
        (b"{}", "it has no metadata"),
        (b'{"metadata": {}}', "it has no nodes"),
        (b'{"metadata": {}, "nodes": []}', "not a dbt manifest"),
        (b'{"x":' * 100_000, "nested too deeply"),
        (
            b'{"metadata": {"dbt_schema_version": "https://x/dbt/run-results/v6.json"}}',
            "it says it is run-results",
        ),
        (
            b'{"metadata": {}, "nodes": {"model.p.a": {"config": []}}}',
            "the config of model.p.a cannot be read",
        ),
    ],
)
def test_damage_is_told_by_name(data: bytes, message: str) -> None:
    with pytest.raises(DamagedError, match=message):
        read_graph(data)


def test_a_newer_schema_is_told_even_if_nothing_in_it_has_the_known_shape() -> None:
    document = {
        "metadata": {"dbt_schema_version": SCHEMA.replace("v12", "v13")},
        "nodes": ["in", "another", "shape"],
    }
    with pytest.raises(DamagedError, match=r"prod/manifest.json has schema manifest/v13") as error:
        read_graph(json.dumps(document).encode(), name="prod/manifest.json")
    assert error.value.hint == "upgrade dbt-recover"


def test_an_older_schema_is_told() -> None:
    document = manifest()
    document["metadata"]["dbt_schema_version"] = SCHEMA.replace("v12", "v8")
    with pytest.raises(DamagedError, match="manifest/v8; the oldest"):
        read(document)


def test_any_buffer_is_read_and_none_is_kept(tmp_path: Path) -> None:
    data = json.dumps(
        manifest({"unique_id": "model.p.a", "config": {"materialized": "view"}, "raw_code": "x"})
    ).encode()
    expected = read_graph(data).nodes
    assert read_graph(bytearray(data)).nodes == expected
    assert read_graph(memoryview(data)).nodes == expected
    file = tmp_path / "manifest.json"
    file.write_bytes(data)
    with file.open("rb") as opened:
        mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        graph = read_graph(mapped)
        mapped.close()  # refused while something of it is in use
    assert graph.nodes == expected


def test_the_garbage_collector_is_left_as_it_was() -> None:
    assert gc.isenabled()
    read(manifest())
    assert gc.isenabled()
    gc.disable()
    try:
        read(manifest())
        assert not gc.isenabled()
    finally:
        gc.enable()


def full_graph() -> Graph:
    return Graph(
        [
            Node("model.p.a", resource_type="model", config=msgspec.Raw(b'{"a":1}'), empty=True),
            Node("test.p.t", resource_type="test", depends_on=["model.p.a"], severity="warn"),
            Node("model.p.b", config_at=0),
        ],
        configs=[msgspec.Raw(b'{"b":2}')],
        project_name="p",
        dbt_version="1.11.16",
        macros={"macro.p.m": ["macro.p.n"]},
        macro_files={"macro.p.m": "macros/m.sql"},
        files={"models/a.sql": "0" * 64},
        selectors={"s": {"name": "s", "definition": {"union": ["a"]}}},
    )


def test_a_graph_survives_the_archive() -> None:
    graph = full_graph()
    again = decode_graph(encode_graph(graph))
    assert vars(again) == vars(graph)
    assert encode_graph(again) == encode_graph(graph)


def test_a_graph_of_an_older_writer_reads() -> None:
    assert decode_graph(b'{"version":1,"nodes":[{"unique_id":"model.p.a"}]}').nodes == {
        "model.p.a": Node("model.p.a")
    }


@pytest.mark.parametrize(
    "data,message",
    [
        (b"", "graph.json is empty"),
        (b'{"version":1', "not whole JSON"),
        (b"[]", "not a dbt graph"),
        (b"{}", "has no version"),
        (b'{"version":1,"nodes":{}}', "not a dbt graph"),
        (b'{"version":1,"nodes":[{"unique_id":"a","config_at":0}]}', "config is missing"),
    ],
)
def test_a_damaged_graph_is_told_by_name(data: bytes, message: str) -> None:
    with pytest.raises(DamagedError, match=message):
        decode_graph(data)


@pytest.mark.parametrize("nodes", ["[]", '"in another shape"'])
def test_a_newer_graph_is_told(nodes: str) -> None:
    data = f'{{"version":{GRAPH_VERSION + 1},"nodes":{nodes}}}'.encode()
    with pytest.raises(DamagedError, match="graph version 2") as error:
        decode_graph(data)
    assert error.value.hint == "upgrade dbt-recover"
