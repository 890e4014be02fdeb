"""What a frame must cost at least, from the graph and two figures of a machine: a prediction.

The roofline (Williams, Waterman, Patterson, CACM 52(4), 2009): work of ``operations`` that moves
``bytes`` through memory takes no less than

    max(operations / rate, bytes / bandwidth)

`count` gives both numbers for every node; the sums over them give two figures:

    floor            weights, constants, the image and the results cross memory once, all maps
                     between layers stay in a cache
    through_memory   every layer reads its maps from memory and writes them there

The truth lies above the floor, by what launches, idle units and unfavourable access cost;
``through_memory`` is no bound, only the floor of a runtime that keeps nothing in a cache. Three
things can undercut the floor: a cache that keeps weights and constants from one call to the next;
Winograd convolutions, whose 3 x 3 kernels do with 1/2.25 of the multiplications counted here, or
fewer; and rates that were achieved (`measure_machine`), not peaks: other work may achieve more.

Counted: 2 operations per multiplication of Conv, MatMul and Gemm. Elementwise nodes are fused into
their neighbours by every runtime: no operations and no bytes but their constants and their second
operand. Reshapes are free; other nodes (pooling, transposes) read and write maps. A batch reads
weights and constants once per call (our distance kernel does so for up to 8 frames).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from padim_edge.errors import ModelError, UsageError
from padim_edge.measure.devices import DEVICES, GB, GIB, Device
from padim_edge.model.file import Model
from padim_edge.model.pyramid import Pyramid
from padim_edge.runtime.engines import STAGES, open_graph
from padim_edge.system import available_cores, available_memory, last_cache, whole_memory

if TYPE_CHECKING:
    from padim_edge.runtime.cpu.ort import Graph

MIB = 2**20

PRODUCTS = ("Conv", "MatMul", "Gemm")
VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity")
ELEMENTWISE = (
    "Add", "Cast", "Clip", "Div", "HardSigmoid", "HardSwish", "LeakyRelu", "Mul", "Relu",
    "Sigmoid", "Sqrt", "Sub",
)  # fmt: skip
BYTES = {"float32": 4, "float16": 2, "int8": 1}
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
SMALL = 64
"""Elements up to which an initializer may hold shapes or scales that shape inference needs."""


@dataclass(frozen=True)
class Storage:
    """How a runtime keeps what the file holds.

    Attributes:
        backbone: "float32" or "float16": its weights, maps and arithmetic.
        constants: "float32", "float16" or "int8": of the whitening. Arithmetic is float32.
        kernels: distances and smoothing are our CUDA kernels, which read packed triangles; else
            they are the graph's own nodes, with the zeros above the diagonal.
    """

    backbone: str
    constants: str
    kernels: bool = True


CPU = Storage("float32", "float32", kernels=False)
"""On the CPU, whatever the file holds: `runtime.cpu` widens it once, calls read float32."""

GPU = (Storage("float32", "float32"), Storage("float16", "float16"), Storage("float16", "int8"))
"""What export and fit can make for a GPU."""


@dataclass(frozen=True)
class Work:
    """What one node does in one call.

    Attributes:
        name: of the node.
        stage: one of `padim_edge.runtime.engines.STAGES`.
        operator: of ONNX; "Input" and "Output" for what always crosses memory.
        operations: 2 x multiplications.
        arithmetic: "float32" or "float16".
        constants: bytes of weights and constants.
        read: bytes of maps.
        written: bytes of maps.
    """

    name: str
    stage: str
    operator: str
    operations: int
    arithmetic: str
    constants: int
    read: int
    written: int

    def seconds(self, machine: Device, through_memory: bool) -> tuple[float, float]:
        """(arithmetic, memory): what each alone takes."""
        rate = machine.float16 if self.arithmetic == "float16" else machine.float32
        maps = self.read + self.written
        crossing = maps if through_memory or self.operator in ("Input", "Output") else 0
        return self.operations / rate, (self.constants + crossing) / machine.bandwidth


def count(model: Model, batch: int = 1, storage: Storage = CPU) -> list[Work]:
    """Count operations and bytes of one call, node by node in the order of the graph.

    Args:
        model: a detector.
        batch: frames of the call.
        storage: how weights and constants are kept; the file's own types play no part.

    Raises:
        UsageError: an embedding.onnx, or no frames.
        ModelError: the shapes of the graph cannot be inferred.
    """
    if model.detector_info is None:
        raise UsageError("the roofline is for a detector (padim.onnx, made by padim-edge fit)")
    if batch < 1:
        raise UsageError(f"a batch of {batch} frames: a number of at least 1 is needed")
    height, width = model.backbone_info.image_size
    image, result = batch * height * width * 3, 4 * batch * (height * width + 1)
    nodes = _nodes(model, batch, storage)
    if storage.kernels:
        nodes = (work for work in nodes if work.stage == "backbone")
    return [
        Work("image", "backbone", "Input", 0, "float32", 0, image, 0),
        *nodes,
        *(_kernels(model, batch, storage) if storage.kernels else ()),
        Work("score_map", "smoothing", "Output", 0, "float32", 0, 0, result),
    ]


def _nodes(model: Model, batch: int, storage: Storage) -> Iterator[Work]:
    """Every node that costs something."""
    shapes = _shapes(model, batch)
    stages = _stages(model)
    constant = {tensor.name for tensor in model.proto.graph.initializer}
    for node in model.proto.graph.node:
        sources = [name for name in node.input if name]
        if constant.issuperset(sources):  # folded when the graph is loaded
            constant.update(node.output)
            continue
        stage = stages.get(node.output[0], "smoothing")
        precision = storage.backbone if stage == "backbone" else "float32"

        def size(name: str, precision: str = precision) -> int:
            shape, kind = shapes[name]
            return math.prod(shape) * (BYTES[precision] if kind in FLOATS else 1)

        maps = [size(name) for name in sources if name not in constant]
        read, written, operations = sum(maps), sum(map(size, node.output)), 0
        if node.op_type in PRODUCTS:
            operations = 2 * _multiplications(node, shapes)
        elif node.op_type in VIEWS:
            read = written = 0
        elif node.op_type in ELEMENTWISE:
            read, written = read - max(maps), 0
        weights = [name for name in sources if name in constant and shapes[name][1] in FLOATS]
        constants = sum(map(size, weights))
        if operations or constants or read or written:
            yield Work(
                node.name, stage, node.op_type, operations, precision, constants, read, written
            )


Shapes = dict[str, tuple[tuple[int, ...], int]]
"""Shape and ONNX type by tensor."""


def _multiplications(node: onnx.NodeProto, shapes: Shapes) -> int:
    """Multiplications of a product; a grouped convolution's kernel is [M, C / groups, ...]."""
    first, second = (shapes[name][0] for name in node.input[:2])
    output = shapes[node.output[0]][0]
    if node.op_type == "Conv":
        return math.prod(output) * math.prod(second[1:])
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    return math.prod(output) * first[0 if transposed else -1]


