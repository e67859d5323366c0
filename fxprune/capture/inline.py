"""Inline the higher-order wrappers that switch gradients or autocast on and off around part of a graph."""

from __future__ import annotations

from typing import Any

from torch import fx

_WRAPPERS = {"wrap_with_set_grad_enabled": 1, "wrap_with_autocast": 4}  # name -> leading arguments before the sub-graph


def casts(module: fx.GraphModule) -> bool:
    """Whether some part of the graph runs under autocast, whose casts are in no graph before torch writes them out."""
    for node in module.graph.nodes:
        name = _wrapper(node)
        if name == "wrap_with_autocast" and node.args[2] is not False:
            return True
        if name and casts(getattr(module, str(node.args[_WRAPPERS[name]].target))):
            return True
    return False


def inline_wrappers(module: fx.GraphModule) -> None:
    """Inline every wrapper call, in place on the graph."""
    for node in list(module.graph.nodes):
        name = _wrapper(node)
        if not name:
            continue
        skip = _WRAPPERS[name]
        body = getattr(module, str(node.args[skip].target))
        inline_wrappers(body)
        _splice(module, node, body, node.args[skip + 1 :])
    module.graph.eliminate_dead_code()


def _wrapper(node: fx.Node) -> str:
    """Return which wrapper a node calls, "" for none."""
    name = getattr(node.target, "_name", None) or getattr(node.target, "__name__", "")
    return name if node.op == "call_function" and name in _WRAPPERS else ""


def _splice(module: fx.GraphModule, call: fx.Node, body: fx.GraphModule, inputs: tuple[Any, ...]) -> None:
    """Copy ``body`` in front of ``call`` and give its results to the readers of ``call``."""
    values: dict[fx.Node, Any] = dict(zip((n for n in body.graph.nodes if n.op == "placeholder"), inputs, strict=True))
    with module.graph.inserting_before(call):
        for node in body.graph.nodes:
            if node.op == "placeholder":
                continue
            if node.op == "output":
                results = fx.node.map_arg(node.args[0], lambda n: values[n])
                break
            if node.op == "get_attr":
                name = f"{call.name}_{node.target}".replace(".", "_")
                setattr(module, name, getattr(body, str(node.target)))
                values[node] = module.graph.get_attr(name)
                values[node].meta = dict(node.meta)
                continue
            values[node] = module.graph.node_copy(node, lambda n: values[n])
    for user in list(call.users):
        user.replace_all_uses_with(results[user.args[1]])  # wrappers return a tuple, read by getitem
        module.graph.erase_node(user)
    module.graph.erase_node(call)
