"""`archive`: what a dbt that ran without `exec` left in its target directory."""

from __future__ import annotations

import secrets
import tempfile
from dataclasses import dataclass
from pathlib import Path

import msgspec

from . import checkout, layout
from .artifacts import RunResults, read_run_results
from .command_line import RUNNING
from .compact_graph import encode_graph
from .context import Identity, Where, own_version
from .errors import DamagedError, RefusedError, UsageError
from .evidence import by_id
from .graph import Graph
from .layout import FORMAT_VERSION
from .manifest import read_manifest
from .model import (
    SUCCESSES,
    Invocation,
    RunInfo,
    default_run_id,
)
from .publish import AlreadyArchived, Publication, Spool, SpoolState, complete_listing
from .records import Commit, Results
from .restore import find_root
from .scope import selected


@dataclass(frozen=True)
class Archived:
    """Where the invocation is."""

    run_id: str
    before: bool = False
    """It was there already, whatever run it was now to be part of."""


def archive_finished(
    where: Where, target: Path, identity: Identity, *, allow_mixed: bool = False
) -> Archived:
    """Archive what a dbt that ran without `exec` left in its target directory.

    Nothing is written unless all of it holds: DamagedError for a file that cannot be read,
    RefusedError for files of different invocations or older than the run they are to join.
    """
    run_results, manifest = target / "run_results.json", target / "manifest.json"
    for path in (run_results, manifest):
        if not path.is_file():
            raise UsageError(
                f"there is no {path}",
                hint="pass --target-dir DIR with the artifacts of a finished dbt command; a killed "
                "dbt leaves none: run it as `dbt-recover exec -- dbt ...`",
            )
    try:
        ran = read_run_results(run_results.read_bytes(), str(run_results))
        info, graph = read_manifest(manifest.read_bytes(), name=str(manifest))
    except DamagedError as exc:
        hint = exc.hint or "run the dbt command again, and archive right after it"
        raise DamagedError(exc.message, hint=hint) from exc
    check_executed(ran, str(run_results))
    if ran.invocation_id != info.invocation_id and not allow_mixed:
        raise RefusedError(
            f"{run_results} is of invocation {ran.invocation_id}, {manifest} of "
            f"{info.invocation_id}: dbt parse, ls, compile or docs rewrite the manifest",
            hint="archive right after the dbt command, or accept it with --allow-mixed if the "
            "project is the same",
        )
    where.archive.check(create=True)
    place = where.archive.find(identity.run_id) if identity.run_id else None
    if place is not None and ran.started_at[:19] < place.began[:19]:
        raise RefusedError(
            f"{run_results} was made at {ran.started_at}, before run {identity.run_id} began "
            f"({place.began}): dbt has not written results in this run",
            hint="dbt probably failed before it ran a node; look at its output",
        )
    owner = where.archive.run_of_invocation(ran.invocation_id)
    if owner is not None:
        # Claimed by one who died before it was done: gone on with, in that run.
        identity = msgspec.structs.replace(identity, run_id=owner.run_id)
    if owner is not None and where.archive.has(owner, ran.invocation_id):
        complete_listing(where.archive, owner, ran.invocation_id)
        return Archived(owner.run_id, before=True)
    root = find_root(target.resolve())
    if root is not None:
        graph.files = checkout.file_hashes(
            checkout.read_project(root, for_dbt=True), until=ran.generated_at
        )
    commit = finished_commit(ran, info.adapter_type, graph, identity)
    if ran.dbt_version.startswith("2"):
        where.say(
            f"dbt-recover: dbt {ran.dbt_version} records no vars, target or selection, so a retry "
            "will not know them; `dbt-recover exec -- dbt ...` does"
        )
    with tempfile.TemporaryDirectory(prefix="dbt-recover-") as directory:
        spool = Spool.create(
            Path(directory),
            SpoolState(where.archive.url, [], commit.invocation),
        )
        results = Results(FORMAT_VERSION, sorted(ran.results.values(), key=by_id))
        kept = [spool.keep_file(n, target / n) for n in layout.ARTIFACTS if (target / n).is_file()]
        kept.append(spool.keep_bytes("graph.json", encode_graph(graph)))
        kept.append(spool.keep_bytes("results.json", msgspec.json.encode(results)))
        try:
            done = Publication(where.archive, spool).finish(
                msgspec.structs.replace(commit, artifacts=kept)
            )
        except AlreadyArchived:
            owner = where.archive.run_of_invocation(ran.invocation_id)
            joined = owner is not None and owner.run_id == identity.run_id
            if owner is None or (joined and not where.archive.has(owner, ran.invocation_id)):
                raise
            # Another was faster by a moment. It is done, or at work, or died: known there.
            return archive_finished(where, target, identity, allow_mixed=allow_mixed)
    return Archived(done.invocation.run.run_id)


def check_executed(ran: RunResults, name: str) -> None:
    """RefusedError if the results are of a command that executes no nodes: dbt writes success of all
    that it compiles."""
    command = _command(ran)
    if command and command not in RUNNING:
        raise RefusedError(
            f"{name} is of `dbt {'docs generate' if command == 'generate' else command}`, which "
            "builds nothing: the results of the command before it are gone",
            hint="archive right after the dbt command that builds, and before this one",
        )


def _command(ran: RunResults) -> str:
    return str(ran.args.get("which") or ran.args.get("command") or "")


def finished_commit(ran: RunResults, adapter_type: str, graph: Graph, identity: Identity) -> Commit:
    began = ran.started_at
    run_id = identity.run_id or default_run_id(began, ran.invocation_id)
    command = _command(ran)
    # An interrupted dbt records only what it finished, and does not say that it was interrupted;
    # dbt v2 does not say what it was to select, but records all of that.
    scope = None if ran.dbt_version.startswith("2") else selected(graph, ran.args, command)
    complete = scope is None or scope <= ran.results.keys()
    failed = any(r.status not in SUCCESSES for r in ran.results.values())
    invocation = Invocation(
        invocation_id=ran.invocation_id,
        run=RunInfo(run_id, began, identity.logical_date, identity.airflow),
        step=identity.step,
        command=command,
        args=ran.args,
        dbt_version=ran.dbt_version,
        adapter_type=adapter_type,
        project_name=graph.project_name,
        target=str(ran.args.get("target") or ""),
        began=began,
        ended=ran.generated_at,
        exit_code=(1 if failed else 0) if complete else None,
        end="exit" if complete else "interrupted",
        recorder=own_version(),
    )
    return Commit(FORMAT_VERSION, invocation, complete, nonce=secrets.token_hex(8))
