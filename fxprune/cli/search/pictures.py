"""Where things lie in the pictures of a search's ``report.html``: numbers only, which the templates draw."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fxprune.cli.report.facts import Report
from fxprune.cli.search import facts
from fxprune.cli.search.report import AXES

Tick = tuple[float, str]
Place = tuple[float, float]
Frame = tuple[float, float, float, float]
_CURVE: Frame = (46.0, 350.0, 12.0, 182.0)  # left, right, top and bottom, within 360 x 226
_SURFACE: Frame = (56.0, 440.0, 12.0, 268.0)  # within 460 x 312
_CELLS = 22  # of the surface, along each side
_STEPS = 60  # of a line


@dataclass(frozen=True)
class Axis:
    """A linear axis from ``low`` at ``start`` to ``high`` at ``end``."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the place of a value."""
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)

    def ticks(self, about: int = 5) -> list[Tick]:
        """Return places and labels in per cent, about so many."""
        step = _step((self.high - self.low) / about)
        first = math.ceil(self.low / step - 1e-9)
        values = [number * step for number in range(first, math.floor(self.high / step + 1e-9) + 1)]
        return [(self(value), f"{100 * value:.{0 if step >= 0.01 else 1}f}%") for value in values]


def _step(least: float) -> float:
    """Return the next round number: one, two or five times a power of ten."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


@dataclass(frozen=True)
class Dot:
    """A place that is marked, and what it stands for."""

    x: float
    y: float
    tip: str


@dataclass(frozen=True)
class Curve:
    """Accuracy along one dimension, in a frame of 360 x 226.

    Attributes:
        axis: The dimension.
        line: What is predicted.
        dots: What was measured.
        chosen: Place of the chosen network's share.
        optimum: Place of the optimum's share.
        xs: Places and labels of shares.
        ys: The same of accuracies.
    """

    axis: str
    line: list[Place]
    dots: list[Dot]
    chosen: float
    optimum: float
    xs: list[Tick]
    ys: list[Tick]
    frame: Frame = _CURVE


def curves(report: Report) -> list[Curve]:
    """Lay out a curve for each dimension that has points, all on one scale of accuracy."""
    lines = {axis: _along(report, axis) for axis in facts.used(report)}
    measured = {axis: _measured(report, axis) for axis in lines}
    values = [value for line in lines.values() for _, value in line]
    values += [value for found in measured.values() for _, value in found]
    return [_curve(report, axis, line, measured[axis], values) for axis, line in lines.items()]


def ridge(report: Report) -> Curve | None:
    """Lay out the best accuracy along the only one of depth and resolution that was searched; None where both were."""
    free = [axis for axis in ("depth", "resolution") if axis in facts.used(report)]
    if len(free) != 1:
        return None
    axis, low = free[0], facts.lowest(report, free[0])
    line = []
    for share in _even(low, 1.0, _STEPS):
        depth, resolution = (share, 1.0) if axis == "depth" else (1.0, share)
        width = facts.width_left(report, depth, resolution)
        if width is not None:
            line.append((share, facts.predicted(report, depth, width, resolution)))
    chosen = report["chosen"]
    reached = [] if chosen["accuracy"] is None else [(chosen[axis], chosen["accuracy"])]
    return _curve(report, axis, line, reached, [value for _, value in line + reached]) if line else None


def _along(report: Report, axis: str) -> list[Place]:
    found = []
    for share in _even(facts.lowest(report, axis), 1.0, _STEPS):
        values = {each: share if each == axis else 1.0 for each in AXES}
        found.append((share, facts.predicted(report, **values)))
    return found


def _measured(report: Report, axis: str) -> list[Place]:
    """Return the networks that are smaller in this dimension alone, and the whole one."""
    alone = [each for each in report["points"] if all(each[other] == 1.0 for other in AXES if other != axis)]
    return [(each[axis], each["accuracy"]) for each in alone]


def _curve(report: Report, axis: str, line: list[Place], dots: list[Place], values: list[float]) -> Curve:
    left, right, top, bottom = _CURVE
    low = min([facts.lowest(report, axis), *(share for share, _ in line)])
    x = Axis(low - 0.04 * (1 - low), 1 + 0.04 * (1 - low), left, right)
    y = _accuracy_axis(values, bottom, top)
    tips = [f"{axis} {share:.1%}: accuracy {value:.1%}" for share, value in dots]
    return Curve(
        axis=axis,
        line=[(x(share), y(value)) for share, value in line],
        dots=[Dot(x(share), y(value), tip) for (share, value), tip in zip(dots, tips, strict=True)],
        chosen=x(_within(report["chosen"][axis], low)),
        optimum=x(_within(report["fitted"]["optimum"][axis], low)),
        xs=x.ticks(),
        ys=y.ticks(),
    )


def _accuracy_axis(values: list[float], start: float, end: float) -> Axis:
    low, high = min(values), max(values)
    margin = max(0.08 * (high - low), 0.005)
    return Axis(low - margin, high + margin, start, end)


def _within(value: float, low: float) -> float:
    return min(max(float(value), low), 1.0)


def _even(low: float, high: float, steps: int) -> list[float]:
    return [low + (high - low) * number / (steps - 1) for number in range(steps)]


# ---------------------------------------------------------------- the surface


@dataclass(frozen=True)
class Cell:
    """One cell of the surface; ``part`` is where its accuracy lies between the least (0) and the most (1)."""

    x: float
    y: float
    part: float | None
    tip: str


@dataclass(frozen=True)
class Surface:
    """Predicted accuracy over depth and resolution, with the width that the budget leaves, in a frame of 460 x 312.

    Attributes:
        cells: From the smallest share of both.
        size: Width and height of a cell.
        chosen: The chosen network.
        optimum: The optimum before it is built.
        low: The least accuracy of a cell.
        high: The most.
        xs: Places and labels of depths.
        ys: The same of resolutions.
    """

    cells: list[Cell]
    size: Place
    chosen: Dot
    optimum: Dot
    low: float
    high: float
    xs: list[Tick]
    ys: list[Tick]
    frame: Frame = _SURFACE


def surface(report: Report) -> Surface | None:
    """Lay the surface out; None where depth or resolution was not searched."""
    if not {"depth", "resolution"} <= set(facts.used(report)):
        return None
    left, right, top, bottom = _SURFACE
    wide, high = (right - left) / _CELLS, (bottom - top) / _CELLS
    x = Axis(facts.lowest(report, "depth"), 1.0, left, right)
    y = Axis(facts.lowest(report, "resolution"), 1.0, bottom, top)
    found = []
    for column in range(_CELLS):
        for row in range(_CELLS):
            depth = x.low + (column + 0.5) / _CELLS * (1 - x.low)
            resolution = y.low + (row + 0.5) / _CELLS * (1 - y.low)
            width = facts.width_left(report, depth, resolution)
            value = None if width is None else facts.predicted(report, depth, width, resolution)
            found.append((left + column * wide, bottom - (row + 1) * high, depth, resolution, width, value))
    values = [value for *_, value in found if value is not None]
    if not values:
        return None
    low, most = min(values), max(values)
    return Surface(
        cells=[
            Cell(round(at, 1), round(up, 1), _part(value, low, most), _tip(depth, resolution, width, value))
            for at, up, depth, resolution, width, value in found
        ],
        size=(round(wide, 2), round(high, 2)),
        chosen=_dot(report["chosen"], "chosen", x, y),
        optimum=_dot(report["fitted"]["optimum"], "optimum", x, y),
        low=low,
        high=most,
        xs=x.ticks(),
        ys=y.ticks(),
    )


def _part(value: float | None, low: float, high: float) -> float | None:
    if value is None:
        return None
    return round((value - low) / (high - low), 3) if high > low else 1.0


def _tip(depth: float, resolution: float, width: float | None, value: float | None) -> str:
    place = f"depth {depth:.0%}, resolution {resolution:.0%}"
    if width is None or value is None:
        return f"{place}: over the budget at every width"
    return f"{place}, width {width:.0%}: accuracy {value:.1%}"


def _dot(each: Report, what: str, x: Axis, y: Axis) -> Dot:
    tip = f"{what}: depth {each['depth']:.1%}, width {each['width']:.1%}, resolution {each['resolution']:.1%}"
    return Dot(x(_within(each["depth"], x.low)), y(_within(each["resolution"], y.low)), tip)
