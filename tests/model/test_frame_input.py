"""Files that begin at the raw frame: bare ONNX Runtime prepares as we do, bit for bit."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import resampling
from helpers import in_process, unchanged
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image

from padim_edge.detect.detector import Detector
from padim_edge.errors import ModelError
from padim_edge.images.preprocess import Preprocess
from padim_edge.model.file import read, write
from padim_edge.model.frame_input import with_frame_input
from padim_edge.model.graph import as_model, image_input
from padim_edge.model.inspect import describe

Image8 = NDArray[np.uint8]


def noise(*shape: int) -> Image8:
    return np.random.default_rng(shape[0]).integers(0, 256, shape, dtype=np.uint8)


def preparing(preprocess: Preprocess) -> bytes:
    """A file that gives the prepared image itself."""
    nodes = [helper.make_node("Identity", ["image"], ["prepared"])]
    shape = ["N", *preprocess.size, 3]
    prepared = helper.make_tensor_value_info("prepared", TensorProto.UINT8, shape)
    graph = helper.make_graph(nodes, "identity", [image_input(preprocess.size)], [prepared])
    proto = with_frame_input(as_model(graph), preprocess)
    onnx.checker.check_model(proto, full_check=True)
    return proto.SerializeToString()


def session(file: bytes | Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what is refused on purpose is not printed
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def prepare(preprocess: Preprocess) -> Callable[[Image8], Image8]:
    """What bare ONNX Runtime makes of frames [N, h, w, 3]."""
    opened = session(preparing(preprocess))

    def run(frames: Image8) -> Image8:
        (images,) = opened.run(None, {"frame": frames})
        return np.asarray(images)

    return run


def judged(frame: Image8, preprocess: Preprocess) -> Image8:
    """By the definition, in whole numbers."""
    height, width, _ = frame.shape
    if isinstance(preprocess.resize, int):
        shorter = min(height, width)
        target = preprocess.resize * height // shorter, preprocess.resize * width // shorter
    else:
        target = preprocess.resize
    block = None if preprocess.reduce else (1, 1)
    resized = resampling.resized(frame, target, preprocess.interpolation, block)
    top, left = (round((t - s) / 2) for t, s in zip(target, preprocess.size, strict=True))
    return resized[top : top + preprocess.size[0], left : left + preprocess.size[1]]


SIZE = (24, 32)
WAYS = {
    f"{name}, {'reduced' if reduce else 'not reduced'}": Preprocess(SIZE, SIZE, False, name, reduce)
    for name in resampling.FILTERS
    for reduce in (True, False)
} | {
    "shorter side": Preprocess(SIZE, 33, True, "bilinear", True),
    "shorter side, not reduced": Preprocess(SIZE, 32, True, "lanczos", False),
    "height and width": Preprocess(SIZE, (29, 37), True, "bilinear", True),
}
FRAMES = {
    "of the size itself": (24, 32),
    "large": (211, 300),
    "of whole blocks": (96, 160),
    "partial blocks": (101, 167),
    "just below twice": (47, 63),
    "portrait": (150, 40),
    "smaller": (9, 13),
    "smaller in one direction": (10, 200),
    "1 wide": (50, 1),
    "1 high": (1, 77),
    "1 pixel": (1, 1),
}


@pytest.mark.parametrize("preprocess", WAYS.values(), ids=WAYS)
def test_every_bit_is_the_judges(preprocess: Preprocess) -> None:
    run = prepare(preprocess)
    for name, (height, width) in FRAMES.items():
        frame = noise(height, width, 3)
        np.testing.assert_array_equal(run(frame[None])[0], judged(frame, preprocess), err_msg=name)


BILINEAR = Preprocess.whole(SIZE)


@pytest.fixture(scope="module")
def bilinear() -> Callable[[Image8], Image8]:
    return prepare(BILINEAR)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(height=st.integers(1, 160), width=st.integers(1, 160))
def test_frames_of_any_size(bilinear: Callable[[Image8], Image8], height: int, width: int) -> None:
    frame = noise(height, width, 3)
    np.testing.assert_array_equal(bilinear(frame[None])[0], judged(frame, BILINEAR))


def test_a_batch_is_its_frames(bilinear: Callable[[Image8], Image8]) -> None:
    frames = noise(2, 101, 167, 3)
    images = bilinear(frames)
    assert images.shape == (2, *SIZE, 3)
    for image, frame in zip(images, frames, strict=True):
        np.testing.assert_array_equal(image, judged(frame, BILINEAR))


def test_black_and_white_stay_what_they_are() -> None:
    for name in resampling.FILTERS:
        run = prepare(Preprocess.whole(SIZE, name))
        for level in (0, 255):
            assert (run(np.full((1, 101, 167, 3), level, np.uint8)) == level).all()


@pytest.mark.parametrize("reduce", [True, False])
@pytest.mark.parametrize("resize", [SIZE, 33])
@pytest.mark.parametrize("shape", [(1, 0, 5, 3), (1, 5, 0, 3), (1, 0, 0, 3), (1, 5, 5, 4)])
def test_what_is_no_frame_is_not_judged(
    shape: tuple[int, ...], resize: int | tuple[int, int], reduce: bool
) -> None:
    run = prepare(Preprocess(SIZE, resize, resize != SIZE, "bilinear", reduce))
    with pytest.raises(Exception, match=r"ONNXRuntimeError"):
        run(np.zeros(shape, np.uint8))


# --- a whole file ---------------------------------------------------------------------------------


def beginning_at_frame(source: Path, target: Path, preprocess: Preprocess | None = None) -> Path:
    """A detector's file as `fit --frame-input` writes it."""
    model = read(source, "padim")
    assert model.detector_info is not None
    if preprocess:
        info = dataclasses.replace(model.detector_info, preprocess=preprocess)
        model = dataclasses.replace(model, detector_info=info)
    with target.open("wb") as stream:
        write(stream, dataclasses.replace(model, frame_input=True))
    return target


