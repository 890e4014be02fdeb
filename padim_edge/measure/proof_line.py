"""What the checks of a proof have in common: a line of the report, its sizes, which detectors.

The standard library alone, as in `finding`: the parent process loads nothing that may crash.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

STATUSES = ("pass", "fail", "not run", "absent")
"""Of a line. "not run": something that it needs is not there, which fails the proof as well.
"absent": this machine cannot have it (ONNX Runtime for CUDA on a Jetson, power sensors on a PC),
and nothing is wrong with that."""

ENGINES = ("trt", "trt/graph", "ort-cuda")
"""That are to be proved; see `padim_edge.runtime.engines.NVIDIA`."""

MEMORY = {"wide_resnet50_2": 6 * 2**30}
"""Bytes of the host that a network's detectors, their copies and their judge need, if many."""

DISK = {"resnet18": 1_500_000_000, "wide_resnet50_2": 5_500_000_000}
"""Bytes of a network's plans, which lie in the temporary folder until the end: their weights and
constants as they are stored, each twice, for a live frame and for many. None was built yet."""

BACKBONES = ("float32", "float16", "int8")
CONSTANTS = ("float32", "float16", "int8")
PRESETS = ("reference", "whitened", "whitened-fine")


@dataclass(frozen=True)
class Line:
    """One thing that was proved, or was not.

    Attributes:
        name: what.
        status: one of `STATUSES`.
        detail: what was found, in one line.
        figures: the same as numbers; docs/bench.md has their units.
        area: part of the proof; that of its check.
    """

    name: str
    status: str
    detail: str
    figures: dict[str, Any] = field(default_factory=dict)
    area: str = ""


def line(name: str, good: bool, detail: str, **figures: Any) -> Line:
    """One that passed or failed."""
    return Line(name, "pass" if good else "fail", detail, figures)


def rounded(value: float) -> float:
    """Three digits: a report is to be read, and pasted."""
    return float(f"{value:.3g}")


@dataclass(frozen=True)
class Sizes:
    """How large a proof is. The command knows these values alone; tests rehearse smaller ones.

    Attributes:
        networks: of `proof_detectors.NETWORKS`; the first in all combinations.
        image: side of the detectors' input in pixels.
        kernel_batches: batch sizes at which kernels are judged.
        compared: batch sizes at which engines are compared with the CPU's; more than 32 are split.
        camera: (width, height) of the frames that are prepared and followed.
        repeats: launches for a median.
        batches: batch sizes of the benchmark.
        calls: of the benchmark, at batch 1.
        cycles: of opening and closing.
        frames: under load.
        drift: by how much the last tenth of them may be slower than the first.
    """

    networks: tuple[str, ...] = ("resnet18", "wide_resnet50_2")
    image: int = 224
    kernel_batches: tuple[int, ...] = tuple(range(1, 33))
    compared: tuple[int, ...] = (1, 3, 9, 40)
    camera: tuple[int, int] = (1920, 1080)
    repeats: int = 50
    batches: tuple[int, ...] = (1, 8, 32)
    calls: int = 100
    cycles: int = 50
    frames: int = 1000
    drift: float = 1.1

    @classmethod
    def of(cls, values: dict[str, Any]) -> Sizes:
        """From what JSON makes of one."""
        plain: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**plain)


@dataclass(frozen=True)
class Spec:
    """Which detector: its network, its preset, the types of its backbone and its constants."""

    network: str
    preset: str
    backbone: str
    constants: str

    @classmethod
    def parse(cls, text: str) -> Spec:
        """Of "resnet18 reference float16/int8"."""
        network, preset, types = text.split(" ")
        return cls(network, preset, *types.split("/"))

    def __str__(self) -> str:
        return f"{self.network} {self.preset} {self.backbone}/{self.constants}"


def usual(network: str, preset: str = "reference") -> Spec:
    """The detector that a device is meant to have: all in float16."""
    return Spec(network, preset, "float16", "float16")


def backbones(engine: str) -> tuple[str, ...]:
    """Types of the backbone that an engine runs: int8 is made for TensorRT."""
    return BACKBONES if engine.startswith("trt") else BACKBONES[:2]


def compared(sizes: Sizes, engine: str, network: str, preset: str) -> list[Spec]:
    """Detectors of a preset that are compared with the CPU.

    Of the first network all types with all, of others each type once.
    """
    pairs = [
        (backbone, constants)
        for backbone in backbones(engine)
        for constants in CONSTANTS
        if network == sizes.networks[0] or backbone == constants
    ]
    return [Spec(network, preset, *pair) for pair in pairs]


def benchmarked(sizes: Sizes, engine: str, network: str) -> list[Spec]:
    """Detectors that are timed: the usual ones, and in ``trt`` the first network's other types."""
    if network != sizes.networks[0]:
        return [usual(network)]
    found = [usual(network, preset) for preset in PRESETS]
    others = ("float32", "int8") if engine == "trt" else ()
    return found + [Spec(network, "reference", kind, kind) for kind in others]
