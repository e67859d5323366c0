"""The best depth, width and resolution under a budget."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fxprune.errors import BudgetError, InputError
from fxprune.search.optimum import Choice, buildable, maximise, sampled_bounds, stability
from fxprune.search.power_law import PowerLaw, Sample, fit_power_law
from fxprune.search.predictor import Point, Specialised, fit_specialised

BOUNDS = ((0.3, 1.0), (0.3, 1.0), (0.3, 1.0))
POINTS = [
    Point(1, 1, 1, 0.95),
    *(Point(d, 1, 1, 0.95 - 0.10 * (1 - d) ** 2) for d in (0.3, 0.5, 0.7)),
    *(Point(1, w, 1, 0.95 - 0.30 * (1 - w) ** 2) for w in (0.3, 0.5, 0.7)),
    *(Point(1, 1, r, 0.95 - 0.60 * (1 - r) ** 2) for r in (0.3, 0.5, 0.7)),
]


def log_gradient(predictor: Specialised, shares: tuple[float, float, float]) -> np.ndarray:
    """Return the derivative of the prediction by the logarithm of each share, numerically."""
    steps = []
    for d in range(3):
        up, down = list(shares), list(shares)
        up[d], down[d] = up[d] * 1.0001, down[d] / 1.0001
        steps.append((predictor(*up) - predictor(*down)) / (2 * np.log(1.0001)))
    return np.array(steps)


@pytest.mark.parametrize("budget", [0.5, 0.25])
def test_at_the_optimum_every_dimension_is_worth_the_same_per_cost(budget: float) -> None:
    predictor, law = fit_specialised(POINTS), PowerLaw()
    found = maximise(predictor, law, budget, BOUNDS)
    assert found.cost == pytest.approx(budget, rel=1e-6)
    worth = log_gradient(predictor, found.shares) / np.array(law.exponents)
    inside = [d for d in range(3) if BOUNDS[d][0] * 1.001 < found.shares[d] < 0.999]
    assert len(inside) >= 2
    assert np.ptp(worth[inside]) < 0.02 * np.abs(worth[inside]).max()


def test_no_network_of_a_fine_grid_is_better() -> None:
    predictor, law = fit_specialised(POINTS), PowerLaw((1.1, 1.7, 2.0))
    found = maximise(predictor, law, 0.4, BOUNDS)
    axis = np.linspace(0.3, 1.0, 60)
    grid = np.stack([a.reshape(-1) for a in np.meshgrid(axis, axis, axis)], axis=1)
    assert found.accuracy >= predictor.at(grid[law.at(grid) <= 0.4]).max() - 1e-9
    assert found.cost <= 0.4 * (1 + 1e-9)


def test_an_optimum_inside_the_budget_is_found() -> None:
    """Accuracy is best at 60 % of the resolution, and at 70 % of the depth: the budget allows more of both."""
    bump = [np.array([1.0, 2 * peak, -1.0]) for peak in (0.3, 0.4)]  # by what is removed
    predictor = Specialised((0.5 * bump[0], np.array([1.0, -0.2]), bump[1]))
    found = maximise(predictor, PowerLaw(), 0.5, BOUNDS)
    assert found.shares == pytest.approx((0.7, 1.0, 0.6), abs=1e-3)
    assert found.cost < 0.3


@settings(max_examples=15, deadline=None)
@given(st.tuples(*[st.floats(0.3, 2.5)] * 3), st.floats(0.15, 1.0))
def test_the_budget_is_never_exceeded(exponents: tuple[float, float, float], budget: float) -> None:
    law = PowerLaw(exponents)
    bounds = ((0.3, 1.0), (0.3, 1.0), (0.3, 1.0))
    if law(0.3, 0.3, 0.3) > budget:
        with pytest.raises(BudgetError, match="at least"):
            maximise(fit_specialised(POINTS), law, budget, bounds)
    else:
        found = maximise(fit_specialised(POINTS), law, budget, bounds)
        assert found.cost <= budget * (1 + 1e-9)
        assert all(low - 1e-12 <= s <= high + 1e-12 for s, (low, high) in zip(found.shares, bounds, strict=True))


def test_exponents_are_found_again_and_those_not_seen_are_the_theorys() -> None:
    law = PowerLaw((0.9, 1.6, 2.1))
    shares = [(d, 1.0, 1.0) for d in (0.5, 0.8)] + [(1.0, w, 1.0) for w in (0.5, 0.8)]
    found = fit_power_law(Sample(*each, law(*each)) for each in shares)
    assert found.exponents == pytest.approx((0.9, 1.6, 2.0))
    assert found.error < 1e-12
    assert fit_power_law([Sample(1, 1, 1, 1)]) == PowerLaw()
    rough = fit_power_law([Sample(0.5, 1, 1, 0.5), Sample(0.25, 1, 1, 0.3)])
    assert 0.01 < rough.error < 0.5


def test_a_dimension_that_saves_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="does not fall with the depth"):
        fit_power_law([Sample(0.5, 1, 1, 1.05), Sample(1, 0.5, 1, 0.3)])
    with pytest.raises(InputError, match="above 0"):
        fit_power_law([Sample(0.5, 1, 1, 0.0)])


def test_depth_and_resolution_exist_and_the_width_takes_the_rest() -> None:
    law = PowerLaw()
    found = buildable(fit_specialised(POINTS), law, 0.5, (0.5, 0.75, 1.0), (0.5, 0.75, 1.0), (0.3, 1.0))
    assert {choice.depth for choice in found} <= {0.5, 0.75, 1.0}
    assert all(choice.cost <= 0.5 * (1 + 1e-9) and choice.width >= 0.3 for choice in found)
    assert all(choice.cost == pytest.approx(0.5) or choice.width == 1.0 for choice in found)
    assert [c.accuracy for c in found] == sorted((c.accuracy for c in found), reverse=True)
    for one in found:  # none is smaller than another in every dimension
        assert not any(all(a <= b for a, b in zip(one.shares, o.shares, strict=True)) for o in found if o is not one)
    with pytest.raises(BudgetError, match="cannot be reached"):
        buildable(fit_specialised(POINTS), law, 0.01, (0.5, 1.0), (0.5, 1.0), (0.3, 1.0))


def test_what_the_law_may_be_wrong_by_drops_no_network() -> None:
    predictor, bounds = fit_specialised(POINTS), ((0.5, 1.0), (0.5, 1.0), (0.5, 1.0))
    exact, rough = PowerLaw(), PowerLaw(error=0.3)
    least = exact(0.5, 0.5, 0.5)
    budget = 0.8 * least
    with pytest.raises(BudgetError, match=r"0\.0312 of it, as is estimated.*at least 0\.032,"):
        maximise(predictor, exact, budget, bounds)
    assert maximise(predictor, rough, budget, bounds).shares == pytest.approx((0.5, 0.5, 0.5))
    (only,) = buildable(predictor, rough, budget, (0.5, 1.0), (0.5, 1.0), (0.5, 1.0))
    assert only.shares == (0.5, 0.5, 0.5)
    few = buildable(predictor, exact, 2 * least, (0.5, 1.0), (0.5, 1.0), (0.5, 1.0))
    more = buildable(predictor, exact, 2 * least, (0.5, 1.0), (0.5, 1.0), (0.5, 1.0), margin=1.0)
    assert {choice.shares for choice in few} < {choice.shares for choice in more}
    with pytest.raises(BudgetError, match="up to 30% wrong"):
        buildable(predictor, rough, 0.5 * least, (0.5, 1.0), (0.5, 1.0), (0.5, 1.0))


def test_noise_moves_the_optimum_and_none_does_not() -> None:
    def best(points: object) -> Choice:
        return maximise(fit_specialised(points), PowerLaw(), 0.5, sampled_bounds(points))  # type: ignore[arg-type]

    still = stability(POINTS, best, 0.0, draws=3)
    shaken = stability(POINTS, best, 0.005, draws=12)
    assert max(still.std) < 1e-9
    assert max(shaken.std) > 1e-3
    assert stability(POINTS, best, 0.005, draws=12) == shaken  # the seed decides
