"""Channels drawn when fitting: as if the embedding had been exported with them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import small_backbone

from padim_edge.errors import UsageError
from padim_edge.export.export import export_backbone
from padim_edge.fit.fit import fit_detector
from padim_edge.fit.settings import Settings
from padim_edge.images.preprocess import Preprocess
from padim_edge.model.file import read

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
