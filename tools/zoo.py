"""Prune every torchvision model to half its MACs, with fxprune and with a peer, each in a bounded process of its own.

    python tools/zoo.py --models 'resnet*' --jobs 2 --peer torch-pruning --out results/zoo.json --markdown docs/zoo.md

A model that has a record in the output file is skipped, so that a run can be stopped and taken up again.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import signal
import sys
from pathlib import Path

if __package__ in (None, ""):  # started as a script: the checkout itself is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools import bench_prune
from tools._records import read, write_text
from tools._zoo_markdown import markdown
from tools._zoo_models import catalog
from tools._zoo_pool import Limits, run
from tools._zoo_record import add_record, read_records


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--models", metavar="GLOB", action="append", help="models to run (default: all); may be repeated")
    add("--out", type=Path, default=Path("results/zoo.json"), help="file of records, one per tool and model")
    add("--markdown", type=Path, help="write the tables of all records there")
    add("--peer", action="append", choices=["torch-pruning"], default=[], help="run this tool too")
    add("--only-peer", action="store_true", help="do not run fxprune")
    add("--jobs", type=int, default=1, help="models at a time")
    add("--threads", type=int, help="torch threads of each (default: cores / jobs)")
    add("--timeout", type=float, default=120.0, help="seconds for the tool's own work on a model")
    add("--check-timeout", type=float, default=600.0, help="seconds for building a model, and for checking the result")
    add("--memory", type=float, default=16.0, help="GiB of resident memory of a process tree")
    add("--seed", type=int, default=0)
    add("--redo", action="store_true", help="run models again that have a record")
    return parser.parse_args(argv)


def choose(options: argparse.Namespace) -> list[tuple[str, str]]:
    """Return the (tool, model) pairs that are still to be run."""
    tools = [*([] if options.only_peer else ["fxprune"]), *options.peer]
    patterns = options.models or ["*"]
    names = [name for name in catalog() if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    present = {} if options.redo else read_records(options.out)
    return [(tool, name) for name in names for tool in tools if f"{tool}/{name}" not in present]


def main(argv: list[str] | None = None) -> int:
    """Run the zoo."""
    options = arguments(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that the workers are ended too
    tasks = choose(options)
    threads = options.threads or max(1, (os.cpu_count() or 1) // options.jobs)
    limits = Limits(options.timeout, options.check_timeout, options.memory)
    for record in run(tasks, options.jobs, threads, options.seed, limits):
        add_record(options.out, record)
        tool, model, outcome = record["tool"], record["model"], record["outcome"]
        print(f"{tool:14s} {model:30s} {outcome:13s} {record['detail'][:150]}", flush=True)
    if options.markdown:
        timed = read(options.out.with_name("prune.json"))
        seconds = bench_prune.summary(timed) if timed else ""
        write_text(options.markdown, markdown(list(read_records(options.out).values()), seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
