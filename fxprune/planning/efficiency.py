"""The order of removals that loses the least importance per millisecond saved: a knapsack, filled greedily.

Each move saves less once others are made, because what a layer takes is a product of its widths. So the moves are kept
in a heap by what they lost per millisecond when last looked at, and looked at again before they are taken.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import replace

import numpy as np

from fxprune.planning.cost_model import CostModel, Ints
from fxprune.planning.moves import Family, Moves, Scores
from fxprune.planning.solve import Search, Widths

LEAST = 0.125
"""Share of its units that a family keeps at least: what a layer of few units loses, no norm of weights tells."""


def by_efficiency(moves: Moves, families: list[Family], model: CostModel, metric: str, values: Scores) -> Moves:
    """Return the moves in the order of value lost per amount of the metric saved.

    Args:
        moves: in any order; those of one family stay in theirs, and those that leave less than ``LEAST`` of it go last.
        families: what they are moves of.
        model: the cost model.
        metric: its metric that is saved.
        values: what is lost with each class.
    """
    search = Search(moves, model, metric, len(values))
    queues = _queues(moves, families)
    lost = np.add.reduceat(np.nan_to_num(values[moves.classes]), moves.start[:-1]) if len(moves) else np.empty(0)
    widths = Widths(search, model.full)

    def price(move: int) -> float:
        saved = -widths.change(move, -1)
        return float(lost[move]) / saved if saved > 0 else np.inf

    heap = [(price(queue[0]), number) for number, queue in enumerate(queues)]
    heapq.heapify(heap)
    taken: list[int] = []
    while heap:
        _, number = heapq.heappop(heap)
        move = queues[number][0]
        cost = price(move)
        if heap and cost > heap[0][0]:
            heapq.heappush(heap, (cost, number))
            continue
        taken.append(move)
        widths.make(move, -1)
        queues[number].popleft()
        if queues[number]:
            heapq.heappush(heap, (price(queues[number][0]), number))
    rest = np.setdiff1d(np.arange(len(moves)), taken)
    return reorder(moves, np.concatenate([np.array(taken, np.int64), rest]))


def _queues(moves: Moves, families: list[Family]) -> list[deque[int]]:
    """Return the moves of each family that leave enough of it, in their order."""
    queues: dict[int, deque[int]] = {}
    kept = {number: float(family.total) for number, family in enumerate(families)}
    for move, family in enumerate(moves.family.tolist()):
        kept[family] -= moves.start[move + 1] - moves.start[move]
        if kept[family] >= LEAST * families[family].total:
            queues.setdefault(family, deque()).append(move)
    return list(queues.values())


def reorder(moves: Moves, order: Ints) -> Moves:
    """Return the moves in another order."""
    parts = [moves.classes[moves.start[move] : moves.start[move + 1]] for move in order]
    classes = np.concatenate(parts) if parts else moves.classes
    start = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
    return replace(moves, classes=classes, start=start, family=moves.family[order])
