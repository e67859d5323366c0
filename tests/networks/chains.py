"""Chains, residual connections, concatenation and dense blocks."""

# Calling a module is Any to a type checker.
# mypy: disable-error-code="no-any-return"
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.parts import ENDS, Body, conv
from tests.networks.registry import IMAGE, Inputs, network, normal


@network(
    Inputs((normal(2, 3),)),
    "0.weight:0 0.bias:0 2.weight:0 2.weight:1 4.weight:1",
    {"0.weight:1": "input", "4.weight:0": "output"},
)
def linear_chain() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))


@network(
    IMAGE, "0.weight:0 1.running_var:0 3.weight:1 3.weight:0 8.weight:1", {"0.weight:1": "input", "8.bias:0": "output"}
)
def conv_chain() -> nn.Module:
    convs = [conv(3, 5), nn.BatchNorm2d(5), nn.ReLU(), conv(5, 7, bias=False), nn.BatchNorm2d(7), nn.ReLU()]
    return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, 4))


@network(IMAGE, "stem.weight:0 a.weight:0 b.weight:0", ENDS)
class Residual(Body):
    def __init__(self) -> None:
        super().__init__(6, 6)
        self.a, self.norm, self.b = conv(6, 7), nn.BatchNorm2d(7), conv(7, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.classify(F.relu(x + self.b(F.relu(self.norm(self.a(x))))))


@network(IMAGE, "stem.weight:0 a.weight:0 skip.weight:0 norm.weight:0")
class ResidualProjection(Body):
    def __init__(self) -> None:
        super().__init__(5, 7)
        self.a, self.skip, self.norm = conv(5, 7, stride=2), conv(5, 7, 1, stride=2), nn.BatchNorm2d(7)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = self.a(x)
        y += self.norm(self.skip(x))
        return self.classify(y)


@network(IMAGE, "stem.weight:0 b.weight:0 c.weight:1 c.weight:0", ENDS)
class Concat(Body):
    def __init__(self) -> None:
        super().__init__(5, 7)
        self.b, self.c = conv(3, 6), conv(11, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(torch.cat([self.stem(x), F.relu(self.b(x))], 1)))


@network(IMAGE, "stem.weight:0 b.weight:0 c.weight:1")
class ConcatNested(Body):
    """The same tensor enters twice, once through an inner concatenation."""

    def __init__(self) -> None:
        super().__init__(5, 7)
        self.b, self.c = conv(3, 6), conv(16, 7)

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        return self.classify(self.c(torch.cat([torch.cat([a, self.b(x)], 1), a], 1)))


@network(IMAGE, "stem.weight:0 b.weight:0 c.weight:1")
class ConcatWidth(Body):
    def __init__(self) -> None:
        super().__init__(5, 7)
        self.b, self.c = conv(3, 5), conv(5, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(torch.cat([self.stem(x), self.b(x)], 3)))


@network(IMAGE, "stem.weight:0 b.weight:0 c.weight:1 c.weight:0")
class ConcatBatch(Body):
    def __init__(self) -> None:
        super().__init__(5, 7)
        self.b, self.c = conv(3, 5), conv(5, 7)

    def forward(self, x: Tensor) -> Tensor:
        y = self.c(torch.cat([self.stem(x), self.b(x)], 0))
        return self.classify(y[: x.shape[0]] - y[x.shape[0] :])


@network(IMAGE, "stem.weight:0 a.weight:0 b.weight:0")
class OptionAPad(Body):
    """CIFAR ResNet's shortcut: every other position, channels padded with zeros on both sides."""

    def __init__(self) -> None:
        super().__init__(5, 9)
        self.a, self.b = conv(5, 6, stride=2), conv(6, 9)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.classify(F.relu(F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)) + self.b(F.relu(self.a(x)))))


@network(IMAGE, "a.weight:0 b.weight:1")
class OptionAZeros(Body):
    """The same with a block of zeros concatenated behind."""

    def __init__(self) -> None:
        super().__init__(5, 8)
        self.a, self.b = conv(5, 6, stride=2), conv(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        short = F.avg_pool2d(x, 2)
        short = torch.cat([short, torch.zeros(x.shape[0], 3, 4, 4, dtype=x.dtype)], 1)
        return self.classify(short + self.b(F.relu(self.a(x))))


@network(IMAGE, "c.weight:0")
class PadChannels(Body):
    def __init__(self) -> None:
        super().__init__(5, 6)
        self.c = conv(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(F.pad(self.stem(x), (0, 0, 0, 0, 1, 2))))


@network(IMAGE, "stem.weight:0 c.weight:0 c.weight:1")
class Dropout(Body):
    def __init__(self) -> None:
        super().__init__(5, 6)
        self.drop2d, self.c, self.drop = nn.Dropout2d(0.5), conv(5, 6), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.c(self.drop2d(self.stem(x))).mean((2, 3))))


@network(IMAGE, "stem.weight:0 c.weight:1")
class CoordinateChannels(Body):
    """CoordConv: coordinates are concatenated as two more channels."""

    def __init__(self) -> None:
        super().__init__(5, 6)
        self.c = conv(7, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        rows = torch.linspace(-1, 1, 8, dtype=x.dtype).view(1, 1, 8, 1).expand(x.shape[0], 1, 8, 8)
        return self.classify(self.c(torch.cat([rows, x, rows.transpose(2, 3)], 1)))


@network(IMAGE, "stem.weight:0 b.weight:0 c.weight:1")
class WhereMask(Body):
    """A mask with one channel chooses between two tensors."""

    def __init__(self) -> None:
        super().__init__(5, 6)
        self.b, self.c = conv(3, 5), conv(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        mask = x.mean(1, keepdim=True) > 0
        return self.classify(self.c(torch.where(mask, self.stem(x), self.b(x)).masked_fill(~mask.flip(2), 0.0)))


@network(IMAGE, "stem.weight:0 a.weight:0 b.weight:0 c.weight:1")
class DenseBlock(Body):
    """DenseNet: every layer reads all before it, through a norm over the concatenation."""

    def __init__(self) -> None:
        super().__init__(5, 6)
        self.n1, self.a, self.n2, self.b = nn.BatchNorm2d(5), conv(5, 3), nn.BatchNorm2d(8), conv(8, 3)
        self.c = conv(11, 6)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.stem(x)]
        for norm, layer in ((self.n1, self.a), (self.n2, self.b)):
            parts.append(layer(F.relu(norm(torch.cat(parts, 1)))))
        return self.classify(self.c(torch.cat(parts, 1)))
