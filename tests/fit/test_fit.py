"""Fitting: the written file against the reference, calibration, updates, precision, memory."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import reference
from PIL import Image
from sklearn.covariance import LedoitWolf

from padim_edge.detect.detector import Detector
from padim_edge.errors import PadimEdgeError, UsageError
from padim_edge.export.export import export_backbone
from padim_edge.fit import features as features_module
from padim_edge.fit import gaussian
from padim_edge.fit.fit import fit_detector
from padim_edge.fit.moments import moments_of
from padim_edge.fit.settings import Settings
from padim_edge.images.find import find_images
from padim_edge.images.preprocess import Preprocess
from padim_edge.images.synthetic import make_dataset
from padim_edge.model.file import read
from padim_edge.model.pyramid import Pyramid
from padim_edge.model.threshold import threshold_for
from padim_edge.runtime.cpu.ort import Graph

SIZE = (64, 64)
WHOLE = Preprocess.whole(SIZE)
TOLERANCES = {"float32": 1e-4, "float16": 1e-3, "int8": 1e-2}


@pytest.fixture(scope="module")
def embedding_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("embedding") / "embedding.onnx"
    export_backbone(path, dims=(30,), image_size=SIZE, weights="random")
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    make_dataset(folder / "set", train=24, good=6, per_defect=2, size=64)
    return folder / "set"


@pytest.fixture(scope="module")
def good(photos):
    return find_images(photos / "train")


def embeddings(embedding_path: Path, paths: list[Path]) -> np.ndarray:
    """Embeddings [N, d, h, w] of images, straight from the exported graph."""
    images = np.stack([WHOLE(Image.open(path)) for path in paths])
    with Graph(embedding_path.read_bytes()) as graph:
        return graph.run({"image": images}, ["embedding"])[0].astype(np.float64)


@pytest.mark.parametrize("constants", TOLERANCES)
def test_the_written_file_scores_as_the_reference(
    tmp_path, embedding_path, photos, good, constants
):
    fit_detector(
        embedding_path, good, tmp_path / "padim.onnx", Settings(WHOLE, constants=constants)
    )
    test = find_images(photos / "test")
    with Detector(tmp_path / "padim.onnx") as detector:
        results = detector.batch([Image.open(path) for path in test])
    maps = reference.distances(
        embeddings(embedding_path, test), *reference.fit(embeddings(embedding_path, good))
    )
    expected = reference.score_maps(maps, SIZE)
    ours = np.stack([result.score_map for result in results])
    np.testing.assert_allclose(ours, expected, rtol=TOLERANCES[constants])
    scores = [result.score for result in results]
    np.testing.assert_allclose(scores, expected.max(axis=(1, 2)), rtol=TOLERANCES[constants])


@pytest.fixture(scope="module")
def hazelnuts(data, real_weights, real_embedding):
    """Photos to fit on, photos to judge, and their maps by torch's features in float64."""
    import torch
    import torchvision
    from torchvision.models.feature_extraction import create_feature_extractor

    folder = data / "data" / "hazelnut_toy"
    good, test = find_images(folder / "train")[::2], find_images(folder / "test")[::12]
    network = torchvision.models.resnet18(weights=None)
    network.load_state_dict(torch.load(real_weights, weights_only=True), strict=False)
    layers = ["layer1", "layer2", "layer3"]
    extractor = create_feature_extractor(network.eval().double(), layers)
    chosen = np.array(read(real_embedding, "embedding").backbone_info.channels)

    def features(paths):
        pixels = np.stack([REFERENCE(Image.open(path)) for path in paths])
        x = torch.from_numpy(pixels).permute(0, 3, 1, 2).double() / 255
        mean = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64).view(1, 3, 1, 1)
        std = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64).view(1, 3, 1, 1)
        with torch.inference_mode():
            maps = extractor((x - mean) / std)
        return reference.embed([maps[layer].numpy() for layer in layers])[:, chosen]

    maps = reference.distances(features(test), *reference.fit(features(good)))
    return good, test, reference.score_maps(maps, (224, 224))


REFERENCE = Preprocess.reference((224, 224))


