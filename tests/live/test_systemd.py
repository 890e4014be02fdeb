"""What the service manager is told, through a real socket."""

from __future__ import annotations

import os
import socket
import threading

import pytest
from scripted import Scripted, camera, pictures, wait_for, watching

from padim_edge.detect.detector import Detector
from padim_edge.live import judge
from padim_edge.live.swap import ModelSlot
from padim_edge.live.systemd import Notifier


@pytest.fixture(params=["path", "abstract"])
def systemd(request, tmp_path):
    """A socket like systemd's, and its address."""
    address = str(tmp_path / "notify") if request.param == "path" else f"@padim-edge-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(address.replace("@", "\0"))
        receiver.settimeout(60)
        yield receiver, address


def received(receiver: socket.socket) -> str:
    return receiver.recv(4096).decode()


def test_words(systemd):
    receiver, address = systemd
    notifier = Notifier({"NOTIFY_SOCKET": address})
    notifier.ready()
    notifier.status("camera: 30.0 frames/s")
    notifier.alive()  # no watchdog was asked for
    notifier.reloading()
    notifier.stopping()
    assert received(receiver) == "READY=1"
    assert received(receiver) == "STATUS=camera: 30.0 frames/s"
    reloading, _, moment = received(receiver).partition("\nMONOTONIC_USEC=")
    assert reloading == "RELOADING=1"
    assert int(moment) > 0
    assert received(receiver) == "STOPPING=1"
    notifier.close()
    notifier.close()
    notifier.ready()


def test_the_watchdog_is_fed_as_often_as_needed(systemd):
    receiver, address = systemd
    environment = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "3600000000"}
    notifier = Notifier(environment)
    assert notifier.watchdog_seconds == 3600
    for _ in range(5):
        notifier.alive()
    notifier.ready()
    assert [received(receiver) for _ in range(2)] == ["WATCHDOG=1", "READY=1"]
    assert Notifier(environment | {"WATCHDOG_PID": "1"}).watchdog_seconds == 0
    assert Notifier(environment | {"WATCHDOG_PID": str(os.getpid())}).watchdog_seconds == 3600


def test_without_a_manager_nothing_is_said(tmp_path):
    for environment in ({}, {"NOTIFY_SOCKET": "vsock:2:1234"}, {"WATCHDOG_USEC": "much"}):
        notifier = Notifier(environment)
        notifier.ready()
        notifier.alive()
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")}).ready()


@pytest.mark.parametrize("systemd", ["path"], indirect=True)
def test_a_judge_that_hangs_feeds_no_watchdog_while_all_else_goes_on(
    systemd, model_file, monkeypatch
):
    monkeypatch.setattr(judge, "IDLE", 0.005)
    receiver, address = systemd
    slot = ModelSlot(lambda path: Detector(path, "ort", 1), model_file)
    source = Scripted()
    notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "100000"})
    watch, kept = watching([camera(slot, source)], notifier=notifier, stats=0.1)
    thread = threading.Thread(target=watch.run)
    thread.start()
    said = [received(receiver) for _ in range(20)]
    assert "READY=1" in said
    assert "WATCHDOG=1" in said  # without a frame, too

    hangs, go_on = threading.Event(), threading.Event()
    with slot.using() as detector:
        infer = detector.engine.infer

    def hanging(images):
        hangs.set()
        assert go_on.wait(60)
        return infer(images)

    detector.engine.infer = hanging
    source.put(pictures(1)[0])
    assert hangs.wait(60)
    # Said again until it is heard: what finds the socket full is dropped.
    notifier.status("it hangs")
    while received(receiver) != "STATUS=it hangs":
        notifier.status("it hangs")
    said = [received(receiver) for _ in range(5)]
    assert all(one.startswith("STATUS=") for one in said), said

    go_on.set()
    wait_for(lambda: kept.seen)
    while received(receiver) != "WATCHDOG=1":
        pass
    watch.stop()
    while received(receiver) != "STOPPING=1":
        pass
    thread.join(60)
    notifier.close()
    slot.close()
