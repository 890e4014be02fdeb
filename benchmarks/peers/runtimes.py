"""Files of anybody in the plain runtimes: float32 [N, 3, H, W] in, whatever they give out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from cameras import FromFrames
from numpy.typing import NDArray

MEAN = np.array([0.485, 0.456, 0.406], np.float32)[:, None, None]
STD = np.array([0.229, 0.224, 0.225], np.float32)[:, None, None]
MAPS = ("score_map", "anomaly_map", "output_1")
SCORES = ("score", "pred_score", "output_0")


def as_float(images: NDArray[np.uint8], normalised: bool) -> NDArray[np.float32]:
    """uint8 [N, H, W, 3] as float32 [N, 3, H, W] from 0 to 1, or by ImageNet's mean and std."""
    pixels = images.transpose(0, 3, 1, 2).astype(np.float32) / 255
    return np.ascontiguousarray((pixels - MEAN) / STD if normalised else pixels)


class _File:
    """A file that takes float images ("plain", or "normalised" by the caller) or "uint8"."""

    def __init__(self, takes: str) -> None:
        self._takes = takes

    def prepare(self, images: NDArray[np.uint8]) -> NDArray[Any]:
        """See `worker.Contender`."""
        return images if self._takes == "uint8" else as_float(images, self._takes == "normalised")

    def stages(self, prepared: NDArray[Any]) -> dict[str, float]:
        """None: the file is one graph to us."""
        del prepared
        return {}

    def _pick(self, outputs: dict[str, Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Score and map among the outputs; for a bare backbone two outputs that mean nothing."""
        values = list(outputs.values())
        score = next((outputs[name] for name in SCORES if name in outputs), values[0])
        return score, next((outputs[name] for name in MAPS if name in outputs), values[-1])


class Onnx(_File):
    """An ONNX file in ONNX Runtime on the CPU, with its defaults."""

    def __init__(self, folder: Path, file: str, takes: str) -> None:
        super().__init__(takes)
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            folder / file, options, providers=["CPUExecutionProvider"]
        )
        self._input = self._session.get_inputs()[0].name
        self.shape = self._session.get_inputs()[0].shape
        self._names = [output.name for output in self._session.get_outputs()]

    def infer(self, prepared: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """See `worker.Contender`."""
        values = self._session.run(None, {self._input: prepared})
        return self._pick(dict(zip(self._names, values, strict=True)))


class OpenCv(FromFrames):
    """What a user would write around padim-edge's file: OpenCV, and plain ONNX Runtime."""

    def __init__(self, folder: Path, file: str) -> None:
        import cv2

        self._cv2 = cv2
        self._file = Onnx(folder, file, "uint8")
        _, height, width, _ = self._file.shape
        self._size = width, height

    def decide(self, frame: NDArray[np.uint8]) -> tuple[NDArray[Any], NDArray[Any]]:
        """See `FromFrames`."""
        resized = self._cv2.resize(frame, self._size, interpolation=self._cv2.INTER_AREA)
        rgb = self._cv2.cvtColor(resized, self._cv2.COLOR_BGR2RGB)
        return self._file.infer(rgb[None])


class OpenVino(_File):
    """A file in OpenVINO on the CPU; precision "default" leaves the choice to OpenVINO.

    On a CPU with bfloat16 units (AVX512_BF16, AMX) that choice is bfloat16, without a word.
    """

    def __init__(self, folder: Path, file: str, takes: str, precision: str) -> None:
        super().__init__(takes)
        # Importing OpenVINO sends a message to its makers; nobody waits for that here.
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
        import openvino

        hint = {} if precision == "default" else {"INFERENCE_PRECISION_HINT": precision}
        self._model = openvino.Core().compile_model(str(folder / file), "CPU", hint)
        self._names = [next(iter(output.names)) for output in self._model.outputs]

    def infer(self, prepared: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """See `worker.Contender`."""
        values = self._model(prepared).to_tuple()
        return self._pick(dict(zip(self._names, values, strict=True)))
