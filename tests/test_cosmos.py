"""The callback for Cosmos, with the real astronomer-cosmos and the real dbt."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from airflows import DAGS, DAY, MODELS, a_run, company, python_of

_DAG = """
import os
from datetime import datetime
from pathlib import Path
from airflow.sdk import DAG
from cosmos import ProfileConfig
from cosmos.constants import InvocationMode
from cosmos.operators.local import DbtBuildLocalOperator
from cosmos_archive import archive

project = Path(os.environ["DBT_PROJECT_DIR"])
common = dict(
    project_dir=str(project),
    profile_config=ProfileConfig(
        profile_name="company", target_name="dev", profiles_yml_filepath=project / "profiles.yml"
    ),
    dbt_executable_path=os.environ["DBT_RECOVER_DBT"],
    invocation_mode=InvocationMode.SUBPROCESS,
    install_deps=False,
    append_env=True,
    callback=archive,
    vars={"run_date": "%s"},
)
with DAG("company_cosmos", start_date=datetime(2024, 1, 1), schedule=None) as dag:
    (
        DbtBuildLocalOperator(task_id="staging", select="tag:staging", **common)
        >> DbtBuildLocalOperator(task_id="rest", exclude="tag:staging", **common)
    )
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_cosmos_ran_is_recovered(tmp_path: Path) -> None:
    probe = [str(python_of("3.3")), "-c", "import cosmos"]
    if subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("no astronomer-cosmos in .venvs/airflow: make .venvs/airflow")
    folder = tmp_path / "dags"
    folder.mkdir()
    (folder / "company_cosmos.py").write_text(_DAG % DAY)
    made = company(
        tmp_path / "c",
        AIRFLOW__CORE__DAGS_FOLDER=str(folder),
        PYTHONPATH=f"{DAGS}:{folder}",
        ASTRONOMER_COSMOS_TELEMETRY="false",
        AIRFLOW__COSMOS__ENABLE_TELEMETRY="False",
    )
    made.migrate()
    (ran,) = made.dag_tests(a_run("company_cosmos"))
    assert (ran.state, dict(ran.tasks)) == ("failed", {"staging": "success", "rest": "failed"}), (
        made.log[-3000:]
    )
    (run,) = made.recover("runs")["runs"]
    assert run["run_id"].startswith("company_cosmos/")
    assert (run["status"], run["invocations"]) == ("failed", 2)
    shown = made.recover("show", run["run_id"])
    assert [i["step"] for i in shown["invocations"]] == ["staging", "rest"]
    assert [n["unique_id"] for n in shown["failed"]] == ["model.company.int_contracts"]
    made.mend()
    done = made.recover("retry", run["run_id"])
    assert done["outcome"] == "recovered"
    assert {u for u in done["executed"] if u in MODELS} == {
        "model.company.int_contracts",
        "model.company.fct_revenue",
    }
    assert made.here.tables() == made.clean()
