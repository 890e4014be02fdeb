"""The table of sources: a second one is a line in it, and goes the same way as torchvision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from exports import assert_close, noise, run
from helpers import in_process
from torch import nn
from torch_side import embedding_of

from padim_edge.errors import UsageError
from padim_edge.export import backbones
from padim_edge.export.sources import SOURCES, Source, Weights, find
from padim_edge.export.torchvision import Torchvision
from padim_edge.model.file import read

LAYERS = ("stem", "body")
MEAN, STD = (0.1, 0.2, 0.3), (0.7, 0.8, 0.9)


def tiny() -> nn.Sequential:
    """8 channels at 1/2 and 12 at 1/4 of the image, and a head that no map comes from."""
    network = nn.Sequential()
    network.add_module("stem", nn.Conv2d(3, 8, 3, stride=2, padding=1))
    network.add_module("act", nn.ReLU(inplace=True))
    network.add_module("body", nn.Conv2d(8, 12, 3, stride=2, padding=1))
    network.add_module("head", nn.Flatten())
    return network


class Garden(Source):
    """Two networks, one of which torchvision has, too. Its weights lie in the folder ``home``."""

    home = Path()

    def names(self) -> list[str]:
        return ["bonsai", "resnet18"]

    def build(self, name: str) -> nn.Module:
        assert name == "bonsai"
        return tiny()

    def defaults(self, name: str, _network: nn.Module) -> tuple[tuple[str, ...], int] | None:
        return {"bonsai": (LAYERS, 5)}.get(name)

    def normalisation(self, name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return {"bonsai": (MEAN, STD)}[name]

    def weights(self, name: str) -> Weights:
        return Weights(f"garden {name} of spring", "CC0-1.0")

    def fetch(self, name: str) -> Path:
        return self.home / f"{name}.pth"


@pytest.fixture
def garden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Sequential:
    """The second source, in the table; returns the network whose weights it has."""
    monkeypatch.setitem(SOURCES, "garden", f"{__name__}:Garden")
    monkeypatch.setattr(Garden, "home", tmp_path)
    network = tiny().eval()
    torch.save(network.state_dict(), tmp_path / "bonsai.pth")
    return network


def test_a_second_source_goes_the_same_way(garden: nn.Sequential, tmp_path: Path) -> None:
    """By the command, with nothing but the name of its network."""
    path = tmp_path / "embedding.onnx"
    done = in_process("export", "--backbone", "bonsai", "--image-size", "32x64", "-o", path)
    assert "bonsai, stem, body, garden bonsai of spring, float32" in done.worked().stdout

    info = read(path, "embedding").backbone_info
    assert (info.backbone, info.layers) == ("bonsai", LAYERS)
    assert (info.layer_channels, info.layer_shapes) == ((8, 12), ((16, 32), (8, 16)))
    assert (info.mean, info.std) == (MEAN, STD)
    assert info.weights == "garden bonsai of spring"
    assert info.selection == "5 of 20 at random, seed 1024"

    images = noise(2, (32, 64))
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        stem = garden.stem((pixels - torch.tensor(MEAN).view(3, 1, 1)) /
                           torch.tensor(STD).view(3, 1, 1))  # fmt: skip
        body = garden.body(stem.relu())
    expected = embedding_of([stem, body], info.channels)
    assert_close(run(path, images)["embedding"], expected.astype(np.float32))


def test_weights_of_a_second_source(garden: nn.Sequential, tmp_path: Path) -> None:
    """Its licence is that of its own weights, not of a file; the seed makes random ones."""

    def load(weights: str) -> backbones.Backbone:
        return backbones.load("bonsai", None, weights, (32, 32), 3)

    assert load("default").licence == "CC0-1.0"
    assert load("random").licence == load(str(tmp_path / "bonsai.pth")).licence == ""
    torch.manual_seed(3)
    assert torch.equal(load("random").network.extractor.stem.weight, tiny().stem.weight)


def test_the_first_source_that_has_a_network_gives_it(garden: nn.Sequential) -> None:
    assert isinstance(find("resnet18"), Torchvision)
    assert isinstance(find("bonsai"), Garden)
    assert backbones.load("resnet18", None, "random", (32, 32), 0).channels == (64, 128, 256)


def test_what_no_source_has_is_refused_with_the_names_of_all(garden: nn.Sequential) -> None:
    with pytest.raises(
        UsageError, match=r"'fern'; torchvision has .*80 in all; .*; garden has bonsai"
    ):
        find("fern")
