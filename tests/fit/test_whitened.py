"""The whitened presets: the written file against the definition in float64, held-out images."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import reference
import small_backbone
from PIL import Image
from scipy.stats import multivariate_normal

from padim_edge.detect.detector import Detector
from padim_edge.errors import ModelError, UsageError
from padim_edge.fit.basis import find_basis, principal, within_positions
from padim_edge.fit.features import Features, extract
from padim_edge.fit.fit import fit_detector
from padim_edge.fit.settings import SHRINKAGE, Settings
from padim_edge.fit.shrinkage import CANDIDATES, leave_one_out_likelihoods, likeliest
from padim_edge.images.find import find_images
from padim_edge.images.preprocess import Preprocess
from padim_edge.images.synthetic import make_dataset
from padim_edge.model.file import Model, read
from padim_edge.model.pooling import with_pooled
from padim_edge.model.pyramid import Pyramid
from padim_edge.runtime.cpu.ort import Graph

SIZE = (64, 64)
WHOLE = Preprocess.whole(SIZE)
TOLERANCES = {"float32": 1e-4, "float16": 1e-3, "int8": 1e-2}
FEW = Settings(WHOLE, preset="whitened", dims=12, false_alarm_rate=0.2)
FORMS = {
    "whitened": {"preset": "whitened", "dims": 20},
    "whitened-fine": {"preset": "whitened-fine", "dims": 30},
    "finest": {"preset": "whitened", "dims": 9, "grid": (16, 16)},
    "coarsest": {"preset": "whitened-fine", "dims": 9, "grid": (2, 2)},
    "all directions": {"preset": "whitened", "dims": 56},
}


@pytest.fixture(scope="module")
def embedding() -> Model:
    return small_backbone.embedding(small_backbone.WHOLE)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    make_dataset(folder / "set", train=24, good=3, per_defect=1, size=64)
    return folder / "set"


@pytest.fixture(scope="module")
def good(photos):
    return find_images(photos / "train")


def pooled(embedding: Model, paths, grid) -> np.ndarray:
    """Pooled features [N, C, h, w] in float64 from the backbone's own maps."""
    images = np.stack([WHOLE(Image.open(path)) for path in paths])
    names = ["features.layer2", "features.layer3"]
    with Graph(embedding.proto.SerializeToString()) as graph:
        maps = graph.run({"image": images}, names)
    return np.concatenate([reference.pool(m.astype(np.float64), grid) for m in maps], axis=1)


@pytest.mark.parametrize("constants", TOLERANCES)
@pytest.mark.parametrize("form", FORMS)
def test_the_written_file_scores_as_the_definition(
    tmp_path, embedding, photos, good, form, constants
):
    settings = Settings(WHOLE, constants=constants, shrinkage=0.1, **FORMS[form])
    done = fit_detector(embedding, good, tmp_path / "padim.onnx", settings)
    test = find_images(photos / "test")
    with Detector(tmp_path / "padim.onnx", "ort") as detector:
        results = detector.batch([Image.open(path) for path in test])
    head = settings.head()
    grid = (head.height, head.width)
    distances = reference.whitened(
        pooled(embedding, good, grid), pooled(embedding, test, grid), head.channels, 0.1
    )
    expected = reference.score_maps(distances, SIZE)
    ours = np.stack([result.score_map for result in results])
    np.testing.assert_allclose(ours, expected, rtol=TOLERANCES[constants])
    assert done.model.pyramid().levels[0].layers == (head,)


@pytest.mark.parametrize("alpha", SHRINKAGE)
def test_the_least_and_the_most_shrinkage_give_a_detector(tmp_path, embedding, photos, good, alpha):
    fine = dataclasses.replace(FEW, preset="whitened-fine", dims=30, shrinkage=alpha)
    done = fit_detector(embedding, good, tmp_path / "padim.onnx", fine)
    assert done.model.detector_info.threshold > 0.005  # it is printed with three digits
    test = find_images(photos / "test")
    with Detector(tmp_path / "padim.onnx", "ort") as detector:
        ours = [result.score for result in detector.batch([Image.open(path) for path in test])]
    distances = reference.whitened(
        pooled(embedding, good, (8, 8)), pooled(embedding, test, (8, 8)), 30, alpha
    )
    expected = reference.score_maps(distances, SIZE).max(axis=(1, 2))
    np.testing.assert_allclose(ours, expected, rtol=2e-3)


