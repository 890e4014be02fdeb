"""One contender in its own environment: it times itself, or takes orders from `compare.py`.

    ENV/bin/python benchmarks/peers/worker.py time runtimes:Onnx bare.onnx --folder F --batch 1,32
    ENV/bin/python benchmarks/peers/worker.py fit anomalib_peer --folder F
    ENV/bin/python benchmarks/peers/worker.py export anomalib_peer --folder F

`serve` in place of `time` reads orders from stdin, one JSON object a line, and answers each with
one: blocks of calls of several contenders can then take turns. With `--images frames-1920x1080.npy`
(see `rows.CAMERA_ROWS`) it is given a camera's frames. Imports nothing but numpy and the standard
library, because it runs in the environments of all peers.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Contender(Protocol):
    """What is measured; one class each in `ours`, `runtimes`, `anomalib_peer`, `anomavision_peer`.

    Opened with a folder (see `compare.py`, `Folder`) and arguments of its own.
    """

    def prepare(self, images: NDArray[np.uint8]) -> Any:
        """Images uint8 [N, H, W, 3] as the model takes them: what the caller must compute."""
        ...

    def infer(self, prepared: Any) -> tuple[NDArray[Any], NDArray[Any]]:
        """Image scores [N] and score maps [N, H, W]."""
        ...

    def stages(self, prepared: Any) -> dict[str, float]:
        """Seconds by stage of one batch; empty where the contender cannot be taken apart."""
        ...


def open_contender(place: str, folder: Path, arguments: list[str]) -> Contender:
    """The class at "module:Class", opened."""
    module, name = place.split(":")
    contender: Contender = getattr(importlib.import_module(module), name)(folder, *arguments)
    return contender


def batches_of(images: NDArray[np.uint8], batch: int) -> list[NDArray[np.uint8]]:
    """Images as batches uint8 [batch, H, W, 3], as many different ones as there are.

    They are given in turn: a camera's frames are in no cache when their turn comes.
    """
    if batch > len(images):
        return [images[np.arange(batch) % len(images)]]
    return [images[start:][:batch] for start in range(0, len(images) - batch + 1, batch)]


def block(
    contender: Contender, batches: list[NDArray[np.uint8]], calls: int
) -> dict[str, list[float]]:
    """Seconds of each of some calls, after one uncounted: to prepare and to infer."""
    seconds: dict[str, list[float]] = {"prepare": [], "infer": []}
    for place, images in enumerate(itertools.islice(itertools.cycle(batches), calls + 1)):
        start = time.perf_counter()
        prepared = contender.prepare(images)
        middle = time.perf_counter()
        contender.infer(prepared)
        end = time.perf_counter()
        if place:
            seconds["prepare"].append(middle - start)
            seconds["infer"].append(end - middle)
    return seconds


def stages(contender: Contender, images: NDArray[np.uint8], calls: int) -> dict[str, float]:
    """Median seconds by stage over some calls."""
    prepared = contender.prepare(images)
    runs = [contender.stages(prepared) for _ in range(calls + 1)][1:]
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def judge(contender: Contender, source: Path, target: Path) -> dict[str, Any]:
    """Score images of a .npy, uint8 [N, H, W, 3], into a .npz with "scores" and "maps"."""
    images = np.load(source)
    # One by one: not everybody's files take a batch.
    results = [contender.infer(contender.prepare(image[None])) for image in images]
    scores = np.concatenate([np.asarray(scores).reshape(-1) for scores, _ in results])
    maps = np.concatenate(
        [np.asarray(one).reshape(len(one), *one.shape[-2:]) for _, one in results]
    )
    np.savez(target, scores=scores, maps=maps)
    return {"count": len(scores)}


def peak_memory() -> int:
    """Peak resident bytes of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM in /proc/self/status: run this on Linux")


def serve(
    place: str, folder: Path, arguments: list[str], images: NDArray[np.uint8], answers: Any
) -> None:
    """Open, judge one image, say so; then follow orders until stdin ends."""

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    try:
        contender = open_contender(place, folder, arguments)
        scores, _ = contender.infer(contender.prepare(images[:1]))
        answer({"score": float(np.asarray(scores).reshape(-1)[0]), "peak": peak_memory()})
    except Exception as error:  # the row says why, whatever it is
        answer({"error": f"{type(error).__name__}: {error}"})
        return
    for line in sys.stdin:
        order = json.loads(line)
        try:
            if order["do"] == "block":
                timed = block(contender, batches_of(images, order["batch"]), order["calls"])
                answer({**timed, "peak": peak_memory()})
            elif order["do"] == "stages":
                answer(stages(contender, batches_of(images, order["batch"])[0], order["calls"]))
            else:
                answer(judge(contender, Path(order["source"]), Path(order["target"])))
        except Exception as error:  # as above
            answer({"error": f"{type(error).__name__}: {error}"})


def measure(
    place: str,
    folder: Path,
    arguments: list[str],
    images: NDArray[np.uint8],
    batches: list[int],
    calls: int,
) -> None:
    """Time a contender by itself, for whoever doubts a row."""
    contender = open_contender(place, folder, arguments)
    for batch in batches:
        seconds = block(contender, batches_of(images, batch), max(3, calls // batch))
        prepare, infer = (1e3 * statistics.median(seconds[name]) / batch for name in seconds)
        print(f"batch {batch}: {infer:.2f} ms per frame, and {prepare:.2f} to prepare it")
        parts = stages(contender, batches_of(images, batch)[0], 3)
        for name, value in parts.items():
            print(f"  {name:<12} {1e3 * value / batch:8.2f} ms per frame")
    print(f"peak memory {peak_memory() / 1e6:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("do", choices=["time", "serve", "fit", "export"])
    parser.add_argument("place", help="module:Class, or for fit and export the module")
    parser.add_argument("arguments", nargs="*", help="of the class, as a file in the folder")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--images", default="images.npy", help="what it is given, in the folder")
    parser.add_argument("--batch", default="1")
    parser.add_argument("--calls", type=int, default=100)
    options = parser.parse_args()
    folder = options.folder.resolve()
    images = np.load(folder / options.images)
    if options.do == "time":
        batches = [int(size) for size in options.batch.split(",")]
        measure(options.place, folder, options.arguments, images, batches, options.calls)
        return
    # What libraries print, from C++ too, must not get between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if options.do == "serve":
        serve(options.place, folder, options.arguments, images, answers)
        return
    work = getattr(importlib.import_module(options.place), options.do)
    result = work(folder) or {}
    print(json.dumps(result | {"peak": peak_memory()}), file=answers, flush=True)


if __name__ == "__main__":
    main()
