"""Random dbt projects on DuckDB whose tables depend on nothing but their inputs.

Every model sums and shifts the rows of what it reads, so that a wrong row, a missing one and one
that was added twice show in everything below. A project is drawn once and rendered as often as it
is needed, with or without a defect. Two switches lie in the warehouse, in schema `control`, and not
in the code, so that using them is no edit:

    control.slow(node, n)    the node's query takes a while ('<node>_after': after its commit)
    control.broken(node)     the node's query ends in an error
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

NAME = "eq"
DAYS = ("2024-01-01", "2024-01-02", "2024-01-03", "2024-01-04", "2024-01-05")
YESTERDAY = 3
"""How many of the days were there when the run before the failing one was made."""
MODULUS = 1_000_003
RUN_DAY = 17
"""The var that the run is made with; the project's own value is another."""

TABLE_LIKE = ("table", "incremental", "microbatch")


@dataclass(frozen=True)
class Node:
    """A source table, a seed, a model or a snapshot."""

    name: str
    kind: str
    layer: int = 0
    parents: tuple[str, ...] = ()
    materialized: str = ""
    """Of models: view, table, ephemeral, incremental, microbatch."""
    strategy: str = ""
    """Of incrementals: delete+insert, merge or append."""
    since: str = ""
    """Of incrementals: which rows they take from the second run on: '' all, '>=' or '>' by day."""
    strict: bool = True
    """Whether a value that is no number is an error, or -1."""
    factor: int = 1
    shift: int = 0
    keep: tuple[int, int] | None = None
    """(m, r): rows with id % m = r are left out."""
    scaled: bool = False
    """Whether it calls the shared macro."""
    day_var: bool = False
    """Whether its rows depend on the var run_day."""
    hook: bool = False
    """Whether it has a post-hook, which runs when its own query has been committed."""

    @property
    def unique_id(self) -> str:
        """dbt's."""
        return (
            f"source.{NAME}.raw.{self.name}"
            if self.kind == "source"
            else (f"{self.kind}.{NAME}.{self.name}")
        )

    @property
    def relation(self) -> bool:
        """Whether dbt builds something in the warehouse for it."""
        return self.kind != "source" and self.materialized != "ephemeral"

    @property
    def raw(self) -> bool:
        """Whether its values are text."""
        return self.kind in ("source", "seed")

    @property
    def can_wait(self) -> bool:
        """Whether its own query looks at control.slow and control.broken."""
        return self.kind == "snapshot" or self.materialized in TABLE_LIKE


@dataclass(frozen=True)
class Test:
    """A data test or a unit test."""

    __test__ = False  # not for pytest

    name: str
    kind: str
    """unique, not_null, at_least, relationships, singular, pair, unit."""
    node: str
    other: str = ""
    warn: bool = False
    value: int = 0


