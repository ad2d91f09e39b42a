"""The documentation is held to the code: references, samples, examples, links and commands."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
import zstandard

from conftest import Bucket
from dbt_recover import (
    cli,
    compact_graph,
    config,
    doctor,
    errors,
    journal,
    latest,
    layout,
    lease,
    model,
    prune,
    records,
    verify,
)
from dbt_recover.alert import Alert, Exposure, Failure
from dbt_recover.carry_out import Retried
from dbt_recover.config import check_names, read_file
from dbt_recover.context import Identity
from dbt_recover.diagnose import ADVICE, CLASSES, diagnoses
from dbt_recover.graph import Graph, Node
from dbt_recover.model import (
    Invocation,
    NodeResult,
    NodeState,
    RunInfo,
    RunState,
    RunSummary,
)
from dbt_recover.pipeline import read_pipelines
from dbt_recover.plan import (
    Changes,
    LeftAlone,
    Plan,
    PlannedNode,
    PlanWarning,
    Policy,
    Standing,
    make_plan,
)
from dbt_recover.render import alerts, documents, upkeep
from dbt_recover.storage.options import S3Options
from dbt_recover.verify_run import Finding
from projects import ARTIFACTS, checkout

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.glob("*.md"))]
SOURCE = ROOT / "src" / "dbt_recover"


@dataclass(frozen=True)
class Block:
    """A fenced block, with the comment that stands before it."""

    mark: str
    language: str
    text: str


_FENCE = re.compile(
    r"(?:<!-- (?P<mark>[^\n]*?) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page."""
    return [
        Block(m["mark"] or "", m["language"], m["text"])
        for m in _FENCE.finditer(page.read_text("utf-8"))
    ]


def samples(page: Path) -> dict[str, str]:
    """Blocks marked `sample: NAME`."""
    marked = (b for b in blocks(page) if b.mark.startswith("sample: "))
    return {b.mark.removeprefix("sample: "): b.text for b in marked}


def table_after(text: str, heading: str) -> list[list[str]]:
    """Rows of the first table after a heading or line, without its head; code marks removed."""
    at = re.search(rf"^(#+ )?{re.escape(heading)}$", text, re.MULTILINE)
    assert at is not None, f"there is no {heading!r}"
    return rows(text[at.end() :])


def rows(text: str) -> list[list[str]]:
    """Rows of the first table in a text, without its head."""
    found: list[list[str]] = []
    for line in text.splitlines():
        if line.startswith("|"):
            cells = re.split(r"(?<!\\)\|", line.strip().strip("|") + " ")
            found.append([c.strip().replace("`", "") for c in cells])
        elif found:
            break
    return found[2:]


# The command reference, links, commands


