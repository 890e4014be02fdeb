"""The benchmark: what it measures and in which order, its JSON, comparisons and pictures."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from helpers import Outcome, blocking, in_process, padim_edge, unchanged

from padim_edge.errors import MissingDependencyError, PadimEdgeError, UsageError
from padim_edge.images.preprocess import Preprocess
from padim_edge.measure import bench, roofline
from padim_edge.measure.against import Change, compare, load
from padim_edge.measure.power import Power
from padim_edge.model.file import read
from padim_edge.runtime.engines import DeviceFigures

SCHEMA = Path(__file__).parents[2] / "docs" / "bench.schema.json"
SMALL = ("--calls", 10, "--frame", "90x120", "--threads", 1)


def validate(report: dict[str, Any]) -> None:
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(report)


@pytest.fixture(scope="module")
def measured(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    """The command as it is typed, once: what it printed and its JSON."""
    file = tmp_path_factory.mktemp("bench") / "bench.json"
    done = padim_edge(
        *("bench", model_file, "--engine", "ort", *SMALL, "--batch", "1,4", "--json", file),
        "--roofline",
    ).worked()
    return done, file


@pytest.fixture(scope="module")
def report(model_file: Path) -> bench.Report:
    return bench.bench(model_file, ["ort"], (1, 4), 1, calls=10, frame_size=(90, 120))


@pytest.fixture
def remeasured(report: bench.Report, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command measures nothing: it gets the report that was made before."""
    monkeypatch.setattr(bench, "bench", lambda *_: report)


@pytest.fixture
def not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("something was measured")

    monkeypatch.setattr(bench, "bench", refuse)


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
    model_file: Path, report: bench.Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "bench", lambda *_: with_gpu(report))
    lines = in_process("bench", model_file, "--engine", "ort,trt").worked().stdout.splitlines()
    assert "trt: TensorRT 10.3 on Orin" in lines
    assert sum(line.startswith("preprocess ") for line in lines) == 2  # once a batch size
    for words in ("ort: graph: image to score", "trt: graph: image to score", "bare backbone"):
        assert sum(line.startswith(words + " ") for line in lines) == 2
    assert lines.count("trt: graph / that of ort = 0.500") == 2
    assert "trt: distance kernel: 2.0 MB of constants at 40.0 GB/s, 0.80 of a copy's" in lines
    assert "trt: power: 9.00 W (VDD_IN 9.00), 12.0 mJ per frame" in lines
    assert "trt: device memory 64 MB, copy on the device 50.0 GB/s (read + written)" in lines


def with_gpu(report: bench.Report) -> bench.Report:
    """A report with a second engine that was made up."""
    (ort,) = report.engines
    results = [
        dataclasses.replace(
            result,
            stages={
                "preprocess": result.stages["preprocess"],
                **dict.fromkeys(("upload", "backbone", "distances", "smoothing"), result.graph),
            },
            bare=None,
            ratio=None,
            to_first=0.5,
            kernel=bench.Kernel(2_000_000, 40e9, 0.8),
            power=Power({"VDD_IN": 9.0}, 9.0, 12.0),
        )
        for result in ort.results
    ]
    trt = dataclasses.replace(
        ort,
        name="trt",
        description="TensorRT 10.3 on Orin",
        device=DeviceFigures("Orin (sm_87)", 64_000_000, 2_000_000, 50e9),
        results=tuple(results),
    )
    return dataclasses.replace(report, engines=(ort, trt))


