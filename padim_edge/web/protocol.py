"""HTTP/1.1 as uvicorn speaks it, with an end to everybody's patience."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from padim_edge.errors import MissingDependencyError
from padim_edge.web.limits import Limits

try:
    import h11
    from uvicorn.protocols.http.h11_impl import H11Protocol
except ImportError as error:
    raise MissingDependencyError("a server", "uvicorn", "serve") from error

_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"Connection: close\r\nRetry-After: 10\r\n\r\ntoo many connections: close some, or come later\n"
)
_LATE = (
    b"HTTP/1.1 408 Request Timeout\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"Connection: close\r\n\r\nthe request took too long\n"
)


class LimitedProtocol(H11Protocol):
    """One connection. uvicorn limits the size of headers and the idle time; the rest is here."""

    limits: ClassVar[Limits] = Limits()

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._part: object = None  # of a request that is waited for: its headers, its body
        self._patience: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count it, and expect a request."""
        super().connection_made(transport)
        # One byte that the kernel does not take is a stall, or its client would stay for ever.
        transport.set_write_buffer_limits(high=0)
        if len(self.connections) > self.limits.connections:
            transport.write(_BUSY)
            transport.close()
            return
        self._expect(h11.IDLE)

    @property
    def is_busy(self) -> bool:
        """Whether a request is not answered, or its answer not taken; in any thread."""
        cycle, flow = self.cycle, self.flow
        waits = flow is not None and flow.write_paused
        return waits or (cycle is not None and not cycle.response_complete)

    def data_received(self, data: bytes) -> None:
        """Go on; each part of a request has its time, however small the pieces it comes in."""
        if self.transport.is_closing():
            return
        idle = self._part is None and self.conn.their_state in (h11.IDLE, h11.DONE)
        super().data_received(data)
        self._expect(self.conn.their_state, begun=idle)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP; after an answer there is none to be given any more."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.close()

    def on_response_complete(self) -> None:
        """Expect nothing, or what was sent of the next request already."""
        super().on_response_complete()
        self._expect(self.conn.their_state)
        if self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]:
            self._expect(None)  # the idle time counts now

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers."""
        self._expect(None)
        self._unstall()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client takes less than it is given: not for ever."""
        super().pause_writing()
        if self._stalled is None:
            self._stalled = self.loop.call_later(self.limits.stall_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """It took some."""
        self._unstall()
        super().resume_writing()

    def _unstall(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _expect(self, part: object, begun: bool = False) -> None:
        """Have a timer for the part of a request that is not whole yet, and no other."""
        if part not in (h11.IDLE, h11.SEND_BODY):
            part = None
        if part is self._part and not begun:
            return
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        self._part = part
        if part is not None and not self.transport.is_closing():
            body = part is h11.SEND_BODY
            seconds = self.limits.body_seconds if body else self.limits.header_seconds
            self._patience = self.loop.call_later(seconds, self._give_up)

    def _give_up(self) -> None:
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            self.transport.write(_LATE)
        self.transport.abort()  # nothing that is taken is lost, and nobody is waited for


def limited(limits: Limits) -> type[LimitedProtocol]:
    """The protocol under these limits."""
    return type("LimitedProtocol", (LimitedProtocol,), {"limits": limits})
