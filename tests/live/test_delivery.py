"""Delivery: receivers that go and come back lose nothing, and nothing they do stops judging."""

from __future__ import annotations

import errno
import json
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import Mock

import pytest
from live_events import until, verdict, verdicts
from live_servers import ModbusPlc, Mosquitto, OpcuaPlc, Postgres, Receiver, free_port

from padim_edge.errors import UsageError
from padim_edge.live import delivery
from padim_edge.live.delivery import Deliveries, rejected_file, spooled
from padim_edge.live.sink import RefusedError, SinkError
from padim_edge.live.sinks import make_sink
from padim_edge.live.sinks.jsonl import LineLog
from padim_edge.live.spool import Spool

OPCUA_SERVER = Path(__file__).parents[1] / "support" / "opcua_server.py"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Pauses that a test has time for."""
    monkeypatch.setattr(delivery, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(delivery, "IDLE", 0.1)
    monkeypatch.setattr(delivery.Delivery, "_longest", 0.1)
    monkeypatch.setattr(delivery.StateDelivery, "_longest", 0.1)


@pytest.fixture
def watch(tmp_path):
    """Opens a spool with sinks, as a watch does: the spool, their deliveries, what was said."""
    with ExitStack() as stack:

        def begin(*sinks, cameras=("left",)):
            spool = Spool(tmp_path / "spool.db", sinks=spooled(sinks))
            stack.callback(spool.close)
            said = []
            deliveries = Deliveries(spool, sinks, cameras, said.append)
            stack.callback(deliveries.close, 0.0)
            deliveries.start()
            return spool, deliveries, said

        yield begin


def ids(events):
    return [event["id"] if isinstance(event, dict) else event.id for event in events]


def once(names):
    """Without what came again."""
    return list(dict.fromkeys(names))


def status(deliveries):
    (found,) = deliveries.statuses()
    return found


# --- servers that go and come back ------------------------------------------------------------


@pytest.fixture(params=["mqtt", "postgresql", "webhook", "webhook in batches"])
def server(request, tmp_path):
    """A server, the address of a sink for it, and what it got so far: running ids."""
    with ExitStack() as stack:
        if request.param == "mqtt":
            broker = Mosquitto(tmp_path)
            broker.start()
            listener = broker.listener()
            stack.callback(broker.stop)
            stack.callback(listener.close)
            yield broker, f"mqtt://127.0.0.1:{broker.port}/line", lambda: ids(listener.events())
        elif request.param == "postgresql":
            pytest.importorskip("psycopg", reason="pip install 'padim-edge[postgres]'")
            database = Postgres()
            stack.callback(database.remove)
            database.start()
            stack.callback(database.stop)
            database.ask("CREATE DATABASE line", "postgres")
            query = "SELECT id FROM events ORDER BY time, id"
            yield (
                database,
                f"postgresql://line@127.0.0.1:{database.port}/line",
                lambda: [row[0] for row in database.ask(query)],
            )
        else:
            receiver = Receiver()
            receiver.start()
            stack.callback(lambda: receiver.stop())
            options = "#batch=7" if "batches" in request.param else ""
            yield (
                receiver,
                f"http://127.0.0.1:{receiver.port}/hook?x=1{options}",
                lambda: ids(receiver.events()),
            )


def test_a_server_that_stops_in_the_middle_and_comes_back_gets_everything_in_order(server, watch):
    there, address, received = server
    spool, deliveries, said = watch(make_sink(address))
    sent = verdicts(120)

    def feed():
        for event in sent[:60]:
            spool.append([event])

    feeding = threading.Thread(target=feed)
    feeding.start()
    until(lambda: status(deliveries)["delivered"] >= 10)
    there.stop()
    feeding.join()
    for event in sent[60:80]:  # so that some wait, however quick it was
        spool.append([event])
    until(lambda: status(deliveries)["state"] == "waiting")
    waiting = status(deliveries)
    assert waiting["error"]
    assert waiting["backlog"] > 0
    there.start()
    for event in sent[80:]:
        spool.append([event])
    until(lambda: status(deliveries)["backlog"] == 0)
    until(lambda: len(set(received())) == len(sent))
    got = received()
    assert once(got) == ids(sent)
    # What was on its way when it stopped may come twice: a batch at most.
    assert len(got) <= len(sent) + delivery.TOGETHER
    until(lambda: len(said) > 1)
    assert status(deliveries)["state"] == "delivering"
    assert status(deliveries)["error"] == ""
    assert len(said) == 2, said  # that it failed, and that it works again; not at each try
    assert "it is tried again" in said[0]
    assert said[1].endswith("takes events again")


def test_a_server_that_is_not_there_at_the_start_is_waited_for(watch):
    receiver = Receiver()
    spool, deliveries, _ = watch(make_sink(f"http://127.0.0.1:{receiver.port}/"))
    sent = verdicts(5)
    spool.append(sent)
    until(lambda: status(deliveries)["state"] == "waiting")
    receiver.start()
    until(lambda: status(deliveries)["backlog"] == 0)
    assert ids(receiver.events()) == ids(sent)
    receiver.stop()


# --- sinks of the test's own ------------------------------------------------------------------


class Scripted:
    """A sink that does what a test tells it."""

    address = "scripted:"
    is_state = False
    wants_pictures = False

    def __init__(self, behave=lambda _: None):
        self.behave = behave
        self.got = []
        self.sizes = []
        self.opened = self.closed = 0

    def open(self):
        self.opened += 1

    def send(self, events):
        self.behave(events)
        self.got += ids(events)
        self.sizes.append(len(events))

    def close(self):
        self.closed += 1


@pytest.mark.parametrize(
    "error",
    [
        SinkError("not now"),
        UsageError("never"),
        ZeroDivisionError("a fault of ours"),
        RecursionError(),
        KeyError("x"),
    ],
)
def test_whatever_a_sink_raises_it_is_opened_again_and_gets_everything(watch, error):
    fails = iter([error, error, error])

    def behave(events):
        if events and (it := next(fails, None)):
            raise it

    sink = Scripted(behave)
    spool, deliveries, said = watch(sink)
    spool.append(verdicts(3))
    until(lambda: status(deliveries)["delivered"] == 3 and len(said) == 2)
    assert once(sink.got) == ids(verdicts(3))
    assert sink.opened == 4
    assert sink.closed >= 3
    assert len(said) == 2
    if not isinstance(error, (SinkError, UsageError)):
        assert "this should not happen" in said[0]


def test_what_was_delivered_before_a_failure_is_not_sent_again(watch):
    fails = iter([SinkError("halfway", delivered=4), SinkError("at once")])
    seen = []

    def behave(events):
        seen.append(ids(events))
        if it := next(fails, None):
            raise it

    spool, deliveries, _ = watch(Scripted(behave))
    spool.append(verdicts(10))
    until(lambda: status(deliveries)["backlog"] == 0)
    until(lambda: status(deliveries)["delivered"] == 10)
    everything = ids(verdicts(10))
    assert [it for it in seen if it] == [everything, everything[4:], everything[4:]]


def test_an_event_that_is_refused_is_set_aside_and_the_rest_goes_on(watch, tmp_path):
    bad = {ids(verdicts(20))[number] for number in (0, 7, 19)}

    def behave(events):
        for number, event in enumerate(events):
            if event.id in bad:
                raise RefusedError("it says 422", delivered=number)

    sink = Scripted(behave)
    spool, deliveries, said = watch(sink)
    spool.append(verdicts(20))
    until(lambda: status(deliveries)["backlog"] == 0)
    until(lambda: status(deliveries)["rejected"] == 3)
    assert status(deliveries)["delivered"] == 17
    lines = rejected_file(spool.path).read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert {one["event"]["id"] for one in found} == bad
    assert found[0]["sink"] == sink.address
    assert found[0]["why"] == "it says 422"
    assert found[1]["event"] == verdict(7).record
    assert len(said) == 2  # the first and the second; then the fourth
    assert str(rejected_file(spool.path)) in said[0]


def test_refused_events_that_there_is_no_room_for_are_counted_and_said(watch, monkeypatch):
    monkeypatch.setattr(delivery, "REJECTED_BYTES", 5000)

    def behave(events):
        if events:
            raise RefusedError("it says 422")

    spool, deliveries, said = watch(Scripted(behave))
    spool.append(verdicts(100))
    until(lambda: status(deliveries)["rejected"] == 100)
    path = rejected_file(spool.path)
    kept = [
        json.loads(line)["event"]["id"]
        for one in (path.with_name(f"{path.name}.1"), path)
        for line in one.read_text().splitlines()
    ]
    assert kept == ids(verdicts(100))[-len(kept) :]
    told = [line for line in said if "is full (5000 bytes" in line]
    assert len(told) > 2
    assert f"({100 - len(kept)} so far)" in told[-1]
    each = [int(re.search(r"oldest (\d+) events", line)[1]) for line in told]
    assert sum(each) == 100 - len(kept)


def test_refused_events_whose_removal_could_not_be_followed_by_a_line_are_said_later(
    tmp_path, monkeypatch
):
    log = LineLog(tmp_path / "rejected.jsonl", 100, keep=1, counts=True)
    assert [log.write_shared({"number": n, "why": 100 * "x"}) for n in range(2)] == [0, 0]
    full = OSError(errno.ENOSPC, "no room")
    with monkeypatch.context() as patch:
        patch.setattr("padim_edge.live.sinks.jsonl.os.fsync", Mock(side_effect=full))
        with pytest.raises(OSError, match="no room"):
            log.write_shared({"number": 2})
    assert log.removed == 1
    assert [log.write_shared({"number": n, "why": 100 * "x"}) for n in (2, 3)] == [1, 1]
    assert log.removed == 2


def test_an_event_that_a_sink_always_trips_over_is_set_aside(watch):
    bad = verdict(130).id

    def behave(events):
        if bad in ids(events):
            raise ZeroDivisionError("a fault of ours")

    sink = Scripted(behave)
    spool, deliveries, _ = watch(sink)
    spool.append(verdicts(400))
    until(lambda: status(deliveries)["backlog"] == 0)
    ours = [event.id for event in verdicts(400) if event.id != bad]
    assert [name for name in sink.got if name in set(ours)] == ours
    assert json.loads(rejected_file(spool.path).read_text())["event"]["id"] == bad
    assert max(sink.sizes) > 1


def test_a_receiver_that_wants_to_be_left_alone_is(watch):
    times = []

    def behave(events):
        if events:
            times.append(time.monotonic())
        if len(times) == 1:
            raise SinkError("busy", retry_after=0.5)

    spool, deliveries, _ = watch(Scripted(behave))
    spool.append(verdicts(1))
    until(lambda: status(deliveries)["delivered"] == 1)
    assert times[1] - times[0] >= 0.5


def test_a_slow_sink_holds_up_nobody(watch):
    gate = threading.Event()
    slow = Scripted(lambda _: gate.wait(60))
    quick = Scripted()
    quick.address = "quick:"
    spool, deliveries, _ = watch(slow, quick)
    for event in verdicts(300):
        spool.append([event])
    until(lambda: len(quick.got) == 300)
    assert slow.got == []
    assert deliveries.statuses()[0]["backlog"] == 300
    gate.set()
    until(lambda: len(slow.got) == 300)
    assert max(slow.sizes) <= delivery.TOGETHER


def test_a_sink_looks_after_its_connection_while_nothing_happens(watch):
    looked = threading.Event()

    def behave(events):
        if not events:
            looked.set()

    watch(Scripted(behave))
    assert looked.wait(30)


def test_at_the_end_what_waits_is_delivered(watch):
    gate = threading.Event()
    sink = Scripted(lambda _: gate.wait(60))
    spool, deliveries, _ = watch(sink)
    spool.append(verdicts(250))
    threading.Timer(0.05, gate.set).start()
    assert deliveries.close(30) == []
    assert sink.got == ids(verdicts(250))
    assert sink.closed
    assert status(deliveries)["state"] == "ended"


def test_at_the_end_a_sink_that_is_down_is_not_waited_for_and_its_events_stay(tmp_path):
    def behave(events):
        raise SinkError("down")

    sink = Scripted(behave)
    spool = Spool(tmp_path / "spool.db", sinks=[sink.address])
    deliveries = Deliveries(spool, [sink], ["left"])
    deliveries.start()
    spool.append(verdicts(4))
    assert deliveries.close(0.2) == [
        f"4 events wait for {sink.address}, and are delivered at the next start"
    ]
    until(lambda: status(deliveries)["state"] == "ended")
    spool.close()
    again = Scripted()
    spool = Spool(tmp_path / "spool.db", sinks=[again.address])
    deliveries = Deliveries(spool, [again], ["left"])
    deliveries.start()
    until(lambda: len(again.got) == 4)
    assert not deliveries.close(5)
    assert again.got == ids(verdicts(4))
    spool.close()


def test_a_sink_that_hangs_is_left_behind(watch):
    gate = threading.Event()
    spool, deliveries, _ = watch(Scripted(lambda _: gate.wait(60)))
    spool.append(verdicts(1))
    assert deliveries.close(0.0) == [
        "1 events wait for scripted:, and are delivered at the next start"
    ]
    gate.set()


def test_events_that_are_dropped_while_they_are_on_their_way_do_no_harm(tmp_path):
    gate = threading.Event()
    sink = Scripted(lambda _: gate.wait(60))
    spool = Spool(tmp_path / "spool.db", max_bytes=1 << 20, sinks=[sink.address])
    deliveries = Deliveries(spool, [sink], ["left"])
    deliveries.start()
    sent = verdicts(5000, note="x" * 300)
    for start in range(0, 5000, 500):
        spool.append(sent[start : start + 500])
    gate.set()
    until(lambda: status(deliveries)["backlog"] == 0)
    lost = status(deliveries)["dropped"]
    assert lost > 2000
    ours = [name for name in sink.got if name in set(ids(sent))]
    assert ours == once(ours)
    assert ours[-1000:] == ids(sent)[-1000:]
    # What was on its way when it was dropped came all the same.
    assert len(sink.got) <= 5000 + 10 - lost + delivery.TOGETHER
    deliveries.close(1)
    spool.close()


# --- what is now ------------------------------------------------------------------------------


class Shown:
    """A PLC of the test's own."""

    address = "shown:"
    is_state = True
    wants_pictures = False

    def __init__(self, camera=None, stale=0.0, beat=0.02):
        self.camera, self.stale, self.beat = camera, stale, beat
        self.states = []

    def open(self):
        pass

    def show(self, state):
        self.states.append(state)

    def close(self):
        pass


