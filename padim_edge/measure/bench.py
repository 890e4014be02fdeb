"""Latency of a frame by stage, of one engine or of several in one interleaved run.

What is measured how, and what the fields mean, stands in docs/bench.md; the form of the JSON in
docs/bench.schema.json.
"""

from __future__ import annotations

import contextlib
import functools
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from padim_edge import __version__
from padim_edge.detect.detector import Detector
from padim_edge.errors import ModelError, PadimEdgeError, UsageError
from padim_edge.measure.doctor import power_mode
from padim_edge.measure.power import Power
from padim_edge.measure.power import measure as measure_power
from padim_edge.measure.roofline import Prediction, measure_machine, predict
from padim_edge.measure.roofline import check as check_roofline
from padim_edge.model.file import Model, read
from padim_edge.model.graph import subgraph
from padim_edge.model.names import FEATURES, NORMALISED
from padim_edge.progress import Progress, silent
from padim_edge.runtime.engines import ENGINES, DeviceFigures, open_graph
from padim_edge.system import available_cores, processor

if TYPE_CHECKING:
    from padim_edge.runtime.cpu.ort import Graph

CHOICES = (*ENGINES, "trt/graph")
"""Engines that can be compared; ``trt/graph`` is TensorRT without our kernels."""

BLOCK = 10
REST_SECONDS = 0.05
STARTS = 3
START_SECONDS = 600.0
SCHEMA = 2

Contender = tuple[str, str]  # the engine, or "" for all of them, and what is measured


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
class BatchResult:
    """Latencies of an engine at one batch size, in ms per call.

    Attributes:
        batch: frames per call.
        calls: counted calls of each contender.
        stages: preprocess (one measurement for all engines), then the engine's own.
        graph: prepared uint8 frames in, scores and maps out.
        total: frames of the camera's size in, scores and maps out.
        bare: the truncated backbone alone with all its channels, float32 in, layer maps out;
            engine ``ort`` only, and only where the file holds that backbone.
        ratio: graph / bare, of medians.
        to_first: graph / that of the first engine, of medians; None for the first.
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
    to_first: float | None
    kernel: Kernel | None
    power: Power | None


@dataclass(frozen=True)
class EngineReport:
    """What one engine did.

    Attributes:
        name: of `CHOICES`.
        description: libraries with their versions, and the device.
        skipped: why engines before this one do not run here, where "auto" chose it.
        cold_start_seconds: from process start to the first score; median of `STARTS`.
        peak_memory_bytes: resident, of such a process; median of `STARTS`.
        device: None on the CPU.
        results: one for each batch size, in the order asked for.
    """

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
    """Which model; ``precision`` is the backbone's, ``image_size`` (h, w) in pixels."""

    file: str
    sha256: str
    backbone: str
    precision: str
    channels: int
    image_size: tuple[int, int]
    constants: str


