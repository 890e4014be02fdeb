"""The GPU engines from image to score, against engine `ort`, on a machine without a GPU.

Real are pycuda, our host code, the kernels (compiled for the CPU) and, for `trt`, TensorRT's
Python bindings. Not real are the driver (`native/fake_cuda.cpp`) and what computes the backbone,
which is ONNX Runtime on the CPU.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import fake_gpu
import jsonschema
import numpy as np
import pytest
from fake_gpu import Gpu, cpu_engine, enter
from helpers import in_process
from tensorrt_stubs import assemble as assemble_tensorrt
from wheels import interpreter

from padim_edge.errors import MissingDependencyError, PadimEdgeError, UsageError
from padim_edge.runtime.engines import ENGINES, NVIDIA, open_engine

VERSIONS = ("10.3.0", "11.4.0.106")
FLOAT32, FLOAT16 = 1e-5, 1e-3  # of the largest value, by the type of the backbone's maps


@pytest.fixture(scope="module", params=VERSIONS)
def tensorrt(
    request: pytest.FixtureRequest, folder: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ProcessPoolExecutor]:
    """An interpreter with pycuda and the TensorRT bindings of a version."""
    bindings = assemble_tensorrt(request.param, tmp_path_factory.mktemp("tensorrt"))
    with interpreter(fake_gpu.pycuda(), bindings) as pool:
        yield pool


@pytest.fixture(scope="module")
def models(
    embedding_file: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Detectors of every kind of constants, and a dense one."""
    from padim_edge.fit.fit import fit_detector
    from padim_edge.fit.settings import Settings
    from padim_edge.images.dataset import train_images
    from padim_edge.images.preprocess import Preprocess

    place = tmp_path_factory.mktemp("models")
    whole = Preprocess.whole((64, 64))
    kinds = {
        constants: Settings(whole, constants=constants)
        for constants in ("float32", "float16", "int8")
    }
    if importlib.util.find_spec("sklearn"):
        kinds["dense"] = Settings(whole, covariance="ledoit-wolf")
    files = {}
    for name, settings in kinds.items():
        files[name] = str(place / f"{name}.onnx")
        fit_detector(embedding_file, train_images(photos), Path(files[name]), settings)
    return files


