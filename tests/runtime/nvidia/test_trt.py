"""Engines `trt` and `trt/graph` from image to score, against engine `ort`, without a GPU.

Real are pycuda, our host code, the kernels (compiled for the CPU) and TensorRT's Python bindings.
Not real are the driver (`native/fake_cuda.cpp`) and what runs plans, which is ONNX Runtime on the
CPU.
"""

from __future__ import annotations

import gc
import logging
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import pytest
from fake_gpu import FLOAT32, compare, enter, images
from fake_tensorrt import FakeTensorRT, install

from padim_edge.errors import PadimEdgeError
from padim_edge.images.frames import Frame
from padim_edge.runtime.engines import open_engine


def check_trt(folder: str, path: str, name: str) -> None:
    device = enter(folder)
    fake = FakeTensorRT(device)
    world = install(folder, name, fake.answers())
    from padim_edge.model.file import read

    model = read(path, "padim")
    engine: Any = open_engine(name, model)
    assert engine.name == name
    assert f"tensorrt {world.__version__}" in engine.describe()
    compare(engine, model, (1, 3), FLOAT32)
    plans = engine.figures().plans  # nothing for many frames so far
    assert [(plan.batch, plan.scratch_bytes) for plan in plans] == [((1, 1, 4), 2**20)]
    compare(engine, model, (4, 5, 34), FLOAT32)
    assert [plan.batch for plan in engine.figures().plans] == [(1, 1, 4), (5, 32, 32)]
    built = [tuple(shape[key][0] for key in ("min", "opt", "max"))
             for shape in world.named("IOptimizationProfile.set_shape")]  # fmt: skip
    assert built == [(1, 1, 4), (5, 32, 32)]
    # A camera's batches come and go; what is bound stays, for the latest of them.
    before = len(fake.bindings)
    for count in (1, 2, 3, 4, 1, 2, 3, 4):
        engine.infer(images(model, count))
    assert 4 <= len(fake.bindings) <= before + 4
    made = len(world.named("ICudaEngine.create_execution_context"))
    engine.infer(images(model, 4))
    assert len(world.named("ICudaEngine.create_execution_context")) == made

    assert fake.streams == {engine._device.stream}
    assert 0 not in fake.streams
    assert fake.contexts == {1}, "TensorRT was called without a context"
    batch = images(model, 2)
    engine.infer(batch)
    engine.infer(batch)
    before = len(world.calls)
    device.forget()
    engine.infer(batch)
    assert world.calls[before:] == []  # all of it is in the graph
    calls = ("cuGraphLaunch", "cuStreamSynchronize", "cuLaunchKernel", "cuMemAlloc",
             "cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync")  # fmt: skip
    assert [device.count(call) for call in calls] == [1, 1, 0, 0, 0, 0]

    # Only where kernels run anyway: the other engine is for machines without a compiler, too.
    shots = [Frame(batch[0].repeat(3, axis=0)), Frame(batch[1, :, 1:])]
    assert [engine.takes(shot) for shot in shots] == [name == "trt"] * 2
    if name == "trt":
        scores, _ = engine.infer_frames(shots)
        prepare = model.detector_info.preprocess
        assert (scores == engine.infer(np.stack([prepare(shot) for shot in shots]))[0]).all()

    middle = ["backbone", "distances", "smoothing"] if name == "trt" else ["graph"]
    assert list(engine.stages(batch)) == ["upload", *middle, "download"]
    figures = engine.figures()
    assert (figures.constants_bytes > 0) == (name == "trt")

    # The plan is kept: the next one is loaded. (The stand-in goes on with the same session.)
    engine.close()
    engine.close()
    assert device.owned() == {}
    freed = [call.name for call in world.calls if call.name.startswith("~I")]
    assert freed.index("~IExecutionContext") < freed.index("~ICudaEngine")
    device.set("memory", 2**30 - 2**20)  # on a Jetson it differs from boot to boot
    try:
        engine = open_engine(name, model)
        compare(engine, model, (1, 7), FLOAT32)
        assert len(world.named("Builder.build_serialized_network")) == 2
        engine.close()
    finally:
        device.set("memory", 2**30)


@pytest.mark.parametrize("kind", ["float16", "whitened-fine"])
@pytest.mark.parametrize("name", ["trt", "trt/graph"])
def test_trt(
    trt: ProcessPoolExecutor, folder: str, detectors: dict[str, str], name: str, kind: str
) -> None:
    trt.submit(check_trt, folder, detectors[kind], name).result(timeout=300)


# --- CUDA graphs ----------------------------------------------------------------------------------


