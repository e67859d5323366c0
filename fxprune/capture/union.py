"""Graphs side by side in one: each keeps its inputs and outputs, and the parameters are the model's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from fxprune.capture.normal_form import as_layers

NodeMap = dict[fx.Node, fx.Node]


@dataclass(frozen=True, eq=False)
class Piece:
    """The graph of a sub-module in normal form, which stays as it is, to be put beside others."""

    path: str
    graph: fx.GraphModule


def unite(model: nn.Module, pieces: Sequence[Piece]) -> tuple[fx.GraphModule, list[NodeMap], list[slice]]:
    """Return one graph of all pieces as calls of the model's layers, under the model's names.

    Its inputs are those of the pieces one after the other, its output a tuple of all that they return.

    Returns:
        (graph, for each piece its nodes and theirs in the graph, for each piece its outputs).

    Raises:
        CaptureError: The pieces cannot be written as calls of the model's layers.
    """
    union = _Union()
    maps = [union.inputs(piece) for piece in pieces]
    outputs: list[slice] = []
    for piece, nodes in zip(pieces, maps, strict=True):
        outputs.append(union.body(piece, nodes))
    union.graph.output(tuple(union.results))
    return as_layers(model, fx.GraphModule(union.root, union.graph)), maps, outputs


class _Union:
    def __init__(self) -> None:
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.results: list[Any] = []
        self.names: dict[int, str] = {}

    def inputs(self, piece: Piece) -> NodeMap:
        nodes: NodeMap = {}
        for node in piece.graph.graph.find_nodes(op="placeholder"):
            made = nodes[node] = self.graph.placeholder(_plain(f"{piece.path}_{node.target}"))
            made.target = made.name  # which is no other's, where several calls have inputs of one name
            made.meta = self._meta(piece, node)
        return nodes

    def body(self, piece: Piece, nodes: NodeMap) -> slice:
        """Copy all but the inputs, and return where the results are."""
        begin = len(self.results)
        for node in piece.graph.graph.nodes:
            if node.op == "output":
                self.results += fx.node.map_arg(node.args[0], lambda n: nodes[n])
            elif node.op != "placeholder":
                nodes[node] = self.graph.node_copy(node, lambda n: nodes[n])
                nodes[node].meta = self._meta(piece, node)
                if node.op == "get_attr":
                    nodes[node].target = self._held(piece, str(node.target))
        return slice(begin, len(self.results))

    def _meta(self, piece: Piece, node: fx.Node) -> dict[str, Any]:
        path = ".".join(filter(None, (piece.path, node.meta.get("path"))))
        return {**node.meta, "path": path}

    def _held(self, piece: Piece, target: str) -> str:
        """Return the name of a tensor in the union, the same for the same tensor."""
        value: Any = piece.graph
        for atom in target.split("."):
            value = getattr(value, atom)
        if id(value) not in self.names:
            name = _plain(f"{piece.path}_{target}")
            while hasattr(self.root, name):
                name += "_"
            self.names[id(value)] = name
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.root.register_buffer(name, value)
            else:
                setattr(self.root, name, value)
        return self.names[id(value)]


def _plain(name: str) -> str:
    return re.sub(r"\W", "_", name)
