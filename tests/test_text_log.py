"""How dbt was asked to write its log: by flags, the environment, or dbt_project.yml. That the log is
then dbt's own is in test_endings.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dbt_recover.checkout import Project
from dbt_recover.command_line import DbtCommand
from dbt_recover.text_log import LogForm


@pytest.mark.parametrize(
    "words, environ, flags, colors",
    [
        ((), {}, {}, True),
        ((), {}, {"use_colors": False}, False),
        ((), {}, {"use_colors": False, "use_colors_file": True}, True),
        ((), {"DBT_USE_COLORS": "0"}, {}, False),
        ((), {"DBT_USE_COLORS_FILE": "false"}, {"use_colors_file": True}, False),
        (("--no-use-colors",), {}, {}, False),
        (("--no-use-colors", "--use-colors-file"), {}, {}, True),
        (("--use-colors-file",), {"DBT_USE_COLORS_FILE": "false"}, {}, True),
    ],
)
def test_colors(
    words: tuple[str, ...], environ: dict[str, str], flags: dict[str, Any], colors: bool
) -> None:
    project = Project(Path("/shop"), "shop", {"name": "shop", "flags": flags})
    command = DbtCommand.parse(["dbt", "build", *words])
    assert LogForm.asked_for(project, command, environ).colors is colors
