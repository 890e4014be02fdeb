"""What anomalib's PaDiM and PatchCore say of the data sets of accuracy.py: same weights, photos.

    python -m venv ENV && ENV/bin/pip install anomalib==2.7.0 scikit-learn
    PYTHONPATH=. ENV/bin/python benchmarks/accuracy_peers.py FOLDER... --weights FILE --json FILE
        [--methods padim,patchcore] [--coreset 0.1]

ResNet-18; layer1 to layer3 and 100 channels for PaDiM, layer2 and layer3 for PatchCore with 9
neighbours, which are anomalib's defaults (PatchCore's default backbone is WideResNet-50-2, whose
weights would be needed). Photos are prepared as padim-edge does (the whole image, antialiased), and
metrics are padim-edge's own. No threshold is set, so there are no false alarms, and no time is
measured (benchmarks/peers does). MB is that of what is kept, as float32: the backbone's weights and
the statistics, or the memory bank. EfficientAD is not here: its teacher, and the photos of ImageNet
that its training takes, would be fetched from a server.

Rows go to the JSON of accuracy.py as "peers"; those that are there already stay.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accuracy import data_sets
from anomalib.models.image.padim.torch_model import PadimModel
from anomalib.models.image.patchcore.torch_model import PatchcoreModel
from numpy.typing import NDArray
from PIL import Image

from padim_edge.detect.metrics import compute_metrics
from padim_edge.files import atomic_write
from padim_edge.images.dataset import test_samples, train_images
from padim_edge.images.masks import load_masks
from padim_edge.images.preprocess import Preprocess

SIZE = (224, 224)
BATCH = 8
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
METHODS = {"padim": "anomalib, PaDiM", "patchcore": "anomalib, PatchCore"}


def build(method: str, weights: Path) -> Any:
    """An unfitted model with these weights."""
    torch.manual_seed(0)  # PaDiM's channels, PatchCore's first point
    if method == "padim":
        model: Any = PadimModel("resnet18", ["layer1", "layer2", "layer3"], pre_trained=False)
    else:
        model = PatchcoreModel(["layer2", "layer3"], "resnet18", pre_trained=False)
    state = torch.load(weights, weights_only=True)
    missing, _ = model.feature_extractor.feature_extractor.load_state_dict(state, strict=False)
    if missing:
        raise SystemExit(f"{weights} lacks {missing[:3]}")
    return model


def batches(paths: list[Path]) -> Any:
    """Normalised images [n, 3, 224, 224]."""
    preprocess = Preprocess.whole(SIZE)
    for place in range(0, len(paths), BATCH):
        images = np.stack([preprocess(path) for path in paths[place : place + BATCH]])
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
        yield (pixels - mean) / std


def judged(method: str, folder: Path, weights: Path, coreset: float) -> dict[str, Any]:
    """Fit on all of train/good, judge all of test."""
    model = build(method, weights)
    good, samples = train_images(folder), test_samples(folder)
    start = time.perf_counter()
    with torch.inference_mode():
        model.train()
        model.feature_extractor.eval()
        for images in batches(good):
            model(images)
        if method == "padim":
            model.fit()
        else:
            model.subsample_embedding(coreset)
        seconds = time.perf_counter() - start
        model.eval()
        scores, maps = [], []
        for images in batches([sample.path for sample in samples]):
            said = model(images)
            scores += said.pred_score.reshape(len(images)).tolist()
            maps.append(said.anomaly_map.reshape(len(images), *SIZE).numpy())
    metrics = compute_metrics(
        np.array([sample.is_anomalous for sample in samples]),
        np.array(scores),
        0.0,
        [_mask(sample) for sample in samples],
        np.concatenate(maps).astype(np.float32),
    )
    kept = sum(value.numel() for value in model.state_dict().values())
    return {
        "category": folder.name,
        "method": METHODS[method],
        "version": f"anomalib {version('anomalib')}, torch {torch.__version__}",
        "train": len(good),
        **{name: getattr(metrics, name) for name in ("image_auroc", "pixel_auroc", "pro")},
        "bytes": 4 * kept,
        "fit_seconds": seconds,
    }


def _mask(sample: Any) -> NDArray[np.bool_] | None:
    if not sample.masks:
        return None
    marked = load_masks(sample.masks, sample.path)
    return Preprocess.whole(SIZE).mask(Image.fromarray(marked))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--coreset", type=float, default=0.1)
    arguments = parser.parse_args()
    report: dict[str, Any] = {"runs": {}, "rows": []}
    if arguments.json.exists():
        report = json.loads(arguments.json.read_text())
    rows = report.setdefault("peers", [])
    for method in arguments.methods.split(","):
        for folder in (found for given in arguments.folders for found in data_sets(given)):
            key = {"category": folder.name, "method": METHODS[method]}
            if any(all(row[name] == value for name, value in key.items()) for row in rows):
                continue
            rows.append(judged(method, folder, arguments.weights, arguments.coreset))
            rows[-1] |= {
                "command": " ".join(["python", *sys.argv]),
                "date": time.strftime("%Y-%m-%d"),
            }
            with atomic_write(arguments.json) as stream:
                stream.write((json.dumps(report, indent=1) + "\n").encode())
            print(rows[-1], file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
