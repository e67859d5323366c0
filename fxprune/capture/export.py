"""``trace``: capture any module as one graph of calls to its own layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxprune.capture.accepted import accepted, check_samples
from fxprune.capture.agreement import disagreement, is_random
from fxprune.capture.by_region import capture_regions
from fxprune.capture.elsewhere import unlike_at_another_batch, unlike_at_another_size
from fxprune.capture.modules import location_of
from fxprune.capture.normal_form import as_layers, normalised
from fxprune.capture.program import at_least_two, export_program, open_shapes, quiet_eval
from fxprune.capture.propagate import KEY, flat_inputs, propagate
from fxprune.capture.scaled import sizes_from_symbols
from fxprune.capture.traced import Traced
from fxprune.capture.untouched import apart, unchanged
from fxprune.errors import CaptureError, InputError

_SIZE_TOO = "the size of images is fixed too: it is open together with the batch alone"


def trace(
    model: nn.Module,
    example_inputs: Any,
    *,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_batch: bool = True,
    dynamic_size: bool = False,
    regions: bool = True,
) -> Traced:
    """Capture ``model`` as one ``torch.fx`` graph that calls its layers by their own names.

    The graph is captured in eval mode by ``torch.export`` with a dynamic batch (dimension 0 of every input), and lifted
    back to module calls. It shares its parameters with ``model``; the model itself is left as it was, and so are inputs
    that hold state, such as a cache of keys and values.

    A model that decides by the values of tensors, such as a detector, has no such graph. Its largest sub-modules that
    have one are captured side by side, with the inputs that they get when the model runs on the example inputs:
    ``Traced.regions`` says which, and why not more.

    Args:
        model: The module to capture; of ``DataParallel``, ``DistributedDataParallel`` and ``torch.compile`` what they
            wrap.
        example_inputs: One tensor, or a tuple of inputs. A batch of one is repeated to two, because a size of one
            cannot be made dynamic; it stays one where the batch is static.
        kwargs: Keyword inputs.
        dynamic_batch: Whether dimension 0 may vary afterwards; where it cannot, the capture is static and says so in
            ``notes``.
        dynamic_size: Whether the height and width of images may vary too, together with the batch; what the model's
            code fixes is said in ``notes``. Windows and patches make this slow: capture for one size where it will do.
        regions: Whether to capture by region what cannot be captured whole; otherwise that is refused.

    Raises:
        CaptureError: The model cannot be captured; the message names the module and the source line.
        InputError: ``model`` is not a module, is a TorchScript program, has quantised or sparse weights, or does not
            run on the inputs; or these hold no sample.
    """
    model = accepted(model)
    args = tuple(example_inputs) if isinstance(example_inputs, (tuple, list)) else (example_inputs,)
    named = dict(kwargs or {})
    check_samples(args, named)
    args, named = pytree.tree_map(apart, (args, named))
    if dynamic_size and not dynamic_batch:
        raise InputError("dynamic_size leaves the batch open too; leave dynamic_batch=False out")
    with unchanged(model), quiet_eval(model), torch.random.fork_rng():  # samples are made up where there are too few
        try:
            return _whole(model, args, named, dynamic_batch, dynamic_size)
        except CaptureError as problem:
            if not regions:
                raise
            return capture_regions(model, args, named, dynamic_batch, problem)


def _whole(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dynamic_batch: bool,
    size: bool,
    *,
    repeat: bool = True,
) -> Traced:
    """Capture a model as one graph, with as much open as its code leaves open.

    A batch of one is repeated to two, unless told otherwise; where the batch cannot be open, it stays one.
    """
    example = args, kwargs
    if dynamic_batch and repeat:
        args, kwargs = at_least_two(args, kwargs)
    repeated = kwargs is not example[1]
    asked = open_shapes(args, kwargs, size=size) if dynamic_batch else None
    try:
        exported, shapes, before = export_program(model, args, kwargs, asked)
    except InputError:  # it may take one sample at a time
        if repeated:
            return _whole(model, *example, dynamic_batch, size, repeat=False)
        raise
    if repeated and shapes is None:
        return _whole(model, *example, dynamic_batch, size, repeat=False)
    plain, more = normalised(exported, model)
    module = as_layers(model, plain)
    scaled = sizes_from_symbols(module, args, kwargs) if shapes is not None else {}
    for outputs in before.outputs:
        _compare(model, module, args, kwargs, outputs)
    if shapes is not None:
        inputs = args, kwargs
        wrong = unlike_at_another_batch(model, module, exported, inputs, one=bool(before.outputs))
        if wrong:
            closed = _whole(model, *example, False, False)
            notes = [*closed.notes, f"the batch is static at {closed.batch}: {wrong}", *([_SIZE_TOO] if size else [])]
            return dataclasses.replace(closed, notes=tuple(notes))
        wrong = unlike_at_another_size(model, module, exported, inputs)
        if wrong:
            closed = _whole(model, *example, True, False)
            return dataclasses.replace(closed, notes=(*closed.notes, f"the size of images is fixed: {wrong}"))
    propagate(module, args, kwargs)
    for node, sizes in scaled.items():
        node.meta[KEY] = sizes
    notes = [*before.notes, *([_SIZE_TOO] if size and shapes is None else []), *more]
    return Traced(module, args, kwargs, shapes, type(model).__name__, tuple(notes))


def _compare(model: nn.Module, module: fx.GraphModule, args: Any, kwargs: Any, outputs: Any) -> None:
    """Hold a graph to what the model returned in another call.

    Raises:
        CaptureError: They differ, and the graph draws no random numbers.
    """
    if is_random(module.graph):
        return
    wrong = disagreement(module, flat_inputs(args, kwargs), outputs)
    if wrong:
        raise CaptureError(
            f"{type(model).__name__} ({location_of(type(model))}) gives something else in another call on the same "
            f"inputs ({wrong}): it depends on what calls leave behind, as on a counter or a flag; make that an input"
        )
