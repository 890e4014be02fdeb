"""The file contract: names, types, metadata, refusals."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

from padim_edge.errors import ModelError, PadimEdgeError
from padim_edge.model import file as models
from padim_edge.model.file import read, write
from padim_edge.model.inspect import describe
from padim_edge.model.metadata import PREFIX


def metadata(path):
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def altered(path, target, change):
    proto = onnx.load(path)
    change(proto)
    onnx.save(proto, target)
    return target


def set_field(name, value):
    def change(proto):
        for entry in proto.metadata_props:
            if entry.key == PREFIX + name:
                entry.value = value

    return change


def test_it_is_plain_onnx_that_any_runtime_can_open(model_file, embedding_file):
    for path in (model_file, embedding_file):
        proto = onnx.load(path)
        onnx.checker.check_model(proto, full_check=True)
        assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 18)]
        assert proto.ir_version == 8
        (image,) = proto.graph.input
        tensor = image.type.tensor_type
        assert (image.name, tensor.elem_type) == ("image", TensorProto.UINT8)
        assert [d.dim_param or d.dim_value for d in tensor.shape.dim] == ["N", 64, 64, 3]
        # TensorRT wants a Cast directly behind an input of uint8.
        assert [n.op_type for n in proto.graph.node if "image" in n.input] == ["Cast"]


def test_names_that_a_runtime_relies_on(model_file):
    session = onnxruntime.InferenceSession(model_file, providers=["CPUExecutionProvider"])
    assert {(o.name, o.type) for o in session.get_outputs()} == {
        ("score", "tensor(float)"),
        ("score_map", "tensor(float)"),
    }
    model = read(model_file, "padim")
    names = {tensor.name for tensor in model.proto.graph.initializer}
    depth = len(model.pyramid().levels)
    for i in range(depth):
        assert f"mean.{i}" in names
        for j in range(i + 1):
            assert f"whitening.{i}.{j}" in names
    made = {name for node in model.proto.graph.node for name in node.output}
    assert {"normalised", "distance_map", *model.feature_names()} <= made
    whitening = model.constant("whitening.1.0")
    assert whitening.dtype == np.float16
    assert model.constant("mean.0").dtype == np.float32


def test_whatever_is_needed_to_use_the_file_is_in_its_metadata_as_json(model_file):
    fields = {key: json.loads(value) for key, value in metadata(model_file).items()}
    assert {key.split(".")[0] for key in fields} == {"padim_edge"}
    wanted = {
        "format", "kind", "tool_version", "backbone", "layers", "channels", "weights",
        "weights_sha256", "preprocess", "eps", "sigma", "covariance", "images", "threshold",
        "false_alarm_rate", "good_scores", "image_size", "mean", "std",
    }  # fmt: skip
    assert {PREFIX + name for name in wanted} <= fields.keys()
    assert fields[PREFIX + "good_scores"] == sorted(fields[PREFIX + "good_scores"])
    assert fields[PREFIX + "preprocess"]["interpolation"] == "bilinear"


def test_reading_gives_back_what_was_written(model_file):
    first = read(model_file, "padim")
    stream = io.BytesIO()
    write(stream, first)
    assert stream.getvalue() == model_file.read_bytes()


def test_the_hash_and_the_size_are_those_of_the_file(model_file):
    data = model_file.read_bytes()
    model = read(model_file, "padim")
    assert model.sha256 == hashlib.sha256(data).hexdigest()
    assert model.size == len(data)


def test_nothing_in_the_file_is_a_pickle(model_file):
    data = model_file.read_bytes()
    assert not zipfile.is_zipfile(model_file)
    assert b"torch" not in data.replace(b"torchvision", b"")


REFUSED = {
    "another format": (set_field("format", "3"), "format is version 3"),
    "metadata that is no JSON": (set_field("layers", "[oops"), "metadata is damaged"),
    "a wrong type": (set_field("threshold", '"high"'), "wrong 'threshold'"),
    "a threshold that is no number": (set_field("threshold", "NaN"), "wrong 'threshold'"),
    "a wrong preprocess": (set_field("preprocess", '{"size": 3}'), "its fields must be"),
    "a wrong length": (set_field("image_size", "[64]"), "wrong 'image_size'"),
    "no scores": (set_field("good_scores", "[]"), "wrong 'good_scores'"),
    "another size than the graph's": (set_field("image_size", "[32, 32]"), "wrong 'preprocess'"),
    "fewer shapes than layers": (set_field("layer_shapes", "[[16, 16]]"), "wrong 'layers'"),
    "an empty shape": (set_field("layer_shapes", "[[0,0],[8,8],[4,4]]"), "wrong 'layer_shapes'"),
    "no multiples": (set_field("layer_shapes", "[[15,15],[8,8],[4,4]]"), "wrong 'layer_shapes'"),
    "no channels": (set_field("channels", "[]"), "wrong 'channels'"),
    "a channel too many": (set_field("channels", "[99999]"), "wrong 'channels'"),
    "an unknown covariance": (set_field("covariance", '"x"'), "wrong 'covariance'"),
    "an unknown kind": (set_field("kind", '"x"'), "lacks 'kind'"),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_metadata_is_refused_by_name(model_file, tmp_path, change, message):
    path = altered(model_file, tmp_path / "bad.onnx", change)
    with pytest.raises(ModelError, match=message) as caught:
        read(path, "padim")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["mean.0", "whitening.1.0"])
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_constants_that_are_not_finite_are_refused(model_file, tmp_path, name, value):
    def change(proto):
        for tensor in proto.graph.initializer:
            if tensor.name == name:
                values = numpy_helper.to_array(tensor).copy()
                values.flat[3] = value
                tensor.CopyFrom(numpy_helper.from_array(values, name))

    with pytest.raises(ModelError, match=f"'{name}' holds NaN or infinity"):
        read(altered(model_file, tmp_path / "bad.onnx", change), "padim")


@pytest.mark.parametrize("name", ["mean.0", "whitening.1.0"])
def test_the_largest_finite_constants_are_taken(model_file, tmp_path, name):
    """Next to infinity's bit pattern, on both sides of zero; and both zeros."""

    def change(proto):
        for tensor in proto.graph.initializer:
            if tensor.name == name:
                values = numpy_helper.to_array(tensor).copy()
                limit = np.finfo(values.dtype)
                values.flat[:4] = limit.max, limit.min, 0.0, -0.0
                tensor.CopyFrom(numpy_helper.from_array(values, name))

    model = read(model_file, "padim")
    change(model.proto)
    with (tmp_path / "large.onnx").open("wb") as stream:
        write(stream, model)  # which makes a checksum that is theirs
    read(tmp_path / "large.onnx", "padim")


