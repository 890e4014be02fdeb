"""AnomaVision's PaDiM at our layers and channels, by its own classes.

Its backbone comes from torchvision's cache: `compare.py` sets TORCH_HOME to a folder that holds
the weights everybody uses here. Its files give maps without smoothing; its commands blur them
afterwards, and so does the torch row here.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from anomavision import AnodetDataset
from anomavision.algorithm.padim.padim import Padim
from anomavision.export import ModelExporter
from anomavision.inference.model.wrapper import ModelWrapper
from anomavision.utils import adaptive_gaussian_blur, create_image_transform
from cameras import FromFrames
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms.functional import normalize

BATCH = 8
BACKBONES = {"resnet18": "resnet18", "wide_resnet50_2": "wide_resnet50"}


def fit(folder: Path) -> dict[str, Any]:
    """Fit on the folder's images."""
    config = json.loads((folder / "config.json").read_text())
    model = Padim(
        backbone=BACKBONES[config["backbone"]],
        channel_indices=torch.tensor(config["channels"]),
        layer_indices=[0, 1, 2],
    )
    extract = model.embeddings_extractor.from_dataloader
    seconds = {}

    def timed(*arguments: Any, **options: Any) -> Any:
        start = time.perf_counter()
        embedding = extract(*arguments, **options)
        seconds["features"] = time.perf_counter() - start
        return embedding

    model.embeddings_extractor.from_dataloader = timed
    data = AnodetDataset(str(folder / "images"), resize=(224, 224), crop_size=(224, 224))
    start = time.perf_counter()
    model.fit(DataLoader(data, batch_size=BATCH))
    seconds["statistics"] = time.perf_counter() - start - seconds["features"]
    del model.embeddings_extractor.from_dataloader
    torch.save(model, folder / "anomavision.pt")
    return seconds


def export(folder: Path) -> dict[str, Any]:
    """Its ONNX and OpenVINO files; what cannot be made is reported, the rest is made."""
    logger = logging.getLogger("anomavision-export")
    logger.addHandler(logging.StreamHandler())
    exporter = ModelExporter(folder / "anomavision.pt", folder, logger, "cpu")
    failures = {}
    makers: dict[str, Callable[[], Any]] = {
        "onnx": lambda: exporter.export_onnx((1, 3, 224, 224), "anomavision.onnx"),
        # Traced with one image, as its command does, the batch is fixed under torch's newer
        # exporter; with two it is not.
        "onnx2": lambda: exporter.export_onnx((2, 3, 224, 224), "anomavision-2.onnx"),
        "openvino": lambda: exporter.export_openvino(
            (2, 3, 224, 224), "anomavision-openvino", dynamic_batch=True
        ),
    }
    for name, make in makers.items():
        try:
            made = make()
            if made is None:
                failures[name] = "its exporter gave None; its log says why"
        except Exception as error:  # its row says why
            failures[name] = f"{type(error).__name__}: {error}"
    return {"failures": failures}


class Torch:
    """Its torch model and the blur of its commands."""

    def __init__(self, folder: Path) -> None:
        self._model = torch.load(folder / "anomavision.pt", weights_only=False).eval()

    def prepare(self, images: NDArray[np.uint8]) -> torch.Tensor:
        """See `worker.Contender`."""
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        normalised: torch.Tensor = normalize(pixels, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        return normalised

    @torch.inference_mode()
    def infer(self, prepared: torch.Tensor) -> tuple[NDArray[Any], NDArray[Any]]:
        """See `worker.Contender`."""
        scores, maps = self._model.predict(prepared)
        return scores.numpy(), adaptive_gaussian_blur(maps, kernel_size=33, sigma=4).numpy()

    @torch.inference_mode()
    def stages(self, prepared: torch.Tensor) -> dict[str, float]:
        """Its own functions one after the other."""
        model = self._model
        start = time.perf_counter()
        embedding = model._extract(prepared)
        extracted = time.perf_counter()
        side = round(embedding.shape[1] ** 0.5)
        distances = model.mahalanobisDistance(embedding, side, side)
        measured = time.perf_counter()
        size = prepared.shape[-2:]
        maps = torch.nn.functional.interpolate(distances[:, None], size=size, mode="bilinear")
        adaptive_gaussian_blur(maps[:, 0], kernel_size=33, sigma=4)
        return {
            "backbone": extracted - start,
            "distances": measured - extracted,
            "smoothing": time.perf_counter() - measured,
        }


class Camera(FromFrames):
    """What its `detect` does with a camera's frame, whatever the file."""

    def __init__(self, folder: Path, file: str) -> None:
        self._model = ModelWrapper(str(folder / file), "cpu")
        self._transform = create_image_transform((224, 224), (224, 224))

    def decide(self, frame: NDArray[np.uint8]) -> tuple[Any, Any]:
        """See `FromFrames`."""
        image = Image.fromarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
        scores, maps = self._model.predict(self._transform(image)[None])
        blurred = adaptive_gaussian_blur(maps, kernel_size=33, sigma=4)
        return scores, np.asarray(blurred).reshape(224, 224)
