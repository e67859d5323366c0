"""How many trials one worker and two get done: processes and a local Ray cluster, on real trainings of one thread.

    python tools/bench_trials.py --markdown docs/three_dimensions.md
    python tools/bench_trials.py --repetitions 1 --trials 2 --steps 20 --out /tmp/trials.json      # does it work?
    python tools/bench_trials.py --repetitions 0 --markdown docs/three_dimensions.md               # only the table

A repetition runs all that is compared, in random order, so that what else the machine does falls on all alike; ratios
are taken within a repetition. What has a record in the output file is not run again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a script: the checkout itself is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fxprune.deploy.machine import load_average, machine
from fxprune.search import Executor, Processes, RayCluster, Store, Trial, run_trials
from fxprune.search.work import attempts_of
from tools._records import append, has, put_between, read

EXECUTORS: dict[str, Any] = {"processes": Processes, "ray": RayCluster}
WORKERS = (1, 2)
WANTED = 1.7
WORK = "tools._trials_work:train"
COMMAND = "python tools/bench_trials.py --markdown docs/three_dimensions.md"
Record = dict[str, Any]


def measure(executor: Executor, trials: list[Trial]) -> Record:
    """Run trials in a folder of their own; return how long it took, with and without what workers need to start."""
    with tempfile.TemporaryDirectory() as folder, Store.open(folder, {}) as store:
        start = time.perf_counter()
        results = run_trials(trials, WORK, store, executor)
        whole = time.perf_counter() - start
        begun = [attempts_of(store.folder_of(trial))[-1]["started"] for trial in trials]
    if bad := [result.error for result in results.values() if result.status != "done"]:
        raise RuntimeError(f"a trial failed: {bad[0]}")
    seconds = [result.seconds for result in results.values()]
    ended = [first + each for first, each in zip(begun, seconds, strict=True)]
    return {
        "seconds_with_start": whole,
        "seconds": max(ended) - min(begun),
        "trial_seconds": seconds,
        "accuracies": [result.accuracy for result in results.values()],
        "workers_used": len({result.worker for result in results.values()}),
    }


def page(records: list[Record]) -> str:
    """Return the table: throughput of each, and the ratios within repetitions."""
    groups: dict[str, dict[int, dict[int, Record]]] = {}
    for record in records:
        groups.setdefault(record["executor"], {}).setdefault(record["repetition"], {})[record["workers"]] = record
    whole = {name: [both for both in found.values() if set(WORKERS) <= set(both)] for name, found in groups.items()}
    whole = {name: pairs for name, pairs in whole.items() if pairs}
    if not whole:
        return f"*Not measured*; `{COMMAND}` does it.\n"
    first, least = next(iter(whole.values()))[0][1], min(map(len, whole.values()))
    each = statistics.median(first["trial_seconds"])
    lines = [
        f"{first['trials']} trainings of one thread, {each:.1f} s each; median over "
        f"{least} interleaved repetitions, smallest and largest in brackets. *With start* counts the start of workers, "
        "which load Python and torch, and of the cluster. Wanted: two workers do at least "
        f"{WANTED} times as much. `{COMMAND}`",
        "",
        "| | trials per minute, 1 worker | 2 workers | ratio | ratio with start | a trial beside another takes |",
        "|---|---|---|---|---|---|",
    ]
    for name, pairs in whole.items():
        rates = [_shown([60 * pair[n]["trials"] / pair[n]["seconds"] for pair in pairs], "{:.1f}") for n in WORKERS]
        ratios = [
            _shown([pair[1][key] / pair[2][key] for pair in pairs], "{:.2f}")
            for key in ("seconds", "seconds_with_start")
        ]
        slower = [
            statistics.median(pair[2]["trial_seconds"]) / statistics.median(pair[1]["trial_seconds"]) for pair in pairs
        ]
        lines.append(f"| {name} | {rates[0]} | {rates[1]} | {ratios[0]} | {ratios[1]} | {_shown(slower, '{:.2f}')} x |")
    return "\n".join(lines) + "\n"


def _shown(values: list[float], form: str) -> str:
    low, middle, high = (form.format(value) for value in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low} to {high})"


def _options(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/trials.json"))
    parser.add_argument("--executors", nargs="+", choices=EXECUTORS, default=list(EXECUTORS))
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--steps", type=int, default=170, help="of each training; about 5 s")
    parser.add_argument("--markdown", type=Path, help="page for the table")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """Run what has no record yet, and write the table where it was asked for."""
    import torch  # here, as workers import this file too

    options = _options(words)
    trials = [Trial(seed=seed, options={"steps": options.steps}) for seed in range(options.trials)]
    same = {"trials": options.trials, "steps": options.steps}
    for repetition in range(options.repetitions):
        runs = list(itertools.product(options.executors, WORKERS))
        random.Random(repetition).shuffle(runs)
        for name, workers in runs:
            about = {"executor": name, "workers": workers, "repetition": repetition, **same}
            if has(read(options.out, "trials")["trials"], about):
                continue
            record = {**about, "load": load_average(), **measure(EXECUTORS[name](workers=workers), trials)}
            where = {"machine": {"torch": torch.__version__, **machine()}}
            append(options.out, "trials", record, key=about, about=where)
            print(json.dumps(record), flush=True)
    records = [record for record in read(options.out, "trials")["trials"] if same.items() <= record.items()]
    _check_the_same(records)
    if options.markdown:
        put_between(options.markdown, "trials", page(records))
    return 0


def _check_the_same(records: list[Record]) -> None:
    """Trials are pure functions: all runs have the same results."""
    if len({tuple(record["accuracies"]) for record in records}) > 1:
        raise RuntimeError("the same trials had different accuracies on different workers")


if __name__ == "__main__":
    sys.exit(main())
