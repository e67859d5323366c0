"""Which depths, widths and resolutions a search looks at."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxprune.errors import CaptureError
from fxprune.search.space import _counts, _evenly, _picked, _possible, _sides


@pytest.mark.parametrize(
    ("side", "stride", "expected"),
    [
        (224, 32, (224, 192, 160, 128, 96, 64, 32)),
        (96, 32, (96, 80, 64, 48, 32)),
        (32, 8, (32, 28, 24, 20, 16, 12, 8)),
        (8, 4, (8, 7, 6, 5, 4)),
        (32, 32, (32,)),
    ],
)
def test_sides_are_those_that_lose_nothing_at_the_edges(side: int, stride: int, expected: tuple[int, ...]) -> None:
    assert _sides(side, stride) == expected


@given(st.integers(1, 600), st.integers(1, 64))
def test_no_side_is_below_the_stride_or_above_the_images(side: int, stride: int) -> None:
    found = _sides(side, stride)
    assert found[0] == side
    assert list(found) == sorted(set(found), reverse=True)
    assert all(each >= min(stride, side) for each in found)


@given(st.integers(0, 60), st.integers(1, 6))
def test_layers_go_in_even_steps_up_to_the_most(most: int, points: int) -> None:
    found = _counts(most, points)
    assert len(found) == min(points, most)
    assert not found or (found[-1] == most and found[0] >= 1)


def test_widths_go_down_evenly() -> None:
    assert _evenly(1.0, 0.4, 3) == pytest.approx([0.8, 0.6, 0.4])


@pytest.mark.parametrize(
    ("least", "left", "note"),
    [(1, (6, 4, 2), []), (4, (6, 4), ["resolution ends early: 2 is too small"]),
     (8, (), ["resolution is left out: 2 is too small"])],
)  # fmt: skip
def test_a_dimension_goes_as_far_as_it_can_be_had(least: int, left: tuple[int, ...], note: list[str]) -> None:
    notes: list[str] = []

    def attempt(side: int) -> None:
        if side < least:
            raise CaptureError(f"{side} is too small")

    assert _possible((6, 4, 2), attempt, "resolution", notes) == left
    assert notes == note


@given(st.integers(8, 400), st.integers(1, 32), st.floats(0.1, 0.9), st.integers(1, 5))
def test_resolutions_are_picked_from_what_can_be_built(side: int, stride: int, share: float, points: int) -> None:
    sides = _sides(side, stride)
    found = _picked(sides, share * side, points)
    assert set(found) <= set(sides[1:])
    assert len(found) <= points
    assert (len(sides) > 1) == bool(found)
