"""Two forms in a row as one form, and several side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxprune.linear.forms import Form, NotOneLayer, Tensors, Window
from fxprune.linear.taps import composed, regrouped

# ---------------------------------------------------------------- one behind another


def chain(first: Form, second: Form) -> Form:
    """Return ``second`` behind ``first``.

    Raises:
        NotOneLayer: At the borders, ``second`` reads padding where one layer would read on.
    """
    if first.outputs != second.inputs:
        raise NotOneLayer(f"{first.outputs} channels go in where {second.inputs} are read")
    mode = _mode_of_chain(first, second)
    a, b = first.window, second.window
    steps = [_steps(*sizes) for sizes in zip(a.kernel, a.stride, a.dilation, b.kernel, b.dilation, strict=True)]
    reach = [first + s * second for first, s, second in zip(a.reach, a.stride, b.reach, strict=True)]
    window = Window(
        tuple(cells // step + 1 for cells, (step, _, _) in zip(reach, steps, strict=True)),
        tuple(s * t for s, t in zip(a.stride, b.stride, strict=True)),
        tuple(step for step, _, _ in steps),
        tuple(p + s * q for p, s, q in zip(a.before, a.stride, b.before, strict=True)),
        tuple(p + s * q for p, s, q in zip(a.after, a.stride, b.after, strict=True)),
        mode,
    )
    groups = math.gcd(first.groups, second.groups)

    def build() -> Tensors:
        kernel = _chained(first, second, groups, [of_b for _, _, of_b in steps], [of_a for _, of_a, _ in steps])
        return kernel, _chained_bias(first, second)

    biased, shifts = first.biased or second.biased, first.shifts or second.shifts
    return Form(first.inputs, second.outputs, groups, window, biased, shifts, build)


def _mode_of_chain(first: Form, second: Form) -> str:
    """Return the padding mode of a chain, or raise where its borders are no layer's."""
    a, b = first.window, second.window
    if not b.padded:
        return a.mode
    if b.mode != "zeros":
        if not a.is_single:
            raise NotOneLayer(f"{b.mode} padding between them shows more than single cells")
        return b.mode
    if first.shifts:
        raise NotOneLayer("the second pads with zeros where the first gives its bias")
    if a.mode != "zeros" and a.padded:
        raise NotOneLayer(f"the first pads in mode {a.mode}, the second with zeros")
    sides = zip(a.reach, a.stride, a.before, a.after, b.before, b.after, strict=True)
    for reach, stride, before, after, wants_before, wants_after in sides:
        # Beyond its ends the first would go on to read the borders of its input, where the second has zeros.
        if (wants_before and before < reach - stride + 1) or (wants_after and after < reach):
            raise NotOneLayer("the second pads with zeros where the first, continued, would still read its input")
    return "zeros"