def _shapes(model: Model, batch: int) -> Shapes:
    """Shape and ONNX type of every tensor, with a batch of so many frames."""
    graph = model.proto.graph
    slim = onnx.ModelProto(ir_version=model.proto.ir_version)
    slim.opset_import.extend(model.proto.opset_import)
    slim.graph.name = graph.name
    slim.graph.node.extend(graph.node)
    # Inference copies what it is given: of large constants it gets the shapes alone.
    for tensor in graph.initializer:
        if math.prod(tensor.dims) <= SMALL:
            slim.graph.initializer.append(tensor)
        else:
            info = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            slim.graph.input.append(info)
    slim.graph.input.extend(graph.input)
    slim.graph.input[-1].type.tensor_type.shape.dim[0].dim_value = batch
    # Without shapes, which would hold the symbol for the batch.
    slim.graph.output.extend(onnx.ValueInfoProto(name=value.name) for value in graph.output)
    try:
        found = onnx.shape_inference.infer_shapes(slim, strict_mode=True, data_prop=True).graph
    except onnx.shape_inference.InferenceError as error:
        raise ModelError(f"the shapes of the graph cannot be inferred ({error})") from error
    shapes: Shapes = {t.name: (tuple(t.dims), t.data_type) for t in graph.initializer}
    for value in (*found.input, *found.value_info, *found.output):
        kind = value.type.tensor_type
        if any(not dim.HasField("dim_value") for dim in kind.shape.dim):
            raise ModelError(f"the shape of '{value.name}' cannot be inferred")
        shapes[value.name] = tuple(dim.dim_value for dim in kind.shape.dim), kind.elem_type
    return shapes


