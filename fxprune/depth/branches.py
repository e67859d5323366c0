"""Residual branches: what stands between a value ``x`` and a sum that adds it to ``x`` again.

A sum of several terms is taken as a whole, in whatever order it is written: of ``(x + attention(x)) + mlp(x)`` both
are branches, and ``x`` is the skip.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from fxprune.capture import Traced
from fxprune.depth.costs import Costs
from fxprune.depth.flow import Flow, living, read_elsewhere, sole_reader
from fxprune.graph_tools import place_of, shape_of
from fxprune.report import Skip

aten = torch.ops.aten


@dataclass(frozen=True)
class Branch:
    """A summand that may become zero.

    Attributes:
        skip: The value that the branch reads, and that is a summand too.
        summand: The last node of the branch.
        sum: The addition that reads the summand.
        nodes: Everything that is computed for the branch alone.
        between: Those of them that depend on the skip, in order.
    """

    skip: fx.Node
    summand: fx.Node
    sum: fx.Node
    nodes: frozenset[fx.Node]
    between: tuple[fx.Node, ...]


def sums_of(flow: Flow) -> list[tuple[fx.Node, dict[fx.Node, fx.Node]]]:
    """Return each sum of a graph with its terms: term -> the addition that reads it.

    An addition that nothing but another one reads is a part of that one.
    """
    found = []
    for node in flow.nodes:
        reader = sole_reader(node)
        if is_sum(node) and not (reader is not None and is_sum(reader)):
            found.append((node, _terms(node)))
    return found


def is_sum(node: fx.Node) -> bool:
    """Whether a node adds two tensors of one dtype, neither of them scaled."""
    if node.op != "call_function" or node.target is not aten.add.Tensor or node.kwargs.get("alpha", 1) != 1:
        return False
    one, other = node.args[:2]
    if not isinstance(one, fx.Node) or not isinstance(other, fx.Node) or one is other:
        return False
    return None not in (types := {_dtype(each) for each in (node, one, other)}) and len(types) == 1


def find_branches(traced: Traced, flow: Flow, costs: Costs) -> tuple[list[Branch], list[Skip]]:
    """Return all branches, in order, and the sums and summands that are none, with the reason."""
    found: list[Branch] = []
    refused: list[Skip] = []
    for top, terms in sums_of(flow):
        for item in _branches(flow, costs, top, terms):
            (found if isinstance(item, Branch) else refused).append(item)  # type: ignore[arg-type]
    kept = []
    for branch in found:
        inner = [other for other in found if other.nodes < branch.nodes]
        if len(inner) > 1:
            why = f"it is a part of the network and no layer: {len(inner)} branches lie in it; remove these"
            refused.append(Skip(place_of(branch.summand), why))
        else:
            kept.append(branch)
    return kept, refused


def _branches(flow: Flow, costs: Costs, top: fx.Node, terms: dict[fx.Node, fx.Node]) -> Iterator[Branch | Skip]:
    """Yield the branches of one sum, or why there are none."""
    whole = [term for term in terms if shape_of(term) == shape_of(top)]  # no identity where it is broadcast
    skips = {term: _skip_of(flow, term, whole) for term in terms}
    if not any(skips.values()):
        if all(_has_layer(flow, costs, term) for term in terms):
            yield Skip(place_of(top), _no_identity(terms))
        return
    for term, skip in skips.items():
        if skip is None:
            continue
        between = flow.between(skip, term)
        nodes = flow.only_for(term, reader=terms[term])
        beside = {n for other, s in skips.items() if s is skip and other is not term for n in flow.between(skip, other)}
        why = _why_not(flow, costs, between, nodes, (term, terms[term], skip), beside)
        if why:
            yield Skip(place_of(term), why)
        elif _counts(costs, nodes):
            inside = tuple(node for node in between if node in nodes)
            yield Branch(skip, term, terms[term], frozenset(nodes), inside)


def _why_not(
    flow: Flow,
    costs: Costs,
    between: list[fx.Node],
    nodes: set[fx.Node],
    ends: tuple[fx.Node, fx.Node, fx.Node],
    beside: set[fx.Node],
) -> str:
    """Return why a summand cannot go, "" where it can.

    A norm that two branches of one sum read stays with the one that is left.
    """
    term, addition, skip = ends
    if not _counts(costs, {*between, *nodes}):
        return ""
    if not _counts(costs, living(flow.output, {addition: skip})):
        return "it is the whole network: nothing would be left without it"
    leak = read_elsewhere([term], {addition}) or read_elsewhere(between, {*between, *nodes, *beside, addition})
    if leak is not None:
        node, reader = leak
        by = "the outputs" if reader.op == "output" else place_of(reader)
        return f"{place_of(node)} within its branch is also read by {by}, outside of it"
    return ""


def _skip_of(flow: Flow, term: fx.Node, terms: list[fx.Node]) -> fx.Node | None:
    """Return the term of the same sum that this one is computed from; the last one where there are several."""
    sources = [other for other in terms if flow.depends(term, other)]
    return max(sources, key=lambda node: flow.place[node], default=None)


def _terms(node: fx.Node) -> dict[fx.Node, fx.Node]:
    found: dict[fx.Node, fx.Node] = {}
    for operand in node.args[:2]:
        assert isinstance(operand, fx.Node)
        if is_sum(operand) and sole_reader(operand) is node:
            found |= _terms(operand)
        else:
            found[operand] = node
    return found


def _no_identity(terms: dict[fx.Node, fx.Node]) -> str:
    return f"none of its summands ({', '.join(map(place_of, terms))}) is an identity that the others are computed from"


def _has_layer(flow: Flow, costs: Costs, term: fx.Node) -> bool:
    """Whether a term ends in layers, as a projection does."""
    return _counts(costs, flow.only_for(term)) and bool(flow.before[flow.place[term]])


def _counts(costs: Costs, nodes: set[fx.Node]) -> bool:
    """Whether something is a layer: it has parameters, or multiply-accumulates."""
    return any(costs.used[node] or costs.macs.get(node) for node in nodes)


def _dtype(node: fx.Node) -> torch.dtype | None:
    value = node.meta.get("val")
    return value.dtype if isinstance(value, Tensor) else None
