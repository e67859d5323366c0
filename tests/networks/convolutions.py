"""Convolutions: depthwise, grouped, transposed, deformable, with kernels from data, over tokens and over channels."""

# Calling a module is Any to a type checker.
# mypy: disable-error-code="no-any-return"
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.parts import Body, conv
from tests.networks.registry import IMAGE, TOKENS, Inputs, network, normal


@network(IMAGE, "stem.weight:0 depth.weight:0 depth.bias:0 c.weight:1")
class Depthwise(Body):
    def __init__(self) -> None:
        super().__init__(6, 5)
        self.depth, self.c = conv(6, 6, groups=6), conv(6, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(F.relu6(self.depth(self.stem(x)))))


@network(IMAGE, "stem.weight:0 depth.weight:0 c.weight:1")
class DepthwiseMultiplier(Body):
    def __init__(self) -> None:
        super().__init__(5, 6)
        self.depth, self.norm, self.c = conv(5, 10, groups=5), nn.BatchNorm2d(10), conv(10, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(F.relu(self.norm(self.depth(self.stem(x))))))


@network(IMAGE, "stem.weight:0 g.weight:1 g.weight:0 c.weight:1")
class GroupedConv(Body):
    """Different widths per group in and out."""

    def __init__(self) -> None:
        super().__init__(8, 5)
        self.g, self.c = conv(8, 12, groups=2), conv(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(F.relu(self.g(self.stem(x)))))


@network(IMAGE, "stem.weight:0 g.weight:0 c.weight:1")
class GroupedMany(Body):
    """Eight groups of two: whole groups are the finer choice."""

    def __init__(self) -> None:
        super().__init__(16, 5)
        self.g, self.c = conv(16, 24, groups=8), conv(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(F.relu(self.g(self.stem(x)))))


@network(IMAGE, "g.weight:0 c.weight:1")
class GroupedAfterConcat(Body):
    """Groups of four cross the border between concatenated tensors of 5 and 7 channels."""

    def __init__(self) -> None:
        super().__init__(5, 6)
        self.b, self.g, self.c = conv(3, 7), conv(12, 9, groups=3), conv(9, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(self.g(torch.cat([self.stem(x), self.b(x)], 1))))


@network(IMAGE, "g2.weight:0 g3.weight:0 c.weight:1 c.weight:0")
class TwoGroupCounts(Body):
    def __init__(self) -> None:
        super().__init__(12, 5)
        self.g2, self.g3, self.c = conv(12, 8, groups=2), conv(12, 9, groups=3), conv(17, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.classify(self.c(torch.cat([self.g2(x), self.g3(x)], 1)))


@network(IMAGE, "c.weight:0", zero_keeps=True)
class TwoGroupCountsAdded(Body):
    """Both inputs and both outputs are shared by two and by three groups."""

    def __init__(self) -> None:
        super().__init__(12, 5)
        self.g2, self.g3, self.c = conv(12, 12, groups=2), conv(12, 12, groups=3), conv(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.classify(self.c(x + self.g2(x) * self.g3(x)))


@network(IMAGE, "stem.weight:0 up.weight:0 up.weight:1 c.weight:1")
class ConvTranspose(Body):
    def __init__(self) -> None:
        super().__init__(6, 7)
        self.up, self.c = nn.ConvTranspose2d(6, 5, 2, stride=2), conv(5, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(F.relu(self.up(self.stem(x)))))


@network(IMAGE, "stem.weight:0 up.weight:0 up.weight:1 c.weight:1")
class GroupedTransposed(Body):
    """The weight of a transposed convolution is ``(in, out / groups)``."""

    def __init__(self) -> None:
        super().__init__(8, 5)
        self.up, self.c = nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2), conv(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(F.relu(self.up(self.stem(x)))))


@network(
    Inputs((normal(2, 3, 11),)),
    "0.weight:0 3.weight:0 3.weight:1 6.weight:1",
    {"0.weight:1": "input", "6.weight:0": "output"},
)
def conv1d() -> nn.Module:
    blocks = [
        nn.Conv1d(3, 5, 3),
        nn.BatchNorm1d(5),
        nn.LeakyReLU(0.1),
        nn.Conv1d(5, 6, 3, dilation=2),
        nn.AdaptiveMaxPool1d(1),
    ]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(6, 4))


@network(Inputs((normal(2, 3, 4, 6, 6),)), "0.weight:0 4.weight:0 4.weight:1 7.weight:1")
def conv3d() -> nn.Module:
    blocks = [nn.Conv3d(3, 5, 3, padding=1), nn.BatchNorm3d(5), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(5, 6, 1)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(6, 4))


