"""Channels drawn when fitting: as if the embedding had been exported with them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import small_backbone

from padim_edge.errors import UsageError
from padim_edge.export.export import export_backbone
from padim_edge.fit.chosen import with_chosen
from padim_edge.fit.fit import fit_detector
from padim_edge.fit.settings import Settings
from padim_edge.images.preprocess import Preprocess
from padim_edge.model.file import read, write
from padim_edge.runtime.graphs import open_graph

SETTINGS = Settings(Preprocess.whole((64, 64)), constants="float32", false_alarm_rate=0.2)


@pytest.fixture(scope="module")
def permuted(tmp_path_factory):
    """All channels, drawn: in no order."""
    path = tmp_path_factory.mktemp("permuted") / "embedding.onnx"
    export_backbone(path, "resnet18", dims=(448,), image_size=(64, 64), weights="random")
    return path


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Three channels, chosen by the export, as `embedding_file` has twenty."""
    path = tmp_path_factory.mktemp("three") / "embedding.onnx"
    export_backbone(path, "resnet18", dims=(3,), image_size=(64, 64), weights="random")
    return path


@pytest.mark.parametrize("dims", [20, 3])
@pytest.mark.parametrize("kind", ["whole", "permuted"])
def test_the_detector_is_that_of_an_export_with_these_channels(
    tmp_path, whole_embedding, permuted, embedding_file, three, good, dims, kind
):
    source = {"whole": whole_embedding, "permuted": permuted}[kind]
    own = {20: embedding_file, 3: three}[dims]
    expected = fit_detector(own, good, tmp_path / "a.onnx", SETTINGS)
    settings = dataclasses.replace(SETTINGS, dims=dims)
    done = fit_detector(source, good, tmp_path / "b.onnx", settings)
    info = expected.model.backbone_info
    assert done.model.backbone_info == info
    ours, theirs = (read(tmp_path / name, "padim") for name in ("b.onnx", "a.onnx"))
    assert abs(ours.size - theirs.size) < 6000  # names and indices: no weights that nobody reads
    for name in ("mean.0", "whitening.0.0"):
        np.testing.assert_allclose(ours.constant(name), theirs.constant(name), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
        done.model.detector_info.good_scores, expected.model.detector_info.good_scores, rtol=1e-4
    )


def test_a_backbone_in_float16_is_cut_too(tmp_path, whole_embedding):
    """The maps are those of before, and as little is computed as in float32."""
    half = tmp_path / "half.onnx"
    export_backbone(
        half, "resnet18", dims="all", image_size=(64, 64), weights="random", precision="float16"
    )
    whole = read(half, "embedding")
    drawn = with_chosen(whole, 20)
    plain = with_chosen(read(whole_embedding, "embedding"), 20)
    kinds = [[node.op_type for node in one.proto.graph.node] for one in (drawn, plain)]
    assert kinds[0].count("Gather") == kinds[1].count("Gather")
    assert drawn.proto.ByteSize() < 0.52 * plain.proto.ByteSize()
    with (tmp_path / "drawn.onnx").open("wb") as stream:
        write(stream, drawn)
    drawn = read(tmp_path / "drawn.onnx", "embedding")
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    found = []
    for model in (whole, drawn):
        names = ["embedding", *model.feature_names()]
        with open_graph(model.proto.SerializeToString(), "ort") as graph:
            found.append(dict(zip(names, graph.run({"image": images}, names), strict=True)))
    info = drawn.backbone_info
    whole_ones, own = (one["embedding"] for one in found)
    np.testing.assert_allclose(own, whole_ones[:, list(info.channels)], rtol=2e-3, atol=1e-3)
    for name, channels in zip(info.layers, info.selected(), strict=True):
        theirs = found[0][f"features.{name}"][:, list(channels)]
        np.testing.assert_allclose(found[1][f"features.{name}"], theirs, rtol=2e-3, atol=1e-3)


def test_moments_are_of_as_many_channels(tmp_path, whole_embedding, good):
    settings = dataclasses.replace(SETTINGS, dims=5)
    state = tmp_path / "moments.npz"
    fit_detector(whole_embedding, good[:8], tmp_path / "a.onnx", settings, save_moments=state)
    done = fit_detector(whole_embedding, good[8:], tmp_path / "b.onnx", settings, update=state)
    assert done.model.detector_info.images == 12
    other = dataclasses.replace(settings, dims=6)
    with pytest.raises(UsageError, match="another dims"):
        fit_detector(whole_embedding, good[8:], tmp_path / "c.onnx", other, update=state)


def test_what_cannot_be_drawn_is_refused(tmp_path, whole_embedding, good):
    few = small_backbone.embedding()
    for embedding, dims, words in (
        (whole_embedding, None, "all 448 channels.*--dims 100"),
        (whole_embedding, 449, "--dims 449: the layers have 448"),
        (
            few,
            5,
            f"--dims 5: channels are drawn from all 72.*has {len(few.backbone_info.channels)}",
        ),
    ):
        settings = dataclasses.replace(SETTINGS, dims=dims)
        with pytest.raises(UsageError, match=words):
            fit_detector(embedding, good, tmp_path / "p.onnx", settings)
    assert list(tmp_path.iterdir()) == []