def _stages(model: Model) -> dict[str, str]:
    """Stage by tensor, up to the distance map; what is behind it is smoothing."""
    makers = {name: node for node in model.proto.graph.node for name in node.output}
    stages: dict[str, str] = {}
    ends = (("backbone", model.feature_names()), ("distances", ["distance_map"]))
    for stage, names in ends:
        left = list(names)
        while left:
            name = left.pop()
            if name in makers and name not in stages:
                stages[name] = stage
                left.extend(makers[name].input)
    return stages


def _kernels(model: Model, batch: int, storage: Storage) -> Iterator[Work]:
    """Our CUDA kernels: each level's distances, and the smoothing without its zeros."""
    pyramid = model.pyramid()
    columns = 0
    for index, level in enumerate(pyramid.levels):
        triangle = level.channels * (level.channels + 1) // 2
        products = level.positions * (level.channels * columns + triangle)
        constants = 4 * level.positions * level.channels  # the means
        constants += whitening_bytes(pyramid, index, storage.constants)
        # A finer level reads the maps of the coarser ones again: from a cache, they are small.
        maps = sum(layer.channels * layer.height * layer.width for layer in level.layers)
        yield Work(
            f"level {index}",
            "distances",
            "MatMul",
            2 * batch * products,
            "float32",
            constants,
            BYTES[storage.backbone] * batch * maps,
            4 * batch * level.positions,
        )
        columns += level.channels
    rows, across = model.constant("smoothing.rows"), model.constant("smoothing.columns")
    taps = [int(np.count_nonzero(matrix)) for matrix in (rows, across)]
    operations = 2 * batch * (taps[0] * pyramid.width + taps[1] * len(rows))
    squared = 4 * batch * sum(level.positions for level in pyramid.levels)
    yield Work("smooth", "smoothing", "MatMul", operations, "float32", 4 * sum(taps), squared, 0)


def whitening_bytes(pyramid: Pyramid, index: int, constants: str) -> int:
    """Bytes that the distance kernel reads of a level's whitening: the layout of `runtime.packing`.

    Lines of 128 bytes: 8 rows, of up to 8 siblings, by a chunk of 16 bytes of columns; nothing
    beyond the chunk that holds the diagonal; for int8 a line of scales more.
    """
    level = pyramid.levels[index]
    chunk = 16 // BYTES[constants]
    ratio = pyramid.ratios(index)[-1] if index else 1
    siblings = math.gcd(8, ratio * ratio)
    rows = 8 // siblings
    coarser = [each.channels for each in pyramid.levels[:index]]
    if constants == "int8":
        coarse = 1 + sum(-(-channels // chunk) for channels in coarser)
    else:
        coarse = -(-sum(coarser) // chunk)
    own = sum(
        coarse + -(-min(first + rows, level.channels) // chunk)
        for first in range(0, level.channels, rows)
    )
    return 128 * level.positions // siblings * own


def measure_machine(threads: int = 0) -> Device:
    """This machine's processor: best of several, in 1 to 2 seconds.

    Bandwidth is that of reading, by as many threads as cores, 512 MiB or twice the last cache, but
    no more than an eighth of the available memory; the rate is that of a 3 x 3 convolution of 256
    channels in ONNX Runtime. Both are achieved rates, no upper bounds.

    Args:
        threads: to measure with; 0 for all cores.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
    """
    threads = threads or available_cores()
    size, note = _reading()
    array = np.empty(size // 8, np.int64)
    parts = np.array_split(array, threads)
    with ThreadPoolExecutor(threads) as pool:
        # Written once: memory that never was is read from one page.
        list(pool.map(lambda part: part.fill(1), parts))
        bandwidth = array.nbytes / _best(lambda: list(pool.map(np.bitwise_or.reduce, parts)))
    array, parts = array[:0].copy(), []
    x = np.ones(_SHAPE, np.float32)
    with _convolution(threads) as convolution:
        operations = 2 * x.size * _SHAPE[1] * 9
        rate = operations / _best(lambda: convolution.run({"x": x}))
    return Device("this machine", whole_memory(), bandwidth, rate, rate, "measured", note=note)


def check(model: Model) -> None:
    """Refuse before anything is measured what `measure_machine` and `predict` would refuse after.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        UsageError: as `count`.
        ModelError: as `count`.
    """
    count(model)
    _convolution(1).close()


def _reading() -> tuple[int, str | None]:
    """Bytes to read for a bandwidth, and a note if they are too few for memory to be measured."""
    cache = last_cache()
    size = min(max(GIB // 2, 2 * cache), available_memory() // 8)
    least = max(64 * MIB, 2 * cache)
    if size >= least:
        return size, None
    largest = f"the last cache ({cache // MIB} MiB)" if cache else "a cache may be"
    return size, (
        f"the array that was read ({size // MIB} MiB) is not much larger than {largest}: the "
        "bandwidth may be partly the cache's"
    )


_SHAPE = (1, 256, 28, 28)


def _convolution(threads: int) -> Graph:
    """The convolution that stands for all arithmetic, from ``x`` of `_SHAPE`."""
    channels = _SHAPE[1]
    kernel = numpy_helper.from_array(np.ones((channels, channels, 3, 3), np.float32), "kernel")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "kernel"], ["y"], pads=[1, 1, 1, 1])],
        "rate",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, _SHAPE)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, _SHAPE)],
        [kernel],
    )
    opset = [helper.make_opsetid("", 18)]
    proto = helper.make_model(graph, opset_imports=opset, ir_version=8)
    return open_graph(proto.SerializeToString(), threads)


