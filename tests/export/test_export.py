"""embedding.onnx against torch, and every way in which an export is refused.

The torch side is written here from torchvision alone: hooks on the whole network, torchvision's
normalisation, nearest repetition, concatenation and then the choice of channels. Nothing of
`padim_edge.export` takes part in it.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import io
import json
import logging
import os
import pickle
import random
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torchvision
from numpy.typing import NDArray
from onnx import numpy_helper
from PIL import Image
from torchvision.transforms.functional import normalize

from padim_edge.errors import PadimEdgeError, UsageError
from padim_edge.export import backbones as backbone
from padim_edge.export import channels
from padim_edge.export import export as exporting
from padim_edge.export.backbones import Backbone
from padim_edge.export.export import Exported, export_backbone
from padim_edge.model.file import Model, read

TOLERANCE = 1e-4
RESNET = ("layer1", "layer2", "layer3")
MOBILE = ("features.3", "features.6", "features.12")
# name: layers, their channels, number chosen, image size.
DEFAULTS = {
    "resnet18": (RESNET, (64, 128, 256), 100, (64, 96)),
    "resnet34": (RESNET, (64, 128, 256), 100, (64, 64)),
    "resnet50": (RESNET, (256, 512, 1024), 550, (64, 64)),
    "wide_resnet50_2": (RESNET, (256, 512, 1024), 550, (64, 64)),
    "mobilenet_v3_large": (MOBILE, (24, 40, 112), 100, (96, 64)),
}
SMALL = (64, 64)
State = dict[str, torch.Tensor]


# ---- the torch side ----------------------------------------------------------------------------


def network(name: str) -> torch.nn.Module:
    """A network as torchvision builds it to take weights."""
    options: dict[str, Any] = {"init_weights": False} if name == "googlenet" else {}
    if name in ("googlenet", "inception_v3"):
        options["transform_input"] = True  # torchvision sets it wherever there are weights
    return torchvision.models.get_model(name, weights=None, **options).eval()


def random_state(name: str, seed: int = 0) -> State:
    """Random weights whose batch norms do something, unlike those of a fresh network."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = network(name)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
                torch.nn.init.uniform_(module.weight, 0.3, 0.7)
                torch.nn.init.normal_(module.bias, 0, 0.1)
    return model.state_dict()


def feature_maps(
    name: str,
    state: State,
    layers: Sequence[str],
    images: NDArray[np.uint8],
    mean: Sequence[float] = (0.485, 0.456, 0.406),
    std: Sequence[float] = (0.229, 0.224, 0.225),
) -> list[torch.Tensor]:
    """Outputs of layers for uint8 [N, H, W, 3], caught by hooks on the whole network."""
    model = network(name)
    absent = set(model.state_dict()) - set(state)
    assert all(k.startswith(("layer4", "fc")) or k.endswith("tracked") for k in absent)
    model.load_state_dict(state, strict=False)
    caught: dict[str, torch.Tensor] = {}
    for layer in layers:
        model.get_submodule(layer).register_forward_hook(
            lambda _module, _inputs, output, layer=layer: caught.update({layer: output.clone()})
        )
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).to(torch.float32).div(255)
    with torch.no_grad():
        model(normalize(pixels, list(mean), list(std)))
    return [caught[layer] for layer in layers]


def embedding_of(maps: Sequence[torch.Tensor], chosen: Sequence[int]) -> NDArray[np.float32]:
    """Repeat to the finest of the layers that are used, concatenate, choose."""
    ends = np.cumsum([m.shape[1] for m in maps])
    used = {int(np.searchsorted(ends, c, side="right")) for c in chosen}
    height, width = max(tuple(maps[i].shape[2:]) for i in used)
    repeated = []
    for m in maps:
        cropped = m[:, :, :height, :width]  # of an unused finer layer only its places count
        ratio = height // cropped.shape[2]
        repeated.append(cropped.repeat_interleave(ratio, dim=2).repeat_interleave(ratio, dim=3))
    return torch.cat(repeated, dim=1).index_select(1, torch.tensor(list(chosen))).numpy()


