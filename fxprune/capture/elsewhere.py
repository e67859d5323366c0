"""Whether a graph for any batch is the model at any batch: its code may decide by the number of samples, or of pixels.

An exporter follows the example through the model's code. Of ``if x.shape[0] > 4`` it takes one side and notes a guard;
of ``if x.shape[0] > 1``, or a ``squeeze``, not even that, since it holds open sizes to be neither 0 nor 1. The graph
then computes the one side for all sizes.

Sizes are looked for that break a guard, many of them, since a guard costs next to nothing to ask; the model and its
graph are run at a few of those that were found for each guard. Not seen is a second decision behind a first one whose
two sides compute the same: of ``if n > 8`` in chunks, and ``if n > 64`` otherwise, the exporter notes the first alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, product
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.capture.agreement import disagreement, is_random
from fxprune.capture.no_graph import first_line
from fxprune.capture.program import batch_symbols, numbers_in_guards, open_dimensions
from fxprune.capture.propagate import flat_inputs
from fxprune.capture.untouched import copied, running

_TRIED = 2
"""So many of the sizes that break one guard are run: the model may refuse one of them, as it does an odd batch."""
_RUNS = 8
"""So many are run for all guards together."""
_SAMPLES, _FEW, _MANY = 64, 2**17, 2**24
"""What may be run: up to so many samples and elements of all inputs, or any number of samples with few elements."""
_SCALES = (
    *((n, n) for n in (1.5, 2, 0.5, 1.25, 3, 4)),
    *((a, b) for a, b in product((1, 1.5, 2, 0.5), repeat=2) if a != b),
)
"""Of height and width, or of whatever is open besides the batch."""
_STEPS = 16
"""Up to so many pixels more and fewer."""
Shapes = tuple[tuple[int, ...], ...]
"""For each input in flat order, its sizes; none for what is no tensor."""
Inputs = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True, eq=False)
class _Example:
    """The example inputs of a program.

    Attributes:
        inputs: The inputs.
        program: The exported program.
        opened: For each input in flat order, the dimensions that may have any size.
    """

    inputs: Inputs
    program: Any
    opened: Shapes

    @property
    def shapes(self) -> Shapes:
        return tuple(tuple(leaf.shape) if isinstance(leaf, Tensor) else () for leaf in flat_inputs(*self.inputs))

    def reshaped(self, size: Callable[[tuple[int, ...], int], int]) -> Shapes:
        """Return the shapes with other sizes where they are open, told by a shape and the dimension in it."""
        return tuple(
            tuple(size(shape, d) if d in dims else n for d, n in enumerate(shape))
            for shape, dims in zip(self.shapes, self.opened, strict=True)
        )

    def at(self, shapes: Shapes, make: Callable[[Tensor, tuple[int, ...]], Tensor]) -> Inputs:
        """Return the inputs made anew in other shapes."""
        leaves, nested = pytree.tree_flatten(self.inputs)
        made = [make(x, s) if isinstance(x, Tensor) else x for x, s in zip(leaves, shapes, strict=True)]
        found: Inputs = pytree.tree_unflatten(made, nested)
        return found


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
    example = _Example(inputs, program, tuple((0,) if 0 in dims else () for dims in open_dimensions(program)))
    batch = next((shape[0] for shape, dims in zip(example.shapes, example.opened, strict=True) if dims), None)
    if batch is None:
        return ""

    def of(samples: int) -> Shapes:
        return example.reshaped(lambda shape, d: _share(shape[d], batch, samples))

    numbers = [
        batch + 1,
        2 * batch,
        2 * batch + 1,
        3 * batch,
        8 * batch,
        61,
        64,
        *range(2, 2 * _SAMPLES),
        *_near_guards(program),
    ]
    most = max(_MANY, 8 * _elements(example.shapes))
    others = [
        shapes
        for n, shapes in ((n, of(n)) for n in numbers if n > 1)
        if _elements(shapes) <= (most if n <= max(_SAMPLES, 8 * batch) else _FEW)
    ] + [shapes for shapes in _each_alone(example) if _elements(shapes) <= most]
    tried = [of(1)] if one and batch > 1 else []
    return _first_unlike(model, module, example, [*tried, *islice(_guarded(example, others), _RUNS)])


def unlike_at_another_size(model: nn.Module, module: fx.GraphModule, program: Any, inputs: Inputs) -> str:
    """Say at which sizes but the batch the model computes something else than its graph, "" where none is found."""
    opened = tuple(tuple(d for d in dims if d) for dims in open_dimensions(program))
    example = _Example(inputs, program, opened)
    if not any(opened):
        return ""

    def scaled(by: tuple[float, float]) -> Shapes:
        return example.reshaped(lambda shape, d: round(shape[d] * by[d % 2]))

    def larger(by: int) -> Shapes:
        return example.reshaped(lambda shape, d: shape[d] + by)

    def all_of(size: int) -> Shapes:
        return example.reshaped(lambda shape, d: size)

    turned = example.reshaped(lambda shape, d: shape[5 - d] if len(shape) == 4 and d in (2, 3) else shape[d])
    steps = [larger(k) for step in range(1, _STEPS + 1) for k in (step, -step)]
    others = [*map(scaled, _SCALES), turned, *steps, *map(all_of, _near_guards(program))]
    most = max(_FEW, 16 * _elements(example.shapes))
    tried = islice(_guarded(example, [shapes for shapes in others if _elements(shapes) <= most]), _RUNS)
    return _first_unlike(model, module, example, tried)


def _near_guards(program: Any) -> list[int]:
    """Return the numbers that guards compare sizes with, and their neighbours."""
    return sorted(n + k for n in numbers_in_guards(program) for k in (-1, 0, 1))


def _share(own: int, batch: int, samples: int) -> int:
    """Return how many of an input there are for some samples, where the example has ``own`` for a batch.

    They may be several for each sample, one for several, some more than there are samples, or have nothing to do with
    them.
    """
    if own % batch == 0:
        return own // batch * samples
    if batch % own == 0 and own * samples % batch == 0:
        return own * samples // batch
    found = own + samples - batch
    return found if found > 0 else own


def _each_alone(example: _Example) -> Iterator[Shapes]:
    """Yield shapes in which one of several batches that are independent of each other is larger, and no other."""
    symbols = batch_symbols(example.program)
    groups = dict.fromkeys(mine for mine in symbols if mine)
    for group in groups if len(groups) > 1 else ():
        own = next(shape[0] for shape, mine in zip(example.shapes, symbols, strict=True) if mine == group)
        for n in (own + 1, own + 2, 2 * own, 3 * own, 8 * own):
            yield tuple(
                (_share(shape[0], own, n), *shape[1:]) if mine == group else shape
                for shape, mine in zip(example.shapes, symbols, strict=True)
            )


def _elements(shapes: Shapes) -> int:
    return sum(map(math.prod, shapes))


def _guarded(example: _Example, others: Iterable[Shapes]) -> Iterator[Shapes]:
    """Yield the shapes that break a guard of the program, each once, and no more than a few for each guard."""
    module = example.program.module()
    calls = [node for node in module.graph.nodes if str(node.target).startswith("_guards_fn")]
    places = {node: k for k, node in enumerate(module.graph.find_nodes(op="placeholder"))}
    broken = Counter[str]()
    for shapes in dict.fromkeys(others):
        if any(n < 1 for shape, dims in zip(shapes, example.opened, strict=True) for n in (shape[d] for d in dims)):
            continue
        leaves = flat_inputs(*example.at(shapes, lambda leaf, shape: leaf.new_empty(shape, device="meta")))
        for call in calls:
            said = _broken(module.get_submodule(str(call.target)), [leaves[places[node]] for node in call.args])
            if said:
                broken[said] += 1
                if broken[said] <= _TRIED:
                    yield shapes
                break


def _broken(guards: nn.Module, leaves: list[Any]) -> str:
    """Return which guard does not hold, "" where all do."""
    try:
        guards(*leaves)
    except Exception as error:  # a failed assertion; or what no guard can be read of, which is tried as well
        return first_line(error)
    return ""


def _tiled(leaf: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return a tensor repeated, or cut, to a shape."""
    for d, size in enumerate(shape):
        if size != leaf.shape[d]:
            leaf = leaf.index_select(d, torch.arange(size, device=leaf.device) % leaf.shape[d])
    return leaf


