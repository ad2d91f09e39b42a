"""What dbt had parsed goes with a failed run, so that a fresh machine need not parse it all again."""

from __future__ import annotations

from pathlib import Path

import pytest

from projects import MART, RELAY, Checkout, written

FULL = "Unable to do partial parsing"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    home = tmp_path_factory.mktemp("failed")
    here = written(home / "here", RELAY).having(DBT_RECOVER_ARCHIVE=home / "archive")
    assert here.having(FAIL="mart").recover("exec", "--", "dbt", "build").code == 1
    return here


def log_of_a_retry(failed: Checkout, home: Path) -> str:
    """Of one that fails as well, by a checkout that has the project and nothing else."""
    laptop = failed.having(FAIL="mart").elsewhere(home)
    retried = laptop.recover("retry", "-o", "json")
    assert retried.json["executed"] == [MART], retried
    return (laptop.root / "logs/dbt.log").read_text()


def parse_states(failed: Checkout) -> list[Path]:
    archive = Path(failed.environ["DBT_RECOVER_ARCHIVE"])
    return list(archive.rglob("partial_parse.msgpack.zst"))


def test_a_fresh_machine_goes_on_from_the_parse_of_the_failed_run(
    failed: Checkout, tmp_path: Path
) -> None:
    assert len(parse_states(failed)) == 1
    assert FULL not in log_of_a_retry(failed, tmp_path / "laptop")
    # The second attempt left one, too.
    for kept in parse_states(failed):
        kept.write_bytes(kept.read_bytes()[:-100])
    assert FULL in log_of_a_retry(failed, tmp_path / "another")


def test_it_is_there_before_dbt_is_asked_for_the_graph_of_today(
    failed: Checkout, tmp_path: Path
) -> None:
    # A YAML file may change which nodes there are, so dbt parses the project before the retry.
    laptop = failed.elsewhere(tmp_path / "laptop")
    (laptop.root / "models/more.yml").write_text("seeds: [{name: raw}]")
    planned = laptop.recover("plan", "--ask-dbt", "-o", "json")
    assert planned.json["nodes"][0]["unique_id"] == MART
    assert "Running with dbt" in planned.err
    assert FULL not in planned.err


def test_a_run_that_ended_well_keeps_none(tmp_path: Path) -> None:
    here = written(tmp_path / "here", RELAY).having(DBT_RECOVER_ARCHIVE=tmp_path / "archive")
    assert here.recover("exec", "--", "dbt", "build", "--select", "raw").code == 0
    assert parse_states(here) == []