def _best(call: Callable[[], object], budget: float = 0.4) -> float:
    """Seconds of the fastest call, of as many as fit into a budget and 3 at least."""
    seconds: list[float] = []
    while len(seconds) < 3 or sum(seconds) < budget:
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


@dataclass(frozen=True)
class Stage:
    """One stage on one machine, in ms per call.

    ``bound`` says what takes longer there at the floor: "arithmetic" or "memory".
    """

    name: str
    floor: float
    through_memory: float
    bound: str


@dataclass(frozen=True)
class Estimate:
    """A model on a machine.

    Attributes:
        device: the machine.
        storage: how weights and constants are kept.
        stages: in order.
        floor: ms per call, sum of the stages.
        through_memory: ms per call, likewise.
        frames_per_second: at most, from the floor.
        memory_bytes: weights, constants and the largest maps that one node reads and writes. The
            system, CUDA, TensorRT and its scratch memory are not counted.
        fits: whether that is less than the machine's RAM.
    """

    device: Device
    storage: Storage
    stages: tuple[Stage, ...]
    floor: float
    through_memory: float
    frames_per_second: float
    memory_bytes: int
    fits: bool


@dataclass(frozen=True)
class Prediction:
    """Floors of a model on this machine and on every known device, for one batch size.

    Attributes:
        batch: frames per call.
        operations: of one call of the graph.
        here: this machine, engine ``ort``.
        measured: ms per call on this machine, if it was measured.
        ratio: measured / floor.
        devices: every device with every storage.
    """

    batch: int
    operations: int
    here: Estimate
    measured: float | None
    ratio: float | None
    devices: tuple[Estimate, ...]


def estimate(work: Iterable[Work], batch: int, device: Device, storage: Storage) -> Estimate:
    """Price counted work on a machine."""
    work = list(work)
    stages = []
    for name in STAGES:
        own = [each for each in work if each.stage == name]
        low = [each.seconds(device, through_memory=False) for each in own]
        high = [each.seconds(device, through_memory=True) for each in own]
        arithmetic, memory = (sum(times) for times in zip(*low, strict=True))
        stages.append(
            Stage(
                name,
                1e3 * sum(map(max, low)),
                1e3 * sum(map(max, high)),
                "arithmetic" if arithmetic > memory else "memory",
            )
        )
    floor = sum(stage.floor for stage in stages)
    needed = sum(each.constants for each in work) + max(each.read + each.written for each in work)
    return Estimate(
        device,
        storage,
        tuple(stages),
        floor,
        sum(stage.through_memory for stage in stages),
        1e3 * batch / floor,
        needed,
        needed < device.memory_bytes,
    )


