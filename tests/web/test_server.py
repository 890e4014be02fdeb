"""Servers: a thread of their own, and what hostile clients get from them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from raw_http import DEADLINE, answer, ask, connected, get, status, until_closed
from scripted import wait_for

from padim_edge.errors import ImageError, PadimEdgeError, UsageError

pytest.importorskip("uvicorn", reason="needs uvicorn: pip install 'padim-edge[serve]'")
pytest.importorskip("starlette", reason="needs starlette: pip install 'padim-edge[serve]'")

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from padim_edge.web import answers, server
from padim_edge.web.limits import Limits
from padim_edge.web.server import Server, is_loopback, parse_listen

TIGHT = Limits(
    header_bytes=2048,
    body_bytes=1000,
    connections=4,
    header_seconds=0.3,
    body_seconds=0.3,
    idle_seconds=1,
    stall_seconds=0.3,
)
PATIENT = Limits(header_bytes=2048, body_bytes=1000)
SECURE = (
    b"nosniff",
    b"frame-ancestors 'none'",
    b"referrer-policy: same-origin",
    b"x-frame-options: deny",
)


class App:
    """An application that knows who reached it."""

    def __init__(self) -> None:
        self.reached: list[str] = []
        self.left = threading.Event()
        self.waiting = lambda: 0  # bytes for a client that the kernel did not take
        self.app = Starlette(
            routes=[
                Route("/", self.echo, methods=["GET", "POST"]),
                Route("/health", self.echo),
                Route("/fail", self.fail),
                Route("/refuse", self.refuse),
                Route("/flood", self.flood),
                Route("/fill", self.fill),
            ],
            exception_handlers=answers.HANDLERS,
        )

    async def echo(self, request: Request) -> Response:
        self.reached.append(request.method)
        return answers.answer({"bytes": len(await request.body())})

    def fail(self, _: Request) -> Response:
        raise RuntimeError("/etc/secret was read")

    def refuse(self, request: Request) -> Response:
        kinds = {"usage": UsageError, "image": ImageError}
        raise kinds[request.query_params["kind"]]("the reason")

    async def flood(self, _: Request) -> Response:
        async def endless():
            try:
                while True:
                    yield bytes(1 << 16)
                    await asyncio.sleep(0)
            finally:
                self.left.set()

        return StreamingResponse(endless())

    async def fill(self, _: Request) -> Response:
        async def filling():
            try:
                while not self.waiting():
                    yield bytes(1 << 12)
                await asyncio.Event().wait()
            finally:
                self.left.set()

        return StreamingResponse(filling())


@contextlib.contextmanager
def serving(limits: Limits = PATIENT, **options) -> Iterator[tuple[Server, App]]:
    app = App()
    with Server(app.app, limits=limits, **options) as one:
        yield one, app


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[Server, App]]:
    with serving() as pair:
        yield pair


@pytest.fixture(scope="module")
def tight() -> Iterator[tuple[Server, App]]:
    with serving(TIGHT) as pair:
        yield pair


# ------------------------------------------------------------------------------------- a thread


def test_it_answers_from_start_to_stop_and_leaves_nothing_behind():
    one = Server(App().app)
    with pytest.raises(UsageError, match="start it first"):
        _ = one.url
    one.start()
    url = one.url
    (thread,) = [each for each in threading.enumerate() if each.name == f"web {urlsplit(url).port}"]
    with connected(url) as idle, connected(url) as flooded:
        flooded.sendall(get("/flood"))
        assert flooded.recv(1000)
        one.stop()
        assert not thread.is_alive()
        assert until_closed(idle) == b""
        until_closed(flooded)
    with pytest.raises(ConnectionRefusedError), connected(url):
        pass
    one.stop()
    one.start()  # and again
    assert ask(one.url, get())[0] == 200
    one.stop()


def test_a_port_that_is_taken_is_one_line():
    with serving() as (one, _):
        port = urlsplit(one.url).port
        with pytest.raises(PadimEdgeError, match=rf"cannot listen on 127.0.0.1:{port}: .*in use"):
            Server(App().app, "127.0.0.1", port).start()
    with pytest.raises(PadimEdgeError, match=r"cannot listen on 192\.0\.2\.1:0"):
        Server(App().app, "192.0.2.1", token="x" * 16).start()


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("127.0.0.1:8080", ("127.0.0.1", 8080)),
        ("0.0.0.0:0", ("0.0.0.0", 0)),
        ("line-3.local:80", ("line-3.local", 80)),
        ("[::1]:8080", ("::1", 8080)),
        ("8080", ("127.0.0.1", 8080)),
    ],
)
def test_where_to_listen(text, place):
    assert parse_listen(text) == place


@pytest.mark.parametrize(
    "text", ["", "host", "host:", ":80", "::1:80", "a:b:80", "h:70000", "h:-1"]
)
def test_what_is_no_place_to_listen(text):
    with pytest.raises(UsageError, match=r"--page .*name a host and a port"):
        parse_listen(text)


def test_which_hosts_are_this_machine_alone():
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.9.9.9", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.org", "localhost.evil")))


# --------------------------------------------------------------------------------- too much, late


def test_headers_that_never_end_are_refused(both):
    one, app = both
    before = len(app.reached)
    with connected(one.url) as client:
        with contextlib.suppress(ConnectionError):
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ")
            for _ in range(1000):
                client.sendall(b"x" * 1000)
        received = until_closed(client)
    assert status(received) in (0, 400, 431)  # 0: reset, as more came than was read
    assert len(app.reached) == before


@pytest.mark.parametrize(
    "request_",
    [
        get("/", "localhost", "X: " + "x" * 4000),
        get("/", "localhost", *(f"X-{n}: y" for n in range(500))),
        get("/" + "x" * 4000, "localhost"),
        get("/?" + "x" * 4000, "localhost"),
    ],
    ids=["long", "many", "path", "query"],
)
def test_large_headers_are_refused_also_where_they_come_at_once(both, request_):
    one, app = both
    before = len(app.reached)
    assert ask(one.url, request_)[0] in (400, 431)
    assert len(app.reached) == before


def test_a_body_that_says_it_is_too_long_is_not_read(both):
    one, app = both
    before = len(app.reached)
    code, head, body = ask(one.url, get("/", "localhost", "Content-Length: 1001", method="POST"))
    assert (code, body) == (413, b'{"error":"a body of at most 1000 bytes is taken"}\n')
    assert b"connection: close" in head
    assert len(app.reached) == before
    code, _, body = ask(
        one.url, get("/", "localhost", "Content-Length: 1000", method="POST") + bytes(1000)
    )
    assert (code, body) == (200, b'{"bytes":1000}\n')


def test_a_body_that_grows_too_long_is_refused(both):
    piece = b"1f4\r\n" + bytes(500) + b"\r\n"
    head = get("/", "localhost", "Transfer-Encoding: chunked", method="POST")
    assert ask(both[0].url, head + 3 * piece)[0] == 413
    assert ask(both[0].url, head + 2 * piece + b"0\r\n\r\n")[2] == b'{"bytes":1000}\n'


def test_a_body_of_two_lengths_ends_the_connection(both):
    one, app = both
    app.reached.clear()
    twice = ("Content-Length: 4", "Transfer-Encoding: chunked")
    with connected(one.url) as client:
        client.sendall(get("/", "localhost", *twice, method="POST") + b"0\r\n\r\n" + get("/"))
        received = until_closed(client)
    assert status(received) == 400
    assert received.count(b"HTTP/1.1 ") == 1
    assert b"Content-Length or Transfer-Encoding, not both" in received
    assert app.reached == []


def test_garbage_after_a_refusal_is_no_error_of_the_server(caplog):
    with serving(token="0123456789abcdef") as (one, _), connected(one.url) as client:
        client.sendall(get("/", "localhost", "Transfer-Encoding: chunked", method="POST"))
        assert answer(client)[0] == 401
        client.sendall(b"zz\r\n")
        assert until_closed(client) == b""
    assert caplog.text == ""


@pytest.mark.parametrize("length", ["-1", "1e3", "x", "9" * 60, "1, 2"])
def test_lengths_that_are_none(both, length):
    request = get("/", "localhost", f"Content-Length: {length}", method="POST")
    assert ask(both[0].url, request)[0] in (400, 413)


@pytest.mark.parametrize(
    ("first", "rest"),
    [
        (b"", b""),
        (b"G", b"E"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n", b"X: y\r\n"),
        (get() + b"GET", b" "),
        (get("/", "localhost", "Content-Length: 900", method="POST"), b"x"),
    ],
    ids=["silent", "first", "headers", "second", "body"],
)
def test_slow_requests_end_however_often_a_byte_comes(tight, first, rest):
    one, _ = tight
    with connected(one.url) as client:
        client.sendall(first)
        if first.startswith(get()):
            assert answer(client)[0] == 200
        client.settimeout(0.05)
        received = b""
        for _ in range(600):
            try:
                data = client.recv(1000)
            except TimeoutError:
                with contextlib.suppress(ConnectionError):
                    client.sendall(rest)
                continue
            except ConnectionError:
                break
            if not data:
                break
            received += data
        else:
            pytest.fail("the connection is still open")
    assert status(received) in (0, 408)


def test_a_client_that_takes_nothing_is_let_go_of(tight):
    one, app = tight
    with connected(one.url) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(get("/flood"))
        assert app.left.wait(DEADLINE)


def test_a_client_is_let_go_of_also_if_the_kernel_took_nearly_all():
    with serving(TIGHT) as (one, app), connected(one.url) as client:
        connections = one._uvicorn.server_state.connections
        app.waiting = lambda: sum(each.transport.get_write_buffer_size() for each in connections)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(get("/fill"))
        assert app.left.wait(DEADLINE)


def test_of_too_many_connections_the_last_are_refused():
    # With times that do not pass meanwhile, however slow the machine is.
    with serving(Limits(connections=4)) as (one, _), contextlib.ExitStack() as stack:
        held = [stack.enter_context(connected(one.url)) for _ in range(4)]
        for client in held:
            client.sendall(get())
            assert answer(client)[0] == 200  # it is counted, and stays open
        refused = stack.enter_context(connected(one.url))
        assert b"503 Service Unavailable" in until_closed(refused)
        for client in held:
            client.close()
        for _ in range(1000):
            with connected(one.url) as client:
                client.sendall(get())
                if status(client.recv(1000)) == 200:
                    return
        pytest.fail("nobody gets in although all others went")


# -------------------------------------------------------------------------------------- nonsense

TRICKS = [
    "/../../etc/passwd",
    "/%2e%2e/%2e%2e/etc/passwd",
    "/..%2f..%2fetc/passwd",
    "/..%5c..%5cetc",
    "//etc/passwd",
    "/etc/passwd%00.css",
    "/page.css/../../app.py",
    "/%ff%fe",
    "/login.html",
    "file:///etc/passwd",
    "http://localhost/etc/passwd",
    "*",
]


@pytest.mark.parametrize("path", TRICKS)
def test_no_path_leads_to_a_file(both, path):
    code, head, body = ask(both[0].url, get(path, "localhost"))
    assert code in (400, 404)
    assert b"root:" not in body
    assert code == 400 or body == b'{"error":"there is nothing here"}\n'
    assert code == 400 or all(one in head.lower() for one in SECURE)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100) + b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nA\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\x00b\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_garbage_is_refused_in_one_line(both, garbage):
    with connected(both[0].url) as client:
        client.sendall(garbage)
        client.shutdown(socket.SHUT_WR)
        received = until_closed(client)
    assert status(received) in (400, 421, 501)
    assert b"Traceback" not in received


def test_a_websocket_is_not_opened(both):
    request = get("/", "localhost", "Connection: Upgrade", "Upgrade: websocket")
    assert ask(both[0].url, request)[0] == 200  # an ordinary answer


# ---------------------------------------------------------------------------------- whose request


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST:8080", "[::1]:8080"])
def test_this_machine_is_called_by_its_names(both, host):
    assert ask(both[0].url, get("/", host))[0] == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "localhost.evil", "192.168.0.1", "[", "", "a@b@c"],
)
def test_by_another_name_nothing_is_served(both, host):
    one, app = both
    before = len(app.reached)
    assert ask(one.url, get("/", host))[0] in (400, 421)
    assert len(app.reached) == before


def test_without_a_name_or_with_two_nothing_is_served(both):
    one, app = both
    before = len(app.reached)
    for request in (
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        get("/", "localhost", "Host: evil.example"),
    ):
        assert ask(one.url, request)[0] in (400, 421)
    assert len(app.reached) == before


def own(one: Server) -> str:
    return one.url.rstrip("/")


@pytest.mark.parametrize(
    "headers",
    [
        ["Origin: https://evil.example"],
        ["Origin: null"],
        ["Origin: http://127.0.0.1:1"],
        ["Sec-Fetch-Site: cross-site"],
        ["Sec-Fetch-Site: same-site"],
    ],
)
def test_another_page_changes_nothing(both, headers):
    one, app = both
    before = len(app.reached)
    host = urlsplit(one.url).netloc
    code, _, body = ask(one.url, get("/", host, "Content-Length: 0", *headers, method="POST"))
    assert code == 403
    assert b"another page asked for this" in body
    assert len(app.reached) == before


def test_the_own_page_and_programs_may(both):
    one, _ = both
    host = urlsplit(one.url).netloc
    for headers in ([], [f"Origin: {own(one)}", "Sec-Fetch-Site: same-origin"]):
        request = get("/", host, "Content-Length: 0", *headers, method="POST")
        assert ask(one.url, request)[0] == 200


def test_the_own_page_behind_a_proxy_that_ends_tls_may_too():
    with serving(host="0.0.0.0", token="x" * 16) as (one, _):
        body = "token=" + "x" * 16
        for origin, host, wanted in (
            ("https://line-3.example", "line-3.example", 303),
            ("https://line-3.example", "Line-3.example:443", 303),
            ("https://line-3.example:8443", "line-3.example:8443", 303),
            ("https://line-3.example:8443", "line-3.example", 403),
            ("https://line-3.example:80", "line-3.example", 403),
            ("https://evil.example", "line-3.example", 403),
            ("ftp://line-3.example", "line-3.example", 403),
        ):
            headers = (f"Origin: {origin}", f"Content-Length: {len(body)}")
            request = get("/login", host, *headers, method="POST") + body.encode()
            code, head, _ = ask(one.url, request)
            assert (code, b"; Secure" in head) == (wanted, wanted == 303), (origin, host)


def test_another_site_may_lead_here_but_not_load_from_here(both):
    url = both[0].url
    cross = "Sec-Fetch-Site: cross-site"
    assert ask(url, get("/", "localhost", cross, "Sec-Fetch-Mode: navigate"))[0] == 200
    assert ask(url, get("/", "localhost", cross, "Sec-Fetch-Mode: no-cors"))[0] == 403


# ----------------------------------------------------------------------------------------- errors


def test_errors_are_a_line_of_json_and_traces_are_the_operators(both, caplog):
    url = both[0].url
    with caplog.at_level(logging.ERROR, "padim_edge.web"):
        code, _, body = ask(url, get("/fail"))
        wait_for(lambda: "/etc/secret was read" in caplog.text)
    assert (code, body.count(b"\n")) == (500, 1)
    assert b"secret" not in body
    assert b"Traceback" not in body
    for kind, wanted in (("usage", 400), ("image", 422)):
        code, _, body = ask(url, get(f"/refuse?kind={kind}"))
        assert (code, body) == (wanted, b'{"error":"the reason"}\n')
    code, _, body = ask(url, get("/health", "localhost", "Content-Length: 0", method="DELETE"))
    assert (code, body) == (405, b'{"error":"DELETE makes no sense here"}\n')


def test_every_answer_holds_the_browser_back(both):
    for request in (get(), get("/none"), get("/fail"), get("/", "evil.example")):
        head = ask(both[0].url, request)[1].lower()
        assert all(one in head for one in SECURE), head
        assert b"cache-control: no-store" in head
        assert b"\r\nserver:" not in head


def test_nobody_is_believed_to_be_somebody_else():
    with serving(token="x" * 16) as (one, _):
        wrong = [
            ask(
                one.url,
                get("/", "localhost", "Authorization: Bearer y", f"X-Forwarded-For: 10.0.0.{n}"),
            )[0]
            for n in range(12)
        ]
    assert wrong == [401] * 10 + [429] * 2


# ----------------------------------------------------------------------------------------- tokens


def bearer(token: str) -> bytes:
    return get("/", "localhost", f"Authorization: Bearer {token}")


def login(token: str) -> bytes:
    body = f"token={token}"
    return get("/login", "localhost", f"Content-Length: {len(body)}", method="POST") + body.encode()


def test_without_a_token_others_than_this_machine_get_one_made():
    with serving(host="0.0.0.0") as (one, app):
        assert one.made_token
        assert len(one.token) >= 32
        code, head, _ = ask(one.url, get("/", "line-3.example"))
        assert code == 401
        assert b"www-authenticate: bearer" in head.lower()
        assert app.reached == []
        assert ask(one.url, bearer(one.token))[0] == 200
    alone = Server(App().app)
    assert (alone.token, alone.made_token) == (None, False)
    assert Server(App().app, "0.0.0.0").token != Server(App().app, "0.0.0.0").token


@pytest.mark.parametrize("token", ["", "short", "x" * 15, "with blanks " * 3, "ümläute" * 3])
def test_tokens_that_are_easily_guessed_or_do_not_fit_a_header(token):
    with pytest.raises(UsageError, match="16 or more are needed"):
        Server(App().app, token=token)


def test_nothing_is_served_without_the_token():
    with serving(token="correct horse".replace(" ", "-") + "-battery") as (one, app):
        for path in ("/", "/health", "/none", "/fail", *TRICKS[:4]):
            assert ask(one.url, get(path))[0] == 401, path
        for scheme in ("Basic", "Token", ""):
            request = get("/", "localhost", f"Authorization: {scheme} {one.token}")
            assert ask(one.url, request)[0] == 401
        assert ask(one.url, get(f"/?token={one.token}"))[0] == 401
        assert app.reached == []
        assert ask(one.url, bearer(one.token))[0] == 200


def test_paths_that_are_open_need_none():
    with serving(token="x" * 16, open_paths=["/health"]) as (one, _):
        assert ask(one.url, get("/health"))[0] == 200
        assert ask(one.url, get("/health/"))[0] == 401
        assert ask(one.url, get("/"))[0] == 401


def test_a_login_sets_a_cookie_that_scripts_and_other_sites_do_not_get():
    with serving(token="x" * 16) as (one, _):
        code, head, _ = ask(one.url, get("/", "localhost", "Sec-Fetch-Mode: navigate"))
        assert code == 303
        assert b"location: /login" in head
        # A browser that reached it over plain HTTP says no Sec-Fetch-Mode; a program wants no page.
        html = "Accept: text/html,application/xhtml+xml,*/*;q=0.8"
        assert ask(one.url, get("/", "localhost", html))[0] == 303
        assert ask(one.url, get("/", "localhost", "Accept: */*"))[0] == 401
        assert b'name="token"' in ask(one.url, get("/login"))[2]
        code, head, body = ask(one.url, get("/base.css"))  # how the login looks, too
        assert (code, b"text/css" in head, b"--paper" in body) == (200, True, True)
        code, head, body = ask(one.url, login("wrong"))
        assert (code, b"That was not the token." in body) == (401, True)
        assert b"set-cookie" not in head
        code, head, _ = ask(one.url, login("x" * 16))
        assert code == 303
        (cookie,) = [line for line in head.split(b"\r\n") if line.startswith(b"set-cookie: ")]
        assert {b"HttpOnly", b"SameSite=Strict", b"Path=/"} <= set(cookie.split(b"; "))
        assert b"x" * 16 not in cookie
        pair = cookie.removeprefix(b"set-cookie: ").partition(b";")[0].decode()
        assert ask(one.url, get("/", "localhost", f"Cookie: {pair}"))[0] == 200
        for others in ('a={"b": 1}', "a b=c", "x", "\xfc=1", '"', "a@b=; ; ="):
            request = get("/", "localhost", f"Cookie: {others}; {pair}; {others}")
            assert ask(one.url, request)[0] == 200, others
        for wrong in (pair[:-1], pair + "0", pair.partition("=")[0] + "=", '"' * 50, "a=b;;=;"):
            assert ask(one.url, get("/", "localhost", f"Cookie: {wrong}"))[0] == 401
        # After too many wrong ones no more are looked at from here, but who has the token passes.
        while ask(one.url, login("wrong"))[0] == 401:
            pass
        assert ask(one.url, bearer("wrong"))[0] == 429
        assert ask(one.url, login("x" * 16))[0] == 303
        assert ask(one.url, bearer("x" * 16))[0] == 200
        assert ask(one.url, get("/", "localhost", f"Cookie: {pair}"))[0] == 200


def test_a_login_that_is_too_long():
    with serving(Limits(), token="x" * 16) as (one, _):
        assert ask(one.url, login("y" * 5000))[0] == 413


def test_the_kernel_holds_little_of_what_a_slow_client_was_sent():
    listening = server._bind("127.0.0.1", 0)
    with listening:
        # Linux tells twice what was asked for.
        size = listening.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        assert size <= 2 * server._SEND_BUFFER