@pytest.mark.parametrize(
    ("engines", "words"),
    [
        ("tpu", ["'tpu'", ", ".join(bench.CHOICES)]),
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

    monkeypatch.setattr(bench, "_fresh_process", fail)
    with pytest.raises(PadimEdgeError, match=r"^engine ort: the child process failed$"):
        bench.bench(model_file, ["ort"])


# --- the JSON ---------------------------------------------------------------------------------


def test_the_json_is_that_of_the_schema(
    measured: tuple[Outcome, Path], report: bench.Report
) -> None:
    value = json.loads(measured[1].read_text())
    validate(value)
    assert value["schema"] == bench.SCHEMA
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


def test_no_ratio_to_a_floor_of_another_engine(report: bench.Report, model_file: Path) -> None:
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

    monkeypatch.setattr(roofline, "open_graph", missing)
    monkeypatch.setattr(bench, "_alone", measure)
    done = in_process("bench", model_file, "--engine", "openvino", "--roofline")
    done.failed(1, "onnxruntime", "pip install 'padim-edge[cpu]'")


# --- a fresh process --------------------------------------------------------------------------

CHILD = "import json, os, sys, time; good = json.dumps({'peak_memory_bytes': 7});"


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], tuple[float, int]]:
    """Run other code than a start in the fresh process."""

    def start(code: str) -> tuple[float, int]:
        script = tmp_path / "python"
        script.write_text(f"#!{python}\n{CHILD}{code}\n")
        script.chmod(0o755)
        return bench._fresh_process(tmp_path, "ort", 1)

    python = sys.executable
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    return start


def test_the_time_is_that_of_the_score(child: Callable[[str], tuple[float, int]]) -> None:
    """Much on stderr, other lines on stdout, and a slow end: nothing of it counts or hinders."""
    seconds, peak = child(
        "print('x' * 10**6, file=sys.stderr); print('hello'); print(good, flush=True);"
        "time.sleep(2); print('good-bye')"
    )
    assert 0 < seconds < 1.5
    assert peak == 7


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("print(good); sys.exit('no room')", "^no room$"),
        ("print('hello')", r"failed \(exit code 0\)"),
        ("print(good); sys.stdout.flush(); os.kill(os.getpid(), 11)", "died of signal 11"),
        ("time.sleep(60)", "no score within 1 s"),
    ],
)
def test_a_fresh_process_that_fails(
    child: Callable[[str], tuple[float, int]],
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    words: str,
) -> None:
    monkeypatch.setattr(bench, "START_SECONDS", 1.0 if "sleep" in code else 60.0)
    with pytest.raises(PadimEdgeError, match=words):
        child(code)


def test_a_fresh_process_ends_with_its_parent(
    child: Callable[[str], tuple[float, int]], tmp_path: Path
) -> None:
    """SIGTERM comes as KeyboardInterrupt, like Ctrl-C."""
    file = tmp_path / "pid"
    main = threading.get_ident()

    def interrupt() -> None:
        while not file.is_symlink():  # it leads nowhere
            time.sleep(0.1)
        signal.pthread_kill(main, signal.SIGINT)

    # In a background job Ctrl-C is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Thread(target=interrupt, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            child(f"os.symlink(str(os.getpid()), {str(file)!r}); time.sleep(60)")
    finally:
        signal.signal(signal.SIGINT, before)
    with pytest.raises(ProcessLookupError):
        os.kill(int(file.readlink().name), 0)


# --- against an earlier one -------------------------------------------------------------------


def earlier(report: bench.Report, folder: Path, **factors: float) -> Path:
    """A JSON whose figures are those of a report, some of them multiplied."""
    value = copy.deepcopy(json.loads(json.dumps(report.to_json())))
    value["file_bytes"] *= factors.get("file", 1)
    for engine in value["engines"]:
        engine["cold_start_seconds"] *= factors.get("start", 1)
        engine["peak_memory_bytes"] *= factors.get("memory", 1)
        for result in engine["results"]:
            result["graph"]["p50"] *= factors.get("graph", 1)
            result["total"]["p50"] *= factors.get("total", 1)
            if result["ratio"]:
                result["ratio"] *= factors.get("ratio", 1)
    file = folder / "earlier.json"
    file.write_text(json.dumps(value))
    return file


def test_what_is_worse() -> None:
    change = Change("graph, ms", 10.0, 11.5, gates=True)
    assert change.share == pytest.approx(0.15)
    assert change.worse(0.1)
    assert not change.worse(0.2)
    assert not Change("graph, ms", 10.0, 5.0, gates=True).worse(0)
    assert not Change("graph, ms", 10.0, 10.0, gates=True).worse(0)
    assert not Change("file", 10.0, 11.5, gates=False).worse(0.1)


