"""Fine-tuning on Hugging Face accelerate: a loop that can be killed at any step and goes on as if nothing had been.

One process by default, several by ``accelerate launch``. All that a step depends on follows from the recipe, the number
of the step and the checkpoint, so that on the CPU a resumed training gives the same weights, bit for bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import fx, nn

from fxprune.capture import Traced
from fxprune.capture.regions import require_whole
from fxprune.training.evaluate import Loss, Task
from fxprune.training.history import Row
from fxprune.training.processes import progress_bar
from fxprune.training.randomness import capture_states, restore_states
from fxprune.training.recipe import Recipe
from fxprune.training.trainer import MakeObjective, Training


@dataclass(frozen=True)
class Finetuned:
    """A trained model, and how it came about.

    Attributes:
        module: The trained copy, on the device and in the mode of the model that was given.
        traced: The capture around it, where a capture was given.
        history: One row per epoch: ``epoch``, ``step``, ``lr``, ``train_loss``, ``train_accuracy``,
            ``extra_loss``, ``validation_loss``, ``validation_accuracy``, ``seconds``.
        best: The row of the epoch whose weights these are; without validation data, the last one.
        is_main: Whether this process is the one that writes files.
        finished: What each objective's ``finish`` returned, such as a plan.
    """

    module: nn.Module
    traced: Traced | None
    history: tuple[Row, ...]
    best: Row
    is_main: bool
    finished: tuple[Any, ...] = ()


def finetune(  # noqa: PLR0913 - each is one part of a training
    model: Traced | nn.Module,
    train: Any,
    validation: Any = None,
    recipe: Recipe | None = None,
    *,
    objectives: Sequence[MakeObjective] = (),
    loss: Loss | None = None,
    out: str | Path | None = None,
    resume: bool = True,
    on_epoch: Callable[[Row], None] | None = None,
    cpu: bool = False,
) -> Finetuned:
    """Train a copy of a model; what is given stays as it is.

    With ``out``, the folder holds ``checkpoint.safetensors`` (all that is needed to go on), ``metrics.jsonl``,
    ``curves.png``, and at the end ``model.safetensors``, the weights that are returned. All are replaced in one step.
    The same call goes on from the checkpoint, also in the middle of an epoch; when training was over, it returns at
    once.

    With validation data the weights of the best epoch are returned: of the highest accuracy, or lowest loss for a loss
    of your own. An objective that works by a schedule asks for those of the last one (``Objective.keeps_last``).

    Several processes (``accelerate launch --num_processes P``) with batches of b samples take the steps of one process
    with batches of P b; batch norms take their statistics over all of them. Only dropout, and objectives that compare
    the samples of a batch, see the difference.

    Args:
        model: A capture, or any module.
        train: A loader or dataset of pairs (inputs, target); see :func:`fxprune.training.evaluate.split_batch`. The
            loader's sampler, collate function and workers are used.
        validation: The same, for choosing the epoch and for stopping early.
        recipe: How to train.
        objectives: Functions that make an objective from the model that is trained, for example
            ``lambda student: Distillation(student, teacher)``.
        loss: From output and target to the mean loss; default cross-entropy of logits.
        out: Folder for checkpoints and metrics.
        resume: Whether to go on from the folder's checkpoint; False starts again, and replaces it.
        on_epoch: Called in the main process with each row of the history.
        cpu: Train on the CPU also where there is a GPU.

    Raises:
        InputError: Data, recipe or checkpoint cannot be used, or a file cannot be written.
        TrainingError: The loss, the gradients or the weights are no numbers any more; the last checkpoint stays.
        EnvironmentProblem: accelerate is not installed.
    """
    if isinstance(model, Traced):
        require_whole(model, "Fine-tuning", "apply the result to the model (result.apply_to(model)), and train that")
    recipe = Recipe() if recipe is None else recipe
    before = capture_states()
    try:
        with contextlib.ExitStack() as stack:
            source = model.module if isinstance(model, Traced) else model
            training = Training(source, recipe, Task(loss, recipe.label_smoothing), cpu)
            training.take_data(train, validation)
            training.take_objectives(objectives, stack)
            training.take_folder(None if out is None else Path(out), resume)
            with progress_bar(training.accelerator) as show:
                training.run(show, on_epoch)
            module = training.finish()
            traced = None
            if isinstance(model, Traced):
                assert isinstance(module, fx.GraphModule)  # a copy of the capture's
                traced = model.with_module(module)
            history, main = training.progress.history, training.accelerator.is_main_process
            return Finetuned(module, traced, tuple(history), history[training.progress.best], main, training.finished)
    finally:
        restore_states(before)
