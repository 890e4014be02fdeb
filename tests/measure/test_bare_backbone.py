"""The yardstick of bench: the truncated backbone with all its channels, rebuilt from a detector.

It must cost what the true one costs, so it is held against an export of that one by torch: the
same operators with the same shapes, and the same maps wherever no channel was dropped.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torchvision
from onnx import numpy_helper
from PIL import Image
from torchvision.models.feature_extraction import create_feature_extractor

from padim_edge.errors import PadimEdgeError
from padim_edge.export.export import export_backbone
from padim_edge.fit.fit import fit_detector
from padim_edge.fit.settings import Settings
from padim_edge.images.preprocess import Preprocess
from padim_edge.measure.bare_backbone import bare_backbone, has_bare_backbone
from padim_edge.model.file import Model, read

RESNET = ("layer1", "layer2", "layer3")
LAYERS = {
    "resnet18": RESNET,
    "resnet50": RESNET,
    "mobilenet_v3_large": ("features.3", "features.6", "features.12"),
}
SIZE = (64, 64)


def random_network(name: str) -> torch.nn.Module:
    """Random weights, and batch norms that do something."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        network = torchvision.models.get_model(name, weights=None).eval()
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
                torch.nn.init.uniform_(module.weight, 0.3, 0.7)
                torch.nn.init.normal_(module.bias, 0, 0.1)
    return network


SETTINGS = Settings(Preprocess.whole(SIZE))


def fitted(
    folder: Path, name: str, weights: Path, settings: Settings = SETTINGS, **options: Any
) -> Model:
    """A padim.onnx of four photos of nothing."""
    export_backbone(
        folder / "embedding.onnx", name, weights=str(weights), image_size=SIZE, **options
    )
    rng = np.random.default_rng(1)
    photos = []
    for index in range(4):
        photos.append(folder / f"{index}.png")
        Image.fromarray(rng.integers(0, 256, (*SIZE, 3), np.uint8)).save(photos[-1])
    fit_detector(folder / "embedding.onnx", photos, folder / "padim.onnx", settings)
    return read(folder / "padim.onnx", "padim")


