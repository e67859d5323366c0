"""Operations that there is no rule for."""

# Calling a module is Any to a type checker.
# mypy: disable-error-code="no-any-return"
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.parts import HEAD, Body, conv
from tests.networks.registry import IMAGE, Inputs, network, normal


@network(IMAGE, "c.weight:0", {"stem.weight:0": "cumprod"}, zero_keeps=False)
class UnknownOp(Body):
    """A running product over channels: nobody has a rule for it, and identity would be wrong."""

    def __init__(self) -> None:
        super().__init__(8, 6)
        self.c = conv(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(self.stem(x).cumprod(1)))


@network(IMAGE, "c.weight:0", {"stem.weight:0": "fourier"}, zero_keeps=False)
class FourierOverChannels(Body):
    def __init__(self) -> None:
        super().__init__(8, 6)
        self.c = conv(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(torch.fft.rfft(self.stem(x), dim=1).abs()))


@network(Inputs((normal(2, 6),)), "a.weight:0", {"b.weight:0": "inv"}, zero_keeps=False)
class MatrixInverse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 5), nn.Linear(5, 9), nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        square = self.b(F.relu(self.a(x))).view(-1, 3, 3)
        return self.head(torch.linalg.inv(square).flatten(1))


class SignedSquare(torch.autograd.Function):
    """An elementwise operator with a backward of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return ``x * |x|``."""
        ctx.save_for_backward(x)
        return x * x.abs()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """Return the gradient."""
        return 2 * ctx.saved_tensors[0].abs() * grads[0]


@network(IMAGE, "c.weight:0", HEAD)
class CustomFunction(Body):
    def __init__(self) -> None:
        super().__init__(5, 6)
        self.c = conv(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(SignedSquare.apply(self.stem(x))))


@network(IMAGE, "c.weight:0", {"stem.weight:0": "bits"}, zero_keeps=False)
class SignBits(Body):
    """A float read as an integer."""

    def __init__(self) -> None:
        super().__init__(5, 6)
        self.c = conv(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.classify(self.c(x * (x.float().contiguous().view(torch.int32) >= 0)))
