"""Takes layers out of a graph by rewiring it."""

from __future__ import annotations

import operator
from collections.abc import Iterable

import torch
from torch import fx, nn

from fxprune.depth.flow import Flow, final, living
from fxprune.depth.layers import Layer, outermost
from fxprune.graph_tools import drop_unused, module_of

aten = torch.ops.aten

GONE = "fxprune.gone"
"""Key in the meta of a graph module: the state_dict keys that went with removed layers, as a frozenset."""
GONE_CALLS = "fxprune.gone_calls"
"""Likewise, the paths of modules that no node of the graph comes from any more."""

_IDEMPOTENT = (aten.relu, aten.relu6, aten.hardtanh, aten.clamp, aten.clamp_min, aten.abs)
_CHOOSING = (aten.max_pool1d, aten.max_pool2d, aten.max_pool3d, aten.adaptive_max_pool2d)


def stand_ins(graph: fx.Graph, layers: Iterable[Layer]) -> dict[fx.Node, fx.Node]:
    """Return what is read in place of each value that changes when some layers go.

    A sum without one of its two summands is the other one; one without both is nothing to the sum that reads it.
    """
    named = {node.name: node for node in graph.nodes}
    found: dict[fx.Node, fx.Node] = {}
    nothing: set[fx.Node] = set()
    for layer in outermost(layers):
        if layer.kind == "branch":
            nothing.add(named[layer.summand])
        else:
            found[named[layer.output]] = named[layer.source]
    for addition in graph.nodes:  # in order, so that a sum within a sum is done before that one
        operands = addition.args[:2] if addition.target is aten.add.Tensor else ()
        gone = [operand for operand in operands if operand in nothing]
        if len(gone) == 2:
            nothing.add(addition)
        elif gone:
            found[addition] = next(operand for operand in operands if operand not in nothing)
    found |= _twice(found)
    return found


def _twice(found: dict[fx.Node, fx.Node]) -> dict[fx.Node, fx.Node]:
    """Return the activations that now read what the same activation gave, as behind a removed residual branch."""
    more: dict[fx.Node, fx.Node] = {}
    for node in found:
        kept = final(node, found)
        origin = kept
        while getattr(origin.target, "overloadpacket", None) in _CHOOSING:
            origin = final(origin.all_input_nodes[0], found)
        for reader in node.users:
            if getattr(reader.target, "overloadpacket", None) in _IDEMPOTENT and _same(reader, origin):
                more[reader] = kept
    return more


def _same(one: fx.Node, other: fx.Node) -> bool:
    return (one.target, one.args[1:], one.kwargs) == (other.target, other.args[1:], other.kwargs)


def remove(module: fx.GraphModule, layers: Iterable[Layer]) -> list[str]:
    """Take layers out of a graph, in place, with the modules and tensors that nothing reads any more.

    Args:
        module: The graph; a copy that is the caller's own.
        layers: Which; found in a graph with the same nodes.

    Returns:
        The names of the nodes that went.
    """
    flow = Flow(module.graph)
    replaced = stand_ins(module.graph, layers)
    dead = living(flow.output, {}) - living(flow.output, replaced)
    for node in replaced:
        node.replace_all_uses_with(final(node, replaced))
    gone = [node for node in reversed(flow.nodes) if node in dead]
    called = [module_of(module, node) for node in gone if node.op == "call_module"]
    read = [str(node.target) for node in gone if node.op == "get_attr"]
    for node in gone:
        module.graph.erase_node(node)
    owners = [str(node.target) for node in gone if node.op == "call_module"] + read
    for layer in called:
        drop_unused(module, layer)
    for name in dict.fromkeys(read):
        _drop_tensor(module, name)
    for name in owners:
        _drop_empty(module, name.rpartition(".")[0])
    return [node.name for node in reversed(gone)]


def _drop_tensor(module: fx.GraphModule, name: str) -> None:
    """Remove a parameter, buffer or constant, unless the graph still reads it, by any of its names."""
    tensor = operator.attrgetter(name)(module)
    reads = {str(node.target) for node in module.graph.find_nodes(op="get_attr")}
    called = {str(node.target) for node in module.graph.find_nodes(op="call_module")}
    for path, owner in list(module.named_modules(remove_duplicate=False)):
        if any(path == target or path.startswith(f"{target}.") for target in called):
            continue  # a layer that is called reads what it holds
        for store in (owner._parameters, owner._buffers, vars(owner)):
            for key in [key for key, value in store.items() if value is tensor]:
                if (f"{path}.{key}" if path else key) not in reads:
                    _delete(owner, key)


def _delete(owner: nn.Module, key: str) -> None:
    delattr(owner, key)


def _drop_empty(module: fx.GraphModule, path: str) -> None:
    """Remove the containers on a path that hold nothing any more, from the innermost on."""
    targets = {str(node.target) for node in module.graph.find_nodes(op="call_module")}
    while path and path not in targets:
        parent, _, name = path.rpartition(".")
        try:
            holder = module.get_submodule(path)
        except AttributeError:
            path = parent
            continue
        if any(True for _ in holder.parameters()) or any(True for _ in holder.buffers()):
            return
        if any(target.startswith(f"{path}.") for target in targets):
            return
        delattr(module.get_submodule(parent), name)
        path = parent
