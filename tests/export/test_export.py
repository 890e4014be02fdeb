"""embedding.onnx against torch, for every backbone with defaults, and what is and is not in it."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from alike import networks
from exports import SMALL, TOLERANCE, assert_close, noise, run, save, shape_of
from PIL import Image
from torch_side import RESNET, State, embedding_of, feature_maps, random_state, reference_draw

from padim_edge.export.export import Exported, export_backbone
from padim_edge.model.file import read

MOBILE = ("features.3", "features.6", "features.12")
# name: layers, their channels, number chosen, image size.
DEFAULTS = {
    "resnet18": (RESNET, (64, 128, 256), 100, (64, 96)),
    "resnet34": (RESNET, (64, 128, 256), 100, (64, 64)),
    "resnet50": (RESNET, (256, 512, 1024), 550, (64, 64)),
    "wide_resnet50_2": (RESNET, (256, 512, 1024), 550, (64, 64)),
    "mobilenet_v3_large": (MOBILE, (24, 40, 112), 100, (96, 64)),
}
each_backbone = pytest.mark.parametrize("name", networks(DEFAULTS))


@pytest.fixture(scope="module")
def default_export(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], tuple[Path, State, Exported]]:
    """Export a default backbone with random weights from a file, once each."""
    made: dict[str, tuple[Path, State, Exported]] = {}

    def make(name: str) -> tuple[Path, State, Exported]:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            state = random_state(name)
            path = folder / "embedding.onnx"
            weights = save(folder, state)
            size = DEFAULTS[name][3]
            made[name] = path, state, export_backbone(path, name, weights=weights, image_size=size)
            Path(weights).unlink()
        return made[name]

    return make


@each_backbone
def test_embedding_equals_torch(
    name: str, default_export: Any, record_property: Callable[[str, object], None]
) -> None:
    """1e-4 of the largest value of the embedding and of each layer, and 1e-4 absolute.

    Measured: 1e-6 absolute. Batches of 1, 2 and 5 run, and give each image its own result.
    """
    path, state, exported = default_export(name)
    layers, sizes, count, image_size = DEFAULTS[name]
    chosen = reference_draw(sum(sizes), count)
    images = noise(5, image_size)
    maps = feature_maps(name, state, layers, images)
    expected = embedding_of(maps, chosen)
    assert exported.difference <= TOLERANCE
    for batch in (1, 2, 5):
        actual = run(path, images[:batch])
        absolute = assert_close(actual["embedding"], expected[:batch])
        start = 0
        for layer, m in zip(layers, maps, strict=True):
            own = [c - start for c in chosen if start <= c < start + m.shape[1]]
            assert_close(actual[f"features.{layer}"], m[:batch, own].numpy())
            start += m.shape[1]
    assert 0.5 < np.abs(expected).max() < 2  # so 1e-4 of the largest value is some 1e-4 absolute
    assert absolute <= TOLERANCE
    record_property("absolute_difference", absolute)


def test_embedding_equals_torch_on_real_images(
    data: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Real weights that end at layer3, 224 pixels: 1e-4 of the largest value, and absolute."""
    weights = data / "weights" / "resnet18-imagenet1k-v1-to-layer3.pth"
    photos = sorted((data / "data" / "mvtec-256" / "bottle" / "train" / "good").glob("*.png"))[:3]
    images = np.stack([np.asarray(Image.open(p).convert("RGB").resize((224, 224))) for p in photos])
    path = tmp_path / "embedding.onnx"
    exported = export_backbone(path, weights=str(weights))
    state = torch.load(weights, weights_only=True)
    expected = embedding_of(
        feature_maps("resnet18", state, RESNET, images), reference_draw(448, 100)
    )
    absolute = assert_close(run(path, images)["embedding"], expected)
    assert absolute < TOLERANCE
    record_property("absolute_difference", absolute)
    assert exported.model.backbone_info.weights == weights.name


