"""Blocks that repeat: stretches of the graph with one way in and one way out, several of one structure in a row.

Found by structure alone: between a value and the first one that everything behind it passes through (its immediate
post-dominator) lies a *step*, which gets a signature of what is computed in it; where signatures repeat with a period,
each period is a block. So a stage's first block, which changes the shape, is never one of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, fx

from fxprune.capture import Traced
from fxprune.depth.costs import Costs
from fxprune.depth.flow import Flow, read_elsewhere
from fxprune.depth.names import name_of
from fxprune.graph_tools import module_of, shape_of


@dataclass(frozen=True)
class Block:
    """One of several stretches alike; the value in front of it can stand for its output."""

    source: fx.Node
    output: fx.Node
    nodes: frozenset[fx.Node]


def find_blocks(traced: Traced, flow: Flow, costs: Costs) -> list[Block]:
    """Return the blocks of a graph, in order."""
    signatures: dict[fx.Node, str] = {}
    found: list[Block] = []
    for path in _paths(flow, costs):
        keys = [_signature(traced, flow, signatures, a, b) for a, b in itertools.pairwise(path)]
        for start, period, count in _repeats(keys):
            found += _best_phase(traced, flow, costs, path[start:], period, count)
    order = {block: flow.place[block.output] for block in found}
    return sorted(order, key=lambda block: order[block])


def _paths(flow: Flow, costs: Costs) -> Iterator[list[fx.Node]]:
    """Yield ways along post-dominators that meet in no step, the one past the most layers first.

    So the trunk comes before what begins within one of its blocks, and before a mask that all blocks read.
    """
    exits, weight = flow.exits, dict[fx.Node, int]()
    for number in reversed(range(len(flow.nodes))):
        node = flow.nodes[number]
        if node in exits and (node.op == "placeholder" or flow.before[number]):
            end = exits[node]
            layers = [inner for inner in flow.between(node, end) if _has_weights(costs, inner)]
            weight[node] = len(layers) + weight.get(end, 0)
    seen: set[fx.Node] = set()
    for node in sorted(weight, key=lambda node: (-weight[node], flow.place[node])):
        path = [node]
        while path[-1] not in seen and path[-1] in exits:
            seen.add(path[-1])
            path.append(exits[path[-1]])
        if len(path) > 2:
            yield path


def _has_weights(costs: Costs, node: fx.Node) -> bool:
    return bool(costs.used[node]) or any(
        costs.used[source] for source in node.all_input_nodes if source.op == "get_attr"
    )


def _signature(traced: Traced, flow: Flow, known: dict[fx.Node, str], start: fx.Node, end: fx.Node) -> str:
    """Return what is computed between two values, as text; the same text for the same structure and sizes."""
    if start not in known:
        inside = flow.between(start, end) if end.op != "output" else []
        names = {start: "in"} | {node: str(number) for number, node in enumerate(inside)}
        known[start] = "; ".join(_described(traced, node, names) for node in inside) or f"no step: {start.name}"
    return known[start]


def _described(traced: Traced, node: fx.Node, names: dict[fx.Node, str]) -> str:
    what = repr(module_of(traced.module, node)) if node.op == "call_module" else str(node.target)
    operands = fx.node.map_arg((node.args, node.kwargs), lambda source: names.get(source) or _outside(source))
    return f"{what}{operands}{shape_of(node)}"


def _outside(node: fx.Node) -> str:
    value = node.meta.get("val")
    return f"{tuple(value.shape)}" if isinstance(value, Tensor) else str(value)


def _repeats(keys: list[str]) -> Iterator[tuple[int, int, int]]:
    """Yield (start, period, number of steps) of each stretch that repeats, smaller periods first, none twice."""
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    ids = [numbers[key] for key in keys]
    taken = [False] * len(ids)
    for period in range(1, len(ids) // 2 + 1):
        start = 0
        while start + 2 * period <= len(ids):
            end = start
            while (
                end + period < len(ids) and ids[end] == ids[end + period] and not taken[end] and not taken[end + period]
            ):
                end += 1
            if end - start >= period:
                length = end - start + period
                taken[start : start + length] = [True] * length
                yield start, period, length
            start = end + 1 if end == start else end + period


def _best_phase(traced: Traced, flow: Flow, costs: Costs, path: list[fx.Node], period: int, steps: int) -> list[Block]:
    """Return the blocks of a stretch, cut so that they are modules where that can be, or else as early as can be."""
    best: tuple[tuple[int, bool], list[Block]] = ((-1, False), [])
    for phase in range(min(period, steps - period)):
        ends = range(phase, steps - period + 1, period)
        blocks = [_block(flow, costs, path[at], path[at + period]) for at in ends]
        valid = [block for block in blocks if block is not None]
        names = [name_of(traced.module, block.nodes, "", matrices=False) for block in valid]
        own = sum(_depth_of(name) for name in names) if len(set(names)) == len(names) else 0
        rank = own, _has_weights(costs, path[phase + 1])  # of equal ones, the one that begins with a layer
        if len(valid) > 1 and rank > best[0]:
            best = rank, valid
    return best[1]


def _depth_of(name: str) -> int:
    return name.count(".") + 1 if name else 0


def _block(flow: Flow, costs: Costs, start: fx.Node, end: fx.Node) -> Block | None:
    inside = flow.between(start, end)
    if not inside or shape_of(start) is None or shape_of(start) != shape_of(end):
        return None
    if start.meta["val"].dtype != end.meta["val"].dtype or end.op == "output":
        return None
    nodes = flow.only_for(end, keep=start)
    layers = any(costs.used[node] or costs.macs.get(node) for node in nodes if node in set(inside))
    leaks = read_elsewhere([node for node in inside if node is not end], {*inside, *nodes})
    if not layers or leaks or not set(inside) <= nodes:
        return None
    return Block(start, end, frozenset(nodes))
