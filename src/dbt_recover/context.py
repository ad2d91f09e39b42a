"""Where a command runs, and which run it belongs to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from .archive import Archive
from .model import DeclaredStep

Say = Callable[[str], None]


class Where(msgspec.Struct, frozen=True):
    """What belongs to this machine and this call, not to the run."""

    archive: Archive
    environ: Mapping[str, str]
    cwd: Path
    say: Say
    """For a person, on stderr."""
    spool: Path | None = None
    """Where spools are kept; None is `.dbt-recover/spool` in the project."""


class Identity(msgspec.Struct, frozen=True):
    """Which run an invocation belongs to, as far as the caller knows."""

    run_id: str = ""
    step: str = ""
    attempt: int = 1
    scope: str = ""
    logical_date: str = ""
    tries: int = 1
    """Airflow's try number."""
    airflow: dict[str, str] = {}
    pipeline: tuple[DeclaredStep, ...] = ()
    """The steps that the run is to have, as far as it was declared."""

    @classmethod
    def of(
        cls,
        environ: Mapping[str, str],
        run_id: str = "",
        step: str = "",
        pipeline: tuple[DeclaredStep, ...] = (),
    ) -> Identity:
        """From flags, or from what Airflow exports to its tasks (AIRFLOW_CTX_*)."""
        found = {
            k.removeprefix("AIRFLOW_CTX_").lower(): v
            for k, v in environ.items()
            if k.startswith("AIRFLOW_CTX_")
        }
        dag, dag_run = found.get("dag_id", ""), found.get("dag_run_id", "")
        return cls(
            run_id=run_id or (f"{dag}/{dag_run}" if dag and dag_run else ""),
            step=step or found.get("task_id", ""),
            tries=int(found["try_number"]) if found.get("try_number", "").isdigit() else 1,
            logical_date=found.get("logical_date") or found.get("execution_date") or "",
            airflow={k: v for k, v in found.items() if k not in ("dag_email", "dag_owner")},
            pipeline=pipeline,
        )


def own_version() -> str:
    from importlib import metadata  # slow to import, and only records say it

    try:
        return metadata.version("dbt-recover")
    except metadata.PackageNotFoundError:
        return ""
