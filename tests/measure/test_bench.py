"""The benchmark: what it measures and in which order, its tables and its JSON."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from helpers import Outcome, in_process
from reports import SMALL, validate, with_gpu

from padim_edge.errors import MissingDependencyError, PadimEdgeError
from padim_edge.images.preprocess import Preprocess
from padim_edge.measure import bench, rates
from padim_edge.measure.report import SCHEMA, Report
from padim_edge.model.file import read
from padim_edge.runtime.engines import ENGINES

# --- one engine -------------------------------------------------------------------------------


def test_report(measured: tuple[Outcome, Path], model_file: Path) -> None:
    done, file = measured
    assert done.stderr == ""
    report = json.loads(file.read_text())
    assert (report["threads"], report["frame_size"]) == (1, [90, 120])
    assert report["file_bytes"] == model_file.stat().st_size
    assert report["model"]["file"] == model_file.name
    assert report["model"]["sha256"] == read(model_file, "padim").sha256
    assert report["machine"]["versions"]["numpy"] == np.__version__
    (engine,) = report["engines"]
    assert engine["name"] == "ort"
    assert "ONNX Runtime" in engine["description"]
    assert engine["peak_memory_bytes"] > 20e6
    assert [result["batch"] for result in engine["results"]] == [1, 4]
    for result in engine["results"]:
        assert result["calls"] == 30
        stages = result["stages"]
        assert list(stages) == ["preprocess", "backbone", "distances", "smoothing"]
        for latency in (*stages.values(), result["graph"], result["total"], result["bare"]):
            assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"]
            expected = 1e3 * result["batch"] / latency["p50"]
            assert latency["throughput"] == pytest.approx(expected)
        assert result["ratio"] == result["graph"]["p50"] / result["bare"]["p50"]
    for words in ("batch 1,", "batch 4,", "bare backbone", "peak memory", "total: frame to score"):
        assert words in done.stdout


def test_a_model_without_its_bare_backbone(tmp_path: Path, photos: Path) -> None:
    pytest.importorskip("torch")
    in_process(
        *("export", "--weights", "random", "--layers", "layer1,layer2", "--dims", "9,0"),
        *("--image-size", 64, "-o", tmp_path / "embedding.onnx"),
    ).worked()
    model, file = tmp_path / "padim.onnx", tmp_path / "bench.json"
    in_process("fit", tmp_path / "embedding.onnx", photos, "-o", model).worked()
    done = in_process("bench", model, "--engine", "ort", *SMALL, "--json", file).worked()
    (line,) = done.stderr.splitlines()
    assert line.startswith("no bare backbone")
    result = json.loads(file.read_text())["engines"][0]["results"][0]
    assert (result["bare"], result["ratio"]) == (None, None)
    assert result["graph"]["p50"] > 0
    assert "bare" not in done.stdout


# --- several engines --------------------------------------------------------------------------


class Engine:
    """Writes down its calls."""

    def __init__(self, name: str, calls: list[str]) -> None:
        self.name, self.calls = name, calls

    def infer(self, images: np.ndarray) -> None:
        assert images.dtype == np.uint8
        self.calls.append(f"{self.name} graph")

    def stages(self, _: np.ndarray) -> dict[str, float]:
        self.calls.append(f"{self.name} stages")
        # An uncounted call that takes an hour would be seen in the percentiles.
        first = self.calls.count(f"{self.name} stages") % (bench.BLOCK + 1) == 1
        return {"backbone": 3600.0 if first else 0.001, "smoothing": 0.002}


class Detector:
    """As much of a detector as a measurement touches."""

    def __init__(self, model: Path, name: str, calls: list[str]) -> None:
        self.backbone_info = read(model, "padim").backbone_info
        self.detector_info = read(model, "padim").detector_info
        self.engine, self.calls = Engine(name, calls), calls

    def batch(self, frames: list[np.ndarray]) -> None:
        assert [frame.shape for frame in frames] == [(20, 30, 3)] * 2
        self.calls.append(f"{self.engine.name} total")


def test_engines_take_turns(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "REST_SECONDS", 0)
    calls: list[str] = []
    monkeypatch.setattr(Preprocess, "__call__", lambda *_: calls.append("preprocess"))
    detectors: Any = {name: Detector(model_file, name, calls) for name in ("trt", "ort")}
    done: list[tuple[object, ...]] = []
    results = bench._measure(detectors, None, 2, 25, (20, 30), lambda *args: done.append(args))
    turns = [(who, len(list(run))) for who, run in itertools.groupby(calls)]
    once = [f"{name} {what}" for name in detectors for what in ("stages", "graph", "total")]
    calls_each = bench.BLOCK + 1
    # A batch of two is prepared frame by frame.
    assert turns == [("preprocess", 2 * calls_each), *((who, calls_each) for who in once)] * 3
    assert done == [("batch 2", n, 25) for n in (0, 10, 20, 25)]

    trt, ort = results["trt"], results["ort"]
    assert trt.stages["preprocess"] is ort.stages["preprocess"]
    for result in results.values():
        assert result.calls == 30
        assert list(result.stages) == ["preprocess", "backbone", "smoothing"]
        assert result.stages["backbone"].p99 == 1.0  # ms
        assert result.stages["smoothing"].throughput == 1000.0
        assert (result.bare, result.ratio) == (None, None)
    assert trt.to_first is None
    assert ort.to_first == ort.graph.p50 / trt.graph.p50


def test_the_printed_tables_of_several(
    model_file: Path, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "run_benchmark", lambda *_: with_gpu(report))
    lines = in_process("bench", model_file, "--engine", "ort,trt").worked().stdout.splitlines()
    assert "trt: TensorRT 10.3 on Orin" in lines
    assert sum(line.startswith("preprocess ") for line in lines) == 2  # once a batch size
    for words in ("ort: graph: image to score", "trt: graph: image to score", "bare backbone"):
        assert sum(line.startswith(words + " ") for line in lines) == 2
    assert lines.count("trt: graph / that of ort = 0.500") == 2
    assert "trt: distance kernel: 2.0 MB of constants at 40.0 GB/s, 0.80 of a copy's" in lines
    assert "trt: power: 9.00 W (VDD_IN 9.00), 12.0 mJ per frame" in lines
    assert "trt: device memory 64 MB, copy on the device 50.0 GB/s (read + written)" in lines


@pytest.mark.parametrize(
    ("engines", "words"),
    [
        ("tpu", ["'tpu'", ", ".join(ENGINES)]),
        ("ort,tpu", ["ort,tpu", "'tpu'"]),
        ("ort,", ["''", "choose"]),
        ("", ["''", "choose"]),
        ("ort/graph", ["'ort/graph'"]),
        ("trt/kernels", ["'trt/kernels'"]),
        ("ort,ort", ["ort,ort", "once"]),
        ("auto,ort", ["auto,ort", "alone"]),
    ],
)
def test_engines_that_make_no_sense(engines: str, words: list[str]) -> None:
    # The model is not even looked for.
    in_process("bench", "no.onnx", "--engine", engines).failed(2, "--engine", *words)


def test_a_batch_size_twice(model_file: Path) -> None:
    in_process("bench", model_file, "--batch", "1,4,1").failed(2, "--batch 1,4,1", "each once")


def test_an_engine_that_fails_is_named(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise PadimEdgeError("the child process failed")

    monkeypatch.setattr(bench, "measure_start", fail)
    with pytest.raises(PadimEdgeError, match=r"^engine ort: the child process failed$"):
        bench.run_benchmark(model_file, ["ort"])


# --- the JSON ---------------------------------------------------------------------------------


def test_the_json_is_that_of_the_schema(measured: tuple[Outcome, Path], report: Report) -> None:
    value = json.loads(measured[1].read_text())
    validate(value)
    assert value["schema"] == SCHEMA
    validate(json.loads(json.dumps(with_gpu(report).to_json())))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda value: value.update(more=1),
        lambda value: value.pop("date"),
        lambda value: value.update(schema=1),
        lambda value: value["machine"].update(cores="2"),
        lambda value: value["engines"][0].update(results=[]),
        lambda value: value["roofline"][0]["here"].pop("floor"),
        lambda value: value["engines"][0]["results"][0]["stages"].pop("preprocess"),
        lambda value: value["engines"][0]["results"][0]["graph"].update(p50=0),
    ],
)
def test_the_schema_notices(
    measured: tuple[Outcome, Path], spoil: Callable[[dict[str, Any]], object]
) -> None:
    value = json.loads(measured[1].read_text())
    spoil(value)
    with pytest.raises(jsonschema.ValidationError):
        validate(value)


# --- the roofline -----------------------------------------------------------------------------


def test_floors_beside_what_was_measured(measured: tuple[Outcome, Path]) -> None:
    done, file = measured
    report = json.loads(file.read_text())
    one, four = report["roofline"]
    assert (one["batch"], four["batch"]) == (1, 4)
    for prediction, result in zip((one, four), report["engines"][0]["results"], strict=True):
        assert prediction["measured"] == result["graph"]["p50"]
        assert prediction["ratio"] == prediction["measured"] / prediction["here"]["floor"]
        assert f"MEASURED here: {prediction['measured']:.2f} ms" in done.stdout
    assert four["operations"] > 3.9 * one["operations"]
    assert one["here"]["device"]["source"] == "measured"
    assert any(each["device"]["name"].startswith("Orin Nano") for each in one["devices"])
    assert done.stdout.count("PREDICTION, not measured") == 2


def test_no_ratio_to_a_floor_of_another_engine(report: Report, model_file: Path) -> None:
    _, trt = with_gpu(report).engines
    predictions = bench._roofline(model_file, dataclasses.replace(report, engines=(trt,)))
    assert [(each.batch, each.measured, each.ratio) for each in predictions] == [
        (1, None, None),
        (4, None, None),
    ]


def test_a_roofline_that_cannot_be_is_refused_before_measuring(
    model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> None:
        raise MissingDependencyError("running a graph on the CPU", "onnxruntime", "cpu")

    def measure(*_: object) -> None:
        raise AssertionError("something was measured")

    monkeypatch.setattr(rates, "open_graph", missing)
    monkeypatch.setattr(bench, "_alone", measure)
    done = in_process("bench", model_file, "--engine", "openvino", "--roofline")
    done.failed(1, "onnxruntime", "pip install 'padim-edge[cpu]'")