def check_graphs(folder: str, path: str, name: str, integrated: bool) -> None:
    device = enter(folder)
    device.set("integrated", integrated)
    fake = FakeTensorRT(device)
    install(folder, f"{name} graphs {integrated}", fake.answers())
    from padim_edge.model.file import read

    model = read(path, "padim")
    plain: Any = open_engine(name, model)
    plain._can_record = False
    engine: Any = open_engine(name, model)
    for turn in range(3):  # other pixels each time, in the same memory
        for count in (1, 3, 9):
            device.forget()
            batch = images(model, count, seed=10 * turn + count)
            scores, maps = engine.infer(batch)
            assert device.count("cuStreamBeginCapture") == (turn == 1)
            assert device.count("cuGraphLaunch") == (turn > 0)
            wanted, wanted_maps = plain.infer(batch)
            np.testing.assert_array_equal(scores, wanted)
            np.testing.assert_array_equal(maps, wanted_maps)
    assert " in CUDA graphs on " in engine.describe()
    assert "CUDA graph" not in plain.describe()
    engine.stages(batch)
    np.testing.assert_array_equal(engine.infer(batch)[0], wanted)

    if name == "trt":  # frames come another way, and of another graph
        for seed in range(4):
            shots = [Frame(one) for one in images(model, 3, seed=seed).repeat(2, axis=1)]
            device.forget()
            scores, maps = engine.infer_frames(shots)
            assert device.count("cuGraphLaunch") == (seed > 0)
            np.testing.assert_array_equal(maps, plain.infer_frames(shots)[1])

    # Of many batch sizes the latest are kept, with what they are bound to.
    for _ in range(2):
        for count in (1, 2, 3, 4, 5, 6):
            batch = images(model, count)
            np.testing.assert_array_equal(engine.infer(batch)[1], plain.infer(batch)[1])
        assert device.count("graphs") <= 4
    for count in (6, 5, 6, 5):
        engine.infer(images(model, count))
    assert device.count("graphs") >= 2
    engine.close()
    plain.close()
    assert device.owned() == {}, device.owned()
    device.set("integrated", 0)


@pytest.mark.parametrize(
    ("name", "integrated"), [("trt", False), ("trt", True), ("trt/graph", False)]
)
def test_graphs_give_the_same_bits(
    trt: ProcessPoolExecutor, folder: str, detectors: dict[str, str], name: str, integrated: bool
) -> None:
    trt.submit(check_graphs, folder, detectors["float16"], name, integrated).result(timeout=300)


def check_refused_graphs(folder: str, path: str) -> None:
    device = enter(folder)
    from padim_edge.model.file import read

    model = read(path, "padim")
    batches = [images(model, 2, seed=seed) for seed in range(4)]

    class Refuses(FakeTensorRT):
        def execute(self, stream_handle: int) -> bool:
            return not device.count("recording") and super().execute(stream_handle)

    install(folder, "refused", FakeTensorRT(device).answers())
    plain: Any = open_engine("trt", model)
    plain._can_record = False
    wanted = [plain.infer(batch) for batch in batches]
    plain.close()
    cases: dict[str, tuple[type[FakeTensorRT], str]] = {
        "cuStreamBeginCapture failed: not supported": (FakeTensorRT, "cuStreamBeginCapture"),
        "cuStreamEndCapture failed: not supported": (FakeTensorRT, "cuStreamEndCapture"),
        "cuGraphInstantiate": (FakeTensorRT, "cuGraphInstantiate"),
        "TensorRT cannot run the plan": (Refuses, ""),
        "cuLaunchKernel failed: not supported": (FakeTensorRT, "cuLaunchKernel"),
        "cuGraphLaunch failed: not supported": (FakeTensorRT, "cuGraphLaunch"),
    }
    for words, (kind, call) in cases.items():
        install(folder, f"refused {words}", kind(device).answers())
        engine: Any = open_engine("trt", model)
        records: list[logging.LogRecord] = []
        handler = logging.Handler()
        handler.emit = records.append  # type: ignore[method-assign]
        logger = logging.getLogger("padim_edge.runtime.nvidia.engine")
        logger.addHandler(handler)
        engine.infer(batches[0])
        for turn, (batch, (scores, maps)) in enumerate(zip(batches, wanted, strict=True)):
            device.forget()
            if call and turn < 2:  # the next call of this name
                device.fail(call, 801)
            got, got_maps = engine.infer(batch)
            np.testing.assert_array_equal(got, scores)
            np.testing.assert_array_equal(got_maps, maps)
            assert device.count("cuStreamBeginCapture") == (turn < 2), "two tries, no more"
            assert device.count("graphs") == device.count("recording") == 0
            assert f" without CUDA graphs ({words}" in engine.describe()
        assert "\n" not in engine.describe()
        assert [words in record.getMessage() for record in records] == [True], words  # once
        if call:  # one bad moment is no reason: another size
            for turn in range(4):
                if turn == 1:
                    device.fail(call, 801)
                engine.infer(images(model, 3, seed=turn))
            assert " in CUDA graphs and without CUDA graphs (" in engine.describe()
            assert len(records) == 1
        logger.removeHandler(handler)
        engine.close()
        assert device.owned() == {}, (words, device.owned())


