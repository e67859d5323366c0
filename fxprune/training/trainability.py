"""How well signals and gradients pass through a network: the singular values of its Jacobian."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.errors import InputError
from fxprune.graph_tools import evaluating
from fxprune.training.features import logits_of


@dataclass(frozen=True)
class Trainability:
    """Singular values of the Jacobian of logits by inputs, over all samples (2207.12534, section 5.6 [READ S1]).

    Attributes:
        mean: Of all singular values; 1 is an isometry, 0 a network through which nothing passes.
        std: Their standard deviation.
        smallest: Of all.
        largest: Of all.
        condition: Mean over samples of largest by smallest; infinite where one is 0.
        samples: Number of samples.
    """

    mean: float
    std: float
    smallest: float
    largest: float
    condition: float
    samples: int


def trainability(model: nn.Module, batch: Tensor | tuple[Any, ...]) -> Trainability:
    """Return the mean Jacobian singular value of a classifier, and what goes with it.

    Each sample has a Jacobian of its own, [logits, elements of the inputs]. The model runs once, in eval mode, so that
    samples do not depend on each other, and backwards once per logit. Singular values are taken in float64.

    Args:
        model: Returns logits, in any shape behind the batch; it is given back in its own mode, with its gradients.
        batch: The inputs, on the model's device: one tensor, or all positional inputs. Inputs that are no floats are
            held.

    Raises:
        InputError: No input is a float, or the logits do not depend on any.
    """
    given = batch if isinstance(batch, tuple) else (batch,)
    leaves = [_fresh(value) for value in given]
    inputs = [value for value in leaves if isinstance(value, Tensor) and value.requires_grad]
    if not inputs:
        raise InputError("there is no Jacobian by inputs that are no floats; give embedded tokens, or images")
    with evaluating(model), torch.enable_grad():
        logits = logits_of(model(*leaves)).flatten(1)
        if not logits.requires_grad:
            raise InputError("the logits do not depend on the inputs by any gradient, so there is no Jacobian")
        samples, count = logits.shape
        rows = []
        for number in range(count):
            found = torch.autograd.grad(
                logits[:, number].sum(), inputs, retain_graph=number + 1 < count, allow_unused=True
            )
            parts = [torch.zeros_like(x) if part is None else part for x, part in zip(inputs, found, strict=True)]
            rows.append(torch.cat([part.reshape(samples, -1) for part in parts], 1).double())
    values = torch.linalg.svdvals(torch.stack(rows, 1))
    condition = (values[:, 0] / values[:, -1]).nan_to_num(nan=float("inf"), posinf=float("inf"))
    return Trainability(
        mean=float(values.mean()),
        std=float(values.std(correction=0)),
        smallest=float(values.min()),
        largest=float(values.max()),
        condition=float(condition.mean()),
        samples=samples,
    )


def _fresh(value: Any) -> Any:
    floats = isinstance(value, Tensor) and value.is_floating_point()
    return value.detach().clone().requires_grad_() if floats else value
