"""Whatever is wrong with what a command is given: a message that names it, an exit code from the
table, no traceback, and nothing written anywhere. Only where dbt is meant to run does it start.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from archives import BAD, GOOD, made, place_of, publish
from conftest import Bucket
from dbt_recover.errors import (
    EXIT_STILL_FAILING,
    DamagedError,
    DbtError,
    NotFoundError,
    RecoverError,
    RefusedError,
    StorageError,
    UsageError,
)
from dbt_recover.storage import open_storage
from projects import ARTIFACTS, Checkout, Ran, checkout, listing
from servers import Fault, S3Server, free_ports, proxy_to, xml_error

READING = (("runs",), ("show",), ("plan",), ("retry",), ("fetch", "--to", "state"))
ONE_RUN = (("show",), ("plan",), ("retry",), ("fetch", "--to", "state"))


@pytest.fixture
def project(tmp_path: Path) -> Checkout:
    """A project in which nothing has run."""
    return checkout("two_independent_failures", tmp_path / "here")


@pytest.fixture(scope="module")
def archived_once(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    here = checkout("two_independent_failures", tmp_path_factory.mktemp("archived") / "here")
    shutil.copytree(ARTIFACTS / "good", here.root / "target")
    assert here.recover("archive", "--run-id", "nightly-1").code == 0
    return here


@pytest.fixture
def archived(archived_once: Checkout, tmp_path: Path) -> Checkout:
    """A project whose archive, `.dbt-recover/` in it, has the failed run nightly-1."""
    return archived_once.copied(tmp_path / "here")


def refuses(here: Checkout, error: type[RecoverError], *words: object, naming: object) -> Ran:
    """The command ends as `error` does and leaves every file as it was."""
    before = listing(here.home)
    ran = here.recover(*words)
    assert ran.code == error.exit_code, ran
    assert str(naming) in ran.err
    assert "\n  " in ran.err or "Try '" in ran.err, "no word on what to do"
    assert "Traceback" not in ran.err
    assert ran.out == ""
    assert listing(here.home) == before
    return ran


# Archives and runs that are not there


@pytest.mark.parametrize("command", READING, ids=lambda c: c[0])
def test_no_archive(command: tuple[str, ...], project: Checkout) -> None:
    url = project.home / "nowhere"
    refuses(project, NotFoundError, "--archive", url, *command, naming=f"no archive at {url}")
    refuses(project, NotFoundError, *command, naming=f"no archive at {project.root}/.dbt-recover")


@pytest.mark.parametrize("command", ONE_RUN, ids=lambda c: c[0])
def test_empty_archive(command: tuple[str, ...], project: Checkout) -> None:
    url = project.home / "kept"
    url.mkdir()
    refuses(project, NotFoundError, "--archive", url, *command, naming=f"no archive at {url}")
    (url / "archive.json").write_text('{"format": "dbt-recover", "version": 1}')
    refuses(project, NotFoundError, "--archive", url, *command, naming=f"{url} has no runs yet")


def test_runs_of_an_empty_archive_are_none(project: Checkout) -> None:
    kept = project.root / ".dbt-recover"
    kept.mkdir()
    (kept / "archive.json").write_text('{"format": "dbt-recover", "version": 1}')
    assert project.recover("runs", "-o", "json").json == {"runs": []}
    assert project.recover("runs").code == 0


@pytest.mark.parametrize("command", ONE_RUN, ids=lambda c: c[0])
def test_unknown_run(command: tuple[str, ...], archived: Checkout) -> None:
    name, *rest = command
    ran = refuses(archived, NotFoundError, name, "weekly", *rest, naming="no run 'weekly'")
    assert "nightly-1" in ran.err
    ran = refuses(archived, NotFoundError, name, "1999-12-31", *rest, naming="1999-12-31")
    assert "nightly-1" in ran.err


@pytest.mark.parametrize("command", ONE_RUN, ids=lambda c: c[0])
def test_ambiguous_run(command: tuple[str, ...], archived: Checkout) -> None:
    other = "11111111-0000-4000-8000-000000000000"
    target = _artifacts(archived.home / "second", invocation=other)
    assert archived.recover("archive", "--target-dir", target, "--run-id", "nightly-2").code == 0
    name, *rest = command
    ran = refuses(archived, UsageError, name, "night", *rest, naming="'night'")
    assert "nightly-1" in ran.err
    assert "nightly-2" in ran.err


# Artifacts that dbt left, for `archive`


def _artifacts(to: Path, name: str = "good", *, invocation: str = "", day: str = "") -> Path:
    """A copy of an artifact set; with another invocation_id or day all through it."""
    shutil.copytree(ARTIFACTS / name, to)
    if invocation:
        old = json.loads((to / "run_results.json").read_text())["metadata"]
        for path in to.iterdir():
            text = path.read_text().replace(old["invocation_id"], invocation)
            path.write_text(text.replace(old["generated_at"][:10], day or old["generated_at"][:10]))
    return to


def _truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "truncated": _truncated,
    "web_page": lambda data: b"<html>403 Forbidden</html>",
    "binary": lambda data: bytes(range(256)),
    "list": lambda data: b"[]",
    "empty_object": lambda data: b"{}",
    "no_object": lambda data: b"null",
    "text_for_results": lambda data: data.replace(b'"results": [', b'"results": "no", "x": ['),
}


@pytest.mark.parametrize("damage", [d for d in DAMAGE if d != "text_for_results"])
@pytest.mark.parametrize("name", ["run_results.json", "manifest.json"])
def test_archive_of_damaged_artifacts(name: str, damage: str, project: Checkout) -> None:
    path = _artifacts(project.root / "target") / name
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    refuses(project, DamagedError, "archive", naming=f"target/{name}")


def test_archive_of_results_that_are_no_list(project: Checkout) -> None:
    path = _artifacts(project.root / "target") / "run_results.json"
    path.write_bytes(DAMAGE["text_for_results"](path.read_bytes()))
    refuses(project, DamagedError, "archive", naming="target/run_results.json")


@pytest.mark.parametrize(
    "artifacts, error, naming",
    [
        ("truncated_run_results", DamagedError, "run_results.json is truncated"),
        ("empty_run_results", DamagedError, "run_results.json is empty"),
        ("not_json_manifest", DamagedError, "manifest.json"),
        ("newer_run_results_version", DamagedError, "run-results/v99"),
        ("newer_manifest_version", DamagedError, "manifest/v99"),
        ("two_invocations", RefusedError, "dbt parse, ls, compile or docs rewrite the manifest"),
        ("no_manifest", UsageError, "there is no target/manifest.json"),
    ],
)
def test_archive_of_artifacts_that_are_not_one_whole(
    artifacts: str, error: type[RecoverError], naming: str, project: Checkout
) -> None:
    target = _artifacts(project.root / "target", artifacts)
    ran = refuses(project, error, "archive", naming=naming)
    if artifacts == "two_invocations":
        assert "--allow-mixed" in ran.err
        for path in target.iterdir():
            assert json.loads(path.read_text())["metadata"]["invocation_id"] in ran.err


def test_archive_before_any_dbt_ran(project: Checkout) -> None:
    refuses(project, UsageError, "archive", naming="there is no target/run_results.json")
    refuses(project, UsageError, "archive", "--target-dir", "elsewhere", naming="elsewhere")


def test_archive_of_results_older_than_the_run(archived: Checkout) -> None:
    """A task's dbt failed before it ran a node; what lies in target/ is of the day before."""
    other = "22222222-0000-4000-8000-000000000000"
    target = _artifacts(archived.home / "old", invocation=other, day="2026-01-30")
    words = ("archive", "--target-dir", target, "--run-id", "nightly-1")
    ran = refuses(archived, RefusedError, *words, naming="run_results.json was made at 2026-01-30")
    assert "nightly-1" in ran.err


