"""From loading to draining: reload, signals, tokens, and what is refused before it begins."""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import signal
import socket
import subprocess
import threading
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from helpers import command, in_process

pytest.importorskip("urllib3")

import urllib3
from live_events import until

from padim_edge import Detector
from padim_edge.cli.serve import _Signals
from padim_edge.errors import ModelError, UsageError
from padim_edge.fit.fit import fit_detector
from padim_edge.fit.settings import Settings as FitSettings
from padim_edge.images.dataset import train_images
from padim_edge.images.preprocess import Preprocess
from padim_edge.serve.service import Service, _taken
from padim_edge.serve.settings import Settings

HTTP = urllib3.PoolManager(timeout=60.0, retries=False)
TOKEN = "0123456789abcdef"


@pytest.fixture(scope="module")
def other(embedding_file, photos, tmp_path_factory):
    """Another detector: of half the photos, so its scores differ."""
    path = tmp_path_factory.mktemp("other") / "bottle.onnx"
    settings = FitSettings(Preprocess.whole((64, 64)), constants="float32")
    fit_detector(embedding_file, train_images(photos)[:6], path, settings)
    return path


def score(service, photo):
    given = HTTP.request("POST", service.url + "v1/models/bottle/judge", body=photo.read_bytes())
    assert given.status == 200, given.data
    return given.json()["score"]


def replace(file, by):
    """As a careful writer does it."""
    beside = file.with_suffix(".new")
    shutil.copy(by, beside)
    beside.replace(file)


def test_a_changed_file_takes_over_without_a_request_that_fails(
    serve, model, other, photos, tmp_path
):
    photo = photos / "test" / "scratch" / "000.png"
    expected = []
    for path in (model, other):
        with Detector(path, "ort") as detector:
            expected.append(detector(photo).score)
    file = tmp_path / "bottle.onnx"
    shutil.copy(model, file)
    service = serve(file, max_batch=1)
    assert service.look() == []
    answers: queue.Queue = queue.Queue()
    stop = threading.Event()

    def ask():
        while not stop.is_set():
            try:
                answers.put(score(service, photo))
            except Exception as error:
                answers.put(error)

    askers = [threading.Thread(target=ask) for _ in range(4)]
    for one in askers:
        one.start()
    try:
        for by in (other, model, other):
            replace(file, by)
            assert service.look() == []  # perhaps it is still being written
            (said,) = service.look()
            assert said == f"bottle: {file} was loaded again"
            assert service.look() == []
            assert score(service, photo) == expected[by == other]
    finally:
        stop.set()
        for one in askers:
            one.join()
    given = list(answers.queue)
    assert len(given) > 4
    assert set(given) <= set(expected), given


def test_a_bad_file_leaves_the_old_one(serve, model, photos, tmp_path):
    photo = photos / "test" / "good" / "000.png"
    file = tmp_path / "bottle.onnx"
    shutil.copy(model, file)
    service = serve(file, max_batch=1)
    before = score(service, photo)
    damaged = tmp_path / "damaged"
    damaged.write_bytes(model.read_bytes()[:5000])
    replace(file, damaged)
    service.look()
    (said,) = service.look()
    assert said.startswith("bottle: the old detector goes on, for the new one does not: ")
    assert service.look() == []  # and is not tried again until it changes
    assert score(service, photo) == before
    file.unlink()
    assert service.look() == []
    (said,) = service.look(force=True)
    assert "the old detector goes on" in said
    assert score(service, photo) == before
    counted = HTTP.request("GET", service.url + "metrics").data.decode()
    assert 'padim_edge_reloads_total{model="bottle",result="failed"} 2.0' in counted
    shutil.copy(model, file)
    service.look()
    assert service.look() == [f"bottle: {file} was loaded again"]


