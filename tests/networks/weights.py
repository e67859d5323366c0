"""Weights that are computed: standardised, summed, of low rank, triangular, complex; or used outside of their layer."""

# Calling a module is Any to a type checker.
# mypy: disable-error-code="no-any-return"
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.parts import ENDS, HEAD, Body, conv
from tests.networks.registry import IMAGE, TOKENS, Inputs, network, normal


@network(IMAGE, "stem.weight:0 weight:0 weight:1 c.weight:1")
class FunctionalConv(Body):
    """``F.conv2d`` on a bare parameter."""

    def __init__(self) -> None:
        super().__init__(5, 7)
        self.weight, self.shift, self.c = (
            nn.Parameter(torch.zeros(6, 5, 3, 3)),
            nn.Parameter(torch.zeros(6)),
            conv(6, 7),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(F.relu(F.conv2d(self.stem(x), self.weight, self.shift, padding=1))))


class StandardisedConv(nn.Conv2d):
    """Weight standardisation: every filter has zero mean and unit variance."""

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.weight.mean((1, 2, 3), keepdim=True), self.weight.var((1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - mean) / torch.sqrt(var + 1e-6), self.bias, self.stride, self.padding)


@network(IMAGE, "ws.weight:0 c.weight:1", zero_keeps=False)
class StandardisedWeight(Body):
    def __init__(self) -> None:
        super().__init__(5, 7)
        self.ws, self.c = StandardisedConv(5, 6, 3, padding=1), conv(6, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(F.relu(self.ws(self.stem(x)))))


@network(
    IMAGE,
    "wn.parametrizations.weight.original0:0 wn.parametrizations.weight.original1:0 wn.bias:0 c.weight:1",
    zero_keeps=False,
)
class WeightNorm(Body):
    def __init__(self) -> None:
        super().__init__(5, 7)
        self.wn, self.c = nn.utils.parametrizations.weight_norm(conv(5, 6)), conv(6, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(F.relu(self.wn(self.stem(x)))))


@network(IMAGE, "stem.weight:0 wide:0 narrow:0 c.weight:1")
class SummedWeights(Body):
    """RepVGG-like: two kernels are added into one before they are used."""

    def __init__(self) -> None:
        super().__init__(5, 7)
        self.wide, self.narrow = nn.Parameter(torch.zeros(6, 5, 3, 3)), nn.Parameter(torch.zeros(6, 5, 1, 1))
        self.c = conv(6, 7)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.wide + F.pad(self.narrow, (1, 1, 1, 1))
        return self.classify(self.c(F.conv2d(self.stem(x), kernel, padding=1)))


@network(TOKENS, "a.weight:0 base.weight:0 up.weight:0 down.weight:0 down.weight:1 head.weight:1", HEAD)
class LowRankUpdate(nn.Module):
    """LoRA: a linear layer plus a product of two small ones."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.base, self.head = nn.Linear(6, 8), nn.Linear(8, 7), nn.Linear(7, 4)
        self.down, self.up = nn.Linear(8, 3, bias=False), nn.Linear(3, 7, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.head(self.base(x) + 0.5 * self.up(self.down(x)))


@network(TOKENS, "a.weight:0 up:0 down:0 head.weight:1", HEAD)
class LowRankWeight(nn.Module):
    """The same with the product of the matrices taken first, and their factors as bare parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(6, 8), nn.Linear(7, 4)
        self.up, self.down = nn.Parameter(torch.zeros(7, 3)), nn.Parameter(torch.zeros(3, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.linear(self.a(x), self.up @ self.down))


@network(IMAGE, "stem.weight:0 sn.parametrizations.weight.original:0 c.weight:0", zero_keeps=False)
class SpectralNorm(Body):
    """The weight is divided by an estimate of its largest singular value, made from two stored vectors."""

    def __init__(self) -> None:
        super().__init__(5, 7)
        self.sn, self.c = nn.utils.parametrizations.spectral_norm(conv(5, 6)), conv(6, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(F.relu(self.sn(self.stem(x)))))


@network(IMAGE, "stem.weight:0 c.weight:1 c.weight:0", ENDS)
class WeightAlone(Body):
    """A layer's weight and its bias are used in two places, so that neither is the layer."""

    def __init__(self) -> None:
        super().__init__(5, 6)
        self.c = conv(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        assert self.c.bias is not None
        y = F.conv2d(self.stem(x), self.c.weight, padding=1)
        return self.classify(2 * y + self.c.bias[:, None, None])


class BatchNormedConv(nn.Conv2d):
    """NFNet's weight standardisation: a batch norm in training mode over the weights, one filter a channel."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args, padding=1)
        self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, weight=self.gain.view(-1), training=True, momentum=0.0)
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias, padding=1)


@network(IMAGE, "stem.weight:0 ws.weight:0 ws.gain:0 c.weight:1", zero_keeps=False)
class BatchNormedWeight(Body):
    def __init__(self) -> None:
        super().__init__(5, 6)
        self.ws, self.c = BatchNormedConv(5, 8, 3), conv(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(F.relu(self.ws(self.stem(x)))))


@network(Inputs((normal(2, 6),)), "a.weight:0 matrix:0 matrix:1 head.weight:1", HEAD)
class SymmetricWeight(nn.Module):
    """One triangle of a matrix stands for both: a row goes with the column of the same index."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.matrix, self.head = nn.Linear(6, 8), nn.Parameter(torch.zeros(8, 8)), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(F.linear(self.a(x), self.matrix.triu() + self.matrix.triu(1).t())))


@network(Inputs((normal(2, 6),)), "head.weight:1", {**HEAD, "matrix:0": "place", "matrix:1": "place"}, zero_keeps=False)
class BandedWeight(nn.Module):
    """A band of a matrix: which entries count follows from how far an index is from another."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix, self.b, self.head = nn.Parameter(torch.zeros(8, 6)), nn.Linear(8, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.b(F.linear(x, self.matrix.tril(2).triu(-2)))))


@network(TOKENS, "a.weight:0 filter:1 b.weight:1", {"filter:0": "", "filter:2": "complex", **HEAD})
class GlobalFilter(nn.Module):
    """A complex weight per frequency and channel, between two Fourier transforms over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 8), nn.Linear(8, 5), nn.Linear(5, 4)
        self.filter = nn.Parameter(torch.zeros(3, 8, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.fft.rfft(self.a(x), dim=1) * torch.view_as_complex(self.filter)
        return self.head(F.gelu(self.b(torch.fft.irfft(x, n=5, dim=1))).mean(1))


@network(Inputs((normal(2, 6),)), "a.weight:0 matrix:0 matrix:1 head.weight:1", HEAD)
class TriangularWeight(nn.Module):
    """Every channel reads those before it: only together do a row and a column leave a triangle."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.matrix, self.head = nn.Linear(6, 8), nn.Parameter(torch.zeros(8, 8)), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(F.linear(self.a(x), self.matrix.tril())))
