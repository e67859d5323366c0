"""Normalisation over channels, space and tokens, and parameters with one value per channel."""

# Calling a module is Any to a type checker.
# mypy: disable-error-code="no-any-return"
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.parts import HEAD, Body, conv
from tests.networks.registry import IMAGE, TOKENS, network


@network(IMAGE, "stem.weight:0 norm.weight:0 c.weight:1")
class PreActivation(Body):
    """Batch norm before the convolution."""

    def __init__(self) -> None:
        super().__init__(6, 5)
        self.norm, self.c = nn.BatchNorm2d(6), conv(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(F.relu(self.norm(self.stem(x)))))


@network(TOKENS, "a.weight:0 norm.weight:0 norm.bias:0 b.weight:1", {**HEAD, "a.weight:1": "input"}, zero_keeps=False)
class LayerNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b, self.head = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 7), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.gelu(self.b(self.norm(self.a(x)))))


@network(IMAGE, "stem.weight:0 norm.weight:0 c.weight:1", zero_keeps=False)
class LayerNormImage(Body):
    """Statistics over channels and positions, with parameters of shape (C, H, W)."""

    def __init__(self) -> None:
        super().__init__(5, 6)
        self.norm, self.c = nn.LayerNorm([5, 8, 8]), conv(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(self.norm(self.stem(x))))


