"""``report.html``: one self-contained page, with the facts of ``report.json``."""

from __future__ import annotations

from importlib import resources
from typing import Any

import jinja2

from fxprune.cli.console import thousands


def render(report: dict[str, Any]) -> str:
    """Return the page for a report."""
    template = resources.files("fxprune.cli").joinpath("templates", "report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "count": thousands,
        "percent": "{:.1%}".format,
        "error": "{:.1e}".format,
        "ms": "{:.2f}".format,
        "ratio": "{:.3f}".format,
    }
    widest = max((layer["before"] for layer in report["widths"]), default=1)
    return environment.from_string(template).render(
        report=report, widest=widest, latency=report.get("latency"), onnx=report.get("onnx")
    )