class Case:
    """A backbone thrice: in torch, exported whole by torch, and rebuilt from a detector."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        network = random_network(name)
        torch.save(network.state_dict(), folder / "weights.pth")
        self.torch = create_feature_extractor(network, list(LAYERS[name]))
        torch.onnx.export(
            self.torch,
            (torch.zeros(2, 3, *SIZE),),
            folder / "whole.onnx",
            dynamo=True,
            opset_version=18,
            external_data=False,
            verbose=False,
        )
        self.whole = onnx.load(folder / "whole.onnx")
        self.model = fitted(folder, name, folder / "weights.pth", dims=(40,))
        self.bare = bare_backbone(self.model)


@pytest.fixture(scope="module", params=LAYERS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(request.param, tmp_path_factory.mktemp("bare"))


def weights_of(proto: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in proto.graph.initializer}


def convolutions(proto: onnx.ModelProto) -> list[tuple[Any, ...]]:
    """Of each convolution the shapes of weight and bias, and what else decides its cost."""
    shapes = {name: tuple(tensor.dims) for name, tensor in weights_of(proto).items()}
    found = []
    for node in proto.graph.node:
        if node.op_type == "Conv":
            values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            others = [str(values.get(name)) for name in ("strides", "pads", "group", "dilations")]
            found.append((*(shapes[name] for name in node.input[1:]), *others))
    return found


def output_shapes(proto: onnx.ModelProto) -> list[list[int]]:
    """Shapes of every tensor that a Conv, Add or Gather makes, for a batch of 2."""
    proto = onnx.ModelProto.FromString(proto.SerializeToString())
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    for output in proto.graph.output:
        output.type.tensor_type.shape.dim[0].dim_value = 2
    del proto.graph.value_info[:]
    graph = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True).graph
    values = {value.name: value for value in [*graph.value_info, *graph.output]}
    return sorted(
        [dim.dim_value for dim in values[node.output[0]].type.tensor_type.shape.dim]
        for node in graph.node
        if node.op_type in ("Conv", "Add", "Relu", "MaxPool", "HardSwish", "Mul", "ReduceMean")
    )


def test_has_the_operators_and_shapes_of_the_true_one(case: Case) -> None:
    onnx.checker.check_model(case.bare, full_check=True)
    operators = [Counter(node.op_type for node in p.graph.node) for p in (case.bare, case.whole)]
    assert operators[0] == operators[1]
    assert Counter(convolutions(case.bare)) == Counter(convolutions(case.whole))
    assert output_shapes(case.bare) == output_shapes(case.whole)


def test_gives_the_maps_of_the_true_one(case: Case) -> None:
    """Exactly, but for the last layer: its rows are the chosen ones and, after them, zeros."""
    assert [value.name for value in case.bare.graph.input] == ["normalised"]
    session = onnxruntime.InferenceSession(
        case.bare.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    for batch in (1, 3):
        normalised = np.random.default_rng(2).standard_normal((batch, 3, *SIZE), np.float32)
        # The division of the normalisation stands in the first convolution: undo it for torch.
        std = np.array(case.model.backbone_info.std, dtype=np.float32).reshape(1, 3, 1, 1)
        ours = session.run(None, {"normalised": normalised * 255 * std})
        with torch.no_grad():
            theirs = [m.numpy() for m in case.torch(torch.from_numpy(normalised)).values()]
        assert [m.shape for m in ours] == [m.shape for m in theirs]
        for actual, expected in zip(ours[:-1], theirs[:-1], strict=True):
            largest = np.abs(expected).max()
            assert largest > 0.1
            np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * largest)


def test_restored_rows_are_zeros(case: Case) -> None:
    chosen = len(case.model.backbone_info.selected()[-1])
    before, after = weights_of(case.model.proto), weights_of(case.bare)
    # A weight that was cut has fewer rows in the detector than in the backbone.
    restored = [name for name in after if before[name].dims != after[name].dims]
    assert [len(after[name].dims) for name in restored] == [4, 1]  # one weight, one bias
    for name in restored:
        rows, whole = (numpy_helper.to_array(w[name]) for w in (before, after))
        assert len(rows) == chosen
        assert len(whole) == case.model.backbone_info.layer_channels[-1]
        np.testing.assert_array_equal(whole[:chosen], rows)
        assert np.abs(rows).max() > 0
        assert not whole[chosen:].any()


def test_leaves_the_detector_as_it_was(case: Case) -> None:
    before = case.model.proto.SerializeToString(deterministic=True)
    again = bare_backbone(case.model)
    assert case.model.proto.SerializeToString(deterministic=True) == before
    assert again == case.bare


@pytest.fixture(scope="module")
def resnet18_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.save(random_network("resnet18").state_dict(), path)
    return path


def test_with_nothing_to_restore(resnet18_weights: Path, tmp_path: Path) -> None:
    """All channels of one layer, out of order: there is no row to add."""
    model = fitted(tmp_path, "resnet18", resnet18_weights, layers=("layer1",), dims=(64,))
    bare = bare_backbone(model)
    assert not [node for node in bare.graph.node if node.op_type == "Gather"]
    dims = {name: list(tensor.dims) for name, tensor in weights_of(model.proto).items()}
    assert {name: list(t.dims) for name, t in weights_of(bare).items()}.items() <= dims.items()


def test_skip_with_a_convolution(resnet18_weights: Path, tmp_path: Path) -> None:
    """layer2.0 ends in a sum of two convolutions: both are restored."""
    model = fitted(tmp_path, "resnet18", resnet18_weights, layers=("layer2.0",), dims=(9,))
    bare = bare_backbone(model)
    rows = [shapes[0][0] for shapes in convolutions(bare)]
    assert rows == [64] * 5 + [128] * 3
    frames = {"normalised": np.random.default_rng(0).normal(size=(2, 3, *SIZE)).astype(np.float32)}
    (plain,) = onnxruntime.InferenceSession(bare.SerializeToString()).run(None, frames)
    quantise_as_modelopt(model.proto.graph)
    bare = bare_backbone(model)
    (quantised,) = onnxruntime.InferenceSession(bare.SerializeToString()).run(None, frames)
    assert plain.shape == quantised.shape == (2, 128, 8, 8)
    np.testing.assert_allclose(quantised[:, :9], plain[:, :9], atol=0.05 * plain.max())


def quantise_as_modelopt(graph: onnx.GraphProto) -> None:
    """Float weights through Q and DQ, by row or (every second) with one scale."""
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes = []
    for number, node in enumerate(graph.node):
        if node.op_type == "Conv" and node.input[1] in weights:
            name = node.input[1]
            rows = np.abs(weights[name]).max(axis=(1, 2, 3)) / 127
            scale = np.asarray(rows.max() if number % 2 else rows)
            graph.initializer.append(numpy_helper.from_array(scale, f"{name}_scale"))
            zeros = np.zeros(scale.shape, np.int8)
            graph.initializer.append(numpy_helper.from_array(zeros, f"{name}_zero"))
            more = [f"{name}_scale", f"{name}_zero"]
            make = onnx.helper.make_node
            nodes.append(make("QuantizeLinear", [name, *more], [f"{name}_q"], axis=0))
            nodes.append(make("DequantizeLinear", [f"{name}_q", *more], [f"{name}_dq"], axis=0))
            node.input[1] = f"{name}_dq"
        nodes.append(node)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


@pytest.fixture(scope="module")
def usual(
    resnet18_weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> Counter[tuple[Any, ...]]:
    """Convolutions of the backbone of a reference detector."""
    model = fitted(tmp_path_factory.mktemp("usual"), "resnet18", resnet18_weights)
    return Counter(convolutions(bare_backbone(model)))


@pytest.mark.parametrize("dims", ["all", (0, 128, 256)])
def test_of_a_whitened_detector(
    resnet18_weights: Path, tmp_path: Path, usual: Counter[tuple[Any, ...]], dims: Any
) -> None:
    """The backbone as far as the layers that were pooled, whether or not they were permuted."""
    settings = Settings(Preprocess.whole(SIZE), preset="whitened", dims=9)
    model = fitted(tmp_path, "resnet18", resnet18_weights, settings, dims=dims)
    assert has_bare_backbone(model)
    bare = bare_backbone(model)
    assert not {node.op_type for node in bare.graph.node} - {"Conv", "Relu", "Add", "MaxPool"}
    session = onnxruntime.InferenceSession(bare.SerializeToString())
    maps = session.run(None, {"normalised": np.zeros((2, 3, *SIZE), np.float32)})
    assert [m.shape for m in maps] == [(2, 128, 8, 8), (2, 256, 4, 4)]
    assert Counter(convolutions(bare)) == usual


def test_layer_without_a_chosen_channel(resnet18_weights: Path, tmp_path: Path) -> None:
    layers = ("layer1", "layer2")
    model = fitted(tmp_path, "resnet18", resnet18_weights, layers=layers, dims=(9, 0))
    assert not has_bare_backbone(model)
    with pytest.raises(PadimEdgeError, match="a layer has no chosen channel"):
        bare_backbone(model)
