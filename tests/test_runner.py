"""The interpreter of all checks: in float64, twice alike, and without a trace in what it runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxprune.capture import trace
from fxprune.runner import Runner

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A norm and a dropout, which behave otherwise in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.b, self.d, self.f = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.f(self.d(self.b(self.c(x))).mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("double", [True, False])
def test_running_changes_nothing_and_repeats_random_numbers(double: bool, dtype: torch.dtype) -> None:
    module = trace(Net().to(dtype), X.to(dtype)).module.train()
    state = {key: value.clone() for key, value in module.state_dict().items()}
    random = torch.random.get_rng_state()
    one, other = (Runner(module, double=double).flat([X.to(dtype)]) for _ in range(2))
    assert torch.equal(one[0], other[0])
    assert one[0].dtype == (torch.float64 if double else dtype)
    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), random)


class Mixed(nn.Module):
    """Recurrent weights that a kernel keeps a list of, casts, and tensors that the graph makes."""

    def __init__(self) -> None:
        super().__init__()
        self.l, self.f = nn.LSTM(6, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.l(x)[0].to(torch.bfloat16).float().softmax(-1, dtype=torch.float32)
        return self.f(x) + torch.full((3,), 0.1)  # type: ignore[no-any-return]


def test_everything_is_widened_on_the_way() -> None:
    seen: dict[str, Any] = {}
    Runner(trace(Mixed(), X[:, 0]).module, seen=lambda n, value: seen.setdefault(n.name, value)).flat([X[:, 0]])
    floats = {value.dtype for value in seen.values() if isinstance(value, Tensor) and value.is_floating_point()}
    assert floats == {torch.float64}


def test_bits_are_read_in_the_width_that_they_had() -> None:
    class Signs(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x.view(torch.int32) >> 31).view(torch.int32) + x

    traced = trace(Signs(), X)
    (found,) = Runner(traced.module).flat([X])
    assert found.dtype == torch.float64
    assert torch.equal(found, (X.view(torch.int32) >> 31) + X.double())


@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_sums_over_taps_are_the_convolution(stride: int) -> None:
    layer = nn.Conv2d(3, 6, (3, 2), stride, padding=(2, 1), dilation=(1, 2), groups=3)
    (found,) = Runner(trace(layer, X).module).flat([X])
    assert torch.allclose(found, layer.double()(X.double()), rtol=1e-12, atol=1e-12)