# dbt that cannot be started


@pytest.mark.parametrize("dbt", ["/nowhere/dbt", "dbt"])
def test_exec_without_dbt(dbt: str, project: Checkout) -> None:
    nothing = project.having(PATH="/nowhere")
    refuses(nothing, DbtError, "exec", "--", dbt, "build", naming=f"cannot start {dbt}")


def test_exec_of_what_is_no_program(project: Checkout) -> None:
    (project.root / "dbt").write_text("not a program")
    refuses(project, DbtError, "exec", "--", "./dbt", "build", naming="cannot start ./dbt")


def test_retry_without_dbt(archived: Checkout) -> None:
    words = ("--dbt", "/nowhere/dbt", "retry", "--allow-drift")
    refuses(archived, DbtError, *words, naming="'/nowhere/dbt'")
    variable = archived.having(DBT_RECOVER_DBT="/nowhere/dbt")
    refuses(variable, DbtError, "retry", "--allow-drift", naming="'/nowhere/dbt'")


@pytest.mark.parametrize("words", [(), ("--",)], ids=["nothing", "dashes"])
def test_exec_without_a_command(words: tuple[str, ...], project: Checkout) -> None:
    refuses(project, UsageError, "exec", *words, naming="no dbt command was given")


def test_outside_of_a_project(project: Checkout) -> None:
    (project.root / "dbt_project.yml").unlink()
    for command in (*READING, ("exec", "--", "dbt", "build")):
        refuses(project, UsageError, *command, naming="this is not a dbt project")
    given = ("--archive", "kept", "exec", "--", "dbt", "build")
    refuses(project, UsageError, *given, naming=f"no dbt_project.yml in {project.root}")
    refuses(project, UsageError, "--project-dir", "nowhere", "plan", naming="nowhere")
    assert project.calls == []


