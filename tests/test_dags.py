"""The DAGs on real Airflows: they load, they are built as they should be, no value reaches a shell,
and `dag.test()` of each with the real dbt."""

from __future__ import annotations

import ast
import json
import os
import re
from datetime import datetime, timedelta, timezone
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from airflows import (
    DAGS,
    DAY,
    MEND,
    MODELS,
    SUNDAY,
    VERSIONS,
    Company,
    a_run,
    a_state,
    company,
    demo_company,
    python_of,
    slack,
)
from dbt_recover.archive import Archive
from dbt_recover.cli import retry
from dbt_recover.errors import NotFoundError
from dbt_recover.lease import Lease
from dbt_recover.load import load
from dbt_recover.naming import resolve
from dbt_recover.runstate import failed_nodes
from dbt_recover.storage.local import LocalStorage
from projects import RELAY, SIDE, written
from test_insist import lock

slow = pytest.mark.slow
FILES = sorted(DAGS.glob("*.py"))
PIPELINES = ("analytics_dbt_pipeline", "three_domain_exercise")
PARAMS = {"run", "dry_run", "strategy", "tests", "select", "vars", "target", "allow"}

# ---- they load, and how they are built -----------------------------------------------------------

_LOAD = """
import json, os, sys, time, warnings
answer, graph, hostile = sys.argv[1:]
os.environ["DBT_RECOVER_GRAPH_FILE"] = graph
folder = os.environ["AIRFLOW__CORE__DAGS_FOLDER"]
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    try:
        from airflow.dag_processing.dagbag import DagBag
    except ImportError:
        from airflow.models import DagBag
    bag = DagBag(folder)
ours = [str(w.message) for w in caught if w.filename.startswith(folder)]
captured = {f: [str(w) for w in each] for f, each in bag.captured_warnings.items()}
ours += [w for f, each in captured.items() if "dags" in f for w in each if "/dags/" in w]
def delay(task):
    return task.retry_delay.total_seconds()
dags = {}
for dag in bag.dags.values():
    dags[dag.dag_id] = {
        "max_active_runs": dag.max_active_runs,
        "paused": dag.is_paused_upon_creation,
        "schedule": str(getattr(dag.timetable, "summary", "")),
        "catchup": dag.catchup,
        "params": {
            k: {**p.schema, "description": p.description, "default": p.value}
            for k, p in dag.params.items() if hasattr(p, "schema")
        } if hasattr(dag.params, "items") else {},
        "tasks": {
            t.task_id: {
                "type": type(t).__name__,
                "retries": t.retries,
                "backoff": bool(t.retry_exponential_backoff),
                "trigger_rule": str(getattr(t.trigger_rule, "value", t.trigger_rule)),
                "teardown": bool(getattr(t, "is_teardown", False)),
                "upstream": sorted(t.upstream_task_ids),
                "callback": bool(t.on_failure_callback),
                "timeout": t.execution_timeout.total_seconds() if t.execution_timeout else None,
                "group": t.task_group.group_id if t.task_group else None,
                "mode": getattr(t, "mode", None),
                "poke": getattr(t, "poke_interval", None),
                "wait": getattr(t, "timeout", None),
                "soft_fail": getattr(t, "soft_fail", None),
                "words": list(getattr(t, "words", ())),
                "defaults": getattr(t, "defaults", None),
            }
            for t in dag.tasks
        },
    }
import recover_repair
refused = {}
for name, value in json.loads(hostile):
    params = {k: p.value for k, p in recover_repair.PARAMS.items()}
    params[name] = value
    try:
        options = recover_repair.options(recover_repair.checked(params))
        refused[json.dumps([name, value])] = ["passed", options]
    except Exception as error:
        refused[json.dumps([name, value])] = [type(error).__name__, str(error)]
import analytics_pipeline
from recover_layers import Layer, build_layers
with analytics_pipeline.DAG("longer", schedule=None) as longer:
    build_layers((*analytics_pipeline.LAYERS, Layer("reports")))
longer = {t.task_id: sorted(t.upstream_task_ids) for t in longer.tasks if "reports" in t.task_id}
json.dump({"errors": bag.import_errors, "warnings": ours, "dags": dags, "refused": refused,
           "longer": longer},
          open(answer, "w"), default=str)
"""

EVIL = (
    "; rm -rf /",
    "$(touch /tmp/x)",
    "`id`",
    "a\nb",
    "x\n",
    "--full-refresh",
    "../../etc",
    "a|b",
)
HOSTILE: list[tuple[str, object]] = [
    *((name, value) for name in ("run", "select", "target", "strategy", "tests") for value in EVIL),
    ("allow", ["drift; rm"]),
    ("allow", "drift"),
    ("dry_run", "$(id)"),
    ("vars", "--full-refresh"),
    ("run", "x" * 301),
]
FINE: list[tuple[str, object]] = [
    ("run", "2026-01-31"),
    ("run", "analytics_dbt_pipeline/scheduled__2026-01-31T06:00:00+00:00"),
    ("select", "tag:staging,+fct_revenue stg_views+"),
    ("select", ""),
    ("select", None),
    ("target", "prod"),
    ("vars", {"run_date": "$(touch /tmp/x); --full-refresh\n"}),
    ("allow", ["drift", "older-run", "failed-hooks"]),
]


