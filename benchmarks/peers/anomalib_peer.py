"""anomalib's PaDiM, with the backbone's weights and the channels that everybody uses here.

Fitted by its own modules, without Lightning's trainer, whose overhead is not the method's; read
and resized by its own transform. Normalisation of scores to 0..1 is off, so that maps compare.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from anomalib.deploy import CompressionType, OpenVINOInferencer, TorchInferencer
from anomalib.models import Padim
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from cameras import FromFrames
from numpy.typing import NDArray
from PIL import Image
from runtimes import Onnx
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import Compose, Normalize, Resize

BATCH = 8


def build(folder: Path) -> Any:
    """An unfitted model for what the folder's config.json says."""
    config = json.loads((folder / "config.json").read_text())
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    transform = Compose([Resize((224, 224), antialias=True), Normalize(mean=mean, std=std)])
    model = Padim(
        backbone=config["backbone"],
        pre_trained=False,
        n_features=len(config["channels"]),
        pre_processor=PreProcessor(transform),
        post_processor=PostProcessor(enable_normalization=False),
        evaluator=False,
        visualizer=False,
    )
    weights = torch.load(folder / "weights.pth", weights_only=True)
    missing, _ = model.model.feature_extractor.feature_extractor.load_state_dict(
        weights, strict=False
    )
    if missing:
        raise RuntimeError(f"weights without {missing[:3]}")
    model.model.idx = torch.tensor(config["channels"])
    return model


def fit(folder: Path) -> dict[str, Any]:
    """Fit on the folder's images."""
    model = build(folder)
    model.model.train()
    model.model.feature_extractor.eval()
    start = time.perf_counter()
    files = sorted((folder / "images").iterdir())
    for place in range(0, len(files), BATCH):
        images = [np.asarray(Image.open(file).convert("RGB")) for file in files[place:][:BATCH]]
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
        model.model(model.pre_processor.transform(pixels))
    extracted = time.perf_counter()
    model.model.fit()
    finished = time.perf_counter()
    torch.save(model.state_dict(), folder / "anomalib.pt")
    return {"features": extracted - start, "statistics": finished - extracted}


def load(folder: Path) -> Any:
    """The fitted model."""
    model = build(folder)
    state = torch.load(folder / "anomalib.pt", weights_only=True, mmap=True)
    model.load_state_dict(state, assign=True)
    return model.eval()


def export(folder: Path) -> dict[str, Any]:
    """Its ONNX and OpenVINO files; what cannot be made is reported, the rest is made.

    A file takes images of one size, which it resizes: those of "onnx@1920x1080" are of that width
    and height.
    """
    config = json.loads((folder / "config.json").read_text())
    model = load(folder)
    failures = {}
    makers = {
        "onnx": lambda to, size: model.to_onnx(to, input_size=size),
        "openvino": lambda to, size: model.to_openvino(to, input_size=size),
        "openvino-fp16": lambda to, size: model.to_openvino(
            to, input_size=size, compression_type=CompressionType.FP16
        ),
        "openvino-int8": lambda to, size: model.to_openvino(
            to, input_size=size, compression_type=CompressionType.INT8
        ),
        "openvino-int8-ptq": lambda to, size: model.to_openvino(
            to,
            input_size=size,
            compression_type=CompressionType.INT8_PTQ,
            datamodule=Calibration(folder, size),
        ),
    }
    for name in config["anomalib_exports"]:
        kind, _, frame = name.partition("@")
        size = tuple(map(int, frame.split("x")))[::-1] if frame else tuple(config["given_size"])
        try:
            makers[kind](folder / f"anomalib-{name}", size)
        except Exception as error:  # its row says why
            failures[name] = f"{type(error).__name__}: {error}"
    return {"failures": failures}


