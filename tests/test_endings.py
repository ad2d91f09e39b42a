"""Each way a run can end, really done to a real dbt under `exec`; then a retry from another checkout
that knows nothing but the archive's URL. Nothing that had succeeded runs again, and the tables are
those of a clean build. And what `dbt retry` makes of the same situation.

dbt is stopped at moments that it tells itself: models hold until they are let go, or for ever.
"""

from __future__ import annotations

import json
import os
import pty
import random
import re
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
import zstandard

from conftest import fresh_bucket
from dbt_recover.errors import (
    EXIT_INTERRUPTED,
    EXIT_STILL_FAILING,
    EXIT_TERMINATED,
    LockedError,
    RefusedError,
    StorageError,
)
from projects import (
    DBT_RECOVER,
    LATE,
    MART,
    MART_ID,
    RAW,
    REAL_DBT,
    RELAY,
    RELAY_NODES,
    SIDE,
    STG,
    STG_ID,
    TOP,
    Checkout,
    Running,
    Table,
    relay_model,
    written,
)
from servers import Fault, S3Server, proxy_to, xml_error

slow = pytest.mark.slow

BUILD = ("exec", "--", "dbt", "build")
BEFORE_LATE = frozenset({RAW, STG, STG_ID})


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Table]:
    """The tables of a build that nothing disturbed."""
    home = tmp_path_factory.mktemp("clean")
    return written(home / "here", RELAY).clean_build(home / "clean")


@pytest.fixture
def here(tmp_path: Path) -> Checkout:
    """Where the run happens; the archive is neither in the project nor beside it."""
    return written(tmp_path / "here", RELAY).having(DBT_RECOVER_ARCHIVE=tmp_path / "kept/archive")


def elsewhere(here: Checkout, name: str = "laptop") -> Checkout:
    """A checkout on another day, with nothing but the project and the URL."""
    return here.elsewhere(here.home.with_name(name))


def recover(laptop: Checkout, left: set[str] | frozenset[str], *flags: object) -> None:
    """Retry: exactly `left` is executed, by dbt's own word, and then the run is whole."""
    retried = laptop.recover("retry", "-o", "json", *flags)
    assert retried.code == 0, retried
    assert retried.json["outcome"] == "recovered"
    executed = sorted(uid for call in laptop.calls for uid in call.executed)
    assert executed == sorted(left)
    assert sorted(retried.json["executed"]) == executed
    is_complete(laptop)


def is_complete(laptop: Checkout) -> None:
    """A further retry finds nothing to do, and does not start dbt."""
    before = len(laptop.calls)
    again = laptop.recover("retry", "-o", "json")
    assert (again.code, again.json["outcome"]) == (0, "already_complete"), again
    assert len(laptop.calls) == before


def invocations(checkout: Checkout, run: str = "latest") -> list[dict[str, object]]:
    """Of `show`."""
    shown: list[dict[str, object]] = checkout.recover("show", run, "-o", "json").json["invocations"]
    return shown


def spools(checkout: Checkout) -> list[Path]:
    """Records that wait in the project."""
    return sorted((checkout.root / ".dbt-recover" / "spool").glob("*"))


def journal(archive: Path) -> bytes:
    """All journal segments that have reached an archive."""
    unpack = zstandard.ZstdDecompressor().decompress
    return b"".join(unpack(p.read_bytes()) for p in sorted(archive.rglob("journal/*.jsonl.zst")))


def finished(data: bytes) -> set[str]:
    """The nodes whose end a journal tells."""
    records = map(json.loads, data.splitlines())
    return {r["node"] for r in records if r["event"] == "finish"}


def let_go(gate: Path) -> None:
    """Write what a model waits for."""
    with gate.open("w") as pipe:
        pipe.write("1\n")


def archive_of(checkout: Checkout) -> Path:
    """Of a checkout of `here`: a directory."""
    return Path(checkout.environ["DBT_RECOVER_ARCHIVE"])


# ---- exit 0, 1 and 2 ---------------------------------------------------------------------------


def test_dbt_that_ends_well(here: Checkout) -> None:
    ran = here.recover(*BUILD)
    assert (ran.code, here.calls[0].exit_code) == (0, 0), ran
    assert [r["status"] for r in here.recover("runs", "-o", "json").json["runs"]] == ["success"]
    is_complete(elsewhere(here))
    assert spools(here) == []


def test_dbt_that_ends_with_failed_nodes(here: Checkout, clean: dict[str, Table]) -> None:
    ran = here.having(FAIL="mart").recover(*BUILD)
    assert (ran.code, here.calls[0].exit_code) == (1, 1), ran
    laptop = elsewhere(here)
    recover(laptop, {MART, MART_ID, TOP})
    assert laptop.tables() == clean


# ---- interrupted, terminated, killed -----------------------------------------------------------

End = Callable[[Running], None]


def _kill_both(running: Running) -> None:
    running.signal(signal.SIGSTOP)  # so that it does not see its dbt end
    running.signal_dbt(signal.SIGKILL)
    running.signal(signal.SIGKILL)


