"""The promise: of unseen good parts, as many raise an alarm as the false-alarm rate says.

On real photos, over random splits: half are fitted on, the others judged.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scipy.stats

from padim_edge.fit import gaussian
from padim_edge.fit.features import extract
from padim_edge.fit.settings import Settings
from padim_edge.fit.statistics import estimate, sample_statistics
from padim_edge.images.dataset import train_images
from padim_edge.images.preprocess import Preprocess
from padim_edge.model.file import read
from padim_edge.model.smoothing import Smoothing
from padim_edge.model.threshold import threshold_for

SIZE = (128, 128)
SPLITS = 10
RATES = (0.05, 0.1, 0.2)


@pytest.fixture(scope="module")
def observed(data, real_weights, tmp_path_factory):
    """Of each split and rate: alarms among unseen good photos, their number, photos of the fit."""
    pytest.importorskip("torch")
    from padim_edge.export.export import export_backbone

    path = tmp_path_factory.mktemp("false_alarms") / "embedding.onnx"
    export_backbone(path, "resnet18", weights=real_weights, image_size=SIZE)
    embedding = read(path, "embedding")
    settings = Settings(Preprocess.whole(SIZE))
    photos = train_images(data / "data" / "mvtec-256" / "bottle")
    every = extract(embedding, photos, settings.preprocess)
    smoothing = Smoothing.of(every.pyramid, SIZE, settings.sigma)

    def some(places):
        return dataclasses.replace(
            every,
            levels=[level[places] for level in every.levels],
            count=len(places),
            groups=np.unique(every.groups[places], return_inverse=True)[1],
        )

    rng = np.random.default_rng(0)
    found = {rate: [] for rate in RATES}
    for _ in range(SPLITS):
        order = rng.permutation(every.count)
        half = every.count // 2
        fitted, unseen = some(order[:half]), some(order[half:])
        known = sample_statistics(fitted, settings, smoothing, None, False, 0, lambda *_: None)
        squared = np.empty((every.pyramid.levels[-1].positions, unseen.count))
        for cells in fitted.chunks():
            _, moments = estimate(fitted, None, cells)
            blocks = gaussian.whitening(moments, settings.eps)
            centred = [x - m[:, None] for x, m in zip(unseen.of(cells), moments.means, strict=True)]
            place = every.pyramid.positions_in(len(every.pyramid.levels) - 1, cells)
            squared[place] = gaussian.squared_distances(blocks, centred)
        maps = map(smoothing, np.sqrt(every.pyramid.from_tree(squared)))
        scores = np.array([one.max() for one in maps])
        for rate in RATES:
            threshold = threshold_for(known.scores, rate)
            found[rate].append((int((scores > threshold).sum()), unseen.count, fitted.count))
    return found


@pytest.mark.parametrize("rate", RATES)
def test_the_observed_rate_is_the_promised_one(observed, rate):
    alarms, unseen, fitted = np.array(observed[rate]).T
    # What chance alone may do: the fit's photos are a draw, and so are the unseen ones.
    rank = np.ceil((1 - rate) * (fitted + 1) - 1e-9)
    low, high = scipy.stats.betabinom(unseen, fitted + 1 - rank, rank).ppf([[0.025], [0.975]])
    assert ((low <= alarms) & (alarms <= high)).mean() >= 0.8
    assert 0.5 * rate <= alarms.sum() / unseen.sum() <= 1.4 * rate