def last(sink):
    return sink.states[-1] if sink.states else None


def test_a_state_is_the_newest_verdict_and_unknown_before_and_after(watch):
    sink = Shown()
    spool, deliveries, _ = watch(sink)
    assert until(lambda: last(sink)).is_anomalous is None
    spool.append([verdict(1, anomalous=True)])
    until(lambda: last(sink).is_anomalous is True)
    spool.append([verdict(2, anomalous=True), verdict(3, anomalous=False)])
    state = until(lambda: last(sink) if last(sink).is_anomalous is False else None)
    assert (state.score, state.verdicts) == (verdict(3).record["score"], 3)
    deliveries.close(5)
    assert last(sink).is_anomalous is None
    assert last(sink).verdicts == 3
    assert spool.backlog  # it has none in the spool, and needs none
    with pytest.raises(KeyError):
        spool.backlog(sink.address)


def test_it_beats_while_nothing_happens(watch):
    sink = Shown()
    watch(sink)
    until(lambda: last(sink) and last(sink).beat >= 5)
    beats = [state.beat for state in sink.states]
    assert beats == sorted(set(beats))


@pytest.mark.parametrize("kind", ["error", "late"])
def test_a_frame_that_cannot_be_judged_or_none_at_all_is_unknown(watch, kind):
    sink = Shown(stale=2.0 if kind == "late" else 0.0)
    spool, _, _ = watch(sink)
    spool.append([verdict(1, anomalous=False)])
    until(lambda: any(state.is_anomalous is False for state in sink.states))
    if kind == "error":
        spool.append([verdict(2, kind="error", error="half a picture")])
    until(lambda: last(sink).is_anomalous is None)


