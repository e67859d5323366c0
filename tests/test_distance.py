"""What every comparison of outputs rests on, as properties."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fxprune.distance import differing, distance, is_finite, relative, top

NAN, INF = float("nan"), float("inf")
ANY_TYPE = st.sampled_from(
    [np.float16, np.float32, np.float64, np.complex64, np.complex128, np.int32, np.int64, np.uint8, np.bool_]
)
SHAPES = arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
FLOATS = st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from([NAN, INF, -INF, 0.0, -0.0, 1e308, -1e308])


@st.composite
def pairs(draw: Any, dtypes: Any = ANY_TYPE, finite: bool = False) -> tuple[Any, Any]:
    """Two arrays of one shape and type; some of their entries are equal."""
    shape, dtype = draw(SHAPES), draw(dtypes)
    kinds = {"allow_nan": False, "allow_infinity": False} if finite else {}
    values = FLOATS if dtype is np.float64 and not finite else arrays.from_dtype(np.dtype(dtype), **kinds)
    one = draw(arrays.arrays(dtype, shape, elements=values))
    other = draw(arrays.arrays(dtype, shape, elements=values))
    return one, np.where(draw(arrays.arrays(np.bool_, shape)), one, other)


FLOATING = st.sampled_from([np.float16, np.float32, np.float64])


def of_two(a: float, b: float) -> float:
    """The definition for two real numbers, written down once more."""
    if math.isnan(a) or math.isnan(b):
        return INF
    if math.isinf(a) or math.isinf(b):
        return 0.0 if a == b else INF
    return abs(a - b)


@given(pairs())
def test_it_does_not_matter_which_is_which(pair: tuple[Any, Any]) -> None:
    a, b = pair
    assert distance(a, b) == distance(b, a)
    assert distance(a, b, same_nan=True) == distance(b, a, same_nan=True)
    assert not math.isnan(distance(a, b))
    assert distance(a, b) >= distance(a, b, same_nan=True) >= 0.0


@given(pairs(FLOATING))
def test_it_is_the_largest_of_all_entries(pair: tuple[Any, Any]) -> None:
    a, b = pair
    each = [of_two(float(x), float(y)) for x, y in zip(a.flat, b.flat, strict=True)]
    assert distance(a, b) == max(each, default=0.0)


@given(pairs())
def test_only_what_is_equal_is_at_no_distance(pair: tuple[Any, Any]) -> None:
    a, b = pair
    assert (distance(a, b) == 0.0) == bool((a == b).all()) == (differing(a, b) == 0)
    assert distance(a, a, same_nan=True) == 0.0
    assert (distance(a, a) == 0.0) == (not np.isnan(a).any())


@given(pairs(FLOATING, finite=True), st.data())
@example((np.zeros(1), np.zeros(1)), None)
def test_a_value_that_is_none_is_infinitely_far_from_every_number(pair: tuple[Any, Any], data: Any) -> None:
    a, _ = pair
    assume(a.size)
    for odd in (NAN, INF, -INF):
        other = a.copy()
        other.flat[data.draw(st.integers(0, a.size - 1)) if data else 0] = odd
        assert distance(a, other) == distance(a, other, same_nan=True) == INF
        assert distance(other, other) == (INF if math.isnan(odd) else 0.0)
        assert not is_finite(other)
        assert top(other) <= top(a)
    assert is_finite(a)


@pytest.mark.parametrize("same_nan", [False, True])
@pytest.mark.parametrize(("one", "other"), [(INF, -INF), (NAN, INF), (NAN, 0.0), (INF, 1e308), (1e308, -1e308)])
def test_nothing_but_itself_is_near_an_infinity(one: float, other: float, same_nan: bool) -> None:
    assert distance(np.array([1.0, one]), np.array([1.0, other]), same_nan=same_nan) == INF
    tensors = (torch.tensor([1.0, value], dtype=torch.float64) for value in (one, other))
    assert distance(*tensors, same_nan=same_nan) == INF


@given(pairs(st.sampled_from([np.float32, np.float64, np.complex64, np.complex128, np.int64, np.bool_])))
def test_tensors_and_arrays_are_the_same(pair: tuple[Any, Any]) -> None:
    a, b = pair
    one, other = torch.from_numpy(a.copy()), torch.from_numpy(b.copy())
    assert distance(one, other) == distance(a, b) == distance(one, b)
    assert differing(one, other) == differing(a, b)
    assert is_finite(one) == is_finite(a)
    if a.dtype.kind in "fc":
        assert top(one) == top(a)
        assert distance(one.requires_grad_(), other) == distance(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_another_precision_is_no_difference_and_a_rounded_value_is(dtype: torch.dtype) -> None:
    value = torch.tensor([1.0, 1.0 + 1e-12], dtype=torch.float64)
    assert distance(value.to(dtype), value.to(dtype).double()) == 0.0
    assert distance(value.to(dtype), value) == (0.0 if dtype == torch.float64 else pytest.approx(1e-12, rel=1e-3))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.ones(2), torch.ones(2, dtype=torch.int64)),
        (torch.ones(2), torch.ones(2, dtype=torch.complex64)),
        (torch.ones(2, dtype=torch.bool), torch.ones(2, dtype=torch.int64)),
        (torch.ones(2), torch.ones(1)),
        (torch.ones(2), torch.ones(1, 2)),
        (torch.ones(0), torch.ones(0, 1)),
        (torch.ones(()), torch.ones(1)),
        (torch.tensor([1, 2]), torch.tensor([1, 3])),
        (torch.tensor([True]), torch.tensor([False])),
    ],
)
def test_another_kind_shape_or_integer_is_infinitely_far(one: torch.Tensor, other: torch.Tensor) -> None:
    assert distance(one, other) == distance(other, one) == INF


def test_integers_of_another_width_are_compared_as_numbers() -> None:
    assert distance(torch.tensor([1, 2]), torch.tensor([1, 2], dtype=torch.int32)) == 0.0
    assert distance(torch.tensor([2**53]), torch.tensor([2**53 + 1])) == INF  # one float64 for both


def test_complex_numbers_are_as_far_apart_as_the_magnitude_of_their_difference() -> None:
    one = torch.tensor([1 + 1j, 2 - 1j])
    assert distance(one, one + torch.tensor([0, 3 + 4j])) == 5.0
    assert distance(one.conj(), one) == 2.0  # a view that is only marked as conjugated
    assert top(torch.tensor([3 + 4j, complex(INF, 0)])) == 5.0


@given(pairs(FLOATING, finite=True))
def test_the_largest_value_is_the_distance_from_zero(pair: tuple[Any, Any]) -> None:
    assert top(pair[0]) == distance(pair[0], np.zeros_like(pair[0]))


@given(st.floats(0, INF), st.floats(0, 1e300))
def test_a_part_of_a_scale(gap: float, scale: float) -> None:
    part = relative(gap, scale)
    assert part >= 0.0
    assert (part == INF) or part == pytest.approx(gap / scale if gap else 0.0)
    if gap and not scale:
        assert part == INF


@pytest.mark.parametrize("scale", [NAN, INF, -1.0])
def test_what_is_no_scale_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="a scale is a finite number"):
        relative(0.0, scale)


def test_entries_without_counterparts_are_not_counted() -> None:
    with pytest.raises(ValueError, match="no counterparts"):
        differing(np.ones(3), np.ones(1))
