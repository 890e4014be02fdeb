"""How well detectors find defects, and at what price: categories, backbones, presets, precisions.

    python benchmarks/accuracy.py FOLDER... [--backbones resnet18=FILE,efficientnet-lite0]
        [--presets published,reference,whitened,whitened-fine] [--precisions float32,int8]
        [--constants float16,int8] [--false-alarm-rate 0.05] [--json FILE] [--work FOLDER]

Each FOLDER is a data set, or holds some: train/good, test/good, test/<defect>, ground_truth. Of
each everything is fitted on all of train/good and judged on all of test, by what `padim-edge fit`
and `padim-edge eval` do. Nothing is chosen by looking at a test set. `published` is the preset
`reference` with the preparation and the float32 constants of the reference implementation.

A backbone is a network, with =FILE for weights that its source does not have. int8 backbones are
calibrated on the category's own good photos. False alarms are of test/good, at the threshold for
--false-alarm-rate; the interval is Clopper and Pearson's.

Figures are of all of test, as others publish them, and beside them without the good photos that the
fit has *seen*: those that equal one of train, or are in one group with one, where
`padim_edge.fit.copies` puts all of train and all of test into groups, prepared as `whole`. Of a
data set whose training photos show the parts of test, too, the first kind promises too much.
Defective photos all count: no fit has seen a defect, and whose photo is like a good one is hard to
find.

Times: the engine ort on one prepared frame, detectors of the first category in turn, blocks of ten
calls with a rest between, medians; no time depends on the category, so that of a kind stands for
all its rows. They want a machine that does nothing else: --skip-times leaves them out, and
--only-times adds them later to the rows of --json, fitting anew what is not in --work. Rows that
are in the JSON already stay there, and new ones are added, so that a long run can be made in pieces
(--stop-after SECONDS). A row is the same if all is that decides it: the photos and the weights,
byte by byte, the rate, the shrinkage, the size and this package's version, which files in --work
bear in their names as well. What was refused is tried again, and rows of before these were written
down stand until such a row is made.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from padim_edge import __version__
from padim_edge.detect.detector import Detector
from padim_edge.detect.evaluation import Judged, judge_samples
from padim_edge.errors import PadimEdgeError
from padim_edge.files import atomic_write
from padim_edge.fit.chosen import drawn
from padim_edge.fit.copies import Copies
from padim_edge.fit.fit import fit_detector
from padim_edge.fit.quantised import quantise_embedding
from padim_edge.fit.settings import Settings
from padim_edge.images.batches import read_batches, refuse
from padim_edge.images.dataset import test_samples, train_images
from padim_edge.images.preprocess import Preprocess
from padim_edge.measure.report import machine
from padim_edge.model.file import Model, read, write
from padim_edge.model.threshold import share_interval

Row = dict[str, Any]

SIZE = (224, 224)
PRESETS = ("published", "reference", "whitened", "whitened-fine")
KEY = ("category", "backbone", "preset", "backbone_precision", "constants")
FIGURES = ("image_auroc", "unseen_image_auroc", "pixel_auroc", "pro")
BATCH = 8
BLOCK, ROUNDS, REST_SECONDS = 10, 8, 0.05
PAPER_DIMS = {"wide_resnet50_2": 550}
"""Channels that are drawn; 100 of the others."""

PUBLISHED = {
    "bottle": (0.996, 0.981), "cable": (0.855, 0.949), "capsule": (0.870, 0.982),
    "carpet": (0.984, 0.988), "grid": (0.898, 0.936), "hazelnut": (0.841, 0.979),
    "leather": (0.988, 0.990), "metal_nut": (0.974, 0.967), "pill": (0.869, 0.946),
    "screw": (0.745, 0.972), "tile": (0.959, 0.917), "toothbrush": (0.947, 0.986),
    "transistor": (0.925, 0.968), "wood": (0.990, 0.940), "zipper": (0.741, 0.976),
}  # fmt: skip
"""Image and pixel AUROC on MVTec AD, ResNet-18 with 100 channels, of the reference implementation
(github.com/xiahaifeng1995/PaDiM-Anomaly-Detection-Localization-master, README)."""


def main() -> None:
    arguments = _arguments()
    categories = [found for folder in arguments.folders for found in data_sets(folder)]
    if not categories:
        sys.exit(f"no data set in {', '.join(map(str, arguments.folders))}: train/good and test")
    report = _load(arguments.json)
    with tempfile.TemporaryDirectory() as name:
        work = arguments.work or Path(name)
        work.mkdir(parents=True, exist_ok=True)
        try:
            wanted = list(_wanted(arguments, categories))
        except PadimEdgeError as error:
            sys.exit(str(error))
        if not arguments.only_times:
            start = time.monotonic()
            for folder, weights, row in wanted:
                late = time.monotonic() - start > arguments.stop_after
                there = find(report["rows"], row)
                if (there is None or "refused" in there) and not late:
                    try:
                        found = judged(folder, weights, row, arguments, work)
                    except PadimEdgeError as error:
                        found = {"refused": str(error)}
                    replace(report["rows"], row | found)
                    _save(report, arguments.json, "accuracy")
                    print(" ".join(f"{row[key]}" for key in KEY), file=sys.stderr, flush=True)
        if not arguments.skip_times:
            first = [
                (there, _fitted(folder, weights, row, arguments, work)[0])
                for folder, weights, row in wanted
                if folder == categories[0]
                and (there := find(report["rows"], row))
                and "refused" not in there
            ]
            for (there, _), ms in zip(first, times([path for _, path in first]), strict=True):
                there["ms"] = ms
            _save(report, arguments.json, "times")
    print(tables(report))


def data_sets(folder: Path) -> list[Path]:
    """A folder, if it is a data set; else those below it, two levels deep."""
    candidates = [folder, *sorted(folder.glob("*")), *sorted(folder.glob("*/*"))]
    return [
        path for path in candidates if all((path / name).is_dir() for name in ("train", "test"))
    ]


def _wanted(
    arguments: argparse.Namespace, categories: Sequence[Path]
) -> Iterator[tuple[Path, str, Row]]:
    """(data set, weights, what identifies a row) of everything that is asked for."""
    for text, folder in itertools.product(arguments.backbones.split(","), categories):
        backbone, _, weights = text.partition("=")
        weights = weights or "default"
        for preset, precision, constants in itertools.product(
            arguments.presets.split(","),
            arguments.precisions.split(","),
            arguments.constants.split(","),
        ):
            if preset not in PRESETS:
                sys.exit(f"--presets {preset}: choose among {', '.join(PRESETS)}")
            row = dict(zip(KEY, (folder.name, backbone, preset, precision, constants), strict=True))
            if preset == "published":  # of one kind alone
                if (precision, constants) != (
                    arguments.precisions.split(",")[0],
                    arguments.constants.split(",")[0],
                ):
                    continue
                row |= {"backbone_precision": "float32", "constants": "float32"}
            alpha = "auto" if arguments.shrinkage is None else arguments.shrinkage
            row["of"] = {
                "photos": photos_digest(folder),
                "weights": weights_digest(weights),
                "false_alarm_rate": arguments.false_alarm_rate,
                "shrinkage": alpha if preset.startswith("whitened") else None,
                "size": list(SIZE),
                "version": __version__,
            }
            yield folder, weights, row


@functools.cache
def photos_digest(folder: Path) -> str:
    """Of what is taken of a data set, names and bytes."""
    found = hashlib.sha256()
    samples = test_samples(folder)
    files = {*train_images(folder), *(path for one in samples for path in (one.path, *one.masks))}
    for path in sorted(files):
        found.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


@functools.cache
def weights_digest(weights: str) -> str:
    """Of a file of weights; other words are those of `padim-edge export --weights`."""
    path = Path(weights)
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else weights


def find(rows: Sequence[Row], row: Row) -> Row | None:
    """The row of the same, if there is one."""
    names = (*KEY, "of")
    return next((own for own in rows if all(own.get(name) == row[name] for name in names)), None)


def replace(rows: list[Row], row: Row) -> None:
    """Put a row where the one of the same is, and one of before rows said what they are of."""
    rows[:] = [
        own
        for own in rows
        if any(own[name] != row[name] for name in KEY) or own.get("of", row["of"]) != row["of"]
    ]
    rows.append(row)


def _file(row: Row, *names: str, without: str = "") -> str:
    """Name of what a row needs, by some names and by what it is of."""
    of = {name: value for name, value in row["of"].items() if name not in without.split()}
    digest = hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:12]
    return "-".join([*names, digest]) + ".onnx"


def judged(folder: Path, weights: str, row: Row, arguments: argparse.Namespace, work: Path) -> Row:
    """Fit a detector on a data set and judge its test images."""
    path, seconds = _fitted(folder, weights, row, arguments, work)
    with Detector(path, engine="ort", threads=arguments.threads) as detector:
        found = judge_samples(detector, test_samples(folder), BATCH, refuse)
        info = detector.detector_info
    metrics = found.metrics()
    return {
        "train": info.images,
        **metrics.to_json(),
        "false_alarms": round(metrics.false_alarm_rate * metrics.good),
        **unseen(found, seen(folder)),
        "target": info.false_alarm_rate,
        "shrinkage": info.shrinkage,
        "bytes": path.stat().st_size,
        "fit_seconds": seconds,
    }


@functools.cache
def seen(folder: Path) -> frozenset[Path]:
    """Good photos of test that show what a photo of train shows, too, as said at the top."""
    train, samples = train_images(folder), test_samples(folder)
    files = [*train, *(sample.path for sample in samples)]
    copies, kept = Copies(), []
    for paths, images in read_batches(files, Preprocess.whole(SIZE), BATCH, refuse):
        kept += [paths[place] for place in copies.new(paths, images)]
    group: dict[Path | None, int] = dict(zip(kept, copies.groups().tolist(), strict=True))
    group |= {copy: group[first] for copy, first in copies.found}
    known = {group[path] for path in train}
    good = (sample.path for sample in samples if not sample.is_anomalous)
    return frozenset(path for path in good if group[path] in known)


def unseen(judged: Judged, known: frozenset[Path]) -> Row:
    """Figures without some known photos, good ones."""
    own = np.array([sample.path not in known for sample in judged.samples])
    labels, scores = judged.labels[own], judged.scores[own]
    good = scores[~labels]
    return {
        "unseen_good": len(good),
        "unseen_false_alarms": int((good > judged.threshold).sum()),
        "unseen_image_auroc": float(roc_auc_score(labels, scores)) if len(good) else None,
    }


def _fitted(
    folder: Path, weights: str, row: Row, arguments: argparse.Namespace, work: Path
) -> tuple[Path, float | None]:
    """A row's detector, and the seconds that its fit took; None if it was there already."""
    path = work / _file(row, *(row[key] for key in KEY))
    if path.exists():
        return path, None
    published = row["preset"] == "published"
    preset = "reference" if published else row["preset"]
    preprocess = (Preprocess.reference if published else Preprocess.whole)(SIZE)
    settings = Settings(
        preprocess,
        preset=preset,
        dims=PAPER_DIMS.get(row["backbone"], 100) if preset == "reference" else None,
        constants=row["constants"],
        shrinkage=arguments.shrinkage if preset != "reference" else None,
        false_alarm_rate=arguments.false_alarm_rate,
    )
    embedding, settings = _embedding(folder, weights, row, settings, work)
    start = time.perf_counter()
    fit_detector(
        embedding, train_images(folder), path, settings, engine="ort", threads=arguments.threads
    )
    return path, time.perf_counter() - start


