"""dbt's command line, taken apart and put together again; and the command of a past invocation,
restored for another day and another machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dbt_recover.command_line import (
    STARS,
    DbtCommand,
    parse_vars,
    scrub,
    secret_values,
    starred,
)
from dbt_recover.errors import RefusedError, UsageError
from dbt_recover.model import Invocation, RunInfo
from dbt_recover.restore import Overrides, restored
from dbt_recover.surroundings import surrounding_args, without_settings

untimed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""A machine at work elsewhere is no failure."""


def parse(line: str) -> DbtCommand:
    """From words separated by blanks."""
    return DbtCommand.parse(line.split())


# ---- there and back ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "dbt build",
        "dbt run --select a b+ --exclude c",
        "dbt test -s tag:x -x",
        "dbt seed --full-refresh",
        "dbt retry --state target",
        "dbt run-operation grant_select --args {role:reader}",
        "dbt docs generate --no-compile",
        "dbt source freshness -s source:raw",
        "dbt build --no-such-flag --another=1",
        "poetry run dbt build -t prod",
        "python -m dbt.cli.main build",
        "/opt/venvs/dbt/bin/dbt build --threads 8",
        "uv run --with dbt-duckdb dbt build",
        "dbt --quiet build",
        "dbt --debug --no-use-colors build -s a",
        "dbt --target test build",
        "dbt -t run build --fail-fast",
        "dbt --vars {day:1} -q run -x",
    ],
)
def test_words_come_back(line: str) -> None:
    assert parse(line).argv() == line.split()


def test_flags_stay_where_they_were_typed() -> None:
    command = parse("dbt --debug --no-use-colors build -s a")
    assert command.command == "build"
    assert command.argv() == ["dbt", "--debug", "--no-use-colors", "build", "-s", "a"]


def test_a_target_can_be_called_as_a_command_is() -> None:
    for line in ("dbt --target test build", "dbt -t test build -s a", "dbt build --target test"):
        command = parse(line)
        assert (command.command, command.value("--target"), command.rest) == ("build", "test", ())


flags = st.sampled_from(
    [
        ["--select", "a", "tag:b,c+"],
        ["-s", "a"],
        ["--select=a"],
        ["--exclude", "b"],
        ["--resource-type", "model"],
        ["--selector", "nightly"],
        ["--vars", "{run_date: 2026-01-31, n: -1}"],
        ["--vars", "-"],
        ["--target", "prod"],
        ["--target", "test"],
        ["-t", "run"],
        ["-t=prod"],
        ["--threads", "4"],
        ["--project-dir", "/srv/a b"],
        ["--fail-fast"],
        ["-f"],
        ["--no-partial-parse"],
        ["--unknown"],
        ["--unknown=value"],
    ]
)
launchers = st.sampled_from(
    [["dbt"], ["/usr/local/bin/dbt"], ["poetry", "run", "dbt"], ["python", "-m", "dbt.cli.main"]]
)


@untimed
@given(
    launchers,
    st.sampled_from(["build", "run", "test", "seed", "snapshot", "retry"]),
    st.lists(flags, max_size=6),
    st.lists(flags, max_size=2),
)
def test_put_together_it_is_the_same_command(
    launcher: list[str], name: str, after: list[list[str]], before: list[list[str]]
) -> None:
    # A list of values before the command would swallow it, for dbt, too.
    one = ("--vars", "--target", "-t", "--threads")
    before = [f for f in before if len(f) == 1 or f[0] in one]
    words = [*launcher, *sum(before, []), name, *sum(after, [])]  # noqa: RUF017 # few and short
    command = DbtCommand.parse(words)
    assert (list(command.launcher), command.command, command.rest) == (launcher, name, ())
    assert command.argv() == words


@untimed
@given(st.lists(st.text(max_size=12), min_size=1, max_size=8))
def test_whatever_the_words_none_is_lost(words: list[str]) -> None:
    command = DbtCommand.parse(words)
    assert sorted(command.argv()) == sorted(words)


def test_no_words_are_an_error_that_says_how() -> None:
    with pytest.raises(UsageError, match="no dbt command") as caught:
        DbtCommand.parse([])
    assert "exec -- dbt build" in caught.value.hint


