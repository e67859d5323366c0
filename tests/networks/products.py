"""Products of two operands, and embeddings."""

# Calling a module is Any to a type checker.
# mypy: disable-error-code="no-any-return"
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.parts import HEAD, Body, conv
from tests.networks.registry import IMAGE, TOKENS, WORDS, Inputs, network, normal


@network(IMAGE, "stem.weight:0 matrix:0 matrix:1 c.weight:1")
class EinsumConv(Body):
    def __init__(self) -> None:
        super().__init__(5, 6)
        self.matrix, self.c = nn.Parameter(torch.zeros(7, 5)), conv(7, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(torch.einsum("bchw,oc->bohw", self.stem(x), self.matrix)))


@network(TOKENS, "a.weight:0 matrix:0 matrix:1 head.weight:1", HEAD)
class EinsumEllipsis(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.matrix, self.head = nn.Linear(6, 8), nn.Parameter(torch.zeros(8, 5)), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.einsum("...c,co", self.a(x), self.matrix))


@network(Inputs((normal(2, 6),)), "last.weight:1", {"last.weight:0": "output"})
class Bilinear(nn.Module):
    """An outer product, flattened: a table of 5 x 7 of which only rows or only columns may go."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.last = nn.Linear(6, 5), nn.Linear(6, 7), nn.Linear(35, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.einsum("bi,bj->bij", self.a(x), self.b(x)).flatten(1))


@network(IMAGE, "c.weight:0")
class Gram(Body):
    """Channels times channels: a removed channel takes a row and a column of the flattened table."""

    def __init__(self) -> None:
        super().__init__(5, 6)
        self.c = nn.Linear(25, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2)
        return self.head(F.relu(self.c((x @ x.transpose(1, 2)).flatten(1))))


@network(WORDS, "embed.weight:1 a.weight:1 a.weight:0", HEAD)
class TextClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.a, self.head = nn.Embedding(9, 6), nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.a(self.embed(x).mean(1))))


@network(
    Inputs((normal(2, 6), normal(2, 5, seed=1))),
    "a.weight:0 b.weight:0 both.weight:0 both.weight:1 both.weight:2 both.bias:0 head.weight:1",
    HEAD,
)
class BilinearLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.both, self.head = nn.Linear(6, 7), nn.Linear(5, 8), nn.Bilinear(7, 8, 9), nn.Linear(9, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(F.relu(self.both(self.a(x), self.b(y))))


@network(WORDS, "bag.weight:1 hidden.weight:0", {"bag.weight:0": "looked up", "head.weight:0": "output"})
class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag, self.hidden, self.head = nn.EmbeddingBag(7, 8, mode="max"), nn.Linear(8, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.hidden(self.bag(x))))