@cache
def _loaded(version: str, home: Path) -> Any:
    made = company(home, version)
    graph = home / "graph.json"
    nodes = [
        {"task": "model.x.a", "folder": "models/staging", "select": ["fqn:x.a"], "after": []},
        {
            "task": "model.x.b",
            "folder": "models/marts",
            "select": ["fqn:x.b", "fqn:x.t"],
            "after": ["model.x.a"],
        },
    ]
    graph.write_text(json.dumps({"version": 1, "nodes": nodes}))
    return made.python(_LOAD, str(graph), json.dumps([*HOSTILE, *FINE]))


@pytest.fixture(params=VERSIONS)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The DAGs as this Airflow has them. Each version is started once per process."""
    version: str = request.param
    python_of(version)
    home = tmp_path_factory.getbasetemp() / f"loaded-{version}"
    return {**_loaded(version, home), "version": version}


@slow
def test_the_dags_are_as_they_should_be(loaded: Any) -> None:
    """One test per Airflow, not one per fact: starting it is what takes the time."""
    assert (loaded["errors"], loaded["warnings"]) == ({}, [])
    dags = loaded["dags"]
    assert set(dags) == {
        *PIPELINES,
        "dbt_model_per_task",
        "dbt_repair",
        "dbt_repair_scheduled",
    }
    for name, dag in dags.items():
        assert (dag["max_active_runs"], dag["catchup"]) == (1, False), name
        for task_id, task in dag["tasks"].items():
            # What runs whatever happened must not decide how the run ends.
            if task["trigger_rule"] not in ("all_success", "none_failed"):
                assert task["teardown"], (name, task_id)
    _pipeline_is_the_lessons(dags["analytics_dbt_pipeline"]["tasks"])
    # One more line in LAYERS.
    assert loaded["longer"] == {
        "dbt_run_reports": ["dbt_test_marts"],
        "dbt_test_reports": ["dbt_run_reports"],
    }
    _exercise_is_to_the_letter(dags["three_domain_exercise"]["tasks"])
    _tasks_per_model(dags["dbt_model_per_task"]["tasks"])
    _repair_explains_itself(dags["dbt_repair"], loaded["version"])
    scheduled = dags["dbt_repair_scheduled"]
    assert scheduled["paused"] is True
    assert {t["retries"] for t in scheduled["tasks"].values()} == {0}


def _pipeline_is_the_lessons(tasks: Any) -> None:
    sensors = ["wait_for_product_events", "wait_for_salesforce_crm"]
    assert {k: t["upstream"] for k, t in tasks.items()} == {
        **{s: [] for s in sensors},
        "dbt_run_staging": sensors,
        "dbt_test_staging": ["dbt_run_staging"],
        "dbt_run_intermediate": ["dbt_test_staging"],
        "dbt_run_finance_marts": ["dbt_run_intermediate"],
        "dbt_run_marketing_marts": ["dbt_run_intermediate"],
        "dbt_test_marts": ["dbt_run_finance_marts", "dbt_run_marketing_marts"],
        "summary": ["dbt_test_marts"],
    }
    assert all(t["callback"] for t in tasks.values())
    for name in sensors:
        task = tasks[name]
        assert task["type"] == "SqlSensor"
        told = (task["mode"], task["poke"], task["wait"], task["soft_fail"])
        assert told == ("reschedule", 300, 7200, False), name
    for name, task in tasks.items():
        if name.startswith("dbt_run_"):
            assert (task["retries"], task["backoff"]) == (2, True), name
        if name.startswith("dbt_test_"):
            assert (task["retries"], task["timeout"]) == (1, 1800), name
    assert tasks["dbt_test_marts"]["words"] == [
        *("test", "--indirect-selection=buildable", "--select"),
        *("tag:finance_mart", "tag:marketing_mart"),
    ]


def _exercise_is_to_the_letter(tasks: Any) -> None:
    chain = [
        "wait_for_raw_events",
        *(
            f"dbt_{verb}_{layer}"
            for layer in ("staging", "core", "reporting")
            for verb in ("run", "test")
        ),
        "parse_dbt_run_results",
    ]
    assert {k: t["upstream"] for k, t in tasks.items()} == {
        name: chain[n - 1 : n] if n else [] for n, name in enumerate(chain)
    }
    sensor = tasks["wait_for_raw_events"]
    assert (sensor["type"], sensor["mode"], sensor["poke"]) == ("SqlSensor", "reschedule", 300)
    assert all(t["callback"] for t in tasks.values())
    assert {tasks[f"dbt_test_{x}"]["retries"] for x in ("staging", "core", "reporting")} == {1}
    assert {
        (tasks[f"dbt_run_{x}"]["retries"], tasks[f"dbt_run_{x}"]["backoff"])
        for x in ("staging", "core", "reporting")
    } == {(2, True)}


def _tasks_per_model(tasks: Any) -> None:
    assert {k: (t["upstream"], t["group"]) for k, t in tasks.items()} == {
        "model.x.a": ([], "models-staging"),
        "model.x.b": (["model.x.a"], "models-marts"),
    }
    assert tasks["model.x.b"]["words"] == [
        *("build", "--indirect-selection=empty", "--select", "fqn:x.b", "fqn:x.t"),
    ]


def _repair_explains_itself(dag: Any, version: str) -> None:
    assert set(dag["params"]) == PARAMS
    for name, param in dag["params"].items():
        assert param["description"], name
        assert param["examples"], name
        assert param["type"], name
    # What a refusal asks for can be given in the form.
    flags = {option for param in retry.params for option in param.opts}
    allowed = {flag.removeprefix("--allow-") for flag in flags if flag.startswith("--allow-")}
    assert "--ignore-failed-hooks" in flags
    assert set(dag["params"]["allow"]["items"]["enum"]) == allowed | {"failed-hooks"}
    tasks = dag["tasks"]
    # A second try of `approve` asks again, of `summary` tells again: neither runs anything.
    asks = {"approve", "summary"} & set(tasks)
    assert {t["retries"] for k, t in tasks.items() if k not in asks} == {0}
    assert "UTC day on which the run began" in dag["params"]["run"]["description"]
    has_approval = version == "3.3"
    assert ("approve" in tasks) is has_approval
    assert dag["params"]["dry_run"]["default"] is (not has_approval)
    if has_approval:
        assert tasks["approve"]["defaults"] == ["Reject"]
        assert tasks["retry"]["upstream"] == ["approve"]
    else:
        assert tasks["retry"]["upstream"] == ["go_on"]


@slow
def test_hostile_values_are_refused_or_stay_data(loaded: Any) -> None:
    answers = loaded["refused"]
    for name, value in HOSTILE:
        kind, said = answers[json.dumps([name, value])]
        assert kind == "AirflowFailException", (name, value, said)
        assert f"param {name} is refused" in said
    for name, value in FINE:
        kind, words = answers[json.dumps([name, value])]
        assert kind == "passed", (name, value, words)
        # Each value is part of one word, which begins with an option of ours.
        assert all(re.match(r"--[a-z-]+(=|$)", word) for word in words), words
    given = answers[json.dumps(["vars", {"run_date": "$(touch /tmp/x); --full-refresh\n"}])][1]
    assert '--vars={"run_date": "$(touch /tmp/x); --full-refresh\\n"}' in given


# ---- no value reaches a shell --------------------------------------------------------------------

_FORBIDDEN = {
    "BashOperator",
    "SSHOperator",
    "KubernetesPodOperator",
    "DockerOperator",
    "system",
    "popen",
    "getoutput",
    "getstatusoutput",
    "eval",
    "exec",
    "bash",
    "create_subprocess_shell",
}
# Not what `plan` has resolved: xcom_pull(...)['run_id'].
_FOREIGN = re.compile(r"{[{%][^}]*?(?<!['\w])(params|conf|run_id)\b.*?[%}]}", re.DOTALL)


def unsafe(source: str, name: str = "dag.py") -> list[str]:
    """What in a DAG file could bring a value to a shell, or to a command as more than one word."""
    found = []
    tree = ast.parse(source)
    for node in ast.walk(tree):
        at = f"{name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.ImportFrom | ast.Import):
            names = {a.name.split(".")[-1] for a in node.names}
            if names & _FORBIDDEN or "shlex" in names:
                found.append(f"{at}: imports {names & (_FORBIDDEN | {'shlex'})}")
        elif isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            called = called or (node.func.id if isinstance(node.func, ast.Name) else "")
            if called in _FORBIDDEN:
                found.append(f"{at}: calls {called}")
            for keyword in node.keywords:
                if keyword.arg == "shell":
                    found.append(f"{at}: shell=")
                if keyword.arg in ("bash_command", "command", "cmds", "sql") and not isinstance(
                    keyword.value, ast.Constant
                ):
                    found.append(f"{at}: {keyword.arg} is put together")
            if called in ("Popen", "run", "call", "check_call", "check_output") and (
                not node.args or not isinstance(node.args[0], ast.List)
            ):
                found.append(f"{at}: {called} without a list of words")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            for match in _FOREIGN.finditer(node.value):
                # One word of a command: `--name={{ ... }}`, and nothing else in it.
                if node.value != f"{node.value.split('=')[0]}={match[0]}":
                    found.append(f"{at}: {match[0]}")
                elif not node.value.startswith("--"):
                    found.append(f"{at}: {node.value}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_no_dag_brings_a_value_to_a_shell(path: Path) -> None:
    assert unsafe(path.read_text(), path.name) == []


@pytest.mark.parametrize(
    "source",
    [
        'BashOperator(bash_command="dbt run --select {{ params.select }}")',
        "from airflow.providers.standard.operators.bash import BashOperator",
        "x = \"dbt-recover retry {{ dag_run.conf['run'] }}\"",
        'x = "echo {{ run_id }}"',
        'subprocess.run(f"dbt {x}", shell=True)',
        "subprocess.Popen(words)",
        "os.system(x)",
        'SqlSensor(sql=f"select {x}")',
        'x = "{{ params.run }}"',
        "@task.bash\ndef f(): return task.bash(x)",
    ],
)
def test_the_lint_sees(source: str) -> None:
    assert unsafe(source)


def test_dags_import_airflow_and_the_standard_library_only() -> None:
    import sys

    ours = {p.stem for p in FILES}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            for name in (n.split(".")[0] for n in names):
                allowed = {"airflow", *ours, *sys.stdlib_module_names}
                assert name in allowed, (path.name, name)
    # dbt imports every top-level module of this name.
    assert not [p.name for p in FILES if p.name.startswith("dbt_")]


# ---- dag.test() ----------------------------------------------------------------------------------


@slow
@pytest.mark.timeout(600)
def test_a_failed_pipeline_is_repaired(tmp_path: Path) -> None:
    """The data break an intermediate model; mended; dbt_repair; the tables equal a clean build."""
    with slack() as told:
        made = company(tmp_path / "c", AIRFLOW_CONN_SLACK_DATA_ALERTS=told.connection)
        made.migrate()
        repair = {"run": "latest-failed", "dry_run": False, "select": ""}
        nothing, failed, none, dry, repaired, again, scheduled, *refused = made.dag_tests(
            a_run("dbt_repair", conf=repair, day="", skip="approve"),
            a_run("analytics_dbt_pipeline"),
            a_run("dbt_repair", conf={**repair, "select": "stg_accounts"}, day="", skip="approve"),
            MEND,
            a_run("dbt_repair", conf={**repair, "dry_run": True}, day=""),
            a_run("dbt_repair", conf=repair, day="", skip="approve"),
            a_run("dbt_repair", conf=repair, day="", skip="approve"),
            a_run("dbt_repair_scheduled", conf={"quiet_minutes": 0}, day=""),
            *(
                a_run("dbt_repair", conf={**repair, name: value}, day="")
                for name, value in (("run", "; rm -rf /"), ("target", "$(id)"), ("select", "--x"))
            ),
        )
    assert (failed.state, failed.tasks["dbt_run_intermediate"]) == ("failed", "failed"), made.log
    assert re.search(
        r"step dbt_run_intermediate: nodes are failing \(exit code 1\)(\\n|\n)Error in model "
        r"int_contracts \([\w/.]+\)(\\n|\n)recorded as run",
        made.log,
    ), "the exception names what failed, and no value of a row"
    assert failed.tasks["dbt_test_marts"] == "upstream_failed"
    assert failed.tasks["summary"] == "success"
    totals = failed.xcoms["summary"]
    assert (totals["error"], totals["never_started"]) == (1, 4)
    assert totals["failed_models"] == ["model.company.int_contracts"]
    # A selection that leaves nothing of the plan does not make the run whole.
    assert (none.state, none.tasks["plan"]) == ("failed", "failed"), made.log
    assert re.search(
        r"nothing was run: run \S+ is not whole, and --select or --exclude leaves nothing of its plan: "
        r"without int_contracts, ",
        made.log,
    )
    assert "with `Only these` (select) empty, or with some of these (exit code 1)" in made.log
    assert dry.state == "success"
    assert (dry.tasks["plan"], dry.tasks["retry"]) == ("success", "skipped")
    planned = {node["unique_id"] for node in dry.xcoms["plan"]["nodes"]}
    assert "model.company.int_views" not in planned
    assert "model.company.fct_engagement" in planned  # its step never began
    assert (repaired.state, repaired.xcoms["retry"]["outcome"]) == ("success", "recovered")
    assert set(repaired.xcoms["retry"]["executed"]) == planned
    assert made.here.tables() == made.clean()
    # Nothing to do is success, and said; an archive that is not there is not.
    assert (again.state, again.tasks["retry"]) == ("success", "skipped")
    assert "nothing to do: there is no failed run" in made.log
    assert (nothing.state, nothing.tasks["plan"]) == ("failed", "failed")
    assert "there is no archive at" in made.log
    assert scheduled.state == "success"
    assert [r.state for r in refused] == ["refused"] * 3
    assert all("ParamValidationError" in r.xcoms[""] for r in refused)
    alert, summed, recovered = (json.dumps(m) for m in told.messages)
    assert "int_contracts" in alert
    assert "dbt-recover retry" in alert
    assert "2,388.00" not in alert  # values are nobody's business in Slack
    assert "failed" in summed
    assert "recovered" in recovered


@slow
@pytest.mark.timeout(600)
def test_a_failed_pipeline_is_repaired_on_airflow_2(tmp_path: Path) -> None:
    """No approvals there: a dry run is the default, and a second trigger executes."""
    made = company(tmp_path / "c", "2.11")
    made.migrate()
    here = made.here.having(RAW_DB=made.raw_file, DBT_RECOVER_ARCHIVE=made.here.home / "archive")
    project = here.root / "dbt_project.yml"
    plain = project.read_text()
    project.write_text(f"{plain}on-run-end: select * from nowhere_at_all\n")
    build = ("--", "dbt", "build", "--select")
    assert here.recover("exec", "--run-id", "night/hook", *build, "stg_accounts").code == 1
    project.write_text(plain)
    # dbt gave up before it knew what it selects, and can tell no more today.
    lost = (*build, "state:modified", "--state", "nowhere")
    assert here.recover("exec", "--run-id", "night/scope", *lost).code == 2
    by_hand = {"run": "night/hook", "dry_run": False}
    failed, early, dry, repaired, hook, scope, ignored, again = made.dag_tests(
        a_run("analytics_dbt_pipeline", skip="wait_.*"),
        a_state("analytics_dbt_pipeline", "running"),
        a_run("dbt_repair", conf={"run": "latest-failed", "dry_run": False}, day=""),
        a_state("analytics_dbt_pipeline", "failed"),
        MEND,
        a_run("dbt_repair", conf={"run": "latest-failed"}, day=""),
        a_run("dbt_repair", conf={"run": "latest-failed", "dry_run": False}, day=""),
        a_run("dbt_repair", conf=by_hand, day=""),
        a_run("dbt_repair", conf={**by_hand, "run": "night/scope"}, day=""),
        a_run("dbt_repair", conf={**by_hand, "allow": ["failed-hooks"]}, day=""),
        a_run("dbt_repair", conf=by_hand, day=""),
    )
    assert (failed.state, failed.tasks["summary"]) == ("failed", "success"), made.log[-3000:]
    # What no node brings is refused, and said with what to do; a hook can be taken as it is.
    for refused in (hook, scope):
        assert (refused.state, refused.tasks["plan"]) == ("failed", "failed")
    log = made.log.replace("\\n", "\n")
    assert "on-run-end-0 failed, and dbt runs a hook only with a command" in log
    assert 'again with run night/hook and, under `Go on though` (allow): ["failed-hooks"]' in log
    assert "run that command again: dbt-recover exec --run-id night/scope -- dbt build" in log
    assert "Then trigger dbt_repair again with run night/scope (exit code 12)" in log
    assert (ignored.state, ignored.xcoms["retry"]["outcome"]) == ("success", "already_complete")
    assert (again.state, again.tasks["retry"]) == ("success", "skipped")
    assert "nothing to do: nothing of run night/hook is to run again: it is whole" in log
    assert (early.state, early.tasks["retry"]) == ("failed", "upstream_failed")
    assert "of analytics_dbt_pipeline is running. Wait until it has ended" in made.log
    assert (dry.state, dry.tasks["retry"]) == ("success", "skipped")
    assert (repaired.state, repaired.xcoms["retry"]["outcome"]) == ("success", "recovered")
    assert made.here.tables() == made.clean()


@slow
@pytest.mark.timeout(600)
def test_what_time_can_mend_is_retried_by_itself(tmp_path: Path) -> None:
    """A run that failed for another's lock on a file: left alone at first, retried with a bound over
    all rounds, and made whole when the lock is gone. So is one whose dbt could not connect at all. Those
    that failed for their data, too or alone, are reported, once."""
    other = tmp_path / "other.duckdb"
    with slack() as told, lock(other) as holder:
        made = company(
            tmp_path / "c",
            AIRFLOW_CONN_SLACK_DATA_ALERTS=told.connection,
            DBT_RECOVER_RETRY_BACKOFF="0.1",
            OTHER=str(other),
        )
        made.migrate()
        here = made.here.having(
            RAW_DB=made.raw_file, DBT_RECOVER_ARCHIVE=made.here.home / "archive", OTHER=other
        )
        build = ("--", "dbt", "build", "--vars", json.dumps({"run_date": DAY}))
        assert here.recover("exec", "--run-id", "night/data", *build).code == 1
        views, model = (
            here.root / f"models/intermediate/int_{name}.sql" for name in ("views", "contracts")
        )
        attach = (
            "{{ config(pre_hook=\"attach if not exists '{{ env_var('OTHER') }}' as other "
            '(read_only)") }}\n'
        )
        plain = views.read_text()
        views.write_text(attach + plain)
        assert here.recover("exec", "--run-id", "night/mixed", *build).code == 1
        views.write_text(plain)
        model.write_text(f"{attach}{MEND}\nwhere (select count(*) from other.main.rows) = 1")
        # Two tries of Airflow's own; they do not count.
        for number in (1, 2):
            task = here.having(AIRFLOW_CTX_TASK_ID="build", AIRFLOW_CTX_TRY_NUMBER=number)
            assert task.recover("exec", "--run-id", "night/lock", *build).code == 1
        with lock(here.database):  # dbt itself gives up
            connect = ("exec", "--run-id", "night/connect", *build, "--select", "stg_views")
            assert here.recover(*connect).code == 2
        before = len(made.here.calls)

        def a_round(due: str = "", **params: int) -> dict[str, Any]:
            return a_run("dbt_repair_scheduled", conf=params, day="", due=due)

        in_two_hours = (datetime.now(timezone.utc) + timedelta(hours=2)).isoformat()
        early, tried, spent, mended, later = made.dag_tests(
            a_round(),
            a_round(quiet_minutes=0, attempts=2),
            a_round(quiet_minutes=0, attempts=2),
            holder.pid,
            a_round(quiet_minutes=0, attempts=3),
            a_round(in_two_hours, quiet_minutes=60),
        )
    log = made.log
    assert (early.state, early.xcoms["find"]) == ("success", []), log
    assert "night/lock: ended just now, left alone" in log
    asked = [
        {"run": f"night/{name}", "words": ["--on=transient", "--attempts=2"], "again": False}
        for name in ("connect", "lock")
    ]
    assert (tried.state, tried.xcoms["find"]) == ("failed", asked), log
    assert (tried.tasks["retry[0]"], tried.tasks["retry[1]"]) == ("success", "failed")
    assert tried.xcoms["retry[0]"]["outcome"] == "recovered"
    assert (spent.state, spent.xcoms["find"]) == ("success", []), log
    assert "night/lock: still failing after 2 retries" in log
    last = {"run": "night/lock", "words": ["--on=transient", "--attempts=1"], "again": False}
    assert (mended.state, mended.xcoms["find"]) == ("success", [last]), log
    assert mended.xcoms["retry[0]"]["outcome"] == "recovered"
    # In the round with both, either may have been first.
    executed = made.executed(since=before)
    others = [each for each in executed if each != ["model.company.stg_views"]]
    assert (len(executed), len(others)) == (4, 3), executed
    assert all("model.company.int_contracts" in each for each in others)
    assert {r["run_id"]: r["status"] for r in made.recover("runs")["runs"]} == {
        "night/connect": "recovered",
        "night/lock": "recovered",
        "night/mixed": "failed",
        "night/data": "failed",
    }
    # Slack: of each thing that a person has to know; a round later nothing of it again.
    assert later.xcoms["find"] == []
    mixed, data = (
        f"not retried: not all that failed is transient ({which})"
        for which in ("data, transient", "data")
    )
    assert log.count(f"night/data: {data}") == log.count(f"night/mixed: {mixed}") == 4
    said = [m["blocks"][0]["text"]["text"] for m in told.messages]
    one_failed = "run night/lock: 1 still failing (exit code 1). Mend the cause, then "
    rounds = (
        [mixed, data, "recovered", f"{one_failed}trigger dbt_repair again"],
        ["still failing after 2 retries", mixed, data],
        [mixed, data, "recovered"],
    )
    for expected in rounds:
        heard, said = said[: len(expected)], said[len(expected) :]
        assert sorted(heard) == sorted(f"dbt_repair_scheduled: {text}" for text in expected)
    assert said == []


@slow
@pytest.mark.timeout(600)
def test_the_exercise_on_a_sunday(tmp_path: Path) -> None:
    made = demo_company(tmp_path / "c")
    made.here.sql(f"""
        insert into raw_product_events
        select event_id || 'x' || range, account_id, user_id, event_type, '{SUNDAY} 10:00:00'
        from raw_product_events, range(1) limit 120
    """)
    made.migrate()
    before = len(made.here.calls)
    (ran,) = made.dag_tests(a_run("three_domain_exercise", day=SUNDAY))
    assert (ran.state, set(ran.tasks.values())) == ("success", {"success"}), made.log
    calls = made.here.calls[before:]
    assert [c.argv[0] for c in calls] == ["run", "test"] * 3
    assert ["--full-refresh" in c.argv for c in calls] == [True, *[False] * 5]
    assert all(f'{{"run_date": "{SUNDAY}"}}' in " ".join(c.argv) for c in calls)
    assert "total models and tests run: " in made.log
    assert "slowest model: model.b2b_analytics." in made.log
    (run,) = made.recover("runs")["runs"]
    assert (run["status"], run["invocations"]) == ("success", 6)


@slow
@pytest.mark.timeout(600)
def test_a_task_per_model(tmp_path: Path) -> None:
    home = tmp_path / "c"
    made = company(home, DBT_RECOVER_GRAPH_FILE=str(home / "graph.json"))
    here = made.here.having(RAW_DB=made.raw_file)
    assert here.dbt("parse").code == 0
    drawn = here.recover("graph", "--manifest", "target/manifest.json", "--to", home / "graph.json")
    assert drawn.code == 0, drawn
    made.migrate()
    before = len(made.here.calls)
    failed, repaired = made.dag_tests(
        a_run("dbt_model_per_task"),
        MEND,
        a_run("dbt_repair", conf={"dry_run": False}, day="", skip="approve"),
    )
    assert set(failed.tasks) == MODELS
    wrong = {k: s for k, s in failed.tasks.items() if s != "success"}
    assert wrong == {
        "model.company.int_contracts": "failed",
        "model.company.fct_revenue": "upstream_failed",
    }, made.log
    ran = made.executed(since=before)
    assert sorted(m for each in ran[:-1] for m in each) == sorted(
        MODELS - {"model.company.fct_revenue"}
    )
    assert ran[-1] == ["model.company.fct_revenue", "model.company.int_contracts"]
    assert repaired.state == "success"
    assert made.here.tables() == made.clean()


# ---- the alert -----------------------------------------------------------------------------------

_ALERT = """
import json, logging, os, sys, types
answer, project, bin, run, *connections = sys.argv[1:]
import recover_alert
recover_alert.SLACK_SECONDS = 2
ti = types.SimpleNamespace(dag_id=run.split("/")[0], run_id=run.split("/")[1], task_id="dbt_run",
    try_number=3, log_url="http://airflow.example.com/dags/x?a=1&b=2")
