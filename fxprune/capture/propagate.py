"""Shapes of every value in a graph, by running it on fake tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from fxprune.errors import CaptureError


def flat_inputs(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """Return the inputs in the order of the graph's placeholders."""
    return pytree.tree_leaves((args, kwargs))


def run_flat(module: fx.GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run the graph on the given inputs and return what its output node holds, without packing it."""
    return fx.Interpreter(module).run(*flat_inputs(args, kwargs), enable_io_processing=False)


class _Recorder(fx.Interpreter):
    """Runs every node on fake tensors and keeps what it gives in ``meta["val"]``."""

    def __init__(self, module: fx.GraphModule, mode: FakeTensorMode) -> None:
        super().__init__(module)
        self.mode = mode

    def run_node(self, node: fx.Node) -> Any:
        try:
            value = super().run_node(node)
        except Exception as error:
            where = node.meta.get("source") or node.meta.get("path") or node.name
            raise CaptureError(f"shapes do not fit at {node.name} ({node.target}), {where}: {error}") from error
        if node.op == "get_attr" and isinstance(value, Tensor):
            value = self.mode.from_tensor(value)
        node.meta["val"] = value
        return value


def propagate(module: fx.GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Set ``meta["val"]`` of every node to a fake tensor with concrete sizes (or to the plain value it has).

    Raises:
        CaptureError: The sizes in the graph contradict each other; the message names the node.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fakes = [mode.from_tensor(x, static_shapes=True) if isinstance(x, Tensor) else x for x in flat_inputs(args, kwargs)]
    with mode, torch.no_grad():
        _Recorder(module, mode).run(*fakes, enable_io_processing=False)
