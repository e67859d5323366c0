r"""Hyperspherical layers: each filter of a convolution or linear layer is used on the unit sphere.

The idea is that of SphereConv [MEM]; all else is a reconstruction [DESIGN] of what Pruning On-the-Fly (2212.12651) may
do. With ``v = w / |w|`` for each filter ``w``, a layer computes ``v * x + b``, or ``s v * x + b`` with a trained ``s``
per filter where nothing behind it would take up the scale. The gradient goes through the normalisation::

    d loss / d w = (I - v v^T) (d loss / d v) / |w|

A trained layer becomes one without moving an output. Where a batch norm is all that reads it, that takes up ``n = |w|``
per channel [DER]: ``mean / n``, ``var / n^2``, and since ``eps`` is one number for all channels, scales times
``n sqrt((var / n^2 + eps) / (var + eps))`` rather than another ``eps``; in eval mode that is exact.

A filter that is zero has no direction: it stays zero.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxprune.graph_tools import module_of, shape_of
from fxprune.linear.layers import why_shared

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def unit(weight: Tensor) -> Tensor:
    """Return the filters of a weight (filters, ...), each divided by its norm; those that are zero stay zero."""
    column = (-1, *[1] * (weight.ndim - 1))
    norms = norms_of(weight).reshape(column)
    return weight / torch.where(norms > 0, norms, torch.inf)


def norms_of(weight: Tensor) -> Tensor:
    """Return the norm of each filter of a weight (filters, ...)."""
    norms: Tensor = torch.linalg.vector_norm(weight.flatten(1), dim=1)
    return norms


class Sphere(nn.Module):
    """What hyperspherical layers have in common: a weight, and a ``scale`` where no norm behind takes it up."""


def used_weight(layer: Any) -> Tensor:
    """Return the weight that a hyperspherical layer computes with: (filters, ...)."""
    scale = layer._parameters.get("scale")
    direction: Tensor = unit(layer.weight)
    if scale is None:
        return direction
    scaled: Tensor = direction * scale.reshape(-1, *[1] * (direction.ndim - 1))
    return scaled


class SphereLinear(Sphere, nn.Linear):
    """A linear layer on the unit sphere."""

    def forward(self, input: Tensor) -> Tensor:
        """Return what the layer gives: (..., inputs) -> (..., outputs)."""
        result: Tensor = F.linear(input, used_weight(self), self.bias)
        return result


class SphereConv1d(Sphere, nn.Conv1d):
    """A convolution over one dimension on the unit sphere."""

    def forward(self, input: Tensor) -> Tensor:
        """Return what the layer gives, of the sizes of an ``nn.Conv1d``."""
        result: Tensor = self._conv_forward(input, used_weight(self), self.bias)
        return result


class SphereConv2d(Sphere, nn.Conv2d):
    """A convolution over two dimensions on the unit sphere."""

    def forward(self, input: Tensor) -> Tensor:
        """Return what the layer gives, of the sizes of an ``nn.Conv2d``."""
        result: Tensor = self._conv_forward(input, used_weight(self), self.bias)
        return result


class SphereConv3d(Sphere, nn.Conv3d):
    """A convolution over three dimensions on the unit sphere."""

    def forward(self, input: Tensor) -> Tensor:
        """Return what the layer gives, of the sizes of an ``nn.Conv3d``."""
        result: Tensor = self._conv_forward(input, used_weight(self), self.bias)
        return result


SPHERES: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: SphereLinear,
    nn.Conv1d: SphereConv1d,
    nn.Conv2d: SphereConv2d,
    nn.Conv3d: SphereConv3d,
}
_PLAIN: dict[type[nn.Module], type[nn.Module]] = {sphere: plain for plain, sphere in SPHERES.items()}


def sphere_weights(module: nn.Module) -> list[nn.Parameter]:
    """Return the weights of all hyperspherical layers, to which weight decay does nothing but change the rate."""
    return [layer._parameters["weight"] for layer in module.modules() if isinstance(layer, Sphere)]  # type: ignore[misc]


def to_sphere(module: fx.GraphModule, node: fx.Node, uses: dict[int, list[str]]) -> bool:
    """Make a plain layer hyperspherical in place, which moves no output in eval mode.

    The layer stays the same object with the same parameters; their names stay too, and ``scale`` is added where no
    batch norm takes the norms up.

    Args:
        module: The graph.
        node: The only call of a plain convolution or linear layer.
        uses: What :func:`fxprune.graph_tools.tensor_uses` says of the graph.

    Returns:
        Whether a batch norm takes the norms up.
    """
    layer: Any = module_of(module, node)
    with torch.no_grad():
        norms = norms_of(layer.weight.double())
        norms = torch.where(norms > 0, norms, 1.0)
        norm = _norm_behind(module, node, uses)
        if norm is None:
            layer.scale = nn.Parameter(norms.to(layer.weight.dtype))
            layer.scale.requires_grad_(layer.weight.requires_grad)
        else:
            _take_up(norm, norms)
            if layer.bias is not None:
                layer.bias.copy_(layer.bias.double() / norms)
        layer.weight.copy_(layer.weight.double() / norms.reshape(-1, *[1] * (layer.weight.ndim - 1)))
    layer.__class__ = SPHERES[type(layer)]  # the same object: whoever watches it goes on watching it
    return norm is not None


def to_plain(layer: nn.Module) -> None:
    """Make a hyperspherical layer the plain one, in place, that computes the same; another layer stays as it is."""
    if not isinstance(layer, Sphere):
        return
    with torch.no_grad():
        weight: Any = layer.weight
        scale = layer._parameters.pop("scale", None)
        column = (-1, *[1] * (weight.ndim - 1))
        weight.copy_(unit(weight.double()) * (1.0 if scale is None else scale.double().reshape(column)))
    kind: Any = _PLAIN[type(layer)]
    layer.__class__ = kind


def retract(layer: nn.Module) -> None:
    """Divide the filters of a hyperspherical layer by their norms: no output moves; of another layer do nothing.

    Steps across the sphere make norms grow, and with them shrinks what a step does [DER].
    """
    if isinstance(layer, Sphere):
        with torch.no_grad():
            weight: Any = layer.weight
            weight.copy_(unit(weight))


def _norm_behind(module: fx.GraphModule, node: fx.Node, uses: dict[int, list[str]]) -> Any:
    """Return the batch norm that is all that reads a layer and can take up its norms, or None."""
    readers = list(node.users)
    if len(readers) != 1 or readers[0].op != "call_module":
        return None
    norm: Any = module_of(module, readers[0])
    if type(norm) not in _NORMS or norm.running_var is None or norm.weight is None:
        return None
    layer: Any = module_of(module, node)
    channels_first = len(shape_of(node) or ()) == 2 + len(getattr(layer, "kernel_size", ()))
    return None if why_shared(module, readers[0], uses) or not channels_first else norm


def _take_up(norm: Any, factors: Tensor) -> None:
    """Make a batch norm give on values that are divided by some factors what it gave on the values, in eval mode."""
    before = norm.running_var.double()
    after = before / factors.square()
    gain = factors * ((after + norm.eps) / (before + norm.eps)).sqrt()
    norm.running_mean.copy_(norm.running_mean.double() / factors)
    norm.running_var.copy_(after)
    norm.weight.copy_(norm.weight.double() * gain)