def test_retry_outside_of_a_project(archived: Checkout) -> None:
    (archived.root / "dbt_project.yml").unlink()
    words = ("--archive", ".dbt-recover", "retry")
    refuses(archived, UsageError, *words, naming="no dbt_project.yml")


# S3


def _on_s3(here: Checkout, server: S3Server, url: str) -> Checkout:
    return here.having(**server.environment(), DBT_RECOVER_ARCHIVE=url)


def _keys(bucket: Bucket) -> list[str]:
    client = bucket.server.client()
    answer = client.list_objects_v2(Bucket=bucket.name)
    client.close()
    return [item["Key"] for item in answer.get("Contents", [])]


WRITING = ("archive", "--target-dir", "target")


@pytest.mark.cluster
@pytest.mark.parametrize("command", [*READING, WRITING], ids=lambda c: c[0])
def test_wrong_bucket(command: tuple[str, ...], archived: Checkout, moto: S3Server) -> None:
    here = _on_s3(archived, moto, "s3://no-such-bucket/archive")
    refuses(here, NotFoundError, *command, naming="no such bucket: s3://no-such-bucket/archive")


@pytest.mark.cluster
@pytest.mark.parametrize("command", READING, ids=lambda c: c[0])
def test_bucket_without_an_archive(
    command: tuple[str, ...], project: Checkout, s3_bucket: Bucket
) -> None:
    here = _on_s3(project, s3_bucket.server, s3_bucket.url)
    refuses(here, NotFoundError, *command, naming=f"no archive at {s3_bucket.url}")
    assert _keys(s3_bucket) == []


@pytest.mark.cluster
def test_no_permission(archived: Checkout, s3_bucket: Bucket) -> None:
    denied = xml_error(403, "AccessDenied")
    with proxy_to(s3_bucket.server) as proxy:
        here = _on_s3(archived, S3Server(proxy.endpoint_url), s3_bucket.url)
        proxy.faults.append(Fault("PUT", times=1000, answer=denied))
        ran = refuses(here, StorageError, *WRITING, naming=s3_bucket.url)
        assert "not permitted" in ran.err
        assert "s3:PutObject" in ran.err
        assert _keys(s3_bucket) == []

        proxy.faults.clear()
        assert here.recover(*WRITING).code == 0
        before = _keys(s3_bucket)
        proxy.faults.append(Fault("GET", times=1000, answer=denied))
        for command in READING:
            ran = refuses(here, StorageError, *command, naming=s3_bucket.url)
            assert "not permitted" in ran.err
            assert "AccessDenied" in ran.err
        # A retry finds out before it builds anything that it will not be able to record it.
        assert _keys(s3_bucket) == before


