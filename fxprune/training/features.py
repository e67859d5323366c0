"""What layers give out during a forward pass, recorded by hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import hooks

from fxprune.errors import InputError
from fxprune.graph_tools import only_watches


class Recorder:
    """Keeps the outputs of named layers, and the inputs and output of the whole model, of the last forward pass.

    A deep copy of the model carries the hooks along, but they do nothing there: what is recorded is the model's own.

    Args:
        model: Any module; of a wrapper for several processes, the module inside.
        paths: Names of layers, as in ``named_modules``.
        with_gradients: Record only forward passes that track gradients, so that validation in between leaves nothing
            behind.

    Attributes:
        outputs: Path -> one tensor per call of the layer.
        inputs: Positional and keyword arguments of the model; None before the first pass.
        result: What the model returned.
    """

    def __init__(self, model: nn.Module, paths: Iterable[str], *, with_gradients: bool) -> None:
        self.outputs: dict[str, list[Any]] = {}
        self.inputs: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self.result: Any = None
        self._with_gradients = with_gradients
        self._handles: list[hooks.RemovableHandle] = [
            model.register_forward_pre_hook(self._start_of(model), with_kwargs=True),
            model.register_forward_hook(self._end_of(model)),
        ]
        layers = dict(model.named_modules())
        for path in dict.fromkeys(paths):
            self._handles.append(layers[path].register_forward_hook(self._output_of(layers[path], path)))

    # The hooks are closures and not bound methods, which a deep copy of the model would copy along with all they hold.

    def _start_of(self, model: nn.Module) -> Callable[..., None]:
        def start(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if module is model:
                self.clear()
                if self._records():
                    self.inputs = (args, kwargs)

        return only_watches(start)

    def _end_of(self, model: nn.Module) -> Callable[..., None]:
        def end(module: nn.Module, _: Any, output: Any) -> None:
            if module is model and self._records():
                self.result = output

        return only_watches(end)

    def _output_of(self, layer: nn.Module, path: str) -> Callable[..., None]:
        def keep(module: nn.Module, _: Any, output: Any) -> None:
            if module is layer and self._records():
                self.outputs.setdefault(path, []).append(output)

        return only_watches(keep)

    def _records(self) -> bool:
        return torch.is_grad_enabled() or not self._with_gradients

    def clear(self) -> None:
        """Forget the last pass, so that its memory can go."""
        self.outputs, self.inputs, self.result = {}, None, None

    def close(self) -> None:
        """Remove the hooks; a second call does nothing."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.clear()

    def tensors(self, path: str, whose: str) -> list[Tensor]:
        """Return the outputs of a layer, one per call.

        Raises:
            InputError: The layer did not run, or gives no tensor.
        """
        found = self.outputs.get(path, [])
        if not found:
            raise InputError(
                f"layer {path!r} of the {whose} did not run in the forward pass, so it has no features to compare; a "
                "graph calls only layers with parameters: name one of those"
            )
        if not all(isinstance(output, Tensor) for output in found):
            raise InputError(
                f"layer {path!r} of the {whose} returns no single tensor; name a layer inside or behind it"
            )
        return found


def logits_of(output: Any) -> Tensor:
    """Return the logits in what a classifier returns: a tensor, a tuple that starts with it, or a field of that name.

    Raises:
        InputError: There are none.
    """
    if isinstance(output, Tensor):
        return output
    inner = output.get("logits", output.get("out")) if isinstance(output, dict) else getattr(output, "logits", None)
    if inner is None and isinstance(output, tuple | list) and output:
        inner = output[0]
    if isinstance(inner, Tensor):
        return inner
    raise InputError(
        f"the model returns a {type(output).__name__} in which no logits can be found; it must return a tensor, a "
        "tuple that starts with one, or something with a field 'logits'"
    )
