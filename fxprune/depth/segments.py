"""Segments of similar consecutive layers, by Fisher's optimal partition (SGLP, arXiv 2410.14720, its code [READ]).

Each layer ``l`` gets ``s_l``, the sum of its CKA with all layers. The layers, in the order of the network, are cut into
``k`` runs so that the squared deviations of ``s`` from the means of the runs are least::

    D(i, j) = sum over i..j of (s - mean)^2
    L(n, 1) = D(1, n)        L(n, k) = min over j of L(j, k - 1) + D(j + 1, n)

and ``k`` is the last one that lowers the loss by more than 5 %: of what one run has (``whole``, the default, a
reconstruction), or of the loss before it (``previous``, which is how SGLP's code reads). Taken over all ``k``, the
latter cuts between all layers, always: ``L(n, n)`` is 0, so that the last drop is one of 100 %. SGLP's own examples
have 5 runs of 27 layers, and 4 of 13 and of 16, so its code stops before that, at a ``k`` that could not be found; the
former gives numbers like these. Which layers of a segment go is not decided here; SGLP tries all combinations by their
gradient norm, what is here takes any score (reconstruction).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fxprune.capture import Traced
from fxprune.depth.layers import Layer, Layers
from fxprune.depth.measured import similarities
from fxprune.errors import InputError

Against = Literal["whole", "previous"]
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


def partition(
    values: NDArray[np.float64], segments: int | None = None, *, most: int | None = None, against: Against = "whole"
) -> list[int]:
    """Return where to cut a row of numbers into runs of least squared deviation: the first index of each but the first.

    Args:
        values: The numbers, (n,).
        segments: How many runs; None for as many as lower the loss by more than 5 %.
        most: How many there may be, where that decides; None: as many as there are numbers.
        against: What these 5 % are of: the loss of one run (``whole``), or that of one run less (``previous``), which
            needs ``most``.

    Raises:
        InputError: ``against="previous"`` without ``most``: every number would be a run of its own.
    """
    if against == "previous" and segments is None and most is None:
        raise InputError(
            'against="previous" cuts between all numbers where nothing bounds the runs: the last one lowers the loss '
            "to 0, by 100 %. Give most= or segments=, or the default."
        )
    count = len(values)
    most = segments or min(most or count, count)
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
    runs = segments or _how_many(loss[count], against)
    cuts, end = [], count
    for number in range(runs, 1, -1):
        end = int(last[end, number])
        cuts.append(end)
    return cuts[::-1]


def _how_many(loss: NDArray[np.float64], against: Against) -> int:
    whole = loss[1]
    if len(loss) < 3 or whole <= 1e-18:
        return 1
    drops = (loss[1:-1] - loss[2:]) / (whole if against == "whole" else np.maximum(loss[1:-1], 1e-18))
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
