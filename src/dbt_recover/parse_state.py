"""dbt's parse of the project, kept with a run that failed and given to a machine that has none: a
fresh worker spends most of a retry's start on parsing what dbt had parsed already.

dbt itself checks what it is given (its version, the vars, the profile, each file's checksum) and
parses again what differs; a file that is not what was archived is not given to it.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from . import layout
from .archive import Archive
from .errors import DamagedError, StorageError
from .load import LoadedRun
from .model import NEVER_BEGAN, Artifact


def give_parse_state(archive: Archive, run: LoadedRun, target: Path) -> None:
    """Write partial_parse.msgpack of the run's latest invocation that has one, its hash checked,
    into dbt's target path, if there is none. Quietly nothing, if that cannot be done: dbt parses
    then."""
    path = target / layout.PARSE_STATE
    if path.exists():
        return
    with suppress(DamagedError, StorageError, OSError):
        artifact = _latest(archive, run)
        if artifact is None or not artifact.sha256:
            return
        data = archive.artifact_bytes(artifact)
        target.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        part.write_bytes(data)
        part.replace(path)


def _latest(archive: Archive, run: LoadedRun) -> Artifact | None:
    for record in reversed(run.recorded):
        invocation = record.invocation
        if invocation.end in ("lost", "running", NEVER_BEGAN):
            continue
        for artifact in archive.commit_of(run.place, invocation.invocation_id).artifacts:
            if artifact.name == layout.PARSE_STATE:
                return artifact
    return None