@network(IMAGE, "stem.weight:0 c.weight:1 c.weight:0")
class Unfold(Body):
    """Patches as columns: ``(channel, tap)`` is one dimension."""

    def __init__(self) -> None:
        super().__init__(5, 6)
        self.c = nn.Linear(20, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.c(F.unfold(self.stem(x), 2, stride=2).transpose(1, 2)).mean(1))


@network(IMAGE, "c.weight:0")
class Correlation(Body):
    """Siamese trackers: one tensor convolves another, with batch and channels as groups."""

    def __init__(self) -> None:
        super().__init__(5, 6)
        self.b, self.c = conv(3, 5), conv(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        big, kernel = self.stem(x), F.adaptive_avg_pool2d(self.b(x), 3)
        batch = x.shape[0]
        y = F.conv2d(big.reshape(1, batch * 5, 8, 8), kernel.reshape(batch * 5, 1, 3, 3), padding=1, groups=batch * 5)
        return self.classify(self.c(y.reshape(batch, 5, 8, 8)))


@network(IMAGE, "stem.weight:0 b.weight:0 c.weight:1", zero_keeps=False)
class PaddingModes(Body):
    """Reflected and circular borders, 'same' padding, and a constant border that is not zero."""

    def __init__(self) -> None:
        super().__init__(5, 7)
        self.b, self.c = nn.Conv2d(5, 6, 3, padding=1, padding_mode="circular"), nn.Conv2d(6, 7, 3, padding="same")

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(F.pad(self.stem(x), (1, 1, 1, 1), mode="reflect"), (1, 0, 1, 0), value=0.5)
        return self.classify(self.c(self.b(x)))


@network(IMAGE, "stem.weight:0 deform.weight:1 deform.weight:0 deform.bias:0 c.weight:1", {"at.weight:0": "coordinate"})
class Deformable(Body):
    """Two weight groups, and four runs of channels with offsets of their own."""

    def __init__(self) -> None:
        from torchvision.ops import DeformConv2d

        super().__init__(8, 6)
        self.at, self.mask = conv(8, 72), conv(8, 36)
        self.deform, self.c = DeformConv2d(8, 12, 3, padding=1, groups=2), conv(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.classify(self.c(F.relu(self.deform(x, self.at(x), self.mask(x).sigmoid()))))


@network(
    Inputs((normal(2, 3, 8, 8), normal(2, 6, seed=1))), "stem.weight:0 style.weight:0 matrix:0 matrix:1 c.weight:1",
    {"style.weight:1": "input"}, zero_keeps=False,
)  # fmt: skip
class Modulated(Body):
    """StyleGAN2's convolution: every sample has a kernel of its own, and is a group of one convolution."""

    def __init__(self) -> None:
        super().__init__(5, 6)
        self.style, self.matrix = nn.Linear(6, 5), nn.Parameter(torch.zeros(7, 5, 3, 3))
        self.c = conv(7, 6)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        x = self.stem(x)
        b, _, h, w = x.shape
        weights = self.matrix * self.style(z)[:, None, :, None, None]
        weights = weights * torch.rsqrt(weights.pow(2).sum((2, 3, 4), keepdim=True) + 1e-8)
        y = F.conv2d(x.reshape(1, b * 5, h, w), weights.reshape(b * 7, 5, 3, 3), padding=1, groups=b)
        return self.classify(self.c(y.reshape(b, 7, h, w)))


@network(TOKENS, "a.weight:0 mix.weight:0 last.weight:1 b.weight:1", {"mix.weight:1": ""}, zero_keeps=False)
class PointwiseAlongTokens(nn.Module):
    """A convolution of size one whose channels are tokens; what it calls space are channels, and pass."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.mix, self.last = nn.Linear(6, 8), nn.Conv1d(5, 7, 1), nn.Conv1d(7, 3, 1)
        self.b = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.last(F.relu(self.mix(self.a(x))))).mean(1)


@network(IMAGE, "c.weight:0", {"stem.weight:0": "space"}, zero_keeps=False)
class ConvolutionAlongChannels(Body):
    """ECA's gate: the channels are the space of a convolution, whose taps read neighbours."""

    def __init__(self) -> None:
        super().__init__(6, 7)
        self.along, self.c = nn.Conv1d(1, 1, 3, padding=1), conv(6, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        gate = self.along(x.mean((2, 3))[:, None]).sigmoid().transpose(1, 2)
        return self.classify(self.c(x * gate[..., None]))
