"""dbt's manifest.json: bytes -> Graph.

A manifest of 28,000 nodes is 159 MB, and nearly all of that is SQL, columns and descriptions which
no plan needs. So it is decoded with types: what is not named here is skipped, not built.
Schemas: https://schemas.getdbt.com/dbt/manifest/v12.json
"""

from __future__ import annotations

import re
from typing import Any, TypeAlias

import msgspec

from dbt_recover.decoding import Buffer, collector_paused, decode
from dbt_recover.errors import DamagedError
from dbt_recover.graph import Graph, Node

OLDEST_MANIFEST = 9
NEWEST_MANIFEST = 12
V2_MANIFEST = 20
"""Some builds of dbt v2 wrote this number over a manifest of the same shape."""

_SCHEMA = re.compile(r"/(?P<artifact>[\w-]+)/v(?P<version>\d+)")

# Of raw_code, still as JSON: only what matches can be white space, and only that is decoded.
_MAYBE_BLANK = re.compile(rb'"(?: |\\[nrtf]|\\u[0-9a-fA-F]{4}|[\x80-\xff])*"')

_NO_CODE = msgspec.Raw(b"null")
_EMPTY_OBJECT = msgspec.Raw(b"{}")

_Text: TypeAlias = str | None
_Number: TypeAlias = str | int | float | None


class _Metadata(msgspec.Struct, gc=False):
    dbt_schema_version: _Text = None
    dbt_version: _Text = None
    generated_at: _Text = None
    invocation_id: _Text = None
    project_name: _Text = None
    adapter_type: _Text = None


class _DependsOn(msgspec.Struct, gc=False):
    nodes: list[str] | None = None
    # An item is null when the macro is gone and something still refers to it.
    macros: list[_Text] | None = None


class _Checksum(msgspec.Struct, gc=False):
    name: _Text = None
    checksum: _Text = None


class _TestMetadata(msgspec.Struct, gc=False):
    name: _Text = None
    namespace: _Text = None


class _Config(msgspec.Struct, gc=False):
    # Any: users can put anything into a config, and only strings mean something to us.
    enabled: Any = True
    group: Any = None
    incremental_strategy: Any = None
    materialized: Any = None
    severity: Any = None
    tags: Any = None
    unique_key: Any = None


class _Owner(msgspec.Struct, gc=False):
    name: _Text = None
    email: _Text | list[str] = None


class _Entry(msgspec.Struct, gc=False):
    """Anything with a unique_id: each kind uses some of the fields."""

    unique_id: str = ""
    resource_type: str = ""
    name: str = ""
    package_name: str = ""
    fqn: list[str] = []
    tags: list[str] | str | None = None
    path: _Text = None
    original_file_path: _Text = None
    patch_path: _Text = None
    checksum: _Checksum | str | None = None
    depends_on: _DependsOn | None = None
    config: msgspec.Raw = _EMPTY_OBJECT
    raw_code: msgspec.Raw = _NO_CODE
    attached_node: _Text = None
    column_name: _Text = None
    test_metadata: _TestMetadata | None = None
    source_name: _Text = None
    access: _Text = None
    version: _Number = None
    latest_version: _Number = None
    relation_name: _Text = None
    owner: _Owner | None = None


class _Macro(msgspec.Struct, gc=False):
    package_name: str = ""
    original_file_path: _Text = None
    depends_on: _DependsOn | None = None


class _Manifest(msgspec.Struct, gc=False):
    metadata: _Metadata | None = None
    nodes: dict[str, _Entry] | None = None
    sources: dict[str, _Entry] | None = None
    exposures: dict[str, _Entry] | None = None
    metrics: dict[str, _Entry] | None = None
    semantic_models: dict[str, _Entry] | None = None
    saved_queries: dict[str, _Entry] | None = None
    unit_tests: dict[str, _Entry] | None = None
    functions: dict[str, _Entry] | None = None
    macros: dict[str, _Macro] | None = None
    selectors: dict[str, Any] | None = None


