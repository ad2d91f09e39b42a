"""Options that several commands share, and what they are made into."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from .recover import Options

F = TypeVar("F", bound=Callable[..., Any])


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
        click.option("--vars", "variables", metavar="YAML", help="Laid over the run's own vars."),
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
        click.option("--allow-drift", is_flag=True, help="Go on though other code was edited."),
        click.option(
            "--allow-non-idempotent", is_flag=True, help="Go on though rows may be added twice."
        ),
        click.option("--allow-other-project", is_flag=True, help="Go on in another dbt project."),
        click.option("--allow-other-target", is_flag=True, help="Go on in another target."),
        click.option(
            "--allow-unknown-scope", is_flag=True, help="Go on though more may be left undone."
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


def chosen(app_options: Mapping[str, Any], given: dict[str, Any]) -> Options:
    from .recover import Options
    from .restore import Overrides

    return Options(
        strategy=given["strategy"],
        tests=given["tests"],
        select=tuple(w for s in given["select"] for w in s.split()),
        exclude=tuple(w for s in given["exclude"] for w in s.split()),
        overrides=Overrides(
            vars=_parsed(given["variables"]),
            target=given["target"] or "",
            profile=given["profile"] or "",
            threads=given["threads"],
            full_refresh=given["full_refresh"],
            defer_state=given["defer_state"] or "",
            project_dir=app_options["project_dir"] or "",
            profiles_dir=app_options["profiles_dir"] or "",
        ),
        ignore_failed_hooks=given["ignore_failed_hooks"],
        **{k: v for k, v in given.items() if k.startswith("allow_")},
    )