def test_missing_or_misshapen_constants_are_refused(model_file, tmp_path):
    def rename(proto):
        next(t for t in proto.graph.initializer if t.name == "mean.1").name = "other"

    with pytest.raises(ModelError, match=r"'mean\.1' is missing"):
        read(altered(model_file, tmp_path / "bad.onnx", rename), "padim")


def test_the_other_kind_is_refused(model_file, embedding_file):
    with pytest.raises(ModelError, match="this is an embedding"):
        read(embedding_file, "padim")
    with pytest.raises(ModelError, match="this is a detector"):
        read(model_file, "embedding")


def test_truncated_foreign_and_missing_files_are_refused(model_file, tmp_path):
    data = model_file.read_bytes()
    path = tmp_path / "bad.onnx"
    for length in (0, 1, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(ModelError):
            read(path, "padim")
    path.write_text("not a model")
    with pytest.raises(ModelError):
        read(path, "padim")
    with pytest.raises(ModelError, match="No such file"):
        read(tmp_path / "none.onnx", "padim")
    with pytest.raises(ModelError, match="is a folder"):
        read(tmp_path, "padim")
    proto = onnx.load(model_file)
    del proto.metadata_props[:]
    onnx.save(proto, path)
    with pytest.raises(ModelError, match="not made by padim-edge"):
        read(path, "padim")


def test_a_file_beyond_two_gigabytes_is_refused_with_advice(model_file, monkeypatch):
    monkeypatch.setattr(models, "MAX_BYTES", 1000)
    with pytest.raises(PadimEdgeError, match="--constants float16 or int8"):
        write(io.BytesIO(), read(model_file, "padim"))


def test_either_kind_is_read_where_either_will_do(model_file, embedding_file):
    assert read(model_file, None).detector_info is not None
    assert read(embedding_file, None).detector_info is None


def test_inspect_names_what_is_wrong_with_a_damaged_detector(model_file, tmp_path):
    path = altered(model_file, tmp_path / "bad.onnx", set_field("sigma", '"wide"'))
    with pytest.raises(ModelError, match="wrong 'sigma'"):
        describe(path)


def test_inspect_accounts_for_every_byte(model_file, embedding_file):
    for path in (model_file, embedding_file):
        sizes = describe(path)["bytes"]
        total = sizes.pop("file")
        assert total == path.stat().st_size == sum(sizes.values())
    json.dumps(describe(model_file))
