"""What a graph costs: parameters, multiply-accumulates and bytes."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx, nn

from fxprune.capture import Traced
from fxprune.planning.cost_rules import Site, Sizes, find

_FREE = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.RMSNorm)  # matrices that are looked up or scale element-wise


@dataclass(frozen=True)
class Cost:
    """The size of a model: what its graph uses, without heads that only training needs.

    Attributes:
        params: elements of the parameters, tied ones once; buffers are not counted.
        macs: multiply-accumulates of one sample.
        bytes: storage of the parameters and buffers, tied ones once.
    """

    params: int
    macs: int
    bytes: int


@dataclass(frozen=True)
class Product:
    """One product of sizes at a node; ``share`` turns it into the cost of one sample."""

    node: fx.Node
    sizes: Sizes
    share: float

    @property
    def macs(self) -> float:
        """Multiply-accumulates of one sample."""
        return math.prod(size.size for size in self.sizes) * self.share


def count(traced: Traced) -> Cost:
    """Count parameters, multiply-accumulates of one sample and bytes.

    The multiply-accumulates are those of convolutions, linear layers, matrix products, attention and recurrent layers
    (``cost_rules``), taken at the example's sizes and divided by the example's batch; what does not depend on the
    inputs is computed once per call and is not divided. Of a model that was captured by region they are those of one
    forward on its example inputs, summed over the calls of all regions.
    """
    state = dict(named_state(traced.module))
    params = sum(tensor.numel() for tensor in state.values() if isinstance(tensor, nn.Parameter))
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    return Cost(params, round(sum(product.macs for product in products(traced))), size)


def named_state(module: fx.GraphModule) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every parameter and buffer that the graph uses once, under its first name."""
    used: set[int] = set()
    for node in module.graph.nodes:
        if node.op == "call_module":
            called = module.get_submodule(str(node.target))
            used |= {id(tensor) for tensor in (*called.parameters(), *called.buffers())}
        elif node.op == "get_attr":
            used.add(id(operator.attrgetter(str(node.target))(module)))
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if id(tensor) in used:
            yield name, tensor


def products(traced: Traced) -> list[Product]:
    """Return every product of the graph, in graph order."""
    module = traced.module
    first = {id(tensor): name for name, tensor in module.named_parameters()}
    canonical = {name: first[id(tensor)] for name, tensor in module.named_parameters(remove_duplicate=False)}
    shares = _shares(traced)
    found = []
    for node in module.graph.nodes:
        rule, called = find(node, module)
        if rule is None:
            continue
        share = shares.get(node, 1.0)
        found += [Product(node, sizes, share) for sizes in rule(Site(node, called, canonical))]
    return found


def uncounted(traced: Traced) -> list[str]:
    """Return the names of called modules that hold matrices but have no cost rule: their work is not counted."""
    names = []
    for node in traced.module.graph.nodes:
        rule, called = find(node, traced.module)
        if rule is None and called is not None and not isinstance(called, _FREE):
            names += [str(node.target)] * any(parameter.dim() > 1 for parameter in called.parameters())
    return list(dict.fromkeys(names))


def _shares(traced: Traced) -> dict[fx.Node, float]:
    """Return what turns the cost of a node that inputs reach into that of one sample, or of one forward by region."""
    if traced.regions is not None:
        return {node: call.times for node, call in traced.regions.of_nodes(traced.module.graph).items()}
    return dict.fromkeys(_fed_by_inputs(traced.module.graph), 1.0 / traced.batch)


def _fed_by_inputs(graph: fx.Graph) -> set[fx.Node]:
    fed: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or not fed.isdisjoint(node.all_input_nodes):
            fed.add(node)
    return fed
