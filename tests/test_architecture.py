"""One way through: a module imports only from the lines above its own in docs/development.md."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "dbt_recover"
# Where a run comes from another tool's uploads, the archive asks for it to be put together.
AGAINST = {("archive", "foreign")}


def table() -> list[list[str]]:
    """The lines of the table, each a list of modules."""
    page = (ROOT / "docs/development.md").read_text()
    found = re.search(r"<!-- modules -->\n```\n(.*?)```", page, re.DOTALL)
    assert found, "docs/development.md has the table"
    return [line.split("  ", 1)[1].split() for line in found[1].splitlines()]


def modules() -> dict[str, Path]:
    """Name without the package -> file; those that hold nothing but a docstring are left out."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        if "demo_project" not in path.parts and len(ast.parse(path.read_text()).body) > 1:
            found[name] = path
    return found


def imported(name: str, path: Path, known: set[str]) -> Iterator[str]:
    """Modules of ours that it imports when it runs, in functions too."""
    base = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    stack: list[ast.AST] = [ast.parse(path.read_text())]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.ImportFrom):
            if node.level:
                parts = [*base[: len(base) - node.level + 1], *(node.module or "").split(".")]
            elif (node.module or "").startswith("dbt_recover"):
                parts = (node.module or "").split(".")[1:]
            else:
                continue
            module = ".".join(p for p in parts if p)
            for alias in node.names:
                inner = f"{module}.{alias.name}".lstrip(".")
                yield from {inner if inner in known else module} & known
        stack.extend(ast.iter_child_nodes(node))


def test_the_table_has_every_module_once() -> None:
    listed = [name for line in table() for name in line]
    assert sorted(listed) == sorted(modules())


def test_a_module_imports_only_from_the_lines_above_it() -> None:
    line = {name: number for number, names in enumerate(table()) for name in names}
    found = modules()
    wrong = {
        (name, other)
        for name, path in found.items()
        for other in imported(name, path, set(found))
        if other != name and line[other] >= line[name]
    }
    assert wrong == AGAINST