def reference_draw(total: int, count: int) -> list[int]:
    """The choice of the reference implementation, by the global generator."""
    state = random.getstate()
    try:
        random.seed(1024)
        return random.sample(range(total), count)
    finally:
        random.setstate(state)


# ---- the ONNX side -----------------------------------------------------------------------------


def run(path: Path, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": images}), strict=True))


def noise(batch: int, size: tuple[int, int], seed: int = 7) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (batch, *size, 3), np.uint8)


def assert_close(actual: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Within TOLERANCE of the largest value; returns the largest absolute difference."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype == np.float32
    absolute = float(np.abs(actual - expected).max())
    largest = float(np.abs(expected).max())
    assert absolute <= TOLERANCE * largest, f"{absolute:.1e} absolute, largest value {largest:.3g}"
    return absolute


def save(folder: Path, state: Any, name: str = "weights.pth") -> str:
    torch.save(state, folder / name)
    return str(folder / name)


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


@pytest.fixture(scope="module")
def resnet18() -> State:
    return random_state("resnet18")


@pytest.fixture
def unwritten(tmp_path: Path) -> Iterator[Path]:
    """Where to export to when it must fail: the old file must stay, and nothing beside it."""
    folder = tmp_path / "out"
    folder.mkdir()
    path = folder / "embedding.onnx"
    path.write_bytes(b"old")
    yield path
    assert path.read_bytes() == b"old"
    assert list(folder.iterdir()) == [path]


@pytest.fixture
def torch_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torchvision; returns the folder of its checkpoints."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: Any, **_options: Any) -> Any:
        raise urllib.error.URLError("no network in this test")

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", refuse)


# ---- the embedding -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", DEFAULTS)
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


def shape_of(value: onnx.ValueInfoProto) -> list[str | int]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


@pytest.mark.parametrize("name", DEFAULTS)
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


@pytest.mark.parametrize("name", DEFAULTS)
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


# ---- channels ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("total", "count"), [(448, 100), (1792, 550), (1792, 100), (5, 5)])
def test_draw_is_that_of_the_reference(total: int, count: int) -> None:
    before = random.getstate()
    chosen, how = channels.choose((total - 3, 3), (count,), None, 1024, 100)
    assert list(chosen) == reference_draw(total, count)
    assert how == f"{count} of {total} at random, seed 1024"
    assert random.getstate() == before


def test_draw_of_the_reference_is_known() -> None:
    """The first numbers and the split that publications report for ResNet-18."""
    chosen, _ = channels.choose((64, 128, 256), None, None, 1024, 100)
    assert len(set(chosen)) == 100
    split = np.histogram(chosen, bins=[0, 64, 192, 448])[0]
    assert split.tolist() == [18, 23, 59]
    assert channels.choose((64, 128, 256), None, None, 1, 100)[0] != chosen
    assert len(channels.choose((20, 20), None, None, 1024, 100)[0]) == 40  # no more than there are


def test_draw_per_layer() -> None:
    chosen, how = channels.choose((64, 128, 256), (6, 28, 66), None, 1024, 100)
    assert np.histogram(chosen, bins=[0, 64, 192, 448])[0].tolist() == [6, 28, 66]
    assert len(set(chosen)) == 100
    assert how == "6 of 64, 28 of 128, 66 of 256 at random per layer, seed 1024"
    assert channels.choose((64, 128, 256), (6, 28, 66), None, 1024, 100)[0] == chosen
    assert channels.choose((64, 128, 256), (6, 28, 66), None, 1025, 100)[0] != chosen
    every = channels.choose((3, 4), (3, 4), None, 0, 1)[0]
    assert (sorted(every[:3]), sorted(every[3:])) == ([0, 1, 2], [3, 4, 5, 6])
    assert sorted(channels.choose((3, 4), (0, 4), None, 0, 1)[0]) == [3, 4, 5, 6]


@pytest.mark.parametrize(
    "text",
    ["[7, 0, 447]", " [\n7,\n0,447 ]\n", "7,0,447", "7\n0\n447\n", "7 0\t447", " 7, 0,\r\n447,"],
)
def test_listed_channels(text: str, tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_bytes(text.encode())
    assert channels.choose((64, 384), None, file, 0, 9) == ((7, 0, 447), "listed in list.txt")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "empty"),
        ("[]", "empty"),
        (" \n", "empty"),
        ("1, 2, 1", "names one twice"),
        ("1, 448", "448 is outside"),
        ("[-1]", "-1 is outside"),
        ("1, 2.5", "integers are expected"),
        ("one", "integers are expected"),
        ("[1, 2.5]", "not 2.5"),
        ("[1, true]", "not True"),
        ('["1"]', "not '1'"),
        ("[[1]]", "integers are expected"),
        ("[null]", "integers are expected"),
        ("[1, 2", "integers are expected"),
        ("[" * 100_000, "integers are expected"),
        ('{"channels": [1]}', "integers are expected"),
        (b"\xff\xfe\x00\x01", "cannot be read as text"),
    ],
)
def test_bad_list_of_channels(content: str | bytes, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "list.json"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UsageError, match=re.escape(reason)) as caught:
        channels.choose((64, 384), None, file, 0, 9)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_list_of_channels_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        channels.choose((64,), None, tmp_path / "none", 0, 9)
    with pytest.raises(UsageError, match="exclude each other"):
        channels.choose((64,), (3,), tmp_path / "none", 0, 9)


