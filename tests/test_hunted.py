"""Ways to break the record that a hunt found, each done once for real. Where only the end of dbt
matters, a script stands for it, which costs nothing.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from dbt_recover.archive import HEARTBEAT_LOST_AFTER
from dbt_recover.errors import DamagedError, RefusedError
from projects import (
    DBT_RECOVER,
    LATE,
    MART,
    MART_ID,
    RAW,
    RELAY,
    RELAY_NODES,
    STG,
    STG_ID,
    TOP,
    Checkout,
    Running,
    dbt_of,
    written,
)

slow = pytest.mark.slow

BUILD = ("exec", "--", "dbt", "build")
BEFORE_LATE = frozenset({RAW, STG, STG_ID})
NIGHT, QUOTED = "the night's run", """'the night'"'"'s run'"""
"""A run id, and how it is pasted into a shell."""


@pytest.fixture
def here(tmp_path: Path) -> Checkout:
    """Where the run happens; its archive is beside it, and its temporary files are its own."""
    (tmp_path / "tmp").mkdir()
    return written(tmp_path / "here", RELAY).having(
        DBT_RECOVER_ARCHIVE=tmp_path / "kept/archive", TMPDIR=tmp_path / "tmp"
    )


def archive_of(here: Checkout) -> Path:
    return Path(here.environ["DBT_RECOVER_ARCHIVE"])


def spools(here: Checkout) -> list[Path]:
    return sorted((here.root / ".dbt-recover" / "spool").glob("*"))


def standing_in(here: Checkout, script: str) -> Checkout:
    """With a shell script for a dbt."""
    path = here.home / "standing-in" / "dbt"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return here.having(REAL_DBT=path)


def kept_back(here: Checkout, *words: str) -> Path:
    """The record of an exec that could not reach the archive: a file stood in its way."""
    archive = archive_of(here)
    before = spools(here)
    away = archive.with_name("away")
    archive.parent.mkdir(exist_ok=True)
    if archive.exists():
        archive.rename(away)
    archive.write_text("")
    ran = standing_in(here, "exit 3").recover("exec", *words, "--", "dbt", "build")
    archive.unlink()
    if away.exists():
        away.rename(archive)
    assert (ran.code, "the record is kept in" in ran.err) == (3, True), ran
    (spool,) = set(spools(here)) - set(before)
    return spool


def kill_both(running: Running) -> None:
    """dbt and its recorder, which does not see its dbt end."""
    running.dbt()
    running.signal(signal.SIGSTOP)
    running.signal_dbt(signal.SIGKILL)
    running.signal(signal.SIGKILL)
    running.end()
    running.dbt_ended()


def runs(here: Checkout) -> dict[str, str]:
    """run id -> status."""
    listed = here.recover("runs", "-o", "json")
    assert listed.code == 0, listed
    return {r["run_id"]: r["status"] for r in listed.json["runs"]}


def ends(here: Checkout, run: str = "latest") -> list[str]:
    """How each invocation of a run ended."""
    return [i["end"] for i in here.recover("show", run, "-o", "json").json["invocations"]]


def as_root(*words: str) -> tuple[str, ...]:
    """`unshare` with these words, which end in a script for sh that goes on with its arguments."""
    if os.geteuid() != 0 or not shutil.which("unshare"):
        pytest.skip("needs root and unshare")
    *flags, script = words
    tried = subprocess.run(["unshare", *flags, "true"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"unshare {' '.join(flags)} is not permitted here: {tried.stderr.strip()}")
    return ("unshare", *flags, "sh", "-c", f'{script} && exec "$@"', "sh")


# ---- whose step it is --------------------------------------------------------------------------


@slow
def test_a_task_of_three_commands_that_is_tried_again(here: Checkout) -> None:
    """Each command goes on from what it had left itself; another one is done whole."""
    here = here.having(
        AIRFLOW_CTX_DAG_ID="nightly",
        AIRFLOW_CTX_DAG_RUN_ID="monday",
        AIRFLOW_CTX_TASK_ID="dbt",
        **dbt_of("v2"),
    )

    def tried(number: int, *words: str, fail: str = "") -> tuple[int, list[str]]:
        before = len(here.calls)
        worker = here.having(AIRFLOW_CTX_TRY_NUMBER=number, FAIL=fail)
        ran = worker.recover("exec", "--", "dbt", *words)
        return ran.code, sorted(uid for call in here.calls[before:] for uid in call.executed)

    assert tried(1, "seed") == (0, [RAW])
    code, executed = tried(1, "run", fail="mart")
    assert (code, MART in executed, TOP in executed) == (1, True, False)

    assert tried(2, "seed") == (0, [])
    assert tried(2, "run") == (0, sorted([MART, TOP]))
    assert tried(2, "test") == (0, sorted([STG_ID, MART_ID]))

    assert tried(2, "seed", "--select", "raw") == (0, [RAW])
    assert tried(2, "seed", "--vars", "{day: 1}") == (0, [RAW])
    assert tried(3, "seed", "--vars", '{"day": 1}') == (0, [])
    assert runs(here) == {"nightly/monday": "recovered"}


# ---- settings that nobody typed ----------------------------------------------------------------

_TWO_SCHEMAS = """
relay:
  target: dev
  outputs:
    dev: {type: duckdb, path: "{{ env_var('FIXTURE_DB') }}", schema: development}
    prod: {type: duckdb, path: "{{ env_var('FIXTURE_DB') }}", schema: production}