WAYS: Mapping[str, tuple[End, int, str]] = {
    # name: (what is done, exit code of exec, `end` in show)
    "SIGTERM to dbt-recover": (lambda r: r.signal(signal.SIGTERM), 2, "interrupted"),
    "SIGTERM to the group": (lambda r: r.signal_group(signal.SIGTERM), 2, "interrupted"),
    "SIGINT to dbt": (lambda r: r.signal_dbt(signal.SIGINT), 2, "exit"),
    "SIGTERM to dbt": (lambda r: r.signal_dbt(signal.SIGTERM), 143, "killed"),
    "SIGKILL to dbt": (lambda r: r.signal_dbt(signal.SIGKILL), 137, "killed"),
    "SIGKILL to dbt-recover": (lambda r: r.signal(signal.SIGKILL), -9, "lost"),
    "SIGKILL to both": (_kill_both, -9, "lost"),
}


@slow
@pytest.mark.parametrize("way", WAYS)
def test_a_run_that_was_stopped_in_a_node(
    way: str, here: Checkout, clean: dict[str, Table]
) -> None:
    end, code, ended = WAYS[way]
    with here.having(HOLD="late").start(*BUILD) as running:
        running.holds(LATE)
        kept = archive_of(here)
        # What the machine alone knows is lost with it: up to the last seconds.
        running.until(lambda: STG_ID in finished(journal(kept)), "the journal reached the archive")
        end(running)
        ran = running.end()
        running.dbt_ended()
        assert running.succeeded() == BEFORE_LATE
        log = b"".join(running.lines())
    assert ran.code == code, ran
    if code == 2 or way == "SIGKILL to dbt-recover":
        assert b"keyboard interrupt" in log.lower(), "dbt could not cancel its queries"
    if code > 0:
        # Archived before it left.
        assert "recorded as run" in ran.err
        assert spools(here) == []
    (first,) = invocations(here)
    assert first["end"] == ended

    shown = here.recover("show", "-o", "json").json
    # A dbt that could still speak says that its query was interrupted.
    failed = [n["unique_id"] for n in shown["failed"] if "Interrupted" in n["message"]]
    assert (shown["in_flight"] + failed, shown["run"]["status"]) == ([LATE], "failed")
    assert set(shown["never_started"]) == {SIDE, MART, MART_ID, TOP}

    laptop = elsewhere(here)
    recover(laptop, RELAY_NODES - BEFORE_LATE)
    assert laptop.tables() == clean

    if way == "SIGKILL to dbt-recover":
        # Its spool is delivered when all is over, and changes nothing.
        assert len(spools(here)) == 1
        delivered = here.recover("archive", "--resume")
        assert (delivered.code, spools(here)) == (0, []), delivered
        is_complete(laptop)


@contextmanager
def terminal() -> Iterator[tuple[int, int, list[bytes]]]:
    """Both ends of a terminal, and what was shown on it so far."""
    master, slave = pty.openpty()
    shown: list[bytes] = []

    def read() -> None:
        try:
            while data := os.read(master, 65536):
                shown.append(data)
        except OSError:
            return  # nobody has it open any more

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield master, slave, shown
    finally:
        os.close(slave)
        reader.join()
        os.close(master)


def test_ctrl_c_in_a_terminal(here: Checkout, clean: dict[str, Table]) -> None:
    with (
        terminal() as (master, slave, shown),
        here.having(HOLD="late").start(*BUILD, tty=slave) as running,
    ):
        running.holds(LATE)
        os.write(master, b"\x03")
        ran = running.end()
        assert running.succeeded() == BEFORE_LATE
    screen = b"".join(shown).decode()
    assert ran.code == 2, screen
    assert "CANCEL" in screen, "dbt did not see it"
    assert "dbt_recover/" not in screen, "a traceback of ours"
    assert invocations(here)[0]["end"] == "interrupted"

    # What dbt itself leaves: it says that there is nothing to do, and half of it is missing.
    alone = here.dbt("retry")
    assert (alone.code, here.calls[-1].executed) == (0, [])
    assert "Nothing to do" in alone.out
    assert not any(name.endswith(".mart") for name in here.tables())

    laptop = elsewhere(here)
    recover(laptop, RELAY_NODES - BEFORE_LATE)
    assert laptop.tables() == clean


def test_dbt_retry_after_a_kill(here: Checkout) -> None:
    """It has nothing to go on from: no file, or the last run's, which says that all is well."""
    with here.having(HOLD="late").start(*BUILD) as running:
        running.holds(LATE)
        running.signal_dbt(signal.SIGKILL)
        assert running.end().code == 137
    missing = here.dbt("retry")
    assert missing.code == 2
    assert "Could not find previous run" in missing.out
    assert len(here.plan()) == len(RELAY_NODES - BEFORE_LATE)


def test_the_second_signal_kills(here: Checkout) -> None:
    """dbt waits where no interrupt reaches it: for a pipe that nobody writes to."""
    os.mkfifo(here.home / "gate")
    held = here.having(WAIT="late", GATE=here.home / "gate")
    with held.start(*BUILD) as running:
        running.begun(LATE)
        running.signal(signal.SIGTERM)
        running.until(
            lambda: (
                b"keyboard interrupt" in b"".join(running.lines()).lower()
                or b"CANCEL" in b"".join(running.lines())
            ),
            "dbt was interrupted",
        )
        assert running.ran().code == 999
        running.signal(signal.SIGTERM)
        assert running.end().code == 137
        assert running.succeeded() == BEFORE_LATE
    assert invocations(here)[0]["end"] == "killed"
    assert set(here.plan()) == RELAY_NODES - BEFORE_LATE


