"""What dbt leaves, read: run_results.json and manifest.json of every schema we know, and everything
that can be wrong with them. Whatever the bytes are, it is read rightly or refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dbt_recover.artifacts import read_run_results, schema_number, synthesise_run_results
from dbt_recover.compact_graph import decode_graph, encode_graph
from dbt_recover.errors import DamagedError
from dbt_recover.graph import GRAPH_VERSION, Graph, Node
from dbt_recover.manifest import read_graph, read_manifest
from dbt_recover.model import FAILURES, SKIPPED, SUCCESSES

untimed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""A machine at work elsewhere is no failure."""

FIXTURES = Path(__file__).parent / "fixtures" / "artifacts"
URL = "https://schemas.getdbt.com/dbt"


def fixture(name: str, file: str) -> bytes:
    """One of fixtures/artifacts, described in the README there."""
    return (FIXTURES / name / file).read_bytes()


def run_results(**fields: Any) -> bytes:
    """A small run_results.json with these fields in place of its own."""
    document = {
        "metadata": {
            "dbt_schema_version": f"{URL}/run-results/v6.json",
            "dbt_version": "1.11.16",
            "generated_at": "2026-01-31T06:05:00Z",
            "invocation_id": "i",
            "invocation_started_at": "2026-01-31T06:00:00Z",
            "env": {},
        },
        "results": [result()],
        "elapsed_time": 1.5,
        "args": {"which": "build"},
        **fields,
    }
    return json.dumps({k: v for k, v in document.items() if v is not None}).encode()


def result(**fields: Any) -> dict[str, Any]:
    """One result, as dbt 1.11 writes it."""
    return {
        "status": "success",
        "timing": [
            {
                "name": "compile",
                "started_at": "2026-01-31T06:00:01Z",
                "completed_at": "2026-01-31T06:00:02Z",
            },
            {
                "name": "execute",
                "started_at": "2026-01-31T06:00:02Z",
                "completed_at": "2026-01-31T06:00:03Z",
            },
        ],
        "thread_id": "Thread-1 (worker)",
        "execution_time": 2.0,
        "adapter_response": {"_message": "SUCCESS 1", "query_id": "01b2-q"},
        "message": "SUCCESS 1",
        "failures": None,
        "unique_id": "model.shop.orders",
        "compiled": True,
        "compiled_code": "select 1",
        "relation_name": '"shop"."main"."orders"',
        "batch_results": None,
        **fields,
    }


# ---- run_results.json --------------------------------------------------------------------------


def test_results_as_dbt_writes_them() -> None:
    ran = read_run_results(fixture("good", "run_results.json"))
    assert ran.dbt_version.startswith("1.11")
    assert ran.args["which"] == "build"
    assert ran.started_at < ran.generated_at
    assert ran.elapsed > 0
    statuses = [r.status for r in ran.results.values()]
    assert sum(s in SUCCESSES for s in statuses) == 4
    assert sorted(s for s in statuses if s in FAILURES) == ["error", "fail"]
    assert statuses.count(SKIPPED) == 2


def test_one_result_field_by_field() -> None:
    batches = {"successful": [["a", "b"]], "failed": [["b", "c"]]}
    ran = read_run_results(run_results(results=[result(failures=3, batch_results=batches)]))
    found = ran.results["model.shop.orders"]
    assert msgspec.structs.asdict(found) == {
        "unique_id": "model.shop.orders",
        "status": "success",
        "message": "SUCCESS 1",
        "execution_time": 2.0,
        "started_at": "2026-01-31T06:00:01Z",
        "completed_at": "2026-01-31T06:00:03Z",
        "failures": 3,
        "query_id": "01b2-q",
        "relation_name": '"shop"."main"."orders"',
        "batches_done": [["a", "b"]],
        "batches_failed": [["b", "c"]],
        "thread": "Thread-1 (worker)",
    }


def test_what_dbt_1_7_wrote() -> None:
    ran = read_run_results(fixture("older_schema_v5", "run_results.json"))
    assert ran.dbt_version.startswith("1.7")
    # It does not say when the invocation began: its first node did then.
    assert ran.started_at == min(r.started_at for r in ran.results.values() if r.started_at)
    assert len(ran.results) == 8


