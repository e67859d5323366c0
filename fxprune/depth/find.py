"""Finds the layers of a graph that can be removed without changing any shape.

Nothing is known of classes: what is a layer follows from how values flow.

* **Branches** (:mod:`fxprune.depth.branches`): the summand ``f(x)`` of ``x + f(x)``, with whatever is in it: norms,
  squeeze-and-excitation, attention over windows, stochastic depth, layer scale. An activation or norm behind the sum
  stays. A pre-norm transformer block is two branches; so is a post-norm one, and its norms stay.
* **Sequences** (:mod:`fxprune.depth.sequences`): a convolution that keeps the shape of its input, with norm and
  activation, where no sum has another way around it.
* **Blocks** (:mod:`fxprune.depth.blocks`): one of several stretches of the same structure in a row, whatever is in it.

A second value that enters a branch (cross attention) is no obstacle: it is computed outside, and stays where something
else reads it. What is computed for the branch alone goes with it, on whichever side it enters. A stage's
down-sampling block changes the shape, and so is none of these.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from torch import fx

from fxprune.capture import Traced
from fxprune.depth.blocks import find_blocks
from fxprune.depth.branches import Branch, find_branches
from fxprune.depth.costs import Costs
from fxprune.depth.flow import Flow, living, unread_inputs
from fxprune.depth.layers import LEVELS, Kind, Layer, Layers, Level
from fxprune.depth.names import distinct, name_of
from fxprune.depth.sequences import find_sequences
from fxprune.errors import InputError
from fxprune.graph_tools import calls_of, module_of, place_of
from fxprune.report import Skip


def find_layers(traced: Traced, level: Level = "layer") -> Layers:
    """Return the removable layers of a model, and what looks like one and is none.

    Args:
        traced: The captured model.
        level: ``layer`` for branches and sequences, and the blocks that hold neither; ``block`` for the blocks, and the
            branches and sequences that lie in none.

    Raises:
        InputError: The level is neither of these.
    """
    if level not in LEVELS:
        raise InputError(f"level={level!r} is not known; use {' or '.join(map(repr, LEVELS))}.")
    search = _Search(traced)
    small = [*search.branches, *search.sequences]
    large = [block for block in search.blocks if not any(each.nodes == block.nodes for each in small)]
    if level == "layer":
        chosen = [*small, *(block for block in large if not any(each.nodes & block.nodes for each in small))]
    else:
        chosen = [*large, *(each for each in small if not any(each.nodes & block.nodes for block in large))]
    chosen.sort(key=lambda each: search.flow.place[each.output])
    names = search.names(chosen)
    layers = tuple(search.layer(each, name) for each, name in zip(chosen, names, strict=True))
    refused = {skip.place: skip for skip in reversed(search.refused)}  # the first reason of each place
    kept = [skip for place, skip in reversed(refused.items()) if place not in names]
    return Layers(layers, tuple(kept), level)


class _Candidate:
    """A place as it was found, in nodes."""

    def __init__(
        self, kind: Kind, source: fx.Node, output: fx.Node, nodes: Iterable[fx.Node], branch: Branch | None = None
    ) -> None:
        self.kind: Kind = kind
        self.source, self.output = source, output
        self.summand = branch.summand if branch is not None else None
        self.nodes = frozenset(nodes)
        self.between = frozenset(branch.between) if branch is not None else self.nodes


class _Search:
    """Everything that can be found in one graph."""

    def __init__(self, traced: Traced) -> None:
        self.traced, self.flow, self.costs = traced, Flow(traced.module.graph), Costs(traced)
        branches, self.refused = find_branches(traced, self.flow, self.costs)
        sequences, refused = find_sequences(traced, self.flow, branches)
        self.refused += refused
        self.branches = self._allowed(_Candidate("branch", each.skip, each.sum, each.nodes, each) for each in branches)
        self.sequences = self._allowed(
            _Candidate("sequence", each.source, each.output, each.nodes) for each in sequences
        )
        self.blocks = self._allowed(
            _Candidate("block", each.source, each.output, each.nodes)
            for each in find_blocks(traced, self.flow, self.costs)
        )

    def _allowed(self, candidates: Iterable[_Candidate]) -> list[_Candidate]:
        kept = []
        for each in candidates:
            why = self._why_not(each)
            if why:
                self.refused.append(Skip(self.name(each), why))
            else:
                kept.append(each)
        return kept

    def _why_not(self, each: _Candidate) -> str:
        stand_in = each.source
        if each.summand is not None:
            stand_in = next(operand for operand in each.output.all_input_nodes if operand is not each.summand)
        alive = living(self.flow.output, {each.output: stand_in})
        unread = unread_inputs(self.flow, alive)
        if unread:
            return f"nothing else reads the input {', '.join(node.name for node in unread)} of the model"
        if not any(self.costs.used[node] or self.costs.macs.get(node) for node in alive):
            return "it is the whole network: nothing would be left without it"
        return self._several_sizes(each)

    def _several_sizes(self, each: _Candidate) -> str:
        """Refuse what a capture by region holds once for each size: it would go for one size only."""
        regions, module = self.traced.regions, self.traced.module
        if regions is None:
            return ""
        owner = regions.of_nodes(module.graph)
        for node in each.nodes:
            if node.op == "call_module":
                others = {owner.get(call) for call in calls_of(module, module_of(module, node))} - {owner.get(node)}
                if others:
                    return f"{place_of(node)} is called at {len(others) + 1} sizes, each a graph of its own"
        return ""

    def names(self, candidates: list[_Candidate]) -> list[str]:
        """Return what people call some candidates, a name of its own each."""
        names = [self.name(each) for each in candidates]
        shared = {name for name, count in Counter(names).items() if count > 1}
        return distinct(
            [
                self.name(each, whole=False) if name in shared else name
                for each, name in zip(candidates, names, strict=True)
            ]
        )

    def name(self, each: _Candidate, *, whole: bool = True) -> str:
        """Return what people call a candidate; a block after all that is in it, or else after its matrices alone."""
        own = {
            node for node in each.nodes if node in each.between or not self.flow.is_fed(node)
        }  # not a second input's
        nodes = sorted(own, key=lambda node: self.flow.place[node])
        return name_of(self.traced.module, nodes, each.output.name, matrices=each.kind != "block" or not whole)

    def layer(self, each: _Candidate, name: str) -> Layer:
        """Return a candidate as plain data."""
        own = self.costs.own(each.nodes)
        return Layer(
            name,
            each.kind,
            each.source.name,
            each.output.name,
            each.summand.name if each.summand is not None else "",
            tuple(node.name for node in self.flow.nodes if node in each.nodes),
            tuple(own),
            self.costs.params(own),
            self.costs.of(each.nodes).macs,
        )