def test_a_signal_while_the_record_is_on_its_way(here: Checkout, moto: S3Server) -> None:
    """Eviction comes when it likes: dbt has ended, the commit has not been written yet."""
    bucket = fresh_bucket(moto)
    with proxy_to(moto) as proxy:
        s3 = here.having(
            **moto.environment() | {"AWS_ENDPOINT_URL": proxy.endpoint_url},
            DBT_RECOVER_ARCHIVE=bucket.url,
        )
        with s3.start(*BUILD, "--select", "raw") as running:

            def evict() -> None:
                if "/results.json" in proxy.seen[-1]:
                    running.signal_group(signal.SIGTERM)

            proxy.faults.append(Fault("PUT", times=1_000_000, then=evict))
            running.begun(RAW)
            ran = running.end()
            assert running.succeeded() == {RAW}
        shown = s3.recover("show", "-o", "json")
    assert shown.code == 0, (ran, shown)
    assert shown.json["invocations"][0]["end"] == "exit", (ran, spools(here))
    assert (ran.code, spools(here)) == (0, []), ran


def test_a_signal_when_dbt_has_just_ended(here: Checkout) -> None:
    """dbt did all it was to do and said so; nothing was interrupted."""
    with here.start(*BUILD, "--select", "raw") as running:
        running.begun(RAW)
        running.signal(signal.SIGSTOP)
        running.dbt_ended()
        running.signal(signal.SIGTERM)
        running.signal(signal.SIGCONT)
        ran = running.end()
    assert ran.code == 0, ran
    (run,) = here.recover("runs", "-o", "json").json["runs"]
    assert run["status"] == "success"
    assert invocations(here)[0]["end"] == "exit"


def test_a_machine_that_is_gone(here: Checkout, clean: dict[str, Table]) -> None:
    """Not even its disk is left. To other machines it may be at work for a minute yet."""
    with here.having(HOLD="mart").start(*BUILD) as running:
        running.holds(MART)
        done = running.succeeded()
        kept = archive_of(here)
        running.until(lambda: done <= finished(journal(kept)), "the archive knows")
        _kill_both(running)
        running.end()
    for name in (".dbt-recover", "target", "logs"):
        shutil.rmtree(here.root / name, ignore_errors=True)

    laptop = elsewhere(here)
    if os.geteuid() == 0 and shutil.which("unshare"):
        other = ("unshare", "--uts", "sh", "-c", 'hostname elsewhere && exec "$@"', "sh")
        waits = laptop.run(*other, *DBT_RECOVER, "retry")
        assert waits.code == LockedError.exit_code, waits
        assert socket.gethostname() in waits.err
    recover(laptop, RELAY_NODES - done)
    assert laptop.tables() == clean


def test_a_try_waits_until_a_lost_worker_is_known_to_be_lost(
    here: Checkout, clean: dict[str, Table]
) -> None:
    """Airflow starts the next try at once, on another machine: there the last heartbeat is young,
    and the try is not used up by that."""
    if os.geteuid() != 0 or not shutil.which("unshare"):
        pytest.skip("another host name needs root and unshare")
    again = ("exec", "--run-id", "nightly", "--resume", "--", "dbt", "build")
    with here.having(HOLD="mart").start(*again) as running:
        running.holds(MART)
        done = running.succeeded()
        kept = archive_of(here)
        running.until(lambda: done <= finished(journal(kept)), "the archive knows")
        _kill_both(running)
        running.end()
    (beat,) = (p for p in (kept / "live").rglob("*") if p.is_file())
    before = beat.stat().st_mtime - 50
    os.utime(beat, (before, before))
    worker = elsewhere(here)
    other = ("unshare", "--uts", "sh", "-c", 'hostname elsewhere && exec "$@"', "sh")
    ran = worker.run(*other, *DBT_RECOVER, *again)
    assert ran.code == 0, ran
    assert "waiting to see" in ran.err
    assert sorted(uid for call in worker.calls for uid in call.executed) == sorted(
        RELAY_NODES - done
    )
    assert worker.tables() == clean


# ---- at any moment -----------------------------------------------------------------------------


@slow
@pytest.mark.parametrize("seed", range(6))
def test_a_run_that_was_stopped_anywhere(
    seed: int, here: Checkout, clean: dict[str, Table]
) -> None:
    """dbt is frozen after some number of lines of its log: before its first node, in a node,
    between nodes, at its end. Then it is killed, alone or with its recorder."""
    chance = random.Random(seed)
    if seed == 0:
        after = 1
    elif seed == 1:
        after = None  # at its end
    else:
        after = chance.randrange(10, 120)
    both = bool(seed % 2)
    kept = archive_of(here)
    with here.start(*BUILD) as running:

        def reached() -> bool:
            lines = running.lines()
            if after is None:
                return any(b"CommandCompleted" in line for line in lines)
            return len(lines) >= after

        running.until(reached, f"line {after}")
        running.signal_dbt(signal.SIGSTOP)
        done = running.succeeded()
        running.until(
            lambda: b'"invocation"' in journal(kept) and done <= finished(journal(kept)),
            "the archive knows",
        )
        if both:
            _kill_both(running)
        else:
            running.signal_dbt(signal.SIGKILL)
        running.end()
        assert running.succeeded() == done
    laptop = elsewhere(here)
    if done == RELAY_NODES:
        is_complete(laptop)
    else:
        recover(laptop, RELAY_NODES - done)
    assert laptop.tables() == clean
    (run,) = laptop.recover("runs", "-o", "json").json["runs"]
    assert run["status"] != "failed"


