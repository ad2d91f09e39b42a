"""Runs of several dbt commands: in layers, one after another or at once, each with its own vars,
flags and target; stopped at each step; and a pipeline that is declared, so that a retry knows what
should have followed.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from dbt_recover.errors import LockedError, UsageError
from dbt_recover.pipeline import never_begun, pipeline_of, read_pipelines, read_steps
from projects import (
    LATE,
    MART,
    MART_ID,
    RELAY,
    SIDE,
    STG,
    STG_ID,
    TOP,
    Call,
    Checkout,
    Ran,
    Table,
    dbt_of,
    relay_model,
    written,
)

slow = pytest.mark.slow

# Steps of one run, and a test that can be made to hold, or stg to be wrong.
LAYERS: Mapping[str, str] = {
    **{name: text for name, text in RELAY.items() if not name.startswith("seeds/")},
    "models/staging/stg.sql": relay_model(
        "stg",
        "(values (1, 10), (2, 20), (3, 30)) as raw(id, v)",
        "tags='staging'",
        "nullif(id, {{ env_var('WRONG', '0') }}) as id, v",
    ),
    "tests/held.sql": "select id from {{ ref('top') }} where {{ hold('held') }} = id\n",
}
STEPS = {
    "run_staging": "dbt run --select tag:staging",
    "test_staging": "dbt test --select tag:staging",
    "run_marts": "dbt run --select tag:marts",
    "test_marts": "dbt test --select tag:marts",
}
DECLARED = '[[pipeline]]\nrun = "nightly/*"\n' + "".join(
    f'[[pipeline.steps]]\nname = "{name}"\ncommand = "{command}"\n'
    for name, command in STEPS.items()
)
RUN = "nightly/2026-01-31"
HELD = "test.relay.held"
STAGING, STAGING_TESTS = frozenset({STG, LATE, SIDE}), frozenset({STG_ID})
MARTS, MARTS_TESTS = frozenset({MART, TOP}), frozenset({MART_ID, HELD})
NODES = STAGING | STAGING_TESTS | MARTS | MARTS_TESTS


def argv(step: str) -> list[str]:
    return ["exec", "--run-id", RUN, "--step", step, "--", *STEPS[step].split()]


def layers(home: Path, *, declared: bool = False, version: str = "1.11") -> Checkout:
    files = {**LAYERS, **({"dbt_recover.toml": DECLARED} if declared else {})}
    made = written(home / "here", files)
    return made.having(DBT_RECOVER_ARCHIVE=home / "archive", **dbt_of(version))


def executed(calls: list[Call]) -> list[str]:
    return sorted(uid for call in calls for uid in call.executed)


def stopped_at(step: str, here: Checkout) -> frozenset[str]:
    """Run the steps up to this one, which fails or is killed; what is done and stays done."""
    steps = list(STEPS)
    done: frozenset[str] = frozenset()
    for earlier in steps[: steps.index(step)]:
        environ = {"WRONG": 2} if step == "test_staging" else {}
        assert here.having(**environ).recover(*argv(earlier)).code == 0
        done |= {"run_staging": STAGING, "test_staging": STAGING_TESTS, "run_marts": MARTS}[earlier]
    if step == "test_staging":
        # stg is wrong, and what was built on it is stale.
        assert here.recover(*argv(step)).code == 1
        return frozenset()
    if step == "run_marts":
        assert here.having(FAIL="top").recover(*argv(step)).code == 1
        return done | {MART}
    node, held = (LATE, "late") if step == "run_staging" else (HELD, "held")
    with here.having(HOLD=held).start(*argv(step)) as running:
        running.holds(node)
        running.signal_dbt(signal.SIGKILL)
        assert running.end().code == 137
        return done | running.succeeded()


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Table]:
    home = tmp_path_factory.mktemp("clean-layers")
    return written(home / "here", LAYERS).clean_build(home / "clean")


AT_EACH_STEP = [
    *(pytest.param(step, "v2", id=f"{step}-v2") for step in STEPS),
    *(pytest.param(s, "1.11", id=f"{s}-1.11") for s in ("run_staging", "test_staging")),
]


@slow
@pytest.mark.parametrize("step,version", AT_EACH_STEP)
def test_a_declared_pipeline_is_completed(
    step: str, version: str, tmp_path: Path, clean: dict[str, Table]
) -> None:
    here = layers(tmp_path, declared=True, version=version)
    done = stopped_at(step, here)
    laptop = here.elsewhere(tmp_path / "laptop")
    # v2 writes its manifest at its end, so that after a kill dbt has to be asked.
    if version != "v2":
        assert set(laptop.plan()) == NODES - done
        assert laptop.calls == []
    elif step == "run_staging":
        # plan does not start dbt: it says what it does not know, and who will; nothing stops.
        planned = laptop.recover("plan", "-o", "json").json
        assert [w["code"] for w in planned["warnings"] if w["stops"]] == []
        (note,) = [w["message"] for w in planned["warnings"] if w["code"] == "not_parsed"]
        assert "step test_staging (`dbt test --select tag:staging`) never began" in note
        assert "so for 3 more of its commands. retry asks dbt first" in note
        assert f"dbt-recover plan {RUN} --ask-dbt" in note
        assert set(laptop.plan("--ask-dbt")) == NODES - done
        assert executed(laptop.calls) == []
    retried = laptop.recover("retry", "-o", "json")
    assert (retried.code, retried.json["outcome"]) == (0, "recovered"), retried
    assert executed(laptop.calls) == sorted(NODES - done)
    assert len({tuple(c.executed) for c in laptop.calls if c.executed}) == 1, (
        "one command is enough"
    )
    assert laptop.tables() == clean
    again = laptop.recover("retry", "-o", "json")
    assert (again.code, again.json["outcome"]) == (0, "already_complete"), again
    (run,) = laptop.recover("runs", "-o", "json").json["runs"]
    assert (run["run_id"], run["status"], run["total"]) == (RUN, "recovered", len(NODES))


@slow
def test_without_a_declaration_it_says_what_it_cannot_know(tmp_path: Path) -> None:
    here = layers(tmp_path, version="v2")
    done = stopped_at("test_staging", here)
    laptop = here.elsewhere(tmp_path / "laptop")
    planned = laptop.recover("plan", "-o", "json")
    (note,) = [w for w in planned.json["warnings"] if w["code"] == "no_pipeline"]
    assert (note["stops"], "test_staging" in note["message"]) == (False, True)
    assert "test_staging" in laptop.recover("plan").out
    retried = laptop.recover("retry")
    assert retried.code == 0, retried
    assert executed(laptop.calls) == sorted((STAGING | STAGING_TESTS) - done)
    assert not any(name.endswith(".mart") for name in laptop.tables())
    # Whoever reads "recovered" should not think that the pipeline is whole.
    assert "test_staging" in retried.out + retried.err
    assert "[[pipeline]]" in retried.out + retried.err

    # The next night, by its own words: the last step, and then nothing is unknown.
    (laptop.root / "dbt_recover.toml").write_text(DECLARED)
    rest = laptop.recover("retry", "-o", "json")
    assert (rest.code, rest.json["outcome"]) == (0, "recovered"), rest
    assert set(rest.json["executed"]) == MARTS | MARTS_TESTS


# ---- Airflow -----------------------------------------------------------------------------------


def airflow(checkout: Checkout, task: str, try_number: int) -> Checkout:
    return checkout.having(
        AIRFLOW_CTX_DAG_ID="nightly",
        AIRFLOW_CTX_DAG_RUN_ID="2026-01-31",
        AIRFLOW_CTX_TASK_ID=task,
        AIRFLOW_CTX_TRY_NUMBER=try_number,
        AIRFLOW_CTX_LOGICAL_DATE="2026-01-31T06:00:00+00:00",
    )


def task(checkout: Checkout, name: str, try_number: int, *flags: str) -> Ran:
    words = ("exec", *flags, "--", *STEPS[name].split())
    return airflow(checkout, name, try_number).recover(*words)


@slow
def test_tasks_of_a_dag_run_are_steps_and_their_next_tries_resume(
    tmp_path: Path, clean: dict[str, Table]
) -> None:
    """Each try on another worker. A task's next try does only what is left of its step."""
    here = layers(tmp_path, version="v2").having(WRONG=0)
    workers = iter(range(100))

    def on_a_worker(name: str, try_number: int, *flags: str, **environ: object) -> tuple[Ran, Any]:
        worker = here.elsewhere(tmp_path / f"worker-{next(workers)}").having(**environ)
        return task(worker, name, try_number, *flags), worker.calls

    ran, _ = on_a_worker("run_staging", 1, FAIL="late")
    assert ran.code == 1, ran
    ran, calls = on_a_worker("run_staging", 2)
    assert (ran.code, executed(calls)) == (0, [LATE]), ran
    assert "resuming run nightly/2026-01-31" in ran.err
    # Cleared by hand: its try number goes up, and there is nothing left.
    ran, calls = on_a_worker("run_staging", 3)
    assert (ran.code, calls) == (0, []), ran
    assert "complete" in ran.err
    # A mapped task's other instance has the same name, and is another command.
    mapped = airflow(here.elsewhere(tmp_path / "mapped"), "run_staging", 2)
    ran = mapped.recover("exec", "--", "dbt", "run", "--select", "side")
    assert (ran.code, executed(mapped.calls)) == (0, [SIDE]), ran
    # The first try of the next task is not a resumption.
    ran, calls = on_a_worker("test_staging", 1)
    assert (ran.code, executed(calls)) == (0, [STG_ID]), ran
    # A first try that never came to dbt leaves nothing to resume.
    ran, calls = on_a_worker("run_marts", 2, FAIL="top")
    assert (ran.code, executed(calls)) == (1, sorted([MART, TOP])), ran
    # --no-resume does all of it again, and says the last word.
    ran, calls = on_a_worker("run_marts", 3, "--no-resume")
    assert (ran.code, executed(calls)) == (0, sorted(MARTS)), ran
    ran, calls = on_a_worker("test_marts", 1)
    assert (ran.code, executed(calls)) == (0, sorted(MARTS_TESTS)), ran

    laptop = here.elsewhere(tmp_path / "laptop")
    assert laptop.tables() == clean
    again = laptop.recover("retry", RUN, "-o", "json")
    assert (again.code, again.json["outcome"]) == (0, "already_complete"), again
    (run,) = laptop.recover("runs", "-o", "json").json["runs"]
    assert run["run_id"] == RUN
    assert run["status"] in ("success", "recovered")
    assert run["logical_date"].startswith("2026-01-31")


