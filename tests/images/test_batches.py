"""Batches: order, errors, threads, how far they run ahead."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from padim_edge.errors import ImageError, UsageError
from padim_edge.images import batches, preprocess
from padim_edge.images.batches import read_batches
from padim_edge.images.decode import Shrink, load_frame
from padim_edge.images.frames import Frame
from padim_edge.images.preprocess import Preprocess


def no_error(path: Path, error: ImageError) -> None:
    raise error


def decoders() -> int:
    return sum(thread.name.startswith("padim-edge-images") for thread in threading.enumerate())


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Eleven images, of mixed sizes, whose number is their colour."""
    paths = [tmp_path / f"{number:02}.png" for number in range(11)]
    for number, path in enumerate(paths):
        Image.new("RGB", (20 + 3 * number, 50 - 2 * number), (number,) * 3).save(path)
    return paths


@pytest.mark.parametrize("batch", [1, 4, 11, 32])
def test_batches_in_order(photos: list[Path], batch: int) -> None:
    seen: list[Path] = []
    for paths, array in read_batches(photos, Preprocess.whole((16, 24)), batch, no_error):
        assert array.shape == (len(paths), 16, 24, 3)
        assert array.dtype == np.uint8
        assert array[:, 0, 0, 0].tolist() == [int(path.stem) for path in paths]
        assert len(paths) == min(batch, len(photos) - len(seen))
        seen += paths
    assert seen == photos
    assert decoders() == 0


def test_order_holds_when_decoding_times_differ(
    photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(path: Path, shrink: Shrink) -> Frame:
        time.sleep(0.02 * (int(path.stem) % 3 == 0))
        return load_frame(path, shrink)

    monkeypatch.setattr(preprocess, "load_frame", slow)
    batches = list(read_batches(photos, Preprocess.whole((8, 8)), 3, no_error))
    assert [path for paths, _ in batches for path in paths] == photos
    assert np.concatenate([array for _, array in batches])[:, 0, 0, 0].tolist() == list(range(11))


def test_bad_images_are_reported_and_left_out(photos: list[Path]) -> None:
    photos[0].write_bytes(b"text")
    photos[4].unlink()
    photos[10].write_bytes(photos[10].read_bytes()[:40])
    bad: list[tuple[Path, str]] = []
    consumer = threading.get_ident()

    def note(path: Path, error: ImageError) -> None:
        assert threading.get_ident() == consumer
        bad.append((path, str(error)))

    batches = list(read_batches(photos, Preprocess.whole((8, 8)), 4, note))
    assert [len(paths) for paths, _ in batches] == [4, 4]
    assert [path for path, _ in bad] == [photos[0], photos[4], photos[10]]
    assert all(message.startswith(f"{path}: ") for path, message in bad)


def test_an_image_that_does_not_cover_the_crop_is_named(photos: list[Path]) -> None:
    bad: list[str] = []
    preprocess = Preprocess((8, 16), 8, crop=True)
    list(read_batches(photos[:1], preprocess, 4, lambda _, error: bad.append(str(error))))
    assert len(bad) == 1
    assert bad[0].startswith(f"{photos[0]}: 50x20 ")


def test_only_bad_images_give_no_batch(tmp_path: Path) -> None:
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    bad: list[Path] = []
    found = read_batches(paths, Preprocess.whole((8, 8)), 4, lambda path, _: bad.append(path))
    assert list(found) == []
    assert bad == paths
    assert list(read_batches([], Preprocess.whole((8, 8)), 4, no_error)) == []


def test_on_error_may_stop(photos: list[Path]) -> None:
    photos[5].write_bytes(b"text")
    found = read_batches(photos, Preprocess.whole((8, 8)), 2, no_error)
    assert len(next(found)[0]) == 2
    with pytest.raises(ImageError, match="not an image"):
        list(found)
    assert decoders() == 0


def test_other_errors_are_not_swallowed(photos: list[Path]) -> None:
    def broken(_: object) -> NDArray[np.uint8]:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        list(read_batches(photos, broken, 2, no_error))  # type: ignore[arg-type]
    assert decoders() == 0


@pytest.mark.parametrize("how", ["close", "interrupt"])
def test_stopping_early_leaves_no_thread_and_no_backlog(
    photos: list[Path], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Path] = []

    def slow(path: Path, shrink: Shrink) -> Frame:
        started.append(path)
        time.sleep(0.01)
        return load_frame(path, shrink)

    monkeypatch.setattr(preprocess, "load_frame", slow)
    monkeypatch.setattr(batches, "available_cores", lambda: 2)
    taken: list[Path] = []

    def supply() -> Any:
        for path in photos * 20:
            taken.append(path)
            yield path

    found = read_batches(supply(), Preprocess.whole((8, 8)), 3, no_error)
    next(found)
    time.sleep(0.1)  # time to run ahead, if nothing bounded it
    assert len(taken) == 3 + 3 + 2  # the batch handed out, the next, one per thread
    assert len(started) <= len(taken)
    assert decoders() == 2
    if how == "close":
        found.close()  # type: ignore[attr-defined]
    else:
        with pytest.raises(KeyboardInterrupt):
            found.throw(KeyboardInterrupt)  # type: ignore[attr-defined]
    assert decoders() == 0
    assert len(taken) == 8


def test_a_batch_of_nothing(photos: list[Path]) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        next(read_batches(photos, Preprocess.whole((8, 8)), 0, no_error))
