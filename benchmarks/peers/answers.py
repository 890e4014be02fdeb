"""What everybody says of one real category, beside an independent float64 reference.

Twice: *prepared*, where all get the same 224 x 224 pixels, so that only the methods differ; and
*as shipped*, where anomalib resizes the images as they are by its own transform, antialiased when
it fits, not antialiased in its exported files.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import environments
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rows import Row
from torchvision.transforms.v2.functional import resize
from workers import Running, export_all, make_folder, why_not, work

from padim_edge.detect import metrics
from padim_edge.export.backbones import load
from padim_edge.images.dataset import Sample, test_samples, train_images
from padim_edge.images.decode import load_image
from padim_edge.images.masks import load_masks
from padim_edge.images.preprocess import Preprocess
from padim_edge.model.file import read

sys.path.append(str(environments.ROOT / "tests" / "support"))
import reference  # type: ignore[import-not-found]  # the tests' independent judge

SIZE = (224, 224)
BORDER = 16
"""Pixels from the edge within which a Gaussian filter with sigma 4, truncated at 4, sees it."""

Pixels = NDArray[np.float64]


def embed(pixels: Pixels, weights: Path, channels: list[int]) -> Pixels:
    """The embedding [N, d, 56, 56] of pixels [N, 3, 224, 224] from 0 to 1, all in float64."""
    backbone = load("resnet18", None, str(weights), SIZE, 0)
    mean = torch.tensor(backbone.mean, dtype=torch.float64).view(1, 3, 1, 1)
    std = torch.tensor(backbone.std, dtype=torch.float64).view(1, 3, 1, 1)
    network = backbone.network.double()
    parts = []
    with torch.inference_mode():
        for place in range(0, len(pixels), 8):
            batch = torch.from_numpy(pixels[place : place + 8])
            maps = network((batch - mean) / std)
            parts.append(reference.embed([m.numpy() for m in maps])[:, channels])
    return np.concatenate(parts)


def judge(train: Pixels, test: Pixels, weights: Path, channels: list[int]) -> dict[str, Pixels]:
    """Score maps [N, 224, 224] of the reference, smoothed and not."""
    mean, inverse = reference.fit(embed(train, weights, channels))
    distances = reference.distances(embed(test, weights, channels), mean, inverse)
    return {
        "smoothed": reference.score_maps(distances, SIZE),
        "plain": reference.score_maps(distances, SIZE, sigma=0),
    }


def compare(dataset: Path, weights: str, rows: list[Row]) -> dict[str, Any]:
    """AUROCs, false alarms and differences of score maps of all rows on one data set."""
    train = [np.asarray(load_image(path)) for path in train_images(dataset)]
    samples = test_samples(dataset)
    test = [np.asarray(load_image(sample.path)) for sample in samples]
    whole = Preprocess.whole(SIZE)
    prepared = [row for row in rows if not row.name.startswith("bare")]
    report = {
        "dataset": dataset.name,
        "train": len(train),
        "test": len(test),
        "prepared": _compare([whole(x) for x in train], [whole(x) for x in test], samples,
                             weights, prepared, "prepared"),
    }  # fmt: skip
    shipped = [row for row in rows if row.name.startswith("anomalib")]
    # An exported file takes images of one size.
    size = Counter(x.shape for x in train + test).most_common(1)[0][0]
    chosen = [(x, sample) for x, sample in zip(test, samples, strict=True) if x.shape == size]
    if shipped:
        report["as shipped"] = _compare([x for x in train if x.shape == size],
                                        [x for x, _ in chosen], [sample for _, sample in chosen],
                                        weights, shipped, "as-shipped")  # fmt: skip
    return report


def _compare(
    train: list[NDArray[np.uint8]],
    test: list[NDArray[np.uint8]],
    samples: list[Sample],
    weights: str,
    rows: list[Row],
    name: str,
) -> dict[str, Any]:
    folder = environments.HOME / "work" / f"answers-{name}"
    make_folder(folder, "resnet18", weights, train, rows)
    np.save(folder / "test.npy", np.stack(test))
    channels = list(read(folder / "embedding.onnx", "embedding").backbone_info.channels)
    expected = judge(_pixels(train), _pixels(test), folder / "weights.pth", channels)
    masks = [Preprocess.whole(SIZE).mask(Image.fromarray(load_masks(sample.masks, sample.path)))
             if sample.masks else None for sample in samples]  # fmt: skip
    labels = np.array([sample.is_anomalous for sample in samples])
    scores = expected["smoothed"].max((1, 2))
    makers = dict.fromkeys(["ours", *(row.environment for row in rows)])
    fits = {maker: work(maker, "fit", folder) for maker in makers}
    reasons = why_not(rows, fits, export_all(folder, fits))
    # All smoothed maps are distances in the same unit: one threshold, ours, serves everybody.
    threshold = _threshold(folder)
    result = {"float64 reference": _judged(labels, scores, threshold, masks, expected["smoothed"])}
    for row in rows:
        target = folder / "judged.npz"
        try:
            if row.name in reasons:
                raise RuntimeError(reasons[row.name])
            with Running(row, folder) as running:
                running.ask(do="judge", source=str(folder / "test.npy"), target=str(target))
        except RuntimeError as error:
            result[row.name] = {"error": str(error)}
            continue
        with np.load(target) as judged:
            scores, maps = judged["scores"].astype(np.float64), judged["maps"].astype(np.float64)
        if maps.shape[1:] != SIZE:
            result[row.name] = {"error": f"its maps have shape {maps.shape[1:]}"}
            continue
        truth = expected["smoothed" if row.smoothed else "plain"]
        off = np.abs(maps - truth) / truth
        inner = off[:, BORDER:-BORDER, BORDER:-BORDER]
        result[row.name] = {
            **_judged(labels, scores, threshold, masks, maps),
            "largest_difference": float(off.max()),
            "largest_inside": float(inner.max()),
            "median_difference": float(np.median(off)),
            "smoothed": row.smoothed,
        }
        if not row.smoothed:  # our threshold is for smoothed maps
            result[row.name]["false_alarms"] = None
    return result


def _threshold(folder: Path) -> float:
    """Of padim.onnx, from its own fit."""
    detector_info = read(folder / "padim.onnx", "padim").detector_info
    if detector_info is None:
        raise SystemExit("our own fit failed: see ours-fit.log")
    return detector_info.threshold


def _pixels(images: list[NDArray[np.uint8]]) -> Pixels:
    """Images as float64 [N, 3, 224, 224] from 0 to 1; resized, antialiased, where they must be."""
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).double() / 255
    if pixels.shape[2:] != SIZE:
        pixels = resize(pixels, list(SIZE), antialias=True)
    result: Pixels = pixels.numpy()
    return result


def _judged(
    labels: NDArray[np.bool_],
    scores: NDArray[np.float64],
    threshold: float,
    masks: list[NDArray[np.bool_] | None],
    maps: Pixels,
) -> dict[str, Any]:
    found = metrics.compute_metrics(labels, scores, threshold, masks, maps.astype(np.float32))
    # An alarm is a pixel above the threshold, whatever is called the image's score.
    alarms = maps[~labels].max((1, 2)) > threshold
    return {
        "image_auroc": found.image_auroc,
        "pixel_auroc": found.pixel_auroc,
        "false_alarms": int(alarms.sum()),
        "good": found.good,
    }
