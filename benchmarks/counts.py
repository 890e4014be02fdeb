"""What a detector must cost by its counts: bytes, operations, and the roofline's floor.

Everything here follows from shapes, before anything is measured. With P_i positions and d_i
channels on level i, coarse to fine, on maps of h x w for images of H x W, and N training images:

    file        sum over j <= i of P_i d_i d_j values of whitening, sum of P_i d_i float32 means,
                H h + w W float32 smoothing matrices, the weights of the truncated backbone
    fit, run    `of_point`
    statistics  `statistics_operations`
    latency     `padim_edge.measure.roofline`

The file's nodes and metadata are not counted; they take up to a hundredth of the file.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx
from onnx import numpy_helper

from padim_edge.fit.features import BATCH as FIT_BATCH
from padim_edge.fit.features import Features
from padim_edge.measure.counting import BYTES, CPU, count
from padim_edge.measure.devices import Device
from padim_edge.measure.roofline import estimate
from padim_edge.model.file import Model
from padim_edge.model.graph import subgraph
from padim_edge.model.pyramid import Pyramid

COPIES = 4
"""Times the file is in memory while fit checks and writes it: the message, its bytes, and what
onnx's checker makes of them. Observed (3.75 for 295 MB), not derived."""
MAPS = 3
"""Times the largest maps of a node that ONNX Runtime's arena holds. Observed (2.8 to 3.0 from
320 x 320 on), not derived."""


def backbone_bytes(embedding: Model) -> int:
    """Bytes of the constants that fit takes over from embedding.onnx."""
    graph: onnx.GraphProto = subgraph(embedding.proto, ["image"], embedding.feature_names()).graph
    return sum(int(numpy_helper.to_array(tensor).nbytes) for tensor in graph.initializer)


def file_bytes(embedding: Model, constants: str) -> int:
    """Bytes of padim.onnx without its nodes and metadata.

    Args:
        embedding: what it will be fitted on.
        constants: "float32", "float16" or "int8"; the last has a float32 scale per row.
    """
    pyramid = embedding.pyramid()
    height, width = embedding.backbone_info.image_size
    total = backbone_bytes(embedding) + 4 * (height * pyramid.height + pyramid.width * width)
    columns = 0
    for index, level in enumerate(pyramid.levels):
        columns += level.channels
        scales = 4 * (index + 1) if constants == "int8" else 0
        row = BYTES[constants] * columns + scales + 4  # and its mean
        total += level.positions * level.channels * row
    return total


def store_bytes(pyramid: Pyramid, images: int) -> int:
    """Bytes of the selected maps of all training images, float32.

    Beyond `STORE_IN_MEMORY` of fit they lie in a file that is mapped: still resident, and
    so part of a peak, unless somebody else needs the memory.
    """
    return 4 * images * sum(level.positions * level.channels for level in pyramid.levels)


def scratch_bytes(pyramid: Pyramid, images: int, threads: int) -> int:
    """Bytes that the statistics hold at a time, all threads together, float64.

    Each thread has a run of cells (the longest ones together are the worst case), and of those
    three times the blocks (scatters, the whitening under leave-one-out's eps, its factors) and
    three times the features (as they are, centred, whitened).
    """
    runs = sorted(run.stop - run.start for run in Features(pyramid, [], images).chunks())
    channels = [level.channels for level in pyramid.levels]
    blocks = sum(
        level.positions * level.channels * sum(channels[: index + 1])
        for index, level in enumerate(pyramid.levels)
    )
    whole = 3 * (8 * blocks + 2 * store_bytes(pyramid, images))
    cells: int = sum(runs[-threads:])
    return whole * cells // pyramid.cells


def statistics_operations(pyramid: Pyramid, image_size: tuple[int, int], images: int) -> int:
    """Operations (2 per multiplication) from selected maps to constants and held-out scores.

    For each position of level l, with d its channels, c the sum of d_m over all m < l, and p the
    sum of d_k d_m over all k <= m < l, in the order of `padim_edge.fit.gaussian`:

        moments            2 N d (c + d)
        whitening, twice   2 (d p + d^2 c)     L_lm, and what it takes from S_ll
                           d^3 / 3             Cholesky
                           8/3 d^3             inverse: LU and d right-hand sides, as numpy has it
                           2 (d^2 c + d p)     W_ll L_lm, and W_lm
        distances          2 N d (c + d) + 2 N d

    once for the constants and once under leave-one-out's eps; then N score maps A D A^T.
    """
    total = coarser = pairs = 0
    for level in pyramid.levels:
        d = level.channels
        whitening = 4 * (d * pairs + d * d * coarser) + 3 * d**3
        products = 2 * images * d * (coarser + d)
        total += level.positions * (2 * products + 2 * images * d + 2 * whitening)
        pairs += d * (coarser + d)
        coarser += d
    height, width = image_size
    maps = height * pyramid.height * pyramid.width + height * pyramid.width * width
    return total + 2 * images * maps


