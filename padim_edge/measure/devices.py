"""Jetson modules as NVIDIA's data sheets describe them: what `measure.roofline` predicts from.

Rates are peaks at the highest clock of the power mode: less power means lower clocks, and no memory
reaches its peak. They are dense: what NVIDIA prints as TOPS is int8 with half of the weights zero,
summed with the DLA's, which runs nothing of ours.

    float32 = CUDA cores x 2 x clock    TF32 is off in our plans
    float16 = 2 x float32               Nano, TX2: pairs on CUDA cores
            = 8 x float32               Xavier: a tensor core (64 x 2 a clock) to 8 CUDA cores;
                                        Orin: one (256 x 2 a clock) to 32
            = 32 x float32              Thor
    int8    = 2 x float16               Xavier, Orin: the same tensor cores

Nano and TX2 have no int8 products (DP4A came with another Pascal, sm_61). Of Thor, FP4 and FP8 are
printed, and no int8 rate was found: it has none here.

They meet what is printed for the GPU alone. Float32: 1.28, 2.08 TFLOPS (Orin Nano 8GB, Super).
Float16: 0.472 (Nano), 1.33 (TX2), 11 (AGX Xavier). Int8: 22 TOPS (AGX Xavier); dense 20, 33 (Orin
Nano 8GB, Super); sparse, twice as much, 108, 170 (AGX Orin 32GB, 64GB). Sparse FP4, 8 times
float16: 1200, 2070 (Thor T4000, T5000).
"""

from __future__ import annotations

from dataclasses import dataclass

GB = 1e9
GIB = 2**30

_SITE = "https://developer.nvidia.com/"
_LINEUP = f"NVIDIA, Jetson Modules, technical specifications: {_SITE}embedded/jetson-modules"
_ORIN_NANO = f"NVIDIA Jetson Orin Nano Data Sheet, DS-11105-001 v1.5: {_SITE}embedded/downloads"
_ORIN_NX = (
    "NVIDIA Jetson Orin NX Data Sheet, DS-10712-001 v1.7: "
    f"{_SITE}downloads/jetson-orin-nx-module-series-data-sheet"
)
_AGX_ORIN = f"NVIDIA Jetson AGX Orin Data Sheet, DS-10662-001 v1.8: {_SITE}embedded/downloads"
_THOR = (
    f"NVIDIA Jetson Thor Data Sheet, DS-11945-001 v1.5: {_SITE}downloads/assets/embedded/"
    "secure/jetson/thor/docs/jetson-thor-series-modules-datasheet_ds-11945-001.pdf"
)


@dataclass(frozen=True)
class Device:
    """A module at its highest clocks.

    Attributes:
        name: NVIDIA's, with the power mode where one matters.
        memory_bytes: RAM, which CPU and GPU share.
        bandwidth: of that RAM, bytes per second.
        float32: operations per second.
        float16: operations per second.
        int8: operations per second; None if it has none, or none is known.
        source: title and address of the document.
        runs: whether our GPU engines can: they need TensorRT 10, that is JetPack 6.1 or later.
        note: what makes a measured rate doubtful, if anything does.
    """

    name: str
    memory_bytes: int
    bandwidth: float
    float32: float
    float16: float
    int8: float | None
    source: str
    runs: bool = True
    note: str | None = None


def _device(
    name: str,
    ram: int,
    bandwidth: float,
    cores: int,
    ghz: float,
    ratio: int,
    source: str,
    runs: bool = True,
) -> Device:
    """A device from GiB, GB/s, CUDA cores, GHz and float16 / float32."""
    rate = cores * 2 * ghz * 1e9
    int8 = 2 * ratio * rate if ratio == 8 else None  # Xavier and Orin
    return Device(name, ram * GIB, bandwidth * GB, rate, ratio * rate, int8, source, runs)


DEVICES = (
    _device("Nano", 4, 25.6, 128, 0.9216, 2, _LINEUP, runs=False),
    _device("TX2", 8, 59.7, 256, 1.3, 2, _LINEUP, runs=False),
    _device("Xavier NX 8GB", 8, 59.7, 384, 1.1, 8, _LINEUP, runs=False),
    _device("AGX Xavier 32GB", 32, 136.5, 512, 1.377, 8, _LINEUP, runs=False),
    _device("Orin Nano 4GB", 4, 34, 512, 0.625, 8, _ORIN_NANO),
    _device("Orin Nano 8GB", 8, 68, 1024, 0.625, 8, _ORIN_NANO),
    _device("Orin Nano 8GB Super", 8, 102, 1024, 1.02, 8, _ORIN_NANO),
    _device("Orin NX 8GB", 8, 102, 1024, 0.765, 8, _ORIN_NX),
    _device("Orin NX 16GB", 16, 102, 1024, 0.918, 8, _ORIN_NX),
    _device("AGX Orin 32GB", 32, 204.8, 1792, 0.939, 8, _AGX_ORIN),
    _device("AGX Orin 64GB", 64, 204.8, 2048, 1.3, 8, _AGX_ORIN),
    _device("Thor T4000", 64, 273, 1536, 1.53, 32, _THOR),
    _device("Thor T5000", 128, 273, 2560, 1.575, 32, _THOR),
)
"""By generation and size. Super is MAXN_SUPER; the others are without it."""
