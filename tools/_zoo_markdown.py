"""The zoo's records as Markdown: a summary of the tools side by side, then every model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

from tools._records import Record
from tools._zoo_models import catalog

OUTCOMES = {
    "exact": "pruned, and equal to its masked original in float64",
    "forward only": "pruned and runs; masking cannot tell whether it is right",
    "proves nothing": "pruned and runs; its outputs are the same for all inputs, so that comparing them is vacuous",
    "wrong": "pruned and runs, but is another function",
    "refused": "said that it will not, or left the model as it was",
    "failed": "raised, broke at the next forward, or passed a bound of time or memory",
}
_STAGES = {"fxprune": ("analysis", "plan", "surgery"), "torch-pruning": ("graph", "prune")}
_INTRODUCTION = """# The model zoo

Written by `python tools/zoo.py --peer torch-pruning --markdown docs/zoo.md`; do not edit.

Every classification, segmentation, video and optical-flow model of torchvision, pruned to half its
multiply-accumulates (MACs) without a word about the model. Weights are random and seeded; norms, running statistics
and heads are randomised so that no check is vacuous. Torch-Pruning removes 30 % of the channels of every layer
(about half the MACs) and is told which layers make the outputs, and nothing else: where a model's forward reads sizes
from its own attributes (ViT, MViT), setting those is left to the user, and is not done here.

A result is *exact* when it equals the original with every removed slice set to zero, in float64 and relative to the
largest output: within 1e-9 for fxprune, 1e-6 for Torch-Pruning. For layer norm the reference takes its statistics over
what was kept. *MACs kept* are counted by running both models, not taken from the tool.
"""

_SECONDS = """## How long pruning takes

Both tools in one process per model, in turns, on fresh copies, one thread, three rounds (one where a round takes longer
than 20 s); seconds of CPU time, as other work on the machine stretches wall time: `python tools/bench_prune.py`. The
columns of stages in the tables below are wall times of single runs on a machine that was busy with other work.
"""


def markdown(records: Iterable[Record], seconds: str = "") -> str:
    """Return the page for these records, with the table of ``tools/bench_prune.py`` where there is one."""
    order = {name: number for number, name in enumerate(catalog())}
    rows = sorted(records, key=lambda record: order[record["model"]])
    tools = [tool for tool in _STAGES if any(row["tool"] == tool for row in rows)]
    parts = [_INTRODUCTION, _versions(rows), "## Summary\n", _summary(rows, tools), _outcomes()]
    parts += [_SECONDS, seconds] if seconds else []
    for tool in tools:
        parts += [
            f"## {tool}\n",
            _own_summary(rows) if tool == "fxprune" else "",
            _details(tool, [row for row in rows if row["tool"] == tool]),
        ]
    return "\n".join(part.strip("\n") + "\n" for part in parts if part)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Format one table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def work_seconds(record: Record) -> float | None:
    """Return the seconds of analysis, plan and surgery together; None for a model that was not pruned."""
    seconds = record["seconds"]
    stages = _STAGES[record["tool"]]
    pruned = all(stage in seconds for stage in stages) and record["outcome"] in ("exact", "forward only", "wrong")
    return sum(seconds[stage] for stage in stages) if pruned else None


def _summary(rows: list[Record], tools: list[str]) -> str:
    def of(tool: str) -> list[Record]:
        return [row for row in rows if row["tool"] == tool]

    lines: list[Sequence[object]] = [("models tried", *(len(of(tool)) for tool in tools))]
    for outcome in OUTCOMES:
        lines.append((outcome, *(sum(row["outcome"] == outcome for row in of(tool)) for tool in tools)))
    return table(("", *tools), lines)


def _versions(rows: list[Record]) -> str:
    """Say what was measured with what."""
    found = {f"{row['tool']} {row['version']}" for row in rows if row.get("version")}
    found |= {f"torch {row['torch']}" for row in rows if row.get("torch")}
    found |= {f"{row['threads']} threads" if row["threads"] > 1 else "1 thread" for row in rows if "threads" in row}
    return f"Measured with {', '.join(sorted(found))}.\n" if found else ""


def _outcomes() -> str:
    return "\n" + "".join(f"- **{outcome}**: {meaning}.\n" for outcome, meaning in OUTCOMES.items())


def _own_summary(rows: list[Record]) -> str:
    """What only fxprune is asked for: capture, budget, ONNX, and agreement with the reference made outside of it."""
    own = [row for row in rows if row["tool"] == "fxprune"]
    pruned = [row for row in own if work_seconds(row) is not None]

    def times(*stages: str) -> str:
        sums = [sum(row["seconds"].get(stage, 0.0) for stage in stages) for row in pruned]
        return f"{median(sums):.2f} s, {max(sums):.2f} s" if sums else "-"

    on_budget = [row for row in pruned if 0.49 <= row.get("macs_kept", 0.0) <= 0.5]
    parities = [max(_parity(row)) for row in pruned if row.get("onnx") == "ok"]
    lines: list[Sequence[object]] = [
        ("captured with a dynamic batch", f"{sum(row.get('batch') == 'dynamic' for row in own)} of {len(own)}"),
        ("MACs kept between 49 % and 50 %", f"{len(on_budget)} of {len(pruned)} pruned"),
        (
            "equal to the eager masked original too (RAFT's own code cannot run in float64)",
            f"{sum(row.get('second_error', 1.0) <= 1e-6 for row in own)} of {len(pruned)} pruned",
        ),
        ("ONNX file equal at batch 1 and 3, within 1e-3", f"{len(parities)} of {len(pruned)} pruned"),
        ("largest ONNX error of these", _number(max(parities, default=None), ".0e")),
        ("capture, median and slowest", times("capture")),
        ("verification, median and slowest", times("verify")),
        ("export, median and slowest", times("export")),
    ]
    return table(("", "fxprune"), lines) + "\n"


def _parity(row: Record) -> list[float]:
    return [value for key, value in row.items() if key.startswith("onnx_error_batch_")]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _details(tool: str, rows: list[Record]) -> str:
    own = tool == "fxprune"
    head = ["model", "input", "outcome", "MACs kept", "masked error"]
    head += ["ONNX error", "groups", "frozen", "batch"] if own else []
    head += [*_STAGES[tool], "peak MiB", "note"]
    lines = []
    for row in rows:
        line = [row["model"], "x".join(str(size) for size in row.get("input", [])), row["outcome"]]
        line += [_number(row.get("macs_kept"), ".1%"), _number(row.get("max_relative_error"), ".0e")]
        if own:
            line += [
                _number(max(_parity(row), default=None), ".0e"),
                row.get("groups", ""),
                row.get("frozen", ""),
                row.get("batch", ""),
            ]
        line += [_number(row["seconds"].get(stage), ".2f") for stage in _STAGES[tool]]
        line += [row.get("peak_rss_mib", ""), _note(row)]
        lines.append(line)
    return table(head, lines)


def _note(row: Record) -> str:
    text = "; ".join([text for text in (row["detail"], *row.get("notes", [])) if text])
    return text if len(text) <= 160 else text[:157] + "..."
