"""What is said of a backbone that another engine, or another precision, would suit better."""

from __future__ import annotations

import types

import pytest

from padim_edge.cli.output import open_detector
from padim_edge.runtime.engines import ENGINES


@pytest.mark.parametrize(
    "backbone", ["float32", "float16", "int8", "int8 cpu", "int8 openvino", "int8 tensorrt"]
)
@pytest.mark.parametrize("engine", ENGINES)
def test_what_would_be_faster_is_named_once(monkeypatch, capsys, engine, backbone):
    precision, _, made_for = backbone.partition(" ")

    class Opened:
        """As much of a detector as is looked at; the engines themselves need a GPU."""

        skipped = ()
        backbone_info = types.SimpleNamespace(precision=precision, quantised_for=made_for)

        def __init__(self, *_, **__):
            self.engine = types.SimpleNamespace(name=engine)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr("padim_edge.detect.detector.Detector", Opened)
    with open_detector("padim.onnx", engine, 0):
        pass
    said = capsys.readouterr().err
    wanted = engine in ("trt", "trt/graph", "ort-cuda") and precision == "float32"
    assert said.count("--precision float16") == wanted
    slow = (engine, made_for) in {
        ("ort", "tensorrt"),
        *((own, other) for own in ("trt", "trt/graph") for other in ("cpu", "openvino")),
    }
    assert said.count(f"warning: this int8 backbone was made for {made_for}") == slow
    assert said.count("--for cpu") == (slow and engine == "ort")
    assert said.count("--for tensorrt") == (slow and engine != "ort")
