"""The peers and us, side by side in one interleaved run: make bench-peers.

    python benchmarks/peers/compare.py [--backbones resnet18,wide_resnet50_2] [--weights FILE]
                                       [--datasets mvtec/bottle] [--only anomalib] [--rounds 10]
                                       [--frames 900x900,1920x1080,4000x3000]

Two comparisons: of images that are prepared already, and from a camera's pixels (BGR, width x
height as cameras say it) to the decision, everybody by the preprocessing that he ships.

Everybody has the same 60 images, backbone weights and channels, an environment of his own, and
a process of his own that times its own calls. Blocks of at most ten calls take turns, with a
short rest and one uncounted call before each. Those that do not fit into memory together are
measured in several groups, each with padim-edge and the bare backbone among them: ratios are
always within a group. Nobody's failure stops the others; its message stands in the table.

Weights are random unless a file is given: no time and no size depends on them. With a dataset in
MVTec AD's layout (and real weights) `answers.py` compares what all of them say of it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import answers
import environments
import numpy as np
import tables
from rows import BARE, CAMERA_ROWS, MAKERS, OURS, ROWS, Row, at
from workers import Running, command, export_all, make_folder, shown, why_not, work

from padim_edge.errors import PadimEdgeError
from padim_edge.images.dataset import test_samples
from padim_edge.images.decode import load_image
from padim_edge.images.find import find_images
from padim_edge.images.preprocess import Preprocess
from padim_edge.images.synthetic import make_dataset
from padim_edge.measure.bare_backbone import bare_backbone
from padim_edge.measure.camera import Camera, parse_camera
from padim_edge.measure.report import machine
from padim_edge.model.file import read
from padim_edge.system import available_memory

BACKBONES = ("resnet18", "wide_resnet50_2")
IMAGES = 60
REST_SECONDS = 0.05
BLOCK_SECONDS = 1.0
LONG_FIT_SECONDS = 60
PACKAGES = ["anomalib", "anomavision", "onnxruntime", "openvino", "torch", "timm", "numpy"]


def fits(folder: Path, makers: list[str], repeats: int) -> dict[str, dict[str, Any]]:
    """Seconds and peak memory of everybody's fit: medians of runs that take turns.

    What takes longer than `LONG_FIT_SECONDS` is run once.
    """
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in makers}
    for _ in range(repeats):
        for name, done in runs.items():
            took = sum(done[0].get(part, 0) for part in ("features", "statistics")) if done else 0
            if took < LONG_FIT_SECONDS:
                done.append(work(name, "fit", folder))
    result = {}
    for name, all_runs in runs.items():
        failed = next((run for run in all_runs if "error" in run), None)
        result[name] = failed or {
            "command": all_runs[0]["command"],
            **{
                key: statistics.median(run[key] for run in all_runs)
                for key in ("features", "statistics", "peak")
            },
        }
    return result


def cold_starts(
    rows: list[Row], folder: Path, batch: int, repeats: int
) -> dict[str, dict[str, Any]]:
    """Process start to first score, and peak memory until then: medians of fresh processes.

    ``need`` is the peak of the first of them after a call of the largest batch.
    """
    found: dict[str, list[tuple[float, int]]] = {row.name: [] for row in rows}
    result: dict[str, dict[str, Any]] = {row.name: {} for row in rows}
    for repeat in range(repeats):
        for row in rows:
            if "error" in result[row.name]:
                continue
            time.sleep(REST_SECONDS)
            with _noted(result[row.name]), Running(row, folder) as running:
                found[row.name].append((running.seconds, running.first["peak"]))
                result[row.name].setdefault("need", running.first["peak"])
                if not repeat:
                    with _noted({}):  # its failure will stand beside its other batches
                        timed = running.ask(do="block", batch=batch, calls=1)
                        result[row.name]["need"] = timed["peak"]
    for name, runs in found.items():
        if runs:
            result[name]["cold_start"] = statistics.median(seconds for seconds, _ in runs)
            result[name]["peak"] = statistics.median_low(peak for _, peak in runs)
    return result


def groups(rows: list[Row], peaks: dict[str, int]) -> list[list[Row]]:
    """Rows that fit into memory together, padim-edge and the bare backbone in each group."""
    available = 0.8 * available_memory()
    anchors = [row for row in rows if row.name in (OURS, BARE)]
    base = sum(peaks[row.name] for row in anchors)
    result: list[list[Row]] = []
    room = 0.0
    for row in rows:
        if row in anchors:
            continue
        need = 1.1 * peaks[row.name]
        if not result or need > room:
            result.append([*anchors])
            room = available - 1.1 * base
        result[-1].append(row)
        room -= need
    return result or [anchors]


def interleaved(
    rows: list[Row], folder: Path, batch: int, rounds: int
) -> dict[str, dict[str, Any]]:
    """Medians and quartiles of one group at one batch size, ms per frame; stages if there are any.

    Whoever begins changes from round to round, so that nobody always follows the same one.
    """
    result: dict[str, dict[str, Any]] = {row.name: {} for row in rows}
    seconds: dict[str, dict[str, list[float]]] = {}
    calls: dict[str, int] = {}
    with contextlib.ExitStack() as stack:
        running: dict[str, Running] = {}
        for row in rows:
            with _noted(result[row.name]):
                one = stack.enter_context(Running(row, folder))
                first = one.ask(do="block", batch=batch, calls=1)
                took = first["prepare"][0] + first["infer"][0]
                calls[row.name] = max(1, min(10, int(BLOCK_SECONDS / took)))
                seconds[row.name] = {"prepare": [], "infer": []}
                running[row.name] = one
        names = list(running)
        for turn in range(rounds):
            start = turn * len(names) // rounds
            for name in names[start:] + names[:start]:
                if "error" in result[name]:
                    continue
                time.sleep(REST_SECONDS)
                with _noted(result[name]):
                    timed = running[name].ask(do="block", batch=batch, calls=calls[name])
                    for part, values in seconds[name].items():
                        values += timed[part]
        for name in names:
            if "error" in result[name]:
                continue
            for part, values in seconds[name].items():
                result[name][part] = 1e3 * statistics.median(values) / batch
            quartiles = np.percentile(seconds[name]["infer"], [25, 75]) * 1e3 / batch
            result[name]["quartiles"] = quartiles.tolist()
            result[name]["calls"] = len(seconds[name]["infer"])
            time.sleep(REST_SECONDS)
            with _noted(result[name]):
                stages = running[name].ask(do="stages", batch=batch, calls=min(10, calls[name]))
                result[name]["stages"] = {k: 1e3 * v / batch for k, v in stages.items()}
    return result


@contextlib.contextmanager
def _noted(result: dict[str, Any]) -> Iterator[None]:
    """A contender's failure becomes its row's message."""
    try:
        yield
    except RuntimeError as error:
        result["error"] = str(error)


def sizes(row: Row, folder: Path) -> int:
    """Bytes of the files that a device needs."""
    files = {path for pattern in row.files for path in folder.glob(pattern) if path.is_file()}
    return sum(path.stat().st_size for path in files)


def side_by_side(
    rows: list[Row],
    folder: Path,
    batches: list[int],
    rounds: int,
    repeats: int,
    reasons: dict[str, str],
) -> dict[str, dict[str, Any]]:
    """Starts and latencies of some rows, by name; ``reasons`` say why some cannot be opened."""
    sizes_given = ["--batch", ",".join(map(str, batches))]
    report: dict[str, dict[str, Any]] = {
        row.name: {"command": shown([*command(row, folder, "time"), *sizes_given])} for row in rows
    }
    for row in rows:
        if row.name in reasons:
            report[row.name]["error"] = reasons[row.name]
    sound = [row for row in rows if "error" not in report[row.name]]
    for name, found in cold_starts(sound, folder, max(batches), repeats).items():
        report[name] |= found
    sound = [row for row in sound if "error" not in report[row.name]]
    needs = {row.name: report[row.name]["need"] for row in sound}
    for number, group in enumerate(groups(sound, needs), 1):
        for batch in batches:
            print(
                f"{folder.name}, batch {batch}: {len(group)} in one run",
                file=sys.stderr,
                flush=True,
            )
            measured = interleaved(group, folder, batch, rounds)
            for name, one in measured.items():
                one["group"] = number
                for key, anchor in (("times_ours", OURS), ("times_bare", BARE)):
                    if "infer" in one and "infer" in measured[anchor]:
                        one[key] = one["infer"] / measured[anchor]["infer"]
                # The anchors are in every group: the first counts.
                report[name].setdefault("batches", {}).setdefault(str(batch), one)
    return report


def compare(
    backbone: str,
    rows: list[Row],
    cameras: dict[Camera, list[Row]],
    weights: str,
    batches: list[int],
    rounds: int,
    repeats: int,
    keep: Callable[[dict[str, Any]], None],
) -> None:
    """Everything of one backbone; ``keep`` is given all that is measured so far."""
    folder = environments.HOME / "work" / backbone
    photos = environments.HOME / "photos"
    if not photos.exists():
        make_dataset(photos, train=IMAGES, good=1, per_defect=1)
    prepare = Preprocess.whole((224, 224))
    frames = [prepare(load_image(path)) for path in find_images(photos / "train")]
    everybody = [*rows, *(row for of in cameras.values() for row in of)]
    make_folder(folder, backbone, weights, frames, everybody)
    makers = [name for name in MAKERS if any(row.environment == name for row in everybody)]
    fitted = fits(folder, makers, repeats)
    if reason := fitted["ours"].get("error"):
        raise SystemExit(f"our own fit failed: {reason}")
    bare = bare_backbone(read(folder / "padim.onnx", "padim"))
    (folder / "bare.onnx").write_bytes(bare.SerializeToString())
    made = export_all(folder, fitted)
    report = side_by_side(rows, folder, batches, rounds, repeats, why_not(rows, fitted, made))
    for row in rows:
        if "error" not in report[row.name]:
            report[row.name]["file_bytes"] = sizes(row, folder)
            installed = environments.installed(row.environment, list(row.device))
            report[row.name]["install"] = asdict(installed)
    result: dict[str, Any] = {"fit": fitted, "rows": report, "cameras": {}}
    keep(result)
    for camera, of in cameras.items():
        name = f"{camera.width}x{camera.height}"
        np.save(folder / f"frames-{name}.npy", np.stack(camera.frames()))
        print(f"frames of {name}", file=sys.stderr, flush=True)
        reasons = why_not(of, fitted, made)
        result["cameras"][name] = side_by_side(of, folder, [1], rounds, 1, reasons)
        keep(result)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backbones", default="resnet18,wide_resnet50_2")
    parser.add_argument("--weights", default="random", help="a file, for ResNet-18")
    parser.add_argument("--datasets", help="in MVTec AD's layout, commas between: same answers?")
    parser.add_argument("--batch", default="1,32")
    parser.add_argument("--frames", default="900x900,1920x1080,4000x3000",
                        help="of cameras, width x height; empty for none")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=10, help="blocks of each")
    parser.add_argument("--repeats", type=int, default=3, help="fits and cold starts of each")
    parser.add_argument("--only", default="", help="rows whose names contain this, and ours")
    parser.add_argument("--skip", default="", help="rows to leave out: parts of names with commas")
    parser.add_argument("--output", type=Path, default=environments.HOME / "peers.json")
    options = parser.parse_args()
    backbones = [name for name in options.backbones.split(",") if name]
    datasets = [Path(name) for name in (options.datasets or "").split(",") if name]
    if not set(backbones) <= set(BACKBONES):
        parser.error(f"--backbones {options.backbones}: choose {', '.join(BACKBONES)}")
    if not all(size.isdecimal() and int(size) for size in options.batch.split(",")):
        parser.error(f"--batch {options.batch}: sizes with commas between are needed")
    if min(options.rounds, options.repeats) < 1:
        parser.error("--rounds and --repeats: at least 1 is needed")
    if options.weights != "random" and not Path(options.weights).is_file():
        parser.error(f"--weights {options.weights}: no such file")
    if datasets and options.weights == "random":
        parser.error("--datasets: what random weights say is worth nothing; give --weights")
    for dataset in datasets:
        test_samples(dataset)
    sizes_given = [size for size in options.frames.split(",") if size]
    cameras = {size: parse_camera(size, "bgr") for size in sizes_given}
    skipped = [part for part in options.skip.split(",") if part]

    def wanted(row: Row) -> bool:
        return row.name in (OURS, BARE) or (
            options.only in row.name and not any(part in row.name for part in skipped)
        )

    rows = [row for row in ROWS if wanted(row)]
    camera_rows = [row for row in CAMERA_ROWS if wanted(row)]
    if options.only and len(rows) == len(camera_rows) == 2:
        parser.error(f"--only {options.only}: no row has that in its name")
    failures = {}
    for name in dict.fromkeys(row.environment for row in rows + camera_rows):
        if reason := environments.build(name):
            failures[name] = reason
            print(f"environment {name}: {reason}", file=sys.stderr)
    rows = [row for row in rows if row.environment not in failures]
    camera_rows = [row for row in camera_rows if row.environment not in failures]
    if OURS not in [row.name for row in rows]:
        raise SystemExit("our own environment could not be made: see above")
    report: dict[str, Any] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": asdict(machine()),
        "versions": {name: environments.versions(name, PACKAGES)
                     for name in dict.fromkeys(row.environment for row in rows + camera_rows)},
        "missing_environments": failures,
        "images": IMAGES,
        "backbones": {},
    }  # fmt: skip
    options.output.parent.mkdir(parents=True, exist_ok=True)
    for backbone in backbones:
        weights = options.weights if backbone == "resnet18" else "random"
        batches = [int(size) for size in options.batch.split(",")]
        at_sizes = {
            camera: [at(row, size) for row in camera_rows] for size, camera in cameras.items()
        }

        # What is measured is kept, whatever happens to the next.
        def keep(result: dict[str, Any], backbone: str = backbone) -> None:
            report["backbones"][backbone] = result
            options.output.write_text(json.dumps(report, indent=1))

        compare(backbone, rows, at_sizes, weights, batches, options.rounds, options.repeats, keep)
        print(tables.backbone(backbone, report), flush=True)
    report["answers"] = []
    for dataset in datasets:
        found = answers.compare(dataset, options.weights, rows)
        report["answers"].append(found)
        options.output.write_text(json.dumps(report, indent=1))
        print(tables.answers(found), flush=True)


if __name__ == "__main__":
    try:
        main()
    except PadimEdgeError as error:
        sys.exit(f"error: {error}")
