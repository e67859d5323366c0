"""What decomposed layers cost, and what they would as single layers: parameters and multiply-accumulates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fxprune.capture import Traced
from fxprune.linear.basis import Block, blocks_with_basis
from fxprune.planning.cost import count, products


@dataclass(frozen=True)
class Counts:
    """Parameters, and multiply-accumulates of one sample."""

    params: int
    macs: int


@dataclass(frozen=True)
class BasisCounts:
    """What a model costs in three ways.

    Attributes:
        single: With each decomposed layer as one layer.
        split: With each as two layers that hold the vectors that stay, whatever that costs.
        merged: With each as whatever is cheaper: what ``MergeBasis`` leaves.
    """

    single: Counts
    split: Counts
    merged: Counts


def macs_of_vector(traced: Traced) -> dict[str, float]:
    """Return the multiply-accumulates per sample of one vector in each group, by path of a decomposed layer."""
    macs: dict[object, float] = {}
    for product in products(traced):
        macs[product.node] = macs.get(product.node, 0.0) + product.macs
    blocks = blocks_with_basis(traced.module)
    return {
        path: (macs[block.basis] + macs[block.mix]) / block.rank
        for path, block in blocks.items()
        if isinstance(block, Block)
    }


class BasisCosts:
    """Counts a model for any number of vectors in each decomposed layer, without touching the graph.

    Args:
        traced: The capture; decomposed layers may have scales or be pairs.
    """

    def __init__(self, traced: Traced) -> None:
        whole, found = count(traced), blocks_with_basis(traced.module)
        self.blocks = {path: block for path, block in found.items() if isinstance(block, Block)}
        macs = macs_of_vector(traced)
        # Of one vector in each group, and of a single layer.
        self._vector = {path: {"params": b.of_vector, "macs": macs[path]} for path, b in self.blocks.items()}
        self._single = {
            path: {"params": b.of_layer, "macs": b.of_layer / b.of_vector * macs[path]}
            for path, b in self.blocks.items()
        }
        self._rest = {
            "params": whole.params - sum(_weights(block) for block in self.blocks.values()),
            "macs": whole.macs - sum(block.rank * macs[path] for path, block in self.blocks.items()),
        }

    def layer(self, path: str, rank: int, metric: str, *, merge: bool) -> float:
        """Return what a layer costs with so many vectors per group: in two, or in one where that is cheaper."""
        split = rank * self._vector[path][metric]
        return min(split, self._single[path][metric]) if merge else split

    def total(self, layers: float, metric: str) -> int:
        """Return what the model costs where its decomposed layers cost so much."""
        return round(self._rest[metric] + layers)

    def counts(self, ranks: Mapping[str, int]) -> BasisCounts:
        """Return what the model costs with so many vectors per group; layers that are not named keep theirs."""
        return BasisCounts(*(Counts(*(self._count(ranks, way, m) for m in ("params", "macs"))) for way in _WAYS))

    def _count(self, ranks: Mapping[str, int], way: str, metric: str) -> int:
        if way == "single":
            return self.total(sum(single[metric] for single in self._single.values()), metric)
        kept = {path: ranks.get(path, block.rank) for path, block in self.blocks.items()}
        layers = sum(self.layer(path, rank, metric, merge=way == "merged") for path, rank in kept.items())
        return self.total(layers, metric)


_WAYS = ("single", "split", "merged")


def _weights(block: Block) -> int:
    """Return how many parameters of a block are gone once it is one layer, or two: its weights, scales, inner bias."""
    extra = [block.scales, block.layers[0].bias]
    return block.rank * block.of_vector + sum(int(tensor.numel()) for tensor in extra if tensor is not None)
