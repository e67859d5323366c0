"""Segments of similar consecutive layers, by Fisher's optimal partition (SGLP, arXiv 2410.14720, its code [READ]).

Each layer ``l`` gets ``s_l``, the sum of its CKA with all layers. The layers, in the order of the network, are cut into
``k`` runs so that the squared deviations of ``s`` from the means of the runs are least::

    D(i, j) = sum over i..j of (s - mean)^2
    L(n, 1) = D(1, n)        L(n, k) = min over j of L(j, k - 1) + D(j + 1, n)

and ``k`` is the last one that lowers the loss by more than 5 % of what one run has. SGLP's code compares each loss with
the one before it; against that of one run, noise at the end of the curve does not count. Which layers of a segment
go is not decided here; SGLP tries all combinations by their gradient norm, what is here takes any score
(reconstruction).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fxprune.capture import Traced
from fxprune.depth.layers import Layer, Layers
from fxprune.depth.measured import similarities
from fxprune.errors import InputError

_DROP = 0.05


def segments_of(traced: Traced, layers: Layers, batches: Sequence[Any] | None) -> list[list[Layer]]:
    """Return the segments of a model's layers, in order.

    Args:
        traced: The captured model.
        layers: Its removable layers.
        batches: Inputs; at least two samples each.

    Raises:
        InputError: There are no batches.
    """
    if not batches:
        raise InputError("Segments of similar layers are found on data, and there are no batches: give batches=.")
    scores = similarities(traced, layers, batches).sum(1).numpy()
    ends = [*partition(scores), len(layers)]
    return [list(layers.found[start:end]) for start, end in zip([0, *ends], ends, strict=False)]


def partition(values: NDArray[np.float64], segments: int | None = None) -> list[int]:
    """Return where to cut a row of numbers into runs of least squared deviation: the first index of each but the first.

    Args:
        values: The numbers, (n,).
        segments: How many runs; None for as many as lower the loss by more than 5 % each of what one run has.
    """
    count = len(values)
    most = segments or count
    spread = _spreads(values)
    loss = np.full((count + 1, most + 1), np.inf)
    last = np.zeros((count + 1, most + 1), int)
    loss[1:, 1] = spread[0, :]
    for runs in range(2, most + 1):
        for end in range(runs, count + 1):
            starts = np.arange(runs - 1, end)
            sums = loss[starts, runs - 1] + spread[starts, end - 1]
            best = int(sums.argmin())
            loss[end, runs], last[end, runs] = sums[best], starts[best]
    runs = segments or _how_many(loss[count])
    cuts, end = [], count
    for number in range(runs, 1, -1):
        end = int(last[end, number])
        cuts.append(end)
    return cuts[::-1]


def _how_many(loss: NDArray[np.float64]) -> int:
    whole = loss[1]
    if len(loss) < 3 or whole <= 1e-18:
        return 1
    drops = (loss[1:-1] - loss[2:]) / whole
    large = np.flatnonzero(drops > _DROP)
    return int(large[-1]) + 2 if len(large) else 1


def _spreads(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the squared deviations from the mean of each run, (first, last)."""
    count = len(values)
    found = np.zeros((count, count))
    for start in range(count):
        for end in range(start, count):
            part = values[start : end + 1]
            found[start, end] = float(((part - part.mean()) ** 2).sum())
    return found
