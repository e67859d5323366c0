"""Flatten, reshape, permute, and what is written with them: shuffles of channels and of pixels."""

# Calling a module is Any to a type checker.
# mypy: disable-error-code="no-any-return"
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.parts import HEAD, Body, conv
from tests.networks.registry import IMAGE, network


@network(IMAGE, "0.weight:0 4.weight:1 4.weight:0", {"6.weight:0": "output"})
def flatten_nchw() -> nn.Module:
    return nn.Sequential(
        conv(3, 5), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(20, 6), nn.ReLU(), nn.Linear(6, 4)
    )


@network(IMAGE, "stem.weight:0 a.weight:1 a.weight:0")
class FlattenNhwc(Body):
    def __init__(self) -> None:
        super().__init__(5, 6)
        self.a = nn.Linear(20, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(self.stem(x), 4).permute(0, 2, 3, 1).reshape(x.shape[0], -1)
        return self.head(F.relu(self.a(x)))


@network(IMAGE, "stem.weight:0 a.weight:0 a.weight:1 c.weight:1")
class PermuteLinear(Body):
    """A linear layer on channels-last data, the way of ConvNeXt; eight channels on an 8 x 8 map."""

    def __init__(self) -> None:
        super().__init__(8, 5)
        self.a, self.c = nn.Linear(8, 6), conv(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(self.a(self.stem(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)))


@network(IMAGE, "stem.weight:0 a.weight:1 a.weight:0")
class TransposeTokens(Body):
    def __init__(self) -> None:
        super().__init__(5, 6)
        self.a = nn.Linear(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        return self.head(self.a(tokens).mean(1))


@network(IMAGE, "stem.weight:0 a.weight:1 a.weight:0")
class EinopsReshape(Body):
    """``b (g c) h w -> b (h w) (c g)``, as einops writes it."""

    def __init__(self) -> None:
        super().__init__(15, 6)
        self.a = nn.Linear(15, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).reshape(x.shape[0], 3, 5, 8, 8).permute(0, 3, 4, 2, 1).reshape(x.shape[0], 64, 15)
        return self.head(self.a(x).amax(1))


@network(IMAGE, "a.weight:0 b.weight:1", zero_keeps=False)
class WidthLinear(Body):
    """A linear layer over the width: as many entries as there are channels, but positions."""

    def __init__(self) -> None:
        super().__init__(8, 8)
        self.a, self.b = nn.Linear(8, 6), nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.classify(x + self.b(F.relu(self.a(x))))


@network(IMAGE, "stem.weight:0 b.weight:1 c.weight:1 t1.weight:0 t2.weight:1", zero_keeps=False)
class Mixer(Body):
    """Token mixing and channel mixing."""

    def __init__(self) -> None:
        super().__init__(6, 6)
        self.t1, self.t2, self.b, self.c = nn.Linear(16, 5), nn.Linear(5, 16), nn.Linear(6, 7), nn.Linear(7, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(self.stem(x), 2).flatten(2)
        x = (x + self.t2(F.relu(self.t1(x)))).transpose(1, 2)
        return self.head((x + self.c(F.relu(self.b(x)))).mean(1))


def shuffle(x: Tensor, groups: int) -> Tensor:
    """ShuffleNet's channel shuffle."""
    batch, channels, height, width = x.shape
    return (
        x.view(batch, groups, channels // groups, height, width).transpose(1, 2).reshape(batch, channels, height, width)
    )


@network(IMAGE, "stem.weight:0 c.weight:1")
class ChannelShuffle(Body):
    def __init__(self) -> None:
        super().__init__(8, 5)
        self.c = conv(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(shuffle(F.relu(self.stem(x)), 2)))


@network(IMAGE, "stem.weight:0 c.weight:1")
def channel_shuffle_module() -> nn.Module:
    class ShuffleModule(Body):
        def __init__(self) -> None:
            super().__init__(6, 5)
            self.shuffle, self.c = nn.ChannelShuffle(2), conv(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.classify(self.c(self.shuffle(self.stem(x))))

    return ShuffleModule()


@network(IMAGE, "stem.weight:0 a.weight:0 depth.weight:0 b.weight:0 c.weight:1")
class ShuffleUnit(Body):
    """ShuffleNetV2's unit: split, a depthwise branch, concatenation, shuffle."""

    def __init__(self) -> None:
        super().__init__(8, 5)
        self.a, self.depth, self.b, self.c = conv(4, 6, 1), conv(6, 6, groups=6), conv(6, 4, 1), conv(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        keep, work = self.stem(x).chunk(2, 1)
        return self.classify(self.c(shuffle(torch.cat([keep, self.b(self.depth(F.relu(self.a(work))))], 1), 2)))


@network(IMAGE, "a.weight:0 depth.weight:0 b.weight:0")
class ShuffleGrouped(Body):
    """ShuffleNetV1's unit: the shuffle lies between two grouped convolutions."""

    def __init__(self) -> None:
        super().__init__(8, 6)
        self.a, self.depth, self.b = conv(8, 12, 1, groups=2), conv(12, 12, groups=12), conv(12, 6, 1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.b(self.depth(shuffle(F.relu(self.a(self.stem(x))), 2))))


@network(IMAGE, "stem.weight:0 c.weight:1")
class PixelShuffle(Body):
    def __init__(self) -> None:
        super().__init__(12, 5)
        self.c = conv(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(F.pixel_shuffle(self.stem(x), 2)))


@network(IMAGE, "stem.weight:0 c.weight:1")
class PixelUnshuffle(Body):
    def __init__(self) -> None:
        super().__init__(5, 6)
        self.c = conv(20, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(F.pixel_unshuffle(self.stem(x), 2)))


@network(IMAGE, "stem.weight:0 c.weight:1")
class SpaceToDepth(Body):
    """By view and permute: the offset inside the block is the outer factor, the channel the inner one."""

    def __init__(self) -> None:
        super().__init__(5, 6)
        self.c = conv(20, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).view(x.shape[0], 5, 4, 2, 4, 2).permute(0, 3, 5, 1, 2, 4)
        return self.classify(self.c(x.reshape(x.shape[0], 20, 4, 4)))


@network(IMAGE, "stem.weight:0 c.weight:1")
class FocusSlices(Body):
    """YOLOv5's space-to-depth: four strided slices, concatenated."""

    def __init__(self) -> None:
        super().__init__(5, 6)
        self.c = conv(20, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.classify(self.c(torch.cat([x[..., i::2, j::2] for j in (0, 1) for i in (0, 1)], 1)))


@network(IMAGE, "stem.weight:0 head.weight:1", HEAD)
class SqueezeAll(nn.Module):
    """All dimensions of size one go, and a single channel that is left is not one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv(3, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x).squeeze(1).mean((2, 3), keepdim=True).squeeze())
