"""Minimum widths: units that stay because an operation needs something left of what it reads."""

from __future__ import annotations

import numpy as np

from fxprune.channels import Groups, Minimum
from fxprune.planning.cost_model import Bools, Ints
from fxprune.planning.moves import Scores


def held_back(groups: Groups, free: Bools, scores: Scores) -> dict[str, Bools]:
    """Return for each operation which of the free units stay on its account, so that no removal of others starves it.

    Those with the highest scores stay: within a family they would be the last to go in any case.
    """
    stays = ~free
    held: dict[str, Bools] = {}
    sizes = np.array([len(family) for family in groups.families], np.int64)
    family_of = np.full(groups.size, -1)
    if sizes.size:
        family_of[np.concatenate(groups.families)] = np.repeat(np.arange(sizes.size), sizes)
    for minimum in groups.minimums:
        if _is_safe(minimum, stays, family_of, sizes):
            continue
        chosen = _chosen(minimum, stays, scores)
        reason = f"{minimum.place} needs {minimum.least} of the values that it reads"
        held[reason] = held.get(reason, np.zeros_like(free)) | chosen
        stays |= chosen
    return held


def _is_safe(minimum: Minimum, stays: Bools, family_of: Ints, sizes: Ints) -> bool:
    """Whether enough is left in any case: by what stays, or by families, each of which keeps a unit."""
    if minimum.left(stays) >= minimum.least:
        return True
    return minimum.least == 1 and all(
        stays[axis].any() or _holds_a_family(axis, family_of, sizes) for axis in minimum.axes
    )


def _holds_a_family(axis: Ints, family_of: Ints, sizes: Ints) -> bool:
    """Whether all units of some family are on an axis."""
    owners, found = np.unique(family_of[np.unique(axis)], return_counts=True)
    return bool((found[owners >= 0] == sizes[owners[owners >= 0]]).any())


def _chosen(minimum: Minimum, stays: Bools, scores: Scores) -> Bools:
    """Return the units that stay in addition: at least one along each axis, then the best, until there are enough."""
    now = stays.copy()
    while minimum.left(now) < minimum.least:
        starved = [axis for axis in minimum.axes if not now[axis].any()]
        candidates = np.unique(np.concatenate(starved or minimum.axes))
        candidates = candidates[~now[candidates]]
        now[candidates[np.argmax(scores[candidates])]] = True
    return now & ~stays
