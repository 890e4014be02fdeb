"""Engines that prepare frames on the GPU, over the driver made for tests; see `test_engine`.

Images, scores and maps are those of frames that the CPU prepared, bit for bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import pytest
from device_arrays import WithDlpack, WithInterface
from fake_gpu import cpu_engine, enter, model
from fake_tensorrt import at

from padim_edge.errors import PadimEdgeError, UsageError
from padim_edge.images.formats import PIXEL_FORMATS
from padim_edge.images.frames import Frame
from padim_edge.images.preprocess import Preprocess

MOST = 32
"""Frames that go over the device at once."""


def pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def frame_of(pixel_format: str, height: int, width: int) -> Frame:
    """Random pixels; height and width are even."""
    form = PIXEL_FORMATS[pixel_format]
    shape = (height * 3 // 2 if form.thirds else height, width, *form.pixel[0])
    generator = np.random.default_rng(height)
    return Frame(generator.integers(0, form.white + 1, shape, dtype=form.dtype), pixel_format)


def with_preprocess(opened: Any, preprocess: Preprocess) -> Any:
    info = dataclasses.replace(opened.detector_info, preprocess=preprocess)
    return dataclasses.replace(opened, detector_info=info)


def same(engine: Any, preprocess: Preprocess, frames: list[Frame]) -> None:
    """Scored as they are, and as images that the CPU made of them."""
    assert all(map(engine.takes, frames))
    scores, maps = engine.infer_frames(frames)
    images = np.stack([preprocess(frame) for frame in frames])
    last = images[(len(images) - 1) // MOST * MOST :]
    np.testing.assert_array_equal(at(engine._images.address, last.shape, np.uint8), last)
    wanted, wanted_maps = engine.infer(images)
    np.testing.assert_array_equal(scores, wanted)
    np.testing.assert_array_equal(maps, wanted_maps)


# --- the way of a frame -------------------------------------------------------------------------


def check_every_pixel_format(folder: str) -> None:
    opened = model(folder)
    engine = cpu_engine(enter(folder))(opened)
    preprocess = opened.detector_info.preprocess
    for pixel_format in PIXEL_FORMATS:
        same(engine, preprocess, [frame_of(pixel_format, 72, 90), frame_of(pixel_format, 20, 30)])
    engine.close()


def check_presets_and_any_strides(folder: str) -> None:
    device = enter(folder)
    whole = pixels(131, 97)
    views = [whole, whole[3:, 5:70], whole[::2], whole[:, ::-1], whole[::-1, ::3], whole[..., ::-1]]
    views += [np.asfortranarray(whole), whole[:1, :1]]
    read_only = whole.copy()
    read_only.flags.writeable = False
    frames = [Frame(view) for view in [*views, read_only]]
    for preprocess in (
        Preprocess.whole((32, 32), "lanczos"),
        Preprocess.reference((32, 32), "bicubic", reduce=True),
        Preprocess((32, 32), (40, 33), True, "box", True),
    ):
        opened = with_preprocess(model(folder), preprocess)
        engine = cpu_engine(device)(opened)
        same(engine, preprocess, frames)
        engine.close()


def check_batches_of_any_sizes(folder: str) -> None:
    opened = model(folder)
    engine = cpu_engine(enter(folder))(opened)
    sizes = np.random.default_rng(1).integers(1, 200, (MOST + 5, 2)).tolist()
    frames = [Frame(pixels(*size, seed=i), "bgr") for i, size in enumerate(sizes)]
    same(engine, opened.detector_info.preprocess, frames)
    engine.close()


def check_a_batch_costs_no_memory_and_one_wait(folder: str) -> None:
    device = enter(folder)
    engine = cpu_engine(device)(model(folder))
    frames = [frame_of("nv12", 96, 128), Frame(pixels(90, 120)), frame_of("nv12", 96, 128)]
    engine.infer_frames(frames)
    device.forget()
    engine.infer_frames(frames)
    for name in ("cuMemAlloc", "cuMemHostAlloc", "cuMemFree", "cuMemFreeHost",
                 "cuModuleGetFunction", "cuEventCreate", "pageable", "default stream",
                 "cuCtxSynchronize"):  # fmt: skip
        assert device.count(name) == 0, name
    assert device.count("cuStreamSynchronize") == 1
    assert device.count("cuLaunchKernel") == 3 + 2
    assert device.count("cuMemcpyHtoDAsync") == 3
    assert device.count("cuMemcpyDtoHAsync") == 2
    engine.close()
    assert device.owned() == {}


def check_integrated_gpus_copy_no_frame(folder: str) -> None:
    device = enter(folder)
    device.set("integrated", 1)
    try:
        opened = model(folder)
        engine = cpu_engine(device)(opened)
        frames = [Frame(pixels(80, 90, seed)) for seed in range(5)]
        same(engine, opened.detector_info.preprocess, frames)
        device.forget()
        engine.infer_frames(frames)
        assert device.count("cuMemcpyHtoDAsync") == 0
        assert device.count("unmapped") == 0
        engine.close()
        assert device.owned() == {}
    finally:
        device.set("integrated", 0)


def check_memory_is_that_of_two_frames_and_some_tables(folder: str) -> None:
    """However many there are, and of whatever sizes."""
    device = enter(folder)
    opened = model(folder)
    engine = cpu_engine(device)(opened)
    sizes = [(height, height + 7) for height in range(10, 70)]
    same(engine, opened.detector_info.preprocess, [Frame(pixels(*size)) for size in sizes[:32]])
    before = device.owned()
    for size in sizes[::-1]:
        engine.infer_frames([Frame(pixels(*size))] * 3)
    assert device.owned() == before
    engine.close()


def check_stages(folder: str) -> None:
    device = enter(folder)
    engine = cpu_engine(device)(model(folder))
    frames = [Frame(pixels(80, 90)), Frame(WithInterface(pixels(80, 90)))] * 20
    stages = engine.frame_stages(frames)
    names = ["upload", "prepare", "backbone", "distances", "smoothing", "download"]
    assert list(stages) == names
    assert all(seconds > 0 for seconds in stages.values())
    engine.close()
    assert device.owned() == {}


def check_any_thread_asks_whether_it_is_taken(folder: str) -> None:
    device = enter(folder)
    engine = cpu_engine(device)(model(folder))
    device.forget()
    assert engine.takes(Frame(pixels(70, 33)))
    assert device.count("cuCtxPushCurrent") == 0
    engine.close()
    assert not engine.takes(Frame(pixels(70, 33)))


# --- frames that are on the device ----------------------------------------------------------------


def arrays(folder: str) -> Iterator[tuple[Any, np.ndarray]]:
    whole = pixels(75, 110)
    for view in (whole, whole[2:70], whole[:, 7:60], whole[3:4, 5:90], whole[:, :1]):
        yield WithInterface(view, stream=None), view
        yield WithDlpack(view), view


def check_frames_on_the_device_stay_there(folder: str) -> None:
    device = enter(folder)
    opened = model(folder)
    engine = cpu_engine(device)(opened)
    for given, view in arrays(folder):
        frame = Frame(given, "bgr")
        assert engine.takes(frame)
        device.forget()
        scores, maps = engine.infer_frames([frame])
        tables = device.count("cuMemcpyHtoDAsync")
        assert device.count("cuMemHostAlloc") == 0
        assert tables <= 1, "only what frames of this size have in common"
        image = opened.detector_info.preprocess(Frame(view, "bgr"))
        np.testing.assert_array_equal(maps, engine.infer(image[None])[1])
        np.testing.assert_array_equal(scores, maps.max(axis=(1, 2)))
    engine.close()


def check_their_streams_are_waited_for(folder: str) -> None:
    device = enter(folder)
    engine = cpu_engine(device)(model(folder))
    view = pixels(40, 50)
    shared = WithDlpack(view)
    engine.infer_frames([Frame(shared)])
    assert shared.streams == [-1, engine._device.stream]
    for words, waits in (({"stream": None}, 1), ({"stream": 2}, 2), ({}, 2)):
        frame = Frame(WithInterface(view, **words))
        device.forget()
        engine.infer_frames([frame])
        assert device.count("cuStreamSynchronize") == waits
    with pytest.raises(PadimEdgeError, match=r"stream .* cannot be waited for \(CUDA error 400\)"):
        engine.infer_frames([Frame(WithInterface(view, stream=12345))])
    engine.infer_frames([Frame(view)])
    engine.close()


def check_a_batch_of_both(folder: str) -> None:
    opened = model(folder)
    engine = cpu_engine(enter(folder))(opened)
    views = [pixels(60, 40 + seed, seed) for seed in range(7)]
    frames = [Frame(WithDlpack(view) if i % 3 else view) for i, view in enumerate(views)]
    _, maps = engine.infer_frames(frames)
    images = np.stack([opened.detector_info.preprocess(view) for view in views])
    np.testing.assert_array_equal(maps, engine.infer(images)[1])
    engine.close()


def check_a_detector_gives_them_to_the_engine(folder: str) -> None:
    from padim_edge.detect.detector import Detector

    device = enter(folder)
    opened = model(folder)
    view = pixels(75, 110)
    with Detector(f"{folder}/padim.onnx", "ort", pixel_format="bgr") as detector:
        on_the_cpu = detector(view)
        for given in (WithDlpack(view), Frame(WithInterface(view), "bgr")):
            with pytest.raises(UsageError, match="in the memory of a GPU is to be prepared on"):
                detector(given)
        detector.engine.close()
        detector.engine = cpu_engine(device)(opened)
        for given in (view, WithDlpack(view), WithInterface(view), Frame(view, "bgr")):
            np.testing.assert_allclose(detector(given).score, on_the_cpu.score, rtol=1e-5)
        results = detector.batch([WithDlpack(view), view, view[::-1]])
        assert results[0].score == results[1].score != results[2].score
        with pytest.raises(UsageError, match="without gaps between pixels"):
            detector(WithDlpack(view[:, ::2]))
    assert device.owned() == {}


# --- what is not taken ----------------------------------------------------------------------------


def check_what_is_not_taken(folder: str) -> None:
    engine = cpu_engine(enter(folder))(model(folder))
    view = pixels(75, 110)
    for gaps in (view[:, ::2], view[::-1], view[:, ::-1]):
        for kind in (WithDlpack, WithInterface):
            assert not engine.takes(Frame(kind(gaps)))
    assert not engine.takes(Frame(np.zeros((300 * 32, 40, 3), np.uint8)))  # blocks 300 high
    with pytest.raises(PadimEdgeError, match="must have no gaps"):
        engine.infer_frames([Frame(WithDlpack(view[:, ::2]))])
    with pytest.raises(UsageError, match="no frames were given"):
        engine.infer_frames([])
    engine.close()
    with pytest.raises(PadimEdgeError, match="the engine ort-cuda is closed"):
        engine.infer_frames([Frame(view)])


def check_without_reduce_frames_go_the_cpus_way(folder: str) -> None:
    opened = with_preprocess(model(folder), Preprocess.reference((32, 32)))
    engine = cpu_engine(enter(folder))(opened)
    assert not engine.takes(Frame(pixels(40, 40)))
    with pytest.raises(UsageError, match="does not prepare frames of this model"):
        engine.infer_frames([Frame(pixels(40, 40))])
    engine.close()


# --- when things go wrong -------------------------------------------------------------------------


def check_a_fault_is_told_and_survived(folder: str) -> None:
    device = enter(folder)
    opened = model(folder)
    engine = cpu_engine(device)(opened)
    frames = [Frame(pixels(80, 90, seed)) for seed in range(4)]
    calls = ("cuMemHostAlloc", "cuMemAlloc", "cuLaunchKernel", "cuEventSynchronize",
             "cuMemcpyHtoDAsync", "cuStreamSynchronize")  # fmt: skip
    for call in calls:
        device.fail(call, 719)
        with pytest.raises(PadimEdgeError, match=r"the GPU fails: .*unspecified launch failure"):
            engine.infer_frames(frames)
        assert device.count("queued") == 0
        same(engine, opened.detector_info.preprocess, frames)
        frames = [Frame(np.concatenate([frame.pixels, frame.pixels])) for frame in frames]
    engine.close()
    assert device.owned() == {}


CHECKS = [value for name, value in globals().items() if name.startswith("check_")]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_frames(gpu: ProcessPoolExecutor, folder: str, check: Callable[[str], None]) -> None:
    gpu.submit(check, folder).result(timeout=300)
