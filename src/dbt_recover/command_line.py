"""dbt's command line, read and rewritten: pure.

`DbtCommand` takes an argv as a user typed it (`poetry run dbt --debug build -s tag:x --vars ...`)
apart far enough to know what was selected and to put together the same command with another
selection. Flags it does not know are kept as they are.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

import msgspec

from .errors import UsageError

_SHORT = {
    "-s": "--select",
    "-m": "--models",
    "-t": "--target",
    "-x": "--fail-fast",
    "-d": "--debug",
    "-f": "--full-refresh",
    "-q": "--quiet",
    "-r": "--record-timing-info",
    "-o": "--output",
}
_SAME = {
    "--models": "--select",
    "--model": "--select",
    "--resource-types": "--resource-type",
    "--exclude-resource-types": "--exclude-resource-type",
}
_MULTIPLE = frozenset(
    {"--select", "--exclude", "--resource-type", "--exclude-resource-type", "--output-keys"}
)
_VALUED = frozenset(
    {
        "--args",
        "--defer-state",
        "--deprecated-state",
        "--event-time-end",
        "--event-time-start",
        "--host",
        "--indirect-selection",
        "--inline",
        "--invocation-id",
        "--limit",
        "--log-file-max-bytes",
        "--log-format",
        "--log-format-file",
        "--log-level",
        "--log-level-file",
        "--log-path",
        "--output",
        "--otel-file-name",
        "--otel-parquet-file-name",
        "--packages-install-path",
        "--partial-parse-file-path",
        "--maximum-seed-size-mib",
        "--source",
        "--sql",
        "--sqlparse",
        "--v2-parser",
        "--inline-direct",
        "--add-package",
        "--port",
        "--printer-width",
        "--profile",
        "--profiles-dir",
        "--project-dir",
        "--record-timing-info",
        "--sample",
        "--selector",
        "--state",
        "--target",
        "--target-path",
        "--threads",
        "--vars",
        "--warn-error-options",
    }
)
SELECTION = frozenset(
    {
        "--select",
        "--exclude",
        "--selector",
        "--resource-type",
        "--exclude-resource-type",
        "--indirect-selection",
    }
)
PATHS = frozenset(
    {
        "--project-dir",
        "--profiles-dir",
        "--log-path",
        "--target-path",
        "--state",
        "--defer-state",
        "--packages-install-path",
    }
)
"""Flags whose value belongs to the machine they were typed on."""
COMMANDS = frozenset(
    {"build", "run", "test", "seed", "snapshot", "compile", "parse", "ls", "list", "retry"}
    | {"clone", "run-operation", "docs", "source", "deps", "debug", "clean", "init", "show"}
    | {"freshness", "man", "system", "login"}
)
RUNNING = frozenset({"build", "run", "test", "seed", "snapshot", "retry"})
"""Commands that execute nodes."""


class Option(msgspec.Struct, frozen=True):
    """One flag as typed, with its canonical name."""

    name: str
    values: tuple[str, ...] = ()
    typed: tuple[str, ...] = ()
    joined: tuple[str, ...] = ()
    """What `size` short flags were typed as together: -xs a."""
    size: int = 1
    early: bool = False
    """Typed before the command: `dbt --quiet build`."""


class DbtCommand(msgspec.Struct, frozen=True):
    """A dbt command line, taken apart."""

    launcher: tuple[str, ...]
    """What starts dbt: ('dbt',), ('poetry', 'run', 'dbt'), ..."""
    command: str
    options: tuple[Option, ...] = ()
    rest: tuple[str, ...] = ()
    """Words that are neither: `generate` of `docs generate`, a macro's name."""

    @classmethod
    def parse(cls, argv: Iterable[str]) -> DbtCommand:
        """UsageError when there is no dbt command in it."""
        words = list(argv)
        if not words:
            raise UsageError(
                "no dbt command was given",
                hint="write it after two dashes: dbt-recover exec -- dbt build",
            )
        start = _launcher_length(words)
        launcher, words = tuple(words[:start]), words[start:]
        options: list[Option] = []
        command = ""
        rest: list[str] = []
        while words:
            word = words.pop(0)
            if not word.startswith("-") or word == "-":
                if not command and word in COMMANDS:
                    command = word
                else:
                    rest.append(word)
            else:
                # Before the command has come, a word that is one ends a list of values.
                limit = len(words) if command else _first_command(words)
                if not command and limit == 0 and _takes_one(word):
                    limit = 1  # a target can be called `test`
                following = words[:limit]
                found = _options(word, following)
                options += (
                    [msgspec.structs.replace(o, early=True) for o in found]
                    if not command
                    else found
                )
                words = following + words[limit:]
        return cls(launcher, command, tuple(options), tuple(rest))

    def value(self, name: str) -> str | None:
        """The last value of a flag that takes one."""
        values = [v for o in self.options if o.name == name for v in o.values]
        return values[-1] if values else None

    def all_values(self, name: str) -> tuple[str, ...]:
        """All values of a flag that can be repeated or takes several."""
        return tuple(v for o in self.options if o.name == name for v in o.values)

    def has(self, *names: str) -> bool:
        """Whether one of these flags was typed."""
        return any(o.name in names for o in self.options)

    def without(self, names: Iterable[str]) -> DbtCommand:
        """The same without these flags."""
        gone = frozenset(names)
        return msgspec.structs.replace(
            self, options=tuple(o for o in self.options if o.name not in gone)
        )

    def adding(self, *words: str) -> DbtCommand:
        """The same with these words at the end."""
        return msgspec.structs.replace(self, options=(*self.options, Option("", (), words)))

    def argv(self) -> list[str]:
        """Back to words."""
        early: list[str] = []
        late: list[str] = []
        at = 0
        while at < len(self.options):
            option = self.options[at]
            group = self.options[at : at + option.size]
            whole = len(group) == option.size > 1 and all(o.joined == option.joined for o in group)
            (early if option.early else late).extend(option.joined if whole else option.typed)
            at += option.size if whole else 1
        command = [self.command] if self.command else []
        return [*self.launcher, *early, *command, *self.rest, *late]

    def args(self) -> dict[str, Any]:
        """The part of dbt's own `args` (run_results.json) that a retry needs, read from the words.

        Used when dbt left no run_results.json. Raises UsageError for --vars that are not YAML.
        """
        result: dict[str, Any] = {"which": self.command}
        for option, key in (
            ("--target", "target"),
            ("--profile", "profile"),
            ("--selector", "selector"),
            ("--indirect-selection", "indirect_selection"),
            ("--event-time-start", "event_time_start"),
            ("--event-time-end", "event_time_end"),
            ("--sample", "sample"),
        ):
            if (text := self.value(option)) is not None:
                result[key] = text
        threads = self.value("--threads")
        if threads and threads.isdigit():
            result["threads"] = int(threads)
        for option, key in (
            ("--select", "select"),
            ("--exclude", "exclude"),
            ("--resource-type", "resource_types"),
            ("--exclude-resource-type", "exclude_resource_types"),
        ):
            if self.has(option):
                result[key] = list(self.all_values(option))
        for option, key in (("--full-refresh", "full_refresh"), ("--fail-fast", "fail_fast")):
            if self.has(option, no := option.replace("--", "--no-", 1)):
                # Said, so that no setting of the environment is taken for it.
                result[key] = not self.has(no)
        if (text := self.value("--vars")) is not None:
            result["vars"] = parse_vars(text)
        return result


