"""``report.html``: one self-contained page, with the facts of ``report.json``."""

from __future__ import annotations

from typing import Any

from fxprune.cli.report import facts, training
from fxprune.cli.report import regions as report_regions
from fxprune.cli.report.lanes import colour, lanes
from fxprune.cli.report.pages import environment
from fxprune.cli.report.pictures import columns, roofline
from fxprune.cli.shared.console import share, thousands


def render(report: dict[str, Any]) -> str:
    """Return the page for a report; it needs no script and nothing from the network."""
    pages = environment("fxprune.cli.report")
    pages.filters |= {"count": thousands, "share": share, "ms": facts.milliseconds}
    ratios = facts.ratios(report)
    layers = facts.layers(report)
    return pages.get_template("report.html.j2").render(
        report={"recipe": "", "regions": [], **report},
        sections=facts.sections(report),
        facts=facts,
        regions=report_regions,
        training=training,
        latency=report.get("latency"),
        onnx=report.get("onnx"),
        accuracy=report.get("accuracy"),
        ratios=ratios,
        span=1.05 * max((1.0, *(row.high for row in ratios))),
        layers=layers,
        losses=facts.losses(report),
        slowest=max((max(row.before, row.after) for row in layers), default=0.0),
        times=columns([(_time_tip(row), row.before, row.after, bool(row.reason)) for row in layers]),
        roofline=roofline(report.get("gain")),
        widths=columns([(_width_tip(layer), layer["before"], layer["after"], False) for layer in report["widths"]]),
        widest=max((layer["before"] for layer in report["widths"]), default=0) or 1,
        lanes=lanes(report["groups"]) if report["groups"] else None,
        colour=colour,
        stays=facts.stays(report),
    )


def _time_tip(row: facts.Layer) -> str:
    ends = (facts.milliseconds(row.before), facts.milliseconds(row.after))
    return f"{row.name}: {ends[0]} ms, {ends[1]} ms after{': ' + row.reason if row.reason else ''}"


def _width_tip(layer: dict[str, Any]) -> str:
    return f"{layer['name']}: {layer['before']}, {layer['after']} after"
