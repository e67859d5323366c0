"""The small experiments on methods from papers, and their tables.

    python tools/bench_papers.py --budget-minutes 15 --markdown docs/papers.md
    python tools/bench_papers.py --experiments tpp --ratios 0.9 --seeds 0 1 2 --methods tpp l1
    python tools/bench_papers.py --budget-minutes 0 --markdown docs/papers.md        # only the tables

What has a record in the output file is not run again, so that a run can be stopped at any time and taken up; several
runs may share the file. Each experiment has a module of its own, ``tools/_papers_NAME.py`` (with underscores), with
``trials``, ``run_trial`` and ``page``; where it has ``plot`` too, the picture lies beside the page, as
``PAGE-NAME.png``.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
import warnings
from pathlib import Path
from types import ModuleType

if __package__ in (None, ""):  # started as a script: the checkout itself is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from fxprune.deploy.files import atomic_write
from fxprune.deploy.machine import machine
from tools import _papers_basis, _papers_composition, _papers_fly, _papers_tpp, _papers_tpp_nets
from tools._records import append, begin_page, has, put_between, read

EXPERIMENTS: dict[str, ModuleType] = {
    "tpp": _papers_tpp, "tpp-nets": _papers_tpp_nets, "basis": _papers_basis, "composition": _papers_composition,
    "fly": _papers_fly,
}  # fmt: skip


def _options(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    parser.add_argument("--out", type=Path, default=Path("results/papers.json"))
    parser.add_argument("--cache", type=Path, default=Path("results/papers"), help="networks before pruning")
    parser.add_argument("--scale", choices=("small", "test"), default="small")
    parser.add_argument("--ratios", nargs="+", type=float)
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--methods", nargs="+")
    parser.add_argument("--budget-minutes", type=float, help="start no trial after that")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--markdown", type=Path, help="page for the tables")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """Run what has no record yet, and write the tables where they were asked for."""
    options = _options(words)
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    if options.markdown:
        begin_page(options.markdown, *options.experiments)
    start = time.perf_counter()
    for name in options.experiments:
        experiment = EXPERIMENTS[name]
        for trial in experiment.trials(options.scale):
            wanted = ((options.ratios, trial.ratio), (options.seeds, trial.seed), (options.methods, trial.method))
            if any(chosen is not None and value not in chosen for chosen, value in wanted):
                continue
            if has(read(options.out, "trials")["trials"], trial.key):
                continue
            if options.budget_minutes is not None and time.perf_counter() - start >= 60 * options.budget_minutes:
                break
            record = experiment.run_trial(trial, options.cache)
            about = {"machine": {"torch": torch.__version__, **machine()}}
            append(options.out, "trials", record, key=trial.key, about=about)
            print(json.dumps(record), flush=True)
        if options.markdown:
            records = read(options.out, "trials")["trials"]
            put_between(options.markdown, name, experiment.page(records, options.scale))
            if hasattr(experiment, "plot"):
                picture = options.markdown.with_name(f"{options.markdown.stem}-{name}.png")
                atomic_write(picture, functools.partial(experiment.plot, records, options.scale))
    return 0


if __name__ == "__main__":
    sys.exit(main())
