"""What a batch of somebody's data means for a captured model: which inputs it is, and whether it fits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from fxprune.capture.fitting import same_sizes, sizes_of
from fxprune.capture.regions import require_whole
from fxprune.capture.traced import Traced
from fxprune.errors import InputError

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword inputs."""


def inputs_of(traced: Traced, batch: Any, what: str) -> Inputs:
    """Return the inputs that a batch holds, with tensors on the devices of the example's.

    The first of these that is built like the example inputs counts: the batch is the only input; a tuple or list of all
    positional inputs; a pair of these and a dictionary of keyword inputs; a dictionary of keyword inputs, in which
    names that the example does not have are left out (labels); a pair of any of these and a target, which is left out.
    Keyword inputs of the example that are no tensors need not be given.

    Args:
        traced: The model, whose example inputs say what it takes.
        batch: The batch.
        what: What a message calls it: "batch 3 of the calibration data".

    Raises:
        InputError: It is built in another way, or a tensor has another dtype, number of dimensions or size than the
            example's (what the capture left open, such as the batch, may have any size).
    """
    require_whole(traced, what, "its data are no inputs of the regions; use what needs no data")
    shape = pytree.tree_structure((traced.args, traced.kwargs))
    for args, given in _readings(batch):
        kwargs = {name: given.get(name, value) for name, value in traced.kwargs.items()}
        missing = [value for name, value in traced.kwargs.items() if name not in given and _holds_tensors(value)]
        if not missing and pytree.tree_structure((args, kwargs)) == shape:
            _check(traced, (args, kwargs), what)
            return _placed(traced, (args, kwargs))
    raise InputError(
        f"{what} is {_described(batch)}, and the model takes {_described(traced.args)}"
        + (f" and {_described(traced.kwargs)}" if traced.kwargs else "")
        + ": a batch is the only input, a tuple of all inputs, a dictionary of inputs by name, or a pair of one of "
        "these and a target"
    )


def _readings(batch: Any, *, with_target: bool = True) -> Iterator[Inputs]:
    """Yield what a batch may mean, the likeliest first."""
    yield (batch,), {}
    if isinstance(batch, dict):
        yield (), batch
    elif isinstance(batch, tuple | list):
        yield tuple(batch), {}
        if len(batch) == 2:
            inputs, rest = batch
            if isinstance(inputs, tuple | list) and isinstance(rest, dict):
                yield tuple(inputs), rest
            if with_target:
                yield from _readings(inputs, with_target=False)


def _holds_tensors(value: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))


def _check(traced: Traced, inputs: Inputs, what: str) -> None:
    """Hold every leaf to the example's."""
    examples = pytree.tree_leaves((traced.args, traced.kwargs))
    leaves = zip(pytree.tree_leaves_with_path(inputs), examples, traced.open_dimensions(), strict=True)
    for (path, given), example, dims in leaves:
        where = f"{what}: input {_name(path)}"
        if not isinstance(example, Tensor):
            if isinstance(given, Tensor) or given != example:
                raise InputError(
                    f"{where} is {_described(given)}; the model was captured with {example!r} in its place"
                )
        elif not isinstance(given, Tensor) or given.dtype != example.dtype or not same_sizes(given, example, dims):
            raise InputError(
                f"{where} is {_described(given)}; the model was captured for {example.dtype} of sizes "
                f"{sizes_of(example, dims)}: bring the data to that, or trace the model on inputs like the data"
            )


def _placed(traced: Traced, inputs: Inputs) -> Inputs:
    def place(given: Any, example: Any) -> Any:
        return given.to(example.device) if isinstance(example, Tensor) else given

    args, kwargs = pytree.tree_map(place, inputs, (traced.args, traced.kwargs))
    return args, kwargs


def _name(path: tuple[Any, ...]) -> str:
    """Return "0" for the first positional input, "mask" for the keyword input of that name, "0[1]" for parts."""
    name, *parts = path[1:]
    first = getattr(name, "idx", None)
    return f"{name.key if first is None else first}{''.join(map(str, parts))}"


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of {value.dtype} {list(value.shape)}"
    if isinstance(value, dict):
        return (
            f"a dictionary of {', '.join(f'{key!r}: {_described(item)}' for key, item in value.items()) or 'nothing'}"
        )
    if isinstance(value, tuple | list):
        parts = ", ".join(_described(item) for item in value[:4]) or "nothing"
        return f"a {type(value).__name__} of {parts}{', ...' if len(value) > 4 else ''}"
    text = repr(value)
    return f"the {type(value).__name__} {text}" if len(text) <= 60 else f"a {type(value).__name__}"