class _Head(msgspec.Struct, gc=False):
    """The part that says what the rest is; decoded first, where the rest may be of any shape."""

    metadata: _Metadata | None = None


class ManifestInfo(msgspec.Struct, frozen=True, gc=False):
    """Where a manifest comes from."""

    project_name: str = ""
    dbt_version: str = ""
    invocation_id: str = ""
    generated_at: str = ""
    """As dbt wrote it: ISO 8601, UTC."""
    adapter_type: str = ""
    dbt_schema_version: str = ""


# A decoder is built once: building one costs more than decoding a small graph.
_manifest_decoder = msgspec.json.Decoder(_Manifest)
_head_decoder = msgspec.json.Decoder(_Head)
_config_decoder = msgspec.json.Decoder(_Config | None)


def read_graph(data: Buffer, *, name: str = "manifest.json") -> Graph:
    """The graph of a manifest; `name` is what errors call it.

    Raises DamagedError for what is empty, truncated, not a manifest, or of a newer schema.
    """
    return read_manifest(data, name=name)[1]


def read_manifest(data: Buffer, *, name: str = "manifest.json") -> tuple[ManifestInfo, Graph]:
    """As `read_graph`, with where the manifest comes from."""
    with collector_paused():
        return _read_manifest(data, name)


def _read_manifest(data: Buffer, name: str) -> tuple[ManifestInfo, Graph]:
    try:
        raw = decode(_manifest_decoder, data, name, "manifest")
    except DamagedError:
        # A newer schema may not even have the shapes that are decoded here: then that is the news.
        _check_schema(decode(_head_decoder, data, name, "manifest").metadata, name)
        raise
    _check_schema(raw.metadata, name)
    if raw.metadata is None or raw.nodes is None:
        missing = "metadata" if raw.metadata is None else "nodes"
        raise DamagedError(f"{name} is not a dbt manifest: it has no {missing}")

    project = raw.metadata.project_name or ""
    info = ManifestInfo(
        project_name=project,
        dbt_version=raw.metadata.dbt_version or "",
        invocation_id=raw.metadata.invocation_id or "",
        generated_at=raw.metadata.generated_at or "",
        adapter_type=raw.metadata.adapter_type or "",
        dbt_schema_version=raw.metadata.dbt_schema_version or "",
    )
    nodes: list[Node] = []
    configs: dict[bytes, int] = {}
    # The order is that of dbt's own look-up, should a unique_id occur twice.
    for kind, entries in (
        ("", raw.nodes),
        ("source", raw.sources),
        ("exposure", raw.exposures),
        ("function", raw.functions),
        ("metric", raw.metrics),
        ("semantic_model", raw.semantic_models),
        ("unit_test", raw.unit_tests),
        ("saved_query", raw.saved_queries),
    ):
        for uid, entry in (entries or {}).items():
            node = _node(uid, entry, kind, name, configs)
            if node is not None:
                nodes.append(node)
    macros = raw.macros or {}
    graph = Graph(
        nodes,
        project_name=project,
        dbt_version=info.dbt_version,
        macros={uid: _macros(m.depends_on) for uid, m in macros.items()},
        macro_files={
            uid: m.original_file_path
            for uid, m in macros.items()
            if m.package_name == project and m.original_file_path
        },
        # Copies, or they would keep all of the manifest in memory.
        configs=[msgspec.Raw(config) for config in configs],
        selectors=raw.selectors,
    )
    return info, graph


