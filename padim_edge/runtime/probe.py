"""One thing tried out in a process of its own, for ``padim-edge doctor``.

Native libraries may crash or hang on a machine that they do not suit. So each is tried in a
child process, which answers in one line of JSON; the parent (`measure.doctor`) takes silence,
a signal or a timeout for an answer too.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from padim_edge.errors import MissingDependencyError, PadimEdgeError, ProcessorError
from padim_edge.runtime.engines import ENGINES, open_engine


@dataclass(frozen=True)
class Answer:
    """What a probe found.

    Attributes:
        status: "ok", "missing", "broken", or "absent" for what this processor cannot do.
        detail: one line: version and what it can do, or what is wrong.
        fix: a command, where the error itself names one.
        items: names to go on with: providers, engines.
    """

    status: str
    detail: str
    fix: str = ""
    items: tuple[str, ...] = ()


def main() -> None:
    """Run the probe that the arguments name, and write its answer to stdout."""
    # Libraries write to descriptor 1 as they please: let them, and keep the true one for the
    # answer.
    with os.fdopen(os.dup(1), "w") as stdout:
        os.dup2(2, 1)
        name, *arguments = sys.argv[1:]
        json.dump(asdict(tried(PROBES[name], *arguments)), stdout)


def tried(probe: Callable[..., Answer], *arguments: str) -> Answer:
    """The probe's answer, or its error as one."""
    try:
        return probe(*arguments)
    except Exception as error:
        missing = isinstance(error, MissingDependencyError | ModuleNotFoundError) or isinstance(
            error.__cause__, ModuleNotFoundError
        )
        status = (
            "absent" if isinstance(error, ProcessorError) else "missing" if missing else "broken"
        )
        text = " ".join(str(error).split())
        if not isinstance(error, PadimEdgeError):
            text = f"{type(error).__name__}: {text}"
        fix = remedy(str(error)) if isinstance(error, PadimEdgeError) else ""
        return Answer(status, text, fix)


def remedy(text: str) -> str:
    """The command that one of our errors names as 'run  COMMAND', set off by two spaces.

    One for another machine ('on Jetson run', 'on x86 run') is none.
    """
    machines = {"on Jetson ": "aarch64", "on x86 ": "x86_64"}
    for condition, command in re.findall(r"(on Jetson |on x86 |)run  (.+?)(?:  |$)", text):
        if machines.get(condition, platform.machine()) == platform.machine():
            return str(command)
    return ""


def package(module: str, distribution: str) -> Answer:
    """Whether a Python package can be imported, not just found."""
    try:
        import_module(module)
    except ModuleNotFoundError as error:
        if error.name == module:
            return Answer("missing", "not installed")
        raise
    return Answer("ok", _version(module, distribution))


def _version(module: str, distribution: str) -> str:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(distribution)
    return str(getattr(sys.modules[module], "__version__", "of unknown version"))


