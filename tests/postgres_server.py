"""A PostgreSQL of our own: a fresh cluster on a free port of 127.0.0.1, gone with its context."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from projects import PATIENCE
from servers import ServerUnavailable, free_ports

_PLACES = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql*/bin")


@dataclass(frozen=True)
class Postgres:
    """A running server; its superuser is `postgres`. Nobody needs a password but `knocks`, and
    `barred` is not let in."""

    binaries: Path
    port: int

    def sql(self, text: str, database: str = "postgres") -> str:
        """What psql prints of it: rows as lines, columns between bars."""
        done = subprocess.run(
            [
                *(str(self.binaries / "psql"), "-XqAt", "-v", "ON_ERROR_STOP=1", "-c", text),
                *("-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", "-d", database),
            ],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def waits(self, query: str, text: str = "t") -> None:
        """Until the query answers so."""
        give_up = time.monotonic() + PATIENCE
        while self.sql(query) != text:
            assert time.monotonic() < give_up, f"never: {query}"
            time.sleep(0.1)

    def tables(self, schema: str) -> dict[str, list[str]]:
        """Name -> sorted rows of every table and view of a schema."""
        names = self.sql(
            f"select table_name from information_schema.tables where table_schema = '{schema}'"
        )
        return {
            name: sorted(self.sql(f'select * from {schema}."{name}"').splitlines())
            for name in names.splitlines()
        }


@contextmanager
def postgres_server() -> Iterator[Postgres]:
    """Make a cluster and start it. ServerUnavailable says why there is none."""
    # Not below pytest's own directory, which is closed to the user that the server runs as.
    with (
        tempfile.TemporaryDirectory(prefix="postgres-") as directory,
        _served(Path(directory)) as server,
    ):
        yield server


@contextmanager
def _served(directory: Path) -> Iterator[Postgres]:
    found = sorted(p for place in _PLACES for p in Path("/").glob(place.lstrip("/")))
    on_path = shutil.which("initdb")
    if not found and not on_path:
        raise ServerUnavailable("no PostgreSQL here (on Debian: apt-get install postgresql)")
    binaries = found[-1] if found else Path(str(on_path)).resolve().parent
    data = directory / "data"
    # PostgreSQL refuses to run as root.
    user = "nobody" if os.getuid() == 0 else None
    if user:
        shutil.chown(directory, user)
    made = subprocess.run(
        [
            str(binaries / "initdb"),
            "-D",
            str(data),
            "-U",
            "postgres",
            "-A",
            "trust",
            "-N",
            "-E",
            "UTF8",
            "--locale=C",
        ],
        user=user,
        cwd=directory,
        capture_output=True,
        text=True,
    )
    if made.returncode != 0:
        raise ServerUnavailable(f"initdb: {made.stderr[-300:]}")
    access = data / "pg_hba.conf"
    access.write_text(
        "host all knocks 127.0.0.1/32 scram-sha-256\nhost all barred 127.0.0.1/32 reject\n"
        + access.read_text()
    )
    (port,) = free_ports(1)
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(str(binaries / "postgres"), "-D", str(data), "-p", str(port)),
                *("-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="),
                *("-c", "fsync=off", "-c", "deadlock_timeout=200ms", "-c", "max_connections=20"),
            ],
            stdout=log,
            stderr=log,
            user=user,
            cwd=directory,
        )
    server = Postgres(binaries, port)
    try:
        give_up = time.monotonic() + PATIENCE
        ready = [str(binaries / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
        while subprocess.run(ready).returncode != 0:
            if process.poll() is not None or time.monotonic() > give_up:
                said = (directory / "log").read_text()[-300:]
                raise ServerUnavailable(f"PostgreSQL does not start: {said}")
            time.sleep(0.1)
        yield server
    finally:
        process.kill()
        process.wait()
