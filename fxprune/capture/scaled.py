"""Shapes at a batch so much larger than the example's that nothing fits it by chance.

The example has a batch of two, and what is factored at its sizes may hold for no other batch: ``(4, 2, 3)`` read as
``(2, 4, 3)`` looks like two dimensions that keep their elements. At a batch that is a multiple of a large prime it does
not. Batches stay multiples of the example's, which models that take samples in groups ask for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.capture.program import is_open
from fxprune.capture.propagate import KEY, flat_inputs, propagate_sizes
from fxprune.capture.traced import Traced
from fxprune.errors import CaptureError

TIMES = 1_000_003  # a prime above all sizes of channels, space and tokens
_OPEN_TIMES = (10_007, 997)  # of the batch, and of height and width where these are open: all bytes are counted too
Sizes = tuple[int, ...]


def sizes_from_symbols(module: fx.GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[fx.Node, Sizes]:
    """Return the scaled sizes of every tensor that the exporter left symbolic shapes for.

    It is free, where running the graph on fake tensors again would cost as much as :func:`propagate` does.
    """
    inputs = flat_inputs(args, kwargs)
    batch: dict[Any, int] = {}
    nodes = zip(module.graph.find_nodes(op="placeholder"), inputs, strict=True)
    given = [(node.meta["val"].shape, leaf.shape) for node, leaf in nodes if isinstance(leaf, Tensor)]
    many, space = _OPEN_TIMES if any(is_open(s) for shape, _ in given for s in shape[1:]) else (TIMES, TIMES)
    for shape, sizes in given:
        pairs = enumerate(zip(shape, sizes, strict=True))
        batch |= {s.node.expr: n * (space if d else many) for d, (s, n) in pairs if is_open(s)}
    known: dict[Any, int] = {}

    def scaled(size: Any) -> int:
        if not isinstance(size, torch.SymInt):
            return int(size)
        if size.node.expr not in known:
            known[size.node.expr] = int(size.node.expr.subs(batch))  # TypeError: not a function of the batch alone
        return known[size.node.expr]

    found: dict[fx.Node, Sizes] = {}
    for node in module.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, Tensor):
            try:
                found[node] = tuple(scaled(size) for size in value.shape)
            except (AttributeError, TypeError):
                continue
    return found


class Scaled:
    """The scaled sizes of one graph's values: those of the capture where it has them, else what running it gives."""

    def __init__(self, traced: Traced) -> None:
        self.traced = traced
        self.ran = False

    def sizes(self, *nodes: fx.Node) -> Iterator[tuple[Sizes, ...]]:
        """Yield the sizes of tensor nodes, and once more what the graph gives if those of the capture will not do.

        The exporter's symbols hold for the batches that it could prove the graph for, which may be few. Where the batch
        is static the sizes are those of the example; where the graph does not run at the scaled batch there are none.
        """
        if not self.traced.batch_is_dynamic:
            yield tuple(tuple(int(size) for size in node.meta["val"].shape) for node in nodes)
            return
        if all(KEY in node.meta for node in nodes):
            yield tuple(node.meta[KEY] for node in nodes)
        if not self.ran:
            self.ran = True
            if self._run():
                yield tuple(node.meta[KEY] for node in nodes)

    def _run(self) -> bool:
        graph = self.traced.module.graph
        inputs = flat_inputs(self.traced.args, self.traced.kwargs)
        given = zip(graph.find_nodes(op="placeholder"), inputs, self.traced.batches(), strict=True)
        shapes = [self._input(*each) for each in given]
        try:
            found = propagate_sizes(self.traced.module, inputs, shapes)
        except CaptureError:  # an input whose first dimension is no batch, or an operation that counts in 32 bits
            return False
        for node, sizes in found.items():
            node.meta[KEY] = sizes
        return True

    def _input(self, node: fx.Node, leaf: Any, batch: int | None) -> Sizes | None:
        """Return what the capture knows of an input, else take its first dimension for a batch if it may be one."""
        if not isinstance(leaf, Tensor) or KEY in node.meta:
            return node.meta.get(KEY)
        batched = batch is not None and leaf.shape[0] == batch
        return (leaf.shape[0] * TIMES, *leaf.shape[1:]) if batched else tuple(leaf.shape)