# ---- launchers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line, launcher",
    [
        ("dbt build", "dbt"),
        ("/opt/dbt/bin/dbt build", "/opt/dbt/bin/dbt"),
        ("./dbt build", "./dbt"),
        ("dbtf build", "dbtf"),
        ("poetry run dbt build", "poetry run dbt"),
        ("uv run --frozen dbt build", "uv run --frozen dbt"),
        ("python3 -m dbt.cli.main build", "python3 -m dbt.cli.main"),
        ("env A=1 nice -n 5 dbt build", "env A=1 nice -n 5 dbt"),
        ("./run_dbt.sh build", "./run_dbt.sh"),
        ("poetry -C /srv/dbt run dbt build", "poetry -C /srv/dbt run dbt"),
        ("uv run --directory dbt dbt build", "uv run --directory dbt dbt"),
    ],
)
def test_launchers(line: str, launcher: str) -> None:
    command = parse(line)
    assert " ".join(command.launcher) == launcher
    assert (command.command, command.rest) == ("build", ())


# ---- what was selected -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line, select",
    [
        ("dbt build", ()),
        ("dbt build --select a b+ tag:c", ("a", "b+", "tag:c")),
        ("dbt build -s a --exclude x -s b", ("a", "b")),
        ("dbt build -m a", ("a",)),
        ("dbt build --models a b", ("a", "b")),
        ("dbt build --model a", ("a",)),
        ("dbt build --select=a", ("a",)),
        ("dbt build -s a,b --fail-fast", ("a,b",)),
        # dbt takes all of these, and reads them so (measured on 1.11).
        ("dbt build --select=a b", ("a", "b")),
        ("dbt build -sa", ("a",)),
        ("dbt build -xsa", ("a",)),
        ("dbt build -xs a", ("a",)),
    ],
)
def test_selections(line: str, select: tuple[str, ...]) -> None:
    command = parse(line)
    assert command.all_values("--select") == select
    assert command.args().get("select", []) == list(select)
    assert command.argv() == line.split()


def test_other_selections() -> None:
    command = parse(
        "dbt build --exclude a b --exclude c --selector nightly --resource-types model test "
        "--exclude-resource-type unit_test --indirect-selection empty"
    )
    assert command.args() == {
        "which": "build",
        "exclude": ["a", "b", "c"],
        "selector": "nightly",
        "resource_types": ["model", "test"],
        "exclude_resource_types": ["unit_test"],
        "indirect_selection": "empty",
    }


def test_the_last_value_counts() -> None:
    command = parse("dbt build --target dev -t prod --threads 4 --threads=8")
    assert command.value("--target") == "prod"
    assert command.args() == {"which": "build", "target": "prod", "threads": 8}
    assert command.value("--profile") is None


@pytest.mark.parametrize(
    "flag",
    [
        *("--target", "--vars", "--state", "--defer-state", "--log-level", "--warn-error-options"),
        *("--event-time-start", "--sample", "--indirect-selection", "--printer-width", "--profile"),
        # Not in dbt's --help, and all take a value (measured on 1.11).
        *("--partial-parse-file-path", "--sqlparse"),
    ],
)
def test_a_flag_keeps_its_value(flag: str) -> None:
    # The command is put together again before it is started.
    line = f"dbt build {flag} value --fail-fast"
    assert parse(line).argv() == line.split()
    assert parse(line).rest == ()


def test_args_of_flags() -> None:
    command = DbtCommand.parse(
        [
            "dbt",
            "run",
            "-f",
            "-x",
            "--vars",
            "{a: 1, b: [x, y]}",
            "--event-time-start",
            "2026-01-01",
        ]
    )
    assert command.args() == {
        "which": "run",
        "full_refresh": True,
        "fail_fast": True,
        "vars": {"a": 1, "b": ["x", "y"]},
        "event_time_start": "2026-01-01",
    }


