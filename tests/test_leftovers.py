"""`archive`: what waits on this machine, and what is archived twice."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from archives import Altered, made, spooled
from dbt_recover.archive import Archive
from dbt_recover.context import Where
from dbt_recover.errors import DamagedError, LockedError, StorageError
from dbt_recover.leftovers import resume_spools
from dbt_recover.storage.local import LocalStorage
from projects import ARTIFACTS


def statuses(store: LocalStorage) -> dict[str, str]:
    """Of all runs."""
    return {s.run.run_id: s.status for s in Archive(store).runs()}


@pytest.mark.parametrize("order", list(itertools.permutations(["damaged", "away", "taken"])))
def test_of_several_that_cannot_be_delivered_the_most_serious_counts(
    order: tuple[str, ...], tmp_path: Path
) -> None:
    class Away(Altered):
        def write(self, key: str, body: Any, **conditions: Any) -> str:
            if "away" in key:
                raise StorageError(f"cannot write {key}", hint="mend the way there")
            if "taken" in key:
                raise LockedError(f"another writes {key}")
            return super().write(key, body, **conditions)

    home, said = tmp_path / "spool", list[str]()
    store = LocalStorage(tmp_path / "kept")
    kept = Archive(Away(store))
    left = {}
    for age, name in enumerate((*order, "whole")):
        _, spool = spooled(kept, made(name), home)
        left[name] = spool.path
        os.utime(spool.path / "spool.json", (age, age))
    (left["damaged"] / "commit.json").write_text('{"version": 1, "invo')

    where = Where(kept, {}, tmp_path, said.append, spool=home)
    for worst, error in (("damaged", DamagedError), ("taken", LockedError), ("away", StorageError)):
        with pytest.raises(error, match=f"still wait in {home}: ") as caught:
            resume_spools(where, None)
        assert worst in caught.value.message or str(left[worst]) in caught.value.message
        assert caught.value.next_step
        assert statuses(store) == {"whole": "success"}
        assert all(
            any(str(path) in line for line in said) for path in left.values() if path.exists()
        )
        shutil.rmtree(left[worst])
    assert resume_spools(where, None) == f"nothing waits in {home}"


def test_an_invocation_archived_before_is_said_to_be(tmp_path: Path) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "dbt_recover.cli", "--archive", str(tmp_path / "kept")]
        argv += ["archive", "--target-dir", str(ARTIFACTS / "good"), *words]
        return subprocess.run(argv, capture_output=True, text=True, check=True)

    assert run("--run-id", "a").stdout == "archived as run a\n"
    for again in (run("--run-id", "a"), run()):
        assert (again.stdout, again.stderr) == ("already archived, in run a\n", "")
    other = run("--run-id", "b")
    assert other.stdout == "already archived, in run a\n"
    assert "nothing was added to run b" in other.stderr
    assert statuses(LocalStorage(tmp_path / "kept")) == {"a": "failed"}
