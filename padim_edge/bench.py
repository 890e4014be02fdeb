"""Latency of a frame, by stage; on a CPU beside the bare backbone, on a GPU beside a memory copy.

How it is measured: blocks of calls of one contender alternate with blocks of the others, with a
short rest and an uncounted call before each, because a runtime's threads go on spinning after a
call and would slow down whoever comes next. Medians and percentiles are over calls; ratios are
of medians of one run. Peak memory and cold start are those of a fresh process.

On a GPU, stages are between CUDA events of one stream (upload, backbone, distances, smoothing,
download; or upload, graph, download), everything else by the host's clock. The distance kernel
is bound by memory, so its yardstick is what a copy within the device's memory reaches in the same
run, counted as bytes read plus bytes written. None of this has run on a GPU yet.

The JSON (``--json``), version `SCHEMA`: the fields of `Report`, with latencies in milliseconds,
sizes in bytes and bandwidths in bytes per second. Null where it does not apply: ``device`` on a
CPU, ``baseline`` where none was asked for; in each of ``results``: ``bare`` and ``ratio`` on a
GPU, ``baseline`` likewise, ``kernel`` without the distance kernel, ``power`` where there are no
sensors (`padim_edge.power`).
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from padim_edge import __version__
from padim_edge.detector import Detector
from padim_edge.errors import PadimEdgeError, UsageError
from padim_edge.graph import cut
from padim_edge.model import FEATURES, NORMALISED, Model, read
from padim_edge.power import Power
from padim_edge.power import measure as measure_power
from padim_edge.progress import Progress, silent
from padim_edge.runtime import DeviceFigures, check_choice, open_graph

if TYPE_CHECKING:
    from padim_edge.runtime.ort import Graph

BLOCK = 10
REST_SECONDS = 0.05
SCHEMA = 1


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
        bytes: of whitening constants, counted once a call: one pass serves 8 frames, and further
            passes of a call find part of them in the cache.
        bandwidth: those bytes in the median time of stage ``distances``.
        of_copy: that bandwidth / the device's ``copy_bandwidth``.
    """

    bytes: int
    bandwidth: float
    of_copy: float


@dataclass(frozen=True)
class BatchResult:
    """Latencies at one batch size, in ms per call.

    Attributes:
        batch: frames per call.
        calls: counted calls of each contender.
        stages: preprocess, then the engine's own; on the CPU each is run alone.
        graph: prepared uint8 frames in, scores and maps out.
        total: frames of the camera's size in, scores and maps out.
        bare: the truncated backbone alone with all its channels, float32 in, layer maps out.
        ratio: graph / bare, of medians.
        baseline: another engine doing what ``graph`` does, in the same run.
        kernel: how near the distance kernel comes to its floor.
        power: while prepared frames went through without a pause.
    """

    batch: int
    calls: int
    stages: dict[str, Latency]
    graph: Latency
    total: Latency
    bare: Latency | None
    ratio: float | None
    baseline: Latency | None
    kernel: Kernel | None
    power: Power | None


