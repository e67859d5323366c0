"""What people call a part of a graph: the module path that its layers have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from torch import Tensor, fx

from fxprune.graph_tools import module_of


def name_of(module: fx.GraphModule, nodes: Iterable[fx.Node], fallback: str, *, matrices: bool = True) -> str:
    """Return the longest path that holds all layers among some nodes.

    Args:
        module: The graph.
        nodes: The nodes.
        fallback: For nodes without any path.
        matrices: Whether only layers with matrices or kernels count, where there are any: the norm in front of an
            attention is part of its branch, and the branch is called after the attention.
    """
    held = {node: path for node in nodes if (path := _path(node))}
    main = [path for node, path in held.items() if _has_matrix(module, node)] if matrices else []
    paths = [path.split(".") for path in main or held.values()]
    common = paths[0] if paths else []
    for parts in paths[1:]:
        common = common[: _agreeing(common, parts)]
    return ".".join(common) or fallback


def distinct(names: Sequence[str]) -> list[str]:
    """Number names that occur again: ``a``, ``a#2``."""
    seen: Counter[str] = Counter()
    result = []
    for name in names:
        seen[name] += 1
        result.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return result


def _agreeing(ones: list[str], others: list[str]) -> int:
    count = 0
    for one, other in zip(ones, others, strict=False):
        if one != other:
            break
        count += 1
    return count


def _path(node: fx.Node) -> str:
    if node.op == "call_module":
        return str(node.target)
    if node.op == "get_attr":
        return str(node.target).rpartition(".")[0]
    return str(node.meta.get("path") or "")


def _has_matrix(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "get_attr":
        value = node.meta.get("val")
        return isinstance(value, Tensor) and value.ndim == 2
    if node.op != "call_module":
        return False
    return any(parameter.ndim > 1 for parameter in module_of(module, node).parameters())
