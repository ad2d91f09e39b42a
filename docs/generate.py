"""Writes docs/commands.md from the command line itself: `python docs/generate.py`.

With --check nothing is written, and the exit code is 1 if the page is stale. The tables are made
from the parameters, not from the help text, which each version of click lays out in its own way.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from dbt_recover.cli import cli

PAGE = Path(__file__).with_name("commands.md")
_HEAD = """\
# Commands

<!-- Written by `python docs/generate.py` from the command line itself: do not edit. -->

`dbt-recover [OPTIONS] COMMAND ...`: options of the first table stand before the command, the others
after it. Each can be given as a flag, in the environment, or in the
[configuration file](configuration.md), and wins in this order. Lists in the environment are
separated by spaces.
"""


def page() -> str:
    """The whole page."""
    context = click.Context(cli, info_name="dbt-recover", auto_envvar_prefix="DBT_RECOVER")
    parts = [_HEAD, _about(cli), "## Options of all commands\n", _options(cli, context)]
    for name in cli.list_commands(context):
        command = cli.commands[name]
        if command.hidden:
            continue
        inner = click.Context(command, info_name=name, parent=context)
        usage = " ".join([name, *command.collect_usage_pieces(inner)])
        parts += [
            f"## {name}\n",
            f"`dbt-recover {usage}`\n",
            _about(command),
            *_arguments(command),
            _options(command, inner),
        ]
    parts.append("Exit codes: [exit-codes.md](exit-codes.md). JSON output: [json.md](json.md).\n")
    return "\n".join(part for part in parts if part)


def _about(command: click.Command) -> str:
    paragraphs = (command.help or "").split("\n\n")
    return "\n\n".join(" ".join(p.split()) for p in paragraphs) + "\n"


def _arguments(command: click.Command) -> list[str]:
    return [
        f"{(p.name or '').upper()} is `{p.default}` if it is not given.\n"
        for p in command.params
        if isinstance(p, click.Argument) and isinstance(p.default, str) and p.default
    ]


def _options(command: click.Command, context: click.Context) -> str:
    rows = []
    for parameter in command.params:
        if not isinstance(parameter, click.Option) or parameter.hidden:
            continue
        if parameter.name == "version":
            continue
        rows.append(_row(parameter, context))
    if not rows:
        return ""
    head = ["| option | environment | what it does |", "| --- | --- | --- |"]
    return "\n".join([*head, *rows]) + "\n"


def _row(option: click.Option, context: click.Context) -> str:
    flags = ", ".join(f"`{text}`" for text in option.opts)
    if not option.is_flag:
        flags += f" {_value(option)}"
    about = option.help or ""
    if option.required:
        about += " Required."
    elif option.show_default and option.default not in (None, False, (), ""):
        about += f" [default: {option.default}]"
    if option.multiple:
        about += " Can be given several times."
    prefix = context.auto_envvar_prefix or "DBT_RECOVER"
    variable = f"{prefix}_{(option.name or '').upper()}"
    cells = (flags, f"`{variable}`", " ".join(about.split()))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _value(option: click.Option) -> str:
    if isinstance(option.type, click.Choice):
        return ", ".join(f"`{choice}`" for choice in option.type.choices if choice)
    return option.metavar or {"integer range": "N"}.get(option.type.name, option.type.name.upper())


def main() -> int:
    """Write the page, or check it."""
    text = page()
    if "--check" in sys.argv[1:]:
        stale = not PAGE.exists() or PAGE.read_text("utf-8") != text
        if stale:
            click.echo(f"{PAGE.name} is stale: python docs/generate.py", err=True)
        return int(stale)
    PAGE.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
