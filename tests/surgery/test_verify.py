"""The yardstick of every proof."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fxprune.surgery import relative_error

NAN, INF = float("nan"), float("inf")


def values(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


@pytest.mark.parametrize(
    ("found", "reference", "error"),
    [
        (values(1, 2), values(1, 4), 0.5),
        (values(1e-3), values(0.0), 1e-3),  # of an output of zeros nothing is relative
        (values(), values(), 0.0),
        (values(1, 2), values(1), INF),
        (values(1, INF), values(1, INF), INF),  # what is infinite could not have differed
        (values(1, NAN), values(1, NAN), INF),
        (values(1, NAN), values(1, 2), INF),
        (torch.tensor([1, 2]), torch.tensor([1, 2]), 0.0),
        (torch.tensor([1, 2]), torch.tensor([1, 3]), INF),
        (torch.tensor([True]), torch.tensor([False]), INF),
        (values(1, 2), torch.tensor([1, 2]), INF),
    ],
)
def test_relative_to_the_largest_of_the_output_itself(found: Tensor, reference: Tensor, error: float) -> None:
    assert relative_error(found, reference) == error
