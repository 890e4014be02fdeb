"""Which channels are chosen, and that any choice of them equals torch."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
from exports import SMALL, assert_close, noise, run, save
from torch_side import RESNET, State, embedding_of, feature_maps, reference_draw

from padim_edge.errors import UsageError
from padim_edge.export import channels
from padim_edge.export.export import export_backbone
from padim_edge.model.file import read


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
    [
        "[7, 0, 447]",
        " [\n7,\n0,447 ]\n",
        "7,0,447",
        "7\n0\n447\n",
        "7 0\t447",
        " 7, 0,\r\n447,",
        "\ufeff7,0,447",
        "\ufeff[7, 0, 447]\r\n",
    ],
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


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_all_channels_are_the_layers_themselves(
    precision: str, resnet18: State, tmp_path: Path
) -> None:
    path = tmp_path / "embedding.onnx"
    exported = export_backbone(
        path,
        layers=RESNET[:2],
        dims="all",
        weights=save(tmp_path, resnet18),
        image_size=SMALL,
        precision=precision,
    )
    info = exported.model.backbone_info
    assert (info.channels, info.selection) == (tuple(range(192)), "all 192")
    makers = {node.output[0]: node.op_type for node in exported.model.proto.graph.node}
    expected = {"float32": "Relu", "float16": "Cast"}[precision]
    assert [makers[f"features.{layer}"] for layer in RESNET[:2]] == [expected] * 2
    if precision == "float32":
        maps = feature_maps("resnet18", resnet18, RESNET[:2], noise(2, SMALL))
        assert_close(run(path, noise(2, SMALL))["embedding"], embedding_of(maps, info.channels))


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
