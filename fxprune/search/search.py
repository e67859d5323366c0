"""The search over depth, width and resolution under one budget.

*Accelerate CNNs from Three Dimensions* (arXiv 2010.04879): networks are collected along each dimension by pruning a
little and training a little, again and again; accuracy is fitted as a polynomial of the three (``predictor.py``) and
maximised under the budget (``optimum.py``); the best network that can be built is pruned out of the dense one, depth
first, then width, then resolution, and trained for longer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxprune.capture.regions import require_whole
from fxprune.errors import InputError, TrainingError
from fxprune.search import decision
from fxprune.search.candidates import Built, Candidates
from fxprune.search.executors import Event, Executor
from fxprune.search.fitting import Fitted, Measured, Request, fit
from fxprune.search.meters import Macs, Meter, Milliseconds
from fxprune.search.network import Network, Subject, load_network, rebuild, require_constants
from fxprune.search.predictor import Point
from fxprune.search.pruning import PruneAndTrain, TrainAndEvaluate, described
from fxprune.search.run import run_trials
from fxprune.search.smallest import check_smallest
from fxprune.search.space import Space, find_space
from fxprune.search.store import Store
from fxprune.search.trials import Trial, TrialResult, folder_of

CHOSEN = "three dimensions"


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        asked: What was asked for.
        space: What can be built.
        measured: The networks along the dimensions.
        failed: Those that failed.
        fitted: What they say.
        chosen: The network that was chosen.
        alternatives: What one dimension alone, and the uniform choice, give; or why they give nothing.
        network: The chosen network with its trained weights.
        notes: What else to know.
    """

    asked: Request
    space: Space
    measured: tuple[Measured, ...]
    failed: tuple[TrialResult, ...]
    fitted: Fitted
    chosen: Built
    alternatives: Mapping[str, Built | str]
    network: Network
    notes: tuple[str, ...]


def search(  # noqa: PLR0913 - the parts of a search, each with a default behind the star
    subject: Subject,
    train_and_evaluate: TrainAndEvaluate,
    asked: Request,
    *,
    folder: str | Path,
    executor: Executor | None = None,
    settings: Mapping[str, Any] | None = None,
    on_update: Callable[[Event, Trial], None] | None = None,
    on_phase: Callable[[str, Sequence[Trial]], None] | None = None,
    retry_failed: bool = False,
) -> SearchResult:
    """Find, build and train the best network under a budget.

    Every trial is recorded in the folder, so that the same call goes on where an earlier one was killed, and runs
    nothing twice.

    Args:
        subject: The trained model, and example inputs at the whole resolution.
        train_and_evaluate: Trains a network and returns its accuracy (:data:`TrainAndEvaluate`). The data it evaluates
            on choose the network, so they must not be those that it is judged by in the end.
        asked: Budget and choices.
        folder: Of the search: its database, and a folder for each trial.
        executor: Where trials run; default: one after the other in this process.
        settings: What else the accuracies follow from (data, recipe), as plain JSON: a folder is only gone on with
            where they are the same. None: what ``train_and_evaluate.describe()`` gives, where there is such.
        on_update: Is told what happens to which trial.
        on_phase: Is told what begins, and which trials belong to it.
        retry_failed: Run trials again that failed.

    Raises:
        InputError: The model, an option or the folder cannot be used, or there is nothing to prune.
        BudgetError: The budget cannot be reached; says what can.
        TrainingError: The whole network, or the final one, could not be trained.
    """
    say = on_phase or _quiet
    say("look for what can be removed", ())
    dense = rebuild(subject, (), _side(subject, asked))
    require_constants(subject, dense)
    require_whole(dense.traced, "A search over depth, width and resolution", "prune it by fxprune optimize instead")
    least = asked.explore or asked.budget
    space = find_space(subject, dense, least, dimensions=asked.dimensions, points=asked.points, choices=asked.choices)
    meter = Macs(dense.traced) if asked.metric == "macs" else Milliseconds(dense.traced, asked.measuring)
    work = PruneAndTrain(subject, train_and_evaluate, asked.choices)
    given = dict(settings) if settings is not None else _described(train_and_evaluate)
    identity = {"model": _identity(dense), "choices": dataclasses.asdict(asked.choices), "more": given}
    with contextlib.closing(meter), Store.open(folder, identity) as store:
        smallest = check_smallest(subject, space, meter, asked, store.folder)
        run = _Runner(store, work, executor, on_update, retry_failed)
        trials = plan_trials(space, asked)
        say("train along each dimension", trials)
        results = run(trials)
        say("fit accuracy and cost, and build what meets the budget", ())
        measured, failed = _measured(trials, results, subject, space, meter, store)
        fitted = fit(measured, asked, smallest)
        place = decision.file_for(store.folder, asked, measured)
        built = decision.kept(place, subject)
        if built is None:
            candidates = Candidates(subject, _reached(space, measured), meter, asked)
            built = {CHOSEN: candidates.best(fitted), **candidates.alternatives(fitted)}
            decision.keep(place, built)
        trained = _train(built if asked.alternatives else {CHOSEN: built[CHOSEN]}, run, asked, say)
        final = trained[CHOSEN]
        assert isinstance(final, Built)
        if final.trial is None or final.result is None or final.result.status != "done":
            raise TrainingError(
                f"the chosen network could not be trained: {final.result.error if final.result else 'it was not run'}; "
                "mend the cause and search again with retry_failed=True (--retry-failed): all other trials are kept"
            )
        network = load_network(subject, folder_of(store.trials, final.trial))
    notes = [*space.notes, *_failures(failed)]
    others = {name: each for name, each in {**built, **trained}.items() if name != CHOSEN}
    return SearchResult(asked, space, tuple(measured), tuple(failed), fitted, final, others, network, tuple(notes))


