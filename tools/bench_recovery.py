"""Does over-parameterising a pruned network recover more than fine-tuning it? Trials on two tasks, and their tables.

    python tools/bench_recovery.py --out results/recovery.json --markdown docs/recovery.md --plot docs/recovery.png

Each trial trains a network, prunes it, recovers it in one way, collapses it, and tests it. What has a record in the
output file is not run again, so that a run can be stopped at any time and taken up; several runs may share the file.
The order is such that what there is makes complete tables. Filters take a part:

    python tools/bench_recovery.py --budget-minutes 20 --tasks digits --nets resnet --ratios 0.9 0.95 --seeds 0 1 2
    python tools/bench_recovery.py --scale full --out results/recovery_full.json        # larger, for a GPU
    python tools/bench_recovery.py --budget-minutes 0 --markdown docs/recovery.md       # only the tables
    python tools/bench_recovery.py --budget-minutes 0 --latency                         # collapsed beside pruned
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a script: the checkout itself is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from fxprune.deploy.files import atomic_write
from fxprune.deploy.machine import machine
from tools._records import append, has, put_between, read
from tools._recovery_latency import measure
from tools._recovery_tables import latencies, page, plot
from tools._recovery_tasks import NETS, RATIOS, REASONS_AT, SCALES, SEEDS, TASKS, WIDTHS_AT
from tools._recovery_trial import MAIN, REASONS, VARIANTS, WIDTHS, Trial, run_trial

KEY = ("scale", "task", "net", "ratio", "seed", "variant", "settings")  # what a record is known by
LATENCY_KEY = tuple("removed" if name == "ratio" else name for name in KEY)
HARD, EASY = (0.9, 0.95), (0.5, 0.7)
# The order of trials: task, network, ratios, variants; within each line seed by seed.
LINES: list[tuple[str, str, tuple[float, ...], dict[str, Any]]] = [
    ("digits", "resnet", HARD, MAIN),
    ("digits", "resnet", EASY, MAIN),
    ("digits", "resnet", (WIDTHS_AT,), WIDTHS),
    ("digits", "mobilenet", HARD, MAIN),
    ("digits", "resnet", (REASONS_AT,), REASONS),
    ("shapes", "resnet", HARD, MAIN),
    ("digits", "mobilenet", EASY, MAIN),
    ("shapes", "mobilenet", HARD, MAIN),
    ("shapes", "resnet", EASY, MAIN),
    ("shapes", "mobilenet", EASY, MAIN),
]


def trials(options: argparse.Namespace) -> list[Trial]:
    """Return what was asked for, in the order of the most informative first; other combinations only by their names."""
    found = [
        Trial(options.scale, task, net, ratio, seed, variant)
        for task, net, ratios, variants in LINES
        for seed in options.seeds
        for ratio in ratios
        for variant in variants
    ]
    if options.variants:
        found += [
            Trial(options.scale, task, net, ratio, seed, variant)
            for task in options.tasks
            for net in options.nets
            for seed in options.seeds
            for ratio in options.ratios
            for variant in options.variants
        ]
    return [
        trial
        for trial in dict.fromkeys(found)
        if trial.task in options.tasks and trial.net in options.nets and trial.ratio in options.ratios
        and trial.variant in (options.variants or VARIANTS)
    ]  # fmt: skip


def is_done(trial: Trial, results: dict[str, Any]) -> bool:
    """Whether there is a record of this trial under these settings."""
    return has(results["trials"], {**vars(trial), "settings": trial.settings.digest})


def _keep(path: Path, record: dict[str, Any], to: str, key: Sequence[str]) -> None:
    append(path, to, record, key=key, about={"machine": {"torch": torch.__version__, **machine()}})


def _measure_latencies(options: argparse.Namespace) -> None:
    """Measure each network at the lowest and the highest ratio, where that was not done."""
    for net in options.nets:
        for ratio in (min(options.ratios), max(options.ratios)):
            trial = Trial(options.scale, options.tasks[-1], net, ratio, options.seeds[0], "lop")
            done = {(t["task"], t["net"], t["removed"]) for t in latencies(read(options.out), options.scale)}
            if (trial.task, net, ratio) not in done:
                record = measure(trial, options.cache, cpu=options.cpu)
                _keep(options.out, record, "latency", LATENCY_KEY)
                print(json.dumps(record), flush=True)


def _options(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/recovery.json"))
    parser.add_argument("--cache", type=Path, default=Path("results/recovery"), help="networks before pruning")
    parser.add_argument("--scale", choices=SCALES, default="small")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--nets", nargs="+", choices=NETS, default=NETS)
    parser.add_argument("--ratios", nargs="+", type=float, default=RATIOS, help="shares of filters to remove")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, metavar="NAME", help=", ".join(VARIANTS))
    parser.add_argument("--budget-minutes", type=float, help="start no trial after that")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cpu", action="store_true", help="also where there is a GPU")
    parser.add_argument("--latency", action="store_true", help="also measure collapsed networks beside pruned ones")
    parser.add_argument("--markdown", type=Path, help="page for the tables")
    parser.add_argument("--plot", type=Path, help="picture of the gains")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """Run what has no record yet, and write tables and plot where they were asked for."""
    options = _options(words)
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    start = time.perf_counter()
    for trial in trials(options):
        if options.budget_minutes is not None and time.perf_counter() - start >= 60 * options.budget_minutes:
            break
        if is_done(trial, read(options.out, "trials")):
            continue
        record = run_trial(trial, options.cache, cpu=options.cpu)
        _keep(options.out, record, "trials", KEY)
        result = f"{record['accuracy']:.2%}" if "accuracy" in record else record["error"]
        place = f"{trial.task} {trial.net} {trial.ratio:.0%} seed {trial.seed}"
        print(f"{place} {trial.variant}: {result}, {record['seconds']} s", flush=True)
    if options.latency:
        _measure_latencies(options)
    results = read(options.out, "trials")
    if options.markdown:
        put_between(options.markdown, "recovery", page(results, options.scale))
    if options.plot:
        atomic_write(options.plot, lambda temporary: plot(results, options.scale, temporary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