def _embedding(
    folder: Path, weights: str, row: Row, settings: Settings, work: Path
) -> tuple[Model, Settings]:
    """Of a backbone in its precision, and how to fit on it; made once.

    With all channels; of int8 with those of the fit, as `padim-edge fit` makes it.
    """
    others = "false_alarm_rate shrinkage"  # decide nothing here
    plain = work / _file(row, row["backbone"], without=f"photos {others}")
    if not plain.exists():
        from padim_edge.export.export import export_backbone  # torch, where it is needed

        export_backbone(plain, row["backbone"], dims="all", image_size=SIZE, weights=weights)
    if row["backbone_precision"] == "float32":
        return read(plain, "embedding"), settings
    model, settings = drawn(read(plain, "embedding"), settings)
    kind = f"{row['backbone_precision']}-{len(model.backbone_info.channels)}"
    path = work / _file(row, folder.name, row["backbone"], kind, without=others)
    if not path.exists():
        made = quantise_embedding(model, train_images(folder), settings.preprocess, "cpu")
        with atomic_write(path) as stream:
            write(stream, made.model)
    return read(path, "embedding"), settings


def times(paths: Sequence[Path]) -> list[float]:
    """Median ms of one prepared frame in each detector, in interleaved blocks."""
    frame = np.random.default_rng(0).integers(0, 256, (1, *SIZE, 3), np.uint8)
    found: list[list[float]] = [[] for _ in paths]
    detectors = [Detector(path, engine="ort") for path in paths]
    try:
        for _ in range(ROUNDS):
            for detector, own in zip(detectors, found, strict=True):
                time.sleep(REST_SECONDS)
                detector.engine.infer(frame)  # not counted: caches are cold
                for _ in range(BLOCK):
                    start = time.perf_counter()
                    detector.engine.infer(frame)
                    own.append((time.perf_counter() - start) * 1e3)
    finally:
        for detector in detectors:
            detector.close()
    return [statistics.median(own) for own in found]