def test_what_dbt_1_5_wrote() -> None:
    # v4: nothing of the compiled code, and nothing that came later.
    old = {k: v for k, v in result().items() if k not in ("compiled", "compiled_code")}
    del old["relation_name"], old["batch_results"]
    metadata = {
        "dbt_schema_version": f"{URL}/run-results/v4.json",
        "dbt_version": "1.5.0",
        "generated_at": "2026-01-31T06:05:00Z",
        "invocation_id": "i",
        "env": {},
    }
    ran = read_run_results(run_results(metadata=metadata, results=[old]))
    assert ran.started_at == "2026-01-31T06:00:01Z"
    assert ran.results["model.shop.orders"].relation_name == ""


def test_with_no_node_the_file_s_own_time_is_the_beginning() -> None:
    metadata = {"generated_at": "2026-01-31T06:05:00Z", "invocation_id": "i"}
    ran = read_run_results(run_results(metadata=metadata, results=[]))
    assert ran.started_at == "2026-01-31T06:05:00Z"


def test_a_message_may_be_a_number() -> None:
    # Of tests, up to dbt 1.4; some adapters still do it.
    ran = read_run_results(run_results(results=[result(message=3)]))
    assert ran.results["model.shop.orders"].message == "3"


@pytest.mark.parametrize(
    "field",
    ["message", "failures", "thread_id", "execution_time", "adapter_response", "relation_name"],
)
def test_a_field_may_be_null(field: str) -> None:
    ran = read_run_results(run_results(results=[result(**{field: None})]))
    assert ran.results["model.shop.orders"].status == "success"


def test_an_unknown_status_and_unknown_fields_are_read() -> None:
    ran = read_run_results(fixture("unknown_status", "run_results.json"))
    assert "quarantined" in {r.status for r in ran.results.values()}


def test_a_newer_version_is_refused_by_name() -> None:
    with pytest.raises(DamagedError, match=r"run-results/v99"):
        read_run_results(fixture("newer_run_results_version", "run_results.json"))


@pytest.mark.parametrize("results", [{}, None, [{"node": "x"}], [result(status=1)], "none"])
def test_a_newer_version_of_another_shape_is_refused_by_name(results: object) -> None:
    metadata = {"dbt_schema_version": f"{URL}/run-results/v7.json"}
    with pytest.raises(DamagedError, match=r"run-results/v7"):
        read_run_results(run_results(metadata=metadata, results=results))


def test_another_artifact_is_no_run_results() -> None:
    # sources.json has results, too, each with unique_id and status.
    metadata = {"dbt_schema_version": f"{URL}/sources/v3.json"}
    sources = [{"unique_id": "source.shop.raw.orders", "status": "pass", "max_loaded_at": "x"}]
    with pytest.raises(DamagedError):
        read_run_results(run_results(metadata=metadata, results=sources))
    with pytest.raises(DamagedError):
        read_run_results(fixture("good", "manifest.json"))


def test_the_name_of_the_file_is_in_the_message() -> None:
    for data in (b"", b"{", b"[]", b"{}"):
        with pytest.raises(DamagedError, match=r"target/run_results.json"):
            read_run_results(data, "target/run_results.json")


def test_an_empty_file_is_told_apart() -> None:
    for data in (fixture("empty_run_results", "run_results.json"), b"\n \n"):
        with pytest.raises(DamagedError, match="empty") as caught:
            read_run_results(data)
        assert "exec" in caught.value.hint


def test_truncated_at_any_byte_it_is_refused() -> None:
    whole = fixture("good", "run_results.json").rstrip()
    read_run_results(whole)
    for end in range(len(whole)):
        with pytest.raises(DamagedError):
            read_run_results(whole[:end])


