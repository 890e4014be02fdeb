"""HTTP by hand: requests that no client library would send."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

DEADLINE = 30.0
"""Seconds after which a test has failed, however slow the machine is."""


@contextlib.contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    """A connection to a server."""
    place = urlsplit(url)
    with socket.create_connection((place.hostname, place.port), DEADLINE) as one:
        yield one


def until_closed(one: socket.socket) -> bytes:
    """All that comes before the server closes; fails if it does not."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while data := one.recv(1 << 16):
            received += data
    return received


def answer(one: socket.socket) -> tuple[int, bytes, bytes]:
    """The status, head and body of an answer that states its length."""
    received = b""
    while b"\r\n\r\n" not in received:
        data = one.recv(1 << 16)
        assert data, received
        received += data
    head, _, body = received.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
    wanted = int(lengths[0].partition(b":")[2]) if lengths else 0
    while len(body) < wanted:
        data = one.recv(1 << 16)
        assert data, received
        body += data
    return status(head), head, body


def ask(url: str, request: bytes) -> tuple[int, bytes, bytes]:
    """What is answered to these bytes."""
    with connected(url) as one:
        one.sendall(request)
        return answer(one)


def status(received: bytes) -> int:
    """Of an answer; 0 if there is none."""
    return int(received.split()[1]) if received.startswith(b"HTTP/1.1 ") else 0


def get(path: str = "/", host: str = "127.0.0.1", *headers: str, method: str = "GET") -> bytes:
    """A request."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1")
