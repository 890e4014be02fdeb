"""Live sources against real parts: servers that die and come back, pipelines, cameras."""

from __future__ import annotations

import base64
import contextlib
import http.server
import io
import itertools
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numbered import HEIGHT, WIDTH, number_of, numbered, write_video
from PIL import Image

from padim_edge.errors import ImageError, UsageError
from padim_edge.live.source import Captured, Source, SourceError
from padim_edge.live.sources import genicam, gstreamer, open_source
from padim_edge.live.sources.gstreamer import Caps

SUPPORT = Path(__file__).parents[1] / "support"
PYTHON = "/usr/bin/python3"  # Debian's, which has GStreamer's bindings


def has_rtsp_server() -> bool:
    code = "import gi; gi.require_version('GstRtspServer', '1.0')"
    return (
        Path(PYTHON).exists()
        and not subprocess.run([PYTHON, "-c", code], capture_output=True, check=False).returncode
    )


needs_aravis = pytest.mark.skipif(
    not shutil.which("arv-fake-gv-camera-0.8"), reason="needs aravis-tools and libaravis-0.8-0"
)
needs_gstreamer = pytest.mark.skipif(
    not shutil.which("gst-launch-1.0"), reason="needs gst-launch-1.0 (gstreamer1.0-tools)"
)


