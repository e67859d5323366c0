"""Regions of a graph that are linear from one value to another, and read by nobody in between."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from fxprune.graph_tools import place_of
from fxprune.linear.operations import Operations


@dataclass(frozen=True)
class Region:
    """All calls between two values.

    Attributes:
        end: The last call.
        source: The value that the region reads; it is no part of it.
        nodes: The calls, the last one first.
    """

    end: fx.Node
    source: fx.Node
    nodes: tuple[fx.Node, ...]


def regions_before(operations: Operations, end: fx.Node) -> tuple[list[Region], str]:
    """Return all regions that end with a call, the smallest first, and why there is no larger one.

    Calls are taken in from the last to the first. Wherever all that has been taken in reads a single further value,
    that is the source of a region.
    """
    found: list[Region] = []
    taken: list[fx.Node] = []
    front = {end}
    while True:
        node = max(front)
        front.remove(node)
        if taken and not front:
            found.append(Region(end, node, tuple(taken)))
        operation = operations[node]
        beside = f", beside {', '.join(sorted(place_of(other) for other in front))}" if front else ""
        if isinstance(operation, str):
            return found, f"{place_of(node)} before it {operation}{beside}"
        others = [place_of(user) for user in node.users if user not in taken]
        if others and node is not end:
            return found, f"{place_of(node)} before it is also read by {', '.join(others)}{beside}"
        taken.append(node)
        front |= set(operation.sources)
