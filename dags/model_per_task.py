"""One task for each model and its tests, from a small graph file."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from recover_airflow import DAG, CronDataIntervalTimetable, TaskGroup
from recover_alert import alert_on_failure
from recover_dbt import data_day
from recover_layers import RUN_TASK, DbtStep

GRAPH_FILE = Path(os.environ.get("DBT_RECOVER_GRAPH_FILE", "/opt/dbt/graph.json"))


def read_graph(path: Path) -> list[dict[str, Any]]:
    """The nodes that `dbt-recover graph` wrote; none if it has not written yet."""
    if not path.exists():
        return []
    document = json.loads(path.read_text("utf-8"))
    if document.get("version") != 1:
        raise ValueError(f"{path}: version {document.get('version')}; this DAG reads version 1")
    nodes: list[dict[str, Any]] = document["nodes"]
    return nodes


def build_tasks(nodes: Sequence[dict[str, Any]]) -> dict[str, DbtStep]:
    """Tasks in groups by folder, wired as the models are."""
    words = {
        n["task"]: ["build", "--indirect-selection=empty", "--select", *n["select"]] for n in nodes
    }
    # Only a first task says what is to come: some task without parents always begins first.
    pipeline = list(words.items())
    groups: dict[str, TaskGroup] = {}
    tasks: dict[str, DbtStep] = {}
    for node in nodes:
        folder = node["folder"]
        if folder not in groups:
            group_id = re.sub(r"[^A-Za-z0-9_-]", "-", folder)
            groups[folder] = TaskGroup(group_id=group_id, prefix_group_id=False)
        with groups[folder]:
            tasks[node["task"]] = DbtStep(
                task_id=node["task"],
                words=words[node["task"]],
                variables={"run_date": "{{ data_day(dag_run) }}"},
                pipeline=() if node["after"] else pipeline,
                own_target=True,
                **RUN_TASK,
            )
    for node in nodes:
        if node["after"]:
            tasks[node["task"]].set_upstream([tasks[name] for name in node["after"]])
    return tasks


with DAG(
    dag_id="dbt_model_per_task",
    schedule=CronDataIntervalTimetable("0 6 * * *", timezone="UTC"),
    start_date=datetime(2024, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    max_active_runs=1,
    max_active_tasks=4,  # each is a dbt of its own, with its memory and its start
    default_args={"owner": "data-engineering", "on_failure_callback": alert_on_failure},
    user_defined_macros={"data_day": data_day},
    is_paused_upon_creation=True,
    tags=["dbt"],
    doc_md="""
### One task per model

Each task builds one model, seed or snapshot and runs its tests; clearing a task, or its next try,
runs again only what it left undone. Drawn from the file that `DBT_RECOVER_GRAPH_FILE` names, which a
deployment writes after `dbt parse`:

    dbt-recover graph --manifest target/manifest.json --to graph.json

Limits, for which most teams are better served by layers:

- Every task starts dbt: seconds to parse the project, per model. 200 models are 200 starts.
- The file is as old as its writing. A model that is new since then is not run; one that is gone fails.
- A test of several models runs with the one that is built last; where none is, as a task of its own.
- dbt's own threads do nothing here: how many models run at once is Airflow's affair
  (`max_active_tasks`, pools).
- Hooks on-run-start and on-run-end run in every task.
- Hundreds of tasks per DAG run are a load on Airflow's scheduler and database, and no picture that a
  person can read.
""",
) as dag:
    build_tasks(read_graph(GRAPH_FILE))
