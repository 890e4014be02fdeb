"""timm as a source: its networks against hooks on the whole network, its weights and records."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exports import assert_close, noise, run, save, saved
from helpers import in_process
from torch_side import embedding_of, reference_draw

from padim_edge.errors import MissingDependencyError, PadimEdgeError, UsageError
from padim_edge.export import backbones, sources
from padim_edge.export.export import export_backbone
from padim_edge.export.torchvision import Torchvision
from padim_edge.model.file import read

timm = pytest.importorskip("timm")
safetensors = pytest.importorskip("safetensors.torch")

from padim_edge.export.timm import Timm  # noqa: E402

# name: default layers, their channels, number chosen.
NETWORKS = {
    "resnet18d": (("layer1", "layer2", "layer3"), (64, 128, 256), 100),
    "mobilenetv3_small_050": (("blocks.0", "blocks.1", "blocks.3"), (8, 16, 24), 48),
}
SIZE = (64, 96)


def network(name: str, seed: int = 0) -> Any:
    """A network of timm with batch norms that do something, by timm alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = timm.create_model(name, pretrained=False).eval()
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return model


def maps_of(model: Any, layers: tuple[str, ...], images: Any) -> list[torch.Tensor]:
    """Outputs of layers, caught by hooks; normalised as the network's own record says."""
    caught: dict[str, torch.Tensor] = {}
    for layer in layers:
        model.get_submodule(layer).register_forward_hook(
            lambda _module, _inputs, output, layer=layer: caught.update({layer: output.clone()})
        )
    mean, std = (torch.tensor(model.pretrained_cfg[k]).view(3, 1, 1) for k in ("mean", "std"))
    with torch.no_grad():
        model((torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std)
    return [caught[layer] for layer in layers]


def test_a_first_convolution_whose_weights_are_computed(tmp_path: Path) -> None:
    """Standardised in the graph: no constant takes the division by the standard deviation in."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("resnetv2_50x1_bit", pretrained=False).eval()
    weights, path = tmp_path / "weights.safetensors", tmp_path / "embedding.onnx"
    safetensors.save_file(model.state_dict(), weights)
    export_backbone(path, "resnetv2_50x1_bit", ("stages.0",), (8,), weights=str(weights),
                    image_size=SIZE, source="timm")  # fmt: skip
    images = noise(2, SIZE)
    maps = maps_of(model, ("stages.0",), images)
    assert_close(run(path, images)["embedding"], embedding_of(maps, reference_draw(256, 8)))


@pytest.mark.parametrize("name", NETWORKS)
def test_embedding_equals_timm(name: str, tmp_path: Path) -> None:
    """Default layers, normalisation and weights of a file, in its two formats; 1e-4."""
    layers, channels, count = NETWORKS[name]
    model = network(name)
    dims = None if count == 100 else (count,)
    weights = tmp_path / "weights.safetensors"
    safetensors.save_file(model.state_dict(), weights)
    path = tmp_path / "embedding.onnx"
    exported = export_backbone(
        path, name, dims=dims, weights=str(weights), image_size=SIZE, source="timm"
    )
    info = read(path, "embedding").backbone_info
    assert (info.backbone, info.layers, info.layer_channels) == (name, layers, channels)
    assert (info.weights, info.licence) == ("weights.safetensors", "")
    images = noise(2, SIZE)
    expected = embedding_of(
        maps_of(model, layers, images), reference_draw(sum(channels), len(info.channels))
    )
    assert len(info.channels) == count
    assert_close(run(path, images)["embedding"], expected)
    assert exported.difference <= 1e-4

    pth = save(tmp_path, model.state_dict())
    loaded = backbones.load(name, layers[:1], pth, (32, 32), 0, "timm")
    tensors = loaded.network.extractor.state_dict()
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in tensors.items())


def test_a_tag_chooses_weights_with_their_licence_and_statistics() -> None:
    """As timm records them: of all its weights, whoever trained them."""
    source = Timm()
    for name in ("resnet18.a1_in1k", "resnet18.tv_in1k", "convnext_tiny.in12k"):
        record = timm.get_pretrained_cfg(name)
        assert source.weights(name).origin == f"timm {name}"
        assert source.weights(name).licence == record.license
        assert source.normalisation(name) == (record.mean, record.std)
    assert source.weights("resnet18").origin == "timm resnet18.a1_in1k"
    assert source.weights("resnet18.tv_in1k").licence == "bsd-3-clause"
    assert source.weights("resnet18.fb_swsl_ig1b_ft_in1k").licence == "cc-by-nc-4.0"
    assert source.normalisation("tf_efficientnet_lite0") == ((0.5,) * 3, (0.5,) * 3)


def test_the_first_source_comes_first_and_a_named_one_alone() -> None:
    assert isinstance(sources.find("resnet18"), Torchvision)
    assert isinstance(sources.find("resnet18", "timm"), Timm)
    assert isinstance(sources.find("resnet18.tv_in1k"), Timm)
    with pytest.raises(UsageError, match="'resnet18d'; torchvision has resnet18, "):
        sources.find("resnet18d", "torchvision")
    with pytest.raises(UsageError, match="--source hub: choose one of torchvision, pypi, timm"):
        sources.find("resnet18", "hub")


def test_what_is_not_there_is_answered_in_one_short_line(tmp_path: Path) -> None:
    options = ("--image-size", "32", "-o", tmp_path / "e.onnx")
    done = in_process("export", "--backbone", "mobilenetv3_smal_100", *options)
    line = done.failed(2, "unknown backbone", "torchvision has mobilenet_v3_small", "80 in all")
    assert "timm has mobilenetv3_small_100" in line
    assert len(line) < 500


@pytest.mark.parametrize(
    ("name", "layers", "reason"),
    [
        ("vit_small_patch14_dinov2", None, "no default layers for 'vit_small_patch14_dinov2'"),
        ("vit_tiny_patch16_224", ("blocks.3",), "'blocks.3' .* gives no feature maps"),
        ("swin_tiny_patch4_window7_224", ("layers.1",), r"gives no feature maps .* NHWC"),
    ],
)
def test_networks_without_maps_are_refused(
    name: str, layers: tuple[str, ...] | None, reason: str, unwritten: Path
) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        export_backbone(unwritten, name, layers, weights="random")
    assert "\n" not in str(caught.value)


# ---- default weights ---------------------------------------------------------------------------


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches of the hub and of torch, and no network; returns the hub's folder."""

    def refuse(*_arguments: Any, **_options: Any) -> Any:
        raise urllib.error.URLError("no network in this test")

    hub = tmp_path / "hub"
    monkeypatch.setattr(urllib.request.OpenerDirector, "open", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    return hub


def test_without_network_the_line_says_what_to_fetch(caches: Path, unwritten: Path) -> None:
    with pytest.raises(PadimEdgeError, match="cannot download the default weights of") as caught:
        export_backbone(unwritten, "resnet18.tv_in1k", image_size=(32, 32))
    message = str(caught.value)
    address = "https://huggingface.co/timm/resnet18.tv_in1k/resolve/main/model.safetensors"
    for part in (address, "no network in this test", "--weights FILE"):
        assert part in message
    assert "\n" not in message


def test_weights_from_the_cache_of_the_hub(caches: Path) -> None:
    """Laid out as the hub's client does it: refs, and a snapshot of their commit."""
    model = network("mobilenetv3_small_050")
    home = caches / "models--timm--mobilenetv3_small_050.lamb_in1k"
    snapshot = home / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("0" * 40)
    safetensors.save_file(model.state_dict(), snapshot / "model.safetensors")
    loaded = backbones.load("mobilenetv3_small_050", None, "default", (32, 32), 0)
    assert loaded.weights == "timm mobilenetv3_small_050.lamb_in1k"
    assert loaded.licence == "apache-2.0"
    key = "conv_stem.weight"
    assert torch.equal(loaded.network.extractor.state_dict()[key], model.state_dict()[key])


def test_networks_that_nobody_trained_say_so(caches: Path, unwritten: Path) -> None:
    with pytest.raises(PadimEdgeError, match="timm has no weights for coatnet_0_224: give a file"):
        export_backbone(unwritten, "coatnet_0_224", ("stem",))


# ---- files of safetensors ----------------------------------------------------------------------


def test_damaged_safetensors_are_refused(tmp_path: Path, unwritten: Path) -> None:
    content = safetensors.save({"conv1.weight": torch.zeros(3)})
    file = tmp_path / "w.safetensors"
    for damaged in (content[:-1], content[:20], b"\xff" * 7 + b"\x7f" + content[8:]):
        file.write_bytes(damaged)
        with pytest.raises(PadimEdgeError, match=f"{re.escape(str(file))} is damaged") as caught:
            export_backbone(unwritten, weights=str(file), image_size=(32, 32))
        assert "\n" not in str(caught.value)


def test_the_content_and_not_the_name_tells_the_format(tmp_path: Path) -> None:
    state = {"a": torch.arange(3.0)}
    (tmp_path / "a.pth").write_bytes(safetensors.save(state))
    (tmp_path / "a.safetensors").write_bytes(saved(state))
    for name in ("a.pth", "a.safetensors"):
        found, digest = backbones.read_state(tmp_path / name)
        assert np.array_equal(found["a"], state["a"])
        assert len(digest) == 64


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for by name, and among the sources that were asked for a network."""
    real = sources.load

    def load(place: str) -> Any:
        if place.endswith(":Timm"):
            raise ModuleNotFoundError("No module named 'timm'", name="timm")
        return real(place)

    monkeypatch.setattr(sources, "load", load)
    with pytest.raises(MissingDependencyError, match=r"--source timm needs timm.*edge\[timm\]"):
        sources.find("resnet18d", "timm")
    with pytest.raises(UsageError, match=r"timm is not installed \(pip install .*\[timm\]"):
        sources.find("resnet18d")