@pytest.mark.parametrize("moment", ["before", "in"])
def test_a_kill_at_the_last_hook(moment: str, tmp_path: Path, clean: dict[str, Table]) -> None:
    """Every node is done; what the hook does at the end is not. That is said, and is no reason to
    run any node again."""
    project = RELAY["dbt_project.yml"] + "on-run-end: \"select {{ hold('end') }}\"\n"
    here = written(tmp_path / "here", {**RELAY, "dbt_project.yml": project})
    here = here.having(DBT_RECOVER_ARCHIVE=tmp_path / "kept/archive")
    with here.having(HOLD="end").start(*BUILD) as running:
        if moment == "in":
            hook = b'"LogHookStartLine"'
            running.until(lambda: any(hook in line for line in running.lines()), "the hook began")
        else:
            running.until(lambda: running.succeeded() == RELAY_NODES, "the last node ended")
        assert running.succeeded() == RELAY_NODES
        running.signal_dbt(signal.SIGKILL)
        assert running.end().code == 137
    laptop = elsewhere(here)
    assert laptop.plan() == []
    told = laptop.recover("retry")
    assert (told.code, laptop.calls) == (RefusedError.exit_code, []), told
    assert "hook" in told.err
    # What to paste is no retry, wherever one looks.
    (run,) = laptop.recover("runs", "-o", "json").json["runs"]
    line = f"dbt-recover exec --run-id {run['run_id']} -- dbt build"
    assert line in told.err
    assert laptop.recover("plan").out.splitlines()[-1] == f"next: {line}"
    assert laptop.recover("notify").out.splitlines()[-1] == line
    assert laptop.tables() == clean


# ---- retries that end in the same ways ---------------------------------------------------------


@slow
def test_attempts_chain(here: Checkout, clean: dict[str, Table]) -> None:
    """Failed, failed again, killed, terminated, recovered; each attempt on another machine."""
    assert here.having(FAIL="late").recover(*BUILD).code == 1
    built = {RAW, STG, STG_ID, SIDE}

    second = elsewhere(here, "second").having(FAIL="mart")
    failing = second.recover("retry", "-o", "json")
    assert (failing.code, failing.json["outcome"]) == (EXIT_STILL_FAILING, "failing"), failing
    assert [n["unique_id"] for n in failing.json["still_failing"]] == [MART]
    assert set(second.calls[0].executed) == {LATE, MART}
    built |= {LATE}

    third = elsewhere(here, "third").having(HOLD="top")
    with third.start("retry") as running:
        running.holds(TOP)
        kept = archive_of(here)
        running.until(lambda: b'"event":"start"' in journal(kept), "the archive knows")
        running.until(
            lambda: MART_ID in finished(_latest_journal(kept)), "the archive knows of the test"
        )
        _kill_both(running)
        running.end()
        assert running.succeeded() == {MART, MART_ID}
        assert {uid for kind, uid, _ in running.events() if kind == "start"}.isdisjoint(built)

    fourth = elsewhere(here, "fourth").having(HOLD="top")
    with fourth.start("retry", "-o", "json") as running:
        running.holds(TOP)
        running.signal_group(signal.SIGTERM)
        ran = running.end()
        assert {uid for _, uid, _ in running.events()} == {TOP}
    assert (ran.code, ran.json["outcome"]) == (EXIT_TERMINATED, "interrupted"), ran

    fifth = elsewhere(here, "fifth")
    recover(fifth, {TOP})
    assert fifth.tables() == clean
    assert [i["attempt"] for i in invocations(fifth)] == [1, 2, 3, 4, 5]
    assert [i["end"] for i in invocations(fifth)] == ["exit", "exit", "lost", "interrupted", "exit"]
    (run,) = fifth.recover("runs", "-o", "json").json["runs"]
    assert (run["status"], run["attempts"]) == ("recovered", 5)


def _latest_journal(archive: Path) -> bytes:
    """The journal of the invocation that began last."""
    begun = max(archive.rglob("begun.json"), key=lambda p: p.stat().st_mtime)
    (data,) = archive.glob(f"data/*/*/{begun.parent.name}")
    return journal(data)


def test_a_retry_interrupted_in_a_terminal(here: Checkout) -> None:
    assert here.having(FAIL="late").recover(*BUILD).code == 1
    laptop = elsewhere(here)
    with (
        terminal() as (master, slave, shown),
        laptop.having(HOLD="mart").start("retry", tty=slave) as running,
    ):
        running.holds(MART)
        os.write(master, b"\x03")
        ran = running.end()
    screen = b"".join(shown).decode()
    assert ran.code == EXIT_INTERRUPTED, screen
    assert "dbt_recover/" not in screen, "a traceback of ours"
    assert "retry" in screen.splitlines()[-1], "nobody is told how to go on"
    assert set(laptop.plan()) == {MART, MART_ID, TOP}


# ---- an archive out of reach -------------------------------------------------------------------