class _Runner:
    """Runs trials in one store with one executor."""

    def __init__(
        self,
        store: Store,
        work: PruneAndTrain,
        executor: Executor | None,
        on_update: Callable[[Event, Trial], None] | None,
        retry_failed: bool,
    ) -> None:
        self.store, self.work, self.executor = store, work, executor
        self.on_update, self.retry_failed = on_update, retry_failed

    def __call__(self, trials: Sequence[Trial]) -> dict[str, TrialResult]:
        known = {trial.key: trial for trial in trials}

        def tell(event: Event) -> None:
            if self.on_update is not None:
                self.on_update(event, known[event.key])

        return run_trials(trials, self.work, self.store, self.executor, tell, retry_failed=self.retry_failed)


# ---------------------------------------------------------------- the points


def plan_trials(space: Space, asked: Request) -> list[Trial]:
    """Return the trials along the dimensions: the whole network, and a chain of ever smaller ones along each."""

    def make(parent: Trial | None, shares: tuple[float, float, float], **options: Any) -> Trial:
        key = None if parent is None else parent.key
        named = {"side": space.side, **options}
        return Trial(*shares, epochs=asked.epochs[0], seed=asked.seed, parent=key, options=named)

    whole = make(None, (1.0, 1.0, 1.0))
    found = [whole]
    before, gone = whole, 0
    for count in space.removed:
        before = make(before, (_depth(space, count), 1.0, 1.0), layers=count - gone)
        gone = count
        found.append(before)
    before, left = whole, 1.0
    for width in space.widths:
        before = make(before, (1.0, width, 1.0), channels=width / left)
        left = width
        found.append(before)
    before = whole
    for side in space.resolutions:
        before = make(before, (1.0, 1.0, space.resolution(side)), side=side)
        found.append(before)
    return found


def _measured(
    trials: Sequence[Trial],
    results: Mapping[str, TrialResult],
    subject: Subject,
    space: Space,
    meter: Meter,
    store: Store,
) -> tuple[list[Measured], list[TrialResult]]:
    """Return what was trained with its real shares and cost, and what failed."""
    found: list[Measured] = []
    whole = results[trials[0].key]
    if whole.status != "done":
        raise TrainingError(
            f"the whole network could not be trained: {whole.error}; mend train_and_evaluate, and search again with "
            "retry_failed=True (--retry-failed)"
        )
    for trial in trials:
        result = results[trial.key]
        if result.status != "done":
            continue
        point = _point(result, space)
        if meter.metric == "macs":
            cost = float(result.macs or 0) / float(whole.macs or 1)
        elif point.shares == (1.0, 1.0, 1.0):
            cost = 1.0
        else:
            cost = _share(meter, subject, folder_of(store.trials, trial))
        found.append(Measured(trial, result, point, cost))
    return found, [results[trial.key] for trial in trials if results[trial.key].status != "done"]


