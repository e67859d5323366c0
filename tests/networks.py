"""Tiny networks, one for each construct that breaks a structured pruner, with what must be true of their channels.

``NETWORKS[name]`` is ``(factory, args, expectation, kwargs)``. Channel counts differ wherever a mix-up of two
dimensions would otherwise go unseen, and are equal to spatial sizes in a few networks on purpose, because matching
dimensions by size is a classical way to be silently wrong.
"""

# Calling a module is Any to a type checker.
# mypy: disable-error-code="no-any-return"
from __future__ import annotations

import copy
import functools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
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


def conv(inputs: int, outputs: int, kernel: int = 3, **options: Any) -> nn.Conv2d:
    """Return a convolution that keeps the spatial size."""
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


class Body(nn.Module):
    """Give a network an image stem ``3 -> width`` and a classifier ``tail -> 4`` over the mean of positions."""

    def __init__(self, width: int, tail: int) -> None:
        super().__init__()
        self.stem = conv(3, width)
        self.head = nn.Linear(tail, 4)

    def classify(self, x: Tensor) -> Tensor:
        """Return four logits of an NCHW tensor."""
        return self.head(x.mean((2, 3)))


HEAD = {"head.weight:0": "output"}
ENDS = {"stem.weight:1": "input", **HEAD}

# ---------------------------------------------------------------- chains, residuals, concatenation


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


# ---------------------------------------------------------------- splits, slices, indices


