"""A front of bytes, not of HTTP, before any server on loopback: it can go away and come back, cut an
answer in the middle, and hold a connection open without ever a word.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from servers import free_ports


@dataclass
class TcpFront:
    """An address that leads to a server, while it is open."""

    port: int
    upstream: int
    pairs: dict[int, tuple[socket.socket, socket.socket]] = field(default_factory=dict)
    """Our own port, as the server sees it -> the client's socket and the one to the server."""
    cuts: dict[int, int] = field(default_factory=dict)
    """The same -> how many more bytes of the answer pass before the connection is reset."""
    held: set[int] = field(default_factory=set)
    """Connections that stay open, and over which nothing passes any more."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    listener: socket.socket | None = None
    mute: bool = False
    """Whether what connects from now on is held at once."""

    def open(self) -> None:
        """Be there."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(64)
        self.listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def shut(self) -> None:
        """Nobody listens any more; what is connected stays so."""
        if self.listener is not None:
            # Wakes the thread that waits in accept, which keeps the port otherwise.
            with suppress(OSError):
                self.listener.shutdown(socket.SHUT_RDWR)
            self.listener.close()
            self.listener = None

    def close(self) -> None:
        """Be gone: nobody listens, and every connection is reset."""
        self.shut()
        with self.lock:
            pairs, self.pairs = self.pairs, {}
        for pair in pairs.values():
            _reset(pair)

    def cut(self, port: int, size: int) -> None:
        """Of the next answer on this connection only the first `size` bytes arrive."""
        with self.lock:
            self.cuts[port] = size

    def hold(self, port: int) -> None:
        """Nothing passes over this connection any more, and nobody closes it."""
        with self.lock:
            self.held.add(port)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self.upstream))
            port = server.getsockname()[1]
            with self.lock:
                self.pairs[port] = (client, server)
                if self.mute:
                    self.held.add(port)
            for source, sink, answers in ((client, server, False), (server, client, True)):
                threading.Thread(
                    target=self._pass, args=(port, source, sink, answers), daemon=True
                ).start()

    def _pass(self, port: int, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                with self.lock:
                    left = self.cuts.get(port) if answers else None
                    if left is not None:
                        self.cuts[port] = left - len(data)
                    held = port in self.held
                if held:
                    continue
                if left is not None and left < len(data):
                    sink.sendall(data[:left])
                    break
                sink.sendall(data)
            else:
                if port not in self.held:
                    sink.shutdown(socket.SHUT_WR)
                return
        with self.lock:
            pair = self.pairs.pop(port, None)
        if pair:
            _reset(pair)


def _reset(pair: tuple[socket.socket, socket.socket]) -> None:
    for end in pair:
        with suppress(OSError):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            end.shutdown(socket.SHUT_RDWR)
        end.close()


@contextmanager
def tcp_front(upstream: int, *, opened: bool = True) -> Iterator[TcpFront]:
    """A front before the server on this port of loopback."""
    (port,) = free_ports(1)
    front = TcpFront(port, upstream)
    if opened:
        front.open()
    try:
        yield front
    finally:
        front.close()
