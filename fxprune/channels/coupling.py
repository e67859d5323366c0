"""The coupling graph that people see: axes are nodes, operations edges; and the path from a parameter to its freeze."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import networkx as nx
import numpy as np

from fxprune.channels.labels import Axis
from fxprune.channels.remedies import remedy
from fxprune.channels.rules import Flow
from fxprune.errors import InputError

if TYPE_CHECKING:
    from fxprune.channels.groups import Groups

Node = tuple[Any, ...]  # ("parameter", name, dim) | ("tensor", node name, dim) | ("labels", first label)


@dataclass(frozen=True)
class Explanation:
    """What one dimension of a parameter is coupled to.

    Attributes:
        parameter: Its name.
        dim: The dimension.
        units: How many of its indices' classes can be removed.
        partners: (name, dimension) of all parameters that go with it.
        reason: Why the rest stays ("" if nothing does).
        path: The way from the parameter to what froze it, one step per operation.
    """

    parameter: str
    dim: int
    units: int
    partners: tuple[tuple[str, int], ...]
    reason: str
    path: tuple[str, ...]

    def __str__(self) -> str:
        head = f"{self.parameter}, dimension {self.dim}: {self.units} units can be removed"
        lines = [head, *(f"  goes with {name}, dimension {d}" for name, d in self.partners)]
        if self.reason:
            lines.append(f"  stays: {self.reason}")
            lines += [f"    {step}" for step in self.path]
        if advice := remedy(self.reason):
            lines.append(f"  {advice}")
        return "\n".join(lines)


def axes_of(flow: Flow) -> dict[Node, Axis]:
    """Return the labels of every labelled axis of parameters and tensors."""
    found: dict[Node, Axis] = {}
    for name, axes in flow.parameters.items():
        found |= {("parameter", name, d): axis for d, axis in enumerate(axes) if axis is not None}
    for node, value in flow.env.items():
        if isinstance(value, tuple):
            found |= {("tensor", node.name, d): axis for d, axis in enumerate(value) if axis is not None}
        elif isinstance(value, list):
            for k, item in enumerate(value):
                if isinstance(item, tuple):
                    found |= {
                        ("tensor", f"{node.name}[{k}]", d): axis for d, axis in enumerate(item) if axis is not None
                    }
    return found


def build_coupling(flow: Flow) -> nx.MultiGraph:
    """Build the multigraph: an axis is joined to the runs of labels that it reads, and these to what ties them."""
    graph = nx.MultiGraph()
    starts = _run_starts(flow)

    def runs(axis: Axis) -> list[int]:
        return [int(s) for s in np.unique(starts[axis.reshape(-1)])]

    for key, axis in axes_of(flow).items():
        for start in runs(axis):
            graph.add_edge(key, ("labels", start), by=key[1])
    for one, other in flow.labels.ties:
        pairs = np.unique(np.stack([starts[one.reshape(-1)], starts[other.reshape(-1)]]), axis=1)
        for a, b in pairs.T:
            graph.add_edge(("labels", int(a)), ("labels", int(b)), by="tie")
    for number, grid in enumerate(flow.labels.grids):
        for axis in (grid.flat, *grid.factors):
            for start in runs(axis):
                graph.add_edge(("grid", number), ("labels", start), by=grid.place)
    return graph


def _run_starts(flow: Flow) -> Axis:
    """Map every label to the first of the batch in which it was made: labels made together are drawn as one node."""
    starts = np.arange(flow.labels.count, dtype=np.int64)
    for begin, size in flow.labels.batches:
        starts[begin : begin + size] = begin
    return starts


def explain(groups: Groups, flow: Flow, parameter: str, dim: int) -> Explanation:
    """See :meth:`Groups.explain`."""
    parameter = flow.aliases.get(parameter, parameter)
    if parameter not in flow.parameters:
        near = difflib.get_close_matches(parameter, list(flow.parameters), n=3, cutoff=0.3)
        hint = f"; near it: {', '.join(near)}" if near else ""
        raise InputError(f"the graph uses no parameter called {parameter!r}{hint}")
    axis = groups.axis(parameter, dim) if dim < len(flow.parameters[parameter]) else None
    if axis is None:
        return Explanation(
            parameter, dim, 0, (), "this dimension carries no channels (kernel taps, or a size of one)", ()
        )
    classes = np.unique(axis)
    live = classes[groups.live[classes]]
    stuck = classes[~groups.live[classes]]
    partners = tuple(
        (name, d)
        for name, d in groups.parameters
        if (name, d) != (parameter, dim) and np.isin(groups._axis(name, d), classes).any()
    )
    reason = groups.reason(int(stuck[0])) if stuck.size else ""
    return Explanation(parameter, dim, int(live.size), partners, reason, _path(groups, flow, parameter, dim, stuck))


def _path(groups: Groups, flow: Flow, parameter: str, dim: int, stuck: Axis) -> tuple[str, ...]:
    if not stuck.size:
        return ()
    origin = int(groups._classes.origin[stuck[0]])
    labels, reason, place = flow.labels.frozen[origin]
    start = int(_run_starts(flow)[labels.reshape(-1)[0]])
    graph = groups.coupling
    if not nx.has_path(graph, ("parameter", parameter, dim), ("labels", start)):
        return (f"{place}: {reason}",)
    steps = nx.shortest_path(graph, ("parameter", parameter, dim), ("labels", start))
    named = [_name(step, flow) for step in steps if step[0] != "labels"]
    return (*named, f"{place}: {reason}")


def _name(step: Node, flow: Flow) -> str:
    if step[0] == "grid":
        place = flow.labels.grids[step[1]].place
        return f"a reshape or a group count that factors the dimension{_at(place, flow)}"
    return f"{step[1]}, dimension {step[2]}{_at(step[1], flow) if step[0] == 'tensor' else ''}"


def _at(name: str, flow: Flow) -> str:
    """Return the line of the model's code that made a value."""
    source = flow.sources.get(name.partition("[")[0], "")
    return f" ({source})" if source else ""
