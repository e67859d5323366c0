"""The interval holds the truth as often as it says."""

from __future__ import annotations

import numpy as np
import pytest

from fxprune.deploy.statistics import Estimate, _bootstrap_medians, drift, paired_ratio, percentiles


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


@pytest.mark.parametrize("n", [2, 9, 20, 51])
def test_medians_are_drawn_as_a_bootstrap_draws_them(n: int) -> None:
    generator = np.random.default_rng(0)
    logs = np.sort(generator.standard_normal(n))
    drawn = np.concatenate([_bootstrap_medians(logs, np.random.default_rng(seed)) for seed in range(20)])
    plain = np.median(logs[generator.integers(0, n, (40_000, n))], axis=1)
    values = np.union1d(drawn, plain)
    shares = [np.searchsorted(np.sort(found), values, side="right") / found.size for found in (drawn, plain)]
    assert np.abs(np.subtract(*shares)).max() < 0.015
    assert drawn.mean() == pytest.approx(plain.mean(), abs=0.02)
    assert drawn.std() == pytest.approx(plain.std(), rel=0.03)


def test_percentiles_need_enough_times() -> None:
    assert list(percentiles([1.0])) == []
    assert list(percentiles([1.0] * 63)) == ["p50"]
    assert list(percentiles([1.0] * 64)) == ["p50", "p90"]
    assert percentiles(list(range(663)))["p99"] == pytest.approx(655.4, abs=1)


def test_a_trend_is_found() -> None:
    assert drift([2.0] * 30 + [1.0] * 30) == pytest.approx(0.5)
    assert drift([1.0]) == 1


def test_widening_goes_outwards_both_ways() -> None:
    for factor in (0.5, 2.0):
        wide = Estimate(1.0, 0.9, 1.1).widened(factor)
        assert (wide.ratio, wide.low, wide.high) == pytest.approx((1.0, 0.45, 2.2))
