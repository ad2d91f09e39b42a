"""The compact graph that the archive keeps beside dbt's manifest: what planning and selection need of
it. docs/archive-format.md describes it.
"""

from __future__ import annotations

from typing import Any

import msgspec

from .decoding import Buffer, collector_paused, decode
from .errors import DamagedError
from .graph import GRAPH_VERSION, Graph, Node


class CompactGraph(msgspec.Struct, omit_defaults=True, gc=False):
    """graph.json."""

    version: int = 0
    project_name: str = ""
    dbt_version: str = ""
    nodes: list[Node] = []
    macros: dict[str, list[str]] = {}
    macro_files: dict[str, str] = {}
    files: dict[str, str] = {}
    configs: list[msgspec.Raw] = []
    selectors: dict[str, Any] = {}


class _CompactHead(msgspec.Struct, gc=False):
    version: int = 0


_decoder = msgspec.json.Decoder(CompactGraph)


def encode_graph(graph: Graph) -> bytes:
    """The archive's compact graph: JSON, a tenth of the manifest; `decode_graph` reads it."""
    return msgspec.json.encode(
        CompactGraph(
            version=GRAPH_VERSION,
            project_name=graph.project_name,
            dbt_version=graph.dbt_version,
            nodes=list(graph.nodes.values()),
            macros=graph.macros,
            macro_files=graph.macro_files,
            files=graph.files,
            configs=list(graph.configs),
            selectors=graph.selectors,
        )
    )


def decode_graph(data: Buffer, *, name: str = "graph.json") -> Graph:
    """The graph that `encode_graph` wrote. Its configs stay where they are, in `data`.

    Raises DamagedError for what is empty, truncated, not a graph, or of a newer version.
    """
    try:
        with collector_paused():
            raw = decode(_decoder, data, name, "graph")
    except DamagedError:
        _check_graph_version(
            decode(msgspec.json.Decoder(_CompactHead), data, name, "graph").version, name
        )
        raise
    _check_graph_version(raw.version, name)
    if max((n.config_at for n in raw.nodes), default=-1) >= len(raw.configs):
        raise DamagedError(f"{name} is not a dbt graph: a node's config is missing")
    return Graph(
        raw.nodes,
        project_name=raw.project_name,
        dbt_version=raw.dbt_version,
        macros=raw.macros,
        macro_files=raw.macro_files,
        files=raw.files,
        configs=raw.configs,
        selectors=raw.selectors,
    )


def _check_graph_version(version: int, name: str) -> None:
    if version > GRAPH_VERSION:
        raise DamagedError(
            f"{name} has graph version {version}, and this dbt-recover knows none newer than "
            f"{GRAPH_VERSION}",
            hint="upgrade dbt-recover",
        )
    if version < 1:
        raise DamagedError(f"{name} is not a graph of an archive: it has no version")