context = {"ti": ti, "exception": ValueError("non-zero exit"), "dag_run": None}
said = []
for connection in connections:
    os.environ["AIRFLOW_CONN_SLACK_DATA_ALERTS"] = connection
    if not connection:
        del os.environ["AIRFLOW_CONN_SLACK_DATA_ALERTS"]
    said.append(recover_alert.alert_on_failure(context))
os.environ["DBT_RECOVER_BIN"] = "/does/not/exist"
os.environ["AIRFLOW_CONN_SLACK_DATA_ALERTS"] = connections[0]
said.append(recover_alert.alert_on_failure(context))
said.append(recover_alert.alert_on_failure({}))
import three_domain_exercise
said.append(three_domain_exercise.log_failure(context))
said.append(three_domain_exercise.log_failure({}))

import recover_repair
from recover_airflow import AirflowException
ended = []
def attempt(run, *words, by_itself=False, **environ):
    kept = dict(os.environ)
    os.environ.update(environ)
    try:
        retry = recover_repair.Retry(task_id="retry", run=run, words=words, by_itself=by_itself)
        ended.append(["", retry.execute({"ti": ti})])
    except AirflowException as error:
        ended.append([type(error).__name__, str(error)])
    os.environ.clear()
    os.environ.update(kept)
os.environ["DBT_RECOVER_BIN"] = bin
said.append(three_domain_exercise.log_failure(context))
os.environ["DBT_PROJECT_DIR"] = project
attempt(run)
attempt(run, by_itself=True)
with open(project + "/models/intermediate/int_views.sql", "a") as model:
    model.write("\\n-- edited")
