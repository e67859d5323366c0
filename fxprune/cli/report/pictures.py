"""Where things lie in the pictures of ``report.html``: numbers only, which the templates draw."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from fxprune.cli.shared.console import thousands

_LEFT, _RIGHT, _TOP, _BOTTOM = 62.0, 448.0, 12.0, 268.0  # the frame of the roofline, within 460 x 310


@dataclass(frozen=True)
class Column:
    """One place of a profile, in per cent of the picture.

    Attributes:
        name: What it stands for, for the tooltip.
        x: Left edge.
        width: Its share of the picture.
        before: Height of the value before.
        after: Height of the value after.
        marked: Whether something is said about it elsewhere.
    """

    name: str
    x: float
    width: float
    before: float
    after: float
    marked: bool = False


def columns(values: list[tuple[str, float, float, bool]]) -> list[Column]:
    """Lay out a profile of (tooltip, before, after, marked); the highest value fills the height."""
    top = max((max(before, after) for _, before, after, _ in values), default=0.0) or 1.0
    step = 100 / max(len(values), 1)
    return [
        Column(name, i * step, step, 100 * before / top, 100 * after / top, marked)
        for i, (name, before, after, marked) in enumerate(values)
    ]


@dataclass(frozen=True)
class Scale:
    """A logarithmic axis from ``low`` at ``start`` to ``high`` at ``end``."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the place of a value."""
        part = math.log(value / self.low) / math.log(self.high / self.low)
        return round(self.start + part * (self.end - self.start), 1)

    def ticks(self) -> list[tuple[float, str]]:
        """Return places and labels: powers of ten, and two and five times these where there are few."""
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        steps = (1,) if math.log10(self.high / self.low) > 3 else (1, 3) if self.high / self.low > 30 else (1, 2, 5)
        values = [step * 10.0**decade for decade in decades for step in steps]
        return [(self(value), _short(value)) for value in values if self.low <= value <= self.high]


def _short(value: float) -> str:
    if value < 1000:
        return f"{value:g}"
    number, _, unit = thousands(value).partition(" ")
    return f"{float(number):g} {unit}"


@dataclass(frozen=True)
class Spot:
    """One layer in the roofline: where it was, and where it is. Either is None where there is nothing to draw."""

    name: str
    before: tuple[float, float] | None
    after: tuple[float, float] | None


@dataclass(frozen=True)
class RooflinePicture:
    """The two limits and the layers below them, in a frame of 460 x 310.

    Attributes:
        frame: Left, right, top and bottom of the plot.
        limit: Corners of the line of what is attainable.
        spots: The layers.
        xs: Places and labels on the axis of multiply-accumulates per byte.
        ys: The same on the axis of multiply-accumulates per second.
    """

    frame: tuple[float, float, float, float]
    limit: list[tuple[float, float]]
    spots: list[Spot]
    xs: list[tuple[float, str]]
    ys: list[tuple[float, str]]


def roofline(gain: dict[str, Any] | None) -> RooflinePicture | None:
    """Lay the roofline out; None where nothing was measured that has a place in it."""
    if gain is None:
        return None
    peak, stream = gain["roofline"]["macs_per_s"], gain["roofline"]["bytes_per_s"]
    found = [(layer["layer"], *(_place(layer, side) for side in ("before", "after"))) for layer in gain["layers"]]
    places = [place for _, *both in found for place in both if place]
    if not places or not peak > 0 or not stream > 0:
        return None
    xs = [place[0] for place in places] + [peak / stream]
    x = Scale(min(xs) / 1.6, max(xs) * 1.6, _LEFT, _RIGHT)
    # the slanted line may start below every layer: it enters where it crosses the lower edge
    y = Scale(
        min(*(place[1] for place in places), peak) / 2, max(*(place[1] for place in places), peak) * 2, _BOTTOM, _TOP
    )
    start = max(x.low, y.low / stream)
    corners = [(start, start * stream), (peak / stream, peak), (x.high, peak)]
    spots = [
        Spot(name, *(None if place is None else (x(place[0]), y(place[1])) for place in both)) for name, *both in found
    ]
    return RooflinePicture(
        frame=(_LEFT, _RIGHT, _TOP, _BOTTOM),
        limit=[(x(one), y(other)) for one, other in corners],
        spots=[spot for spot in spots if spot.before or spot.after],
        xs=x.ticks(),
        ys=y.ticks(),
    )


def _place(layer: dict[str, Any], side: str) -> tuple[float, float] | None:
    work, ms = layer[side], layer[f"{side}_ms"]
    if not (work["macs"] > 0 and work["bytes"] > 0 and ms > 0):
        return None
    return work["macs"] / work["bytes"], work["macs"] / ms * 1e3
