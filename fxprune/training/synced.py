"""Batch norm over the batches of all processes, so that several processes compute what one would.

``torch.nn.SyncBatchNorm`` does the same on GPUs only, and is another module; this one leaves the modules as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class _Sum(torch.autograd.Function):
    """The sum over all processes; each one's gradient is the sum of all gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return _reduced(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _reduced(gradient)


def _reduced(values: Tensor) -> Tensor:
    result = values.clone(memory_format=torch.contiguous_format)
    torch.distributed.all_reduce(result)
    return result


def _total(values: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(values)
    return total


@contextlib.contextmanager
def synced_batchnorm(model: nn.Module) -> Iterator[None]:
    """Let batch norms take their statistics over all processes while they train; batches must be of one size."""
    norms = [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
    for norm in norms:
        norm.forward = _forward_of(norm, norm.forward)  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward  # the class's own is behind it


def _forward_of(norm: _BatchNorm, alone: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def forward(values: Tensor) -> Tensor:
        return _normalised(norm, values) if norm.training else alone(values)

    return forward


def _normalised(norm: _BatchNorm, values: Tensor) -> Tensor:
    norm._check_input_dim(values)  # type: ignore[no-untyped-call]
    wide = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
    dims = [dim for dim in range(wide.ndim) if dim != 1]
    shape = [1, -1, *[1] * (wide.ndim - 2)]
    count = wide.numel() // wide.shape[1] * torch.distributed.get_world_size()
    mean = _total(wide.sum(dims)) / count
    centred = wide - mean.reshape(shape)
    variance = _total(centred.square().sum(dims)) / count  # after the mean: no difference of large numbers
    _follow(norm, mean.detach(), variance.detach() * count / max(count - 1, 1))
    result = centred * torch.rsqrt(variance + norm.eps).reshape(shape)
    if norm.weight is not None:
        result = result * norm.weight.reshape(shape) + norm.bias.reshape(shape)
    return result.to(values.dtype)


@torch.no_grad()
def _follow(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Move the running statistics as batch norm does."""
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    norm.num_batches_tracked.add_(1)
    share = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
    norm.running_var.lerp_(variance.to(norm.running_var.dtype), share)