@slow
def test_a_task_that_was_killed_resumes(tmp_path: Path, clean: dict[str, Table]) -> None:
    """With dbt Core: SIGTERM to the group, as when Airflow gives up on a task."""
    here = layers(tmp_path)
    words = ("exec", "--", *STEPS["run_staging"].split())
    with airflow(here, "run_staging", 1).having(HOLD="late").start(*words) as running:
        running.holds(LATE)
        running.signal_group(signal.SIGTERM)
        assert running.end().code == 2
        done = running.succeeded()
    worker = here.elsewhere(tmp_path / "worker")
    ran = task(worker, "run_staging", 2)
    assert ran.code == 0, ran
    assert executed(worker.calls) == sorted(STAGING - done)
    assert {n: t for n, t in clean.items() if n.rpartition(".")[2] in ("stg", "late", "side")} == (
        worker.tables()
    )


def test_resume_without_a_run_is_refused(tmp_path: Path) -> None:
    here = layers(tmp_path)
    ran = here.recover("exec", "--resume", "--", "dbt", "build")
    assert (ran.code, here.calls) == (UsageError.exit_code, [])
    assert "--run-id" in ran.err


@slow
def test_resume_of_a_step_that_a_retry_has_completed(tmp_path: Path) -> None:
    """The on-call engineer was faster than Airflow's next try. Then the DAG run is cleared: its later
    tasks begin for the first time, and what the retry has built of them is not built again."""
    here = layers(tmp_path)
    steps = tmp_path / "steps.json"
    steps.write_text(json.dumps([{"name": n, "command": c} for n, c in STEPS.items()]))
    words = {n: ("exec", "--pipeline", steps, *argv(n)[1:]) for n in STEPS}
    assert here.having(FAIL="late").recover(*words["run_staging"]).code == 1
    laptop, worker = (here.elsewhere(tmp_path / name) for name in ("laptop", "worker"))
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    resumed = {n: (w[0], "--resume", *w[1:]) for n, w in words.items()}
    with laptop.having(WAIT="mart", GATE=gate).start("retry", RUN) as retrying:
        retrying.begun(MART)
        planned = worker.recover("plan", RUN)
        assert "note: the run is still at work (dbt build, process" in planned.out
        with worker.start(*resumed["run_marts"]) as running:
            running.until(
                lambda: f"a retry of run {RUN} is still at work" in running.ran().err, "it waits"
            )
            with gate.open("w") as opened:
                opened.write("1\n")
            assert retrying.end().code == 0
            assert running.end().code == 0
    for step in STEPS:
        ran = worker.recover(*resumed[step])
        assert ran.code == 0, ran
        assert "complete" in ran.err
    assert executed(worker.calls) == []


