"""What a benchmark reports: its dataclasses, and the JSON that is made of them.

What the fields mean stands in docs/bench.md; the form of the JSON in docs/bench.schema.json.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from padim_edge import __version__
from padim_edge.errors import ModelError, UsageError
from padim_edge.measure.camera import Camera
from padim_edge.measure.doctor_device import power_mode
from padim_edge.measure.power import Power
from padim_edge.measure.roofline import Prediction
from padim_edge.model.file import read
from padim_edge.runtime.engines import DeviceFigures
from padim_edge.system import available_cores, processor

SCHEMA = 5


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one call over a batch: median and tails, and frames per second."""

    p50: float
    p95: float
    p99: float
    throughput: float

    @classmethod
    def of(cls, seconds: Sequence[float], batch: int) -> Latency:
        """Percentiles of call times; throughput from the median."""
        p50, p95, p99 = (float(x) * 1e3 for x in np.percentile(seconds, [50, 95, 99]))
        return cls(p50, p95, p99, 1e3 * batch / p50)


@dataclass(frozen=True)
class Kernel:
    """The distance kernel against the memory that it reads.

    Attributes:
        bytes: of whitening constants, counted once a call.
        bandwidth: those bytes in the median time of stage ``distances``, per second.
        of_copy: that bandwidth / the device's ``copy_bandwidth``.
    """

    bytes: int
    bandwidth: float
    of_copy: float


@dataclass(frozen=True)
class OnDevice:
    """What an engine that prepares frames on its device takes for it; medians by its own clock.

    Attributes:
        upload: ms per call.
        prepare: ms per call, of the kernel.
        bandwidth: bytes of the frames, as they are, that the kernel takes in per second.
    """

    upload: float
    prepare: float
    bandwidth: float


@dataclass(frozen=True)
class FrameResult:
    """From a camera's pixels to decisions, in ms per call; parts are those of the same calls.

    Attributes:
        camera: whose frames.
        prepare: until the engine takes them.
        graph: in the engine; where it prepares frames itself, that is in it.
        rest: whole - prepare - graph of each call.
        whole: frames in, results out: `Detector.batch`, which with one frame is `Detector`'s call.
        ratio: whole / bare backbone, of medians; None where that was not measured.
        on_device: None where frames are prepared on the CPU.
    """

    camera: Camera
    prepare: Latency
    graph: Latency
    rest: Latency
    whole: Latency
    ratio: float | None
    on_device: OnDevice | None


@dataclass(frozen=True)
class BatchResult:
    """Latencies of a model in an engine at one batch size, in ms per call.

    Attributes:
        batch: frames per call.
        calls: counted calls of each contender.
        stages: the engine's own.
        graph: prepared uint8 frames in, scores and maps out.
        bare: the truncated backbone alone with all its channels, float32 in, layer maps out;
            engine ``ort`` only, and only where the file holds that backbone.
        ratio: graph / bare, of medians.
        to_first: graph / that of the first row (model in an engine), of medians; None for it.
        frames: from the pixels of each camera, in the order asked for.
        kernel: how near the distance kernel comes to its floor.
        power: while prepared frames went through without a pause.
    """

    batch: int
    calls: int
    stages: dict[str, Latency]
    graph: Latency
    bare: Latency | None
    ratio: float | None
    to_first: float | None
    frames: tuple[FrameResult, ...]
    kernel: Kernel | None
    power: Power | None


@dataclass(frozen=True)
class EngineReport:
    """What one model did in one engine.

    Attributes:
        model: which, as `ModelFacts.file` says.
        name: of `padim_edge.runtime.engines.ENGINES`.
        description: libraries with their versions, and the device.
        skipped: why engines before this one do not run here, where "auto" chose it.
        cold_start_seconds: from process start to the first score; median of `starts.STARTS`.
        peak_memory_bytes: resident, of such a process; median of `starts.STARTS`.
        device: None on the CPU.
        results: one for each batch size, in the order asked for.
    """

    model: str
    name: str
    description: str
    skipped: tuple[str, ...]
    cold_start_seconds: float
    peak_memory_bytes: int
    device: DeviceFigures | None
    results: tuple[BatchResult, ...]


