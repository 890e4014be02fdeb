"""A bare graph in ONNX Runtime's CUDA provider: arrays of the host in and out, for a fit.

Not executed on a GPU yet: it was tested with the CPU provider in place of the CUDA one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from padim_edge.errors import PadimEdgeError, first_line
from padim_edge.progress import Progress
from padim_edge.runtime.nvidia import ort_cuda
from padim_edge.runtime.nvidia.device import Device


class OrtCudaGraph:
    """An ONNX graph on the GPU, all of it.

    Args:
        data: the graph's bytes.
        threads: not used: nothing is computed on the CPU.
        progress: not used: nothing takes long.

    Raises:
        PadimEdgeError: CUDA or the provider does not start here, or refuses the graph.
    """

    def __init__(
        self,
        data: bytes,
        threads: int = 0,  # noqa: ARG002  # these two as for every graph
        progress: Progress | None = None,  # noqa: ARG002
    ) -> None:
        self._session: Any = None
        self._device = Device()
        try:
            with self._device.current():
                self._session = ort_cuda.start_session(data, self._device)
        except BaseException:
            self._device.close()
            raise

    def run(
        self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str] | None = None
    ) -> list[Any]:
        """Run it for some outputs, or all; the returned arrays belong to the caller."""
        if self._session is None:
            raise PadimEdgeError("the graph is closed")
        names = None if outputs is None else list(outputs)
        try:
            with self._device.current():
                results: list[Any] = self._session.run(names, dict(inputs))
        except PadimEdgeError:
            raise
        except Exception as error:  # onnxruntime's errors share no base but Exception
            raise PadimEdgeError(f"ONNX Runtime fails: {first_line(error)}") from error
        return results

    def describe(self) -> str:
        """Library, version and device."""
        place = f"{self._device.name} ({self._device.architecture})"
        return f"ONNX Runtime {ort_cuda.VERSION} CUDA on {place}"

    def close(self) -> None:
        """Free session and device. Closing twice is harmless."""
        self._session = None
        self._device.close()

    def __enter__(self) -> OrtCudaGraph:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
