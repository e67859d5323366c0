"""Small models that have no graph as a whole, one for each thing that capture by region has to deal with."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Backbone(nn.Module):
    """Three feature maps, nested."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.wide = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU())
        self.out = nn.Conv2d(32, 8, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.out(self.wide(self.stem(x)))
        return OrderedDict(near=x, rest=[F.max_pool2d(x, 2), {"far": F.max_pool2d(x, 4)}])


class Head(nn.Module):
    """Called once for each level, so with several sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.scores = nn.Conv2d(8, 24, 3, padding=1), nn.Conv2d(24, 1, 1)

    def forward(self, x: Tensor, *, scale: Tensor) -> tuple[Tensor, Tensor]:
        hidden = F.relu(self.hidden(x))
        return self.scores(hidden) * scale, x.mean((2, 3))


class Detector(nn.Module):
    """Keeps the places with a high score, and looks at each again: as many as there are."""

    def __init__(self, threshold: float = 0.0) -> None:
        super().__init__()
        self.threshold = threshold
        self.backbone, self.head = Backbone(), Head()
        self.inner = nn.Sequential(nn.Linear(8, 20), nn.ReLU(), nn.Linear(20, 12), nn.ReLU())
        self.classes = nn.Sequential(nn.Linear(12, 18), nn.ReLU(), nn.Linear(18, 5))
        self.never = nn.Linear(4, 4)

    def forward(self, images: list[Tensor], targets: Tensor | None = None) -> Any:
        features = self.backbone(torch.stack(images))
        levels = [features["near"], features["rest"][0], features["rest"][1]["far"]]
        kept = []
        for level in levels:
            scores, _ = self.head(level, scale=torch.ones(()))
            places = (scores[:, 0] > self.threshold).nonzero()
            kept.append(level[places[:, 0], :, places[:, 1], places[:, 2]])
        rows = torch.cat(kept)
        found = self.classes(self.inner(rows))
        if targets is not None:
            return {"loss": F.cross_entropy(found, targets.expand(len(found)))}
        best, order = found.softmax(1).max(1).values.sort(descending=True)
        return {"scores": best, "classes": found.argmax(1)[order], "rows": rows[order]}


def images(sizes: int = 2) -> tuple[list[Tensor]]:
    return ([normal(3, 16, 16, seed=seed) for seed in range(sizes)],)


class Shared(nn.Module):
    """One layer in two regions, and called from outside of both too if asked to."""

    def __init__(self, outside: bool = False) -> None:
        super().__init__()
        shared = nn.Linear(16, 16)
        self.one = nn.Sequential(nn.Linear(6, 16), shared, nn.ReLU(), nn.Linear(16, 4))
        self.other = nn.Sequential(nn.Linear(6, 16), shared, nn.Linear(16, 3))
        self.outside = outside

    def forward(self, x: Tensor) -> Any:
        a = self.one(x)
        if float(a.sum()) > 1e9:
            return a
        b = self.other(x)
        if self.outside:
            b = b + F.linear(x, self.one[0].weight).sum()
        return a, b


class Kinds(nn.Module):
    """A block that does something else for another number, and one whose code fixes the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.fixed = Numbered(), Fixed()

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(x, 1) if float(x.sum()) < 1e9 else x
        return self.block(x, 2) + self.fixed(x)


class Numbered(nn.Module):
    """Computes another function for another number."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 6)

    def forward(self, x: Tensor, number: int) -> Tensor:
        return self.b(F.relu(self.a(x)) * number)


class Fixed(nn.Module):
    """Takes two samples."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x.reshape(2, 6)).relu())


class Experts(nn.Module):
    """Sends each token to one of several experts, of which the last gets none."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(8, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, 8)
        chosen, found = self.gate(tokens).argmax(1), torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            mine = (chosen == number).nonzero()[:, 0]
            found[mine] = expert(tokens[mine])
        return found.reshape(x.shape)


class Branches(nn.Module):
    """Decides by a value, and has nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        if float((x * self.weight).sum()) > 0:
            return x * 2
        return x - 1


class Holder(nn.Module):
    """Decides by a value, and calls only modules that do."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.other = Branches(), nn.Sequential(Branches())

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.part(x)) if float(x.sum()) < 1e9 else x


class Baked(nn.Module):
    """Has an inner width of its region written into the code around it."""

    def __init__(self) -> None:
        super().__init__()
        self.region = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, x: Tensor) -> Tensor:
        if float(x.sum()) > 1e9:
            return x
        return self.region(x) + torch.zeros(16)[: self.region[0].out_features].reshape(16).sum()
