"""Learning rates as factors over a training."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from fxprune.errors import InputError
from fxprune.training.schedules import ALLR, SHAPES, SLR, default_warmup, factor, shape_named
from tests.training.conftest import Pruned


def _rates(schedule: object, steps: int, warmup: float = 0.0) -> list[float]:
    shape = shape_named(schedule)  # type: ignore[arg-type]
    return [factor(shape, step, steps, warmup) for step in range(steps)]


def test_every_schedule_starts_at_the_top_and_never_rises() -> None:
    for name in SHAPES:
        rates = _rates(name, 40)
        assert rates[0] == 1
        assert all(later <= earlier for earlier, later in itertools.pairwise(rates))


def test_cosine_and_step() -> None:
    rates = _rates("cosine", 100)
    assert rates[50] == pytest.approx(0.5)
    assert rates[25] == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert 0 < rates[-1] < 0.001
    rates = _rates("step", 100)
    assert (rates[49], rates[50], rates[74], rates[75]) == pytest.approx((1, 0.1, 0.1, 0.01))


def test_warmup_rises_to_where_the_schedule_begins() -> None:
    rates = _rates("linear", 20, warmup=0.2)
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1, 1])
    assert rates[-1] == pytest.approx(1 / 16)
    assert _rates("constant", 3, warmup=1.0)[-1] == 1


def test_slr_is_the_original_schedule_behind_a_warmup() -> None:
    assert _rates("slr", 40) == _rates("step", 40)
    assert _rates(SLR("cosine"), 40) == _rates("cosine", 40)
    assert default_warmup("slr") == default_warmup(SLR()) == 0.1
    assert default_warmup("cosine") == 0


def test_allr_reaches_a_peak_that_grows_with_what_went() -> None:
    assert ALLR(0.5, 0.25, 100, 10).peak == 1
    assert ALLR(0.2, 0.64, 100, 10).peak == pytest.approx(0.25)
    assert ALLR(0.01, 0.64, 100, 10).peak == pytest.approx(0.1)  # not below the share of the epochs
    assert _rates(ALLR(0.2, 0.64, 100, 10), 10, warmup=0.1)[0] == pytest.approx(0.25)
    assert default_warmup(ALLR(0.2, 0.64, 100, 10)) == 0.1


def test_allr_between_two_models(pruned: Pruned) -> None:
    found = ALLR.between(pruned.teacher, pruned.student, original_epochs=100, epochs=10)
    sizes = [sum(p.numel() for p in model.parameters() if p.ndim >= 2) for model in (pruned.teacher, pruned.student)]
    assert found.sparsity == pytest.approx(1 - sizes[1] / sizes[0])
    assert 0 < found.distance < 1
    with pytest.raises(InputError, match="something was removed"):
        ALLR.between(pruned.teacher, pruned.teacher, original_epochs=100, epochs=10)


def test_allr_of_known_numbers() -> None:
    dense, small = nn.Linear(4, 1, bias=False), nn.Linear(2, 1, bias=False)
    nn.init.constant_(dense.weight, 1)
    nn.init.constant_(small.weight, 1)
    found = ALLR.between(dense, small, original_epochs=10, epochs=1)
    assert (found.distance, found.sparsity) == pytest.approx((math.sqrt(0.5), 0.5))
    assert found.peak == pytest.approx(1)


@pytest.mark.parametrize(
    "values", [(2, 0.5, 10, 1), (0.5, 0, 10, 1), (0.5, 1, 10, 1), (0.5, 0.5, 0, 1), (0.5, 0.5, 1, 0)]
)
def test_allr_out_of_range(values: tuple[float, float, float, float]) -> None:
    with pytest.raises(InputError, match="ALLR needs"):
        ALLR(*values)


def test_names_that_stand_for_nothing() -> None:
    with pytest.raises(InputError, match=r"ALLR\.between"):
        shape_named("allr")
    with pytest.raises(InputError, match="no schedule 'cosin'"):
        shape_named("cosin")
    assert shape_named(torch.nn.Identity())(0.3) == 0.3