attempt("dag/earlier")
attempt("dag/earlier", "--allow-drift")
attempt("dag/nosuch")
attempt(run, DBT_RECOVER_ARCHIVE="/dev/null/archive")
attempt(run, DBT_RECOVER_BIN="/does/not/exist")
attempt(run, DBT_PROJECT_DIR="/does/not/exist")
attempt("dag/whole")
import repair
from recover_repair import PARAMS
shown = {"run": {"run_id": run}, "nodes": [{"unique_id": "model.company.fct_revenue"}]}
ti.xcom_pull = lambda task_ids: shown
approved = repair.RetryAsApproved(task_id="retry_as_approved", run=run)
try:
    approved.execute({"ti": ti, "params": {k: p.value for k, p in PARAMS.items()}})
except AirflowException as error:
    ended.append([type(error).__name__, str(error)])
os.environ["DBT_RECOVER_BIN"] = "/does/not/exist"
attempt(run, by_itself=True)
recover_repair.tell_of("dag/<gone>", "a < b")  # with no dbt-recover: it does not raise
def script(name, text):
    path = os.path.join(os.environ["AIRFLOW_HOME"], name)
    with open(path, "w") as file:
        file.write("#!/bin/sh\\n" + text)
    os.chmod(path, 0o755)
    return path
