"""When Ray pays: a fit by one process and the same fit over Ray on one machine, in turns.

    python benchmarks/scale.py [--counts 64,256,1024] [--backbone resnet18]

Random weights and synthetic photos of 256 x 256: neither changes what is to be computed. Both files
must be equal. From the largest count comes a prediction for more machines of this kind, which
assumes that photos reach all of them as fast, and that what one process does with each photo where
the answers come together (its CPU time, measured) is never shared:

    seconds = start + photos * max(seconds of Ray a photo / machines, seconds of that process)
"""

from __future__ import annotations

import argparse
import functools
import statistics
import tempfile
import time
from pathlib import Path

from padim_edge.export.export import export_backbone
from padim_edge.fit.features import Extract, extract
from padim_edge.fit.fit import fit_detector
from padim_edge.fit.settings import Settings
from padim_edge.images.preprocess import Preprocess
from padim_edge.images.synthetic import make_dataset
from padim_edge.measure.report import machine
from padim_edge.scale import features
from padim_edge.scale.cluster import connected

MACHINES = (1, 2, 4, 8, 16)
PHOTOS = (1_000, 10_000, 100_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", default="64,256,1024")
    parser.add_argument("--backbone", default="resnet18")
    arguments = parser.parse_args()
    counts = sorted(map(int, arguments.counts.split(",")))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_dataset(folder / "photos", train=counts[-1], good=1, per_defect=1, size=256)
        photos = sorted((folder / "photos" / "train" / "good").iterdir())
        export_backbone(folder / "embedding.onnx", arguments.backbone, weights="random")
        settings = Settings(Preprocess.whole((224, 224)))
        begun = time.perf_counter()
        with connected("local") as cluster:
            begin = time.perf_counter() - begun
            about = machine()
            print(f"{about.processor}, {about.cores} cores; {cluster}, up after {begin:.1f} s\n")
            ways: dict[str, Extract] = {
                "plain": extract,
                "ray": functools.partial(features.extract, cluster),
            }
            print("| photos | plain s | --ray s, once up | CPU s of its first process |")
            print("|---|---|---|---|")
            for count in counts:
                taken: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
                for _ in range(3 if count <= 256 else 1):
                    for way, run in ways.items():
                        before = time.perf_counter(), time.process_time()
                        fit_detector(
                            folder / "embedding.onnx", photos[:count], folder / f"{way}.onnx",
                            settings, extract=run,
                        )  # fmt: skip
                        taken[way].append(
                            (time.perf_counter() - before[0], time.process_time() - before[1])
                        )
                if (folder / "ray.onnx").read_bytes() != (folder / "plain.onnx").read_bytes():
                    raise SystemExit("the two files differ")
                plain, ray, own = (
                    statistics.median(one[place] for one in taken[way])
                    for way, place in (("plain", 0), ("ray", 0), ("ray", 1))
                )
                print(f"| {count} | {plain:.1f} | {ray:.1f} | {own:.1f} |", flush=True)
    a_photo = [seconds / counts[-1] for seconds in (plain, ray, own)]
    print("\nPredicted, plain / --ray with so many machines, s:\n")
    print("| photos | plain | " + " | ".join(map(str, MACHINES)) + " |")
    print("|---|---|" + "---|" * len(MACHINES))
    for many in PHOTOS:
        cells = [
            f"{begin + many * max(a_photo[1] / machines, a_photo[2]):.0f}" for machines in MACHINES
        ]
        print(f"| {many} | {many * a_photo[0]:.0f} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
