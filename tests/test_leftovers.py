"""`archive`: what waits on this machine, and what is archived twice."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from archives import Altered, made, spooled
from dbt_recover.archive import Archive
from dbt_recover.context import Identity, Where
from dbt_recover.errors import DamagedError, LockedError, StorageError
from dbt_recover.finished import archive_finished
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


def test_of_several_that_archive_the_same_one_does(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "dbt_recover", "--archive", str(tmp_path / "kept")]
    argv += ["archive", "--target-dir", str(ARTIFACTS / "good"), "--run-id"]
    at_work = [
        subprocess.Popen(
            [*argv, f"r{n}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for n in range(4)
    ]
    ended = [process.communicate() for process in at_work]
    assert [process.returncode for process in at_work] == [0] * 4, ended
    ((run_id, status),) = statuses(LocalStorage(tmp_path / "kept")).items()
    assert status == "failed"
    said = sorted(out for out, _ in ended)
    assert said == [f"already archived, in run {run_id}\n"] * 3 + [f"archived as run {run_id}\n"]


@pytest.mark.parametrize("reached", ["done", "at work"])
def test_two_that_met_at_the_last_moment(reached: str, tmp_path: Path) -> None:
    """Both saw that nobody had archived it; then the other was first to claim it."""

    class AtWork(Altered):
        """Claims it, and is not done with it while we are at work."""

        def write(self, key: str, body: Any, **conditions: Any) -> str:
            if reached == "at work" and not key.startswith("ids/"):
                raise StorageError(f"not yet: {key}")
            return super().write(key, body, **conditions)

    class Late(Altered):
        """Another archives it between our look and our first write."""

        def write(self, key: str, body: Any, **conditions: Any) -> str:
            if key.startswith("ids/") and not other:
                other.append("begun")
                where = Where(Archive(AtWork(self.inner)), {}, tmp_path, print)
                with suppress(StorageError):
                    other.append(archive_finished(where, ARTIFACTS / "good", Identity("b")).run_id)
            return super().write(key, body, **conditions)

    other: list[str] = []
    kept = Archive(Late(LocalStorage(tmp_path / "kept")))
    where = Where(kept, {}, tmp_path, print)
    done = archive_finished(where, ARTIFACTS / "good", Identity("a"))
    assert other == (["begun", "b"] if reached == "done" else ["begun"])
    assert (done.run_id, done.before) == ("b", reached == "done")
    assert statuses(LocalStorage(tmp_path / "kept")) == {"b": "failed"}


def test_an_invocation_archived_before_is_said_to_be(tmp_path: Path) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "dbt_recover", "--archive", str(tmp_path / "kept")]
        argv += ["archive", "--target-dir", str(ARTIFACTS / "good"), *words]
        return subprocess.run(argv, capture_output=True, text=True, check=True)

    assert run("--run-id", "a").stdout == "archived as run a\n"
    for again in (run("--run-id", "a"), run()):
        assert (again.stdout, again.stderr) == ("already archived, in run a\n", "")
    other = run("--run-id", "b")
    assert other.stdout == "already archived, in run a\n"
    assert "nothing was added to run b" in other.stderr
    assert statuses(LocalStorage(tmp_path / "kept")) == {"a": "failed"}