def _first_unlike(model: nn.Module, module: fx.GraphModule, example: _Example, tried: Iterable[Shapes]) -> str:
    """Run the model and its graph at other sizes; say where they differ. What the model refuses, it need not be."""
    if any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in flat_inputs(*example.inputs)):
        return ""
    if is_random(module.graph) and _unlike(model, module, example.inputs):
        return ""  # it draws other numbers than its graph, or in another order, so that there is nothing to compare
    for shapes in tried:
        wrong = _unlike(model, module, example.at(shapes, _tiled))
        if wrong:
            return f"a graph for any size is not what the model's code does with {_named(example, shapes)} ({wrong})"
    return ""


def _named(example: _Example, shapes: Shapes) -> str:
    """Return what a message calls inputs of other sizes: by the first of them that has another than the example."""
    found = [each for each in zip(shapes, example.opened, example.shapes, strict=True) if each[1]]
    shape, dims, _ = next((each for each in found if each[0] != each[2]), found[0])
    return f"a batch of {shape[0]}" if 0 in dims else f"an input of {' x '.join(map(str, shape))}"


def _unlike(model: nn.Module, module: fx.GraphModule, inputs: Inputs) -> str:
    """Run the model and its graph with the same random numbers; say how they differ, "" also where the model raises."""
    try:
        with running(model):
            args, kwargs = pytree.tree_map(copied, inputs)
            expected = model(*args, **kwargs)
    except Exception:
        return ""
    with torch.random.fork_rng():
        torch.manual_seed(0)  # as ``running`` does
        return disagreement(module, flat_inputs(*inputs), expected)