def driver() -> Answer:
    """The NVIDIA driver and its GPUs, asked through libcuda itself, which needs no package."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return Answer("missing", f"no libcuda ({error})")

    def ask(function: str, *arguments: Any) -> None:
        code = getattr(cuda, function)(*arguments)
        if code:
            words = ctypes.c_char_p()
            cuda.cuGetErrorString(code, ctypes.byref(words))
            reason = (words.value or b"unknown error").decode(errors="replace")
            raise PadimEdgeError(f"{function}: {reason} ({code})")

    def number(function: str, *arguments: Any) -> int:
        value = ctypes.c_int()
        ask(function, ctypes.byref(value), *arguments)
        return value.value

    ask("cuInit", 0)
    version = number("cuDriverGetVersion")
    devices = []
    for index in range(number("cuDeviceGetCount")):
        device = number("cuDeviceGet", index)
        name = ctypes.create_string_buffer(256)
        ask("cuDeviceGetName", name, len(name), device)
        memory = ctypes.c_size_t()
        ask("cuDeviceTotalMem_v2", ctypes.byref(memory), device)
        # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR.
        major, minor = (number("cuDeviceGetAttribute", which, device) for which in (75, 76))
        devices.append(
            f"{name.value.decode(errors='replace')} (sm_{major}{minor}), "
            f"{memory.value / 2**30:.1f} GiB"
        )
    if not devices:
        raise PadimEdgeError("the driver is there, and no GPU that it can use")
    limit = f"for CUDA up to {version // 1000}.{version % 1000 // 10}"
    return Answer("ok", f"{limit}; {'; '.join(devices)}", items=tuple(devices))


def pycuda() -> Answer:
    """pycuda, or cuda-bindings in its place, and the devices that it reaches."""
    from padim_edge.runtime.nvidia.driver import PACKAGE
    from padim_edge.runtime.nvidia.driver import driver as cuda

    cuda.init()
    count = cuda.Device.count()
    if not count:
        raise PadimEdgeError(f"{PACKAGE} reaches no device")
    # The primary context is the one that every engine shares.
    context = cuda.Device(0).retain_primary_context()
    context.push()
    free, total = cuda.mem_get_info()
    cuda.Context.pop()
    return Answer(
        "ok",
        f"{PACKAGE} is used, {count} device(s), {free / 2**30:.1f} of {total / 2**30:.1f} GiB free",
    )


def kernel_compiler() -> Answer:
    """The compiler that the kernels would take: NVRTC is enough, without nvcc."""
    from padim_edge.runtime.nvidia.compiler import compilers

    for compiler in compilers():
        return Answer("ok", compiler.name)
    return Answer("missing", "neither NVRTC nor nvcc")


def tensorrt() -> Answer:
    """TensorRT, and whether a Builder can be made: it needs the library and a usable GPU."""
    from padim_edge.runtime.nvidia.tensorrt import LIBRARY, create, trt

    try:
        create(trt.Builder)
    except PadimEdgeError as error:
        raise PadimEdgeError(f"{LIBRARY} is installed: {error}") from error
    return Answer("ok", f"{LIBRARY}, a builder can be made")


def onnxruntime() -> Answer:
    """ONNX Runtime and the providers that it lists, each of which is then tried."""
    try:
        import onnxruntime as ort
    except ModuleNotFoundError as error:
        if error.name == "onnxruntime":
            return Answer("missing", "not installed", "pip install 'padim-edge[cpu]'")
        raise
    return Answer("ok", ort.__version__, items=tuple(ort.get_available_providers()))


def provider(name: str) -> Answer:
    """Whether a provider really runs a graph, all of it and with the right result."""
    import numpy as np
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    kernel = np.arange(36, dtype=np.float32).reshape(4, 1, 3, 3) / 36
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "kernel"], ["y"], pads=[1, 1, 1, 1])],
        "trial",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 16, 16])],
        [numpy_helper.from_array(kernel, "kernel")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if name != "CPUExecutionProvider":
        # Otherwise what the provider cannot do goes to the CPU, and all seems well.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    session = ort.InferenceSession(model.SerializeToString(), options, providers=[name])
    if session.get_providers()[0] != name:
        raise PadimEdgeError(f"it is listed, but does not start: {session.get_providers()[0]} does")
    x = np.zeros((1, 1, 16, 16), dtype=np.float32)
    x[0, 0, 8, 8] = 1
    y = session.run(None, {"x": x})[0]
    # The answer to a single bright pixel is the kernel, turned around.
    if not np.allclose(y[0, :, 7:10, 7:10], kernel[:, 0, ::-1, ::-1], atol=1e-2):
        raise PadimEdgeError("it runs a graph, with a wrong result")
    return Answer("ok", "runs a graph")


def engines() -> Answer:
    """The engines that this padim-edge has, the fastest first."""
    return Answer("ok", ", ".join(ENGINES), items=tuple(ENGINES))


def engine(name: str) -> Answer:
    """Whether frames go through an engine, with the right scores."""
    from padim_edge.runtime import trial

    with tempfile.TemporaryDirectory() as folder:
        model = trial.write_model(Path(folder) / "padim.onnx")
        with contextlib.closing(open_engine(name, model)) as opened:
            trial.check(opened)
            return Answer("ok", opened.describe())


PROBES: dict[str, Callable[..., Answer]] = {
    "package": package,
    "driver": driver,
    "kernel_compiler": kernel_compiler,
    "pycuda": pycuda,
    "tensorrt": tensorrt,
    "onnxruntime": onnxruntime,
    "provider": provider,
    "engines": engines,
    "engine": engine,
}

if __name__ == "__main__":
    main()
