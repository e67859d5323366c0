"""The same model on images of another size.

A model is free of the resolution where its code runs on another size of image and uses the same weights. Whether it
does is found by capturing it there. Position tables with an entry for each patch are the usual exception: a model that
is built for another size gets them by interpolation.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from fxprune.capture.export import trace
from fxprune.capture.program import is_images
from fxprune.capture.traced import Traced
from fxprune.errors import CaptureError, InputError

Builder = Callable[[int], nn.Module]
"""Builds the model for images whose shorter side has so many pixels."""

_PREFIX = 8  # tokens in front of a table's grid, at most: class, distillation, registers
aten = torch.ops.aten
_WINDOWS = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
_POOLS = {aten.max_pool2d.default, aten.avg_pool2d.default, aten.conv2d.default, aten.max_pool2d_with_indices.default}


def side_of(example_inputs: Any) -> int:
    """Return the shorter side of the images among a model's inputs, in pixels.

    Raises:
        InputError: No input is a batch of images.
    """
    sides = [min(leaf.shape[2:]) for leaf in pytree.tree_leaves(example_inputs) if is_images(leaf)]
    if not sides:
        raise InputError(
            "no input is a batch of images (floats of batch x channels x height x width), so the model has no "
            "resolution; leave that dimension out"
        )
    return int(sides[0])


def resized(example_inputs: Any, side: int) -> Any:
    """Return inputs whose images are scaled so that the shorter side has ``side`` pixels; all else is as it was."""
    before = side_of(example_inputs)

    def scale(leaf: Any) -> Any:
        if not is_images(leaf):
            return leaf
        size = [max(1, round(length * side / before)) for length in leaf.shape[2:]]
        return leaf if size == list(leaf.shape[2:]) else F.interpolate(leaf, size, mode="bilinear", antialias=True)

    return pytree.tree_map(scale, example_inputs)


def at_resolution(
    model: nn.Module | Builder,
    example_inputs: Any,
    side: int,
    *,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_size: bool = False,
) -> Traced:
    """Capture a model on images of another size.

    Args:
        model: A module, whose weights the capture shares; or a function of the side that builds one, for models that
            are made for one size. :func:`fit_weights` gives the latter the weights of another size.
        example_inputs: As for :func:`fxprune.trace`, of any size.
        side: Pixels of the shorter side.
        kwargs: Keyword inputs.
        dynamic_size: As for :func:`fxprune.trace`.

    Raises:
        InputError: There are no images, the model does not run on this size (the message names the line), or it gives
            another number of rows for each sample there: its code may mix samples.
        CaptureError: It runs and cannot be captured.
    """
    if isinstance(side, bool) or not isinstance(side, int) or side < 1:
        raise InputError(f"a side of {side!r} pixels is no size of an image; give a whole number above 0")
    given = (example_inputs, dict(kwargs or {}))
    args, named = resized(given, side)
    try:
        traced = trace(_made(model, side), args, kwargs=named, dynamic_size=dynamic_size)
    except (InputError, CaptureError) as error:
        hint = (
            "; where it is made for one size, give a function that builds it for a side instead of the model"
            if isinstance(model, nn.Module)
            else ""
        )
        raise type(error)(f"the model cannot take images with a side of {side} pixels: {error}{hint}") from error
    rows, whole = _rows(traced), side_of(given)
    if side == whole or traced.regions is not None or all(each in (None, 1) for each in rows):
        return traced
    before = _rows(trace(_made(model, whole), example_inputs, kwargs=given[1]))
    if rows != before:
        number = next(n for n, (a, b) in enumerate(itertools.zip_longest(rows, before)) if a != b)
        here, there = (f"{r[number]}" if number < len(r) else "no" for r in (rows, before))
        raise InputError(
            f"the model cannot take images with a side of {side} pixels: output {number} has {here} rows for each "
            f"sample there, and {there} with a side of {whole} pixels, so that it may mix samples. "
            "Where its code flattens by a fixed length, as x.view(-1, 128) does, write x.flatten(1), which then says "
            "what does not fit; or leave the resolution as it is"
        )
    return traced


def _made(model: nn.Module | Builder, side: int) -> nn.Module:
    return model if isinstance(model, nn.Module) else model(side)


def _rows(traced: Traced) -> list[Fraction | None]:
    """Return how large dimension 0 of each output is for each sample; None of what is no tensor, or has none."""
    values = [node.meta.get("val") for node in traced.module.graph.output_node().all_input_nodes]
    return [Fraction(int(v.shape[0]), traced.batch) if isinstance(v, Tensor) and v.ndim else None for v in values]


def stride_of(traced: Traced) -> int:
    """Return how many pixels of an image one position of the coarsest feature map stands for.

    Feature maps are what convolutions and pooling with a window give; what is pooled to a fixed size does not count.
    Images whose sides are multiples of it lose nothing at their edges, and smaller ones leave no position at all.

    Raises:
        InputError: The model takes no images.
    """
    side, module = side_of((traced.args, traced.kwargs)), traced.module
    pooled = _behind_pools(module)
    maps = [n.meta["val"] for n in module.graph.nodes if _has_window(n, module) and n not in pooled]
    least = [min(value.shape[2:]) for value in maps if isinstance(value, Tensor) and value.ndim == 4]
    return max([1, *(round(side / length) for length in least if length)])


def _behind_pools(module: fx.GraphModule) -> set[fx.Node]:
    """Return the nodes that are computed from nothing but what was pooled to a size of its own: gates, heads."""
    found: set[fx.Node] = set()
    for node in module.graph.nodes:
        sources = [n for n in node.all_input_nodes if n.op != "get_attr" and isinstance(n.meta.get("val"), Tensor)]
        if _pools_all(node, module) or (sources and found.issuperset(sources)):
            found.add(node)
    return found


def _pools_all(node: fx.Node, module: fx.GraphModule) -> bool:
    """Whether a node gives maps of a size that does not follow from its input's."""
    if node.op == "call_module":
        return isinstance(module.get_submodule(str(node.target)), (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d))
    packet = getattr(node.target, "overloadpacket", None)
    if packet in (aten.adaptive_avg_pool2d, aten.adaptive_max_pool2d):
        return True
    if packet not in (aten.mean, aten.amax, aten.sum) or len(node.args) < 2:
        return False
    dims = node.args[1] if isinstance(node.args[1], (list, tuple)) else [node.args[1]]
    value = node.all_input_nodes[0].meta.get("val")
    return isinstance(value, Tensor) and value.ndim == 4 and {int(d) % 4 for d in dims} >= {2, 3}  # type: ignore[arg-type]


