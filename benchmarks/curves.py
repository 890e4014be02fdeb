"""Cost curves: what a detector costs against each of its sizes, measured and predicted.

    python benchmarks/curves.py [--only image-size,dims] [--wide] [--output benchmarks/results]

One quantity is varied at a time; everything else is that of the base: ResNet-18, 224 x 224,
d = 100, 60 images, batch 1, all threads, float16 constants, engine ort. Measured:

    latency     a prepared frame through the graph: median call / batch. All points of an axis
                take turns, in one process (see `padim_edge.measure.bench`).
    fit         file size; seconds of features (reading images is part of it) and of statistics and
                file; peak memory. A process per fit; medians, the points taking turns.
    run         peak memory, and cold start, of a fresh process that scores one call

A batch changes no fit, so none is measured along it. Weights are random and images synthetic: no
cost depends on them. All images are distinct, for a fit counts equal ones once; they are read from
the page cache. What is predicted stands in `counts`.

A point that fails is reported as such, and the rest goes on. Results are written after each axis;
curves.json keeps an axis until it is measured again, each with its own date and machine.
"""

from __future__ import annotations

import argparse
import functools
import json
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import counts
import numpy as np
from counts import COPIES, MAPS, QUANTITIES, Row

from padim_edge.detect.detector import Detector
from padim_edge.errors import MissingDependencyError, PadimEdgeError, first_line
from padim_edge.files import atomic_write
from padim_edge.fit.fit import fit_detector
from padim_edge.fit.settings import Settings
from padim_edge.images.find import find_images
from padim_edge.images.preprocess import Preprocess
from padim_edge.images.synthetic import make_dataset
from padim_edge.measure.bench import interleave
from padim_edge.measure.rates import measure_machine
from padim_edge.measure.report import machine
from padim_edge.measure.starts import STARTS, measure_start, peak_memory
from padim_edge.model.file import read
from padim_edge.progress import silent
from padim_edge.system import available_cores

CONSTANTS = "float16"
LEGEND = f"""\
predicted: what bytes and operations say, and for the peak of fit two factors that were observed:
the file is in memory {COPIES} times while it is written, a node's largest maps {MAPS} times.
The file is a count as it is; all else is calibrated at the base point, where it deviates by
nothing: seconds = count x (measured / count at the base), memory = count + (measured - count at
the base). The floor of the latency is not calibrated.
%: predicted / measured - 1."""


@dataclass(frozen=True)
class Point:
    """What a detector's cost depends on; ``threads`` 0 is all cores."""

    backbone: str = "resnet18"
    size: int = 224
    dims: int = 100
    images: int = 60
    batch: int = 1
    threads: int = 0

    def embedding(self, folder: Path) -> Path:
        """The file of export."""
        return folder / f"{self.backbone}-{self.size}-{self.dims}.onnx"

    def detector(self, folder: Path) -> Path:
        """The file of fit."""
        return folder / f"{self.backbone}-{self.size}-{self.dims}-{self.images}-padim.onnx"

    def photos(self, folder: Path) -> Path:
        """Images a seventh larger than what the graph takes, as 256 is for 224."""
        return folder / f"photos-{self.size}-{self.images}"


@dataclass(frozen=True)
class Axis:
    """A curve: which field of `Point` is varied, and whether fits and starts change with it."""

    label: str
    field: str
    values: tuple[int, ...]
    base: Point = Point()
    fit: bool = True
    start: bool = True

    def points(self) -> list[Point]:
        """The points, the base among them."""
        changes: list[dict[str, Any]] = [{self.field: value} for value in self.values]
        return [replace(self.base, **change) for change in changes]


def axes(quick: bool) -> dict[str, Axis]:
    """The curves by name; ``quick`` ones only show that this script works."""
    cores = available_cores()
    threads = (*(t for t in (1, 2, 3, 4, 6, 8, 12, 16, 32, 64) if t < cores), cores)
    if quick:
        tiny = Point(size=64, dims=20, images=12)
        return {
            "image-size": Axis("image size", "size", (64, 96), tiny),
            "dims": Axis("d", "dims", (10, 20), tiny),
            "images": Axis("training images", "images", (6, 12), tiny),
            "batch": Axis("batch", "batch", (1, 2), tiny, fit=False, start=False),
            "threads": Axis(
                f"threads of {cores}", "threads", threads, replace(tiny, threads=cores)
            ),
        }
    base, wide = Point(), Point("wide_resnet50_2")
    return {
        "image-size": Axis("image size", "size", (128, 160, 224, 320, 416, 512), base),
        "dims": Axis("d", "dims", (25, 50, 100, 200, 350, 448), base),
        "images": Axis("training images", "images", (10, 30, 60, 100, 300, 1000), base),
        "batch": Axis("batch", "batch", (1, 2, 4, 8, 16, 32, 64), base, fit=False, start=False),
        "threads": Axis(f"threads of {cores}", "threads", threads, replace(base, threads=cores)),
        "dims-wide": Axis("d of WideResNet-50-2", "dims", (100, 200, 350, 550), wide),
    }