class Calibration:
    """What its quantiser asks of a data module: the folder's images, one by one.

    They are enlarged to the size that the file will take.
    """

    train_batch_size = 1

    def __init__(self, folder: Path, size: tuple[int, int]) -> None:
        self._images = np.load(folder / "images.npy")
        self._size = size

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, place: int) -> dict[str, torch.Tensor]:
        pixels = torch.from_numpy(self._images[place]).permute(2, 0, 1)[None] / 255
        return {"image": torch.nn.functional.interpolate(pixels, self._size)[0]}

    def setup(self, stage: str) -> None:
        """Nothing is left to do."""

    def val_dataloader(self) -> Any:
        """Batches {"image": [1, 3, H, W]}, float32 from 0 to 1."""
        return DataLoader(self, batch_size=1)  # type: ignore[arg-type]


class Torch:
    """Its torch model, as its TorchInferencer calls it."""

    def __init__(self, folder: Path) -> None:
        self._model = load(folder)

    def prepare(self, images: NDArray[np.uint8]) -> torch.Tensor:
        """See `worker.Contender`."""
        return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255

    @torch.inference_mode()
    def infer(self, prepared: torch.Tensor) -> tuple[NDArray[Any], NDArray[Any]]:
        """See `worker.Contender`."""
        result = self._model(prepared)
        return result.pred_score.numpy(), result.anomaly_map.numpy()

    @torch.inference_mode()
    def stages(self, prepared: torch.Tensor) -> dict[str, float]:
        """Its own functions one after the other."""
        model = self._model.model
        maps: Any = model.anomaly_map_generator
        times = [time.perf_counter()]

        def lap(value: Any) -> Any:
            times.append(time.perf_counter())
            return value

        pixels = lap(self._model.pre_processor(prepared))
        features = lap(model.feature_extractor(pixels))
        embedding = lap(model.generate_embedding(features))
        statistics = [model.gaussian.mean, model.gaussian.inv_covariance]
        distances = lap(maps.compute_distance(embedding, statistics))
        lap(maps.smooth_anomaly_map(maps.up_sample(distances, pixels.shape[-2:])))
        names = ["preprocess", "backbone", "embedding", "distances", "smoothing"]
        return dict(zip(names, np.diff(times).tolist(), strict=True))


def _rgb(frame: NDArray[np.uint8]) -> Any:
    """What its inferencers take: they know no BGR."""
    return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


class _Inferencer(TorchInferencer):  # type: ignore[misc]  # anomalib is not installed here
    """Its own, without a pickled file."""

    def load_model(self, path: Path) -> Any:
        return load(path)


class CameraTorch(FromFrames):
    """Its TorchInferencer; autograd, which that leaves on, is off."""

    def __init__(self, folder: Path) -> None:
        self._inferencer = _Inferencer(folder, "cpu")

    @torch.inference_mode()
    def decide(self, frame: NDArray[np.uint8]) -> tuple[Any, Any]:
        """See `FromFrames`."""
        result = self._inferencer.predict(_rgb(frame))
        return result.pred_score.numpy(), result.anomaly_map.numpy()[0]


class CameraOpenVino(FromFrames):
    """Its OpenVINOInferencer; precision as for `runtimes.OpenVino`."""

    def __init__(self, folder: Path, file: str, precision: str) -> None:
        config = {} if precision == "default" else {"INFERENCE_PRECISION_HINT": precision}
        os.chdir(folder)  # it leaves a cache of compiled models where it is
        self._inferencer = OpenVINOInferencer(folder / file, "CPU", config)

    def decide(self, frame: NDArray[np.uint8]) -> tuple[Any, Any]:
        """See `FromFrames`."""
        result = self._inferencer.predict(_rgb(frame))
        return result.pred_score, result.anomaly_map[0]


class CameraOnnx(FromFrames):
    """Its ONNX file behind the preprocessing of its OpenVINOInferencer: for ONNX it ships none."""

    def __init__(self, folder: Path, file: str) -> None:
        self._file = Onnx(folder, file, "plain")

    def decide(self, frame: NDArray[np.uint8]) -> tuple[Any, Any]:
        """See `FromFrames`."""
        score, maps = self._file.infer(OpenVINOInferencer.pre_process(_rgb(frame)))
        return score, maps[0]
