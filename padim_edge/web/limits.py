"""How much a client may ask of a server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What a client gets at most; who wants more is refused, or let go of.

    Attributes:
        header_bytes: of a request's line and headers.
        body_bytes: of a request's body. More is refused before it is read where the request says
            its length, else as soon as it is more.
        connections: at once. 100 viewers of a page are one each.
        header_seconds: from the first byte of a request, or from connecting, to the end of its
            headers.
        body_seconds: from there to the end of its body.
        idle_seconds: of a connection on which nothing is asked.
        stall_seconds: of a client that takes nothing of what is sent to it.
    """

    header_bytes: int = 16 << 10
    body_bytes: int = 64 << 10
    connections: int = 256
    header_seconds: float = 10
    body_seconds: float = 30
    idle_seconds: int = 15
    stall_seconds: float = 30