# ------------------------------------------------------------------------------------ the report


def _load(path: Path | None) -> dict[str, Any]:
    if path and path.exists():
        report: dict[str, Any] = json.loads(path.read_text())
        return report
    return {"runs": {}, "rows": []}


def _save(report: dict[str, Any], path: Path | None, what: str) -> None:
    """With the command, the machine and the versions of the last run of a kind."""
    report["runs"][what] = {"command": " ".join(["python", *sys.argv]), **asdict(machine())}
    report["runs"][what]["date"] = time.strftime("%Y-%m-%d")
    if path:
        with atomic_write(path) as stream:
            stream.write((json.dumps(report, indent=1) + "\n").encode())


def tables(report: dict[str, Any]) -> str:
    """Every row, the means over categories, and the reference implementation's own figures."""
    rows: list[Row] = sorted((row for row in report["rows"] if "refused" not in row), key=_order)
    refused = [row for row in report["rows"] if "refused" in row]
    lines = []
    for what, run in report["runs"].items():
        versions = ", ".join(f"{name} {number}" for name, number in run["versions"].items())
        lines += [
            f"{what}: {run['processor']}, {run['cores']} cores, {versions}, {run['date']}",
            f"`{run['command']}`",
            "",
        ]
    lines += _means(rows) + _each(rows) + _peers(report.get("peers", [])) + _published(rows)
    for row in refused:
        lines.append(f"- not made: {' '.join(row[key] for key in KEY)}: {row['refused']}")
    return "\n".join(lines)


