"""A search in a process of its own, to be killed: ``python -m search.killed FOLDER OUT``."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from search import subjects
from torch import nn

from fxprune.search import Event, Trial
from fxprune.search.fitting import Request
from fxprune.search.network import Subject
from fxprune.search.pruning import Choices
from fxprune.search.search import search

ASKED = Request(macs=0.5, epochs=(1, 1), points=2, dimensions=("width", "resolution"), choices=Choices(round_to=1))
SUBJECT = Subject("search.subjects:build", torch.zeros(2, 1, subjects.SIDE, subjects.SIDE))


def train(model: nn.Module, resolution: int | None, epochs: int, folder: Path) -> float:
    """Train, slowly enough to be killed in the middle, and leave a mark where a trial that has ended is begun again.

    Where the folder of the search has a file ``hold`` with a number, no more trials than that are brought to their end.
    """
    if (folder / "result.json").exists():
        (folder / "again").touch()
    time.sleep(0.5)
    hold = folder.parents[1] / "hold"
    while hold.exists() and len(list(folder.parent.glob("*/result.json"))) >= int(hold.read_text()):
        (folder.parents[1] / "held").touch()
        time.sleep(0.02)
    return subjects.train_and_evaluate(model, resolution, epochs)


def run(folder: Path, out: Path) -> None:
    """Search, and write what was found."""
    torch.set_num_threads(1)

    def tell(event: Event, trial: Trial) -> None:
        if event.kind == "started":
            print("begun", flush=True)

    found = search(SUBJECT, train, ASKED, folder=folder, on_update=tell)
    print("begun", flush=True)  # where all was done already
    values = {
        "optimum": found.fitted.optimum.shares,
        "chosen": found.chosen.point.shares,
        "accuracies": [each.point.accuracy for each in found.measured],
        "final": found.chosen.point.accuracy,
    }
    out.write_text(json.dumps(values))


if __name__ == "__main__":
    run(*map(Path, sys.argv[1:]))
