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
from reports import SMALL, hurry, validate, with_gpu

from padim_edge.detect.detector import Detector as RealDetector
from padim_edge.errors import MissingDependencyError, PadimEdgeError, UsageError
from padim_edge.images.formats import PIXEL_FORMATS
from padim_edge.images.frames import Frame
from padim_edge.measure import bench, camera, rates
from padim_edge.measure.camera import Camera, parse_camera
from padim_edge.measure.report import SCHEMA, Report
from padim_edge.model.file import read
from padim_edge.runtime import trial
from padim_edge.runtime.engines import ENGINES

# --- one engine -------------------------------------------------------------------------------


def test_report(measured: tuple[Outcome, Path], model_file: Path) -> None:
    done, file = measured
    assert done.stderr == ""
    report = json.loads(file.read_text())
    assert report["threads"] == 1
    (model,) = report["models"]
    assert model["file_bytes"] == model_file.stat().st_size
    assert model["file"] == model_file.name
    assert model["sha256"] == read(model_file, "padim").sha256
    assert report["machine"]["versions"]["numpy"] == np.__version__
    (engine,) = report["engines"]
    assert (engine["model"], engine["name"]) == (model_file.name, "ort")
    assert "ONNX Runtime" in engine["description"]
    assert engine["peak_memory_bytes"] > 20e6
    assert [result["batch"] for result in engine["results"]] == [1, 4]
    for result in engine["results"]:
        assert result["calls"] == 30
        stages = result["stages"]
        assert list(stages) == ["backbone", "distances", "smoothing"]
        (frame,) = result["frames"]
        assert frame["camera"] == {"width": 120, "height": 90, "pixel_format": "bgr"}
        parts = [frame[part] for part in ("prepare", "graph", "rest", "whole")]
        for latency in (*stages.values(), result["graph"], result["bare"], *parts):
            assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"]
            expected = 1e3 * result["batch"] / latency["p50"]
            assert latency["throughput"] == pytest.approx(expected)
        assert result["ratio"] == result["graph"]["p50"] / result["bare"]["p50"]
        assert frame["ratio"] == frame["whole"]["p50"] / result["bare"]["p50"]
        words = f"120x90 bgr to decision / bare backbone = {frame['ratio']:.3f}"
        assert words in done.stdout.splitlines()
    for words in ("batch 1,", "batch 4,", "bare backbone", "peak memory"):
        assert words in done.stdout
    for part in ("prepare", "graph", "rest", "frame to decision"):
        assert done.stdout.count(f"120x90 bgr: {part} ") == 2


@pytest.mark.usefixtures("hurried")
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

    def infer_frames(self, frames: list[np.ndarray]) -> float:
        return float(np.mean(frames))

    def stages(self, _: np.ndarray) -> dict[str, float]:
        self.calls.append(f"{self.name} stages")
        # An uncounted call that takes an hour would be seen in the percentiles.
        first = self.calls.count(f"{self.name} stages") % (bench.BLOCK + 1) == 1
        return {"backbone": 3600.0 if first else 0.001, "smoothing": 0.002}


class Detector:
    """As much of a detector as a measurement touches."""

    def __init__(self, model: Path, name: str, calls: list[str]) -> None:
        self.backbone_info = read(model, "padim").backbone_info
        self.engine, self.calls = Engine(name, calls), calls

    def prepare(self, frame: np.ndarray) -> np.ndarray:
        return frame.copy()

    def batch(self, frames: list[np.ndarray], pixel_format: str) -> None:
        assert [self.prepare(frame).shape for frame in frames] == [(20, 30)] * 2
        self.engine.infer_frames(frames)
        assert pixel_format == "grey8"
        self.calls.append(f"{self.engine.name} frames of {[int(frame[0, 0]) for frame in frames]}")


