"""Sinks over the network, with real servers; that nothing is lost is shown in test_delivery.py."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import ExitStack
from email.utils import formatdate
from pathlib import Path

import pytest
from live_events import until, verdict, verdicts
from live_servers import (
    ModbusPlc,
    Mosquitto,
    OpcuaPlc,
    Postgres,
    Receiver,
    SlowWay,
    application,
    certificates,
    program,
)

from padim_edge.errors import PadimEdgeError, UsageError
from padim_edge.live.event import Event
from padim_edge.live.sink import RefusedError, SinkError, State
from padim_edge.live.sinks import make_sink

SUPPORT = Path(__file__).parents[1] / "support"


@pytest.fixture
def finally_(request):
    """Remembers what is to be done in the end."""
    with ExitStack() as stack:
        yield stack.callback


def opened(address):
    sink = make_sink(address)
    sink.open()
    return sink


def ids(events):
    return [event["id"] if isinstance(event, dict) else event.id for event in events]


# --- MQTT -------------------------------------------------------------------------------------


@pytest.fixture
def broker(tmp_path, finally_):
    broker = Mosquitto(tmp_path)
    broker.start()
    finally_(broker.stop)
    return broker


def heard(listener, count):
    """So many messages but those of the status, at least."""
    return until(lambda: len(listener.events()) >= count and listener.events())


def test_mqtt_has_a_topic_for_each_camera_and_kind_and_a_status(broker, finally_):
    listener = broker.listener()
    finally_(listener.close)
    sink = opened(f"mqtt://127.0.0.1:{broker.port}/line/3?client_id=watch-3")
    odd = verdict(2, camera="a/b#+")
    said = Event("s", {"id": "s", "time": 1.0, "camera": "", "kind": "watch", "message": "m"})
    sink.send([verdict(1), odd, said])
    assert heard(listener, 3) == [verdict(1).record, odd.record, said.record]
    sink.close()
    until(lambda: len(listener.messages) >= 5)
    topics = [(topic, text if "status" in topic else "") for topic, text, _ in listener.messages]
    assert topics == [
        ("line/3/status", "online"),
        ("line/3/left/verdict", ""),
        ("line/3/a_b__/verdict", ""),
        ("line/3/watch", ""),
        ("line/3/status", "offline"),
    ]
    late = broker.listener()  # takes the place of the first
    finally_(late.close)
    until(lambda: ("line/3/status", "offline", True) in late.messages)


def test_a_watch_that_is_killed_is_offline_by_its_last_will(broker, finally_):
    listener = broker.listener()
    finally_(listener.close)
    code = (
        "import sys, time; from live_events import verdict;"
        "from padim_edge.live.sinks import make_sink;"
        "sink = make_sink(sys.argv[1]); sink.open(); sink.send([verdict(1)]);"
        "print('sent', flush=True); time.sleep(600)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, f"mqtt://127.0.0.1:{broker.port}/line"],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(SUPPORT)},
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"sent\n"
    heard(listener, 1)
    child.send_signal(signal.SIGKILL)
    child.wait()
    until(lambda: listener.messages[-1][:2] == ("line/status", "offline"))


def test_a_connection_that_was_lost_is_noticed_while_nothing_is_sent(broker):
    sink = opened(f"mqtt://127.0.0.1:{broker.port}/line")
    broker.stop()

    def is_lost():
        try:
            sink.send(())
        except SinkError as error:
            return "connection was lost" in str(error)
        return False

    until(is_lost)
    sink.close()
    broker.start()


def test_mqtts_checks_the_certificate_and_gives_user_and_password(tmp_path, finally_, monkeypatch):
    server, key, ca = certificates(tmp_path)
    secrets = tmp_path / "passwords"
    tool = program("mosquitto_passwd", "mosquitto")
    subprocess.run([tool, "-b", "-c", secrets, "me", "hunter2"], check=True, capture_output=True)
    secrets.chmod(0o600)
    broker = Mosquitto(
        tmp_path,
        f"certfile {server}",
        f"keyfile {key}",
        "allow_anonymous false",
        f"password_file {secrets}",
    )
    broker.start()
    finally_(broker.stop)
    listener = broker.listener(ca=ca, user=("me", "hunter2"))
    finally_(listener.close)
    place = f"127.0.0.1:{broker.port}/line?ca={ca}"
    monkeypatch.setenv("BROKER", "hunter2")
    sink = opened(f"mqtts://me@{place}&password_from=env:BROKER")
    sink.send(verdicts(2))
    assert ids(heard(listener, 2)) == ids(verdicts(2))
    sink.close()
    with pytest.raises(SinkError, match="Not authorized"):
        opened(f"mqtts://me:wrong@{place}")
    with pytest.raises(SinkError, match=r"CERTIFICATE_VERIFY_FAILED|certificate verify failed"):
        opened(f"mqtts://me:hunter2@127.0.0.1:{broker.port}/line")
    with pytest.raises(SinkError):
        opened(f"mqtt://me:hunter2@127.0.0.1:{broker.port}/line")


def test_home_assistant_finds_each_camera(broker, finally_):
    address = f"mqtt://127.0.0.1:{broker.port}/line/3?discovery=homeassistant&retain=yes"
    sink = opened(address)
    sink.send([verdict(1), verdict(2), verdict(3, camera="rück seite")])
    listener = broker.listener()
    finally_(listener.close)
    configurations = {}

    def found():
        configurations.update(
            {topic: json.loads(text) for topic, text, _ in listener.messages if "config" in topic}
        )
        return len(configurations) == 4

    until(found)  # all retained, as it is told of them after the fact
    camera = configurations["homeassistant/binary_sensor/line_3_left/anomalous/config"]
    assert camera["state_topic"] == "line/3/left/verdict"
    assert camera["availability_topic"] == "line/3/status"
    assert camera["device_class"] == "problem"
    assert camera["device"]["name"] == "left"
    assert "homeassistant/sensor/line_3_r_ck_seite/score/config" in configurations
    names = [one["unique_id"] for one in configurations.values()]
    assert len(set(names)) == 4
    states = {topic: text for topic, text, _ in listener.messages}
    assert json.loads(states[camera["state_topic"]]) == verdict(2).record
    # The templates as Home Assistant's engine reads them.
    jinja = pytest.importorskip("jinja2", reason="no jinja2: pip install jinja2")
    show = jinja.Template(camera["value_template"])
    assert show.render(value_json={"is_anomalous": True}) == "ON"
    assert show.render(value_json={"is_anomalous": False}) == "OFF"
    sink.close()


# --- webhooks ---------------------------------------------------------------------------------


@pytest.fixture
def receiver(finally_):
    receiver = Receiver()
    receiver.start()
    finally_(receiver.stop)
    return receiver


def test_a_webhook_gets_each_event_with_its_id_and_its_own_query(receiver):
    sink = opened(f"http://me:pass@127.0.0.1:{receiver.port}/a/b?x=1&y#timeout=5")
    sink.send(verdicts(3))
    assert [json.loads(body) for _, body in receiver.requests] == [
        event.record for event in verdicts(3)
    ]
    headers, _ = receiver.requests[1]
    assert headers["webhook-id"] == verdict(1).id
    assert headers["content-type"] == "application/json"
    assert headers["authorization"] == "Basic " + base64.b64encode(b"me:pass").decode()
    assert "webhook-signature" not in headers
    assert set(receiver.paths) == {"/a/b?x=1&y"}


def test_in_batches_a_request_has_a_list(receiver):
    opened(f"http://127.0.0.1:{receiver.port}/#batch=4").send(verdicts(10))
    sizes = [len(json.loads(body)) for _, body in receiver.requests]
    assert sizes == [4, 4, 2]
    assert ids(receiver.events()) == ids(verdicts(10))


def test_of_an_endless_answer_nothing_but_its_code_counts(receiver):
    receiver.answer = lambda *_: (200, {"Content-Length": str(10**12)})
    sink = opened(f"http://127.0.0.1:{receiver.port}/hook#timeout=5")
    sink.send(verdicts(3))
    assert len(receiver.requests) == 3
    receiver.answer = lambda *_: (503, {"Content-Length": str(10**12)})
    with pytest.raises(SinkError, match="answers 503"):
        sink.send(verdicts(1))
    sink.close()


@pytest.mark.parametrize("kind", ["plain", "whsec"])
def test_signatures_are_those_of_standard_webhooks(receiver, tmp_path, kind):
    key = b"a secret of many bytes \x00\xff" if kind == "whsec" else b"plain words"
    text = "whsec_" + base64.b64encode(key).decode() if kind == "whsec" else key.decode()
    (tmp_path / "secret").write_text(text + "\n")
    opened(f"http://127.0.0.1:{receiver.port}/#secret_from=file:{tmp_path}/secret").send(
        [verdict(1)]
    )
    ((headers, body),) = receiver.requests
    seconds = headers["webhook-timestamp"]
    assert abs(int(seconds) - time.time()) < 600
    signed = headers["webhook-id"].encode() + b"." + seconds.encode() + b"." + body
    digest = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{digest}"


def test_a_signature_is_the_one_of_the_specifications_own_libraries():
    """The example of the reference libraries' README: their secret, id, time and payload."""
    from padim_edge.live.sinks.webhook import signature

    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    headers = signature(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize(
    ("code", "headers", "kind", "words"),
    [
        (500, {}, SinkError, "answers 500"),
        (503, {"Retry-After": "7"}, SinkError, "answers 503"),
        (429, {"Retry-After": formatdate(time.time() + 86400, usegmt=True)}, SinkError, "429"),
        (503, {"Retry-After": "soon"}, SinkError, "answers 503"),
        (503, {"Retry-After": "\u00b2"}, SinkError, "answers 503"),
        (
            302,
            {"Location": f"http://a:b@c/{'x' * 9000}"},
            SinkError,
            r"http://a:\*\*\*@c/x{187}; n",
        ),
        (401, {}, SinkError, "answers 401"),
        (404, {}, SinkError, "answers 404"),
        (400, {}, RefusedError, "answers 400"),
        (413, {}, RefusedError, "answers 413"),
        (422, {}, RefusedError, "answers 422"),
        (307, {"Location": "http://other/"}, SinkError, r"leads to http://other/; name that"),
    ],
)
def test_answers_say_whether_to_try_again(receiver, code, headers, kind, words):
    bad = verdict(2).id
    receiver.answer = lambda told, _: (code, headers) if told["webhook-id"] == bad else (200, {})
    sink = opened(f"http://127.0.0.1:{receiver.port}/")
    with pytest.raises(SinkError, match=words) as caught:
        sink.send(verdicts(4))
    assert type(caught.value) is kind
    assert caught.value.delivered == 2
    assert ids(receiver.events()) == ids(verdicts(2))
    wait = {"7": 7.0}.get(headers.get("Retry-After", ""), 0.0)
    if code == 429:
        assert 80_000 < caught.value.retry_after < 90_000
    else:
        assert caught.value.retry_after == wait


def test_of_a_list_that_is_refused_the_one_that_is_is_found(receiver):
    receiver.answer = lambda _, body: (400 if verdict(5).id.encode() in body else 200, {})
    sink = opened(f"http://127.0.0.1:{receiver.port}/#batch=4")
    with pytest.raises(RefusedError) as caught:
        sink.send(verdicts(10))
    assert caught.value.delivered == 5
    assert ids(receiver.events()) == ids(verdicts(5))


def test_a_receivers_certificate_is_checked(tmp_path, receiver):
    import ssl

    server, key, ca = certificates(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server, key)
    receiver.stop()
    receiver.start()
    receiver._server.socket = context.wrap_socket(receiver._server.socket, server_side=True)
    opened(f"https://127.0.0.1:{receiver.port}/#ca={ca}").send([verdict(1)])
    assert ids(receiver.events()) == [verdict(1).id]
    with pytest.raises(SinkError, match=r"(?i)certificate"):
        opened(f"https://127.0.0.1:{receiver.port}/").send([verdict(1)])


# --- PostgreSQL -------------------------------------------------------------------------------


def test_postgresql_has_each_event_once_in_columns_that_others_can_ask(finally_):
    pytest.importorskip("psycopg", reason="pip install 'padim-edge[postgres]'")
    server = Postgres()
    finally_(server.remove)
    server.start()
    finally_(server.stop)
    server.ask("CREATE DATABASE line", "postgres")
    address = f"postgresql://line@127.0.0.1:{server.port}/line"
    sink = opened(address)
    sink.send(verdicts(5))
    sink.send(verdicts(5, start=2))
    rows = server.ask(
        "SELECT id, extract(epoch from time)::float, camera, kind, score, threshold, is_anomalous, "
        "latency_ms, record->>'sequence' FROM events ORDER BY time"
    )
    assert [row[0] for row in rows] == ids(verdicts(7))
    third = verdict(2).record
    assert rows[2][1:] == (third["time"], "left", "verdict", 5.25, 5.0, True, 12.5, "2")
    bad = verdict(8, path="nul \0 in a name")  # which it takes in no text
    with pytest.raises(RefusedError) as caught:
        sink.send([verdict(7), bad, verdict(9)])
    assert caught.value.delivered == 1
    sink.send([verdict(9)])
    got = [row[0] for row in server.ask("SELECT id FROM events ORDER BY time")]
    assert got == ids([*verdicts(8), verdict(9)])
    server.ask("CREATE TABLE other (id text)")
    with pytest.raises(UsageError, match="the table other has no camera"):
        opened(f"{address}?table=other")
    with pytest.raises(SinkError, match="does not exist"):
        opened(f"postgresql://line@127.0.0.1:{server.port}/nowhere")
    by_socket = opened(f"postgresql://line@:{server.port}/line?host={server.folder}&table=second")
    by_socket.send([verdict(1)])
    by_socket.close()
    assert server.ask("SELECT id FROM second") == [(verdict(1).id,)]
    sink.close()


# --- PLCs -------------------------------------------------------------------------------------


def test_a_plc_gets_what_its_registers_hold_and_what_it_refuses_is_said(finally_):
    plc = ModbusPlc()
    plc.start()
    finally_(plc.stop)
    place = f"modbus://127.0.0.1:{plc.port}"
    sink = opened(f"{place}?unit=7&coil=2&counter=4&heartbeat=5&idle=0")
    sink.show(State(True, 9.0, 65536 + 3, 70000))
    sink.show(State(None, None, 65536 + 4, 70001))
    assert plc.writes == [
        *(("coil 2", 1), ("register 4", 3), ("register 5", 70000 - 65536)),
        *(("coil 2", 0), ("register 4", 4), ("register 5", 70001 - 65536)),
    ]
    plc.writes.clear()
    sink.close()
    keep = opened(f"{place}?unit=7&coil=2&idle=keep")
    keep.show(State(None, None, 1, 1))
    assert plc.writes == []
    keep.close()
    far = opened(f"{place}?unit=7&coil=2000")
    with pytest.raises(SinkError, match=r"the PLC refuses coil=2000"):
        far.show(State(True, 9.0, 1, 1))
    far.close()
    with pytest.raises(SinkError, match="not connected"):
        far.show(State(True, 9.0, 1, 1))


def test_opc_ua_values_take_the_types_of_their_nodes_encrypted_or_not(finally_, tmp_path):
    pytest.importorskip("asyncua", reason="no asyncua: pip install 'padim-edge[plc]'")
    server, stranger, ours = (application(tmp_path, name) for name in ("server", "other", "watch"))
    plc = OpcuaPlc(server)
    plc.start()
    finally_(plc.remove)
    place = f"opc.tcp://127.0.0.1:{plc.port}?timeout=10&node=ns=2;s="
    sink = opened(f"{place}Anomalous&score=ns=2;s=Score&counter=ns=2;s=Counter")
    sink.show(State(True, 1.25, 65536 + 3, 1))
    assert [plc.value(name) for name in ("Anomalous", "Score", "Counter")] == [True, 1.25, 3]
    sink.show(State(None, None, 9, 1))
    assert [plc.value(name) for name in ("Anomalous", "Score", "Counter")] == [True, 1.25, 9]
    sink.close()
    sink = opened(f"{place}Counter")  # a decision as a number
    sink.show(State(False, 1.25, 9, 1))
    assert plc.value("Counter") == 0
    sink.close()
    text = opened(f"{place}Name")
    with pytest.raises(UsageError, match="a node of type String takes no number"):
        text.show(State(False, 1.25, 9, 1))
    text.close()
    with pytest.raises(SinkError, match=r"(?i)node"):
        opened(f"{place}Nowhere")
    safe = f"{place}Anomalous&cert={ours[0]}&key={ours[1]}"
    for address in (safe, f"{safe}&server={server[0]}"):
        sink = opened(address)
        sink.show(State(True, 1.25, 9, 1))
        assert plc.value("Anomalous") is True
        sink.show(State(False, 1.25, 9, 1))
        assert plc.value("Anomalous") is False
        sink.close()
    way = SlowWay(plc.port)
    finally_(way.close)
    sink = opened(f"{place.replace(str(plc.port), str(way.port))}Anomalous")
    way.delay = 1.5  # within the time-out
    for anomalous in (True, False, True, False):
        sink.show(State(anomalous, 1.25, 9, 1))
        assert plc.value("Anomalous") is anomalous
    way.delay = 0.0
    sink.close()
    with pytest.raises(UsageError, match="files in PEM"):
        opened(f"{place}Anomalous&cert={ours[0]}&key={ours[0]}")
    with pytest.raises(SinkError):  # it cannot read what is for the other
        opened(f"{safe}&server={stranger[0]}".replace("timeout=10", "timeout=2"))


# --- receivers that say nothing ---------------------------------------------------------------


@pytest.fixture
def silence(finally_):
    """A port where connections are taken, and nothing is ever said."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        kept = []

        def accept():
            while True:
                try:
                    kept.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
    for one in kept:
        one.close()


@pytest.mark.parametrize(
    "address",
    [
        "mqtt://127.0.0.1:{}/?timeout=0.2",
        "http://127.0.0.1:{}/#timeout=0.2",
        "modbus://127.0.0.1:{}?coil=0&timeout=0.2",
        "opc.tcp://127.0.0.1:{}?node=i=85&timeout=0.2",
    ],
)
def test_a_receiver_that_says_nothing_is_given_up(silence, address):
    sink = make_sink(address.format(silence))

    def use():
        sink.open()
        if sink.is_state:
            sink.show(State(True, 1.0, 1, 1))
        else:
            sink.send([verdict(1)])

    threads = threading.active_count()
    for _ in range(3):
        with pytest.raises(SinkError):
            use()
        sink.close()
    until(lambda: threading.active_count() <= threads)


# --- metrics ----------------------------------------------------------------------------------


def test_metrics_are_what_happened(finally_):
    from prometheus_client.parser import text_string_to_metric_families

    from padim_edge.detect.detector import Result
    from padim_edge.errors import ImageError
    from padim_edge.live.board import CameraStatus, Seen
    from padim_edge.live.metrics import Metrics
    from padim_edge.live.source import Captured
    from padim_edge.live.swap import ModelSlot

    slot = ModelSlot(lambda _: None)  # no detector yet
    status = CameraStatus('left "1"', "rtsp://camera", slot, "latest")
    status.captured, status.dropped, status.judged, status.is_connected = 12, 3, 9, True
    sinks = [
        {
            "address": "jsonl:a",
            "state": "waiting",
            "backlog": 7,
            "delivered": 5,
            "dropped": 2,
            "rejected": 1,
        }
    ]
    metrics = Metrics([status], lambda: sinks)
    server = metrics.server("prometheus://127.0.0.1:0")
    server.start()
    finally_(server.stop)
    nothing = Captured(ImageError("x"), 0, 1.0)
    for latency in (0.004, 0.004, 0.03, 20.0):
        result = Result.__new__(Result)
        object.__setattr__(result, "score", latency * 2)
        object.__setattr__(result, "threshold", 5.5)
        metrics(Seen(status.name, nothing, result, verdict(1), latency))
    metrics(Seen(status.name, nothing, ImageError("half"), verdict(1), 0.1))
    metrics.said(Event("x", {"camera": status.name, "kind": "drift"}))

    def ask():
        with urllib.request.urlopen(f"{server.url}metrics") as answer:
            assert answer.headers["content-type"].startswith("text/plain; version=")
            text = answer.read().decode()
        return {
            (sample.name, sample.labels.get("le", sample.labels.get("kind", ""))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.labels.get("camera", status.name) == status.name
        }

    got = ask()
    assert got["padim_edge_frames_captured_total", ""] == 12
    assert got["padim_edge_frames_dropped_total", ""] == 3
    assert got["padim_edge_source_connected", ""] == 1
    assert got["padim_edge_latency_seconds_count", ""] == 4
    assert got["padim_edge_latency_seconds_bucket", "0.005"] == 2
    assert got["padim_edge_latency_seconds_bucket", "0.033"] == 3
    assert got["padim_edge_score", ""] == 40.0
    assert got["padim_edge_threshold", ""] == 5.5
    assert got["padim_edge_events_total", "drift"] == 1
    assert got["padim_edge_events_total", "source"] == 0
    assert got["padim_edge_sink_backlog", ""] == 7
    assert got["padim_edge_sink_working", ""] == 0
    assert got["padim_edge_sink_dropped_total", ""] == 2
    status.judged = 10
    assert ask()["padim_edge_frames_judged_total", ""] == 10
    taken = server.url.removeprefix("http").rstrip("/")
    with pytest.raises(PadimEdgeError, match=r"cannot listen on 127\.0\.0\.1"):
        metrics.server(f"prometheus{taken}").start()


def test_clients_that_are_slow_or_many_hold_no_thread_of_the_metrics(finally_):
    from padim_edge.live.metrics import Metrics
    from padim_edge.web.limits import Limits

    limits = Limits(connections=4, header_seconds=1.0, idle_seconds=1)
    server = Metrics([]).server("prometheus://0.0.0.0:0", limits)
    server.start()
    finally_(server.stop)
    port = int(server.url.rstrip("/").rpartition(":")[2])
    threads = threading.active_count()
    clients = [socket.create_connection(("127.0.0.1", port), 60) for _ in range(40)]
    for client in clients:
        finally_(client.close)
        with contextlib.suppress(OSError):  # turned away already
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-")
    answers = []
    for client in clients:  # all are told so, and let go of
        with contextlib.suppress(ConnectionResetError):
            answers.append(client.recv(100).partition(b"\r\n")[0].decode())
    assert {answer[9:12] for answer in answers if answer} <= {"503", "408"}
    assert threading.active_count() <= threads
    for path in ("metrics", ""):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}") as answer:
            assert b"padim_edge_frames_captured_total" in answer.read()


@pytest.mark.parametrize(
    "address",
    ["prometheus://", "prometheus://127.0.0.1", "prometheus://127.0.0.1:99999", "prometheus:9464"],
)
def test_metrics_need_a_place(address):
    from padim_edge.live.metrics import check

    with pytest.raises(UsageError, match=r"prometheus://"):
        check(address)
