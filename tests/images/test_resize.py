"""Resizing a plane: bit for bit as the integer judge in resampling.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import resampling
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from padim_edge.images import resize as module
from padim_edge.images.resize import FILTERS, block_means, resize
from padim_edge.images.threads import Threads

ANY = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def plane(shape: tuple[int, int, int], dtype: Any = np.uint8, seed: int = 0) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


@ANY
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    channels=st.integers(1, 4),
    size=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    name=st.sampled_from(sorted(FILTERS)),
    seed=st.integers(0, 5),
)
@example(height=1, width=1, channels=3, size=(24, 24), name="bilinear", seed=0)
@example(height=70, width=1, channels=3, size=(3, 24), name="lanczos", seed=0)
def test_every_bit_is_the_judges(
    height: int, width: int, channels: int, size: tuple[int, int], name: str, seed: int
) -> None:
    array = plane((height, width, channels), seed=seed)
    expected = resampling.resized(array, size, name)
    np.testing.assert_array_equal(resize(array, size, name, reduce=True), expected)


@pytest.mark.parametrize(
    ("shape", "size"),
    [((5000, 3, 3), (224, 224)), ((3, 5000, 3), (224, 224)), ((1080, 1920, 3), (224, 224))],
)
def test_large_and_thin_planes(shape: tuple[int, int, int], size: tuple[int, int]) -> None:
    array = plane(shape)
    block = max(1, shape[0] // size[0]), max(1, shape[1] // size[1])
    small = block_means(array, block)
    # The judge's own means would take minutes: sums over axes are another way to the same.
    whole = shape[0] // block[0], shape[1] // block[1]
    inside = array[: whole[0] * block[0], : whole[1] * block[1]].astype(np.int64)
    sums = inside.reshape(whole[0], block[0], whole[1], block[1], 3).sum(axis=(1, 3))
    count = block[0] * block[1]
    np.testing.assert_array_equal(small[: whole[0], : whole[1]], (sums + count // 2) // count)
    narrow = resampling.across(small, shape[1] / block[1], size[1], "bilinear")
    expected = resampling.across(
        narrow.swapaxes(0, 1), shape[0] / block[0], size[0], "bilinear"
    ).swapaxes(0, 1)
    np.testing.assert_array_equal(resize(array, size, "bilinear", reduce=True), expected)


@ANY
@given(
    height=st.integers(1, 30),
    width=st.integers(1, 30),
    channels=st.integers(1, 4),
    block=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    white=st.sampled_from([255, 1023, 4095, 65535]),
    strip=st.sampled_from([1, 50, 10**6]),
)
def test_block_means(
    height: int,
    width: int,
    channels: int,
    block: tuple[int, int],
    white: int,
    strip: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_STRIP", strip)
    array = plane((height, width, channels), np.uint8 if white == 255 else np.uint16)
    block = min(block[0], height), min(block[1], width)
    np.testing.assert_array_equal(
        block_means(array, block, white), resampling.means(array, block, white)
    )


@pytest.mark.parametrize(
    ("dtype", "white", "side"), [(np.uint8, 255, 17), (np.uint8, 255, 300), (np.uint16, 65535, 300)]
)
def test_sums_of_white_do_not_overflow(dtype: Any, white: int, side: int) -> None:
    array = np.full((2 * side, 2 * side, 1), white, dtype)
    assert (block_means(array, (side, side), white) == 255).all()


def test_halves_are_rounded_up() -> None:
    pairs = np.array([[[0], [1]], [[2], [3]]], np.uint8)
    assert block_means(pairs, (1, 2)).tolist() == [[[1]], [[3]]]
    assert block_means(pairs, (2, 2)).tolist() == [[[2]]]


VIEWS = {
    "contiguous": lambda a: a[:60, :70],
    "row pitch": lambda a: a[3:63, 5:75],
    "upside down": lambda a: a[:60, :70][::-1],
    "mirrored": lambda a: a[:60, :70][:, ::-1],
    "every other": lambda a: a[:120:2, :140:2],
    "channels reversed": lambda a: a[:60, :70, ::-1],
    "Fortran": lambda a: np.asfortranarray(a[:60, :70]),
    "transposed": lambda a: a[:70, :60].swapaxes(0, 1),
    "repeated": lambda a: np.broadcast_to(a[:1, :70], (60, 70, 3)),
}


@pytest.mark.parametrize("reduce", [True, False])
@pytest.mark.parametrize("view", VIEWS)
def test_strides(view: str, reduce: bool) -> None:
    array = VIEWS[view](plane((120, 140, 3)))
    array.flags.writeable = False
    expected = resize(np.array(array, order="C"), (20, 30), "bilinear", reduce)
    np.testing.assert_array_equal(resize(array, (20, 30), "bilinear", reduce), expected)


@pytest.mark.parametrize("name", sorted(FILTERS))
@pytest.mark.parametrize("shape", [(33, 50, 3), (50, 33, 1), (300, 40, 3), (40, 300, 4)])
def test_without_reduction_it_is_pillows_resize(name: str, shape: tuple[int, int, int]) -> None:
    array = plane(shape)
    expected = [
        np.asarray(Image.fromarray(array[..., i]).resize((48, 32), FILTERS[name]))
        for i in range(shape[2])
    ]
    np.testing.assert_array_equal(resize(array, (32, 48), name), np.stack(expected, axis=2))


@pytest.mark.parametrize("count", [2, 3, 5])
def test_threads_change_nothing(count: int) -> None:
    array = plane((1999, 1501, 3))
    threads = Threads(count)
    try:
        shared = resize(array, (224, 224), "bilinear", reduce=True, threads=threads)
    finally:
        threads.close()
    alone = resize(array, (224, 224), "bilinear", reduce=True)
    np.testing.assert_array_equal(shared, alone)


def test_what_fails_in_a_band_is_raised_when_all_have_ended() -> None:
    threads = Threads(3)
    done: list[int] = []

    def work(item: int) -> None:
        if item == 1:
            raise ValueError("second")
        done.append(item)

    with pytest.raises(ValueError, match="second"):
        threads.run(work, [0, 1, 2])
    assert sorted(done) == [0, 2]
    threads.close()
    threads.close()
