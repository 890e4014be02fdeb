"""A whole frame against the bare truncated backbone, in one interleaved run.

    python benchmarks/frame.py [--backbone resnet18] [--batch 1,32] [--calls 200]
                               [--frame 1920x1080,900x900] [--pixel-format bgr]

Exports with random weights (time does not depend on them), fits 60 synthetic images with each
kind of constants, and prints two Markdown tables: of prepared images, and from the pixels of a
camera (--frame: width x height) to the decision. Ratios are of medians
(`padim_edge.measure.bench`).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from padim_edge.export.export import export_backbone
from padim_edge.fit.fit import fit_detector
from padim_edge.fit.settings import Settings
from padim_edge.images.find import find_images
from padim_edge.images.preprocess import Preprocess
from padim_edge.images.synthetic import make_dataset
from padim_edge.measure.bench import run_benchmark
from padim_edge.measure.camera import parse_camera
from padim_edge.measure.report import Report

PREPARED = ("constants", "batch", "bare ms", "graph ms", "ratio", "distances ms", "smoothing ms",
            "file MB", "peak MB", "cold start s")  # fmt: skip
CAMERA = ("constants", "batch", "frame", "bare ms", "prepare ms", "graph ms", "rest ms",
          "frame to decision ms", "ratio")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--dims", default=None, help="as in padim-edge export")
    parser.add_argument("--batch", default="1,32")
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--constants", default="float16,float32,int8")
    parser.add_argument("--frame", default="1920x1080,900x900", help="as in padim-edge bench")
    parser.add_argument("--pixel-format", default="bgr", help="as in padim-edge bench")
    arguments = parser.parse_args()
    batches = [int(size) for size in arguments.batch.split(",")]
    dims = tuple(map(int, arguments.dims.split(","))) if arguments.dims else None
    sizes = arguments.frame.split(",")
    cameras = [parse_camera(size, arguments.pixel_format) for size in sizes]
    reports: dict[str, Report] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_dataset(folder / "photos", train=60, good=1, per_defect=1)
        good = find_images(folder / "photos" / "train")
        export_backbone(folder / "embedding.onnx", arguments.backbone, dims=dims, weights="random")
        for constants in arguments.constants.split(","):
            model = folder / f"{constants}.onnx"
            settings = Settings(Preprocess.whole((224, 224)), constants=constants)
            fit_detector(folder / "embedding.onnx", good, model, settings)
            calls = arguments.calls
            report = run_benchmark([model], ["ort"], batches, calls=calls, cameras=cameras)
            if not reports:
                print(f"{report.machine.processor}, {report.machine.cores} cores, ", end="")
                print(f"{report.engines[0].description}, {report.date}\n")
                heading(PREPARED)
            prepared(constants, report)
            reports[constants] = report
    print()
    heading(CAMERA)
    for constants, report in reports.items():
        from_frames(constants, report)


def heading(columns: Sequence[str]) -> None:
    """The first two lines of a table."""
    print(f"| {' | '.join(columns)} |")
    print("|---" * len(columns) + "|", flush=True)


def prepared(constants: str, report: Report) -> None:
    """Rows of prepared images, one for each batch size."""
    (engine,) = report.engines
    for one in engine.results:
        if one.bare is None or one.ratio is None:
            raise SystemExit(f"{engine.name} has no bare backbone to compare with")
        print(
            f"| {constants} | {one.batch} | {one.bare.p50:.2f} | {one.graph.p50:.2f} "
            f"| {one.ratio:.3f} | {one.stages['distances'].p50:.2f} "
            f"| {one.stages['smoothing'].p50:.2f} | {report.models[0].file_bytes / 1e6:.1f} "
            f"| {engine.peak_memory_bytes / 1e6:.0f} | {engine.cold_start_seconds:.2f} |",
            flush=True,
        )


def from_frames(constants: str, report: Report) -> None:
    """Rows from the camera's pixels, one for each batch size and camera."""
    for one in report.engines[0].results:
        for of in one.frames:
            if one.bare and of.ratio:
                print(
                    f"| {constants} | {one.batch} | {of.camera} | {one.bare.p50:.2f} "
                    f"| {of.prepare.p50:.2f} | {of.graph.p50:.2f} | {of.rest.p50:.2f} "
                    f"| {of.whole.p50:.2f} | {of.ratio:.3f} |"
                )


if __name__ == "__main__":
    main()
