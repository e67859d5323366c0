"""Make in-place operations functional, so that a value never changes after it was computed.

An in-place operation on a value that nothing else looks at is renamed to its functional twin, and later readers are pointed at the result.
What writes through a view is replayed: the written part is scattered back into what it is a view of.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.errors import CaptureError

aten = torch.ops.aten


def _is_inplace(node: fx.Node) -> bool:
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and target._schema.name.endswith("_") and target._schema.is_mutable


def _is_view(node: fx.Node) -> bool:
    """Whether the result may share memory with the first argument (by the schema's alias annotations)."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or target._schema.is_mutable:
        return (
            node.target.__name__ == "getitem" if callable(node.target) and hasattr(node.target, "__name__") else False
        )
    if target in (
        aten.reshape.default,
        aten.contiguous.default,
        aten.flatten.using_ints,
        aten.to.dtype,
        aten.reshape_as.default,
    ):
        return True
    return any(
        result.alias_info is not None and not result.alias_info.is_write for result in target._schema.returns
    ) or (
        target.overloadpacket
        in (aten.chunk, aten.split, aten.split_with_sizes, aten.unbind, aten.tensor_split, aten.slice)
    )


def _functional_twin(node: fx.Node) -> Any:
    namespace, name = node.target._schema.name.split("::")  # type: ignore[union-attr]
    packet = getattr(getattr(torch.ops, namespace), name[:-1], None)
    twin = getattr(packet, node.target._schema.overload_name or "default", None) if packet is not None else None  # type: ignore[union-attr]
    if twin is None:
        raise CaptureError(
            f"{node.target} at {node.meta.get('source') or node.name} changes a tensor in place and has no functional twin; "
            "write it without the trailing underscore in the model"
        )
    return twin


class _Functionalizer:
    """Walks the graph once; ``base`` remembers what each view looks into, ``current`` the newest value of each node."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.base: dict[fx.Node, fx.Node] = {}
        self.current: dict[fx.Node, fx.Node] = {}

    def run(self) -> None:
        for node in list(self.graph.nodes):
            node.args = fx.node.map_arg(node.args, self._newest)
            node.kwargs = fx.node.map_arg(node.kwargs, self._newest)
            if _is_inplace(node):
                self._replace(node)
            elif _is_view(node) and isinstance(node.args[0], fx.Node):
                self.base[node] = node.args[0]
        self.graph.eliminate_dead_code()

    def _newest(self, node: fx.Node) -> fx.Node:
        while node in self.current:
            node = self.current[node]
        return node

    def _replace(self, node: fx.Node) -> None:
        written = node.args[0]
        assert isinstance(written, fx.Node)
        node.target = _functional_twin(node)
        if (
            node.target is aten.copy.default
        ):  # the copied value may be narrower; the result has the shape of what is written
            self._expand_copy(node, written)
        self._write(written, node, after=node)

    def _expand_copy(self, node: fx.Node, written: fx.Node) -> None:
        source = node.args[1]
        value, into = source.meta.get("val") if isinstance(source, fx.Node) else None, written.meta.get("val")
        if (
            isinstance(value, Tensor)
            and isinstance(into, Tensor)
            and value.shape == into.shape
            and value.dtype == into.dtype
        ):
            node.target, node.args = aten.alias.default, (source,)

    def _write(self, written: fx.Node, value: fx.Node, after: fx.Node) -> None:
        """Record that ``written`` now holds ``value``, and carry the write into what it is a view of, and into other views of that."""
        old_views = [
            view for view, source in self.base.items() if self._newest(source) is written and view is not written
        ]
        source = self.base.get(written)
        self.current[written] = value
        if source is not None:
            source = self._newest(source)
            self._write(source, *self._scatter(written, source, value, after))
        for view in old_views:
            if any(user is not value and self._is_later(user, after) for user in view.users):
                self._refresh(view, value, after)

    def _refresh(self, view: fx.Node, value: fx.Node, after: fx.Node) -> None:
        with self.graph.inserting_after(after):
            replay = self.graph.node_copy(view, lambda n: n)
        replay.args = (value, *view.args[1:])
        replay.meta = dict(view.meta)
        self.current[view] = replay
        self.base[replay] = value

    def _is_later(self, user: fx.Node, node: fx.Node) -> bool:
        return node < user

    def _scatter(self, view: fx.Node, source: fx.Node, value: fx.Node, after: fx.Node) -> tuple[fx.Node, fx.Node]:
        build = _SCATTERS.get(view.target)
        if build is None:
            raise CaptureError(
                f"{after.meta.get('source') or after.name} writes in place through {view.target}; "
                "fxprune cannot replay that write: assign to the tensor itself, or clone it first"
            )
        with self.graph.inserting_after(value):
            result = build(self.graph, view, source, value)
        result.meta = dict(source.meta)
        return result, result


def _shape_back(graph: fx.Graph, view: fx.Node, source: fx.Node, value: fx.Node) -> fx.Node:
    return graph.call_function(aten.reshape_as.default, (value, source))


def _permute_back(graph: fx.Graph, view: fx.Node, source: fx.Node, value: fx.Node) -> fx.Node:
    order = [int(d) % len(view.args[1]) for d in view.args[1]]  # type: ignore[arg-type, union-attr]
    return graph.call_function(aten.permute.default, (value, [order.index(i) for i in range(len(order))]))


def _same_call(target: Any) -> Callable[..., fx.Node]:
    def build(graph: fx.Graph, view: fx.Node, source: fx.Node, value: fx.Node) -> fx.Node:
        return graph.call_function(target, (source, value, *view.args[1:]), dict(view.kwargs))

    return build


_SCATTERS: dict[Any, Callable[..., fx.Node]] = {
    aten.slice.Tensor: _same_call(aten.slice_scatter.default),
    aten.select.int: _same_call(aten.select_scatter.default),
    aten.permute.default: _permute_back,
    aten.transpose.int: lambda graph, view, source, value: graph.call_function(aten.transpose.int, (value, *view.args[1:])),
    **dict.fromkeys(
        (aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.unsqueeze.default, aten.squeeze.dim,
         aten.contiguous.default, aten.alias.default, aten.detach.default, aten.view_as.default),
        _shape_back,
    ),
}  # fmt: skip


def functionalize(graph: fx.Graph) -> None:
    """Replace every in-place operation of the graph by functional ones, in place on the graph.

    Raises:
        CaptureError: A write through a view that cannot be replayed.
    """
    _Functionalizer(graph).run()