def test_without_and_adding() -> None:
    command = parse("dbt build -s a --threads 2 --debug")
    assert command.without({"--select", "--threads"}).argv() == ["dbt", "build", "--debug"]
    assert command.adding("--state", "x").argv() == [*command.argv(), "--state", "x"]
    assert command.has("--debug", "--quiet")
    assert not command.has("--quiet")


# ---- vars --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, value",
    [
        ("{run_date: x, n: 3}", {"run_date": "x", "n": 3}),
        ('{"a": {"b": [1, 2]}}', {"a": {"b": [1, 2]}}),
        ("a: 1", {"a": 1}),
        ("a: 1\nb: 2", {"a": 1, "b": 2}),
        ("{}", {}),
        ("", {}),
        ("{1: x}", {"1": "x"}),
    ],
)
def test_vars_are_yaml(text: str, value: dict[str, Any]) -> None:
    assert parse_vars(text) == value


@pytest.mark.parametrize(
    "text", ["{a: ", "[1, 2]", "a", "3", "{a: !!python/object:x.y {}}", "a: b: c"]
)
def test_other_vars_are_an_error(text: str) -> None:
    with pytest.raises(UsageError, match="--vars"):
        parse_vars(text)


# ---- secrets -----------------------------------------------------------------------------------


def test_starred_values_are_found_wherever_they_are() -> None:
    value = {
        "api_key": STARS,
        "plain": "x",
        "url": f"https://user:{STARS}@host",
        "nested": {"deep": {"key": STARS}, "number": 5},
        "list": ["x", STARS, {"k": STARS}],
    }
    assert starred(value) == ["api_key", "url", "nested.deep.key", "list.1", "list.2.k"]
    assert starred({}) == []
    assert starred(None) == []


def test_scrub_hides_the_longest_secret_first() -> None:
    environ = {
        "DBT_ENV_SECRET_SHORT": "abc",
        "DBT_ENV_SECRET_LONG": "abcdef",
        "DBT_ENV_SECRET_EMPTY": "  ",
        "DBT_ENV_PLAIN": "xyz",
    }
    secrets = secret_values(environ)
    assert secrets == ["abcdef", "abc"]
    assert scrub("--vars {k: abcdef, l: abc, m: xyz}", secrets) == (
        f"--vars {{k: {STARS}, l: {STARS}, m: xyz}}"
    )


@untimed
@given(
    st.lists(st.text(alphabet="abcd", min_size=1, max_size=4), max_size=4),
    st.text(alphabet="abcd ", max_size=30),
)
def test_no_secret_is_left(values: list[str], text: str) -> None:
    secrets = secret_values({f"DBT_ENV_SECRET_{n}": v for n, v in enumerate(values)})
    left = scrub(text, secrets)
    assert not [s for s in secrets if s in left]


# ---- restored ----------------------------------------------------------------------------------


def invocation(argv: str | list[str] = "dbt build", **args: Any) -> Invocation:
    """One with that command line, of which dbt recorded these args."""
    words = argv.split() if isinstance(argv, str) else argv
    run = RunInfo("r", "2026-01-31T06:00:00Z")
    return Invocation("i", run, argv=words, command=words[1] if words else "build", args=args)


def restored_words(
    made: Invocation, overrides: Overrides | None = None, cwd: Path | None = None
) -> list[str]:
    """The restored command after `dbt build`."""
    command = restored(made, overrides or Overrides(), cwd=cwd)
    assert command.argv()[:2] == ["dbt", "build"]
    return command.argv()[2:]


def restored_vars(made: Invocation, overrides: Overrides | None = None) -> object:
    """Its --vars."""
    text = restored(made, overrides or Overrides()).value("--vars")
    return None if text is None else parse_vars(text)


def test_what_was_selected_is_dropped() -> None:
    made = invocation(
        "dbt run -s a b --exclude c --selector d --resource-type model --exclude-resource-type test "
        "--indirect-selection cautious --models e"
    )
    assert restored_words(made) == []


def test_paths_of_the_other_machine_are_dropped() -> None:
    made = invocation(
        "dbt build --project-dir /a --profiles-dir /b --log-path /c --target-path d --state e "
        "--defer-state f --packages-install-path g"
    )
    assert restored_words(made) == []


