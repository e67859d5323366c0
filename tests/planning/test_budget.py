"""What may be asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fxprune.errors import InputError
from fxprune.planning.budget import native_step, parse_budget, rounding_steps


def test_one_share_is_a_budget() -> None:
    assert str(parse_budget(macs=None, params=0.25)) == "params=0.25"
    assert parse_budget(bytes=1).keep == 1.0
    assert parse_budget(macs=np.float32(0.5)).keep == 0.5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "exactly one budget .* got none"),
        ({"macs": 0.5, "params": 0.5}, "got macs=0.5 and params=0.5"),
        ({"macs": 0}, "outside"),
        ({"macs": -0.5}, "outside"),
        ({"macs": 50}, r"Did you mean macs=0\.5"),
        ({"macs": float("nan")}, "outside"),
        ({"macs": float("inf")}, "outside"),
        ({"macs": "0.5"}, "is no number"),
        ({"macs": True}, "is no number"),
    ],
)
def test_anything_else_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_budget(**given)


@pytest.mark.parametrize(
    ("capability", "steps"), [("AVX512", (16, 8, 4, 2, 1)), ("AVX2", (8, 4, 2, 1)), ("DEFAULT", (8, 4, 2, 1))]
)
def test_auto_starts_with_the_block_of_the_cpu(
    monkeypatch: pytest.MonkeyPatch, capability: str, steps: tuple[int, ...]
) -> None:
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    assert native_step() == steps[0]
    assert rounding_steps("auto") == steps


def test_a_given_multiple_is_the_only_one() -> None:
    assert rounding_steps(12) == (12,)


@pytest.mark.parametrize("round_to", [0, -8, True, 8.0, "8", "AUTO", None])
def test_other_multiples_are_refused(round_to: Any) -> None:
    with pytest.raises(InputError, match="round_to"):
        rounding_steps(round_to)
