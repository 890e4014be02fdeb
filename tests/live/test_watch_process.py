"""The command as a service manager has it: signals, kill -9, files, pipes and streams."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import command, in_process, link, padim_edge
from scripted import wait_for

from padim_edge.detect.detector import Detector

RTSP_SERVER = Path(__file__).parents[1] / "support" / "rtsp_server.py"


def verdicts(lines):
    return [record for record in map(json.loads, lines) if record["kind"] == "verdict"]


class Child:
    """A running command whose lines of stdout are read as they come."""

    def __init__(self, *arguments: object, prelude: str = "", **environment: str) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            command("watch", *arguments, "--engine", "ort", "--threads", "1", prelude=prelude),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.append(line)

    def came(self, condition) -> None:
        wait_for(lambda: self.process.poll() is not None or condition(self.lines))
        assert condition(self.lines), self.process.communicate()[1]

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> tuple[int, str]:
        """Exit code and stderr, once it has ended."""
        self._reader.join(60)
        error = self.process.stderr.read()
        return self.process.wait(60), error

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(60)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            stream.close()


def test_a_folder_is_judged_as_run_does(model_file, photos, tmp_path):
    (tmp_path / "torn.png").write_bytes(b"no picture")
    images = sorted((photos / "test").rglob("*.png"))
    for number, image in enumerate(images):
        shutil.copy(image, tmp_path / f"{number:02d}.png")
    watched = in_process("watch", model_file, tmp_path, "--engine", "ort", "--stats", "60").worked()
    ran = in_process("run", model_file, tmp_path, "--engine", "ort", "--jsonl", "-").worked()
    wanted = [json.loads(line) for line in ran.stdout.splitlines()]
    records = [json.loads(line) for line in watched.stdout.splitlines()]
    judged = [record for record in records if record["kind"] in ("verdict", "error")]
    assert len(judged) == len(images) + 1
    for got, want in zip(judged, wanted, strict=True):
        if "score" in want:
            assert got["score"] == pytest.approx(want.pop("score"), rel=1e-5)
        assert {name: got.get(name) for name in want} == want
    ends = records[-1]
    assert (ends["judged"], ends["unreadable"], ends["dropped"]) == (len(images), 1, 0)
    assert "latency p50" in watched.stderr
    assert re.search(r"padim.onnx: ort, .* MB of memory", watched.stderr)


def test_two_cameras_of_one_model_open_it_once(model_file, photos, tmp_path):
    test, train = photos / "test" / "good", photos / "train" / "good"
    linked = tmp_path / "same.onnx"
    linked.symlink_to(model_file)
    done = in_process(
        *("watch", model_file, test, "--also", linked, f"train={train}"),
        *("--engine", "ort", "--count", 8),
    ).worked()
    judged = verdicts(done.stdout.splitlines())
    assert len(judged) == 8
    assert {record["camera"] for record in judged} == {"camera1", "train"}
    assert done.stderr.count("MB of memory") == 1


def test_what_makes_no_sense_is_one_line(model_file, embedding_file, photos, tmp_path):
    watch = ("watch", model_file, photos)
    in_process("watch", embedding_file, photos).failed(
        2, f"{embedding_file} is an embedding", "padim-edge fit"
    )
    page = ("--page", "127.0.0.1:0", "--threshold", "5")
    in_process("watch", embedding_file, photos, *page).failed(
        2, "--threshold would hold for every detector", "leave it out"
    )
    for wrong in ("nan", "0", "-1"):
        in_process(*watch, "--threshold", wrong).failed(
            2, f"a threshold of {float(wrong)}", "a positive number"
        )
    in_process(*watch, "--policy", "newest").failed(2, "no policy 'newest'", "latest and all")
    in_process(*watch, "--engine", "abacus").failed(2, "abacus", "choose auto")
    in_process(*watch, "--also", model_file).failed(2, "--also", "needs two values, MODEL SOURCE")
    in_process(*watch, "--to", "carrier:pigeon").failed(2, "carrier", "allowed are")
    said = ("padim.onnx", str(model_file))
    in_process("watch", model_file, "rstp://camera").failed(2, "no source 'rstp'")
    in_process(*watch, "--also", model_file, f"camera1={photos}", "--engine", "ort").failed(
        2, "cameras are named camera1, camera1", said=said
    )
    blocked = tmp_path / "file"
    blocked.touch()
    in_process(*watch, "--state", blocked / "below").failed(1, "cannot make the folder", "--state")


def test_a_pipe_is_judged_to_its_end(model_file, tmp_path):
    frames = np.random.default_rng(3).integers(0, 256, (5, 48, 64, 3), np.uint8)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    # Opening waits for who reads.
    thread = threading.Thread(target=lambda: pipe.write_bytes(frames.tobytes()), daemon=True)
    thread.start()
    done = in_process(
        *("watch", model_file, f"raw:{pipe}?size=64x48&format=bgr", "--engine", "ort"),
        *("--threads", 1),
    ).worked()
    thread.join(60)
    with Detector(model_file, "ort", 1, pixel_format="bgr") as detector:
        wanted = [detector(frame).score for frame in frames]
    assert [record["score"] for record in verdicts(done.stdout.splitlines())] == wanted


def told(systemd: socket.socket) -> bytes:
    """The next that is said, counts left out: they come every ten seconds."""
    while (said := systemd.recv(4096)).startswith(b"STATUS="):
        pass
    return said


def test_signals_and_the_manager(model_file, good, tmp_path):
    mine = shutil.copy(model_file, tmp_path / "padim.onnx")
    folder = link(good, tmp_path / "photos", 20_000)
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(address)
        systemd.settimeout(60)
        with Child(mine, folder, NOTIFY_SOCKET=address) as child:
            child.came(lambda lines: len(lines) > 20)
            assert told(systemd) == b"READY=1"
            child.send(signal.SIGHUP)
            assert told(systemd).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
            child.came(lambda lines: any('"kind": "model"' in line for line in lines))
            assert told(systemd) == b"READY=1"
            child.send(signal.SIGTERM)
            assert told(systemd) == b"STOPPING=1"
            code, error = child.end()
    assert code == 0, error
    assert "Traceback" not in error
    records = [json.loads(line) for line in child.lines]
    judged = verdicts(child.lines)
    assert [record["sequence"] for record in judged] == list(range(len(judged)))
    assert records[-1]["judged"] == records[-1]["captured"] == len(judged) < 20_000
    model = next(record for record in records if record["kind"] == "model")
    assert "judges from now on" in model["message"]


SLOWLY = """
import os, signal
from padim_edge.detect import detector
open_engine = detector.open_engine

