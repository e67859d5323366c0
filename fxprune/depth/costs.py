"""What is left of a model's cost when some of its nodes go."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Collection

import torch
from torch import fx, nn

from fxprune.capture import Traced
from fxprune.graph_tools import module_of
from fxprune.planning import Cost
from fxprune.planning.cost import products


class Costs:
    """The cost of every node of a graph: parameters, multiply-accumulates of one sample, bytes."""

    def __init__(self, traced: Traced) -> None:
        module = traced.module
        self.macs: dict[fx.Node, float] = defaultdict(float)
        for product in products(traced):
            self.macs[product.node] += product.macs
        self.names: dict[int, str] = {}
        self.tensors: dict[int, torch.Tensor] = {}
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            self.names.setdefault(id(tensor), name)
            self.tensors[id(tensor)] = tensor
        self.used = {node: _tensors(module, node) for node in module.graph.nodes}

    def of(self, nodes: Collection[fx.Node]) -> Cost:
        """Return what some nodes cost together; a tensor that several use counts once."""
        used = {key for node in nodes for key in self.used[node]}
        tensors = [self.tensors[key] for key in used if key in self.tensors]
        params = sum(tensor.numel() for tensor in tensors if isinstance(tensor, nn.Parameter))
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return Cost(params, round(sum(self.macs[node] for node in nodes if node in self.macs)), size)

    def own(self, nodes: Collection[fx.Node]) -> list[str]:
        """Return the parameters that nothing but these nodes uses, in the order of the model."""
        inside = {key for node in nodes for key in self.used[node]}
        outside = {key for node, keys in self.used.items() if node not in nodes for key in keys}
        mine = [key for key in self.names if key in inside - outside]
        return [self.names[key] for key in mine if isinstance(self.tensors[key], nn.Parameter)]

    def params(self, names: Collection[str]) -> int:
        """Return how many elements some parameters have."""
        wanted = set(names)
        return sum(self.tensors[key].numel() for key, name in self.names.items() if name in wanted)


def _tensors(module: fx.GraphModule, node: fx.Node) -> list[int]:
    if node.op == "call_module":
        layer = module_of(module, node)
        return [id(tensor) for tensor in (*layer.parameters(), *layer.buffers())]
    if node.op == "get_attr":
        return [id(operator.attrgetter(str(node.target))(module))]
    return []
