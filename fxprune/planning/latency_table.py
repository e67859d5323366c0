"""What a runtime takes for a model of any widths: measured times of layers, as sums of products of widths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor, fx, nn

from fxprune.capture import Traced
from fxprune.channels import Groups
from fxprune.planning.cost import Product, products
from fxprune.planning.cost_model import Builder, Ints, Labels, labels_of

_FREE_MODULES = (nn.Identity, nn.Flatten, nn.Unflatten, nn.modules.dropout._DropoutNd)
_FREE = (
    "view",
    "reshape",
    "flatten",
    "unsqueeze",
    "squeeze",
    "dropout",
    "alias",
    "detach",
    "_unsafe_view",
    "unflatten",
)
"""Operations that give other names to the same numbers: no runtime spends time on them."""


@dataclass(frozen=True)
class Layer:
    """Milliseconds of one layer: ``constant + first * a + second * b + both * a * b`` for widths ``a`` and ``b``.

    The widths are those of the layer's output (``a``) and input (``b``) channels, rounded up to the table's step.
    """

    constant: float = 0.0
    first: float = 0.0
    second: float = 0.0
    both: float = 0.0

    def at(self, outputs: int, inputs: int) -> float:
        """Return the milliseconds at these widths, which must be rounded up already."""
        return self.constant + self.first * outputs + self.second * inputs + self.both * outputs * inputs


@dataclass(frozen=True)
class LatencyTable:
    """Measured times of a model's layers on one runtime.

    Attributes:
        layers: Node name of a convolution or linear layer -> its times.
        rate: Milliseconds per multiply-accumulate of products that were not measured, such as attention.
        elementwise: Milliseconds per element of what everything else writes.
        constant: Milliseconds that no width changes.
        step: Widths cost what the next multiple of this costs.
        runtime: Where it was measured.
        doubt: Why its times are not to be trusted, empty where they are.
    """

    layers: Mapping[str, Layer]
    rate: float = 0.0
    elementwise: float = 0.0
    constant: float = 0.0
    step: int = 1
    runtime: str = ""
    doubt: str = ""


def layer_widths(product: Product) -> tuple[int, int]:
    """Return the positions of output and input channels among the sizes of a convolution's or linear layer's product.

    A product of either lists the sizes of the result, then of the weight from dimension 1 on (convolution), or of the
    last dimension of the input (linear).
    """
    ndim = product.node.meta["val"].ndim
    convolution = len(product.sizes) > ndim + 1
    return (1 if convolution else ndim - 1), ndim


def add_latency(
    builder: Builder, traced: Traced, groups: Groups, axes: Mapping[tuple[str, int], Labels], table: LatencyTable
) -> None:
    """Add the metric ``latency`` to a cost model."""
    measured: set[fx.Node] = set()
    for product in products(traced):
        labels = [labels_of(size, groups, axes) for size in product.sizes]
        name, measured = product.node.name, measured | {product.node}
        layer = table.layers.get(name)
        if layer is None:
            builder.add("latency", table.rate * product.share, labels, name)
            continue
        a, b = (labels[position] for position in layer_widths(product))
        for value, factors in ((layer.first, [a]), (layer.second, [b]), (layer.both, [a, b])):
            if value:
                builder.add("latency", value, factors, name)
        builder.add("latency", layer.constant, [], name)
    for node in written(traced, measured):
        value = node.meta["val"]
        found = groups.of(node)
        sizes: list[int | Ints | None] = [
            int(size) if axis is None else axis for size, axis in zip(value.shape, found, strict=True)
        ]
        builder.add("latency", table.elementwise / traced.batch, sizes, node.name)
    builder.add("latency", table.constant, [], "")
    builder.steps["latency"] = table.step


def written(traced: Traced, measured: set[fx.Node]) -> list[fx.Node]:
    """Return the nodes besides the measured ones that write a tensor of floats."""
    found = []
    for node in traced.module.graph.nodes:
        value = node.meta.get("val")
        if node in measured or not node.op.startswith("call") or not isinstance(value, Tensor):
            continue
        if value.is_floating_point() and value.ndim and not _is_free(traced.module, node):
            found.append(node)
    return found


def _is_free(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(module.get_submodule(str(node.target)), _FREE_MODULES)
    return str(getattr(node.target, "overloadpacket", "")).rpartition(".")[2] in _FREE


def elements(traced: Traced, nodes: list[fx.Node]) -> float:
    """Return how many elements nodes write for one sample."""
    return float(np.sum([node.meta["val"].numel() for node in nodes])) / traced.batch