@pytest.mark.parametrize(
    "data",
    [
        b"null",
        b"[]",
        b'"text"',
        b"<html>not found</html>",
        b"\xff\xfe{\x00}\x00",
        b'{"metadata": {}, "results": [{"unique_id": "model.shop.\xff", "status": "success"}]}',
        b'{"metadata": {}, "results": [], "x": ' + b"[" * 100_000,
        b'{"metadata": {}, "results": [], "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
    ids=lambda data: repr(data[:30]),
)
def test_what_is_no_run_results_is_refused(data: bytes) -> None:
    with pytest.raises(DamagedError):
        read_run_results(data)


READERS: list[tuple[str, Callable[[bytes], object]]] = [
    ("run_results.json", read_run_results),
    ("manifest.json", read_graph),
]


@pytest.mark.parametrize("file, read", READERS)
@untimed
@given(at=st.integers(0, 30_000), new=st.binary(min_size=1, max_size=3))
def test_altered_bytes_are_read_or_refused(
    file: str, read: Callable[[bytes], object], at: int, new: bytes
) -> None:
    whole = fixture("good", file)
    at %= len(whole)
    try:
        read(whole[:at] + new + whole[at + len(new) :])
    except DamagedError:
        return


# ---- what we write for dbt ---------------------------------------------------------------------

names = st.text(min_size=1, max_size=20).map("model.shop.".__add__)
spans = st.lists(st.lists(st.text(max_size=10), min_size=2, max_size=2), max_size=3)


@untimed
@given(
    statuses=st.dictionaries(names, st.sampled_from(["error", "skipped", "success"])),
    batches=st.none() | st.fixed_dictionaries({"successful": spans, "failed": spans}),
    message=st.none() | st.text(),
    variables=st.dictionaries(st.text(), st.text() | st.integers() | st.none()),
)
def test_a_synthesised_file_is_read_back(
    statuses: dict[str, str],
    batches: dict[str, list[list[str]]] | None,
    message: str | None,
    variables: dict[str, Any],
) -> None:
    args = {"which": "build", "command": "build", "vars": variables}
    data = synthesise_run_results(
        [
            {"unique_id": u, "status": s, "message": message, "batch_results": batches}
            for u, s in statuses.items()
        ],
        args=args,
        started_at="2026-01-31T06:00:00.000000Z",
        dbt_version="1.8.9",
        invocation_id="i",
    )
    ran = read_run_results(data)
    assert {u: r.status for u, r in ran.results.items()} == statuses
    assert ran.args == args
    assert (ran.started_at, ran.dbt_version) == ("2026-01-31T06:00:00.000000Z", "1.8.9")
    for found in ran.results.values():
        assert found.message == (message or "")
        assert list(found.batches_done) == (batches["successful"] if batches else [])
        assert list(found.batches_failed) == (batches["failed"] if batches else [])


def test_a_synthesised_file_has_the_keys_of_dbt_s_own() -> None:
    own = json.loads(fixture("good", "run_results.json"))
    made = json.loads(
        synthesise_run_results(
            [{"unique_id": "model.shop.orders", "status": "error"}],
            args={"which": "build"},
            started_at="2026-01-31T06:00:00Z",
            dbt_version="1.11.16",
            invocation_id="i",
        )
    )
    assert made.keys() == own.keys()
    assert made["metadata"].keys() == own["metadata"].keys()
    assert made["results"][0].keys() >= own["results"][0].keys()


def test_schema_numbers() -> None:
    assert schema_number(f"{URL}/run-results/v6.json") == 6
    assert schema_number(f"{URL}/manifest/v12") == 12
    assert schema_number("") is None


# ---- manifest.json -----------------------------------------------------------------------------


def manifest(**fields: Any) -> bytes:
    """A small manifest.json with these fields in place of its own."""
    document = {
        "metadata": {
            "dbt_schema_version": f"{URL}/manifest/v12.json",
            "dbt_version": "1.11.16",
            "project_name": "shop",
            "invocation_id": "i",
        },
        "nodes": {},
        **fields,
    }
    return json.dumps({k: v for k, v in document.items() if v is not None}).encode()


def test_a_manifest_as_dbt_writes_it() -> None:
    ran = read_run_results(fixture("good", "run_results.json"))
    info, graph = read_manifest(fixture("good", "manifest.json"))
    assert info.invocation_id == ran.invocation_id
    assert info.project_name == graph.project_name
    assert info.adapter_type == "duckdb"
    assert graph.nodes.keys() >= ran.results.keys()
    tests = [n for n in graph.nodes.values() if n.resource_type == "test"]
    assert tests
    assert all(graph.parents[n.unique_id] for n in tests)


def test_the_manifest_dbt_1_7_wrote() -> None:
    ran = read_run_results(fixture("older_schema_v5", "run_results.json"))
    info, graph = read_manifest(fixture("older_schema_v5", "manifest.json"))
    assert info.dbt_schema_version.endswith("v11.json")
    assert graph.nodes.keys() >= ran.results.keys()


def test_unknown_keys_in_a_manifest_do_no_harm() -> None:
    assert read_graph(fixture("unknown_status", "manifest.json")).nodes


def test_a_newer_manifest_is_refused_by_name() -> None:
    with pytest.raises(DamagedError, match=r"manifest/v99"):
        read_graph(fixture("newer_manifest_version", "manifest.json"))
    newer = {"dbt_schema_version": f"{URL}/manifest/v13.json"}
    with pytest.raises(DamagedError, match=r"manifest/v13"):
        read_graph(manifest(metadata=newer, nodes=["of", "another", "shape"]))


def test_a_truncated_manifest_is_refused_wherever_it_ends() -> None:
    whole = fixture("good", "manifest.json").rstrip()
    read_graph(whole)
    for end in range(len(whole)):
        with pytest.raises(DamagedError):
            read_graph(whole[:end])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"metadata": {}}',
        b'{"metadata": {}, "nodes": null}',
        b'{"metadata": {}, "nodes": {"model.shop.a": {"config": 1}}}',
        b'{"metadata": {}, "nodes": {"model.shop.a": {"depends_on": {"nodes": [1]}}}}',
        b'{"metadata": {}, "nodes": {"model.shop.a": null}}',
        b'{"metadata": {}, "nodes": {}, "x": ' + b"[" * 100_000,
    ],
    ids=lambda data: repr(data[:40]),
)
def test_what_is_no_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(DamagedError):
        read_graph(data)