def test_of_several_cameras_one_fault_is_enough_and_all_must_be_good(watch):
    both, right = Shown(), Shown("right")
    right.address = "right:"
    spool, _, _ = watch(both, right, cameras=("left", "right"))
    spool.append([verdict(1, anomalous=False)])
    until(lambda: last(both) and last(both).verdicts == 1 and last(right))
    # The right one judged nothing yet: nobody knows whether all are good.
    assert last(both).is_anomalous is None
    assert last(right).is_anomalous is None
    spool.append([verdict(1, camera="right", anomalous=False)])
    until(lambda: last(both).is_anomalous is False and last(right).is_anomalous is False)
    spool.append([verdict(2, camera="right", anomalous=True)])
    until(lambda: last(both).is_anomalous is True and last(right).is_anomalous is True)
    spool.append([verdict(2, kind="error")])
    until(lambda: last(right).verdicts == 3)
    assert until(lambda: last(both)).is_anomalous is True
    spool.append([verdict(3, camera="right", anomalous=False)])
    until(lambda: last(both).is_anomalous is None and last(right).is_anomalous is False)


def test_a_camera_that_there_is_not_is_refused(tmp_path):
    spool = Spool(tmp_path / "spool.db")
    with pytest.raises(UsageError, match="shown:: no camera is called 'rihgt'; there are left, r"):
        Deliveries(spool, [Shown("rihgt")], ["left", "right"])
    spool.close()


