"""Hot folders, bare frames and shared memory: writers that are slow, die, or come back."""

from __future__ import annotations

import io
import itertools
import math
import os
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numbered import HEIGHT, WIDTH, number_of, numbered
from PIL import Image

from padim_edge.errors import ImageError, UsageError
from padim_edge.live.source import Captured, SourceError
from padim_edge.live.sources import hot_folder, open_source
from padim_edge.live.sources.shared_memory import FOLDER, SharedMemoryWriter

DEADLINE = 30


class Taken:
    """What a source gives, taken by a thread."""

    def __init__(self, address: str, **options: object) -> None:
        self.source = open_source(address, **options)
        self.all: list[Captured] = []
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            for one in self.source:
                self.all.append(one)
        except Exception as error:
            self.error = error

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < deadline, (self.all, self.error)
            time.sleep(0.005)

    def names(self) -> list[str]:
        return [Path(one.picture).name for one in self.all]

    def __enter__(self) -> Taken:
        return self

    def __exit__(self, *_: object) -> None:
        self.source.close()
        self.thread.join(DEADLINE)
        assert not self.thread.is_alive(), "who waited did not wake"


def encoded(number: int, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(numbered(number)).save(stream, kind)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_a_file_is_given_when_its_end_is_there(tmp_path, kind):
    data = encoded(3, kind)
    name = f"part.{kind.lower()}"
    with (
        Taken(f"hot:{tmp_path}?poll=0.01&settle=0.01") as taken,
        (tmp_path / name).open("wb") as file,
    ):
        for start in range(0, len(data), len(data) // 3):
            assert taken.all == []
            file.write(data[start : start + len(data) // 3])
            file.flush()
            if start + len(data) // 3 < len(data):
                looked = taken.source._looks
                taken.until(lambda before=looked: taken.source._looks > before + 3)
        taken.until(lambda: taken.names() == [name])
    assert (tmp_path / name).read_bytes() == data


def test_each_file_is_given_once_and_again_when_it_is_another(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(0))
    with Taken(f"hot:{tmp_path}?poll=0.01") as taken:
        taken.until(lambda: taken.names() == ["a.png"])
        (tmp_path / "below").mkdir()
        hidden = tmp_path / "below" / ".b.png.part"
        hidden.write_bytes(encoded(1))
        hidden.rename(tmp_path / "below" / "b.png")
        taken.until(lambda: taken.names() == ["a.png", "b.png"])
        (tmp_path / "note.txt").write_bytes(b"no image")
        (tmp_path / "a.png").write_bytes(encoded(2) + b"\0")  # in place: no folder's date changes
        taken.until(lambda: taken.names() == ["a.png", "b.png", "a.png"])
        (tmp_path / "a.png").unlink()
        (tmp_path / "c.png").write_bytes(encoded(3))
        taken.until(lambda: len(taken.all) == 4)
    assert taken.names() == ["a.png", "b.png", "a.png", "c.png"]
    keys = [set(one.keys) for one in taken.all]
    assert len(set().union(*keys)) == 8
    assert [one.sequence for one in taken.all] == [0, 1, 2, 3]
    # After a restart what was judged is told by its keys.
    again = Taken(f"hot:{tmp_path}?poll=0.01", seen=(keys[0] | keys[1]).__contains__)
    with again:
        again.until(lambda: again.names() == ["c.png"])


@pytest.fixture
def often(monkeypatch):
    """Every file is looked at in every look."""
    monkeypatch.setattr(hot_folder, "EVERYTHING", 0.0)
    monkeypatch.setattr(hot_folder, "SHARE", 0)


def test_a_date_that_is_set_makes_no_new_picture(tmp_path, often):
    inbox, outside = tmp_path / "inbox", tmp_path / "a.png"
    inbox.mkdir()
    outside.write_bytes(encoded(1))
    os.utime(outside, (1.6e9, 1.6e9))
    looks = 0
    with Taken(f"hot:{inbox}?poll=0.01") as taken:

        def looked():
            nonlocal looks
            looks = taken.source._looks
            taken.until(lambda: taken.source._looks > looks + 2)

        shutil.copyfile(outside, inbox / "a.png")  # as `cp -p` does: what it holds first,
        taken.until(lambda: taken.names() == ["a.png"])
        shutil.copystat(outside, inbox / "a.png")  # then its date
        looked()
        subprocess.run(["touch", inbox / "a.png"], check=True)
        looked()
        subprocess.run(["cp", "-p", outside, inbox / "a.png"], check=True)
        looked()
        subprocess.run(["cp", "-p", outside, inbox / "b.png"], check=True)
        taken.until(lambda: taken.names() == ["a.png", "b.png"])
        # As rsync does: written under a hidden name, its date set, renamed.
        shutil.copy2(outside, inbox / ".c.png.Xa3x9Q")
        (inbox / ".c.png.Xa3x9Q").rename(inbox / "c.png")
        taken.until(lambda: len(taken.all) == 3)
        os.utime(inbox / "c.png", (1.5e9, 1.5e9))  # rsync -t of a date alone
        looked()
    assert taken.names() == ["a.png", "b.png", "c.png"]
    keys = {key for one in taken.all for key in one.keys}
    subprocess.run(["touch", inbox / "b.png"], check=True)  # while nobody watches
    with Taken(f"hot:{inbox}?poll=0.01", seen=keys.__contains__) as again:
        again.until(lambda: again.source._looks > 2)
        subprocess.run(["touch", inbox / "c.png"], check=True)
        looks = again.source._looks
        again.until(lambda: again.source._looks > looks + 2)
        (inbox / "d.png").write_bytes(encoded(2))
        again.until(lambda: again.names() == ["d.png"])


def test_a_file_that_is_replaced_is_a_new_picture(tmp_path, often):
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    part = inbox / "part.bmp"

    def renamed(number, date=None):
        new = tmp_path / "new"
        new.write_bytes(encoded(number, "BMP"))
        if date:
            os.utime(new, (date, date))
        new.rename(part)

    renamed(1, 1.6e9)
    keys = set()
    with Taken(f"hot:{inbox}?poll=0.01", seen=keys.__contains__) as taken:

        def came(count):
            taken.until(lambda: len(taken.all) == count)
            keys.update(taken.all[-1].keys)
            looked = taken.source._looks
            taken.until(lambda: taken.source._looks > looked + 1)
            assert len(taken.all) == count

        came(1)
        renamed(2, 1.6e9)  # by a camera without a clock: the same date, the same size
        came(2)
        part.unlink()
        looked = taken.source._looks
        taken.until(lambda: taken.source._looks > looked + 1)
        renamed(3, 1.6e9)  # the one before was taken away
        came(3)
        renamed(3)  # looks the same, and is another one
        came(4)
        part.write_bytes(encoded(4, "BMP"))  # in place, of the same size
        came(5)
        part.write_bytes(encoded(4, "BMP"))  # the same once more: nothing has changed
        (inbox / "last.bmp").write_bytes(encoded(5, "BMP"))
        came(6)
    assert taken.names() == ["part.bmp"] * 5 + ["last.bmp"]


def test_what_an_earlier_run_has_judged_is_a_new_picture_when_it_is_replaced(tmp_path, often):
    inbox, new = tmp_path / "inbox", tmp_path / "new.bmp"
    inbox.mkdir()

    def put(number):
        new.write_bytes(encoded(number, "BMP"))
        os.utime(new, (1.6e9, 1.6e9))
        new.rename(inbox / "part.bmp")

    put(1)
    with Taken(f"hot:{inbox}?poll=0.01") as taken:
        taken.until(lambda: len(taken.all) == 1)
    keys = set(taken.all[0].keys)
    with Taken(f"hot:{inbox}?poll=0.01", seen=keys.__contains__) as again:
        again.until(lambda: again.source._looks > 2)
        put(1)  # another file, and the same picture
        looked = again.source._looks
        again.until(lambda: again.source._looks > looked + 2)
        assert again.all == []
        put(2)
        again.until(lambda: len(again.all) == 1)


def test_a_file_that_was_cut_off_for_good_is_given_in_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr("padim_edge.live.sources.hot_folder.PATIENCE", 0.3)
    (tmp_path / "cut.png").write_bytes(encoded(0)[:-20])
    (tmp_path / "whole.ppm").write_bytes(encoded(1, "PPM"))
    with Taken(f"hot:{tmp_path}?poll=0.01&settle=0.05") as taken:
        taken.until(lambda: sorted(taken.names()) == ["cut.png", "whole.ppm"])


def test_a_writer_that_is_killed_leaves_what_it_finished(tmp_path):
    data = tmp_path / "data"
    data.write_bytes(encoded(9))
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    code = (
        "import sys; data = open(sys.argv[1], 'rb').read()\n"
        "for n in range(5): open(f'{sys.argv[2]}/{n}.png', 'wb').write(data)\n"
        "half = open(f'{sys.argv[2]}/half.png', 'wb'); half.write(data[:99]); half.flush()\n"
        "print(flush=True); sys.stdin.read()\n"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", code, str(data), str(inbox)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with Taken(f"hot:{inbox}?poll=0.01") as taken:
        assert writer.stdout.readline()
        writer.kill()
        writer.communicate()
        taken.until(lambda: len(taken.all) == 5)
        looked = taken.source._looks
        taken.until(lambda: taken.source._looks > looked + 5)
        assert sorted(taken.names()) == [f"{n}.png" for n in range(5)]
        (inbox / "half.png").write_bytes(encoded(8))  # the next one finishes it
        taken.until(lambda: "half.png" in taken.names())


def test_a_folder_that_goes_is_a_source_that_is_lost(tmp_path):
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    (inbox / "a.png").write_bytes(encoded(0))
    with Taken(f"hot:{inbox}?poll=0.01") as taken:
        taken.until(lambda: len(taken.all) == 1)
        shutil.rmtree(inbox)
        taken.until(lambda: taken.error is not None)
    assert isinstance(taken.error, SourceError)
    assert "No such file" in str(taken.error)
    inbox.mkdir()
    with Taken(f"hot:{inbox}?poll=0.01") as taken:
        # Another folder in its place, as under a mount.
        inbox.rename(tmp_path / "aside")
        inbox.mkdir()
        taken.until(lambda: taken.error is not None)
    assert "was it unmounted?" in str(taken.error) or "No such file" in str(taken.error)


FORMATS = ["rgb", "bgr", "nv12", "i420", "yuyv", "grey8", "grey16"]


def packed(number: int, pixel_format: str) -> np.ndarray:
    rgb = numbered(number)
    grey = rgb[..., 0]
    if pixel_format == "grey16":
        return grey.astype(np.uint16) * 257
    if pixel_format in ("nv12", "i420"):
        return np.concatenate([grey, np.full((HEIGHT // 2, WIDTH), 128, np.uint8)])
    if pixel_format == "yuyv":
        return np.stack([grey, np.full_like(grey, 128)], 2)
    return grey if pixel_format == "grey8" else rgb


@pytest.mark.parametrize("pixel_format", FORMATS)
def test_bare_frames_come_from_a_pipe(tmp_path, pixel_format):
    os.mkfifo(tmp_path / "pipe")
    address = f"raw:{tmp_path}/pipe?size={WIDTH}x{HEIGHT}&format={pixel_format.upper()}"
    with Taken(address) as taken:
        assert taken.source.describe().endswith(f"{WIDTH}x{HEIGHT} {pixel_format}")
        with (tmp_path / "pipe").open("wb") as pipe:
            for number in range(5):
                pipe.write(packed(number, pixel_format).tobytes())
            pipe.write(b"cut")
        taken.until(lambda: len(taken.all) == 6)
    assert [number_of(one.picture) for one in taken.all[:5]] == [0, 1, 2, 3, 4]
    assert {one.picture.pixel_format for one in taken.all[:5]} == {pixel_format}
    assert isinstance(taken.all[5].picture, ImageError)
    assert "3 of" in str(taken.all[5].picture)
    assert taken.error is None


def test_bare_frames_come_on_standard_input_and_their_end_may_be_a_fault():
    code = (
        "from padim_edge.live.sources import open_source\n"
        "print([one.picture.pixels.ravel().tolist() for one in open_source('raw:-?size=2x1')])\n"
        "try: list(open_source('raw:-?size=2x1&live=yes'))\n"
        "except Exception as error: print(type(error).__name__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=bytes(range(12)), capture_output=True, check=True
    )
    assert done.stdout.decode().splitlines() == [
        "[[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]",
        "SourceError",
    ]


def test_who_waits_for_a_pipe_is_woken(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with Taken(f"raw:{tmp_path}/pipe?size=4x4"):
        pass  # nobody ever writes; leaving closes it
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(50):  # never begun: nothing stays open
        open_source(f"raw:{tmp_path}/pipe?size=4x4").close()
    assert len(list(Path("/proc/self/fd").iterdir())) < before + 50


@pytest.fixture
def ring() -> Iterator[str]:
    name = f"padim-edge-test-{uuid.uuid4().hex}"
    yield name
    (FOLDER / name).unlink(missing_ok=True)


def test_frames_go_through_shared_memory(ring):
    writer = SharedMemoryWriter(ring, (WIDTH, HEIGHT), "nv12", slots=3)
    writer.write(packed(1, "nv12"), taken=1000.5)
    with Taken(f"shm:{ring}?size={WIDTH}x{HEIGHT}&format=NV12") as taken:
        taken.until(lambda: len(taken.all) == 1)
        for number in range(2, 30):
            writer.write(packed(number, "nv12"))
            taken.until(lambda number=number: len(taken.all) == number)
        writer.close()
        taken.until(lambda: taken.error is not None)
    assert [number_of(one.picture) for one in taken.all] == list(range(1, 30))
    assert [one.sequence for one in taken.all] == list(range(29))
    assert taken.all[0].time == 1000.5
    assert "who wrote to it has ended" in str(taken.error)
    with pytest.raises(SourceError, match="No such file"):
        open_source(f"shm:{ring}")


@pytest.mark.parametrize("given", [math.nan, math.inf, -1.0, 1e300])
def test_a_time_that_there_is_not_is_that_of_arrival(ring, given):
    writer = SharedMemoryWriter(ring, (8, 8), "grey8")
    begun = time.time()
    with Taken(f"shm:{ring}") as taken:
        writer.write(np.zeros((8, 8), np.uint8), taken=given)
        taken.until(lambda: len(taken.all) == 1)
    assert begun <= taken.all[0].time <= time.time()
    writer.close()


TEARING = """
import sys
import numpy as np
from padim_edge.live.sources.shared_memory import SharedMemoryWriter
writer = SharedMemoryWriter(sys.argv[1], (512, 256), "grey8", slots=2)
print(flush=True)
number = 0
while True:
    number += 1
    writer.write(np.full((256, 512), number % 251, np.uint8))
"""


def test_no_torn_frame_is_ever_seen_of_a_writer_that_does_not_wait(ring):
    writer = subprocess.Popen([sys.executable, "-c", TEARING, ring], stdout=subprocess.PIPE)
    try:
        assert writer.stdout.readline()
        source = open_source(f"shm:{ring}")
        frames = iter(source)
        taken = list(itertools.islice(frames, 300))
        for one in taken:
            assert one.picture.pixels.min() == one.picture.pixels.max()
        sequences = [one.sequence for one in taken]
        assert sequences == sorted(set(sequences))
        steps = np.diff(sequences)
        values = [int(one.picture.pixels[0, 0]) for one in taken]
        assert (np.diff(values) % 251 == steps % 251).all()  # a gap says how many were lost
        writer.kill()
        with pytest.raises(SourceError, match="has ended"):
            list(frames)
    finally:
        writer.kill()
        writer.communicate()


def test_a_ring_of_something_else_is_refused(ring):
    writer = SharedMemoryWriter(ring, (8, 8), "rgb")
    with pytest.raises(UsageError, match="it has 8x8 in rgb"):
        open_source(f"shm:{ring}?size=8x16")
    with pytest.raises(UsageError, match=r"8x8 in nv12 are 96"):
        open_source(f"shm:{ring}", pixel_format="nv12")
    with pytest.raises(UsageError, match="pixels in rgb are"):
        writer.write(np.zeros((8, 8), np.uint8))
    writer.close()
    empty = SharedMemoryWriter(ring, (0, 0), "rgb")
    with pytest.raises(UsageError, match="0x0 in rgb are 0"):
        open_source(f"shm:{ring}")
    empty.close()
    (FOLDER / ring).write_bytes(bytes(100))
    with pytest.raises(UsageError, match="no ring of frames"):
        open_source(f"shm:{ring}")