@pytest.mark.parametrize(
    "dims", [(0,), (449,), (-1,), (1, 2), (1, 2, 3, 4), (65, 1, 1), (1, 1, -1), (0, 0, 0)]
)
def test_impossible_dims(dims: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=f"--dims {','.join(map(str, dims))}: "):
        channels.choose((64, 128, 256), dims, None, 0, 9)


@pytest.mark.parametrize("dims", [(0, 5), (5, 0), (192,)])
def test_any_split_equals_torch(dims: tuple[int, ...], resnet18: State, tmp_path: Path) -> None:
    """Layers without a chosen channel, the finest too, and all channels of all layers."""
    path = tmp_path / "embedding.onnx"
    layers = RESNET[:2]
    weights = save(tmp_path, resnet18)
    exported = export_backbone(path, layers=layers, dims=dims, weights=weights, image_size=SMALL)
    chosen = exported.model.backbone_info.channels
    assert len(chosen) == sum(dims)
    if len(dims) == 2:
        assert np.histogram(chosen, bins=[0, 64, 192])[0].tolist() == list(dims)
    images = noise(2, SMALL)
    maps = feature_maps("resnet18", resnet18, layers, images)
    actual = run(path, images)
    assert_close(actual.pop("embedding"), embedding_of(maps, chosen))
    selected = exported.model.backbone_info.selected()
    used = [layer for layer, own in zip(layers, selected, strict=True) if own]
    assert list(actual) == [f"features.{layer}" for layer in used]
    assert read(path, "embedding").backbone_info.channels == chosen


def test_listed_channels_keep_their_order(resnet18: State, tmp_path: Path) -> None:
    chosen = [191, 0, 64, 3, 63, 65]
    (tmp_path / "list.json").write_text(json.dumps(chosen))
    path = tmp_path / "embedding.onnx"
    exported = export_backbone(
        path,
        layers=RESNET[:2],
        channels_file=tmp_path / "list.json",
        weights=save(tmp_path, resnet18),
        image_size=SMALL,
    )
    assert list(exported.model.backbone_info.channels) == chosen
    maps = feature_maps("resnet18", resnet18, RESNET[:2], noise(1, SMALL))
    assert_close(run(path, noise(1, SMALL))["embedding"], embedding_of(maps, chosen))


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


@pytest.mark.parametrize("name", DEFAULTS)
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


@pytest.mark.parametrize("name", DEFAULTS)
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


