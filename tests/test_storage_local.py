"""What only a directory can do wrong: links, full disks, files of others, and what killed writers
leave behind.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbt_recover.errors import DamagedError, StorageError, UsageError
from dbt_recover.storage import local_files, open_storage
from dbt_recover.storage.base import MissingKey, PreconditionFailed, is_key
from dbt_recover.storage.local import LocalStorage


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where the archive will be; not there yet."""
    return tmp_path / "some" / "archive"


@pytest.fixture
def store(root: Path) -> LocalStorage:
    """An empty one."""
    return LocalStorage(root)


def files_below(root: Path) -> list[str]:
    """Everything that is there, whether it is an object or not."""
    return sorted(str(p.relative_to(root)) for p in root.rglob("*"))


# ---- what is left on the disk ------------------------------------------------------------------


def test_reading_creates_nothing(store: LocalStorage, root: Path) -> None:
    assert list(store.list("")) == []
    assert store.stat("x") is None
    store.delete("x")
    assert not root.parent.exists()


def test_only_the_owner_can_read_it(store: LocalStorage, root: Path) -> None:
    before = os.umask(0)
    try:
        store.write("runs/a/x", b"1")
        store.write("runs/a/y", b"1", if_absent=True)
    finally:
        os.umask(before)
    for path in (root.parent, root, *root.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert oct(mode) == oct(0o700 if path.is_dir() else 0o600), path


def test_nothing_but_the_objects_is_left(store: LocalStorage, root: Path) -> None:
    etag = store.write("a/x", b"1", if_absent=True)
    store.write("a/x", b"2", if_match=etag)
    for condition in ({"if_absent": True}, {"if_match": etag}):
        with pytest.raises(PreconditionFailed):
            store.write("a/x", b"3", **condition)
    store.write("b/c/y", b"1")
    assert files_below(root) == ["a", "a/x", "b", "b/c", "b/c/y"]
    store.delete("b/c/y")
    assert files_below(root) == ["a", "a/x"]
    store.delete("a/x")
    assert files_below(root) == []


def test_without_hard_links_if_absent_still_has_one_winner(
    store: LocalStorage, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*args: object, **kwargs: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    store.write("x", b"first", if_absent=True)
    with pytest.raises(PreconditionFailed, match="exists already"):
        store.write("x", b"second", if_absent=True)
    assert store.read("x").data == b"first"
    assert files_below(root) == ["x"]


def test_an_answer_to_a_link_that_was_lost_counts_as_success(
    store: LocalStorage, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # NFS repeats a call whose answer was lost, and the second one finds what the first made.
    link: Callable[..., None] = os.link

    def twice(*args: object, **kwargs: object) -> None:
        link(*args, **kwargs)
        link(*args, **kwargs)

    monkeypatch.setattr(os, "link", twice)
    store.write("x", b"first", if_absent=True)
    assert store.read("x").data == b"first"
    assert files_below(root) == ["x"]


def test_a_folder_that_goes_while_it_is_written_to(store: LocalStorage, root: Path) -> None:
    # A delete removes the folders it leaves empty; a write that was on its way there starts anew.
    def come_and_go(name: str) -> None:
        for _ in range(100):
            store.write(f"a/b/{name}", b"1", if_absent=True)
            store.delete(f"a/b/{name}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(come_and_go, "wxyz"))
    assert files_below(root) == []


KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from dbt_recover.storage.local import LocalStorage
real = os.write
def write(descriptor, data):
    real(descriptor, data[: len(data) // 2])
    os.kill(os.getpid(), signal.SIGKILL)
os.write = write
LocalStorage(Path(sys.argv[1])).write("a/x", b"half of this", if_absent=True)
"""


def test_a_killed_writer_leaves_nothing_to_be_seen(store: LocalStorage, root: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, str(root)])
    assert killed.returncode == -signal.SIGKILL
    assert len(files_below(root)) == 2  # a/ and what was being written: the test tests something
    assert list(store.list("")) == []
    assert store.folders("") == []
    assert store.stat("a/x") is None
    store.write("a/x", b"whole", if_absent=True)
    assert [entry.key for entry in store.list("")] == ["a/x"]


KILLED_WHILE_HOLDING_THE_LOCK = """
import fcntl, os, signal, sys
descriptor = os.open(f"{sys.argv[1]}/.#x", os.O_RDWR | os.O_CREAT)
fcntl.flock(descriptor, fcntl.LOCK_EX)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_dead_holder_holds_no_lock(store: LocalStorage, root: Path) -> None:
    etag = store.write("x", b"1")
    subprocess.run([sys.executable, "-c", KILLED_WHILE_HOLDING_THE_LOCK, str(root)])
    assert (root / ".#x").exists()
    store.write("x", b"2", if_match=etag)
    assert files_below(root) == ["x"]


def test_a_lock_that_is_never_released_is_reported(
    store: LocalStorage, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_files, "_LOCK_SECONDS", 0.05)
    etag = store.write("x", b"1")
    with (root / ".#x").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(StorageError, match=r"cannot lock .*/x: another process") as caught:
            store.write("x", b"2", if_match=etag)
    assert "fuser" in caught.value.hint
    assert store.read("x").data == b"1"


# ---- failing disks -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number, says, hint",
    [
        (errno.ENOSPC, "no space left", "df -h"),
        (errno.EDQUOT, "quota", "df -h"),
        (errno.EIO, "input/output error", "dmesg"),
    ],
)
@pytest.mark.parametrize(
    "attempt",
    [
        lambda store, etag: store.write("a/x", io.BytesIO(b"0123456789")),
        lambda store, etag: store.write("a/y", b"0123456789", if_absent=True),
        lambda store, etag: store.write("a/x", b"0123456789", if_match=etag),
    ],
    ids=["plain", "if_absent", "if_match"],
)
def test_a_full_disk_leaves_what_was_there(
    store: LocalStorage,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    says: str,
    hint: str,
    attempt: Callable[[LocalStorage, str], str],
) -> None:
    etag = store.write("a/x", b"before")
    real = os.write

    def full(descriptor: int, data: bytes) -> int:
        if len(data) <= 4:
            raise OSError(number, os.strerror(number))
        return real(descriptor, data[:-4])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(StorageError, match=rf"cannot write .*/a/[xy]: .*{says}") as caught:
            attempt(store, etag)
    assert hint in caught.value.hint
    assert str(root / "a") in caught.value.hint or number == errno.EIO
    assert isinstance(caught.value.__cause__, OSError)
    assert files_below(root) == ["a", "a/x"]
    assert store.read("a/x").data == b"before"


@pytest.mark.parametrize(
    "number, hint", [(errno.EACCES, "ls -ld"), (errno.EROFS, "writable --archive")]
)
def test_what_is_not_permitted_is_named(
    store: LocalStorage, monkeypatch: pytest.MonkeyPatch, number: int, hint: str
) -> None:
    # A mode would not do: the tests may run as root.
    store.write("a/x", b"1")

    def refuse(*args: object, **kwargs: object) -> int:
        raise OSError(number, os.strerror(number))

    attempts: list[tuple[str, Callable[[], object]]] = [
        ("write .*/a/x", lambda: store.write("a/x", b"2")),
        ("read .*/a/x", lambda: store.read("a/x")),
        ("read .*/a/x", lambda: store.open("a/x")),
        ("read .*/a/x", lambda: store.stat("a/x")),
        ("delete .*/a/x", lambda: store.delete("a/x")),
        ("list .*/a", lambda: list(store.list("a/"))),
        ("list .*/archive", lambda: store.folders("")),
    ]
    for doing, attempt in attempts:
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", refuse)
            with pytest.raises(StorageError, match=f"cannot {doing}") as caught:
                attempt()
        assert hint in caught.value.hint


def test_a_disk_that_fails_while_reading(store: LocalStorage, root: Path) -> None:
    store.write("x", b"1")
    folder = os.open(root, os.O_RDONLY)
    with store.open("x") as stream:
        os.dup2(folder, stream.fileno())  # reading fails from now on
        os.close(folder)
        with pytest.raises(StorageError, match=r"cannot read .*/x: is a directory"):
            stream.read(1)


def test_a_file_where_the_archive_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    store = LocalStorage(tmp_path / "file")
    for attempt in (
        lambda: store.read("x"),
        lambda: store.write("x", b""),
        lambda: list(store.list("")),
    ):
        with pytest.raises(UsageError, match="file is not a directory"):
            attempt()


def test_a_file_is_no_folder_and_a_folder_no_file(store: LocalStorage, root: Path) -> None:
    store.write("a/b", b"1")
    for key, condition in (("a", False), ("a", True), ("a/b/c", False), ("a/b/c", True)):
        with pytest.raises(StorageError, match=f"cannot write .*/{key}:") as caught:
            store.write(key, b"2", if_absent=condition)
        assert "folder" in caught.value.hint
    with pytest.raises(MissingKey):
        store.read("a")
    with pytest.raises(MissingKey):
        store.read("a/b/c")
    store.delete("a")
    store.delete("a/b/c")
    assert list(store.list("a/b/")) == []
    assert files_below(root) == ["a", "a/b"]


# ---- links and other things that are no objects ----------------------------------------------------


def test_no_link_is_followed(store: LocalStorage, root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    store.write("a/x", b"1")
    (root / "folder").symlink_to(outside)
    (root / "a" / "file").symlink_to(outside / "secret")
    (root / "a" / "dangling").symlink_to(outside / "new")
    (root / "inside").symlink_to(root / "a")

    for key in ("folder/secret", "a/file", "a/dangling", "inside/x"):
        attempts: list[Callable[[], object]] = [
            partial(store.read, key),
            partial(store.open, key),
            partial(store.stat, key),
            partial(store.write, key, b"2"),
            partial(store.write, key, b"2", if_absent=True),
            partial(store.write, key, b"2", if_match="x"),
            partial(store.delete, key),
        ]
        for attempt in attempts:
            with pytest.raises(DamagedError, match="is a symbolic link"):
                attempt()
    for attempt in (lambda: list(store.list("folder/")), lambda: store.folders("folder/")):
        with pytest.raises(DamagedError, match="folder is a symbolic link"):
            attempt()
    # Met on the way, they are no objects: the lesson's layout may have a link called `latest`.
    assert [entry.key for entry in store.list("")] == ["a/x"]
    assert store.folders("") == ["a"]
    assert files_below(outside) == ["secret"]
    assert (outside / "secret").read_text() == "secret"


def test_the_archive_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    LocalStorage(tmp_path / "link").write("a/x", b"1")
    assert LocalStorage(tmp_path / "real").read("a/x").data == b"1"


def test_a_fifo_does_not_stop_the_reader(store: LocalStorage, root: Path) -> None:
    store.write("x", b"1")
    os.mkfifo(root / "fifo")
    with pytest.raises(DamagedError, match="neither a file nor a directory"):
        store.read("fifo")
    assert [entry.key for entry in store.list("")] == ["x"]


def test_files_that_are_no_keys_are_not_listed(store: LocalStorage, root: Path) -> None:
    store.write("a/x", b"1")
    (root / "a" / "notes from ops.txt").write_text("")
    (root / "a" / ".#temporary").write_text("")
    (root / "b c").mkdir()
    (root / "b c" / "x").write_text("")
    assert [entry.key for entry in store.list("")] == ["a/x"]
    assert store.folders("") == ["a"]


# ---- listing -------------------------------------------------------------------------------------


def test_listing_a_day_opens_no_other(store: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    for day in range(1, 10):
        store.write(f"runs/2026-01-0{day}/a/x", b"1")
    opened: list[str] = []
    real = os.open

    def watched(path: str | Path, *args: int, **kwargs: int) -> int:
        opened.append(str(path))
        return real(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", watched)
        assert len(list(store.list("runs/2026-01-05/"))) == 1
        assert len(list(store.list("runs/2026-01-06"))) == 1
        assert len(list(store.list("runs/", since="2026-01-07"))) == 3
    days = [path for path in opened if path.startswith("2026")]
    assert days == ["2026-01-05", "2026-01-06", "2026-01-07", "2026-01-08", "2026-01-09"]


@pytest.mark.parametrize("prefix", ["", "runs/", "runs/2026-01-31/", "runs/2026-01-31/a/"])
def test_a_listing_names_the_folder_that_cannot_be_read(
    prefix: str, store: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("archive.json", "runs/2026-01-31/a/x", "runs/2026-01-31/b/x"):
        store.write(key, b"1")
    real = os.open

    def forbidding(path: str | Path, *args: int, **kwargs: int) -> int:
        if path == "a":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return real(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", forbidding)
        with pytest.raises(StorageError) as caught:
            list(store.list(prefix))
        assert [e.key for e in store.list("runs/2026-01-31/b")] == ["runs/2026-01-31/b/x"]
    closed = store.root / "runs/2026-01-31/a"
    assert caught.value.message == f"cannot list {closed}: permission denied"
    assert f"ls -ld {closed.parent} {closed}" in caught.value.hint


names = st.text(alphabet="a-./0", min_size=1, max_size=6).filter(is_key)


@given(st.sets(names, max_size=12), st.text("a-./0", max_size=3), st.text("a-.0", max_size=3))
def test_lists_what_a_sorted_set_would(
    tmp_path_factory: pytest.TempPathFactory, wanted: set[str], prefix: str, since: str
) -> None:
    # No key that is also a folder: a file system cannot hold those.
    keys = {key for key in wanted if not any(other.startswith(key + "/") for other in wanted)}
    root = tmp_path_factory.mktemp("archive")
    for key in keys:
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        (root / key).write_text("")
    store = open_storage(str(root))
    try:
        listed = [entry.key for entry in store.list(prefix, since=since)]
    except UsageError:
        assert (
            prefix.startswith("/")
            or "//" in prefix
            or "./" in prefix
            or (since and prefix and not prefix.endswith("/"))
        )
        return
    assert listed == sorted(
        key for key in keys if key.startswith(prefix) and key[len(prefix) :].split("/")[0] >= since
    )