def images(model: Any, count: int, seed: int = 0) -> np.ndarray:
    shape = (count, *model.backbone_info.image_size, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def compare(engine: Any, model: Any, counts: tuple[int, ...], tolerance: float) -> None:
    """Scores and maps beside those of engine `ort`."""
    from padim_edge.runtime.cpu.ort import OrtEngine

    reference = OrtEngine(model)
    for count in counts:
        batch = images(model, count, seed=count)
        scores, maps = engine.infer(batch)
        wanted, wanted_maps = reference.infer(batch)
        assert scores.shape == wanted.shape
        assert maps.shape == wanted_maps.shape
        assert scores.dtype == maps.dtype == np.float32
        assert np.abs(maps - wanted_maps).max() <= tolerance * wanted_maps.max()
        assert np.abs(scores - wanted).max() <= tolerance * wanted.max()
        np.testing.assert_allclose(scores, maps.max(axis=(1, 2)), rtol=1e-6)
    reference.close()


# --- ort-cuda -----------------------------------------------------------------------------------


def check_parity(folder: str, path: str, half: bool) -> None:
    from padim_edge.model.file import read

    device = enter(folder)
    model = read(path, "padim")
    engine = cpu_engine(device, half)(model)
    assert ("float16" if half else "float32") in engine.describe()
    compare(engine, model, (1, 3, 9, 34), FLOAT16 if half else FLOAT32)
    engine.close()
    assert device.owned() == {}


@pytest.mark.parametrize("half", [False, True], ids=["float32 maps", "float16 maps"])
@pytest.mark.parametrize("constants", ["float32", "float16", "int8", "dense"])
def test_parity(
    gpu: ProcessPoolExecutor, folder: str, models: dict[str, str], constants: str, half: bool
) -> None:
    if constants not in models:
        pytest.skip("the dense form needs scikit-learn")
    gpu.submit(check_parity, folder, models[constants], half).result(timeout=300)


def check_fewer_frames_a_pass(folder: str, path: str) -> None:
    from padim_edge.model.file import read

    device = enter(folder)
    device.set("shared", 0)  # what every device has is all there is
    try:
        model = read(path, "padim")
        engine = cpu_engine(device)(model)
        compare(engine, model, (8,), FLOAT32)
        engine.close()
    finally:
        device.set("shared", 100 * 1024)


def test_a_device_with_little_shared_memory(
    gpu: ProcessPoolExecutor, folder: str, models: dict[str, str]
) -> None:
    gpu.submit(check_fewer_frames_a_pass, folder, models["float32"]).result(timeout=300)


# --- trt ----------------------------------------------------------------------------------------


class FakeTensorRT:
    """Answers of a TensorRT whose plans run in ONNX Runtime, at the addresses they were given."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.session: Any = None
        self.batch = 0
        self.addresses: dict[str, int] = {}
        self.streams: set[int] = set()
        self.contexts: set[int] = set()

    def answers(self) -> dict[str, Any]:
        from tensorrt_bindings import DataType, TensorIOMode

        kinds = {"tensor(uint8)": "UINT8", "tensor(float)": "FLOAT", "tensor(float16)": "HALF"}

        def tensors() -> dict[str, Any]:
            both = (*self.session.get_inputs(), *self.session.get_outputs())
            return {tensor.name: tensor for tensor in both}

        def sides(name: str) -> tuple[int, ...]:
            return tuple(tensors()[name].shape[1:])

        def is_input(name: str) -> bool:
            return name == "image"

        return {
            "OnnxParser.parse": self.parse,
            "INetworkDefinition.num_inputs": 1,
            "ITensor.name": "image",
            "ITensor.shape": (-1, 64, 64, 3),
            "Builder.build_serialized_network": lambda **_: b"a plan",
            "ITimingCache.serialize": b"timings",
            "ICudaEngine.num_io_tensors": lambda: len(tensors()),
            "ICudaEngine.get_tensor_name": lambda index: list(tensors())[index],
            "ICudaEngine.get_tensor_shape": lambda name: (-1, *sides(name)),
            "ICudaEngine.get_tensor_dtype": lambda name: DataType.__members__[
                kinds[tensors()[name].type]
            ],
            "ICudaEngine.get_tensor_mode": lambda name: (
                TensorIOMode.INPUT if is_input(name) else TensorIOMode.OUTPUT
            ),
            "ICudaEngine.get_tensor_profile_shape": [(n, 64, 64, 3) for n in (1, 1, 32)],
            "ICudaEngine.device_memory_size_v2": 2**20,
            "IExecutionContext.set_input_shape": self.set_input_shape,
            "IExecutionContext.get_tensor_shape": lambda name: (self.batch, *sides(name)),
            "IExecutionContext.set_tensor_address": self.set_tensor_address,
            "IExecutionContext.execute_async_v3": self.execute,
        }

    def parse(self, model: bytes) -> bool:
        import onnxruntime

        self.session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        self.contexts.add(self.gpu.count("contexts"))
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.batch = shape[0]
        return name == "image"

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return True

    def execute(self, stream_handle: int) -> bool:
        self.streams.add(stream_handle)
        self.contexts.add(self.gpu.count("contexts"))
        self.gpu.drain()  # it is not in the stream, but has to come after what is
        (source,) = self.session.get_inputs()
        image = at(self.addresses["image"], (self.batch, *source.shape[1:]), np.uint8)
        for output, values in zip(
            self.session.get_outputs(), self.session.run(None, {"image": image}), strict=True
        ):
            at(self.addresses[output.name], values.shape, values.dtype)[...] = values
        return True


def at(address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    count = int(np.prod(shape))
    buffer = (ctypes.c_byte * (count * np.dtype(dtype).itemsize)).from_address(address)
    return np.frombuffer(buffer, dtype).reshape(shape)


def check_trt(folder: str, path: str, scoring: str) -> None:
    import tensorrt_stubs

    device = enter(folder)
    os.environ["XDG_CACHE_HOME"] = f"{folder}/{sys.implementation.name}-{scoring}-{os.getpid()}"
    fake = FakeTensorRT(device)
    world = tensorrt_stubs.enter(fake.answers())
    sys.modules.pop("padim_edge.runtime.nvidia.trt", None)
    from padim_edge.model.file import read

    model = read(path, "padim")
    engine: Any = open_engine("trt", model, scoring=scoring)
    assert engine.name == "trt"
    assert f"tensorrt {world.__version__}" in engine.describe()
    compare(engine, model, (1, 3, 34), FLOAT32)

    assert fake.streams == {engine._device.stream}
    assert 0 not in fake.streams
    assert fake.contexts == {1}, "TensorRT was called without a context"
    batch = images(model, 2)
    engine.infer(batch)
    before = len(world.calls)
    device.forget()
    engine.infer(batch)
    assert [call.name for call in world.calls[before:]] == ["IExecutionContext.execute_async_v3"]
    assert device.count("cuMemAlloc") == 0
    assert device.count("cuStreamSynchronize") == 1

    middle = ["backbone", "distances", "smoothing"] if scoring == "kernels" else ["graph"]
    assert list(engine.stages(batch)) == ["upload", *middle, "download"]
    figures = engine.figures()
    assert (figures.constants_bytes > 0) == (scoring == "kernels")

    # The plan is kept: the next one is loaded. (The stand-in goes on with the same session.)
    engine.close()
    engine.close()
    assert device.owned() == {}
    freed = [call.name for call in world.calls if call.name.startswith("~I")]
    assert freed.index("~IExecutionContext") < freed.index("~ICudaEngine")
    engine = open_engine("trt", model, scoring=scoring)
    assert len(world.named("Builder.build_serialized_network")) == 1
    engine.close()


@pytest.mark.parametrize("scoring", ["kernels", "graph"])
def test_trt(
    tensorrt: ProcessPoolExecutor, folder: str, models: dict[str, str], scoring: str
) -> None:
    tensorrt.submit(check_trt, folder, models["float16"], scoring).result(timeout=300)


def one_batch(model: Any) -> None:
    engine = open_engine("trt", model)
    try:
        engine.infer(images(model, 1))
    finally:
        engine.close()


def check_trt_failures(folder: str, path: str) -> None:
    import tensorrt_stubs

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
        os.environ["XDG_CACHE_HOME"] = f"{folder}/{name}-{os.getpid()}"  # with no plan
        answers = FakeTensorRT(device).answers()
        answers[name] = answer
        tensorrt_stubs.enter(answers)
        sys.modules.pop("padim_edge.runtime.nvidia.trt", None)
        with pytest.raises(PadimEdgeError, match="TensorRT") as caught:
            one_batch(model)
        assert "\n" not in str(caught.value)
        caught = None  # its traceback holds what it came through
        assert device.owned() == {}, name


def test_trt_that_fails_leaves_nothing(
    tensorrt: ProcessPoolExecutor, folder: str, models: dict[str, str]
) -> None:
    tensorrt.submit(check_trt_failures, folder, models["float16"]).result(timeout=300)


def check_auto_takes_trt(folder: str, path: str) -> None:
    import tensorrt_stubs

    device = enter(folder)
    os.environ["XDG_CACHE_HOME"] = f"{folder}/auto-{os.getpid()}"
    tensorrt_stubs.enter(FakeTensorRT(device).answers())
    sys.modules.pop("padim_edge.runtime.nvidia.trt", None)
    from padim_edge.detect.detector import Detector

    with Detector(path) as detector:
        assert detector.engine.name == "trt"
        assert detector.skipped == ()
    answers = FakeTensorRT(device).answers()
    os.environ["XDG_CACHE_HOME"] += "-again"
    answers["IExecutionContext.execute_async_v3"] = False  # all is well until a frame comes
    tensorrt_stubs.enter(answers)
    sys.modules.pop("padim_edge.runtime.nvidia.trt", None)
    with Detector(path) as detector:
        assert detector.engine.name == "ort"
        assert [reason.split(":")[0] for reason in detector.skipped] == ["trt", "ort-cuda"]
        assert "TensorRT cannot run the plan" in detector.skipped[0]
    assert device.owned() == {}


def test_auto_takes_the_first_through_which_a_frame_goes(
    tensorrt: ProcessPoolExecutor, folder: str, models: dict[str, str]
) -> None:
    tensorrt.submit(check_auto_takes_trt, folder, models["float16"]).result(timeout=300)


# --- bench on such an engine --------------------------------------------------------------------


SCHEMA = Path(__file__).parents[2] / "docs" / "bench.schema.json"


def run_benchmark(folder: str, path: str, engines: str) -> dict[str, Any]:
    """The command on engines that stand on a fake device; returns its JSON."""
    device = enter(folder)
    from padim_edge.measure import bench

    # Its child process would have no fake driver.
    bench.measure_start = lambda *_: (1.0, 10**8)
    bench.BLOCK = 2
    file = Path(folder) / f"{engines.replace('/', '-')}-{os.getpid()}.json"
    in_process(
        *("bench", path, "--engine", engines, "--batch", "1,2", "--calls", 10, "--frame", "80x90"),
        *("--json", file, "--plot", file.with_suffix(".svg")),
    ).worked()
    assert device.owned() == {}
    return json.loads(file.read_text())


def check_bench(folder: str, path: str) -> dict[str, Any]:
    device = enter(folder)
    from padim_edge.runtime.nvidia import ort_cuda

    ort_cuda.OrtCudaEngine = cpu_engine(device)
    assert ENGINES["ort-cuda"] == "padim_edge.runtime.nvidia.ort_cuda:OrtCudaEngine"
    return run_benchmark(folder, path, "ort-cuda,ort")


def test_bench(folder: str, models: dict[str, str]) -> None:
    with interpreter(fake_gpu.pycuda()) as pool:
        report = pool.submit(check_bench, folder, models["float16"]).result(timeout=300)
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(report)
    gpu, cpu = report["engines"]
    assert (gpu["name"], cpu["name"]) == ("ort-cuda", "ort")
    assert gpu["device"]["device"] == "Fake GPU (sm_87)"
    assert gpu["device"]["memory_bytes"] > 0
    assert cpu["device"] is None
    for result, other in zip(gpu["results"], cpu["results"], strict=True):
        assert list(result["stages"]) == [
            "preprocess", "upload", "backbone", "distances", "smoothing", "download",
        ]  # fmt: skip
        assert (result["bare"], result["ratio"], result["to_first"]) == (None, None, None)
        assert other["ratio"] == other["graph"]["p50"] / other["bare"]["p50"]
        assert other["to_first"] == other["graph"]["p50"] / result["graph"]["p50"]
        assert other["kernel"] is None
        kernel = result["kernel"]
        seconds = result["stages"]["distances"]["p50"] / 1e3
        assert kernel["bytes"] == gpu["device"]["constants_bytes"] > 0
        assert kernel["bandwidth"] == pytest.approx(kernel["bytes"] / seconds)
        share = kernel["bandwidth"] / gpu["device"]["copy_bandwidth"]
        assert kernel["of_copy"] == pytest.approx(share)


def check_bench_of_tensorrt(folder: str, path: str) -> dict[str, Any]:
    import tensorrt_stubs

    device = enter(folder)
    os.environ["XDG_CACHE_HOME"] = f"{folder}/bench-{os.getpid()}"
    tensorrt_stubs.enter(FakeTensorRT(device).answers())
    sys.modules.pop("padim_edge.runtime.nvidia.trt", None)
    return run_benchmark(folder, path, "trt/graph")


def test_bench_of_tensorrt_without_our_kernels(
    tensorrt: ProcessPoolExecutor, folder: str, models: dict[str, str]
) -> None:
    task = tensorrt.submit(check_bench_of_tensorrt, folder, models["float16"])
    report = task.result(timeout=300)
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(report)
    (engine,) = report["engines"]
    assert engine["name"] == "trt/graph"
    assert "for the whole graph" in engine["description"]
    assert list(engine["results"][0]["stages"]) == ["preprocess", "upload", "graph", "download"]
    assert engine["results"][0]["kernel"] is None


# --- on a machine that has none of it -----------------------------------------------------------


@pytest.fixture
def bare_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """No driver, TensorRT or pycuda, and an x86 processor."""
    for name in ("tensorrt", "tensorrt_rtx", "pycuda"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("tensorrt", "builder", "execution", "cuda", "scoring", "gpu", "trt", "ort_cuda"):
        monkeypatch.delitem(sys.modules, f"padim_edge.runtime.{name}", raising=False)
    monkeypatch.setattr("padim_edge.runtime.engines.has_driver", lambda: False)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")


@pytest.mark.parametrize("command", ["run", "eval", "bench"])
@pytest.mark.parametrize(
    ("engine", "missing", "fix"),
    [
        ("trt", "tensorrt", "pip install 'padim-edge[trt]'"),
        ("ort-cuda", "pycuda", "pip install 'padim-edge[gpu]'"),
    ],
)
@pytest.mark.usefixtures("bare_machine")
def test_one_line_says_what_is_missing(
    model_file: Path,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    engine: str,
    missing: str,
    fix: str,
) -> None:
    # bench says whose error it is: it may have been asked for several.
    source, asked = ((), f"ort,{engine}") if command == "bench" else ((photos,), engine)
    done = in_process(command, model_file, *source, "--engine", asked)
    line = done.failed(1, missing, f"run  {fix}  (", "nor is there an NVIDIA driver")
    assert (f"engine {engine}: " in line) == (command == "bench")


@pytest.mark.usefixtures("bare_machine")
def test_auto_is_quiet_without_a_driver(model_file: Path, photos: Path) -> None:
    done = in_process("run", model_file, photos / "test" / "good", "--engine", "auto").worked()
    assert len(done.stderr.splitlines()) == 1  # the summary


def test_auto_says_what_it_skipped(
    model_file: Path, photos: Path, bare_machine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("padim_edge.runtime.engines.has_driver", lambda: True)
    done = in_process("run", model_file, photos / "test" / "good", "--engine", "auto").worked()
    lines = done.stderr.splitlines()
    assert lines[0].startswith("not on this machine: trt: ")
    assert lines[1].startswith("not on this machine: ort-cuda: ")
    assert lines[2] == "engine ort is used"
    assert len(lines) == 4


@pytest.mark.parametrize("engine", ["ort", "ort-cuda", "auto"])
def test_scoring_in_the_graph_is_for_tensorrt(model_file: Path, photos: Path, engine: str) -> None:
    done = in_process("run", model_file, photos, "--engine", engine, "--scoring", "graph")
    done.failed(2, "--scoring graph", "--engine trt")
    in_process("run", model_file, photos, "--scoring", "wild").failed(2, "kernels or graph")


def test_missing_pieces_have_an_error_of_their_own(model_file: Path, bare_machine: None) -> None:
    from padim_edge.model.file import read

    model = read(model_file, "padim")
    for name in NVIDIA:
        with pytest.raises(MissingDependencyError):
            open_engine(name, model)
    with pytest.raises(UsageError, match=f"choose auto, {', '.join(ENGINES)}"):
        open_engine("cuda", model)
