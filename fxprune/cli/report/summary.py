"""What ``optimize`` says at its end: the facts of ``report.json`` that a person asks for first."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import Any

from rich.table import Table

from fxprune.cli.report.facts import PARITY_TOLERANCE, VERIFY_TOLERANCE, latency_line, losses, milliseconds
from fxprune.cli.report.regions import sum_of_regions
from fxprune.cli.report.training import accuracy, trainings
from fxprune.cli.shared.console import out, say, share, thousands

_MOST = 4  # layers that lost time
_NAME = 42  # letters of a layer's name on a line


def show(report: dict[str, Any], folder: Path) -> None:
    """Print a report."""
    say(f"\n{report['model']}: {'all checks passed' if report['ok'] else 'a check did not pass'}\n")
    out.print(_sizes(report))
    out.print()
    if report["verify"] or "onnx" in report:
        out.print(_checks(report))
        out.print()
    for _, methods, epochs, _, before, after in trainings(report):
        say(f"trained for {epochs} epochs, methods: {methods}; accuracy on the test set {before} before, {after} after")
    if "accuracy" in report:
        say(accuracy(report))
    if "latency" in report:
        say(latency_line(report["latency"]))
    _gain(report)
    for note in report["notes"]:
        say(f"note: {note}")
    say(f"written to {folder}")


def _plain(*columns: str) -> Table:
    """A table without lines: it survives a narrow terminal, a log file and a copy into a message."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column(columns[0])
    for column in columns[1:]:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _sizes(report: dict[str, Any]) -> Table:
    table = _plain("", "before", "after", "kept")
    before, after = report["before"], report["after"]
    for key, label in (("macs", "MACs"), ("params", "parameters")):
        table.add_row(label, thousands(before[key]), thousands(after[key]), share(after[key], before[key]))
    latency = report.get("latency")
    if latency:
        times = [f"{latency[key]:.2f} ms" for key in ("dense_ms", "pruned_ms")]
        table.add_row("latency", *times, f"{latency['ratio']:.1%}")
    whole = sum_of_regions(report)
    if whole:
        table.add_row("latency of the regions", f"{whole[0]} ms", f"{whole[1]} ms", whole[2])
    return table


def _checks(report: dict[str, Any]) -> Table:
    table = _plain("largest relative error", "found", "allowed")
    rows = []
    if report["verify"]:
        rows.append(("float64, to the masked original", report["verify"], VERIFY_TOLERANCE))
    if "onnx" in report:
        rows.append(("ONNX file, to the graph", report["onnx"], PARITY_TOLERANCE))
    for region in report.get("regions", ()):
        rows.append((f"{region['onnx']['path']}, to its graph", region["onnx"], PARITY_TOLERANCE))
    for label, found, allowed in rows:
        table.add_row(label, f"{found['max_relative_error']:.1e}", f"{allowed:.0e}")
    return table


def _gain(report: dict[str, Any]) -> None:
    """Name the few layers that lost most of the time that their saved work promised, and why."""
    found = losses(report)
    if not found:
        return
    say("")
    out.print(_row("less gained than promised", "work kept", "time kept", "lost"), style="dim", markup=False)
    for layer in found[:_MOST]:
        name = layer.name if len(layer.name) <= _NAME else f"...{layer.name[3 - _NAME :]}"
        say(_row(name, layer.work_kept, layer.time_kept, f"{milliseconds(layer.lost)} ms"))
        width = out.width if out.is_terminal else sys.maxsize
        say(textwrap.fill(layer.reason, width, initial_indent="  ", subsequent_indent="  "))
    if len(found) > _MOST:
        say(f"and {len(found) - _MOST} more, see report.html")
    say("")


def _row(name: str, *figures: str) -> str:
    return f"{name:<{_NAME}}" + "".join(f"{figure:>12}" for figure in figures)
