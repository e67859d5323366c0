"""Fold batch norms into the layers next to them.

In eval mode a batch norm is ``y = s * x + t`` per channel, with ``s = gamma / sqrt(var + eps)`` and
``t = beta - mean * s``.

Behind a layer (convolution, transposed convolution, linear on two-dimensional values) of weight ``W`` and bias ``b``::

    W' = s * W  along the output channels        b' = s * b + t

Before a layer::

    W' = s * W  along the input channels         b' = b + sum over inputs and kernel of W * t

The second is exact only where every output reads the same share of ``t``: a layer that pads with zeros, or a transposed
convolution that covers its borders less often, sees zeros where the norm gives ``t``. A norm without a shift
(``t = 0``) can always go.

A frozen batch norm, of which the graph has the arithmetic, and whose ``s`` and ``t`` are computed from buffers, goes
into the layer before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn

from fxprune.capture import Traced
from fxprune.errors import PreconditionError
from fxprune.graph_tools import assign, bypass, calls, calls_of, module_of, place_of, shape_of, tensor_uses
from fxprune.linear.frozen_norm import drop_unread_buffers, frozen_norms
from fxprune.pipeline import Keeps, Pass
from fxprune.report import Change, Skip

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED, nn.Linear)


@dataclass(frozen=True)
class FuseBatchNorm(Pass):
    """Fold each batch norm into the layer before it, or else into the one behind it where that is exact."""

    name: ClassVar[str] = "fuse-batchnorm"
    keeps: ClassVar[Keeps] = Keeps.OUTPUTS

    def requires(self, traced: Traced) -> None:
        """Refuse norms in training mode: they use the statistics of the batch, which no weight can hold."""
        module = traced.module
        norms = [node for node in calls(module, BATCH_NORMS) if module_of(module, node).training]
        if norms:
            raise PreconditionError(
                f"{self.name}: {place_of(norms[0])} is in training mode and normalises by the batch that it sees, "
                "which cannot be folded into weights; call traced.module.eval() first"
            )

    def rewrite(self, traced: Traced) -> Iterator[Change | Skip]:
        """Fold until nothing more can be: a norm that went may leave the next one beside a layer."""
        module, skips = traced.module, dict[fx.Node, str]()
        changed = True
        while changed:
            changed, skips = False, {}
            for norm in calls(module, BATCH_NORMS):
                done, reason = _fold(module, norm)
                if done:
                    changed = True
                    yield Change(place_of(norm), done)
                else:
                    skips[norm] = reason
        for norm in module.graph.find_nodes(op="call_function", target=torch.ops.aten.batch_norm.default):
            skips[norm] = "it is no module of its own: its weights are computed, or shared with another call"
        yield from (Skip(place_of(norm), reason) for norm, reason in skips.items())
        yield from _fold_frozen(module)


def _fold(module: fx.GraphModule, norm: fx.Node) -> tuple[str, str]:
    """Fold one norm; return what was done (empty if nothing), and why nothing could be."""
    batchnorm: Any = module_of(module, norm)
    if batchnorm.running_mean is None:
        return "", "it has no running statistics, and normalises by the batch that it sees"
    scale, shift = _affine(batchnorm)
    feed = norm.args[0]
    assert isinstance(feed, fx.Node)
    why_not_before = _cannot_follow(module, norm, feed)
    if not why_not_before:
        _fold_behind(module_of(module, feed), scale, shift)
        bypass(module, norm, by=feed)
        return f"folded into {place_of(feed)} before it", ""
    why_not_behind = _cannot_precede(module, norm, shift)
    if not why_not_behind:
        reader = next(iter(norm.users))
        _fold_before(module_of(module, reader), scale, shift)
        bypass(module, norm, by=feed)
        return f"folded into {place_of(reader)} behind it", ""
    return "", f"{why_not_before}; {why_not_behind}"


def _fold_frozen(module: fx.GraphModule) -> Iterator[Change | Skip]:
    """Fold norms that are written out into the layers before them."""
    buffers: set[str] = set()
    for norm in list(frozen_norms(module)):
        place = norm.product.meta.get("path") or norm.result.name
        reason = _cannot_follow(module, norm.product, norm.value)
        if reason:
            yield Skip(place, reason)
            continue
        _fold_behind(module_of(module, norm.value), norm.scale, norm.shift)
        norm.result.replace_all_uses_with(norm.value)
        buffers |= {str(node.target) for node in module.graph.find_nodes(op="get_attr")}
        module.graph.eliminate_dead_code()
        yield Change(place, f"folded into {place_of(norm.value)} before it")
    drop_unread_buffers(module, buffers)


def _affine(norm: Any) -> tuple[Tensor, Tensor]:
    """Return scale and shift of an eval-mode batch norm, in float64."""
    variance, mean = norm.running_var.double(), norm.running_mean.double()
    scale = (variance + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias.detach().double()


# ---------------------------------------------------------------- what has to hold


def _cannot_follow(module: fx.GraphModule, norm: fx.Node, feed: fx.Node) -> str:
    """Return why a norm cannot go into the layer before it; empty if it can."""
    if not _is_layer(module, feed):
        return f"{place_of(feed)} before it is no convolution or linear layer"
    others = [place_of(user) for user in feed.users if user is not norm]
    if others:
        return f"{place_of(feed)} before it is also read by {', '.join(others)}"
    return _unfit(module, feed, shape_of(feed), "before")


def _cannot_precede(module: fx.GraphModule, norm: fx.Node, shift: Tensor) -> str:
    """Return why a norm cannot go into the layer behind it; empty if it can."""
    readers = list(norm.users)
    if len(readers) != 1 or not _is_layer(module, readers[0]):
        names = ", ".join(place_of(reader) for reader in readers)
        return f"what reads it ({names}) is not a single convolution or linear layer"
    reader = readers[0]
    layer = module_of(module, reader)
    reason = _unfit(module, reader, shape_of(norm), "behind")
    if reason or not shift.any() or _reads_shift_evenly(layer):
        return reason
    return f"{place_of(reader)} behind it pads with zeros, or covers its borders unevenly, where the norm gives a shift"


def _is_layer(module: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "call_module" and type(module_of(module, node)) in LAYERS


def _unfit(module: fx.GraphModule, node: fx.Node, shape: tuple[int, ...] | None, where: str) -> str:
    """Return why the weights of a layer cannot change, or its channels are not the norm's; empty if all is well.

    Args:
        module: The graph.
        node: The layer's call.
        shape: Sizes of the value between layer and norm.
        where: On which side of the norm the layer is.
    """
    layer: Any = module_of(module, node)
    place = f"{place_of(node)} {where} it"
    dimensions = 2 if isinstance(layer, nn.Linear) else 2 + len(layer.kernel_size)
    if shape is None or len(shape) != dimensions:
        return f"{place} has {len(shape or ())}-dimensional values, whose dimension 1 is not its channels"
    times = len(calls_of(module, layer))
    if times > 1:
        return f"{place} is called {times} times"
    uses = tensor_uses(module)
    own = {f"{name}.{part}" for name in _names_of(module, layer) for part in ("weight", "bias")}
    tensors = [tensor for tensor in (layer.weight, layer.bias) if tensor is not None]
    others = sorted({use for tensor in tensors for use in uses[id(tensor)]} - own)
    return f"{place} shares its weights with {', '.join(others)}" if others else ""


def _names_of(module: nn.Module, layer: Any) -> list[str]:
    return [name for name, child in module.named_modules(remove_duplicate=False) if child is layer]


def _reads_shift_evenly(layer: Any) -> bool:
    """Whether a constant input gives the same output everywhere."""
    if isinstance(layer, nn.Linear):
        return True
    single = all(size == 1 for size in layer.kernel_size)
    padding: Any = layer.padding
    unpadded = padding == "valid" or (single and padding == "same") or all(size == 0 for size in padding)
    if isinstance(layer, TRANSPOSED):
        return single and unpadded and all(size == 1 for size in layer.stride) and not any(layer.output_padding)
    return unpadded or layer.padding_mode != "zeros"


# ---------------------------------------------------------------- the algebra


def _fold_behind(layer: Any, scale: Tensor, shift: Tensor) -> None:
    """Scale the output channels of a layer and shift its bias."""
    weight, groups = _grouped(layer)
    bias = shift if layer.bias is None else layer.bias.detach().double() * scale + shift
    by_group = scale.reshape(groups, -1)
    scaled = weight * (by_group[:, None, :, None] if isinstance(layer, TRANSPOSED) else by_group[:, :, None, None])
    _set(layer, scaled, bias)


def _fold_before(layer: Any, scale: Tensor, shift: Tensor) -> None:
    """Scale the input channels of a layer, and let its bias hold what the shift gives through its weights."""
    weight, groups = _grouped(layer)
    transposed = isinstance(layer, TRANSPOSED)

    def inputs(values: Tensor) -> Tensor:
        by_group = values.reshape(groups, -1)
        return by_group[:, :, None, None] if transposed else by_group[:, None, :, None]

    constant = (weight * inputs(shift)).sum((1, 3) if transposed else (2, 3)).flatten()
    bias = constant if layer.bias is None else layer.bias.detach().double() + constant
    # Without a shift a layer without bias stays without.
    _set(layer, weight * inputs(scale), bias if layer.bias is not None or shift.any() else None)


def _grouped(layer: Any) -> tuple[Tensor, int]:
    """Return the weight in float64 as (groups, rows, columns, kernel), and the number of groups.

    Rows are outputs and columns inputs of a group; for a transposed convolution the other way round.
    """
    groups = int(getattr(layer, "groups", 1))
    weight = layer.weight.detach().double()
    return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1), groups


def _set(layer: Any, weight: Tensor, bias: Tensor | None) -> None:
    assign(layer, "weight", weight.reshape(layer.weight.shape))
    if bias is not None:
        assign(layer, "bias", bias)
