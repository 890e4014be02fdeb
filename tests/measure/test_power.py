"""Power sensors, on made-up boards."""

from __future__ import annotations

from pathlib import Path

import pytest

from padim_edge.measure import power


def sensor(system: Path, number: int, name: str, channels: dict[int, tuple[str, str, str]]) -> None:
    chip = system / "class" / "hwmon" / f"hwmon{number}"
    chip.mkdir(parents=True)
    (chip / "name").write_text(name + "\n")
    for place, (label, millivolts, milliamperes) in channels.items():
        (chip / f"in{place}_label").write_text(label + "\n")
        (chip / f"in{place}_input").write_text(millivolts + "\n")
        if milliamperes:
            (chip / f"curr{place}_input").write_text(milliamperes + "\n")


def orin_nx(system: Path) -> None:
    sensor(system, 0, "nvme", {1: ("VDD_IN", "1", "1")})
    sensor(
        system,
        1,
        "ina3221",
        {
            1: ("VDD_IN", "5000", "1200"),
            2: ("VDD_CPU_GPU_CV", "5000", "400"),
            3: ("VDD_SOC", "5000", "200"),
            7: ("sum of shunt voltages", "12", ""),
        },
    )


def agx_orin(system: Path) -> None:
    sensor(system, 0, "ina3221", {1: ("VDD_GPU_SOC", "20000", "500"), 3: ("NC", "0", "0")})
    sensor(system, 1, "ina3221", {2: ("VIN_SYS_5V0", "5000", "1000")})


def thor(system: Path) -> None:
    sensor(system, 0, "ina3221", {1: ("VDD_GPU", "12000", "1000"), 2: ("VDD_CPU", "12000", "500")})
    chip = system / "class" / "hwmon" / "hwmon1"
    chip.mkdir()
    values = {"name": "ina238", "in0_input": "3", "in1_input": "20000", "curr1_input": "1500"}
    for name, value in values.items():
        (chip / name).write_text(value + "\n")


def measured(system: Path, frames: int = 2) -> tuple[power.Power | None, float]:
    """Power with a work of a known rate, and frames per second."""
    import time

    calls = []

    def work() -> None:
        calls.append(time.perf_counter())
        time.sleep(0.01)

    result = power.measure(work, frames, 0.5, system)
    span = calls[-1] - calls[1] if len(calls) > 1 else 1.0
    return result, (len(calls) - 2) * frames / span


@pytest.mark.parametrize(("board", "watts"), [(orin_nx, 6.0), (agx_orin, 15.0), (thor, 30.0)])
def test_boards(tmp_path, board, watts):
    board(tmp_path)
    result, rate = measured(tmp_path)
    assert result is not None
    assert result.watts == pytest.approx(watts)
    assert result.millijoules_per_frame == pytest.approx(1e3 * watts / rate, rel=0.1)
    expected = {orin_nx: {"VDD_IN": 6, "VDD_CPU_GPU_CV": 2, "VDD_SOC": 1},
                agx_orin: {"VDD_GPU_SOC": 10, "VIN_SYS_5V0": 5},
                thor: {"VDD_GPU": 12, "VDD_CPU": 6, "VIN": 30}}[board]  # fmt: skip
    assert result.rails == pytest.approx(expected)


def test_no_sensor_is_no_figure(tmp_path):
    sensor(tmp_path, 0, "coretemp", {1: ("VDD_IN", "5000", "1000")})
    result, _ = measured(tmp_path)
    assert result is None


def test_a_sensor_that_stops_is_no_figure(tmp_path):
    orin_nx(tmp_path)
    calls = []

    def work() -> None:
        if not calls:
            (tmp_path / "class/hwmon/hwmon1/curr2_input").write_text("")
        calls.append(1)

    assert power.rails(tmp_path).keys() == {"VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"}
    assert power.measure(work, 1, 0.3, tmp_path) is None


def test_work_that_fails_ends_the_sampling(tmp_path):
    import threading

    orin_nx(tmp_path)
    before = threading.active_count()
    calls = []

    def work() -> None:
        calls.append(1)
        if len(calls) > 3:
            raise RuntimeError("a fault")

    with pytest.raises(RuntimeError, match="a fault"):
        power.measure(work, 1, 5, tmp_path)
    assert threading.active_count() == before