def _first_command(words: list[str]) -> int:
    return next((at for at, word in enumerate(words) if word in COMMANDS), len(words))


def _takes_one(word: str) -> bool:
    """Whether the next word is the value of this flag, whatever it looks like."""
    if word.startswith("--"):
        return "=" not in word and word in _VALUED
    return len(word) == 2 and _SHORT.get(word) in _VALUED


def _options(word: str, following: list[str]) -> list[Option]:
    """The flags of one word, with their values, which are taken from the words that follow it."""
    if word.startswith("--"):
        name, equals, value = word.partition("=")
        return [_option(name, word, [value] if equals else [], following)]
    # Short ones can be joined: -xsa is -x -s a.
    found: list[Option] = []
    for at in range(1, len(word)):
        name = "-" + word[at]
        long = _SAME.get(_SHORT.get(name, name), _SHORT.get(name, name))
        if long in _MULTIPLE | _VALUED:
            attached = word[at + 1 :].removeprefix("=")
            typed = f"{name}{attached}" if attached else name
            found.append(_option(name, typed, [attached] if attached else [], following))
            break
        found.append(Option(long, (), (name,)))
    if len(found) == 1:
        return (
            found
            if found[0].typed[0] == word
            else [msgspec.structs.replace(found[0], typed=(word, *found[0].typed[1:]))]
        )
    joined = (word, *found[-1].typed[1:])
    return [msgspec.structs.replace(o, joined=joined, size=len(found)) for o in found]


