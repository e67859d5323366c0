"""Networks that ``tools/fuzz.py`` found, kept as it printed them, with what they turned out to be."""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn

from fxprune import trace
from fxprune.channels import find_groups
from fxprune.surgery import cut, verify_cut
from tools._fuzz_check import random_removal


class LearnedPlaces(nn.Module):
    """Places made by repeating a vector, told apart by a parameter: they are units, and the mean is over those left.

    To zero a place is not to remove it here, so that the reference of zeros does not apply.
    """

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(1, 16, 7))
        self.a, self.b = nn.Linear(7, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        spread = x[:, :, None, None].expand(-1, -1, 4, 4).flatten(2).transpose(1, 2)
        found: Tensor = self.b(self.a(spread + self.places).mean(1))
        return found


def test_places_that_a_parameter_makes_can_go() -> None:
    torch.manual_seed(0)
    model = LearnedPlaces().double().eval()
    traced = trace(model, torch.randn(2, 7, dtype=torch.double))
    groups = find_groups(traced)
    removed = next(r for seed in range(20) if "places" in (r := random_removal(groups, random.Random(seed))))
    small = cut(traced, removed, groups)
    assert verify_cut(traced, small, removed, groups).ok
    assert small.module.get_parameter("places").shape == (1, 16 - len(removed["places"][1]), 7)
