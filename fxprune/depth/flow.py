"""How values flow through a graph: what depends on what, what dies with what, and where everything passes through.

Values are tensors. What reads only the sizes, the dtype or the device of a tensor does not depend on it: a table of
positions that is cut to the length of the input is no function of the input.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import cached_property

import networkx as nx
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

aten = torch.ops.aten

_SHAPED_LIKE = frozenset(
    (
        aten.new_zeros, aten.new_ones, aten.new_full, aten.new_empty, aten.new_empty_strided,
        aten.zeros_like, aten.ones_like, aten.full_like, aten.empty_like, aten.rand_like, aten.randn_like,
        aten.sym_size, aten.sym_stride, aten.sym_numel,
    )
)  # fmt: skip


class Flow:
    """The flow of values through one graph, which must not change meanwhile; sets of nodes are bits of numbers."""

    def __init__(self, graph: fx.Graph) -> None:
        self.nodes: list[fx.Node] = list(graph.nodes)
        self.place = {node: number for number, node in enumerate(self.nodes)}
        self.output = graph.output_node()

    def reads(self, node: fx.Node) -> list[fx.Node]:
        """Return the nodes whose values (not only whose sizes) a node reads."""
        if getattr(node.target, "overloadpacket", None) in _SHAPED_LIKE or not (
            _has_tensor(node) or node.op == "output"
        ):
            return []
        return [source for source in node.all_input_nodes if _has_tensor(source)]

    @cached_property
    def before(self) -> list[int]:
        """For each node the nodes that its value depends on."""
        found: list[int] = []
        for node in self.nodes:
            bits = 0
            for source in self.reads(node):
                at = self.place[source]
                bits |= found[at] | 1 << at
            found.append(bits)
        return found

    def depends(self, node: fx.Node, source: fx.Node) -> bool:
        """Whether the value of a node depends on that of another one."""
        return bool(self.before[self.place[node]] >> self.place[source] & 1)

    def between(self, source: fx.Node, end: fx.Node) -> list[fx.Node]:
        """Return the nodes on the ways from one value to another, in order, with the latter."""
        low, high = self.place[source], self.place[end]
        bits = self.before[high] | 1 << high
        return [self.nodes[n] for n in range(low + 1, high + 1) if bits >> n & 1 and self.before[n] >> low & 1]

    def only_for(self, end: fx.Node, *, reader: fx.Node | None = None, keep: fx.Node | None = None) -> set[fx.Node]:
        """Return what is computed for nothing but one node, with it.

        Args:
            end: The node.
            reader: The one reader that stops to read it; None where all of its readers do.
            keep: A node that stays, as it is read in place of the end.
        """
        dead: set[fx.Node] = set()
        pending = [end] if reader is None or set(end.users) <= {reader} else []
        while pending:
            node = pending.pop()
            if node not in dead and node is not keep and node.op not in ("placeholder", "output"):
                dead.add(node)
                pending += [source for source in node.all_input_nodes if dead.issuperset(source.users)]
        return dead

    @cached_property
    def exits(self) -> dict[fx.Node, fx.Node]:
        """For each value that the outputs need the first one behind it that all that depends on it leads to."""
        reversed_graph: nx.DiGraph[fx.Node] = nx.DiGraph()
        reversed_graph.add_node(self.output)
        reversed_graph.add_edges_from((node, source) for node in self.nodes for source in self.reads(node))
        found: dict[fx.Node, fx.Node] = dict(nx.immediate_dominators(reversed_graph, self.output))
        return {node: found[node] for node in self.nodes if node in found and node is not self.output}

    def is_fed(self, node: fx.Node) -> bool:
        """Whether a value depends on an input of the model."""
        return node in self._entries and node is not self.output

    def entry(self, node: fx.Node) -> fx.Node | None:
        """Return the last node in front of one that everything which it depends on, from inputs on, passes through."""
        entry = self._entries.get(node)
        return None if entry is self.output else entry

    @cached_property
    def _entries(self) -> dict[fx.Node, fx.Node]:
        graph: nx.DiGraph[fx.Node] = nx.DiGraph()
        graph.add_node(self.output)  # stands for where all inputs come from
        fed: set[fx.Node] = set()
        for node in self.nodes:
            sources = [source for source in self.reads(node) if source in fed]
            if node.op == "placeholder" or (sources and node is not self.output):
                fed.add(node)
                graph.add_edges_from((source, node) for source in sources or [self.output])
        return dict(nx.immediate_dominators(graph, self.output))


def living(output: fx.Node, stand_ins: Mapping[fx.Node, fx.Node]) -> set[fx.Node]:
    """Return what the outputs need where some values are read in place of others.

    Args:
        output: The output node of the graph.
        stand_ins: Value -> the value that its readers read in its place.
    """
    alive: set[fx.Node] = set()
    pending = [output]
    while pending:
        node = pending.pop()
        if node not in alive:
            alive.add(node)
            pending += [final(source, stand_ins) for source in node.all_input_nodes]
    return alive


def final(node: fx.Node, stand_ins: Mapping[fx.Node, fx.Node]) -> fx.Node:
    """Return what is read in place of a value in the end."""
    while node in stand_ins:
        node = stand_ins[node]
    return node


def sole_reader(node: fx.Node) -> fx.Node | None:
    """Return the one node that reads a value, None where there are more or none."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def unread_inputs(flow: Flow, alive: Collection[fx.Node]) -> list[fx.Node]:
    """Return the inputs of the model that something reads now, and that are not among what is left (:func:`living`)."""
    return [node for node in flow.nodes if node.op == "placeholder" and node.users and node not in alive]


def read_elsewhere(nodes: Iterable[fx.Node], allowed: Collection[fx.Node]) -> tuple[fx.Node, fx.Node] | None:
    """Return the first of some nodes with a reader that is not allowed, and this reader."""
    for node in nodes:
        for user in node.users:
            if user not in allowed:
                return node, user
    return None


def _has_tensor(node: fx.Node) -> bool:
    if node.op == "output":
        return False
    return any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(node.meta.get("val")))