def _option(name: str, typed: str, values: list[str], following: list[str]) -> Option:
    name = _SHORT.get(name, name)
    name = _SAME.get(name, name)
    words = [typed]
    if name in _MULTIPLE:
        # dbt's own click option: as many as there are, after `--select=a` too.
        while following and not following[0].startswith("-"):
            words.append(following.pop(0))
            values = [*values, words[-1]]
    elif name in _VALUED and not values and "=" not in typed and following:
        words.append(following.pop(0))
        values = [words[-1]]
    return Option(name, tuple(values), tuple(words))


def _launcher_length(words: list[str]) -> int:
    """How many words start dbt: `dbt`, `poetry -C /srv/dbt run dbt`, `python -m dbt.cli.main`."""
    if _is_dbt(words[0]):
        return 1
    places = [at for at, word in enumerate(words) if _is_dbt(word)]
    for number, at in enumerate(places):
        following = words[at + 1] if at + 1 < len(words) else ""
        leads = following.startswith("-") or following in COMMANDS
        # `-C /srv/dbt run dbt`: a directory of that name, and the wrapper's own `run`.
        of_wrapper = following == "run" and words[at - 1].startswith("-") and places[number + 1 :]
        if leads and not of_wrapper:
            return at + 1
    return 1


def _is_dbt(word: str) -> bool:
    name = PurePath(word).name.lower().removesuffix(".exe")
    return name in ("dbt", "dbtf", "dbt-fusion", "dbt.cli.main") or word == "dbt.cli.main"


def parse_vars(text: str) -> dict[str, Any]:
    """`--vars` as dbt reads it: a YAML mapping."""
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as exc:
        raise UsageError(f"--vars is not YAML: {text[:80]!r}") from exc
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UsageError(
            f"--vars must be a mapping: {text[:80]!r}", hint="""write --vars '{"key": "value"}'"""
        )
    return {str(k): v for k, v in value.items()}


STARS = "*****"


def secret_values(environ: Mapping[str, str] | None = None) -> list[str]:
    """Values of DBT_ENV_SECRET_* variables, longest first: what dbt itself hides."""
    env = os.environ if environ is None else environ
    found = {v.strip() for k, v in env.items() if k.startswith("DBT_ENV_SECRET") and v.strip()}
    return sorted(found, key=len, reverse=True)


def scrub(text: str, secrets: Iterable[str]) -> str:
    """text with each secret replaced by the five stars dbt writes."""
    for secret in secrets:
        text = text.replace(secret, STARS)
    return text


def scrubbed(value: Any, secrets: Iterable[str]) -> Any:
    """The same for all text in a JSON value."""
    secrets = list(secrets)
    if isinstance(value, str):
        return scrub(value, secrets)
    if isinstance(value, dict):
        return {k: scrubbed(v, secrets) for k, v in value.items()}
    if isinstance(value, list):
        return [scrubbed(v, secrets) for v in value]
    return value


def starred(value: object) -> list[str]:
    """Paths of values in `value` that hold five stars instead of a secret: ['api.key']."""
    if isinstance(value, str):
        return [""] if STARS in value else []
    items: Iterable[tuple[object, object]] = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    return [f"{k}.{p}" if p else str(k) for k, v in items for p in starred(v)]
