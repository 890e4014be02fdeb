"""This machine's rates: measured, and what is said where they are doubtful."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from padim_edge import system
from padim_edge.measure import rates
from padim_edge.measure.devices import DEVICES, GIB
from padim_edge.measure.rates import MIB, measure_machine
from padim_edge.measure.roofline import predict, render
from padim_edge.runtime import trial


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """3 x 32 x 32 -> 4 x 4 kernels -> 2 x 8 x 8 -> 2 x 2 kernels -> 3 x 4 x 4, all selected."""
    return trial.write_model(tmp_path_factory.mktemp("trial") / "padim.onnx")


def test_this_machine_is_measured():
    pytest.importorskip("onnxruntime")
    machine = measure_machine(threads=1)
    for value in (machine.memory_bytes, machine.bandwidth, machine.float32, machine.int8):
        assert np.isfinite(value)
        assert value > 1e6


def test_both_rates_are_of_the_same_convolution():
    """Of ones: a sum is 256 x 9 in float32; in int8 times .1 and .001, in steps of .1."""
    pytest.importorskip("onnxruntime")
    for kind, inside in ((np.float32, 2304), (np.uint8, round(2304 * 0.1 * 1e-3 / 0.1))):
        with rates.convolution(1, kind) as graph:
            (y,) = graph.run({"x": np.ones(rates._SHAPE, kind)})
        assert y.dtype == kind
        assert (y[:, :, 1:-1, 1:-1] == inside).all()


@pytest.mark.parametrize(
    ("available", "cache", "size", "words"),
    [
        (64 * GIB, 32 * MIB, 512 * MIB, None),
        (64 * GIB, 480 * MIB, 960 * MIB, None),
        (
            4 * GIB,
            480 * MIB,
            512 * MIB,
            "(512 MiB) is not much larger than the last cache (480 MiB)",
        ),
        (1 * GIB, 4 * MIB, 128 * MIB, None),
        (256 * MIB, 0, 32 * MIB, "(32 MiB) is not much larger than a cache may be"),
    ],
)
def test_a_bandwidth_that_may_be_a_caches_is_said(
    small, monkeypatch, available, cache, size, words
):
    monkeypatch.setattr(rates, "available_memory", lambda: available)
    monkeypatch.setattr(rates, "last_cache", lambda: cache)
    read_bytes, note = rates._reading()
    assert read_bytes == size
    text = "\n".join(render(predict(small, dataclasses.replace(DEVICES[0], note=note))))
    assert ("note: " in text) is (words is not None)
    assert words is None or words in text


def test_the_size_of_memory_and_cache(tmp_path):
    for name, text in {
        "proc/meminfo": "MemTotal: 8 kB\nMemFree: 1 kB\nMemAvailable: 5 kB\n",
        "sys/devices/system/cpu/cpu0/cache/index0/size": "48K\n",
        "sys/devices/system/cpu/cpu0/cache/index3/size": "491520K\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert system.available_memory(tmp_path) == 5 * 1024
    assert system.last_cache(tmp_path) == 480 * MIB
    assert system.last_cache(tmp_path / "none") == 0
    assert system.available_memory(tmp_path / "none") > 1e8