@slow
def test_a_step_after_a_resumed_one_has_the_last_word(tmp_path: Path) -> None:
    """The next step's first try comes after the second try of the one before it: what it builds
    is not stale, and what it finds wrong is wrong."""
    here = layers(tmp_path, version="v2")
    build = ("exec", "--run-id", RUN, "--step", "build", "--", "dbt", "build", "-s", "tag:staging")
    assert here.having(FAIL="late").recover(*build).code == 1
    resumed = here.recover(build[0], "--resume", *build[1:])
    assert resumed.code == 0, resumed
    assert here.recover(*argv("run_marts")).code == 0
    assert here.plan(RUN) == []

    here.sql("update stg set id = null where id = 1")
    assert here.recover(*argv("test_staging")).code == 1
    shown = here.recover("show", RUN, "-o", "json").json
    assert [n["unique_id"] for n in shown["failed"]] == [STG_ID]
    assert here.plan(RUN) == sorted(STAGING | STAGING_TESTS | MARTS)
    (run,) = here.recover("runs", "-o", "json").json["runs"]
    assert run["status"] == "failed"


# ---- at once -----------------------------------------------------------------------------------

TWO: Mapping[str, str] = {
    **{k: RELAY[k] for k in ("dbt_project.yml", "profiles.yml", "macros/hold.sql")},
    "models/east.sql": relay_model("east", "(select 1 as id, 2 as v)", "tags='east'"),
    "models/east_top.sql": relay_model("east_top", "{{ ref('east') }}", "tags='east'"),
    "models/west.sql": relay_model("west", "(select 3 as id, 4 as v)", "tags='west'"),
    "models/west_top.sql": relay_model("west_top", "{{ ref('west') }}", "tags='west'"),
}