def _has_window(node: fx.Node, module: fx.GraphModule) -> bool:
    if node.op == "call_module":
        return isinstance(module.get_submodule(str(node.target)), _WINDOWS)
    return node.op == "call_function" and node.target in _POOLS


# ---------------------------------------------------------------- weights of another size


def fit_weights(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Load a state that was trained at another resolution, interpolating position tables, and return their names.

    A table may be a sequence of tokens (a square grid, with up to eight tokens in front of it, which stay) or lie as a
    grid in two of its dimensions. It is interpolated as torchvision does (bicubic, corners on corners). Buffers that
    do not fit are the model's own: they are made from its sizes.

    Raises:
        InputError: A parameter has another shape and is no such table, or names are missing.
    """
    own, tables = model.state_dict(), list[str]()
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    if set(own) != set(state):
        odd = sorted(set(own) ^ set(state))
        raise InputError(
            f"the weights and {type(model).__name__} do not have the same names ({', '.join(odd[:4])}); build the "
            "model with the arguments that it was trained with, but for the size of images"
        )
    fitted: dict[str, Tensor] = {}
    for name, tensor in own.items():
        given = state[name]
        if given.shape == tensor.shape:
            fitted[name] = given
        elif name not in parameters:
            fitted[name] = tensor
        else:
            fitted[name] = interpolated(given, tuple(tensor.shape), name)
            tables.append(name)
    model.load_state_dict(fitted)
    return tables


def interpolated(table: Tensor, shape: tuple[int, ...], name: str) -> Tensor:
    """Return a table of positions for a grid of another size; see :func:`fit_weights`."""
    differs = [d for d in range(table.ndim) if len(shape) == table.ndim and table.shape[d] != shape[d]]
    if len(differs) == 2:
        moved = table.movedim(differs, (-2, -1))
        return _scaled(moved, [shape[d] for d in differs]).movedim((-2, -1), differs)
    if len(differs) == 1:
        (d,) = differs
        for prefix in range(_PREFIX + 1):
            before, after = _root(table.shape[d] - prefix), _root(shape[d] - prefix)
            if before and after:
                tokens = table.movedim(d, -1)
                grid = tokens[..., prefix:].reshape(*tokens.shape[:-1], before, before)
                fitted = torch.cat([tokens[..., :prefix], _scaled(grid, [after, after]).flatten(-2)], -1)
                return fitted.movedim(-1, d)
    raise InputError(
        f"{name} has the shape {tuple(table.shape)} in the weights and {shape} in the model, and is no table of "
        "positions that could be interpolated: the model is made for one size of images"
    )


def _scaled(grid: Tensor, size: list[int]) -> Tensor:
    """Interpolate the last two dimensions."""
    flat = grid.reshape(1, -1, *grid.shape[-2:])
    found = F.interpolate(flat.float(), size, mode="bicubic", align_corners=True)
    return found.to(grid.dtype).reshape(*grid.shape[:-2], *size)


def _root(count: int) -> int:
    """Return the side of a square of so many patches, 0 where there is none."""
    root = math.isqrt(count) if count > 0 else 0
    return root if root * root == count else 0
