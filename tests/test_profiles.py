"""Variables that a profile needs, and the tag that leads from a query back to its run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dbt_recover.checkout import Project
from dbt_recover.command_line import DbtCommand
from dbt_recover.errors import UsageError
from dbt_recover.model import Invocation, RunInfo
from dbt_recover.profiles import check_variables
from dbt_recover.query_tag import VARIABLE, query_tag
from projects import DEMO, Checkout, demo, listing

SNOWFLAKE = {"SNOWFLAKE_ACCOUNT": "a", "SNOWFLAKE_USER": "u", "SNOWFLAKE_PASSWORD": "p"}
DBT = ("dbt", "build")


def check(directory: Path, *words: str, profile: str = "b2b_analytics", **environ: str) -> None:
    command = DbtCommand.parse([*DBT, *words])
    project = Project(directory, "p", {"profile": profile})
    check_variables(command, project, environ, directory)


def test_all_that_is_missing_is_named_at_once() -> None:
    with pytest.raises(UsageError) as raised:
        check(DEMO, "--target", "snowflake", SNOWFLAKE_USER="u")
    assert raised.value.message.startswith("SNOWFLAKE_ACCOUNT, SNOWFLAKE_PASSWORD are not set")
    assert "target snowflake of profile b2b_analytics" in raised.value.message


def test_only_the_chosen_target_counts() -> None:
    check(DEMO)
    check(DEMO, "--target", "snowflake", **SNOWFLAKE)
    check(DEMO, DBT_TARGET="prod")
    with pytest.raises(UsageError):
        check(DEMO, DBT_TARGET="snowflake")


@pytest.mark.parametrize(
    "output, missing",
    [
        ("{type: x, a: \"{{ env_var('A') }}\"}", "A"),
        ("{type: x, a: \"{{env_var( 'A' )}}\"}", "A"),
        ("{type: x, n: [{deep: \"x-{{ env_var('A') }}-y\"}]}", "A"),
        ("{type: x, a: \"{{ env_var('DBT_ENV_SECRET_KEY') }}\"}", "DBT_ENV_SECRET_KEY"),
        ("{type: x, a: \"{{ env_var('A') | int }}\"}", "A"),
        ("{type: x, a: \"{{ env_var('A', 'b') }}\"}", ""),
        ("{type: x, a: \"{{ env_var('A') if target else 'b' }}\"}", ""),
        ("{type: x, a: \"{% if env_var('B', '') %}{{ env_var('A') }}{% endif %}\"}", ""),
        ("{type: x, a: \"{# {{ env_var('A') }} #}b\"}", ""),
        ("{type: x, private_key_path: /k, token: t, authenticator: oauth}", ""),
        ("nonsense", ""),
    ],
)
def test_what_needs_a_variable(output: str, missing: str, tmp_path: Path) -> None:
    text = f"mine:\n  target: one\n  outputs:\n    one: {output}\n"
    (tmp_path / "profiles.yml").write_text(text)
    if not missing:
        check(tmp_path, profile="mine")
        return
    with pytest.raises(UsageError) as raised:
        check(tmp_path, profile="mine")
    assert raised.value.message.startswith(f"{missing} is not set")
    check(tmp_path, profile="mine", **{missing: ""})


def test_variables_of_a_file_that_dbt_reads(tmp_path: Path) -> None:
    """dbt 1.12 and later take them from the nearest .env."""
    (tmp_path / "project").mkdir()
    profiles = "mine: {target: a, outputs: {a: {type: x, a: \"{{ env_var('A') }}\"}}}"
    (tmp_path / "project/profiles.yml").write_text(profiles)
    with pytest.raises(UsageError):
        check(tmp_path / "project", profile="mine")
    (tmp_path / ".env").write_text("A=1\n")
    check(tmp_path / "project", profile="mine")


def test_the_profile_is_the_one_that_the_project_names(tmp_path: Path) -> None:
    here = demo(tmp_path)
    ran = here.recover("exec", "--", "dbt", "build", "--target", "snowflake")
    assert (ran.code, here.calls) == (2, []), ran
    assert "SNOWFLAKE_ACCOUNT" in ran.err


def test_where_the_profile_and_its_target_are_found(tmp_path: Path) -> None:
    here, home = tmp_path / "here", tmp_path / "home"
    (home / ".dbt").mkdir(parents=True)
    here.mkdir()
    check(here, profile="mine", HOME=str(home))  # no profile: dbt says so
    outputs = "outputs: {one: {type: x, a: \"{{ env_var('A') }}\"}, two: {type: x}}"
    where = "target: \"{{ env_var('T', 'one') }}\""
    (home / ".dbt" / "profiles.yml").write_text(f"mine:\n  {where}\n  {outputs}\n")
    with pytest.raises(UsageError, match="A is not set"):
        check(here, profile="mine", HOME=str(home))
    check(here, profile="mine", HOME=str(home), T="two")
    (here / "profiles.yml").write_text("mine: {outputs: {default: {type: x}}}")
    check(here, profile="mine", HOME=str(home))
    with pytest.raises(UsageError, match="A is not set"):
        check(here, "--profiles-dir", str(home / ".dbt"), profile="mine")
    (here / "profiles.yml").write_text("mine: [broken")
    check(here, profile="mine")


def test_exec_and_retry_name_it_before_anything_runs(tmp_path: Path) -> None:
    here: Checkout = demo(tmp_path / "here")
    only = ("--select", "raw_crm_accounts", "stg_contracts")
    assert here.recover("exec", "--", "dbt", "build", *only).code == 1
    calls, before = len(here.calls), listing(here.home)
    for words in (
        ("exec", "--", "dbt", "build", "--target", "snowflake"),
        ("retry", "--target", "snowflake", "--allow-other-target"),
    ):
        ran = here.recover(*words)
        assert ran.code == UsageError.exit_code, ran
        assert "SNOWFLAKE_ACCOUNT, SNOWFLAKE_PASSWORD, SNOWFLAKE_USER are not set" in ran.err
    assert len(here.calls) == calls
    left = {k for k in listing(here.home).keys() ^ before.keys() if "locks" not in k}
    assert left == set()

    # And the tag that dbt got: it is in every query that dbt logged, and RUN takes what it says.
    tagged = (here.home / "calls" / "000" / "events").read_text()
    run = json.loads(tagged.split('\\"run\\": ')[1].split("}")[0].replace('\\"', '"') + "}")
    assert run["attempt"] == 1
    shown = here.recover("show", run["began"], "-o", "json").json
    assert shown["run"]["began"] == run["began"]


def test_a_tag_can_end_neither_a_comment_nor_a_string() -> None:
    run = RunInfo("*/ drop table x; -- '\"\\\n%", "2026-01-31T06:00:00Z")
    tag = query_tag(Invocation("", run, attempt=3, step="s"))[VARIABLE]
    assert "*" not in tag
    assert "'" not in tag
    assert "\n" not in tag
    assert json.loads(tag) == {"run_id": run.run_id, "attempt": 3, "step": "s"}
