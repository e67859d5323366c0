"""Singular values against those of a Jacobian by finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fxprune.errors import InputError
from fxprune.training import trainability
from tests.training.conftest import Convnet


def _numerical(model: nn.Module, x: Tensor, step: float = 1e-6) -> Tensor:
    """Return the Jacobian of one sample, [logits, elements], column by column."""
    columns = []
    for number in range(x.numel()):
        nudge = torch.zeros(x.numel(), dtype=x.dtype)
        nudge[number] = step
        both = [model((x + sign * nudge.reshape(x.shape))[None])[0] for sign in (1, -1)]
        columns.append((both[0] - both[1]).detach() / (2 * step))
    return torch.stack(columns, 1)


@pytest.mark.parametrize(
    ("model", "shape"),
    [(nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4)), (6,)), (Convnet(), (3, 4, 4))],
    ids=["mlp", "conv"],
)
def test_against_finite_differences(model: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = model.double().train()
    x = torch.randn(3, *shape, dtype=torch.float64)
    found = trainability(model, x)
    assert model.training  # given back as it was
    assert all(parameter.grad is None for parameter in model.parameters())
    model.eval()
    values = torch.stack([torch.linalg.svdvals(_numerical(model, sample)) for sample in x])
    assert found.mean == pytest.approx(values.mean().item(), rel=1e-6)
    assert found.std == pytest.approx(values.std(correction=0).item(), rel=1e-6)
    assert found.smallest == pytest.approx(values.min().item(), rel=1e-5)
    assert found.largest == pytest.approx(values.max().item(), rel=1e-6)
    assert found.condition == pytest.approx((values[:, 0] / values[:, -1]).mean().item(), rel=1e-5)
    assert found.samples == 3


def test_an_isometry_is_one_and_a_dead_network_zero() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(*(nn.utils.parametrizations.orthogonal(nn.Linear(8, 8, bias=False)) for _ in range(3)))
    found = trainability(layers, torch.randn(4, 8))
    assert (found.smallest, found.mean, found.largest) == pytest.approx((1, 1, 1), abs=1e-5)
    assert found.condition == pytest.approx(1, abs=1e-5)
    dead = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    nn.init.constant_(dead[0].bias, -100)
    found = trainability(dead, torch.randn(4, 8))
    assert (found.mean, found.largest) == (0, 0)
    assert math.isinf(found.condition)


def test_several_inputs_and_those_that_are_no_floats() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, which: Tensor, y: Tensor) -> Tensor:
            return torch.where(which[:, None] > 0, 3 * x, x) + 4 * y

    class Steps(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x > 0).float()

    x, which = torch.randn(2, 5), torch.tensor([0, 1])
    found = trainability(Two(), (x, which, x))
    assert found.smallest == pytest.approx(math.hypot(1, 4), rel=1e-6)
    assert found.largest == pytest.approx(5, rel=1e-6)
    with pytest.raises(InputError, match="no floats"):
        trainability(Two(), torch.tensor([[1]]))
    with pytest.raises(InputError, match="do not depend"):
        trainability(Steps(), torch.randn(2, 3))