def test_the_figures_side_by_side(report: bench.Report, tmp_path: Path) -> None:
    comparison = compare(load(earlier(report, tmp_path, graph=2, ratio=0.5)), report)
    assert comparison.notes == ()
    shares = {change.figure: round(change.share, 6) for change in comparison.changes}
    one = {"graph, ms": -0.5, "total, ms": 0, "graph / bare backbone": 1}
    assert shares == {
        **{f"ort, batch {n}: {name}": share for n in (1, 4) for name, share in one.items()},
        "ort: cold start, s": 0,
        "ort: peak memory, MB": 0,
        "model file, MB": 0,
    }
    first = comparison.changes[0]
    assert first.new == report.engines[0].results[0].graph.p50
    assert first.old == 2 * first.new


@pytest.mark.parametrize("figure", ["graph", "total", "ratio", "start", "memory"])
@pytest.mark.usefixtures("remeasured")
def test_worse_than_before(
    report: bench.Report, model_file: Path, tmp_path: Path, figure: str
) -> None:
    old, new, picture = (
        earlier(report, tmp_path, **{figure: 0.8}),
        tmp_path / "n",
        tmp_path / "p.svg",
    )
    arguments = ("bench", model_file, "--engine", "ort", "--batch", "1,4", *SMALL, "--against", old)
    done = in_process(*arguments, "--json", new, "--plot", picture)
    many = 1 if figure in ("start", "memory") else 2
    done.failed(1, f"{many} of 9 figures rose by more than 10 %")
    marked = [line for line in done.stdout.splitlines() if line.endswith("worse")]
    assert len(marked) == many
    assert all("+25.0%" in line for line in marked)
    validate(json.loads(new.read_text()))
    assert picture.exists()
    done = in_process(*arguments, "--tolerance", "0.3").worked()
    assert "worse" not in done.stdout


@pytest.mark.usefixtures("remeasured")
def test_no_worse_than_before(report: bench.Report, model_file: Path, tmp_path: Path) -> None:
    """Faster and smaller is well; a larger file is no matter of time."""
    faster = dict.fromkeys(("graph", "total", "ratio", "start", "memory"), 3.0)
    old = earlier(report, tmp_path, **faster, file=0.1)
    arguments = ("bench", model_file, "--engine", "ort", *SMALL, "--against", old)
    done = in_process(*arguments, "--tolerance", 0).worked()
    assert "worse" not in done.stdout
    assert "-66.7%" in done.stdout
    assert "+900.0%" in done.stdout
    assert done.stderr == ""


def test_against_itself_as_it_is_typed(
    measured: tuple[Outcome, Path], model_file: Path, tmp_path: Path
) -> None:
    """The whole way, for real: no machine is ten thousand times slower a moment later."""
    done = padim_edge(
        *("bench", model_file, "--engine", "ort", *SMALL, "--batch", "4,2"),
        *("--against", measured[1], "--tolerance", 1e4, "--plot", tmp_path / "bench.png"),
    ).worked()
    assert done.stderr.splitlines() == [
        "not in the earlier report: ort, batch 2",
        "in the earlier report only: ort, batch 1",
    ]
    assert "ort, batch 4: graph, ms " in done.stdout
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_no_figure_vanishes_in_silence(report: bench.Report, tmp_path: Path) -> None:
    both, one = with_gpu(report), report.engines[0]
    results = (dataclasses.replace(one.results[0], ratio=None),)
    fewer = dataclasses.replace(report, engines=(dataclasses.replace(one, results=results),))
    gone = "ort, batch 1: graph / bare backbone; ort, batch 4; trt, batch 1; trt, batch 4"
    assert compare(load(earlier(both, tmp_path)), fewer).notes == (
        f"in the earlier report only: {gone}",
    )
    assert compare(load(earlier(fewer, tmp_path)), both).notes == (
        f"not in the earlier report: {gone}",
    )


def test_nothing_in_common_says_why(report: bench.Report, tmp_path: Path) -> None:
    _, trt = with_gpu(report).engines
    alone = dataclasses.replace(report, engines=(trt,))
    value = json.loads(earlier(alone, tmp_path).read_text())
    value["engines"][0]["device"]["device"] = "Nano"
    (tmp_path / "old.json").write_text(json.dumps(value))
    with pytest.raises(UsageError, match=r"nothing to compare .*; not compared: trt was on Nano$"):
        compare(load(tmp_path / "old.json"), alone)