@pytest.mark.parametrize("kind", ["modbus", "opcua"])
def test_a_plc_that_stops_and_comes_back_sees_what_is_now_and_then_the_end(watch, kind):
    if kind == "modbus":
        plc = ModbusPlc()
        options = "unit=7&coil=3&counter=0&heartbeat=1&beat=0.05&timeout=2"
        address = f"modbus://127.0.0.1:{plc.port}?{options}"

        def now():
            return plc.last("coil 3"), plc.last("register 0")

        def beat():
            return plc.last("register 1")

    else:
        plc = OpcuaPlc()
        nodes = "node=ns=2;s=Anomalous&counter=ns=2;s=Counter&heartbeat=ns=2;s=Heartbeat"
        address = f"opc.tcp://127.0.0.1:{plc.port}?{nodes}&score=ns=2;s=Score&beat=0.05&timeout=2"

        def now():
            return int(plc.value("Anomalous")), plc.value("Counter")

        def beat():
            return plc.value("Heartbeat")

    plc.start()
    spool, deliveries, said = watch(make_sink(address))
    until(lambda: now()[0] == 1)  # nobody knows: idle
    spool.append([verdict(1, anomalous=False)])
    until(lambda: now() == (0, 1))
    first = beat()
    until(lambda: beat() > first)
    plc.stop()
    until(lambda: status(deliveries)["state"] == "waiting")
    for number in range(2, 70):
        spool.append([verdict(number, anomalous=True)])
    spool.append([verdict(70, anomalous=False)])
    if kind == "modbus":
        plc.writes.clear()
    plc.start()
    until(lambda: status(deliveries)["state"] == "delivering")
    until(lambda: now() == (0, 70))
    if kind == "modbus":  # those in between would be late by now
        assert {value for place, value in plc.writes if place == "coil 3"} == {0}
        assert plc.writes[0][0] == "coil 3"  # before the counter says that it is new
    else:
        assert plc.value("Score") == pytest.approx(verdict(70).record["score"])
    until(lambda: len(said) == 2)
    assert deliveries.close(10) == []
    assert now() == (1, 70)
    plc.stop()
    if kind == "opcua":
        plc.remove()


