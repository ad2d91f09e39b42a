"""A run as a state directory, for the `--state` of any dbt."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from . import checkout
from .archive import Archive
from .artifacts import synthesise_run_results
from .errors import RefusedError, UsageError
from .graph import BUILDABLE, TESTS
from .load import LoadedRun
from .model import FAILURES, NEVER_BEGAN, SKIPPED, NodeResult
from .stream import save


def write_manifest(archive: Archive, run: LoadedRun, directory: Path) -> None:
    """Put the run's latest manifest.json into directory: not that of a retry into another target,
    which names the relations there. RefusedError if it has none."""
    own = {r.invocation.target for r in run.recorded if r.invocation.intended is None} - {""}
    commits = [
        archive.commit_of(run.place, r.invocation.invocation_id)
        for r in reversed(run.recorded)
        if r.invocation.end not in ("lost", "running", NEVER_BEGAN)
        and (r.invocation.intended is None or not own or r.invocation.target in {"", *own})
    ]
    for commit in commits:
        for artifact in commit.artifacts:
            if artifact.name in ("manifest.json", "manifest.early.json"):
                save(archive.storage, artifact, directory / "manifest.json")
                return
    raise RefusedError(
        f"run {run.place.run_id} left no manifest.json",
        hint="choose another run, or --strategy select",
    )


def fetch(
    archive: Archive,
    run: LoadedRun,
    directory: Path,
    project: checkout.Project | None,
    environ: Mapping[str, str],
) -> None:
    """Write a state directory for dbt's --state: the run's manifest, and run_results.json merged
    over all its invocations and attempts."""
    target = project.root / environ.get("DBT_TARGET_PATH", "") if project is not None else None
    if project is not None and not environ.get("DBT_TARGET_PATH"):
        target = project.target_path
    if directory.exists() and not directory.is_dir():
        raise UsageError(f"{directory} is not a directory", hint="name one, new or empty")
    if target is not None and directory.resolve() == target.resolve():
        raise UsageError(
            f"{directory} is the project's target path: dbt would overwrite the state there",
            hint="fetch to another directory, for example: dbt-recover fetch --to state",
        )
    directory.mkdir(parents=True, exist_ok=True)
    write_manifest(archive, run, directory)
    invocation = run.state.first
    results = [
        {
            "unique_id": uid,
            "status": _dbt_status(node.result),
            "message": node.result.message or None,
        }
        for uid, node in sorted(run.state.nodes.items())
        if uid.split(".", 1)[0] in BUILDABLE | TESTS | {"operation"}
    ]
    body = synthesise_run_results(
        results,
        args={"which": "build", "command": "build", **invocation.args},
        started_at=invocation.began,
        dbt_version=invocation.dbt_version,
        invocation_id=run.state.invocations[-1].invocation_id,
    )
    (directory / "run_results.json").write_bytes(body)


def _dbt_status(result: NodeResult) -> str:
    known = FAILURES | {"success", "pass", "warn", SKIPPED}
    if result.status in known:
        return result.status
    if result.status in ("no-op", "reused"):
        return "success"
    return SKIPPED if result.status == "never started" else "error"