CONDITIONS: dict[str, tuple[Callable[[dict[str, Any]], object], list[str]]] = {
    "processor": (lambda v: v["machine"].update(processor="Z80"), ["processor Z80 (now "]),
    "cores": (lambda v: v["machine"].update(cores=1000), ["cores 1000 (now "]),
    "power": (lambda v: v["machine"].update(power_mode="25W"), ["power mode 25W (now unknown)"]),
    "threads": (lambda v: v.update(threads=7), ["threads 7 (now 1)"]),
    "frames": (lambda v: v.update(frame_size=[8, 9]), ["frames 8x9 (now 90x120)"]),
    "precision": (lambda v: v["model"].update(precision="float16"), ["float16 (now float32)"]),
    "engines": (lambda v: v["engines"][0].update(name="trt"), ["nothing to compare", "trt, batch"]),
    "batches": (
        lambda v: [one.update(batch=16 * one["batch"]) for one in v["engines"][0]["results"]],
        ["nothing to compare", "ort, batch 16; ort, batch 64"],
    ),
    "schema": (lambda v: v.update(schema=1), ["its schema is 1", "2 is needed", "measure again"]),
    "no report": (lambda v: v.clear(), ["no report of padim-edge bench"]),
    "not whole": (lambda v: v["engines"][0]["results"][1].pop("graph"), ["no report", "whole"]),
    "no number": (
        lambda v: v["engines"][0]["results"][1]["total"].update(p50="fast"), ["no report"]
    ),
    "not finite": (
        lambda v: v["engines"][0].update(cold_start_seconds=float("nan")), ["no report"]
    ),
    "zero": (lambda v: v["engines"][0]["results"][0].update(ratio=0), ["no report"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CONDITIONS)
@pytest.mark.usefixtures("not_measured")
def test_a_report_that_does_not_compare(
    report: bench.Report, model_file: Path, tmp_path: Path, name: str
) -> None:
    spoil, words = CONDITIONS[name]
    old = earlier(report, tmp_path)
    value = json.loads(old.read_text())
    spoil(value)
    old.write_text(json.dumps(value))
    arguments = ("bench", model_file, "--engine", "ort", *SMALL, "--against", old)
    in_process(*arguments).failed(2, "--against", *words)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"\xff\xfe\x00", "no JSON"),
        (b"[" * 10**6, "no JSON"),
        (b"[]", "no report"),
        (b"17", "no report"),
        (b'{"schema": 2}', "no report"),
        (b'{"schema": 3, "machine": {}}', "no report"),
        (None, "No such file"),
    ],
)
@pytest.mark.usefixtures("not_measured")
def test_a_file_that_is_no_report(
    model_file: Path, tmp_path: Path, content: bytes | None, word: str
) -> None:
    old = tmp_path / "old.json"
    if content is not None:
        old.write_bytes(content)
    with unchanged(tmp_path):
        done = in_process("bench", model_file, "--against", old, "--json", tmp_path / "new.json")
    done.failed(2, f"--against {old}", word)


def test_what_is_said_and_compared(report: bench.Report, tmp_path: Path) -> None:
    old = earlier(with_gpu(report), tmp_path)
    value = json.loads(old.read_text())
    value["model"].update(sha256="0" * 64, constants="int8")
    value["machine"]["versions"]["numpy"] = "1.0"
    value["engines"][1]["device"]["device"] = "Nano"
    del value["engines"][0]["results"][0]
    old.write_text(json.dumps(value))
    comparison = compare(load(old), with_gpu(report))
    model, software, device, missing = comparison.notes
    assert model.startswith("another model file: ")
    assert "int8 constants, now " in model
    assert software == f"other software: numpy 1.0, now {np.__version__}"
    assert device == "not compared: trt was on Nano"
    assert missing == "not in the earlier report: ort, batch 1"
    figures = [change.figure for change in comparison.changes]
    assert "ort, batch 4: graph, ms" in figures
    assert not [name for name in figures if name.startswith(("trt", "ort, batch 1"))]


