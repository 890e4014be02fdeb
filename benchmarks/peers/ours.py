"""padim-edge itself, in an environment that holds what a device needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from cameras import FromFrames
from numpy.typing import NDArray

from padim_edge import Detector
from padim_edge.fit.fit import Fitted, fit_detector
from padim_edge.fit.settings import Settings
from padim_edge.images.find import find_images
from padim_edge.images.preprocess import Preprocess


class PadimEdge:
    """A padim.onnx in one of our engines."""

    def __init__(self, folder: Path, file: str, engine: str) -> None:
        detector = Detector(folder / file, engine)
        self._engine = detector.engine
        self._size = detector.backbone_info.image_size
        self._preprocess = detector.detector_info.preprocess

    def prepare(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The images themselves if they are of the graph's size: it takes uint8."""
        if images.shape[1:3] == self._size:
            return images
        return np.stack([self._preprocess(image) for image in images])

    def infer(self, prepared: NDArray[np.uint8]) -> tuple[NDArray[Any], NDArray[Any]]:
        """See `worker.Contender`."""
        return self._engine.infer(prepared)

    def stages(self, prepared: NDArray[np.uint8]) -> dict[str, float]:
        """Each stage run alone."""
        return self._engine.stages(prepared)


class Camera(FromFrames):
    """`padim_edge.Detector`, from the camera's pixels."""

    def __init__(self, folder: Path, file: str, engine: str) -> None:
        self._detector = Detector(folder / file, engine, pixel_format="bgr")

    def decide(self, frame: NDArray[np.uint8]) -> tuple[float, NDArray[np.float32]]:
        """See `FromFrames`."""
        result = self._detector(frame)
        return result.score, result.score_map


def fit(folder: Path) -> dict[str, Any]:
    """Fit padim.onnx, float16 constants, on the folder's images."""
    done = _fit(folder, "embedding.onnx", "padim.onnx", "float16")
    return {"features": done.seconds_features, "statistics": done.seconds_statistics}


def export(folder: Path) -> None:
    """The same with int8 constants, and with a float16 backbone."""
    _fit(folder, "embedding.onnx", "padim-int8.onnx", "int8")
    _fit(folder, "embedding-fp16.onnx", "padim-fp16.onnx", "float16")


def _fit(folder: Path, embedding: str, file: str, constants: str) -> Fitted:
    settings = Settings(Preprocess.whole((224, 224)), constants=constants)
    images = find_images(folder / "images")
    return fit_detector(folder / embedding, images, folder / file, settings)
