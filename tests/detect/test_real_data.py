"""The figures a correct PaDiM shows on real images, from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from padim_edge.cli.app import app

# Image and pixel AUROC of an independent float64 implementation on the same files.
EXPECTED = {
    ("mvtec-256/bottle", "reference"): (0.9968, 0.9818),
    ("mvtec-256/bottle", "whole"): (0.9984, 0.9851),
    ("hazelnut_toy", "reference"): (1.0, 0.9825),
    ("hazelnut_toy", "whole"): (1.0, 0.9869),
}
TOLERANCE = 0.002


def command(*arguments: object) -> None:
    assert not app([str(argument) for argument in arguments], standalone_mode=False)


Judged = Callable[..., tuple[Path, dict[str, Any]]]


@pytest.fixture(scope="module")
def judged(data, tmp_path_factory) -> Judged:
    """Fits an embedding on a data set and judges it: the model and its metrics, each made once."""
    known: dict[tuple[object, ...], tuple[Path, dict[str, Any]]] = {}

    def judge(embedding: Path, dataset: str, *options: str) -> tuple[Path, dict[str, Any]]:
        key = (embedding, dataset, *options)
        if key not in known:
            place = tmp_path_factory.mktemp("judged")
            model, results = place / "padim.onnx", place / "results.json"
            command("fit", embedding, data / "data" / dataset, *options, "-o", model)
            command("eval", model, data / "data" / dataset, "--json", results)
            known[key] = model, json.loads(results.read_text())
        return known[key]

    return judge


@pytest.mark.parametrize(("dataset", "preset"), EXPECTED, ids=[" ".join(key) for key in EXPECTED])
def test_auroc(judged, real_embedding, dataset, preset):
    _, metrics = judged(real_embedding, dataset, "--preprocess", preset)
    image, pixel = EXPECTED[dataset, preset]
    assert metrics["image_auroc"] == pytest.approx(image, abs=TOLERANCE)
    assert metrics["pixel_auroc"] == pytest.approx(pixel, abs=TOLERANCE)
    assert metrics["pro"] > 0.9
    # A threshold from good images alone: no flood of false alarms, and defects are found.
    assert metrics["false_alarm_rate"] <= 0.1
    assert metrics["recall"] >= 0.5


# What docs/figures.md says of our own presets: image and pixel AUROC, and PRO.
WHITENED = {
    ("mvtec-256/bottle", "whitened"): (0.9992, 0.9743, 0.878),
    ("magnetic-tile", "whitened"): (0.9452, 0.8299, 0.704),
    ("hazelnut_toy", "whitened-fine"): (1.0, 0.9846, 0.930),
}


LONG = ("mvtec-256/bottle", "whitened")
"""The most photos with the most constants; the tiles show the same preset."""


@pytest.mark.parametrize(
    ("dataset", "preset"),
    [
        pytest.param(*key, id=" ".join(key), marks=[pytest.mark.fuzz] * (key == LONG))
        for key in WHITENED
    ],
)
def test_auroc_of_whitened_presets(judged, whole_real_embedding, dataset, preset):
    _, metrics = judged(whole_real_embedding, dataset, "--preset", preset)
    image, pixel, pro = WHITENED[dataset, preset]
    assert metrics["image_auroc"] == pytest.approx(image, abs=TOLERANCE)
    assert metrics["pixel_auroc"] == pytest.approx(pixel, abs=TOLERANCE)
    assert metrics["pro"] == pytest.approx(pro, abs=0.01)


@pytest.mark.parametrize("constants", ["float32", "int8"])
def test_auroc_is_that_of_float16_with_other_constants(judged, real_embedding, constants):
    model, metrics = judged(real_embedding, "hazelnut_toy", "--constants", constants)
    assert metrics["image_auroc"] == pytest.approx(1.0, abs=TOLERANCE)
    assert metrics["pixel_auroc"] == pytest.approx(0.9869, abs=TOLERANCE)
    limits = {"float32": 41e6, "int8": 20e6}
    assert model.stat().st_size <= limits[constants]


def test_sizes_of_the_files(judged, real_embedding):
    model, _ = judged(real_embedding, "hazelnut_toy", "--preprocess", "whole")
    assert model.stat().st_size <= 28e6
    assert real_embedding.stat().st_size <= 11.2e6


def test_full_size_photos_score_like_their_reduced_copies(data, judged, real_embedding, tmp_path):
    """The preprocessing is the same for 900 x 900 as for the 256 x 256 made from them."""
    model, _ = judged(real_embedding, "mvtec-256/bottle", "--preprocess", "reference")
    small = data / "data" / "mvtec-256" / "bottle"
    large = data / "data" / "full-size" / "bottle"
    scores = {}
    for folder in (small, large):
        lines = tmp_path / "scores.jsonl"
        command("run", model, folder / "test", "--jsonl", lines)
        records = [json.loads(line) for line in lines.read_text().splitlines()]
        scores[folder] = {r["path"].split("/test/")[1]: r["score"] for r in records}
    assert scores[large]
    for name, score in scores[large].items():
        assert score == pytest.approx(scores[small][name], rel=1e-3)


def test_float16_backbone_finds_the_same_defects(data, judged, real_embedding, tmp_path):
    """AUROC within 0.002, and scores within 0.2 per cent, of the float32 backbone's."""
    half = tmp_path / "half.onnx"
    weights = data / "weights" / "resnet18-imagenet1k-v1-to-layer3.pth"
    command("export", "--weights", weights, "--precision", "float16", "-o", half)
    assert half.stat().st_size < 0.55 * real_embedding.stat().st_size
    metrics, scores = [], []
    for embedding in (real_embedding, half):
        model, found = judged(embedding, "mvtec-256/bottle", "--preprocess", "whole")
        lines = tmp_path / "s.jsonl"
        command("run", model, data / "data" / "mvtec-256" / "bottle" / "test", "--jsonl", lines)
        metrics.append(found)
        scores.append([json.loads(line)["score"] for line in lines.read_text().splitlines()])
    assert metrics[1]["image_auroc"] == pytest.approx(metrics[0]["image_auroc"], abs=0.002)
    assert metrics[1]["pixel_auroc"] == pytest.approx(metrics[0]["pixel_auroc"], abs=0.002)
    assert scores[1] == pytest.approx(scores[0], rel=2e-3)