def test_engines_take_turns(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "REST_SECONDS", 0)
    calls: list[str] = []
    detectors: Any = {("m", name): Detector(model_file, name, calls) for name in ("trt", "ort")}
    done: list[tuple[object, ...]] = []
    frames = {Camera(30, 20, "grey8"): [np.full((20, 30), n, np.uint8) for n in range(3)]}
    results = bench._measure(detectors, {}, 2, 25, frames, lambda *args: done.append(args))
    turns = [(who.split(" of ")[0], who) for who in calls]
    counted = [(who, len(list(run))) for who, run in itertools.groupby(who for who, _ in turns)]
    once = [f"{name} {what}" for _, name in detectors for what in ("stages", "graph", "frames")]
    assert counted == [(who, bench.BLOCK + 1) for who in once] * 3
    # No call is given the frames of the one before, whose memory may be in a cache.
    of = [who for short, who in turns if short == "ort frames"]
    assert of[:3] == [f"ort frames of {pair}" for pair in ([0, 1], [2, 0], [1, 2])]
    assert done == [("batch 2", n, 25) for n in (0, 10, 20, 25)]

    trt, ort = results["m", "trt"], results["m", "ort"]
    for result in results.values():
        assert result.calls == 30
        assert list(result.stages) == ["backbone", "smoothing"]
        assert result.stages["backbone"].p99 == 1.0  # ms
        assert result.stages["smoothing"].throughput == 1000.0
        assert (result.bare, result.ratio) == (None, None)
        assert [one.camera for one in result.frames] == list(frames)
        assert result.frames[0].ratio is None
    assert trt.to_first is None
    assert ort.to_first == ort.graph.p50 / trt.graph.p50


# --- a camera's frames ------------------------------------------------------------------------


