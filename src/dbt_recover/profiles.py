"""What a command's profile needs of the environment. Reads profiles.yml; renders no Jinja.

dbt itself names one missing variable at a time, and of a retry only after the run has been read
and locked. Credentials are not looked at, and pass through as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .checkout import Project
from .command_line import DbtCommand
from .errors import UsageError

_CALL = r"env_var\(\s*['\"](?P<name>\w+)['\"]\s*(?:,\s*['\"](?P<default>[^'\"]*)['\"]\s*)?\)"
_NEEDED = re.compile(r"\{\{-?\s*env_var\(\s*['\"](\w+)['\"]\s*\)(?![^}]*\bif\b)")
_COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)
_ALL_OF_IT = re.compile(r"^\s*\{\{-?\s*" + _CALL + r"\s*-?\}\}\s*$")


def unneeded_target(
    command: DbtCommand,
    typed: bool,
    project: Project,
    environ: Mapping[str, str],
    cwd: Path,
) -> DbtCommand:
    """The command without its --target, where the run was not given one (`typed`) and the profile
    here says the same: to dbt a target that is typed is another setting, and it would parse the
    whole project again."""
    bare = command.without({"--target"})
    if typed or not command.has("--target"):
        return command
    found = _profile(bare, project, environ, cwd)
    same = found is not None and found[2] == command.value("--target")
    return bare if same else command


def check_variables(
    command: DbtCommand, project: Project, environ: Mapping[str, str], cwd: Path
) -> None:
    """UsageError that names every variable which the chosen target of the profile needs and which
    is not set. What cannot be told without dbt is left to dbt."""
    found = _profile(command, project, environ, cwd)
    if found is None:
        return
    path, name, target, outputs = found
    output = outputs.get(target)
    missing = sorted({v for t in _texts(output) for v in _needed(t) if v not in environ})
    if any((directory / ".env").is_file() for directory in (cwd, *cwd.parents)):
        return  # dbt 1.12 and later take variables from there
    if missing:
        are = "is" if len(missing) == 1 else "are"
        raise UsageError(
            f"{', '.join(missing)} {are} not set, and target {target} of profile {name} needs "
            f"{'it' if len(missing) == 1 else 'them'} ({path})",
            hint=f"export {missing[0]}=...; nothing was started",
        )


def _needed(text: str) -> list[str]:
    """Variables without which dbt cannot render the value. Which way a `{% if %}` goes is not
    known here."""
    text = _COMMENT.sub("", text)
    return [] if "{%" in text else _NEEDED.findall(text)


def _profile(
    command: DbtCommand, project: Project, environ: Mapping[str, str], cwd: Path
) -> tuple[Path, str, str, dict[str, Any]] | None:
    """profiles.yml, the profile's name, the chosen target and all outputs; None if that cannot be
    told without dbt."""
    path = _path(command, environ, cwd)
    document = _read(path) if path is not None else None
    if path is None or document is None:
        return None
    profile = command.value("--profile") or environ.get("DBT_PROFILE")
    name = _text(profile or project.settings.get("profile"), environ)
    chosen = document.get(name) if name else None
    if not isinstance(chosen, dict) or not isinstance(chosen.get("outputs"), dict):
        return None
    given = command.value("--target") or environ.get("DBT_TARGET")
    target = _text(given or chosen.get("target", "default"), environ)
    return path, name, target, chosen["outputs"]


def _path(command: DbtCommand, environ: Mapping[str, str], cwd: Path) -> Path | None:
    """As dbt looks for it: where it is told, here, in ~/.dbt."""
    given = command.value("--profiles-dir") or environ.get("DBT_PROFILES_DIR")
    home = environ.get("HOME")
    places = [Path(cwd, given)] if given else [cwd, *([Path(home, ".dbt")] if home else [])]
    return next((p / "profiles.yml" for p in places if (p / "profiles.yml").is_file()), None)


def _read(path: Path) -> dict[str, Any] | None:
    import yaml

    try:
        document = yaml.load(
            path.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        )
    except (OSError, yaml.YAMLError):
        return None  # dbt says what is wrong with it
    return document if isinstance(document, dict) else None


def _text(value: Any, environ: Mapping[str, str]) -> str:
    """The value, if it is plain text or nothing but one variable; else ''."""
    if not isinstance(value, str):
        return ""
    call = _ALL_OF_IT.match(value)
    if call:
        return environ.get(call["name"], call["default"] or "")
    return "" if "{{" in value or "{%" in value else value


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