def test_commands_page_is_what_the_command_line_says() -> None:
    ran = subprocess.run(
        [sys.executable, str(DOCS / "generate.py"), "--check"], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("name", sorted(cli.cli.commands))
def test_every_command_is_documented(name: str) -> None:
    command = cli.cli.commands[name]
    assert command.help, f"{name} has no docstring"
    assert f"\n## {name}\n" in (DOCS / "commands.md").read_text("utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_relative_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file) if file else page
        assert path.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), f"{page.name}: {target}"


def slug(heading: str) -> str:
    """A heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def typed_commands() -> Iterator[tuple[str, list[str]]]:
    """Every dbt-recover command line in a block or in code marks, with the page it is on."""
    for page in PAGES:
        text = page.read_text("utf-8")
        lines = [
            line.split(" # ")[0].strip().removeprefix("$ ")
            for b in blocks(page)
            for line in b.text.splitlines()
        ]
        lines += re.findall(r"`(dbt-recover [^`]*)`", _FENCE.sub("", text))
        for line in lines:
            if line.startswith("dbt-recover ") and page.name != "commands.md":
                yield page.name, shlex.split(line)[1:]


def test_commands_in_the_pages_exist() -> None:
    found = list(typed_commands())
    assert len(found) > 10
    for page, words in found:
        words = ["x" if w in ("URL", "DIR", "FILE") else w for w in words if w != "..."]
        context = click.Context(cli.cli, resilient_parsing=True)
        try:
            rest = cli.cli.parse_args(context, list(words))
            name, command, left = cli.cli.resolve_command(
                context, [*context._protected_args, *rest]
            )
            assert command is not None
            command.make_context(name, left, resilient_parsing=True)
        except click.ClickException as exc:
            pytest.fail(f"{page}: dbt-recover {' '.join(words)}: {exc.message}")


# Exit codes


def test_exit_codes_page_is_the_table_in_errors() -> None:
    table = rows((DOCS / "exit-codes.md").read_text("utf-8"))
    assert {int(row[0]): row[1] for row in table} == errors.EXIT_CODES
    named = {row[2]: int(row[0]) for row in table if row[2]}
    classes = {
        name: thing.exit_code
        for name, thing in vars(errors).items()
        if isinstance(thing, type)
        and issubclass(thing, errors.RecoverError)
        and thing is not errors.RecoverError
    }
    assert named == classes


def test_classes_of_failure_are_those_in_diagnose() -> None:
    table = rows((DOCS / "failures.md").read_text("utf-8"))
    assert tuple(row[0] for row in table) == CLASSES
    assert {row[0]: row[2] for row in table} == dict(ADVICE)


# JSON output


STATE = RunState(
    RunInfo("r", "2026-01-31T06:00:00Z"),
    [Invocation("i", RunInfo("r", "2026-01-31T06:00:00Z"), end="exit")],
    {"model.a.b": NodeState(NodeResult("model.a.b", "error"), 1, "i", 0)},
)
PLACE = layout.RunPlace.of("r", "2026-01-31T06:00:00Z")
MADE: dict[str, Any] = {
    "runs": documents.runs([RunSummary(STATE.run, "failed", 1, 1, 1, 1, 1.0, "build")]),
    "show": documents.show(STATE),
    "plan": documents.plan(
        Plan(
            (PlannedNode("model.a.b", "failed", "error here"),),
            (LeftAlone("model.a.c", "why"),),
            (PlanWarning("drift", "why", "--allow-drift"),),
        ),
        STATE,
    ),
    "plan without nodes": documents.plan(
        Plan((), standing=Standing("refused", "why", "next", listed="failed")), STATE
    ),
    "retry": documents.retried(
        Retried(
            "r",
            2,
            "failing",
            ("model.a.b",),
            (NodeResult("model.a.b", "error"),),
            why=diagnoses(STATE),
        )
    ),
    "notify": alerts.document(
        Alert(
            *("r", "failed", "2026-01-31 06:00", 1, 1),
            failures=(Failure("model.a.b", "model", "b", "error", "data", "mend", "why"),),
            blocked=("c",),
            exposures=(Exposure("e", "owner"),),
        )
    ),
    "verify": upkeep.verified_document(
        verify.Report("url", 1, 1, 1, 1, 1, (Finding("key", "wrong", "mend"),))
    ),
    "prune": upkeep.pruned_document(
        prune.Plan(prune.Decision((prune.Judged(prune.Candidate(PLACE, "failed"), ("why",)),), ())),
        None,
    ),
    "doctor": upkeep.examined_document(doctor.Diagnosis((doctor.Check("name", "ok", "what"),))),
}


def shape(value: Any) -> Any:
    """The keys of a document, at every depth; of a list those of its first item."""
    if isinstance(value, dict):
        return {k: shape(v) for k, v in value.items() if k != "counts"} | (
            {"counts": None} if "counts" in value else {}
        )
    if isinstance(value, list):
        return [shape(value[0])] if value and isinstance(value[0], dict) else []
    return None


@pytest.mark.parametrize("name", sorted(MADE))
def test_json_samples_have_the_keys_that_are_printed(name: str) -> None:
    sample = json.loads(samples(DOCS / "json.md")[name])
    assert shape(sample) == shape(json.loads(documents.dump(MADE[name])))
    assert list(sample) == list(MADE[name]), "in another order"


def test_every_json_key_is_explained() -> None:
    text = (DOCS / "json.md").read_text("utf-8")
    explained = {
        word
        for line in text.splitlines()
        if line.startswith("|")
        for word in re.findall(r"`([\w.]+)`", line.split("|")[1])
    }
    outer = {"runs", "nodes"}  # said in the text around their samples
    keys = {key for document in MADE.values() for key in all_keys(shape(document))}
    assert keys - explained - outer == {"unique_id"}


def all_keys(shaped: Any) -> set[str]:
    """Keys at every depth."""
    if isinstance(shaped, list):
        return {k for item in shaped for k in all_keys(item)}
    if isinstance(shaped, dict):
        return set(shaped) | {k for v in shaped.values() for k in all_keys(v)}
    return set()


def test_causes_and_outcomes_are_all_listed() -> None:
    text = (DOCS / "json.md").read_text("utf-8")
    source = "".join(p.read_text("utf-8") for p in SOURCE.glob("*.py"))
    causes = set(re.findall(r'Draft\(\s*"(\w+)"', source))
    assert {row[0] for row in rows(text[text.index("| cause |") :])} == causes
    outcomes = {row[0]: row[1] for row in rows(text[text.index("| outcome |") :])}
    for word in outcomes:
        assert f'"{word}"' in source


# Configuration


def test_s3_options_are_all_documented() -> None:
    table = table_after((DOCS / "configuration.md").read_text("utf-8"), "S3 options")
    assert {row[0] for row in table} == {f.name for f in fields(S3Options)} == config.S3_OPTIONS
    plain = S3Options()
    for name, default, _ in table:
        if name in ("max_attempts", "connect_timeout", "read_timeout", "checksum"):
            real = getattr(plain, name)
            assert type(real)(default) == real, name


def test_configuration_samples_are_accepted(tmp_path: Path) -> None:
    found = samples(DOCS / "configuration.md")
    path = tmp_path / "dbt_recover.toml"
    path.write_text(found["dbt_recover.toml"] + found["pipeline"])
    file = read_file(None, tmp_path)
    known = {
        "": [p.name or "" for p in cli.cli.params],
        **{name: [p.name or "" for p in c.params] for name, c in cli.cli.commands.items()},
    }
    check_names(file, known)
    (pipeline,) = read_pipelines(file.pipeline, str(path))
    assert [s.name for s in pipeline.steps] == ["run_staging", "test_staging", "run_marts"]


def test_flags_win_over_environment_over_file(tmp_path: Path) -> None:
    (tmp_path / "dbt_recover.toml").write_text('archive = "from-file"\n')

    def asked(*flags: str, **environ: str) -> str:
        ran = subprocess.run(
            [sys.executable, "-m", "dbt_recover", *flags, "runs"],
            cwd=tmp_path,
            env={**os.environ, **environ},
            capture_output=True,
            text=True,
        )
        assert ran.returncode == errors.NotFoundError.exit_code, ran.stderr
        return ran.stderr

    assert "from-file" in asked()
    assert "from-environment" in asked(DBT_RECOVER_ARCHIVE="from-environment")
    assert "from-flag" in asked("--archive", "from-flag", DBT_RECOVER_ARCHIVE="from-environment")


def test_airflow_variables_are_those_that_are_read() -> None:
    table = table_after(
        (DOCS / "configuration.md").read_text("utf-8"), "Environment that is not an option"
    )
    named = [name for row in table for name in row[0].split(", ") if name.startswith("AIRFLOW")]
    values = {
        "AIRFLOW_CTX_DAG_ID": "analytics",
        "AIRFLOW_CTX_DAG_RUN_ID": "scheduled__2026-01-31T06:00:00+00:00",
        "AIRFLOW_CTX_TASK_ID": "run_staging",
        "AIRFLOW_CTX_TRY_NUMBER": "2",
        "AIRFLOW_CTX_LOGICAL_DATE": "2026-01-31",
        "AIRFLOW_CTX_EXECUTION_DATE": "2026-01-31",
    }
    assert set(named) == values.keys()
    identity = Identity.of(values)
    run_id = next(row[1] for row in table if "DAG_RUN_ID" in row[0]).split(": ")[1]
    assert (identity.run_id, identity.step, identity.tries) == (run_id, "run_staging", 2)
    assert identity.logical_date == "2026-01-31"


# How it decides


_KINDS: dict[str, dict[str, Any]] = {
    "seed": {"resource_type": "seed", "materialized": "seed"},
    "model": {"resource_type": "model", "materialized": "table"},
    "view": {"resource_type": "model", "materialized": "view"},
    "appending incremental": {
        "resource_type": "model",
        "materialized": "incremental",
        "incremental_strategy": "append",
    },
    "microbatch": {
        "resource_type": "model",
        "materialized": "incremental",
        "incremental_strategy": "microbatch",
        "microbatch": True,
    },
    "test": {"resource_type": "test"},
    "source": {"resource_type": "source"},
}


@dataclass(frozen=True)
class Example:
    """A table of docs/how-it-decides.md."""

    settings: dict[str, str]
    nodes: list[list[str]]

    def uid(self, name: str) -> str:
        """The unique_id of a row's node."""
        kind = next(row[1] for row in self.nodes if row[0] == name)
        return f"{_KINDS[kind]['resource_type']}.shop.{name}"


def examples() -> list[Example]:
    """All of them."""
    text = (DOCS / "how-it-decides.md").read_text("utf-8")
    found = []
    for mark in re.finditer(r"<!-- example(?P<settings>[^\n]*) -->\n", text):
        pairs = [p.split(":") for p in mark["settings"].split(";") if ":" in p]
        found.append(Example({k.strip(): v.strip() for k, v in pairs}, rows(text[mark.end() :])))
    return found


def word_of(uid: str, text: str) -> NodeState:
    """A node's last word, from a table's fourth column."""
    status, _, attempt = text.partition(" in attempt ")
    number = int(attempt or 1)
    result = NodeResult(uid, status)
    batches = re.fullmatch(r"(\d) of (\d) batches missing", text)
    if batches:
        missing, total = int(batches[1]), int(batches[2])
        spans = [[f"2026-01-{d:02}", f"2026-01-{d + 1:02}"] for d in range(1, total + 1)]
        result = NodeResult(
            uid,
            "partial success",
            batches_done=spans[missing:],
            batches_failed=spans[:missing],
        )
    return NodeState(result, number, f"i{number}", number - 1)


def test_there_are_examples() -> None:
    assert len(examples()) > 10


@pytest.mark.parametrize("example", examples(), ids=lambda e: e.nodes[0][0])
def test_examples_of_how_it_decides(example: Example) -> None:
    graph = Graph(
        [
            Node(
                unique_id=example.uid(name),
                name=name,
                depends_on=[example.uid(r.strip()) for r in reads.split(",") if r],
                **_KINDS[kind],
            )
            for name, kind, reads, _, _ in example.nodes
        ]
    )
    run = RunInfo("r", "2026-01-31T06:00:00Z")
    state = RunState(
        run,
        [Invocation(f"i{n}", run, attempt=n, command="build") for n in (1, 2)],
        {
            example.uid(name): word_of(example.uid(name), text)
            for name, _, _, text, _ in example.nodes
            if text != "-"
        },
    )
    edited = frozenset(map(example.uid, filter(None, [example.settings.get("edited")])))
    plan = make_plan(
        state,
        graph,
        Policy(tests=example.settings.get("tests", "rebuild")),
        Changes(edited, tuple(edited)),
    )
    assert {n.unique_id: n.reason for n in plan.nodes} == {
        example.uid(name): reason for name, _, _, _, reason in example.nodes if reason
    }
    stops = [w.code for w in plan.blockers]
    assert stops == list(filter(None, [example.settings.get("warns")]))
    if "batches" in example.nodes[0][3]:
        assert plan.nodes[0].action == "run_batches"


def test_warnings_are_all_documented() -> None:
    table = table_after((DOCS / "how-it-decides.md").read_text("utf-8"), "What stops a retry")
    source = "".join(p.read_text("utf-8") for p in SOURCE.glob("*.py"))
    codes = set(re.findall(r'PlanWarning\(\s*"(\w+)"', source))
    assert {row[0] for row in table} == codes
    retry = cli.cli.commands["retry"]
    known = {flag for p in retry.params for flag in p.opts}
    flags = {flag for row in table for flag in re.findall(r"--[\w-]+", row[2])}
    assert flags <= known
    assert {f for f in known if f.startswith("--allow-")} <= flags


# The archive's format


TYPES: dict[str, type[msgspec.Struct]] = {
    "Marker": records.Marker,
    "RunPointer": records.RunPointer,
    "InvocationPointer": records.InvocationPointer,
    "Begun": records.Begun,
    "Commit": records.Commit,
    "Results": records.Results,
    "SignOfLife": records.SignOfLife,
    "Holder": lease.Holder,
    "Mark": records.Mark,
    "Latest": latest.Latest,
    "Record": journal.Record,
    "CompactGraph": compact_graph.CompactGraph,
}
PARTS: dict[str, type[msgspec.Struct]] = {
    "RunInfo": model.RunInfo,
    "Invocation": model.Invocation,
    "Artifact": model.Artifact,
    "Verdict": records.Verdict,
    "NodeResult": model.NodeResult,
    "Node": Node,
    "LatestWord": latest.LatestWord,
    "LatestFile": latest.LatestFile,
}
FORMAT = DOCS / "archive-format.md"


def test_every_object_of_the_archive_has_a_sample() -> None:
    assert samples(FORMAT).keys() == TYPES.keys()


@pytest.mark.parametrize("name", sorted(TYPES))
def test_samples_of_the_archive_are_what_is_read(name: str) -> None:
    text = samples(FORMAT)[name].encode()
    decoded = msgspec.json.decode(text, type=TYPES[name])
    assert_kept(json.loads(text), json.loads(msgspec.json.encode(decoded)))


@pytest.mark.parametrize("name", ["Begun", "Commit"])
def test_samples_have_their_own_hash(name: str) -> None:
    sample: records.Begun | records.Commit
    sample = msgspec.json.decode(samples(FORMAT)[name], type=TYPES[name])  # type: ignore[assignment]
    text = records.sealed(msgspec.structs.replace(sample, sha256=""))
    assert msgspec.json.decode(text, type=TYPES[name]) == sample


def assert_kept(sample: Any, again: Any) -> None:
    """What a sample says is what was read: a key that the type does not have would be lost."""
    if isinstance(sample, dict):
        for key, value in sample.items():
            if value or key in again:  # empty values are defaults, which are not written
                assert key in again
                assert_kept(value, again[key])
    elif isinstance(sample, list):
        assert len(sample) == len(again)
        for item, other in zip(sample, again, strict=True):
            assert_kept(item, other)
    else:
        assert sample == again


@pytest.mark.parametrize("name", sorted({**TYPES, **PARTS}))
def test_fields_of_the_archive_are_all_in_the_tables(name: str) -> None:
    text = FORMAT.read_text("utf-8")
    if name in TYPES:
        at = text.index(f"<!-- sample: {name} -->")
        table = rows(text[at:])
    else:
        table = table_after(text, f"{name}:")
    kind = {**TYPES, **PARTS}[name]
    assert [row[0] for row in table] == [f.encode_name for f in msgspec.structs.fields(kind)]


def test_keys_of_the_archive_are_those_of_the_layout() -> None:
    (keys,) = [b.text.split() for b in blocks(FORMAT) if b.mark == "keys"]
    for key in keys:
        listed = layout.parse_record_key(key)
        assert listed is not None, key
        place = listed.place
        assert key in (
            place.begun(listed.invocation_id),
            place.commit(listed.invocation_id),
            listed.summary and listed.summary.key(place, listed.invocation_id),
        )
    tree = next(b.text for b in blocks(FORMAT) if b.text.startswith("archive.json"))
    place = layout.RunPlace("<date>", "<HHMMSS>", "<run>")
    real = [
        layout.MARKER,
        layout.run_pointer("R").replace("R", "<run>"),
        layout.invocation_pointer("I").replace("I", "<invocation>"),
        *(
            f(":").replace(layout.encode_id(":"), "<invocation>")
            for f in (place.begun, place.commit)
        ),
        place.segment(":", 1).replace(layout.encode_id(":"), "<invocation>"),
        place.heartbeat(":").replace(layout.encode_id(":"), "<invocation>"),
        place.lease,
        place.pruned,
        latest.POINTER,
        *(layout.LATEST + name for name in latest.FILES),
        *(
            place.data(":", f"{name}.zst").replace(layout.encode_id(":"), "<invocation>")
            for name in (*layout.ARTIFACTS, "manifest.early.json", "graph.json", "results.json")
        ),
    ]
    assert set(real) <= set(re.findall(r"^\S+", tree, re.MULTILINE))


def test_the_archive_can_be_read_by_hand(tmp_path: Path) -> None:
    if not (shutil.which("zstd") and shutil.which("jq")):
        pytest.skip("needs zstd and jq")
    target = tmp_path / "target"
    shutil.copytree(ARTIFACTS / "good", target)
    ran = subprocess.run(
        [sys.executable, "-m", "dbt_recover", "--archive", str(tmp_path / "kept"), "archive"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    (script,) = [b.text for b in blocks(FORMAT) if b.mark == "by hand"]
    read = subprocess.run(
        ["sh", "-eu", "-c", script],
        env={**os.environ, "ARCHIVE": str(tmp_path / "kept")},
        capture_output=True,
        text=True,
    )
    assert read.returncode == 0, read.stderr
    assert read.stderr == ""
    lines = read.stdout.splitlines()
    results = json.loads((target / "run_results.json").read_text())["results"]
    failed = [r["unique_id"] for r in results if r["status"] in ("error", "fail")]
    assert set(failed) <= set(lines)
    # The hash of what was unpacked, and the one in the commit record; then the record's own.
    assert lines[-3] == lines[-4].split()[0]
    assert lines[-1] == lines[-2].split()[0]


@pytest.mark.slow
def test_a_run_can_be_recovered_by_hand(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """With aws from a bucket; where there is no aws, from a directory."""
    if not (shutil.which("zstd") and shutil.which("jq")):
        pytest.skip("needs zstd and jq")
    here = checkout("two_independent_failures", tmp_path / "here")
    kept, url, environ = tmp_path / "kept", str(tmp_path / "kept"), dict(os.environ)
    if shutil.which("aws"):
        bucket: Bucket = request.getfixturevalue("s3_bucket")
        url, environ = bucket.url, environ | bucket.environment
        here = here.having(**bucket.environment)
    assert here.recover("--archive", url, "exec", "--", "dbt", *here.expect.command).code == 1
    if url != str(kept):
        (line,) = re.findall(r"^aws s3 cp .*", FORMAT.read_text(), re.MULTILINE)
        copy = line.replace("s3://company-dbt-runs/analytics", url)
        _sh(copy, {**environ, "ARCHIVE": str(kept)})
    here.mend()

    (script,) = [b.text for b in blocks(FORMAT) if b.mark == "recover by hand"]
    state = tmp_path / "state"
    _sh(script, {**environ, "ARCHIVE": str(kept), "STATE": str(state)})
    assert here.dbt("retry", "--state", state).code == 0
    assert sorted(here.calls[-1].executed) == here.expect.retry

    # As if dbt had been killed before it came to one of its nodes.
    (commit,) = (kept / "runs").rglob("commit.json")
    commit.write_text(commit.read_text().replace('"complete": true', '"complete": false'))
    (results,) = (kept / "data").rglob("results.json.zst")
    document = json.loads(zstandard.decompress(results.read_bytes()))
    gone = document["results"].pop(-1)["unique_id"]
    results.write_bytes(zstandard.compress(json.dumps(document).encode()))
    _sh(script, {**environ, "ARCHIVE": str(kept), "STATE": str(state)})
    written = json.loads((state / "run_results.json").read_text())["results"]
    assert {r["unique_id"]: r["status"] for r in written}[gone] == "skipped"
    assert len(written) == len(document["results"]) + 1


def _sh(script: str, environ: dict[str, str]) -> None:
    ran = subprocess.run(
        ["sh", "-eu", "-c", script], env=environ, capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, "")


# README


def normalised(line: str) -> str:
    """A line without what differs from one run to the next: numbers, ids, column widths, colours."""
    line = re.sub(r"\x1b\[[0-9;]*m", "", line)
    line = re.sub(r"\b\d{4}-\d\d-\d\d-[0-9a-f]{8}\b", "RUN", line)
    return re.sub(
        r"[-\s]*-[-\s]{3,}", " -- ", re.sub(r"\s+", " ", re.sub(r"\d+", "0", line))
    ).strip()


@pytest.mark.slow
def test_transcript_in_the_readme_is_what_the_demo_prints() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "dbt_recover", "demo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
    )
    assert ran.returncode == 0, ran.stdout
    printed = iter([normalised(line) for line in ran.stdout.splitlines()])
    (transcript,) = [b.text for b in blocks(ROOT / "README.md") if b.mark == "transcript"]
    told: list[str] = []
    for line in transcript.splitlines():
        if line.strip() in ("", "..."):
            continue
        for text in printed:
            told.append(text)
            if text == normalised(line):
                break
        else:
            pytest.fail(
                f"the demo does not print, or not in this place: {line}\n" + "\n".join(told)
            )


def test_airflow_in_the_readme_is_python() -> None:
    found = [b.text for b in blocks(ROOT / "README.md") if b.language == "python"]
    assert found
    for text in found:
        ast.parse(text)


def test_make_targets_in_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for name in re.findall(r"`make (\w+)", (ROOT / "README.md").read_text("utf-8")):
        assert re.search(rf"^([\w-]+ )*{name}[: ]", makefile, re.MULTILINE), name
