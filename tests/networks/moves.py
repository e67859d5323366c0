"""Moves of whole dimensions: flips, rolls, stacks, repetitions."""

# Calling a module is Any to a type checker.
# mypy: disable-error-code="no-any-return"
from __future__ import annotations

import torch
from torch import Tensor

from tests.networks.parts import Body, conv
from tests.networks.registry import IMAGE, network


@network(IMAGE, "stem.weight:0 c.weight:1")
class FlipChannels(Body):
    """Index ``i`` meets index ``4 - i`` only through the next convolution."""

    def __init__(self) -> None:
        super().__init__(5, 6)
        self.c = conv(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(self.stem(x).flip(1, 3)))


@network(IMAGE, "stem.weight:0 c.weight:1")
class FlipAdd(Body):
    """A channel and its mirror image are added, so they leave in pairs."""

    def __init__(self) -> None:
        super().__init__(7, 6)
        self.c = conv(7, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.classify(self.c(x + x.flip(1)))


@network(IMAGE, "c.weight:0")
class RollChannels(Body):
    def __init__(self) -> None:
        super().__init__(6, 5)
        self.c = conv(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(self.stem(x).roll(2, 1)))


@network(IMAGE, "stem.weight:0 b.weight:0 c.weight:1")
class StackBranches(Body):
    def __init__(self) -> None:
        super().__init__(5, 6)
        self.b, self.c = conv(3, 5), conv(10, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(torch.stack([self.stem(x), self.b(x)], 2).flatten(1, 2)))


@network(IMAGE, "stem.weight:0 c.weight:1")
class RepeatChannels(Body):
    def __init__(self) -> None:
        super().__init__(4, 5)
        self.c = conv(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(self.stem(x).repeat(1, 3, 1, 1)))


@network(IMAGE, "stem.weight:0 c.weight:1")
class RepeatInterleave(Body):
    def __init__(self) -> None:
        super().__init__(4, 5)
        self.c = conv(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(self.stem(x).repeat_interleave(3, 1)))


@network(IMAGE, "stem.weight:0 c.weight:1")
class TileChannels(Body):
    def __init__(self) -> None:
        super().__init__(4, 5)
        self.c = conv(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(self.stem(x).tile(2, 1, 1)))


@network(IMAGE, "stem.weight:0 c.weight:1")
class ExpandChannels(Body):
    def __init__(self) -> None:
        super().__init__(4, 5)
        self.c = conv(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.classify(self.c(x.unsqueeze(2).expand(-1, 4, 3, 8, 8).reshape(-1, 12, 8, 8)))


@network(IMAGE, "stem.weight:0 c.weight:1")
class RollAround(Body):
    """Turned once around: back where it was, however many are left."""

    def __init__(self) -> None:
        super().__init__(6, 5)
        self.c = conv(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(self.stem(x).roll(6, 1)))


@network(IMAGE, "stem.weight:0 c.weight:1")
class RepeatToSize(Body):
    """The call states how many there are in the end."""

    def __init__(self) -> None:
        super().__init__(5, 6)
        self.c = conv(10, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(self.stem(x).repeat_interleave(2, dim=1, output_size=10)))
