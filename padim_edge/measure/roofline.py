"""What a frame must cost at least, from the graph and two figures of a machine: a prediction.

The roofline (Williams, Waterman, Patterson, CACM 52(4), 2009): work of ``operations`` that moves
``bytes`` through memory takes no less than

    max(operations / rate, bytes / bandwidth)

`padim_edge.measure.counting` has both numbers of every node; their sums give two figures:

    floor            weights, constants, the image and the results cross memory once, all maps
                     between layers stay in a cache
    through_memory   every layer reads its maps from memory and writes them there

The truth lies above the floor, by what launches, idle units and unfavourable access cost;
``through_memory`` is no bound, only the floor of a runtime that keeps nothing in a cache. Three
things can undercut the floor: a cache that keeps weights and constants from one call to the next;
Winograd convolutions, whose 3 x 3 kernels do with 1/2.25 of the multiplications counted here, or
fewer; and rates that were achieved (`measure.rates`), not peaks: other work may achieve more.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from padim_edge.measure.counting import CPU, CPU_INT8, GPU, GPU_INT8, Storage, Work, count
from padim_edge.measure.devices import DEVICES, GB, Device
from padim_edge.measure.rates import convolution
from padim_edge.model.file import Model
from padim_edge.runtime.engines import STAGES


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
        model: which, as the report calls it.
        batch: frames per call.
        operations: of one call of the graph.
        here: this machine, engine ``ort``.
        measured: ms per call on this machine, if it was measured.
        ratio: measured / floor.
        devices: every device with every storage that it has a rate for: of a float backbone all
            float ones, whatever the file holds; of an int8 one, int8.
    """

    model: str
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


def check(model: Model) -> None:
    """Refuse before anything is measured what `measure_machine` and `predict` would refuse after.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        UsageError: as `count`.
        ModelError: as `count`.
    """
    count(model, storage=_here(model))
    convolution(1).close()


def _here(model: Model) -> Storage:
    """How engine ``ort`` keeps it."""
    return CPU_INT8 if model.backbone_info.precision == "int8" else CPU


def predict(
    model: Model,
    machine: Device,
    batch: int = 1,
    measured: float | None = None,
    name: str = "",
) -> Prediction:
    """Floors on this machine and on every device of `padim_edge.measure.devices`.

    Args:
        model: a detector.
        machine: this one, from `measure_machine`.
        batch: frames per call.
        measured: ms per call of engine ``ort`` on this machine.
        name: of the model, for a report.

    Raises:
        UsageError: as `count`.
        ModelError: as `count`.
    """
    own = count(model, batch, _here(model))
    here = estimate(own, batch, machine, _here(model))
    storages = GPU_INT8 if here.storage.backbone == "int8" else GPU
    works = [(storage, count(model, batch, storage)) for storage in storages]
    return Prediction(
        name,
        batch,
        sum(work.operations for work in own),
        here,
        measured,
        None if measured is None else measured / here.floor,
        tuple(
            estimate(work, batch, device, storage)
            for device in DEVICES
            for storage, work in works
            if getattr(device, storage.backbone) is not None
        ),
    )


def render(prediction: Prediction) -> list[str]:
    """A prediction as lines of text, some 110 characters wide."""
    here = prediction.here
    machine = here.device
    int8 = f", {machine.int8 / GB:.0f} GOPS int8" if machine.int8 else ""
    frames = "1 frame" if prediction.batch == 1 else f"{prediction.batch} frames"
    lines = [
        f"PREDICTION, not measured: lower bounds for a call of {frames}, in ms"
        + (f" ({prediction.model})" if prediction.model else ""),
        "",
        f"this machine: reads {machine.bandwidth / GB:.1f} GB/s, convolves "
        f"{machine.float32 / GB:.0f} GFLOPS float32{int8} (measured); "
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
                "Below the floor: its rates are achieved ones, which a frame may beat; or this",
                "machine was busy while they were measured, or its cache keeps the constants.",
            ]
    notes = (*_INT8, *_NOTES) if here.storage.backbone == "int8" else _NOTES
    lines += ["", _HEAD, *map(_row, prediction.devices), "", *notes]
    sources = dict.fromkeys(each.device.source for each in prediction.devices)
    return lines + [f"  {source}" for source in sources]


_HEAD = (
    f"{'device':20} {'backbone':8} {'const.':8} {'backbone':>9}  {'distances':>9}  "
    f"{'smoothing':>9}  {'floor':>8} {'(memory)':>10} {'frames/s':>9} {'MB':>5}  fits"
)
_INT8 = (
    "int8: of the layers that the file quantises, at the int8 rate; all else of it is float32. No",
    "row: Nano and TX2 have no int8 products, and of Thor no int8 rate is known.",
)
_NOTES = (
    "A call takes prepared frames: what preparing a camera's frame costs is not predicted.",
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