@network(IMAGE, "stem.weight:0 norm.weight:0 c.weight:1", zero_keeps=False)
class LayerNormFunctional(Body):
    """``LayerNorm2d`` by hand: mean and variance over dimension 1."""

    def __init__(self) -> None:
        super().__init__(5, 6)
        self.norm, self.c = nn.BatchNorm2d(5), conv(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = (x - x.mean(1, keepdim=True)) / torch.sqrt(x.var(1, keepdim=True, unbiased=False) + 1e-6)
        return self.classify(self.c(self.norm.weight[:, None, None] * x + self.norm.bias[:, None, None]))


@network(IMAGE, "stem.weight:0 norm.weight:0 c.weight:1", zero_keeps=False)
class GroupNorm(Body):
    def __init__(self) -> None:
        super().__init__(12, 5)
        self.norm, self.c = nn.GroupNorm(3, 12), conv(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(F.relu(self.norm(self.stem(x)))))


@network(IMAGE, "stem.weight:0 a.weight:0 norm.weight:0", zero_keeps=False)
class GroupNormShared(Body):
    """Two group norms of different group counts on the channels of one residual stream."""

    def __init__(self) -> None:
        super().__init__(12, 12)
        self.norm, self.other, self.a, self.b = nn.GroupNorm(3, 12), nn.GroupNorm(6, 12), conv(12, 7), conv(7, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.b(F.silu(self.a(self.norm(x))))
        return self.classify(F.silu(self.other(x)))


@network(IMAGE, "stem.weight:0 norm.weight:0 c.weight:1")
class InstanceNorm(Body):
    def __init__(self) -> None:
        super().__init__(5, 6)
        self.norm, self.c = nn.InstanceNorm2d(5, affine=True), conv(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(F.relu(self.norm(self.stem(x)))))


@network(TOKENS, "a.weight:0 scale:0 b.weight:1", HEAD, zero_keeps=False)
class RmsByHand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.scale, self.b, self.head = (
            nn.Linear(6, 8),
            nn.Parameter(torch.ones(8)),
            nn.Linear(8, 7),
            nn.Linear(7, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.scale
        return self.head(self.b(x))


@network(TOKENS, "a.weight:0 norm.weight:0 b.weight:1", HEAD, zero_keeps=False)
class RmsNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b, self.head = nn.Linear(6, 8), nn.RMSNorm(8), nn.Linear(8, 7), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.norm(self.a(x))))


@network(TOKENS, "a.weight:0 b.weight:1", HEAD)
class L2Normalize(nn.Module):
    """A removed channel adds nothing to an L2 norm."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 8), nn.Linear(8, 7), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(F.normalize(self.a(x), dim=-1)))


@network(IMAGE, "c.weight:0", {"stem.weight:0": ""}, zero_keeps=False)
class LocalResponseNorm(Body):
    """Averages over a window of neighbouring channels: every channel's neighbours have a meaning."""

    def __init__(self) -> None:
        super().__init__(7, 6)
        self.norm, self.c = nn.LocalResponseNorm(3), conv(7, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(self.norm(self.stem(x))))


@network(IMAGE, "stem.weight:0 act.weight:0 c.weight:1", {"one.weight:0": ""})
class Prelu(Body):
    """One PReLU has a slope per channel, the other a single slope."""

    def __init__(self) -> None:
        super().__init__(5, 6)
        self.act, self.c, self.one = nn.PReLU(5), conv(5, 6), nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.one(self.c(self.act(self.stem(x)))))


@network(IMAGE, "stem.weight:0 scale:0 up.weight:0 down.weight:0 depth.weight:0", zero_keeps=False)
class LayerScale(Body):
    """ConvNeXt's block."""

    def __init__(self) -> None:
        super().__init__(6, 6)
        self.depth, self.norm, self.up, self.down = (
            conv(6, 6, groups=6),
            nn.LayerNorm(6),
            nn.Linear(6, 9),
            nn.Linear(9, 6),
        )
        self.scale = nn.Parameter(torch.ones(6, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.down(F.gelu(self.up(self.norm(self.depth(x).permute(0, 2, 3, 1)))))
        return self.classify(x + self.scale * y.permute(0, 3, 1, 2))


@network(IMAGE, "stem.weight:0 shift:1 c.weight:1", zero_keeps=False)
class BufferPerChannel(Body):
    """A constant in the state with an entry per channel."""

    shift: Tensor

    def __init__(self) -> None:
        super().__init__(5, 6)
        self.register_buffer("shift", torch.ones(1, 5, 1, 1))
        self.c = conv(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(F.relu(self.stem(x) - self.shift)))


@network(IMAGE, "c.weight:0", zero_keeps=False)
class ArangeChannels(Body):
    """A constant made in ``forward`` that has an entry per channel."""

    def __init__(self) -> None:
        super().__init__(5, 6)
        self.c = conv(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(self.stem(x) + torch.arange(5).view(1, 5, 1, 1)))


@network(IMAGE, "stem.weight:0 scale:0 mean:0 c.weight:1", zero_keeps=False)
class FrozenBatchNorm(Body):
    """torchvision's detectors: a norm whose four vectors are buffers."""

    scale: Tensor
    mean: Tensor

    def __init__(self) -> None:
        super().__init__(5, 6)
        self.c = conv(5, 6)
        for name in ("scale", "mean"):
            self.register_buffer(name, torch.ones(5))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.scale.reshape(1, -1, 1, 1) * (1.5 + self.scale.reshape(1, -1, 1, 1).abs()).rsqrt()
        return self.classify(self.c(F.relu(self.stem(x) * scale - self.mean.reshape(1, -1, 1, 1))))


@network(IMAGE, "c.weight:0", {"stem.weight:0": "stay"}, zero_keeps=False)
class ConstantSlopes(Body):
    """Slopes made in ``forward``, one for each channel."""

    def __init__(self) -> None:
        super().__init__(5, 6)
        self.c = conv(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.classify(self.c(F.prelu(x, torch.linspace(0.1, 0.5, 5, dtype=x.dtype))))


class _NormOfTokens(nn.Module):
    """A norm whose channels are the five tokens, over what a layer makes of them beside what they were."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.a, self.norm, self.head = nn.Linear(6, 8), norm, nn.Linear(14, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(torch.cat((self.a(x), x), 2))).mean(1)


@network(TOKENS, "a.weight:0 head.weight:1", HEAD, zero_keeps=False)
def instance_norm_of_tokens() -> nn.Module:
    """Every token is normalised over its channels."""
    return _NormOfTokens(nn.InstanceNorm1d(5, affine=True))


@network(TOKENS, "a.weight:0 head.weight:1", HEAD, zero_keeps=False)
def batch_norm_of_tokens() -> nn.Module:
    """Without running statistics, every token is normalised over its channels and the batch."""
    return _NormOfTokens(nn.BatchNorm1d(5, track_running_stats=False))


@network(TOKENS, "a.weight:0 head.weight:1", HEAD, zero_keeps=False)
def group_norm_of_tokens() -> nn.Module:
    """A group is one token with all of its channels."""
    return _NormOfTokens(nn.GroupNorm(5, 5))
