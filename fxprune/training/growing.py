"""Pruning while training: a penalty that grows on the filters that will go; and removing them at once, to compare with.

The schedule is that of trainability-preserving pruning (2207.12534, section 5.4 of its published code [READ S1]), which
has it from growing regularisation (GReg-1).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fxprune.capture import Traced
from fxprune.channels import find_groups
from fxprune.errors import InputError, TrainingError
from fxprune.planning import Plan
from fxprune.planning.cost_model import build_cost_model
from fxprune.training.filters import Ratios, Selection, rebuild, removal_error, select_filters, silence
from fxprune.training.objectives import Objective, check_same_options

_EXACT = 1e-9


@dataclass(frozen=True)
class Growth:
    """How a penalty grows, counted in steps of the optimiser from 0.

    First the strength is ``step * (n // interval)`` until it reaches ``ceiling``. Then it stays for ``stabilize``
    steps, in which layer number l, counted from 0 over all convolutions and linear layers in the order of the graph, is
    set to zero after every step from the ``(l + 1) * zero_every``-th on.

    Attributes:
        interval: Steps between two rises.
        step: By how much it rises.
        ceiling: Where it ends.
        stabilize: Steps for which it stays there.
        zero_every: Steps between one layer's being set to zero and the next one's.
    """

    interval: int = 10
    step: float = 1e-4
    ceiling: float = 1.0
    stabilize: int = 10_000
    zero_every: int = 100

    def __post_init__(self) -> None:
        whole = (self.interval, self.stabilize, self.zero_every)
        if any(isinstance(value, bool) or not isinstance(value, int) or value < 1 for value in whole) or not (
            0 < self.step <= self.ceiling < math.inf
        ):
            raise InputError(
                f"{self} makes no sense: interval, stabilize and zero_every are whole numbers of at least 1, and step "
                "is above 0 and at most the ceiling"
            )

    @property
    def rises(self) -> int:
        """Steps until the ceiling is reached."""
        return self.interval * math.ceil(self.ceiling / self.step - 1e-9)

    @property
    def steps(self) -> int:
        """Steps of the whole schedule."""
        return self.rises + self.stabilize

    def strength(self, iteration: int) -> float:
        """Return the strength in a step, counted from 0."""
        return min(self.ceiling, self.step * (iteration // self.interval))

    def zeroes(self, iteration: int, layer: int) -> bool:
        """Return whether a layer is set to zero after this step."""
        return iteration - self.rises >= (layer + 1) * self.zero_every


SCHEDULES: dict[str, Growth] = {
    "published": Growth(),  # CIFAR [READ S1]; for SGD with momentum 0.9 at a constant rate of 1e-3
    "imagenet": Growth(interval=5, stabilize=40_000),  # [READ S1]
    # [DER] At that rate weights decay by exp(-0.005 T) over T steps of growth: by e^-12.5 here.
    "short": Growth(interval=1, step=4e-4, stabilize=1000, zero_every=20),
}

Schedule = Literal["published", "imagenet", "short"] | Growth


class PlainL1(Objective):
    """The filters of the smallest mean absolute weight of each layer, removed as they are: the plain baseline.

    It adds nothing to a training. The filters are chosen when it begins, and :meth:`finish` returns the plan.

    Args:
        traced: The capture around the module that is trained.
        ratios: The share of filters to remove: a number for all layers but the first, or glob patterns over the paths
            of layers, of which the first that matches counts; layers without one keep all.
        residual: Whether to remove units that several layers make, such as the channels of a residual sum. They are
            chosen by the first of these layers.

    Raises:
        InputError: A ratio is out of range, a pattern matches no layer, or nothing can be removed.
    """

    name: ClassVar[str] = "l1"

    def __init__(self, traced: Traced, ratios: Ratios, *, residual: bool = False) -> None:
        self.traced, self.groups = traced, find_groups(traced)
        self.options: dict[str, Any] = {"ratios": dict(ratios) if isinstance(ratios, Mapping) else ratios}
        self.options["residual"] = residual
        self.selection: Selection = select_filters(traced, self.groups, ratios, residual=residual)

    def plan(self) -> Plan:
        """Return the plan that removes the chosen filters, whatever they hold now."""
        classes = list(self.selection.classes)
        gone = np.zeros(self.groups.size, bool)
        gone[classes] = True
        costs = build_cost_model(self.traced, self.groups, np.flatnonzero(self.groups.live))
        return Plan(
            removed=self.groups.removal(classes),
            fingerprint=self.traced.fingerprint(),
            model=self.traced.name,
            importance=self.name,
            before=costs.cost(costs.full),
            after=costs.cost(costs.sizes(gone)),
            notes=self.selection.notes,
        )

    def finish(self) -> Plan:
        """Return the plan."""
        return self.plan()

    def state_dict(self) -> dict[str, Any]:
        """Return what was chosen, and by which options."""
        return {"options": self.options, "classes": list(self.selection.classes)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what was chosen when the training began.

        Raises:
            InputError: It was chosen by other options.
        """
        check_same_options(self.options, state["options"])
        if state["classes"] != list(self.selection.classes):  # begun on weights that were trained already
            self.selection = rebuild(self.traced, self.groups, state["classes"], self.selection.notes)


class GrowingL2(PlainL1):
    """A growing L2 penalty on the filters that will go, much as in GReg-1 (2012.09243 [MEM], from S1's code).

    The strength times the weight is added to the *gradient* of these filters and their biases, so that neither the
    optimiser's own weight decay nor clipping of the loss mixes with it. In the second part of the schedule the filters
    are set to zero, layer by layer, with the scales and shifts of the norms behind them. :meth:`finish` then proves, in
    float64, that outputs do not move when they are removed, and returns the plan.

    Norms belong to a filter by the users of its layer in the graph, up to the next layer, and by channel, not by the
    order of modules. A layer behind which outputs would move all the same keeps its filters, which ``Plan.notes`` says.

    In ``finetune``, whose copy of the model is what it needs::

        finetune(traced, train, recipe=Recipe(lr=1e-3, schedule="constant", epochs=...),
                 objectives=[lambda model: GrowingL2.begin(traced.with_module(model), 0.9, schedule="short")])

    Args:
        traced: The capture around the module that is trained.
        ratios: As for :class:`PlainL1`.
        schedule: ``"published"`` (110,000 steps), ``"imagenet"`` (90,000), ``"short"`` (3,500, or as many more as the
            layers need), or a :class:`Growth`. All are meant for SGD with momentum 0.9 at a constant rate of 1e-3.
        residual: As for :class:`PlainL1`.
        batchnorm: Whether the penalty is on scales and shifts of the norms too. Without it filters are set to zero
            although their norms have kept their outputs large.

    Raises:
        InputError: As for :class:`PlainL1`; or the schedule is too short for so many layers, or a weight that is to
            shrink is not trained.
    """

    name = "growing-l2"
    keeps_last = True

    def __init__(
        self,
        traced: Traced,
        ratios: Ratios,
        *,
        schedule: Schedule = "published",
        residual: bool = False,
        batchnorm: bool = False,
    ) -> None:
        super().__init__(traced, ratios, residual=residual)
        self.growth = _fitted(schedule, self.selection)
        self.batchnorm, self.iteration = batchnorm, 0
        self.options |= {"schedule": dataclasses.asdict(self.growth), "batchnorm": batchnorm}
        self._check_trained()

    @property
    def steps(self) -> int:
        """Steps of the optimiser that the schedule takes."""
        return self.growth.steps

    @property
    def done(self) -> bool:
        """Whether the schedule is at its end. Training may go on: what is zero stays zero."""
        return self.iteration >= self.steps

    @property
    def strength(self) -> float:
        """The strength of the penalty in the step that comes."""
        return self.growth.strength(self.iteration)

    @classmethod
    def check_length(cls, steps: int, schedule: Schedule = "published", **_: Any) -> None:
        """Refuse what is too short for a schedule on any model, before there is one; a model may need more steps.

        Args:
            steps: Of the training.
            schedule: As for the class, whose other options do not matter here.

        Raises:
            InputError: It ends before the schedule does.
        """
        needed = (SCHEDULES[schedule] if isinstance(schedule, str) else schedule).steps
        if steps < needed:
            raise InputError(
                f"the schedule of {cls.__name__} takes {needed} steps, and training will have {steps}: give "
                f"{needed / max(steps, 1):.3g} times as many epochs, or a shorter schedule (schedule='short', or a "
                "Growth)"
            )

    def expect(self, steps: int) -> None:
        """Refuse a training that ends before the schedule does."""
        self.check_length(steps, self.growth)

    def after_backward(self) -> None:
        """Add the penalty to the gradients."""
        module, strength = self.traced.module, self.strength
        with torch.no_grad():
            for each in self.selection.filters:
                _pull(module.get_parameter(each.weight), each.dim, each.pruned, strength)
                owner = each.weight.rpartition(".")[0]
                for name, indices in each.vectors:
                    if self.batchnorm or name.rpartition(".")[0] == owner:  # the layer's own bias
                        _pull(module.get_parameter(name), 0, indices, strength)

    def after_step(self) -> None:
        """Set to zero what is due, and count the step."""
        silence(self.traced.module, (f for f in self.selection.filters if self.growth.zeroes(self.iteration, f.index)))
        self.iteration += 1

    def finish(self) -> Plan:
        """Return the plan; to carry it out moves no output.

        Raises:
            TrainingError: The schedule is not at its end, or outputs would move.
        """
        if not self.done:
            raise TrainingError(
                f"{type(self).__name__} has done {self.iteration} of {self.steps} steps, so the filters that are to go "
                "still matter; train on, or give a shorter schedule"
            )
        silence(self.traced.module, self.selection.filters)  # a running mean of weights still holds a trace of them
        error = removal_error(self.traced, self.groups.removal(self.selection.classes))
        if not error <= _EXACT:
            raise TrainingError(
                f"outputs move by {error:.3g} when the filters are removed although they are zero; leave layers out of "
                "the ratios, and report this model"
            )
        return self.plan()

    def state_dict(self) -> dict[str, Any]:
        """Return what was chosen, by which options, and the number of steps that are done."""
        return {**super().state_dict(), "iteration": self.iteration}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        super().load_state_dict(state)
        self.iteration = int(state["iteration"])

    def _check_trained(self) -> None:
        for each in self.selection.filters:
            for name in (each.weight, *(name for name, _ in each.vectors)):
                if not self.traced.module.get_parameter(name).requires_grad:
                    raise InputError(
                        f"{name} is not trained (requires_grad is False), so that its filters cannot shrink; train it, "
                        "or give this layer no ratio"
                    )


def _fitted(schedule: Schedule, selection: Selection) -> Growth:
    """Return a schedule in which every layer is set to zero before the end."""
    if isinstance(schedule, str) and schedule not in SCHEDULES:
        raise InputError(f"there is no schedule {schedule!r}; use one of {', '.join(SCHEDULES)}, or a Growth")
    growth = SCHEDULES[schedule] if isinstance(schedule, str) else schedule
    needed = (selection.filters[-1].index + 1) * growth.zero_every + 1
    if schedule == "short":
        return dataclasses.replace(growth, stabilize=max(growth.stabilize, needed))
    if growth.stabilize < needed:
        raise InputError(
            f"the schedule keeps the strength for {growth.stabilize} steps, in which not all layers are set to zero: "
            f"{selection.filters[-1].path} is number {selection.filters[-1].index} and needs {needed}; give a Growth "
            "with a larger stabilize or a smaller zero_every"
        )
    return growth


def _pull(weight: Tensor, dim: int, indices: tuple[int, ...], strength: float) -> None:
    """Add the strength times the weight to the gradient of some indices."""
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    where = torch.tensor(indices, device=weight.device)
    weight.grad.index_add_(dim, where, weight.detach().index_select(dim, where), alpha=strength)
