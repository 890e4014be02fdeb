"""Which quantiser makes the better int8 backbone: ours, NNCF's or ModelOpt's, on the same photos.

    python benchmarks/quantisers.py EMBEDDING FOLDER --quantisers none,ort,ort-averaged,ort-tensorrt
    .../nncf/bin/python     benchmarks/quantisers.py EMBEDDING FOLDER --quantisers nncf
    .../modelopt/bin/python benchmarks/quantisers.py EMBEDDING FOLDER --quantisers modelopt

FOLDER is a data set (train/good, test, ground_truth). Each quantiser is given the graph of
EMBEDDING (float32) and the photos that `padim-edge quantize` would take; then everything is fitted
on all of train/good, and judged on all of test. With --json rows are added to those that are there,
so that each package can have an environment of its own; with --work the detectors stay, to be timed
by `padim-edge bench`.

    change       of the features on 32 photos of test, half of them defective: root mean square of
                 the difference over that of the float ones, per layer
    left out     AUROC of the defective photos of test against the photos of the fit, each scored as
                 if it had been left out
    AUROCs, PRO  of `padim-edge eval`

ort is what padim-edge does (ONNX Runtime's static quantiser; --for cpu), ort-tensorrt the same
--for tensorrt; ort-averaged takes the means over photos of least and greatest values. NNCF and
ModelOpt run with their own defaults, for int8 on a CPU and for TensorRT; with ModelOpt, what is not
int8 stays float32 (its default is float16), because that is what the others do.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from padim_edge.detect.detector import Detector
from padim_edge.detect.evaluation import evaluate_detector
from padim_edge.files import atomic_write
from padim_edge.fit.fit import fit_detector
from padim_edge.fit.quantised import PHOTOS
from padim_edge.fit.settings import Settings
from padim_edge.images.batches import refuse
from padim_edge.images.dataset import test_samples, train_images
from padim_edge.images.preprocess import Preprocess
from padim_edge.measure.report import machine
from padim_edge.model.file import Model, read
from padim_edge.runtime import quantise
from padim_edge.runtime.graphs import open_graph

Photos = NDArray[np.uint8]  # [N, H, W, 3]
COMPARED = 32


def ours(proto: onnx.ModelProto, photos: Photos, target: str = "cpu") -> onnx.ModelProto:
    return quantise.quantise(proto, [photos], target)


def averaged(proto: onnx.ModelProto, photos: Photos) -> onnx.ModelProto:
    options = {"CalibMovingAverage": True, "CalibMovingAverageConstant": 0.01}
    target = dataclasses.replace(quantise.TARGETS["cpu"], options=options)
    quantise.TARGETS["averaged"] = target
    try:
        return quantise.quantise(proto, [photos], "averaged")
    finally:
        del quantise.TARGETS["averaged"]


def nncf(proto: onnx.ModelProto, photos: Photos) -> onnx.ModelProto:
    nncf = importlib.import_module("nncf")
    data = nncf.Dataset([{"image": photo[None]} for photo in photos])
    made: onnx.ModelProto = nncf.quantize(proto, data, subset_size=len(photos))
    return made


def modelopt(proto: onnx.ModelProto, photos: Photos) -> onnx.ModelProto:
    quantization = importlib.import_module("modelopt.onnx.quantization")
    with tempfile.TemporaryDirectory() as name:
        plain, made = Path(name) / "plain.onnx", Path(name) / "made.onnx"
        onnx.save(proto, plain)
        quantization.quantize(
            str(plain),
            quantize_mode="int8",
            calibration_data={"image": photos},
            calibration_eps=["cpu"],
            high_precision_dtype="fp32",
            output_path=str(made),
        )
        return onnx.load(made)


QUANTISERS: dict[str, Callable[[onnx.ModelProto, Photos], onnx.ModelProto]] = {
    "none": lambda proto, _: proto,
    "ort": ours,
    "ort-averaged": averaged,
    "ort-tensorrt": lambda proto, photos: ours(proto, photos, "tensorrt"),
    "nncf": nncf,
    "modelopt": modelopt,
}
PACKAGES = {"nncf": "nncf", "modelopt": "nvidia-modelopt"}
"""What makes it; ONNX Runtime if nothing else."""


def judged(embedding: Model, folder: Path, name: str, path: Path) -> dict[str, Any]:
    """Quantise, compare, fit and judge; the detector is left in a file."""
    info = embedding.backbone_info
    preprocess = Preprocess.whole(info.image_size)
    good, samples = train_images(folder), test_samples(folder)
    count = min(len(good), PHOTOS)
    photos = np.stack([preprocess(good[place * len(good) // count]) for place in range(count)])
    start = time.perf_counter()
    proto = onnx.ModelProto()
    proto.CopyFrom(embedding.proto)
    del proto.metadata_props[:]
    made = QUANTISERS[name](proto, photos)
    seconds = time.perf_counter() - start
    precision = "float32" if name == "none" else "int8"
    model = Model(made, dataclasses.replace(info, precision=precision))
    defective = [sample.path for sample in samples if sample.is_anomalous]
    half = [
        *defective[: COMPARED // 2],
        *[sample.path for sample in samples if not sample.is_anomalous][: COMPARED // 2],
    ]
    changes = change(embedding, model, np.stack([preprocess(one) for one in half]))
    fitted = fit_detector(model, good, path, Settings(preprocess), engine="ort")
    with Detector(path, engine="ort") as detector:
        metrics = evaluate_detector(detector, samples, 8, refuse)
        scores = [detector(one).score for one in defective]
    package = PACKAGES.get(name, "onnxruntime")
    return {
        "quantiser": name,
        "version": f"{package} {version(package)}",
        "photos": count,
        "seconds": seconds,
        "change": changes,
        "left_out": auroc(np.asarray(fitted.scores), np.asarray(scores)),
        **{key: getattr(metrics, key) for key in ("image_auroc", "pixel_auroc", "pro")},
        "bytes": fitted.size,
    }


def change(whole: Model, rounded: Model, photos: Photos) -> dict[str, float]:
    """Per layer, root mean square of the difference over that of the whole one's maps."""
    names = whole.feature_names()
    found = []
    for model in (whole, rounded):
        with open_graph(model.proto.SerializeToString(), "ort") as graph:
            found.append([graph.run({"image": photo[None]}, names) for photo in photos])
    theirs, own = (
        [np.concatenate([maps[place] for maps in every]) for place in range(len(names))]
        for every in found
    )
    return {
        name: float(np.sqrt(np.square(b - a).mean() / np.square(a).mean()))
        for name, a, b in zip(names, theirs, own, strict=True)
    }