@contextmanager
def out_of_reach(archive: Path) -> Iterator[None]:
    """A file stands where the way to the archive was: permissions do not stop root."""
    way = archive.parent
    way.mkdir(exist_ok=True)
    away = way.with_name(way.name + "-away")
    way.rename(away)
    way.write_text("")
    try:
        yield
    finally:
        way.unlink()
        away.rename(way)


@slow
@pytest.mark.parametrize("deliver", ["archive --resume", "the next exec", "retry"])
def test_an_archive_that_stays_out_of_reach(
    deliver: str, here: Checkout, clean: dict[str, Table]
) -> None:
    with out_of_reach(archive_of(here)):
        ran = here.having(FAIL="mart").recover(*BUILD)
        assert (ran.code, here.calls[0].exit_code) == (1, 1), ran
        (spool,) = spools(here)
        assert "archive cannot be written" in ran.err
        assert str(spool) in ran.err
        assert "archive --resume" in ran.err
        if deliver == "archive --resume":
            still = here.recover("archive", "--resume")
            assert still.code == StorageError.exit_code, still
            assert str(spool) in still.err
            assert "nothing waits" not in still.out
    if deliver == "archive --resume":
        done = here.recover("archive", "--resume")
        assert done.code == 0, done
        assert "delivered: run" in done.out
    elif deliver == "the next exec":
        assert here.recover(*BUILD, "--select", "raw").code == 0
        assert len(here.recover("runs", "-o", "json").json["runs"]) == 2
    else:
        retried = here.recover("retry", "-o", "json")
        assert retried.code == 0, retried
        assert sorted(here.calls[-1].executed) == sorted({MART, MART_ID, TOP})
        assert here.tables() == clean
        return
    assert spools(here) == []
    laptop = elsewhere(here)
    recover(laptop, {MART, MART_ID, TOP})
    assert laptop.tables() == clean


def test_an_archive_out_of_reach_for_a_while(here: Checkout, moto: S3Server) -> None:
    """In the middle of the run every request fails; then they are answered again."""
    bucket = fresh_bucket(moto)
    os.mkfifo(here.home / "gate")
    with proxy_to(moto) as proxy:
        s3 = here.having(
            **moto.environment() | {"AWS_ENDPOINT_URL": proxy.endpoint_url},
            DBT_RECOVER_ARCHIVE=bucket.url,
            DBT_RECOVER_S3_MAX_ATTEMPTS=1,
            WAIT="mart",
            GATE=here.home / "gate",
        )
        down = [
            Fault(method, times=1_000_000, answer=xml_error(503, "ServiceUnavailable"))
            for method in ("PUT", "GET", "HEAD")
        ]
        with s3.start(*BUILD) as running:
            running.until(lambda: any("begun.json" in s for s in proxy.seen), "it began")
            proxy.faults += down
            running.begun(MART)
            running.until(lambda: sum(f.times for f in down) < 2_999_999, "requests failed")
            proxy.faults.clear()
            let_go(here.home / "gate")
            ran = running.end()
            assert running.succeeded() == RELAY_NODES
        assert ran.code == 0, ran
        assert "cannot be written" not in ran.err
        assert spools(here) == []
        (run,) = s3.recover("runs", "-o", "json").json["runs"]
        assert (run["status"], run["total"]) == ("success", len(RELAY_NODES))


def test_a_store_that_never_answers_holds_nobody_up(here: Checkout) -> None:
    """It takes connections and says nothing. SIGTERM comes: it leaves before SIGKILL does."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)
        s3 = here.having(
            AWS_ENDPOINT_URL=f"http://127.0.0.1:{silent.getsockname()[1]}",
            DBT_RECOVER_ARCHIVE="s3://bucket/archive",
            HOLD="late",
        )
        with s3.start(*BUILD) as running:
            running.holds(LATE)
            running.signal_group(signal.SIGTERM)
            ran = running.end()
    assert ran.code == 2, ran
    assert "the record is kept in" in ran.err
    assert len(spools(here)) == 1


# ---- files of other runs -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def built_once(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    made = written(tmp_path_factory.mktemp("built") / "here", RELAY)
    assert made.recover(*BUILD).code == 0
    return made


@pytest.fixture
def built(built_once: Checkout, tmp_path: Path) -> Checkout:
    """A run has succeeded here and left its files; the archive is the project's own."""
    return built_once.copied(tmp_path / "here")


BROKEN = {
    "models/schema.yml": "version: 2\nmodels: [{name: stg, columns: [{\n",
    "models/marts/mart.sql": "select {{ ref('late' }} oops\n",
    "profiles.yml": "relay: {target: dev, outputs: {}}\n",
    "dbt_project.yml": "name: relay\nversion: '1.0\nprofile: [relay\n",
}


@slow
@pytest.mark.parametrize("name", BROKEN)
def test_dbt_that_dies_before_its_first_node(
    name: str, built: Checkout, clean: dict[str, Table]
) -> None:
    """The files of the last run are not taken for this one's; once the cause is mended, all of the
    command is left to do."""
    whole = (built.root / name).read_text()
    (built.root / name).write_text(BROKEN[name])
    ran = built.recover(*BUILD)
    assert (ran.code, len(built.calls)) == (2, 2), ran
    assert built.run_results() == dict.fromkeys(RELAY_NODES - {STG_ID, MART_ID}, "success") | {
        STG_ID: "pass",
        MART_ID: "pass",
    }
    shown = built.recover("show", "-o", "json").json
    assert shown["run"]["status"] == "failed"
    assert shown["counts"].get("success") is None, "the last run's results"

    (built.root / name).write_text(whole)
    laptop = elsewhere(built).having(DBT_RECOVER_ARCHIVE=built.root / ".dbt-recover")
    recover(laptop, RELAY_NODES)
    assert laptop.tables() == clean


