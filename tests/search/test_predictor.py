"""Predictors of accuracy from depth, width and resolution."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fxprune.errors import InputError
from fxprune.search.predictor import Point, choose_degree, fit_full, fit_specialised, leave_one_out

AXES = [(d, 1.0, 1.0) for d in (0.4, 0.6, 0.8)] + [(1.0, w, 1.0) for w in (0.4, 0.6, 0.8)]
AXES += [(1.0, 1.0, r) for r in (0.5, 0.7, 0.85)] + [(1.0, 1.0, 1.0)]
INSIDE = list(itertools.product((0.5, 0.7, 0.9), (0.5, 0.7, 0.9), (0.5, 0.7, 0.9)))


def truth(shares: tuple[float, float, float], bends: tuple[float, float, float] = (0.5, 0.9, 0.7)) -> float:
    """Return an accuracy that is a product of three polynomials."""
    value = 0.93
    for share, bend in zip(shares, bends, strict=True):
        gone = 1 - share
        value *= 1 - 0.1 * bend * gone - bend * gone**2 + 0.3 * gone**3
    return value


def points(shares: list[tuple[float, float, float]], noise: float = 0.0, seed: int = 0) -> list[Point]:
    generator = np.random.default_rng(seed)
    return [Point(*each, truth(each) + float(generator.normal(0, noise)) * (noise > 0)) for each in shares]


def test_points_along_the_axes_determine_the_specialised_predictor_everywhere() -> None:
    found = fit_specialised(points(AXES), ridge=0.0)
    assert len(AXES) == 10
    for inside in INSIDE:
        assert found(*inside) == pytest.approx(truth(inside), abs=1e-9)
    assert found.factors[1][0] == pytest.approx(1.0)
    assert found.factors[2][0] == pytest.approx(1.0)


def test_the_full_predictor_does_not_know_what_lies_between_the_axes() -> None:
    full, special = fit_full(points(AXES)), fit_specialised(points(AXES))
    error = {name: np.mean([abs(f(*x) - truth(x)) for x in INSIDE]) for name, f in (("full", full), ("one", special))}
    assert error["full"] > 5 * error["one"]
    some = (0.4, 0.6, 0.8, 1.0)
    everywhere = list(itertools.product(some, some, some))
    dense = fit_full(points(everywhere), ridge=0.0)  # 64 points determine 64 coefficients
    assert max(abs(dense(*x) - truth(x)) for x in INSIDE) < 1e-9


def test_a_dimension_that_never_changes_is_constant() -> None:
    found = fit_specialised(points([each for each in AXES if each[2] == 1.0]))
    assert found.factors[2].tolist() == [1.0]
    assert found(0.6, 1.0, 0.5) == found(0.6, 1.0, 1.0)


def test_the_unpruned_network_alone_predicts_itself() -> None:
    assert fit_specialised([Point(1, 1, 1, 0.9)])(0.5, 0.5, 0.5) == pytest.approx(0.9)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.2, 0.99), min_size=10, max_size=10))
def test_any_accuracies_give_finite_predictions_that_are_fitted_no_worse_than_a_constant(values: list[float]) -> None:
    given_points = [Point(*shares, value) for shares, value in zip(AXES, values, strict=True)]
    found = fit_specialised(given_points)
    squares = sum((found(*p.shares) - p.accuracy) ** 2 for p in given_points)
    assert np.isfinite(squares)
    assert squares <= sum((value - np.mean(values)) ** 2 for value in values) + 1e-9


def test_leaving_one_out_prefers_a_degree_that_the_data_have() -> None:
    line = [Point(*x, 0.9 - 0.2 * (1 - x[0]) + e) for x, e in zip(AXES, np.tile([0.004, -0.004], 5), strict=True)]
    degree, errors = choose_degree(line)
    assert degree == 1
    assert errors[1] < errors[3]
    assert np.isnan(leave_one_out(line[:1], fit_specialised))


def test_no_points_and_no_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="at least one network"):
        fit_specialised([])
    with pytest.raises(InputError, match="finite"):
        fit_full([Point(1, 1, 1, float("nan"))])