def _steps(a_kernel: int, a_stride: int, a_dilation: int, b_kernel: int, b_dilation: int) -> tuple[int, int, int]:
    """Return the dilation of a chain, and how many of its taps lie from one tap to the next of each part."""
    of_a, of_b = a_dilation if a_kernel > 1 else 0, a_stride * b_dilation if b_kernel > 1 else 0
    step = math.gcd(of_a, of_b) or max(a_dilation, b_dilation)  # it has no effect on a single tap, but is kept
    return step, max(of_a // step, 1), max(of_b // step, 1)


def _chained(first: Form, second: Form, groups: int, second_step: Sequence[int], first_step: Sequence[int]) -> Tensor:
    ours, theirs = first.tensors[0], second.tensors[0]
    if second.per_channel:  # without this, a norm would be multiplied as a square matrix
        return ours * theirs.reshape(*ours.shape[:2], *[1] * (ours.ndim - 2)).to(ours.device)
    if first.per_channel:
        return theirs * ours.reshape(theirs.shape[0], 1, theirs.shape[2], *[1] * (theirs.ndim - 3)).to(theirs.device)
    device = theirs.device
    return composed(regrouped(theirs, groups), regrouped(ours, groups).to(device), second_step, first_step)


def _chained_bias(first: Form, second: Form) -> Tensor | None:
    inner, bias = first.tensors[1], second.tensors[1]
    if inner is None:
        return bias
    kernel = second.tensors[0]
    sums = kernel.reshape(*kernel.shape[:3], -1).sum(-1)
    passed = (sums @ inner.to(sums.device).reshape(second.groups, -1, 1)).flatten()
    return passed if bias is None else passed + bias


# ---------------------------------------------------------------- side by side


def branches(forms: Sequence[Form], factors: Sequence[float]) -> Form:
    """Return the sum of forms that read the same value, each times its factor.

    Raises:
        NotOneLayer: They move over it differently.
    """
    head = forms[0]
    if any((form.inputs, form.outputs) != (head.inputs, head.outputs) for form in forms):
        raise NotOneLayer("its branches have different numbers of channels")
    windows = [form.window for form in forms]
    if any(window.stride != head.window.stride for window in windows):
        raise NotOneLayer("its branches have different strides")
    modes = {window.mode for window in windows if window.padded}
    if len(modes) > 1:
        raise NotOneLayer(f"its branches pad in the modes {', '.join(sorted(modes))}")
    per_dimension = [_aligned(windows, dim) for dim in range(len(head.window.kernel))]
    kernel = tuple(aligned.kernel for aligned in per_dimension)
    window = Window(
        kernel,
        head.window.stride,
        tuple(aligned.step for aligned in per_dimension),
        tuple(aligned.before for aligned in per_dimension),
        tuple(aligned.after for aligned in per_dimension),
        modes.pop() if modes else "zeros",
    )
    groups = math.gcd(*(form.groups for form in forms))

    def build() -> Tensors:
        device = next((form.tensors[0].device for form in forms if not form.per_channel), torch.device("cpu"))
        total = torch.zeros(groups, head.outputs // groups, head.inputs // groups, *kernel, dtype=torch.float64)
        total = total.to(device)
        bias = torch.zeros(head.outputs, dtype=torch.float64, device=device)
        for position, (form, factor) in enumerate(zip(forms, factors, strict=True)):
            taps: tuple[Any, ...] = tuple(aligned.taps[position] for aligned in per_dimension)
            total[..., *taps] += factor * regrouped(form.tensors[0].to(device), groups)
            bias += 0 if form.tensors[1] is None else factor * form.tensors[1].to(device)
        return total, bias if any(form.biased for form in forms) else None

    biased, shifts = any(form.biased for form in forms), any(form.shifts for form in forms)
    return Form(head.inputs, head.outputs, groups, window, biased, shifts, build)


@dataclass(frozen=True)
class _Aligned:
    """One dimension of a sum: its taps, and which of them are those of each branch."""

    kernel: int
    step: int
    before: int
    after: int
    taps: list[slice]


def _aligned(windows: Sequence[Window], dim: int) -> _Aligned:
    before = max(window.before[dim] for window in windows)
    starts = [before - window.before[dim] for window in windows]
    reach = max(start + window.reach[dim] for start, window in zip(starts, windows, strict=True))
    # Where outputs agree in size, a branch that needs less behind than another never reads that far.
    after = max(reach - start - w.reach[dim] + w.after[dim] for start, w in zip(starts, windows, strict=True))
    steps = [window.dilation[dim] for window in windows if window.kernel[dim] > 1]
    step = math.gcd(*starts, *steps) or max(window.dilation[dim] for window in windows)
    taps = [
        slice(start // step, (start + window.reach[dim]) // step + 1, max(window.dilation[dim] // step, 1))
        if window.kernel[dim] > 1
        else slice(start // step, start // step + 1)
        for start, window in zip(starts, windows, strict=True)
    ]
    return _Aligned(reach // step + 1, step, before, after, taps)