@dataclass
class Project:
    """A drawn project."""

    nodes: dict[str, Node]
    tests: list[Test]
    threads: int
    layers: int
    skips_after_hook: bool = False
    """Whether a failing on-run-start holds up everything else."""
    signed: bool = False
    """Whether the rows of every model also depend on its configuration in YAML."""
    exposures: list[str] = field(default_factory=list)
    disabled: list[Node] = field(default_factory=list)
    data: dict[str, dict[int, tuple[int, str]]] = field(default_factory=dict)
    """Of each source and seed: id -> value and day."""
    changed: dict[str, dict[int, int]] = field(default_factory=dict)
    """Of each source and seed: ids whose value was another yesterday."""

    def children(self, name: str) -> list[str]:
        """Nodes that read it."""
        return [n.name for n in self.nodes.values() if name in n.parents]

    def below(self, name: str) -> set[str]:
        """All nodes below it."""
        found: set[str] = set()
        stack = [name]
        while stack:
            for child in self.children(stack.pop()):
                if child not in found:
                    found.add(child)
                    stack.append(child)
        return found

    def above(self, name: str) -> set[str]:
        """All nodes above it."""
        return {n for n in self.nodes if name in self.below(n)}

    def is_text(self, node: Node) -> bool:
        """Whether its values are text: a snapshot has the columns of what it snapshots."""
        while node.kind == "snapshot":
            node = self.nodes[node.parents[0]]
        return node.raw

    def tests_of(self, name: str, *kinds: str, warn: bool | None = None) -> list[Test]:
        """Its tests, of these kinds and this severity."""
        return [
            t
            for t in self.tests
            if t.node == name and (not kinds or t.kind in kinds) and warn in (None, t.warn)
        ]

    def of(self, *kinds: str) -> list[Node]:
        """Nodes of these kinds, in the order in which they were drawn."""
        return [n for n in self.nodes.values() if n.kind in kinds]

    def rows(self, name: str, days: int, bad: Mapping[int, str]) -> list[tuple[int, str, str]]:
        """(id, v, day) of a source or seed as it was after so many days."""
        last = DAYS[days - 1]
        found = []
        for ident, (value, day) in self.data[name].items():
            if ident in self.changed[name] and day == DAYS[-1] and days < len(DAYS):
                value, day = self.changed[name][ident], DAYS[0]
            if day <= last:
                found.append((ident, bad.get(ident, str(value)), day))
        return found

    def files(
        self,
        defects: Mapping[str, str] | None = None,
        *,
        days: int = len(DAYS),
        bad: Mapping[str, Mapping[int, str]] | None = None,
    ) -> dict[str, str]:
        """Path -> text. `defects`: node or test -> what is wrong with it (see `_text`), and
        `macro:scaled`, `hook:text`, `hook:table`. `bad`: seed -> id -> value."""
        defects, bad = defects or {}, bad or {}
        files = dict(_common(self, defects))
        for node in self.nodes.values():
            if node.kind == "seed":
                rows = self.rows(node.name, days, bad.get(node.name, {}))
                lines = ["id,v,day", *(f"{i},{v},{d}" for i, v, d in rows)]
                files[f"seeds/{node.name}.csv"] = "\n".join(lines) + "\n"
            elif node.kind == "model":
                files[f"models/l{node.layer}/{node.name}.sql"] = _model(
                    self, node, defects.get(node.name, "")
                )
            elif node.kind == "snapshot":
                files[f"snapshots/{node.name}.sql"] = _snapshot(
                    self, node, defects.get(node.name, "")
                )
        for node in self.disabled:
            files[f"models/l{node.layer}/{node.name}.sql"] = (
                "{{ config(enabled=false) }}\nselect no_such_column from {{ ref('gone') }}\n"
            )
        for test in self.tests:
            if test.kind in ("singular", "pair"):
                files[f"tests/{test.name}.sql"] = _singular(self, test, defects.get(test.name, ""))
        files["models/nodes.yml"] = json.dumps(_yaml(self, defects), indent=1)
        return files


# ---- drawing ---------------------------------------------------------------------------------