def test_the_threshold_is_that_of_refitting_without_each_image(tmp_path, embedding, good):
    """Given the basis, which is that of all images."""
    settings = dataclasses.replace(FEW, shrinkage=0.03)
    done = fit_detector(embedding, good, tmp_path / "p.onnx", settings)
    head = settings.head()
    features = extract(with_pooled(embedding, head), good, WHOLE)
    own = principal(features, head.channels)(features, head)
    (values,) = own.of(slice(0, 16))
    whole = values.transpose(1, 2, 0).reshape(len(good), head.channels, 4, 4)
    scores = []
    for image in range(len(good)):
        rest = np.delete(whole, image, axis=0).reshape(len(good) - 1, head.channels, -1)
        inverse = np.linalg.inv(
            np.stack(
                [np.cov(rest[:, :, p], rowvar=False) + 0.03 / 0.97 * np.eye(12) for p in range(16)]
            )
        )
        left = whole[image : image + 1]
        maps = reference.distances(left, rest.mean(axis=0), inverse)
        scores.append(reference.score_maps(maps, SIZE).max())
    np.testing.assert_allclose(done.model.detector_info.good_scores, np.sort(scores), rtol=1e-9)


def test_the_pooled_covariance_is_the_identity_in_its_basis(embedding, good):
    head = FEW.head()
    features = extract(with_pooled(embedding, head), good, WHOLE)
    own = principal(features, head.channels)(features, head)
    mean, covariance = within_positions(own)
    np.testing.assert_allclose(mean, 0, atol=1e-5)
    values = np.linalg.eigvalsh(within_positions(features)[1])[::-1]
    expected = values[:12] / (values[:12] + 1e-3 * values.mean())
    np.testing.assert_allclose(covariance, np.diag(expected), atol=1e-5)


@pytest.mark.parametrize("count", [5, 8, 30])
def test_likelihoods_are_those_of_refitting_without_each_image(count):
    rng = np.random.default_rng(count)
    features = rng.standard_normal((3, count, 8)) @ rng.standard_normal((8, 8)) / 3 + 3
    alphas = (0.01, 0.1, 0.9)
    expected = np.empty((3, count, 3))
    for p, i in np.ndindex(3, count):
        rest = np.delete(features[p], i, axis=0)
        for k, alpha in enumerate(alphas):
            covariance = (1 - alpha) * np.cov(rest, rowvar=False) + alpha * np.eye(8)
            gaussian = multivariate_normal(rest.mean(axis=0), covariance)
            expected[p, i, k] = gaussian.logpdf(features[p, i])
    ours = leave_one_out_likelihoods(features, alphas)
    np.testing.assert_allclose(ours, expected, rtol=1e-9)


def test_the_fewer_the_images_and_the_more_alike_the_positions_the_more_is_shared():
    rng = np.random.default_rng(0)
    head = Settings(WHOLE, preset="whitened", dims=10).head()

    def chosen(count: int, spread: float) -> float:
        scales = np.exp(spread * rng.standard_normal((head.height * head.width, 10)))
        values = rng.standard_normal((count, *scales.shape)) * scales
        pyramid = Pyramid.coarse_to_fine([head])
        level = values.astype(np.float32)
        return likeliest(Features(pyramid, [level], count, groups=np.arange(count)))

    assert chosen(40, 0.0) == CANDIDATES[-1]
    assert chosen(400, 1.0) < chosen(20, 1.0) < chosen(8, 1.0) < CANDIDATES[-1]


def test_nearly_equal_images_do_not_choose_the_shrinkage(embedding, good, tmp_path):
    head = FEW.head()
    features = extract(with_pooled(embedding, head), good, WHOLE)
    own = principal(features, head.channels)(features, head)
    twice = dataclasses.replace(
        own,
        levels=[np.concatenate([own.levels[0], own.levels[0]])],
        count=2 * own.count,
        groups=np.concatenate([own.groups, own.groups]),
    )
    assert likeliest(twice) == likeliest(own)


def test_what_is_not_given_is_chosen_and_said(tmp_path, embedding, good):
    done = fit_detector(embedding, good, tmp_path / "padim.onnx", FEW)
    info = done.model.detector_info
    features = extract(with_pooled(embedding, FEW.head()), good, WHOLE)
    assert info.shrinkage == find_basis(features, FEW.head()).shrinkage
    assert info.eps == info.shrinkage / (1 - info.shrinkage)
    assert info.shrinkage in CANDIDATES
    assert info.preset == "whitened"
    again = read(tmp_path / "padim.onnx", "padim")
    assert again.detector_info == info
    assert again.backbone_info.source_layers == ("layer2", "layer3")
    assert again.backbone_info.selection == "12 principal directions of layer2, layer3"