@dataclass(frozen=True)
class Report:
    """One run of the benchmark; `to_json` is the stable form.

    Attributes:
        date: when it began; ISO 8601, UTC.
        machine: where.
        model: what.
        file_bytes: size of the model's file.
        frame_size: (h, w) of the camera's frames, in pixels.
        threads: as asked for; 0 is all cores.
        engines: in the order asked for.
        roofline: floors for each batch size, here and on known devices: predictions. None where
            they were not asked for.
    """

    date: str
    machine: Machine
    model: ModelFacts
    file_bytes: int
    frame_size: tuple[int, int]
    threads: int
    engines: tuple[EngineReport, ...]
    roofline: tuple[Prediction, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the version of the schema."""
        return {"schema": SCHEMA, **asdict(self)}


def run_benchmark(
    path: Path,
    engines: Sequence[str] = ("auto",),
    batches: Sequence[int] = (1,),
    threads: int = 0,
    calls: int = 100,
    frame_size: tuple[int, int] = (900, 900),
    progress: Progress = silent,
    roofline: bool = False,
) -> Report:
    """Measure a model in one engine or more, all in one interleaved run.

    Args:
        path: a padim.onnx.
        engines: names of `CHOICES`, each once; or "auto" alone.
        batches: batch sizes, each once.
        threads: of the engines and of the bare backbone; 0 for all cores.
        calls: counted calls of each contender at batch 1; fewer for larger batches, at least 30.
        frame_size: (h, w) of the camera's frames, for the preprocess stage and the total.
        progress: called as work goes on.
        roofline: also predict floors (`measure.roofline`), from this machine's rates measured
            right after the latencies.

    Raises:
        UsageError: no such engine, batch size or number of calls, or one of them twice.
        PadimEdgeError: the file is no detector, or an engine does not run here.
    """
    check_engines(engines)
    if not batches or min(batches) < 1 or len(set(batches)) < len(batches):
        given = ",".join(map(str, batches))
        raise UsageError(f"--batch {given}: sizes of at least 1 are needed, each once")
    if calls < 1:
        raise UsageError(f"--calls {calls}: a number of at least 1 is needed")
    report = announce(path, frame_size, threads)
    if roofline:
        check_roofline(read(path, "padim"))
    # Each alone, one after another: nobody else's memory is in its figures.
    alone = [_alone(path, name, max(batches), threads, progress) for name in engines]
    with contextlib.ExitStack() as stack:
        detectors = {}
        for one in alone:
            with _naming(one.name):
                detectors[one.name] = stack.enter_context(_open(path, one.name, threads, progress))
        bare = _open_bare(path, threads) if "ort" in detectors else None
        if bare is not None:
            stack.enter_context(bare)
        measured = [
            # At least three blocks, or nothing would be interleaved.
            _measure(detectors, bare, batch, max(3 * BLOCK, calls // batch), frame_size, progress)
            for batch in batches
        ]
        finished = []
        for one in alone:
            device = detectors[one.name].engine.figures()
            if device and one.device:
                # The bandwidth of a device that is as warm as the kernel had it.
                device = replace(device, memory_bytes=one.device.memory_bytes)
            results = tuple(_with_kernel(of[one.name], device) for of in measured)
            finished.append(replace(one, device=device, results=results))
    report = replace(report, engines=tuple(finished))
    return replace(report, roofline=_roofline(path, report)) if roofline else report


def _roofline(path: Path, report: Report) -> tuple[Prediction, ...]:
    """Floors for each batch size, beside what engine ``ort`` took if it was measured."""
    model = read(path, "padim")
    here = measure_machine(report.threads)
    ort = next((one for one in report.engines if one.name == "ort"), None)
    return tuple(
        predict(model, here, result.batch, result.graph.p50 if ort else None)
        for result in (ort or report.engines[0]).results
    )


def check_engines(names: Sequence[str]) -> None:
    """Refuse a list of engines that `bench` would refuse, before any work.

    Raises:
        UsageError: a name that is none, a name twice, or "auto" beside another.
    """
    given = ",".join(names)
    for name in names or ("",):
        if name not in ("auto", *CHOICES):
            raise UsageError(
                f"--engine {given}: unknown engine '{name}': choose auto alone, or any of "
                f"{', '.join(CHOICES)}"
            )
    if len(set(names)) < len(names):
        raise UsageError(f"--engine {given}: name each engine once")
    if "auto" in names and len(names) > 1:
        raise UsageError(f"--engine {given}: auto chooses one engine; name it alone")


def announce(path: Path, frame_size: tuple[int, int], threads: int) -> Report:
    """What is known before anything is measured: a report without engines."""
    model = read(path, "padim")
    if model.detector_info is None:
        raise ModelError(f"{path} is no detector")
    info = model.backbone_info
    return Report(
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        machine=machine(),
        model=ModelFacts(
            file=path.name,
            sha256=model.sha256,
            backbone=info.backbone,
            precision=info.precision,
            channels=len(info.channels),
            image_size=info.image_size,
            constants=model.detector_info.constants,
        ),
        file_bytes=path.stat().st_size,
        frame_size=frame_size,
        threads=threads,
        engines=(),
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


def _open(path: Path, name: str, threads: int, progress: Progress) -> Detector:
    engine, _, scoring = name.partition("/")
    return Detector(path, engine, threads, scoring or "kernels", progress)


def _open_bare(path: Path, threads: int) -> Graph | None:
    model = read(path, "padim")
    if not has_bare_backbone(model):
        return None
    return open_graph(bare_backbone(model).SerializeToString(), threads)


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    """Say in an error whose it is; "auto" names the engines that it tried itself."""
    try:
        yield
    except PadimEdgeError as error:
        if name != "auto":
            error.args = (f"engine {name}: {error}",)
        raise


def _alone(path: Path, name: str, batch: int, threads: int, progress: Progress) -> EngineReport:
    """An engine with nobody beside it: its memory and its starts, and what "auto" chose.

    It also builds what is built once, a plan or kernels, which is no part of a start; and whoever
    does not run here says so before minutes of measuring.
    """
    with _naming(name):
        with _open(path, name, threads, progress) as detector:
            images = np.zeros((batch, *detector.backbone_info.image_size, 3), np.uint8)
            detector.engine.infer(images)
            chosen = detector.engine.name if name == "auto" else name
            description = detector.engine.describe()
            device = detector.engine.figures()
        starts = [_fresh_process(path, chosen, threads) for _ in range(STARTS)]
    return EngineReport(
        name=chosen,
        description=description,
        skipped=detector.skipped,
        cold_start_seconds=statistics.median(seconds for seconds, _ in starts),
        peak_memory_bytes=statistics.median_low(peak for _, peak in starts),
        device=device,
        results=(),
    )


def _measure(
    detectors: Mapping[str, Detector],
    bare: Graph | None,
    batch: int,
    calls: int,
    frame_size: tuple[int, int],
    progress: Progress,
) -> dict[str, BatchResult]:
    """Each engine's results at one batch size."""
    first, detector = next(iter(detectors.items()))
    generator = np.random.default_rng(0)
    height, width = detector.backbone_info.image_size
    frames = list(generator.integers(0, 256, (batch, *frame_size, 3), dtype=np.uint8))
    images = generator.integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
    normalised = generator.standard_normal((batch, 3, height, width)).astype(np.float32)
    preprocess = detector.detector_info.preprocess
    stages: dict[str, list[dict[str, float]]] = {name: [] for name in detectors}

    def by_stage(name: str) -> None:
        stages[name].append(detectors[name].engine.stages(images))

    contenders: dict[Contender, Callable[[], object]] = {
        ("", "preprocess"): lambda: [preprocess(frame) for frame in frames]
    }
    for name, detector in detectors.items():
        contenders[name, "stages"] = functools.partial(by_stage, name)
        contenders[name, "graph"] = functools.partial(detector.engine.infer, images)
        contenders[name, "total"] = functools.partial(detector.batch, frames)
    if bare is not None:
        contenders["ort", "bare"] = functools.partial(bare.run, {NORMALISED: normalised})
    seconds = _interleaved(contenders, calls, lambda done: progress(f"batch {batch}", done, calls))
    latencies = {who: Latency.of(values, batch) for who, values in seconds.items()}

    def result(name: str) -> BatchResult:
        # by_stage also ran once per block uncounted: drop that call, the first of each block.
        rows = [row for place, row in enumerate(stages[name]) if place % (BLOCK + 1)]
        graph, alone = latencies[name, "graph"], latencies.get((name, "bare"))
        return BatchResult(
            batch=batch,
            calls=len(seconds[name, "graph"]),
            stages={"preprocess": latencies["", "preprocess"]}
            | {stage: Latency.of([row[stage] for row in rows], batch) for stage in rows[0]},
            graph=graph,
            total=latencies[name, "total"],
            bare=alone,
            ratio=graph.p50 / alone.p50 if alone else None,
            to_first=None if name == first else graph.p50 / latencies[first, "graph"].p50,
            kernel=None,
            power=measure_power(contenders[name, "graph"], batch),
        )

    return {name: result(name) for name in detectors}


def _with_kernel(result: BatchResult, device: DeviceFigures | None) -> BatchResult:
    """Add the distance kernel's figures, which need those of the device."""
    stage = result.stages.get("distances")
    if device is None or stage is None or not device.constants_bytes:
        return result
    bandwidth = device.constants_bytes / (stage.p50 / 1e3)
    kernel = Kernel(device.constants_bytes, bandwidth, bandwidth / device.copy_bandwidth)
    return replace(result, kernel=kernel)


def _interleaved(
    contenders: Mapping[Contender, Callable[[], object]],
    calls: int,
    progress: Callable[[int], None],
) -> dict[Contender, list[float]]:
    """Seconds of each counted call, blocks of the contenders taking turns."""
    seconds: dict[Contender, list[float]] = {name: [] for name in contenders}
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


def has_bare_backbone(model: Model) -> bool:
    """Whether the file holds all layers: one without a chosen channel was left out by export."""
    return {FEATURES + name for name in model.backbone_info.layers} == set(model.feature_names())


def bare_backbone(model: Model) -> onnx.ModelProto:
    """The truncated backbone with all its channels, as it was before any selection.

    Export drops what nobody chose: it keeps only chosen rows of the last convolutions and picks
    channels by Gather. Here the rows are put back (as zeros: time does not depend on values) and
    the Gathers taken out, so that a device without torch can measure the yardstick.

    Returns:
        A graph from ``normalised`` to one output per layer, in the order of the layers.

    Raises:
        PadimEdgeError: the file does not hold it; see `has_bare_backbone`.
    """
    info = model.backbone_info
    names = [FEATURES + name for name in info.layers]
    if not has_bare_backbone(model):
        raise PadimEdgeError("a layer has no chosen channel, so its bare form is not in the file")
    proto = subgraph(model.proto, [NORMALISED], names)
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


def _fresh_process(path: Path, name: str, threads: int) -> tuple[float, int]:
    """Seconds from process start to the first score, and the peak memory of that process."""
    code = (
        "import sys; from padim_edge.measure.bench import first_score; first_score(*sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, str(path), name, str(threads)]
    found, seconds = "", 0.0
    start = time.perf_counter()
    # Errors go to a file: a pipe that nobody empties would stop whoever fills it.
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors
        ) as child,
    ):
        limit = threading.Timer(START_SECONDS, child.kill)
        limit.start()
        try:
            for line in child.stdout or ():
                # What else stands on stdout is some library's.
                if line.startswith(b'{"peak_memory_bytes"'):
                    found, seconds = line.decode(), time.perf_counter() - start
            status = child.wait()
        finally:
            limit.cancel()
            child.kill()
        errors.seek(0)
        said = errors.read().decode(errors="replace").strip().splitlines()
    if status < 0:
        late = time.perf_counter() - start >= START_SECONDS
        what = f"gave no score within {START_SECONDS:g} s" if late else f"died of signal {-status}"
        raise PadimEdgeError(f"a fresh process {what}")
    if status or not found:
        # The child's last line says what its own command would have said.
        raise PadimEdgeError((said or [f"a fresh process failed (exit code {status})"])[-1])
    return seconds, int(json.loads(found)["peak_memory_bytes"])


def first_score(path: str, name: str, threads: str) -> None:
    """Open a model, judge one frame, print the peak memory: what `_fresh_process` runs."""
    try:
        with _open(Path(path), name, int(threads), silent) as detector:
            height, width = detector.backbone_info.image_size
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
