"""What ``optimize`` was asked for, wherever it was asked: on the command line or in a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fxprune.errors import InputError

NOWHERE = Path()
"""In place of an output folder: nothing is run."""

BUDGETS = ("macs", "params", "channels", "latency")
PLAN = (*BUDGETS, "importance", "allocation", "round_to", "protect", "compensate")
"""Fields of :class:`Options` that say how a plan is made."""
PRUNE = "prune-channels"
TRAIN = "train"
"""Name of the one step that is no pass: a training."""
CALIBRATE = "calibrate-batchnorm"
LAYERS = "remove-layers"
WEIGHTS = "prune-weights"
FROM_DATA = ("batch", "max_batches")
"""Options, of passes that measure on data, of a recipe alone: how many images in a batch, and how many batches."""


@dataclass(frozen=True)
class PassChoice:
    """A pass of :data:`fxprune.passes.PASSES` and its options; or a training (:mod:`fxprune.cli.recipes.training`)."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


DEFAULT_PASSES = (PassChoice(PRUNE), PassChoice("remove-identity"), PassChoice("fuse-batchnorm"))


@dataclass(frozen=True)
class Options:
    """The options of the command.

    Attributes:
        passes: In order. ``prune-channels`` carries out a plan: that of the training right before it, or the one that
            the budget asks for.
        data: What trainings learn from, as ``fxprune finetune --data`` takes it; with its arguments in the next six.
        resume: Whether trainings go on from their checkpoints in the output folder.
    """

    model: str
    out: Path
    inputs: tuple[str, ...] = ()
    model_args: tuple[str, ...] = ()
    weights: Path | None = None
    macs: float | None = None
    params: float | None = None
    channels: float | None = None
    latency: float | None = None
    importance: str = "l2"
    allocation: str | None = None
    round_to: str = "auto"
    protect: tuple[str, ...] = ()
    threads: int = 1
    runtime: str = "onnxruntime-cpu"
    compensate: str | None = None
    measure: bool = True
    onnx: bool = True
    seconds: float = 10.0
    seed: int = 0
    passes: tuple[PassChoice, ...] = DEFAULT_PASSES
    data: str | None = None
    data_args: tuple[str, ...] = ()
    image_size: int | None = None
    image_channels: int | None = None
    fraction: float = 1.0
    augment: bool = False
    workers: int = 0
    resume: bool = True

    @property
    def trains(self) -> bool:
        """Whether any of the steps is a training."""
        return any(choice.name == TRAIN for choice in self.passes)


_FIELDS = {"input": "inputs", "model_arg": "model_args"}
"""Option of the command line -> field, where the names differ."""


def merge(recipe: Mapping[str, Any], given: Mapping[str, Any]) -> Options:
    """Return the options of a recipe (its fields), and those given on the command line in their place.

    A budget on the command line replaces that of the recipe.

    Raises:
        InputError: Neither names a model.
    """
    fields = dict(recipe)
    if any(name in given for name in BUDGETS):
        fields = {name: value for name, value in fields.items() if name not in BUDGETS}
    for name, value in given.items():
        fields |= {"measure": not value} if name == "no_latency" else {_FIELDS.get(name, name): value}
    if not fields.get("model"):
        raise InputError(
            "name the model, as in fxprune optimize torchvision.models:resnet18 --macs 0.5 --out out, or in a recipe "
            "([model] spec)"
        )
    return Options(**{"out": NOWHERE, **fields})
