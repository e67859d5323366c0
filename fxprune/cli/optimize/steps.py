"""The steps of ``optimize``, one after the other: passes, the cut by a plan, trainings."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxprune.cli.loading import round_to
from fxprune.cli.optimize.going_on import keep_plan, kept_plan
from fxprune.cli.recipes.flow import deployment, first_pruning, measures_layers
from fxprune.cli.recipes.options import CALIBRATE, FROM_DATA, LAYERS, PRUNE, TRAIN, Options, PassChoice
from fxprune.cli.shared.console import Stages, err, say
from fxprune.cli.shared.training import TRAINING
from fxprune.errors import InputError

if TYPE_CHECKING:
    from fxprune.capture import Traced
    from fxprune.channels import Groups
    from fxprune.planning import Plan
    from fxprune.surgery import Verification
    from fxprune.training import Splits


@dataclass(frozen=True)
class Cut:
    """What was cut, and how it was checked.

    Attributes:
        before: The model in front of the cut.
        after: The model behind it.
        groups: The coupled channels of the former.
        plan: What was removed.
        trials: For a budget of latency, (share asked for, ratio measured) of every plan tried.
        check: The comparison with the masked reference.
    """

    before: Traced
    after: Traced
    groups: Groups
    plan: Plan
    trials: list[list[float]]
    check: Verification


@dataclass
class Run:
    """What the steps have in common, and what they made so far.

    Attributes:
        options: Of the command.
        budget: What the plan is to keep; empty where a training makes the plan, or there is none.
        stages: Where progress is shown.
        splits: The data, if there are any.
        traced: The model as it is now.
        dense: The model in front of the first step that takes something from it.
        stored: The model in front of the last passes, which only prepare it for its runtime: its weights are kept.
        cut: What was cut, once it was.
        pending: The plan of the training that ran last.
        passes: Reports of the passes that ran.
        trainings: Reports of the trainings.
    """

    options: Options
    budget: dict[str, Any]
    stages: Stages
    splits: Splits | None
    traced: Traced
    dense: Traced
    stored: Traced
    cut: Cut | None = None
    pending: Plan | None = None
    passes: list[dict[str, Any]] = field(default_factory=list)
    trainings: list[dict[str, Any]] = field(default_factory=list)

    @property
    def training_folder(self) -> Path:
        """Where trainings keep their checkpoints."""
        return self.options.out / TRAINING


def run_steps(run: Run) -> None:
    """Run all steps; passes that follow each other run together."""
    steps = run.options.passes
    dense_at, stored_at = first_pruning(steps), deployment(steps)
    number = 0
    for alone, members in itertools.groupby(enumerate(steps), lambda item: _group(item, dense_at, stored_at)):
        choices = [choice for _, choice in members]
        if number == dense_at:
            run.dense = run.traced
        if number == stored_at:
            run.stored = run.traced
        if alone[1] == PRUNE:
            _cut(run, number)
        elif alone[1] == TRAIN:
            from fxprune.cli.optimize.training import train

            train(run, number, choices[0])
        else:
            _run_passes(run, choices)
        number += len(choices)
    if number == dense_at:
        run.dense = run.traced
    if number == stored_at:
        run.stored = run.traced


def _group(item: tuple[int, PassChoice], dense_at: int, stored_at: int) -> tuple[int, str]:
    """Return what is the same for passes that run together: they end where the model is looked at."""
    number, choice = item
    if choice.name in (PRUNE, TRAIN):
        return number, choice.name
    return -1 - (number >= dense_at) - (number >= stored_at), "passes"


def _run_passes(run: Run, choices: list[PassChoice]) -> None:
    from fxprune.pipeline import Pipeline

    with run.stages.step("passes", f"run {', '.join(choice.name for choice in choices)}"):
        result = Pipeline([_made(run, choice) for choice in choices])(run.traced)
    run.traced = result.traced
    run.passes += [report.to_dict() for report in result.report]


def _made(run: Run, choice: PassChoice) -> Any:
    from fxprune.passes import PASSES, CalibrateBatchNorm

    if choice.name == LAYERS:
        return _layers(run, choice)
    if choice.name != CALIBRATE:
        return PASSES[choice.name](**choice.options)
    batches = _batches(run, CALIBRATE, choice.options.get("batch", 64))
    return CalibrateBatchNorm(batches, choice.options.get("max_batches"))


def _layers(run: Run, choice: PassChoice) -> Any:
    """Return remove-layers with the batches that it chooses by, if it does."""
    from fxprune.passes import RemoveLayers

    options = {key: value for key, value in choice.options.items() if key not in FROM_DATA}
    batches = None
    if measures_layers(choice):
        loader = _batches(run, LAYERS, choice.options.get("batch", 64))
        batches = list(itertools.islice(loader, choice.options.get("max_batches", 8)))
    return RemoveLayers(**{"seed": run.options.seed, **options}, batches=batches)


def _batches(run: Run, name: str, batch: int) -> Any:
    """Return training images in an order that mixes classes, always the same; a smaller last batch is left out."""
    import torch
    from torch.utils.data import DataLoader

    from fxprune.training.data import labels_of

    assert run.splits is not None  # the recipe was refused without data
    count = len(labels_of(run.splits.train))
    if count < batch:
        raise InputError(f"{name}: batch is {batch}, and there are {count} training images; give a smaller batch")
    generator = torch.Generator().manual_seed(run.options.seed)
    workers = run.options.workers
    return DataLoader(run.splits.train, batch, shuffle=True, drop_last=True, generator=generator, num_workers=workers)


def _cut(run: Run, number: int) -> None:
    """Plan, where no training has, then remove channels and compare with the masked reference."""
    from fxprune.channels import find_groups
    from fxprune.surgery import cut, verify_cut

    stages, before = run.stages, run.traced
    with stages.step("analysis", "find coupled channels"):
        groups = find_groups(before)
    with stages.step("plan", "plan under the budget" if run.pending is None else "take the plan of the training"):
        plan, trials = (run.pending, []) if run.pending is not None else _plan(run, number, groups)
        plan.check(before)
    with stages.step("surgery", "remove channels"):
        after = cut(before, plan, groups)
    with stages.step("verify", "compare with the masked reference in float64"):
        # biases that took up a constant are compared before they are rounded
        exact = cut(before, plan, groups, exact=True) if plan.compensate else after
        check = verify_cut(before, exact, plan, groups)
        if not any(step.name == TRAIN for step in run.options.passes[number:]):  # which can bring dead channels back
            check.require_live()
    run.cut = Cut(before, after, groups, plan, trials, check)
    run.traced, run.pending = after, None


def _plan(run: Run, number: int, groups: Groups) -> tuple[Plan, list[list[float]]]:
    """Return the plan, and for a budget of latency the (share asked for, ratio measured) of every plan tried."""
    from fxprune.deploy.latency_budget import plan_for_latency
    from fxprune.planning import make_plan

    options, dense = run.options, run.traced
    how: dict[str, Any] = {
        "importance": options.importance,
        "allocation": options.allocation,
        "round_to": round_to(options.round_to),
        "protect": options.protect,
        "compensate": options.compensate,
        "seed": options.seed,
    }
    if options.latency is None:
        return make_plan(dense, **run.budget, **how, step=width_step(options), groups=groups), []
    later = any(step.name == TRAIN for step in options.passes[number:])
    if later and options.resume and (kept := kept_plan(run.training_folder, options, number)):
        return kept
    found = plan_for_latency(
        dense, options.latency, runtime=options.runtime, threads=options.threads, seconds=options.seconds,
        groups=groups, progress=lambda line: say(f"          {line}", err), **how,
    )  # fmt: skip
    trials = [list(trial) for trial in found.trials]
    if later:
        keep_plan(run.training_folder, options, number, found.plan, trials)
    return found.plan, trials


def width_step(options: Options) -> int:
    """Return the step of widths that was measured on this machine and runtime, or else what its processor suggests."""
    from fxprune.deploy.probe import known_step
    from fxprune.planning.budget import native_step

    return known_step(options.runtime, options.threads) or native_step()
