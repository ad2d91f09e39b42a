"""How long Airflow takes to parse `dbt_model_per_task` with many models, from the graph file that
`dbt-recover graph` writes.

python benchmarks/dag_parse.py [--models 500] [--runs 5]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from pathlib import Path

from _timing import goal

from dbt_recover.graph import Graph, Node
from dbt_recover.task_graph import task_graph, write

ROOT = Path(__file__).parents[1]
LIMIT = 2.0
_PARSE = """
import json, os, sys, time
from airflow.dag_processing.dagbag import DagBag
file, runs = sys.argv[1], int(sys.argv[2])
DagBag(file)  # what is imported once per process is not parsing
seconds, tasks = [], 0
for _ in range(runs):
    began = time.perf_counter()
    bag = DagBag(file)
    seconds.append(time.perf_counter() - began)
    assert not bag.import_errors, bag.import_errors
    tasks = len(bag.dags["dbt_model_per_task"].tasks)
with open(sys.argv[3], "w") as answer:
    json.dump([tasks, seconds], answer)
"""


def models(count: int) -> Graph:
    """In four layers; each model reads two of the layer before and has a test."""
    width = max(count // 4, 1)
    nodes = []
    for n in range(count):
        layer = n // width
        above = [f"model.p.m_{p}" for p in (n - width, n - width + 1) if layer and p < n]
        path = f"models/layer_{layer}/m_{n}.sql"
        fqn = ["p", f"layer_{layer}", f"m_{n}"]
        uid = f"model.p.m_{n}"
        nodes.append(
            Node(uid, "model", f"m_{n}", fqn=fqn, depends_on=above, original_file_path=path)
        )
        test = f"unique_m_{n}"
        nodes.append(Node(f"test.p.{test}", "test", test, fqn=["p", test], depends_on=[uid]))
    return Graph(nodes)


def main() -> None:
    """Parse the command line and print what was measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=int, default=500)
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    python = ROOT / ".venvs" / "airflow" / "bin" / "python"
    if not python.exists():
        print("no Airflow here: make .venvs/airflow")
        return
    with tempfile.TemporaryDirectory(prefix="dbt-recover-benchmark-") as directory:
        home = Path(directory)
        write(task_graph(models(given.models)), home / "graph.json")
        env = {k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW", "PYTHON"))}
        env |= {
            "AIRFLOW_HOME": directory,
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
            "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR",
            "PYTHONPATH": str(ROOT / "dags"),
            "DBT_RECOVER_GRAPH_FILE": str(home / "graph.json"),
        }
        answer = home / "answer.json"
        file = str(ROOT / "dags" / "model_per_task.py")
        subprocess.run(
            [str(python), "-c", _PARSE, file, str(given.runs), str(answer)],
            env=env,
            cwd=home,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        tasks, seconds = json.loads(answer.read_text())
    middle = statistics.median(seconds)
    print(f"parsing a DAG of {tasks} tasks: from {min(seconds):.2f} to {max(seconds):.2f} s")
    print(goal(f"median {middle:.2f} s", middle, LIMIT))


if __name__ == "__main__":
    main()
