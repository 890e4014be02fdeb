"""The float16 backbone: what is float16 and what is not."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper, shape_inference

from padim_edge.errors import PadimEdgeError, UsageError
from padim_edge.export import backbones as backbone
from padim_edge.export.export import export_backbone
from padim_edge.export.trace import assemble
from padim_edge.model.file import read


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    path = tmp_path_factory.mktemp("half") / "half.onnx"
    export_backbone(path, dims=(20,), image_size=(64, 64), weights="random", precision="float16")
    return path


def types(path):
    """Element type of every tensor that shape inference knows."""
    graph = shape_inference.infer_shapes(onnx.load(path), strict_mode=True).graph
    values = [*graph.input, *graph.output, *graph.value_info]
    return {value.name: value.type.tensor_type.elem_type for value in values}


def test_only_the_backbone_is_float16(half):
    kinds = types(half)
    assert kinds["image"] == TensorProto.UINT8
    assert kinds["normalised"] == kinds["embedding"] == TensorProto.FLOAT
    features = [name for name in kinds if name.startswith("features.layer") and
                name.count(".") == 1]  # fmt: skip
    assert {kinds[name] for name in features} == {TensorProto.FLOAT}
    inside = {kinds[name] for name in kinds if name.startswith("backbone/")}
    assert inside == {TensorProto.FLOAT16}


def test_every_weight_is_float16_and_none_is_subnormal_by_folding(half):
    weights = [
        numpy_helper.to_array(tensor)
        for tensor in onnx.load(half).graph.initializer
        if tensor.name.startswith("backbone/") and "channels" not in tensor.name
    ]
    assert {values.dtype for values in weights} == {np.dtype(np.float16)}
    first = next(values for values in weights if values.ndim == 4 and values.shape[1] == 3)
    assert np.median(np.abs(first)) > np.finfo(np.float16).tiny


def test_the_file_says_so(half, embedding_file):
    assert read(half, "embedding").backbone_info.precision == "float16"
    assert read(embedding_file, "embedding").backbone_info.precision == "float32"


def test_weights_beyond_float16_are_refused():
    network = backbone.load("resnet18", ("layer1",), "random", (64, 64), seed=0)
    with_large = network.network.state_dict()
    key = next(name for name in with_large if name.endswith("layer1.0.conv1.weight"))
    with_large[key] *= 1e8
    with pytest.raises(PadimEdgeError, match="does not fit into float16"):
        assemble(network, (0, 1), "two", "float16")


def test_an_unknown_precision_is_refused(tmp_path):
    with pytest.raises(UsageError, match="float32 or float16"):
        export_backbone(tmp_path / "e.onnx", weights="random", precision="int4")
    with pytest.raises(UsageError, match="padim-edge quantize"):
        export_backbone(tmp_path / "e.onnx", weights="random", precision="int8")
