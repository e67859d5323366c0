"""What ``report.json`` says of the regions of a model that was captured by region."""

from __future__ import annotations

from typing import Any

from fxprune.cli.report.facts import Ratio, Report, milliseconds
from fxprune.cli.shared.console import share

HEAD = ("region", "file", "calls", "ms before", "ms after", "of the original's time")
NOTE = (
    "The model was captured by region. Each file is measured at the largest sizes that it is called with; calls is how "
    "many of those runs one forward of the model on the example inputs amounts to, by the elements that go in, and the "
    "last line adds them up."
)
_UNSURE = ", not to be relied on"


def regions(report: Report) -> list[tuple[str, str, str, str, str, str]]:
    """Return (region, file, calls, ms before, ms after, share of the time with its interval), and the sum."""
    given = report.get("regions") or []
    rows = [_region(region) for region in given]
    whole = sum_of_regions(report)
    return [*rows, ("all of them", "", "", *whole)] if whole else rows


def _region(region: dict[str, Any]) -> tuple[str, str, str, str, str, str]:
    head = (region["name"], region["onnx"]["path"], f"{region['times']:g}")
    latency = region.get("latency")
    if not latency:
        return (*head, "-", "-", "-")
    kept = Ratio("", latency["ratio"], latency["ratio_low"], latency["ratio_high"]).text
    sure = "" if latency["control_holds"] else _UNSURE
    return (*head, milliseconds(latency["dense_ms"]), milliseconds(latency["pruned_ms"]), kept + sure)


def sum_of_regions(report: Report) -> tuple[str, str, str] | None:
    """Return (ms before, ms after, share) of all calls of one forward; None where nothing was measured."""
    measured = [region for region in report.get("regions") or [] if "latency" in region]
    if not measured:
        return None
    before, after = (sum(row["times"] * row["latency"][key] for row in measured) for key in ("dense_ms", "pruned_ms"))
    sure = all(row["latency"]["control_holds"] for row in measured)
    return milliseconds(before), milliseconds(after), share(after, before) + ("" if sure else _UNSURE)
