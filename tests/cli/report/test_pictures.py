"""Where things lie in the pictures of the report."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest

from fxprune.cli.report.lanes import lanes
from fxprune.cli.report.pictures import Scale, columns, roofline


def layer(name: str, reads: list[int], writes: list[int]) -> dict[str, Any]:
    return {"name": name, "reads": reads, "writes": writes}


def group(units: int, removed: int = 0) -> dict[str, Any]:
    return {"parameters": [["w", 0]], "units": units, "removed": removed, "frozen": 0, "reason": "" if units else "why"}


def test_a_lane_holds_one_group_at_a_time() -> None:
    chain = [layer(f"conv{i}", [i], [i + 1]) for i in range(50)]
    found = lanes({"layers": chain, "coupled": [group(8) for _ in range(51)]})
    assert found is not None
    spans = defaultdict(list)
    for stroke in found.strokes:
        spans[stroke.x].append((stroke.top, stroke.bottom))
    assert len(spans) == 2  # fifty-one groups in two lanes
    for taken in spans.values():
        assert all(one[1] < other[0] for one, other in zip(sorted(taken), sorted(taken)[1:], strict=False))


def test_dots_say_what_a_layer_does() -> None:
    layers = [layer("a", [], [0]), layer("depthwise", [0], [0]), layer("b", [0], [1]), layer("alone", [], [])]
    found = lanes({"layers": layers, "coupled": [group(8, 3), group(0)]})
    assert found is not None
    assert [[dot.kind for dot in row.dots] for row in found.rows] == [["writes"], ["both"], ["reads", "writes"], []]
    assert [row.gone for row in found.rows] == ["\u22123 of 8", "\u22123 of 8", "stays", ""]
    assert [row.colour for row in found.rows] == ["g0", "g0", "still", ""]
    assert found.height > found.rows[-1].y
    assert found.width > found.figures


def test_a_long_name_keeps_its_end() -> None:
    found = lanes({"layers": [layer("x." * 40 + "conv7", [], [])], "coupled": []})
    assert found is not None
    assert found.rows[0].label.startswith("\u2026")
    assert found.rows[0].label.endswith(".conv7")


def test_a_report_without_layers_has_no_lanes() -> None:
    assert lanes({"total": 1, "prunable": 1, "frozen": []}) is None


def test_columns_fill_the_picture() -> None:
    found = columns([("a", 4.0, 1.0, False), ("b", 2.0, 2.0, True)])
    assert [(c.x, c.width, c.before, c.after) for c in found] == [(0, 50, 100, 25), (50, 50, 50, 50)]
    assert columns([]) == []
    assert columns([("nothing", 0.0, 0.0, False)])[0].before == 0


def work(macs: float, size: float) -> dict[str, float]:
    return {"macs": macs, "bytes": size}


def test_a_layer_at_its_limit_lies_on_the_line() -> None:
    gain = {
        "roofline": {"macs_per_s": 1e10, "bytes_per_s": 1e10},
        "layers": [
            {"layer": "memory", "before": work(1e6, 1e7), "after": work(0, 0), "before_ms": 1.0, "after_ms": 0.0},
            {"layer": "busy", "before": work(1e7, 1e5), "after": work(1e7, 1e5), "before_ms": 1.0, "after_ms": 2.0},
            {"layer": "idle", "before": work(0, 0), "after": work(0, 0), "before_ms": 1.0, "after_ms": 1.0},
        ],
    }
    found = roofline(gain)
    assert found is not None
    assert [spot.name for spot in found.spots] == ["memory", "busy"]
    memory, busy = found.spots
    assert memory.after is None
    (x0, y0), (x1, y1), (_, y2) = found.limit
    assert memory.before is not None
    assert y1 == y2
    along = (memory.before[0] - x0) / (x1 - x0)
    assert memory.before[1] == pytest.approx(y0 + along * (y1 - y0), abs=0.3)
    assert busy.before is not None
    assert busy.after is not None
    assert busy.before[1] == y1
    assert busy.after[1] > y1  # slower is further down
    left, right, top, bottom = found.frame
    for x, y in (*found.limit, memory.before, busy.before, busy.after):
        assert left <= x <= right
        assert top <= y <= bottom
    assert found.xs
    assert found.ys


def test_nothing_measured_is_no_picture() -> None:
    assert roofline(None) is None
    assert roofline({"roofline": {"macs_per_s": 1.0, "bytes_per_s": 1.0}, "layers": []}) is None


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0.5, 9, ["0.5", "1", "2", "5"]),
        (2e9, 2e11, ["3 G", "10 G", "30 G", "100 G"]),
        (0.05, 500, ["0.1", "1", "10", "100"]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, labels: list[str]) -> None:
    assert [label for _, label in Scale(low, high, 0, 100).ticks()] == labels
