"""Learning rates over a training, as factors of the highest one.

All are functions of progress, from 0 at the first step to 1 behind the last, so that they fit any budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from fxprune.errors import InputError

Shape = Callable[[float], float]


def _step(progress: float) -> float:
    return 0.1 ** ((progress >= 0.5) + (progress >= 0.75))


SHAPES: dict[str, Shape] = {
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1 - progress,
    "step": _step,  # a tenth at a half and at three quarters
}


@dataclass(frozen=True)
class SLR:
    """The whole schedule of the original training, compressed into the budget (2111.00843, "SLR") [READ S9].

    Its warm-up is replaced by the highest rate; a warm-up of the fine-tuning, 10 % by default, comes before it.

    Attributes:
        original: Name of that schedule, or a function of its progress.
    """

    original: str | Shape = "step"

    def __call__(self, progress: float) -> float:
        """Return the factor of the original schedule at the same progress."""
        return shape_named(self.original)(progress)


@dataclass(frozen=True)
class ALLR:
    """Linear decay from a peak that grows with what pruning took away (2111.00843, "ALLR") [READ S9].

    ``peak = clip(distance / sqrt(sparsity), min(1, epochs / original_epochs), 1)`` times the highest rate, then linear
    to 0, behind a warm-up of 10 % by default. That of the paper is for removed single weights; to take removed channels
    for removed weights is [DESIGN].

    Attributes:
        distance: Norm of the removed weights over the norm of all.
        sparsity: Share of the weights that was removed.
        original_epochs: Length of the training that made the dense model.
        epochs: Length of this one.
    """

    distance: float
    sparsity: float
    original_epochs: float
    epochs: float

    def __post_init__(self) -> None:
        if not (0 <= self.distance <= 1 and 0 < self.sparsity < 1 and self.original_epochs > 0 and self.epochs > 0):
            raise InputError(
                f"ALLR needs a distance in [0, 1], a sparsity in (0, 1) and epochs above 0, but has distance "
                f"{self.distance:.4g}, sparsity {self.sparsity:.4g}, {self.original_epochs:g} original epochs and "
                f"{self.epochs:g} epochs; it is meant for a model from which something was removed"
            )

    @classmethod
    def between(cls, dense: nn.Module, pruned: nn.Module, *, original_epochs: float, epochs: float) -> ALLR:
        """Measure distance and sparsity over all weights of two or more dimensions, before the pruned model is trained.

        Raises:
            InputError: The pruned model has no fewer weights than the dense one (for example, because it was expanded).
        """
        (all_squares, all_count), (squares, count) = (_size(model) for model in (dense, pruned))
        distance = math.sqrt(max(0.0, 1 - squares / all_squares)) if all_squares else 0.0
        return cls(distance, 1 - count / max(all_count, 1), original_epochs, epochs)

    @property
    def peak(self) -> float:
        """The highest factor of the rate that is reached."""
        least = min(1.0, self.epochs / self.original_epochs)
        return min(1.0, max(least, self.distance / math.sqrt(self.sparsity)))

    def __call__(self, progress: float) -> float:
        """Return the factor on the way from the peak to 0."""
        return self.peak * (1 - progress)


def shape_named(schedule: str | Shape) -> Shape:
    """Return the function that a name stands for, or the function itself.

    Raises:
        InputError: There is no schedule of that name, or it is neither name nor function.
    """
    if not isinstance(schedule, str):
        if not callable(schedule):
            raise InputError(f"schedule is {schedule!r}; give {', '.join(SHAPES)}, slr, or a function of progress")
        return schedule
    if schedule == "slr":
        return SLR()
    if schedule == "allr":
        raise InputError(
            "the schedule 'allr' depends on what was removed; give schedule=ALLR.between(dense, pruned, "
            "original_epochs=..., epochs=...)"
        )
    if schedule not in SHAPES:
        raise InputError(f"there is no schedule {schedule!r}; give {', '.join(SHAPES)}, slr, or a function of progress")
    return SHAPES[schedule]


def default_warmup(schedule: str | Shape) -> float:
    """Return the share of the steps in which the rate rises: 10 % for SLR and ALLR [READ S9], else none."""
    return 0.1 if schedule == "slr" or isinstance(schedule, SLR | ALLR) else 0.0


def factor(shape: Shape, step: int, steps: int, warmup: float) -> float:
    """Return the factor of the learning rate at a step.

    Args:
        shape: The schedule behind the warm-up.
        step: Counted from 0.
        steps: Number of steps in all.
        warmup: Share of the steps in which the factor rises linearly to where the schedule begins.
    """
    rising = round(warmup * steps)
    if step < rising:
        return shape(0.0) * (step + 1) / rising
    return shape(min(1.0, (step - rising) / max(1, steps - rising)))


def _size(model: nn.Module) -> tuple[float, int]:
    weights: list[Tensor] = [weight.detach().double() for weight in model.parameters() if weight.ndim >= 2]
    return sum(float(weight.square().sum()) for weight in weights), sum(weight.numel() for weight in weights)
