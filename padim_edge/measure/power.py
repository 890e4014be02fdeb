"""Power on a Jetson, from the sensors on its board, as the kernel's hwmon shows them.

INA3221, on all modules: ``in*_label`` names the rail of a channel, ``in*_input`` is millivolts,
``curr*_input`` milliamperes. INA238, on the carrier board of Thor: one channel without a label, the
input of module and carrier board (``in0`` is its shunt). Anyone may read them; elsewhere there are
none, and then there are no figures.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

WHOLE = ("VIN", "VDD_IN")
"""Rails that feed everything else: carrier board and module (INA238), the module alone."""

SAMPLE_SECONDS = 0.02
LEAST_SAMPLES = 10


@dataclass(frozen=True)
class Power:
    """Mean power while frames went through without a pause.

    Attributes:
        rails: watts by the rail's name.
        watts: of the first of `WHOLE` that is measured; if none is, the sum of all rails.
        millijoules_per_frame: what that is for a frame.
    """

    rails: dict[str, float]
    watts: float
    millijoules_per_frame: float


def rails(system: Path = Path("/sys")) -> dict[str, tuple[Path, Path]]:
    """Files of voltage and current by rail; none where no such sensor is readable."""
    found = {}
    for chip in sorted((system / "class/hwmon").glob("hwmon*")):
        kind = _read(chip / "name")
        if kind == "ina238":
            files = chip / "in1_input", chip / "curr1_input"
            if all(map(_read, files)):
                found["VIN"] = files
        if kind != "ina3221":
            continue
        for label in sorted(chip.glob("in*_label")):
            number = label.name[len("in") : -len("_label")]
            files = chip / f"in{number}_input", chip / f"curr{number}_input"
            name = _read(label)
            # The kernel also has a channel for the sum of shunt voltages, which has no current.
            if name and name != "NC" and all(_read(file) for file in files):
                found[name] = files
    return found


def measure(
    work: Callable[[], object],
    frames: int,
    seconds: float = 3.0,
    system: Path = Path("/sys"),
) -> Power | None:
    """Mean power while ``work`` is repeated.

    Args:
        work: puts ``frames`` frames through.
        frames: of each call.
        seconds: how long it is repeated, at least.
        system: where the sensors are.

    Returns:
        None where there is no sensor, or it could not be read often enough.
    """
    sensors = rails(system)
    if not sensors:
        return None
    samples: dict[str, list[float]] = {name: [] for name in sensors}
    done = threading.Event()

    def sample() -> None:
        while not done.wait(SAMPLE_SECONDS):
            for name, (voltage, current) in sensors.items():
                values = _read(voltage), _read(current)
                if all(values):
                    samples[name].append(int(values[0]) * int(values[1]) / 1e6)

    work()
    sampler = threading.Thread(target=sample, daemon=True)
    calls = 0
    start = time.perf_counter()
    sampler.start()
    try:
        while time.perf_counter() - start < seconds:
            work()
            calls += 1
        elapsed = time.perf_counter() - start
    finally:
        done.set()
        sampler.join()
    if any(len(values) < LEAST_SAMPLES for values in samples.values()):
        return None
    watts = {name: statistics.fmean(values) for name, values in samples.items()}
    total = next((watts[rail] for rail in WHOLE if rail in watts), sum(watts.values()))
    return Power(watts, total, 1e3 * total * elapsed / (calls * frames))


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