# ---- other layers and networks -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "layers", "size"),
    [
        ("resnet18", ("layer3", "layer1", "layer2"), (64, 32)),
        ("resnet18", ("layer1", "layer1.0"), SMALL),
        ("resnet18", ("layer1.0", "layer1.1"), SMALL),  # both gather the same skip
        ("resnet18", ("layer1.0.conv1", "layer1.0.bn1", "layer2"), SMALL),
        ("resnet18", ("maxpool", "layer2.0.downsample", "layer2"), SMALL),
        ("squeezenet1_1", ("features.6",), (96, 64)),
        ("squeezenet1_1", ("features.0",), SMALL),  # an in-place ReLU follows
        ("efficientnet_b0", ("features.2", "features.3"), (32, 64)),
        ("shufflenet_v2_x0_5", ("stage2",), SMALL),  # its last step is no convolution
        ("googlenet", ("conv2.bn", "inception3a"), SMALL),  # an in-place function follows, too
    ],
)
def test_other_layers_equal_torch(
    name: str, layers: tuple[str, ...], size: tuple[int, int], tmp_path: Path
) -> None:
    state = random_state(name)
    path = tmp_path / "embedding.onnx"
    exported = export_backbone(
        path, name, layers, dims=(40,), weights=save(tmp_path, state), image_size=size
    )
    images = noise(2, size)
    maps = feature_maps(name, state, layers, images)
    info = exported.model.backbone_info
    assert info.layers == layers
    assert info.layer_channels == tuple(m.shape[1] for m in maps)
    assert info.layer_shapes == tuple(tuple(m.shape[2:]) for m in maps)
    chosen = reference_draw(sum(info.layer_channels), 40)
    assert_close(run(path, images)["embedding"], embedding_of(maps, chosen))
    assert read(path, "embedding").backbone_info == info


def test_statistics_are_those_that_torchvision_names() -> None:
    """Of the presets of all its networks, or of what a network does to its input by itself."""
    converting = {"googlenet", "inception_v3"}  # their transform_input; see `network`
    for name in torchvision.models.list_models(module=torchvision.models):
        weights = torchvision.models.get_model_weights(name)
        preset = getattr(weights, "IMAGENET1K_V1", weights.DEFAULT).transforms()
        half = [0.5] * 3, [0.5] * 3
        expected = half if name in converting else (preset.mean, preset.std)
        by_half = name in backbone.NORMALISED_BY_HALF
        actual = half if by_half else (list(backbone.MEAN), list(backbone.STD))
        assert actual == expected, name


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"backbone": "resnet19"}, "unknown backbone 'resnet19'; torchvision has alexnet"),
        ({"backbone": "fasterrcnn_resnet50_fpn"}, "unknown backbone"),
        ({"backbone": "vgg11"}, "no default layers for 'vgg11': name them with --layers"),
        ({"layers": ("layer1", "layer9")}, "no layer 'layer9'; choose with --layers among conv1"),
        ({"layers": ("layer",)}, "no layer 'layer'"),
        ({"layers": ("",)}, "no layer ''"),
        ({"layers": ("layer1", "layer2", "layer1")}, "a layer is named twice"),
        ({"layers": ("layer1.1", "layer1")}, "layer1.1 and layer1 of resnet18 have the same"),
        ({"layers": ("layer1", "fc")}, "layer 'fc' of resnet18 gives no feature maps"),
        ({"layers": ("flatten",)}, "layer 'flatten' of resnet18 gives no feature maps"),
        (
            {"backbone": "shufflenet_v2_x0_5", "layers": ("stage2.1.chunk",)},
            "layer 'stage2.1.chunk' of shufflenet_v2_x0_5 gives no feature maps",
        ),
        (
            {"backbone": "swin_t", "layers": ("features.1",)},  # [N, h, w, C]
            "layer 'features.1' of swin_t gives no feature maps",
        ),
        (
            # Here w = C, so that the shape alone does not tell.
            {"backbone": "swin_t", "layers": ("features.1",), "image_size": (384, 384)},
            "layer 'features.1' of swin_t gives no feature maps",
        ),
        (
            {"backbone": "vit_b_32", "layers": ("encoder",), "image_size": (224, 224)},  # tokens
            "layer 'encoder' of vit_b_32 gives no feature maps",
        ),
        (
            {"backbone": "vit_b_32", "layers": ("conv_proj",), "image_size": (64, 64)},
            "vit_b_32 takes no images of 64x64",
        ),
        (
            {"backbone": "squeezenet1_1", "layers": ("features.4", "features.6")},
            "each resolution must be an integer multiple",
        ),
        ({"image_size": (100, 96)}, "--image-size 100x96: height and width must be"),
        ({"image_size": (96, 100)}, "multiples of 32"),
        ({"image_size": (0, 32)}, "multiples of 32"),
        ({"image_size": (-32, 32)}, "multiples of 32"),
        ({"dims": (1, 2)}, "--dims 1,2: give one number, or one for each of the 3 layers"),
    ],
)
def test_wrong_use(
    wrong: dict[str, Any], reason: str, unwritten: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match=re.escape(reason)) as caught:
        export_backbone(unwritten, **{"image_size": (32, 32), "weights": "random", **wrong})
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_network_that_torch_cannot_export(unwritten: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: Any, **_options: Any) -> None:
        raise torch.onnx.errors.OnnxExporterError("a long\nstory")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(PadimEdgeError, match="torch cannot export resnet18 up to layer1, layer2"):
        export_backbone(unwritten, weights="random", image_size=SMALL)


