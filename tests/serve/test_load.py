"""Many clients at once, slow ones, broken ones: who is good gets the right answer or a 429."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import resource
import select
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest

pytest.importorskip("urllib3")

import urllib3
from live_events import until
from PIL import Image

from padim_edge import Detector
from padim_edge.web.limits import Limits

HTTP = urllib3.PoolManager(timeout=60.0, retries=False)
CLIENTS = 200
SOON = 60.0


@pytest.fixture(scope="module")
def bodies(photos):
    return [path.read_bytes() for path in sorted((photos / "test").rglob("*.png"))]


@pytest.fixture(scope="module")
def expected(model, bodies):
    with Detector(model, "ort") as detector:
        return [detector(body).score for body in bodies]


def address(service):
    found = urlsplit(service.url)
    return found.hostname, found.port


def request(body, length=None, path="/v1/models/bottle/judge"):
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: "
    return f"{head}{len(body) if length is None else length}\r\n\r\n".encode() + body


def most_resident():
    """KiB of this process, at most since /proc/self/clear_refs was written."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def metric(service, line):
    text = HTTP.request("GET", service.url + "metrics").data.decode()
    found = [one for one in text.splitlines() if one.startswith(line)]
    return sum(float(one.rsplit(" ", 1)[1]) for one in found)


