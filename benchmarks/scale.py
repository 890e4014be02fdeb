"""When Ray pays: a fit by one process and the same fit over Ray on one machine, in turns.

    python benchmarks/scale.py [--counts 64,256,1024] [--backbone resnet18]

Random weights and synthetic photos of 256 x 256: neither changes what is to be computed. Both files
must be equal; each figure is the median of three. A line through those of the two largest counts
tells what starts once (workers, above all) from what each photo costs. From it comes a prediction
for more machines of this kind, which assumes that photos reach all of them as fast, and that what
one process does with each photo where the answers come together (its CPU time, measured) is never
shared:

    seconds = start of Ray + what is once + photos * max(of Ray / machines, of that process)
"""

from __future__ import annotations

import argparse
import functools
import statistics
import tempfile
import time
from collections.abc import Sequence
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

REPEATS = 3
MACHINES = (1, 2, 4, 8, 16)
PHOTOS = (1_000, 10_000, 100_000)
Seconds = tuple[float, float, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", default="64,256,1024")
    parser.add_argument("--backbone", default="resnet18")
    arguments = parser.parse_args()
    counts = sorted(set(map(int, arguments.counts.split(","))))
    if len(counts) < 2:
        raise SystemExit(f"--counts {arguments.counts}: a line wants two counts at least")
    rows: list[Seconds] = []
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
                for _ in range(REPEATS):
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
                rows.append((plain, ray, own))
    print("\n" + prediction(begin, counts, rows))


def line(counts: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """Seconds that are there once, and those of a photo, by the two largest counts."""
    slope = (seconds[-1] - seconds[-2]) / (counts[-1] - counts[-2])
    return seconds[-1] - slope * counts[-1], slope


def prediction(begin: float, counts: Sequence[int], rows: Sequence[Seconds]) -> str:
    """What more photos and more machines take.

    Args:
        begin: seconds until Ray is up.
        counts: of photos, rising.
        rows: seconds of each count: plain, over Ray, and CPU of the latter's first process.
    """
    (plain, plain_photo), (ray, ray_photo), (_, own_photo) = (
        line(counts, column) for column in zip(*rows, strict=True)
    )
    lines = [
        f"Plain: {plain:.1f} s and {1e3 * plain_photo:.1f} ms a photo; --ray, once up: {ray:.1f} s "
        f"and {1e3 * ray_photo:.1f} ms; CPU of its first process {1e3 * own_photo:.1f} ms a photo.",
        "Predicted, plain / --ray with so many machines, with the start of Ray, s:",
        "",
        "| photos | plain | " + " | ".join(map(str, MACHINES)) + " |",
        "|---|---|" + "---|" * len(MACHINES),
    ]
    for many in PHOTOS:
        cells = [
            f"{begin + ray + many * max(ray_photo / machines, own_photo):.0f}"
            for machines in MACHINES
        ]
        lines.append(f"| {many} | {plain + many * plain_photo:.0f} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
