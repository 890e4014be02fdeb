"""Kills: fit, run, eval and the building of plans, ended by kill -9 at random moments.

    python tests/support/killed.py [--kills 200] [--seed 0]

Each child is forked from a process that has imported everything, so that the moments, drawn evenly
over the time that the command takes, fall on its work. All that it writes is the same each time.
So a file under a final name is whole if it has the bytes of an undisturbed run, or those that were
there before; and once the command was repeated there are those of the undisturbed run, and nothing
else.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Imported before forking.
import numpy as np
import onnxruntime  # noqa: F401
import pytest
import rich.progress  # noqa: F401
import scipy.ndimage  # noqa: F401
import sklearn.metrics  # noqa: F401
from helpers import OLD, contents, in_process
from PIL import Image

import padim_edge.cli.app
import padim_edge.detect.evaluation
import padim_edge.detect.overlay_folder
import padim_edge.fit.fit  # noqa: F401
from padim_edge.detect.line_file import PART
from padim_edge.model.file import read

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "tests" / "model" / "format_1"
SYNC = 0.02
"""Seconds that the disk takes to sync, as a memory card does: unfinished files live longer."""

PATIENCE = 60
LATE = "too late"
fork = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Command:
    """What is killed.

    Attributes:
        name: of it.
        arguments: given the folder to write to.
        world: entered before, given the same folder.
    """

    name: str
    arguments: Callable[[Path], tuple[object, ...]]
    world: Callable[[Path], None] = lambda _: None


def commands(photos: Path) -> Iterator[Command]:
    """All that write files, on some photos."""
    embedding, model = MODELS / "embedding.onnx", MODELS / "float16.onnx"

    def fit(place: Path) -> tuple[object, ...]:
        moments = ("--save-moments", place / "moments.npz")
        return ("fit", embedding, photos, "-o", place / "padim.onnx", *moments, "--threads", 1)

    def run(place: Path) -> tuple[object, ...]:
        lines = ("--jsonl", place / "scores.jsonl", "--resume")
        return (
            "run",
            model,
            photos / "test",
            *lines,
            "--save-maps",
            place / "maps",
            "--batch",
            1,
            "--threads",
            1,
        )

    def evaluation(place: Path) -> tuple[object, ...]:
        return ("eval", model, photos, "--json", place / "metrics.json", "--threads", 1)

    yield Command("fit", fit)
    yield Command("run", run)
    yield Command("eval", evaluation)
    try:
        world = tensorrt(photos.parent)
    except pytest.skip.Exception as reason:
        print(f"plan building is left out: {reason}")
        return

    def plan(place: Path) -> tuple[object, ...]:
        return ("run", model, photos / "test" / "good", "--engine", "trt")

    yield Command("plan", plan, world)


def tensorrt(folder: Path) -> Callable[[Path], None]:
    """What makes a process one with a GPU and TensorRT: the driver and the bindings of the tests.

    Plans are made by the stand-in, everything that keeps them is ours.
    """
    import fake_gpu
    from tensorrt_stubs import Thing, assemble

    (folder / "gpu").mkdir()
    driver = fake_gpu.assemble(folder / "gpu")
    paths = [fake_gpu.pycuda(), assemble("10.3.0", folder)]

    def enter(place: Path) -> None:
        sys.path.extend(map(str, paths))
        from fake_tensorrt import FakeTensorRT, install

        fake = FakeTensorRT(fake_gpu.enter(str(driver)))
        graphs: list[bytes] = []

        def parse(model: bytes) -> bool:
            graphs.append(model)
            return fake.parse(model)

        def deserialize(serialized_engine: bytes) -> Any:
            fake.parse(serialized_engine)
            return Thing(world, world.real.ICudaEngine)

        plans = {
            "OnnxParser.parse": parse,
            "Builder.build_serialized_network": lambda **_: graphs[-1],
            "Runtime.deserialize_cuda_engine": deserialize,
        }
        world = install(str(place), "", fake.answers() | plans)
        os.environ["XDG_CACHE_HOME"] = str(place)

    return enter


def start(command: Command, place: Path) -> Any:
    """Begin a command in a child process."""

    def child() -> None:
        sync = os.fsync

        def slow(descriptor: int) -> None:
            time.sleep(SYNC)
            sync(descriptor)

        os.fsync = slow
        command.world(place)
        done = in_process(*command.arguments(place))
        if done.code:
            print(done.stderr, file=sys.stderr)
        sys.exit(done.code)

    process = fork.Process(target=child)
    process.start()
    return process


def finish(command: Command, place: Path) -> float:
    """Run a command undisturbed; returns the seconds that it took."""
    began = time.monotonic()
    process = start(command, place)
    process.join(PATIENCE)
    if process.exitcode != 0:
        process.kill()
        raise AssertionError(f"{command.name} ended with {process.exitcode}")
    return time.monotonic() - began


def under_final_names(found: dict[str, str]) -> dict[str, str]:
    """What is not hidden, no folder, and not said to be incomplete."""
    return {
        name: content
        for name, content in found.items()
        if content != "no file"
        and not Path(name).name.startswith(".")
        and not name.endswith((PART, "lock"))
    }


def check_lines(part: Path, whole: Path) -> None:
    """The lines of an incomplete file, but for the last, are those that it would have had."""
    lines = part.read_bytes().splitlines(keepends=True)
    if not whole.read_bytes().startswith(b"".join(lines)):
        raise AssertionError(f"other lines in {part}: {lines}")
    for line in lines[:-1]:
        json.loads(line)


def kill(command: Command, place: Path, moment: float, before: bool, whole: Path) -> str:
    """Kill a command, look at what is left, and repeat it.

    Args:
        command: what is killed.
        place: an empty folder.
        moment: seconds after its start.
        before: whether all files that it writes are there already, with other bytes.
        whole: a folder with what an undisturbed run leaves.

    Returns:
        What it was killed at, in words.

    Raises:
        AssertionError: a file under a final name is not whole, or repeating did not make it so.
    """
    wanted = contents(whole)
    for name in under_final_names(wanted) if before else ():
        (place / name).parent.mkdir(0o700, parents=True, exist_ok=True)
        (place / name).write_bytes(OLD)
    old = under_final_names(contents(place))
    process = start(command, place)
    time.sleep(moment)
    process.kill()
    process.join(PATIENCE)
    left = contents(place)
    for name, content in under_final_names(left).items():
        if content not in (wanted.get(name), old.get(name)):
            raise AssertionError(f"{name} is half-written")
    if missing := old.keys() - left.keys():
        raise AssertionError(f"{missing} were there before, and are gone")
    unfinished = [name for name in left if Path(name).name.startswith(".") or name.endswith(PART)]
    for part in place.rglob(f"*{PART}"):
        check_lines(part, whole / part.relative_to(place).with_suffix(""))
    finish(command, place)
    again = contents(place)
    if again != wanted:
        names = sorted(name for name in again | wanted if again.get(name) != wanted.get(name))
        raise AssertionError(f"after repeating it, {names} are not as they should be")
    if process.exitcode != -9:
        return LATE
    return "with a file unfinished" if unfinished else "between files"


def campaign(kills: int, seed: int) -> int:
    """So many kills, shared among the commands; returns how many went wrong.

    Raises:
        AssertionError: a command fails undisturbed, or does not do the same twice.
    """
    dice = random.Random(seed)
    wrong = killed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photos = folder / "photos"
        _make_photos(photos)
        chosen = list(commands(photos))
        for index, command in enumerate(chosen):
            whole = folder / f"{command.name}-whole"
            whole.mkdir()
            seconds = [finish(command, whole)]
            _check_whole(whole)
            for number in range(2):
                place = folder / f"{command.name}-timed-{number}"
                place.mkdir()
                seconds.append(finish(command, place))
                if contents(place) != contents(whole):
                    raise AssertionError(f"{command.name} does not do the same twice")
            wanted = kills * (index + 1) // len(chosen) - kills * index // len(chosen)
            met: Counter[str] = Counter()
            # One that came too late was none; at most as many more.
            for number in range(2 * wanted):
                if met.total() - met[LATE] == wanted:
                    break
                place = folder / f"{command.name}-{number}"
                place.mkdir(0o700)
                moment = dice.uniform(0, min(seconds))
                try:
                    met[kill(command, place, moment, number % 2 == 0, whole)] += 1
                except AssertionError as error:
                    wrong += 1
                    print(f"{command.name}, kill {number} at {moment:.3f} s: {error}")
            killed += met.total() - met[LATE]
            figures = ", ".join(f"{count} {how}" for how, count in sorted(met.items()))
            print(f"{command.name}: {min(seconds):.2f} s; {figures}", flush=True)
    print(f"{killed + wrong} kills, seed {seed}: {wrong} wrong")
    return wrong


def _make_photos(folder: Path) -> None:
    from padim_edge.images.synthetic import make_dataset

    sizes = {"train": 12, "good": 4, "per_defect": 2, "size": 96}
    process = fork.Process(target=make_dataset, args=(folder,), kwargs=sizes)
    process.start()
    process.join(PATIENCE)


def _check_whole(whole: Path) -> None:
    """Read what an undisturbed run leaves."""
    readers: dict[str, Callable[[Path], object]] = {
        ".onnx": lambda path: read(path, "padim"),
        ".npz": lambda path: list(np.load(path).values()),
        ".png": lambda path: Image.open(path).load(),
        ".json": lambda path: json.loads(path.read_text()),
        ".jsonl": lambda path: list(map(json.loads, path.read_text().splitlines())),
    }
    for path in filter(Path.is_file, whole.rglob("*")):
        readers.get(path.suffix, Path.read_bytes)(path)


def main() -> int:
    """Run a campaign; 1 if something went wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    return 1 if campaign(options.kills, options.seed) else 0


if __name__ == "__main__":
    sys.exit(main())
