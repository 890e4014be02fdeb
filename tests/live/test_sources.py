"""Sources of files: folders, lists, videos; and what an address may not be."""

from __future__ import annotations

import io
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

import av
import numpy as np
import pytest
from helpers import blocking
from numbered import HEIGHT, WIDTH, number_of, numbered, write_video
from PIL import Image

from padim_edge.errors import ImageError, PadimEdgeError, UsageError
from padim_edge.images.formats import PIXEL_FORMATS, yuv_mix
from padim_edge.images.frames import Frame
from padim_edge.live.source import Source, SourceError
from padim_edge.live.sources import SOURCES, libav, open_source
from padim_edge.live.sources.background import Background
from padim_edge.live.sources.clock import JUMP, SPAN, Clock


def whole_planes(frame: Frame) -> list[np.ndarray]:
    """Planes [h, w, values], all of the picture's size: pixels of the smaller ones repeated."""
    height, width = frame.size
    planes = frame.format.planes(frame.in_host_memory())
    return [p.repeat(height // p.shape[0], 0).repeat(width // p.shape[1], 1) for p in planes]


def rgb_of(frame: Frame) -> np.ndarray:
    return frame.format.to_rgb(whole_planes(frame))


def photos(folder: Path, names: list[str]) -> list[Path]:
    for place, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(numbered(place)).save(folder / name)
    return [folder / name for name in names]


def test_a_folder_gives_its_images_once_in_order(tmp_path):
    paths = photos(tmp_path, ["a.png", "b/c.png", "z.png"])
    (tmp_path / "notes.txt").touch()
    for address in (str(tmp_path), f"folder:{tmp_path}"):
        source = open_source(address)
        assert isinstance(source, Source)
        assert not source.is_live
        assert source.describe() == f"3 images of {address}"
        taken = list(source)
        assert [one.picture for one in taken] == paths
        assert [one.sequence for one in taken] == [0, 1, 2]
        assert [one.name for one in taken] == list(map(str, paths))
    assert [one.picture for one in open_source(f"{tmp_path}/*.png")] == [paths[0], paths[2]]
    assert [one.picture for one in open_source(str(paths[1]))] == [paths[1]]


def test_a_list_gives_what_it_names(tmp_path, monkeypatch):
    (tmp_path / "list").write_bytes(b"b.png\r\n\nmissing.png\na.png\n")
    names = [Path("b.png"), Path("missing.png"), Path("a.png")]
    assert [one.picture for one in open_source(f"list:{tmp_path}/list")] == names
    stdin = io.TextIOWrapper(io.BytesIO(b"x.png\0y\n.png\0"))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert [one.picture for one in open_source("list:-")] == [Path("x.png"), Path("y\n.png")]


def test_after_close_nothing_comes(tmp_path):
    photos(tmp_path, ["a.png", "b.png", "c.png"])
    write_video(tmp_path / "v.mp4", range(9))
    for address in (str(tmp_path), str(tmp_path / "v.mp4")):
        source = open_source(address)
        frames = iter(source)
        next(frames)
        source.close()
        source.close()
        assert list(frames) == []


@pytest.mark.parametrize(
    ("codec", "theirs", "ours", "file"),
    [
        ("libx264", "yuv420p", "i420", "v.mp4"),
        ("mjpeg", "yuvj420p", "i420-full", "v.avi"),
        ("mjpeg", "yuvj422p", "yuyv-full", "v.avi"),
        ("rawvideo", "nv12", "nv12", "v.nut"),
        ("rawvideo", "bgr24", "bgr", "v.nut"),
        ("rawvideo", "uyvy422", "uyvy", "v.nut"),
        ("ffv1", "gray", "grey8", "v.mkv"),
        ("ffv1", "gray12le", "grey12", "v.mkv"),
        ("ffv1", "bgr0", "bgra", "v.mkv"),
        ("ffv1", "yuv444p", "rgb", "v.mkv"),
        ("ffv1", "yuv420p10le", "rgb", "v.mkv"),
    ],
)
def test_every_frame_of_a_video_comes_in_its_own_format(tmp_path, codec, theirs, ours, file):
    write_video(tmp_path / file, range(500, 512), codec, theirs)
    source = open_source(str(tmp_path / file))
    assert f"{WIDTH}x{HEIGHT} {codec.removeprefix('lib').replace('x264', 'h264')}" in (
        source.describe()
    )
    assert f"as {ours}" in source.describe()
    assert ("converted" in source.describe()) == (ours == "rgb")
    taken = list(source)
    assert [number_of(one.picture) for one in taken] == list(range(500, 512))
    assert [one.sequence for one in taken] == list(range(12))
    assert {one.picture.pixel_format for one in taken} == {ours}
    assert taken[-1].name.endswith(" at 0:00:00.440")


@pytest.mark.parametrize("theirs", ["yuv420p", "yuv444p", "nv12"])
@pytest.mark.parametrize("matrix", ["601", "709"])
@pytest.mark.parametrize("full", [False, True])
def test_colours_are_of_the_matrix_and_range_that_the_stream_says(theirs, matrix, full):
    values = np.array([120, 90, 170], np.uint8)
    frame = av.VideoFrame(32, 32, theirs)
    for plane, of_it in zip(
        frame.planes, ([0], [1], [2]) if len(frame.planes) == 3 else ([0], [1, 2]), strict=True
    ):
        plane.update(np.resize(values[of_it], plane.buffer_size).tobytes())
    frame.colorspace = {"601": 5, "709": 1}[matrix]
    frame.color_range = 1 + full
    taken = libav.to_frame(frame)
    planes = taken.format.planes(taken.in_host_memory())
    rgb = taken.format.to_rgb([plane[:1, :1] for plane in planes])[0, 0]
    y, u, v = values.astype(float)
    exact = yuv_mix(matrix, full) @ [y, u, v, 1] / 65536
    assert np.abs(rgb - exact).max() <= 1.01  # yuv444p is converted, which rounds
    other = yuv_mix("601" if matrix == "709" else "709", full) @ [y, u, v, 1] / 65536
    assert np.abs(rgb - other).max() > 3


def test_grey_of_limited_range_is_stretched():
    frame = av.VideoFrame(16, 4, "gray")
    frame.planes[0].update(
        np.resize(np.array([16, 235, 0, 255], np.uint8), frame.planes[0].buffer_size).tobytes()
    )
    frame.color_range = 1
    assert libav.to_frame(frame).in_host_memory()[0, :4].tolist() == [0, 255, 0, 255]


def test_sizes_that_a_format_has_not_become_rgb(tmp_path):
    write_video(tmp_path / "v.mkv", range(3), "ffv1", "yuv420p", (WIDTH + 1, HEIGHT + 1))
    taken = list(open_source(str(tmp_path / "v.mkv")))
    assert [(one.picture.pixel_format, number_of(one.picture)) for one in taken] == [
        ("rgb", number) for number in range(3)
    ]


@pytest.mark.parametrize(
    ("codec", "theirs", "ours"),
    [
        ("libx264", "yuv420p", "i420"),
        ("rawvideo", "yuyv422", "rgb"),
        ("mjpeg", "yuvj420p", "i420-full"),
    ],
)
@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_video_on_its_side_is_turned_upright(tmp_path, codec, theirs, ours, quarters):
    """As phones write it: the pixels lie, and a matrix in the file says how to hold them."""
    write_video(tmp_path / "v.mov", range(2), codec, theirs)
    lying = [rgb_of(one.picture) for one in open_source(str(tmp_path / "v.mov"))]
    # Rows of the matrix in the box tkhd, 40 bytes behind its name (ISO 14496-12, 8.3.2); FFmpeg's
    # angle is against the clock, of the picture.
    cos, sin = ((0, -1), (-1, 0), (0, 1))[quarters - 1]
    data = bytearray((tmp_path / "v.mov").read_bytes())
    place = data.index(b"tkhd") + 44
    matrix = (cos << 16, sin << 16, 0, -sin << 16, cos << 16, 0, 0, 0, 1 << 30)
    data[place : place + 36] = struct.pack(">9i", *matrix)
    (tmp_path / "v.mov").write_bytes(data)
    source = open_source(str(tmp_path / "v.mov"))
    assert f"turned upright by {90 * quarters} degrees" in source.describe()
    assert f"as {ours}" in source.describe()
    taken = [one.picture for one in source]
    assert [one.pixel_format for one in taken] == [ours] * 2
    for frame, before in zip(taken, lying, strict=True):
        turned = rgb_of(frame).astype(int)
        assert turned.shape == np.rot90(before, quarters).shape
        # The same values, but where FFmpeg made rgb of YUV for us.
        most = 2 if ours == "rgb" else 0
        assert np.abs(turned - np.rot90(before, quarters)).max() <= most


@pytest.mark.parametrize("theirs", ["nv12", "gray12le"])
def test_planes_are_turned_with_their_picture(theirs):
    values = np.random.default_rng(0).integers(0, 256, 36, np.uint8)
    frame = av.VideoFrame(6, 4, theirs)
    for plane in frame.planes:
        plane.update(np.resize(values, plane.buffer_size).tobytes())
    before = libav.to_frame(frame)
    array = before.in_host_memory()
    for turns in (1, 2, 3):
        turned = Frame(libav._turned(array, before.pixel_format, turns), before.pixel_format)
        for plane, was in zip(whole_planes(turned), whole_planes(before), strict=True):
            assert np.array_equal(plane, np.rot90(was, turns))


def test_a_pixel_format_is_taken_in_place_of_the_streams(tmp_path):
    write_video(tmp_path / "v.mp4", range(2))
    source = open_source(str(tmp_path / "v.mp4"), pixel_format="i420-709")
    assert "as i420-709" in source.describe()
    assert {one.picture.pixel_format for one in source} == {"i420-709"}
    with pytest.raises(UsageError, match=r"come as i420, .* cannot be rgb"):
        open_source(str(tmp_path / "v.mp4"), pixel_format="rgb")
    with pytest.raises(UsageError, match="image files"):
        open_source(str(tmp_path), pixel_format="rgb")
    with pytest.raises(UsageError, match="no pixel format"):
        open_source(str(tmp_path), pixel_format="nonsense")


def test_a_damaged_frame_is_told_of_in_its_place(tmp_path):
    write_video(tmp_path / "v.avi", range(20), "mjpeg", "yuvj420p")
    data = bytearray((tmp_path / "v.avi").read_bytes())
    starts = [place for place in range(len(data) - 2) if data[place : place + 3] == b"\xff\xd8\xff"]
    data[starts[7] + 4 : starts[7] + 600] = b"\x55" * 596
    (tmp_path / "v.avi").write_bytes(data)
    taken = list(open_source(str(tmp_path / "v.avi")))
    bad = [one.sequence for one in taken if isinstance(one.picture, ImageError)]
    assert bad == [7]
    good = [number_of(one.picture) for one in taken if isinstance(one.picture, Frame)]
    assert good == [n for n in range(20) if n != 7]
    assert "v.avi: a frame cannot be decoded" in str(taken[7].picture)


def test_frames_outlive_their_video(tmp_path):
    write_video(tmp_path / "v.nut", range(30), "rawvideo", "bgr24")
    kept = [one.picture for one in open_source(str(tmp_path / "v.nut"))]
    assert not kept[0].pixels.flags.owndata  # the decoder's own buffer, not a copy
    assert [number_of(frame) for frame in kept] == list(range(30))


@pytest.mark.parametrize(
    ("address", "error", "words"),
    [
        ("ftp://me:secret@host/x", UsageError, ("no source 'ftp'", "rtsp:", "***")),
        ("", UsageError, ("an empty address", "folder:")),
        ("nosuch/", PadimEdgeError, ("no such file or folder: nosuch",)),
        ("video:nosuch.mp4", PadimEdgeError, ("nosuch.mp4", "No such file")),
        (f"video:{__file__}", PadimEdgeError, ("Invalid data", "a video file")),
        ("list:nosuch", PadimEdgeError, ("cannot read the list nosuch",)),
        ("list:/dev/null", PadimEdgeError, ("names no image",)),
        ("folder:/tmp?a=b", UsageError, ("no option 'a'", "it takes none")),
        ("rtsp:///x", UsageError, ("there is no host",)),
        ("rtsp://host/x#transport=carrier", UsageError, ("transport=carrier", "tcp, udp")),
        ("http://host/x#transport=tcp", UsageError, ("no option 'transport'", "timeout")),
        ("v4l2:/dev/video99", SourceError, ("/dev/video99", "No such file")),
        ("/dev/video99", SourceError, ("/dev/video99", "No such file")),
        (f"v4l2:{__file__}", UsageError, ("no device",)),
        ("v4l2:/dev/null?size=big", UsageError, ("size=big", "1920x1080")),
        ("gst:", UsageError, ("a pipeline is needed",)),
        ("gst:videotestsrc ! 'x", UsageError, ("cannot be read",)),
        ("raw:-", UsageError, ("size=WIDTHxHEIGHT is needed",)),
        ("raw:-?size=3x3&format=nv12", UsageError, ("h and w even", "3x3")),
        ("raw:-?size=4x4&format=jpeg", UsageError, ("no pixel format 'jpeg'", "nv12")),
        ("raw:nosuch?size=4x4", PadimEdgeError, ("nosuch", "No such file")),
        ("shm:nosuch-ring", SourceError, ("nosuch-ring", "No such file")),
        ("shm:a/b", UsageError, ("/dev/shm",)),
        ("hot:nosuch", SourceError, ("nosuch", "No such file")),
        (f"hot:{__file__}", UsageError, ("it is no folder",)),
        ("genicam:x?format=NV12", UsageError, ("format=NV12", "grey8")),
    ],
)
def test_wrong_addresses_are_refused_in_one_line(address, error, words):
    with pytest.raises(PadimEdgeError) as refused:
        open_source(address)
    assert type(refused.value) is error
    assert "\n" not in str(refused.value)
    assert "secret" not in str(refused.value)
    for word in words:
        assert word in str(refused.value)


def test_a_playlist_does_not_make_us_fetch_what_it_names(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/x.ts"
        (tmp_path / "v.m3u8").write_text(
            f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{address}\n"
        )
        with pytest.raises(PadimEdgeError):
            list(open_source(f"video:{tmp_path}/v.m3u8"))
        with pytest.raises(BlockingIOError):
            server.accept()


def test_without_pyav_the_extra_is_named(tmp_path):
    write_video(tmp_path / "v.mp4", range(2))
    code = (
        f"{blocking('av')}\n"
        "from padim_edge.live.sources import open_source\n"
        f"try: open_source({str(tmp_path / 'v.mp4')!r})\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "MissingDependencyError" in done.stdout
    assert "needs av" in done.stdout
    assert "padim-edge[live]" in done.stdout


def test_the_table_names_what_there_is():
    for scheme, kind in SOURCES.items():
        assert kind.example.startswith(f"{scheme}:" if scheme else "photos/")
        assert kind.what


def test_who_waits_in_the_background_is_woken():
    release = threading.Event()
    ended = threading.Event()

    def slow():
        try:
            yield 1
            release.wait(60)
            yield 2
        finally:
            ended.set()

    items = Background(slow(), "slow")
    waiting = iter(items)
    assert next(waiting) == 1
    closer = threading.Timer(0.05, items.close)
    closer.start()
    assert list(waiting) == []  # though the generator still blocks
    assert not ended.is_set()
    release.set()
    assert ended.wait(10)


def test_an_error_in_the_background_is_raised_where_items_are_taken():
    def failing():
        yield 1
        raise SourceError("lost")

    items = iter(Background(failing(), "failing"))
    assert next(items) == 1
    with pytest.raises(SourceError, match="lost"):
        next(items)


def test_stamps_are_put_on_our_clock_by_the_promptest_frame():
    clock = Clock()
    delays = [0.05, 0.02, 0.2, 0.03]
    times = [clock(1000 + place, 5000 + place + delay) for place, delay in enumerate(delays)]
    assert times == pytest.approx([5000.05, 5001.02, 5002.02, 5003.02])
    # A camera's clock that is slow by 1 in 1000 is followed, within what half a minute makes.
    clock = Clock()
    for second in range(300):
        now = 5000 + second + 0.01
        assert now - 2 * SPAN / 1000 - 0.01 <= clock(second * 0.999, now) <= now
    assert clock(None, 9000.0) == 9000.0
    assert clock(0.0, 9001.0) == 9001.0  # stamps that began anew
    assert clock(1.0, 9002.0 + JUMP + 1) == 9002.0 + JUMP + 1


def test_a_frame_in_any_format_can_be_read_as_a_number():
    """The judge of these tests itself."""
    assert number_of(Frame(numbered(0xA5F0))) == 0xA5F0
    mixed = numbered(1)
    mixed[16:32] = numbered(2)[16:32]
    with pytest.raises(AssertionError, match="two frames"):
        number_of(Frame(mixed))
    assert set(PIXEL_FORMATS)