cause = {"name": "fct_a", "class": "data", "error": "no <b> & c"}
alert = json.dumps({"failed": [cause], "gave_up": []})
case = f"case \\"$*\\" in *--always*) echo '{alert}';; esac"
os.environ["DBT_RECOVER_BIN"] = script("at-work", case)
text = recover_alert._alert({**context, "exception": None})["text"]
import recover_layers
os.environ["DBT_RECOVER_BIN"] = script("target", 'printf %s "$DBT_TARGET_PATH" > "$TOLD"')
os.environ["TOLD"] = answer + ".target"
targets = []
for given in ("/writable/target", ""):
    os.environ["DBT_TARGET_PATH"] = given
    step = recover_layers.DbtStep(task_id="dbt_run_a", words=["run"], own_target=True)
    step.execute({"ti": ti, "dag_run": None})
    targets.append(open(os.environ["TOLD"]).read())
os.environ["DBT_RECOVER_BIN"] = bin
ti.run_id = "live"
live = recover_alert._alert({**context, "exception": "boom"})["text"]
busy = [str(recover_repair.what_stops(repair.planned([], "dag/live")))]
warned = {"code": "at_work", "message": "its dbt runs", "stops": False, "flag": None}
early = {"run": {"run_id": "r"}, "nodes": [1], "nothing_to_run": None, "warnings": [warned]}
busy.append(str(recover_repair.what_stops(early)))
json.dump([said, ended, [text, live, busy], targets], open(answer, "w"))
"""


@slow
@pytest.mark.parametrize("version", VERSIONS)
def test_the_alert_never_hides_the_failure(version: str, tmp_path: Path) -> None:
    """Sent from a worker that has none of the files; to a webhook that works, one that refuses, one
    that hangs, to none, and without a dbt-recover. And what a retry says of each of its ends."""
    made = company(tmp_path / "c", version)
    here = made.here.having(
        RAW_DB=made.raw_file,
        DBT_RECOVER_ARCHIVE=made.here.home / "archive",
    )
    run = f"dag/manual__{DAY}"
    day = f'{{"run_date": "{DAY}"}}'
    for name in ("dag/earlier", run):
        ran = here.recover("exec", "--run-id", name, "--", "dbt", "build", "--vars", day)
        assert ran.code == 1, ran
    archive = Archive(LocalStorage(made.here.home / "archive"))
    whole = ("dbt", "run", "--select", "stg_accounts")
    assert here.recover("exec", "--run-id", "dag/whole", "--", *whole).code == 0
    # A dbt of which a node has failed while another is at work, in a warehouse of its own.
    relay = written(tmp_path / "relay", RELAY).having(
        DBT_RECOVER_ARCHIVE=archive.storage.url, THREADS=2, FAIL="side", WAIT="late"
    )
    os.mkfifo(tmp_path / "gate")
    live = ("exec", "--run-id", "dag/live", "--", "dbt", "build")
    nowhere = tmp_path / "elsewhere"
    nowhere.mkdir()
    worker = Company(made.here, version, {"DBT_PROJECT_DIR": str(nowhere)})
    with slack() as good, slack(status=500) as bad, slack(hangs=True) as stuck:
        words = (str(made.here.root), worker.environment()["DBT_RECOVER_BIN"], run)
        connections = (good.connection, bad.connection, stuck.connection, "")
        at_work = relay.having(GATE=tmp_path / "gate").start(*live)
        with Lease(archive, resolve(archive, run)), at_work as running:
            running.until(lambda: _failed(archive, "dag/live") == [SIDE], "a node has failed")
            said, ended, alerts, targets = worker.python(_ALERT, *words, *connections)
    assert said == [None] * 9
    # The exercise's own: a line of JSON, also where the archive cannot be asked.
    lines = [line for line in worker.log.splitlines() if line.startswith("ALERT ")]
    blind, full = (json.loads(line.removeprefix("ALERT ")) for line in lines)
    assert (blind["failed"], full["failed"][0]["unique_id"]) == (
        None,
        "model.company.int_contracts",
    )
    assert (full["event"], full["task"], full["try"]) == ("dbt_task_failed", "dbt_run", 3)
    assert "the alert could not be made" in worker.log
    _each_end_is_said(run, ended)
    # Others of the run are at work: `notify` by itself has nothing to tell then.
    at_work_now, live_too, busy = alerts
    assert busy[0].startswith("locked, nothing was run: run dag/live is still at work: dbt build, ")
    assert busy[1] == "locked, nothing was run: its dbt runs (exit code 11)"
    assert "it does not say why\nFailed so far" in at_work_now
    assert "`fct_a` (data): no &lt;b&gt; &amp; c" in at_work_now
    assert "failed, run `live`\nboom\nFailed so far; other tasks of the run are still" in live_too
    assert "\n`side` (data): Conversion Error: " in live_too
    assert "When they have ended, trigger `dbt_repair`." in live_too
    assert targets == ["/writable/target/dbt_run_a", "target/dbt_run_a"]
    alert, plain, cannot, gone = good.messages
    assert "Set DBT_RECOVER_BIN" in cannot["text"]
    assert gone["text"] == "a &lt; b\ndbt run dag/&lt;gone&gt;: its record cannot be read"
    text = json.dumps(alert, ensure_ascii=False)
    assert "int_contracts" in text
    assert "http://airflow.example.com/dags/x?a=1" in text
    assert f"dbt-recover retry {run}" in text.replace("'", "")
    assert "non-zero exit" in json.dumps(plain)
    # What could not be sent is in the log, without the address.
    assert worker.log.count("Slack") >= 3
    assert "there is no Airflow connection slack_data_alerts" in worker.log
    assert "trigger `dbt_repair`" in text
    assert "int_contracts" in worker.log
    for each in (bad, stuck):
        assert each.messages
        assert each.url not in worker.log


def _failed(archive: Archive, run: str) -> list[str]:
    """What has failed in it so far."""
    fresh = Archive(archive.storage)
    try:
        return [n.unique_id for n in failed_nodes(load(fresh, resolve(fresh, run)).state)]
    except NotFoundError:  # not yet
        return []


def _each_end_is_said(run: str, ended: list[tuple[str, Any]]) -> None:
    """Of `Retry`: what it raised or returned."""
    locked, gives_way, refused, failing, unknown, no_archive, no_bin, no_project, *more = ended
    whole, another, untold = more
    fails, may_pass = "AirflowFailException", "AirflowException"
    assert locked[0] == fails
    assert locked[1].startswith(f"locked, nothing was run: somebody is at work on run {run}")
    assert "wait until it has ended" in locked[1]
    assert "(exit code 11)" in locked[1]
    assert gives_way[0] == "AirflowSkipException"
    assert refused[0] == fails
    assert refused[1].startswith(
        "refused for safety, nothing was run: edited since the run, outside of"
    )
    assert '(allow): ["drift"] (exit code 12)' in refused[1]
    assert "trigger dbt_repair again with run dag/earlier" in refused[1]
    assert failing[0] == may_pass
    assert "1 still failing (exit code 1)" in failing[1]
    assert "model.company.int_contracts (data): " in failing[1]
    assert unknown[0] == fails
    assert "no run 'dag/nosuch'" in unknown[1]
    assert f"the latest runs are dag/live, dag/whole, {run}" in unknown[1]
    assert no_archive[0] == fails
    assert no_archive[1].startswith("/dev/null/archive is not a directory\n")
    assert "(exit code 2)" in no_archive[1]
    assert no_bin[0] == no_project[0] == untold[0] == fails
    assert "Set DBT_RECOVER_BIN" in untold[1], "the retry's own end, not that of telling it"
    assert "Set DBT_RECOVER_BIN" in no_bin[1]
    assert "Set DBT_PROJECT_DIR" in no_project[1]
    assert (whole[0], whole[1]["outcome"]) == ("", "already_complete")
    assert another[0] == fails
    assert f"the plan of run {run} is another one by now. New in it: model.company." in another[1]
    assert f"trigger dbt_repair again with run {run}" in another[1]
    assert not any("\x1b" in str(said) for _, said in ended)
