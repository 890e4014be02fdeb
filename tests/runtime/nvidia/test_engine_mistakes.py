"""The tests of `test_engine` can fail: mistakes put into the product are seen.

As there, in an interpreter where libcuda is `native/fake_cuda.cpp`.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import fake_gpu
import numpy as np
import pytest
from fake_gpu import cpu_engine, enter, frames, model
from wheels import interpreter

from padim_edge.runtime import nvidia

SABOTAGE = {
    "no such function": ("device", "memcpy_htod_async(staging", "memcpy_h2d_async(staging"),
    "no such method": ("device", "self._context.push()", "self._context.push_current()"),
    "no such static method": ("device", "Context.pop()", "Context.pop_current()"),
    "no such enumeration": ("device", "Stream(_NON_BLOCKING)", "Stream(driver.stream_flags.ONE)"),
    "no such attribute": ("device", "attribute.INTEGRATED", "attribute.IS_INTEGRATED"),
    "no such keyword": ("device", "mem_flags=flags", "flags=flags"),
    "no such keyword of a launch": ("device", "shared_size=launch", "shared=launch"),
    "a wrong order of arguments": ("device", "(_COPIES", "(str(_COPIES)"),
    "an address as text": ("device", "(staging.address, staging.host", "(hex(0), staging.host"),
    "a method of another event": ("device", "later.time_since(", "later.elapsed_time("),
    "no wait": ("engine", "self._device.synchronize()\n                scores", "scores"),
    "no upload": ("device", "if not staging.mapped:\n            driver.memcpy_htod", "if 0: x"),
    "a context left behind": (
        "device",
        "                driver.Context.pop()",
        "                pass",
    ),
    "a context nobody made current": ("device", "self._context.push()", "pass"),
    "memory not freed": ("device", "self._memory.popitem()[1]()", "self._memory.popitem()"),
    "memory too small": ("device", "mem_alloc(max(nbytes, 1))", "mem_alloc(max(nbytes // 2, 1))"),
    "modules kept": ("device", "self._modules.clear()", "driver.kept = self._modules"),
    "the stream kept": ("device", "self._stream = None\n\n\ndef", "pass\n\n\ndef"),
    "a place filled while it is read": ("preparer", "self._device.wait(self.free)", "pass"),
    "a place that is never free": ("preparer", "self._device.mark(place.free)", "pass"),
    "a place too small": ("preparer", "staging((nbytes,)", "staging((nbytes // 2,)"),
    "a frame not uploaded": ("preparer", "to_device(staging, preparation.nbytes)", "events(1)"),
    "all frames in one image": ("preparer", "index * self._image_bytes", "0"),
    "rows of another length": ("preparer", "pitch += -pitch", "pitch -= -pitch"),
    "the default stream": (
        "device",
        "staging.host[:count], self._stream)",
        "staging.host[:count])",
    ),
}

# In the other way to the driver.
BINDINGS = {
    "no such call": ('"cuMemcpyHtoDAsync"', '"cuMemcpyH2DAsync"'),
    "too few arguments": ('"cuMemHostAlloc", nbytes, flags', '"cuMemHostAlloc", nbytes'),
    "arguments in another order": ("target, _contiguous(source)", "_contiguous(source), target"),
    "no such attribute": ("CU_DEVICE_ATTRIBUTE_INTEGRATED", "CU_DEVICE_ATTRIBUTE_IS_INTEGRATED"),
    "the default stream": ("argument, len(argument))", "argument, len(argument)); stream = 0"),
    "an argument that is gone": ("ctypes.addressof(content), 2", "8, 2"),
    "a size that is gone": ("ctypes.c_size_t(len(argument))", "ctypes.c_size_t(0)"),
    "less shared memory": ("            shared_size,", "            max(shared_size, 2**20),"),
    "nothing is freed": ("            _call(self._free, handle)", "            pass"),
    "freed without a context": ('_call("cuCtxPushCurrent", self._context)', "pass"),
    "a context that stays": ('this thread."""\n        _call("cuCtxPopCurrent")', 'none."""'),
    "memory too small": ("int(np.prod(shape)) * dtype.itemsize", "int(np.prod(shape[1:]))"),
    "an array of another type": ('"typestr": dtype.str', '"typestr": "|i1"'),
}  # fmt: skip


def journey(folder: str, mistake: tuple[str, str, str] | None) -> str:
    """A batch from opening to closing with a mistake in the product; what came of it."""
    device = enter(folder)
    sources = Path(nvidia.__file__).parent
    other = () if importlib.util.find_spec("pycuda") else ("cuda_bindings", "driver")
    for name in (*other, "device", "scorer", "preparer", "engine", "ort_cuda"):
        source = (sources / f"{name}.py").read_text()
        if mistake and mistake[0] == name:
            assert mistake[1] in source, "the product was changed: change the sabotage"
            source = source.replace(*mistake[1:])
        module = ModuleType(f"{nvidia.__name__}.{name}")
        module.__package__ = nvidia.__name__
        sys.modules[module.__name__] = module
        setattr(nvidia, name, module)
        exec(compile(source, f"{name}.py", "exec"), module.__dict__)
    for name in ("scorer", "preparer"):
        sys.modules[f"{nvidia.__name__}.{name}"].kernels = lambda *_: b"\x7fELF"  # type: ignore[attr-defined]
    from padim_edge.runtime import trial

    try:
        engine = cpu_engine(device)(model(folder))
        device.forget()
        trial.check(engine)
        strange = device.count("default stream")
        check_frames(engine)
        engine.stages(frames(1))
        engine.figures()
        engine.close()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if strange:
        return "work in the default stream"
    return f"left behind: {device.owned()}" if device.owned() else ""


def check_frames(engine: Any) -> None:
    """Frames that the device prepares, of two sizes and more of them than places to be in."""
    from padim_edge.images.frames import Frame
    from padim_edge.images.preprocess import Preprocess

    preprocess = Preprocess.whole((32, 32))
    sizes = [(40, 50)] * 5 + [(80, 70)] * 5
    shots = [np.random.default_rng(i).integers(0, 256, (*size, 3), dtype=np.uint8)
             for i, size in enumerate(sizes)]  # fmt: skip
    _, maps = engine.infer_frames([Frame(shot) for shot in shots])
    _, wanted = engine.infer(np.stack([preprocess(shot) for shot in shots]))
    np.testing.assert_array_equal(maps, wanted)


def check_mistake(folder: str, mistake: tuple[str, str, str] | None) -> str:
    """`journey` in a child, which may crash, or go round for ever in memory that it has spoilt."""
    enter(folder)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(100)  # ends it, and so is seen
        try:
            os.write(writing, journey(folder, mistake).encode())
            os._exit(0)
        finally:
            os._exit(1)
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


@pytest.fixture(scope="module")
def bindings(folder: str) -> Iterator[ProcessPoolExecutor]:
    """The same with cuda-bindings."""
    with interpreter(*fake_gpu.package("cuda-bindings")) as pool:
        yield pool


@pytest.mark.parametrize("package", ["fresh", "bindings"])
def test_without_a_mistake_all_is_well(
    request: pytest.FixtureRequest, folder: str, package: str
) -> None:
    pool = request.getfixturevalue(package)
    assert pool.submit(check_mistake, folder, None).result(timeout=600) == ""


@pytest.mark.parametrize("name", SABOTAGE)
def test_a_mistake_is_seen(fresh: ProcessPoolExecutor, folder: str, name: str) -> None:
    assert fresh.submit(check_mistake, folder, SABOTAGE[name]).result(timeout=600)


@pytest.mark.parametrize("name", BINDINGS)
def test_a_mistake_in_the_other_package_is_seen(
    bindings: ProcessPoolExecutor, folder: str, name: str
) -> None:
    mistake = ("cuda_bindings", *BINDINGS[name])
    assert bindings.submit(check_mistake, folder, mistake).result(timeout=600)


def no_device(folder: str) -> str:
    device = enter(folder)
    device.set("devices", 0)
    try:
        return check_mistake(folder, None)
    finally:
        device.set("devices", 1)


def test_a_driver_without_a_device_is_told(fresh: ProcessPoolExecutor, folder: str) -> None:
    outcome = fresh.submit(no_device, folder).result(timeout=600)
    assert outcome.startswith("PadimEdgeError: CUDA does not start here: cuInit failed: no CUDA")
