"""What `plan` remembers of a project's files: never another answer than reading them gives."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dbt_recover import seen_files
from dbt_recover.checkout import VARS, Project, changes, file_hashes, open_project, read_project
from dbt_recover.graph import Graph, Node
from dbt_recover.plan import Changes
from dbt_recover.seen_files import SeenFiles

LONG_AGO = (1_700_000_000, 1_700_000_000)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project of three files, touched long ago."""
    made = tmp_path / "project"
    (made / "models" / "deep").mkdir(parents=True)
    (made / "dbt_project.yml").write_text("name: shop\nvars: {day: 2026-01-31}\n")
    (made / "models" / "a.sql").write_text("select 1")
    (made / "models" / "deep" / "b.sql").write_text("select 2")
    return made


def hashes(root: Path, memory: Path) -> dict[str, str]:
    """As a `plan` of its own sees them, which is what they are."""
    remembered = file_hashes(read_project(root, SeenFiles(memory)))
    assert remembered == file_hashes(read_project(root))
    return remembered


def test_what_is_remembered_is_not_read_again(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seen_files, "_SETTLED_NS", 0)
    first = hashes(root, tmp_path / "memory")
    assert set(first) == {"dbt_project.yml", VARS, "models/a.sql", "models/deep/b.sql"}

    def sha256_of(path: str) -> str:
        raise AssertionError(f"{path} is read")

    monkeypatch.setattr(seen_files, "sha256_of", sha256_of)
    assert file_hashes(read_project(root, SeenFiles(tmp_path / "memory"))) == first


def test_an_edit_that_keeps_size_and_mtime_is_seen(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seen_files, "_SETTLED_NS", 0)
    path = root / "models" / "a.sql"
    os.utime(path, LONG_AGO)
    before = hashes(root, tmp_path / "memory")
    path.write_text("select 3")
    os.utime(path, LONG_AGO)
    assert hashes(root, tmp_path / "memory")["models/a.sql"] != before["models/a.sql"]


def test_a_file_that_was_touched_just_now_is_not_remembered(root: Path, tmp_path: Path) -> None:
    # Its times might not change if it were written once more.
    hashes(root, tmp_path / "memory")
    assert b"a.sql" not in (tmp_path / "memory").read_bytes()


def test_files_that_are_gone_are_forgotten(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seen_files, "_SETTLED_NS", 0)
    hashes(root, tmp_path / "memory")
    (root / "models" / "a.sql").unlink()
    assert "models/a.sql" not in hashes(root, tmp_path / "memory")
    assert b"a.sql" not in (tmp_path / "memory").read_bytes()


@pytest.mark.parametrize("content", [b"", b"\xff\xff", b"\x81\xa5files\xa1x", b"\xc1" * 100])
def test_a_damaged_memory_is_no_memory(content: bytes, root: Path, tmp_path: Path) -> None:
    (tmp_path / "memory").write_bytes(content)
    assert len(hashes(root, tmp_path / "memory")) == 4


def test_where_nothing_can_be_kept_it_works_all_the_same(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert len(hashes(root, tmp_path / "file" / "memory")) == 4


def test_settings_follow_dbt_project_yml(root: Path, tmp_path: Path) -> None:
    def project() -> Project:
        made = open_project(
            None, {"XDG_CACHE_HOME": str(tmp_path / "cache")}, root, from_memory=True
        )
        file_hashes(made)
        return made

    first, again, read = project(), project(), read_project(root)
    assert (
        (first.name, first.settings) == (again.name, again.settings) == (read.name, read.settings)
    )
    (root / "dbt_project.yml").write_text("name: other\nmodel-paths: [sql]\n")
    assert project().name == "other"
    assert project().settings == {"name": "other", "model-paths": ["sql"]}


def test_links_are_followed_and_loops_are_not(root: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "shared"
    elsewhere.mkdir()
    (elsewhere / "c.sql").write_text("select 4")
    (root / "models" / "shared").symlink_to(elsewhere)
    (root / "models" / "loop").symlink_to(root / "models")
    (root / "models" / "nowhere.sql").symlink_to(tmp_path / "nothing")
    assert "models/shared/c.sql" in file_hashes(read_project(root))
    assert len(file_hashes(read_project(root))) == 5


def test_edited_vars_are_told_from_other_edits_of_the_project(root: Path) -> None:
    ran = Graph([], files=file_hashes(read_project(root)))
    path = root / "dbt_project.yml"
    path.write_text(path.read_text() + "models: {+materialized: table}\n")
    changed = changes(ran, read_project(root))
    assert (changed.structural, changed.other_vars) == (("dbt_project.yml",), False)
    path.write_text(path.read_text().replace("31", "30"))
    changed = changes(ran, read_project(root))
    assert (changed.structural, changed.other_vars) == (("dbt_project.yml",), True)


def test_a_local_package_is_edited_as_the_project_is(root: Path, tmp_path: Path) -> None:
    """dbt links it; what it has installed itself is not looked at."""
    shared = tmp_path / "shared"
    for name in ("models/stg.sql", "macros/cents.sql", "target/compiled/x.sql"):
        (shared / name).parent.mkdir(parents=True, exist_ok=True)
        (shared / name).write_text("select 1")
    (root / "dbt_packages" / "hub" / "models").mkdir(parents=True)
    (root / "dbt_packages" / "hub" / "models" / "h.sql").write_text("select 1")
    (root / "dbt_packages" / "shared").symlink_to(shared)
    files = file_hashes(read_project(root))
    assert {p for p in files if p.startswith("dbt_packages/")} == {
        "dbt_packages/shared/models/stg.sql",
        "dbt_packages/shared/macros/cents.sql",
    }
    ran = Graph(
        [
            Node("model.shared.stg", package_name="shared", original_file_path="models/stg.sql"),
            Node("model.shop.a", package_name="shop", original_file_path="models/a.sql"),
            Node("model.shop.c", package_name="shop", macros=["macro.shared.cents"]),
            Node("model.hub.h", package_name="hub", original_file_path="models/h.sql"),
        ],
        files=files,
    )
    (root / "dbt_packages" / "hub" / "models" / "h.sql").write_text("select 2")
    assert changes(ran, read_project(root)) == Changes()
    (shared / "models" / "stg.sql").write_text("select 2")
    assert changes(ran, read_project(root)).nodes == {"model.shared.stg"}
    (shared / "macros" / "cents.sql").write_text("select 2")
    assert changes(ran, read_project(root)).nodes == {"model.shared.stg", "model.shop.c"}
    # Here nobody has run `dbt deps` yet.
    (root / "dbt_packages" / "shared").unlink()
    assert changes(ran, read_project(root)) == Changes()
