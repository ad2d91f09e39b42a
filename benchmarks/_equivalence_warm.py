"""dbt with its modules loaded already: a process imports dbt once, and every dbt is a fork of it.

Half of a short dbt's time is its imports, and the benchmark starts thousands. Each fork is a process
of its own that has run no dbt before; arguments, environment, directory, streams, signals and exit
code go through a small client that stands in dbt's place and dies with it, as it with the client.

    python _equivalence_warm.py SOCKET
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

CLIENT = """\
#!{python} -SE
import json, os, signal, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
request = json.dumps({{"argv": sys.argv[1:], "env": dict(os.environ), "cwd": os.getcwd()}})
stopped = []
child = 0
def forward(number, _frame):
    stopped.append(number)
    if child:
        os.kill(child, number)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, forward)
socket.send_fds(server, [len(request.encode()).to_bytes(8, "big")], [0, 1, 2])
server.sendall(request.encode())
reply = server.makefile("r")
child = int(reply.readline())
for number in stopped:
    os.kill(child, number)
code = int(reply.readline())
if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


def _receive(client: socket.socket) -> tuple[dict[str, object], list[int]]:
    head, fds, _, _ = socket.recv_fds(client, 8, 3)
    size, body = int.from_bytes(head, "big"), b""
    while len(body) < size:
        chunk = client.recv(1 << 16)
        if not chunk:
            raise ConnectionError
        body += chunk
    return json.loads(body), fds


def _become_dbt(request: dict[str, object], fds: list[int]) -> NoReturn:
    """In the fork."""
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
        os.close(fd)
    env, cwd, argv = request["env"], request["cwd"], request["argv"]
    assert isinstance(env, dict)
    assert isinstance(cwd, str)
    assert isinstance(argv, list)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.argv = ["dbt", *argv]
    from dbt.adapters.duckdb.connections import DuckDBConnectionManager
    from dbt.cli.main import cli

    code = 0
    try:
        cli()
    except SystemExit as exc:
        code = exc.code if isinstance(exc.code, int) else 1
    finally:
        DuckDBConnectionManager.close_all_connections()  # type: ignore[no-untyped-call]  # dbt-duckdb has no types
        sys.stdout.flush()
        sys.stderr.flush()
    # Threads of libraries that the parent loaded are not here to be ended.
    os._exit(code)


def serve(address: str) -> int:
    """Until stdin is closed."""
    import dbt.adapters.duckdb.impl
    import dbt.cli.main
    import dbt.task.build
    import dbt.task.retry
    import dbt.task.seed
    import dbt.task.snapshot
    import dbt.task.test  # noqa: F401  # all loaded before the first fork

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    clients: dict[int, socket.socket | None] = {}
    """pid of a dbt -> who asked for it; None when that one is gone."""
    while True:
        asking = {pid: client for pid, client in clients.items() if client is not None}
        ready, _, _ = select.select([0, listener, wake_read, *asking.values()], [], [])
        if 0 in ready and not os.read(0, 1):
            for pid in clients:
                os.kill(pid, signal.SIGKILL)
            Path(address).unlink()
            return 0
        if wake_read in ready:
            os.read(wake_read, 4096)
            for pid in list(clients):
                done, status = os.waitpid(pid, os.WNOHANG)
                if done and (client := clients.pop(pid)) is not None:
                    with suppress(OSError):
                        client.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
                    client.close()
        for pid, client in asking.items():
            if client in ready and pid in clients:  # it has nothing to say: it is gone
                os.kill(pid, signal.SIGKILL)
                client.close()
                clients[pid] = None
        if listener in ready:
            client, _ = listener.accept()
            try:
                request, fds = _receive(client)
            except (OSError, ValueError):
                client.close()
                continue
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                signal.signal(signal.SIGINT, signal.default_int_handler)
                listener.close()
                client.close()
                for other in asking.values():
                    other.close()
                os.close(wake_read)
                os.close(wake_write)
                _become_dbt(request, fds)
            for fd in fds:
                os.close(fd)
            clients[pid] = client
            with suppress(OSError):
                client.sendall(b"%d\n" % pid)


if __name__ == "__main__":
    sys.exit(serve(sys.argv[1]))