@slow
def test_steps_that_run_at_once_on_two_machines(tmp_path: Path) -> None:
    """Each in a target of its own. One is killed while the other is at work."""
    here = written(tmp_path / "here", TWO).having(DBT_RECOVER_ARCHIVE=tmp_path / "archive")
    there = here.elsewhere(tmp_path / "there")
    os.mkfifo(tmp_path / "gate")
    east = ("exec", "--run-id", RUN, "--step", "east", "--", "dbt", "run", "--select", "tag:east")
    west = ("exec", "--run-id", RUN, "--step", "west", "--", "dbt", "run", "--select", "tag:west")
    waits = here.having(WAIT="east", GATE=tmp_path / "gate")
    holds = there.having(HOLD="west_top")
    laptop = here.elsewhere(tmp_path / "laptop")
    with (
        waits.start(*east) as running,
        holds.start(*west, "--target", "prod") as killed,
    ):
        running.begun("model.relay.east")
        killed.holds("model.relay.west_top")
        killed.signal_dbt(signal.SIGKILL)
        assert killed.end().code == 137
        running.until(
            lambda: laptop.recover("show", RUN, "-o", "json").out.count('"end": "running"') == 1,
            "the archive says that one is at work",
        )
        locked = laptop.recover("retry", RUN)
        assert (locked.code, laptop.calls) == (LockedError.exit_code, []), locked
        with (tmp_path / "gate").open("w") as gate:
            gate.write("1\n")
        assert running.end().code == 0
    retried = laptop.recover("retry", RUN)
    assert retried.code == 0, retried
    (call,) = laptop.calls
    assert (call.executed, call.value("--target")) == (["model.relay.west_top"], "prod")
    assert sorted(laptop.tables()) == [
        "warehouse.main.east",
        "warehouse.main.east_top",
        "warehouse_prod.main.west",
        "warehouse_prod.main.west_top",
    ]
    (run,) = laptop.recover("runs", "-o", "json").json["runs"]
    assert (run["run_id"], run["status"], run["total"]) == (RUN, "recovered", 4)