# ---- weights -----------------------------------------------------------------------------------


def export_layer1(output: Path, weights: str, **options: Any) -> Exported:
    """The cheapest export there is."""
    return export_backbone(
        output, layers=("layer1",), dims=(9,), weights=weights, image_size=(32, 32), **options
    )


def load(weights: str, name: str = "resnet18", layers: tuple[str, ...] = ("layer1",)) -> Backbone:
    """The backbone as `export` loads it, without the rest of an export."""
    return backbone.load(name, layers, weights, (32, 32), 1024)


def assert_holds(loaded: Backbone, state: State) -> None:
    tensors = loaded.network.extractor.state_dict()
    assert tensors
    assert all(torch.equal(t, state[k]) for k, t in tensors.items() if "num_batches" not in k)


NEEDED = ("conv1.", "bn1.", "layer1.")


def test_only_used_layers_are_asked_for(resnet18: State, tmp_path: Path) -> None:
    """A file that ends at layer1, and a checkpoint with strange keys."""
    truncated = {
        k: v
        for k, v in resnet18.items()
        if k.startswith(NEEDED) and not k.endswith("num_batches_tracked")
    }
    strange = {"epoch.count": torch.zeros(3), "layer4.0.conv1.weight": torch.zeros(1), **truncated}
    files = {"truncated": truncated, "checkpoint": {"epoch": 3, "state_dict": strange}}
    for name, content in files.items():
        weights = save(tmp_path, content, f"{name}.pth")
        loaded = load(weights)
        assert_holds(loaded, resnet18)
        assert loaded.weights == f"{name}.pth"
        assert loaded.weights_sha256 == hashlib.sha256(Path(weights).read_bytes()).hexdigest()
    path = tmp_path / "embedding.onnx"
    info = export_layer1(path, str(tmp_path / "truncated.pth")).model.backbone_info
    assert info.weights == "truncated.pth"
    assert info.weights_sha256 == load(str(tmp_path / "truncated.pth")).weights_sha256
    maps = feature_maps("resnet18", resnet18, ("layer1",), noise(1, (32, 32)))
    expected = embedding_of(maps, reference_draw(64, 9))
    assert_close(run(path, noise(1, (32, 32)))["embedding"], expected)


def test_densenet_with_the_key_names_of_its_download(tmp_path: Path) -> None:
    """torchvision's densenet files say norm.1 where its networks say norm1."""
    name, layers = "densenet121", ("features.denseblock1",)
    state = random_state(name)
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", k): v for k, v in state.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    assert_holds(load(save(tmp_path, old), name, layers), state)


def test_missing_tensors_are_named(resnet18: State, tmp_path: Path, unwritten: Path) -> None:
    for gone in (["layer1.1.conv2.weight"], ["bn1.running_var", "conv1.weight"]):
        weights = save(tmp_path, {k: v for k, v in resnet18.items() if k not in gone})
        with pytest.raises(PadimEdgeError, match=f"lacks {len(gone)} of the 25 ") as caught:
            export_layer1(unwritten, weights)
        assert all(name in str(caught.value) for name in gone)
    with pytest.raises(PadimEdgeError, match=r"lacks 25 of the 25 tensors .*, \.\.\.$"):
        export_layer1(unwritten, save(tmp_path, {"model." + k: v for k, v in resnet18.items()}))


