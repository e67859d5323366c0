"""``report.html`` of a search: one self-contained page, with the facts of ``report.json``."""

from __future__ import annotations

from typing import Any

from fxprune.cli.report import facts as report_facts
from fxprune.cli.report.pages import environment
from fxprune.cli.search import facts
from fxprune.cli.search.pictures import curves, ridge, surface
from fxprune.cli.shared.console import share, thousands


def render(report: dict[str, Any]) -> str:
    """Return the page for a report; it needs no script and nothing from the network."""
    pages = environment("fxprune.cli.search", "fxprune.cli.report")
    pages.filters |= {"count": thousands, "share": share, "percent": facts.percent}
    ratios = facts.ratios(report)
    return pages.get_template("search.html.j2").render(
        report=report,
        sections=facts.sections(report),
        facts=facts,
        common=report_facts,
        latency=report.get("latency"),
        accuracy=report.get("accuracy"),
        ratios=ratios,
        span=1.05 * max((1.0, *(row.high for row in ratios))),
        curves=curves(report),
        ridge=ridge(report),
        surface=surface(report),
    )
