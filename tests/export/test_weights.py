"""Weights from a file, from torchvision and from a seed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import random
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from exports import assert_close, export_layer1, noise, run, save, saved
from torch_side import State, embedding_of, feature_maps, random_state, reference_draw

from padim_edge.errors import PadimEdgeError
from padim_edge.export import backbones
from padim_edge.export.backbones import Backbone
from padim_edge.export.torchvision import LICENCE, Torchvision

NEEDED = ("conv1.", "bn1.", "layer1.")


def load(weights: str, name: str = "resnet18", layers: tuple[str, ...] = ("layer1",)) -> Backbone:
    """The backbone as `export` loads it, without the rest of an export."""
    return backbones.load(name, layers, weights, (32, 32), 1024)


def assert_holds(loaded: Backbone, state: State) -> None:
    tensors = loaded.network.extractor.state_dict()
    assert tensors
    assert all(torch.equal(t, state[k]) for k, t in tensors.items() if "num_batches" not in k)


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


# ---- from a file -------------------------------------------------------------------------------


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
            backbones.read_state(file)
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
    assert loaded.licence == LICENCE
    assert len(loaded.weights_sha256) == 64


def test_weights_with_terms_of_their_own_name_them() -> None:
    """Of two networks, torchvision has weights by SWAG alone: CC-BY-NC."""
    licences = {name: Torchvision().weights(name).licence for name in Torchvision().names()}
    others = {name: licence for name, licence in licences.items() if licence != LICENCE}
    assert set(others) == {"regnet_y_128gf", "vit_h_14"}
    assert all("SWAG" in licence for licence in others.values())


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
        backbones.load("resnet18", ("layer1",), "random", (32, 32), seed).network.state_dict()
        for seed in (3, 3, 4)
    ]
    assert torch.equal(*(s["extractor.conv1.weight"] for s in stems[:2]))
    assert not torch.allclose(*(s["extractor.conv1.weight"] for s in stems[1:]))
