"""Networks that people write by hand and that a pruner stumbles over: what each is, and what has to come of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Oddity:
    """One network.

    Attributes:
        title: What it is, for people.
        build: Makes it.
        args: Example inputs.
        needs: The library that it is built with, beside torch ("" for none).
    """

    title: str
    build: Callable[[], nn.Module]
    args: tuple[Any, ...]
    needs: str = ""


ODDITIES: dict[str, Oddity] = {}
_F = TypeVar("_F", bound=Callable[[], nn.Module])


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Return a standard normal tensor that does not depend on the global seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ids(*shape: int, below: int) -> Tensor:
    """Return whole numbers, the same each time."""
    return torch.randint(0, below, shape, generator=torch.Generator().manual_seed(0))


IMAGE = (normal(2, 3, 8, 8),)
TOKENS = (normal(2, 5, 6),)
VECTOR = (normal(2, 6),)
SERIES = (normal(2, 3, 16),)


def oddity(title: str, args: tuple[Any, ...], needs: str = "") -> Callable[[_F], _F]:
    """Register a class or function under its name in snake case."""

    def register(build: _F) -> _F:
        name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", build.__name__).lower()
        if name in ODDITIES:
            raise ValueError(f"there are two networks {name!r}")
        ODDITIES[name] = Oddity(title, build, args, needs)
        return build

    return register


@torch.no_grad()
def made(oddity: Oddity) -> nn.Module:
    """Return the network in evaluation mode, its weights random and none of them constant.

    Fresh layers have scales of one and biases of zero, which hide most mistakes.
    """
    torch.manual_seed(0)
    model = oddity.build().eval()
    generator = torch.Generator().manual_seed(1)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if value.is_floating_point() and value.numel() > 1 and bool(value.min() == value.max()):
            noise = torch.rand(value.shape, generator=generator)
            value.copy_(0.5 + noise if value.min() == 1 or name.endswith("running_var") else noise - 0.5)
    return model
