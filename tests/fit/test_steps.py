"""The five steps of a fit, each alone: what comes from elsewhere can take the place of any."""

from __future__ import annotations

import numpy as np
import pytest

from padim_edge.errors import PadimEdgeError
from padim_edge.fit.assemble import assemble
from padim_edge.fit.calibrate import calibrate
from padim_edge.fit.features import extract
from padim_edge.fit.fit import fit_detector
from padim_edge.fit.moments import moments_of
from padim_edge.fit.saved import SavedMoments
from padim_edge.fit.settings import Settings
from padim_edge.fit.whitening import Whitening
from padim_edge.images.dataset import train_images
from padim_edge.images.preprocess import Preprocess
from padim_edge.model.file import read
from padim_edge.model.smoothing import Smoothing

SETTINGS = Settings(Preprocess.whole((64, 64)), false_alarm_rate=0.2)


@pytest.fixture(scope="module")
def fitted(embedding_file, photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fitted")
    images = train_images(photos)
    fit_detector(
        embedding_file,
        images,
        folder / "padim.onnx",
        SETTINGS,
        save_moments=folder / "moments.npz",
    )
    return folder


def test_calibrating_later_needs_the_file_alone(fitted):
    info = read(fitted / "padim.onnx", "padim").detector_info
    scores = np.array(info.good_scores)
    pixels = np.array(info.good_pixel_scores)
    again = calibrate(scores[::-1], pixels[::-1], 0.2, info.calibration)
    assert again.threshold == info.threshold
    assert again.good_scores == info.good_scores
    assert again.pixel_threshold == info.pixel_threshold > 0
    assert again.good_pixel_scores == info.good_pixel_scores
    assert calibrate(scores, pixels, 0.1, "").threshold >= again.threshold
    with pytest.raises(PadimEdgeError, match="too few"):
        calibrate(scores, pixels, 0.01, "")
    assert calibrate(scores, pixels, None, "").false_alarm_rate == pytest.approx(
        1 / (len(scores) + 1)
    )


def test_statistics_may_come_from_elsewhere(fitted, embedding_file):
    """Saved moments, whitened and assembled without an image: the same constants, bit for bit."""
    embedding = read(embedding_file, "embedding")
    saved = SavedMoments.load(fitted / "moments.npz", embedding, SETTINGS)
    pyramid = embedding.pyramid()
    whitening = Whitening(pyramid, SETTINGS.constants, SETTINGS.eps)
    for cell in range(pyramid.cells):
        cells = slice(cell, cell + 1)
        whitening(cells, saved.part(pyramid, cells))
    model = assemble(
        embedding,
        whitening.gaussians(),
        calibrate(saved.scores, saved.pixel_scores, SETTINGS.false_alarm_rate, "as saved"),
        Smoothing.of(pyramid, SETTINGS.preprocess.size, SETTINGS.sigma),
        SETTINGS,
        saved.moments.count,
    )
    file = read(fitted / "padim.onnx", "padim")
    assert model.detector_info.threshold == file.detector_info.threshold
    constants = [tensor.name for tensor in file.proto.graph.initializer]
    assert sum(name.startswith(("mean.", "whitening.")) for name in constants) >= 9
    for name in constants:
        np.testing.assert_array_equal(model.constant(name), file.constant(name))


def test_the_moments_of_features_are_those_that_are_saved(fitted, embedding_file, photos):
    embedding = read(embedding_file, "embedding")
    features = extract(embedding, train_images(photos), SETTINGS.preprocess)
    saved = SavedMoments.load(fitted / "moments.npz", embedding, SETTINGS)
    cells = slice(1, 3)
    ours = moments_of(features.of(cells))
    theirs = saved.part(features.pyramid, cells)
    assert ours.count == theirs.count == features.count
    for one, other in zip(ours.means, theirs.means, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)
    for key, scatter in ours.scatters.items():
        np.testing.assert_allclose(scatter, theirs.scatters[key], rtol=1e-9, atol=1e-9)


def test_an_embedding_is_read_once(embedding_file, photos, tmp_path, monkeypatch):
    embedding = read(embedding_file, "embedding")
    monkeypatch.setattr("padim_edge.fit.fit.read", lambda *_: pytest.fail("read again"))
    path = tmp_path / "padim.onnx"
    fit_detector(embedding, train_images(photos), path, SETTINGS)
    assert read(path, "padim").detector_info.images == 12


@pytest.mark.parametrize("covariance", ["sample", "ledoit-wolf"])
def test_the_maps_of_a_fit_are_those_of_its_scores(tmp_path, embedding_file, good, covariance):
    if covariance == "ledoit-wolf":
        pytest.importorskip("sklearn")
    settings = Settings(Preprocess.whole((64, 64)), covariance)
    done = fit_detector(embedding_file, good, tmp_path / "padim.onnx", settings)
    assert list(done.paths) == good
    assert [done.maps(place).shape for place in range(12)] == [(64, 64)] * 12
    maxima = [done.maps(place).max() for place in range(12)]
    np.testing.assert_allclose(maxima, done.scores, rtol=1e-12)
