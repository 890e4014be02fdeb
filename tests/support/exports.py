"""Files for tests of the export: weights to export, graphs to run and to compare."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray

from padim_edge.export.export import Exported, export_backbone

TOLERANCE = 1e-4
SMALL = (64, 64)


def save(folder: Path, state: Any, name: str = "weights.pth") -> str:
    torch.save(state, folder / name)
    return str(folder / name)


def saved(value: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def export_layer1(output: Path, weights: str, **options: Any) -> Exported:
    """The cheapest export there is."""
    return export_backbone(
        output, layers=("layer1",), dims=(9,), weights=weights, image_size=(32, 32), **options
    )


def noise(batch: int, size: tuple[int, int], seed: int = 7) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (batch, *size, 3), np.uint8)


def run(path: Path, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": images}), strict=True))


def assert_close(actual: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Within TOLERANCE of the largest value; returns the largest absolute difference."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype == np.float32
    absolute = float(np.abs(actual - expected).max())
    largest = float(np.abs(expected).max())
    assert absolute <= TOLERANCE * largest, f"{absolute:.1e} absolute, largest value {largest:.3g}"
    return absolute


def shape_of(value: onnx.ValueInfoProto) -> list[str | int]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