def test_files_are_followed_also_when_nobody_reads_what_is_said(
    serve, model, other, photos, tmp_path
):
    photo = photos / "test" / "good" / "000.png"
    file = tmp_path / "bottle.onnx"
    shutil.copy(model, file)
    service = serve(file)
    first = score(service, photo)
    told, wanted = [], queue.SimpleQueue()

    def tell(line):
        told.append(line)
        raise BrokenPipeError

    running = threading.Thread(target=service.run, args=(wanted, tell))
    running.start()
    try:
        replace(file, other)
        wanted.put("reload")
        until(lambda: score(service, photo) != first)
        replace(file, model)
        wanted.put("reload")
        until(lambda: score(service, photo) == first)
        until(lambda: len(told) > 1)
    finally:
        wanted.put("end")
        running.join()


def test_it_answers_that_it_is_not_ready_until_it_is(model, monkeypatch):
    opening, go_on = threading.Event(), threading.Event()
    real = Detector.__init__

    def slow(self, *arguments, **options):
        opening.set()
        assert go_on.wait(60)
        real(self, *arguments, **options)

    monkeypatch.setattr(Detector, "__init__", slow)
    service = Service([model], Settings(engine="ort"))
    starting = threading.Thread(target=service.start)
    starting.start()
    try:
        assert opening.wait(60)

        def status(path, method="GET", **options):
            return HTTP.request(method, service.url + path, **options).status

        assert status("v2/health/live") == 200
        assert status("v2/health/ready") == 400
        assert status("v2/models/bottle/ready") == 400
        assert status("v2/models/bottle") == 503
        assert status("v2/models/bottle/infer", "POST", body=b"{}") == 503
        assert status("v1/models/bottle/judge", "POST", body=b"x") == 503
        go_on.set()
        starting.join()
        assert status("v2/health/ready") == 200
    finally:
        go_on.set()
        starting.join()
        service.stop()


def test_the_end_does_not_wait_for_a_model_that_is_being_loaded(
    serve, model, other, tmp_path, monkeypatch
):
    file = tmp_path / "bottle.onnx"
    shutil.copy(model, file)
    service = serve(file)
    slot = service._slots["bottle"]
    opening, go_on, closed = threading.Event(), threading.Event(), threading.Event()
    real, close = Detector.__init__, Detector.close

    def slow(self, *arguments, **options):
        opening.set()
        assert go_on.wait(60)
        real(self, *arguments, **options)

    def told(self):
        close(self)
        closed.set()

    monkeypatch.setattr(Detector, "__init__", slow)
    wanted: queue.SimpleQueue = queue.SimpleQueue()
    try:
        replace(file, other)
        wanted.put("reload")
        running = threading.Thread(target=lambda: wanted.put(service.run(wanted, str)))
        running.start()
        assert opening.wait(60)
        wanted.put("end")
        running.join(60)
        assert wanted.get(timeout=0) is True
        service.stop()
        assert slot.loaded is None
        monkeypatch.setattr(Detector, "close", told)
    finally:
        go_on.set()
    # What came too late is let go of, and answers nobody.
    assert closed.wait(60)
    assert slot.loaded is None


def test_what_was_begun_is_answered_at_the_end_and_nothing_else(serve, model, photos):
    photo = (photos / "test" / "good" / "000.png").read_bytes()
    service = serve(model, max_batch=1)
    slot = service._slots["bottle"]
    entered, go_on = threading.Event(), threading.Event()
    run = slot.loaded.batches._run

    def slow(items):
        entered.set()
        assert go_on.wait(60)
        return run(items)

    slot.loaded.batches._run = slow
    url = service.url + "v1/models/bottle/judge"
    answers = []
    asking = threading.Thread(target=lambda: answers.append(HTTP.request("POST", url, body=photo)))
    asking.start()
    assert entered.wait(60)
    assert not service.drain(seconds=0)
    assert HTTP.request("GET", service.url + "v2/health/ready").status == 400
    assert HTTP.request("GET", service.url + "v2/health/live").status == 200
    refused = HTTP.request("POST", url, body=photo)
    assert refused.status == 503
    assert refused.headers["retry-after"] == "1"
    go_on.set()
    assert service.drain(seconds=60)
    asking.join()
    assert answers[0].status == 200