"""
_TOP_OF_SIDE = """
models:
  - name: top
    columns:
      - name: id
        data_tests: [{relationships: {arguments: {to: ref('side'), field: id}}}]
"""


@slow
def test_settings_of_the_environment_and_of_the_project_are_those_of_the_retry(
    here: Checkout, tmp_path: Path
) -> None:
    """All at once, and dbt is killed: none of them is in its words or in a file that it wrote."""
    (here.root / "profiles.yml").write_text(_TWO_SCHEMAS)
    (here.root / "models/top.yml").write_text(_TOP_OF_SIDE)
    with (here.root / "dbt_project.yml").open("a") as project:
        project.write("flags: {indirect_selection: cautious}\n")
    produced = here.recover("exec", "--", "dbt", "--quiet", "-t", "prod", "build", "-s", "+late")
    assert produced.code == 0, produced
    assert sorted(here.tables()) == [f"warehouse.production.{n}" for n in ("late", "raw", "stg")]
    state = tmp_path / "state"
    state.mkdir()
    shutil.copy(here.root / "target/manifest.json", state)

    settings = here.having(
        DBT_FULL_REFRESH="1",
        DBT_RESOURCE_TYPES="model test",
        DBT_DEFER="true",
        DBT_STATE=state,
        HOLD="mart",
    )
    words = ("exec", "--run-id", NIGHT, "--", "dbt", "build", "--select", "raw", "mart", "top")
    with settings.start(*words) as running:
        running.holds(MART)
        running.signal_dbt(signal.SIGKILL)
        assert running.end().code == 137

    # Not the seed, whose type was left out, and not the test that cautious selection leaves out.
    assert here.plan() == sorted([MART, MART_ID, TOP])
    assert f"next: dbt-recover retry {QUOTED}\n" in here.recover("plan", NIGHT).out
    state.rename(tmp_path / "moved")
    before = len(here.calls)
    refused = here.recover("retry")
    assert (refused.code, len(here.calls)) == (RefusedError.exit_code, before), refused
    assert "--defer-state" in refused.err
    assert str(state) in refused.err

    (tmp_path / "moved").rename(state)
    # What is in the environment now has no say.
    retried = here.having(DBT_RESOURCE_TYPES="seed", DBT_TARGET="prod").recover("retry")
    assert retried.code == 0, retried
    call = here.calls[-1]
    assert call.executed == sorted([MART, MART_ID, TOP])
    assert {"--full-refresh", "--defer"} <= set(call.argv)
    assert call.value("--defer-state") == str(state)
    # `late` is in production alone.
    built = {n for n in here.tables() if ".development." in n}
    assert built == {"warehouse.development.mart", "warehouse.development.top"}


@slow
def test_a_selection_that_a_script_adds(here: Checkout) -> None:
    """It is in no words and no setting; but dbt says how many nodes it has selected."""
    script = here.root / "dbt_of_ours"
    script.write_text('#!/bin/sh\nexec dbt "$@" --exclude top side\n')
    script.chmod(0o755)
    with here.having(HOLD="late").start("exec", "--", "./dbt_of_ours", "build") as running:
        running.holds(LATE)
        running.signal_dbt(signal.SIGKILL)
        assert running.end().code == 137
    planned = here.recover("plan", "-o", "json").json
    assert {n["unique_id"] for n in planned["nodes"]} == {LATE}
    assert "cannot be told" in planned["warnings"][0]["message"]
    refused = here.recover("retry")
    assert (refused.code, "ls" in here.calls[-1].argv) == (RefusedError.exit_code, True), refused
    assert "cannot be told" in refused.err


# ---- records that wait -------------------------------------------------------------------------


@slow
def test_a_command_that_was_killed_before_dbt_said_a_word(here: Checkout) -> None:
    nightly = ("exec", "--run-id", "nightly", "--", "dbt")
    assert here.recover(*nightly, "seed").code == 0
    silent = standing_in(here, "exec sleep 300")
    with silent.start(*nightly, "run", "--select", "stg") as running:
        kill_both(running)
    assert runs(here) == {"nightly": "success"}, "nobody can know yet"

    delivered = here.recover("archive", "--resume")
    assert (delivered.code, spools(here)) == (0, []), delivered
    assert "run nightly" in delivered.out
    assert runs(here) == {"nightly": "failed"}
    shown = here.recover("show", "nightly", "-o", "json").json
    assert shown["run"]["status"] == "failed"
    assert [i["end"] for i in shown["invocations"]] == ["exit", "lost"]
    assert shown["counts"]["success"] == 1
    assert here.plan("nightly") == [STG]


@slow
def test_a_damaged_record_stops_neither_the_others_nor_dbt(here: Checkout) -> None:
    with here.having(HOLD="late").start(*BUILD) as running:
        running.holds(LATE)
        (killed,) = spools(here)
        graph = killed / "objects" / "graph.json.zst"
        running.until(graph.exists, "the graph is kept")
        kill_both(running)
    os.truncate(graph, graph.stat().st_size // 2)
    damaged = kept_back(here, "--run-id", "damaged")
    os.truncate(damaged / "commit.json", 40)
    kept_back(here, "--run-id", "whole")

    ran = standing_in(here, "exit 4").recover("exec", "--run-id", "next", "--", "dbt", "build")
    assert ran.code == 4, ran
    assert "Traceback" not in ran.err
    assert str(damaged / "commit.json") in ran.err
    assert spools(here) == [damaged]
    (other,) = runs(here).keys() - {"next", "whole"}
    assert set(runs(here)) == {"next", "whole", other}
    assert set(here.plan(other)) == RELAY_NODES - BEFORE_LATE

    still = here.recover("archive", "--resume")
    assert (still.code, spools(here)) == (DamagedError.exit_code, [damaged]), still
    assert str(damaged / "commit.json") in still.err
    assert "Traceback" not in still.err


def test_three_deliver_at_once(here: Checkout) -> None:
    """Who works on a record holds its lock; the others leave it, and say so."""
    ids = {f"r{number}" for number in range(4)}
    for run_id in sorted(ids):
        kept_back(here, "--run-id", run_id)
    held = spools(here)[0]
    resume = ("archive", "--resume")
    with (held / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with here.start(*resume) as one, here.start(*resume) as two, here.start(*resume) as three:
            ended = [running.end() for running in (one, two, three)]
    assert [ran.code for ran in ended] == [0, 0, 0], ended
    assert not any("Traceback" in ran.err for ran in ended), ended
    assert all("somebody is at work on it" in ran.err for ran in ended), ended
    delivered = [word.strip(" ,\n") for ran in ended for word in ran.out.split("run ")[1:] if word]
    assert len(delivered) == len(set(delivered)) == 3, ended
    assert spools(here) == [held]
    last = here.recover(*resume)
    assert (last.code, spools(here)) == (0, []), last
    assert set(runs(here)) == ids
    assert here.recover("verify").code == 0


def test_a_record_is_delivered_from_another_machine(here: Checkout) -> None:
    """After a reboot, or from another container: what was decided at once, and what was at work
    when it has been silent long enough."""
    another = (*as_root("--uts", "hostname elsewhere"), *DBT_RECOVER, "archive", "--resume")
    kept_back(here, "--run-id", "ended")
    with standing_in(here, "exec sleep 300").start(
        *BUILD[:1], "--run-id", "killed", *BUILD[1:]
    ) as r:
        kill_both(r)
    first = here.run(*another)
    assert (first.code, set(runs(here))) == (0, {"ended"}), first
    (left,) = spools(here)
    assert f"{left} is left: another machine" in first.err

    for path in (left, *(left / "log").iterdir()):
        before = path.stat().st_mtime - HEARTBEAT_LOST_AFTER - 1
        os.utime(path, (before, before))
    second = here.run(*another)
    assert (second.code, spools(here)) == (0, []), second
    assert set(runs(here)) == {"ended", "killed"}


@pytest.mark.parametrize("moment", ["from the beginning", "while dbt runs"])
def test_a_disk_that_is_full(moment: str, here: Checkout, tmp_path: Path) -> None:
    """The journal's disk. dbt goes on and its exit code is the answer."""
    disk = tmp_path / "disk"
    disk.mkdir()
    script = f"mount -t tmpfs -o size=300k tmpfs {disk}"
    fill = "head -c 1000000 /dev/zero"
    if moment == "from the beginning":
        script += f" && ! {fill} > {disk}/full 2> {os.devnull}"
        small = standing_in(here, "exit 7")
    else:
        small = standing_in(here, f'{fill} > "$DBT_LOG_PATH/dbt.log" 2> {os.devnull}; exit 7')
    full = as_root("--mount", script)
    ran = small.run(*full, *DBT_RECOVER, "--spool", disk, *BUILD)
    assert (ran.code, small.calls[0].exit_code) == (7, 7), ran
    assert "Traceback" not in ran.err
    assert "No space left on device" in ran.err
    if moment == "from the beginning":
        assert f"kept in {tmp_path / 'tmp'}" in ran.err
        assert list(runs(here).values()) == ["failed"], "and delivered from there"
    else:
        assert "make room" in ran.err
        assert "dbt-recover plan" in ran.err


