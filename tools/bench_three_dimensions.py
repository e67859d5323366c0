"""Three dimensions against one: final accuracy under a budget, and how well few networks predict others.

    python tools/bench_three_dimensions.py --budget-minutes 60 --markdown docs/three_dimensions.md
    python tools/bench_three_dimensions.py --tasks digits --nets resnet --seeds 0
    python tools/bench_three_dimensions.py --budget-minutes 0 --markdown docs/three_dimensions.md      # only the tables

The networks and tasks are those of ``tools/bench_recovery.py``. Each cell (task, network, seed) is a search that can be
killed and taken up: what is trained is kept in a folder of its own. Images that are not trained on are halved: one half
chooses the network, and the other, which nothing has seen, is what the tables count.
"""

from __future__ import annotations

import argparse
import functools
import json
import sqlite3
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a script: the checkout itself is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import nn
from torch.nn import functional as F

from fxprune.deploy.files import atomic_write
from fxprune.search import Trial, run_trials
from fxprune.search.candidates import Built
from fxprune.search.fitting import Request
from fxprune.search.network import Subject, load_network
from fxprune.search.pruning import Choices, PruneAndTrain
from fxprune.search.search import CHOSEN, SearchResult, search
from fxprune.search.store import Store
from fxprune.search.training import train_in_place
from fxprune.search.trials import TrialResult, folder_of
from fxprune.training import Recipe, evaluate
from tools import _three_tables as tables
from tools._records import append, has, put_between, read
from tools._recovery_tasks import NETS, SCALES, TASKS, Tensors, build, data_for
from tools._recovery_trial import dense_weights

BUDGETS = (0.5, 0.25)
SEEDS = (0, 1, 2)
SHARE = 5  # the points of a search are trained for this part of the final epochs
INSIDE = 16  # networks between the axes, the last of which are only predicted (``tools/_three_tables.py``)
WITH_INSIDE = (("digits", "resnet"),)


@dataclass(frozen=True)
class Training:
    """Trains on a task's images for one seed, and evaluates on half of the others."""

    scale: str
    task: str
    seed: int

    def __call__(self, model: nn.Module, resolution: int, epochs: int, folder: Path) -> float:
        """Train in place; return the accuracy on the half that chooses."""
        settings = SCALES[self.scale][self.task]
        train, choose, _ = self.sets(resolution)
        recipe = Recipe(
            epochs=max(epochs, 1),
            batch=settings.batch,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            seed=self.seed,
        )
        train_in_place(model, train, recipe, folder, skip=not epochs)
        return evaluate(model, choose)["accuracy"]

    def sets(self, resolution: int) -> tuple[Tensors, Tensors, Tensors]:
        """Return the images that train, that choose, and that judge, at a resolution."""
        return _sets(self, resolution)


@functools.lru_cache(maxsize=12)
def _sets(training: Training, resolution: int) -> tuple[Tensors, Tensors, Tensors]:
    train, rest = data_for(training.task, SCALES[training.scale][training.task], training.seed)

    def at(images: torch.Tensor, labels: list[int]) -> Tensors:
        if images.shape[-1] != resolution:
            images = F.interpolate(images, (resolution, resolution), mode="bilinear", antialias=True)
        return Tensors(images, labels)  # type: ignore[arg-type]

    return (
        at(train.images, train.targets),
        at(rest.images[0::2], rest.targets[0::2]),
        at(rest.images[1::2], rest.targets[1::2]),
    )