async def asked(host, port, body):
    """One client with a connection of its own: status and body of what it gets."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(request(body))
        head = await reader.readuntil(b"\r\n\r\n")
        fields = dict(
            line.split(": ", 1) for line in head.decode().lower().split("\r\n")[1:] if line
        )
        return int(head.split()[1]), await reader.readexactly(int(fields["content-length"])), fields
    finally:
        writer.close()


def test_two_hundred_clients_get_right_answers_or_are_told_to_come_back(
    serve, model, bodies, expected
):
    service = serve(model, queue=32, max_batch=8)
    host, port = address(service)
    most = 0
    # Nobody is judged before somebody was turned away, however fast the machine is.
    batches, full = service._slots["bottle"].loaded.batches, threading.Event()
    run = batches._run

    def late(items):
        assert full.wait(SOON)
        return run(items)

    batches._run = late

    async def client(number):
        """Comes back until it is served, and says what it was told before."""
        nonlocal most
        turned_away = 0
        while True:
            status, body, fields = await asked(host, port, bodies[number % len(bodies)])
            most = max(most, service._slots["bottle"].taken)
            if status == 200:
                return number, body, turned_away
            assert status == 429, body
            assert fields["retry-after"] == "1"
            assert b"wait already: come back" in body
            turned_away += 1
            full.set()
            await asyncio.sleep(0.2)

    async def all_of_them():
        return await asyncio.wait_for(asyncio.gather(*map(client, range(CLIENTS))), 2 * SOON)

    Path("/proc/self/clear_refs").write_text("5")  # the most of what comes, not of what was
    before = most_resident()
    answers = asyncio.run(all_of_them())
    grown = (most_resident() - before) / 1024
    for number, body, _ in answers:
        # Within a batch the last bit of a sum may differ.
        assert json.loads(body)["score"] == pytest.approx(expected[number % len(bodies)], rel=1e-6)
    turned_away = sum(count for _, _, count in answers)
    assert turned_away > 0
    assert most <= 32
    code = 'padim_edge_requests_total{code="%s",endpoint="judge",model="bottle"}'
    assert metric(service, code % 200) == CLIENTS
    assert metric(service, code % 429) == turned_away
    assert metric(service, 'padim_edge_batch_images_sum{model="bottle"}') == CLIENTS
    assert metric(service, 'padim_edge_queue_images{model="bottle"}') == 0
    assert metric(service, "padim_edge_bodies_bytes") == 0
    assert grown < 200, f"{grown:.0f} MiB more for {CLIENTS} small photos"


def test_broken_clients_do_not_harm_good_ones(serve, model, bodies, expected):
    service = serve(model, queue=64, max_batch=1)
    host, port = address(service)
    body = bodies[0]

    def half_and_gone():
        with socket.create_connection((host, port), SOON) as one:
            one.sendall(request(body)[: len(body) // 2])

    def half_and_reset():
        with socket.create_connection((host, port), SOON) as one:
            one.sendall(request(body)[: len(body) // 2])
            # Closing it sends a reset, no end.
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    def whole_and_gone():
        with socket.create_connection((host, port), SOON) as one:
            one.sendall(request(body))

    def too_little():
        with socket.create_connection((host, port), SOON) as one:
            one.sendall(request(body, len(body) + 100))
            one.shutdown(socket.SHUT_WR)
            while one.recv(1 << 16):
                pass

    def no_http():
        with socket.create_connection((host, port), SOON) as one:
            one.sendall(b"\x16\x03\x01 hello\r\n\r\n")
            assert b" 400 " in one.recv(1 << 16)

    def wrong_length():
        with socket.create_connection((host, port), SOON) as one:
            one.sendall(request(body, "many"))
            assert one.recv(1 << 16).split()[1] in (b"400", b"413")

    def two_lengths():
        with socket.create_connection((host, port), SOON) as one:
            one.sendall(
                b"POST /v1/models/bottle/judge HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"
            )
            assert b" 400 " in one.recv(1 << 16)

    def good(number=0):
        given = HTTP.request("POST", service.url + "v1/models/bottle/judge", body=body)
        assert given.status == 200, given.data
        return given.json()["score"]

    broken = [
        *(half_and_gone, half_and_reset, whole_and_gone, too_little),
        *(no_http, wrong_length, two_lengths),
    ]
    with ThreadPoolExecutor(16) as pool:
        futures = [pool.submit(one) for _ in range(10) for one in (*broken, good, good)]
        results = Counter(future.result() for future in futures)
    assert results == {None: 70, expected[0]: 20}
    until(lambda: metric(service, 'padim_edge_queue_images{model="bottle"}') == 0)
    until(lambda: metric(service, "padim_edge_bodies_bytes") == 0)
    assert metric(service, 'padim_edge_requests_total{code="500"') == 0
    assert good() == expected[0]


def test_who_goes_away_frees_its_place_and_is_not_judged(serve, model, bodies):
    service = serve(model, queue=2, max_batch=1)
    host, port = address(service)
    slot = service._slots["bottle"]
    entered, go_on = threading.Event(), threading.Event()
    run, ran = slot.loaded.batches._run, []

    def slow(items):
        ran.append(len(items))
        entered.set()
        assert go_on.wait(SOON)
        return run(items)

    slot.loaded.batches._run = slow
    try:
        first = socket.create_connection((host, port), SOON)
        first.sendall(request(bodies[0]))
        assert entered.wait(SOON)
        second = socket.create_connection((host, port), SOON)
        second.sendall(request(bodies[0]))
        until(lambda: slot.taken == 2)
        third = HTTP.request("POST", service.url + "v1/models/bottle/judge", body=bodies[0])
        assert third.status == 429
        second.close()
        until(lambda: slot.taken == 1)
        second = socket.create_connection((host, port), SOON)
        second.sendall(request(bodies[1]))
        until(lambda: slot.taken == 2)
    finally:
        go_on.set()
    for one in (first, second):
        assert one.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
        one.close()
    assert ran == [1, 1]
    assert metric(service, 'padim_edge_requests_total{code="499"') == 1


def test_of_who_goes_away_no_body_stays_in_the_pool(serve, model, bodies):
    service = serve(model)
    app, slot = service._app, service._slots["bottle"]
    threads = app._pool._max_workers
    go_on, prepare = threading.Event(), app._prepare

    def slow(*arguments):
        assert go_on.wait(SOON)
        return prepare(*arguments)

    app._prepare = slow
    with contextlib.ExitStack() as stack:
        stack.callback(go_on.set)
        clients = []
        for number in range(threads + 3):
            one = stack.enter_context(socket.create_connection(address(service), SOON))
            one.sendall(request(bodies[0]))
            clients.append(one)
            until(lambda: slot.taken == number + 1)  # noqa: B023 - called at once
        for one in clients[threads:]:
            one.close()
        until(lambda: slot.taken == threads)
        assert app._pool._work_queue.qsize() == 0
        go_on.set()
        for one in clients[:threads]:
            assert one.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
        app._prepare = prepare
        given = HTTP.request("POST", service.url + "v1/models/bottle/judge", body=bodies[0])
        assert given.status == 200


def test_slow_clients_take_no_place_and_no_memory_beyond_the_bound(serve, model, bodies, expected):
    """100 who never end their body; all their bytes together have a bound, and others go on."""
    service = serve(model, queue=4, max_batch=1, max_bytes=1 << 16)
    host, port = address(service)
    app = service._app
    slow = []
    try:
        for _ in range(100):
            one = socket.create_connection((host, port), SOON)
            one.sendall(request(b"x" * 6000, 60_000))
            slow.append(one)
        # 8 bodies of 64 KiB are the bound; 87 of 6000 bytes fit.
        until(lambda: app._held >= 80 * 6000)
        assert app._held <= 8 << 16
        assert service._slots["bottle"].taken == 0
        turned_away = [one for one in slow if one in _readable(slow)]
        assert turned_away
        for one in turned_away:
            assert one.recv(1 << 16).startswith(b"HTTP/1.1 429 ")
        for one in slow[:40]:
            one.close()
        until(lambda: app._held <= 60 * 6000)
        given = HTTP.request("POST", service.url + "v1/models/bottle/judge", body=bodies[0])
        assert given.json()["score"] == expected[0]
    finally:
        for one in slow:
            one.close()
    until(lambda: app._held == 0)


def test_answers_that_nobody_takes_count_and_have_their_time(serve, model, monkeypatch):
    """Clients who ask for what no kernel buffers, and read nothing of it."""
    # Those whose answers are to stay keep them, however slow this machine is.
    monkeypatch.setattr("padim_edge.serve.app.ANSWER_SECONDS", 10 * SOON)
    monkeypatch.setattr(
        "padim_edge.serve.service.Limits", functools.partial(Limits, stall_seconds=10 * SOON)
    )
    service = serve(model, max_bytes=1 << 20)
    app = service._app
    zeros = [0] * (8 * 64 * 64 * 3)
    asked = {"name": "image", "datatype": "UINT8", "shape": [8, 64, 64, 3], "data": zeros}
    ask = request(json.dumps({"inputs": [asked]}).encode(), path="/v2/models/bottle/infer")

    def client():
        one = socket.socket()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.settimeout(SOON)
        one.connect(address(service))
        one.sendall(ask)
        return one

    def taken(one):
        with one, one.makefile("rb") as stream:
            head = stream.readline()
            while (line := stream.readline()).strip():
                if line.lower().startswith(b"content-length: "):
                    length = int(line.split()[1])
            return int(head.split()[1]), length, len(stream.read(length))

    waiting = []
    with contextlib.ExitStack() as stack:
        while True:
            one = stack.enter_context(client())
            before = app._held
            until(lambda: _readable([one]))  # noqa: B023 - called at once
            if app._held == before:
                break
            waiting.append(one)
        assert 5 < len(waiting) < 40
        assert app._held <= 8 << 20
        status, length, got = taken(one)
        assert (status, got) == (429, length)
        status, length, got = taken(waiting[0])
        assert (status, got) == (200, length)
        until(lambda: app._held == (len(waiting) - 1) * length)
    until(lambda: app._held == 0)
    monkeypatch.setattr("padim_edge.serve.app.ANSWER_SECONDS", 0.01)
    with client() as late:
        assert _readable([late])
        until(lambda: app._held == 0)
        status, length, got = taken(late)
        assert status == 200
        assert 0 < got < length


def _readable(sockets):
    end = time.monotonic() + SOON
    while time.monotonic() < end:
        if found := select.select(sockets, [], [], 0.2)[0]:
            return found
    return []


PEAK = """
import sys
from PIL import Image
from padim_edge.images.preprocess import Preprocess