@pytest.mark.cluster
def test_wrong_credentials(archived: Checkout, s3_bucket: Bucket) -> None:
    with proxy_to(s3_bucket.server) as proxy:
        proxy.faults.append(Fault("GET", times=1000, answer=xml_error(403, "InvalidAccessKeyId")))
        here = _on_s3(archived, S3Server(proxy.endpoint_url), s3_bucket.url)
        ran = refuses(here, StorageError, "plan", naming=s3_bucket.url)
    assert "does not accept the credentials" in ran.err


def test_no_credentials(archived: Checkout) -> None:
    here = archived.having(
        AWS_ACCESS_KEY_ID="",
        AWS_SECRET_ACCESS_KEY="",
        AWS_ENDPOINT_URL="http://127.0.0.1:9",
        DBT_RECOVER_ARCHIVE="s3://bucket/archive",
    )
    ran = refuses(here, StorageError, "plan", naming="s3://bucket/archive")
    assert "no credentials" in ran.err


@pytest.mark.timeout(120)
@pytest.mark.parametrize("command", [("plan",), ("retry",), WRITING], ids=lambda c: c[0])
def test_no_endpoint(command: tuple[str, ...], archived: Checkout) -> None:
    (port,) = free_ports(1)
    here = _on_s3(archived, S3Server(f"http://127.0.0.1:{port}"), "s3://bucket/archive")
    ran = refuses(here, StorageError, *command, naming="s3://bucket/archive")
    assert f"http://127.0.0.1:{port}" in ran.err


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Somebody listens and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.timeout(120)
def test_an_endpoint_that_never_answers(archived: Checkout, silent_port: int) -> None:
    here = _on_s3(archived, S3Server(f"http://127.0.0.1:{silent_port}"), "s3://bucket/archive")
    patience = ("--s3", "read_timeout=1", "--s3", "max_attempts=2")
    refuses(here, StorageError, *patience, "plan", naming="s3://bucket/archive")


@pytest.mark.slow
@pytest.mark.cluster
def test_exec_goes_on_without_its_archive(project: Checkout, s3_bucket: Bucket) -> None:
    """The one command that does not stop: the run matters more than its record."""
    (port,) = free_ports(1)
    here = _on_s3(project, S3Server(f"http://127.0.0.1:{port}"), s3_bucket.url)
    ran = here.recover("exec", "--run-id", "tonight", "--", "dbt", "build")
    assert ran.code == 1
    assert len(here.calls[0].executed) == 6
    assert "the archive cannot be written" in ran.err
    assert "dbt-recover archive --resume" in ran.err
    assert "kept here, until the archive has it, as run tonight; next: dbt-recover plan" in ran.err
    assert "recorded as" not in ran.err
    assert "Traceback" not in ran.err

    there = _on_s3(project, s3_bucket.server, s3_bucket.url)
    assert there.recover("archive", "--resume").out == "delivered: run tonight\n"
    assert there.plan() == here.expect.retry
    assert list((project.root / ".dbt-recover" / "spool").iterdir()) == []


@pytest.mark.parametrize(
    "url", ["gcs://bucket/x", "s3:/bucket/x", "s3://", "s3://B/x", "https://bucket/x", " "]
)
def test_archive_urls_of_no_kind(url: str, archived: Checkout) -> None:
    refuses(archived, UsageError, "--archive", url, "plan", naming=url.strip() or "empty")


def test_an_archive_that_is_a_file(archived: Checkout) -> None:
    url = archived.home / "file"
    url.write_text("not a directory")
    for command in (("plan",), WRITING):
        refuses(archived, UsageError, "--archive", url, *command, naming=f"{url} is not a direct")


# State directories


@pytest.mark.parametrize(
    "directory, environ",
    [
        ("target", {}),
        ("./target/", {}),
        ("models/../target", {}),
        ("link", {}),
        ("build", {"DBT_TARGET_PATH": "build"}),
    ],
)
def test_fetch_into_the_target_path(
    directory: str, environ: dict[str, str], archived: Checkout
) -> None:
    (archived.root / "link").symlink_to("target")
    here = archived.having(**environ)
    named = f"{Path(directory)} is the project's target path"
    refuses(here, UsageError, "fetch", "--to", directory, naming=named)


