"""What is said of a float32 backbone where a GPU runs it."""

from __future__ import annotations

import types

import pytest

from padim_edge.cli.output import open_detector
from padim_edge.runtime.engines import ENGINES


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
@pytest.mark.parametrize("engine", ENGINES)
def test_float16_is_named_once_where_it_would_be_faster(monkeypatch, capsys, engine, precision):
    class Opened:
        """As much of a detector as is looked at; the engines themselves need a GPU."""

        skipped = ()
        backbone_info = types.SimpleNamespace(precision=precision)

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
