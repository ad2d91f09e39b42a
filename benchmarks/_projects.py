"""Generated dbt projects on DuckDB, and what a failed run of one leaves behind. Deterministic."""

from __future__ import annotations

import hashlib
import json
import random
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

NAME = "generated"

# Later than the files: what was edited after a run began is not what the run built.
_STARTED = datetime.now(timezone.utc).strftime("%Y-%m-%dT23:59:58.000000Z")
_ENDED = _STARTED.replace("58.0", "59.0")


@dataclass(frozen=True)
class Model:
    """A model and what it reads."""

    name: str
    folder: str
    parents: tuple[str, ...]

    @property
    def unique_id(self) -> str:
        """As dbt makes it."""
        return f"model.{NAME}.{self.name}"

    @property
    def path(self) -> str:
        """Relative to the project."""
        return f"models/{self.folder}/{self.name}.sql"


def layered(count: int, *, layers: int = 10, seed: int = 20260131) -> list[Model]:
    """Models in layers; each reads one to three of the two layers before its own."""
    chance = random.Random(seed)
    size = max(1, -(-count // layers))
    models: list[Model] = []
    for number in range(count):
        layer = number // size
        first, last = max(0, layer - 2) * size, layer * size
        above = range(first, last)
        chosen = sorted(chance.sample(above, min(len(above), chance.randint(1, 3))))
        models.append(
            Model(
                f"m{layer:02d}_{number:05d}",
                f"layer_{layer:02d}",
                tuple(models[n].name for n in chosen),
            )
        )
    return models


def write(root: Path, models: list[Model], *, tests: bool, threads: int = 4) -> None:
    """The project's files, with profiles.yml in it; with `tests` a not_null test for each model."""
    root.mkdir(parents=True)
    (root / "dbt_project.yml").write_text(
        f"name: {NAME}\nprofile: {NAME}\nversion: '1.0'\nconfig-version: 2\n"
        f"models:\n  {NAME}:\n    +materialized: table\n"
    )
    (root / "profiles.yml").write_text(
        f"{NAME}:\n  target: dev\n  outputs:\n    dev:\n      type: duckdb\n"
        f"      path: warehouse.duckdb\n      threads: {threads}\n"
    )
    folders: dict[str, list[str]] = {}
    for model in models:
        folders.setdefault(model.folder, []).append(
            f"  - name: {model.name}\n    columns:\n      - name: id\n"
            "        data_tests: [not_null]\n"
        )
        path = root / model.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(sql(model))
    for folder, entries in folders.items():
        if tests:
            (root / "models" / folder / f"{folder}.yml").write_text("models:\n" + "".join(entries))


def sql(model: Model) -> str:
    """A small query over the model's parents."""
    if not model.parents:
        return f"select 1 as id, '{model.name}' as name\n"
    return (
        "select max(id) as id\nfrom (\n  "
        + "\n  union all\n  ".join(
            f"select id from {{{{ ref('{parent}') }}}}" for parent in model.parents
        )
        + "\n)\n"
    )


def failing(models: list[Model], count: int, seed: int = 7) -> tuple[set[str], set[str]]:
    """Some models in the middle of the graph, and all that is below them."""
    middle = models[len(models) // 2 : len(models) * 4 // 5] or models
    failed = {m.name for m in random.Random(seed).sample(middle, min(count, len(middle)))}
    below: set[str] = set()
    for model in models:  # parents come first
        if model.name not in failed and not (failed | below).isdisjoint(model.parents):
            below.add(model.name)
    return failed, below


def run_results(
    results: Iterable[tuple[str, str]], *, invocation_id: str, dbt_version: str
) -> dict[str, Any]:
    """run_results.json, schema v6, of a `dbt build` with these (unique_id, status)."""
    return {
        "metadata": {
            "dbt_schema_version": "https://schemas.getdbt.com/dbt/run-results/v6.json",
            "dbt_version": dbt_version,
            "generated_at": _ENDED,
            "invocation_id": invocation_id,
            "invocation_started_at": _STARTED,
            "env": {},
        },
        "results": [_result(uid, status) for uid, status in results],
        "elapsed_time": 1800.0,
        "args": {"which": "build", "target": "dev", "vars": {}, "indirect_selection": "eager"},
    }


def _result(unique_id: str, status: str) -> dict[str, Any]:
    ran = status != "skipped"
    name = unique_id.split(".")[2]
    message = {
        "error": f"Runtime Error in model {name} (models/{name}.sql)\n  Conversion Error: Could "
        'not convert string "2,388.00" to DECIMAL(12,2)',
        "success": "OK",
    }.get(status)
    step = {"started_at": _STARTED, "completed_at": _ENDED}
    return {
        "status": status,
        "timing": [{"name": "compile", **step}, {"name": "execute", **step}] if ran else [],
        "thread_id": "Thread-1 (worker)",
        "execution_time": 0.05 if ran else 0.0,
        "adapter_response": {"_message": "OK"} if ran else {},
        "message": message,
        "failures": 0 if status == "pass" else None,
        "unique_id": unique_id,
        "compiled": ran,
        "compiled_code": "select 1" if ran else None,
        "relation_name": f'"warehouse"."main"."{name}"',
        "batch_results": None,
    }


def statuses(
    models: list[Model], tested: dict[str, str], count: int = 5
) -> Iterator[tuple[str, str]]:
    """(unique_id, status) after `count` models failed: their descendants are skipped, and the
    tests of both. `tested`: test -> name of its model."""
    failed, below = failing(models, count)
    for model in models:
        word = "error" if model.name in failed else "skipped" if model.name in below else "success"
        yield model.unique_id, word
    for test, name in tested.items():
        yield test, "skipped" if name in failed or name in below else "pass"


def big_manifest(root: Path, megabytes: int) -> int:
    """target/manifest.json of about that size and a run_results.json to it: 28,000 nodes for
    159 MB, half of them tests, as in a large real project. Returns the number of nodes.

    Written node by node, and each with SQL, columns and descriptions of a usual length."""
    count = max(20, round(megabytes / 159 * 28_000))
    models = layered(count // 2)
    write(root, models, tests=False)
    target = root / "target"
    target.mkdir()
    ident = str(uuid.UUID(int=megabytes))
    share = megabytes * 1_000_000 // (2 * len(models))
    tested: dict[str, str] = {}
    with (target / "manifest.json").open("w", encoding="utf-8") as out:
        out.write('{"metadata": ' + json.dumps(_metadata(ident)) + ', "nodes": {')
        for number, model in enumerate(models):
            test = f"test.{NAME}.not_null_{model.name}_id.{number:010x}"
            tested[test] = model.name
            out.write("," if number else "")
            out.write(f"{json.dumps(model.unique_id)}: {json.dumps(_node(model, share))},")
            out.write(f"{json.dumps(test)}: {json.dumps(_test(model, test, share))}")
        empty = ("sources", "exposures", "metrics", "groups", "saved_queries", "semantic_models")
        out.write('}, "macros": {}, "docs": {}, "selectors": {}, "disabled": {}, "unit_tests": {}')
        out.write("".join(f', "{name}": {{}}' for name in empty) + "}")
    body = run_results(statuses(models, tested), invocation_id=ident, dbt_version="1.11.0")
    with (target / "run_results.json").open("w", encoding="utf-8") as out:
        for piece in json.JSONEncoder().iterencode(body):
            out.write(piece)
    return 2 * len(models)


def _metadata(invocation_id: str) -> dict[str, Any]:
    return {
        "dbt_schema_version": "https://schemas.getdbt.com/dbt/manifest/v12.json",
        "dbt_version": "1.11.0",
        "generated_at": _STARTED,
        "invocation_id": invocation_id,
        "invocation_started_at": _STARTED,
        "env": {},
        "project_name": NAME,
        "adapter_type": "duckdb",
    }


def _node(model: Model, size: int) -> dict[str, Any]:
    code = sql(model)
    columns: dict[str, Any] = {
        f"column_{n}": {
            "name": f"column_{n}",
            "description": f"What column {n} of {model.name} holds, in a sentence.",
            "meta": {},
            "data_type": "varchar",
            "constraints": [],
            "quote": None,
            "tags": [],
        }
        for n in range(8)
    }
    entry = _common(model.name, model.unique_id, "model", model.folder) | {
        "original_file_path": model.path,
        "path": model.path.removeprefix("models/"),
        "description": f"One row per thing that {model.name} is about.",
        "columns": columns,
        "raw_code": code,
        "depends_on": {
            "macros": [],
            "nodes": [f"model.{NAME}.{parent}" for parent in model.parents],
        },
        "refs": [{"name": parent, "package": None, "version": None} for parent in model.parents],
    }
    return _filled(entry, code, size)


def _test(model: Model, unique_id: str, size: int) -> dict[str, Any]:
    code = "{{ test_not_null(**_dbt_generic_test_kwargs) }}"
    entry = _common(unique_id.split(".")[2], unique_id, "test", model.folder) | {
        "original_file_path": f"models/{model.folder}/{model.folder}.yml",
        "path": f"{unique_id.split('.')[2]}.sql",
        "raw_code": code,
        "depends_on": {"macros": ["macro.dbt.test_not_null"], "nodes": [model.unique_id]},
        "refs": [{"name": model.name, "package": None, "version": None}],
        "test_metadata": {"name": "not_null", "kwargs": {"column_name": "id"}, "namespace": None},
        "column_name": "id",
        "attached_node": model.unique_id,
    }
    return _filled(entry, code, size)


def _common(name: str, unique_id: str, kind: str, folder: str) -> dict[str, Any]:
    config: dict[str, Any] = {
        "enabled": True,
        "materialized": "test" if kind == "test" else "table",
        "tags": [folder],
        "severity": "ERROR",
        "meta": {},
        "persist_docs": {},
        "post-hook": [],
        "pre-hook": [],
        "quoting": {},
        "column_types": {},
        "grants": {},
    }
    return {
        "database": "warehouse",
        "schema": "main",
        "name": name,
        "resource_type": kind,
        "package_name": NAME,
        "unique_id": unique_id,
        "fqn": [NAME, folder, name],
        "alias": name,
        "checksum": {"name": "sha256", "checksum": hashlib.sha256(name.encode()).hexdigest()},
        "config": config,
        "tags": [folder],
        "created_at": 1769839200.0,
        "relation_name": f'"warehouse"."main"."{name}"',
    }


def _filled(entry: dict[str, Any], code: str, size: int) -> dict[str, Any]:
    # Compiled SQL is what makes a manifest large.
    filled = entry | {"compiled": True, "compiled_code": code}
    missing = size - len(json.dumps(filled)) - len(json.dumps(entry["unique_id"])) - 3
    column = "\n  , coalesce(source.column_{0:03}, 0) as column_{0:03}"
    length = len(json.dumps(column.format(0))) - 2
    count = max(0, missing // length)
    return filled | {"compiled_code": code + "".join(map(column.format, range(count)))}