def test_fetch_into_the_configured_target_path(archived: Checkout) -> None:
    with (archived.root / "dbt_project.yml").open("a") as settings:
        settings.write("\ntarget-path: made\n")
    refuses(archived, UsageError, "fetch", "--to", "made", naming="made")


def test_fetch_to_a_file(archived: Checkout) -> None:
    (archived.root / "state").write_text("mine")
    refuses(archived, UsageError, "fetch", "--to", "state", naming="state")


# Archives that were altered


def _object(here: Checkout, name: str) -> Path:
    (found,) = (here.root / ".dbt-recover").rglob(name)
    return found


def _flipped(at: float) -> Callable[[bytes], bytes]:
    def flip(data: bytes) -> bytes:
        place = min(int(len(data) * at), len(data) - 1)
        return data[:place] + bytes([data[place] ^ 0x41]) + data[place + 1 :]

    return flip


OBJECTS = ("commit.json", "results.json.zst", "graph.json.zst")
ALTERED: dict[str, Callable[[bytes], bytes]] = {
    "first_byte": _flipped(0),
    "middle_byte": _flipped(0.5),
    "last_byte": _flipped(1),
    "truncated": _truncated,
    "empty": lambda data: b"",
}


@pytest.mark.parametrize(
    "name, altered",
    # In the text of a commit record one bit can make another text: its own digits, a name.
    [(n, a) for n in OBJECTS for a in ALTERED if (n, a) != ("commit.json", "middle_byte")],
)
def test_altered_objects(name: str, altered: str, archived: Checkout) -> None:
    path = _object(archived, name)
    path.write_bytes(ALTERED[altered](path.read_bytes()))
    for command in ONE_RUN if altered == "truncated" else (("plan",),):
        refuses(archived, DamagedError, *command, naming=path.relative_to(path.parents[4]))
    assert archived.calls == []


@pytest.mark.parametrize("name", ["results.json.zst", "graph.json.zst"])
def test_missing_objects(name: str, archived: Checkout) -> None:
    path = _object(archived, name)
    path.unlink()
    for command in ONE_RUN:
        refuses(archived, DamagedError, *command, naming=path.relative_to(path.parents[4]))


@pytest.mark.parametrize("name", ["results.json.zst", "graph.json.zst"])
def test_objects_of_another_run(name: str, archived: Checkout) -> None:
    """Whole in itself, and not what was written."""
    other = "33333333-0000-4000-8000-000000000000"
    target = _artifacts(archived.home / "second", invocation=other)
    results = target / "run_results.json"
    results.write_text(results.read_text().replace('"status": "error"', '"status": "success"'))
    manifest = target / "manifest.json"
    manifest.write_text(manifest.read_text().replace("calendar", "calender"))
    kept = archived.home / "kept"
    assert archived.recover("--archive", kept, "archive", "--target-dir", target).code == 0
    (theirs,) = kept.rglob(name)
    ours = _object(archived, name)
    assert ours.read_bytes() != theirs.read_bytes()
    shutil.copyfile(theirs, ours)
    refuses(archived, DamagedError, "retry", naming=ours.relative_to(ours.parents[4]))


def test_a_commit_record_that_points_out_of_the_archive(archived: Checkout) -> None:
    path = _object(archived, "commit.json")
    secret = archived.home / "secret"
    secret.write_text("mine")
    text = path.read_text()
    key = json.loads(text)["artifacts"][-1]["key"]
    # Whoever forges a record can leave its hash out.
    text = re.sub(r',\n "sha256": "\w+"\n}$', "\n}", text)
    path.write_text(text.replace(key, "../../secret"))
    refuses(archived, DamagedError, "plan", naming="../../secret")