@contextmanager
def trying(row: Row, what: str) -> Iterator[None]:
    """Keep a failure as the row's own and go on."""
    try:
        yield
    except (PadimEdgeError, MemoryError) as error:
        row.failures[what] = first_line(error)


def say(text: str) -> None:
    """Progress, apart from the tables."""
    print(text, file=sys.stderr, flush=True)


# --- in processes of their own ----------------------------------------------------------------


def child_fit(
    embedding: str,
    photos: str,
    images: int,
    output: str,
    threads: int = 0,
    constants: str = CONSTANTS,
) -> dict[str, float]:
    """One fit: bytes, seconds and peak memory."""
    size = read(embedding, "embedding").backbone_info.image_size
    chosen = find_images(photos)[:images]
    settings = Settings(Preprocess.whole(size), constants=constants)
    done = fit_detector(embedding, chosen, output, settings, threads=threads)
    return {
        "file": done.size,
        "features": done.seconds_features,
        "statistics": done.seconds_statistics,
        "fit_memory": peak_memory(),
    }


def child_memory(path: str, batch: int, threads: int) -> dict[str, float]:
    """Peak memory of a process that scores one batch."""
    with Detector(path, "ort", threads) as detector:
        detector.engine.infer(np.zeros((batch, *detector.backbone_info.image_size, 3), np.uint8))
    return {"run_memory": peak_memory()}


def child_latency(runs: list[tuple[str, int, int]], calls: int) -> list[float | str]:
    """Median ms per frame of each (path, batch, threads), taking turns; or why there is none."""
    failures: dict[int, str] = {}
    contenders: dict[tuple[str, str], Callable[[], object]] = {}
    generator = np.random.default_rng(0)
    with ExitStack() as stack:

        @functools.cache
        def opened(path: str, threads: int) -> Detector:
            return stack.enter_context(Detector(path, "ort", threads))

        for place, (path, batch, threads) in enumerate(runs):
            try:
                detector = opened(path, threads)
                shape = (batch, *detector.backbone_info.image_size, 3)
                images = generator.integers(0, 256, shape, dtype=np.uint8)
                call = functools.partial(detector.engine.infer, images)
                call()
                contenders[str(place), ""] = call
            except (PadimEdgeError, MemoryError) as error:
                failures[place] = first_line(error)
        seconds = interleave(contenders, calls, lambda done: silent("", done, calls))
    return [
        failures.get(place) or 1e3 * statistics.median(seconds[str(place), ""]) / batch
        for place, (_, batch, _) in enumerate(runs)
    ]


CHILDREN: dict[str, Callable[..., Any]] = {
    "fit": child_fit,
    "memory": child_memory,
    "latency": child_latency,
}


