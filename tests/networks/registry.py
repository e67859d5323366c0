"""The networks by name, with what must be true of their channels; and what tests do with them: build, capture, zero."""

from __future__ import annotations

import copy
import functools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from fxprune.capture import Traced, trace


@dataclass(frozen=True)
class Expectation:
    """What must hold for a network: slices written ``(parameter, dimension)``.

    ``cut``: some index there is removable. ``frozen``: none is, and the reason contains the text. What neither
    mentions may be either, but must be right. ``zero_keeps``: a removed channel is exactly a channel whose producers
    are zero, so that the eager model with zeroed weights is an independent reference.
    """

    cut: tuple[tuple[str, int], ...] = ()
    frozen: tuple[tuple[str, int, str], ...] = ()
    zero_keeps: bool = True

    @property
    def kind(self) -> str:
        """``"cut"``, ``"frozen"`` or ``"mixed"``."""
        return "mixed" if self.cut and self.frozen else "cut" if self.cut else "frozen" if self.frozen else "mixed"


class Network(NamedTuple):
    """One construct."""

    factory: Callable[[], nn.Module]
    args: tuple[Any, ...]
    expectation: Expectation
    kwargs: dict[str, Any]


NETWORKS: dict[str, Network] = {}
Removal = dict[str, dict[int, list[int]]]
_F = TypeVar("_F", bound=Callable[[], nn.Module])


@dataclass(frozen=True)
class Inputs:
    """Example inputs, positional and by keyword."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Return a standard normal tensor that does not depend on the global seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


IMAGE = Inputs((normal(2, 3, 8, 8),))
TOKENS = Inputs((normal(2, 5, 6),))
WORDS = Inputs((torch.arange(10).reshape(2, 5) % 7,))


def network(
    inputs: Inputs, cut: str = "", frozen: Mapping[str, str] | None = None, zero_keeps: bool = True
) -> Callable[[_F], _F]:
    """Register a class or function under its name in snake case; slices are written ``parameter:dimension``."""

    def place(text: str) -> tuple[str, int]:
        name, dim = text.split(":")
        return name, int(dim)

    def register(factory: _F) -> _F:
        expectation = Expectation(
            tuple(place(text) for text in cut.split()),
            tuple((*place(text), why) for text, why in (frozen or {}).items()),
            zero_keeps,
        )
        name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", factory.__name__).lower()
        if name in NETWORKS:
            raise ValueError(f"two networks are called {name}")
        NETWORKS[name] = Network(factory, inputs.args, expectation, inputs.kwargs)
        return factory

    return register


def build(
    name: str, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    """Return the network in evaluation mode with every parameter and statistic random, and its example inputs.

    Fresh modules have unit scales, zero biases and zero means, which hide most mistakes.
    """
    case = NETWORKS[name]
    torch.manual_seed(seed)
    model = case.factory().eval()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for key, value in [*model.named_parameters(), *model.named_buffers()]:
            if not value.is_floating_point():
                continue
            noise = torch.randn(value.shape, generator=generator)
            if key.endswith("running_var") or (value.dim() == 1 and key.endswith("weight")):
                value.copy_(0.5 + noise.abs())
            else:
                value.copy_(noise / math.sqrt(max(1, math.prod(value.shape[1:]))) if value.dim() > 1 else 0.3 * noise)

    def cast(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    return (
        model.to(dtype),
        tuple(cast(arg) for arg in case.args),
        {key: cast(value) for key, value in case.kwargs.items()},
    )


def produced(module: nn.Module, parameter: str) -> tuple[int, ...]:
    """Return the dimensions of a parameter whose slices make a channel; zeroed there, the channel is zero."""
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) or (
        isinstance(module, nn.modules.conv._ConvTransposeNd) and parameter == "weight"
    ):
        return (1,)
    if isinstance(
        module,
        nn.modules.conv._ConvNd
        | nn.Linear
        | nn.modules.batchnorm._NormBase
        | nn.GroupNorm
        | nn.RNNBase
        | nn.RNNCellBase
        | nn.Bilinear
        | nn.MultiheadAttention,
    ):
        return (0,)
    if isinstance(module, nn.PReLU):
        return ()
    return tuple(range(getattr(module, parameter).dim()))


@functools.cache
def captured(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Traced]:
    """Return a network and its capture, made once for all tests that change neither."""
    model, args, kwargs = build(name, dtype)
    return model, trace(model, args, kwargs=kwargs)


def zeroed(model: nn.Module, removed: Removal) -> nn.Module:
    """Return a copy of the model whose removed channels are never produced. Consumers keep their weights."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, dims in removed.items():
            owner, _, leaf = name.rpartition(".")
            if name not in dict(model.named_parameters(remove_duplicate=False)):
                continue
            value = model.get_parameter(name)
            for dim in produced(model.get_submodule(owner), leaf):
                value.index_fill_(dim, torch.tensor(dims.get(dim, []), dtype=torch.int64), 0.0)
    return model
