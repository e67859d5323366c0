"""The coupling graph as a picture that stays readable: a row per layer, a lane per group of channels.

Drawn as nodes and arrows, a network of fifty layers is a ball of wool. Here a layer is a horizontal stroke from the
channels that it reads to those that it writes, and a group a vertical one through all layers that share it; a lane is
used again below the last layer of its group.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fxprune.cli.report.facts import names, taken

ROW, LETTER = 20, 7.3  # pixels; a letter of the fixed-width face at 12 pixels
_LANE, _WIDE_LANE, _FEW = 18, 34, 6  # pixels between lanes, and between few of them
_COLOURS = 8
_LONGEST = 34  # letters of a name; its end tells more than its beginning
_PAD = 14


@dataclass(frozen=True)
class Stroke:
    """A group: a vertical line."""

    x: float
    top: float
    bottom: float
    colour: str
    tip: str


@dataclass(frozen=True)
class Dot:
    """Where a layer meets a group; ``kind`` is writes, reads or both."""

    x: float
    kind: str
    colour: str


@dataclass(frozen=True)
class Row:
    """A layer: its name, its dots, and what the plan takes of what it writes."""

    y: float
    name: str
    label: str
    dots: list[Dot]
    gone: str
    colour: str


@dataclass(frozen=True)
class Lanes:
    """The picture; names end before ``start``, and figures begin at ``figures``."""

    width: float
    height: float
    start: float
    figures: float
    rows: list[Row]
    strokes: list[Stroke]


def lanes(groups: dict[str, Any], figures: Callable[[dict[str, Any]], str] = taken) -> Lanes | None:
    """Lay the picture out; None where the report says nothing about layers that share channels.

    ``figures`` says what stands beside a row, of the group that its layer writes.
    """
    layers, coupled = groups.get("layers"), groups.get("coupled")
    if not layers or coupled is None:
        return None
    spans = _spans(layers)
    lane = _assign(spans)
    labels = [_shortened(layer["name"]) for layer in layers]
    start = max(map(len, labels)) * LETTER + 2 * _PAD
    colours = {number: colour(number, coupled[number]) for number in spans}
    many = max(lane.values(), default=0) + 1
    pitch = _WIDE_LANE if many <= _FEW else _LANE
    place = {number: start + lane[number] * pitch for number in spans}
    edge = start + many * pitch
    strokes = [
        Stroke(place[number], _y(first), _y(last), colours[number], _tip(coupled[number]))
        for number, (first, last) in spans.items()
    ]
    rows = []
    for i, (layer, label) in enumerate(zip(layers, labels, strict=True)):
        written = next(iter(layer["writes"]), None)
        rows.append(
            Row(
                y=_y(i),
                name=layer["name"],
                label=label,
                dots=_dots(layer, place, colours),
                gone="" if written is None else figures(coupled[written]),
                colour="" if written is None else colours[written],
            )
        )
    width = edge + max((len(row.gone) for row in rows), default=0) * LETTER + _PAD
    return Lanes(round(width), len(layers) * ROW + ROW, start - 1.5 * _PAD, edge, rows, strokes)


def colour(number: int, group: dict[str, Any]) -> str:
    """Return the class of the style sheet that colours a group."""
    return f"g{number % _COLOURS}" if group["units"] else "still"


def _y(row: int) -> float:
    return (row + 1) * ROW


def _spans(layers: list[dict[str, Any]]) -> dict[int, tuple[int, int]]:
    """Return the first and the last row of every group that a layer touches."""
    found: dict[int, tuple[int, int]] = {}
    for i, layer in enumerate(layers):
        for number in (*layer["reads"], *layer["writes"]):
            found[number] = (found.get(number, (i, i))[0], i)
    return found


def _assign(spans: dict[int, tuple[int, int]]) -> dict[int, int]:
    """Give every group the first lane that is free in all its rows."""
    lane: dict[int, int] = {}
    ends: list[int] = []
    for number, (first, last) in sorted(spans.items(), key=lambda item: (item[1][0], -item[1][1])):
        chosen = next((i for i, end in enumerate(ends) if end < first), len(ends))
        ends[chosen : chosen + 1] = [last]
        lane[number] = chosen
    return lane


def _dots(layer: dict[str, Any], place: dict[int, float], colours: dict[int, str]) -> list[Dot]:
    reads, writes = set(layer["reads"]), set(layer["writes"])
    kinds = {n: "both" if n in reads & writes else "reads" if n in reads else "writes" for n in reads | writes}
    return sorted((Dot(place[n], kind, colours[n]) for n, kind in kinds.items()), key=lambda dot: dot.x)


def _tip(group: dict[str, Any]) -> str:
    what = f"{group['units']} removable, {group['removed']} removed"
    return f"{names([name for name, _ in group['parameters']])}: {what if group['units'] else group['reason']}"


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST else f"\u2026{name[1 - _LONGEST :]}"
