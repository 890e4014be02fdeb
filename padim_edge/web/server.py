"""A server in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import socket
import threading
from collections.abc import Sequence
from typing import Any

from padim_edge.errors import MissingDependencyError, PadimEdgeError, UsageError
from padim_edge.web.access import Access, make_token
from padim_edge.web.guard import Guard
from padim_edge.web.limits import Limits
from padim_edge.web.protocol import limited

try:
    import uvicorn
    from starlette.types import ASGIApp
except ImportError as error:
    raise MissingDependencyError("a server", "uvicorn", "serve") from error

_SEND_BUFFER = 128 << 10  # of the kernel, a connection: what lies there of a live picture is old
_SECONDS_TO_END = 1


def parse_listen(text: str, option: str = "--page") -> tuple[str, int]:
    """Where to listen: "HOST:PORT", "[IPv6]:PORT", or a port, which is on loopback.

    Raises:
        UsageError: it is neither.
    """
    found = re.fullmatch(r"(?:(?:\[([0-9A-Fa-f:.%\w]+)\]|([^\[\]:/\s]+)):)?(\d{1,5})", text.strip())
    if not found or int(found[3]) > 65535:
        raise UsageError(
            f"{option} {text}: name a host and a port, such as 127.0.0.1:8080 for this machine "
            "alone, or 0.0.0.0:8080 for all that reach it"
        )
    return found[1] or found[2] or "127.0.0.1", int(found[3])


class Server:
    """An application, listening from `start` to `stop`.

        with Server(app, "127.0.0.1", 0) as server:
            urllib3.request("GET", server.url)

    Attributes:
        token: what a client must show; None if nothing. Where none was given and others than this
            machine can reach the server, one is made: say it to the user, once.
        made_token: whether it was.

    Args:
        app: of ASGI (Starlette). Its errors are one line of JSON with `padim_edge.web.answers`.
        host: a name or an address of this machine.
        port: 0 for a free one.
        token: 16 characters or more; None for none on loopback, else one is made.
        limits: of clients.
        open_paths: that need no token, such as one by which a supervisor asks for health.

    Raises:
        UsageError: no such token is taken.
    """

    def __init__(
        self,
        app: ASGIApp,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str | None = None,
        limits: Limits | None = None,
        open_paths: Sequence[str] = (),
    ) -> None:
        self._host, self._port = host, port
        self._limits = limits or Limits()
        alone = is_loopback(host)
        self.made_token = token is None and not alone
        self.token = make_token() if self.made_token else token
        hosts = ("localhost", "127.0.0.1", "::1", host.lower()) if alone else None
        access = Access(self.token) if self.token is not None else None
        self._app = Guard(app, self._limits, access, hosts, open_paths)
        self._uvicorn: _Uvicorn | None = None
        self._thread: threading.Thread | None = None
        self._bound: tuple[str, int] | None = None

    @property
    def url(self) -> str:
        """Where this machine finds it, with a slash at the end.

        Raises:
            UsageError: it is not started.
        """
        if self._bound is None:
            raise UsageError("this server listens nowhere: start it first")
        host, port = self._bound
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/"

    def start(self) -> None:
        """Listen; the port is bound and answers when this returns.

        Raises:
            PadimEdgeError: it cannot be bound: it is taken, or no address of this machine.
        """
        listening = _bind(self._host, self._port)
        self._bound = (listening.getsockname()[0], listening.getsockname()[1])
        config = uvicorn.Config(
            self._app,
            http=limited(self._limits),
            ws="none",
            lifespan="off",
            loop="asyncio",
            log_config=None,
            log_level="critical",  # what clients do wrong is no news
            access_log=False,
            server_header=False,
            proxy_headers=False,  # nobody is believed to be somebody else
            h11_max_incomplete_event_size=self._limits.header_bytes,
            timeout_keep_alive=self._limits.idle_seconds,
            timeout_graceful_shutdown=_SECONDS_TO_END,
        )
        server = self._uvicorn = _Uvicorn(config)

        def run() -> None:
            try:
                server.run([listening])
            finally:
                listening.close()
                server.up.set()

        self._thread = threading.Thread(target=run, name=f"web {self._bound[1]}", daemon=True)
        self._thread.start()
        server.up.wait()
        if not server.started:
            raise PadimEdgeError(f"the server on {self._host}:{self._port} did not start")

    @property
    def is_idle(self) -> bool:
        """Whether all requests, of which the headers have come, are answered and sent."""
        if self._uvicorn is None:
            return True
        connections: list[Any] = list(self._uvicorn.server_state.connections)
        return not any(each.is_busy for each in connections)

    def stop(self) -> None:
        """Answer no more, let go of everybody, end the thread. Twice is harmless."""
        if self._uvicorn is not None and self._thread is not None:
            self._uvicorn.should_exit = True
            self._thread.join()
        self._uvicorn = self._thread = self._bound = None

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class _Uvicorn(uvicorn.Server):
    """One that says when it is up, and leaves no connection behind."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        left: list[Any] = list(self.server_state.connections)
        for connection in left:
            connection.transport.abort()
        await asyncio.sleep(0)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    if host.lower() == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    return False


def _bind(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        PadimEdgeError: it cannot.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise _not_here(host, port, error) from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        listening.bind(address)
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise _not_here(host, port, error) from error
    return listening


def _not_here(host: str, port: int, error: OSError) -> PadimEdgeError:
    return PadimEdgeError(
        f"cannot listen on {host}:{port}: {error.strerror or error}; choose another port, or an "
        "address of this machine (127.0.0.1, 0.0.0.0)"
    )
