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
PRUNE = "prune-channels"


@dataclass(frozen=True)
class PassChoice:
    """A pass of :data:`fxprune.passes.PASSES` and its options."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


DEFAULT_PASSES = (PassChoice(PRUNE), PassChoice("remove-identity"), PassChoice("fuse-batchnorm"))


@dataclass(frozen=True)
class Options:
    """The options of the command.

    Attributes:
        passes: In order; ``prune-channels`` is one of them, and carries out the plan.
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

    def before_and_after(self) -> tuple[tuple[PassChoice, ...], tuple[PassChoice, ...]]:
        """Return the passes before the cut and those after it."""
        at = [choice.name for choice in self.passes].index(PRUNE)
        return self.passes[:at], self.passes[at + 1 :]


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