# ---- each step's own settings ------------------------------------------------------------------

SETTINGS: Mapping[str, str] = {
    **{k: RELAY[k] for k in ("dbt_project.yml", "profiles.yml", "macros/hold.sql")},
    **{
        f"models/{name}.sql": relay_model(
            name,
            source,
            f"materialized='incremental', incremental_strategy='append', tags='{name}'",
            "id, {{ var('day') }} as v",
        )
        for name, source in (("below", "(select 1 as id)"), ("above", "{{ ref('below') }}"))
    },
    "dbt_recover.toml": """\
[[pipeline]]
[[pipeline.steps]]
name = "below"
command = "dbt run --select tag:below --full-refresh --vars '{day: 7}'"
[[pipeline.steps]]
name = "above"
command = "dbt run --select tag:above --vars '{day: 8}' --threads 2"
""",
}


@slow
@pytest.mark.parametrize("began", [False, True])
def test_full_refresh_and_vars_stay_in_their_step(began: bool, tmp_path: Path) -> None:
    """A full refresh of one step must not empty the tables of the other."""
    here = written(tmp_path / "here", SETTINGS).having(**dbt_of("v2"))
    below = ("dbt", "run", "--select", "tag:below", "--full-refresh", "--vars", "{day: 7}")
    above = ("dbt", "run", "--select", "tag:above", "--vars", "{day: 8}", "--threads", "2")
    assert here.dbt("run", "--vars", "{day: 1}").code == 0
    failing = here.having(FAIL="below")
    assert failing.recover("exec", "--run-id", "r", "--step", "below", "--", *below).code == 1
    if began:
        failing = here.having(FAIL="above")
        assert failing.recover("exec", "--run-id", "r", "--step", "above", "--", *above).code == 1
    before = len(here.calls)
    retried = here.recover("retry")
    assert retried.code == 0, retried
    first, second = (c for c in here.calls[before:] if c.executed)
    assert (first.executed, second.executed) == (["model.relay.below"], ["model.relay.above"])
    assert ("--full-refresh" in first.argv, "--full-refresh" in second.argv) == (True, False)
    given = [yaml.safe_load(c.value("--vars") or "") for c in (first, second)]
    assert given == [{"day": 7}, {"day": 8}]
    assert here.sql("select id, v from below") == [(1, 7)]
    assert sorted(here.sql("select id, v from above")) == [(1, 1), (1, 8)]


@slow
def test_a_mapped_task_of_which_one_day_failed(tmp_path: Path) -> None:
    """Another day's success is none of this day, and the next day's retry is of this day."""
    model = relay_model(
        "days",
        "(select {{ var('day') }} as id)",
        "materialized='incremental', unique_key='id'",
        "id, {{ var('day') }} as v, {{ fail('day' ~ var('day')) }} as zero",
    )
    files = {k: RELAY[k] for k in ("dbt_project.yml", "profiles.yml", "macros/hold.sql")}
    files["models/days.sql"] = model
    files["models/all_days.sql"] = "select count(*) as n from {{ ref('days') }}\n"
    here = written(tmp_path / "here", files).having(DBT_RECOVER_ARCHIVE=tmp_path / "archive")
    for day, code in ((1, 1), (2, 0)):
        words = ("dbt", "build", "--vars", f"{{day: {day}}}")
        failing = here.having(FAIL="day1")
        assert failing.recover("exec", "--run-id", RUN, "--step", "load", "--", *words).code == code
    (run,) = here.recover("runs", "-o", "json").json["runs"]
    assert run["status"] == "failed"
    before = len(here.calls)
    assert here.recover("retry", RUN).code == 0
    # The table below it was built anew on the second day, and is as if it came last again.
    made = [(c.executed, yaml.safe_load(c.value("--vars") or "")) for c in here.calls[before:]]
    assert made == [(["model.relay.days"], {"day": 1}), (["model.relay.all_days"], {"day": 2})]
    assert sorted(here.sql("select id, v from days")) == [(1, 1), (2, 2)]
    assert here.sql("select n from all_days") == [(2,)]
    told = here.recover("retry", RUN, "-o", "json")
    assert (told.code, told.json["outcome"]) == (0, "already_complete")