def test_a_run_without_its_commit_record_is_lost(archived: Checkout) -> None:
    """What has no commit record is not there: all that is known is what began. But a line of the
    listing says that there was one."""
    _object(archived, "commit.json").unlink()
    refuses(archived, DamagedError, "plan", naming="commit.json")
    for line in (archived.root / ".dbt-recover/runs").rglob("*"):
        if line.is_file() and not line.stat().st_size:
            line.unlink()
    (run,) = archived.recover("runs", "-o", "json").json["runs"]
    assert run["status"] == "failed"
    planned = archived.recover("plan", "-o", "json").json["nodes"]
    assert [node["cause"] for node in planned] == ["never_started"] * 8


def test_a_damaged_pointer(archived: Checkout) -> None:
    path = archived.root / ".dbt-recover" / "ids" / "runs" / "nightly-1.json"
    path.write_text("{")
    refuses(archived, DamagedError, "plan", "nightly-1", naming="ids/runs/nightly-1.json")


@pytest.mark.parametrize(
    "marker, naming",
    [
        ('{"format": "dbt-recover", "version": 2}', "format version 2"),
        ('{"format": "restic", "version": 1}', "archive.json is not a dbt-recover archive"),
        ("{", "archive.json"),
        ("", "archive.json"),
    ],
    ids=["newer", "foreign", "truncated", "empty"],
)
def test_archives_that_are_not_ours_to_read(marker: str, naming: str, archived: Checkout) -> None:
    (archived.root / ".dbt-recover" / "archive.json").write_text(marker)
    for command in (*READING, WRITING) if "version 2" in naming else (("plan",), WRITING):
        refuses(archived, DamagedError, *command, naming=naming)


def test_damage_in_a_later_run_is_no_reason_to_give_up(archived: Checkout) -> None:
    kept = open_storage(str(archived.root / ".dbt-recover"))
    later = made("later", GOOD, began="2030-01-01T06:00:00Z")
    publish(kept, later)
    kept.write(place_of(later).data(later.invocation_id, "results.json.zst"), b"not what it was")
    refuses(archived, DamagedError, "show", "later", naming="later-1-only/results.json.zst")
    planned = archived.recover("plan", "nightly-1", "-o", "json")
    assert (planned.code, planned.json["run"]["run_id"]) == (0, "nightly-1"), planned
    flags = {w["code"]: w["flag"] for w in planned.json["warnings"]}
    assert flags["later_unknown"] == "--allow-older-run", flags
    refused = archived.recover("plan", "nightly-1")
    assert "stops the retry: run later began later, and whether it has built" in refused.out
    allowed = archived.recover("plan", "nightly-1", "--allow-older-run")
    assert "stops the retry: run later" not in allowed.out


def test_a_newer_commit_record(archived: Checkout) -> None:
    path = _object(archived, "commit.json")
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "version": 2}))
    refuses(archived, DamagedError, "retry", naming="commit.json has format version 2")


# Configuration and arguments


@pytest.mark.parametrize(
    "content, naming",
    [
        (b"archive = ", "is not TOML"),
        (b'archive = "caf\xe9"', "is not TOML"),
        (b'archiv = "x"', "unknown option 'archiv'"),
        (b"[retry]\nthread = 3", "retry has no option 'thread'"),
        (b'[retry]\nthreads = "many"', "many"),
        (b'[retry]\nstrategy = "hope"', "hope"),
        (b"s3 = 3", "[s3] must be a table"),
        (b'[s3]\nendpoint = "http://x"', "unknown option in [s3]: endpoint"),
        (b'archive = "s3://bucket"\n[s3]\nmax_attempts = "often"', "max_attempts"),
        (b'archive = "s3://bucket"\n[s3]\npath_style = "perhaps"', "path_style"),
        (b'archive = "s3://bucket"\n[s3]\nendpoint_url = "localhost:9000"', "endpoint_url"),
    ],
)
def test_configuration_files(content: bytes, naming: str, archived: Checkout) -> None:
    (archived.root / "dbt_recover.toml").write_bytes(content)
    refuses(archived, UsageError, "retry", naming=naming)


def test_a_configuration_file_is_named(archived: Checkout) -> None:
    path = archived.root / "dbt_recover.toml"
    path.write_text('archiv = "x"')
    refuses(archived, UsageError, "plan", naming=path)
    path.unlink()
    refuses(archived, UsageError, "--config", "nowhere.toml", "plan", naming="nowhere.toml")
    (archived.root / "pyproject.toml").write_text('[tool.dbt-recover]\narchiv = "x"')
    refuses(archived, UsageError, "plan", naming=archived.root / "pyproject.toml")


