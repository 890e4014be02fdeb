"""Host code of the GPU engines against the real pycuda, over a driver made for tests.

Each `check_*` runs in an interpreter where libcuda is `native/fake_cuda.cpp`.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import fake_gpu
import numpy as np
import pytest
from fake_gpu import cpu_engine, enter
from wheels import interpreter, unpacked

import padim_edge.runtime.nvidia
from padim_edge.errors import MissingDependencyError, PadimEdgeError, UsageError
from padim_edge.runtime.nvidia import compiler
from padim_edge.runtime.nvidia.plan_cache import PlanCache


def model(folder: str) -> Any:
    """A tiny model whose answer is known without an engine."""
    from padim_edge.model.file import read
    from padim_edge.runtime import trial

    path = Path(folder) / "padim.onnx"
    return read(path, "padim") if path.exists() else trial.write_model(path)


def frames(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


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
    calls = ("cuMemAlloc", "cuMemHostAlloc", "cuStreamCreate", "cuModuleLoadDataEx",
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


# --- the contract itself ------------------------------------------------------------------------

SABOTAGE = {
    "no such function": ("cuda", "memcpy_htod_async(staging", "memcpy_h2d_async(staging"),
    "no such method": ("cuda", "self._context.push()", "self._context.push_current()"),
    "no such static method": ("cuda", "Context.pop()", "Context.pop_current()"),
    "no such enumeration": ("cuda", "Stream(_NON_BLOCKING)", "Stream(driver.stream_flags.ONE)"),
    "no such attribute": ("cuda", "attribute.INTEGRATED", "attribute.IS_INTEGRATED"),
    "no such keyword": ("cuda", "mem_flags=flags", "flags=flags"),
    "no such keyword of a launch": ("cuda", "shared_size=launch", "shared=launch"),
    "a wrong order of arguments": ("cuda", "(_COPIES", "(str(_COPIES)"),
    "an address as text": ("cuda", "(staging.address, staging.host", "(hex(0), staging.host"),
    "a method of another event": ("cuda", "later.time_since(", "later.elapsed_time("),
    "no wait": ("gpu", "self._device.synchronize()\n                    scores", "scores"),
    "no upload": ("cuda", "if not staging.mapped:\n            driver.memcpy_htod", "if 0: x"),
    "a context left behind": (
        "cuda",
        "                driver.Context.pop()",
        "                pass",
    ),
    "a context nobody made current": ("cuda", "self._context.push()", "pass"),
    "memory not freed": ("cuda", "self._memory.pop()()", "self._memory.pop()"),
    "memory too small": ("cuda", "mem_alloc(max(nbytes, 1))", "mem_alloc(max(nbytes // 2, 1))"),
    "modules kept": ("cuda", "self._modules.clear()", "driver.kept = self._modules"),
    "the stream kept": ("cuda", "self._stream = None\n\n\ndef", "pass\n\n\ndef"),
    "the default stream": ("cuda", "staging.host[:count], self._stream)", "staging.host[:count])"),
}


def journey(folder: str, mistake: tuple[str, str, str] | None) -> str:
    """A batch from opening to closing with a mistake in the product; what came of it."""
    device = enter(folder)
    sources = Path(padim_edge.runtime.engines.__file__).parent
    for name in ("cuda", "scoring", "gpu", "ort_cuda"):
        source = (sources / f"{name}.py").read_text()
        if mistake and mistake[0] == name:
            assert mistake[1] in source, "the product was changed: change the sabotage"
            source = source.replace(*mistake[1:])
        module = ModuleType(f"padim_edge.runtime.{name}")
        module.__package__ = "padim_edge.runtime"
        sys.modules[module.__name__] = module
        setattr(padim_edge.runtime, name, module)
        exec(compile(source, f"{name}.py", "exec"), module.__dict__)
    sys.modules["padim_edge.runtime.nvidia.scorer"].kernels = lambda _a, _c, _n: b"\x7fELF"  # type: ignore[attr-defined]
    from padim_edge.runtime import trial

    try:
        engine = cpu_engine(device)(model(folder))
        device.forget()
        trial.check(engine)
        strange = device.count("default stream")
        engine.stages(frames(1))
        engine.figures()
        engine.close()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if strange:
        return "work in the default stream"
    return f"left behind: {device.owned()}" if device.owned() else ""


def check_mistake(folder: str, mistake: tuple[str, str, str] | None) -> str:
    """`journey` in a child, which may crash."""
    enter(folder)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writing, journey(folder, mistake).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        outcome = stream.read().decode()
    status = os.waitpid(child, 0)[1]
    return outcome or (f"status {status}" if status else "")


@pytest.fixture(scope="module")
def fresh(folder: str) -> Iterator[ProcessPoolExecutor]:
    """An interpreter with pycuda that never opened an engine, so that it can be forked."""
    with interpreter(fake_gpu.pycuda()) as pool:
        yield pool


def test_without_a_mistake_all_is_well(fresh: ProcessPoolExecutor, folder: str) -> None:
    assert fresh.submit(check_mistake, folder, None).result(timeout=120) == ""


@pytest.mark.parametrize("name", SABOTAGE)
def test_a_mistake_is_seen(fresh: ProcessPoolExecutor, folder: str, name: str) -> None:
    assert fresh.submit(check_mistake, folder, SABOTAGE[name]).result(timeout=120)


def no_device(folder: str) -> str:
    device = enter(folder)
    device.set("devices", 0)
    try:
        return check_mistake(folder, None)
    finally:
        device.set("devices", 1)


def test_a_driver_without_a_device_is_told(fresh: ProcessPoolExecutor, folder: str) -> None:
    outcome = fresh.submit(no_device, folder).result(timeout=120)
    assert outcome.startswith("PadimEdgeError: CUDA does not start here: cuInit failed: no CUDA")


# --- without pycuda -----------------------------------------------------------------------------


@pytest.fixture
def without_pycuda(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    monkeypatch.setitem(sys.modules, "pycuda", None)
    monkeypatch.delitem(sys.modules, "padim_edge.runtime.nvidia.device", raising=False)

    def load() -> None:
        import padim_edge.runtime.nvidia.device  # noqa: F401

    return load


def test_missing_on_x86(
    without_pycuda: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    with pytest.raises(MissingDependencyError, match=r"pycuda.*pip install 'padim-edge\[gpu\]'"):
        without_pycuda()


def test_missing_on_jetson(
    without_pycuda: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(PadimEdgeError, match=r"run  PATH=/usr/local/cuda/bin:\$PATH pip install"):
        without_pycuda()


# --- compiling the kernels ----------------------------------------------------------------------


@pytest.fixture
def plans(tmp_path: Path) -> PlanCache:
    return PlanCache(tmp_path / "plans")


def counting(name: str, calls: list[str], code: bytes = b"code") -> compiler.Compiler:
    def run(source: str, architecture: str) -> bytes:
        assert "mahalanobis_float16_8" not in source  # made by a macro: it is the source itself
        assert 'extern "C" __global__' in source
        calls.append(architecture)
        return code

    return compiler.Compiler(name, run)


def test_code_is_compiled_once_per_source_architecture_and_compiler(
    plans: PlanCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    use = ["a compiler 1.0"]
    monkeypatch.setattr(compiler, "compilers", lambda _newest: [counting(use[0], calls)])
    for _ in range(2):
        assert compiler.kernels("sm_87", plans) == b"code"
    assert calls == ["sm_87"]
    compiler.kernels("sm_110", plans)
    assert calls == ["sm_87", "sm_110"]
    use[0] = "a compiler 1.1"
    compiler.kernels("sm_87", plans)
    assert len(calls) == 3
    kept = sorted(plans.folder.glob("*.cubin"))
    assert len(kept) == 2
    assert plans.folder.stat().st_mode & 0o777 == 0o700
    for file in kept:
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert compiler.kernels("sm_87", plans) == b"code"
    assert len(calls) == 4


def failing(reason: str) -> compiler.Compiler:
    def run(source: str, architecture: str) -> bytes:
        raise PadimEdgeError(reason)

    return compiler.Compiler("an old one", run)


def test_the_next_compiler_is_asked_when_one_fails(
    plans: PlanCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = [failing("sm_110 is unknown"), counting("a new one", [])]
    monkeypatch.setattr(compiler, "compilers", lambda _newest: both)
    assert compiler.kernels("sm_110", plans) == b"code"
    del both[1]
    (plans.folder / next(plans.folder.glob("*.cubin"))).unlink()
    with pytest.raises(PadimEdgeError, match="for sm_110: an old one: sm_110 is unknown"):
        compiler.kernels("sm_110", plans)
    both.clear()
    with pytest.raises(PadimEdgeError, match=r"needs NVRTC or nvcc, .* run  sudo apt install"):
        compiler.kernels("sm_110", plans)


def check_nvrtc(folder: str, plans: str) -> str:
    """Compile with the NVRTC of an unpacked wheel; the reason if another one is found first."""
    sys.path[:] = [folder]
    compiler.CUDA = Path(folder) / "no toolkit"
    found = compiler._find_nvrtc()
    assert found is not None
    if folder not in found._name:
        return f"{found._name} is where the loader looks"
    nvrtc = compiler._nvrtc(found)
    assert nvrtc.name == "NVRTC 12.9"
    compiler.compilers = lambda _newest: iter([nvrtc])
    cache = PlanCache(Path(plans))
    assert compiler.kernels("sm_87", cache)[:4] == b"\x7fELF"
    with pytest.raises(PadimEdgeError, match=r"do not compile for sm_1: NVRTC 12\.9: .*gpu-arch"):
        compiler.kernels("sm_1", cache)
    with pytest.raises(PadimEdgeError, match=r"error: .*undeclared"):
        nvrtc.compile("__global__ void f() { undeclared = 1; }", "sm_87")
    return ""


def test_nvrtc_from_a_wheel_compiles(tmp_path: Path) -> None:
    folder = str(unpacked("nvidia-cuda-nvrtc-cu12==12.9.86"))
    with interpreter() as pool:  # this one may have torch's NVRTC loaded
        reason = pool.submit(check_nvrtc, folder, str(tmp_path / "plans")).result(timeout=300)
    if reason:
        pytest.skip(reason)


def script(folder: Path, text: str) -> str:
    path = folder / "nvcc"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_nvcc_is_called_with_the_architecture(tmp_path: Path) -> None:
    found = compiler._nvcc(
        script(
            tmp_path,
            'if [ "$1" = --version ]; then echo "release 12.6, V12.6.68"; exit; fi\n'
            'test "$1 $2 $3" = "-cubin -arch=sm_87 -o" || exit 3\n'
            'cat "$5" > "$4"; echo " by $1" >> "$4"',
        )
    )
    assert found.name == "nvcc V12.6.68"
    assert found.compile("source", "sm_87") == b"source by -cubin\n"


def test_nvcc_that_fails_is_told_in_one_line(tmp_path: Path) -> None:
    found = compiler._nvcc(script(tmp_path, "echo noise; echo 'x.cu(1): error: no' >&2; exit 2"))
    with pytest.raises(PadimEdgeError) as caught:
        found.compile("source", "sm_87")
    assert str(caught.value) == "it ends with status 2: x.cu(1): error: no"