# ---- declared with the run -----------------------------------------------------------------------


@slow
def test_steps_that_the_caller_declared_go_with_the_run(
    tmp_path: Path, clean: dict[str, Table]
) -> None:
    """`exec --pipeline` in the first step; the retry is on a machine without any configuration."""
    here = layers(tmp_path).having(WRONG=0)
    steps = tmp_path / "steps.json"
    steps.write_text(json.dumps([{"name": n, "command": c} for n, c in STEPS.items()]))
    first, *rest = argv("run_staging")
    assert here.having(FAIL="late").recover(first, "--pipeline", steps, *rest).code == 1
    steps.unlink()
    laptop = here.elsewhere(tmp_path / "laptop")
    planned = laptop.recover("plan", "-o", "json").json
    assert not [w for w in planned["warnings"] if w["code"] == "no_pipeline"]
    ids = sorted(n["unique_id"] for n in planned["nodes"])
    assert ids == sorted({LATE} | STAGING_TESTS | MARTS | MARTS_TESTS)
    retried = laptop.recover("retry", "-o", "json")
    assert (retried.code, retried.json["outcome"]) == (0, "recovered"), retried
    assert laptop.tables() == clean


@pytest.mark.parametrize(
    "text,what",
    [
        ("{", "JSON"),
        ("{}", "needs steps"),
        ("[]", "needs steps"),
        ('[{"name": "a"}]', "`name` and `command`"),
        ('[{"name": "a", "command": "dbt docs"}]', "executes nodes"),
    ],
)
def test_steps_that_are_wrong_are_named(text: str, what: str, tmp_path: Path) -> None:
    file = tmp_path / "steps.json"
    file.write_text(text)
    with pytest.raises(UsageError, match=r"steps\.json") as caught:
        read_steps(file)
    assert what in caught.value.message + caught.value.hint
    with pytest.raises(UsageError, match="cannot read"):
        read_steps(tmp_path / "none.json")


# ---- the declaration ---------------------------------------------------------------------------


def test_the_first_pipeline_about_a_run_counts() -> None:
    step = {"name": "a", "command": "dbt run -s a"}
    table = [
        {"run": "x/*", "steps": [step]},
        {"steps": [step, {"name": "b", "command": ["dbt", "test"]}]},
    ]
    pipelines = read_pipelines(table, "f.toml")
    assert pipeline_of(pipelines, "x/1") is pipelines[0]
    other = pipeline_of(pipelines, "y")
    assert other is pipelines[1]
    assert pipeline_of((), "y") is None
    assert [s.name for _, s in never_begun(other, [("a", ["dbt", "run"])])] == ["b"]
    # Without a name an invocation counts for the step with the same command.
    assert [s.name for _, s in never_begun(other, [("", ["dbt", "run", "--select", "a"])])] == ["b"]
    assert [s.name for _, s in never_begun(other, [("", ["dbt", "run"])])] == ["a", "b"]


@pytest.mark.parametrize(
    "table,what",
    [
        ("x", "array of tables"),
        ([{"run": "x"}], "needs steps"),
        ([{"steps": []}], "needs steps"),
        ([{"steps": [{"name": "a"}]}], "`name` and `command`"),
        ([{"steps": [{"name": "a", "command": "dbt deps"}]}], "executes nodes"),
        ([{"steps": [{"name": "a", "command": "dbt retry"}]}], "executes nodes"),
        ([{"steps": [{"name": "a", "command": "dbt run"}] * 2}], "same name"),
        ([{"steps": [{"name": "a", "command": "dbt run"}], "x": 1}], "nothing else"),
    ],
)
def test_a_declaration_that_is_wrong_is_named(table: object, what: str) -> None:
    with pytest.raises(UsageError, match=r"f\.toml") as caught:
        read_pipelines(table, "f.toml")
    assert what in caught.value.message + caught.value.hint