def test_a_mended_parse_error_that_is_not_mended(built: Checkout) -> None:
    """plan does not start dbt and says what it does not know; retry fails as dbt does."""
    (built.root / "models/schema.yml").write_text(BROKEN["models/schema.yml"])
    assert built.recover(*BUILD).code == 2
    planned = built.recover("plan", "-o", "json")
    assert planned.code == 0, planned
    assert planned.json["nodes"] == []
    assert planned.json["warnings"], "an empty plan of a failed run, and no word why"
    retried = built.recover("retry")
    assert retried.code == 15, retried
    assert "could not parse" in retried.err
    assert "Traceback" not in retried.err


@pytest.mark.parametrize("left", ["an older run's", "empty", "cut short"])
def test_run_results_that_a_kill_left(left: str, built: Checkout) -> None:
    results = built.root / "target/run_results.json"
    if left != "an older run's":
        older = results.read_bytes()
    with built.having(HOLD="late").start(*BUILD) as running:
        running.holds(LATE)
        if left == "empty":
            results.write_bytes(b"")
        elif left == "cut short":
            results.write_bytes(older[: len(older) // 2])
        running.signal_dbt(signal.SIGKILL)
        assert running.end().code == 137
        assert running.succeeded() == BEFORE_LATE
    assert set(built.plan()) == RELAY_NODES - BEFORE_LATE
    if left == "an older run's":
        # dbt itself takes it for this one's.
        alone = built.elsewhere(built.home.with_name("alone"))
        shutil.copytree(built.root / "target", alone.root / "target")
        told = alone.dbt("retry")
        assert (told.code, alone.calls[0].executed) == (0, [])
        assert "Nothing to do" in told.out
    fetched = built.recover("fetch", "--to", built.home / "state")
    assert fetched.code == 0, fetched
    state = json.loads((built.home / "state/run_results.json").read_text())
    good = {r["unique_id"] for r in state["results"] if r["status"] in ("success", "pass")}
    assert good == BEFORE_LATE


def test_archive_of_files_of_a_killed_dbt(built: Checkout) -> None:
    """Without exec: dbt was killed in its second run, and the first one's results are still there."""
    before = built.recover("runs", "-o", "json").json["runs"]
    ran = built.recover("archive")
    assert ran.code == 0, ran
    assert "already archived" in ran.out
    assert built.recover("runs", "-o", "json").json["runs"] == before
    (built.root / "target/run_results.json").write_bytes(b"")
    empty = built.recover("archive")
    assert empty.code == 13, empty
    assert "run_results.json" in empty.err


# ---- dbt's own flags ---------------------------------------------------------------------------


def test_fail_fast_and_killed(here: Checkout) -> None:
    with here.having(HOLD="late").start(*BUILD, "--fail-fast") as running:
        running.holds(LATE)
        running.signal_dbt(signal.SIGKILL)
        assert running.end().code == 137
    laptop = elsewhere(here)
    recover(laptop, RELAY_NODES - BEFORE_LATE)
    assert "--fail-fast" in laptop.calls[0].argv


def test_fail_fast_with_a_node_in_flight(here: Checkout, clean: dict[str, Table]) -> None:
    """A node fails while another one is at work: dbt waits for it and lets it commit."""
    os.mkfifo(here.home / "gate")
    both = here.having(THREADS=2, FAIL="side", WAIT="late", GATE=here.home / "gate")
    with both.start(*BUILD, "--fail-fast") as running:
        running.begun(LATE)
        running.until(lambda: ("finish", SIDE, "error") in running.events(), "side failed")
        let_go(here.home / "gate")
        ran = running.end()
        assert running.succeeded() == BEFORE_LATE | {LATE}
    assert ran.code == 1, ran
    laptop = elsewhere(here)
    recover(laptop, {SIDE, MART, MART_ID, TOP})
    assert laptop.tables() == clean


@pytest.mark.parametrize("fails", [False, True])
def test_dbt_that_writes_no_json(fails: bool, here: Checkout) -> None:
    """Nothing is left but the journal; it is enough."""
    ran = here.having(FAIL="mart" if fails else "").recover(
        "exec", "--", "dbt", "--no-write-json", "build"
    )
    assert (ran.code, here.calls[0].exit_code) == (int(fails), int(fails)), ran
    assert not (here.root / "target/run_results.json").exists()
    (run,) = here.recover("runs", "-o", "json").json["runs"]
    assert run["status"] == ("failed" if fails else "success")
    laptop = elsewhere(here)
    if fails:
        recover(laptop, {MART, MART_ID, TOP})
    else:
        is_complete(laptop)


def test_other_places_and_forms(here: Checkout) -> None:
    """The user's own --target-path, --log-path and --log-format-file are obeyed, from outside of
    the project, too."""
    command = ("--log-path", "my/logs", "--log-format-file", "json", "build")
    where = ("--project-dir", here.root, "--profiles-dir", here.root, "--target-path", "my/target")
    argv = (*DBT_RECOVER, "exec", "--", "dbt", *command, *where)
    ran = here.run("env", "-C", here.home, *argv)
    assert ran.code == 0, ran
    assert here.run_results("my/target").keys() == RELAY_NODES
    assert not (here.root / "target").exists()
    (run,) = here.recover("runs", "-o", "json").json["runs"]
    assert (run["status"], run["total"]) == ("success", len(RELAY_NODES))
    logs = [p for p in (here.home / "my/logs/dbt.log", here.root / "my/logs/dbt.log") if p.exists()]
    assert len(logs) == 1, "where plain dbt writes it"
    assert not (here.root / "logs").exists()
    for line in logs[0].read_text().splitlines():
        assert json.loads(line)["info"]["name"]


def _plain(text: str) -> str:
    """Without times, durations, process ids and paths of this run."""
    text = re.sub(r"\d\d:\d\d:\d\d(\.\d+)?", "TIME", text)
    text = re.sub(r"\d+\.\d+ ?s(econds)?\b", "SECONDS", text)
    return re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "UUID", text)


def test_the_screen_is_dbt_s_own(here: Checkout, tmp_path: Path) -> None:
    """The same bytes as without exec, colours and all, on a terminal and in a pipe."""
    screens: dict[tuple[bool, bool], str] = {}
    for on_terminal in (True, False):
        for recorded in (True, False):
            name = f"{'tty' if on_terminal else 'pipe'}-{recorded}"
            each = here.elsewhere(tmp_path / name)
            each = replace(each, warehouse=each.home).having(FAIL="mart")
            argv = [*(("exec", "--") if recorded else ()), "dbt", "build", "--no-partial-parse"]
            if on_terminal:
                program = DBT_RECOVER if recorded else (str(REAL_DBT),)
                words = argv if recorded else argv[1:]
                with (
                    terminal() as (_, slave, shown),
                    each.start(*words, tty=slave, program=program) as running,
                ):
                    running.end()
                screens[on_terminal, recorded] = b"".join(shown).decode()
            else:
                ran = each.recover(*argv) if recorded else each.run(*argv)
                screens[on_terminal, recorded] = ran.out
    for on_terminal in (True, False):
        mine, dbts = (_plain(screens[on_terminal, r]) for r in (True, False))
        if on_terminal:
            mine, _, said = mine.partition("dbt-recover: ")
            assert said.startswith("recorded as run")
        assert mine == dbts
    assert "\x1b[3" in screens[True, True]


INFO = ("--log-format-file", "text", "--log-level-file", "info", "--no-use-colors-file")


@pytest.mark.parametrize("flags", [(), INFO], ids=["debug", "info"])
def test_dbt_log_is_dbt_s_own(here: Checkout, tmp_path: Path, flags: tuple[str, ...]) -> None:
    """The same lines as without exec, but for what is of this process."""
    logs = []
    for recorded in (True, False):
        each = here.elsewhere(tmp_path / str(recorded))
        each = replace(each, warehouse=each.home).having(FAIL="mart", THREADS="1")
        argv = ["build", "--no-partial-parse", *flags]
        ran = each.recover("exec", "--", "dbt", *argv) if recorded else each.run(REAL_DBT, *argv)
        assert ran.code == 1, ran
        text = (each.root / "logs/dbt.log").read_text().replace(str(each.home), "HOME")
        text = re.sub(r"(Resource report|running dbt with arguments).*", r"\1", _plain(text))
        # Which of its connections dbt takes again is a matter of chance.
        lines = re.sub(r"Thread-\d+ ?", "THREAD", text).splitlines()
        logs.append([line for line in lines if "connection" not in line.lower()])
    assert logs[0] == logs[1]
    assert len(logs[0]) > (20 if flags else 200)


def test_dbt_log_grows_while_dbt_runs(here: Checkout) -> None:
    log = here.root / "logs/dbt.log"
    with here.having(HOLD="late").start(*BUILD) as running:
        running.holds(LATE)
        running.until(
            lambda: log.exists() and "START sql table model main.late" in log.read_text(), "it grew"
        )
        assert "1 of 8 OK loaded seed file main.raw" in log.read_text()
        running.signal(signal.SIGINT)
        running.end()
        count = len(running.lines())
    lines = log.read_text().splitlines()
    assert not [line for line in lines if line.startswith("{")]
    assert len(lines) >= count


# ---- what cannot be run twice ------------------------------------------------------------------

ONCE: Mapping[str, str] = {
    **{
        k: RELAY[k] for k in ("dbt_project.yml", "profiles.yml", "macros/hold.sql", "seeds/raw.csv")
    },
    "models/appended.sql": relay_model(
        "appended",
        "{{ ref('raw') }}",
        "materialized='incremental', incremental_strategy='append'",
    ),
    "models/merged.sql": relay_model(
        "merged", "{{ ref('raw') }}", "materialized='incremental', unique_key='id'"
    ),
    "snapshots/snap.sql": "{% snapshot snap %}"
    "{{ config(unique_key='id', strategy='check', check_cols=['v'], target_schema='main') }}"
    + relay_model("snap", "{{ ref('raw') }}", "enabled=true")
    + "{% endsnapshot %}\n",
}
APPENDED, MERGED, SNAP = "model.relay.appended", "model.relay.merged", "snapshot.relay.snap"


@slow
def test_what_was_in_flight_and_cannot_be_run_twice(tmp_path: Path) -> None:
    here = written(tmp_path / "here", ONCE)
    assert here.dbt("build").code == 0
    with here.having(HOLD="appended,merged,snap", THREADS=3).start(*BUILD) as running:
        for uid in (APPENDED, MERGED, SNAP):
            running.begun(uid)
        running.signal_dbt(signal.SIGKILL)
        assert running.end().code == 137
        assert running.succeeded() == {RAW}
    calls = len(here.calls)
    stopped = here.recover("retry")
    assert (stopped.code, len(here.calls)) == (RefusedError.exit_code, calls), stopped
    assert "appended" in stopped.err
    assert "snap" in stopped.err
    assert "merged" not in stopped.err
    assert "--allow-non-idempotent" in stopped.err
    told = here.recover("retry", "-o", "json")
    assert (told.code, told.json["outcome"]) == (RefusedError.exit_code, "refused")
    (warning,) = [w for w in here.recover("plan", "-o", "json").json["warnings"] if w["stops"]]
    assert (warning["code"], warning["flag"]) == ("non_idempotent", "--allow-non-idempotent")

    done = here.recover("retry", "--allow-non-idempotent")
    assert done.code == 0, done
    assert set(here.calls[-1].executed) == {APPENDED, MERGED, SNAP}
    rows = {n: len(list(t[1].elements())) for n, t in here.tables().items()}
    # The killed query had not committed: one more time three rows, and no other.
    assert {n.rpartition(".")[2]: c for n, c in rows.items()} == {
        "raw": 3,
        "appended": 6,
        "merged": 3,
        "snap": 3,
    }


def test_what_is_merged_by_a_key_can_be_run_twice(tmp_path: Path) -> None:
    here = written(tmp_path / "here", {k: v for k, v in ONCE.items() if "append" not in k})
    with here.having(HOLD="merged").start(*BUILD, "--select", "raw", "merged") as running:
        running.holds(MERGED)
        running.signal_dbt(signal.SIGKILL)
        assert running.end().code == 137
    recover(here, {MERGED})


# ---- secrets -----------------------------------------------------------------------------------

SECRET = "zq7-hushhush-4411"
SECRETIVE: Mapping[str, str] = {
    **{
        k: RELAY[k] for k in ("dbt_project.yml", "profiles.yml", "macros/hold.sql", "seeds/raw.csv")
    },
    "models/told.sql": "select id, '{{ var('token') }}' = 'x' as same from {{ ref('raw') }}\n",
    "models/telling.sql": relay_model("telling", "{{ ref('told') }}", columns="id")
    + "{% if env_var('FAIL', '') %} where cast('{{ var('token') }}' as int) = id {% endif %}\n",
}


def _plain_bytes(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".zst":
        data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
    return data


def _with_secret(directory: Path) -> set[str]:
    """Names of files below a directory that hold the secret, in their names or in their bytes."""
    return {
        p.name.removesuffix(".zst")
        for p in directory.rglob("*")
        if SECRET in str(p) or (p.is_file() and SECRET.encode() in _plain_bytes(p))
    }


DBTS_OWN = {"manifest.json", "manifest.early.json", "run_results.json"}
"""Archived byte for byte."""


@slow
@pytest.mark.parametrize("killed", [False, True])
def test_a_secret_var(killed: bool, tmp_path: Path) -> None:
    kept = tmp_path / "archive"
    here = written(tmp_path / "here", SECRETIVE).having(DBT_RECOVER_ARCHIVE=kept)
    worker = here.having(DBT_ENV_SECRET_TOKEN=SECRET)
    given = ("--vars", json.dumps({"token": SECRET, "day": "2026-01-31"}))
    if killed:
        with worker.having(HOLD="telling").start(*BUILD, *given) as running:
            running.holds("model.relay.telling")
            running.until(lambda: b"model.relay.telling" in journal(kept), "the archive knows")
            assert _with_secret(kept) <= DBTS_OWN
            ours = [p for p in spools(here)[0].rglob("*") if "log" not in p.parts]
            for path in ours:
                assert (
                    not path.is_file()
                    or SECRET.encode() not in _plain_bytes(path)
                    or (path.name.removesuffix(".zst") in DBTS_OWN)
                ), path
            running.signal_dbt(signal.SIGKILL)
            running.end()
    else:
        assert worker.having(FAIL="yes").recover(*BUILD, *given).code == 1
    assert _with_secret(kept) <= DBTS_OWN

    laptop = elsewhere(here)
    stopped = laptop.recover("retry")
    assert (stopped.code, laptop.calls) == (RefusedError.exit_code, []), stopped
    assert "token" in stopped.err
    assert "--vars" in stopped.err
    assert "day" not in stopped.err

    # The value comes from the person, whose shell has no such variable.
    recover(laptop, {"model.relay.telling"}, "--vars", json.dumps({"token": SECRET}))
    again = yaml.safe_load(laptop.calls[0].value("--vars") or "")
    assert again == {"token": SECRET, "day": "2026-01-31"}
    assert _with_secret(kept) <= DBTS_OWN
    for command in ("show", "plan", "runs"):
        assert SECRET not in laptop.recover(command, "-o", "json").out