def test_a_profiles_dir_that_is_here_too_is_kept(tmp_path: Path) -> None:
    (tmp_path / "profiles").mkdir()
    made = invocation("dbt build --profiles-dir profiles")
    assert restored_words(made, cwd=tmp_path) == ["--profiles-dir", "profiles"]
    assert restored_words(made, cwd=tmp_path / "profiles") == []
    given_one = Overrides(profiles_dir="/mine")
    assert restored_words(made, given_one, tmp_path) == ["--profiles-dir", "/mine"]


def test_any_launcher_and_command_becomes_dbt_build() -> None:
    made = invocation("poetry run dbt run-operation grant --args {}")
    command = restored(made, Overrides(), launcher=("/opt/dbt",))
    assert (command.launcher, command.command, command.rest) == (("/opt/dbt",), "build", ())
    assert restored(invocation([]), Overrides()).argv() == ["dbt", "build"]


def test_settings_that_dbt_recorded_are_given_again() -> None:
    # From the environment or a flag of the project, perhaps: they are not in the words.
    made = invocation(
        "dbt build",
        target="prod",
        profile="shop",
        threads=8,
        full_refresh=True,
        fail_fast=True,
        event_time_start="2026-01-01T00:00:00",
        vars={"run_date": "2026-01-31"},
    )
    command = restored(made, Overrides())
    assert command.args() == {
        "which": "build",
        "target": "prod",
        "profile": "shop",
        "threads": 8,
        "full_refresh": True,
        "fail_fast": True,
        "event_time_start": "2026-01-01T00:00:00",
        "vars": {"run_date": "2026-01-31"},
    }


def test_settings_around_a_command() -> None:
    environ = {
        "DBT_FULL_REFRESH": "1",
        "DBT_RESOURCE_TYPES": "model test",
        "DBT_TARGET": "dev",
        "DBT_ENGINE_TARGET": "prod",
        "DBT_ARTIFACT_STATE_PATH": "old",
        "DBT_FAVOR_STATE": "off",
        "DBT_EVENT_TIME_START": "",
        "DBT_PROFILES_DIR": "/p",
        "DBT_ENV_SECRET_TOKEN": "x",
    }
    flags = {"fail_fast": True, "warn_error": False, "use_colors": True}
    assert surrounding_args(environ, {**flags, "indirect_selection": "cautious"}) == {
        "full_refresh": True,
        "resource_types": ["model", "test"],
        "target": "prod",
        "state": "old",
        "favor_state": False,
        "fail_fast": True,
        "indirect_selection": "cautious",
    }
    assert surrounding_args({"DBT_FAIL_FAST": "0"}, flags) == {"fail_fast": False}
    assert set(without_settings(environ)) == {"DBT_PROFILES_DIR", "DBT_ENV_SECRET_TOKEN"}


@pytest.mark.parametrize("flag", ["full-refresh", "fail-fast"])
def test_what_is_typed_goes_before_the_settings_around_it(flag: str) -> None:
    key = flag.replace("-", "_")
    around = surrounding_args({f"DBT_{key.upper()}": "1"}, {})
    assert around == {key: True}
    command = parse(f"dbt build --no-{flag}")
    assert {**around, **command.args()} == {"which": "build", key: False}
    assert restored_words(invocation(f"dbt build --no-{flag}", **around)) == [f"--no-{flag}"]
    assert restored_words(invocation("dbt build", **around)) == [f"--{flag}"]


def test_what_was_deferred_to_is_deferred_to_again(tmp_path: Path) -> None:
    """Though dbt was killed before it said anything, even its target."""
    around = surrounding_args({"DBT_DEFER": "1", "DBT_STATE": "prod-state"}, {})
    made = invocation("dbt build", **around)
    with pytest.raises(RefusedError, match="prod-state, which is not here") as caught:
        restored(made, Overrides(), cwd=tmp_path)
    assert "--defer-state DIR" in caught.value.hint
    (tmp_path / "prod-state").mkdir()
    words = restored_words(made, cwd=tmp_path)
    assert words == ["--defer", "--defer-state", "prod-state"]


