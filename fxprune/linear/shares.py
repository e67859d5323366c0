"""How much of each layer's weights is to be pruned: one number, or a number per pattern of paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from fxprune.errors import InputError
from fxprune.graph_tools import module_of, place_of, tensor_uses
from fxprune.linear.blocks import inside_a_block
from fxprune.linear.choice import check_patterns, is_candidate, matches, patterns_of
from fxprune.linear.layers import COMPUTED, CONVS, TRANSPOSED, why_not_plain, why_shared
from fxprune.linear.split import split_paths

Amounts = float | Mapping[str, float]
"""The share of weights to prune: one for all layers but those left whole, or patterns of paths, the first match."""


@dataclass(frozen=True)
class Shares:
    """What is asked of each layer.

    Attributes:
        nodes: Path of each layer with weights to prune -> its call, in the order of the graph.
        shares: Path -> share of its weights, above 0.
        skipped: Path of each other layer -> why it is left alone.
    """

    nodes: dict[str, fx.Node]
    shares: dict[str, float]
    skipped: dict[str, str]


def check_amounts(name: str, amounts: Amounts) -> None:
    """Refuse what is no share.

    Raises:
        InputError: A share is not in [0, 1).
    """
    for where, share in (amounts if isinstance(amounts, Mapping) else {"amount": amounts}).items():
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
            raise InputError(f"{name}: the share {share!r} of {where!r} must be a number from 0 to below 1")


def shares_of(name: str, module: fx.GraphModule, amounts: Amounts, exclude: Sequence[str] | None = None) -> Shares:
    """Return what is asked of each convolution and linear layer.

    Args:
        name: Of the pass or method, for messages.
        module: The graph.
        amounts: A number for every layer, or glob patterns over paths, of which the first that matches counts; layers
            without one stay as they are.
        exclude: Patterns of layers that stay as they are; None: where one number is given for all, the first
            convolution [ABS] and depthwise convolutions [DESIGN], else none.

    Layers that were split (:mod:`fxprune.linear.split`) have the path that they had, and the call of their sparse part.

    Raises:
        InputError: A share is out of range, or a pattern matches no layer.
    """
    check_amounts(name, amounts)
    left = () if exclude is None else patterns_of(name, "exclude", exclude)
    uses = tensor_uses(module)
    found = _candidates(module)
    patterns = amounts if isinstance(amounts, Mapping) else {"*": amounts}
    check_patterns(name, {"amount": patterns, "exclude": left}, [place for place, _ in found])
    by_default = exclude is None and not isinstance(amounts, Mapping)
    stem = next((node for _, node in found if _is_conv(module, node)), None) if by_default else None
    nodes, shares, skipped = dict[str, fx.Node](), dict[str, float](), dict[str, str]()
    for place, node in found:
        share = next((float(value) for pattern, value in patterns.items() if matches(place, (pattern,))), 0.0)
        if matches(place, left):
            reason = "it is excluded"
        elif not share:
            reason = "its share to prune is 0"
        else:
            reason = _why_not(module, node, uses)
        if not reason and by_default and (node is stem or _is_depthwise(module, node)):
            what = "the first convolution" if node is stem else "depthwise, with few weights per filter"
            reason = f"it is {what}; give exclude=() to prune it too"
        if reason:
            skipped.setdefault(place, reason)
        else:
            nodes[place], shares[place] = node, share
    return Shares(nodes, shares, skipped)


def _candidates(module: fx.GraphModule) -> list[tuple[str, fx.Node]]:
    """Return path and call of each convolution and linear layer, in order; of a split one that of its sparse part."""
    split, found = set(split_paths(module)), []
    for node in module.graph.nodes:
        if not is_candidate(module, node):
            continue
        place = place_of(node)
        owner, _, part = place.rpartition(".")
        if owner not in split:
            found.append((place, node))
        elif part == "sparse":
            found.append((owner, node))
    return found


def _why_not(module: fx.GraphModule, node: fx.Node, uses: dict[int, list[str]]) -> str:
    if node.op == "call_function":
        return COMPUTED
    layer: Any = module_of(module, node)
    if isinstance(layer, TRANSPOSED):
        return "weights of transposed convolutions are not pruned"
    block = inside_a_block(module, place_of(node))
    if block is not None:
        return f"it is part of {block}, which was expanded; collapse it first (Reparameterize)"
    return why_not_plain(layer) or why_shared(module, node, uses)


def _is_conv(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_function":
        return "conv" in str(node.target)
    return isinstance(module_of(module, node), (*CONVS, *TRANSPOSED))


def _is_depthwise(module: fx.GraphModule, node: fx.Node) -> bool:
    layer: Any = module_of(module, node) if node.op == "call_module" else None
    return isinstance(layer, CONVS) and layer.groups > 1 and layer.groups == layer.in_channels
