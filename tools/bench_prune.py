"""How long pruning itself takes, beside Torch-Pruning: both tools in one process per model, in turns, on fresh copies.

    python tools/bench_prune.py --out results/prune.json [--models 'resnet*'] [--rounds 3] [--threads 1]

Building, checking and exporting are not timed. fxprune: capture (apart), analysis, plan and surgery. Torch-Pruning: its
graph, and its pruning step. Both are asked for about half the multiply-accumulates. CPU seconds of the process are what
is compared, because other work on the machine stretches wall time; wall seconds are kept beside them. A model that has
a record in the output file is skipped, so that a run can be taken up again.
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a script: the checkout itself is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from tools._pool import Limits, answering, run_one
from tools._records import changed, read
from tools._zoo_models import build, catalog, make_inputs

SLOW = 20.0  # seconds after which a tool is not run again on a model
STAGES = ("analysis", "plan", "surgery")


class Clock:
    """Measures stages in wall and CPU seconds."""

    def __init__(self) -> None:
        self.stages: dict[str, dict[str, float]] = {}

    def __call__(self, name: str, work: Callable[[], Any]) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        result = work()
        self.stages[name] = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        return result


def run_fxprune(model: Any, inputs: Any, name: str, clock: Clock) -> None:
    """Prune with fxprune."""
    import fxprune

    traced = clock("capture", lambda: fxprune.trace(model, inputs))

    def analyse() -> Any:
        groups = fxprune.find_groups(traced)
        return groups, groups.families

    groups, _ = clock("analysis", analyse)
    plan = clock("plan", lambda: fxprune.make_plan(traced, macs=0.5, groups=groups))
    clock("surgery", lambda: fxprune.cut(traced, plan, groups))


def run_torch_pruning(model: Any, inputs: Any, name: str, clock: Clock) -> None:
    """Prune with Torch-Pruning, the output layers named."""
    import torch_pruning as tp

    from tools._zoo_torch_pruning import PRUNING_RATIO, output_layers

    example = inputs if len(inputs) > 1 else inputs[0]
    pruner = clock(
        "graph",
        lambda: tp.pruner.BasePruner(
            model,
            example,
            importance=tp.importance.MagnitudeImportance(p=2),
            global_pruning=False,
            pruning_ratio=PRUNING_RATIO,
            ignored_layers=output_layers(model, name),
        ),
    )
    clock("prune", pruner.step)


TOOLS = {"fxprune": run_fxprune, "torch-pruning": run_torch_pruning}


def work(name: str, rounds: int, threads: int, answer: Callable[[Any], None]) -> None:
    """Time both tools on one model; answer at each start and end, so that a killed run has its say."""
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    model, inputs, order = build(name, 0), make_inputs(name, 1), random.Random(0)
    slow: set[str] = set()
    for turn in range(rounds):
        for tool in order.sample(sorted(TOOLS), len(TOOLS)) if turn else ["fxprune", "torch-pruning"]:
            if tool in slow:
                continue
            answer({"tool": tool, "turn": turn})
            clock, fresh, error = Clock(), copy.deepcopy(model), ""
            start = time.perf_counter()
            try:
                TOOLS[tool](fresh, inputs, name, clock)
            except Exception as problem:  # whatever the tool raises is its result
                error = f"{type(problem).__name__}: {' '.join(str(problem).split())[:200]}"
            if error or time.perf_counter() - start > SLOW:
                slow.add(tool)
            answer({"tool": tool, "turn": turn, "stages": clock.stages, "error": error})


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run one model in a process of its own."""
    words = ["-m", "tools.bench_prune", "--worker", name, "--rounds", str(options.rounds)]
    words += ["--threads", str(options.threads)]
    limits = Limits(seconds=options.timeout)
    worker = run_one(words, limits, {"OMP_NUM_THREADS": str(options.threads)})
    lines = worker.answers
    record: dict[str, Any] = {
        tool: [line for line in lines if line["tool"] == tool and "stages" in line] for tool in TOOLS
    }
    for last in lines[-1:] or [{"tool": tool, "turn": 0} for tool in TOOLS]:  # without any, the model was not built
        if "stages" not in last:
            record[last["tool"]].append({"turn": last["turn"], "error": worker.why or "it said nothing"})
    return record


def seconds(runs: list[dict[str, Any]], clock: str, stages: tuple[str, ...] | None) -> float | None:
    """Return the median over the runs of the sum of stages (all of them for None); None where the tool failed."""
    good = [run["stages"] for run in runs if not run["error"]]
    if not good or len(good) < len(runs):
        return None
    sums = [sum(float(s[clock]) for key, s in run.items() if stages is None or key in stages) for run in good]
    return statistics.median(sums)


def summary(records: dict[str, Any], clock: str = "cpu") -> str:
    """Return the medians, the worst, and the ratio over the models on which both tools ended, as Markdown."""
    ours = {m: seconds(r["fxprune"], clock, STAGES) for m, r in records.items()}
    whole = {m: seconds(r["fxprune"], clock, None) for m, r in records.items()}
    peer = {m: seconds(r["torch-pruning"], clock, None) for m, r in records.items()}
    both = [m for m in records if ours[m] is not None and peer[m] is not None]

    def row(title: str, table: dict[str, Any], names: list[str]) -> str:
        found = sorted((table[m], m) for m in names if table[m] is not None)
        if not found:
            return f"| {title} | 0 | | |"
        median = statistics.median(value for value, _ in found)
        return f"| {title} | {len(found)} | {median:.2f} | {found[-1][0]:.2f} ({found[-1][1]}) |"

    lines = [
        f"| {clock} seconds | models | median | worst |",
        "|---|---|---|---|",
        row("fxprune: analysis + plan + surgery", ours, list(records)),
        row("fxprune: the same and capture", whole, list(records)),
        row("Torch-Pruning: graph + prune", peer, list(records)),
        row("fxprune: analysis + plan + surgery, where both ended", ours, both),
        row("Torch-Pruning, where both ended", peer, both),
    ]
    for title, table in (("analysis + plan + surgery", ours), ("the same and capture", whole)):
        ratios = sorted(table[m] / peer[m] for m in both)  # type: ignore[operator]
        if ratios:
            quarter = len(ratios) // 4
            lines.append(
                f"\nRatio to Torch-Pruning per model, {title}: median {statistics.median(ratios):.2f}, "
                f"middle half {ratios[quarter]:.2f} to {ratios[-1 - quarter]:.2f}, "
                f"range {ratios[0]:.3f} to {ratios[-1]:.2f}."
            )
    return "\n".join(lines)


def main() -> int:
    """Run what has no record yet, and print the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", metavar="GLOB", action="append")
    parser.add_argument("--out", type=Path, default=Path("results/prune.json"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=180.0, help="seconds per model")
    parser.add_argument("--worker", metavar="MODEL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        with answering() as answer:
            work(options.worker, options.rounds, options.threads, answer)
        return 0
    for name in catalog():
        if name in read(options.out) or not any(fnmatch.fnmatchcase(name, p) for p in options.models or ["*"]):
            continue
        record = measure(name, options)
        with changed(options.out) as records:
            records[name] = record
        ours, peer = (seconds(record[tool], "cpu", STAGES if tool == "fxprune" else None) for tool in TOOLS)
        print(f"{name:32s} {ours} {peer}", flush=True)
    print(summary(read(options.out)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
