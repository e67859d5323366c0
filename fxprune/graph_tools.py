"""Small helpers for passes over ``torch.fx`` graphs: copying, finding, replacing.

They know of no pass and decide nothing.
"""

from __future__ import annotations

import contextlib
import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

_WIDER = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex32: torch.complex128,
    torch.complex64: torch.complex128,
}


def copy_module(module: fx.GraphModule) -> fx.GraphModule:
    """Return a graph module with nodes and modules of its own that *shares* all tensors with the original.

    It costs no memory for weights. Whoever changes a weight assigns a new tensor, and never writes into the old one.
    """
    memo: dict[int, Any] = {id(tensor): tensor for tensor in tensors_of(module)}
    fresh = fx.GraphModule(module, copy.deepcopy(module.graph), type(module).__name__)
    # The constructor keeps only what the graph reaches; parameters that it does not use belong to the state_dict too.
    for name in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
        setattr(fresh, name, copy.deepcopy(getattr(module, name), memo))
    fresh.training = module.training
    fresh.meta = dict(module.meta)
    return fresh


def adopt(module: fx.GraphModule, other: fx.GraphModule) -> None:
    """Make ``module`` hold what ``other`` holds: its graph, modules, parameters and buffers."""
    for name in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
        setattr(module, name, getattr(other, name))
    module.graph = other.graph


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module in eval mode for a while; some layers count their calls in training mode, even on fake tensors."""
    modes = {layer: layer.training for layer in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for layer, mode in modes.items():
            layer.training = mode


def place_new_nodes(module: fx.GraphModule) -> None:
    """Let nodes that do not say where they come from say what those do that they read, or that read them."""
    nodes = list(module.graph.nodes)
    for node in nodes:
        _place_as(node, node.all_input_nodes)
    for node in reversed(nodes):
        _place_as(node, node.users)


def _place_as(node: fx.Node, others: Iterable[fx.Node]) -> None:
    for other in others:
        if "path" not in node.meta and other.op != "output" and "path" in other.meta:
            node.meta["path"], node.meta["source"] = other.meta["path"], other.meta.get("source", "")


def tensors_of(module: nn.Module) -> list[Tensor]:
    """Return all parameters and buffers, each once."""
    return [*module.parameters(), *module.buffers()]


def module_of(module: fx.GraphModule, node: fx.Node) -> nn.Module:
    """Return the module that a ``call_module`` node calls."""
    return module.get_submodule(str(node.target))


def calls(module: fx.GraphModule, kinds: Iterable[type[nn.Module]]) -> list[fx.Node]:
    """Return the nodes, in order, that call a module of exactly one of these classes.

    A subclass may do anything in its forward, so it does not count.
    """
    wanted = set(kinds)
    nodes = module.graph.find_nodes(op="call_module")
    return [node for node in nodes if type(module_of(module, node)) in wanted]


def calls_of(module: fx.GraphModule, layer: nn.Module) -> list[fx.Node]:
    """Return every node that calls this very module, under whichever name."""
    return [node for node in module.graph.find_nodes(op="call_module") if module_of(module, node) is layer]


def only_watches(hook: Callable[..., None]) -> Callable[..., None]:
    """Mark a forward hook that changes nothing, so that its layer counts as what it is."""
    hook.fxprune_only_watches = True  # type: ignore[attr-defined]
    return hook


def why_hooked(layer: nn.Module) -> str:
    """Return that a layer has forward hooks other than those that only watch; empty if it has none."""
    hooks = (*layer._forward_hooks.values(), *layer._forward_pre_hooks.values())
    harmless = all(getattr(hook, "fxprune_only_watches", False) for hook in hooks)
    return "" if harmless else "it has forward hooks, which may do anything"


def place_of(node: fx.Node) -> str:
    """Return what a report calls a node: the path of the module that it calls, or its name."""
    return str(node.target) if node.op == "call_module" else node.name


def shape_of(node: fx.Node) -> tuple[int, ...] | None:
    """Return the sizes of a node's tensor on the example inputs, or None where it gives no single tensor."""
    value = node.meta.get("val")
    return tuple(int(size) for size in value.shape) if isinstance(value, Tensor) else None


def tensor_uses(module: fx.GraphModule) -> dict[int, list[str]]:
    """Return, per ``id`` of a parameter or buffer, every name that it has and every ``get_attr`` node that reads it.

    Tensors over the same memory count as one, as tied weights may be two ``nn.Parameter`` objects.
    """
    named = [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]
    by_memory: dict[Any, list[str]] = defaultdict(list)
    for name, tensor in named:
        by_memory[memory_of(tensor)].append(name)
    memory = {name: memory_of(tensor) for name, tensor in named}
    for node in module.graph.find_nodes(op="get_attr"):
        if str(node.target) in memory:
            by_memory[memory[str(node.target)]].append(node.name)
    return {id(tensor): by_memory[memory_of(tensor)] for _, tensor in named}


def memory_of(tensor: Tensor) -> Any:
    """Return a key that two tensors share where one is written and the other seen to change, both whole."""
    pointer = tensor.data_ptr() if tensor.layout is torch.strided else 0
    return (pointer, tensor.numel()) if pointer else id(tensor)


def bypass(module: fx.GraphModule, node: fx.Node, by: fx.Node) -> None:
    """Point every reader of ``node`` at ``by`` instead; remove the node, and its module where nothing else calls it."""
    node.replace_all_uses_with(by)
    module.graph.erase_node(node)
    if node.op == "call_module":
        drop_unused(module, module_of(module, node))


def drop_unused(module: fx.GraphModule, layer: nn.Module) -> None:
    """Remove a module under all its names, unless the graph still calls it or reads its tensors.

    Children that are called stay in their places.
    """
    paths = [name for name, child in module.named_modules(remove_duplicate=False) if child is layer]
    targets = [str(node.target) for op in ("call_module", "get_attr") for node in module.graph.find_nodes(op=op)]
    inside = [target for target in targets if any(target.startswith(f"{path}.") for path in paths)]
    owned = {f"{path}.{name}" for path in paths for name in (*layer._parameters, *layer._buffers)}
    if any(path in targets for path in paths) or owned & set(inside):
        return
    shell = nn.Module().train(layer.training)
    shell._modules = layer._modules
    for path in paths:
        parent, _, name = path.rpartition(".")
        if inside:
            module.get_submodule(parent)._modules[name] = shell
        else:
            del module.get_submodule(parent)._modules[name]


def assign(layer: nn.Module, name: str, value: Tensor) -> None:
    """Give a layer a new parameter or buffer in place of the old, trainable as the layer's weight is.

    The value may be float64: it is rounded to the layer's precision once it has been checked.
    """
    if name in layer._buffers:
        setattr(layer, name, value.detach())
        return
    old = layer._parameters.get(name)
    like = old if old is not None else layer._parameters.get("weight")
    setattr(layer, name, nn.Parameter(value.detach(), requires_grad=like is None or like.requires_grad))


def wide(value: Any) -> Any:
    """Return a float tensor as float64, a complex one as complex128, a dtype as the wider one; all else as it is."""
    if isinstance(value, Tensor):
        return value.detach().to(_WIDER[value.dtype]) if value.dtype in _WIDER else value
    return _WIDER.get(value, value) if isinstance(value, torch.dtype) else value
