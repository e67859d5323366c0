"""Pooling and resizing, of space and of channels."""

# Calling a module is Any to a type checker.
# mypy: disable-error-code="no-any-return"
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.parts import Body, conv
from tests.networks.registry import IMAGE, network


@network(IMAGE, "stem.weight:0 last.weight:1")
class AdaptivePools(Body):
    def __init__(self) -> None:
        super().__init__(5, 10)
        self.last = nn.Linear(5 * 4 + 5 * 9, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        pooled = [F.adaptive_avg_pool2d(x, 2).flatten(1), F.adaptive_max_pool2d(x, 3).flatten(1)]
        return self.head(F.relu(self.last(torch.cat(pooled, 1))))


@network(IMAGE, "stem.weight:0 c.weight:1 c.weight:0")
class Upsample(Body):
    def __init__(self) -> None:
        super().__init__(5, 6)
        self.c, self.up = conv(5, 6), nn.Upsample(scale_factor=2, mode="bilinear")

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.up(self.c(F.interpolate(F.relu(self.stem(x)), scale_factor=2))))


@network(IMAGE, "c.weight:0", {"stem.weight:0": ""}, zero_keeps=False)
class PoolChannels(Body):
    """A pooling window over channels."""

    def __init__(self) -> None:
        super().__init__(8, 6)
        self.c = conv(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool1d(self.stem(x).flatten(2).transpose(1, 2), 2).transpose(1, 2)
        return self.classify(self.c(x.reshape(x.shape[0], 4, 8, 8)))


@network(IMAGE, "c.weight:0", {"stem.weight:0": ""}, zero_keeps=False)
class ResizeChannels(Body):
    """Interpolation over channels."""

    def __init__(self) -> None:
        super().__init__(8, 6)
        self.c = conv(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(self.stem(x).flatten(2).transpose(1, 2), size=4, mode="linear").transpose(1, 2)
        return self.classify(self.c(x.reshape(x.shape[0], 4, 8, 8)))


@network(IMAGE, "stem.weight:0 b.weight:0 b.weight:1 c.weight:1", zero_keeps=False)
class Unpooled(Body):
    """SegNet: values go back to where maxima were taken from, channel by channel."""

    def __init__(self) -> None:
        super().__init__(6, 7)
        self.b, self.c = conv(6, 6), conv(6, 7)

    def forward(self, x: Tensor) -> Tensor:
        x, places = F.max_pool2d(self.stem(x), 2, return_indices=True)
        return self.classify(self.c(F.max_unpool2d(F.relu(self.b(x)), places, 2)))