@network(IMAGE, "stem.weight:0 m.weight:0 m.weight:1 c.weight:1 c.weight:0")
class C2f(Body):
    """YOLOv8's block: chunk, a branch on one half, concatenation of everything."""

    def __init__(self) -> None:
        super().__init__(8, 6)
        self.m, self.c = conv(4, 4), conv(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(F.relu(self.stem(x)).chunk(2, 1))
        parts.append(self.m(parts[-1]))
        return self.classify(self.c(torch.cat(parts, 1)))


@network(IMAGE, "stem.weight:0 a.weight:1 b.weight:1 c.weight:1")
class SplitUneven(Body):
    def __init__(self) -> None:
        super().__init__(9, 5)
        self.a, self.b, self.c = conv(2, 5), conv(3, 5), conv(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = self.stem(x).split([2, 3, 4], 1)
        return self.classify(self.a(a) + self.b(b) + self.c(c))


@network(IMAGE, "stem.weight:0 a.weight:1 b.weight:1")
class SplitEven(Body):
    def __init__(self) -> None:
        super().__init__(11, 5)
        self.a, self.b = conv(4, 5), conv(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = torch.split(self.stem(x), 4, 1)
        return self.classify(self.a(a) * self.a(b) + self.b(c))


@network(IMAGE, "stem.weight:0 a.weight:1 b.weight:1")
class SliceConstant(Body):
    """Overlapping constant slices, one of them with a step."""

    def __init__(self) -> None:
        super().__init__(12, 5)
        self.a, self.b, self.c = conv(8, 5), conv(3, 5), conv(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.classify(self.a(x[:, :8]) + self.b(x[:, 2:10:3]) + self.c(x[:, -5:]))


@network(IMAGE, "stem.weight:0 c.weight:1")
class SlicePart(Body):
    """Channels 5 to 8 are read by nobody."""

    def __init__(self) -> None:
        super().__init__(9, 6)
        self.c = conv(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(self.stem(x)[:, :5]))


@network(IMAGE, "stem.weight:0 c.weight:1")
class UnbindFactor(Body):
    def __init__(self) -> None:
        super().__init__(12, 5)
        self.c = conv(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = self.stem(x).view(x.shape[0], 3, 4, 8, 8).unbind(1)
        return self.classify(self.c(a * b + c))


@network(IMAGE, "c.weight:0")
class UnbindChannels(Body):
    """Single channels become tensors of their own: each has a meaning."""

    def __init__(self) -> None:
        super().__init__(4, 6)
        self.c = conv(3, 6)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c, d = self.stem(x).unbind(1)
        return self.classify(self.c(torch.stack([a * b, c + d, a], 1)))


@network(IMAGE, "c.weight:0")
class SelectChannel(Body):
    def __init__(self) -> None:
        super().__init__(5, 6)
        self.c = conv(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.classify(self.c(x) * x[:, 3].unsqueeze(1))


@network(IMAGE, "stem.weight:0 c.weight:1")
class IndexSelect(Body):
    def __init__(self) -> None:
        super().__init__(7, 6)
        self.c = conv(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(torch.index_select(self.stem(x), 1, torch.tensor([3, 1, 6, 0]))))


@network(IMAGE, "stem.weight:0 c.weight:1")
class IndexList(Body):
    """A repeated index: one channel is read twice."""

    def __init__(self) -> None:
        super().__init__(6, 5)
        self.c = conv(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(self.stem(x)[:, [4, 2, 0, 2, 5]]))


@network(IMAGE, "stem.weight:0 c.weight:1")
class IndexBuffer(Body):
    """A channel permutation stored in the state."""

    order: Tensor

    def __init__(self) -> None:
        super().__init__(6, 5)
        self.register_buffer("order", torch.tensor([5, 0, 3, 1, 4, 2]))
        self.c = conv(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(F.relu(self.stem(x))[:, self.order]))


# ---------------------------------------------------------------- flatten, reshape, permute


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


# ---------------------------------------------------------------- depthwise and grouped convolution


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


# ---------------------------------------------------------------- gates


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


# ---------------------------------------------------------------- normalisation and per-channel parameters


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


# ---------------------------------------------------------------- transformers


@network(IMAGE, "patch.weight:0 token:2 position:2 up.weight:0 down.weight:0 head.weight:1", HEAD, zero_keeps=False)
class ClassToken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch, self.token, self.position = (
            nn.Conv2d(3, 6, 4, 4),
            nn.Parameter(torch.zeros(1, 1, 6)),
            nn.Parameter(torch.zeros(1, 5, 6)),
        )
        self.norm, self.up, self.down, self.head = nn.LayerNorm(6), nn.Linear(6, 7), nn.Linear(7, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        return self.head(x[:, 0])


class Heads(nn.Module):
    """Three heads of four on a width of six: projections ``q, k, v``, the output ``proj`` and a classifier."""

    heads, dim = 3, 4

    def __init__(self, kv_heads: int = 3) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, 12), nn.Linear(6, 4 * kv_heads), nn.Linear(6, 4 * kv_heads)
        self.proj, self.head = nn.Linear(12, 7), nn.Linear(7, 4)

    def split(self, x: Tensor, heads: int = 3) -> Tensor:
        """Return ``(batch, heads, tokens, dim)``."""
        return x.view(x.shape[0], x.shape[1], heads, 4).transpose(1, 2)

    def merge(self, x: Tensor) -> Tensor:
        """Return the logits of ``(batch, heads, tokens, dim)``."""
        x = x.transpose(1, 2).reshape(x.shape[0], x.shape[2], 12)
        return self.head(self.proj(x))


QKV = "q.weight:0 k.weight:0 v.weight:0 proj.weight:1 proj.weight:0"


@network(TOKENS, QKV, HEAD)
class AttentionSeparate(Heads):
    """Matrix products and softmax by hand."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x))
        weights = (q @ k.transpose(-2, -1) / math.sqrt(4)).softmax(-1)
        return self.merge(weights @ v)


@network(TOKENS, QKV, HEAD)
class AttentionSdpa(Heads):
    def forward(self, x: Tensor) -> Tensor:
        return self.merge(
            F.scaled_dot_product_attention(self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x)))
        )


@network(TOKENS, QKV, HEAD)
class AttentionCausal(Heads):
    """Keys are reused by a boolean mask, and queries come first in the product."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x))
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        weights = torch.matmul(q * 0.5, k.mT).masked_fill(~mask, float("-inf")).softmax(-1)
        return self.merge(torch.matmul(weights, v))


@network(TOKENS, "qkv.weight:0 qkv.bias:0 proj.weight:1 proj.weight:0", HEAD)
class AttentionPacked(nn.Module):
    """One linear layer for all three projections, as timm's ViT has it."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj, self.head = nn.Linear(6, 36), nn.Linear(12, 7), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(x.shape[0], 5, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v, scale=0.7)
        return self.head(self.proj(x.transpose(1, 2).reshape(x.shape[0], 5, 12)))


@network(TOKENS, "mlp.weight:0")
class AttentionModule(nn.Module):
    """``nn.MultiheadAttention`` with a residual stream through it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.attention = nn.Linear(6, 12), nn.MultiheadAttention(12, 3, batch_first=True)
        self.mlp, self.head = nn.Linear(12, 7), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(F.relu(self.mlp(x)))


@network(TOKENS, "layers.0.linear1.weight:0 layers.0.self_attn.out_proj.weight:1", zero_keeps=False)
def transformer_encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(6, 3, 8, batch_first=True, dropout=0.0)
    return nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)


@network(TOKENS, QKV, HEAD)
class AttentionGrouped(Heads):
    """Four query heads on two key and value heads: a key head leaves together with its two query heads."""

    def __init__(self) -> None:
        super().__init__(kv_heads=2)
        self.q, self.proj = nn.Linear(6, 16), nn.Linear(16, 7)

    def forward(self, x: Tensor) -> Tensor:
        k, v = (self.split(layer(x), 2).repeat_interleave(2, dim=1) for layer in (self.k, self.v))
        x = F.scaled_dot_product_attention(self.split(self.q(x), 4), k, v)
        return self.head(self.proj(x.transpose(1, 2).reshape(x.shape[0], 5, 16)))


@network(TOKENS, "q.weight:0 proj.weight:1 proj.weight:0", HEAD, zero_keeps=False)
class AttentionGroupedExpand(AttentionGrouped):
    """The same with Llama's ``repeat_kv``: a key head may go, or one query head of each key head."""

    def forward(self, x: Tensor) -> Tensor:
        k, v = (
            self.split(layer(x), 2)[:, :, None].expand(-1, 2, 2, 5, 4).reshape(-1, 4, 5, 4)
            for layer in (self.k, self.v)
        )
        x = F.scaled_dot_product_attention(self.split(self.q(x), 4), k, v)
        return self.head(self.proj(x.transpose(1, 2).reshape(-1, 5, 16)))


@network(IMAGE, "qkv.weight:0 table:1 proj.weight:1 proj.weight:0")
class AttentionWindowed(Body):
    """Swin's: windows become batch entries, a table of relative positions has a column per head."""

    index: Tensor

    def __init__(self) -> None:
        super().__init__(6, 6)
        self.qkv, self.proj, self.table = nn.Linear(6, 36), nn.Linear(12, 6), nn.Parameter(torch.zeros(49, 3))
        self.register_buffer("index", (torch.arange(16)[:, None] * 3 + torch.arange(16)) % 49)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        windows = x.view(-1, 6, 2, 4, 2, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, 6)
        q, k, v = self.qkv(windows).reshape(-1, 16, 3, 3, 4).permute(2, 0, 3, 1, 4)
        bias = self.table[self.index.view(-1)].view(16, 16, 3).permute(2, 0, 1)
        y = ((q * 0.5) @ k.transpose(-2, -1) + bias.unsqueeze(0)).softmax(-1) @ v
        y = self.proj(y.transpose(1, 2).reshape(-1, 16, 12)).view(-1, 2, 2, 4, 4, 6)
        return self.classify(x + y.permute(0, 5, 1, 3, 2, 4).reshape(-1, 6, 8, 8))


@network(IMAGE, "q.weight:0 k.weight:0 v.weight:0 proj.weight:1")
class AttentionPooled(Body):
    """MViT's: batch and heads are merged; a depthwise convolution, shared by the heads, pools keys and values."""

    def __init__(self) -> None:
        super().__init__(6, 7)
        self.q, self.k, self.v, self.proj = nn.Linear(6, 12), nn.Linear(6, 12), nn.Linear(6, 12), nn.Linear(12, 7)
        self.pool = nn.Conv2d(4, 4, 2, 2, groups=4, bias=False)

    def shrink(self, x: Tensor) -> Tensor:
        """Return keys or values on a quarter of the positions."""
        x = x.view(-1, 64, 3, 4).permute(0, 2, 3, 1).reshape(-1, 4, 8, 8)
        return self.pool(x).view(-1, 3, 4, 16).transpose(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        q = self.q(x).view(-1, 64, 3, 4).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, self.shrink(self.k(x)), self.shrink(self.v(x)))
        return self.head(self.proj(y.transpose(1, 2).reshape(-1, 64, 12)).mean(1))


@network(TOKENS, "proj.weight:0", HEAD, zero_keeps=False)
class AttentionChannels(Heads):
    """XCiT's cross-covariance attention: channels attend to channels, so softmax runs over them."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.split(layer(x)).transpose(-2, -1) for layer in (self.q, self.k, self.v))
        weights = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)).softmax(-1)
        return self.merge((weights @ v).transpose(-2, -1))


@network(TOKENS, QKV, HEAD)
class AttentionRotary(Heads):
    """Rotary positions: halves of each head are swapped and negated."""

    def forward(self, x: Tensor) -> Tensor:
        angle = torch.arange(5)[:, None] * torch.tensor([1.0, 0.1, 1.0, 0.1])
        q, k = (self.rotate(self.split(layer(x)), angle) for layer in (self.q, self.k))
        return self.merge(F.scaled_dot_product_attention(q, k, self.split(self.v(x))))

    @staticmethod
    def rotate(x: Tensor, angle: Tensor) -> Tensor:
        """Rotate pairs ``(i, i + 2)`` by the angles of their position."""
        return x * angle.cos() + torch.cat([-x[..., 2:], x[..., :2]], -1) * angle.sin()


# ---------------------------------------------------------------- sharing


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


# ---------------------------------------------------------------- inputs and outputs


@network(IMAGE, "stem.weight:0", {**HEAD, "boxes.weight:0": "output", "feature.weight:0": "output"})
class SeveralOutputs(Body):
    def __init__(self) -> None:
        super().__init__(6, 6)
        self.boxes, self.feature = conv(6, 5), conv(6, 7)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = F.relu(self.stem(x))
        return self.classify(x), [self.boxes(x), self.feature(x).flatten(2)]


@network(IMAGE, "stem.weight:0", {**HEAD, "mask.weight:0": "output"})
class DictOutput(Body):
    def __init__(self) -> None:
        super().__init__(6, 6)
        self.mask = conv(6, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = F.relu(self.stem(x))
        return {"logits": self.classify(x), "mask": F.interpolate(self.mask(x), scale_factor=2)}


@network(IMAGE, "c.weight:0", {"stem.weight:0": "output", "c.weight:1": "output"})
class HiddenOutput(Body):
    """A hidden tensor is also an output: its channels are the caller's."""

    def __init__(self) -> None:
        super().__init__(5, 6)
        self.c = conv(5, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        return self.classify(self.c(x)), x


@network(
    Inputs((normal(2, 3, 8, 8), normal(2, 5, 6))), "stem.weight:0 text.weight:0 c.weight:1", {"text.weight:1": "input"}
)
class SeveralInputs(Body):
    def __init__(self) -> None:
        super().__init__(6, 7)
        self.text, self.c = nn.Linear(6, 6), conv(6, 7)

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        return self.classify(self.c(self.stem(image) + self.text(text).mean(1)[:, :, None, None]))


@network(Inputs((normal(2, 3, 8, 8),), {"scale": normal(2, 5, 1, 1, seed=1)}), "c.weight:0", {"stem.weight:0": "input"})
class KeywordInput(Body):
    """A tensor given by keyword has an entry per channel: those channels are the caller's."""

    def __init__(self) -> None:
        super().__init__(5, 6)
        self.c = conv(5, 6)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        x = self.stem(x)
        return self.classify(self.c(x if scale is None else x * scale))


@network(Inputs((normal(2, 5), normal(2, 6))), "left.weight:0 right.weight:0 a.weight:0", {"a.weight:1": "input"})
class TwoTowers(nn.Module):
    """Two encoders meet in one inner product per pair of samples."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.left, self.right = nn.Linear(5, 7), nn.Linear(7, 8), nn.Linear(6, 8)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.left(F.relu(self.a(x))) @ self.right(y).t()


@network(IMAGE, "stem.weight:0 a.weight:0 b.weight:1", {**HEAD, "side.weight:0": "output"})
class DeepSupervision(Body):
    def __init__(self) -> None:
        super().__init__(5, 7)
        self.a, self.b, self.side = conv(5, 6, stride=2), conv(6, 7), conv(6, 4, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.relu(self.a(F.relu(self.stem(x))))
        return [self.classify(F.relu(self.b(x))), F.interpolate(self.side(x), size=(8, 8), mode="bilinear")]


# ---------------------------------------------------------------- moves of whole dimensions


@network(IMAGE, "stem.weight:0 c.weight:1")
class FlipChannels(Body):
    """Index ``i`` meets index ``4 - i`` only through the next convolution."""

    def __init__(self) -> None:
        super().__init__(5, 6)
        self.c = conv(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(self.stem(x).flip(1, 3)))


@network(IMAGE, "stem.weight:0 c.weight:1")
class FlipAdd(Body):
    """A channel and its mirror image are added, so they leave in pairs."""

    def __init__(self) -> None:
        super().__init__(7, 6)
        self.c = conv(7, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.classify(self.c(x + x.flip(1)))


@network(IMAGE, "c.weight:0")
class RollChannels(Body):
    def __init__(self) -> None:
        super().__init__(6, 5)
        self.c = conv(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(self.stem(x).roll(2, 1)))


@network(IMAGE, "stem.weight:0 b.weight:0 c.weight:1")
class StackBranches(Body):
    def __init__(self) -> None:
        super().__init__(5, 6)
        self.b, self.c = conv(3, 5), conv(10, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(torch.stack([self.stem(x), self.b(x)], 2).flatten(1, 2)))


@network(IMAGE, "stem.weight:0 c.weight:1")
class RepeatChannels(Body):
    def __init__(self) -> None:
        super().__init__(4, 5)
        self.c = conv(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(self.stem(x).repeat(1, 3, 1, 1)))


@network(IMAGE, "stem.weight:0 c.weight:1")
class RepeatInterleave(Body):
    def __init__(self) -> None:
        super().__init__(4, 5)
        self.c = conv(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(self.stem(x).repeat_interleave(3, 1)))


@network(IMAGE, "stem.weight:0 c.weight:1")
class TileChannels(Body):
    def __init__(self) -> None:
        super().__init__(4, 5)
        self.c = conv(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(self.stem(x).tile(2, 1, 1)))


@network(IMAGE, "stem.weight:0 c.weight:1")
class ExpandChannels(Body):
    def __init__(self) -> None:
        super().__init__(4, 5)
        self.c = conv(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.classify(self.c(x.unsqueeze(2).expand(-1, 4, 3, 8, 8).reshape(-1, 12, 8, 8)))


# ---------------------------------------------------------------- products written out


@network(IMAGE, "stem.weight:0 matrix:0 matrix:1 c.weight:1")
class EinsumConv(Body):
    def __init__(self) -> None:
        super().__init__(5, 6)
        self.matrix, self.c = nn.Parameter(torch.zeros(7, 5)), conv(7, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(torch.einsum("bchw,oc->bohw", self.stem(x), self.matrix)))


@network(TOKENS, QKV, HEAD)
class EinsumAttention(Heads):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).view(-1, 5, 3, 4) for layer in (self.q, self.k, self.v))
        weights = torch.einsum("bqhd,bkhd->bhqk", q, k).softmax(-1)
        return self.merge(torch.einsum("bhqk,bkhd->bhqd", weights, v))


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


@network(IMAGE, "stem.weight:0 weight:0 weight:1 c.weight:1")
class FunctionalConv(Body):
    """``F.conv2d`` on a bare parameter."""

    def __init__(self) -> None:
        super().__init__(5, 7)
        self.weight, self.shift, self.c = (
            nn.Parameter(torch.zeros(6, 5, 3, 3)),
            nn.Parameter(torch.zeros(6)),
            conv(6, 7),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(F.relu(F.conv2d(self.stem(x), self.weight, self.shift, padding=1))))


class StandardisedConv(nn.Conv2d):
    """Weight standardisation: every filter has zero mean and unit variance."""

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.weight.mean((1, 2, 3), keepdim=True), self.weight.var((1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - mean) / torch.sqrt(var + 1e-6), self.bias, self.stride, self.padding)


@network(IMAGE, "ws.weight:0 c.weight:1", zero_keeps=False)
class StandardisedWeight(Body):
    def __init__(self) -> None:
        super().__init__(5, 7)
        self.ws, self.c = StandardisedConv(5, 6, 3, padding=1), conv(6, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(F.relu(self.ws(self.stem(x)))))


@network(
    IMAGE,
    "wn.parametrizations.weight.original0:0 wn.parametrizations.weight.original1:0 wn.bias:0 c.weight:1",
    zero_keeps=False,
)
class WeightNorm(Body):
    def __init__(self) -> None:
        super().__init__(5, 7)
        self.wn, self.c = nn.utils.parametrizations.weight_norm(conv(5, 6)), conv(6, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(F.relu(self.wn(self.stem(x)))))


# ---------------------------------------------------------------- other layers


@network(
    TOKENS,
    "lstm.weight_ih_l0:0 lstm.weight_hh_l0:0 lstm.weight_hh_l0:1 lstm.bias_ih_l0:0 head.weight:1",
    {**HEAD, "lstm.weight_ih_l0:1": "input"},
)
class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0].mean(1))


@network(TOKENS, "a.weight:0 gru.weight_ih_l0:1 gru.weight_ih_l0_reverse:0 gru.weight_hh_l1:1 head.weight:1", HEAD)
class BidirectionalGru(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.gru, self.head = (
            nn.Linear(6, 7),
            nn.GRU(7, 5, 2, batch_first=True, bidirectional=True),
            nn.Linear(10, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(self.a(x))[0][:, -1])


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


@network(WORDS, "embed.weight:1 a.weight:1 a.weight:0", HEAD)
class TextClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.a, self.head = nn.Embedding(9, 6), nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.a(self.embed(x).mean(1))))


@network(IMAGE, "stem.weight:0 last.weight:1")
class AdaptivePools(Body):
    def __init__(self) -> None:
        super().__init__(5, 10)
        self.last = nn.Linear(5 * 4 + 5 * 9, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        pooled = [F.adaptive_avg_pool2d(x, 2).flatten(1), F.adaptive_max_pool2d(x, 3).flatten(1)]
        return self.head(F.relu(self.last(torch.cat(pooled, 1))))


@network(IMAGE, "stem.weight:0 c.weight:1 c.weight:0")
class Upsample(Body):
    def __init__(self) -> None:
        super().__init__(5, 6)
        self.c, self.up = conv(5, 6), nn.Upsample(scale_factor=2, mode="bilinear")

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.up(self.c(F.interpolate(F.relu(self.stem(x)), scale_factor=2))))


@network(IMAGE, "stem.weight:0 c.weight:0 c.weight:1")
class Dropout(Body):
    def __init__(self) -> None:
        super().__init__(5, 6)
        self.drop2d, self.c, self.drop = nn.Dropout2d(0.5), conv(5, 6), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.c(self.drop2d(self.stem(x))).mean((2, 3))))


# ---------------------------------------------------------------- reductions over channels


@network(IMAGE, "stem.weight:0")
class SumChannels(Body):
    """A sum over channels loses nothing but the removed ones."""

    def __init__(self) -> None:
        super().__init__(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.classify(x) + x.sum((1, 2, 3)).unsqueeze(-1)


@network(IMAGE, "c.weight:0", zero_keeps=False)
class ChannelMean(Body):
    """CBAM's spatial attention: mean over channels."""

    def __init__(self) -> None:
        super().__init__(5, 6)
        self.gate, self.c = conv(1, 1), conv(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.classify(self.c(x * torch.sigmoid(self.gate(x.mean(1, keepdim=True)))))


@network(IMAGE, "c.weight:0", zero_keeps=False)
class ChannelMax(Body):
    """CBAM's other half: the maximum over channels, which a zero would take part in."""

    def __init__(self) -> None:
        super().__init__(5, 6)
        self.gate, self.c = conv(2, 1), conv(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        pooled = torch.cat([x.amax(1, keepdim=True), x.max(1, keepdim=True)[0]], 1)
        return self.classify(self.c(x * torch.sigmoid(self.gate(pooled))))


@network(IMAGE, "stem.weight:0 c.weight:1")
class Maxout(Body):
    """The best of two candidates per channel."""

    def __init__(self) -> None:
        super().__init__(10, 6)
        self.c = conv(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(self.stem(x).view(-1, 5, 2, 8, 8).amax(2)))


@network(IMAGE, "stem.weight:0 c.weight:1", zero_keeps=False)
class SoftmaxChannels(Body):
    """Like a norm, a softmax over channels runs over those that are kept; a zero would keep a share."""

    def __init__(self) -> None:
        super().__init__(5, 6)
        self.c = conv(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(F.softmax(self.stem(x), 1)))


@network(IMAGE, "c.weight:0", {"stem.weight:0": "argmax"})
class ArgmaxChannels(Body):
    """The result is a number of a channel."""

    def __init__(self) -> None:
        super().__init__(5, 6)
        self.c = conv(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.classify(self.c(x) * x.argmax(1, keepdim=True))


@network(IMAGE, "stem.weight:0 c.weight:1", zero_keeps=False)
class CumsumChannels(Body):
    """What is left sums the same, but the sum at a removed channel's place is not zero."""

    def __init__(self) -> None:
        super().__init__(5, 6)
        self.c = conv(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(self.stem(x).cumsum(1)))


@network(IMAGE, "c.weight:0", {"stem.weight:0": "topk"}, zero_keeps=False)
class TopkChannels(Body):
    def __init__(self) -> None:
        super().__init__(5, 6)
        self.c = conv(3, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(self.stem(x).topk(3, dim=1).values))


@network(IMAGE, "c.weight:0", {"stem.weight:0": "cumprod"}, zero_keeps=False)
class UnknownOp(Body):
    """A running product over channels: nobody has a rule for it, and identity would be wrong."""

    def __init__(self) -> None:
        super().__init__(8, 6)
        self.c = conv(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(self.stem(x).cumprod(1)))


@network(IMAGE, "c.weight:0", {"stem.weight:0": "fourier"}, zero_keeps=False)
class FourierOverChannels(Body):
    def __init__(self) -> None:
        super().__init__(8, 6)
        self.c = conv(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(torch.fft.rfft(self.stem(x), dim=1).abs()))


@network(Inputs((normal(2, 6),)), "a.weight:0", {"b.weight:0": "inv"}, zero_keeps=False)
class MatrixInverse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 5), nn.Linear(5, 9), nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        square = self.b(F.relu(self.a(x))).view(-1, 3, 3)
        return self.head(torch.linalg.inv(square).flatten(1))


class SignedSquare(torch.autograd.Function):
    """An elementwise operator with a backward of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return ``x * |x|``."""
        ctx.save_for_backward(x)
        return x * x.abs()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """Return the gradient."""
        return 2 * ctx.saved_tensors[0].abs() * grads[0]


@network(IMAGE, "c.weight:0", HEAD)
class CustomFunction(Body):
    def __init__(self) -> None:
        super().__init__(5, 6)
        self.c = conv(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(SignedSquare.apply(self.stem(x))))


# ---------------------------------------------------------------- in-place operators


@network(IMAGE, "stem.weight:0 c.weight:1")
class InplaceSlice(Body):
    """The write to a slice is seen by the whole."""

    def __init__(self) -> None:
        super().__init__(7, 6)
        self.c = conv(7, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x[:, :4] *= 3
        x[:, 2:].relu_()
        return self.classify(self.c(x))


@network(IMAGE, "stem.weight:0 c.weight:1", zero_keeps=False)
class InplaceAdd(Body):
    def __init__(self) -> None:
        super().__init__(7, 6)
        self.c = conv(7, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x[:, :4] += 1
        return self.classify(self.c(x))


@network(IMAGE, "stem.weight:0 c.weight:1", zero_keeps=False)
class InplaceView(Body):
    """A write through a reshaped view."""

    def __init__(self) -> None:
        super().__init__(6, 5)
        self.c = conv(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = x.view(x.shape[0], 6, 64)
        y.add_(1)
        y.transpose(1, 2).mul_(2)
        return self.classify(self.c(x))


@network(IMAGE, "stem.weight:0 c.weight:1")
class InplaceBase(Body):
    """The view is taken first, its base written, then the view is read."""

    def __init__(self) -> None:
        super().__init__(7, 6)
        self.c = conv(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        first = x[:, 1:5]
        x.mul_(3).relu_()
        return self.classify(self.c(first))


@network(IMAGE, "stem.weight:0 b.weight:0 c.weight:1")
class InplaceCopy(Body):
    """A buffer of zeros is filled slice by slice: concatenation in disguise."""

    def __init__(self) -> None:
        super().__init__(4, 6)
        self.b, self.c = conv(3, 5), conv(9, 6)

    def forward(self, x: Tensor) -> Tensor:
        out = x.new_zeros(x.shape[0], 9, 8, 8)
        out[:, :4] = self.stem(x)
        out[:, 4:] = self.b(x)
        return self.classify(self.c(out))


@network(IMAGE, "stem.weight:0 c.weight:1", zero_keeps=False)
class InplaceReshapeCopy(Body):
    """Reshaping a permuted tensor copies it: the write must not be seen through the original."""

    def __init__(self) -> None:
        super().__init__(6, 5)
        self.c = conv(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = x.permute(0, 2, 3, 1).reshape(x.shape[0], 64, 6)
        y += 1
        return self.classify(self.c(x)) + y.mean((1, 2)).unsqueeze(1)


@network(IMAGE, "stem.weight:0 c.weight:1")
class InplaceContiguous(Body):
    """``contiguous`` copies the one, and is the other itself."""

    def __init__(self) -> None:
        super().__init__(8, 5)
        self.c = conv(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        copy, same = x.transpose(2, 3).contiguous(), x.contiguous()
        copy.mul_(2)
        same.relu_()
        return self.classify(self.c(x - copy))


@network(IMAGE, "stem.weight:0 c.weight:1")
class InplaceNarrow(Body):
    """An in-place activation on one half; the whole is read afterwards."""

    def __init__(self) -> None:
        super().__init__(8, 5)
        self.act, self.c, self.d = nn.ReLU(inplace=True), conv(4, 5), conv(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        a, b = x.narrow(1, 0, 4), x[:, 4:]
        b.mul_(2)
        y = self.c(self.act(a)) + self.c(b)
        return self.classify(y * self.d(x))


@network(IMAGE, "stem.weight:0 c.weight:1")
class InplaceNestedViews(Body):
    """A view of a view sees what is written to the base."""

    def __init__(self) -> None:
        super().__init__(7, 6)
        self.c = conv(3, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        inner = x[:, 1:5][:, 1:]
        x.mul_(3)
        x[:, 3:5] *= 2
        return self.classify(self.c(inner))


# ---------------------------------------------------------------- channels that serve as something else


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


@network(IMAGE, "c.weight:0", {"stem.weight:0": ""}, zero_keeps=False)
class PoolChannels(Body):
    """A pooling window over channels."""

    def __init__(self) -> None:
        super().__init__(8, 6)
        self.c = conv(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool1d(self.stem(x).flatten(2).transpose(1, 2), 2).transpose(1, 2)
        return self.classify(self.c(x.reshape(x.shape[0], 4, 8, 8)))


@network(IMAGE, "c.weight:0", {"stem.weight:0": ""}, zero_keeps=False)
class ResizeChannels(Body):
    """Interpolation over channels."""

    def __init__(self) -> None:
        super().__init__(8, 6)
        self.c = conv(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(self.stem(x).flatten(2).transpose(1, 2), size=4, mode="linear").transpose(1, 2)
        return self.classify(self.c(x.reshape(x.shape[0], 4, 8, 8)))


@network(IMAGE, "c.weight:0", {"stem.weight:0": ""}, zero_keeps=False)
class DifferenceOfNeighbours(Body):
    """Every channel minus the next: slices of one tensor, shifted by one, tie all channels into one."""

    def __init__(self) -> None:
        super().__init__(7, 6)
        self.c = conv(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.classify(self.c(x[:, 1:] - x[:, :-1]))


@network(IMAGE, "c.weight:0", {"stem.weight:0": "sort"}, zero_keeps=False)
class SortChannels(Body):
    def __init__(self) -> None:
        super().__init__(5, 6)
        self.c = conv(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(self.stem(x).sort(1).values))


@network(IMAGE, "stem.weight:0 c.weight:1", zero_keeps=False)
class LogSumExpChannels(Body):
    def __init__(self) -> None:
        super().__init__(5, 6)
        self.c = conv(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.classify(self.c(x - x.logsumexp(1, keepdim=True)))


@network(IMAGE, "c.weight:0", zero_keeps=False)
class StdAndNormOverChannels(Body):
    """A deviation and a vector norm."""

    def __init__(self) -> None:
        super().__init__(6, 5)
        self.c = conv(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.classify(self.c(x / (1 + x.std(1, correction=0, keepdim=True) + x.norm(dim=1, keepdim=True))))


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


@network(IMAGE, "stem.weight:0 wide:0 narrow:0 c.weight:1")
class SummedWeights(Body):
    """RepVGG-like: two kernels are added into one before they are used."""

    def __init__(self) -> None:
        super().__init__(5, 7)
        self.wide, self.narrow = nn.Parameter(torch.zeros(6, 5, 3, 3)), nn.Parameter(torch.zeros(6, 5, 1, 1))
        self.c = conv(6, 7)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.wide + F.pad(self.narrow, (1, 1, 1, 1))
        return self.classify(self.c(F.conv2d(self.stem(x), kernel, padding=1)))


@network(TOKENS, "a.weight:0 base.weight:0 up.weight:0 down.weight:0 down.weight:1 head.weight:1", HEAD)
class LowRankUpdate(nn.Module):
    """LoRA: a linear layer plus a product of two small ones."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.base, self.head = nn.Linear(6, 8), nn.Linear(8, 7), nn.Linear(7, 4)
        self.down, self.up = nn.Linear(8, 3, bias=False), nn.Linear(3, 7, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.head(self.base(x) + 0.5 * self.up(self.down(x)))


@network(TOKENS, "a.weight:0 up:0 down:0 head.weight:1", HEAD)
class LowRankWeight(nn.Module):
    """The same with the product of the matrices taken first, and their factors as bare parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(6, 8), nn.Linear(7, 4)
        self.up, self.down = nn.Parameter(torch.zeros(7, 3)), nn.Parameter(torch.zeros(3, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.linear(self.a(x), self.up @ self.down))


@network(IMAGE, "stem.weight:0 sn.parametrizations.weight.original:0 c.weight:0", zero_keeps=False)
class SpectralNorm(Body):
    """The weight is divided by an estimate of its largest singular value, made from two stored vectors."""

    def __init__(self) -> None:
        super().__init__(5, 7)
        self.sn, self.c = nn.utils.parametrizations.spectral_norm(conv(5, 6)), conv(6, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(F.relu(self.sn(self.stem(x)))))


@network(IMAGE, "stem.weight:0 b.weight:0 c.weight:1", zero_keeps=False)
class PaddingModes(Body):
    """Reflected and circular borders, 'same' padding, and a constant border that is not zero."""

    def __init__(self) -> None:
        super().__init__(5, 7)
        self.b, self.c = nn.Conv2d(5, 6, 3, padding=1, padding_mode="circular"), nn.Conv2d(6, 7, 3, padding="same")

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(F.pad(self.stem(x), (1, 1, 1, 1), mode="reflect"), (1, 0, 1, 0), value=0.5)
        return self.classify(self.c(self.b(x)))


@network(IMAGE, "stem.weight:0 b.weight:0 c.weight:1")
class WhereMask(Body):
    """A mask with one channel chooses between two tensors."""

    def __init__(self) -> None:
        super().__init__(5, 6)
        self.b, self.c = conv(3, 5), conv(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        mask = x.mean(1, keepdim=True) > 0
        return self.classify(self.c(torch.where(mask, self.stem(x), self.b(x)).masked_fill(~mask.flip(2), 0.0)))


@network(TOKENS, "a.weight:0 cell.weight_ih:0 cell.weight_hh:0 cell.weight_hh:1 cell.bias_hh:0 head.weight:1", HEAD)
class RecurrentCell(nn.Module):
    """A GRU cell in a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.cell, self.head = nn.Linear(6, 7), nn.GRUCell(7, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        state = self.cell(x[:, 0])
        for step in range(1, 3):
            state = self.cell(x[:, step], state)
        return self.head(state)


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


@network(TOKENS, "query.weight:0 memory.weight:0 head.weight:1", HEAD, zero_keeps=False)
class CrossAttention(nn.Module):
    """Learned queries attend to tokens of another width."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.query, self.memory = nn.Parameter(torch.zeros(3, 8)), nn.Linear(8, 12), nn.Linear(6, 10)
        self.attention = nn.MultiheadAttention(12, 3, kdim=10, vdim=10, batch_first=True)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        queries, memory = self.query(self.start).expand(x.shape[0], -1, -1), self.memory(x)
        return self.head(self.attention(queries, memory, memory)[0])


@network(TOKENS, "q.weight:0 proj.weight:1 proj.weight:0", HEAD)
class AttentionLinear(Heads):
    """Linear attention: keys meet values first, so no softmax over tokens is in between."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(F.relu(self.q(x))), self.split(F.relu(self.k(x))), self.split(self.v(x))
        return self.merge(q @ (k.transpose(-2, -1) @ v) / 5)


@network(TOKENS, QKV, HEAD)
class AttentionInterleaved(Heads):
    """Rotary positions on neighbouring pairs, by strided slices and a stack."""

    def forward(self, x: Tensor) -> Tensor:
        q, k = (self.rotate(self.split(layer(x))) for layer in (self.q, self.k))
        return self.merge(F.scaled_dot_product_attention(q, k, self.split(self.v(x)), is_causal=True))

    @staticmethod
    def rotate(x: Tensor) -> Tensor:
        """Turn each pair by an angle that grows with the position."""
        angle = torch.arange(5, dtype=x.dtype)[:, None]
        even, odd = x[..., ::2], x[..., 1::2]
        return torch.stack(
            [even * angle.cos() - odd * angle.sin(), odd * angle.cos() + even * angle.sin()], -1
        ).flatten(-2)


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


@network(IMAGE, "stem.weight:0 c.weight:1")
class TemporalShift(Body):
    """Some channels move one row up, some one row down, the rest stay."""

    def __init__(self) -> None:
        super().__init__(9, 6)
        self.c = conv(9, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        out = torch.zeros_like(x)
        out[:, :3, :-1] = x[:, :3, 1:]
        out[:, 3:6, 1:] = x[:, 3:6, :-1]
        out[:, 6:] = x[:, 6:]
        return self.classify(self.c(out))


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


# ---------------------------------------------------------------- what a call states and leaves out


@network(IMAGE, "stem.weight:0 c.weight:1 c.weight:0", ENDS)
class WeightAlone(Body):
    """A layer's weight and its bias are used in two places, so that neither is the layer."""

    def __init__(self) -> None:
        super().__init__(5, 6)
        self.c = conv(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        assert self.c.bias is not None
        y = F.conv2d(self.stem(x), self.c.weight, padding=1)
        return self.classify(2 * y + self.c.bias[:, None, None])


@network(IMAGE, "c.weight:0", {"stem.weight:0": "single channel"})
class SplitSingles(Body):
    """Pieces of one channel each, which would broadcast."""

    def __init__(self) -> None:
        super().__init__(4, 6)
        self.c = conv(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        a, b, c, d = x.split(1, 1)
        return self.classify(self.c(x * (a + b)) * (c - d))


@network(IMAGE, "stem.weight:0 head.weight:1", HEAD)
class SqueezeAll(nn.Module):
    """All dimensions of size one go, and a single channel that is left is not one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv(3, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x).squeeze(1).mean((2, 3), keepdim=True).squeeze())


@network(IMAGE, "stem.weight:0 c.weight:1")
class RollAround(Body):
    """Turned once around: back where it was, however many are left."""

    def __init__(self) -> None:
        super().__init__(6, 5)
        self.c = conv(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(self.stem(x).roll(6, 1)))


@network(IMAGE, "stem.weight:0 c.weight:1")
class RepeatToSize(Body):
    """The call states how many there are in the end."""

    def __init__(self) -> None:
        super().__init__(5, 6)
        self.c = conv(10, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(self.stem(x).repeat_interleave(2, dim=1, output_size=10)))


@network(IMAGE, "stem.weight:0 c.weight:1", zero_keeps=False)
class ExtremesOfAll(Body):
    """The largest and smallest value of a tensor, and an extreme value in the guise of a norm."""

    def __init__(self) -> None:
        super().__init__(6, 5)
        self.c = conv(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = 1 + F.softplus(self.stem(x))
        scale = x.max() + x.min() + torch.linalg.vector_norm(x, float("-inf"), dim=1, keepdim=True)
        return self.classify(self.c(x / scale))


@network(IMAGE, "c.weight:0", {"stem.weight:0": "stay"}, zero_keeps=False)
class ConstantSlopes(Body):
    """Slopes made in ``forward``, one for each channel."""

    def __init__(self) -> None:
        super().__init__(5, 6)
        self.c = conv(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.classify(self.c(F.prelu(x, torch.linspace(0.1, 0.5, 5, dtype=x.dtype))))


@network(IMAGE, "c.weight:0", {"stem.weight:0": "bits"}, zero_keeps=False)
class SignBits(Body):
    """A float read as an integer."""

    def __init__(self) -> None:
        super().__init__(5, 6)
        self.c = conv(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.classify(self.c(x * (x.float().contiguous().view(torch.int32) >= 0)))


@network(TOKENS, "q.weight:0 k.weight:0 v.weight:0 proj.weight:1", HEAD)
class AttentionOfPairs(Heads):
    """Two dimensions before the tokens, and both are channels of the projections."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.proj = nn.Linear(6, 24), nn.Linear(6, 24), nn.Linear(6, 24), nn.Linear(24, 7)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).view(-1, 5, 3, 2, 4).permute(0, 2, 3, 1, 4) for layer in (self.q, self.k, self.v))
        x = F.scaled_dot_product_attention(q, k, v)
        return self.head(self.proj(x.permute(0, 3, 1, 2, 4).flatten(2)))


@network(TOKENS, "q.weight:0 k.weight:0 proj.weight:1", {"memory:0": "softmax", "ask:0": "position"}, zero_keeps=False)
class AttentionLearnedTokens(Heads):
    """Learned tokens: one set is read, and every softmax counts it; the other asks causally, by its position."""

    def __init__(self) -> None:
        super().__init__()
        self.memory, self.ask = nn.Parameter(torch.zeros(7, 6)), nn.Parameter(torch.zeros(9, 6))

    def forward(self, x: Tensor) -> Tensor:
        memory, ask = (t[None].expand(x.shape[0], -1, -1) for t in (self.memory, self.ask))
        q, k, v = (t.view(x.shape[0], -1, 3, 4).transpose(1, 2) for t in (self.q(x), self.k(memory), self.v(memory)))
        y = F.scaled_dot_product_attention(q, k, v)
        asked = self.q(ask).view(x.shape[0], -1, 3, 4).transpose(1, 2)
        z = F.scaled_dot_product_attention(asked, y, y, is_causal=True).mean(2, keepdim=True)
        return self.merge(y + z)


# ---------------------------------------------------------------- steps of recurrence


@network(TOKENS, "one.weight_hh:0 other.weight_ih:1 other.bias_hh:0 head.weight:1", HEAD)
class LstmCell(nn.Module):
    """Two cells on top of each other, the lower one without biases."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.head = nn.LSTMCell(6, 7, bias=False), nn.LSTMCell(7, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.one(x[:, 0]), None
        for t in range(1, x.shape[1]):
            one = self.one(x[:, t], one)
            other = self.other(one[0], other)
        assert other is not None
        return self.head(other[0])


@network(TOKENS, "project.weight:0 cell.weight_ih:0 cell.weight_hh:1 head.weight:1", HEAD, zero_keeps=False)
class SlotCell(nn.Module):
    """Slot attention: the samples of the cell are learned slots, all of one batch in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.slots, self.project = nn.Parameter(torch.zeros(1, 3, 5)), nn.Linear(6, 5)
        self.cell, self.head = nn.GRUCell(5, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        slots = self.slots.expand(x.shape[0], -1, -1)
        keys = self.project(x)
        for _ in range(2):
            updates = (slots @ keys.transpose(1, 2)).softmax(1) @ keys
            slots = self.cell(updates.flatten(0, 1), slots.flatten(0, 1)).view(-1, 3, 5)
        return self.head(slots.mean(1))


@network(TOKENS, "gru.weight_hh_l0:0 gru.weight_ih_l1:1 head.weight:1", {**HEAD, "start:0": "layer"})
class LearnedStart(nn.Module):
    """An initial state that is a parameter: its first dimension counts layers, not channels."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.start = nn.GRU(6, 5, 2, batch_first=True), nn.Parameter(torch.zeros(2, 1, 5))
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x, self.start.expand(-1, x.shape[0], -1).contiguous())[0][:, -1])


@network(Inputs((normal(2, 5, 6), normal(2, 1, 5, seed=1))), "a.weight:0", {"lstm.weight_hh_l0:0": "meets", **HEAD})
class GivenState(nn.Module):
    """The caller's initial state is as wide as the units, which therefore stay."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.lstm, self.head = nn.Linear(6, 7), nn.LSTM(7, 5, batch_first=True), nn.Linear(5, 4)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        h = state.transpose(0, 1).contiguous()
        return self.head(self.lstm(self.a(x), (h, torch.zeros_like(h)))[0][:, -1])


@network(TOKENS, "a.weight:0 head.weight:1", HEAD)
class SingleUnits(nn.Module):
    """Recurrent layers with one hidden unit, by module and by cell."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.rnn, self.lstm = nn.Linear(6, 5), nn.RNN(5, 1, batch_first=True), nn.LSTM(5, 1, batch_first=True)
        self.cell, self.head = nn.GRUCell(5, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        last = [self.rnn(x)[0][:, -1], self.lstm(x)[0][:, -1], self.cell(x[:, 0], self.cell(x[:, 1]))]
        return self.head(torch.cat((*last, x.mean(1)), 1))


@network(Inputs((normal(2, 6),)), "a.weight:0 gru.weight_hh_l0:0", {"places:1": "step"}, zero_keeps=False)
class LearnedSteps(nn.Module):
    """The steps of a recurrent layer are places that a parameter tells apart; none can be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.places, self.a = nn.Parameter(torch.zeros(1, 7, 6)), nn.Linear(6, 5)
        self.gru, self.head = nn.GRU(5, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(self.a(x[:, None].expand(-1, 7, -1) * self.places))[0].mean(1))


# ---------------------------------------------------------------- statistics over other dimensions than channels


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


class BatchNormedConv(nn.Conv2d):
    """NFNet's weight standardisation: a batch norm in training mode over the weights, one filter a channel."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args, padding=1)
        self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, weight=self.gain.view(-1), training=True, momentum=0.0)
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias, padding=1)


@network(IMAGE, "stem.weight:0 ws.weight:0 ws.gain:0 c.weight:1", zero_keeps=False)
class BatchNormedWeight(Body):
    def __init__(self) -> None:
        super().__init__(5, 6)
        self.ws, self.c = BatchNormedConv(5, 8, 3), conv(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.c(F.relu(self.ws(self.stem(x)))))


# ---------------------------------------------------------------- layers with several operands


@network(WORDS, "bag.weight:1 hidden.weight:0", {"bag.weight:0": "looked up", "head.weight:0": "output"})
class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag, self.hidden, self.head = nn.EmbeddingBag(7, 8, mode="max"), nn.Linear(8, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.hidden(self.bag(x))))


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


@network(TOKENS, "q.weight:0 k.weight:0 v.weight:0 proj.weight:1", HEAD, zero_keeps=False)
class AttentionFewKeys(Heads):
    """Llama's again, with more channels in a head than there are heads of keys: heads go all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.proj = nn.Linear(6, 16), nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(16, 7)

    def forward(self, x: Tensor) -> Tensor:
        b, t = x.shape[:2]
        q = self.q(x).view(b, t, 4, 4).transpose(1, 2)
        k, v = (
            layer(x).view(b, t, 2, 1, 4).expand(-1, -1, -1, 2, -1).reshape(b, t, 4, 4).transpose(1, 2)
            for layer in (self.k, self.v)
        )
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(F.relu(self.proj(y)).mean(1))


# ---------------------------------------------------------------- weights and values of other kinds


@network(Inputs((normal(2, 6),)), "a.weight:0 matrix:0 matrix:1 head.weight:1", HEAD)
class SymmetricWeight(nn.Module):
    """One triangle of a matrix stands for both: a row goes with the column of the same index."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.matrix, self.head = nn.Linear(6, 8), nn.Parameter(torch.zeros(8, 8)), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(F.linear(self.a(x), self.matrix.triu() + self.matrix.triu(1).t())))


@network(Inputs((normal(2, 6),)), "head.weight:1", {**HEAD, "matrix:0": "place", "matrix:1": "place"}, zero_keeps=False)
class BandedWeight(nn.Module):
    """A band of a matrix: which entries count follows from how far an index is from another."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix, self.b, self.head = nn.Parameter(torch.zeros(8, 6)), nn.Linear(8, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.b(F.linear(x, self.matrix.tril(2).triu(-2)))))


@network(TOKENS, "a.weight:0 filter:1 b.weight:1", {"filter:0": "", "filter:2": "complex", **HEAD})
class GlobalFilter(nn.Module):
    """A complex weight per frequency and channel, between two Fourier transforms over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 8), nn.Linear(8, 5), nn.Linear(5, 4)
        self.filter = nn.Parameter(torch.zeros(3, 8, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.fft.rfft(self.a(x), dim=1) * torch.view_as_complex(self.filter)
        return self.head(F.gelu(self.b(torch.fft.irfft(x, n=5, dim=1))).mean(1))


@network(TOKENS, QKV, HEAD)
class AttentionRotaryComplex(Heads):
    """Rotary positions as complex numbers: neighbours in a head are real and imaginary part."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).view(x.shape[0], -1, 3, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
        angles = torch.arange(5, dtype=x.dtype)[:, None] * torch.tensor([1.0, 0.1], dtype=x.dtype)
        turn = torch.polar(torch.ones_like(angles), angles)
        q, k = (
            torch.view_as_real(torch.view_as_complex(part.reshape(*part.shape[:-1], 2, 2)) * turn).flatten(3)
            for part in (q, k)
        )
        return self.merge(F.scaled_dot_product_attention(q, k, v))


@network(Inputs((normal(2, 6),)), "a.weight:0 matrix:0 matrix:1 head.weight:1", HEAD)
class TriangularWeight(nn.Module):
    """Every channel reads those before it: only together do a row and a column leave a triangle."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.matrix, self.head = nn.Linear(6, 8), nn.Parameter(torch.zeros(8, 8)), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(F.linear(self.a(x), self.matrix.tril())))


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


# ---------------------------------------------------------------- places that are found by value


@network(TOKENS, "a.weight:0 back.weight:0 missing:2 b.weight:1", {**HEAD, "missing:1": ""}, zero_keeps=False)
class GatheredTokens(nn.Module):
    """A masked autoencoder: an index repeated over the channels picks tokens, and puts them back among learned ones."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.back, self.missing = nn.Linear(6, 8), nn.Linear(8, 7), nn.Parameter(torch.zeros(1, 1, 7))
        self.b, self.head = nn.Linear(7, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        order = x.sum(2).argsort(1)
        y = self.back(torch.gather(self.a(x), 1, order[:, :3, None].repeat(1, 1, 8)))
        y = torch.cat((y, self.missing.repeat(x.shape[0], 2, 1)), 1)
        y = torch.gather(y, 1, order.argsort(1)[..., None].expand(-1, -1, 7))
        return self.head(F.relu(self.b(y)))


@network(TOKENS, "a.weight:0 b.weight:0 b.weight:1 c.weight:1", HEAD)
class MessagePassing(nn.Module):
    """A graph net: messages along a list of edges, summed per node in two ways."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = nn.Linear(6, 8), nn.Linear(16, 7), nn.Linear(22, 5), nn.Linear(5, 4)
        self.register_buffer("edges", torch.tensor([[0, 1, 1, 2, 3, 4], [1, 0, 2, 3, 4, 4]]))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        y = self.b(torch.cat((x[:, self.edges[0]], x[:, self.edges[1]]), 2))
        start = y.new_zeros(x.shape[0], 5, 7)
        total = start.index_add(1, self.edges[1], y)
        other = start.scatter_add(1, self.edges[0][None, :, None].expand(x.shape[0], -1, 7), y.tanh())
        return self.head(F.relu(self.c(torch.cat((x, total, other), 2))).mean(1))


@network(IMAGE, "stem.weight:0 b.weight:0 b.weight:1 c.weight:1", zero_keeps=False)
class Unpooled(Body):
    """SegNet: values go back to where maxima were taken from, channel by channel."""

    def __init__(self) -> None:
        super().__init__(6, 7)
        self.b, self.c = conv(6, 6), conv(6, 7)

    def forward(self, x: Tensor) -> Tensor:
        x, places = F.max_pool2d(self.stem(x), 2, return_indices=True)
        return self.classify(self.c(F.max_unpool2d(F.relu(self.b(x)), places, 2)))