def status(key):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(key))

small, large = (open(name, "rb").read() for name in sys.argv[1:])
whole = Preprocess.whole((224, 224))
whole.prepare(small)
before = status("VmRSS")
whole.prepare(large)
print(status("VmHWM") - before)
"""


@pytest.mark.parametrize(
    ("mode", "suffix"), [("RGB", "webp"), ("RGBA", "png"), ("P", "png"), ("CMYK", "tiff")]
)
def test_an_image_takes_no_more_memory_than_is_said(mode, suffix, tmp_path):
    """docs/serving.md: at most 18 MB a megapixel."""
    files = []
    for width, height in ((300, 200), (2500, 1600)):
        files.append(tmp_path / f"{width}.{suffix}")
        Image.linear_gradient("L").resize((width, height)).convert(mode).save(files[-1])
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *files], capture_output=True, text=True, check=True
    )
    assert 4 * 4_000_000 < int(done.stdout) < 18 * 4_000_000 + (4 << 20)


def test_memory_stays_where_it_is_over_many_requests(serve, model, bodies):
    service = serve(model, queue=64)
    pool = urllib3.PoolManager(maxsize=4, timeout=SOON)
    url = service.url + "v1/models/bottle/judge?heat_map=png"

    def ask(number):
        assert pool.request("POST", url, body=bodies[number % len(bodies)]).status == 200

    def resident():
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize() / 2**20

    with ThreadPoolExecutor(4) as clients:
        list(clients.map(ask, range(30)))
        before = resident()
        list(clients.map(ask, range(90)))
    assert resident() - before < 20
