"""Linear layers as values: a form is a convolution that can be chained and summed before it is computed.

What is decided from sizes alone (is it exact, what does it cost) is there at once; kernels are multiplied out only when
they are asked for. Per dimension, output ``i`` of a form reads cells ``stride * i - before + dilation * tap`` of its
input, and cells beyond the ends as its padding mode says. The bias is added everywhere.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fxprune.linear.taps import grouped

Sizes = tuple[int, ...]
Tensors = tuple[Tensor, Tensor | None]
"""A kernel (groups, outputs, inputs, *taps) and a bias (all outputs), in float64."""


class NotOneLayer(Exception):
    """There is no single layer that computes the same; the message says why."""


@dataclass(frozen=True)
class Window:
    """Where a convolution reads, per dimension; empty for a linear layer."""

    kernel: Sizes
    stride: Sizes
    dilation: Sizes
    before: Sizes
    after: Sizes
    mode: str = "zeros"

    @classmethod
    def single(cls, dims: int) -> Window:
        """Return the window that reads each cell for itself."""
        one, none = (1,) * dims, (0,) * dims
        return cls(one, one, one, none, none)

    @property
    def padded(self) -> bool:
        """Whether it reads beyond the ends."""
        return any(self.before) or any(self.after)

    @property
    def reach(self) -> Sizes:
        """Cells from the first tap to the last."""
        return tuple(d * (k - 1) for d, k in zip(self.dilation, self.kernel, strict=True))

    @property
    def is_single(self) -> bool:
        """Whether it reads each cell for itself."""
        return not self.padded and all(k == s == 1 for k, s in zip(self.kernel, self.stride, strict=True))


@dataclass(frozen=True)
class Form:
    """One linear layer that is not computed yet.

    Attributes:
        inputs: Input channels.
        outputs: Output channels.
        groups: Groups of channels.
        window: Where it reads.
        biased: Whether there is a bias, be it zero.
        shifts: Whether the bias may be other than zero.
        build: Computes kernel and bias.
    """

    inputs: int
    outputs: int
    groups: int
    window: Window
    biased: bool
    shifts: bool
    build: Callable[[], Tensors] = field(repr=False, compare=False)

    @functools.cached_property
    def tensors(self) -> Tensors:
        """Kernel and bias, computed once."""
        return self.build()

    @property
    def per_channel(self) -> bool:
        """Whether it is a scale and a shift of each channel."""
        return self.groups == self.inputs == self.outputs and self.window.is_single

    @property
    def macs_per_output(self) -> int:
        """Multiply-accumulates for each number of the output."""
        return self.inputs // self.groups * math.prod(self.window.kernel)


# ---------------------------------------------------------------- single layers


def affine(scale: Tensor | None, shift: Tensor | None, channels: int, dims: int) -> Form:
    """Return ``scale * x + shift`` per channel; None is 1 and 0."""

    def build() -> Tensors:
        kernel = torch.ones(channels, dtype=torch.float64) if scale is None else scale.double()
        bias = None if shift is None else shift.double()
        kernel = kernel if bias is None else kernel.to(bias.device)
        return kernel.reshape(channels, 1, 1, *[1] * dims), bias

    shifts = shift is not None and bool(shift.any())
    return Form(channels, channels, channels, Window.single(dims), shift is not None, shifts, build)


def layer_form(layer: Any) -> Form:
    """Return the form of an ``nn.Conv`` or ``nn.Linear``."""
    weight, bias = layer.weight, layer.bias
    groups = int(getattr(layer, "groups", 1))

    def build() -> Tensors:
        return grouped(weight, groups), None if bias is None else bias.detach().double()

    window = Window.single(0) if isinstance(layer, nn.Linear) else _window(layer)
    shifts = bias is not None and bool(bias.any())
    return Form(weight.shape[1] * groups, weight.shape[0], groups, window, bias is not None, shifts, build)


def _window(conv: Any) -> Window:
    reach = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    if conv.padding == "same":
        before = tuple(cells // 2 for cells in reach)
        after = tuple(cells - first for cells, first in zip(reach, before, strict=True))
    else:
        before = after = (0,) * len(reach) if conv.padding == "valid" else tuple(conv.padding)
    mode = conv.padding_mode if any((*before, *after)) else "zeros"
    return Window(conv.kernel_size, conv.stride, conv.dilation, before, after, mode)


def average(channels: int, kernel: Sizes, stride: Sizes, padding: Sizes) -> Form:
    """Return the mean over each window, padding counted: a depthwise convolution with equal taps."""

    def build() -> Tensors:
        return torch.full((channels, 1, 1, *kernel), 1 / math.prod(kernel), dtype=torch.float64), None

    window = Window(kernel, stride, (1,) * len(kernel), padding, padding)
    return Form(channels, channels, channels, window, False, False, build)


def padded(channels: int, before: Sizes, after: Sizes, mode: str) -> Form:
    """Return the form that passes all channels on, and pads them."""
    one = (1,) * len(before)

    def build() -> Tensors:
        return torch.ones(channels, 1, 1, *one, dtype=torch.float64), None

    mode = mode if any((*before, *after)) else "zeros"
    return Form(channels, channels, channels, Window(one, one, one, before, after, mode), False, False, build)


# ---------------------------------------------------------------- and back


def layer_of(form: Form, *, spelled: Sequence[str] = (), trainable: bool = True) -> nn.Module:
    """Return the ``nn.Linear`` or ``nn.Conv`` that computes a form, with weights in float64.

    Args:
        form: The form.
        spelled: Ways to spell its padding ("same", "valid") that are preferred to numbers where they mean the same.
        trainable: Whether its weights are.

    Raises:
        NotOneLayer: Only a layer that pads its two ends differently would do.
    """
    dims = len(form.window.kernel)
    padding = padding_of(form, spelled)
    kernel, bias = form.tensors
    options: dict[str, Any] = {"bias": form.biased, "device": "meta"}
    layer: Any
    if dims:
        window = form.window
        layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](
            form.inputs,
            form.outputs,
            window.kernel,  # type: ignore[arg-type]
            stride=window.stride,  # type: ignore[arg-type]
            padding=padding,  # type: ignore[arg-type]
            dilation=window.dilation,  # type: ignore[arg-type]
            groups=form.groups,
            padding_mode=window.mode,  # type: ignore[arg-type]
            **options,
        )
    else:
        layer = nn.Linear(form.inputs, form.outputs, **options)
    layer.weight = nn.Parameter(kernel.flatten(0, 1).contiguous(), requires_grad=trainable)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=trainable)
    return layer  # type: ignore[no-any-return]


def padding_of(form: Form, spelled: Sequence[str] = ()) -> Sizes | Literal["same", "valid"]:
    """Return the padding as a convolution takes it; see :func:`layer_of`."""
    window = form.window
    if "same" in spelled and all(size == 1 for size in window.stride):
        before = tuple(cells // 2 for cells in window.reach)
        if window.before == before and tuple(r - b for r, b in zip(window.reach, before, strict=True)) == window.after:
            return "same"
    if window.before != window.after:
        raise NotOneLayer(
            f"one layer would have to pad {window.before} cells in front and {window.after} behind, and pads both alike"
        )
    return "valid" if "valid" in spelled and not window.padded else window.before