def test_the_end_waits_for_a_body_on_its_way_and_for_an_answer_that_is_not_taken(
    serve, model, photos
):
    photo = (photos / "test" / "good" / "000.png").read_bytes()
    service = serve(model)
    place = urlsplit(service.url)
    head = "POST /v1/models/bottle/judge HTTP/1.1\r\nHost: localhost\r\n"
    with socket.create_connection((place.hostname, place.port), 60) as one:
        assert service._server.is_idle
        one.sendall(f"{head}Content-Length: {len(photo)}\r\n\r\n".encode())
        until(lambda: not service._server.is_idle)
        assert not service.drain(seconds=0)
        one.sendall(photo)
        assert one.recv(1 << 16).startswith(b"HTTP/1.1 ")
        assert service.drain(seconds=60)
    # What the kernel does not take of an answer: /openapi.json, asked for until that is so.
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.settimeout(60)
        one.connect((place.hostname, place.port))
        ask = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
        connections = service._server._uvicorn.server_state.connections

        def stuck():
            one.sendall(ask)
            mine = [each for each in list(connections) if each.client == one.getsockname()]
            return any(each.flow.write_paused for each in mine)

        until(stuck)
        assert not service.drain(seconds=0)


def test_a_token_is_needed_but_for_health(serve, model):
    service = serve(model, token=TOKEN)
    for path, status in (
        ("v2/health/live", 200),
        ("v2/health/ready", 200),
        ("v2", 401),
        ("v1/models", 401),
        ("metrics", 401),
        ("openapi.json", 401),
    ):
        assert HTTP.request("GET", service.url + path).status == status, path
        shown = {"authorization": f"Bearer {TOKEN}"}
        assert HTTP.request("GET", service.url + path, headers=shown).status == 200


def test_others_can_come_only_with_a_token(model):
    service = Service([model], Settings(engine="ort"), host="0.0.0.0")
    assert service.made_token
    assert len(service.token) >= 16


def test_what_cannot_be_served_is_said_before_anything_is_loaded(model, tmp_path):
    twice = tmp_path / "bottle.onnx"
    shutil.copy(model, twice)
    with pytest.raises(UsageError, match="would both be called bottle: rename one"):
        Service([model, twice])
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "bottle.onnx").symlink_to(twice)
    for again in (twice, tmp_path / "link" / ".." / "bottle.onnx", tmp_path / "link/bottle.onnx"):
        with pytest.raises(UsageError, match=r"bottle\.onnx is one file given twice: name it once"):
            Service([twice, again])
    with pytest.raises(UsageError, match="no model was given"):
        Service([])
    with pytest.raises(UsageError, match="unknown engine 'x'"):
        Service([model], Settings(engine="x"))
    with pytest.raises(UsageError, match="makes no address"):
        Service([tmp_path / "a?b.onnx"])
    with pytest.raises(ModelError, match=r"nowhere\.onnx"):
        Service([tmp_path / "nowhere.onnx"]).start()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_batch": 0}, "a batch of 0"),
        ({"max_delay": -1}, "a delay of -1000 ms"),
        ({"max_delay": float("nan")}, "a delay of nan ms"),
        ({"queue": 7}, "a queue of 7 holds no batch of 8"),
        ({"max_bytes": 1}, "bodies of 1 bytes"),
        ({"max_pixels": 10**9}, "1,000,000,000 pixels"),
    ],
)
def test_settings_that_make_no_sense(settings, words):
    with pytest.raises(UsageError, match=words):
        Settings(**settings)


# --- the command ------------------------------------------------------------------------------


