"""Fisher's partition finds the runs of least deviation, as trying all of them does."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fxprune.capture import trace
from fxprune.depth import find_layers
from fxprune.depth.segments import partition, segments_of
from fxprune.errors import InputError
from tests.depth.networks import Tail, conv, ready


def loss(values: list[float], cuts: tuple[int, ...] | list[int]) -> float:
    parts = np.split(np.asarray(values), cuts)
    return sum(float(((part - part.mean()) ** 2).sum()) for part in parts)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=3, max_size=7), st.integers(1, 3))
def test_no_other_cuts_are_better(values: list[float], segments: int) -> None:
    cuts = partition(np.asarray(values), segments)
    assert len(cuts) == segments - 1
    best = min(loss(values, each) for each in itertools.combinations(range(1, len(values)), segments - 1))
    assert loss(values, cuts) == pytest.approx(best, abs=1e-9)


def test_as_many_segments_as_there_are_levels() -> None:
    assert partition(np.array([1.0, 1.1, 1.0, 5.0, 5.1, 9.0, 9.1, 9.05])) == [3, 5]
    assert partition(np.ones(5)) == []
    assert partition(np.array([1.0])) == []


def test_drops_against_the_loss_before_need_a_bound() -> None:
    """The loss of as many runs as numbers is 0, whatever they are: a drop of 100 %."""
    values = np.repeat([3.0, 4.0, 6.0], 5) + 0.2 * np.random.default_rng(0).normal(size=15)
    with pytest.raises(InputError, match="by 100 %"):
        partition(values, against="previous")
    assert partition(values, most=15, against="previous") == list(range(1, 15))
    assert partition(values) == [5, 10]
    assert partition(values, most=3, against="previous") == [5, 10]
    assert partition(values, most=2) == partition(values, 2)


def test_segments_hold_all_layers_in_order() -> None:
    traced = trace(ready(nn.Sequential(conv(3, 4), *(conv(4, 4) for _ in range(4)), Tail(4))), torch.randn(2, 3, 8, 8))
    layers = find_layers(traced)
    segments = segments_of(traced, layers, [torch.randn(6, 3, 8, 8)])
    assert [layer for segment in segments for layer in segment] == list(layers)
    with pytest.raises(InputError, match="there are no batches"):
        segments_of(traced, layers, None)