def test_auto_is_compared_with_what_it_chose(report: bench.Report, tmp_path: Path) -> None:
    value = json.loads(earlier(report, tmp_path).read_text())
    value["engines"][0]["name"] = "trt"
    (tmp_path / "old.json").write_text(json.dumps(value))
    with pytest.raises(UsageError, match="nothing to compare with"):
        compare(load(tmp_path / "old.json"), report)


@pytest.mark.parametrize("tolerance", ["-0.1", "nan", "inf"])
def test_a_tolerance_that_makes_no_sense(
    measured: tuple[Outcome, Path], model_file: Path, tolerance: str
) -> None:
    done = in_process("bench", model_file, "--against", measured[1], "--tolerance", tolerance)
    done.failed(2, f"--tolerance {tolerance}")


def test_a_tolerance_for_nothing(model_file: Path) -> None:
    in_process("bench", model_file, "--tolerance", "0.1").failed(2, "--tolerance", "--against")


# --- the picture ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "start"), [("a.png", b"\x89PNG\r\n"), ("a.PDF", b"%PDF"), ("a.svg", b"<?xml")]
)
@pytest.mark.usefixtures("remeasured")
def test_formats(model_file: Path, tmp_path: Path, name: str, start: bytes) -> None:
    in_process("bench", model_file, "--engine", "ort", "--plot", tmp_path / name).worked()
    assert (tmp_path / name).read_bytes().startswith(start)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_what_the_picture_shows(report: bench.Report, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from padim_edge.measure.plots import draw

    with (tmp_path / "a.svg").open("wb") as stream:
        draw(with_gpu(report), stream, "svg")
    text = (tmp_path / "a.svg").read_text()
    (ort,) = report.engines
    words = ["batch 1", "batch 4", ">ort<", ">trt<", "upload", "distances", "bare backbone (ort)"]
    words += ["whole graph", "ms per frame", report.date, report.machine.processor[:20], "numpy"]
    words += [f"{one.graph.p50 / one.batch:.3g}" for one in ort.results]
    assert [word for word in words if word not in text] == []


@pytest.mark.usefixtures("remeasured")
def test_a_picture_that_fails_costs_no_figures(
    report: bench.Report, model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")

    def fail(*_: object) -> None:
        raise MemoryError("no room for a picture")

    monkeypatch.setattr("padim_edge.measure.plots.draw", fail)
    old, new = earlier(report, tmp_path, graph=0.5), tmp_path / "new.json"
    done = in_process(
        *("bench", model_file, "--engine", "ort", "--batch", "1,4", *SMALL, "--against", old),
        *("--json", new, "--plot", tmp_path / "a.png"),
    )
    done.failed(1, "no room for a picture")
    validate(json.loads(new.read_text()))
    assert "graph: image to score" in done.stdout
    assert "worse" in done.stdout
    assert not (tmp_path / "a.png").exists()


@pytest.mark.usefixtures("not_measured")
def test_pictures_that_cannot_be_drawn(model_file: Path, tmp_path: Path) -> None:
    with unchanged(tmp_path):
        for name in ("a", "a.jpg", "a.png.txt"):
            done = in_process("bench", model_file, "--plot", tmp_path / name)
            done.failed(2, f"--plot {tmp_path / name}", ".png, .svg, .pdf")
        missing = tmp_path / "no" / "a.png"
        in_process("bench", model_file, "--plot", missing).failed(1, f"cannot write {missing}")


def test_without_matplotlib(model_file: Path, tmp_path: Path) -> None:
    # Measuring would be another error.
    fail = "from padim_edge.measure import bench; bench.run_benchmark = None\n"
    with unchanged(tmp_path):
        done = padim_edge(
            *("bench", model_file, "--plot", tmp_path / "a.png", "--json", tmp_path / "a.json"),
            prelude=blocking("matplotlib") + fail,
        )
    done.failed(1, "bench --plot", "matplotlib", "pip install 'padim-edge[dev]'")
