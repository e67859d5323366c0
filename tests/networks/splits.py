"""Splits, slices and indices, of channels and of what they are beside."""

# Calling a module is Any to a type checker.
# mypy: disable-error-code="no-any-return"
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.parts import HEAD, Body, conv
from tests.networks.registry import IMAGE, TOKENS, network


@network(IMAGE, "stem.weight:0 m.weight:0 m.weight:1 c.weight:1 c.weight:0")
class C2f(Body):
    """YOLOv8's block: chunk, a branch on one half, concatenation of everything."""

    def __init__(self) -> None:
        super().__init__(8, 6)
        self.m, self.c = conv(4, 4), conv(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(F.relu(self.stem(x)).chunk(2, 1))
        parts.append(self.m(parts[-1]))
        return self.classify(self.c(torch.cat(parts, 1)))


@network(IMAGE, "stem.weight:0 a.weight:1 b.weight:1 c.weight:1")
class SplitUneven(Body):
    def __init__(self) -> None:
        super().__init__(9, 5)
        self.a, self.b, self.c = conv(2, 5), conv(3, 5), conv(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = self.stem(x).split([2, 3, 4], 1)
        return self.classify(self.a(a) + self.b(b) + self.c(c))


@network(IMAGE, "stem.weight:0 a.weight:1 b.weight:1")
class SplitEven(Body):
    def __init__(self) -> None:
        super().__init__(11, 5)
        self.a, self.b = conv(4, 5), conv(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = torch.split(self.stem(x), 4, 1)
        return self.classify(self.a(a) * self.a(b) + self.b(c))


@network(IMAGE, "stem.weight:0 a.weight:1 b.weight:1")
class SliceConstant(Body):
    """Overlapping constant slices, one of them with a step."""

    def __init__(self) -> None:
        super().__init__(12, 5)
        self.a, self.b, self.c = conv(8, 5), conv(3, 5), conv(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.classify(self.a(x[:, :8]) + self.b(x[:, 2:10:3]) + self.c(x[:, -5:]))


@network(IMAGE, "stem.weight:0 c.weight:1")
class SlicePart(Body):
    """Channels 5 to 8 are read by nobody."""

    def __init__(self) -> None:
        super().__init__(9, 6)
        self.c = conv(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(self.stem(x)[:, :5]))


@network(IMAGE, "stem.weight:0 c.weight:1")
class UnbindFactor(Body):
    def __init__(self) -> None:
        super().__init__(12, 5)
        self.c = conv(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = self.stem(x).view(x.shape[0], 3, 4, 8, 8).unbind(1)
        return self.classify(self.c(a * b + c))


@network(IMAGE, "c.weight:0")
class UnbindChannels(Body):
    """Single channels become tensors of their own: each has a meaning."""

    def __init__(self) -> None:
        super().__init__(4, 6)
        self.c = conv(3, 6)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c, d = self.stem(x).unbind(1)
        return self.classify(self.c(torch.stack([a * b, c + d, a], 1)))


@network(IMAGE, "c.weight:0")
class SelectChannel(Body):
    def __init__(self) -> None:
        super().__init__(5, 6)
        self.c = conv(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.classify(self.c(x) * x[:, 3].unsqueeze(1))


@network(IMAGE, "stem.weight:0 c.weight:1")
class IndexSelect(Body):
    def __init__(self) -> None:
        super().__init__(7, 6)
        self.c = conv(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(torch.index_select(self.stem(x), 1, torch.tensor([3, 1, 6, 0]))))


@network(IMAGE, "stem.weight:0 c.weight:1")
class IndexList(Body):
    """A repeated index: one channel is read twice."""

    def __init__(self) -> None:
        super().__init__(6, 5)
        self.c = conv(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(self.stem(x)[:, [4, 2, 0, 2, 5]]))


@network(IMAGE, "stem.weight:0 c.weight:1")
class IndexBuffer(Body):
    """A channel permutation stored in the state."""

    order: Tensor

    def __init__(self) -> None:
        super().__init__(6, 5)
        self.register_buffer("order", torch.tensor([5, 0, 3, 1, 4, 2]))
        self.c = conv(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(F.relu(self.stem(x))[:, self.order]))


@network(IMAGE, "c.weight:0", {"stem.weight:0": ""}, zero_keeps=False)
class DifferenceOfNeighbours(Body):
    """Every channel minus the next: slices of one tensor, shifted by one, tie all channels into one."""

    def __init__(self) -> None:
        super().__init__(7, 6)
        self.c = conv(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.classify(self.c(x[:, 1:] - x[:, :-1]))


@network(IMAGE, "stem.weight:0 c.weight:1")
class TemporalShift(Body):
    """Some channels move one row up, some one row down, the rest stay."""

    def __init__(self) -> None:
        super().__init__(9, 6)
        self.c = conv(9, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        out = torch.zeros_like(x)
        out[:, :3, :-1] = x[:, :3, 1:]
        out[:, 3:6, 1:] = x[:, 3:6, :-1]
        out[:, 6:] = x[:, 6:]
        return self.classify(self.c(out))


@network(IMAGE, "c.weight:0", {"stem.weight:0": "single channel"})
class SplitSingles(Body):
    """Pieces of one channel each, which would broadcast."""

    def __init__(self) -> None:
        super().__init__(4, 6)
        self.c = conv(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        a, b, c, d = x.split(1, 1)
        return self.classify(self.c(x * (a + b)) * (c - d))


@network(TOKENS, "a.weight:0 back.weight:0 missing:2 b.weight:1", {**HEAD, "missing:1": ""}, zero_keeps=False)
class GatheredTokens(nn.Module):
    """A masked autoencoder: an index repeated over the channels picks tokens, and puts them back among learned ones."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.back, self.missing = nn.Linear(6, 8), nn.Linear(8, 7), nn.Parameter(torch.zeros(1, 1, 7))
        self.b, self.head = nn.Linear(7, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        order = x.sum(2).argsort(1)
        y = self.back(torch.gather(self.a(x), 1, order[:, :3, None].repeat(1, 1, 8)))
        y = torch.cat((y, self.missing.repeat(x.shape[0], 2, 1)), 1)
        y = torch.gather(y, 1, order.argsort(1)[..., None].expand(-1, -1, 7))
        return self.head(F.relu(self.b(y)))


@network(TOKENS, "a.weight:0 b.weight:0 b.weight:1 c.weight:1", HEAD)
class MessagePassing(nn.Module):
    """A graph net: messages along a list of edges, summed per node in two ways."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = nn.Linear(6, 8), nn.Linear(16, 7), nn.Linear(22, 5), nn.Linear(5, 4)
        self.register_buffer("edges", torch.tensor([[0, 1, 1, 2, 3, 4], [1, 0, 2, 3, 4, 4]]))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        y = self.b(torch.cat((x[:, self.edges[0]], x[:, self.edges[1]]), 2))
        start = y.new_zeros(x.shape[0], 5, 7)
        total = start.index_add(1, self.edges[1], y)
        other = start.scatter_add(1, self.edges[0][None, :, None].expand(x.shape[0], -1, 7), y.tanh())
        return self.head(F.relu(self.c(torch.cat((x, total, other), 2))).mean(1))