def in_child(name: str, **arguments: Any) -> Any:
    """Run one of `CHILDREN`.

    Raises:
        PadimEdgeError: the child failed or was killed; the message says of what.
    """
    command = [sys.executable, __file__, "--child", name, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode < 0:
        killed = signal.Signals(-done.returncode)
        memory = " (out of memory?)" if killed is signal.SIGKILL else ""
        raise PadimEdgeError(f"killed by {killed.name}{memory}")
    if done.returncode:
        raise PadimEdgeError((done.stderr.strip().splitlines() or ["failed"])[-1])
    return json.loads(done.stdout.splitlines()[-1])


# --- measuring --------------------------------------------------------------------------------


def measure(axis: Axis, folder: Path, repeats: int, calls: int) -> list[Row]:
    """Everything that is measured along an axis."""
    points, rows = axis.points(), [Row(value) for value in axis.values]
    pairs = list(zip(points, rows, strict=True))
    fits: list[list[dict[str, float]]] = [[] for _ in rows]
    for point, row in pairs:
        with trying(row, "export"):
            prepare(point, folder)
    for turn in range(repeats if axis.fit else 1):
        for (point, row), done in zip(pairs, fits, strict=True):
            if not row.failures and (axis.fit or not point.detector(folder).exists()):
                say(f"{axis.label} {row.value}: fit {turn + 1}")
                with trying(row, "fit"):
                    done.append(
                        in_child(
                            "fit",
                            embedding=str(point.embedding(folder)),
                            photos=str(point.photos(folder)),
                            images=point.images,
                            output=str(point.detector(folder)),
                            threads=point.threads,
                        )
                    )
    for (point, row), done in zip(pairs, fits, strict=True):
        if row.failures:
            continue
        if axis.fit:
            row.measured |= {key: statistics.median(one[key] for one in done) for key in done[0]}
        say(f"{axis.label} {row.value}: start")
        path = point.detector(folder)
        with trying(row, "start"):
            if axis.start:
                starts = [measure_start(path, "ort", point.threads) for _ in range(STARTS)]
                row.measured["cold_start"] = statistics.median(start for start, _ in starts)
                row.measured["run_memory"] = statistics.median(peak for _, peak in starts)
            else:
                row.measured |= in_child(
                    "memory", path=str(path), batch=point.batch, threads=point.threads
                )
    say(f"{axis.label}: latency")
    there = [(point, row) for point, row in pairs if point.detector(folder).exists()]
    runs = [(str(point.detector(folder)), point.batch, point.threads) for point, _ in there]
    latencies: Sequence[float | str]
    try:
        latencies = in_child("latency", runs=runs, calls=calls)
    except PadimEdgeError as error:
        latencies = [str(error)] * len(runs)
    for (_, row), latency in zip(there, latencies, strict=True):
        if isinstance(latency, str):
            row.failures["latency"] = latency
        else:
            row.measured["latency"] = latency
    return rows


def prepare(point: Point, folder: Path) -> None:
    """Export the point's embedding and make its photos, unless they are there."""
    # Not at the top: a child has no use for torch.
    from padim_edge.export.export import export_backbone

    embedding, photos, size = point.embedding(folder), point.photos(folder), point.size
    if not embedding.exists():
        export_backbone(embedding, point.backbone, dims=(point.dims,), image_size=(size, size),
               weights="random")  # fmt: skip
    if not photos.exists():
        make_dataset(photos, train=point.images, good=0, per_defect=0, size=size * 8 // 7)


# Once for all axes: their floors are of one machine then.
rates = functools.cache(measure_machine)


def predict(axis: Axis, rows: list[Row], folder: Path) -> None:
    """Fill in counts, predictions and deviations."""
    points = axis.points()
    for point, row in zip(points, rows, strict=True):
        threads = point.threads or available_cores()
        with trying(row, "counts"):
            embedding, path = read(point.embedding(folder), "embedding"), point.detector(folder)
            detector = read(path, "padim") if path.exists() else None
            row.counted = counts.of_point(
                embedding, detector, rates(threads), CONSTANTS, point.images, point.batch, threads
            )
    for row in rows:
        row.calibrate(rows[points.index(axis.base)])


# --- showing ----------------------------------------------------------------------------------

TABLES = (("latency", "file", "run_memory", "cold_start"), ("features", "statistics", "fit_memory"))


def tables(axis: Axis, rows: list[Row]) -> Iterator[str]:
    """Lines of Markdown: the runs of an axis, its fits, its failures."""
    for names in TABLES:
        shown = [name for name in names if any(name in row.measured for row in rows)]
        head = [axis.label]
        for name in shown:
            head += [QUANTITIES[name].title] + ["floor"] * (name == "latency")
            head += ["predicted", "%"] * (QUANTITIES[name].calibration != "none")
        if shown:
            yield from ("", f"| {' | '.join(head)} |", "|---" * len(head) + "|")
            yield from (f"| {row.value} | {' | '.join(cells(row, shown))} |" for row in rows)
    for row in rows:
        yield from (f"\n{axis.label} {row.value}: {w} failed: {e}" for w, e in row.failures.items())


def cells(row: Row, names: list[str]) -> Iterator[str]:
    """The figures of a row of a table."""
    for name in names:
        scale = QUANTITIES[name].scale
        yield number(row.measured.get(name), scale) or "failed"
        if name == "latency":
            yield number(row.counted.get(name))
        if QUANTITIES[name].calibration != "none":
            yield number(row.predicted.get(name), scale)
            deviation = row.deviation_percent.get(name)
            yield "" if deviation is None else f"{deviation:+.1f}"


def number(value: float | None, scale: float = 1) -> str:
    """Three digits or so; nothing for None."""
    if value is None:
        return ""
    value /= scale
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def plot(axis: Axis, rows: list[Row], title: str, path: Path) -> None:
    """Small multiples of an axis: points are measured, lines predicted.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter
    except ImportError as error:
        raise MissingDependencyError("a plot of the curves", "matplotlib", "dev") from error

    panels: dict[str, list[str]] = {}
    for name, quantity in QUANTITIES.items():
        if quantity.panel and any(name in row.measured for row in rows):
            panels.setdefault(quantity.panel, []).append(name)
    lines = -(-len(panels) // 2)
    figure = Figure(figsize=(8.4, 0.8 + 2.9 * lines), dpi=100, layout="constrained")
    figure.suptitle(f"Cost against {axis.label}\n{title}", fontsize=9)
    grid: Any = figure.subplots(lines, 2, squeeze=False).flat
    for panel, (heading, names) in zip(grid, panels.items(), strict=False):
        for colour, name in zip(("C0", "C1"), names, strict=False):
            label = QUANTITIES[name].title.rsplit(" ", 1)[0]
            curves = [("predicted", f"{colour}-", label), ("measured", f"{colour}o", label)]
            for kind, form, what in curves + [("counted", "C7--", "floor")] * (name == "latency"):
                known = {row.value: getattr(row, kind).get(name) for row in rows}
                xs = [x for x, y in known.items() if y is not None]
                ys = [known[x] / QUANTITIES[name].scale for x in xs]
                panel.plot(xs, ys, form, label=f"{what}, {kind}", markersize=5)
        panel.set(xscale="log", yscale="log")
        panel.set_title(heading, fontsize=9)
        panel.set_xlabel(axis.label, fontsize=8)
        # What hardly changes must look as if it hardly changed.
        low, high = panel.get_ylim()
        middle = (low * high) ** 0.5
        panel.set_ylim(min(low, middle / 3), max(high, middle * 3))
        panel.set_xticks(axis.values, [str(value) for value in axis.values])
        panel.xaxis.set_minor_locator(NullLocator())
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        panel.yaxis.set_minor_locator(NullLocator())
        panel.tick_params(labelsize=8)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7, frameon=False)
    for panel in list(grid)[len(panels) :]:
        panel.remove()
    with atomic_write(path) as stream:
        figure.savefig(stream, format="png", pil_kwargs={"optimize": True})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="axes by name, comma-separated")
    parser.add_argument("--wide", action="store_true", help="WideResNet-50-2 against d too")
    parser.add_argument("--quick", action="store_true", help="tiny: does this script work?")
    parser.add_argument("--repeats", type=int, default=3, help="fits per point")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        name, given = arguments.child
        try:
            print(json.dumps(CHILDREN[name](**json.loads(given))))
        except (PadimEdgeError, MemoryError) as error:
            sys.exit(first_line(error))
        return
    known = axes(arguments.quick)
    usual = [name for name in known if arguments.wide or name != "dims-wide"]
    names = arguments.only.split(",") if arguments.only else usual
    if not known.keys() >= set(names):
        parser.error(f"--only {arguments.only}: choose from {', '.join(known)}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    about = machine()
    print(LEGEND)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in names:
            axis, date = known[name], datetime.now(timezone.utc).isoformat(timespec="seconds")
            calls = 10 if arguments.quick else 60 if name == "batch" else 100
            rows = measure(axis, folder, 1 if arguments.quick else arguments.repeats, calls)
            predict(axis, rows, folder)
            title = f"{about.processor}, {about.cores} cores, {date[:10]}"
            print(f"\n## Against {axis.label}\n\n{title}; base: {axis.base}")
            print("\n".join(tables(axis, rows)), flush=True)
            results = arguments.output / "curves.json"
            every = json.loads(results.read_text("utf-8")) if results.exists() else {}
            every[name] = {
                "date": date,
                "quick": arguments.quick,
                "machine": asdict(about),
                "rates": [asdict(rates(p.threads or about.cores)) for p in axis.points()],
                "axis": asdict(axis),
                "points": [asdict(row) for row in rows],
            }
            with atomic_write(results) as stream:
                stream.write(json.dumps(every, indent=1).encode())
            try:
                plot(axis, rows, title, arguments.output / f"curves-{name}.png")
            except MissingDependencyError as error:
                say(str(error))


if __name__ == "__main__":
    main()
