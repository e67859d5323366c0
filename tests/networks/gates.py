"""Gates: a product with what was computed from the same values."""

# Calling a module is Any to a type checker.
# mypy: disable-error-code="no-any-return"
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.parts import HEAD, Body, conv
from tests.networks.registry import IMAGE, TOKENS, network


@network(IMAGE, "stem.weight:0 down.weight:0 up.weight:0 c.weight:1")
class SqueezeExcite(Body):
    def __init__(self) -> None:
        super().__init__(6, 5)
        self.down, self.up, self.c = nn.Conv2d(6, 4, 1), nn.Conv2d(4, 6, 1), conv(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        gate = torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        return self.classify(self.c(x * gate))


@network(IMAGE, "stem.weight:0 down.weight:0 up.weight:0")
class SqueezeExciteLinear(Body):
    def __init__(self) -> None:
        super().__init__(6, 6)
        self.down, self.up = nn.Linear(6, 4), nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        gate = F.hardsigmoid(self.up(F.relu(self.down(x.mean((2, 3))))))
        return self.classify(x * gate.view(x.shape[0], 6, 1, 1).expand_as(x))


@network(IMAGE, "stem.weight:0 c.weight:0")
class SpatialAttention(Body):
    """A convolution with one output channel multiplies all channels: broadcast, not depthwise."""

    def __init__(self) -> None:
        super().__init__(5, 6)
        self.gate, self.c = conv(5, 1), conv(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.classify(self.c(x * torch.sigmoid(self.gate(x))))


@network(IMAGE, "stem.weight:0 stem.bias:0 c.weight:1")
class Glu(Body):
    def __init__(self) -> None:
        super().__init__(10, 6)
        self.c = conv(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(F.glu(self.stem(x), 1)))


@network(TOKENS, "gate.weight:0 up.weight:0 down.weight:1 down.weight:0", HEAD)
class SwiGlu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down, self.head = (
            nn.Linear(6, 8, False),
            nn.Linear(6, 8, False),
            nn.Linear(8, 5),
            nn.Linear(5, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.down(F.silu(self.gate(x)) * self.up(x)))


@network(TOKENS, "both.weight:0 head.weight:1", HEAD)
class SwiGluPacked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.both, self.head = nn.Linear(6, 14), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.both(x).chunk(2, dim=-1)
        return self.head(F.silu(gate) * up)


@network(IMAGE, "c.weight:0", {"stem.weight:0": ""})
class EfficientChannelAttention(Body):
    """ECA: a convolution slides over the channels as if they were a sequence, so every channel has neighbours."""

    def __init__(self) -> None:
        super().__init__(7, 6)
        self.slide, self.c = nn.Conv1d(1, 1, 3, padding=1), conv(7, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        gate = self.slide(F.adaptive_avg_pool2d(x, 1).squeeze(-1).transpose(-1, -2))
        return self.classify(self.c(x * torch.sigmoid(gate.transpose(-1, -2).unsqueeze(-1))))


@network(IMAGE, "c.weight:0", {"stem.weight:0": ""}, zero_keeps=False)
class TripletAttention(Body):
    """Channels and height change places before a convolution: channels become positions."""

    def __init__(self) -> None:
        super().__init__(8, 6)
        self.turned, self.c = conv(8, 8), conv(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.classify(self.c(x * torch.sigmoid(self.turned(x.permute(0, 2, 1, 3)).permute(0, 2, 1, 3))))


@network(IMAGE, "stem.weight:0 branch.weight:0 select.weight:0 c.weight:1", zero_keeps=False)
class SelectiveKernel(Body):
    """SKNet: a softmax over branches, with a weight per branch and channel."""

    def __init__(self) -> None:
        super().__init__(5, 7)
        self.branch, self.select, self.c = conv(3, 5), nn.Linear(5, 10), conv(5, 7)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.stack([self.stem(x), self.branch(x)], 1)
        weights = self.select(both.sum(1).mean((2, 3))).view(-1, 2, 5).softmax(1)
        return self.classify(self.c((both * weights[..., None, None]).sum(1)))


@network(IMAGE, "stem.weight:0 select.weight:0 c.weight:1", zero_keeps=False)
class SplitAttention(Body):
    """ResNeSt: channels are (radix, channel); a softmax over the radix."""

    def __init__(self) -> None:
        super().__init__(10, 7)
        self.select, self.c = nn.Conv2d(5, 10, 1), conv(5, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).reshape(x.shape[0], 2, 5, 8, 8)
        gap = x.sum(1).mean((2, 3), keepdim=True)
        weights = self.select(gap).view(x.shape[0], 1, 2, 5).transpose(1, 2).softmax(1).reshape(x.shape[0], 2, 5, 1, 1)
        return self.classify(self.c((x * weights).sum(1)))