def predict(
    model: Model, machine: Device, batch: int = 1, measured: float | None = None
) -> Prediction:
    """Floors on this machine and on every device of `padim_edge.measure.devices`.

    Args:
        model: a detector.
        machine: this one, from `measure_machine`.
        batch: frames per call.
        measured: ms per call of engine ``ort`` on this machine.

    Raises:
        UsageError: as `count`.
        ModelError: as `count`.
    """
    own = count(model, batch, CPU)
    here = estimate(own, batch, machine, CPU)
    works = [(storage, count(model, batch, storage)) for storage in GPU]
    return Prediction(
        batch,
        sum(work.operations for work in own),
        here,
        measured,
        None if measured is None else measured / here.floor,
        tuple(
            estimate(work, batch, device, storage) for device in DEVICES for storage, work in works
        ),
    )


def render(prediction: Prediction) -> list[str]:
    """A prediction as lines of text, some 110 characters wide."""
    here = prediction.here
    machine = here.device
    frames = "1 frame" if prediction.batch == 1 else f"{prediction.batch} frames"
    lines = [
        f"PREDICTION, not measured: lower bounds for a call of {frames}, in ms",
        "",
        f"this machine: reads {machine.bandwidth / GB:.1f} GB/s, convolves "
        f"{machine.float32 / GB:.0f} GFLOPS float32 (both measured); "
        f"{prediction.operations / GB:.2f} G operations",
        *([f"note: {machine.note}"] if machine.note else []),
        "",
        _HEAD,
        _row(here),
    ]
    if prediction.measured is not None and prediction.ratio is not None:
        lines.append(
            f"MEASURED here: {prediction.measured:.2f} ms, {prediction.ratio:.2f} x the floor"
        )
        if prediction.ratio < 1:
            lines += [
                "Below the floor: its two rates are achieved ones, which a frame may beat; or this",
                "machine was busy while they were measured, or its cache keeps the constants.",
            ]
    lines += ["", _HEAD, *map(_row, prediction.devices), "", *_NOTES]
    sources = dict.fromkeys(each.device.source for each in prediction.devices)
    return lines + [f"  {source}" for source in sources]


_HEAD = (
    f"{'device':20} {'backbone':8} {'const.':8} {'backbone':>9}  {'distances':>9}  "
    f"{'smoothing':>9}  {'floor':>8} {'(memory)':>10} {'frames/s':>9} {'MB':>5}  fits"
)
_NOTES = (
    "a, m: bound by arithmetic, by memory. (memory): every layer's maps go through memory.",
    "frames/s: at most. A real run is slower; only a cache that keeps the constants from call to",
    "call, or Winograd convolutions, can undercut a floor. This machine's rates are achieved ones",
    "(a convolution, a read), not upper bounds: here a frame may beat its floor.",
    "Devices: peak rates at the highest clocks, CUDA and tensor cores, without sparsity.",
    "MB: weights, constants and largest maps, against the whole RAM. The system, CUDA, TensorRT",
    "and its scratch memory are not counted.",
    "*: hardware alone: no JetPack with TensorRT 10 exists for it, so our GPU engines do not run.",
    "Sources:",
)


def _row(each: Estimate) -> str:
    """One line of the table."""
    stages = "  ".join(f"{_ms(stage.floor, 7)} {stage.bound[0]}" for stage in each.stages)
    name = each.device.name + ("" if each.device.runs else "*")
    return (
        f"{name:20} {each.storage.backbone:8} {each.storage.constants:8} {stages}  "
        f"{_ms(each.floor, 8)} {'(' + _ms(each.through_memory, 0) + ')':>10} "
        f"{each.frames_per_second:9.0f} {each.memory_bytes / 1e6:5.0f}  "
        f"{'yes' if each.fits else 'NO'}"
    )


def _ms(value: float, width: int) -> str:
    """Milliseconds with three digits or more."""
    return f"{value:{width}.{3 if value < 1 else 2 if value < 10 else 1}f}"
