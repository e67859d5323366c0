"""What ``search`` says at its end: the chosen network beside what one dimension alone gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from fxprune.cli.report.facts import latency_line
from fxprune.cli.search import facts
from fxprune.cli.shared.console import out, say


def show(report: dict[str, Any], folder: Path) -> None:
    """Print a report."""
    say(f"\n{report['model']}: {'all checks passed' if report['ok'] else 'a check did not pass'}\n")
    out.print(_networks(report))
    say("")
    for row in facts.others(report):
        if row.reason:
            say(f"{row.name}: {row.reason}")
    if "accuracy" in report:
        found = report["accuracy"]
        say(f"accuracy on the test set: {found['dense']:.2%} dense, {found['after']:.2%} in the end")
    if "latency" in report:
        say(latency_line(report["latency"]))
    if "onnx" in report:
        size = f" for images of {report['chosen']['side']} pixels" if report["chosen"]["side"] else ""
        size = " for images of any size" if report["onnx"]["open_sizes"] else size
        say(f"model.onnx{size}: largest relative error {report['onnx']['max_relative_error']:.1e}")
    for note in report["notes"]:
        say(f"note: {note}")
    say(f"written to {folder}; report.html shows the curves, the surface and the alternatives")


def _networks(report: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("")
    heads = ["depth", "width", "side", facts.metric(report), "accuracy", *(["test"] if "accuracy" in report else [])]
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for name, each in [(facts.CHOSEN, report["chosen"]), *report["alternatives"].items()]:
        if "reason" in each:
            table.add_row(name, *["-"] * len(heads))
            continue
        cells = [*(f"{each[axis]:.0%}" for axis in ("depth", "width")), str(each["side"] or "-"), f"{each['cost']:.1%}"]
        cells += [facts.percent(each["accuracy"]), *([facts.percent(each.get("test"))] if "test" in heads else [])]
        table.add_row(name, *cells, style="bold" if name == facts.CHOSEN else "")
    return table
