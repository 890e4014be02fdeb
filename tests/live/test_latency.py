"""Quantiles out of a histogram, against NumPy's."""

from __future__ import annotations

import numpy as np
import pytest

from padim_edge.live.latency import LONGEST, RESOLUTION, SHORTEST, Latencies


@pytest.mark.parametrize("sigma", [0.1, 1.5])
def test_quantiles_are_at_most_a_hundredth_too_high(sigma):
    values = np.random.default_rng(1).lognormal(-4, sigma, 5000).clip(SHORTEST, LONGEST)
    latencies = Latencies()
    for value in values:
        latencies.add(float(value))
    for share in (0.001, 0.5, 0.9, 0.99, 0.999, 1):
        true = np.quantile(values, share, method="inverted_cdf")
        assert true * (1 - 1e-9) <= latencies.quantile(share) <= true * (1 + RESOLUTION + 1e-9)
    assert latencies.longest == values.max()


def test_nothing_and_nonsense():
    latencies = Latencies()
    assert latencies.quantile(0.5) is None
    latencies.add(-5)  # a clock that was set back
    assert latencies.quantile(0.5) == 0
    latencies.add(1e9)
    assert latencies.quantile(1) == pytest.approx(LONGEST, rel=2 * RESOLUTION)


def test_taking_begins_anew():
    latencies, taken = Latencies(), Latencies()
    for value in (0.01, 0.02):
        latencies.add(value)
    taken.take(latencies)
    assert (taken.count, taken.longest, latencies.count, latencies.longest) == (2, 0.02, 0, 0)
    assert latencies.quantile(0.5) is None
    assert taken.quantile(1) == 0.02
