"""What ``optimize`` says at its end: the facts of ``report.json`` that a person asks for first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from fxprune.cli.console import out, say, share, thousands

VERIFY_TOLERANCE = 1e-9
PARITY_TOLERANCE = 1e-4


def show(report: dict[str, Any], folder: Path) -> None:
    """Print a report."""
    say(f"\n{report['model']}: {'all checks passed' if report['ok'] else 'a check did not pass'}\n")
    out.print(_sizes(report))
    out.print()
    out.print(_checks(report))
    out.print()
    if "latency" in report:
        say(latency_line(report["latency"]))
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
    return table


def _checks(report: dict[str, Any]) -> Table:
    table = _plain("largest relative error", "found", "allowed")
    rows = [("float64, to the masked original", report["verify"], VERIFY_TOLERANCE)]
    if "onnx" in report:
        rows.append(("ONNX file, to the graph", report["onnx"], PARITY_TOLERANCE))
    for label, found, allowed in rows:
        table.add_row(label, f"{found['max_relative_error']:.1e}", f"{allowed:.0e}")
    return table


def latency_line(latency: dict[str, Any]) -> str:
    """Say what the ratio of latencies is worth: its interval, what it was measured with, and whether that can be."""
    threads = f"{latency['threads']} thread{'s' if latency['threads'] > 1 else ''}"
    text = (
        f"latency: {latency['ratio']:.1%} of the original's, 95% interval {latency['ratio_low']:.1%} to "
        f"{latency['ratio_high']:.1%} ({latency['runtime']}, {threads}, batch {latency['batch']}, "
        f"{'CPU' if latency['clock'] == 'cpu' else 'wall'} time, {latency['rounds']} pairs)"
    )
    if latency["control_holds"]:
        return text
    control = latency["control"]
    return (
        f"{text}; not to be relied on: the original beside itself came out at {control['low']:.1%} to "
        f"{control['high']:.1%}, so the machine was busy with something else"
    )