@pytest.mark.fuzz
def test_a_whole_opc_ua_server_that_is_killed_again_and_again_is_caught_up_with(watch):
    pytest.importorskip("asyncua", reason="no asyncua: pip install 'padim-edge[plc]'")
    port = free_port()
    nodes = "node=ns=2;s=Anomalous&counter=ns=2;s=Counter"
    spool, deliveries, _ = watch(make_sink(f"opc.tcp://127.0.0.1:{port}?{nodes}&beat=0.2"))
    threads = files = 0
    for number in range(1, 21):
        spool.append([verdict(number, anomalous=False)])
        server = subprocess.Popen(
            [sys.executable, OPCUA_SERVER, str(port)], stdout=subprocess.PIPE, text=True
        )
        watchdog = threading.Timer(120, server.kill)
        watchdog.start()
        assert server.stdout.readline() == "listens\n"
        while (line := server.stdout.readline()) != f"{number}\n":
            assert line, deliveries.statuses()  # else it did not come in time
        watchdog.cancel()
        if number % 3 == 0:  # as a PLC that hangs before it begins anew
            server.send_signal(signal.SIGSTOP)
            until(lambda: status(deliveries)["state"] == "waiting")
            server.kill()
        server.send_signal(signal.SIGKILL if number % 2 else signal.SIGTERM)
        server.wait(60)
        server.stdout.close()
        until(lambda: status(deliveries)["state"] == "waiting")
        if number == 2:
            threads, files = (
                threading.active_count(),
                sum(1 for _ in Path("/proc/self/fd").iterdir()),
            )
    assert threading.active_count() <= threads + 1
    assert (
        sum(1 for _ in Path("/proc/self/fd").iterdir()) <= files + 3
    )  # of the connection that is tried now
