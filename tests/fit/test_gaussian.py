"""The mathematics against an independent float64 reference and brute force."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import reference
import scipy.ndimage
import scipy.stats

from padim_edge.errors import PadimEdgeError, UsageError
from padim_edge.fit import gaussian, held_out
from padim_edge.fit.moments import merge, moments_of, without
from padim_edge.model.pyramid import Layer, Pyramid
from padim_edge.model.smoothing import smoothing_matrix
from padim_edge.model.threshold import (
    images_needed,
    percentile,
    pixel_score,
    rate_interval,
    share_interval,
    threshold_for,
)

EPS = 0.01

SHAPES = {
    "three levels": [(5, 8, 8), (4, 4, 4), (6, 2, 2)],
    "one level": [(7, 4, 4)],
    "unequal ratios": [(2, 12, 24), (3, 3, 6), (1, 1, 2)],
    "equal resolutions merge": [(3, 4, 4), (2, 4, 4), (5, 2, 2)],
    "one channel": [(1, 2, 2)],
    "four levels": [(1, 16, 16), (2, 8, 8), (3, 4, 4), (4, 2, 2)],
}


def random_maps(shapes, count, seed=0):
    """Correlated maps per layer: neighbouring layers share causes, as in a network."""
    rng = np.random.default_rng(seed)
    cause = rng.standard_normal((count, 3))
    maps = []
    for d, h, w in shapes:
        mix = rng.standard_normal((3, d, h, w))
        noise = rng.standard_normal((count, d, h, w))
        maps.append(np.einsum("nc,cdhw->ndhw", cause, mix) + noise + rng.standard_normal((d, h, w)))
    return [m.astype(np.float32) for m in maps]


def tree_features(shapes, maps):
    layers = [Layer(f"layer{i}", *shape) for i, shape in enumerate(shapes)]
    pyramid = Pyramid.coarse_to_fine(layers)
    by_name = dict(zip([layer.name for layer in layers], maps, strict=True))
    features = []
    for index, level in enumerate(pyramid.levels):
        own = np.concatenate([by_name[layer.name] for layer in level.layers], axis=1)
        tree = pyramid.to_tree(index, own)
        count = len(own)
        per_cell = pyramid.positions_per_cell(index)
        split = tree.reshape(count, pyramid.cells * per_cell, level.channels)
        features.append(split.transpose(1, 0, 2).astype(np.float64))
    return pyramid, features


def centred(features, stats):
    return [x - mean[:, None] for x, mean in zip(features, stats.means, strict=True)]


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_distances_equal_the_dense_reference(shapes):
    maps = random_maps(shapes, 20)
    pyramid, features = tree_features(shapes, maps)
    stats = moments_of(features)
    squared = gaussian.squared_distances(gaussian.whitening(stats, EPS), centred(features, stats))
    ours = np.sqrt(pyramid.from_tree(squared))

    embedding = reference.embed(maps)
    theirs = reference.distances(embedding, *reference.fit(embedding, EPS))
    np.testing.assert_allclose(ours, theirs, rtol=1e-10)


def test_rows_are_lower_triangular_and_far_fewer_than_dense():
    shapes = SHAPES["three levels"]
    _, features = tree_features(shapes, random_maps(shapes, 30))
    blocks = gaussian.whitening(moments_of(features), EPS)
    for level in range(3):
        own = blocks[level, level]
        assert np.array_equal(own, np.tril(own))
    elements = sum(block.size for block in blocks.values())
    dense = 64 * 15 * 15
    assert elements == 4 * 6 * 6 + 16 * 4 * 10 + 64 * 5 * 15 < dense


@pytest.mark.parametrize("count", [3, 4, 12, 40])
def test_leave_one_out_equals_refitting_without_the_image(count):
    shapes = [(3, 4, 4), (2, 2, 2)]
    maps = random_maps(shapes, count, seed=count)
    pyramid, features = tree_features(shapes, maps)
    stats = moments_of(features)
    blocks = gaussian.whitening(stats, gaussian.leave_out_eps(EPS, count))
    q = gaussian.squared_distances(blocks, centred(features, stats))
    ours = pyramid.from_tree(gaussian.leave_one_out(q, count))

    embedding = reference.embed(maps)
    for image in range(count):
        rest = np.delete(embedding, image, axis=0)
        alone = reference.distances(embedding[image : image + 1], *reference.fit(rest, EPS))
        np.testing.assert_allclose(ours[image], alone[0] ** 2, rtol=1e-9)


GROUPS = [[0, 1], [3], [2, 4, 5], [6, 7, 8, 9], [10], [11]]


@pytest.mark.parametrize("large", [1, 3, 99], ids=["refitted", "both", "by products"])
@pytest.mark.parametrize("spread", [1.0, 1e-3, 0.0], ids=["unlike", "alike", "equal"])
def test_leaving_a_group_out_equals_refitting_without_it(monkeypatch, spread, large):
    """Exactly, by both ways, and where members of a group are all but the same."""
    monkeypatch.setattr(held_out, "LARGE", large)
    shapes = [(3, 4, 4), (2, 2, 2)]
    maps = random_maps(shapes, 12, seed=5)
    groups = np.empty(12, np.intp)
    for number, members in enumerate(GROUPS):
        groups[members] = number
        for values in maps:
            values[members] = values[members[0]] + spread * (values[members] - values[members[0]])
    pyramid, features = tree_features(shapes, maps)
    left_out = held_out.HeldOut(pyramid, groups, 12, EPS)
    for cell in range(pyramid.cells):
        cells = slice(cell, cell + 1)
        own = [x[pyramid.positions_in(index, cells)] for index, x in enumerate(features)]
        left_out(cells, own, moments_of(own))
    ours = pyramid.from_tree(left_out._squared)

    embedding = reference.embed(maps)
    for members in GROUPS:
        rest = np.delete(embedding, members, axis=0)
        alone = reference.distances(embedding[members], *reference.fit(rest, EPS))
        np.testing.assert_allclose(ours[members], alone**2, rtol=1e-9)


def test_a_group_of_one_is_leave_one_out():
    q = np.random.default_rng(3).random((7, 1, 1))
    np.testing.assert_allclose(
        gaussian.leave_group_out(q, 9), gaussian.leave_one_out(q[..., 0], 9), rtol=1e-13
    )


@pytest.mark.parametrize("sizes", [(10, 5), (1, 14), (7, 1), (2, 3, 4, 1)])
def test_merged_moments_equal_one_pass(sizes):
    shapes = SHAPES["three levels"]
    maps = random_maps(shapes, sum(sizes))
    _, features = tree_features(shapes, maps)
    whole = moments_of(features)
    cuts = np.cumsum(sizes)[:-1]
    parts = zip(*[np.split(x, cuts, axis=1) for x in features], strict=True)
    first, *others = [moments_of(list(part)) for part in parts]
    merged = first
    for other in others:
        merged = merge(merged, other)

    assert_same(merged, whole)
    assert_same(without(merged, first), functools.reduce(merge, others))


def assert_same(one, other):
    assert one.count == other.count
    for ours, theirs in zip(one.means, other.means, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)
    for key, scatter in other.scatters.items():
        scale = np.abs(scatter).max() + 1.0
        np.testing.assert_allclose(one.scatters[key], scatter, rtol=0, atol=1e-11 * scale)


def test_merging_survives_a_large_offset():
    """The naive sum of squares loses every digit here; centred moments do not."""
    features = [1e8 + np.random.default_rng(1).standard_normal((4, 50, 3))]
    whole = moments_of(features)
    halves = [moments_of([x]) for x in np.split(features[0], 2, axis=1)]
    merged = merge(*halves)
    np.testing.assert_allclose(merged.scatters[0, 0], whole.scatters[0, 0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "positions", "sigma"), [(224, 56, 4), (224, 28, 4), (32, 8, 4), (48, 12, 0), (8, 2, 5)]
)
def test_smoothing_matrix_equals_interpolation_and_gaussian_filter(size, positions, sigma):
    pytest.importorskip("torch")
    maps = np.random.default_rng(2).random((2, positions, positions))
    A = smoothing_matrix(size, positions, sigma)
    ours = A @ maps @ A.T
    theirs = reference.score_maps(maps, (size, size), sigma)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("size", "sigma"), [(64, 4.0), (7, 4.0), (30, 1.5), (1, 2.0)])
def test_a_filter_whose_border_is_not_repeated(size, sigma):
    maps = np.random.default_rng(3).random((size, size))
    A = smoothing_matrix(size, size, sigma, "mirror")
    theirs = scipy.ndimage.gaussian_filter(maps, sigma, mode="mirror")
    np.testing.assert_allclose(A @ maps @ A.T, theirs, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("count", "alpha", "rank"), [(99, 0.01, 99), (100, 0.01, 100), (199, 0.01, 198), (19, 0.05, 19),
                                 (9, 0.5, 5), (209, 0.01, 208), (4, 0.2, 4)]
)  # fmt: skip
def test_threshold_is_the_stated_order_statistic(count, alpha, rank):
    scores = np.random.default_rng(count).permutation(np.arange(1, count + 1))
    assert threshold_for(scores, alpha) == rank


@pytest.mark.parametrize(("count", "alpha"), [(99, 0.01), (209, 0.01), (28, 0.05), (3, 0.25),
                                              (5000, 0.002), (40000, 0.3)])  # fmt: skip
def test_the_true_rate_lies_where_the_beta_distribution_says(count, alpha):
    rank = int(threshold_for(np.arange(1, count + 1), alpha))
    expected = scipy.stats.beta(count + 1 - rank, rank).ppf([0.025, 0.975])
    np.testing.assert_allclose(rate_interval(count, alpha), expected, rtol=1e-7)


@pytest.mark.parametrize(("hits", "count"), [(0, 1), (1, 1), (0, 63), (63, 63), (58, 63), (7, 900)])
def test_a_share_lies_where_clopper_and_pearson_say(hits, count):
    expected = scipy.stats.binomtest(hits, count).proportion_ci(0.95, "exact")
    np.testing.assert_allclose(share_interval(hits, count), expected, rtol=1e-7, atol=1e-12)


def test_no_more_than_a_speck_exceeds_the_pixel_score():
    score_map = np.random.default_rng(0).permutation(56 * 56.0 * np.arange(1, 50177) / 50176)
    score_map = score_map.reshape(224, 224).astype(np.float32)
    assert (score_map > pixel_score(score_map)).sum() == int(0.005 * 224 * 224)
    assert pixel_score(np.full((3, 4), 2.5)) == 2.5


def test_too_few_images_for_the_rate_says_how_many_are_needed():
    with pytest.raises(PadimEdgeError, match=r"at least 99 images, or a rate of 0\.012 or more"):
        threshold_for(np.arange(85.0), 0.01)
    for alpha in (0.01, 0.02, 0.05, 0.1, 0.001, 0.3, 0.07):
        needed = images_needed(alpha)
        threshold_for(np.arange(needed), alpha)
        with pytest.raises(PadimEdgeError):
            threshold_for(np.arange(needed - 1), alpha)


def test_percentile_counts_good_images_at_or_below():
    assert percentile([1, 2, 3, 4], 2.5) == 50
    assert percentile([1, 2, 3, 4], 4) == 100
    assert percentile([1, 2, 3, 4], 0) == 0


def test_constant_features_without_regulariser_are_refused():
    stats = moments_of([np.ones((4, 10, 3))])
    with pytest.raises(PadimEdgeError, match="not positive definite"):
        gaussian.whitening(stats, 0.0)


def test_nan_features_are_refused():
    features = np.random.default_rng(0).standard_normal((4, 10, 3))
    features[2, 3, 1] = np.nan
    with pytest.raises(PadimEdgeError, match="not positive definite"):
        gaussian.whitening(moments_of([features]), EPS)


def test_tree_order_repeats_by_reshape():
    """In tree order the children of a coarse position are consecutive."""
    layers = [Layer("fine", 1, 8, 12), Layer("mid", 1, 4, 6), Layer("coarse", 1, 2, 3)]
    pyramid = Pyramid.coarse_to_fine(layers)
    coarse = np.arange(6.0, dtype=np.float32).reshape(1, 1, 2, 3)
    fine_tree = pyramid.to_tree(2, np.kron(coarse, np.ones((4, 4), np.float32))).reshape(-1)
    assert np.array_equal(fine_tree, np.arange(6).repeat(16))
    mid = np.arange(24.0, dtype=np.float32).reshape(1, 1, 4, 6)
    mid_tree = pyramid.to_tree(1, mid).reshape(-1)
    assert np.array_equal(
        pyramid.to_tree(2, np.kron(mid, np.ones((2, 2), np.float32))).reshape(-1),
        mid_tree.repeat(4),
    )


def test_from_tree_undoes_to_tree():
    layers = [Layer("a", 1, 12, 24), Layer("b", 1, 3, 6), Layer("c", 1, 1, 2)]
    pyramid = Pyramid.coarse_to_fine(layers)
    maps = np.random.default_rng(0).random((5, 1, 12, 24)).astype(np.float32)
    tree = pyramid.to_tree(2, maps).reshape(5, -1).T
    assert np.array_equal(pyramid.from_tree(tree), maps[:, 0])


@pytest.mark.parametrize(("fine", "coarse"), [((7, 7), (3, 3)), ((8, 8), (4, 2)), ((9, 8), (4, 4))])
def test_resolutions_that_are_no_multiples_are_refused(fine, coarse):
    with pytest.raises(UsageError, match="integer multiple"):
        Pyramid.coarse_to_fine([Layer("a", 1, *fine), Layer("b", 1, *coarse)])


def test_layers_without_chosen_channels_are_left_out():
    pyramid = Pyramid.coarse_to_fine([Layer("a", 0, 8, 8), Layer("b", 2, 4, 4)])
    assert [level.name for level in pyramid.levels] == ["b"]
