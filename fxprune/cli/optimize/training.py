"""A training among the steps of ``optimize``."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fxprune.cli.optimize.going_on import check_the_same
from fxprune.cli.recipes.flow import expanded
from fxprune.cli.recipes.options import TRAIN, PassChoice
from fxprune.cli.recipes.training import CPU, KEEP, METHODS, method_class, method_options, methods_of, training_recipe
from fxprune.cli.shared.console import err, say
from fxprune.cli.shared.training import OBJECTIVES, TEACHER, say_epoch
from fxprune.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from fxprune.capture import Traced
    from fxprune.cli.optimize.steps import Run
    from fxprune.cli.recipes.options import Options
    from fxprune.training import Finetuned, Recipe, Splits


def check_one_process() -> None:
    """Refuse a launch of several processes, which would all write the same files."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            "optimize trains in one process; for several, run fxprune finetune on the plan that optimize wrote"
        )


def load_splits(options: Options) -> Splits | None:
    """Return the data of a recipe, if it names any."""
    from fxprune.cli.loading import parse_arguments
    from fxprune.training import load_data

    if options.data is None:
        return None
    return load_data(
        options.data, fraction=options.fraction, size=options.image_size, channels=options.image_channels,
        augment=options.augment, arguments=parse_arguments(list(options.data_args)),
    )  # fmt: skip


def check_lengths(options: Options, splits: Splits) -> None:
    """Refuse trainings that end before the schedule of a method does, before the first step of the run.

    A model of many layers may need more steps of some schedules, which its training tells when it begins.

    Raises:
        InputError: One is too short; names the step.
    """
    for number, choice in enumerate(options.passes):
        if choice.name != TRAIN:
            continue
        recipe = training_recipe(choice.options, options.seed)
        batches = -(-len(splits.train) // recipe.batch)  # type: ignore[arg-type]
        steps = recipe.epochs * -(-batches // recipe.accumulate)
        for name in methods_of(choice.options):
            check = getattr(method_class(name), "check_length", None)
            try:
                if check is not None:
                    check(steps, **method_options(name, choice.options[name]))
            except InputError as error:
                raise InputError(f"step {number + 1}: train ({name}): {error}") from error


def accuracy_of(traced: Traced, splits: Splits) -> float:
    """Return the accuracy on the test set."""
    from fxprune.training import evaluate

    return evaluate(traced.module, splits.test)["accuracy"]


def train(run: Run, number: int, choice: PassChoice) -> None:
    """Train the model of a run as a step says, and take over what the training gives.

    Raises:
        InputError: The step does not fit the model or the data, or a checkpoint is of another training.
        TrainingError: The training failed.
    """
    assert run.splits is not None  # the recipe was refused without data
    recipe, methods = training_recipe(choice.options, run.options.seed), methods_of(choice.options)
    name = f"{len(run.trainings) + 1}-{'+'.join(methods) or 'plain'}"
    folder, before = run.training_folder / name, run.traced
    check_the_same(folder, run.options, number, run.cut.plan if run.cut else None)
    start = time.perf_counter()
    says = f"step {number + 1}: train{f' ({title_of(methods)})' if methods else ''}"
    say(f"          {says}, {recipe.epochs} epochs", err)
    trained = _trained(run, number, choice, recipe, folder)
    assert trained.traced is not None  # a capture was given
    run.traced = trained.traced
    _take_over(run, methods, trained)
    spent = time.perf_counter() - start
    run.stages.seconds["train"] = run.stages.seconds.get("train", 0.0) + spent
    say(f"{spent:6.1f} s  {says}", err)
    run.trainings.append({
        "step": number + 1,
        "name": name,
        "methods": {each: dict(choice.options[each]) for each in methods},
        "recipe": recipe.describe(),
        "steps": trained.history[-1]["step"],
        "best": trained.best,
        "gives": "plan" if run.pending is not None else "weights",
        "accuracy": {"before": accuracy_of(before, run.splits), "after": accuracy_of(run.traced, run.splits)},
    })  # fmt: skip


def title_of(methods: list[str]) -> str:
    """Return methods in one phrase."""
    return " + ".join(methods)


def _trained(run: Run, number: int, choice: PassChoice, recipe: Recipe, folder: Any) -> Finetuned:
    from torch.utils.data import DataLoader

    from fxprune.training import finetune

    assert run.splits is not None
    workers, methods = run.options.workers, set(methods_of(choice.options))
    whose = TEACHER if methods <= {"distillation", KEEP} else OBJECTIVES

    def loader(images: Any, shuffle: bool) -> DataLoader[Any]:
        return DataLoader(images, batch_size=recipe.batch, shuffle=shuffle, num_workers=workers)

    return finetune(
        run.traced, loader(run.splits.train, True), loader(run.splits.validation, False), recipe,
        objectives=[_maker(run, number, name, choice.options[name]) for name in methods_of(choice.options)],
        out=folder, resume=run.options.resume, on_epoch=lambda row: say_epoch(row, recipe.epochs, whose),
        cpu=bool(choice.options.get(CPU, False)),
    )  # fmt: skip


def _maker(run: Run, number: int, name: str, given: dict[str, Any]) -> Callable[[nn.Module], Any]:
    """Return what makes the objective of a method from the copy that is trained."""
    cls, options, traced = method_class(name), method_options(name, given), run.traced
    if name == "distillation":
        usual = "blocks" if expanded(run.options.passes, number) else "last"
        teacher = copy.deepcopy(run.dense.module)  # it shares no weights with the student
        return lambda student: cls(student, teacher, **{"layers": usual, **options})

    def begin(module: nn.Module) -> Any:
        from torch import fx

        assert isinstance(module, fx.GraphModule)  # a copy of the capture's
        return cls.begin(traced.with_module(module), **options)

    return begin


def _take_over(run: Run, methods: list[str], trained: Finetuned) -> None:
    """Keep the plan of a training for the cut behind it. A model that a method gives is the one that was trained."""
    for name, found in zip(methods, trained.finished, strict=True):
        if METHODS[name].gives == "plan":
            run.pending = found
