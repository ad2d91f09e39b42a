"""dbt's log as its user asked for it, written from the JSON events that the journal is read from.

So `logs/dbt.log` is there, and grows while dbt runs, although dbt itself logs JSON into the spool.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from logging.handlers import RotatingFileHandler
from pathlib import Path

import msgspec

from . import checkout
from .command_line import DbtCommand

_SEVERITY = ("debug", "info", "warn", "error", "none")
_PRINTED = ("PrintEvent", "ShowNode", "CompiledNode")
"""Events that are said without a time."""
_BACKUPS = 5
_MAX_BYTES = 10 * 1024 * 1024


@dataclass(frozen=True)
class LogForm:
    """How dbt was asked to write its log file; the defaults are dbt's."""

    path: Path | None = None
    """None: nowhere."""
    form: str = "debug"
    """text, debug, json."""
    level: str = "debug"
    max_bytes: int = _MAX_BYTES
    """When it is renamed to dbt.log.1; 0 is never."""
    colors: bool = True

    @classmethod
    def asked_for(
        cls, project: checkout.Project, command: DbtCommand, environ: Mapping[str, str]
    ) -> LogForm:
        """By flags, by the environment, or by `flags:` in dbt_project.yml; the setting for the file
        before the one for file and screen (dbt/cli/flags.py)."""
        flags = project.settings.get("flags")
        in_project = flags if isinstance(flags, dict) else {}

        def said(name: str) -> str:
            given = command.value("--" + name.replace("_", "-"))
            set_ = in_project.get(name)
            there = "" if set_ is None else str(set_)
            return (given or environ.get("DBT_" + name.upper()) or there).lower()

        level = said("log_level_file") or said("log_level") or cls.level
        form = said("log_format_file") or said("log_format") or cls.form
        size = said("log_file_max_bytes")
        colors = said("use_colors_file") or said("use_colors")
        for name in ("use-colors", "use-colors-file"):
            if command.has("--" + name, "--no-" + name):
                colors = str(command.has("--" + name))
        return cls(
            checkout.log_path(project, command, environ) / "dbt.log" if level != "none" else None,
            {"default": cls.form}.get(form, form),
            level if level in _SEVERITY else cls.level,
            int(size) if size.isdigit() else cls.max_bytes,
            colors not in ("0", "f", "false", "n", "no", "off", "False"),
        )


class TextLog:
    """Appends to a log file; gives up silently where it cannot, as dbt's work goes on."""

    def __init__(self, form: LogForm) -> None:
        self._form = form
        self._file: RotatingFileHandler | None = None
        self._dead = form.path is None
        self._least = _SEVERITY.index(form.level)

    def write(self, lines: list[bytes]) -> None:
        """Append these lines of dbt's log: JSON in the form asked for, text as it is."""
        if self._dead or not lines:
            return
        try:
            if self._file is None:
                assert self._form.path is not None
                self._form.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = RotatingFileHandler(
                    self._form.path,
                    maxBytes=self._form.max_bytes,
                    backupCount=_BACKUPS,
                    encoding="utf-8",
                    errors="replace",
                )
            text = "".join(map(self._line, lines))
            record = logging.LogRecord("", 0, "", 0, text, None, None)
            if self._file.shouldRollover(record):
                self._file.doRollover()
            self._file.stream.write(text)
            self._file.flush()
        except OSError:
            self._dead = True

    def close(self) -> None:
        """Close the file, if it was opened."""
        if self._file is not None:
            self._file.close()

    def _line(self, line: bytes) -> str:
        raw = line.decode("utf-8", "replace") + "\n"
        if self._form.form == "json" and not self._least:
            return raw
        try:
            info = _event.decode(line).info
        except (msgspec.DecodeError, UnicodeDecodeError):
            return raw  # dbt v2 logs text already
        if info.level in _SEVERITY and _SEVERITY.index(info.level) < self._least:
            return ""
        return raw if self._form.form == "json" else as_text(info, self._form)


class _Info(msgspec.Struct):
    level: str = ""
    msg: str = ""
    thread: str = ""
    ts: str = ""
    name: str = ""
    invocation_id: str = ""


class _Event(msgspec.Struct):
    info: _Info


_event = msgspec.json.Decoder(_Event)


def as_text(info: _Info, form: LogForm) -> str:
    """A line as dbt's text log has it: `HH:MM:SS.ffffff [debug] [Thread-1]: ...`, or, in the form
    `text`, `HH:MM:SS  ...`; with colors, what ends a color before it.

    Format: dbt_common/events/logger.py, _TextLogger.
    """
    reset = "\x1b[0m" if form.colors else ""
    if form.form == "text":
        said = "" if info.name in _PRINTED else f"{reset}{info.ts[11:19]}  "
        return f"{said}{info.msg}\n"
    head, clock = "", info.ts[11:26]
    thread = f"[{info.thread[:10]:<10}]: "
    if info.name == "MainReportVersion":
        rule = "=" * 30
        head = f"\n\n{rule} {clock} | {info.invocation_id} {rule}\n"
    return f"{head}{reset}{clock} [{info.level:<5}] {thread}{info.msg}\n"