def test_flags_as_typed_are_kept_once() -> None:
    made = invocation(
        "dbt build -t dev -f -x --threads 2 --no-partial-parse --log-format json --some-new-flag",
        target="dev",
        threads=2,
        full_refresh=True,
        fail_fast=True,
    )
    words = restored_words(made)
    for flag in ("-f", "-x", "--no-partial-parse", "--some-new-flag", "--target", "--threads"):
        assert words.count(flag) == 1, words
    assert not {"--full-refresh", "--fail-fast", "-t"}.intersection(words)
    assert DbtCommand.parse(["dbt", "build", *words]).value("--log-format") == "json"


def test_restoring_what_was_restored_changes_nothing() -> None:
    args = {"target": "prod", "threads": 8, "fail_fast": True, "vars": {"a": 1}}
    once = restored(invocation("dbt run -s a --debug", **args), Overrides())
    again = restored(invocation(once.argv(), **once.args()), Overrides())
    assert sorted(again.argv()) == sorted(once.argv())


def test_false_and_empty_settings_are_not_given() -> None:
    made = invocation(
        "dbt build", target="", profile=None, full_refresh=False, threads=None, vars={}
    )
    assert restored_words(made) == []


def test_vars_are_merged_name_by_name() -> None:
    made = invocation("dbt build --vars {}", vars={"run_date": "2026-01-31", "key": STARS})
    assert restored_vars(made) == {"run_date": "2026-01-31", "key": STARS}
    overrides = Overrides(vars={"key": "s3cret", "new": [1, {"x": None}]})
    assert restored_vars(made, overrides) == {
        "run_date": "2026-01-31",
        "key": "s3cret",
        "new": [1, {"x": None}],
    }
    assert restored_vars(invocation()) is None


def test_a_date_in_vars_can_be_given() -> None:
    # YAML makes a date of it; dbt records it as text.
    overrides = Overrides(vars=parse_vars("{run_date: 2026-02-01, at: 2026-02-01 06:00:00}"))
    made = invocation("dbt build", vars={"run_date": "2026-01-31"})
    again = parse_vars(restored(made, overrides).value("--vars") or "")
    assert str(again["run_date"]) == "2026-02-01"
    assert str(again["at"]).startswith("2026-02-01")


def test_overrides_win() -> None:
    made = invocation(
        "dbt build --target dev --threads 2 --profile a --target-path x",
        target="dev",
        threads=2,
        profile="a",
    )
    overrides = Overrides(
        target="prod",
        profile="b",
        threads=16,
        full_refresh=True,
        project_dir="/p",
        target_path="/t",
    )
    command = restored(made, overrides)
    assert command.args() == {
        "which": "build",
        "target": "prod",
        "profile": "b",
        "threads": 16,
        "full_refresh": True,
    }
    for flag in ("--target", "--threads", "--profile", "--full-refresh"):
        assert command.argv().count(flag) == 1
    assert command.value("--project-dir") == "/p"
    assert command.value("--target-path") == "/t"


def test_the_target_that_dbt_said_is_used_when_none_was_typed() -> None:
    made = Invocation("i", RunInfo("r", ""), argv=["dbt", "build"], command="build", target="dev")
    assert restored_words(made) == ["--target", "dev"]


def test_a_sample_is_that_of_the_run() -> None:
    # `2 days` means other days tomorrow; dbt recorded which.
    window = {"start": "2026-01-29T06:00:00+00:00", "end": "2026-01-31T06:00:00+00:00"}
    made = invocation(["dbt", "build", "--sample", "2 days"], sample=window)
    text = restored(made, Overrides()).value("--sample")
    assert text is not None
    assert parse_vars(text) == window


@untimed
@given(
    variables=st.dictionaries(
        st.text(max_size=8),
        st.text(max_size=8) | st.integers() | st.booleans() | st.none(),
        max_size=4,
    ),
    target=st.text(max_size=8),
)
def test_values_reach_dbt_as_they_were(variables: dict[str, Any], target: str) -> None:
    made = invocation("dbt build", vars=variables, target=target)
    command = restored(made, Overrides())
    assert parse_vars(command.value("--vars") or "") == variables
    assert (command.value("--target") or "") == target
