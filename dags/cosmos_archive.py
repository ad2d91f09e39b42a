"""A callback for the operators of Cosmos, which run dbt themselves: what each leaves goes into the
same archive, as a step of the run that the DAG run is.

    from cosmos import DbtTaskGroup
    from cosmos_archive import archive

    DbtTaskGroup(..., operator_args={"callback": archive})

Cosmos calls it when dbt has ended, failed or not. A dbt that is killed leaves nothing: to survive
that, run dbt through `dbt-recover exec` (recover_dbt.py). For Cosmos' ExecutionMode.LOCAL and
VIRTUALENV.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from recover_dbt import ASK_SECONDS, Command, environment

log = logging.getLogger("recover_dbt")


def archive(project_dir: str, context: Any = None, **_: Any) -> None:
    """Archive dbt's artifacts in this directory. Never raises: dbt's own result counts."""
    try:
        env = environment(context, DBT_PROJECT_DIR=project_dir)
        env.pop("DBT_TARGET_PATH", None)
        target = str(Path(project_dir, "target"))
        ended = Command(["archive", f"--target-dir={target}"], env).wait(ASK_SECONDS)
    except Exception:
        log.exception("dbt's artifacts in %s were not archived", project_dir)
        return
    if ended.code:
        log.error("dbt's artifacts were not archived: %s", ended.failure("dbt-recover archive"))
