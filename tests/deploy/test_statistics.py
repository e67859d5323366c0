"""The interval holds the truth as often as it says."""

from __future__ import annotations

import numpy as np
import pytest

from fxprune.deploy.statistics import paired_ratio


def test_equal_times_give_one() -> None:
    estimate = paired_ratio([2.0] * 30, [2.0] * 30)
    assert (estimate.ratio, estimate.low, estimate.high, estimate.half_width) == (1, 1, 1, 0)


def test_drift_and_bursts_cancel_out() -> None:
    generator = np.random.default_rng(0)
    drift = np.linspace(1, 5, 200) * (1 + 9 * (generator.random(200) < 0.1))
    estimate = paired_ratio(drift * 1.1 * generator.lognormal(0, 0.02, 200), drift * generator.lognormal(0, 0.02, 200))
    assert estimate.ratio == pytest.approx(1.1, rel=0.01)
    assert estimate.half_width < 0.01


def test_coverage() -> None:
    generator = np.random.default_rng(0)
    inside = 0
    for seed in range(100):
        estimate = paired_ratio(1.2 * generator.lognormal(0, 0.3, 40), generator.lognormal(0, 0.3, 40), seed=seed)
        inside += estimate.low <= 1.2 <= estimate.high
    assert 88 <= inside <= 100


def test_a_higher_level_is_wider() -> None:
    a, b = np.random.default_rng(0).lognormal(0, 0.3, (2, 40))
    assert paired_ratio(a, b, level=0.99).half_width > paired_ratio(a, b).half_width


def test_the_same_seed_gives_the_same_interval() -> None:
    a, b = np.random.default_rng(0).lognormal(0, 0.3, (2, 40))
    assert paired_ratio(a, b, seed=3) == paired_ratio(a, b, seed=3)
    assert paired_ratio(b, a).ratio == pytest.approx(1 / paired_ratio(a, b).ratio)