@contextlib.contextmanager
def served(*arguments, **options):
    """`padim-edge serve` as it is typed: its process, and the address that it says."""
    process = subprocess.Popen(
        command("serve", *arguments, "--port", 0, "--engine", "ort"),
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
    try:
        line = process.stderr.readline()
        assert "serving " in line, line + process.stderr.read()
        yield process, line.split()[-1]
    finally:
        process.kill()
        process.communicate()


def test_the_command_reloads_on_a_hangup_and_drains_on_term(model, other, photos, tmp_path):
    photo = photos / "test" / "good" / "000.png"
    file = tmp_path / "bottle.onnx"
    shutil.copy(model, file)
    with served(file) as (process, url):
        ask = {"body": photo.read_bytes()}
        before = HTTP.request("POST", url + "v1/models/bottle/judge", **ask).json()
        replace(file, other)
        process.send_signal(signal.SIGHUP)
        until(lambda: HTTP.request("POST", url + "v1/models/bottle/judge", **ask).json() != before)
        process.send_signal(signal.SIGTERM)
        said = process.stderr.read()
        assert process.wait(60) == 0, said
    assert "bottle: ONNX Runtime " in said
    assert f"bottle: {file} was loaded again" in said
    assert said.endswith("stopped: what was begun has been answered\n")


@pytest.mark.parametrize("client_stays", [True, False])
def test_the_end_waits_for_no_picture_without_end(model, client_stays):
    prelude = """
import sys, threading
from padim_edge.serve import app, service

def endless(*_):
    print("decoding", file=sys.stderr, flush=True)
    threading.Event().wait()

app.App._prepare = endless
service.Service.drain.__defaults__ = (0.3,)
"""
    with subprocess.Popen(
        command("serve", model, "--port", 0, "--engine", "ort", prelude=prelude),
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            place = urlsplit(process.stderr.readline().split()[-1])
            with socket.create_connection((place.hostname, place.port), 60) as one:
                one.sendall(
                    b"POST /v1/models/bottle/judge HTTP/1.1\r\nHost: localhost\r\n"
                    b"Content-Length: 1\r\n\r\nx"
                )
                while process.stderr.readline() != "decoding\n":
                    assert process.poll() is None
                if client_stays:
                    process.send_signal(signal.SIGTERM)
                    said = process.communicate(timeout=60)[1]
            if not client_stays:
                url = f"http://{place.netloc}/metrics"
                until(lambda: b'code="499"' in HTTP.request("GET", url).data)
                process.send_signal(signal.SIGTERM)
                said = process.communicate(timeout=60)[1]
        finally:
            process.kill()
    assert process.returncode == 0
    last = said.splitlines()[-1]
    assert last == (
        "stopped: what was still at work was left"
        if client_stays
        else "stopped: what was begun has been answered; what nobody waits for was left"
    )
    assert ("some requests were not answered" in said) == client_stays


def test_signals_are_heard_from_the_first_load_on_and_none_is_lost():
    before = signal.getsignal(signal.SIGHUP)
    signals = _Signals()
    with signals:
        # Of this thread, and at once: what another thread is given is heard here some time later.
        signal.raise_signal(signal.SIGHUP)  # while loading: no end
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        signals.is_serving = True
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGHUP)
        assert _taken(signals.wanted) == {"end", "reload"}
    assert signal.getsignal(signal.SIGHUP) is before


def test_the_token_may_come_from_the_environment(model):
    with served(model, env={**os.environ, "PADIM_EDGE_TOKEN": TOKEN}) as (_, url):
        assert HTTP.request("GET", url + "v2").status == 401
        shown = {"authorization": f"Bearer {TOKEN}"}
        assert HTTP.request("GET", url + "v2", headers=shown).status == 200


def test_wrong_use_is_one_line(model, tmp_path):
    in_process("serve", tmp_path / "nowhere.onnx", "--port", 0).failed(1, "nowhere.onnx")
    in_process("serve", model, "--token", "short", "--port", 0).failed(2, "a token of 5 characters")
    in_process("serve", model, "--queue", 2).failed(2, "a queue of 2 holds no batch of 8")
    in_process("serve", model, "--host", "203.0.113.9").failed(1, "cannot listen on 203.0.113.9")
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(np.random.default_rng(0).bytes(1000))
    in_process("serve", bad, "--port", 0).failed(1, str(Path(bad)))
