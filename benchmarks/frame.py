"""A whole frame against the bare truncated backbone, in one interleaved run.

    python benchmarks/frame.py [--backbone resnet18] [--batch 1,32] [--calls 200]

Exports with random weights (time does not depend on them), fits 60 synthetic images with each
kind of constants, and prints a Markdown table. Ratios are of medians (`padim_edge.measure.bench`).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from padim_edge.export.export import export_backbone
from padim_edge.fit.fit import fit_detector
from padim_edge.fit.settings import Settings
from padim_edge.images.find import find_images
from padim_edge.images.preprocess import Preprocess
from padim_edge.images.synthetic import make_dataset
from padim_edge.measure.bench import run_benchmark


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--dims", default=None, help="as in padim-edge export")
    parser.add_argument("--batch", default="1,32")
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--constants", default="float16,float32,int8")
    arguments = parser.parse_args()
    batches = [int(size) for size in arguments.batch.split(",")]
    dims = tuple(map(int, arguments.dims.split(","))) if arguments.dims else None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_dataset(folder / "photos", train=60, good=1, per_defect=1)
        good = find_images(folder / "photos" / "train")
        export_backbone(folder / "embedding.onnx", arguments.backbone, dims=dims, weights="random")
        for place, constants in enumerate(arguments.constants.split(",")):
            model = folder / f"{constants}.onnx"
            settings = Settings(Preprocess.whole((224, 224)), constants=constants)
            fit_detector(folder / "embedding.onnx", good, model, settings)
            report = run_benchmark(model, ["ort"], batches, calls=arguments.calls)
            (engine,) = report.engines
            if place == 0:
                print(f"{report.machine.processor}, {report.machine.cores} cores, ", end="")
                print(f"{engine.description}, {report.date}\n")
                print("| constants | batch | bare ms | graph ms | ratio | distances ms "
                      "| smoothing ms | file MB | peak MB | cold start s |")  # fmt: skip
                print("|---|---|---|---|---|---|---|---|---|---|")
            for one in engine.results:
                if one.bare is None or one.ratio is None:
                    raise SystemExit(f"{engine.name} has no bare backbone to compare with")
                print(
                    f"| {constants} | {one.batch} | {one.bare.p50:.2f} | {one.graph.p50:.2f} "
                    f"| {one.ratio:.3f} | {one.stages['distances'].p50:.2f} "
                    f"| {one.stages['smoothing'].p50:.2f} | {report.file_bytes / 1e6:.1f} "
                    f"| {engine.peak_memory_bytes / 1e6:.0f} | {engine.cold_start_seconds:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
