"""The roofline: floors against arithmetic, devices against their data sheets, and its text."""

from __future__ import annotations

import dataclasses

import pytest

from padim_edge.errors import UsageError
from padim_edge.measure.counting import CPU, CPU_INT8, GPU, GPU_INT8, Work
from padim_edge.measure.devices import DEVICES, GIB, Device
from padim_edge.measure.proof_detectors import make
from padim_edge.measure.proof_line import Spec
from padim_edge.measure.roofline import estimate, predict, render
from padim_edge.runtime import trial

TEN = Device("ten", GIB, bandwidth=10e3, float32=100e3, float16=400e3, int8=800e3, source="")
"""Ten bytes and a hundred operations per ms."""


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """3 x 32 x 32 -> 4 x 4 kernels -> 2 x 8 x 8 -> 2 x 2 kernels -> 3 x 4 x 4, all selected."""
    return trial.write_model(tmp_path_factory.mktemp("trial") / "padim.onnx")


@pytest.fixture(scope="module")
def both():
    """One detector with a float backbone and with one in int8."""
    pytest.importorskip("onnxruntime")
    return [make(Spec("tiny", "reference", of, "float16"), 64) for of in ("float32", "int8")]


WORK = [
    Work("image", "backbone", "Input", 0, "float32", 0, 50, 0),
    Work("a", "backbone", "Conv", 4000, "float32", 100, 300, 200),
    Work("b", "backbone", "Conv", 4000, "float16", 30, 0, 10),
    Work("c", "distances", "MatMul", 100, "float32", 1000, 10, 10),
    Work("d", "smoothing", "MatMul", 500, "float32", 10, 10, 10),
    Work("out", "smoothing", "Output", 0, "float32", 0, 0, 40),
]


def test_the_floor_is_the_larger_of_arithmetic_and_memory_node_by_node():
    found = estimate(WORK, 2, TEN, CPU)
    backbone, distances, smoothing = found.stages
    assert backbone.floor == pytest.approx(5 + 40 + 10)
    assert backbone.through_memory == pytest.approx(5 + 60 + 10)
    assert (backbone.bound, distances.bound) == ("arithmetic", "memory")
    assert distances.floor == pytest.approx(100)
    assert distances.through_memory == pytest.approx(102)
    assert smoothing.floor == pytest.approx(5 + 4)
    assert found.floor == pytest.approx(164)
    assert found.through_memory == pytest.approx(186)
    assert found.frames_per_second == pytest.approx(2 / 0.164)
    assert found.memory_bytes == 1140 + 500


@pytest.mark.parametrize(("memory", "fits"), [(1640, False), (1641, True)])
def test_what_does_not_fit_is_said(memory, fits):
    device = dataclasses.replace(TEN, memory_bytes=memory)
    assert estimate(WORK, 1, device, CPU).fits is fits


def test_every_device_is_predicted_in_every_storage(small):
    found = predict(small, TEN, batch=2)
    assert [(each.device, each.storage) for each in found.devices] == [
        (device, storage) for device in DEVICES for storage in GPU
    ]
    for each in (found.here, *found.devices):
        assert 0 < each.floor <= each.through_memory
    for whole, half, byte in zip(*[iter(found.devices)] * 3, strict=True):
        assert whole.floor > half.floor
        assert whole.memory_bytes > half.memory_bytes > 0
        assert byte.storage.constants == "int8"
    assert found.measured is found.ratio is None


def test_the_ratio_is_of_what_was_measured_to_the_floor(small):
    floor = predict(small, TEN).here.floor
    found = predict(small, TEN, measured=3 * floor)
    assert found.ratio == pytest.approx(3)
    assert f"MEASURED here: {3 * floor:.2f} ms, 3.00 x the floor" in render(found)
    assert "busy" not in "\n".join(render(found))
    assert "busy" in "\n".join(render(predict(small, TEN, measured=floor / 2)))


def test_the_text_says_what_it_is_and_names_every_device_and_source(small):
    lines = render(predict(small, TEN, batch=4))
    text = "\n".join(lines)
    assert lines[0].startswith("PREDICTION, not measured: lower bounds")
    assert "4 frames" in lines[0]
    assert "MEASURED" not in text
    for device in DEVICES:
        assert sum(line.split("  ")[0].rstrip("*") == device.name for line in lines) == len(GPU)
        assert device.source in text
    assert max(len(line) for line in lines[: lines.index("Sources:")]) <= 116


def test_what_does_not_fit_stands_out_in_the_text(small):
    found = predict(small, dataclasses.replace(TEN, memory_bytes=1000))
    assert [line for line in render(found) if line.endswith("NO")]


@pytest.mark.parametrize(
    ("name", "printed", "rate", "factor"),
    [
        ("Nano", 0.472, "float16", 1),
        ("TX2", 1.33, "float16", 1),
        ("AGX Xavier 32GB", 11, "float16", 1),
        ("AGX Xavier 32GB", 22, "int8", 1),
        ("Orin Nano 4GB", 0.64, "float32", 1),
        ("Orin Nano 4GB", 10, "int8", 1),
        ("Orin Nano 8GB", 1.28, "float32", 1),
        ("Orin Nano 8GB", 20, "int8", 1),
        ("Orin Nano 8GB Super", 2.08, "float32", 1),
        ("Orin Nano 8GB Super", 33, "int8", 1),
        ("AGX Orin 32GB", 108, "int8", 2),
        ("AGX Orin 64GB", 170, "int8", 2),
        ("Thor T4000", 1200, "float16", 8),
        ("Thor T5000", 2070, "float16", 8),
    ],
)
def test_rates_meet_what_the_data_sheets_print(name, printed, rate, factor):
    (device,) = (device for device in DEVICES if device.name == name)
    assert factor * getattr(device, rate) / 1e12 == pytest.approx(printed, rel=0.03)


def test_int8_is_predicted_where_a_rate_is_known(both):
    whole, in_int8 = both
    found = predict(in_int8, TEN, batch=2)
    assert found.here.storage == CPU_INT8
    having = [device for device in DEVICES if device.int8]
    assert [(each.device, each.storage) for each in found.devices] == [
        (device, storage) for device in having for storage in GPU_INT8
    ]
    text = "\n".join(render(found))
    for name in ("Nano", "TX2", "Thor T4000", "Thor T5000"):
        assert not any(each.device.name == name for each in found.devices)
    assert "no int8 products" in text
    assert "no int8 products" not in "\n".join(render(predict(whole, TEN)))


def test_int8_takes_its_own_rate(both):
    """All convolutions are quantised: where nothing but arithmetic costs, an eighth."""
    fast = dataclasses.replace(TEN, bandwidth=1e18)
    whole, eighth = (predict(model, fast).here.stages[0].floor for model in both)
    assert eighth == pytest.approx(whole / 8)
    with pytest.raises(UsageError, match="no int8 rate of ten is known"):
        predict(both[1], dataclasses.replace(TEN, int8=None))


def test_only_modules_with_tensorrt_10_run_our_engines():
    assert {device.name.split()[0] for device in DEVICES if device.runs} == {"Orin", "AGX", "Thor"}
    assert not any("Xavier" in device.name for device in DEVICES if device.runs)