@pytest.fixture(scope="module")
def frame_file(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return beginning_at_frame(model_file, tmp_path_factory.mktemp("frame") / "padim.onnx")


def test_it_is_plain_onnx_that_any_runtime_can_open(frame_file: Path) -> None:
    proto = onnx.load(frame_file)
    onnx.checker.check_model(proto, full_check=True)
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 18)]
    (frame,) = proto.graph.input
    tensor = frame.type.tensor_type
    assert (frame.name, tensor.elem_type) == ("frame", TensorProto.UINT8)
    assert [d.dim_param or d.dim_value for d in tensor.shape.dim] == [
        "N", "frame_height", "frame_width", 3,
    ]  # fmt: skip
    assert [output.name for output in proto.graph.output] == ["score", "score_map"]


def test_we_read_it_as_the_file_without(frame_file: Path, model_file: Path) -> None:
    ours, plain = read(frame_file, "padim"), read(model_file, "padim")
    assert (ours.frame_input, plain.frame_input) == (True, False)
    assert ours.proto.graph == plain.proto.graph
    assert (ours.backbone_info, ours.detector_info) == (plain.backbone_info, plain.detector_info)


def test_reading_gives_back_what_was_written(frame_file: Path) -> None:
    stream = io.BytesIO()
    write(stream, read(frame_file, "padim"))
    assert stream.getvalue() == frame_file.read_bytes()


def test_inspect_says_so(frame_file: Path, model_file: Path) -> None:
    assert describe(frame_file)["fields"]["frame_input"] is True
    assert describe(model_file)["fields"]["frame_input"] is False
    assert "frame_input       yes\n" in in_process("inspect", frame_file).worked().stdout
    sizes = describe(frame_file)["bytes"]
    assert sizes.pop("file") == frame_file.stat().st_size == sum(sizes.values())


def scores(file: Path, frame: Image8) -> tuple[float, NDArray[np.float32]]:
    """Score and map, by ONNX Runtime and nothing of ours."""
    score, score_map = session(file).run(["score", "score_map"], {"frame": frame[None]})
    return float(score[0]), score_map[0]


@pytest.mark.parametrize("engine", ["ort", "openvino"])
def test_our_engines_judge_by_it_as_by_any_other(
    frame_file: Path, model_file: Path, engine: str
) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino")
    frame = noise(150, 203, 3)
    with Detector(frame_file, engine) as ours, Detector(model_file, engine) as plain:
        assert ours(frame).score == plain(frame).score
        assert ours(frame).score == pytest.approx(scores(frame_file, frame)[0], rel=1e-5)


