"""How a fine-tuning goes, as plain data that is checked at once and kept beside its checkpoints."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from fxprune.errors import InputError
from fxprune.linear.basis import basis_scales
from fxprune.training.schedules import Shape, default_warmup, factor, shape_named
from fxprune.training.spheres import sphere_weights


@dataclass(frozen=True)
class Recipe:
    """The choices of a fine-tuning.

    Attributes:
        epochs: Times that the training data are gone through.
        batch: Samples per process and forward pass, where a dataset is given and not a loader.
        accumulate: Forward passes per step of the optimiser.
        optimizer: ``"sgd"`` (Nesterov where there is momentum) or ``"adamw"``.
        lr: The highest learning rate.
        momentum: Of SGD.
        weight_decay: On the parameters that ``decay`` names.
        decay: ``"all"``, or ``"weights"``: parameters of two or more dimensions, and so no biases and no norms. Neither
            means the scales of decomposed layers, whose size is what tells how much a basis vector matters, nor the
            weights of hyperspherical layers, whose size means nothing.
        schedule: ``constant``, ``cosine``, ``linear``, ``step``, ``slr``, an :class:`~fxprune.training.schedules.ALLR`,
            or a function from progress in [0, 1] to a factor of ``lr``.
        warmup: Share of the steps in which the rate rises; None: 0.1 for SLR and ALLR, else 0.
        label_smoothing: Of the cross-entropy, in [0, 1).
        clip: Largest norm of all gradients together; None for none.
        ema: Decay per step of a running mean of the weights, which is then what is evaluated and returned; 0 for none.
            It starts lower, ``(1 + n) / (10 + n)`` at step n.
        precision: ``"no"``, ``"bf16"`` or ``"fp16"``; None: what ``accelerate launch`` was told, else ``"no"``.
        patience: Epochs without a better validation result until training stops; 0: never.
        seed: Of everything random.
        save_every: Steps between checkpoints, besides the one after each epoch; 0 for that one alone.

    Raises:
        InputError: A value is out of range.
    """

    epochs: int = 10
    batch: int = 64
    accumulate: int = 1
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    decay: Literal["all", "weights"] = "all"
    schedule: str | Shape = "cosine"
    warmup: float | None = None
    label_smoothing: float = 0.0
    clip: float | None = None
    ema: float = 0.0
    precision: Literal["no", "bf16", "fp16"] | None = None
    patience: int = 0
    seed: int = 0
    save_every: int = 500

    def __post_init__(self) -> None:
        for name, least in {
            "epochs": 1,
            "batch": 1,
            "accumulate": 1,
            "patience": 0,
            "seed": 0,
            "save_every": 0,
        }.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise InputError(f"{name} is {value!r}; give a whole number of {least} or above")
        for name, low, high in (
            ("lr", 0.0, math.inf), ("momentum", 0.0, 1.0), ("weight_decay", 0.0, math.inf), ("ema", 0.0, 1.0),
            ("label_smoothing", 0.0, 1.0), ("warmup", 0.0, 1.0), ("clip", 0.0, math.inf),
        ):  # fmt: skip
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            inside = (value is None and name in ("warmup", "clip")) or (number and low <= value < high)
            if not inside or (value == 0 and name in ("lr", "clip")):
                raise InputError(f"{name} is {value!r}; give a number from {low:g} to below {high:g}")
        for name, known in (
            ("optimizer", ("sgd", "adamw")), ("decay", ("all", "weights")), ("precision", (None, "no", "bf16", "fp16")),
        ):  # fmt: skip
            if getattr(self, name) not in known:
                choices = ", ".join(str(choice) for choice in known if choice)
                raise InputError(f"{name} is {getattr(self, name)!r}; give one of {choices}")
        shape_named(self.schedule)

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of a step, counted from 0, of so many."""
        warmup = default_warmup(self.schedule) if self.warmup is None else self.warmup
        return self.lr * factor(shape_named(self.schedule), step, steps, warmup)

    def make_optimizer(self, model: nn.Module, extra: Iterable[nn.Parameter] = ()) -> torch.optim.Optimizer:
        """Return the optimiser of a model's parameters, and of those of its objectives.

        Raises:
            InputError: There is nothing to train.
        """
        parameters = [parameter for parameter in (*model.parameters(), *extra) if parameter.requires_grad]
        if not parameters:
            raise InputError("the model has no parameters that can be trained; set requires_grad on some")
        free = {id(weight) for weight in (*basis_scales(model), *sphere_weights(model))}
        decayed = [
            parameter
            for parameter in parameters
            if id(parameter) not in free and (self.decay == "all" or parameter.ndim >= 2)
        ]
        known = {id(parameter) for parameter in decayed}
        spared = [parameter for parameter in parameters if id(parameter) not in known]
        groups: list[dict[str, Any]] = [
            {"params": members, "weight_decay": decay}
            for members, decay in ((decayed, self.weight_decay), (spared, 0.0))
            if members
        ]
        if self.optimizer == "adamw":
            return torch.optim.AdamW(groups, lr=self.lr)
        return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=self.momentum > 0)

    def describe(self) -> dict[str, Any]:
        """Return all choices as plain data that tell two recipes apart; how often to save is no part of it."""
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self) if item.name != "save_every"}
        if not isinstance(self.schedule, str):
            named = dataclasses.is_dataclass(self.schedule)
            values["schedule"] = repr(self.schedule) if named else getattr(self.schedule, "__qualname__", "a function")
        return values
