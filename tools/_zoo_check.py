"""Yardsticks that both tools are measured with: a masked original in float64, relative errors, counted MACs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from tools._zoo_models import build, make_inputs, tensors

Removed = dict[str, dict[int, list[int]]]
"""Parameter name -> dimension -> indices that were removed, all in terms of the original model."""

TOLERANCE = 1e-6
"""Relative error up to which two float64 outputs are the same function."""


class VacuousCheckError(Exception):
    """The reference is constant, not finite or blind to its input, so that agreeing with it would prove nothing."""


@torch.no_grad()
def outputs(model: Callable[..., Any], inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Run a model without gradients and return its outputs as a flat list."""
    return tensors(model(*inputs))


def relative_error(got: list[Tensor], want: list[Tensor]) -> float:
    """Return the largest absolute difference over all outputs, each relative to its reference's largest value."""
    if [tuple(one.shape) for one in got] != [tuple(one.shape) for one in want]:
        return float("inf")
    pairs = zip(got, want, strict=True)
    errors = [float((one.double() - two.double()).abs().max() / two.abs().max()) for one, two in pairs]
    return float("inf") if any(error != error for error in errors) else max(errors)


def require_telling(reference: list[Tensor]) -> None:
    """Raise VacuousCheckError unless every output is finite, varies inside a sample and between samples."""
    for number, tensor in enumerate(reference):
        if not bool(torch.isfinite(tensor).all()):
            raise VacuousCheckError(f"output {number} of the reference is not finite")
        scale = float(tensor.abs().max())
        if scale == 0.0 or float(tensor[0].max() - tensor[0].min()) < 1e-6 * scale:
            raise VacuousCheckError(f"output {number} of the reference is constant")
        if float((tensor[0] - tensor[1]).abs().max()) < 1e-6 * scale:
            raise VacuousCheckError(f"output {number} of the reference does not depend on the input")


@torch.no_grad()
def mask_parameters(model: nn.Module, removed: Removed) -> None:
    """Zero every removed slice of every parameter, in place."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, dims in removed.items():
        if name in parameters:
            for dim, indices in dims.items():
                parameters[name].index_fill_(dim, torch.tensor(indices, dtype=torch.long), 0.0)


@contextmanager
def masked_layer_norm(model: nn.Module, removed: Removed) -> Iterator[None]:
    """Make layer norms take their statistics over the kept indices; zeroed weights alone cannot say that."""
    kept: dict[int, Tensor] = {}
    for name, parameter in model.named_parameters():
        if 0 in removed.get(name, {}) and parameter.dim() == 1:
            gone = set(removed[name][0])
            kept[id(parameter)] = torch.tensor([index for index in range(parameter.shape[0]) if index not in gone])
    original = functional.layer_norm

    def layer_norm(x: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
        index = kept.get(id(weight))
        if index is None:
            return original(x, shape, weight, bias, eps)
        cut = original(x[..., index], (len(index),), weight[index], None if bias is None else bias[index], eps)
        return torch.zeros_like(x).index_copy(-1, index, cut)

    functional.layer_norm = cast(Any, layer_norm)
    try:
        yield
    finally:
        functional.layer_norm = original


def masked_reference(name: str, seed: int, removed: Removed) -> list[Tensor]:
    """Return the float64 outputs of the original model, built anew, with every removed slice zeroed.

    The model is built again rather than copied so that only one float64 model is ever in memory.
    """
    model = build(name, seed).double()
    mask_parameters(model, removed)
    with masked_layer_norm(model, removed):
        reference = outputs(model, make_inputs(name, 2, seed=7, dtype=torch.float64))
    require_telling(reference)
    return reference


def count_macs(model: Callable[..., Any], inputs: tuple[Tensor, ...]) -> int:
    """Count multiply-accumulates of convolutions, matrix products and attention in one real forward."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the fused path hides its products from the counter
    try:
        with FlopCounterMode(display=False) as counter:
            outputs(model, inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops()) // 2
