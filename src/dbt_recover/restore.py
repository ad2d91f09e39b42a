"""The command an invocation was, put together again for another day and another machine: its
vars, target, profile, threads and flags, without its selection and without its paths. Pure, but
for asking whether a recorded path exists here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from .errors import RefusedError
from .model import Invocation

if TYPE_CHECKING:
    from .command_line import DbtCommand

_TRUE_FLAGS = {
    "full_refresh": "--full-refresh",
    "fail_fast": "--fail-fast",
    "empty": "--empty",
    "store_failures": "--store-failures",
    "favor_state": "--favor-state",
    "defer": "--defer",
    "warn_error": "--warn-error",
}
_VALUED_FLAGS = {
    "target": "--target",
    "profile": "--profile",
    "threads": "--threads",
    "event_time_start": "--event-time-start",
    "event_time_end": "--event-time-end",
    "sample": "--sample",
}


class Overrides(msgspec.Struct, frozen=True):
    """What the user wants otherwise than the run had it."""

    vars: Mapping[str, Any] = {}
    """Laid over the run's own vars, name by name."""
    target: str = ""
    profile: str = ""
    threads: int | None = None
    full_refresh: bool = False
    project_dir: str = ""
    profiles_dir: str = ""
    target_path: str = ""
    defer_state: str = ""
    """Where the state is that an original `--defer --state` was about."""


def find_root(start: Path) -> Path | None:
    """The nearest directory, from start upwards, with a dbt_project.yml: as dbt looks for it."""
    for directory in (start, *start.parents):
        if (directory / "dbt_project.yml").is_file():
            return directory
    return None


def restored(
    invocation: Invocation,
    overrides: Overrides,
    *,
    launcher: tuple[str, ...] = ("dbt",),
    cwd: Path | None = None,
) -> DbtCommand:
    """`dbt build` with the settings of the invocation and these overrides."""
    from .command_line import PATHS, SELECTION, DbtCommand

    original = DbtCommand.parse(invocation.argv or ["dbt", invocation.command])
    args = invocation.args
    command = original.without(SELECTION | PATHS | {"--vars", "--target", "--threads", "--profile"})
    command = msgspec.structs.replace(command, launcher=launcher, command="build", rest=())
    for key, flag in _TRUE_FLAGS.items():
        if args.get(key) and not command.has(flag, flag.replace("--", "--no-", 1)):
            command = DbtCommand.parse([*command.argv(), flag])
    for key, flag in _VALUED_FLAGS.items():
        value = args.get(key)
        if value not in (None, "") and not isinstance(value, Mapping) and not command.has(flag):
            command = command.without({flag})
            command = _with(command, flag, str(value))
    target = overrides.target or str(args.get("target") or "") or invocation.target
    for flag, text in (
        ("--target", target),
        ("--profile", overrides.profile),
        ("--threads", str(overrides.threads) if overrides.threads else ""),
    ):
        if text:
            command = _with(command.without({flag}), flag, text)
    variables = {**(args.get("vars") or {}), **overrides.vars}
    if variables:
        command = _with(command, "--vars", as_yaml(variables))
    window = args.get("sample")
    if isinstance(window, Mapping):
        # `2 days` means other days today; dbt recorded which.
        command = _with(command.without({"--sample"}), "--sample", as_yaml(window))
    if overrides.full_refresh and not command.has("--full-refresh"):
        command = DbtCommand.parse([*command.argv(), "--full-refresh"])
    return _with_paths(command, original, args, overrides, cwd)


def as_yaml(value: Mapping[str, Any]) -> str:
    """On one line, as dbt's --vars takes it; JSON would not do for every character and date."""
    import yaml

    text: str = yaml.safe_dump(
        dict(value), default_flow_style=True, allow_unicode=False, sort_keys=False, width=1 << 30
    )
    return text.strip()


def _with(command: DbtCommand, flag: str, value: str) -> DbtCommand:
    return command.parse([*command.argv(), flag, value])


def _with_paths(
    command: DbtCommand,
    original: DbtCommand,
    args: Mapping[str, Any],
    overrides: Overrides,
    cwd: Path | None,
) -> DbtCommand:
    project = overrides.project_dir
    recorded = original.value("--project-dir")
    if not project and recorded and cwd is not None and find_root(cwd) is None:
        # Typed from outside of the project, as in the original: there is no other to mean.
        project = recorded if Path(cwd, recorded).is_dir() else ""
    if project:
        command = _with(command, "--project-dir", project)
    if overrides.target_path:
        command = _with(command, "--target-path", overrides.target_path)
    profiles = overrides.profiles_dir
    recorded = original.value("--profiles-dir")
    if not profiles and recorded and cwd is not None and Path(cwd, recorded).is_dir():
        profiles = recorded
    if profiles:
        command = _with(command, "--profiles-dir", profiles)
    return _with_deferral(command, original, args, overrides, cwd)


def _with_deferral(
    command: DbtCommand,
    original: DbtCommand,
    args: Mapping[str, Any],
    overrides: Overrides,
    cwd: Path | None,
) -> DbtCommand:
    """`--defer` needs the state it was typed with: what the run did not build is read from
    there. Ours is about other things, so it goes by --defer-state."""
    if not command.has("--defer") or cwd is None:
        return command
    said = [original.value("--defer-state"), original.value("--state")]
    said += [str(args[k]) for k in ("defer_state", "state") if args.get(k)]
    state = overrides.defer_state or next((s for s in said if s), None)
    if state is None or not Path(cwd, state).is_dir():
        raise RefusedError(
            f"the run used --defer with the state in {state}, which is not here",
            hint="pass --defer-state DIR with the manifest.json it deferred to",
        )
    return _with(command, "--defer-state", state)