def _node(uid: str, entry: _Entry, kind: str, name: str, configs: dict[bytes, int]) -> Node | None:
    """Our node, or None for a disabled one. `kind` is that of the section it stands in; `configs`
    grows by its config."""
    try:
        found = _config_decoder.decode(entry.config)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DamagedError(f"{name}: the config of {uid} cannot be read: {error}") from error
    config = found or _Config()
    if config.enabled is False:
        return None
    # Sections of older manifests leave the type out, and some of v2 spell it in their own way.
    kind = kind or entry.resource_type
    strategy = _text(config.incremental_strategy)
    checksum = entry.checksum
    depends_on = list(entry.depends_on.nodes or ()) if entry.depends_on else []
    test = entry.test_metadata or _TestMetadata()
    return Node(
        unique_id=uid,
        resource_type=kind,
        name=entry.name,
        package_name=entry.package_name,
        fqn=entry.fqn,
        # dbt keeps the tags of a unit test in its config only.
        tags=_tags(config.tags if kind == "unit_test" and entry.tags is None else entry.tags) or (),
        path=entry.path or "",
        original_file_path=entry.original_file_path or "",
        patch_path=entry.patch_path or "",
        checksum=(checksum.checksum or "")
        if isinstance(checksum, _Checksum) and checksum.name == "sha256"
        else "",
        depends_on=depends_on,
        macros=_macros(entry.depends_on) or (),
        config_at=configs.setdefault(bytes(entry.config), len(configs)) if found else -1,
        materialized=_text(config.materialized),
        incremental_strategy=strategy,
        unique_key=bool(config.unique_key),
        severity=_text(config.severity).lower(),
        attached_node=entry.attached_node or "",
        # dbt itself reads the tested model off the first dependency.
        tested=depends_on[:1] if kind == "unit_test" else (),
        test_name=test.name or "",
        test_namespace=test.namespace or "",
        column_name=entry.column_name or "",
        source_name=entry.source_name or "",
        group=_text(config.group),
        access=entry.access or "",
        version=_version(entry.version),
        latest_version=_version(entry.latest_version),
        relation_name=entry.relation_name or "",
        owner=_owner(entry.owner),
        microbatch=strategy == "microbatch",
        # dbt asks for code only where its `nodes` section has it, and never of a seed.
        empty=kind not in _NEVER_EMPTY and _is_blank(entry.raw_code),
    )


_NEVER_EMPTY = frozenset(
    {
        "seed",
        "source",
        "exposure",
        "function",
        "metric",
        "semantic_model",
        "unit_test",
        "saved_query",
    }
)


def _is_blank(raw_code: msgspec.Raw) -> bool:
    if not _MAYBE_BLANK.fullmatch(raw_code):
        return False
    code: object = msgspec.json.decode(raw_code)
    return isinstance(code, str) and not code.strip()


def _macros(depends_on: _DependsOn | None) -> list[str]:
    return [m for m in depends_on.macros or () if m] if depends_on else []


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _tags(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [tag for tag in value if isinstance(tag, str)] if isinstance(value, list) else []


def _version(value: _Number) -> str:
    """`2` and `2.0` are the same version, as in dbt, where they compare equal."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value)


def _owner(owner: _Owner | None) -> str:
    if owner is None:
        return ""
    if owner.name:
        return owner.name
    return ", ".join(owner.email) if isinstance(owner.email, list) else owner.email or ""


def _check_schema(metadata: _Metadata | None, name: str) -> None:
    """Refuse what is another artifact, or of a schema that we do not know."""
    found = _SCHEMA.search((metadata and metadata.dbt_schema_version) or "")
    if found is None:
        return  # without a schema the shape decides
    if found["artifact"] != "manifest":
        raise DamagedError(f"{name} is not a dbt manifest: it says it is {found['artifact']}")
    version = int(found["version"])
    if version > NEWEST_MANIFEST and version != V2_MANIFEST:
        raise DamagedError(
            f"{name} has schema manifest/v{version}, and this dbt-recover knows none newer "
            f"than v{NEWEST_MANIFEST}",
            hint="upgrade dbt-recover",
        )
    if version < OLDEST_MANIFEST:
        raise DamagedError(
            f"{name} has schema manifest/v{version}; the oldest that is read is "
            f"v{OLDEST_MANIFEST} (dbt 1.5)",
            hint="upgrade dbt",
        )
