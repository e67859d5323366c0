"""``report.md``: the facts of ``report.json`` as Markdown, for a terminal, a review or the summary of a CI job."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from typing import Any

from fxprune.cli.report import facts, training
from fxprune.cli.report.regions import HEAD, NOTE, regions
from fxprune.cli.shared.console import thousands

_SPECIAL = re.compile(r"[\\`*\[\]|<>&~$]|(?<![^\W_])_|_(?![^\W_])|[@#](?=\w)")  # an underscore within a word is plain
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "@": "&#64;", "#": "&#35;"}  # what a backslash would not stop
_LONG = 300  # letters of a reason; report.json has the rest


def render_markdown(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    verdict = "All checks passed" if report["ok"] else "A check did not pass"
    parts = [
        f"# {text(report['model'])}",
        f"**{verdict}.** {text(facts.asked(report))}.",
        "## Before and after",
        table(("", "before", "after", "kept"), facts.sizes(report)),
        text(training.accuracy(report)),
        *_latency(report),
        *_trainings(report),
        "## Latency by layer",
        *_layers(report),
        "## Limits of the machine",
        text(facts.limits(report)),
        "## Widths of the layers",
        folded(
            f"{len(report['widths'])} layers",
            table(("layer", "before", "after"), ((w["name"], w["before"], w["after"]) for w in report["widths"])),
        ),
        *_channels(report),
        "## Checks",
        table(
            ("largest relative error", "found", "allowed", ""),
            ((what, found, most, "passed" if ok else "failed") for what, found, most, ok in facts.checks(report)),
        ),
        *bullets("Notes", report["notes"]),
        *_passes(report),
        "## Plan and environment",
        table(("", ""), [*facts.plan(report), *facts.environment(report)], "l"),
        folded("Time spent", table(("step", "time"), facts.spent(report))),
        folded("The recipe, to run it again", _indented(report.get("recipe", ""))),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def text(value: object) -> str:
    """Return a value so that Markdown shows it as it is: on one line, and neither markup nor HTML."""
    plain = " ".join(str(value).split())
    return _SPECIAL.sub(lambda found: _ENTITIES.get(found.group(), f"\\{found.group()}"), plain)


def table(head: Sequence[str], rows: Iterable[Sequence[object]], align: str = "") -> str:
    """Return a table; the first column and those with an ``l`` are flush left. Empty where there are no rows."""
    listed = [[text(_cut(str(cell))) for cell in row] for row in rows]
    if not listed:
        return ""
    marks = ["---" if side == "l" else "--:" for side in f"l{align}".ljust(len(head), "r")]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [[text(cell) for cell in head], marks, *listed])


def _cut(cell: str) -> str:
    return cell if len(cell) <= _LONG else f"{cell[:_LONG]}..., see report.json"


def folded(title: str, body: str) -> str:
    """Return what is only shown when it is asked for; empty where there is nothing."""
    return f"<details><summary>{html.escape(title)}</summary>\n\n{body}\n\n</details>" if body else ""


def _indented(code: str) -> str:
    """Return code as Markdown: by indenting, as any fence could be in the code."""
    return "\n".join(f"    {line}" for line in code.splitlines())


def bullets(title: str, lines: Sequence[str]) -> list[str]:
    """Return a heading and a list; nothing where there are no lines."""
    return [f"### {title}", "\n".join(f"- {text(line)}" for line in lines)] if lines else []


def _latency(report: dict[str, Any]) -> list[str]:
    ratios = facts.ratios(report)
    by_region = regions(report)
    if by_region:
        return [table(HEAD, by_region, "l"), NOTE]
    if not ratios:
        return ["Latency was not measured."]
    rows = [(row.label, f"{row.ratio:.1%}", f"{row.low:.1%} to {row.high:.1%}") for row in ratios]
    return [
        table(("share of the original's time", "median", "95 % interval"), rows),
        text(facts.latency_line(report["latency"])),
        *(text(note) for note in report["latency"].get("notes", ())),
    ]


def _layers(report: dict[str, Any]) -> list[str]:
    layers = facts.layers(report)
    if not layers:
        return ["Not measured layer by layer."]
    lost = [
        (row.name, row.time_kept, row.work_kept, f"{facts.milliseconds(row.lost)} ms", row.reason)
        for row in facts.losses(report)
    ]
    every = [
        (
            row.name,
            facts.milliseconds(row.before),
            facts.milliseconds(row.after),
            row.time_kept,
            row.work_kept,
            f"{row.intensity:.1f}" if row.intensity else "-",
            f"{thousands(row.rate)}" if row.rate else "-",
            row.kernels,
        )
        for row in layers
    ]
    head = ("layer", "ms before", "ms after", "time kept", "work kept", "MACs per byte", "MACs per second", "kernels")
    return [
        "Where less was gained than the saved work promised:" if lost else "",
        table(("layer", "time kept", "work kept", "lost", "why"), lost, "rrrl")
        or "Every layer's time fell by about as much as its work, or it hardly matters.",
        folded(f"All {len(layers)} layers, in the order of execution", table(head, every, "rrrrrrl")),
    ]


def _trainings(report: dict[str, Any]) -> list[str]:
    rows = training.trainings(report)
    return ["## What was trained", table(training.HEAD, rows, "l")] if rows else []


def _channels(report: dict[str, Any]) -> list[str]:
    if report["groups"] is None:
        return []
    return [
        "## Which layers share channels",
        *_coupling(report),
        "## What stays, and why",
        table(("parameters", "channels that stay", "why"), facts.stays(report), "ll") or "Nothing is frozen.",
    ]


def _coupling(report: dict[str, Any]) -> list[str]:
    groups = report["groups"]
    said = (
        f"{groups['total']} groups of channels that go together; {groups['prunable']} of them have channels that can "
        "be removed."
    )
    listed = groups.get("coupled") or ()
    writes: dict[int, list[str]] = {}
    reads: dict[int, list[str]] = {}
    for layer in groups.get("layers") or ():
        for sides, found in ((layer["writes"], writes), (layer["reads"], reads)):
            for number in sides:
                found.setdefault(number, []).append(layer["name"])
    rows = [
        (number, facts.names(writes.get(number, [])), facts.names(reads.get(number, [])), facts.taken(group))
        for number, group in enumerate(listed)
        if number in writes or number in reads
    ]
    head = ("group", "written by", "read by", "removed")
    return [said, folded(f"{len(rows)} groups", table(head, rows, "ll"))]


def _passes(report: dict[str, Any]) -> list[str]:
    parts = []
    for run in report["passes"]:
        done = [f"- {text(change['place'])}: {text(change['what'])}" for change in run["changes"]]
        done += [f"- {text(skip['place'])} skipped: {text(skip['why'])}" for skip in run["skips"]]
        title = f"pass {run['name']}: {len(run['changes'])} changed, {len(run['skips'])} skipped"
        parts.append(folded(title, "\n".join(done)) or text(title))
    return parts
