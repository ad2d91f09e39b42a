"""What starting costs: dbt imports `dbt_recover` in every process of its environment, and people
wait for `plan`. Counted in modules, not in seconds.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import Bucket
from projects import ARTIFACTS, Checkout, checkout

AWS = {"boto3", "botocore", "s3transfer"}

# Runs the command line as the console script does, then says on stderr what was imported.
_WATCHED = """
import json, sys
from dbt_recover.cli import run
sys.argv = ["dbt-recover", *sys.argv[1:]]
try:
    run()
finally:
    print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})), file=sys.stderr)
"""


def modules(here: Checkout, *words: object) -> set[str]:
    """Top-level modules that a command that ends well has loaded."""
    ran = here.run(sys.executable, "-c", _WATCHED, *words)
    assert ran.code == 0, ran
    return set(json.loads(ran.err.splitlines()[-1]))


@pytest.fixture
def archived(tmp_path: Path) -> Checkout:
    """A project with a failed run, and an archive in it that was made without dbt."""
    here = checkout("two_independent_failures", tmp_path / "here")
    ran = here.recover("archive", "--target-dir", ARTIFACTS / "good")
    assert ran.code == 0, ran
    return here


def test_importing_the_package_imports_nothing_else() -> None:
    code = "import sys; a = set(sys.modules); import dbt_recover; print(*set(sys.modules) - a)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["dbt_recover"]


@pytest.mark.parametrize("words", [("--help",), ("retry", "--help"), ("--version",)], ids=" ".join)
def test_help_loads_click_and_little_else(words: tuple[str, ...], archived: Checkout) -> None:
    loaded = modules(archived, *words)
    assert "click" in loaded
    assert not loaded & {*AWS, "msgspec", "zstandard", "tabulate", "yaml", "dbt"}


@pytest.mark.parametrize("command", ["runs", "show", "plan"])
def test_a_directory_archive_needs_no_aws(command: str, archived: Checkout) -> None:
    loaded = modules(archived, command)
    assert "msgspec" in loaded
    assert not loaded & {*AWS, "dbt", "duckdb"}


@pytest.mark.cluster
def test_an_s3_archive_does(archived: Checkout, s3_bucket: Bucket) -> None:
    here = archived.having(**s3_bucket.environment, DBT_RECOVER_ARCHIVE=s3_bucket.url)
    assert here.recover("archive", "--target-dir", ARTIFACTS / "good").code == 0
    assert "botocore" in modules(here, "plan")


def test_the_console_script_is_the_same_program(archived: Checkout) -> None:
    script = Path(sys.executable).with_name("dbt-recover")
    assert archived.run(script, "plan").out == archived.recover("plan").out
    assert archived.run(script, "plan", "nosuch").code == archived.recover("plan", "nosuch").code
