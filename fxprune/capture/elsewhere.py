"""Whether a graph for any batch is the model at any batch: its code may decide by the number of samples, or of pixels.

An exporter follows the example through the model's code. Of ``if x.shape[0] > 4`` it takes one side and notes a guard;
of ``if x.shape[0] > 1``, or a ``squeeze``, not even that, since it holds open sizes to be neither 0 nor 1. The graph
then computes the one side for all sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.capture.agreement import disagreement, is_random
from fxprune.capture.program import open_dimensions
from fxprune.capture.propagate import flat_inputs
from fxprune.capture.untouched import copied, running

_TRIED = 2
"""So many of the sizes that break a guard are run: the model may refuse one of them, as it does an odd batch."""
Sizes = dict[int, int]
"""Dimension -> size."""
Inputs = tuple[tuple[Any, ...], dict[str, Any]]
Opened = tuple[tuple[int, ...], ...]
"""For each input in flat order, the dimensions that may have any size."""


def unlike_at_another_batch(
    model: nn.Module, module: fx.GraphModule, program: Any, inputs: Inputs, *, one: bool
) -> str:
    """Say at which batch the model computes something else than its graph, "" where none is found.

    Args:
        model: The model.
        module: Its graph, with open batches.
        program: The exported program that it was made of, which has the guards.
        inputs: The example inputs.
        one: Whether to run a batch of one, which no guard tells of.
    """
    opened = open_dimensions(program)
    batch = next((leaf.shape[0] for leaf, dims in zip(flat_inputs(*inputs), opened, strict=True) if 0 in dims), None)
    if batch is None:
        return ""
    others = [{0: n} for n in (batch + 1, 2 * batch, 2 * batch + 1, 3 * batch, 8 * batch, 61, 64, *range(2, batch))]
    tried = [{0: 1}] if one and batch > 1 else []
    tried += islice(_guarded(program, inputs, opened, others), _TRIED)
    return _first_unlike(model, module, inputs, opened, tried)


def unlike_at_another_size(model: nn.Module, module: fx.GraphModule, program: Any, inputs: Inputs) -> str:
    """Say at which height and width the model computes something else than its graph, "" where none is found."""
    opened = open_dimensions(program)
    pairs = zip(flat_inputs(*inputs), opened, strict=True)
    found = [(leaf.shape, dims) for leaf, dims in pairs if 2 in dims or 3 in dims]
    if not found:
        return ""
    shape, dims = found[0]
    others: list[Sizes] = [
        {d: round(shape[d] * scale) for d in (2, 3) if d in dims} for scale in (1.5, 2, 0.5, 1.25, 3, 4)
    ]
    tried = list(islice(_guarded(program, inputs, opened, others), _TRIED))
    return _first_unlike(model, module, inputs, opened, tried)


def _guarded(program: Any, inputs: Inputs, opened: Opened, others: list[Sizes]) -> Iterator[Sizes]:
    """Yield the sizes that break a guard of the program, each once."""
    module = program.module()
    calls = [node for node in module.graph.nodes if str(node.target).startswith("_guards_fn")]
    places = {node: k for k, node in enumerate(module.graph.find_nodes(op="placeholder"))}
    for sizes in [each for k, each in enumerate(others) if each not in others[:k]]:
        leaves = flat_inputs(*_at(inputs, opened, sizes, _empty))
        if any(
            _breaks(module.get_submodule(str(call.target)), [leaves[places[n]] for n in call.args]) for call in calls
        ):
            yield sizes


def _breaks(guard: nn.Module, leaves: list[Any]) -> bool:
    try:
        guard(*leaves)
    except Exception:  # a failed assertion; or what no guard can be read of, which is tried as well
        return True
    return False


def _at(inputs: Inputs, opened: Opened, sizes: Sizes, make: Callable[[Tensor, list[int]], Tensor]) -> Inputs:
    """Return the inputs with other sizes in those of their dimensions that are open."""

    def other(leaf: Any, dims: tuple[int, ...]) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return make(leaf, [sizes.get(d, n) if d in dims else n for d, n in enumerate(leaf.shape)])

    leaves, nested = pytree.tree_flatten(inputs)
    found: Inputs = pytree.tree_unflatten(list(map(other, leaves, opened)), nested)
    return found


def _empty(leaf: Tensor, shape: list[int]) -> Tensor:
    """Return a tensor of a shape that holds nothing."""
    return leaf.new_empty(shape, device="meta")


def _tiled(leaf: Tensor, shape: list[int]) -> Tensor:
    """Return a tensor repeated, or cut, to a shape."""
    for d, size in enumerate(shape):
        if size != leaf.shape[d]:
            leaf = leaf.index_select(d, torch.arange(size, device=leaf.device) % leaf.shape[d])
    return leaf


def _first_unlike(model: nn.Module, module: fx.GraphModule, inputs: Inputs, opened: Opened, tried: list[Sizes]) -> str:
    """Run the model and its graph at other sizes; say where they differ. What the model refuses, it need not be."""
    if is_random(module.graph):
        return ""
    for sizes in tried:
        args, kwargs = _at(inputs, opened, sizes, _tiled)
        if any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in pytree.tree_leaves((args, kwargs))):
            return ""
        try:
            with running(model):
                given = pytree.tree_map(copied, (args, kwargs))
                expected = model(*given[0], **given[1])
        except Exception:
            continue
        wrong = disagreement(module, flat_inputs(args, kwargs), expected)
        if wrong:
            name = f"a batch of {sizes[0]}" if 0 in sizes else f"images of {' x '.join(map(str, sizes.values()))}"
            return f"a graph for any size is not what the model's code does with {name} ({wrong})"
    return ""