@dataclass(frozen=True)
class Report:
    """One run of the benchmark; `to_json` is the stable form.

    ``passed_over`` says why engines before the chosen one do not run here (engine "auto").
    """

    machine: dict[str, str]
    date: str
    model: dict[str, Any]
    engine: str
    engine_description: str
    threads: int
    frame_size: tuple[int, int]
    file_bytes: int
    peak_memory_bytes: int
    cold_start_seconds: float
    scoring: str
    baseline: str | None
    passed_over: tuple[str, ...]
    device: DeviceFigures | None
    results: list[BatchResult]

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the version of the schema."""
        return {"schema": SCHEMA, **asdict(self)}


def bench(
    path: Path,
    engine: str = "auto",
    batches: Sequence[int] = (1,),
    threads: int = 0,
    calls: int = 100,
    frame_size: tuple[int, int] = (900, 900),
    progress: Progress = silent,
    scoring: str = "kernels",
    baseline: str | None = None,
) -> Report:
    """Measure a model in an engine.

    Args:
        path: a padim.onnx.
        engine: name of the engine, or "auto".
        batches: batch sizes.
        threads: of the engine and of the bare backbone; 0 for all cores.
        calls: counted calls of each contender at batch 1; fewer for larger batches, at least 30.
        frame_size: (h, w) of the camera's frames, for the preprocess stage and the total.
        progress: called as work goes on.
        scoring: "kernels", or "graph" with engine "trt".
        baseline: another engine to measure in the same run, as "ort", or "trt/graph" for
            TensorRT without our kernels.
    """
    if calls < 1:
        raise UsageError(f"--calls {calls}: a number of at least 1 is needed")
    check_choice(engine, scoring)
    other, _, other_scoring = (baseline or "ort").partition("/")
    check_choice(other, other_scoring or "kernels")
    if engine != "ort":
        # Builds what is built once, a plan or kernels: it is no part of a start.
        Detector(path, engine, threads, scoring, progress).close()
    cold_start, peak = _fresh_process(path, engine, threads, scoring)
    model = read(path, "padim")
    with contextlib.ExitStack() as stack:
        detector = stack.enter_context(Detector(path, engine, threads, scoring, progress))
        bare = None
        if detector.engine.name == "ort":
            yardstick = open_graph(bare_backbone(model).SerializeToString(), threads)
            bare = stack.enter_context(yardstick)
        second = None
        if baseline:
            choice = (other, threads, other_scoring or "kernels", progress)
            second = stack.enter_context(Detector(path, *choice))
        measured = [
            # At least three blocks, or nothing would be interleaved.
            _measure(
                detector,
                bare,
                second,
                batch,
                max(3 * BLOCK, calls // batch),
                frame_size,
                progress,
            )
            for batch in batches
        ]
        # After the batches: their scratch memory is then in the figure.
        device = detector.engine.figures()
        results = [_with_kernel(one, device) for one in measured]
        info = detector.embedding
        return Report(
            machine=machine(),
            date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            model={
                "file": path.name,
                "sha256": model.sha256,
                "backbone": info.backbone,
                "channels": len(info.channels),
                "image_size": list(info.image_size),
                "constants": detector.detection.constants,
            },
            engine=detector.engine.name,
            engine_description=detector.engine.describe(),
            threads=threads,
            frame_size=frame_size,
            file_bytes=path.stat().st_size,
            peak_memory_bytes=peak,
            cold_start_seconds=cold_start,
            scoring=scoring,
            baseline=baseline,
            passed_over=detector.passed_over,
            device=device,
            results=results,
        )


def machine() -> dict[str, str]:
    """Processor, cores, system and versions: what a figure is worth nothing without."""
    return {
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else "?"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "padim-edge": __version__,
        "numpy": np.__version__,
        "onnx": onnx.__version__,
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Model")):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _measure(
    detector: Detector,
    bare: Graph | None,
    second: Detector | None,
    batch: int,
    calls: int,
    frame_size: tuple[int, int],
    progress: Progress,
) -> BatchResult:
    generator = np.random.default_rng(0)
    height, width = detector.embedding.image_size
    frames = list(generator.integers(0, 256, (batch, *frame_size, 3), dtype=np.uint8))
    images = generator.integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
    normalised = generator.standard_normal((batch, 3, height, width)).astype(np.float32)
    preprocess = detector.detection.preprocess
    stages: dict[str, list[float]] = {}

    def by_stage() -> None:
        for stage, seconds in detector.engine.stages(images).items():
            stages.setdefault(stage, []).append(seconds)

    contenders: dict[str, Callable[[], object]] = {
        "preprocess": lambda: [preprocess(frame) for frame in frames],
        "stages": by_stage,
        "graph": lambda: detector.engine.infer(images),
        "total": lambda: detector.batch(frames),
    }
    if bare is not None:
        contenders["bare"] = functools.partial(bare.run, {NORMALISED: normalised})
    if second is not None:
        contenders["baseline"] = functools.partial(second.engine.infer, images)
    seconds = _interleaved(contenders, calls, lambda done: progress(f"batch {batch}", done, calls))
    # by_stage also ran once per block uncounted: drop that call, the first of each block.
    timed = {
        stage: [x for place, x in enumerate(values) if place % (BLOCK + 1)]
        for stage, values in stages.items()
    }
    latencies = {name: Latency.of(values, batch) for name, values in seconds.items()}
    return BatchResult(
        batch=batch,
        calls=len(seconds["graph"]),
        stages={"preprocess": latencies["preprocess"]}
        | {stage: Latency.of(values, batch) for stage, values in timed.items()},
        graph=latencies["graph"],
        total=latencies["total"],
        bare=latencies.get("bare"),
        ratio=latencies["graph"].p50 / latencies["bare"].p50 if bare is not None else None,
        baseline=latencies.get("baseline"),
        kernel=None,
        power=measure_power(contenders["graph"], batch),
    )


def _with_kernel(result: BatchResult, device: DeviceFigures | None) -> BatchResult:
    """Add the distance kernel's figures, which need those of the device."""
    stage = result.stages.get("distances")
    if device is None or stage is None or not device.constants_bytes:
        return result
    bandwidth = device.constants_bytes / (stage.p50 / 1e3)
    kernel = Kernel(device.constants_bytes, bandwidth, bandwidth / device.copy_bandwidth)
    return replace(result, kernel=kernel)


