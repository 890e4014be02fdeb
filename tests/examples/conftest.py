"""Detectors and photos that programs in other languages judge as Python does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import link, padim_edge
from onnx import numpy_helper
from PIL import Image


@pytest.fixture(scope="session")
def model(once: Callable[..., Path], embedding_file: Path, photos: Path) -> Path:
    """A detector whose graph takes frames. Read only."""

    def fit(place: Path) -> None:
        file = place / "padim.onnx"
        padim_edge("fit", embedding_file, photos / "train", "--frame-input", "-o", file).worked()

    return once("frame-model", fit) / "padim.onnx"


@pytest.fixture(scope="session")
def cropping_model(once: Callable[..., Path], embedding_file: Path, photos: Path) -> Path:
    """The same that sees the middle of a frame of 96 x 80. Read only."""

    def fit(place: Path) -> None:
        resize = ("--frame-input", "--resize", "96x80", "-o", place / "padim.onnx")
        padim_edge("fit", embedding_file, photos / "train", *resize).worked()

    return once("cropping-model", fit) / "padim.onnx"


@pytest.fixture(scope="session")
def twelve_bit_model(once: Callable[..., Path], model: Path) -> Path:
    """`model`, as if fitted with --bit-depth 12. Read only."""

    def fill(place: Path) -> None:
        said = onnx.load(model)
        (entry,) = (one for one in said.metadata_props if one.key == "padim_edge.preprocess")
        entry.value = json.dumps({**json.loads(entry.value), "bit_depth": 12})
        onnx.save(said, place / "twelve.onnx")

    return once("twelve-bit-model", fill) / "twelve.onnx"


@pytest.fixture(scope="session")
def numberless_model(once: Callable[..., Path], embedding_file: Path, photos: Path) -> Path:
    """One with a region, where the map is NaN: the graph's score is its border's, 0. Read only."""

    def fit(place: Path) -> None:
        file, border = place / "padim.onnx", ("--frame-input", "--ignore-border", 8)
        padim_edge("fit", embedding_file, photos / "train", *border, "-o", file).worked()
        said = onnx.load(file)
        (mean,) = (one for one in said.graph.initializer if one.name == "mean.1")
        values = numpy_helper.to_array(mean).copy()
        values[0, 0, 4, 4] = np.nan  # the middle of 8 x 8
        mean.CopyFrom(numpy_helper.from_array(values, mean.name))
        onnx.save(said, file)

    return once("numberless-model", fit) / "padim.onnx"


@pytest.fixture(scope="session")
def bottle_model(once: Callable[..., Path], data: Path, real_embedding: Path) -> Path:
    """The same with real weights, of 12 real photos. Read only."""

    def fit(place: Path) -> None:
        photos = sorted((data / "data" / "mvtec-256" / "bottle" / "train" / "good").iterdir())
        good, rate = link(photos, place / "good", 12), ("--false-alarm-rate", 0.2)
        file = place / "padim.onnx"
        padim_edge("fit", real_embedding, good, "--frame-input", *rate, "-o", file).worked()

    return once("bottle-frame-model", fit) / "padim.onnx"


@pytest.fixture(scope="session")
def bottles(once: Callable[..., Path], data: Path) -> list[Path]:
    """A real photo of each kind, one of them good, as PNG. Read only."""

    def fill(place: Path) -> None:
        for kind in (data / "data" / "mvtec-256" / "bottle" / "test").iterdir():
            Image.open(min(kind.iterdir())).convert("RGB").save(place / f"{kind.name}.png")

    return sorted(once("bottles", fill).iterdir())


@pytest.fixture(scope="session")
def frames(once: Callable[..., Path], photos: Path) -> list[Path]:
    """Photos without loss, of odd sizes, one grey, one with alpha, one anomalous. Read only."""

    def fill(place: Path) -> None:
        image = Image.open(min((photos / "test").rglob("*.png"))).convert("RGB")
        stained = np.array(image.resize((301, 203)))
        stained[40:120, 60:160] = (255, 0, 255)
        for name, one in {
            "plain.png": image,
            "stained.png": Image.fromarray(stained),
            "grey.png": image.resize((97, 130)).convert("L"),
            "alpha.png": image.resize((80, 80)).convert("RGBA"),
            "a <b> name.png": image.resize((66, 70)),
        }.items():
            one.save(place / name)

    return sorted(once("frames", fill).iterdir())