def _order(row: Row) -> tuple[Any, ...]:
    """Backbones and categories by name, presets as they are listed."""
    return (
        row["backbone"], PRESETS.index(row["preset"]), row["backbone_precision"], row["constants"],
        row["category"],
    )  # fmt: skip


def _means(rows: Sequence[Row]) -> list[str]:
    """Over the categories that all have."""
    kinds: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        kinds.setdefault((*(row[key] for key in KEY[1:]), _settings(row)), []).append(row)
    most = max(map(len, kinds.values()), default=0)
    several = len(kinds) > len({kind[:-1] for kind in kinds})
    targets = ", ".join(f"{target:g}" for target in sorted({row["target"] for row in rows}))
    lines = [
        f"Means over {most} categories; false alarms and their 95 % interval are of all good test "
        f"photos together, at a target of {targets}. Of unseen: without good photos of test that "
        "show what a photo of train shows, too."
        if rows
        else "Nothing was judged.",
        "",
        "| backbone | preset | backbone in | constants | image AUROC | of unseen | pixel AUROC "
        f"| PRO | false alarms | of unseen | ms | MB |{' of |' * several}",
        f"|---|---|---|---|---|---|---|---|---|---|---|---|{'---|' * several}",
    ]
    for kind, own in kinds.items():
        if len(own) < most:
            continue
        # A category without masks has no pixel AUROC and no PRO, and then the mean has none.
        found: list[list[Any]] = [[row.get(name) for row in own] for name in FIGURES]
        values = ["-" if None in each else f"{statistics.fmean(each):.4f}" for each in found]
        ms = next((f"{row['ms']:.1f}" for row in own if "ms" in row), "not measured")
        size = statistics.fmean(row["bytes"] for row in own) / 1e6
        cells = [*kind[:-1], *values, _alarms(own), _alarms(own, "unseen_"), ms, f"{size:.1f}"]
        lines.append(f"| {' | '.join([*cells, *kind[-1:] * several])} |")
    return [*lines, ""]


