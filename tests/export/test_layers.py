"""Other layers and other networks than the defaults, and what is no layer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from exports import SMALL, assert_close, noise, run, save
from torch_side import embedding_of, feature_maps, random_state, reference_draw

from padim_edge.errors import PadimEdgeError, UsageError
from padim_edge.export.export import export_backbone
from padim_edge.export.torchvision import Torchvision
from padim_edge.model.file import read


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
        mean, std = Torchvision().normalisation(name)
        assert (list(mean), list(std)) == expected, name


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"backbone": "resnet19"}, "unknown backbone 'resnet19'; torchvision has resnet1"),
        ({"backbone": "fasterrcnn_resnet50_fpn"}, "unknown backbone"),
        (
            {"backbone": "vgg11"},
            "no default layers for 'vgg11': name them with --layers, among features.0, ",
        ),
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
