"""Latency of a frame by stage, of models in engines, all in one interleaved run.

What is measured how stands in docs/bench.md; what comes of it in `padim_edge.measure.report`.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from padim_edge.detect.detector import Detector
from padim_edge.errors import PadimEdgeError, UsageError
from padim_edge.images.frames import Frame
from padim_edge.measure.bare_backbone import bare_backbone, has_bare_backbone
from padim_edge.measure.camera import Camera
from padim_edge.measure.power import measure as measure_power
from padim_edge.measure.rates import measure_machine
from padim_edge.measure.report import (
    BatchResult,
    EngineReport,
    FrameResult,
    Kernel,
    Latency,
    OnDevice,
    Report,
    announce,
)
from padim_edge.measure.roofline import Prediction, predict
from padim_edge.measure.roofline import check as check_roofline
from padim_edge.measure.starts import STARTS, measure_start
from padim_edge.model.file import read
from padim_edge.model.names import NORMALISED
from padim_edge.progress import Progress, silent
from padim_edge.runtime.engines import ENGINES, DeviceFigures, Engine, FrameEngine
from padim_edge.runtime.graphs import open_graph

if TYPE_CHECKING:
    from padim_edge.runtime.graphs import Graph

BLOCK = 10
REST_SECONDS = 0.05

FULL_HD = Camera(1920, 1080, "bgr")

Row = tuple[str, str]
"""A model, by what its report calls it, and an engine."""

Contender = tuple[Row, str]
"""A row, and what is measured of it."""

Who = TypeVar("Who")


def run_benchmark(
    paths: Sequence[Path],
    engines: Sequence[str] = ("auto",),
    batches: Sequence[int] = (1,),
    threads: int = 0,
    calls: int = 100,
    cameras: Sequence[Camera] = (FULL_HD,),
    progress: Progress = silent,
    roofline: bool = False,
) -> Report:
    """Measure models in engines, each in each, all in one interleaved run.

    Args:
        paths: one padim.onnx or more, each once; their inputs may have different sizes.
        engines: names of `padim_edge.runtime.engines.ENGINES`, each once; or "auto" alone.
        batches: batch sizes, each once.
        threads: of the engines and of the bare backbone; 0 for all cores.
        calls: counted calls of each contender at batch 1; fewer for larger batches, at least 30.
        cameras: whose frames are followed from pixels to decision, each once; none is allowed.
        progress: called as work goes on.
        roofline: also predict floors (`padim_edge.measure.roofline`), from this machine's rates
            measured right after the latencies.

    Raises:
        UsageError: no such engine, batch size or number of calls, or one of them, a model or a
            camera twice.
        PadimEdgeError: a file is no detector, or an engine does not run here.
    """
    check_engines(engines)
    _check_numbers(batches, calls)
    check_cameras(cameras)
    report = announce(paths, threads)
    models = {facts.file: path for facts, path in zip(report.models, paths, strict=True)}
    if roofline:
        for path in paths:
            check_roofline(read(path, "padim"))
    # Each alone, one after another: nobody else's memory is in its figures.
    alone = [
        _alone(models, (file, name), max(batches), threads, progress)
        for file, name in itertools.product(models, engines)
    ]
    together = _together(models, alone, batches, threads, calls, cameras, progress)
    report = replace(report, engines=together)
    return replace(report, roofline=_roofline(models, report)) if roofline else report


def _roofline(models: Mapping[str, Path], report: Report) -> tuple[Prediction, ...]:
    """Floors of each model and batch size, beside what engine ``ort`` took if it was measured."""
    here = measure_machine(report.threads)
    found = []
    for file, path in models.items():
        model = read(path, "padim")
        rows = {one.name: one for one in report.engines if one.model == file}
        ort = rows.get("ort")
        found += [
            predict(model, here, result.batch, result.graph.p50 if ort else None, file)
            for result in (ort or next(iter(rows.values()))).results
        ]
    return tuple(found)


def _check_numbers(batches: Sequence[int], calls: int) -> None:
    if not batches or min(batches) < 1 or len(set(batches)) < len(batches):
        given = ",".join(map(str, batches))
        raise UsageError(f"--batch {given}: sizes of at least 1 are needed, each once")
    if calls < 1:
        raise UsageError(f"--calls {calls}: a number of at least 1 is needed")


def check_cameras(cameras: Sequence[Camera]) -> None:
    """Refuse cameras that `run_benchmark` would refuse, before any work.

    Raises:
        UsageError: one of them twice.
    """
    if len(set(cameras)) < len(cameras):
        given = ",".join(f"{one.width}x{one.height}" for one in cameras)
        raise UsageError(f"--frame {given}: name each size once")


def check_engines(names: Sequence[str]) -> None:
    """Refuse a list of engines that `run_benchmark` would refuse, before any work.

    Raises:
        UsageError: a name that is none, a name twice, or "auto" beside another.
    """
    given = ",".join(names)
    for name in names or ("",):
        if name not in ("auto", *ENGINES):
            raise UsageError(
                f"--engine {given}: unknown engine '{name}': choose auto alone, or any of "
                f"{', '.join(ENGINES)}"
            )
    if len(set(names)) < len(names):
        raise UsageError(f"--engine {given}: name each engine once")
    if "auto" in names and len(names) > 1:
        raise UsageError(f"--engine {given}: auto chooses one engine; name it alone")


def _open_bare(path: Path, threads: int) -> Graph | None:
    model = read(path, "padim")
    if not has_bare_backbone(model):
        return None
    return open_graph(bare_backbone(model).SerializeToString(), "ort", threads)


@contextlib.contextmanager
def _naming(models: Mapping[str, Path], row: Row) -> Iterator[None]:
    """Say in an error whose it is; "auto" names the engines that it tried itself."""
    try:
        yield
    except PadimEdgeError as error:
        file, name = row
        whose = [file] if len(models) > 1 else []
        whose += [f"engine {name}"] if name != "auto" else []
        if whose:
            error.args = (f"{', '.join(whose)}: {error}",)
        raise


def _alone(
    models: Mapping[str, Path], row: Row, batch: int, threads: int, progress: Progress
) -> EngineReport:
    """A row with nobody beside it: its memory and its starts, and what "auto" chose.

    It also builds what is built once, a plan or kernels, which is no part of a start; and whoever
    does not run here says so before minutes of measuring.
    """
    file, name = row
    path = models[file]
    with _naming(models, row):
        with Detector(path, name, threads, progress) as detector:
            images = np.zeros((batch, *detector.backbone_info.image_size, 3), np.uint8)
            for _ in range(3):  # what is recorded, is with the second
                detector.engine.infer(images)
            chosen = detector.engine.name if name == "auto" else name
            description = detector.engine.describe()
            device = detector.engine.figures()
        starts = [measure_start(path, chosen, threads) for _ in range(STARTS)]
    return EngineReport(
        model=file,
        name=chosen,
        description=description,
        skipped=detector.skipped,
        cold_start_seconds=statistics.median(seconds for seconds, _ in starts),
        peak_memory_bytes=statistics.median_low(peak for _, peak in starts),
        device=device,
        results=(),
    )


def _together(
    models: Mapping[str, Path],
    alone: Sequence[EngineReport],
    batches: Sequence[int],
    threads: int,
    calls: int,
    cameras: Sequence[Camera],
    progress: Progress,
) -> tuple[EngineReport, ...]:
    """All rows open at once and taking turns: the results that their reports lack."""
    with contextlib.ExitStack() as stack:
        detectors: dict[Row, Detector] = {}
        bare: dict[Row, Graph] = {}
        for row in ((one.model, one.name) for one in alone):
            file, name = row
            with _naming(models, row):
                detector = Detector(models[file], name, threads, progress)
                detectors[row] = stack.enter_context(detector)
                graph = _open_bare(models[file], threads) if name == "ort" else None
            if graph is not None:
                bare[row] = stack.enter_context(graph)
        frames = {camera: camera.frames() for camera in cameras}
        measured = [
            # At least three blocks, or nothing would be interleaved.
            _measure(detectors, bare, batch, max(3 * BLOCK, calls // batch), frames, progress)
            for batch in batches
        ]
        finished = []
        for one in alone:
            # The bandwidth of a device that is as warm as the kernel had it.
            row = one.model, one.name
            device = detectors[row].engine.figures()
            if device and one.device:
                device = replace(device, memory_bytes=one.device.memory_bytes)
            results = tuple(_with_kernel(of[row], device) for of in measured)
            finished.append(replace(one, device=device, results=results))
    return tuple(finished)


class _FrameCalls:
    """Calls of a detector on a camera's frames, each taken apart.

    The clock is read within the very calls. Preparing and graph, timed alone, would leave more
    noise in a difference than what stands between them takes.
    """

    def __init__(self, detector: Detector, frames: Sequence[NDArray[Any]], camera: Camera) -> None:
        self._detector, self._camera = detector, camera
        self._frames = itertools.cycle(frames)
        self._seconds: dict[str, float] = {}
        self.rows: list[dict[str, float]] = []

    def __call__(self, batch: int) -> None:
        frames = list(itertools.islice(self._frames, batch))
        self._seconds = {"prepare": 0.0, "graph": 0.0}
        with self._watching():
            start = time.perf_counter()
            self._detector.batch(frames, self._camera.pixel_format)
            whole = time.perf_counter() - start
        rest = whole - sum(self._seconds.values())
        self.rows.append({**self._seconds, "rest": rest, "whole": whole})

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        """Add up the time within what prepares and what judges."""
        engine = self._detector.engine
        parts = ((self._detector, "prepare", "prepare"), (engine, "infer", "graph"),
                 (engine, "infer_frames", "graph"))  # fmt: skip
        watched = [part for part in parts if hasattr(part[0], part[1])]
        for thing, name, part in watched:
            setattr(thing, name, self._timed(getattr(thing, name), part))
        try:
            yield
        finally:
            for thing, name, _ in watched:
                delattr(thing, name)

    def _timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            # If it calls the other of an engine's two, that time is not counted twice.
            before, start = self._seconds[part], time.perf_counter()
            result = function(*arguments)
            self._seconds[part] = before + time.perf_counter() - start
            return result

        return call


def _on_device(
    engine: Engine, camera: Camera, pixels: Sequence[NDArray[Any]], batch: int
) -> OnDevice | None:
    """What an engine takes to prepare frames itself, if it does."""
    turns = itertools.cycle(pixels)
    frames = [Frame(next(turns), camera.pixel_format) for _ in range(batch)]
    if not isinstance(engine, FrameEngine) or not all(map(engine.takes, frames)):
        return None
    rows = [engine.frame_stages(frames) for _ in range(BLOCK + 1)][1:]
    upload, prepare = (
        statistics.median(row[name] for row in rows) for name in ("upload", "prepare")
    )
    size = sum(frame.layout.nbytes for frame in frames)
    return OnDevice(1e3 * upload, 1e3 * prepare, size / prepare)


def _measure(
    detectors: Mapping[Row, Detector],
    bare: Mapping[Row, Graph],
    batch: int,
    calls: int,
    frames: Mapping[Camera, Sequence[NDArray[Any]]],
    progress: Progress,
) -> dict[Row, BatchResult]:
    """Each row's results at one batch size."""
    first = next(iter(detectors))
    stages: dict[Row, list[dict[str, float]]] = {row: [] for row in detectors}
    calls_on: dict[tuple[Row, Camera], _FrameCalls] = {}

    def by_stage(row: Row, images: NDArray[np.uint8]) -> None:
        stages[row].append(detectors[row].engine.stages(images))

    contenders: dict[Contender, Callable[[], object]] = {}
    for row, detector in detectors.items():
        generator = np.random.default_rng(0)
        size = detector.backbone_info.image_size
        images = generator.integers(0, 256, (batch, *size, 3), dtype=np.uint8)
        contenders[row, "stages"] = functools.partial(by_stage, row, images)
        contenders[row, "graph"] = functools.partial(detector.engine.infer, images)
        for camera, pixels in frames.items():
            calls_on[row, camera] = _FrameCalls(detector, pixels, camera)
            contenders[row, str(camera)] = functools.partial(calls_on[row, camera], batch)
        if row in bare:
            normalised = generator.standard_normal((batch, 3, *size)).astype(np.float32)
            contenders[row, "bare"] = functools.partial(bare[row].run, {NORMALISED: normalised})
    seconds = interleave(contenders, calls, lambda done: progress(f"batch {batch}", done, calls))
    latencies = {who: Latency.of(values, batch) for who, values in seconds.items()}

    def by_part(rows: list[dict[str, float]]) -> dict[str, Latency]:
        # A row was made once per block uncounted, too: drop it, the first of each block.
        counted = [row for place, row in enumerate(rows) if place % (BLOCK + 1)]
        return {part: Latency.of([row[part] for row in counted], batch) for part in counted[0]}

    def from_frames(row: Row, camera: Camera, alone: Latency | None) -> FrameResult:
        parts = by_part(calls_on[row, camera].rows)
        ratio = parts["whole"].p50 / alone.p50 if alone else None
        device = _on_device(detectors[row].engine, camera, frames[camera], batch)
        return FrameResult(camera, ratio=ratio, on_device=device, **parts)

    def result(row: Row) -> BatchResult:
        graph, alone = latencies[row, "graph"], latencies.get((row, "bare"))
        return BatchResult(
            batch=batch,
            calls=len(seconds[row, "graph"]),
            stages=by_part(stages[row]),
            graph=graph,
            bare=alone,
            ratio=graph.p50 / alone.p50 if alone else None,
            to_first=None if row == first else graph.p50 / latencies[first, "graph"].p50,
            frames=tuple(from_frames(row, camera, alone) for camera in frames),
            kernel=None,
            power=measure_power(contenders[row, "graph"], batch),
        )

    return {row: result(row) for row in detectors}


def _with_kernel(result: BatchResult, device: DeviceFigures | None) -> BatchResult:
    """Add the distance kernel's figures, which need those of the device."""
    stage = result.stages.get("distances")
    if device is None or stage is None or not device.constants_bytes:
        return result
    bandwidth = device.constants_bytes / (stage.p50 / 1e3)
    kernel = Kernel(device.constants_bytes, bandwidth, bandwidth / device.copy_bandwidth)
    return replace(result, kernel=kernel)


def interleave(
    contenders: Mapping[Who, Callable[[], object]],
    calls: int,
    progress: Callable[[int], None],
) -> dict[Who, list[float]]:
    """Seconds of each counted call, blocks of the contenders taking turns."""
    seconds: dict[Who, list[float]] = {name: [] for name in contenders}
    progress(0)
    for done in range(BLOCK, calls + BLOCK, BLOCK):
        for name, call in contenders.items():
            time.sleep(REST_SECONDS)
            call()
            for _ in range(BLOCK):
                start = time.perf_counter()
                call()
                seconds[name].append(time.perf_counter() - start)
        progress(min(done, calls))
    return seconds