def test_without_graphs_frames_go_on(
    trt: ProcessPoolExecutor, folder: str, detectors: dict[str, str]
) -> None:
    trt.submit(check_refused_graphs, folder, detectors["float16"]).result(timeout=300)


def check_no_plan_for_many(folder: str, path: str) -> None:
    device = enter(folder)
    from padim_edge.model.file import read

    model = read(path, "padim")
    answers = FakeTensorRT(device).answers()
    world = install(folder, "no plan for many", answers)
    engine: Any = open_engine("trt", model)
    engine.infer(images(model, 1))
    answers["Builder.build_serialized_network"] = None
    compare(engine, model, (5, 9), FLOAT32)
    engine.stages(images(model, 6))
    assert len(world.named("Builder.build_serialized_network")) == 2, "it was built again"
    assert ", at most 4 frames at once (TensorRT" in engine.describe()
    assert "\n" not in engine.describe()
    engine.close()
    assert device.owned() == {}


def test_without_a_plan_for_many_frames_go_in_parts(
    trt: ProcessPoolExecutor, folder: str, detectors: dict[str, str]
) -> None:
    trt.submit(check_no_plan_for_many, folder, detectors["float16"]).result(timeout=300)


def one_batch(model: Any) -> None:
    engine = open_engine("trt", model)
    try:
        engine.infer(images(model, 1))
    finally:
        engine.close()


def check_trt_failures(folder: str, path: str) -> None:
    device = enter(folder)
    from padim_edge.model.file import read

    model = read(path, "padim")
    for name, answer in {
        "OnnxParser.parse": False,
        "Builder.build_serialized_network": None,
        "Runtime.deserialize_cuda_engine": None,
        "ICudaEngine.create_execution_context": None,
        "IExecutionContext.set_tensor_address": False,
        "IExecutionContext.execute_async_v3": False,
    }.items():
        install(folder, name, FakeTensorRT(device).answers() | {name: answer})
        with pytest.raises(PadimEdgeError, match="TensorRT") as caught:
            one_batch(model)
        assert "\n" not in str(caught.value)
        caught = None  # its traceback holds what it came through
        assert device.owned() == {}, name


def test_trt_that_fails_leaves_nothing(
    trt: ProcessPoolExecutor, folder: str, detectors: dict[str, str]
) -> None:
    trt.submit(check_trt_failures, folder, detectors["float16"]).result(timeout=300)


def check_auto_takes_trt(folder: str, path: str) -> None:
    device = enter(folder)
    install(folder, "auto", FakeTensorRT(device).answers())
    from padim_edge.detect.detector import Detector

    with Detector(path) as detector:
        assert detector.engine.name == "trt"
        assert detector.skipped == ()
    answers = FakeTensorRT(device).answers()
    answers["IExecutionContext.execute_async_v3"] = False  # all is well until a frame comes
    install(folder, "auto-again", answers)
    with Detector(path) as detector:
        assert detector.engine.name == "ort"
        assert [reason.split(":")[0] for reason in detector.skipped] == ["trt", "ort-cuda"]
        assert "TensorRT cannot run the plan" in detector.skipped[0]
    assert device.owned() == {}


def test_auto_takes_the_first_through_which_a_frame_goes(
    trt: ProcessPoolExecutor, folder: str, detectors: dict[str, str]
) -> None:
    trt.submit(check_auto_takes_trt, folder, detectors["float16"]).result(timeout=300)


# Last, for it leaves a graph behind in the driver of this interpreter.
def check_recording_is_undisturbed(folder: str, path: str) -> None:
    device = enter(folder)
    from padim_edge.model.file import read

    collecting: dict[bool, set[bool]] = {}

    class Watches(FakeTensorRT):
        def execute(self, stream_handle: int) -> bool:
            recording = bool(device.count("recording"))
            collecting.setdefault(recording, set()).add(gc.isenabled())
            return super().execute(stream_handle)

    install(folder, "undisturbed", Watches(device).answers())
    model = read(path, "padim")
    engine: Any = open_engine("trt", model)
    for _ in range(2):
        engine.infer(images(model, 1))
    assert collecting == {False: {True}, True: {False}}
    assert gc.isenabled()
    # A graph that cannot be freed keeps nothing else.
    for count in (2, 3):
        for _ in range(2):
            engine.infer(images(model, count))
    device.fail("cuGraphExecDestroy", 801)
    with pytest.raises(PadimEdgeError, match="cuGraphExecDestroy failed: not supported"):
        engine.close()
    assert device.owned() == {"graphs": 1}


def test_no_garbage_is_collected_into_a_recording(
    trt: ProcessPoolExecutor, folder: str, detectors: dict[str, str]
) -> None:
    trt.submit(check_recording_is_undisturbed, folder, detectors["float16"]).result(timeout=300)