@slow
def test_an_archive_that_was_removed_while_dbt_ran(here: Checkout) -> None:
    archive = archive_of(here)
    os.mkfifo(here.home / "gate")
    with here.having(WAIT="late", GATE=here.home / "gate").start(*BUILD) as running:
        running.begun(LATE)
        running.until(lambda: list(archive.rglob("manifest.early.json.zst")), "it is on its way")
        running.until(lambda: list(archive.rglob("journal/*.zst")), "it is on its way")
        shutil.rmtree(archive)
        with (here.home / "gate").open("w") as pipe:
            pipe.write("1\n")
        ran = running.end()
    assert (ran.code, spools(here)) == (0, []), ran
    verified = here.recover("verify")
    assert verified.code == 0, verified
    assert list(runs(here).values()) == ["success"]
    again = here.recover("retry", "-o", "json")
    assert (again.code, again.json["outcome"]) == (0, "already_complete"), again


# ---- signals that were to be ignored -----------------------------------------------------------

_AT_WORK = """\
trap 'exit 9' INT
: > "$GATE.ready"
while [ ! -e "$GATE" ]; do sleep 0.05; done
exit 5"""


def test_under_nohup_a_closed_terminal_stops_nothing(here: Checkout) -> None:
    gate = here.home / "gate"
    at_work = standing_in(here, _AT_WORK).having(GATE=gate)
    with at_work.start(*BUILD, program=("nohup", *DBT_RECOVER)) as running:
        running.until(gate.with_suffix(".ready").exists, "dbt began")
        running.signal_group(signal.SIGHUP)
        running.signal_dbt(signal.SIGHUP)
        # One that is heard is handled within this.
        with pytest.raises(subprocess.TimeoutExpired):
            running.process.wait(0.5)
        gate.touch()
        ran = running.end()
    assert ran.code == 5, ran
    assert ends(here) == ["exit"]