@each_backbone
def test_file_keeps_its_contract(name: str, default_export: Any) -> None:
    path, _, exported = default_export(name)
    layers, sizes, count, (height, width) = DEFAULTS[name]
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    assert exported.size == path.stat().st_size
    assert [(o.domain, o.version <= 18) for o in proto.opset_import] == [("", True)]
    assert proto.ir_version <= 8

    (image,) = proto.graph.input
    assert (image.name, image.type.tensor_type.elem_type) == ("image", onnx.TensorProto.UINT8)
    assert shape_of(image) == ["N", height, width, 3]
    per_layer = [len(own) for own in exported.model.backbone_info.selected()]
    assert sum(per_layer) == count
    assert {o.name: shape_of(o) for o in proto.graph.output} == {
        "embedding": ["N", count, height // 4, width // 4],
        **{
            f"features.{layer}": ["N", d, height // ratio, width // ratio]
            for layer, d, ratio in zip(layers, per_layer, (4, 8, 16), strict=True)
        },
    }
    # TensorRT wants a Cast directly on a uint8 input.
    assert [n.op_type for n in proto.graph.node if "image" in n.input] == ["Cast"]
    assert "normalised" in {name for node in proto.graph.node for name in node.output}

    assert read(path, "embedding").backbone_info == exported.model.backbone_info
    assert exported.model.backbone_info.layer_channels == sizes
    read_names = {i for node in proto.graph.node for i in node.input}
    assert {t.name for t in proto.graph.initializer} <= read_names  # no unused constant


@each_backbone
def test_file_tells_nothing_of_the_machine(name: str, default_export: Any) -> None:
    path, _, _ = default_export(name)
    proto = onnx.load(path)
    assert all(entry.key.startswith("padim_edge.") for entry in proto.metadata_props)
    assert not proto.doc_string + proto.graph.doc_string
    assert not len(proto.functions) + len(proto.graph.metadata_props)
    everything = [
        *proto.graph.node,
        *proto.graph.initializer,
        *proto.graph.input,
        *proto.graph.output,
        *proto.graph.value_info,
    ]
    assert not any(x.doc_string or len(x.metadata_props) for x in everything)
    for tensor in proto.graph.initializer:
        assert not len(tensor.external_data)
        tensor.ClearField("raw_data")  # any three letters occur somewhere in 100 MB of weights
    content = proto.SerializeToString()
    for text in (str(Path.home()), sys.prefix, str(path.parent), "site-packages", ".py", "/tmp"):
        assert text == "/" or text.encode() not in content


def test_two_exports_give_the_same_bytes_and_the_command_is_quiet(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "a.onnx", tmp_path / "b.onnx"
    level = logging.getLogger("torch.onnx").level
    export_backbone(ours, image_size=(32, 32), weights="random")
    assert logging.getLogger("torch.onnx").level == level
    command = [sys.executable, "-c", "from padim_edge.cli.app import main; main()", "export"]
    options = ["--image-size", "32", "--weights", "random", "-o", str(theirs)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
    assert ours.read_bytes() == theirs.read_bytes()
    # No word of torch's exporter or of onnxscript, on either stream.
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        f"{theirs}:", "backbone", "channels", "validated"
    ]  # fmt: skip
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["warning"]
    assert "RANDOM" in done.stderr


# ---- what nobody chose is not computed ---------------------------------------------------------


class Wiring:
    """A graph with the makers, constants and shapes of its tensors at hand."""

    def __init__(self, path: Path) -> None:
        self.proto = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True)
        graph = self.proto.graph
        self.makers = {name: node for node in graph.node for name in node.output}
        self.constants = {t.name: list(t.dims) for t in graph.initializer}
        values = [*graph.value_info, *graph.output, *graph.input]
        self.shapes = {value.name: shape_of(value) for value in values}

    def behind(self, tensor: str) -> tuple[list[onnx.NodeProto], list[onnx.NodeProto]]:
        """Convolutions and Gathers whose output reaches a tensor by channel-wise steps alone."""
        convolutions, gathers = [], []
        waiting = [tensor]
        while waiting:
            node = self.makers.get(waiting.pop())
            if node is None:
                continue
            if node.op_type == "Conv":
                convolutions.append(node)
            elif node.op_type == "Gather":
                gathers.append(node)
            else:
                assert node.op_type in ("Relu", "Add"), node.op_type
                waiting += node.input
        return convolutions, gathers


@each_backbone
def test_last_block_computes_chosen_channels_only(name: str, default_export: Any) -> None:
    path, _, exported = default_export(name)
    wiring = Wiring(path)
    d = len(exported.model.backbone_info.selected()[-1])
    (last,), (skip,) = wiring.behind(f"features.{DEFAULTS[name][0][-1]}")
    for parameter in last.input[1:]:
        assert wiring.constants[parameter][0] == d
    # The skip is the output of the block before, which others read whole.
    assert wiring.shapes[skip.output[0]][1] == d
    assert len([n for n in wiring.proto.graph.node if skip.input[0] in n.input]) == 2
    assert skip.input[0] not in last.output
    # One Gather per layer, one for the order; no other is left.
    assert len([n for n in wiring.proto.graph.node if n.op_type == "Gather"]) == len(RESNET) + 1


@each_backbone
def test_selection_comes_before_repeating(name: str, default_export: Any) -> None:
    path, _, exported = default_export(name)
    wiring = Wiring(path)
    resized = {n.input[0]: n for n in wiring.proto.graph.node if n.op_type == "Resize"}
    layers = DEFAULTS[name][0]
    assert list(resized) == [f"features.{layer}" for layer in layers[1:]]
    for layer, own in zip(layers, exported.model.backbone_info.selected(), strict=True):
        assert wiring.shapes[f"features.{layer}"][1] == len(own)


def test_skip_with_a_convolution_is_selected_too(resnet18: State, tmp_path: Path) -> None:
    """layer2.0 adds a convolution of its input: rows of both are taken, nothing is gathered."""
    path = tmp_path / "embedding.onnx"
    exported = export_backbone(
        path, layers=("layer2.0",), dims=(9,), weights=save(tmp_path, resnet18), image_size=SMALL
    )
    wiring = Wiring(path)
    convolutions, gathers = wiring.behind("features.layer2.0")
    assert [wiring.constants[c.input[1]][0] for c in convolutions] == [9, 9]
    assert gathers == []
    maps = feature_maps("resnet18", resnet18, ("layer2.0",), noise(2, SMALL))
    expected = embedding_of(maps, exported.model.backbone_info.channels)
    assert_close(run(path, noise(2, SMALL))["embedding"], expected)
