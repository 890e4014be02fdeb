"""The proof's lines on the engines: the same scores as on the CPU, and the time that they take."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from padim_edge.errors import MissingDependencyError, PadimEdgeError, first_line
from padim_edge.images.frames import Frame
from padim_edge.measure.bench import run_benchmark
from padim_edge.measure.camera import Camera
from padim_edge.measure.proof_detectors import random_images, worst, write_detector
from padim_edge.measure.proof_line import (
    PRESETS,
    Line,
    Sizes,
    Spec,
    benchmarked,
    compared,
    line,
    rounded,
)
from padim_edge.measure.report import BatchResult, Latency
from padim_edge.model.file import Model
from padim_edge.runtime.engines import Engine, FrameEngine, open_engine

TOLERANCES = {"float32": 1e-3, "float16": 2e-2, "int8": 1e-1}
"""By the type of the backbone: of the largest value, for int8 of the values' range. The kernels are
judged by themselves; this is how differently two runtimes may round a backbone: sums in another
order, of int8 another step. A wrong index is off by the whole value. Those of float16 and int8 have
met no GPU yet."""

FRAMES = 9
"""Different images that are compared; larger batches have them again."""

TURNS = 3
"""Of each batch size, with other images each time: the second is recorded as a CUDA graph, and
from then on the recording is what runs."""


def parity(sizes: Sizes, folder: Path, engine: str, network: str) -> Iterator[Line]:
    """Scores and maps beside those of engine ``ort``; frames beside prepared images, bit for bit.

    What is opened the first time, which builds plans, is opened again, which loads them.
    """
    for preset in PRESETS:
        yield _preset(sizes, folder, engine, network, preset)


def _preset(sizes: Sizes, folder: Path, engine: str, network: str, preset: str) -> Line:
    """All detectors of a preset, their errors and seconds by the type of the backbone."""
    errors: dict[str, float] = {}
    ready: dict[str, list[float]] = {}
    wrong: list[str] = []
    described = ""
    specs = compared(sizes, engine, network, preset)
    for spec in specs:
        kind, types = spec.backbone, f"{spec.backbone}/{spec.constants}"
        try:
            error, seconds, described = _compared(sizes, folder, engine, spec)
        except PadimEdgeError as trouble:
            absent = isinstance(trouble.__cause__, ModuleNotFoundError)
            if absent or isinstance(trouble, MissingDependencyError):
                raise  # of all detectors, and it is "not run"
            wrong.append(f"{types}: {first_line(trouble)}")
            continue
        errors[kind] = float(np.max([errors.get(kind, 0.0), rounded(error)]))
        # The first of a backbone: with other constants the engine `trt` finds its plan.
        ready.setdefault(kind, [rounded(x) for x in seconds])
        if not error <= TOLERANCES[kind]:  # nor NaN
            wrong.append(f"{types} is off by {error:.1e}, at most {TOLERANCES[kind]:g} is allowed")
        graphs = "in CUDA graphs" in described and "without CUDA graphs" not in described
        if engine.startswith("trt") and not graphs:
            wrong.append(f"{types} runs {described}: it should be in CUDA graphs")
    told = []
    if errors:
        first, again = (max(of) for of in zip(*ready.values(), strict=True))
        told = [
            f"largest error {np.max(list(errors.values())):.1e}",
            f"ready in up to {first:g} s, again in {again:g} s",
            described,
        ]
    return line(
        f"{engine} {network} {preset}",
        not wrong,
        "; ".join([*wrong, f"{len(specs)} detectors", *told]),
        errors=errors,
        seconds_ready=ready,
    )


def _compared(
    sizes: Sizes, folder: Path, engine: str, spec: Spec
) -> tuple[float, tuple[float, float], str]:
    """Largest error of a detector; seconds until it is ready, the first time and again; what runs.

    Ready is opened and run at each batch size: some plans are not made before they are needed.
    """
    model = write_detector(spec, sizes.image, folder / "padim.onnx")
    images = random_images(model, FRAMES)
    cpu = open_engine("ort", model)
    try:
        wanted = cpu.infer(images)[1].astype(np.float64)
    finally:
        cpu.close()
    unit = float(np.ptp(wanted)) if spec.backbone == "int8" else 0.0
    turns = [(np.arange(n) + turn) % FRAMES for n in sizes.compared for turn in range(TURNS)]
    errors, seconds = [], []
    for _ in range(2):
        start = time.perf_counter()
        one = open_engine(engine, model)
        try:
            found = [one.infer(images[of]) for of in turns]
            seconds.append(time.perf_counter() - start)
            errors += [worst(x, wanted[of], unit) for x, of in zip(found, turns, strict=True)]
            _check_frames(one, model, sizes.camera)
            described = one.describe()
        finally:
            one.close()
    return float(np.max(errors)), (seconds[0], seconds[1]), described


def _check_frames(engine: Engine, model: Model, camera: tuple[int, int]) -> None:
    """Refuse an engine that judges frames otherwise than the images that the CPU makes of them."""
    if model.detector_info is None:
        return
    shape = (camera[1] // 2 * 3, camera[0] // 2 * 2)
    rng = np.random.default_rng(5)
    for _ in range(TURNS):
        frames = [Frame(rng.integers(0, 256, shape, dtype=np.uint8), "nv12") for _ in range(3)]
        if not isinstance(engine, FrameEngine) or not all(map(engine.takes, frames)):
            return
        images = np.stack([model.detector_info.preprocess(frame) for frame in frames])
        if not np.array_equal(engine.infer_frames(frames)[1], engine.infer(images)[1]):
            raise PadimEdgeError("a frame that it prepares itself gets another score map")


# --- speed --------------------------------------------------------------------------------------


def speed(sizes: Sizes, folder: Path, engine: str, network: str) -> Iterator[Line]:
    """What `padim-edge bench` measures, in short."""
    for spec in benchmarked(sizes, engine, network):
        yield _timed(sizes, folder / "padim.onnx", engine, spec)


def _timed(sizes: Sizes, path: Path, engine: str, spec: Spec) -> Line:
    write_detector(spec, sizes.image, path)
    camera = Camera(*sizes.camera)
    report = run_benchmark([path], (engine,), sizes.batches, 0, sizes.calls, (camera,))
    (found,) = report.engines
    memory = found.device.memory_bytes if found.device else 0
    rates = ", ".join(f"{one.graph.throughput:.0f}" for one in found.results)
    return line(
        f"{engine} {spec}",
        all(one.graph.p50 > 0 for one in found.results),
        f"{rates} frames/s at batch {', '.join(map(str, sizes.batches))}; device memory "
        f"{memory / 1e6:.0f} MB, process to first score {found.cold_start_seconds:.1f} s",
        device_bytes=memory,
        plans=[
            [*one.batch, one.scratch_bytes] for one in (found.device.plans if found.device else ())
        ],
        peak_bytes=found.peak_memory_bytes,
        start_seconds=rounded(found.cold_start_seconds),
        batches={str(one.batch): _batch(one) for one in found.results},
    )


def _batch(one: BatchResult) -> dict[str, Any]:
    """A batch size: ms of p50, p95 and p99 by stage, of the graph and from a camera's frame."""
    (frame,) = one.frames
    extra = {
        "of_copy": one.kernel and rounded(one.kernel.of_copy),
        "millijoules": one.power and rounded(one.power.millijoules_per_frame),
    }
    return {
        "graph": _percentiles(one.graph),
        **{name: _percentiles(of) for name, of in one.stages.items()},
        "frame": _percentiles(frame.whole),
        **{name: value for name, value in extra.items() if value is not None},
    }


def _percentiles(one: Latency) -> Sequence[float]:
    """In ms, no finer than a microsecond."""
    return [round(rounded(x), 3) for x in (one.p50, one.p95, one.p99)]
