"""Layers and parameters that are used more than once."""

# Calling a module is Any to a type checker.
# mypy: disable-error-code="no-any-return"
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.parts import Body, conv
from tests.networks.registry import IMAGE, WORDS, Inputs, network, normal


@network(IMAGE, "stem.weight:0 shared.weight:0 shared.weight:1")
class ModuleTwice(Body):
    def __init__(self) -> None:
        super().__init__(6, 6)
        self.shared = conv(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.shared(F.relu(self.shared(self.stem(x)))))


@network(IMAGE, "stem.weight:0 b.weight:0 shared.weight:1 shared.weight:0")
class SharedHead(Body):
    """One convolution on two levels, as in detectors."""

    def __init__(self) -> None:
        super().__init__(6, 5)
        self.b, self.shared = conv(6, 6, stride=2), conv(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.classify(self.shared(x)) - self.classify(self.shared(F.relu(self.b(x))))


@network(IMAGE, "stem.weight:0 shared.weight:0 norm1.weight:0 norm2.weight:0")
class SharedConvTwoNorms(Body):
    """Folding either norm into the convolution, or cutting for one call only, breaks the other call."""

    def __init__(self) -> None:
        super().__init__(6, 5)
        self.shared, self.norm1, self.norm2 = conv(6, 5), nn.BatchNorm2d(5), nn.BatchNorm2d(5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.classify(F.relu(self.norm1(self.shared(x))) + self.norm2(self.shared(x.flip(-1))))


@network(WORDS, "embed.weight:1 mix.weight:0 mix.weight:1 out.weight:1", {"out.weight:0": "", "embed.weight:0": ""})
class TiedWeights(nn.Module):
    """Output logits of a language model share the embedding matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.out = nn.Embedding(7, 6), nn.Linear(6, 6), nn.Linear(6, 7, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.out(x + F.relu(self.mix(x)))


@network(Inputs((normal(2, 5),)), "inner.weight:0 matrix:0 matrix:1", {"head.weight:0": "output"})
class TiedTranspose(nn.Module):
    """An autoencoder whose decoder is the transposed encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.matrix, self.head = nn.Linear(5, 7), nn.Parameter(torch.zeros(6, 7)), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        code = F.relu(F.linear(self.inner(x), self.matrix))
        return self.head(F.relu(code @ self.matrix))