def interrupted(*arguments, **options):
    engine = open_engine(*arguments, **options)
    os.kill(os.getpid(), signal.SIGHUP)  # is nothing to end by
    os.kill(os.getpid(), signal.SIGTERM)
    return engine

detector.open_engine = interrupted
"""
"""Lets a service manager change its mind while the model is opened."""


def test_a_signal_before_the_first_frame_is_no_failure(model_file, photos):
    done = padim_edge("watch", model_file, photos, "--engine", "ort", prelude=SLOWLY).worked()
    assert done.stdout == ""
    assert done.stderr == "stopped before the first frame\n"


ACKNOWLEDGING = """
import json
from padim_edge.live.spool import Spool
append = Spool.append

def told(self, events, keys=()):
    notices = append(self, events, keys)
    for event in events:
        print(event.to_json(), flush=True)
    return notices

Spool.append = told
"""
"""Makes a watch print an event once its spool has acknowledged it."""


def test_kill_9_loses_no_acknowledged_event_and_judges_no_file_again(model_file, good, tmp_path):
    pytest.importorskip("urllib3")
    from padim_edge.live.spool import Spool

    count = 150
    folder = tmp_path / "inbox"
    folder.mkdir()
    for number in range(count):
        shutil.copy(good[number % len(good)], folder / f"{number:04d}.png")
    nobody = "http://127.0.0.1:9/hook"
    arguments = (model_file, f"hot:{folder}", "--to", nobody, "--state", tmp_path / "state")
    with Child(*arguments, prelude=ACKNOWLEDGING) as child:
        child.came(lambda lines: len(verdicts(lines)) >= 20)
        child.send(signal.SIGKILL)
        child.end()
    # The last line may have been cut off.
    acknowledged = [json.loads(line) for line in child.lines if line.endswith("\n")]
    spool = Spool(tmp_path / "state" / "spool.db", sinks=[nobody])
    kept = [event.record for event in spool.pending(nobody, 10_000)]
    spool.close()
    ids = [record["id"] for record in kept]
    assert ids == sorted(set(ids))
    assert [record for record in kept if record["id"] in {one["id"] for one in acknowledged}] == (
        acknowledged
    )
    paths = [record["path"] for record in kept if record["kind"] == "verdict"]
    assert len(paths) == len(set(paths)) < count
    done = in_process(
        *("watch", *arguments, "--engine", "ort", "--drain", 0, "--count", count - len(paths))
    ).worked()
    assert "events wait for http://127.0.0.1:9/hook" in done.stderr
    spool = Spool(tmp_path / "state" / "spool.db", sinks=[nobody])
    kept = [event.record for event in spool.pending(nobody, 10_000)]
    spool.close()
    paths = [record["path"] for record in kept if record["kind"] == "verdict"]
    assert len(paths) == len(set(paths)) == count


def test_a_hot_folder_is_remembered_though_nobody_but_stdout_is_told(
    model_file, good, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "inbox").mkdir()
    for number in range(3):
        shutil.copy(good[number], tmp_path / "inbox" / f"{number}.png")
    judged = []
    for count in (2, 1):
        done = in_process(
            *("watch", model_file, "hot:inbox", "--engine", "ort", "--threads", 1),
            *("--count", count),
        ).worked()
        judged += [record["path"] for record in verdicts(done.stdout.splitlines())]
        assert "state: padim-edge-state\n" in done.stderr
    assert len(set(judged)) == 3


def test_a_spool_that_cannot_be_read_loses_the_folder_not_the_watch(tmp_path):
    from padim_edge.live.assembly import opening
    from padim_edge.live.source import SourceError
    from padim_edge.live.spool import Spool

    (tmp_path / "inbox").mkdir()
    (tmp_path / "inbox" / "a.png").write_bytes(b"half a picture")
    spool = Spool(tmp_path / "spool.db")
    source = opening(f"hot:{tmp_path / 'inbox'}", spool, None)()
    spool._connection.close()  # as good as a disk that is gone
    with pytest.raises(SourceError, match="cannot write the spool"):
        next(iter(source))
    spool.close()


def serve(video: Path, port: int) -> subprocess.Popen[str]:
    """A real RTSP server, which listens when this returns."""
    deadline = time.monotonic() + 60
    while True:
        server = subprocess.Popen(
            ["/usr/bin/python3", str(RTSP_SERVER), str(video), str(port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        if server.stdout.readline():
            return server
        error = stopped(server)
        # Somebody else may have the port for a moment.
        assert "cannot listen" in error, error
        assert time.monotonic() < deadline, error


def port_of_nobody() -> int:
    """A free port that who connects elsewhere is not given while its server is down."""
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    ports = [*range(1024, first), *range(last + 1, 1 << 16)]
    if not ports:
        pytest.skip("net.ipv4.ip_local_port_range gives every port away: leave some out of it")
    while True:
        with socket.socket() as one, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", random.choice(ports)))
            return one.getsockname()[1]


def stopped(server: subprocess.Popen[str]) -> str:
    """Kill a server; what it said on stderr."""
    server.kill()
    return server.communicate(timeout=60)[1]


def test_an_rtsp_server_that_dies_and_comes_back(model_file, tmp_path):
    pytest.importorskip("av")
    bindings = "import gi; gi.require_version('GstRtspServer', '1.0')"
    if subprocess.run(["/usr/bin/env", "/usr/bin/python3", "-c", bindings], check=False).returncode:
        pytest.skip("no RTSP server: apt install gir1.2-gst-rtsp-server-1.0 python3-gi")
    from numbered import write_video

    write_video(tmp_path / "part.mp4", range(500))
    port = port_of_nobody()
    server = serve(tmp_path / "part.mp4", port)
    try:
        with Child(model_file, f"rtsp://127.0.0.1:{port}/part") as child:
            child.came(lambda lines: len(verdicts(lines)) >= 5)
            stopped(server)
            child.came(lambda lines: any("trying again in" in line for line in lines))
            server = serve(tmp_path / "part.mp4", port)
            child.came(lambda lines: any("is back" in line for line in lines))
            before = len(verdicts(child.lines))
            child.came(lambda lines: len(verdicts(lines)) >= before + 5)
            child.send(signal.SIGTERM)
            code, error = child.end()
    finally:
        stopped(server)
    assert code == 0, error
    sequences = [record["sequence"] for record in verdicts(child.lines)]
    assert sequences == sorted(set(sequences))
    ends = json.loads(child.lines[-1])
    assert ends["captured"] == ends["judged"] + ends["dropped"]