@contextlib.contextmanager
def rtsp_server(video: Path, port: int = 0) -> Iterator[tuple[subprocess.Popen[str], int]]:
    server = subprocess.Popen(
        [PYTHON, str(SUPPORT / "rtsp_server.py"), str(video), str(port)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        yield server, int(server.stdout.readline())
    finally:
        server.kill()
        server.communicate()


def until_lost(
    source: Source, number: int = -1, then: Callable[[], object] = lambda: None
) -> tuple[list[Captured], str]:
    """What a source gives until it is lost, and what it says then; after some frames do that."""
    taken: list[Captured] = []
    with contextlib.closing(iter(source)) as frames:
        while True:
            try:
                taken.append(next(frames))
            except SourceError as error:
                return taken, str(error)
            if len(taken) == number:
                then()


def closed_by_another_thread(source: Source, frames: Iterator[Captured]) -> list[Captured]:
    """What still came, of a source that is closed while somebody waits for its next frame."""
    rest: list[Captured] = []
    waiting = threading.Thread(target=lambda: rest.extend(frames), daemon=True)
    waiting.start()
    source.close()
    waiting.join(20)
    assert not waiting.is_alive(), "who waited for a frame did not wake"
    return rest


@pytest.mark.skipif(not has_rtsp_server(), reason="needs gir1.2-gst-rtsp-server-1.0")
def test_an_rtsp_camera_that_dies_is_lost_and_comes_back(tmp_path):
    write_video(tmp_path / "v.mp4", range(100))
    with rtsp_server(tmp_path / "v.mp4") as (server, port):
        source = open_source(f"rtsp://me:secret@127.0.0.1:{port}/part")
        assert source.is_live
        assert source.describe() == (
            f"rtsp://me:***@127.0.0.1:{port}/part: {WIDTH}x{HEIGHT} h264, 25 frames/s, as i420"
        )
        taken, lost = until_lost(source, 12, server.kill)
        assert "/part has ended" in lost or "/part was lost" in lost
        assert "secret" not in lost
        numbers = [number_of(one.picture) for one in taken]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        assert all(abs(one.time - time.time()) < 60 for one in taken)
        times = [one.time for one in taken]
        assert times == sorted(times)
    with pytest.raises(SourceError, match="cannot be opened: Connection refused") as refused:
        open_source(f"rtsp://me:secret@127.0.0.1:{port}/part")
    assert "secret" not in str(refused.value)
    with rtsp_server(tmp_path / "v.mp4", port):
        source = open_source(f"rtsp://me:secret@127.0.0.1:{port}/part")
        frames = iter(source)
        assert [number_of(one.picture) for one in itertools.islice(frames, 3)] == [0, 1, 2]
        closed_by_another_thread(source, frames)


@pytest.mark.parametrize("scheme", ["rtsp", "http"])
def test_a_server_that_says_nothing_is_given_up_in_time(scheme):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(SourceError, match=r"cannot be opened: nothing came for 0\.4 s"):
            open_source(f"{scheme}://127.0.0.1:{port}/x#timeout=0.4")


LOCKED = "Basic " + base64.b64encode(b"me:p@ss:w/rd").decode()


def jpeg(number: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(numbered(number)).save(stream, "JPEG", quality=90)
    return stream.getvalue()


@pytest.fixture
def web(tmp_path) -> Iterator[str]:
    """A server of an MJPEG camera with damaged frames, of one that falls silent, and of a file."""
    write_video(tmp_path / "v.mp4", range(40))
    silent = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/locked" and self.headers.get("Authorization") != LOCKED:
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Basic realm="camera"')
                self.end_headers()
                return
            self.send_response(200)
            if self.path == "/v.mp4":
                data = (tmp_path / "v.mp4").read_bytes()
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
                return
            boundary = "multipart/x-mixed-replace; boundary=--frame"
            self.send_header("Content-Type", boundary)
            self.end_headers()
            with contextlib.suppress(OSError):  # the reader has gone
                for number in range(40):
                    data = jpeg(number)
                    if number == 20:
                        data = data[: len(data) // 2]
                    if number == 30:
                        data = b"rubbish" * 50
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}"
                    self.wfile.write(head.encode() + b"\r\n\r\n" + data + b"\r\n")
                    if number == 35 and self.path == "/silent":
                        silent.wait(60)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    silent.set()
    server.shutdown()
    server.server_close()


def test_mjpeg_over_http_tells_of_damaged_frames_in_their_places(web):
    source = open_source(f"{web}/camera?channel=1#timeout=10")
    assert source.is_live
    assert "mjpeg" in source.describe()
    taken, lost = until_lost(source)
    assert "/camera?channel=1" in lost
    seen = {
        one.sequence: None if isinstance(one.picture, ImageError) else number_of(one.picture)
        for one in taken
    }
    assert seen == {number: None if number in (20, 30) else number for number in range(40)}


def test_a_camera_that_falls_silent_is_lost_and_who_waits_can_be_woken(web):
    taken, lost = until_lost(open_source(f"{web}/silent#timeout=0.5"))
    assert "was lost: nothing came for 0.5 s" in lost
    assert len(taken) >= 35
    source = open_source(f"{web}/silent#timeout=30")
    frames = iter(source)
    next(frames)
    closed_by_another_thread(source, frames)


def test_a_video_file_over_http_may_end(web):
    source = open_source(f"{web}/v.mp4")
    assert not source.is_live
    assert [number_of(one.picture) for one in source] == list(range(40))


def test_a_password_may_stand_elsewhere(web, tmp_path, monkeypatch):
    (tmp_path / "secret").write_text("p@ss:w/rd\n")
    monkeypatch.setenv("CAMERA", "p@ss:w/rd")
    address = web.replace("//", "//me@") + "/locked#password_from="
    for place in (f"file:{tmp_path}/secret", "env:CAMERA"):
        frames = iter(open_source(address + place))
        assert number_of(next(frames).picture) == 0
    with pytest.raises(SourceError, match="cannot be opened"):
        open_source(f"{web}/locked")
    with pytest.raises(UsageError, match="env:NOSUCH"):
        open_source(address + "env:NOSUCH")
    with pytest.raises(UsageError, match="needs a user"):
        open_source(f"{web}/locked#password_from=env:CAMERA")


def test_a_v4l2_camera(tmp_path):
    devices = sorted(Path("/dev").glob("video*"))
    if not devices:
        pytest.skip("there is no /dev/video*: load v4l2loopback, and feed it with GStreamer")
    source = open_source(str(devices[0]))
    taken = list(itertools.islice(iter(source), 3))
    assert [one.sequence for one in taken] == [0, 1, 2]
    assert all(0 <= time.time() - one.time < 10 for one in taken)
    source.close()


@needs_gstreamer
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("NV12", "nv12"), ("I420", "i420"), ("BGRx", "bgra"), ("GRAY16_LE", "grey16")],
)
@pytest.mark.parametrize("width", [WIDTH, WIDTH + 2])  # rows padded to four bytes, or not
def test_a_pipeline_gives_frames_in_its_own_format(tmp_path, theirs, ours, width):
    for number in range(4):
        Image.fromarray(numbered(number, width)).save(tmp_path / f"{number}.png")
    source = open_source(
        f'gst:multifilesrc location="{tmp_path}/%d.png" start-index=0 stop-index=3 '
        "caps=image/png,framerate=25/1 ! pngdec ! videoconvert ! "
        f"video/x-raw,format={theirs},colorimetry={'bt601' if 'G' not in theirs else '1:1:5:1'}"
    )
    assert source.describe().endswith(f": {width}x{HEIGHT} {ours}")
    taken = list(source)
    assert [number_of(one.picture) for one in taken] == [0, 1, 2, 3]
    assert [one.sequence for one in taken] == [0, 1, 2, 3]


@needs_gstreamer
def test_a_live_pipeline_is_timed_by_its_stamps_and_let_go_when_it_is_closed():
    source = open_source(
        "gst:videotestsrc is-live=true ! video/x-raw,format=NV12,width=64,height=64,framerate=50/1"
    )
    frames = iter(source)
    taken = list(itertools.islice(frames, 10))
    steps = np.diff([one.time for one in taken])
    assert steps.max() <= 0.0201  # a frame that was late is known to have been
    assert steps.mean() == pytest.approx(0.02, rel=0.5)
    child = source._pipeline._child.pid
    closed_by_another_thread(source, frames)
    assert not Path(f"/proc/{child}").exists()


@needs_gstreamer
@pytest.mark.parametrize(
    ("pipeline", "error", "words"),
    [
        ("nosuch ! fakesink", UsageError, 'no element "nosuch"'),
        ("videotestsrc ! video/x-raw,format=v210", UsageError, "! videoconvert !"),
        ("videotestsrc num-buffers=2 ! jpegenc", UsageError, "no bare video"),
        ("v4l2src device=/dev/video77", SourceError, "/dev/video77"),
        ("filesrc location=/nosuch ! pngdec", SourceError, "nosuch"),
        ("videotestsrc num-buffers=0", SourceError, "without a frame"),
    ],
)
def test_a_pipeline_that_does_not_run_says_why(pipeline, error, words):
    with pytest.raises(error) as refused:
        open_source(f"gst:{pipeline}")
    assert type(refused.value) is error
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


@needs_gstreamer
def test_a_pipeline_that_is_killed_is_lost():
    source = open_source(
        "gst:videotestsrc is-live=true ! video/x-raw,format=GRAY8,width=64,height=64"
    )
    _, lost = until_lost(source, 3, source._pipeline._child.kill)
    assert "failed: exit code -9" in lost


@needs_gstreamer
def test_of_what_a_pipeline_says_the_last_is_kept(monkeypatch):
    """A driver that complains with each frame does so for months: it must not fill a disk."""
    monkeypatch.setenv("GST_DEBUG", "6")  # thousands of lines
    source = open_source(
        "gst:videotestsrc num-buffers=50 ! video/x-raw,format=GRAY8,width=64,height=64"
    )
    assert len(list(source)) == 50
    pipeline = source._pipeline
    pipeline._listener.join(30)
    assert not pipeline._listener.is_alive()
    assert len(pipeline._said) == gstreamer._SAID
    assert b"DEBUG" in pipeline._said


@pytest.mark.parametrize("name", ['"', "it's", "a\\ b", "a\nb", "a\tb"])
def test_a_camera_has_no_name_that_is_read_as_something_else(name):
    with pytest.raises(UsageError, match="without quotes and backslashes"):
        open_source(f"genicam:{name}")


@needs_gstreamer
@needs_aravis
def test_a_camera_whose_name_has_spaces_is_looked_for():
    name = "Allied Vision! filesink location=y"
    with pytest.raises(SourceError, match=f"Device '{name}' not found"):
        open_source(f"genicam:{name}")


def test_what_a_camera_is_set_to_is_what_was_given(monkeypatch):
    given: list[list[str]] = []

    def pipeline(_: str, elements: list[str], *__: object) -> None:
        given.append(elements)

    monkeypatch.setattr(genicam, "Pipeline", pipeline)
    open_source("genicam:Basler-acA1300_30gm-21234567?exposure=1234567.25&gain=3.0000001")
    assert given[0][2:] == [
        "camera-name=Basler-acA1300_30gm-21234567",
        "exposure=1234567.25",
        "gain=3.0000001",
    ]


def test_caps_say_which_colours_they_are():
    raw = "video/x-raw, format=(string)NV12, width=(int)4, height=(int)2, colorimetry=(string)"
    names = {
        "bt601": "nv12",
        "bt709": "nv12-709",
        "1:4:0:0": "nv12-full",
        "1:3:5:1": "nv12-709-full",
        "2:4:16:4": "nv12",
    }
    assert {colours: Caps(raw + colours).pixel_format for colours in names} == names
    with pytest.raises(UsageError, match="bt2020"):
        Caps(raw + "bt2020")
    bayer = Caps("video/x-bayer, format=(string)rggb, width=(int)6, height=(int)2")
    assert bayer.pixel_format == "bayer-rggb"
    padded = np.arange(16, dtype=np.uint8)
    assert bayer.pixels(padded).tolist() == [[0, 1, 2, 3, 4, 5], [8, 9, 10, 11, 12, 13]]
    with pytest.raises(ImageError, match="has 12 bytes, 16 are right"):
        bayer.pixels(padded[:12])


GENICAM = """
import atexit, subprocess, time
from padim_edge.errors import ImageError
from padim_edge.live.source import SourceError
from padim_edge.live.sources import open_source

def camera():
    started = subprocess.Popen(["arv-fake-gv-camera-0.8", "-i", "127.0.0.1", "-s", "GV42"])
    atexit.register(started.kill)  # otherwise it holds what this is read from
    return started

def opened(address):  # a camera is not there at once
    deadline = time.monotonic() + 60
    while True:
        try:
            return open_source(address)
        except SourceError:
            if time.monotonic() > deadline:
                raise

address = "genicam:Aravis-Fake-GV42?size=256x128&fps=50&format=Mono8&timeout=2"
fake = camera()
source = opened(address)
print(source.describe())
taken = []
try:
    for one in source:
        taken.append(one)
        if len(taken) == 10:
            fake.kill()
            fake.wait()
except SourceError as error:
    print(error)
assert not any(isinstance(one.picture, ImageError) for one in taken)
assert [one.sequence for one in taken] == list(range(len(taken)))
assert {one.picture.pixels.shape for one in taken} == {(128, 256)}
steps = [b.time - a.time for a, b in zip(taken, taken[1:])]
print(sorted(steps)[len(steps) // 2])
camera()
source = opened("genicam:?size=256x128&format=BayerRG8")
print(next(iter(source)).picture.pixel_format)
source.close()
"""


@needs_gstreamer
@needs_aravis
def test_a_genicam_camera():
    # A network of its own: Aravis asks all interfaces, and takes the wrong one for a camera on
    # loopback where there are others.
    alone = ["unshare", "-rn", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs a network namespace: unshare -rn is not allowed here")
    done = subprocess.run(
        [*alone, sys.executable, "-c", GENICAM],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    described, lost, step, colour = done.stdout.splitlines()
    assert described.endswith(": 256x128 grey8")
    assert "no frame came for 2 s" in lost or "failed" in lost
    assert float(step) == pytest.approx(0.02, rel=0.5)
    assert colour == "bayer-rggb"