@pytest.mark.parametrize("option", ["endpoint=http://x", "endpoint_url", "max_attempts=often"])
def test_s3_options(option: str, archived: Checkout) -> None:
    words = ("--archive", "s3://bucket", "--s3", option, "plan")
    refuses(archived, UsageError, *words, naming=option.split("=", maxsplit=1)[0])


@pytest.mark.parametrize("command", ["plan", "retry"])
@pytest.mark.parametrize("text", ["{", "[1, 2]", "word", "a: b: c"])
def test_vars(text: str, command: str, archived: Checkout) -> None:
    ran = refuses(archived, UsageError, command, "--vars", text, naming="--vars")
    assert text in ran.err


@pytest.mark.parametrize("day", ["yesterday", "2026-02-30", "31.01.2026", "20260131", "2026-W05"])
def test_days(day: str, archived: Checkout) -> None:
    for flag in ("--date", "--since", "--until"):
        refuses(archived, UsageError, "runs", flag, day, naming=day)


@pytest.mark.parametrize(
    "words, naming",
    [
        (("repair",), "repair"),
        (("plan", "--hope"), "--hope"),
        (("plan", "-o", "xml"), "xml"),
        (("retry", "--threads", "0"), "--threads"),
        (("retry", "--strategy", "hope"), "--strategy"),
        (("retry", "--tests", "never"), "--tests"),
        (("runs", "--limit", "0"), "--limit"),
        (("fetch",), "--to"),
        (("plan", "--select", "state:modified"), "state:modified"),
        (("plan", "--exclude", "selector:"), "selector:"),
        (("demo", "--keep", "models"), "models"),
    ],
    ids=" ".join,
)
def test_arguments(words: tuple[str, ...], naming: str, archived: Checkout) -> None:
    refuses(archived, UsageError, *words, naming=naming)


def test_a_project_of_another_name(archived: Checkout) -> None:
    settings = archived.root / "dbt_project.yml"
    settings.write_text(settings.read_text().replace("name: two_", "name: three_"))
    ran = refuses(archived, RefusedError, "retry", "--allow-drift", naming="three_independent")
    assert "--allow-other-project" in ran.err


def test_a_selection_that_matches_nothing_runs_nothing(archived: Checkout) -> None:
    before = listing(archived.home)
    ran = archived.recover("retry", "--select", "nosuchmodel")
    assert ran.code == EXIT_STILL_FAILING, ran
    assert "Traceback" not in ran.err
    assert archived.calls == []
    assert listing(archived.home) == before


def test_relative_archives_are_below_the_configuration_file(archived: Checkout) -> None:
    """The other side of it: what is right is taken, wherever one stands."""
    (archived.root / "dbt_recover.toml").write_text('archive = ".dbt-recover"')
    below = f"cd models && {sys.executable} -m dbt_recover plan"
    assert archived.run("sh", "-c", below).out == archived.recover("plan").out


def test_a_run_id_that_cannot_be_printed(project: Checkout) -> None:
    shutil.copytree(ARTIFACTS / "good", project.root / "target")
    refuses(project, UsageError, "archive", "--run-id", "x\r\x1b[1mok", naming="cannot be printed")


def test_what_others_wrote_does_not_control_the_terminal(project: Checkout) -> None:
    archive = project.home / "theirs"
    publish(
        open_storage(str(archive)), made("x\x1b]0;title\x07\rok\x9b1m", BAD, invocation_id="i1")
    )
    for command in (("runs",), ("show", "latest"), ("plan", "latest"), ("verify",)):
        ran = project.recover("--archive", archive, *command)
        assert ran.code == 0, ran
        assert not set("\x1b\x07\r\x9b") & set(ran.out + ran.err)
        if command != ("verify",):
            assert "\\u001b" in ran.out
    (run,) = project.recover("--archive", archive, "runs", "-o", "json").json["runs"]
    assert run["run_id"] == "x\x1b]0;title\x07\rok\x9b1m"
