"""A random dbt project with a little of everything that a selection can speak of."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

from dbt_recover.selection import Selection

TAGS = ["daily", "hourly", "pii", "d-1"]
FOLDERS = ["", "staging", "staging/web", "marts", "marts/core", "marts.old"]
MODES = ["eager", "cautious", "buildable", "empty"]


class RandomProject:
    """A project with a little of everything that a selection can speak of."""

    def __init__(self, root: Path, seed: int, *, functions: bool) -> None:
        self.root = root
        self.random = random.Random(seed)
        self.words: list[str] = []
        """`method:value`s that may find something."""
        self.refs: list[str] = []
        """Jinja that refers to a node."""
        self.families: list[list[str]] = []
        """Of each test with several parents, words that select them."""
        self.yaml: dict[str, dict[str, list[Any]]] = {}
        self.selectors: list[dict[str, Any]] = []
        self._seeds()
        self._sources()
        self._models()
        self._snapshots()
        self._tests()
        self._semantics()
        if functions:
            self._functions()
        self._package()
        self._project()
        self._selectors()
        for path, sections in self.yaml.items():
            # JSON is YAML too.
            self.write(path, json.dumps({"version": 2, **sections}, indent=1))

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def describe(self, path: str, section: str, entry: dict[str, Any]) -> None:
        self.yaml.setdefault(path, {}).setdefault(section, []).append(entry)

    def maybe(self, chance: float) -> bool:
        return self.random.random() < chance

    def _tags(self) -> dict[str, list[str]]:
        return {"tags": self.random.sample(TAGS, self.random.randint(0, 2))}

    def _config(self) -> dict[str, Any]:
        choice = self.random.choice
        config: dict[str, Any] = self._tags()
        config["meta"] = {
            "owner": choice(["ann", "bob"]),
            "level": {"deep": choice(["x", 1, True])},
            "flags": self.random.sample(["a", "b", True, 3], 2),
            "active": choice([True, False]),
        }
        return config

    def _data_tests(self, word: str) -> dict[str, Any]:
        """Tests of a column of what `word` selects: with one parent, with two, and with three."""
        tests: list[Any] = []
        if self.maybe(0.5):
            tests.append("not_null")
        if self.maybe(0.3):
            severity = self.random.choice(["warn", "WARN", "error"])
            tests.append({"unique": {"config": {"severity": severity, **self._tags()}}})
        if self.refs and self.maybe(0.4):
            to = self.random.choice(self.refs)
            tests.append({"relationships": {"to": to, "field": "id"}})
            self.families.append([word, _word_of(to)])
        if self.refs and self.maybe(0.3):
            first, second = self.random.choices(self.refs, k=2)
            tests.append({"same_rows": {"first": first, "second": second}})
            self.families.append([word, _word_of(first), _word_of(second)])
        if self.maybe(0.1):
            tests.append({"accepted_values": {"values": [1], "config": {"enabled": False}}})
        return {"columns": [{"name": "id", "data_tests": tests}]}

    def _select(self, least: int = 0) -> str:
        most = min(3, len(self.refs))
        refs = self.random.sample(self.refs, self.random.randint(min(least, most), most))
        parts = [f"select id from {{{{ {ref} }}}}" for ref in refs] or ["select 1 as id"]
        return "\nunion all\n".join(parts)

    def _seeds(self) -> None:
        for name in ("raw_a", "raw_b"):
            self.write(f"seeds/{name}.csv", "id\n1\n")
            seed: dict[str, Any] = {"name": name, "config": self._config()}
            if name == "raw_a":
                # A source that is above neither of the two seeds: modes differ about this test.
                others = {"first": "ref('raw_b')", "second": "source('shop', 'users')"}
                seed["columns"] = [{"name": "id", "data_tests": [{"same_rows": others}]}]
                self.families.append(["raw_a", "raw_b", "source:shop.users"])
            self.describe("seeds/seeds.yml", "seeds", seed)
            self.refs.append(f"ref('{name}')")
        self.words += ["file:raw_*", "path:seeds", "raw_a.csv", "seeds/raw_b.csv", "raw_?"]

    def _sources(self) -> None:
        for source, tables in (("web", ["events", "users"]), ("shop", ["users"])):
            entries = [
                {"name": t, **self._data_tests(f"source:{source}.{t}"), **self._tags()}
                for t in tables
            ]
            self.describe(
                "models/staging/sources.yml",
                "sources",
                {"name": source, "schema": "main", "tables": entries, **self._tags()},
            )
            self.refs += [f"source('{source}', '{table}')" for table in tables]
        self.words += ["source:*", "source:web", "source:web.users", "source:*.users"]
        self.words += ["source:random.shop.*", "source:none"]

    def _models(self) -> None:
        for group in ("finance", "growth"):
            self.describe("models/groups.yml", "groups", {"name": group, "owner": {"name": group}})
        for number in range(self.random.randint(11, 15)):
            name = self.random.choice(["stg_", "dim_", "stg_web_", ""]) + f"m{number}"
            self._model(name, self.random.choice(FOLDERS))
        self._versioned("people", [1, 2, "pre"], latest=self.random.choice([1, 2]))
        self._versioned("stg_web_old", ["a", "b"], latest=None)
        self.write("models/leaf.py", 'def model(dbt, session):\n    return dbt.ref("raw_a")\n')
        self.write("analyses/look.sql", "select * from {{ " + self.refs[-1] + " }}")
        self.words += ["leaf.py", "leaf", "analysis_is_no_method", "look", "path:analyses", "l*"]
        self.words += [f"group:{g}" for g in ("finance", "growth", "*n*", "none")]
        self.words += [f"access:{a}" for a in ("public", "protected", "private", "none")]
        self.words += [f"version:{v}" for v in ("latest", "old", "prerelease", "none")]

    def _model(self, name: str, folder: str) -> None:
        directory = f"models/{folder}".rstrip("/")
        config = self._config()
        config["materialized"] = self.random.choice(["view", "table", "ephemeral", "incremental"])
        if self.maybe(0.2):
            config["unique_key"] = self.random.choice(["id", ["id", "day"]])
        if self.maybe(0.3):
            config["group"] = self.random.choice(["finance", "growth"])
            if config["materialized"] != "ephemeral":
                config["access"] = self.random.choice(["public", "protected"])
        if self.maybe(0.2):
            config["custom"] = self.random.choice(["x", True, ["x", "y"]])
        entry = {"name": name, "config": config, **self._data_tests(name)}
        sql = self._select()
        if self.maybe(0.12):
            # Without a code, and others can depend on it.
            sql = self.random.choice(["", " \n\t\u00a0\n"])
        if self.maybe(0.15):
            entry = {"name": name, "config": {**config, "enabled": False}}
        else:
            # Some are described far away from where they are.
            self._unit_test(name, sql, directory)
            self.refs.append(f"ref('{name}')")
        self.describe(
            self.random.choice([f"{directory}/schema.yml", "models/all.yml"]), "models", entry
        )
        self.write(f"{directory}/{name}.sql", sql)
        fqn = ".".join(filter(None, [*folder.split("/"), name]))
        self.words += [name, fqn, f"random.{fqn}", f"{directory}/{name}.sql", f"{name}.sql"]
        self.words += [f"fqn:{name}", f"file:{name}", f"path:{directory}"]

    def _unit_test(self, name: str, sql: str, directory: str) -> None:
        given = [r for r in self.refs if r in sql]
        if not given or not self.maybe(0.4):
            return
        config = {"tags": ["unit"]} if self.maybe(0.5) else {}
        self.describe(
            f"{directory}/unit.yml",
            "unit_tests",
            {
                "name": f"unit_{name}",
                "model": name,
                "given": [{"input": ref, "rows": [{"id": 1}]} for ref in given],
                "expect": {"rows": [{"id": 1}]},
                "config": config,
            },
        )
        self.words += [f"unit_test:unit_{name}", f"test_name:unit_{name}", "unit_test:unit_s*"]
        self.words += ["tag:unit", f"unit_{name}", "unit_test:random.*"]

    def _versioned(self, name: str, versions: list[Any], *, latest: object) -> None:
        entry: dict[str, Any] = {
            "name": name,
            "config": self._config(),
            **self._data_tests(name),
            "versions": [{"v": v} for v in versions],
        }
        if latest is not None:
            entry["latest_version"] = latest
        self.describe("models/marts/versioned.yml", "models", entry)
        for version in versions:
            self.write(f"models/marts/{name}_v{version}.sql", self._select(1))
            self.words += [f"{name}.v{version}", f"{name}_v{version}", f"marts.{name}.v{version}"]
        self.refs += [f"ref('{name}')", f"ref('{name}', v={versions[0]!r})"]
        self.words += [name, f"marts.{name}", f"{name[:3]}*"]
        if name == "people":
            self.describe(
                "models/marts/unit.yml",
                "unit_tests",
                {
                    "name": "unit_people",
                    "model": name,
                    "given": [],
                    "expect": {"rows": [{"id": 1}]},
                    "versions": {"include": [1, 2]},
                },
            )
            self.words += ["unit_test:unit_people", "unit_people", "test_type:unit"]

    def _snapshots(self) -> None:
        sql = "select 1 as id, now() as at from {{ " + self.random.choice(self.refs) + " }}"
        config = (
            "config(target_schema='main', unique_key='id', strategy='timestamp', updated_at='at')"
        )
        self.write(
            "snapshots/snap.sql",
            f"{{% snapshot snap %}}{{{{ {config} }}}}{sql}{{% endsnapshot %}}",
        )
        self.describe("models/all.yml", "snapshots", {"name": "snap", "config": self._config()})
        self.refs.append("ref('snap')")
        self.words += [
            "snap",
            "path:snapshots",
            "config.strategy:timestamp",
            "config.unique_key:id",
        ]

    def _tests(self) -> None:
        self.write(
            "tests/generic/same_rows.sql",
            "{% test same_rows(model, column_name, first, second) %}"
            "select * from {{ model }} where false {% endtest %}",
        )
        for number in range(3):
            self.write(
                f"tests/{'deep/' if number else ''}check_{number}.sql",
                "{{ config(tags=['check'], severity='warn') }} " + self._select(number),
            )
        self.write("tests/nothing.sql", "select 1 as id where false")
        self.describe(
            "models/exposures.yml",
            "exposures",
            {
                "name": "board",
                "type": "dashboard",
                "owner": {"email": "ann@example.com"},
                "depends_on": self.random.sample(self.refs, 2),
                **self._tags(),
            },
        )
        self.words += ["check_0", "tests/deep", "test_name:not_null", "test_name:*e*", "tag:check"]
        self.words += ["exposure:board", "exposure:random.*", "exposure:none", "exposure:*"]
        self.words += [f"test_type:{t}" for t in ("generic", "schema", "singular", "data", "unit")]

    def _semantics(self) -> None:
        self.write(
            "models/metricflow_time_spine.sql", "select cast('2024-01-01' as date) as on_day"
        )
        day = [{"name": "on_day", "granularity": "day"}]
        spine = {"standard_granularity_column": "on_day"}
        self.describe(
            "models/days.yml",
            "models",
            {"name": "metricflow_time_spine", "time_spine": spine, "columns": day},
        )
        self.describe(
            "models/days.yml",
            "semantic_models",
            {
                "name": "orders",
                "model": "ref('metricflow_time_spine')",
                "defaults": {"agg_time_dimension": "on_day"},
                "entities": [{"name": "day_id", "type": "primary", "expr": "on_day"}],
                "dimensions": [
                    {"name": "on_day", "type": "time", "type_params": {"time_granularity": "day"}}
                ],
                "measures": [{"name": "total", "agg": "sum", "expr": "1"}],
            },
        )
        metric = {"name": "total", "label": "Total", "type": "simple"}
        measured = {"type_params": {"measure": {"name": "total"}}, "config": {"group": "growth"}}
        self.describe("models/days.yml", "metrics", {**metric, **measured, **self._tags()})
        self.describe(
            "models/days.yml",
            "saved_queries",
            {"name": "totals", "query_params": {"metrics": ["total"]}, "config": self._tags()},
        )
        self.words += ["metric:total", "metric:*", "saved_query:totals", "semantic_model:orders"]
        self.words += [
            "semantic_model:random.*",
            "total",
            "totals",
            "metric*",
            "path:models/days.yml",
        ]

    def _functions(self) -> None:
        self.write("functions/twice.sql", "x * 2")
        self.describe(
            "functions/functions.yml",
            "functions",
            {
                "name": "twice",
                "arguments": [{"name": "x", "data_type": "integer"}],
                "returns": {"data_type": "integer"},
            },
        )
        self.write("models/doubled.sql", "select {{ function('twice') }}(1) as id")
        self.words += ["twice", "doubled", "path:functions", "resource_type:function"]

    def _package(self) -> None:
        package = "dbt_packages/other"
        self.write(
            f"{package}/dbt_project.yml",
            'name: other\nversion: "1.0"\nprofile: random\nmodels: {other: {+tags: [daily]}}\n',
        )
        self.write("packages.yml", "packages: [{local: dbt_packages/other}]\n")
        # The same directories as in the project, and one that it lacks.
        self.write(f"{package}/models/staging/stg_theirs.sql", "select 1 as id")
        self.write(
            f"{package}/models/theirs/same_name.sql",
            "{{ config(schema='other') }} select * from {{ ref('stg_theirs') }}",
        )
        entry = {"name": "stg_theirs", **self._data_tests("stg_theirs")}
        self.describe(f"{package}/models/schema.yml", "models", entry)
        self.words += ["package:other", "package:this", "package:random", "package:o*", "other"]
        self.words += [
            "stg_theirs",
            "same_name",
            "other.staging",
            "theirs",
            "models/theirs",
            "staging",
        ]

    def _project(self) -> None:
        self.write(
            "dbt_project.yml",
            'name: random\nversion: "1.0"\nprofile: random\n'
            'on-run-end: ["select 1"]\n'
            "models: {random: {marts: {+meta: {owner: cat, layer: mart}}}}\n",
        )
        self.write(
            "profiles.yml",
            "random: {target: dev, outputs: {dev: {type: duckdb, path: ':memory:', threads: 1}}}\n",
        )
        self.words += [f"tag:{t}" for t in (*TAGS, "d*", "?aily", "[dp]*", "none")]
        self.words += [f"resource_type:{t}" for t in ("model", "test", "seed", "snapshot")]
        self.words += [
            f"resource_type:{t}" for t in ("source", "exposure", "unit_test", "nonsense")
        ]
        self.words += [f"config.materialized:{m}" for m in ("view", "ephemeral", "test", "v*")]
        self.words += [f"config.severity:{s}" for s in ("warn", "ERROR", "Warn")]
        self.words += [f"config.meta.owner:{o}" for o in ("ann", "bob", "cat")]
        self.words += [f"config.meta.flags:{f}" for f in ("a", "true", "False", "3")]
        self.words += [f"config.meta.level.deep:{d}" for d in ("x", "1", "TRUE")]
        self.words += [f"config.meta.active:{a}" for a in ("true", "FALSE", "yes")]
        self.words += ["config.enabled:true", "config.contract.enforced:false", "config.tags:pii"]
        self.words += ["config.meta.items:x", "config.meta:x", "config:x", "config.group:finance"]
        self.words += ["config.custom:x", "config.custom:true", "config.post_hook:x"]
        self.words += ["config.meta.layer:mart", "config.quoting.x:y", "config.docs.show:true"]
        self.words += ["path:models", "models/*", "models/**", "models/**/*.yml", "./models/marts/"]
        self.words += ["models/staging/*.sql", "path:models/*/core", "models/all.yml", "**/web"]
        self.words += ["models/marts/schema.yml", "path:mod", "*/staging", "models/[sm]*/*_?.sql"]
        self.words += ["file:*.yml", "file:schema", "schema.yml", "file:stg_*", "tag.x:daily"]
        self.words += ["*", "*.*", "stg_*", "random.*", "random.marts.*", "marts.*", "*_m1", "m?"]
        self.words += ["random", "marts", "marts.old", "marts.core", "staging.web", "*.core.*"]
        self.words += ["[sd]*", "]", "", "nothing_like_it", "state:modified", "result:error"]
        self.words += ["nonsense:x", "selector:first", "version:3", "source:a.b.c.d"]
        # What finds nothing in most places is not tried as often as names.
        self.random.shuffle(self.words)

    def _selectors(self) -> None:
        names = ["first", "second", "third", "fourth", "fifth", "sixth"]
        for name in names:
            definition = self._definition(2, [s["name"] for s in self.selectors])
            self.selectors.append({"name": name, "definition": definition})
        self.write("selectors.yml", json.dumps({"selectors": self.selectors}))

    def _definition(self, depth: int, earlier: list[str]) -> Any:
        kind = self.random.choice(["text", "word", "full", "group", "group", "inherited"])
        if kind == "group" and depth:
            parts = [self._definition(depth - 1, earlier) for _ in range(self.random.randint(1, 3))]
            if self.maybe(0.4):
                parts.append({"exclude": [self._definition(0, earlier) for _ in range(2)]})
            # dbt takes one exclusion in a group, and a part with one of its own for just that.
            excluding = [p for p in parts if "exclude" in p]
            parts = [p for p in parts if p not in excluding[1:]]
            return {self.random.choice(["union", "intersection"]): parts}
        if kind == "inherited" and earlier:
            return {"method": "selector", "value": self.random.choice(earlier)}
        method, value = self.word_of_yaml()
        if kind == "text":
            return f"{self.random.choice(['', '', '+', '@'])}{method}:{value}"
        if kind == "word":
            return {method: value}
        full = {"method": method, "value": value}
        for option in ("parents", "children"):
            if self.maybe(0.4):
                full[option] = True
            if self.maybe(0.2):
                full[f"{option}_depth"] = self.random.randint(0, 2)
        if "children" not in full and self.maybe(0.2):
            full["childrens_parents"] = True
        if self.maybe(0.3):
            full["indirect_selection"] = self.random.choice(MODES)
        if self.maybe(0.2):
            full["exclude"] = [self._definition(0, earlier)]
        return full

    def word_of_yaml(self) -> tuple[str, Any]:
        """A method and value that dbt reads: what it refuses would stop the whole project."""
        if self.maybe(0.1):
            return self.random.choice([("config.meta.level.deep", 1), ("config.meta.active", True)])
        refused = ("nonsense", "selector", "state", "result", "config:", "tag.x", "version:3")
        while True:
            word = self.random.choice(self.words)
            if ":" in word and not word.startswith(refused):
                method, _, value = word.partition(":")
                return method, value

    def word(self) -> str:
        word = self.random.choice(self.words)
        if self.maybe(0.35):
            word = self.random.choice(["+", "1+", "2+", "0+", "@", "+", "@"]) + word
        if self.maybe(0.35):
            word += self.random.choice(["+", "+", "+1", "+2", "+0"])
        return word

    def expression(self) -> str:
        if self.maybe(0.25):
            # Parents of one test, which joins them or not by the mode of indirect selection.
            family = self.random.choice(self.families)
            words = self.random.sample(family, self.random.randint(1, len(family)))
            return " ".join(self.random.choice(["", "", "+", "1+"]) + word for word in words)
        words = [self.word() for _ in range(self.random.choice([1, 1, 1, 2, 3]))]
        return "".join(w + self.random.choice([" ", ",", ","]) for w in words)[:-1]

    def selection(self) -> Selection:
        options: dict[str, Any] = {"indirect_selection": self.random.choice(MODES)}
        if self.maybe(0.1):
            options["selector"] = self.random.choice(self.selectors)["name"]
        else:
            count = self.random.choice([0, 1, 1, 1, 2])
            options["select"] = tuple(self.expression() for _ in range(count))
            if self.maybe(0.4):
                options["exclude"] = (self.expression(),)
        return Selection(**options)


def _word_of(ref: str) -> str:
    """`ref('a')` -> a, `source('a', 'b')` -> source:a.b."""
    function, *names = re.findall(r"\w+", ref)
    return f"source:{names[0]}.{names[1]}" if function == "source" else names[0]
