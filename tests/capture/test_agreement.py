"""Whether a graph returned what the model did: how the difference is told, and what is none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from fxprune.capture.agreement import difference, disagreement

NAN, INF = float("nan"), float("inf")
VALUES = torch.tensor([1.0, -4.0])


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (VALUES, VALUES * (1 + 1e-4)),
        (VALUES.bfloat16(), (VALUES * 1.05).bfloat16()),
        (torch.tensor([1.0, NAN, INF]), torch.tensor([1.0001, NAN, INF])),
        (torch.zeros(3), torch.zeros(3)),
        (torch.zeros(0), torch.zeros(0)),
        (torch.arange(2000), torch.arange(2000).clamp(max=1998)),  # a tie that fell another way
        ([VALUES, None, {"n": 2}], (VALUES, [None], 2)),
    ],
)
def test_what_agrees(found: Any, expected: Any) -> None:
    assert difference(found, expected) == ""


@pytest.mark.parametrize(
    ("found", "expected", "said"),
    [
        (VALUES, VALUES * 1.01, "a relative difference of 9.9e-03"),
        (VALUES.double(), VALUES.double() * (1 + 1e-4), "a relative difference of 1.0e-04"),
        (torch.ones(2), torch.zeros(2), "numbers up to 1.0e+00 instead of zeros"),
        (torch.tensor([1.0, NAN]), VALUES, "NaN or infinity at places where the other has something else"),
        (VALUES, torch.tensor([1.0, NAN]), "NaN or infinity at places where the other has something else"),
        (torch.tensor([1.0, INF]), torch.tensor([1.0, -INF]), "NaN or infinity"),
        (torch.tensor([1, 2]), torch.tensor([1, 3]), "50.0% of the entries differ"),
        (VALUES, VALUES.double(), "torch.float32 of [2] instead of torch.float64 of [2]"),
        (VALUES, VALUES[:1], "torch.float32 of [2] instead of torch.float32 of [1]"),
        ([VALUES, 1], [VALUES, 2], "1 instead of 2"),
        ([VALUES, 1], [VALUES, VALUES], "1 instead of a tensor of [2]"),
        ([VALUES], [VALUES, VALUES], "1 values instead of 2"),
    ],
)
def test_what_does_not(found: Any, expected: Any, said: str) -> None:
    assert difference(found, expected).startswith(said)


def test_what_a_graph_raises_is_a_disagreement() -> None:
    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(2, 6)

    module = fx.symbolic_trace(Flat())
    assert disagreement(module, [torch.ones(3, 4)], torch.ones(2, 6)) == ""
    assert disagreement(module, [torch.ones(3, 4)], torch.ones(6, 2)).startswith("torch.float32 of [2, 6] instead of")
    assert "shape '[2, 6]' is invalid" in disagreement(module, [torch.ones(3, 5)], torch.ones(2, 6))
