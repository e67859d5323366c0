"""Running somebody's model so that it, its inputs and the random numbers are afterwards what they were before."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

_PLAIN = (str, bytes, int, float, complex, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)
_WITHOUT_CACHES = ("torch.nn.", "torchvision.")
"""Packages whose layers remember nothing of a forward."""
_KEPT = ("_parameters", "_buffers", "_modules", "training")
"""Attributes of a module that others put back: ``running`` and ``program.quiet_eval``."""


def copied(leaf: Any) -> Any:
    """Copy a tensor, or an object that a forward may change, such as a cache of keys and values."""
    if isinstance(leaf, Tensor):
        return leaf.detach().clone()
    return apart(leaf)


def apart(leaf: Any) -> Any:
    """Return a tensor or a plain value itself, and a copy of any other object."""
    if isinstance(leaf, (Tensor, nn.Module, *_PLAIN)) or callable(leaf):
        return leaf
    try:
        return copy.deepcopy(leaf)
    except Exception:  # a file, a lock, a tensor inside a graph of gradients: whatever it is, it can only be handed on
        return leaf


@contextlib.contextmanager
def running(model: nn.Module) -> Iterator[list[str]]:
    """Let a model run without gradients, always with the same random numbers, and put back the tensors it writes into.

    Yields:
        Names of the parameters that were written into, complete once the context is left.
    """
    written = list[str]()
    keep = _KeepParameters(model)
    with _restored(model), torch.no_grad(), _same_random_numbers(), torch.compiler.set_stance("force_eager"):
        try:
            with keep:
                yield written
        finally:
            written += keep.put_back()


@dataclass
class Warmed:
    """What a model did when it ran before it was exported.

    Attributes:
        notes: What is to be said of it.
        outputs: What it returned: once, where that can be held against a graph, else not at all.
    """

    notes: list[str] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)


def warm(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Warmed:
    """Run a model once before it is exported.

    A forward that remembers what it computes (``functools.lru_cache``, a dictionary of positions) would otherwise
    remember an exporter's fake tensors, and go on with them when the model runs the next time.
    """
    found = Warmed()
    if all(map(_remembers_nothing, model.modules())):
        return found
    tensors = [*model.parameters(), *model.buffers(), *pytree.tree_leaves((args, kwargs))]
    if any(isinstance(tensor, Tensor) and tensor.is_meta for tensor in tensors):
        return found  # nothing to compute with
    written = list[str]()
    # What fails here fails again when it is exported, and is told there.
    with contextlib.suppress(Exception), running(model) as names:
        written = names
        given = pytree.tree_map(copied, (args, kwargs))
        found.outputs.append(model(*given[0], **given[1]))
    if written:
        found.outputs.clear()  # the next call will not do the same
        found.notes.append(
            f"the model's first call writes into {', '.join(written)}, which is as before: where a call on data sets "
            "its weights up, run the model on data first, then trace it"
        )
    return found


def _remembers_nothing(module: nn.Module) -> bool:
    """Whether a module's code is known, and nothing is hung on it."""
    hooks = (module._forward_pre_hooks, module._forward_hooks)
    return (
        f"{type(module).__module__}.".startswith(_WITHOUT_CACHES) and "forward" not in vars(module) and not any(hooks)
    )


@contextlib.contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Put back the attributes of all modules that were set meanwhile: counters, flags, what a hook or a cache kept."""
    were = [(vars(module), dict(vars(module))) for module in model.modules()]
    try:
        yield
    finally:
        for now, before in were:
            for name in [name for name in now if name not in before]:
                del now[name]
            now.update({name: value for name, value in before.items() if name not in _KEPT})


@contextlib.contextmanager
def _same_random_numbers() -> Iterator[None]:
    plain, arrays = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            random.seed(0)
            np.random.seed(0)
            yield
    finally:
        random.setstate(plain)
        np.random.set_state(arrays)


@contextlib.contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Put back the buffers that are written into, and the slots of parameters and buffers that are replaced."""
    slots = [(store, dict(store)) for module in model.modules() for store in (module._parameters, module._buffers)]
    tensors = {id(t): t for _, before in slots for t in before.values() if t is not None}
    written = [tensor for tensor in tensors.values() if _may_change(tensor)]
    were = [(tensor, tensor.detach(), tensor._version, tensor.detach().clone()) for tensor in written]
    try:
        yield
    finally:
        for store, before in slots:
            store.clear()
            store.update(before)  # type: ignore[arg-type]
        with torch.no_grad():
            for tensor, held, version, value in were:
                if _put_back_memory(tensor, held) or tensor._version != version:
                    tensor.copy_(value)


def _may_change(tensor: Tensor) -> bool:
    """A forward writes buffers; a copy of all weights would cost too much, see :class:`_KeepParameters`."""
    return not isinstance(tensor, nn.Parameter) and not tensor.is_inference()


def _put_back_memory(tensor: Tensor, held: Tensor) -> bool:
    """Give a tensor the memory again that it held, if ``tensor.data = ...`` gave it another; return whether so."""

    def place(given: Tensor) -> Any:
        return storage_of(given), given.storage_offset(), given.shape, given.stride()

    if place(tensor) == place(held):
        return False
    tensor.data = held
    return True


class _KeepParameters(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Copies a parameter when something is about to write into it."""

    supports_higher_order_operators = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.owners: dict[Any, list[tuple[str, Tensor]]] = {}
        for name, parameter in model.named_parameters():
            self.owners.setdefault(memory_of(parameter), []).append((name, parameter))
        self.held = [(name, parameter, parameter.detach()) for name, parameter in model.named_parameters()]
        self.were: dict[str, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        schema = getattr(func, "_schema", None)
        if schema is not None and schema.is_mutable:
            given = {argument.name: value for argument, value in zip(schema.arguments, args, strict=False)}
            given.update(kwargs or {})
            written = [a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
            for leaf in pytree.tree_leaves([given.get(name) for name in written]):
                if isinstance(leaf, Tensor):
                    self._keep(leaf)
        return func(*args, **(kwargs or {}))

    def _keep(self, tensor: Tensor) -> None:
        for name, parameter in self.owners.get(memory_of(tensor), ()):
            if name not in self.were:
                self.were[name] = parameter, parameter.detach().clone()

    def put_back(self) -> list[str]:
        """Write the parameters that changed as they were; return their names."""
        changed = [name for name, parameter, held in self.held if _put_back_memory(parameter, held)]
        for name, (parameter, value) in self.were.items():
            if not torch.equal(parameter.detach(), value):
                parameter.detach().copy_(value)
                changed += [] if name in changed else [name]
        return changed


def memory_of(tensor: Tensor) -> Any:
    """Return what two tensors share where one is a view of the other, or both of a third."""
    try:
        return tensor.untyped_storage().data_ptr() or id(tensor)
    except (NotImplementedError, RuntimeError):  # sparse and the like
        return id(tensor)


def storage_of(tensor: Tensor) -> int:
    """Return what is one for all views of a memory, as long as something keeps it from being given away again."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # sparse and the like
        return 0
