"""Time, memory and file size of a fit: ResNet-18 d=100 and WideResNet-50-2 d=550, 60 images.

    python benchmarks/fit.py [--backbones resnet18,wide_resnet50_2] [--repeats 3]

Random weights and synthetic images: neither time nor size depends on them. Each fit runs in a
process of its own, whose peak memory is reported; times are medians over the repeats.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from curves import in_child

from padim_edge.export.export import export_backbone
from padim_edge.images.synthetic import make_dataset
from padim_edge.measure.report import machine

IMAGES = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbones", default="resnet18,wide_resnet50_2")
    parser.add_argument("--constants", default="float16")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    about = machine()
    print(f"{about.processor}, {about.cores} cores, numpy {about.versions['numpy']}\n")
    print("| backbone | constants | features s | statistics and file s | peak MB | file MB |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_dataset(folder / "photos", train=IMAGES, good=1, per_defect=1)
        for backbone in arguments.backbones.split(","):
            export_backbone(folder / "embedding.onnx", backbone, weights="random")
            for constants in arguments.constants.split(","):
                runs = [
                    in_child(
                        "fit",
                        embedding=str(folder / "embedding.onnx"),
                        photos=str(folder / "photos" / "train"),
                        images=IMAGES,
                        output=str(folder / "padim.onnx"),
                        constants=constants,
                    )
                    for _ in range(arguments.repeats)
                ]
                features, seconds, peak, size = (
                    statistics.median(run[name] for run in runs)
                    for name in ("features", "statistics", "fit_memory", "file")
                )
                print(
                    f"| {backbone} | {constants} | {features:.1f} | {seconds:.2f} "
                    f"| {peak / 1e6:.0f} | {size / 1e6:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