def test_a_call_is_taken_apart(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that each part of a call moves on by as much as it is said to take."""
    now = 0.0

    def taking(seconds: float, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            nonlocal now
            now += seconds
            return function(*arguments)

        return call

    class Raw:
        """An engine that prepares frames itself, and judges them as any other."""

        def __init__(self, detector: RealDetector) -> None:
            self.detector, self.inner = detector, detector.engine
            self.infer = taking(1, self.inner.infer)
            self.close = self.inner.close

        def takes(self, frame: Frame) -> bool:
            return frame.size[1] > 30

        def infer_frames(self, frames: list[Frame]) -> Any:
            nonlocal now
            now += 2
            preprocess = self.detector.detector_info.preprocess
            return self.infer(np.stack([preprocess(frame) for frame in frames]))

        def frame_stages(self, _: list[Frame]) -> dict[str, float]:
            raise AssertionError("a call is timed, and not its stages")

    monkeypatch.setattr(bench.time, "perf_counter", lambda: now)
    with RealDetector(model_file, "ort") as detector:
        monkeypatch.setattr(RealDetector, "prepare", taking(10, RealDetector.prepare))
        monkeypatch.setattr(RealDetector, "_result", taking(100, RealDetector._result))
        small = np.zeros((20, 30, 3), np.uint8), np.ones((20, 30, 3), np.uint8)
        large = [np.zeros((40, 60, 3), np.uint8)]
        for engine, frames, graph in (
            (detector.engine, small, 0),
            (Raw(detector), small, 1),
            (Raw(detector), large, 3),
        ):
            detector.engine = engine  # type: ignore[assignment]
            calls = bench._FrameCalls(detector, frames, Camera(30, 20))
            calls(3)
            assert calls.rows == [{"prepare": 30, "graph": graph, "rest": 300,
                                   "whole": 330 + graph}]  # fmt: skip
        # Nothing is left of the clock.
        assert "prepare" not in vars(detector)
        assert "infer_frames" not in vars(detector.engine)
        calls = bench._FrameCalls(detector, [np.zeros((4, 4), np.uint8)], Camera(4, 4, "rgb"))
        with pytest.raises(UsageError, match="pixels in rgb"):
            calls(1)
        assert "prepare" not in vars(detector)


@pytest.mark.parametrize("pixel_format", PIXEL_FORMATS)
def test_frames_of_every_format(pixel_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(camera, "MIB", 1000)
    monkeypatch.setattr(camera, "last_cache", lambda: 100_000)
    of = Camera(64, 42, pixel_format)
    frames = of.frames()
    assert sum(one.nbytes for one in frames) >= 200_000
    assert len({one.ctypes.data for one in frames}) == len(frames)
    assert len({one.tobytes() for one in frames}) > 10  # moved about
    for one in frames[:2]:
        assert Frame(one, pixel_format).size == (42, 64)
        assert one.flags.c_contiguous
        assert one.max() > PIXEL_FORMATS[pixel_format].white // 2
        assert one.std() > 0


def test_frames_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(camera, "available_memory", lambda: 10 * camera.MIB)
    assert len(Camera(1000, 500).frames()) == 2
    assert len(Camera(100, 100).frames()) == 44


@pytest.mark.parametrize(
    ("size", "pixel_format", "words"),
    [
        ("1921x1080", "yuyv", "in yuyv width must be even"),
        ("1920x1081", "nv12", "in nv12 width and height must be even"),
        ("100000x100000", "bgr", "1 to 178,956,970 pixels"),
        ("1920 1080", "bgr", "as a camera has them: 1920x1080"),
    ],
)
def test_cameras_that_cannot_be(size: str, pixel_format: str, words: str) -> None:
    with pytest.raises(UsageError, match=f"^--frame {size}: .*{words}"):
        parse_camera(size, pixel_format)


def test_width_comes_first() -> None:
    assert parse_camera(" 1920X1080 ", "bgr") == Camera(1920, 1080, "bgr")
    assert Camera(1920, 1080, "nv12").frames()[0].shape == (1620, 1920)
    assert str(Camera(1920, 1080)) == "1920x1080 bgr"


@pytest.mark.usefixtures("remeasured")
def test_cameras_as_they_are_typed(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[list[Camera]] = []
    report = bench.run_benchmark([model_file])
    monkeypatch.setattr(bench, "run_benchmark", lambda *args: given.append(args[5]) or report)
    in_process("bench", model_file).worked()
    in_process(
        *("bench", model_file, "--frame", "8x6,9x7", "--frame", "10x8", "--pixel-format", "rgb")
    ).worked()
    assert given == [
        [Camera(1920, 1080, "bgr")],
        [Camera(8, 6, "rgb"), Camera(9, 7, "rgb"), Camera(10, 8, "rgb")],
    ]


# --- several engines, printed -----------------------------------------------------------------


def test_the_printed_tables_of_several(
    model_file: Path, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "run_benchmark", lambda *_: with_gpu(report))
    lines = in_process("bench", model_file, "--engine", "ort,trt").worked().stdout.splitlines()
    assert "trt: TensorRT 10.3 on Orin" in lines
    assert sum(line.startswith("trt: 120x90 bgr: prepare ") for line in lines) == 2
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
        bench.run_benchmark([model_file], ["ort"])


# --- several models ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(
    model_file: Path, photos: Path, embedding_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, Path]:
    """A detector in float32, the same in int8, and a small one of another size and name alike."""
    folder = tmp_path_factory.mktemp("models")
    in_process(
        *("fit", embedding_file, photos, "--precision", "int8", "-o", folder / "int8.onnx")
    ).worked()
    (folder / "other").mkdir()
    trial.write_model(folder / "other" / model_file.name)
    return (
        model_file,
        folder / "int8.onnx",
        folder / "other" / model_file.name,
    )


@pytest.fixture(scope="module")
def bare_of() -> dict[bench.Row, list[Path]]:
    """Filled by `compared`: per row the files whose bare backbone runs as its own."""
    return {}


@pytest.fixture(scope="module")
def compared(
    models: tuple[Path, Path, Path],
    bare_of: dict[bench.Row, list[Path]],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Outcome, dict[str, Any]]:
    """All of them in two engines in one run, as it is typed."""
    pytest.importorskip("openvino")
    file = tmp_path_factory.mktemp("compared") / "bench.json"
    ran: list[Path] = []
    open_bare, interleave = bench._open_bare, bench.interleave

    def opened(path: Path, threads: int) -> Any:
        graph = open_bare(path, threads)
        run = graph.run
        graph.run = lambda *arguments: (ran.append(path), run(*arguments))
        return graph

    def interleaved(contenders: Any, *rest: Any) -> Any:
        for (row, what), call in contenders.items():
            ran.clear()
            call()
            if what == "bare":
                bare_of[row] = list(ran)
        return interleave(contenders, *rest)

    with pytest.MonkeyPatch.context() as patch:
        hurry(patch)
        patch.setattr(bench, "_open_bare", opened)
        patch.setattr(bench, "interleave", interleaved)
        done = in_process(
            *("bench", *models, "--engine", "ort,openvino", *SMALL, "--json", file),
            *("--plot", file.with_suffix(".svg"), "--roofline"),
        ).worked()
    value = json.loads(file.read_text())
    validate(value)
    text = file.with_suffix(".svg").read_text()
    assert "(int8.onnx, ort)" in text
    assert ">int8.onnx, openvino<" in text
    return done, value


def test_models_stand_beside_each_other(
    compared: tuple[Outcome, dict[str, Any]],
    models: tuple[Path, Path, Path],
    bare_of: dict[bench.Row, list[Path]],
) -> None:
    done, value = compared
    files = [str(models[0]), "int8.onnx", str(models[2])]  # two have one name: as they were given
    assert [model["file"] for model in value["models"]] == files
    assert [model["precision"] for model in value["models"]] == ["float32", "int8", "float32"]
    assert value["models"][1]["file_bytes"] == models[1].stat().st_size
    assert [(row["model"], row["name"]) for row in value["engines"]] == [
        (file, engine) for file in files for engine in ("ort", "openvino")
    ]
    first = value["engines"][0]["results"][0]
    assert first["to_first"] is None
    for row in value["engines"][1:]:
        (result,) = row["results"]
        assert result["to_first"] == result["graph"]["p50"] / first["graph"]["p50"]
    # The bare backbone of a row is that of its own model.
    assert bare_of == {(file, "ort"): [path] for file, path in zip(files, models, strict=True)}
    out = done.stdout
    for line in (
        "int8.onnx: resnet18 in int8, ",
        "int8.onnx, openvino: graph: image to score ",
        "int8.onnx, ort: bare backbone ",
        f"int8.onnx, ort: graph / that of {files[0]}, ort = ",
        "int8.onnx, ort: 120x90 bgr: frame to decision ",
        "int8.onnx, ort: peak memory ",
        "int8.onnx: file ",
    ):
        assert sum(found.startswith(line) for found in out.splitlines()) == 1, line


@pytest.mark.usefixtures("hurried")
def test_copies_of_a_model_are_compared(model_file: Path, tmp_path: Path) -> None:
    """To see what two runs of one thing differ by."""
    (tmp_path / "copy.onnx").write_bytes(model_file.read_bytes())
    report = bench.run_benchmark([model_file, tmp_path / "copy.onnx"], ["ort"], calls=1, cameras=())
    one, two = report.models
    assert one.sha256 == two.sha256
    assert [report.label(row) for row in report.engines] == [
        f"{model_file.name}, ort",
        "copy.onnx, ort",
    ]


def test_a_model_twice(model_file: Path, tmp_path: Path) -> None:
    """Under whatever name: before anything is read or measured."""
    (tmp_path / "link.onnx").symlink_to(model_file)
    done = in_process("bench", model_file, tmp_path / "link.onnx")
    done.failed(2, f"{tmp_path / 'link.onnx'} is the same file as {model_file}", "each model once")
    in_process("bench", "no.onnx", "./no.onnx").failed(2, "no.onnx is the same file as no.onnx")
    with pytest.raises(UsageError, match="no model"):
        bench.run_benchmark([])


def test_of_several_a_model_that_is_none_is_named(
    model_file: Path, embedding_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_process("bench", model_file, tmp_path / "no.onnx").failed(1, str(tmp_path / "no.onnx"))
    in_process("bench", model_file, embedding_file).failed(1, str(embedding_file), "padim-edge fit")

    def fail(*_: object) -> None:
        raise PadimEdgeError("the child process failed")

    monkeypatch.setattr(bench, "measure_start", fail)
    (tmp_path / "copy.onnx").write_bytes(model_file.read_bytes())
    with pytest.raises(PadimEdgeError, match=rf"^{model_file.name}, engine ort: the child"):
        bench.run_benchmark([model_file, tmp_path / "copy.onnx"], ["ort"])
    with pytest.raises(PadimEdgeError, match=rf"^{model_file.name}: the child"):
        bench.run_benchmark([model_file, tmp_path / "copy.onnx"])


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
        lambda value: value["engines"][0]["results"][0].update(stages={}),
        lambda value: value["engines"][0]["results"][0]["frames"][0]["camera"].pop("width"),
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
    models = {model_file.name: model_file}
    predictions = bench._roofline(models, dataclasses.replace(report, engines=(trt,)))
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