def test_an_error_page_is_no_manifest() -> None:
    with pytest.raises(DamagedError, match=r"manifest\.json"):
        read_graph(fixture("not_json_manifest", "manifest.json"))


def test_run_results_are_no_manifest() -> None:
    with pytest.raises(DamagedError, match="run-results"):
        read_graph(fixture("good", "run_results.json"))


# ---- the compact graph -------------------------------------------------------------------------

words = st.text(max_size=12)
lists = st.lists(words, max_size=3)
configs = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)


BY_TYPE: dict[object, st.SearchStrategy[Any]] = {
    str: words,
    bool: st.booleans(),
    int: st.integers(-1, 1),  # config_at
    list[str]: lists,
    Sequence[str]: lists,
    # As in a manifest: a JSON object.
    msgspec.Raw: st.dictionaries(words, configs, max_size=3).map(
        lambda config: msgspec.Raw(msgspec.json.encode(config))
    ),
}
nodes = st.builds(Node, **{name: BY_TYPE[t] for name, t in get_type_hints(Node).items()})
graphs = st.builds(
    Graph,
    st.lists(nodes, max_size=5),
    project_name=words,
    dbt_version=words,
    macros=st.dictionaries(words, lists, max_size=3),
    macro_files=st.dictionaries(words, words, max_size=3),
    files=st.dictionaries(words, words, max_size=3),
    configs=st.lists(BY_TYPE[msgspec.Raw], min_size=2, max_size=3),
    selectors=st.dictionaries(words, configs, max_size=3),
)


@untimed
@given(graph=graphs)
def test_a_graph_comes_back(graph: Graph) -> None:
    again = decode_graph(encode_graph(graph))
    assert vars(again) == vars(graph)


def test_the_graph_of_a_manifest_comes_back() -> None:
    graph = read_graph(fixture("good", "manifest.json"))
    again = decode_graph(encode_graph(graph))
    assert again.nodes == graph.nodes
    assert vars(again) == vars(graph)


def test_a_compact_graph_is_read_without_the_fields_of_a_later_one() -> None:
    data = json.loads(encode_graph(Graph([Node("model.shop.a", "model")], project_name="shop")))
    data["later"] = data["nodes"][0]["later"] = {"x": [1]}
    graph = decode_graph(json.dumps(data).encode())
    assert graph.nodes["model.shop.a"].resource_type == "model"


def test_a_newer_graph_is_refused_by_name() -> None:
    for shape in ("[]", '{"of": "another shape"}'):
        data = f'{{"version": {GRAPH_VERSION + 1}, "nodes": {shape}}}'.encode()
        with pytest.raises(DamagedError, match=f"version {GRAPH_VERSION + 1}"):
            decode_graph(data)


def test_a_truncated_graph_is_refused_wherever_it_ends() -> None:
    whole = encode_graph(read_graph(fixture("good", "manifest.json")))
    for end in range(len(whole)):
        with pytest.raises(DamagedError):
            decode_graph(whole[:end])