def _failures(failed: Sequence[TrialResult]) -> list[str]:
    """Return a note for each trial that failed by itself, and one for those that could not begin."""
    begun = [f"a trial failed: {result.error}" for result in failed if result.attempts]
    orphans = sum(not result.attempts for result in failed)
    return [*begun, *([f"{orphans} trials were not begun: they start from one that failed"] if orphans else [])]


def _share(meter: Meter, subject: Subject, folder: Path) -> float:
    """Return the share of the cost of a trial's network; what was measured once stays so."""

    def measure() -> float:
        return meter.share(load_network(subject, folder).traced)

    return decision.measured_once(folder, meter.measuring, measure) if isinstance(meter, Milliseconds) else measure()


def _reached(space: Space, measured: Sequence[Measured]) -> Space:
    """Return the part of a space that has accuracies: beyond it a polynomial says nothing."""
    done = {(each.trial.depth, each.trial.width, each.trial.resolution) for each in measured}
    return dataclasses.replace(
        space,
        removed=tuple(count for count in space.removed if (_depth(space, count), 1.0, 1.0) in done),
        widths=tuple(width for width in space.widths if (1.0, width, 1.0) in done),
        resolutions=tuple(side for side in space.resolutions if (1.0, 1.0, space.resolution(side)) in done),
    )


def _depth(space: Space, count: int) -> float:
    """Return the depth that a trial with so many layers less is named by."""
    return 1 - count / space.layers


def _point(result: TrialResult, space: Space) -> Point:
    depth = float(result.figures["depth"]) / space.depth
    side = None if result.resolution is None else round(result.resolution)
    return Point(depth, float(result.figures["width"]), space.resolution(side), float(result.accuracy or 0.0))


def _quiet(_: str, __: Sequence[Trial]) -> None:
    """Tell nobody."""


def _train(
    wanted: Mapping[str, Built | str], run: _Runner, asked: Request, say: Callable[[str, Sequence[Trial]], None]
) -> dict[str, Built | str]:
    """Train the networks from the dense weights, each for the longer time."""
    trials = {
        name: Trial(
            *built.point.shares,
            epochs=asked.epochs[1],
            seed=asked.seed,
            options={"side": built.network.side, "plans": described(built.network.steps)},
        )
        for name, built in wanted.items()
        if isinstance(built, Built)
    }
    different = list({trial.key: trial for trial in trials.values()}.values())
    say("train what meets the budget", different)
    results = run(different)
    found: dict[str, Built | str] = dict(wanted)
    for name, trial in trials.items():
        built, result = wanted[name], results[trial.key]
        assert isinstance(built, Built)
        reached = dataclasses.replace(built.point, accuracy=math.nan if result.accuracy is None else result.accuracy)
        found[name] = dataclasses.replace(built, trial=trial, result=result, point=reached)
    return found


def _side(subject: Subject, asked: Request) -> int | None:
    try:
        return subject.side
    except InputError:
        if "resolution" in asked.dimensions and len(asked.dimensions) == 1:
            raise
        return None


def _described(train: TrainAndEvaluate) -> dict[str, Any]:
    """Return what a training says that its accuracies follow from; a plain function says nothing."""
    describe = getattr(train, "describe", None)
    return dict(describe()) if callable(describe) else {}


def _identity(dense: Network) -> str:
    """Return a digest of the dense model: its structure and its weights."""
    module = dense.traced.module
    digest = hashlib.sha256(dense.traced.fingerprint().encode())
    for node in module.graph.find_nodes(op="call_module"):  # strides, dropout and the like are the modules' own
        digest.update(repr(module.get_submodule(str(node.target))).encode())
    for leaf in pytree.tree_leaves((dense.traced.args, dense.traced.kwargs)):
        described = (tuple(leaf.shape), str(leaf.dtype)) if isinstance(leaf, Tensor) else leaf
        digest.update(repr(described).encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