@dataclass(frozen=True)
class Cell:
    """One task, network and seed."""

    scale: str
    task: str
    net: str
    seed: int

    @property
    def key(self) -> dict[str, Any]:
        """What a record says of it."""
        digest = SCALES[self.scale][self.task].digest
        return {"scale": self.scale, "task": self.task, "net": self.net, "seed": self.seed, "settings": digest}

    def folder(self, root: Path) -> Path:
        """Where its search is kept."""
        return root / f"{self.task}-{self.net}-{self.seed}-{SCALES[self.scale][self.task].digest}"

    def subject(self, cache: Path) -> Subject:
        """The trained dense network."""
        settings = SCALES[self.scale][self.task]
        weights = dense_weights(self.task, self.net, settings, self.seed, cache)
        model = build(self.net, self.task, settings, self.seed)
        train, _ = data_for(self.task, settings, self.seed)
        return Subject(model, train.images[:2], weights)

    def request(self, budget: float) -> Request:
        """What is asked for; the points are the same for all budgets."""
        final = SCALES[self.scale][self.task].epochs
        epochs = (max(1, final // SHARE), final)
        return Request(
            macs=budget,
            epochs=epochs,
            explore=min(BUDGETS),
            choices=Choices(round_to=1),
            alternatives=True,
            seed=self.seed,
        )


def run_cell(cell: Cell, root: Path, cache: Path) -> dict[str, Any]:
    """Search under every budget, and test what came of it."""
    start = time.perf_counter()
    subject, training = cell.subject(cache), Training(cell.scale, cell.task, cell.seed)
    folder = cell.folder(root)
    budgets = {}
    for budget in BUDGETS:
        found = search(subject, training, cell.request(budget), folder=folder, settings=cell.key)
        budgets[str(budget)] = _record(found, subject, training, folder)
    record = {**cell.key, "budgets": budgets, "points": _points(found)}
    record["dense"] = evaluate(subject.at(subject.side).module, training.sets(subject.side)[2])["accuracy"]
    if (cell.task, cell.net) in WITH_INSIDE:
        record["inside"] = _inside(found, subject, training, folder, cell)
    return {**record, "seconds": round(time.perf_counter() - start, 1)}


def _record(found: SearchResult, subject: Subject, training: Training, folder: Path) -> dict[str, Any]:
    networks = {CHOSEN: found.chosen, **found.alternatives}
    rows = {name: _row(built, subject, training, folder) for name, built in networks.items()}
    fitted = found.fitted
    return {
        "rows": rows,
        "law": fitted.law.exponents,
        "law_error": fitted.law.error,
        "degree": fitted.degree,
        "errors": dict(fitted.errors),
        "optimum": fitted.optimum.shares,
        "spread": fitted.stability.std,
        "predicted": found.chosen.choice.accuracy,
    }


def _row(built: Built | str, subject: Subject, training: Training, folder: Path) -> dict[str, Any]:
    if isinstance(built, str):
        return {"why": built}
    if built.trial is None or built.result is None or built.result.status != "done":
        return {"why": f"failed: {built.result.error if built.result else 'not trained'}"}
    network = load_network(subject, folder_of(folder / "trials", built.trial))
    accuracy = evaluate(network.traced.module.eval(), training.sets(network.side or 0)[2])["accuracy"]
    return {
        "shares": built.point.shares,
        "cost": built.cost,
        "chosen_by": built.point.accuracy,
        "test": accuracy,
        "layers": built.result.figures["layers"],
        "side": network.side,
    }


def _points(found: SearchResult) -> list[dict[str, Any]]:
    return [{"shares": e.point.shares, "accuracy": e.point.accuracy, "cost": e.cost} for e in found.measured]


def _inside(
    found: SearchResult, subject: Subject, training: Training, folder: Path, cell: Cell
) -> list[dict[str, Any]]:
    """Train networks between the axes, from the whole one's weights."""
    asked, space = found.asked, found.space
    generator = torch.Generator().manual_seed(cell.seed)
    trials = []
    whole = found.measured[0].trial
    for _ in range(INSIDE):
        layers = int(torch.randint(1, max(space.removed) + 1, (1,), generator=generator))
        width = float(torch.empty(1).uniform_(min(space.widths), 0.95, generator=generator))
        smaller = [side for side in space.sides if min(space.resolutions) <= side < (space.side or 0)]
        side = smaller[int(torch.randint(len(smaller), (1,), generator=generator))]
        shares = (1 - layers / space.layers, round(width, 3), space.resolution(side))
        options = {"side": side, "layers": layers, "channels": round(width, 3)}
        epochs = asked.epochs[0] * asked.points  # as much as the last point of each dimension has had in all
        trials.append(Trial(*shares, epochs=epochs, seed=asked.seed, parent=whole.key, options=options))
    work = PruneAndTrain(subject, training, asked.choices)
    with Store.open(folder, _settings_of(folder)) as store:
        results = run_trials(trials, work, store)
    return [
        {"shares": _shares(results[t.key], space.depth, space.side), "accuracy": results[t.key].accuracy}
        for t in trials
        if results[t.key].status == "done"
    ]


def _shares(result: TrialResult, depth: int, side: int | None) -> tuple[float, float, float]:
    return result.figures["depth"] / depth, result.figures["width"], float(result.resolution or 1) / (side or 1)


def _settings_of(folder: Path) -> dict[str, Any]:
    with sqlite3.connect(f"file:{folder / 'search.db'}?mode=ro", uri=True) as connection:
        (text,) = connection.execute("SELECT settings FROM search").fetchone()
    found: dict[str, Any] = json.loads(text)
    return found


def _options(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/three_dimensions.json"))
    parser.add_argument("--folder", type=Path, default=Path("results/three_dimensions"), help="searches")
    parser.add_argument("--cache", type=Path, default=Path("results/recovery"), help="networks before pruning")
    parser.add_argument("--scale", choices=tuple(SCALES), default="small")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--budget-minutes", type=float, help="start no cell after that")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--markdown", type=Path, help="page for the tables")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """Run what has no record yet, and write the tables where they were asked for."""
    options = _options(words)
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    start = time.perf_counter()
    cells = [
        Cell(options.scale, task, net, seed) for seed in options.seeds for task in options.tasks for net in options.nets
    ]
    for cell in cells:
        if has(read(options.out, "cells")["cells"], cell.key):
            continue
        if options.budget_minutes is not None and time.perf_counter() - start >= 60 * options.budget_minutes:
            break
        record = run_cell(cell, options.folder.resolve(), options.cache)
        append(options.out, "cells", record, key=cell.key)
        print(json.dumps(record), flush=True)
    if options.markdown:
        records = read(options.out, "cells")["cells"]
        put_between(options.markdown, "three", tables.page(records, options.scale))
        picture = options.markdown.with_name(f"{options.markdown.stem}.png")
        if records:
            atomic_write(picture, functools.partial(tables.plot, records))
    return 0


if __name__ == "__main__":
    sys.exit(main())
