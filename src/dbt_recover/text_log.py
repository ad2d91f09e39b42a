"""dbt's log as people know it, written from the JSON events that the journal is read from.

So `logs/dbt.log` is there, and grows while dbt runs, although dbt itself logs JSON into the spool.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import msgspec


class TextLog:
    """Appends to a log file; gives up silently where it cannot, as dbt's work goes on."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._stream: BinaryIO | None = None

    def write(self, lines: list[bytes]) -> None:
        """Append these lines of dbt's log: JSON is put into words, text stays as it is."""
        if self._path is None:
            return
        try:
            if self._stream is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._stream = self._path.open("ab")
            self._stream.write(b"".join(map(as_text, lines)))
            self._stream.flush()
        except OSError:
            self._path = None

    def close(self) -> None:
        """Close the file, if it was opened."""
        if self._stream is not None:
            self._stream.close()


class _TextInfo(msgspec.Struct):
    level: str = ""
    msg: str = ""
    thread: str = ""
    ts: str = ""
    name: str = ""
    invocation_id: str = ""


class _TextEvent(msgspec.Struct):
    info: _TextInfo


_text_event = msgspec.json.Decoder(_TextEvent)


def as_text(line: bytes) -> bytes:
    """A line of dbt's JSON log in the form of its text log: `HH:MM:SS.ffffff [debug] [Thread-1]: `.

    Format: dbt_common/events/logger.py, _TextLogger.create_debug_line.
    """
    try:
        info = _text_event.decode(line).info
    except (msgspec.DecodeError, UnicodeDecodeError):
        return line + b"\n"  # dbt v2 logs text already
    clock = info.ts[11:26]
    thread = f"[{info.thread[:10]:<10}]: "
    if info.name == "MainReportVersion":
        rule = "=" * 30
        clock = f"\n\n{rule} {clock} | {info.invocation_id} {rule}\n{clock}"
    return f"{clock} [{info.level:<5}] {thread}{info.msg}\n".encode()