def test_misshapen_tensor_is_named(resnet18: State, tmp_path: Path, unwritten: Path) -> None:
    weights = save(tmp_path, {**resnet18, "layer1.0.bn2.bias": torch.zeros(63)})
    reason = r"'layer1.0.bn2.bias' has shape \(63,\), \(64,\) is needed"
    with pytest.raises(PadimEdgeError, match=reason):
        export_layer1(unwritten, weights)


def test_weights_that_give_nan(resnet18: State, tmp_path: Path, unwritten: Path) -> None:
    spoilt = {**resnet18, "conv1.weight": torch.full((64, 3, 7, 7), torch.nan)}
    with pytest.raises(PadimEdgeError, match="gives NaN or infinity with the weights 'weights"):
        export_layer1(unwritten, save(tmp_path, spoilt))


def saved(value: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is not a file of torch weights"),
        (b"weights?\n", "is not a file of torch weights"),
        (bytes(range(256)) * 8, "is not a file of torch weights"),
        (b"\x80\x02}q\x00(X", "is not a file of torch weights"),
        (b"PK\x03\x04" + bytes(64), "is not a file of torch weights"),
        (saved({"a": torch.zeros(999)})[:-300], "is not a file of torch weights"),
        (pickle.dumps({"conv1.weight": [1.0]}), "is not a file of torch weights"),
        (saved([torch.zeros(3)]), "holds no state dict"),
        (saved(torch.zeros(3)), "holds no state dict"),
        (saved({"a": 1}), "holds no state dict"),
        (saved({}), "lacks 25 of the 25"),
        (saved({3: torch.zeros(3)}), "holds no state dict"),
    ],
    ids=[
        *("empty", "text", "bytes", "pickle begins", "zip begins", "truncated", "plain pickle"),
        *("list", "tensor", "number", "nothing", "number as a key"),
    ],
)
def test_file_that_holds_no_weights(
    content: bytes, reason: str, tmp_path: Path, unwritten: Path
) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(content)
    with pytest.raises(PadimEdgeError, match=re.escape(f"{file} {reason}")) as caught:
        export_layer1(unwritten, str(file))
    assert "\n" not in str(caught.value)


def test_damaged_weights_never_end_in_a_traceback(tmp_path: Path) -> None:
    """Files cut anywhere, with random bytes in random places."""
    whole = saved({"conv1.weight": torch.zeros(4, 4), "bn1.bias": torch.zeros(2)})
    rng = np.random.default_rng(0)
    file = tmp_path / "weights.pth"
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), rng.integers(1, 30)):
            damaged[place] = rng.integers(256)
        if rng.random() < 0.2:
            del damaged[rng.integers(len(whole)) :]
        file.write_bytes(damaged)
        refused += 1
        with contextlib.suppress(PadimEdgeError):  # but nothing else
            backbone.read_state(file)
            refused -= 1  # torch checks no sums, so a damaged number is read as it stands
    assert refused > 100


def test_missing_weights(tmp_path: Path, unwritten: Path) -> None:
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(PadimEdgeError, match=f"cannot read the weights {path}: .*'default', "):
            export_layer1(unwritten, str(path))


