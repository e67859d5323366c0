"""What the sub-modules of a model are called with while it runs, and which parameters are read outside of them."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.capture.program import innermost

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass
class Recording:
    """What one forward did.

    Attributes:
        calls: Positional and keyword inputs of every call of a sub-module from outside of all the others.
        outside: Names of parameters and buffers that were read outside of them -> the line that did.
    """

    calls: dict[nn.Module, list[Inputs]] = field(default_factory=dict)
    outside: dict[str, str] = field(default_factory=dict)


def record(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], modules: Collection[nn.Module]
) -> Recording:
    """Run a model once, without gradients and always with the same random numbers, and watch some of its modules.

    Tensors that the model writes into while it runs are put back as they were.
    """
    found = Recording()
    depth = 0

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        nonlocal depth
        if depth == 0:
            found.calls.setdefault(module, []).append(pytree.tree_map(_copied, (args, kwargs)))
        depth += 1

    def leave(*_: Any) -> None:
        nonlocal depth
        depth -= 1

    handles: list[Any] = []
    for module in modules:
        handles.append(module.register_forward_pre_hook(enter, prepend=True, with_kwargs=True))
        handles.append(module.register_forward_hook(leave, always_call=True))
    watch = _Watch(_by_memory(model), found.outside, lambda: depth == 0)
    try:
        with _restored(model), torch.no_grad(), torch.random.fork_rng(), watch:
            torch.manual_seed(0)
            given = pytree.tree_map(_copied, (args, kwargs))
            model(*given[0], **given[1])
    finally:
        for handle in handles:
            handle.remove()
    return found


def _copied(leaf: Any) -> Any:
    """Copy a tensor: what a sub-module got may be written into later."""
    return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf


def memory_of(tensor: Tensor) -> Any:
    """Return what two tensors share where one is a view of the other, or both of a third."""
    try:
        return tensor.untyped_storage().data_ptr() or id(tensor)
    except (NotImplementedError, RuntimeError):  # sparse and the like
        return id(tensor)


def _by_memory(model: nn.Module) -> dict[Any, list[str]]:
    names: dict[Any, list[str]] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        names.setdefault(memory_of(tensor), []).append(name)
    return names


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes which tensors of the model operations read while ``asked`` says so."""

    supports_higher_order_operators = True

    def __init__(self, names: dict[Any, list[str]], found: dict[str, str], asked: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names, self.found, self.asked = names, found, asked

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.asked():
            for leaf in pytree.tree_leaves((args, kwargs)):
                if isinstance(leaf, Tensor):
                    for name in self.names.get(memory_of(leaf), ()):
                        if name not in self.found:
                            self.found[name] = innermost(traceback.extract_stack())
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Put back the parameters and buffers that are written into, and the slots of those that are replaced."""
    slots = [(store, dict(store)) for module in model.modules() for store in (module._parameters, module._buffers)]
    tensors = {id(t): t for _, before in slots for t in before.values() if t is not None}
    were = [(tensor, tensor._version, tensor.detach().clone()) for tensor in tensors.values() if _may_change(tensor)]
    try:
        yield
    finally:
        for store, before in slots:
            store.clear()
            store.update(before)  # type: ignore[arg-type]
        with torch.no_grad():
            for tensor, version, value in were:
                if tensor._version != version:
                    tensor.copy_(value)


def _may_change(tensor: Tensor) -> bool:
    """Parameters are what an optimiser writes; a forward writes buffers. A copy of all weights would cost too much."""
    return not isinstance(tensor, nn.Parameter) and not tensor.is_inference()
