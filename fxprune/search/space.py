"""Which depths, widths and resolutions a search looks at, and which can be built at all."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from fxprune.capture.resolution import stride_of
from fxprune.errors import BudgetError, CaptureError, InputError
from fxprune.planning.budget import parse_budget
from fxprune.search.network import Network, Subject, depth_of, removable_layers
from fxprune.search.predictor import DIMENSIONS
from fxprune.search.pruning import Choices

Dimension = Literal["depth", "width", "resolution"]
POINTS = 3  # along each dimension; with the whole network that makes the ten that the predictor needs
Number = TypeVar("Number", int, float)
_SIDES = 12  # as many different sides as an image is worth being offered at
NARROWEST = 0.1
"""The smallest share of the channels that is looked at."""


@dataclass(frozen=True)
class Space:
    """What can be built of a model.

    Attributes:
        side: Of the images, in pixels; None where it takes none.
        sides: All that can be built, the largest first.
        depth: Layers on the longest way through the dense model.
        layers: How many can be removed.
        removed: Along the dimension of depth: how many layers are gone at each point.
        widths: Along the dimension of width: the share of the channels that is left.
        resolutions: Along that of resolution: sides.
        notes: Which dimension is left out, and why.
    """

    side: int | None
    sides: tuple[int, ...]
    depth: int
    layers: int
    removed: tuple[int, ...]
    widths: tuple[float, ...]
    resolutions: tuple[int, ...]
    notes: tuple[str, ...] = ()

    def resolution(self, side: int | None) -> float:
        """Return a side as a share."""
        return 1.0 if side is None or self.side is None else side / self.side


def find_space(
    subject: Subject,
    dense: Network,
    budget: float,
    *,
    dimensions: Sequence[str] = DIMENSIONS,
    points: int = POINTS,
    choices: Choices | None = None,
) -> Space:
    """Return the points along each dimension, down to where that one alone would about meet the budget.

    Args:
        subject: The model.
        dense: It, captured.
        budget: Share of the cost that is to be kept.
        dimensions: Those to search over.
        points: Along each, besides the whole network.
        choices: How layers and channels are chosen; None: as by default.

    Raises:
        InputError: A dimension or the budget cannot be used, or nothing at all can be pruned.
    """
    unknown = [name for name in dimensions if name not in DIMENSIONS]
    if unknown or not dimensions:
        raise InputError(f"dimensions are {', '.join(DIMENSIONS)}; got {', '.join(unknown) or 'none'}")
    if points < 1:
        raise InputError(f"{points} points along a dimension say nothing; give at least 1, and 3 for a cubic")
    parse_budget(macs=budget)
    notes: list[str] = []
    choices = choices or Choices()
    layers = removable_layers(dense.traced, choices.level) if "depth" in dimensions else 0
    if "depth" in dimensions and layers < 2:
        notes.append(f"depth is left out: {layers} of the layers can be removed")
    removed = _counts(layers - 1, points)
    wanted = _evenly(1.0, max(NARROWEST, 0.9 * math.sqrt(budget)), points) if "width" in dimensions else []
    widths = _possible(wanted, functools.partial(_narrow, dense, choices), "width", notes)
    side = dense.side if "resolution" in dimensions else None
    sides = _sides(side, stride_of(dense.traced)) if side is not None else ()
    if "resolution" in dimensions and len(sides) < 2:
        notes.append("resolution is left out: " + ("no smaller image has a position left" if sides else "no images"))
    picked = _picked(sides, 0.9 * math.sqrt(budget) * side if side else 0, points)
    resolutions = _possible(picked, subject.at, "resolution", notes)
    if not (removed or widths or resolutions):
        raise InputError(f"there is nothing to search over: {'; '.join(notes)}")
    return Space(dense.side, sides, depth_of(dense.traced), layers, removed, widths, resolutions, tuple(notes))


def _narrow(dense: Network, choices: Choices, width: float) -> None:
    """Plan a width.

    Raises:
        BudgetError: It cannot be had.
    """
    if not choices.channels(dense, channels=width).removed:  # the share of nothing is met by all
        raise BudgetError("none of the channels can be removed; fxprune inspect says why")


def _possible(
    wanted: Sequence[Number], attempt: Callable[[Number], object], dimension: str, notes: list[str]
) -> tuple[Number, ...]:
    """Return the points of a dimension, the largest first, up to the smallest that can be had.

    What the others need is known only when they are built; that none can be had is known before anything is trained.
    """
    reason = ""
    for number in range(len(wanted) - 1, -1, -1):
        try:
            attempt(wanted[number])
        except (BudgetError, CaptureError, InputError) as error:
            reason = reason or str(error)
        else:
            if reason:
                notes.append(f"{dimension} ends early: {reason}")
            return tuple(wanted[: number + 1])
    if reason:
        notes.append(f"{dimension} is left out: {reason}")
    return ()


def _counts(most: int, points: int) -> tuple[int, ...]:
    """Return so many numbers of layers, evenly up to the most."""
    if most < 1:
        return ()
    return tuple(sorted({max(1, round(most * step / points)) for step in range(1, points + 1)}))


def _evenly(high: float, low: float, points: int) -> list[float]:
    return [high + (low - high) * step / points for step in range(1, points + 1)]


def _sides(side: int, stride: int) -> tuple[int, ...]:
    """Return sides at which nothing is lost at the edges of feature maps, the largest first.

    They are multiples of the network's stride. Where these are few, multiples of its halves are taken too: images then
    end within a position, as those of most data sets do.
    """
    step = max(1, stride)
    while step > 1 and side // step < _SIDES // 2:
        step //= 2
    least = max(stride, step)
    return tuple(sorted({*range(least, side, step), side}, reverse=True))


def _picked(sides: Sequence[int], least: float, points: int) -> tuple[int, ...]:
    """Return so many sides, evenly down to one of at least so many pixels, nearest to what can be built."""
    smaller = [side for side in sides[1:] if side >= least] or list(sides[1:2])
    if not smaller:
        return ()
    wanted = _evenly(sides[0], smaller[-1], points)
    return tuple(sorted({min(smaller, key=lambda side: abs(side - each)) for each in wanted}, reverse=True))
