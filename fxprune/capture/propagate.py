"""Shapes of every value in a graph, by running it on fake tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from fxprune.errors import CaptureError

_BY_VALUES = ("DynamicOutputShapeException", "DataDependentOutputException")  # what fake tensors cannot know
KEY = "scaled"  # sizes at another batch in a node's meta (``scaled.py``): dropped here, but for the inputs


def flat_inputs(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """Return the inputs in the order of the graph's placeholders."""
    return pytree.tree_leaves((args, kwargs))


def _same_shape(layer: Any, value: Tensor) -> Tensor:
    """Batch norm and instance norm keep the shape, so only check it.

    Taking them apart into fake operations costs more than all the rest of a convolutional net.
    """
    for name in ("weight", "bias", "running_mean", "running_var"):
        vector = getattr(layer, name)
        if vector is not None and value.ndim > 1 and vector.shape[0] not in value.shape[:2]:
            raise RuntimeError(f"{name} has {vector.shape[0]} channels, and the input {value.shape[1]}")
    return torch.empty_like(value)


class _Recorder(fx.Interpreter):
    """Runs every node on fake tensors and hands over what it gives."""

    def __init__(self, module: fx.GraphModule, mode: FakeTensorMode, record: Callable[[fx.Node, Any], None]) -> None:
        super().__init__(module)
        self.extra_traceback = False  # the interpreter would add lines to the message of an error that says it all
        self.mode = mode
        self.record = record

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        layer = self.fetch_attr(target)
        if isinstance(
            layer, nn.modules.batchnorm._NormBase
        ):  # in training mode it would also count batches, in the user's model
            return _same_shape(layer, args[0])
        return super().call_module(target, args, kwargs)

    def run_node(self, node: fx.Node) -> Any:
        try:
            value = super().run_node(node)
        except Exception as error:
            where = node.meta.get("source") or node.meta.get("path") or node.name
            what = f"{node.name} ({node.target}), {where}"
            if type(error).__name__ in _BY_VALUES:
                raise CaptureError(f"the size of what comes out of {what} depends on values") from error
            raise CaptureError(
                f"shapes do not fit at {what}: {(str(error).strip() or type(error).__name__).splitlines()[0]}"
            ) from error
        if node.op == "get_attr" and isinstance(value, Tensor):
            value = self.mode.from_tensor(value)
        self.record(node, value)
        return value


def propagate(module: fx.GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Set ``meta["val"]`` of every node to a fake tensor with concrete sizes (or to the plain value it has).

    Raises:
        CaptureError: The sizes in the graph contradict each other; the message names the node.
    """

    def record(node: fx.Node, value: Any) -> None:
        node.meta["val"] = value
        if node.op != "placeholder":
            node.meta.pop(KEY, None)  # the graph may have changed

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fakes = [mode.from_tensor(x, static_shapes=True) if isinstance(x, Tensor) else x for x in flat_inputs(args, kwargs)]
    with mode, torch.no_grad():
        _Recorder(module, mode, record).run(*fakes, enable_io_processing=False)


def propagate_sizes(
    module: fx.GraphModule, inputs: Sequence[Any], shapes: Sequence[tuple[int, ...] | None]
) -> dict[fx.Node, tuple[int, ...]]:
    """Return the sizes of every tensor of the graph on inputs of other shapes, and note nothing.

    Raises:
        CaptureError: The sizes contradict each other.
    """
    found: dict[fx.Node, tuple[int, ...]] = {}

    def record(node: fx.Node, value: Any) -> None:
        if isinstance(value, Tensor):
            found[node] = tuple(value.shape)

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode, torch.no_grad():
        fakes = [
            torch.empty(shape, dtype=leaf.dtype, device=leaf.device) if shape is not None else leaf
            for leaf, shape in zip(inputs, shapes, strict=True)
        ]
        _Recorder(module, mode, record).run(*fakes, enable_io_processing=False)
    return found