@pytest.mark.parametrize("constants", TOLERANCES)
def test_real_images_and_weights_score_as_the_reference(
    hazelnuts, real_embedding, tmp_path, constants
):
    """Full size, real weights; the reference takes its features from torch in float64."""
    good, test, expected = hazelnuts
    settings = Settings(REFERENCE, constants=constants)
    fit_detector(real_embedding, good, tmp_path / "padim.onnx", settings)
    with Detector(tmp_path / "padim.onnx") as detector:
        ours = np.stack([detector(Image.open(path)).score_map for path in test])
    np.testing.assert_allclose(ours, expected, rtol=TOLERANCES[constants])


def test_threshold_is_that_of_brute_force_refitting(tmp_path, embedding_path, good):
    done = fit_detector(
        embedding_path, good, tmp_path / "p.onnx", Settings(WHOLE, false_alarm_rate=0.1)
    )
    every = embeddings(embedding_path, good)
    scores, pixels = [], []
    for image in range(len(good)):
        rest = np.delete(every, image, axis=0)
        maps = reference.distances(every[image : image + 1], *reference.fit(rest))
        score_map = reference.score_maps(maps, SIZE)
        scores.append(score_map.max())
        # The highest of which half a per cent of all pixels are.
        pixels.append(np.sort(score_map, axis=None)[::-1][int(0.005 * score_map.size)])
    detector_info = done.model.detector_info
    np.testing.assert_allclose(detector_info.good_scores, np.sort(scores), rtol=1e-9)
    assert detector_info.threshold == pytest.approx(np.sort(scores)[22], rel=1e-9)  # ceil(.9 x 25)
    np.testing.assert_allclose(detector_info.good_pixel_scores, np.sort(pixels), rtol=1e-9)
    assert detector_info.pixel_threshold == pytest.approx(np.sort(pixels)[22], rel=1e-9)
    assert len(set(detector_info.digests)) == len(good)
    assert detector_info.false_alarm_rate == 0.1


@pytest.mark.parametrize("split", [12, 1, 20])
def test_an_update_equals_one_fit_over_all_images(tmp_path, embedding_path, photos, good, split):
    settings = Settings(WHOLE, constants="float32", false_alarm_rate=0.2)
    whole = fit_detector(embedding_path, good, tmp_path / "whole.onnx", settings)
    first, rest = good[split:], good[:split]
    state = tmp_path / "moments.npz"
    fit_detector(embedding_path, first, tmp_path / "a.onnx", settings, save_moments=state)
    done = fit_detector(
        embedding_path, rest, tmp_path / "b.onnx", settings, update=state, save_moments=state
    )
    for tensor in whole.model.proto.graph.initializer:
        if tensor.name.startswith(("mean.", "whitening.")) and "shape" not in tensor.name:
            ours, theirs = done.model.constant(tensor.name), whole.model.constant(tensor.name)
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6 * np.abs(theirs).max())
    assert done.model.detector_info.images == len(good)
    assert len(done.model.detector_info.good_scores) == len(good)
    # The new images are scored exactly: each as if left out of the fit over all.
    exact = set(np.round(whole.model.detector_info.good_scores, 6))
    assert len(exact & set(np.round(done.model.detector_info.good_scores, 6))) >= split
    # And the state that was written goes on once more.
    more = find_images(photos / "test")[:1]
    fit_detector(embedding_path, more, tmp_path / "c.onnx", settings, update=state)


def test_moments_of_another_fit_are_refused(tmp_path, embedding_path, good):
    state = tmp_path / "moments.npz"
    settings = Settings(WHOLE)
    fit_detector(embedding_path, good, tmp_path / "a.onnx", settings, save_moments=state)
    for other, word in (
        (dataclasses.replace(settings, eps=0.02), "eps"),
        (dataclasses.replace(settings, sigma=2.0), "sigma"),
        (Settings(Preprocess.reference(SIZE)), "preprocess"),
    ):
        with pytest.raises(UsageError, match=word):
            fit_detector(embedding_path, good, tmp_path / "b.onnx", other, update=state)
    export_backbone(tmp_path / "other.onnx", dims=(30,), image_size=SIZE, weights="random", seed=1)
    with pytest.raises(UsageError, match="embedding"):
        fit_detector(tmp_path / "other.onnx", good, tmp_path / "b.onnx", settings, update=state)
    assert not (tmp_path / "b.onnx").exists()