def auroc(good: NDArray[np.float64], bad: NDArray[np.float64]) -> float:
    """Share of pairs in which the bad one scores higher; equal ones count half."""
    higher = (bad[:, None] > good).mean() + 0.5 * (bad[:, None] == good).mean()
    return float(higher)


def table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| quantiser | change of the features | left out | image AUROC | pixel AUROC | PRO "
        "| padim.onnx, MB | takes, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        changes = " / ".join(f"{100 * value:.1f}" for value in row["change"].values())
        cells = [
            f"{row['quantiser']} ({row['version']})", f"{changes} %", f"{row['left_out']:.4f}",
            *(f"{row[name]:.4f}" for name in ("image_auroc", "pixel_auroc", "pro")),
            f"{row['bytes'] / 1e6:.1f}", f"{row['seconds']:.0f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("embedding", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quantisers", default="none,ort,ort-averaged,ort-tensorrt")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--work", type=Path, default=None, help="where detectors are kept")
    arguments = parser.parse_args()
    names = arguments.quantisers.split(",")
    unknown = [name for name in names if name not in QUANTISERS]
    if unknown:
        sys.exit(f"--quantisers {unknown[0]}: choose among {', '.join(QUANTISERS)}")
    embedding = read(arguments.embedding, "embedding")
    if embedding.backbone_info.precision != "float32":
        sys.exit(f"{arguments.embedding}: an embedding in float32 is needed")
    report: dict[str, Any] = {"rows": []}
    if arguments.json and arguments.json.exists():
        report = json.loads(arguments.json.read_text())
    with tempfile.TemporaryDirectory() as name:
        work = arguments.work or Path(name)
        work.mkdir(parents=True, exist_ok=True)
        for own in names:
            row = judged(embedding, arguments.folder, own, work / f"{own}.onnx")
            report["rows"] = [one for one in report["rows"] if one["quantiser"] != own] + [row]
            report["machine"] = dataclasses.asdict(machine())
            report["date"] = time.strftime("%Y-%m-%d")
            if arguments.json:
                with atomic_write(arguments.json) as stream:
                    stream.write((json.dumps(report, indent=1) + "\n").encode())
    print(table(report["rows"]))


if __name__ == "__main__":
    main()