def _interleaved(
    contenders: dict[str, Callable[[], object]], calls: int, progress: Callable[[int], None]
) -> dict[str, list[float]]:
    """Seconds of each counted call, blocks of the contenders taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
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


def bare_backbone(model: Model) -> onnx.ModelProto:
    """The truncated backbone with all its channels, as it was before any selection.

    Export drops what nobody chose: it keeps only chosen rows of the last convolutions and picks
    channels by Gather. Here the rows are put back (as zeros: time does not depend on values) and
    the Gathers taken out, so that a device without torch can measure the yardstick.

    Returns:
        A graph from ``normalised`` to one output per layer, in the order of the layers.
    """
    info = model.embedding
    names = [FEATURES + name for name in info.layers]
    if set(names) != set(model.feature_names()):
        raise PadimEdgeError("a layer has no chosen channel, so its bare form is not in the file")
    proto = cut(model.proto, [NORMALISED], names)
    graph = proto.graph
    makers = {node.output[0]: node for node in graph.node}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    gathers: dict[str, str] = {}

    def restore(name: str, channels: int) -> None:
        """Undo a selection that moved up from this tensor, along the way it took."""
        node = makers.get(name)
        if node is None:
            return
        if node.op_type == "Gather":
            gathers[name] = node.input[0]
        elif node.op_type == "Conv":
            for key in node.input[1:]:
                rows = numpy_helper.to_array(weights[key])
                missing = channels - len(rows)
                whole = np.pad(rows, [(0, missing)] + [(0, 0)] * (rows.ndim - 1))
                weights[key].CopyFrom(numpy_helper.from_array(whole, key))
        else:
            for source in node.input:
                restore(source, channels)

    for name, channels in zip(names, info.layer_channels, strict=True):
        restore(name, channels)
    kept = []
    for node in graph.node:
        if node.output[0] not in gathers:
            sources = [gathers.get(source, source) for source in node.input]
            node.input[:] = sources
            kept.append(node)
    outputs = [
        helper.make_tensor_value_info(
            gathers.get(name, name), onnx.TensorProto.FLOAT, ["N", channels, *shape]
        )
        for name, channels, shape in zip(names, info.layer_channels, info.layer_shapes, strict=True)
    ]
    used = {source for node in kept for source in node.input}
    constants = [tensor for tensor in graph.initializer if tensor.name in used]
    bare = helper.make_graph(kept, "bare", list(graph.input), outputs, constants)
    return helper.make_model(
        bare, opset_imports=list(proto.opset_import), ir_version=proto.ir_version
    )


def _fresh_process(path: Path, engine: str, threads: int, scoring: str) -> tuple[float, int]:
    """Seconds from process start to the first score, and the peak memory of that process."""
    code = "import sys; from padim_edge.bench import first_score; first_score(*sys.argv[1:])"
    command = [sys.executable, "-c", code, str(path), engine, str(threads), scoring]
    start = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        if child.stdout is None or child.stderr is None:
            raise RuntimeError("no pipes to the child process")
        line = child.stdout.readline()
        seconds = time.perf_counter() - start
        errors = child.stderr.read()
    if not line:
        # The child's last line says what its own command would have said.
        raise PadimEdgeError((errors.strip().splitlines() or ["the child process failed"])[-1])
    return seconds, int(json.loads(line)["peak_memory_bytes"])


def first_score(path: str, engine: str, threads: str, scoring: str) -> None:
    """Open a model, judge one frame, print the peak memory: what `_fresh_process` runs."""
    try:
        with Detector(path, engine, int(threads), scoring) as detector:
            height, width = detector.embedding.image_size
            detector(np.zeros((height, width, 3), dtype=np.uint8))
            print(json.dumps({"peak_memory_bytes": peak_memory()}), flush=True)
    except PadimEdgeError as error:
        sys.exit(str(error))


def peak_memory() -> int:
    """Peak resident bytes of this process.

    From VmHWM where there is one: ru_maxrss of a child counts its parent's pages before exec.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