def test_ledoit_wolf_equals_scikit_learn_per_position(tmp_path, embedding_path, photos, good):
    settings = Settings(WHOLE, covariance="ledoit-wolf", constants="float32", false_alarm_rate=0.2)
    done = fit_detector(embedding_path, good, tmp_path / "padim.onnx", settings)
    every = embeddings(embedding_path, good)
    test = find_images(photos / "test")
    new = embeddings(embedding_path, test)

    def maps(fitted: np.ndarray, scored: np.ndarray) -> np.ndarray:
        n, d, h, w = fitted.shape
        flat = fitted.reshape(n, d, h * w)
        inverse = np.stack(
            [np.linalg.inv(LedoitWolf().fit(flat[:, :, p]).covariance_) for p in range(h * w)]
        )
        return reference.score_maps(reference.distances(scored, flat.mean(axis=0), inverse), SIZE)

    with Detector(tmp_path / "padim.onnx") as detector:
        ours = np.stack([detector(Image.open(path)).score_map for path in test])
    np.testing.assert_allclose(ours, maps(every, new), rtol=1e-4)
    fold = np.arange(len(good)) % 5
    held_out = [maps(every[fold != k], every[fold == k]).max(axis=(1, 2)) for k in range(5)]
    expected = np.sort(np.concatenate(held_out))
    np.testing.assert_allclose(done.model.detector_info.good_scores, expected, rtol=1e-9)
    assert "5 folds" in done.model.detector_info.calibration


