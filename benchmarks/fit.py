"""Time, memory and file size of a fit: ResNet-18 d=100 and WideResNet-50-2 d=550, 60 images.

    python benchmarks/fit.py [--backbones resnet18,wide_resnet50_2] [--repeats 3]

Random weights and synthetic images: neither time nor size depends on them. Each fit runs in a
process of its own, whose peak memory is reported; times are medians over the repeats.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from padim_edge.bench import machine, peak_memory
from padim_edge.fit import Settings, fit
from padim_edge.images import Preprocess, find_images
from padim_edge.synthetic import make_dataset


def child(folder: Path, constants: str) -> None:
    """One fit in this process; prints what it took."""
    done = fit(
        folder / "embedding.onnx",
        find_images(folder / "photos" / "train"),
        folder / "padim.onnx",
        Settings(Preprocess.whole((224, 224)), constants=constants),
    )
    result = [done.seconds_features, done.seconds_statistics, peak_memory(), done.size]
    print(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbones", default="resnet18,wide_resnet50_2")
    parser.add_argument("--constants", default="float16")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.constants)
        return
    # Not at the top: torch must not count towards the peak memory of a fit.
    from padim_edge.export.export import export

    about = machine()
    print(f"{about.processor}, {about.cores} cores, numpy {about.versions['numpy']}\n")
    print("| backbone | constants | features s | statistics and file s | peak MB | file MB |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_dataset(folder / "photos", train=60, good=1, per_defect=1)
        for backbone in arguments.backbones.split(","):
            export(folder / "embedding.onnx", backbone, weights="random")
            for constants in arguments.constants.split(","):
                command = [sys.executable, __file__, "--child", str(folder)]
                command += ["--constants", constants]
                runs = [
                    json.loads(subprocess.check_output(command, text=True))
                    for _ in range(arguments.repeats)
                ]
                features, seconds, peak, size = (
                    statistics.median(run[i] for run in runs) for i in range(4)
                )
                print(
                    f"| {backbone} | {constants} | {features:.1f} | {seconds:.2f} "
                    f"| {peak / 1e6:.0f} | {size / 1e6:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
