"""Activations mixed with a scaled identity: ``(1 - share) f(x) + share slope x``, as plain nodes of a graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.capture import Traced
from fxprune.depth.flow import sole_reader
from fxprune.depth.sequences import ELEMENTWISE
from fxprune.errors import InputError, VerifyError
from fxprune.graph_tools import drop_unused, module_of
from fxprune.runner import Runner
from fxprune.surgery import relative_error

aten = torch.ops.aten

_SUFFIX = "_activation"
_BETWEEN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm)
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_NOT_ACTIVATIONS = (aten.alias, aten.clone, aten.detach, aten.dropout)
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Place:
    """An activation behind a layer.

    Attributes:
        source: What it reads.
        activation: The activation.
        result: The node that is read behind it: the activation, or the mixture.
        mixed: Whether there is a mixture already.
    """

    source: fx.Node
    activation: fx.Node
    result: fx.Node
    mixed: bool


def set_share(module: nn.Module, share: float) -> int:
    """Set the share of the identity in every mixture of a module, in place, as a schedule does between steps.

    Args:
        module: A graph module, or one that holds it.
        share: In [0, 1].

    Returns:
        How many there are.

    Raises:
        InputError: The share is out of range.
    """
    if not 0.0 <= share <= 1.0:
        raise InputError(f"share={share!r} is not in [0, 1]")
    holders = [child for path, child in module.named_modules() if path.endswith(_SUFFIX) and "share" in child._buffers]
    for holder in holders:
        holder.share = torch.full_like(holder.get_buffer("share"), share)
    return len(holders)


def places_of(traced: Traced, layers: Iterable[str]) -> dict[str, Place | str]:
    """Return the activation behind each layer, or why there is none that can be mixed.

    Raises:
        InputError: A path is no convolution or linear layer of the graph.
    """
    calls = {str(node.target): node for node in traced.module.graph.find_nodes(op="call_module")}
    found: dict[str, Place | str] = {}
    for layer in layers:
        if layer not in calls or type(module_of(traced.module, calls[layer])) not in _LAYERS:
            known = [path for path, node in calls.items() if type(module_of(traced.module, node)) in _LAYERS]
            raise InputError(f"{layer!r} is no convolution or linear layer that is called; there are {_few(known)}")
        found[layer] = _place(traced, layer, calls[layer])
    return found


def _place(traced: Traced, layer: str, node: fx.Node) -> Place | str:
    reader = sole_reader(node)
    while reader is not None and reader.op == "call_module" and isinstance(module_of(traced.module, reader), _BETWEEN):
        node, reader = reader, sole_reader(reader)
    if reader is None:
        mixed = _mixture(layer, node)
        return mixed or "it is read by more than an activation"
    packet = getattr(reader.target, "overloadpacket", None)
    if packet is aten.mul and str(getattr(reader.args[1], "target", "")) == f"{layer}{_SUFFIX}.slope":
        return "it has no activation any more"
    if packet not in ELEMENTWISE or packet in _NOT_ACTIVATIONS:
        return f"no activation follows it, but {reader.name}"
    return Place(node, reader, reader, False)


def _mixture(layer: str, source: fx.Node) -> Place | None:
    """Return the mixture that reads a value, if one does."""
    scaled = next((user for user in source.users if _reads(user, f"{layer}{_SUFFIX}.slope")), None)
    lerp = sole_reader(scaled) if scaled is not None else None
    if lerp is None or lerp.target is not aten.lerp.Tensor or not _reads(lerp, f"{layer}{_SUFFIX}.share"):
        return None
    activation = lerp.args[0]
    assert isinstance(activation, fx.Node)
    return Place(source, activation, lerp, True)


def _reads(node: fx.Node, target: str) -> bool:
    return any(source.op == "get_attr" and str(source.target) == target for source in node.all_input_nodes)


def mix(module: fx.GraphModule, layer: str, place: Place, share: float, slope: float) -> bool:
    """Mix an activation with a scaled identity, in place; return whether anything changed."""
    if place.mixed:
        holder = module.get_submodule(f"{layer}{_SUFFIX}")
        new = torch.full_like(holder.get_buffer("share"), share)
        if torch.equal(holder.get_buffer("share"), new):
            return False
        holder.share = new
        return True
    _hold(module, layer, place, share, slope)
    graph, activation = module.graph, place.activation
    with graph.inserting_after(activation):
        factor = graph.get_attr(f"{layer}{_SUFFIX}.slope")
    with graph.inserting_after(factor):
        weight = graph.get_attr(f"{layer}{_SUFFIX}.share")
    with graph.inserting_after(weight):
        scaled = graph.call_function(aten.mul.Tensor, (place.source, factor))
    with graph.inserting_after(scaled):
        mixed = graph.call_function(aten.lerp.Tensor, (activation, scaled, weight))
    activation.replace_all_uses_with(mixed, delete_user_cb=lambda user: user is not mixed)
    return True


def linear(module: fx.GraphModule, layer: str, place: Place, slope: float) -> None:
    """Leave nothing of an activation but its slope, in place."""
    if not place.mixed:
        _hold(module, layer, place, None, slope)
    graph = module.graph
    with graph.inserting_before(place.result):
        factor = graph.get_attr(f"{layer}{_SUFFIX}.slope")
        scaled = graph.call_function(aten.mul.Tensor, (place.source, factor))
    place.result.replace_all_uses_with(scaled)
    dead = [place.result]
    while dead:
        node = dead.pop()
        sources = node.all_input_nodes
        graph.erase_node(node)
        if node.op == "call_module":
            drop_unused(module, module_of(module, node))
        dead += [source for source in dict.fromkeys(sources) if not source.users and source.op != "placeholder"]
    if place.mixed:
        del module.get_submodule(f"{layer}{_SUFFIX}")._buffers["share"]


def _hold(module: fx.GraphModule, layer: str, place: Place, share: float | None, slope: float) -> None:
    parent, _, name = layer.rpartition(".")
    weight: Any = module.get_submodule(layer).weight
    holder = nn.Module().train(module.training)
    holder.slope = nn.Parameter(torch.full((), slope, dtype=weight.dtype, device=weight.device))
    if share is not None:
        holder.register_buffer("share", torch.full((), share, dtype=weight.dtype, device=weight.device))
    module.get_submodule(parent).add_module(f"{name}{_SUFFIX}", holder)


class _Mixing(Runner):
    """Runs a graph in float64 with some activations mixed, by their formula and not by the graph's nodes.

    Shares and slopes are those that the precision of each layer can hold.
    """

    def __init__(self, traced: Traced, places: Mapping[str, Place], share: float, slope: float) -> None:
        super().__init__(traced.module)
        self.shares, self.slopes = dict[str, float](), dict[str, float]()
        self.sources, self.held = dict[str, Place](), dict[str, Any]()
        for layer, place in places.items():
            known = dict(traced.module.named_parameters()).get(f"{layer}{_SUFFIX}.slope")
            dtype = traced.module.get_parameter(f"{layer}.weight").dtype if known is None else known.dtype
            self.shares[place.result.name] = float(torch.tensor(share, dtype=dtype))
            self.slopes[place.result.name] = float(
                torch.tensor(slope, dtype=dtype) if known is None else known.detach()
            )
            self.sources[place.result.name] = place
        self.wanted = {node.name for place in places.values() for node in (place.source, place.activation)}

    def value_of(self, n: fx.Node) -> Any:
        """Return what a node gives, the mixture for the result of a place."""
        value = super().value_of(n)
        if n.name in self.wanted:
            self.held[n.name] = value
        if n.name in self.sources:
            place, share = self.sources[n.name], self.shares[n.name]
            identity = self.held[place.source.name] * self.slopes[n.name]
            value = self.held[place.activation.name] * (1.0 - share) + identity * share
        return value


def verify_mixture(before: Traced, after: Traced, places: Mapping[str, Place], share: float, slope: float) -> None:
    """Check in float64 that a graph is another one with some of its activations mixed.

    Raises:
        VerifyError: It is not, or an output is not finite or constant, which proves nothing.
    """
    inputs = before.inputs(seed=0)
    expected = _Mixing(before, places, share, slope).run_flat(*inputs)
    found = Runner(after.module).run_flat(*inputs)
    if all(_proves_nothing(value) for value in expected):
        raise VerifyError("every output is one constant, or not finite, so that comparing proves nothing")
    error = max((relative_error(a, b) for a, b in zip(found, expected, strict=True)), default=0.0)
    if not error <= TOLERANCE:
        raise VerifyError(f"the mixed activations differ from their formula by {error:.3g} (allowed: {TOLERANCE:g})")


def _proves_nothing(value: Tensor) -> bool:
    return not bool(value.double().isfinite().all()) or float(value.double().max() - value.double().min()) == 0.0


def _few(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