def test_ledoit_wolf_says_what_to_do_about_a_region_that_is_always_black(tmp_path, good):
    embedding = tmp_path / "fine.onnx"
    export_backbone(embedding, dims=(6, 0, 0), image_size=SIZE, weights="random")
    masked = []
    for path in good[:6]:
        with Image.open(path) as image:
            image.paste(0, (0, 0, image.width, image.height // 2))
            masked.append(tmp_path / path.name)
            image.save(masked[-1])
    settings = Settings(WHOLE, covariance="ledoit-wolf")
    with pytest.raises(PadimEdgeError, match=r"made black.*: give --covariance sample$"):
        fit_detector(embedding, masked, tmp_path / "padim.onnx", settings)
    settings = dataclasses.replace(settings, covariance="sample")
    assert fit_detector(embedding, masked, tmp_path / "padim.onnx", settings).new_images == 6


def test_outputs_must_be_different_files(tmp_path, embedding_path, good):
    same = tmp_path / "same"
    with pytest.raises(UsageError, match="must be different files"):
        fit_detector(
            embedding_path, good, same, Settings(WHOLE), save_moments=tmp_path / "x" / ".." / "same"
        )
    before = embedding_path.read_bytes()
    with pytest.raises(UsageError, match="must be different files"):
        fit_detector(embedding_path, good, embedding_path, Settings(WHOLE))
    assert embedding_path.read_bytes() == before
    assert not same.exists()


def test_the_model_takes_its_place_before_the_moments(tmp_path, embedding_path, good, monkeypatch):
    """The other way round, a failure between the two would count images twice on a retry."""
    renamed = []
    replace = Path.replace

    def noted(self, target):
        renamed.append(Path(target).name)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", noted)
    moments = tmp_path / "moments.npz"
    fit_detector(
        embedding_path, good, tmp_path / "padim.onnx", Settings(WHOLE), save_moments=moments
    )
    assert renamed == ["padim.onnx", "moments.npz"]


def test_unwritable_moments_are_refused_before_the_work(tmp_path, embedding_path):
    """No image exists: had the work begun, that would have been the error."""
    images = [tmp_path / f"{i}.png" for i in range(5)]
    with pytest.raises(PadimEdgeError, match=r"cannot write .*moments"):
        fit_detector(
            embedding_path,
            images,
            tmp_path / "padim.onnx",
            Settings(WHOLE),
            save_moments=tmp_path / "none" / "moments.npz",
        )


def test_ledoit_wolf_has_no_moments(tmp_path, embedding_path, good):
    settings = Settings(WHOLE, covariance="ledoit-wolf")
    with pytest.raises(UsageError, match="no moments"):
        fit_detector(
            embedding_path, good, tmp_path / "p.onnx", settings, save_moments=tmp_path / "m.npz"
        )


def test_chunks_and_store_do_not_change_the_result(tmp_path, embedding_path, good, monkeypatch):
    settings = Settings(WHOLE)
    fit_detector(embedding_path, good, tmp_path / "a.onnx", settings)
    monkeypatch.setattr(features_module, "CHUNK_BYTES", 1)
    monkeypatch.setattr(features_module, "STORE_IN_MEMORY", 0)
    monkeypatch.setattr(features_module, "BATCH", 5)
    fit_detector(embedding_path, good, tmp_path / "b.onnx", settings)
    a, b = (read(tmp_path / name, "padim") for name in ("a.onnx", "b.onnx"))
    np.testing.assert_allclose(a.detector_info.good_scores, b.detector_info.good_scores, rtol=1e-6)
    for tensor in a.proto.graph.initializer:
        if tensor.name.startswith("whitening.") and "shape" not in tensor.name:
            x, y = (m.constant(tensor.name).astype(np.float64) for m in (a, b))
            np.testing.assert_allclose(x, y, rtol=2e-3, atol=2e-3 * np.abs(x).max())


@pytest.mark.parametrize("images", [3, 60, 1000, 10_000])
def test_a_chunk_is_bounded_whatever_the_number_of_images(embedding_path, images):
    pyramid = Pyramid.coarse_to_fine(
        read(embedding_path, "embedding").backbone_info.pyramid_layers()
    )
    chunks = list(features_module.Features(pyramid, [], images).chunks())
    assert (chunks[0].start, chunks[-1].stop) == (0, pyramid.cells)
    assert all(a.stop == b.start for a, b in itertools.pairwise(chunks))
    per_cell = sum(
        8 * images * level.channels * pyramid.positions_per_cell(index)
        for index, level in enumerate(pyramid.levels)
    )
    for chunk in chunks:
        assert (chunk.stop - chunk.start) * per_cell <= max(features_module.CHUNK_BYTES, per_cell)


def test_no_room_for_features_is_an_error_not_a_crash(embedding_path, good, tmp_path, monkeypatch):
    monkeypatch.setattr(features_module, "STORE_IN_MEMORY", 0)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(features_module.os, "posix_fallocate", full)
    with pytest.raises(PadimEdgeError, match="set TMPDIR"):
        fit_detector(embedding_path, good, tmp_path / "p.onnx", Settings(WHOLE))
    assert list(tmp_path.iterdir()) == []


def test_two_fits_write_identical_bytes(tmp_path, embedding_path, good):
    for name in ("a.onnx", "b.onnx"):
        fit_detector(embedding_path, good, tmp_path / name, Settings(WHOLE))
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_the_default_rate_follows_the_number_of_images(tmp_path, embedding_path, good):
    done = fit_detector(embedding_path, good, tmp_path / "p.onnx", Settings(WHOLE))
    assert done.model.detector_info.false_alarm_rate == pytest.approx(1 / 25)
    assert done.model.detector_info.threshold == done.model.detector_info.good_scores[-1]
    with pytest.raises(PadimEdgeError, match="at least 99 images"):
        fit_detector(
            embedding_path, good, tmp_path / "q.onnx", Settings(WHOLE, false_alarm_rate=0.01)
        )
    assert not (tmp_path / "q.onnx").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"covariance": "diagonal"}, {"constants": "int4"}, {"eps": -1.0}, {"eps": float("nan")},
        {"sigma": -1.0}, {"sigma": 1e9}, {"false_alarm_rate": 0.0}, {"false_alarm_rate": 1.0},
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(UsageError):
        Settings(WHOLE, **wrong)


def test_false_alarms_on_unseen_good_images_are_near_the_promised_rate():
    """The conformal promise, on Gaussian features: mean rate over many fits within 1.5 points."""
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(60):
        x = rng.standard_normal((1, 40, 6)) @ np.diag([1, 2, 3, 1, 0.1, 1.0])
        stats = moments_of([x])
        blocks = gaussian.whitening(stats, gaussian.leave_out_eps(0.01, 40))
        q = gaussian.squared_distances(blocks, [x - stats.means[0][:, None]])
        limit = threshold_for(gaussian.leave_one_out(q, 40)[0], 0.1)
        new = rng.standard_normal((1, 500, 6)) @ np.diag([1, 2, 3, 1, 0.1, 1.0])
        own = gaussian.whitening(stats, 0.01)
        distances = gaussian.squared_distances(own, [new - stats.means[0][:, None]])
        rates.append((distances > limit).mean())
    assert 0.085 <= np.mean(rates) <= 0.115