def test_an_altered_one_is_refused(frame_file: Path, tmp_path: Path) -> None:
    proto = onnx.load(frame_file)
    for node in proto.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == "image":
                    names[index] = "picture"
    onnx.save(proto, tmp_path / "bad.onnx")
    with pytest.raises(ModelError, match="it was altered"):
        read(tmp_path / "bad.onnx", "padim")


def test_fit_writes_it(
    embedding_file: Path, photos: Path, model_file: Path, tmp_path: Path
) -> None:
    output, moments = tmp_path / "padim.onnx", tmp_path / "moments.npz"
    options = ("fit", embedding_file, photos, "--frame-input", "-o", output)
    in_process(*options, "--save-moments", moments).worked()
    ours, plain = read(output, "padim"), read(model_file, "padim")
    assert ours.frame_input
    assert ours.detector_info == plain.detector_info
    assert ours.proto.graph == plain.proto.graph
    # Moments know nothing of it.
    new = tmp_path / "new.png"
    Image.fromarray(noise(96, 96, 3)).save(new)
    more = ("fit", embedding_file, new, "--update", moments, "-o", output)
    in_process(*more, "--frame-input").worked()
    assert read(output, "padim").frame_input
    in_process(*more).worked()
    assert not read(output, "padim").frame_input


@pytest.mark.slow  # exports
def test_a_graph_that_could_not_refuse_a_frame_is_not_written(
    oblong_embedding: Path, photos: Path, tmp_path: Path
) -> None:
    options = ("fit", oblong_embedding, photos, "--resize", "64", "-o", tmp_path / "padim.onnx")
    with unchanged(tmp_path):
        in_process(*options, "--frame-input").failed(
            2, "--frame-input with --resize 64", "64x96", "at least 96"
        )


# --- real photos and other runtimes ---------------------------------------------------------------


@pytest.fixture(scope="module")
def photo(data: Path) -> Image.Image:
    """A photo of 900 x 900."""
    file = data / "data/full-size/bottle/test/contamination/000.png"
    if not file.is_file():
        pytest.skip(f"no photo {file}")
    return Image.open(file).convert("RGB")


REAL = {
    "whole": Preprocess.whole((64, 64)),
    "whole, lanczos, not reduced": Preprocess.whole((64, 64), "lanczos", False),
    "reference": Preprocess.reference((64, 64)),
    "reference, reduced": Preprocess.reference((64, 64), "bilinear", True),
}


@pytest.mark.slow  # the judge takes seconds for a photo
@pytest.mark.parametrize("preprocess", REAL.values(), ids=REAL)
def test_photos_get_our_score_map(
    preprocess: Preprocess, photo: Image.Image, model_file: Path, tmp_path: Path
) -> None:
    file = beginning_at_frame(model_file, tmp_path / "frame.onnx", preprocess)
    with (tmp_path / "image.onnx").open("wb") as stream:
        write(stream, dataclasses.replace(read(file, "padim"), frame_input=False))
    plain = session(tmp_path / "image.onnx")
    for width, height in ((900, 900), (701, 500), (64, 64), (640, 479), (41, 33), (1, 30)):
        frame = np.asarray(photo.resize((width, height)))
        image = judged(frame, preprocess)
        expected_score, expected_map = plain.run(["score", "score_map"], {"image": image[None]})
        score, score_map = scores(file, frame)
        assert score == pytest.approx(expected_score[0], rel=1e-6)
        np.testing.assert_allclose(score_map, expected_map[0], rtol=1e-6)


@pytest.mark.slow
def test_openvino_is_within_a_grey_level(photo: Image.Image) -> None:
    """It takes float32 for double: a sum near a half may go the other way."""
    openvino = pytest.importorskip("openvino")
    preprocess = Preprocess.whole((224, 224))
    core = openvino.Core()
    # As for every file: bfloat16, the default on some processors, is too coarse.
    precision = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(preparing(preprocess)), "CPU", precision)
    for size in ((900, 900), (701, 500), (224, 224), (100, 50)):
        frame = np.asarray(photo.resize(size))
        image = compiled({"frame": frame[None]})[0][0]
        difference = np.abs(image.astype(int) - preprocess(frame))
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.01
