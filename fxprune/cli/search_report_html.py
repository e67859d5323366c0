"""``report.html`` of a search: one self-contained page, with the facts of ``report.json``."""

from __future__ import annotations

from typing import Any

import jinja2

from fxprune.cli import report_facts
from fxprune.cli import search_report_facts as facts
from fxprune.cli.console import share, thousands
from fxprune.cli.search_report_pictures import curves, ridge, surface


def render(report: dict[str, Any]) -> str:
    """Return the page for a report; it needs no script and nothing from the network."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fxprune.cli"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": thousands, "share": share, "percent": facts.percent}
    ratios = facts.ratios(report)
    return environment.get_template("search.html.j2").render(
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
