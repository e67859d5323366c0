"""``report.md`` of a search: the facts of ``report.json`` as Markdown."""

from __future__ import annotations

from typing import Any

from fxprune.cli.report import facts as report_facts
from fxprune.cli.report.md import bullets, folded, table, text
from fxprune.cli.search import facts


def render_markdown(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    verdict = "All checks passed" if report["ok"] else "A check did not pass"
    parts = [f"# {text(report['model'])}", f"**{verdict}.** {text(facts.asked(report))}."]
    write = {
        "network": _network, "alternatives": _alternatives, "curves": _curves, "surface": _surface, "fit": _fit,
        "points": _points, "failed": _failed, "checks": _checks, "made": _made,
    }  # fmt: skip
    for key, title in facts.sections(report):
        parts += [f"## {title}", *write[key](report)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _network(report: dict[str, Any]) -> list[str]:
    latency = report.get("latency")
    return [
        table(("", "dense", "chosen", "kept"), facts.network(report)),
        table(("accuracy", "validation", "test"), facts.accuracies(report)),
        text(report_facts.latency_line(latency)) if latency else "Latency was not measured.",
    ]


def _alternatives(report: dict[str, Any]) -> list[str]:
    head = ("network", "depth", "width", "resolution", facts.metric(report), "accuracy", "on the test set", "")
    rows = [
        (
            row.name, *row.shares, facts.percent(row.cost), facts.percent(row.accuracy), facts.percent(row.test),
            row.reason,
        )
        for row in facts.others(report)
    ]  # fmt: skip
    return [table(head, rows, "rrrrrrl")]


def _curves(report: dict[str, Any]) -> list[str]:
    return ["report.html draws them. The fitted factors:", table(("factor", "value"), facts.formulas(report), "l")]


def _surface(report: dict[str, Any]) -> list[str]:
    chosen, optimum = report["chosen"], report["fitted"]["optimum"]
    rows = [
        (name, *facts.shares(each)[:2], f"{each['resolution']:.1%}", facts.percent(value))
        for name, each, value in (
            ("optimum, before it is built", optimum, optimum["accuracy"]),
            ("chosen", chosen, chosen["predicted"]["accuracy"]),
        )
    ]
    return [table(("", "depth", "width", "resolution", "predicted accuracy"), rows), "report.html draws the surface."]


def _fit(report: dict[str, Any]) -> list[str]:
    return [table(("", ""), facts.fit(report), "l")]


def _points(report: dict[str, Any]) -> list[str]:
    return [table(facts.POINTS_HEAD, facts.points(report), "rrrrrrrl")]


def _failed(report: dict[str, Any]) -> list[str]:
    return [table(("network", "attempts", "why"), facts.failed(report), "rl")]


def _checks(report: dict[str, Any]) -> list[str]:
    rows = [(what, found, most, "passed" if ok else "failed") for what, found, most, ok in facts.checks(report)]
    return [table(("", "found", "allowed", ""), rows), facts.PROOF, *bullets("Notes", report["notes"])]


def _made(report: dict[str, Any]) -> list[str]:
    return [
        table(("", ""), [*facts.made(report), *report_facts.environment(report)], "l"),
        folded("Time spent", table(("step", "time"), report_facts.spent(report))),
    ]
