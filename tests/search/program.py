"""A search as a program of its own: ``python program.py FOLDER JSON``, to be killed. Prints a line for each event."""

from __future__ import annotations

import json
import sys
from typing import Any

from search import works

from fxprune.search import Executor, InProcess, Processes, RayCluster, Store, run_trials

EXECUTORS: dict[str, type[Any]] = {"here": InProcess, "processes": Processes, "ray": RayCluster}


def main() -> None:
    folder, options = sys.argv[1], json.loads(sys.argv[2])
    executor: Executor = EXECUTORS[options.pop("executor")](**options.pop("with", {}))
    trials = works.trials(**options)
    with Store.open(folder, {"model": "m"}) as store:
        results = run_trials(
            trials, works.fall, store, executor, lambda event: print(event.kind, event.worker, flush=True)
        )
    print(json.dumps([result.outcome for result in results.values()]))


if __name__ == "__main__":
    main()
