"""Work folders that all contenders share, and contenders in processes of their own."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import environments
import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image
from rows import MAKERS, Row

from padim_edge.export.backbones import read_state
from padim_edge.export.export import export_backbone
from padim_edge.model.file import read

HERE = Path(__file__).resolve().parent
PATIENCE_SECONDS = 1800
CACHED_WEIGHTS = ("resnet18-f37072fd.pth", "wide_resnet50_2-9ba9bcbe.pth")


class Running:
    """A contender in its process, opened; `ask` gives an order and waits for the answer.

    Raises:
        RuntimeError: it cannot be opened; its message.
    """

    def __init__(self, row: Row, folder: Path) -> None:
        self.log = folder / "logs" / f"{row.name.replace('/', ' ')}.log"
        self.log.parent.mkdir(exist_ok=True)
        start = time.perf_counter()
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                command(row, folder, "serve"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=surroundings(folder),
            )
        try:
            self.first = self._answer()
        except BaseException:
            self.close()
            raise
        self.seconds = time.perf_counter() - start

    def ask(self, **order: Any) -> dict[str, Any]:
        """One order, one answer.

        Raises:
            RuntimeError: the contender failed; its message.
        """
        if self._process.stdin is None:
            raise RuntimeError("no pipe to the worker")
        with contextlib.suppress(BrokenPipeError):  # then the answer says what became of it
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        patience = threading.Timer(PATIENCE_SECONDS, self._process.kill)
        patience.start()
        line = self._process.stdout.readline() if self._process.stdout else ""
        patience.cancel()
        if not line:
            code = self._process.wait()
            raise RuntimeError(f"the process ended with code {code}: {_last_line(self.log)}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(_message(answer["error"]))
        return answer

    def close(self) -> None:
        """End the process and wait until its memory is free. Closing twice is harmless."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _message(error: str) -> str:
    """An error in one line, without the places in OpenVINO's source that it begins with."""
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    telling = [line for line in lines if "Exception from src" not in line]
    return " ".join(telling or lines)[:300]


def command(row: Row, folder: Path, do: str) -> list[str]:
    """How a row's worker is started."""
    worker = str(HERE / "worker.py")
    python = str(environments.python(row.environment))
    given = [] if row.images == "images.npy" else ["--images", row.images]
    return [python, worker, do, row.place, *row.arguments, "--folder", str(folder), *given]


def shown(line: list[str]) -> str:
    """A command as it is typed at the root of the repository."""
    return shlex.join(line).replace(f"{environments.ROOT}/", "")


def surroundings(folder: Path) -> dict[str, str]:
    """The environment of a worker: AnomaVision takes its weights from torchvision's cache."""
    return {**os.environ, "TORCH_HOME": str(folder / "torch"), "HF_HUB_OFFLINE": "1"}


def _last_line(log: Path) -> str:
    return (log.read_text().strip().splitlines() or ["it said nothing"])[-1][:300]


def make_folder(
    folder: Path,
    backbone: str,
    weights: str,
    frames: list[NDArray[np.uint8]],
    rows: Sequence[Row],
) -> None:
    """What all contenders share: config.json, images/, images.npy, weights, embedding.onnx.

    Args:
        folder: to make.
        backbone: its name, as torchvision has it.
        weights: a file, or "random".
        frames: to fit on, uint8 [H, W, 3], all of one size; whoever needs another resizes them.
        rows: who is to be measured, and so what anomalib has to export.
    """
    # Nothing of an earlier run may be taken for this one's.
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "images").mkdir(parents=True)
    for place, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / "images" / f"{place:04}.png")
    np.save(folder / "images.npy", np.stack(frames))
    torch.manual_seed(1024)
    state = torchvision.models.get_model(backbone, weights=None).state_dict()
    if weights != "random":
        # A file that ends with the last layer used leaves the rest as it is, random.
        state |= read_state(Path(weights))[0]
    torch.save(state, folder / "weights.pth")
    cache = folder / "torch" / "hub" / "checkpoints"
    cache.mkdir(parents=True, exist_ok=True)
    for name in CACHED_WEIGHTS:
        if name.startswith(backbone):
            torch.save(state, cache / name)
    weights = str(folder / "weights.pth")
    export_backbone(folder / "embedding.onnx", backbone, weights=weights)
    export_backbone(folder / "embedding-fp16.onnx", backbone, weights=weights, precision="float16")
    info = read(folder / "embedding.onnx", "embedding").backbone_info
    exports = [row.export for row in rows if row.environment == "anomalib" and row.export]
    config = {
        "backbone": backbone,
        "channels": list(info.channels),
        "given_size": frames[0].shape[:2],
        "anomalib_exports": list(dict.fromkeys(exports)),
    }
    (folder / "config.json").write_text(json.dumps(config))


def export_all(folder: Path, fits: dict[str, Any]) -> dict[str, Any]:
    """Make everybody's files, after the fits; returns what each environment says of its exports."""
    return {name: work(name, "export", folder) for name in fits if "error" not in fits[name]}


def why_not(rows: Sequence[Row], fits: dict[str, Any], made: dict[str, Any]) -> dict[str, str]:
    """By row, why there is nothing to open; rows without trouble are not in it."""
    reasons = {}
    for row in rows:
        if "bare.onnx" in row.arguments:
            continue
        exported = made.get(row.environment, {})
        possible = [fits[row.environment].get("error")]
        if row.export:
            possible += [exported.get("error"), exported.get("failures", {}).get(row.export)]
        if reason := next((one for one in possible if one), None):
            reasons[row.name] = reason
    return reasons


def work(name: str, do: str, folder: Path) -> dict[str, Any]:
    """Fit or export with the tools of one environment, in a process of its own.

    Returns:
        What it says of itself, or {"error": message}.
    """
    python, worker = str(environments.python(name)), str(HERE / "worker.py")
    line = [python, worker, do, MAKERS[name], "--folder", str(folder)]
    print("$", shown(line), file=sys.stderr, flush=True)
    log = folder / f"{name}-{do}.log"
    with log.open("w") as stream:
        done = subprocess.run(line, stdout=subprocess.PIPE, stderr=stream, text=True,
                              env=surroundings(folder))  # fmt: skip
    if done.returncode:
        return {"error": f"exit {done.returncode}: {_last_line(log)}", "command": shown(line)}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**result, "command": shown(line)}