class Hostile:
    """An object whose unpickling runs code: it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("dump", [saved, pickle.dumps], ids=["torch.save", "pickle"])
@pytest.mark.parametrize("where", ["given", "cached"])
def test_code_in_weights_is_not_run(
    dump: Callable[[Any], bytes], where: str, tmp_path: Path, torch_home: Path, unwritten: Path
) -> None:
    mark = tmp_path / "ran"
    content = dump({"conv1.weight": Hostile(mark)})
    torch_home.mkdir(parents=True)
    file = torch_home / "resnet18-f37072fd.pth"
    file.write_bytes(content)
    with pytest.raises(PadimEdgeError, match=f"{file} is not a file of torch weights"):
        export_layer1(unwritten, str(file) if where == "given" else "default")
    assert not mark.exists()
    pickle.loads(pickle.dumps(Hostile(mark)))
    assert mark.exists()  # it would have shown


# ---- torchvision's default weights -------------------------------------------------------------


def test_default_weights_without_network(
    torch_home: Path, no_network: None, unwritten: Path
) -> None:
    with pytest.raises(PadimEdgeError, match="cannot download the default weights") as caught:
        export_layer1(unwritten, "default")
    message = str(caught.value)
    for part in ("resnet18", "https://", "resnet18-f37072fd.pth", "--weights FILE", "no network"):
        assert part in message
    assert "\n" not in message
    assert [p for p in torch_home.parent.rglob("*") if p.is_file()] == []


def test_default_weights_from_the_cache(
    resnet18: State, torch_home: Path, no_network: None
) -> None:
    """As in torchvision: the cache goes by names, and its content is not hashed again."""
    torch_home.mkdir(parents=True)
    torch.save(resnet18, torch_home / "resnet18-f37072fd.pth")
    loaded = load("default")
    assert_holds(loaded, resnet18)
    assert loaded.weights == "torchvision ResNet18_Weights.IMAGENET1K_V1"
    assert len(loaded.weights_sha256) == 64


def test_damaged_cache(torch_home: Path, no_network: None, unwritten: Path) -> None:
    torch_home.mkdir(parents=True)
    file = torch_home / "resnet18-f37072fd.pth"
    file.write_bytes(b"<html>")
    with pytest.raises(PadimEdgeError, match=f"{file} is not a file of torch weights"):
        export_layer1(unwritten, "default")


def test_download(
    resnet18: State,
    torch_home: Path,
    tmp_path: Path,
    unwritten: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A download that works ends in the cache; one with another hash is thrown away."""
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    content = saved({k: v for k, v in resnet18.items() if k.startswith(NEEDED)})
    digest = hashlib.sha256(content).hexdigest()
    good, bad = (tmp_path / f"net-{d}.pth" for d in (digest[:8], "00000000"))
    good.write_bytes(content)
    bad.write_bytes(content)

    monkeypatch.setattr(weights.value, "url", bad.as_uri())
    with pytest.raises(PadimEdgeError, match=r"cannot download .*hash.*--weights FILE"):
        export_layer1(unwritten, "default")
    assert list(torch_home.iterdir()) == []

    monkeypatch.setattr(weights.value, "url", good.as_uri())
    loaded = load("default")
    assert list(torch_home.iterdir()) == [torch_home / good.name]
    assert loaded.weights_sha256 == digest
    assert_holds(loaded, resnet18)
    assert capfd.readouterr() == ("", "")


# ---- random weights ----------------------------------------------------------------------------


def test_random_weights_come_from_the_seed_alone(tmp_path: Path) -> None:
    def states() -> list[Any]:
        return [
            torch.random.get_rng_state().tolist(),
            random.getstate(),
            repr(np.random.get_state()),  # noqa: NPY002
        ]

    before = states()
    for name in ("a", "b"):
        info = export_layer1(tmp_path / name, "random", seed=3).model.backbone_info
        assert (info.weights, info.weights_sha256) == ("random (seed 3)", "")
        assert states() == before
        torch.rand(1)  # the state before does not matter
        before = states()
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    stems = [
        backbone.load("resnet18", ("layer1",), "random", (32, 32), seed).network.state_dict()
        for seed in (3, 3, 4)
    ]
    assert torch.equal(*(s["extractor.conv1.weight"] for s in stems[:2]))
    assert not torch.allclose(*(s["extractor.conv1.weight"] for s in stems[1:]))


# ---- validation --------------------------------------------------------------------------------


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


def test_unwritable_output_is_found_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting.backbones, "load", lambda *_: pytest.fail("work was begun"))
    for output in (tmp_path / "none" / "embedding.onnx", tmp_path):
        with pytest.raises(PadimEdgeError, match="cannot write"):
            export_backbone(output, weights="random")
