"""How long nodes took when they last succeeded: where this run does not say, the last whole run."""

from __future__ import annotations

from contextlib import suppress

import msgspec

from . import layout
from .archive import Archive
from .errors import RecoverError
from .layout import RunPlace
from .load import LoadedRun
from .model import SUCCESSES
from .plan import Plan
from .records import MAX_RECORD, decode_record


class _Word(msgspec.Struct):
    began: str = ""
    run_id: str = ""


class _Pointer(msgspec.Struct):
    """The part of latest/pointer.json (latest.Latest) that says which run it is."""

    run: _Word = msgspec.field(default_factory=_Word)


def with_durations(archive: Archive, run: LoadedRun, plan: Plan) -> Plan:
    """The plan with the seconds of the archive's last whole run for nodes that did not succeed in
    this one. What cannot be read is not said: it decides nothing."""
    if all(n.seconds is not None for n in plan.nodes):
        return plan
    seconds: dict[str, float] = {}
    with suppress(RecoverError):
        place = _last_whole(archive)
        if place != run.place:
            for record in archive.load(place):
                for uid, result in record.results.items():
                    if result.status in SUCCESSES and result.execution_time:
                        seconds[uid] = result.execution_time
    nodes = [
        n if n.seconds is not None else msgspec.structs.replace(n, seconds=seconds.get(n.unique_id))
        for n in plan.nodes
    ]
    return msgspec.structs.replace(plan, nodes=tuple(nodes))


def _last_whole(archive: Archive) -> RunPlace:
    key = layout.LATEST + "pointer.json"
    data = archive.storage.read(key, max_bytes=MAX_RECORD).data
    word = decode_record(data, _Pointer, f"{archive.url}/{key}").run
    return RunPlace.of(word.run_id, word.began)