def test_in_the_background_of_a_script_dbt_can_still_cancel(here: Checkout) -> None:
    """`dbt-recover exec ... &` in a script: SIGINT is ignored, and is what dbt is stopped with."""
    gate = here.home / "gate"
    at_work = standing_in(here, _AT_WORK).having(GATE=gate)
    background = ("sh", "-c", 'trap "" INT; exec "$@"', "sh", *DBT_RECOVER)
    with at_work.start(*BUILD, program=background) as running:
        running.until(gate.with_suffix(".ready").exists, "dbt began")
        running.signal(signal.SIGTERM)
        ran = running.end()
    assert ran.code == 9, ran
    assert ends(here) == ["interrupted"]


# ---- what is said ------------------------------------------------------------------------------


@slow
def test_a_broken_project_and_a_run_id_with_blanks(here: Checkout) -> None:
    project = here.root / "dbt_project.yml"
    whole = project.read_text()
    project.write_text("name: relay\nversion: '1.0\nprofile: [relay\n")
    broken = here.recover("exec", "--run-id", NIGHT, "--", "dbt", "build")
    assert broken.code == 2, broken
    assert "nothing to run again as far as is known\n" in here.recover("plan", NIGHT).out
    assert f"next: dbt-recover plan {QUOTED}\n" in here.recover("show", NIGHT).out

    project.write_text(whole)
    done = here.recover("retry", NIGHT)
    assert (done.code, here.calls[-1].executed) == (0, sorted(RELAY_NODES)), done
    assert "recovered by attempt 2" in done.out + done.err
    assert "own target" not in done.out + done.err
