r"""Linear over-parameterisation: every convolution and linear layer becomes several, whose product it is.

A pruned network has few parameters left to recover with. Linear Over-Parameterization (LOP, arXiv 2204.11444) expands
each layer into a chain without activations, trains that, and multiplies the chain out again
(:class:`~fxprune.passes.Reparameterize`). With I inputs, O outputs, r the rate, all of it per group:

================================  =======================================  ====================================
layer                             chain                                    why
================================  =======================================  ====================================
k x k convolution                 1x1 I -> rI, k x k rI -> rO, 1x1 rO -> O  READ: the shapes of ExpandNets ("CL")
the same, grouped or depthwise    the same, all three in those groups      READ (depthwise), DER (grouped)
5 x 5 and 7 x 7, form "stacked"   3x3 I -> rI, 3x3 rI -> O;                READ ("CK"); widths must hold the kernel:
                                  3x3 I -> rI, 3x3 rI -> rO, 3x3 rO -> O   4I, and 4I and 9I in two dimensions
1x1 convolution                   1x1 I -> p, 1x1 p -> O, p = r max(I, O)  DESIGN
linear                            I -> rI, rI -> rO, rO -> O               READ: as ExpandNets; the first row, k = 0
================================  =======================================  ====================================

*READ*: stated in a source that was read; *DER*: derived, and checked by numbers; *DESIGN*: a reconstruction. Which
shapes and which initialisation LOP itself uses could not be found: this is a reconstruction, not the paper's code.

Exact everywhere, borders included (DER): the inner layers have no bias, the last one has the layer's own; stride,
dilation, padding and padding mode are those of the k x k layer (of two 1x1 on the first, which then runs on fewer
cells; stacked: padding on the first, stride on the last). A norm or an activation stays outside, behind the last.

Initialisation (DESIGN and DER): orthonormal outer factors, a random middle one, and the least correction that makes the
product exact; see :mod:`fxprune.linear.expand`.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, fx, nn

from fxprune.capture import Traced
from fxprune.errors import InputError
from fxprune.graph_tools import module_of, place_of, tensor_uses
from fxprune.linear.blocks import blocks_of, inside_a_block, with_blocks
from fxprune.linear.choice import check_patterns, is_candidate, matches, patterns_of
from fxprune.linear.expand import in_three, in_two, least_widths, stacked, stages_of
from fxprune.linear.layers import COMPUTED, TRANSPOSED, why_not_alone, why_not_plain
from fxprune.linear.split import why_split
from fxprune.linear.taps import flat, grouped
from fxprune.pipeline import Keeps, Pass
from fxprune.report import Change, Skip


@dataclass(frozen=True)
class OverParameterize(Pass):
    """Expand convolutions and linear layers into chains that compute the same and have more to train.

    The layer at path ``X`` becomes an ``nn.Sequential`` with the children ``X.0``, ``X.1``..., each called by a node of
    its own. ``module.meta["fxprune.blocks"]`` maps ``X`` to the path of the last one, whose output is the old layer's;
    it says on a second run which layers are expanded already, and is how distillation finds them.

    Memory: values between the layers of a chain have r times the channels, the middle weight r^2 times the entries.

    Attributes:
        rate: Expansion rate r, at least 1 (papers: 4).
        rates: Other rates for layers whose path matches a glob pattern; the last pattern that matches counts.
        layers: Glob patterns of paths of layers to expand; others are not looked at.
        exclude: Glob patterns of paths of layers to leave as they are.
        noise: Scale of the random numbers that the product does not see. With 0 the width has no effect under SGD.
        form: ``"1-k-1"``, or ``"stacked"``: kernels of 5 and 7 become two and three of 3, all else is as in 1-k-1.
        seed: Seed of all random numbers. A layer's own depend on its path, not on what else is expanded.

    Raises:
        InputError: An option is out of range, a pattern matches no layer, or a rate gives a layer no whole number of
            channels per group or fewer than it takes to hold the layer.
    """

    name: ClassVar[str] = "over-parameterize"
    keeps: ClassVar[Keeps] = Keeps.OUTPUTS

    rate: float = 4
    rates: Mapping[str, float] = field(default_factory=dict)
    layers: Sequence[str] = ("*",)
    exclude: Sequence[str] = ()
    noise: float = 1.0
    form: Literal["1-k-1", "stacked"] = "1-k-1"
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", patterns_of(self.name, "layers", self.layers))
        object.__setattr__(self, "exclude", patterns_of(self.name, "exclude", self.exclude))
        for where, rate in {
            "rate": self.rate,
            **{f"rates[{key!r}]": value for key, value in self.rates.items()},
        }.items():
            if isinstance(rate, bool) or not isinstance(rate, int | float) or not math.isfinite(rate) or rate < 1:
                raise InputError(
                    f"{self.name}: {where} is {rate!r}; an expansion rate is a finite number of at least 1, as fewer "
                    "channels than the layer has cannot hold it (4 is usual)"
                )
        if isinstance(self.noise, bool) or not math.isfinite(self.noise) or self.noise < 0:
            raise InputError(f"{self.name}: noise is {self.noise!r}; it scales random numbers: 0 for none, 1 is usual")
        if self.form not in ("1-k-1", "stacked"):
            raise InputError(f"{self.name}: form is {self.form!r}; there are '1-k-1' and 'stacked'")

    def rewrite(self, traced: Traced) -> Iterator[Change | Skip]:
        """Expand each layer that is chosen; what an earlier run expanded stays as it is."""
        module = traced.module
        self._check_patterns(module)
        uses = tensor_uses(module)
        for node in list(module.graph.nodes):
            place = place_of(node)
            if not is_candidate(module, node) or not matches(place, self.layers):
                continue
            reason = self._why_not(module, node, uses)
            if reason:
                yield Skip(place, reason)
            else:
                yield Change(place, self._expand(module, node))

    def _check_patterns(self, module: fx.GraphModule) -> None:
        paths = [place_of(node) for node in module.graph.nodes if is_candidate(module, node)]
        options = {"layers": self.layers, "exclude": self.exclude, "rates": self.rates}
        check_patterns(self.name, options, [*paths, *blocks_of(module)])

    def _why_not(self, module: fx.GraphModule, node: fx.Node, uses: dict[int, list[str]]) -> str:
        if node.op == "call_function":
            return COMPUTED
        place, layer = place_of(node), module_of(module, node)
        block = inside_a_block(module, place)
        if block is not None:
            return f"it is part of {block}, which was expanded before"
        if matches(place, self.exclude):
            return "it is excluded"
        if isinstance(layer, TRANSPOSED):
            return "transposed convolutions are not expanded"
        return why_split(module, place) or why_not_plain(layer) or why_not_alone(module, node, uses)

    def _expand(self, module: fx.GraphModule, node: fx.Node) -> str:
        place, layer = place_of(node), module_of(module, node)
        generator = torch.Generator().manual_seed(self.seed ^ zlib.crc32(place.encode()))
        chain = self._chain(place, layer, generator)
        parent, _, name = place.rpartition(".")
        module.get_submodule(parent)._modules[name] = nn.Sequential(*chain).train(layer.training)
        value = node.args[0]
        for position in range(len(chain)):
            with module.graph.inserting_before(node):
                call = module.graph.call_module(f"{place}.{position}", (value,))
            call.meta = dict(node.meta)
            value = call
        node.replace_all_uses_with(call)
        module.graph.erase_node(node)
        with_blocks(module, {**blocks_of(module), place: f"{place}.{len(chain) - 1}"})
        sizes = [chain[0].weight.shape[1] * getattr(chain[0], "groups", 1), *(part.weight.shape[0] for part in chain)]
        kernels = [list(getattr(part, "kernel_size", ())) for part in chain]
        return f"expanded to {' -> '.join(map(str, sizes))} channels" + (f", kernels {kernels}" if kernels[0] else "")

    def _chain(self, place: str, layer: Any, generator: torch.Generator) -> list[Any]:
        """Return the layers that take the place of one."""
        groups = int(getattr(layer, "groups", 1))
        kernel = grouped(layer.weight, groups)
        _, rows, columns, *taps = kernel.shape
        if self.form == "stacked" and stages_of(taps):
            widths = [self._width(place, columns, "input")]
            widths += [self._width(place, rows, "output")] if stages_of(taps) == 3 else []
            least = least_widths(kernel)
            if any(width < bound for width, bound in zip(widths, least, strict=True)):
                raise InputError(
                    f"{self.name}: {place} has {columns} inputs and {rows} outputs per group and a kernel of "
                    f"{taps[0]}, and a chain of kernels of 3 holds it with at least {least} channels between them; its "
                    f"rate of {self._rate(place):g} gives {widths}. Raise it with rates=, or use form='1-k-1'"
                )
            return _stacked_layers(layer, stacked(kernel, widths, self.noise, generator))
        if taps and math.prod(taps) == 1:
            width = self._width(place, max(columns, rows), "input or output")
            return _pointwise_layers(layer, in_two(kernel, width, self.noise, generator))
        wide = self._width(place, columns, "input"), self._width(place, rows, "output")
        return _three_layers(layer, in_three(kernel, wide, self.noise, generator))

    def _rate(self, place: str) -> float:
        return [self.rate, *(rate for pattern, rate in self.rates.items() if fnmatchcase(place, pattern))][-1]

    def _width(self, place: str, channels: int, side: str) -> int:
        """Return the channels per group of the wider layer."""
        rate = self._rate(place)
        width = round(rate * channels)
        if abs(rate * channels - width) > 1e-6:
            raise InputError(
                f"{self.name}: {place} has {channels} {side} channels per group, and {rate:g} times that is no whole "
                "number; give it a rate that fits with rates=, or exclude it"
            )
        return width


# ---------------------------------------------------------------- the layers of a chain


def _three_layers(layer: Any, factors: list[Tensor]) -> list[Any]:
    """Return layers for outer factors without taps and a middle one that moves as the layer does."""
    first, middle, last = factors
    return [
        _layer(layer, first),
        _layer(layer, middle, stride=layer.stride, **_moves(layer)) if middle.ndim > 3 else _layer(layer, middle),
        _layer(layer, last, bias=layer.bias),
    ]


def _pointwise_layers(layer: Any, factors: list[Tensor]) -> list[Any]:
    """Return two layers of single taps; the first skips and pads."""
    return [_layer(layer, factors[0], stride=layer.stride, **_moves(layer)), _layer(layer, factors[1], bias=layer.bias)]


def _stacked_layers(layer: Any, factors: list[Tensor]) -> list[Any]:
    """Return layers of three taps: the first pads for all of them, the last one skips."""
    moves = _moves(layer)
    if layer.padding == "same":  # of the whole kernel, not of the first one's three taps
        moves["padding"] = tuple(d * (k - 1) // 2 for d, k in zip(layer.dilation, layer.kernel_size, strict=True))
    first, *inner, last = factors
    return [
        _layer(layer, first, **moves),
        *(_layer(layer, factor, dilation=layer.dilation) for factor in inner),
        _layer(layer, last, bias=layer.bias, stride=layer.stride, dilation=layer.dilation),
    ]


def _moves(layer: Any) -> dict[str, Any]:
    return {"padding": layer.padding, "dilation": layer.dilation, "padding_mode": layer.padding_mode}


def _layer(like: Any, kernel: Tensor, *, bias: nn.Parameter | None = None, **moves: Any) -> Any:
    """Return a layer of the class and groups of another, with this kernel and, if any, this very bias."""
    groups, rows, columns, *taps = kernel.shape
    if isinstance(like, nn.Linear):
        new: Any = nn.Linear(columns, rows, bias=bias is not None, device="meta")
    else:
        new = type(like)(
            groups * columns, groups * rows, tuple(taps), groups=groups, bias=bias is not None, device="meta", **moves
        )
    new.weight = nn.Parameter(flat(kernel), requires_grad=like.weight.requires_grad)
    if bias is not None:
        new.bias = bias
    return new
