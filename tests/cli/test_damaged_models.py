"""Models whose metadata, constants or graph were altered, or that change while they are used."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import contents, in_process, padim_edge, refused, unchanged
from onnx import TensorProto, numpy_helper
from PIL import Image

from padim_edge.detect.detector import Detector
from padim_edge.files import atomic_write
from padim_edge.model.file import read


@pytest.fixture(scope="module")
def sound(model_file: Path) -> bytes:
    return model_file.read_bytes()


@pytest.fixture
def altered(tmp_path: Path, sound: bytes) -> Callable[..., Path]:
    """Writes the detector after something was done to it."""

    def write(change: Callable[[onnx.ModelProto], object], source: bytes = sound) -> Path:
        proto = onnx.load_model_from_string(source)
        change(proto)
        path = tmp_path / "altered.onnx"
        path.write_bytes(proto.SerializeToString())
        return path

    return write


def test_a_model_truncated_between_two_fields(altered, sound):
    # What is left parses: graph and metadata up to some entry. There are some 30 entries.
    whole = onnx.load_model_from_string(sound)
    for kept in (*range(0, len(whole.metadata_props), 3), len(whole.metadata_props) - 1):

        def cut(proto: onnx.ModelProto, kept: int = kept) -> None:
            del proto.metadata_props[kept:]

        path = altered(cut)
        assert sound.startswith(path.read_bytes())
        refused(path)


# --- metadata -------------------------------------------------------------------------------------


def metadata(name: str, value: str) -> Callable[[onnx.ModelProto], None]:
    """Puts JSON text into a field of the metadata."""

    def change(proto: onnx.ModelProto) -> None:
        (entry,) = (e for e in proto.metadata_props if e.key == "padim_edge." + name)
        entry.value = value

    return change


@pytest.mark.parametrize("version", ["3", "0", "99", '"1"', "null", "1.5"])
def test_another_format_version(altered, version):
    refused(altered(metadata("format", version)), "format", "version", "install the padim-edge")


def test_another_format_version_of_an_embedding(altered, embedding_file, photos, tmp_path):
    path = altered(metadata("format", "3"), embedding_file.read_bytes())
    with unchanged(tmp_path):
        done = in_process("fit", path, photos, "-o", tmp_path / "padim.onnx")
    done.failed(1, str(path), "version 3", "reads versions 1 and 2")


@pytest.mark.parametrize("value", ["", "{", "nul", "[1,", "'8'", "[" * 100_000, "1" * 6000])
def test_damaged_metadata(altered, value):
    refused(altered(metadata("threshold", value)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threshold", '"8"'),
        ("threshold", "[8]"),
        ("threshold", "null"),
        ("threshold", "NaN"),
        ("threshold", "Infinity"),
        ("threshold", "1e999"),
        ("threshold", "1" * 400),
        ("threshold", "true"),
        ("threshold", "0.0"),
        ("threshold", "-1.0"),
        ("images", "1.5"),
        ("good_scores", "[]"),
        ("good_scores", '["a"]'),
        ("good_scores", "5"),
        ("good_scores", "[1.0, NaN]"),
        ("preprocess", "null"),
        ("preprocess", '{"size": [64, 64]}'),
        ("preprocess", '{"size": [64, 64], "resize": 3, "crop": 0, "interpolation": "lanczos"}'),
        ("image_size", "64"),
        ("image_size", "[64]"),
        ("image_size", '["64", "64"]'),
        ("image_size", "[32, 32]"),
        ("image_size", "[-64, 64]"),
        ("layers", '["layer1"]'),
        ("layers", "[1, 2, 3]"),
        ("layer_channels", "[64]"),
        ("layer_shapes", "[[16, 16], [8, 8]]"),
        ("layer_shapes", "[[0, 0], [0, 0], [0, 0]]"),
        ("layer_shapes", "[[16, 16], [7, 7], [4, 4]]"),
        ("channels", '["a"]'),
        ("channels", "[1, 1, 1]"),
        ("kind", '"something"'),
    ],
)
def test_wrong_values_in_the_metadata(altered, name, value):
    refused(altered(metadata(name, value)))


def test_preprocessing_for_another_size_than_the_graph(altered):
    value = {"size": [32, 32], "resize": [32, 32], "crop": False, "interpolation": "lanczos"}
    refused(altered(metadata("preprocess", json.dumps(value))))


def test_missing_metadata(altered):
    def drop(proto: onnx.ModelProto) -> None:
        kept = [e for e in proto.metadata_props if e.key != "padim_edge.threshold"]
        del proto.metadata_props[:]
        proto.metadata_props.extend(kept)

    refused(altered(drop), "lacks 'threshold'")


# --- constants and graph --------------------------------------------------------------------------


def constant(
    name: str, change: Callable[[onnx.TensorProto], object]
) -> Callable[[onnx.ModelProto], None]:
    def of_model(proto: onnx.ModelProto) -> None:
        (tensor,) = (t for t in proto.graph.initializer if t.name == name)
        change(tensor)

    return of_model


def put(value: float) -> Callable[[onnx.TensorProto], None]:
    """Puts a number into a tensor, at the end of it."""

    def change(tensor: onnx.TensorProto) -> None:
        values = numpy_helper.to_array(tensor).copy()
        values.flat[-1] = value
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    return change


CONSTANTS = ("mean.0", "mean.2", "whitening.0.0", "whitening.2.1", "smoothing.rows")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", CONSTANTS)
def test_a_constant_with_nan_or_infinity(altered, name, value):
    refused(altered(constant(name, put(value))), name, "NaN")


@pytest.mark.parametrize("name", ["run", "eval", "bench"])
def test_a_mean_with_nan_from_the_command_line(altered, photos, name):
    path = altered(constant("mean.1", put(np.nan)))
    source = () if name == "bench" else (photos,)
    in_process(name, path, *source).failed(1, str(path), "mean.1", "NaN")


def test_a_backbone_with_nan(altered, photos, sound, embedding_file, tmp_path):
    def change(proto: onnx.ModelProto) -> None:
        put(np.nan)(next(t for t in proto.graph.initializer if len(t.dims) == 4))

    refused(altered(change), "NaN")
    path = altered(change, embedding_file.read_bytes())
    with unchanged(tmp_path):
        done = in_process("fit", path, photos, "-o", tmp_path / "padim.onnx")
    done.failed(1, "NaN")


@pytest.mark.parametrize("name", CONSTANTS)
def test_a_missing_constant(altered, name):
    def drop(proto: onnx.ModelProto) -> None:
        kept = [t for t in proto.graph.initializer if t.name != name]
        del proto.graph.initializer[:]
        proto.graph.initializer.extend(kept)

    refused(altered(drop), name)


@pytest.mark.parametrize("name", ["mean.1", "whitening.2.2", "smoothing.rows"])
def test_a_constant_whose_values_are_not_those_that_were_written(altered, name):
    def zeros(tensor: onnx.TensorProto) -> None:
        tensor.raw_data = (
            bytes(len(tensor.raw_data) // 2) + tensor.raw_data[len(tensor.raw_data) // 2 :]
        )

    refused(altered(constant(name, zeros)), "checksum", "copy it again")


@pytest.mark.parametrize("kind", ["padim", "embedding"])
def test_zeros_in_the_middle_of_a_file(tmp_path, model_file, embedding_file, kind):
    path = model_file if kind == "padim" else embedding_file
    data = bytearray(path.read_bytes())
    for start in range(len(data) // 10, len(data) - 5000, len(data) // 10):
        damaged = data.copy()
        damaged[start : start + 4000] = bytes(4000)
        (tmp_path / "damaged.onnx").write_bytes(damaged)
        refused(tmp_path / "damaged.onnx")


def test_a_file_that_is_empty(tmp_path):
    (tmp_path / "empty.onnx").touch()
    refused(tmp_path / "empty.onnx", "is empty", "copy it again")


def test_inspect_says_whether_the_constants_are_those_that_were_written(tmp_path, sound):
    (tmp_path / "new.onnx").write_bytes(sound)
    assert "matches" in in_process("inspect", tmp_path / "new.onnx").worked().stdout
    proto = onnx.load_model_from_string(sound)
    kept = [entry for entry in proto.metadata_props if entry.key != "padim_edge.checksum"]
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)
    (tmp_path / "old.onnx").write_bytes(proto.SerializeToString())
    assert "none (written before" in in_process("inspect", tmp_path / "old.onnx").worked().stdout


def shorten(tensor: onnx.TensorProto) -> None:
    tensor.raw_data = tensor.raw_data[:-4]


def outside(tensor: onnx.TensorProto) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/hostname")


def of_unknown_type(tensor: onnx.TensorProto) -> None:
    tensor.data_type = 99


def transpose(tensor: onnx.TensorProto) -> None:
    tensor.dims[:] = reversed(tensor.dims)


@pytest.mark.parametrize("name", ["mean.1", "whitening.1.0"])
@pytest.mark.parametrize("change", [shorten, outside, of_unknown_type, transpose])
def test_a_constant_with_damaged_data(altered, name, change):
    refused(altered(constant(name, change)))


def test_a_graph_that_no_runtime_loads(altered, good):
    def change(proto: onnx.ModelProto) -> None:
        proto.graph.node[5].op_type = "Nonsense"

    padim_edge("run", altered(change), good[0]).failed(1, "ONNX Runtime")


def test_other_inputs_or_outputs(altered):
    def change(proto: onnx.ModelProto) -> None:
        proto.graph.output[0].name = "something"

    refused(altered(change), "something")


# --- files that change while they are used --------------------------------------------------------


def test_a_model_read_while_it_is_replaced_is_the_old_or_the_new_one(
    tmp_path, altered, model_file, sound
):
    other = altered(metadata("threshold", "1.0")).read_bytes()
    known = {read(model_file, "padim").sha256, read(tmp_path / "altered.onnx", "padim").sha256}
    target = tmp_path / "padim.onnx"
    target.write_bytes(sound)
    stop = threading.Event()

    def replace() -> None:
        for data in [other, sound] * 200:
            with atomic_write(target) as stream:
                stream.write(data)
            if stop.is_set():
                return

    writer = threading.Thread(target=replace)
    writer.start()
    try:
        seen = [read(target, "padim").sha256 for _ in range(15)]
    finally:
        stop.set()
        writer.join()
    assert set(seen) <= known
    assert len(set(seen)) == 2
    assert set(contents(tmp_path)) == {"altered.onnx", "padim.onnx"}


def test_an_open_detector_outlives_its_file(tmp_path, model_file, altered, good):
    target = tmp_path / "padim.onnx"
    shutil.copy(model_file, target)
    frame = np.asarray(Image.open(good[0]).convert("RGB"))
    with Detector(target) as detector:
        before = detector(frame)
        with atomic_write(target) as stream:
            stream.write(altered(metadata("threshold", "1.0")).read_bytes())
        after = detector(frame)
    assert (after.score, after.threshold) == (before.score, before.threshold)
    with Detector(target) as detector:
        assert detector(frame).threshold == 1.0
