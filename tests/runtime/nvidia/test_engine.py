"""Host code of the GPU engines against the real pycuda, over a driver made for tests.

Each `check_*` runs in an interpreter where libcuda is `native/fake_cuda.cpp`.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any
from unittest import mock

import numpy as np
import pytest
from fake_gpu import cpu_engine, enter, frames, model

from padim_edge.errors import PadimEdgeError, UsageError

# --- the way of a batch -------------------------------------------------------------------------


def check_right_scores_and_nothing_left(folder: str) -> None:
    device = enter(folder)
    from padim_edge.runtime import trial

    engine = cpu_engine(device)(model(folder))
    trial.check(engine)
    assert device.count("contexts") == 0, "the thread has a context that it did not have before"
    engine.close()
    engine.close()
    assert device.owned() == {}
    with pytest.raises(PadimEdgeError, match="the engine ort-cuda is closed"):
        engine.infer(frames(1))


def check_a_batch_costs_no_memory_and_one_wait(folder: str) -> None:
    device = enter(folder)
    engine = cpu_engine(device)(model(folder))
    engine.infer(frames(2))
    device.forget()
    engine.infer(frames(2))
    counts = {
        name: device.count(name)
        for name in ("cuMemAlloc", "cuMemHostAlloc", "cuModuleGetFunction", "cuEventCreate")
    }
    assert not any(counts.values()), counts
    assert device.count("cuStreamSynchronize") == 1
    assert device.count("cuCtxSynchronize") == 0
    assert device.count("cuLaunchKernel") == 2
    assert device.count("cuMemcpyHtoDAsync") == 1
    assert device.count("cuMemcpyDtoHAsync") == 2
    assert device.count("pageable") == 0
    assert device.count("default stream") == 0
    engine.close()


def check_large_batches_are_split(folder: str) -> None:
    from padim_edge.runtime.nvidia.engine import MOST

    engine = cpu_engine(enter(folder))(model(folder))
    images = frames(MOST + 3)
    scores, maps = engine.infer(images)
    for index in (0, MOST - 1, MOST, MOST + 2):
        score, one = engine.infer(images[index : index + 1])
        np.testing.assert_allclose(maps[index], one[0], rtol=1e-5)
        np.testing.assert_allclose(scores[index], score[0], rtol=1e-5)
    stages = engine.stages(images)
    assert list(stages) == ["upload", "backbone", "distances", "smoothing", "download"]
    assert all(seconds >= 0 for seconds in stages.values())
    engine.close()


def check_results_belong_to_the_caller(folder: str) -> None:
    engine = cpu_engine(enter(folder))(model(folder))
    scores, maps = engine.infer(frames(1))
    kept = scores.copy(), maps.copy()
    engine.infer(255 - frames(1))
    engine.close()
    np.testing.assert_array_equal(scores, kept[0])
    np.testing.assert_array_equal(maps, kept[1])


def check_integrated_gpus_copy_nothing_but_scores(folder: str) -> None:
    device = enter(folder)
    device.set("integrated", 1)
    try:
        from padim_edge.runtime import trial

        engine = cpu_engine(device)(model(folder))
        trial.check(engine)
        device.forget()
        engine.infer(frames(2))
        assert device.count("cuMemcpyHtoDAsync") == 0
        assert device.count("cuMemcpyDtoHAsync") == 1
        engine.close()
        assert device.owned() == {}
    finally:
        device.set("integrated", 0)


def check_memory_of_an_integrated_gpu_is_what_the_system_has(folder: str) -> None:
    """Not the driver's figure, which is MemFree there."""
    device = enter(folder)
    engine = cpu_engine(device)
    available = [8 * 2**30, 8 * 2**30 - 300 * 2**20]
    device.set("integrated", 1)
    try:
        with mock.patch(
            "padim_edge.runtime.nvidia.device.available_memory",
            side_effect=[*available, *3 * available[1:]],
        ):
            opened = engine(model(folder))
            assert opened.figures().memory_bytes == 300 * 2**20
        opened.close()
    finally:
        device.set("integrated", 0)


def check_any_thread_may_open_use_and_close(folder: str) -> None:
    device = enter(folder)
    opened: list[Any] = []
    maps: list[np.ndarray] = []

    def run(work: Callable[[], Any]) -> None:
        problems: list[BaseException] = []

        def guarded() -> None:
            try:
                work()
                assert device.count("contexts") == 0
            except BaseException as error:
                problems.append(error)

        thread = threading.Thread(target=guarded)
        thread.start()
        thread.join()
        assert not problems, problems

    run(lambda: opened.append(cpu_engine(device)(model(folder))))
    run(lambda: maps.append(opened[0].infer(frames(2))[1]))
    maps.append(opened[0].infer(frames(2))[1])
    np.testing.assert_array_equal(*maps)
    run(lambda: opened[0].stages(frames(2)))
    run(lambda: opened[0].close())
    assert device.owned() == {}


