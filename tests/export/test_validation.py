"""A graph that differs from torch is not written."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from exports import export_layer1
from onnx import numpy_helper

from padim_edge.errors import MissingDependencyError, PadimEdgeError
from padim_edge.export import export as exporting
from padim_edge.export.export import export_backbone
from padim_edge.model.file import Model
from padim_edge.model.metadata import PRECISIONS
from padim_edge.runtime import graphs


@pytest.fixture(scope="module")
def layer1_model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """What `export_layer1` assembles of random weights."""
    return export_layer1(tmp_path_factory.mktemp("layer1") / "a.onnx", "random").model


def scale_weights(proto: onnx.ModelProto, constant: str, factor: float) -> None:
    tensor = next(t for t in proto.graph.initializer if t.name.endswith(constant))
    values = numpy_helper.to_array(tensor) * np.float32(factor)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def swap_channels(proto: onnx.ModelProto) -> None:
    tensor = next(t for t in proto.graph.initializer if t.name == "embedding.order")
    values = numpy_helper.to_array(tensor).copy()
    values[:2] = values[1::-1]
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def fix_batch(proto: onnx.ModelProto) -> None:
    """A batch that is dynamic in name only: every image gets the embedding of the first."""
    order = next(n for n in proto.graph.node if n.output[0] == "embedding")
    order.output[0] = "all"
    for name, value in {"zero": [0], "one": [1], "axis": [0]}.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    proto.graph.node.append(
        onnx.helper.make_node("Slice", ["all", "zero", "one", "axis"], ["embedding"])
    )


@pytest.mark.parametrize(
    "spoil",
    [
        lambda proto: scale_weights(proto, "conv1.weight", 1.001),
        lambda proto: scale_weights(proto, "layer1.1.conv1.weight", 1.001),
        lambda proto: scale_weights(proto, "layer1.1.conv1.weight", np.nan),
        lambda proto: scale_weights(proto, "normalise.mean", 1.01),
        swap_channels,
        fix_batch,
    ],
    ids=["stem", "layer", "nan", "mean", "order", "batch"],
)
def test_wrong_graph_is_not_written(
    spoil: Callable[[onnx.ModelProto], None],
    layer1_model: Model,
    unwritten: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def spoilt(*arguments: Any) -> Any:
        model = dataclasses.replace(layer1_model, proto=copy.deepcopy(layer1_model.proto))
        spoil(model.proto)
        return model

    monkeypatch.setattr(exporting, "assemble", spoilt)
    with pytest.raises(PadimEdgeError, match=r"differs from torch by .* nothing was written"):
        export_layer1(unwritten, "random")


def test_every_precision_has_its_tolerance() -> None:
    assert {*exporting.TOLERANCES, "int8"} == set(PRECISIONS)  # int8 is made on photos


def test_unwritable_output_is_found_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting.backbones, "load", lambda *_: pytest.fail("work was begun"))
    for output in (tmp_path / "none" / "embedding.onnx", tmp_path):
        with pytest.raises(PadimEdgeError, match="cannot write"):
            export_backbone(output, weights="random")


def test_no_engine_to_validate_with_is_found_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(place: str) -> Any:
        raise MissingDependencyError("running a graph", place, "cpu")

    monkeypatch.setattr(graphs, "load", missing)
    monkeypatch.setattr(exporting.backbones, "load", lambda *_: pytest.fail("work was begun"))
    with pytest.raises(MissingDependencyError, match=r"padim-edge\[cpu\]"):
        export_backbone(tmp_path / "embedding.onnx", weights="random")
    assert not list(tmp_path.iterdir())