@pytest.mark.parametrize("split", [12, 20])
def test_an_update_equals_one_fit_over_all_images_given_the_basis(tmp_path, embedding, good, split):
    settings = dataclasses.replace(FEW, constants="float32")
    first, rest = good[split:], good[:split]
    state = tmp_path / "moments.npz"
    before = fit_detector(embedding, first, tmp_path / "a.onnx", settings, save_moments=state)
    done = fit_detector(embedding, rest, tmp_path / "b.onnx", settings, update=state)
    eps = before.model.detector_info.eps
    assert done.model.detector_info.eps == eps
    head = settings.head()
    basis = find_basis(extract(with_pooled(embedding, head), first, WHOLE), head)
    every = extract(with_pooled(embedding, head), good, WHOLE)
    (values,) = basis(every, head).of(slice(0, 16))
    mean = done.model.constant("mean.0").reshape(12, 16).T
    np.testing.assert_allclose(mean, values.mean(axis=1), rtol=1e-4, atol=1e-4)
    for position in range(16):
        covariance = np.cov(values[position], rowvar=False) + eps * np.eye(12)
        expected = np.linalg.inv(np.linalg.cholesky(covariance))
        ours = done.model.constant("whitening.0.0")[position]
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_moments_of_another_preset_are_refused(tmp_path, embedding, good):
    state = tmp_path / "moments.npz"
    fit_detector(embedding, good, tmp_path / "a.onnx", FEW, save_moments=state)
    for other, word in (
        ({"dims": 13}, "dims"),
        ({"grid": (8, 8)}, "grid"),
        ({"shrinkage": 0.1}, "shrinkage"),
        ({"preset": "reference", "dims": None}, "preset"),
    ):
        with pytest.raises(UsageError, match=word):
            fit_detector(
                embedding,
                good,
                tmp_path / "b.onnx",
                dataclasses.replace(FEW, **other),
                update=state,
            )


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"preset": "bleached"}, "choose reference, whitened, whitened-fine"),
        ({"dims": 0}, "at least 1"),
        *(
            ({"shrinkage": value}, "from 1e-06 to 0.999999")
            for value in (0.0, 1e-300, 9e-7, 0.9999991, 0.9999999999999999, 1.0, float("nan"))
        ),
        ({"covariance": "ledoit-wolf"}, "leave --covariance out"),
        ({"preset": "reference", "dims": None, "grid": (4, 4)}, "--grid: goes with --preset"),
        ({"preset": "reference", "dims": None, "shrinkage": 0.1}, "--shrinkage: goes with"),
    ],
)
def test_wrong_settings_are_refused(wrong, words):
    with pytest.raises(UsageError, match=words):
        dataclasses.replace(FEW, **wrong)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"dims": 57}, "--dims 57: layer2, layer3 have 56 channels"),
        ({"grid": (3, 3)}, "--grid 3x3: layer2 has 8 x 8"),
        ({"grid": (4, 8)}, "--grid 4x8"),
    ],
)
def test_what_the_layers_cannot_make_is_refused(tmp_path, embedding, good, wrong, words):
    with pytest.raises(UsageError, match=words):
        fit_detector(embedding, good, tmp_path / "p.onnx", dataclasses.replace(FEW, **wrong))
    assert list(tmp_path.iterdir()) == []


def test_an_embedding_that_lacks_channels_is_refused(tmp_path, good):
    with pytest.raises(UsageError, match=r"6 of 24 channels of layer2.*export\n?.*--dims all"):
        fit_detector(small_backbone.embedding(), good, tmp_path / "p.onnx", FEW)


def test_what_a_basis_wants_is_said(embedding, good, tmp_path):
    """56 channels at 4 x 4: four times as many positions of photos want 15 of them."""
    done = fit_detector(embedding, good, tmp_path / "padim.onnx", FEW)
    assert done.wanted == 15
    assert done.model.detector_info.calibration.endswith(", given the basis")


def test_a_basis_of_too_few_is_said_in_every_update(embedding, good, tmp_path):
    """Of 12, where 15 are wanted: more photos do not mend it."""
    state, again = tmp_path / "moments.npz", tmp_path / "again.npz"
    few = fit_detector(embedding, good[:12], tmp_path / "a.onnx", FEW, save_moments=state)
    assert "given the basis of 12 images, which" in few.model.detector_info.calibration

    def updated(photos, state, **options) -> str:
        done = fit_detector(embedding, photos, tmp_path / "b.onnx", FEW, update=state, **options)
        assert done.wanted == 0
        return read(tmp_path / "b.onnx", "padim").detector_info.calibration

    assert "given the basis of 12 images, which" in updated(good[12:18], state, save_moments=again)
    said = updated(good[18:], again)
    assert "given the basis of 12 images, which are too few" in said
    assert "fit 15 or more at once" in said

    for file, words in ((state, "of at most 12 images, which"), (again, "do not say of how many")):
        with np.load(file) as arrays:  # as versions before wrote them
            older = {name: arrays[name] for name in arrays if name != "basis.images"}
            assert len(older) == len(arrays) - 1
        np.savez(file, **older)
        assert words in updated(good[18:], file)
    for wrong in (0.0, 12.5, 19.0, np.nan):
        np.savez(again, **older, **{"basis.images": np.array([wrong])})
        with pytest.raises(ModelError, match="damaged"):
            updated(good[18:], again)
    enough = tmp_path / "enough.npz"
    fit_detector(embedding, good[:16], tmp_path / "c.onnx", FEW, save_moments=enough)
    assert updated(good[16:], enough).endswith(", given the basis")
