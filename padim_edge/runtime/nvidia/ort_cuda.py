"""Engine `ort-cuda`: the backbone in ONNX Runtime's CUDA provider, then our CUDA kernels.

ONNX Runtime works on our stream and in our memory, so nothing is copied between the two. It must
not go on without the GPU: its habit of falling back to the CPU would give right scores at a
fraction of the speed, and nobody would know.

This file has not run on a GPU yet: it was tested with ONNX Runtime's CPU provider in place of the
CUDA one, on the same calls.
"""

from __future__ import annotations

import contextlib
import io
import platform
from typing import Any

import numpy as np

from padim_edge.errors import MissingDependencyError, PadimEdgeError, first_line
from padim_edge.model.file import Model
from padim_edge.progress import Progress
from padim_edge.runtime.nvidia.graphs import backbone_graph

# PyPI's wheels for aarch64 are built for servers, with CUDA 13 and no code for Orin or Thor.
_NOT_FOR_JETSON = "onnxruntime-gpu is on PyPI for no Jetson: choose --engine trt"

try:
    import onnxruntime
except ImportError as error:
    if platform.machine() == "aarch64":
        raise PadimEdgeError(_NOT_FOR_JETSON) from error
    raise MissingDependencyError(
        "running a graph on ONNX Runtime's CUDA provider", "onnxruntime-gpu", "gpu"
    ) from error

# Not before onnxruntime: where pycuda is missing too, one extra brings both.
from padim_edge.runtime.nvidia.device import Device  # noqa: E402
from padim_edge.runtime.nvidia.engine import GpuEngine, Step  # noqa: E402

PROVIDER = "CUDAExecutionProvider"
VERSION = onnxruntime.__version__
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def start_session(graph: bytes, device: Device) -> Any:
    """A session on the GPU, all of it, on the stream of a device.

    Raises:
        PadimEdgeError: the provider is not in this ONNX Runtime, does not start, or leaves a
            node to the CPU.
    """
    if PROVIDER not in onnxruntime.get_available_providers():
        raise PadimEdgeError(
            f"onnxruntime {onnxruntime.__version__} is installed without {PROVIDER}: "
            f"{_fix(device.cuda)}"
        )
    complaint = _preload()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    settings = {
        "device_id": "0",
        "user_compute_stream": str(device.stream),
        # float32 is what the threshold was made with; who wants speed has float16.
        "use_tf32": "0",
        # The default tries every algorithm again for each new size of a batch.
        "cudnn_conv_algo_search": "HEURISTIC",
    }
    try:
        session = onnxruntime.InferenceSession(
            graph,
            options,
            providers=[(PROVIDER, settings)],
            enable_fallback=0,  # which would print, retry on the CPU, and hide the reason
        )
    except Exception as error:  # onnxruntime's errors share no base but Exception
        raise PadimEdgeError(
            f"ONNX Runtime cannot run the backbone on CUDA: {first_line(error)}"
        ) from error
    started = session.get_providers()[0]
    if started != PROVIDER:
        raise PadimEdgeError(
            f"onnxruntime {onnxruntime.__version__} lists {PROVIDER} and starts {started}: "
            f"its CUDA or cuDNN is missing or of another version{complaint}; "
            f"{_fix(device.cuda)}"
        )
    return session


class OrtCudaEngine(GpuEngine):
    """ONNX Runtime's CUDA provider and our kernels.

    Args:
        model: a detector.
        threads: not used: nothing is computed on the CPU.
        progress: not used: nothing takes long.

    Raises:
        PadimEdgeError: CUDA or the provider does not start here, or refuses the model.
    """

    name = "ort-cuda"
    # Its session is not recorded: it may allocate and wait as it goes.
    _memory = "cuda"  # where bound tensors are

    def __init__(
        self,
        model: Model,
        threads: int = 0,  # noqa: ARG002  # these two as for every engine
        progress: Progress | None = None,  # noqa: ARG002
    ) -> None:
        self._session: Any = None
        self._bindings: dict[int, Any] = {}
        self._outputs: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
        self._addresses: dict[str, int] = {}
        self._options = onnxruntime.RunOptions()
        # The one wait, at the end of a batch, is ours.
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        super().__init__(model)

    def _open(self, model: Model) -> list[tuple[str, Step]]:
        self._session = self._start(backbone_graph(model))
        for output in self._session.get_outputs():
            if output.type not in _TYPES:
                raise PadimEdgeError(f"the backbone gives {output.name} as {output.type}")
            self._outputs[output.name] = (
                tuple(output.shape[1:]),
                np.dtype(_TYPES[output.type]),
            )
        self._addresses, stages = self._score(model, self._outputs)
        kind = next(iter(self._outputs.values()))[1]
        self._description = f"ONNX Runtime {VERSION} CUDA and CUDA kernels, {kind} maps,"
        return [("backbone", self._run), *stages]

    def _start(self, graph: bytes) -> Any:
        return start_session(graph, self._device)

    def _run(self, count: int) -> None:
        if count not in self._bindings:
            self._bindings[count] = self._bind(count)
        try:
            self._session.run_with_iobinding(self._bindings[count], self._options)
        except Exception as error:
            raise PadimEdgeError(f"ONNX Runtime fails: {first_line(error)}") from error

    def _bind(self, count: int) -> Any:
        """Say where input and outputs are, for a batch of ``count`` frames."""
        binding = self._session.io_binding()
        shape = (count, *self._image_shape)
        place = (self._memory, 0)
        binding.bind_input("image", *place, np.uint8, shape, self._images.address)
        for name, (sides, dtype) in self._outputs.items():
            address = self._addresses[name]
            binding.bind_output(name, *place, dtype.type, (count, *sides), address)
        return binding

    def _release(self) -> None:
        self._bindings = {}
        self._session = None


def _preload() -> str:
    """Load CUDA and cuDNN from NVIDIA's wheels, where they are; in brackets, what is missing.

    ONNX Runtime prints that on stdout, where results of ours may be going, and it is often no
    trouble: the provider finds the system's libraries by itself.
    """
    said = io.StringIO()
    if hasattr(onnxruntime, "preload_dlls"):
        with contextlib.redirect_stdout(said):
            onnxruntime.preload_dlls()
    lines = [line for line in said.getvalue().splitlines() if line.startswith("Failed to load")]
    return f" ({lines[-1]})" if lines else ""


def _fix(cuda: int) -> str:
    """What to do to have an ONNX Runtime whose CUDA provider starts.

    Args:
        cuda: CUDA major version of the driver. ONNX Runtime up to 1.26 is built for CUDA 12, from
            1.27 on for 13; its extras bring the libraries of its own CUDA.
    """
    if platform.machine() == "aarch64":
        return _NOT_FOR_JETSON
    limit = "<1.27" if cuda < 13 else ""
    # Both, because they share a folder: to remove one takes files from the other.
    return (
        "run  pip uninstall -y onnxruntime onnxruntime-gpu; "
        f"pip install 'onnxruntime-gpu[cuda,cudnn]{limit}'"
    )