def check_threads_take_turns(folder: str) -> None:
    engine = cpu_engine(enter(folder))(model(folder))
    images = [frames(1) ^ np.uint8(index) for index in range(4)]
    alone = [engine.infer(one)[1] for one in images]
    together: dict[int, np.ndarray] = {}

    def infer(index: int) -> None:
        for _ in range(5):
            together[index] = engine.infer(images[index])[1]

    threads = [threading.Thread(target=infer, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(4):
        np.testing.assert_array_equal(together[index], alone[index])
    engine.close()


def check_opened_and_closed_a_hundred_times(folder: str) -> None:
    device = enter(folder)
    for _ in range(100):
        engine = cpu_engine(device)(model(folder))
        engine.infer(frames(1))
        engine.close()
    assert device.owned() == {}
    assert device.count("retained") == 1


def check_a_dropped_engine_frees_itself(folder: str) -> None:
    device = enter(folder)
    engine = cpu_engine(device)(model(folder))
    assert device.owned()
    del engine
    thread = threading.Thread(target=gc.collect)  # in whatever thread that happens
    thread.start()
    thread.join()
    assert device.owned() == {}


def check_figures(folder: str) -> None:
    device = enter(folder)
    from padim_edge.runtime.nvidia.scorer import pack

    engine = cpu_engine(device)(model(folder))
    figures = engine.figures()
    assert figures.device == "Fake GPU (sm_87)"
    assert figures.constants_bytes == pack(model(folder))[0].lines.nbytes > 0
    assert figures.memory_bytes > figures.constants_bytes
    assert figures.copy_bandwidth > 1e6
    assert engine.describe().endswith("on Fake GPU (sm_87)")
    before = device.owned()
    engine.figures()
    assert device.owned() == before
    engine.close()


def check_wrong_images_are_refused(folder: str) -> None:
    engine = cpu_engine(enter(folder))(model(folder))
    for wrong in (frames(1)[0], frames(1)[:, :16], frames(1).astype(np.float32), frames(1)[:0]):
        with pytest.raises(UsageError, match=r"uint8 \(N, 32, 32, 3\) with N of at least 1"):
            engine.infer(wrong)
    engine.close()


# --- when things go wrong -----------------------------------------------------------------------


def check_whatever_fails_while_opening_leaves_nothing(folder: str) -> None:
    device = enter(folder)
    calls = ("cuMemAlloc", "cuMemHostAlloc", "cuStreamCreate", "cuModuleLoadData",
             "cuModuleGetFunction", "cuLaunchKernel", "cuStreamSynchronize", "cuEventCreate",
             "cuMemcpyHtoDAsync", "cuMemGetInfo")  # fmt: skip
    for call in calls:
        device.fail(call, 1)  # not for want of memory: pycuda collects garbage and tries again
        with pytest.raises(PadimEdgeError, match=r"the GPU fails: .*invalid argument") as caught:
            cpu_engine(device)(model(folder))
        assert "\n" not in str(caught.value)
        caught = None  # its traceback holds what it came through
        assert device.owned() == {}, call


def check_a_fault_of_a_kernel_is_told_and_survived(folder: str) -> None:
    device = enter(folder)
    engine = cpu_engine(device)(model(folder))
    for call in ("cuLaunchKernel", "cuStreamSynchronize", "cuMemcpyDtoHAsync"):
        device.fail(call, 719)
        with pytest.raises(PadimEdgeError, match=r"the GPU fails: .*unspecified launch failure"):
            engine.infer(frames(1))
        assert device.count("contexts") == 0
    device.fail("cuStreamSynchronize", 719)
    with pytest.raises(PadimEdgeError, match="the GPU fails"):
        engine.close()
    assert device.owned() == {}


def check_a_full_device_is_told(folder: str) -> None:
    device = enter(folder)
    device.set("memory", 100_000)
    try:
        with pytest.raises(PadimEdgeError, match="out of memory"):
            cpu_engine(device)(model(folder))
        assert device.owned() == {}
    finally:
        device.set("memory", 2**30)


def check_auto_goes_on_to_what_runs(folder: str) -> None:
    device = enter(folder)
    from padim_edge.runtime.engines import open_engine

    skipped: dict[str, PadimEdgeError] = {}
    engine = open_engine("auto", model(folder), skipped=skipped.__setitem__)
    assert engine.name == "ort"
    engine.close()
    assert list(skipped) == ["trt", "ort-cuda"]
    assert "tensorrt" in str(skipped["trt"])
    assert "without CUDAExecutionProvider" in str(skipped["ort-cuda"])
    assert device.owned() == {}


def check_a_provider_that_does_not_start_is_refused(folder: str) -> None:
    """ONNX Runtime goes on with the CPU when a provider fails; the engine must not."""
    device = enter(folder)
    import onnxruntime

    from padim_edge.runtime.nvidia import ort_cuda

    real = onnxruntime.InferenceSession
    given: dict[str, Any] = {}

    def falls_back(graph: bytes, options: Any, providers: Any, **_: Any) -> Any:
        given.update(options=options, providers=providers)
        return real(graph, providers=["CPUExecutionProvider"])

    listed = onnxruntime.get_available_providers
    onnxruntime.InferenceSession = falls_back
    onnxruntime.get_available_providers = lambda: [ort_cuda.PROVIDER, "CPUExecutionProvider"]
    try:
        with pytest.raises(PadimEdgeError, match="lists CUDAExecutionProvider and starts CPU"):
            ort_cuda.OrtCudaEngine(model(folder))
    finally:
        onnxruntime.InferenceSession, onnxruntime.get_available_providers = real, listed
    ((provider, settings),) = given["providers"]
    assert provider == "CUDAExecutionProvider"
    assert int(settings["user_compute_stream"]) > 0
    options = given["options"]
    assert options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
    assert device.owned() == {}


CHECKS = [value for name, value in globals().items() if name.startswith("check_")]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(gpu: ProcessPoolExecutor, folder: str, check: Callable[[str], None]) -> None:
    gpu.submit(check, folder).result(timeout=300)
