"""What a budget error says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fxprune.errors import BudgetError
from fxprune.planning import make_plan

Chain = Callable[..., Any]


def message(groups: Any, **options: Any) -> str:
    with pytest.raises(BudgetError) as caught:
        make_plan(groups.traced, groups=groups, **options)
    return str(caught.value)


def test_frozen_channels_are_named_with_their_reason_and_share(chain: Chain) -> None:
    text = message(chain([50, 10, 50]), macs=0.05, round_to=1)
    assert "10 % of the macs are left, and 5 % were asked for" in text
    assert "10 % (layer0 and others): it is an input or output of the model" in text
    assert text.endswith("To go on, ask for at least macs=0.1.")


def test_rounding_is_named_where_it_is_the_cause(chain: Chain) -> None:
    text = message(chain([1, 64, 64, 1]), macs=0.01, round_to=32)
    assert "it is at the minimum width (one multiple of round_to=32)" in text
    assert "use a smaller round_to than 32" in text


def test_widths_below_the_multiple_are_named(chain: Chain) -> None:
    assert "100 % of the params are left" in message(chain([1, 12, 1]), params=0.5, round_to=16)


def test_the_share_it_suggests_can_be_met(chain: Chain) -> None:
    groups = chain([3, 17, 23, 4])
    share = float(message(groups, bytes=0.01, round_to=1).split("bytes=")[-1].rstrip("."))
    assert make_plan(groups.traced, groups=groups, bytes=share, round_to=1).after.bytes > 0


def test_unscored_units_are_named(chain: Chain) -> None:
    groups = chain([1, 8, 8, 1])
    scores = groups.live * 1.0
    scores[groups.families[0]] = float("nan")
    assert ": it has no importance score" in message(groups, macs=0.05, importance=lambda _: scores, round_to=1)