@dataclass(frozen=True)
class Machine:
    """What a figure is worth nothing without.

    Attributes:
        processor: or the board, where it names itself.
        cores: that this process may use.
        system: its name and version.
        power_mode: of a Jetson; None elsewhere, and where nvpmodel does not answer.
        versions: of Python and of packages.
    """

    processor: str
    cores: int
    system: str
    power_mode: str | None
    versions: dict[str, str]


@dataclass(frozen=True)
class ModelFacts:
    """Which model.

    Attributes:
        file: its name; of several of the same name in one report, the path as it was given.
        file_bytes: its size.
        sha256: of the file.
        backbone: name of the network.
        precision: of the backbone.
        channels: of the embedding.
        image_size: (h, w) of the graph's input, pixels.
        constants: how the whitening is stored.
    """

    file: str
    file_bytes: int
    sha256: str
    backbone: str
    precision: str
    channels: int
    image_size: tuple[int, int]
    constants: str

    def __str__(self) -> str:
        height, width = self.image_size
        return (
            f"{self.backbone} in {self.precision}, {self.channels} channels, {height} x {width}, "
            f"{self.constants} constants, {self.file_bytes / 1e6:.1f} MB"
        )


@dataclass(frozen=True)
class Report:
    """One run of the benchmark; `to_json` is the stable form.

    Attributes:
        date: when it began; ISO 8601, UTC.
        machine: where.
        models: what, in the order asked for.
        threads: as asked for; 0 is all cores.
        engines: each model in each engine, in the order asked for.
        roofline: floors of each model for each batch size, here and on known devices: predictions.
            None where they were not asked for.
    """

    date: str
    machine: Machine
    models: tuple[ModelFacts, ...]
    threads: int
    engines: tuple[EngineReport, ...]
    roofline: tuple[Prediction, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the version of the schema."""
        return {"schema": SCHEMA, **asdict(self)}

    def label(self, one: EngineReport) -> str:
        """What a row is called: its engine; of several models, the model's file before it."""
        return row_label(one.model if len(self.models) > 1 else None, one.name)


def row_label(file: str | None, engine: str) -> str:
    """A model in an engine, in words; the engine alone without a file."""
    return f"{file}, {engine}" if file else engine


def check_models(paths: Sequence[Path]) -> None:
    """Refuse a list of models that `announce` would refuse, before any work.

    Raises:
        UsageError: none, or a file twice.
    """
    if not paths:
        raise UsageError("no model was given: name one padim.onnx or more")
    seen: dict[Path, Path] = {}
    for path in paths:
        before = seen.setdefault(path.resolve(), path)
        if before is not path:
            raise UsageError(
                f"{path} is the same file as {before}: name each model once (a copy of it, to see "
                "what two runs of one thing differ by, is taken)"
            )


def announce(paths: Sequence[Path], threads: int) -> Report:
    """What is known before anything is measured: a report without engines.

    Raises:
        UsageError: none, or a file twice.
        PadimEdgeError: one of them is no detector.
    """
    check_models(paths)
    names = [path.name for path in paths]
    return Report(
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        machine=machine(),
        models=tuple(
            _facts(path, path.name if names.count(path.name) == 1 else str(path)) for path in paths
        ),
        threads=threads,
        engines=(),
    )


def _facts(path: Path, name: str) -> ModelFacts:
    model = read(path, "padim")
    if model.detector_info is None:
        raise ModelError(f"{path} is no detector")
    info = model.backbone_info
    return ModelFacts(
        file=name,
        file_bytes=path.stat().st_size,
        sha256=model.sha256,
        backbone=info.backbone,
        precision=info.precision,
        channels=len(info.channels),
        image_size=info.image_size,
        constants=model.detector_info.constants,
    )


def machine() -> Machine:
    """This machine, as a report has it."""
    return Machine(
        processor=processor(),
        cores=available_cores(),
        system=platform.platform(),
        power_mode=power_mode(),
        versions={
            "padim-edge": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "onnx": onnx.__version__,
        },
    )
