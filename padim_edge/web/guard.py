"""What every request passes before an application sees it, and every answer on its way out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib import resources
from typing import Any
from urllib.parse import parse_qs, urlsplit

from padim_edge.errors import MissingDependencyError
from padim_edge.web.access import PAUSE, Access
from padim_edge.web.answers import MISTAKE, refusal
from padim_edge.web.limits import Limits

try:
    from starlette.datastructures import Headers, MutableHeaders
    from starlette.exceptions import HTTPException
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
except ImportError as error:
    raise MissingDependencyError("a server", "starlette", "serve") from error

log = logging.getLogger(__name__)

READING = ("GET", "HEAD", "OPTIONS")
"""Methods that change nothing."""

SECURITY = {
    "content-security-policy": (
        "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; "
        "form-action 'self'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # Not no-referrer, with which a browser says "null" for the origin of a form, the login's too.
    "referrer-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
"""Headers of every answer."""

LOGIN = {"/login": ("login.html", "text/html"), "/login.css": ("login.css", "text/css")}
"""What is shown to everybody, where a token is needed."""

BASE = "/base.css"
"""What all pages begin with."""

_LONGEST_LOGIN = 4096  # bytes of its form


class Guard:
    """An application behind limits, checks, a token, and headers that hold a browser back.

    Args:
        app: what is guarded.
        limits: of sizes.
        access: the token; None for everybody.
        hosts: names by which this server may be called, in lower case; None for any. A server on
            loopback names its own, or any page in a browser here could read it, by a name of the
            attacker's that is made to mean 127.0.0.1 (DNS rebinding).
        open_paths: that need no token.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        access: Access | None,
        hosts: Sequence[str] | None,
        open_paths: Sequence[str] = (),
    ) -> None:
        self._app, self._limits, self._access, self._hosts = app, limits, access, hosts
        self._open = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(raw=message.setdefault("headers", []))
                for name, value in SECURITY.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
            await send(message)

        read = 0

        async def receiving() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._limits.body_bytes:
                raise HTTPException(413, self._body_limit, {"connection": "close"})
            return message

        try:
            answer = self._refused(scope) or await self._outside(scope, receiving)
            await (answer or self._app)(scope, receiving, sending)
        except HTTPException as error:
            if not started:
                answer = refusal(error.status_code, error.detail, error.headers)
                await answer(scope, receive, sending)
        except Exception:
            # The reason is the operator's to read, not the client's.
            log.exception("%s %r failed", scope["method"], scope["path"])
            if not started:
                await refusal(500, MISTAKE)(scope, receive, sending)

    def _refused(self, scope: Scope) -> Response | None:
        """Why a request makes no sense to anybody; None if it does."""
        headers = Headers(scope=scope)
        size = len(scope["raw_path"]) + len(scope["query_string"])
        size += sum(len(name) + len(value) + 4 for name, value in scope["headers"])
        if size > self._limits.header_bytes:
            return _last(431, f"headers of at most {self._limits.header_bytes} bytes are read")
        named = headers.getlist("host")
        if self._hosts is not None and (len(named) != 1 or _host(named[0]) not in self._hosts):
            return _last(
                421, f"this server is called {self._hosts[0]}: ask for it by that name, not another"
            )
        site = headers.get("sec-fetch-site", "same-origin")
        if scope["method"] not in READING:
            origin = headers.get("origin")
            own = origin is None or _is_own(origin, named[0] if named else "")
            if not own or site not in ("same-origin", "none"):
                return _last(403, "another page asked for this: open this server's own page")
        elif site == "cross-site" and headers.get("sec-fetch-mode") != "navigate":
            return _last(403, "another site's page asked for this: open this server's own page")
        if "transfer-encoding" in headers and "content-length" in headers:
            # Whoever stands in between may have believed the other: RFC 9112, 6.1.
            return _last(
                400, "a body has one length: Content-Length or Transfer-Encoding, not both"
            )
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._limits.body_bytes:
            return _last(413, self._body_limit)
        return None

    async def _outside(self, scope: Scope, receive: Receive) -> Response | None:
        """What is answered to who shows no token; None to who does, or needs none."""
        headers, path = Headers(scope=scope), scope["path"]
        if path == BASE and scope["method"] in ("GET", "HEAD"):
            return _page("base.css", "text/css")
        if self._access is None:
            return None
        address = scope["client"][0] if scope["client"] else ""
        port = scope["server"][1] or 0
        if path == "/login" and scope["method"] == "POST":
            shown = parse_qs((await _form(receive)).decode("ascii", "replace")).get("token", [""])
            passed = self._access.try_token(shown[0].strip(), address)
            if passed is None:
                return _slower()
            if not passed:
                return _page("login.html", "text/html", 401, wrong=True)
            # Behind a proxy that ends TLS only the browser knows that there is any.
            secure = headers.get("origin", "").lower().startswith("https://")
            cookie = self._access.cookie(port, secure)
            return Response(status_code=303, headers={"location": "/", "set-cookie": cookie})
        if path in LOGIN and scope["method"] in ("GET", "HEAD"):
            return _page(*LOGIN[path])
        if path in self._open or self._access.has_session(headers.get("cookie", ""), port):
            return None
        kind, _, shown_token = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            passed = self._access.try_token(shown_token.strip(), address)
            if passed:
                return None
            if passed is None:
                return _slower()
        elif scope["method"] == "GET" and (
            # Without TLS a browser says Sec-Fetch-Mode on loopback alone.
            headers.get("sec-fetch-mode") == "navigate" or "text/html" in headers.get("accept", "")
        ):
            return Response(status_code=303, headers={"location": "/login"})
        return refusal(
            401,
            "a token is needed, and this is none: send the header 'Authorization: Bearer TOKEN', "
            "or open /login",
            {"www-authenticate": 'Bearer realm="padim-edge"'},
        )

    @property
    def _body_limit(self) -> str:
        return f"a body of at most {self._limits.body_bytes} bytes is taken"


def _last(status: int, message: str) -> Response:
    """A refusal after which nothing more is read from there."""
    return refusal(status, message, {"connection": "close"})


def _slower() -> Response:
    return refusal(
        429,
        f"too many wrong tokens from this address: try again in {PAUSE:.0f} seconds",
        {"retry-after": f"{PAUSE:.0f}"},
    )


def _page(name: str, kind: str, status: int = 200, wrong: bool = False) -> Response:
    """A file that lies beside this one."""
    text = resources.files(__package__).joinpath(name).read_text("utf-8")
    said = "That was not the token." if wrong else ""
    return Response(text.replace("$said", said), status, media_type=kind)


async def _form(receive: Receive) -> bytes:
    """The body of a login."""
    body = bytearray()
    while True:
        message: Any = await receive()
        body += message.get("body", b"")
        if len(body) > _LONGEST_LOGIN:
            raise HTTPException(413, f"a login of at most {_LONGEST_LOGIN} bytes is taken")
        if message["type"] == "http.disconnect" or not message.get("more_body"):
            return bytes(body)


def _is_own(origin: str, host: str) -> bool:
    """Whether a page is of the host and port that it asks, with TLS before this server or not."""
    scheme, _, place = origin.lower().partition("://")
    usual = {"http": ":80", "https": ":443"}.get(scheme)
    return usual is not None and place.removesuffix(usual) == host.lower().removesuffix(usual)


def _host(header: str) -> str:
    """The name in a header Host, without the port."""
    try:
        return (urlsplit(f"//{header}").hostname or "").lower()
    except ValueError:
        return ""