def of_point(
    embedding: Model,
    detector: Model | None,
    machine: Device,
    constants: str,
    images: int,
    batch: int,
    threads: int,
) -> dict[str, float]:
    """Counts of a fit, of the file it writes and of a call.

    Args:
        embedding: what is fitted.
        detector: what came of it, for its graph's shapes alone; None if nothing did.
        machine: its rates, with so many threads.
        constants: as for `file_bytes`.
        images: of the fit.
        batch: frames of a call.
        threads: of fit and call.

    Returns:
        file: bytes.
        statistics: operations of one thread.
        fit_memory: bytes of the store, and of what is largest: the backbone's maps; the constants
            and the statistics' scratch memory; the file's copies while it is written.
        features: floor of all images through the backbone, batched as fit does, in s. Reading
            them is not counted.
        latency: floor of a frame in ms.
        run_memory: bytes of the file's message while its whitening is widened to float32, of
            weights and constants, and of the largest maps that one node reads and writes.

        The last three, and the maps, are missing without a detector.
    """
    pyramid, image_size = embedding.pyramid(), embedding.backbone_info.image_size
    size, counted, maps = file_bytes(embedding, constants), {}, 0
    if detector is not None:
        call = estimate(count(detector, batch, CPU), batch, machine, CPU)
        work = count(detector, FIT_BATCH, CPU)
        stages = estimate(work, FIT_BATCH, machine, CPU).stages
        (backbone,) = (stage.floor for stage in stages if stage.name == "backbone")
        maps = MAPS * max(each.read + each.written for each in work)
        counted = {
            "latency": call.floor / batch,
            "features": images * backbone / FIT_BATCH / 1e3,
            "run_memory": detector.size + call.memory_bytes,
        }
    statistics = size + scratch_bytes(pyramid, images, threads)
    return {
        "file": size,
        "statistics": statistics_operations(pyramid, image_size, images) / threads,
        "fit_memory": store_bytes(pyramid, images) + max(maps, statistics, COPIES * size),
        **counted,
    }


@dataclass(frozen=True)
class Quantity:
    """A cost.

    Attributes:
        title: with the unit, as the head of a column.
        panel: of a figure; empty for none.
        scale: what bytes or seconds are divided by to be shown.
        calibration: how a count becomes a prediction: "exact", as it is; "times", multiplied by
            measured / count of the base point; "plus", with measured - count of the base point
            added; "none", not at all.
    """

    title: str
    panel: str
    scale: float = 1
    calibration: str = "times"


QUANTITIES = {
    "latency": Quantity("latency ms", "latency, ms per frame"),
    "file": Quantity("file MB", "file, MB", 1e6, "exact"),
    "run_memory": Quantity("run peak MB", "peak memory, MB", 1e6, "plus"),
    "cold_start": Quantity("cold start s", "", calibration="none"),
    "features": Quantity("features s", "fit, s"),
    "statistics": Quantity("statistics, file s", "fit, s"),
    "fit_memory": Quantity("fit peak MB", "peak memory, MB", 1e6, "plus"),
}


@dataclass
class Row:
    """A point of a curve, by quantity: ms per frame, seconds and bytes; failures by what failed.

    Attributes:
        value: of what is varied.
        measured: figures of this machine.
        counted: see `of_point`.
        predicted: counts, calibrated as `Quantity` says.
        deviation_percent: predicted / measured - 1.
        failures: messages.
    """

    value: int
    measured: dict[str, float] = field(default_factory=dict)
    counted: dict[str, float] = field(default_factory=dict)
    predicted: dict[str, float] = field(default_factory=dict)
    deviation_percent: dict[str, float] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def calibrate(self, base: Row) -> None:
        """Fill in predictions and deviations; without a base figure there is no prediction."""
        for name, counted in self.counted.items():
            calibration, value = QUANTITIES[name].calibration, counted
            if calibration != "exact":
                if name not in base.counted or name not in base.measured:
                    continue
                known, measured = base.counted[name], base.measured[name]
                times = calibration == "times"
                value = counted * measured / known if times else counted + measured - known
            self.predicted[name] = value
            if name in self.measured:
                self.deviation_percent[name] = 100 * (value / self.measured[name] - 1)