def _settings(row: Row) -> str:
    """What else than its key decides a row, but for the photos."""
    return ", ".join(
        f"{name} {value}"
        for name, value in row.get("of", {"not": "written down"}).items()
        if name != "photos"
    )


def _alarms(rows: Sequence[Row], which: str = "") -> str:
    if any(f"{which}good" not in row for row in rows):
        return "-"
    hits, count = (sum(row[f"{which}{name}"] for row in rows) for name in ("false_alarms", "good"))
    if not count:
        return "-"
    low, high = share_interval(hits, count)
    return f"{hits} of {count}: {hits / count:.3f} ({low:.3f} to {high:.3f})"


def _each(rows: Sequence[Row]) -> list[str]:
    lines = [
        "| category | backbone | preset | backbone in | constants | image AUROC | of unseen "
        "| pixel AUROC | PRO | false alarms | of unseen | shrinkage | MB |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (row["category"], *_order(row))):
        values = [row.get(name) for name in FIGURES]
        cells = [
            *(row[key] for key in KEY),
            *("-" if value is None else f"{value:.4f}" for value in values),
            _alarms([row]),
            _alarms([row], "unseen_"),
            f"{row['shrinkage']:g}" if row["shrinkage"] else "-",
            f"{row['bytes'] / 1e6:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _peers(rows: Sequence[Row]) -> list[str]:
    """What accuracy_peers.py found, if it was run."""
    if not rows:
        return ["Peers: not run (benchmarks/accuracy_peers.py).", ""]
    lines = [
        "| peer | category | image AUROC | pixel AUROC | PRO | MB |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        found = [row[name] for name in ("image_auroc", "pixel_auroc", "pro")]
        values = ["-" if value is None else f"{value:.4f}" for value in found]
        cells = [row["method"], row["category"], *values, f"{row['bytes'] / 1e6:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    runs = dict.fromkeys(f"{row['version']}, {row['date']}: `{row['command']}`" for row in rows)
    return [*lines, "", *runs, ""]


def _published(rows: Sequence[Row]) -> list[str]:
    """Our figures with the reference implementation's preparation beside its own."""
    lines = [
        "| category | image AUROC: ours | published | difference | pixel AUROC: ours | published "
        "| difference |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        known = PUBLISHED.get(row["category"])
        if row["preset"] == "published" and row["backbone"] == "resnet18" and known:
            cells = [row["category"]]
            for name, theirs in zip(("image_auroc", "pixel_auroc"), known, strict=True):
                ours = row[name]
                own, off = ("-", "-") if ours is None else (f"{ours:.4f}", f"{ours - theirs:+.4f}")
                cells += [own, f"{theirs:.3f}", off]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--backbones", default="resnet18,efficientnet-lite0")
    parser.add_argument("--presets", default=",".join(PRESETS))
    parser.add_argument("--precisions", default="float32,int8")
    parser.add_argument("--constants", default="float16,int8")
    parser.add_argument("--shrinkage", type=float, default=None, help="of whitened presets: auto")
    parser.add_argument("--false-alarm-rate", type=float, default=0.05)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--work", type=Path, default=None, help="where models are kept")
    parser.add_argument("--threads", type=int, default=0, help="of fit and judging; 0 for all")
    parser.add_argument("--stop-after", type=float, default=1e9, help="begin no row after seconds")
    parser.add_argument("--skip-times", action="store_true")
    parser.add_argument("--only-times", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
