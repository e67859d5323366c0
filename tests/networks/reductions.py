"""Reductions, orders and sums over channels, which look at all of them at once."""

# Calling a module is Any to a type checker.
# mypy: disable-error-code="no-any-return"
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.networks.parts import Body, conv
from tests.networks.registry import IMAGE, network


@network(IMAGE, "stem.weight:0")
class SumChannels(Body):
    """A sum over channels loses nothing but the removed ones."""

    def __init__(self) -> None:
        super().__init__(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.classify(x) + x.sum((1, 2, 3)).unsqueeze(-1)


@network(IMAGE, "c.weight:0", zero_keeps=False)
class ChannelMean(Body):
    """CBAM's spatial attention: mean over channels."""

    def __init__(self) -> None:
        super().__init__(5, 6)
        self.gate, self.c = conv(1, 1), conv(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.classify(self.c(x * torch.sigmoid(self.gate(x.mean(1, keepdim=True)))))


@network(IMAGE, "c.weight:0", zero_keeps=False)
class ChannelMax(Body):
    """CBAM's other half: the maximum over channels, which a zero would take part in."""

    def __init__(self) -> None:
        super().__init__(5, 6)
        self.gate, self.c = conv(2, 1), conv(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        pooled = torch.cat([x.amax(1, keepdim=True), x.max(1, keepdim=True)[0]], 1)
        return self.classify(self.c(x * torch.sigmoid(self.gate(pooled))))


@network(IMAGE, "stem.weight:0 c.weight:1")
class Maxout(Body):
    """The best of two candidates per channel."""

    def __init__(self) -> None:
        super().__init__(10, 6)
        self.c = conv(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(self.stem(x).view(-1, 5, 2, 8, 8).amax(2)))


@network(IMAGE, "stem.weight:0 c.weight:1", zero_keeps=False)
class SoftmaxChannels(Body):
    """Like a norm, a softmax over channels runs over those that are kept; a zero would keep a share."""

    def __init__(self) -> None:
        super().__init__(5, 6)
        self.c = conv(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(F.softmax(self.stem(x), 1)))


@network(IMAGE, "c.weight:0", {"stem.weight:0": "argmax"})
class ArgmaxChannels(Body):
    """The result is a number of a channel."""

    def __init__(self) -> None:
        super().__init__(5, 6)
        self.c = conv(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.classify(self.c(x) * x.argmax(1, keepdim=True))


@network(IMAGE, "stem.weight:0 c.weight:1", zero_keeps=False)
class CumsumChannels(Body):
    """What is left sums the same, but the sum at a removed channel's place is not zero."""

    def __init__(self) -> None:
        super().__init__(5, 6)
        self.c = conv(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(self.stem(x).cumsum(1)))


@network(IMAGE, "c.weight:0", {"stem.weight:0": "topk"}, zero_keeps=False)
class TopkChannels(Body):
    def __init__(self) -> None:
        super().__init__(5, 6)
        self.c = conv(3, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(self.stem(x).topk(3, dim=1).values))


@network(IMAGE, "c.weight:0", {"stem.weight:0": "sort"}, zero_keeps=False)
class SortChannels(Body):
    def __init__(self) -> None:
        super().__init__(5, 6)
        self.c = conv(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(self.stem(x).sort(1).values))


@network(IMAGE, "stem.weight:0 c.weight:1", zero_keeps=False)
class LogSumExpChannels(Body):
    def __init__(self) -> None:
        super().__init__(5, 6)
        self.c = conv(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.classify(self.c(x - x.logsumexp(1, keepdim=True)))


@network(IMAGE, "c.weight:0", zero_keeps=False)
class StdAndNormOverChannels(Body):
    """A deviation and a vector norm."""

    def __init__(self) -> None:
        super().__init__(6, 5)
        self.c = conv(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.classify(self.c(x / (1 + x.std(1, correction=0, keepdim=True) + x.norm(dim=1, keepdim=True))))


@network(IMAGE, "stem.weight:0 c.weight:1", zero_keeps=False)
class ExtremesOfAll(Body):
    """The largest and smallest value of a tensor, and an extreme value in the guise of a norm."""

    def __init__(self) -> None:
        super().__init__(6, 5)
        self.c = conv(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = 1 + F.softplus(self.stem(x))
        scale = x.max() + x.min() + torch.linalg.vector_norm(x, float("-inf"), dim=1, keepdim=True)
        return self.classify(self.c(x / scale))
