"""padim-edge capture: photos as a user has them."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import command, in_process, names, padim_edge
from numbered import number_of, numbered, write_video
from PIL import Image

from padim_edge.images.decode import load_frame
from padim_edge.images.formats import PIXEL_FORMATS
from padim_edge.images.frames import Frame
from padim_edge.live import photos
from padim_edge.live.photos import to_image
from padim_edge.live.source import Captured


def test_photos_of_a_video_carry_its_frames(tmp_path):
    write_video(tmp_path / "v.mp4", range(30))
    folder = tmp_path / "new" / "photos"
    done = in_process("capture", tmp_path / "v.mp4", folder, "--nth", "7").worked()
    paths = sorted(folder.iterdir())
    assert [number_of(load_frame(path)) for path in paths] == [0, 7, 14, 21, 28]
    assert sorted(done.stdout.splitlines()) == list(map(str, paths))
    assert f"5 photos in {folder}" in done.stderr
    in_process("capture", tmp_path / "v.mp4", folder, "--count", "2").worked()
    assert len(names(folder)) == 7  # none was written over


def test_different_leaves_out_what_is_nearly_equal(tmp_path):
    rng = np.random.default_rng(0)
    for place, number in enumerate([3, 3, 3, 90, 90, 3, 1000]):
        noise = rng.integers(-2, 3, numbered(0).shape)
        picture = (numbered(number).astype(int) + noise).clip(0, 255).astype(np.uint8)
        Image.fromarray(picture).save(tmp_path / f"{place}.png")
    done = in_process("capture", tmp_path, tmp_path / "out", "--different").worked()
    taken = [number_of(load_frame(path)) for path in sorted((tmp_path / "out").iterdir())]
    assert taken == [3, 90, 1000]
    assert "4 nearly equal frames left out" in done.stderr


def test_files_are_copied_as_they_are_and_bad_ones_told_of(tmp_path):
    (tmp_path / "in").mkdir()
    Image.fromarray(numbered(5)).save(tmp_path / "in" / "a.JPG", "JPEG")
    (tmp_path / "in" / "b.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish that is no picture")
    done = in_process("capture", tmp_path / "in", tmp_path / "out")
    assert done.code == 0
    (name,) = names(tmp_path / "out")
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "in" / "a.JPG").read_bytes()
    assert "warning: left out: " in done.stderr
    assert "1 photos in" in done.stderr
    assert "1 could not be read" in done.stderr


class JumpingCamera:
    """A frame a second, by our clock; its own is set forward by a day, then back by two."""

    address = "jumping:"
    is_live = True

    def __init__(self, monkeypatch):
        self._now = 100.0
        clock = SimpleNamespace(
            monotonic=lambda: self._now, gmtime=time.gmtime, strftime=time.strftime
        )
        monkeypatch.setattr(photos, "time", clock)

    def __iter__(self):
        for number in range(10):
            day = 86_400 * ((number >= 3) - 2 * (number >= 6))
            yield Captured(Frame(numbered(number)), number, 1.7e9 + number + day)
            self._now += 1.0

    def close(self):
        pass


def test_seconds_between_photos_are_ours_whatever_the_cameras_clock_does(tmp_path, monkeypatch):
    counts = photos.Counts()
    camera = JumpingCamera(monkeypatch)
    taken = list(photos.take_photos(camera, tmp_path, counts, every=2.0))
    assert [number_of(load_frame(path)) for path in taken] == [0, 2, 4, 6, 8]


def test_wrong_use_is_refused_before_a_photo(tmp_path):
    write_video(tmp_path / "v.mp4", range(2))
    out = tmp_path / "out"
    said = ("video ",)
    in_process("capture", tmp_path / "v.mp4", out, "--every", "1").failed(2, "--nth", said=said)
    in_process("capture", "ftp://x", out).failed(2, "no source 'ftp'")
    in_process("capture", tmp_path / "nosuch", out).failed(1, "nosuch")
    (tmp_path / "file").touch()
    in_process("capture", tmp_path / "v.mp4", tmp_path / "file").failed(1, "cannot make the folder")
    assert not out.exists()


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_live_source_is_photographed_until_it_is_stopped(tmp_path, stop):
    os.mkfifo(tmp_path / "pipe")
    address = f"raw:{tmp_path}/pipe?size=256x64&live=yes"
    process = subprocess.Popen(
        command("capture", address, tmp_path / "out"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's job in the background ignores Ctrl-C, and hands that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    with (tmp_path / "pipe").open("wb") as pipe:
        pipe.write(numbered(7).tobytes() + numbered(8).tobytes())
        pipe.flush()
        written = [Path(process.stdout.readline().strip()) for _ in range(2)]
        process.send_signal(stop)
        _, said = process.communicate(timeout=60)
    watchdog.cancel()
    assert process.returncode == 0, said
    assert "2 photos in" in said
    assert [number_of(load_frame(path)) for path in written] == [7, 8]
    assert len(names(tmp_path / "out")) == 2


def test_a_source_that_is_lost_is_an_error_and_its_photos_stay(tmp_path):
    frames = b"".join(numbered(number).tobytes() for number in range(3))
    (tmp_path / "frames").write_bytes(frames)
    address = f"raw:{tmp_path}/frames?size=256x64&live=yes"
    done = padim_edge("capture", address, tmp_path / "out")
    done.failed(1, "has ended", said=("raw:", "3 photos in"))
    assert len(names(tmp_path / "out")) == 3


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_grey_of_many_bits_is_kept_to_the_last(bits):
    white = 2**bits - 1
    values = np.arange(0, white + 1, max(1, white // 5000))
    grey = np.append(values, white).astype(np.uint8 if bits == 8 else np.uint16)[None]
    image = np.asarray(to_image(Frame(grey, f"grey{bits}")))
    full = 255 if bits == 8 else 65535
    assert image.max() == full
    assert (np.round(image.astype(float) * white / full) == grey).all()


def test_colours_are_those_that_the_detector_sees():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (96, 64), np.uint8)
    y, uv = PIXEL_FORMATS["nv12-709"].planes(pixels)
    # Where the four pixels around have one colour, there is nothing to interpolate.
    flat = np.broadcast_to(uv[:1, :1], uv.shape)
    pixels = np.concatenate([y[..., 0], flat.reshape(32, 64)])
    image = np.asarray(to_image(Frame(pixels, "nv12-709")))
    planes = [y, np.broadcast_to(uv[:1, :1], (64, 64, 2))]
    assert np.array_equal(image, PIXEL_FORMATS["nv12-709"].to_rgb(planes))