def draw(rng: random.Random, size: int, *, calm: bool, pipeline: bool = False) -> Project:
    """A project with about `size` nodes, tests among them. `calm`: without nodes that can write
    the same rows twice (appends, snapshots, incrementals that look at what they hold). `pipeline`:
    for a run in layers, where nothing reads a snapshot."""
    wide = rng.random() < 0.5
    layers = rng.randint(2, 3) if wide else rng.randint(3, 5)
    project = Project({}, [], threads=rng.choice((1, 4)), layers=layers)
    _inputs(rng, project, max(2, size // 10))
    models = max(layers, int(size * 0.5))
    for number in range(models):
        layer = min(layers - 1, number * layers // models)
        _draw_model(rng, project, f"m{number}", layer, calm=calm)
    if not calm:
        for number in range(rng.choice((0, 1, 1, 2))):
            # The key of what it snapshots has to be unique.
            fit = [
                n
                for n in project.nodes.values()
                if n.materialized not in ("ephemeral", "microbatch") and n.strategy != "append"
            ]
            of = rng.choice(fit)
            node = Node(
                f"snap{number}",
                "snapshot",
                min(of.layer + 1, layers - 1),
                (of.name,),
                hook=rng.random() < 0.5,
            )
            project.nodes[node.name] = node
            if not pipeline and rng.random() < 0.6:
                _draw_model(rng, project, f"s{number}", layers - 1, calm=calm, parent=node.name)
    _draw_tests(rng, project, max(3, int(size * 0.35)))
    marts = [n.name for n in project.of("model") if not project.children(n.name)]
    project.skips_after_hook = rng.random() < 0.5
    project.exposures = rng.sample(marts, min(len(marts), rng.randint(0, 2)))
    project.disabled = [
        Node(f"off{number}", "model", rng.randrange(layers)) for number in range(rng.randint(0, 2))
    ]
    return project


def _inputs(rng: random.Random, project: Project, count: int) -> None:
    for number in range(count):
        kind = "source" if rng.random() < 0.5 else "seed"
        name = f"{'src' if kind == 'source' else 'seed'}{number}"
        project.nodes[name] = Node(name, kind)
        idents = rng.sample(range(1, 60), rng.randint(20, 35))
        days = [rng.choice(DAYS) for _ in idents]
        # Every day has rows, so that none of the incrementals ever sees an empty table.
        days[: len(DAYS)] = DAYS
        project.data[name] = {i: (rng.randint(1, 9999), d) for i, d in zip(idents, days)}
        late = [i for i, d in zip(idents, days) if d == DAYS[-1]]
        project.changed[name] = {i: rng.randint(1, 9999) for i in late[1:3]}


def _draw_model(
    rng: random.Random,
    project: Project,
    name: str,
    layer: int,
    *,
    calm: bool,
    parent: str = "",
) -> None:
    earlier = list(project.nodes.values())
    if parent:
        chosen = [project.nodes[parent]]
    elif layer == 0:
        raw = [n for n in earlier if n.raw]
        unread = [n for n in raw if not project.children(n.name)]
        chosen = [unread[0] if unread else rng.choice(raw)]
    else:
        near = [n for n in earlier if n.layer == layer - 1 and n.kind in ("model", "snapshot")]
        far = [n for n in earlier if n.layer < layer and (n.kind == "model" or n.raw)]
        count = rng.choice((1, 1, 2, 2, 3))
        chosen = list(
            {n.name: n for n in [rng.choice(near or far), *rng.choices(far, k=count - 1)]}.values()
        )
    kinds = ["view", "table", "table", "table", "ephemeral", "incremental"]
    if layer == 0:
        kinds = ["view", "view", "table", "table", "ephemeral", "incremental"]
    first = chosen[0]
    if len(chosen) == 1 and first.kind != "snapshot" and first.materialized != "ephemeral":
        kinds += ["microbatch"] * (first.kind != "seed")
    materialized = rng.choice(kinds)
    strategy = since = ""
    if materialized == "incremental":
        strategy = rng.choice(("delete+insert", "merge"))
        if not calm:
            strategy = rng.choice((strategy, strategy, "append"))
            since = rng.choice(("", ">=") if strategy != "append" else ("", ">"))
    keep = rng.choice((None, None, (rng.randint(3, 6), 0)))
    project.nodes[name] = Node(
        name,
        "model",
        layer,
        tuple(n.name for n in chosen),
        materialized,
        strategy,
        since,
        strict=rng.random() < 0.7,
        factor=rng.randint(1, 40),
        shift=rng.randint(0, 900),
        keep=keep,
        scaled=materialized != "microbatch" and rng.random() < 0.25,
        day_var=rng.random() < 0.2,
        hook=materialized != "ephemeral" and rng.random() < 0.5,
    )


def _draw_tests(rng: random.Random, project: Project, count: int) -> None:
    """Tests that pass on every good state of the warehouse; a `warn` one always finds rows."""
    models = [n for n in project.of("model") if n.materialized != "ephemeral"]
    drawn: set[tuple[str, str, str]] = set()
    for number in range(count * 2):
        if len(project.tests) >= count:
            return
        node = (
            rng.choice(models)
            if rng.random() < 0.8
            else rng.choice([n for n in project.nodes.values() if n.kind != "model"])
        )
        kind = rng.choice(("at_least", "at_least", "not_null", "unique", "singular", "pair"))
        other, warn = "", rng.random() < 0.15
        if node.raw:
            kind = rng.choice(("unique", "not_null"))
        elif node.kind == "snapshot" or (
            kind == "unique" and (node.strategy == "append" or node.materialized == "microbatch")
        ):
            kind = "not_null"
        if kind == "pair":
            other = rng.choice(models).name
            if other == node.name:
                continue
        if kind == "unique" and len(node.parents) == 1 and rng.random() < 0.5:
            parent = project.nodes[node.parents[0]]
            if parent.relation and parent.kind != "snapshot" and node.since == "":
                kind, other = "relationships", parent.name
        if (kind, node.name, other) in drawn:
            continue
        drawn.add((kind, node.name, other))
        if kind not in ("at_least", "singular", "not_null"):
            warn = False
        name = f"t{number}_{kind}_{node.name}"
        project.tests.append(Test(name, kind, node.name, other, warn, 900_000 if warn else 0))
    for node in models:
        fit = node.materialized in ("table", "view") and len(node.parents) == 1
        parent = project.nodes[node.parents[0]]
        fit = fit and parent.relation and parent.kind != "snapshot" and not node.day_var
        if fit and rng.random() < 0.2:
            project.tests.append(Test(f"u_{node.name}", "unit", node.name))


# ---- rendering -------------------------------------------------------------------------------

_MACROS = """\
{% macro quiet(node) -%}
(select count(*) from (select n from control.slow where node = '{{ node }}') s, range(s.n) t(i)
  where hash(i) = 42) = 0
and (select count(error('transient: connection reset')) from control.broken
  where node = '{{ node }}') = 0
{%- endmacro %}

{% test at_least(model, column_name, value) %}
select * from {{ model }} where {{ column_name }} < {{ value }}
{% endtest %}
"""

_PROFILE = """\
eq:
  target: dev
  outputs:
    dev:
      type: duckdb
      path: "{{ env_var('EQ_DATABASE') }}"
      threads: %d
      settings: {threads: 1}
"""


def _common(project: Project, defects: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    start = "create table if not exists main.hook_log (n int)"
    if "hook:text" in defects:
        start = "insert into main.no_such_table values (1)"
    hooks = [start]
    if "hook:needs" in defects or "hook:table" in defects:
        hooks.append("select * from control.needed")
    yield (
        "dbt_project.yml",
        json.dumps(
            {
                "name": NAME,
                "version": "1.0",
                "profile": NAME,
                "vars": {"run_day": 5},
                "flags": {"skip_nodes_if_on_run_start_fails": project.skips_after_hook},
                "on-run-start": hooks,
                "on-run-end": ["create or replace table main.hook_end as select 1 as n"],
                "models": {NAME: {f"l{n}": {"+tags": [f"l{n}"]} for n in range(project.layers)}},
                "seeds": {NAME: {"+column_types": {"v": "varchar", "day": "date"}}},
            },
            indent=1,
        ),
    )
    yield "profiles.yml", _PROFILE % project.threads
    sign = "-1000 -" if "macro:scaled" in defects else ""
    yield "macros/quiet.sql", _MACROS
    yield (
        "macros/scaled.sql",
        "{% macro scaled(x) %}(" + sign + "3 * ({{ x }})){% endmacro %}\n",
    )


def ref(project: Project, name: str) -> str:
    """Jinja that refers to a node."""
    node = project.nodes[name]
    return "{{ source('raw', '%s') }}" % name if node.kind == "source" else "{{ ref('%s') }}" % name


def _value(project: Project, node: Node, parent: Node) -> str:
    if not project.is_text(parent):
        return "v"
    return "cast(v as bigint)" if node.strict else "coalesce(try_cast(v as bigint), -1)"


def _formula(project: Project, node: Node, x: str, defect: str) -> str:
    body = f"{x} * {node.factor} + {node.shift}"
    if node.day_var:
        body += " + {{ var('run_day') }}"
    if node.scaled:
        body = (
            "{{ scaled('" + body.replace("{{ var('run_day') }}", "' ~ var('run_day') ~ '") + "') }}"
        )
    if defect == "logic":
        body = f"-1000000 - ({body})"
    if project.signed:
        body = f"{{{{ config.get('sign', 1) }}}} * ({body})"
    return f"cast(({body}) % {MODULUS} as bigint)"


def _model(project: Project, node: Node, defect: str) -> str:
    config = _config(node)
    broken = ", no_such_column" if defect == "sql" else ""
    where = [f"id % {node.keep[0]} != {node.keep[1]}"] if node.keep else []
    if node.materialized == "microbatch":
        parent = project.nodes[node.parents[0]]
        x = _value(project, node, parent)
        where.append(f"{{{{ quiet('{node.name}') }}}}")
        return (
            f"{config}select id, {_formula(project, node, x, defect)} as v, day{broken}\n"
            f"from {ref(project, parent.name)}\nwhere {' and '.join(where)}\n"
        )
    parts = [
        f"select id, {_value(project, node, project.nodes[p])} as v, day from {ref(project, p)}"
        + (" where dbt_valid_to is null" if project.nodes[p].kind == "snapshot" else "")
        for p in node.parents
    ]
    unioned = "\nunion all\n".join(parts)
    inner = f"where {' and '.join(where)}\n" if where else ""
    outer = f"where {{{{ quiet('{node.name}') }}}}\n" if node.can_wait else ""
    if node.since:
        outer += (
            "{% if is_incremental() %}and day " + node.since + " (select max(day) from {{ this }})"
            "{% endif %}\n"
        )
    return (
        f"{config}with unioned as (\n{unioned}\n), made as (\n"
        f"select id, {_formula(project, node, 'sum(v)', defect)} as v, max(day) as day\nfrom unioned\n"
        f"{inner}group by id\n)\nselect id, v, day{broken} from made\n{outer}"
    )


def _config(node: Node) -> str:
    words = {"materialized": f"'{node.materialized}'"}
    if node.materialized == "microbatch":
        words = {
            "materialized": "'incremental'",
            "incremental_strategy": "'microbatch'",
            "batch_size": "'day'",
            "begin": f"'{DAYS[0]}'",
        }
    elif node.materialized == "incremental":
        words["incremental_strategy"] = f"'{node.strategy}'"
        if node.strategy != "append":
            words["unique_key"] = "'id'"
    if node.materialized != "ephemeral":
        words["event_time"] = "'day'"
    if node.hook:
        words["post_hook"] = _after(node)
    return "{{ config(" + ", ".join(f"{k}={v}" for k, v in words.items()) + ") }}\n"


def _after(node: Node) -> str:
    return "[{'sql': \"select {{ quiet('%s_after') }}\", 'transaction': false}]" % node.name


def _snapshot(project: Project, node: Node, defect: str) -> str:
    parent = project.nodes[node.parents[0]]
    own = "cast(v as bigint)" if project.is_text(parent) else "v"
    value = f"-1 * ({own})" if defect == "logic" else "v"
    broken = ", no_such_column" if defect == "sql" else ""
    where = " and dbt_valid_to is null" if parent.kind == "snapshot" else ""
    hook = f", post_hook={_after(node)}" if node.hook else ""
    return (
        "{% snapshot " + node.name + " %}\n{{ config(unique_key='id', strategy='check', "
        f"check_cols=['v']{hook}) }}}}\n"
        f"select id, {value} as v, day{broken} from {ref(project, parent.name)}\n"
        f"where {{{{ quiet('{node.name}') }}}}{where}\n"
        "{% endsnapshot %}\n"
    )


def _singular(project: Project, test: Test, defect: str) -> str:
    value = 2 * MODULUS if defect == "test" else test.value
    config = "{{ config(severity='warn') }}\n" if test.warn else ""
    of = ref(project, test.node)
    if test.kind == "pair":
        other = ref(project, test.other)
        return (
            f"select a.id from {of} a join {other} b using (id)\n"
            f"where a.v < {value} or b.v < {value}\n"
        )
    return f"{config}select * from {of} where v < {value}\n"


def _yaml(project: Project, defects: Mapping[str, str]) -> dict[str, object]:
    sections: dict[str, list[object]] = {"models": [], "seeds": [], "snapshots": []}
    tables: list[object] = []
    for node in project.nodes.values():
        columns = [
            {"name": name, "data_tests": tests}
            for name, tests in (
                ("id", [_generic(project, t, defects) for t in _on(project, node, "id")]),
                ("v", [_generic(project, t, defects) for t in _on(project, node, "v")]),
            )
            if tests
        ]
        entry: dict[str, object] = {"name": node.name, "columns": columns}
        if project.signed and node.kind == "model":
            entry["config"] = {"sign": -1 if defects.get(node.name) == "yaml" else 1}
        if node.kind == "source":
            tables.append({**entry, "config": {"event_time": "day"}})
        else:
            sections[f"{node.kind}s"].append(entry)
    document: dict[str, object] = {"version": 2, **{k: v for k, v in sections.items() if v}}
    if tables:
        document["sources"] = [{"name": "raw", "schema": "raw", "tables": tables}]
    document["exposures"] = [
        {
            "name": f"report_{name}",
            "type": "dashboard",
            "owner": {"name": "somebody", "email": "a@example.com"},
            "depends_on": [f"ref('{name}')"],
        }
        for name in project.exposures
    ]
    document["unit_tests"] = [
        _unit(project, t, defects.get(t.name, "")) for t in project.tests if t.kind == "unit"
    ]
    return {k: v for k, v in document.items() if v}


def _on(project: Project, node: Node, column: str) -> list[Test]:
    of = {"id": ("unique", "relationships"), "v": ("not_null", "at_least")}[column]
    return project.tests_of(node.name, *of)


def _generic(project: Project, test: Test, defects: Mapping[str, str]) -> object:
    config = {"config": {"severity": "warn"}} if test.warn else {}
    if test.kind == "at_least":
        value = 2 * MODULUS if defects.get(test.name) == "test" else test.value
        return {"at_least": {"value": value, **config}}
    if test.kind == "relationships":
        return {"relationships": {"to": f"ref('{test.other}')", "field": "id", **config}}
    return {test.kind: config} if config else test.kind


def _unit(project: Project, test: Test, defect: str) -> object:
    node = project.nodes[test.node]
    parent = project.nodes[node.parents[0]]
    rows = [(1, 10), (1, 20), (2, 7)]
    sums: dict[int, int] = {}
    for ident, value in rows:
        if node.keep is None or ident % node.keep[0] != node.keep[1]:
            sums[ident] = sums.get(ident, 0) + value
    expected = []
    for ident, total in sums.items():
        made = total * node.factor + node.shift
        made = made * 3 if node.scaled else made
        expected.append({"id": ident, "v": made % MODULUS + (1 if defect == "test" else 0)})
    cast: Callable[[int], object] = str if parent.raw else int
    return {
        "name": test.name,
        "model": node.name,
        "given": [
            {
                "input": ref(project, parent.name).strip("{} "),
                "rows": [{"id": i, "v": cast(v), "day": DAYS[0]} for i, v in rows],
            }
        ],
        "expect": {"rows": expected},
    }


def day_flags(project: Project, days: Sequence[str]) -> list[str]:
    """What microbatch models have to be told, where there are any."""
    if not any(n.materialized == "microbatch" for n in project.nodes.values()):
        return []
    last = f"{days[-1][:-2]}{int(days[-1][-2:]) + 1:02d}"
    return ["--event-time-start", days[0], "--event-time-end", last]
