"""Options that several commands share, and what they are made into."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from .approved import Approved
    from .insist import Patience
    from .recover import Options

F = TypeVar("F", bound=Callable[..., Any])

# All but line ends and tabs: they move a terminal's cursor, colour it, rename its window.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def echo(text: str, *, err: bool = False) -> None:
    """Print a line or more. What others wrote (run ids, messages of a warehouse) does not get to
    control the terminal; JSON stays the same JSON."""
    click.echo(_CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text), err=err)


def run_id_option(function: F) -> F:
    """--run-id. An id is one line."""

    def checked(_context: click.Context, _option: click.Parameter, value: str) -> str:
        if not value.isprintable():
            raise click.BadParameter(f"{value!r} has characters that cannot be printed")
        return value

    return click.option(
        "--run-id",
        default="",
        callback=checked,
        help="The run it belongs to.  [default: Airflow's, or a new one]",
    )(function)


def output_option(function: F) -> F:
    return click.option(
        "-o",
        "--output",
        type=click.Choice(["table", "json"]),
        default="table",
        show_default=True,
        help="A table for people or JSON for programs.",
    )(function)


def planning_options(function: F) -> F:
    """Options that plan and retry share."""
    options = (
        click.option(
            "--tests",
            type=click.Choice(["rebuild", "recheck"]),
            default="rebuild",
            show_default=True,
            help="For a failed test: rebuild the models it tests first, or only run it again.",
        ),
        click.option(
            "--select", multiple=True, metavar="SELECTION", help="Only these of the plan."
        ),
        click.option(
            "--exclude", multiple=True, metavar="SELECTION", help="Not these of the plan."
        ),
        click.option("--vars", metavar="YAML", help="Laid over the run's own vars."),
        click.option("--target", metavar="NAME", help="Instead of the run's target."),
        click.option("--profile", metavar="NAME", help="Instead of the run's profile."),
        click.option("--threads", type=click.IntRange(1), help="Instead of the run's threads."),
        click.option(
            "--defer-state", metavar="DIR", help="The state that a run with --defer was about."
        ),
        click.option("--full-refresh", is_flag=True, help="Rebuild incremental models and seeds."),
        click.option(
            "--strategy",
            type=click.Choice(["auto", "select", "retry", "defer"]),
            default="auto",
            show_default=True,
            help="How dbt is told: build --select, dbt retry, or build --defer.",
        ),
        click.option(
            "--favor-state",
            is_flag=True,
            help="With --strategy defer: read the run's relations though the target has its own.",
        ),
        click.option("--allow-drift", is_flag=True, help="Go on though other code was edited."),
        click.option(
            "--allow-non-idempotent",
            is_flag=True,
            help="Go on though rows may be added twice, or wrong ones stay.",
        ),
        click.option("--allow-other-project", is_flag=True, help="Go on in another dbt project."),
        click.option("--allow-other-target", is_flag=True, help="Go on in another target."),
        click.option(
            "--allow-unknown-scope", is_flag=True, help="Go on though more may be left undone."
        ),
        click.option(
            "--allow-unknown-settings",
            is_flag=True,
            help="Go on with the vars, target and full refresh typed here (dbt v2 without exec).",
        ),
        click.option(
            "--allow-older-run", is_flag=True, help="Go on though a later run has built the same."
        ),
        click.option("--ignore-failed-hooks", is_flag=True, help="Whole though a hook failed."),
        click.option("--logical-date", metavar="DATE", help="The run of this Airflow date."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def _parsed(variables: str | None) -> Mapping[str, Any]:
    if not variables:
        return {}
    from .command_line import parse_vars

    return parse_vars(variables)


def _approved(file: str | None) -> Approved | None:
    if not file:
        return None
    from .approved import read_approved

    return read_approved(file)


def chosen(app_options: Mapping[str, Any], given: dict[str, Any]) -> Options:
    from .errors import UsageError
    from .recover import Options
    from .restore import Overrides

    if given["favor_state"] and given["strategy"] != "defer":
        raise UsageError("--favor-state goes with --strategy defer")
    return Options(
        strategy=given["strategy"],
        favor_state=given["favor_state"],
        tests=given["tests"],
        select=tuple(w for s in given["select"] for w in s.split()),
        exclude=tuple(w for s in given["exclude"] for w in s.split()),
        overrides=Overrides(
            vars=_parsed(given["vars"]),
            target=given["target"] or "",
            profile=given["profile"] or "",
            threads=given["threads"],
            full_refresh=given["full_refresh"],
            defer_state=given["defer_state"] or "",
            project_dir=app_options["project_dir"] or "",
            profiles_dir=app_options["profiles_dir"] or "",
        ),
        ignore_failed_hooks=given["ignore_failed_hooks"],
        approved=_approved(given.get("approved")),
        **{k: v for k, v in given.items() if k.startswith("allow_")},
    )


def on_option(function: F) -> F:
    """Which classes of failure are retried again and again."""
    classes = ("transient", "timeout", "permission", "code", "data", "quota", "unknown")
    return click.option(
        "--on",
        multiple=True,
        type=click.Choice(classes),
        help="Retry again and again, and only while every failure is of this class.",
    )(function)


def patience_options(name: str, about: str) -> Callable[[F], F]:
    """How often, by an option of this name, and with what pause."""

    def add(function: F) -> F:
        function = click.option(
            "--backoff",
            type=click.FloatRange(0, 86400),
            metavar="S",
            help="Seconds before the next of several retries; doubles each time, up to 15 minutes, "
            "half more or less by chance.  [default: 30]",
        )(function)
        return click.option(name, type=click.IntRange(1), metavar="N", help=about)(function)

    return add


def patience(on: tuple[str, ...], attempts: int | None, backoff: float | None) -> Patience | None:
    """None if nothing is to be retried again and again."""
    from .errors import UsageError
    from .insist import BACKOFF_SECONDS, Patience

    if not on and attempts is not None:
        raise UsageError("--attempts says how often, and not what: add --on transient")
    if not on:
        return None
    if backoff is not None and not math.isfinite(backoff):
        raise UsageError(f"--backoff is a number of seconds, not {backoff}")
    return Patience(
        frozenset(on),
        attempts or Patience.attempts,
        BACKOFF_SECONDS if backoff is None else backoff,
    )
