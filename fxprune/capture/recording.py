"""What the sub-modules of a model are called with and return while it runs, and what passes in and out otherwise."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.capture.no_graph import innermost
from fxprune.capture.untouched import copied, memory_of, running, storage_of

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(eq=False)
class Observed:
    """One call of a sub-module.

    Attributes:
        inputs: Positional and keyword inputs, as they were before it.
        random: The state of the random numbers when it began.
        returned: What it returned.
    """

    inputs: Inputs
    random: list[Tensor]
    returned: Any = None


@dataclass
class Recording:
    """What one forward did.

    Attributes:
        calls: Every call of a sub-module from outside of all the others.
        outside: Names of parameters and buffers that were read outside of them -> the line that did.
        leaks: Sub-modules that take or give something by another way than their inputs and outputs -> what, and where.
    """

    calls: dict[nn.Module, list[Observed]] = field(default_factory=dict)
    outside: dict[str, str] = field(default_factory=dict)
    leaks: dict[nn.Module, str] = field(default_factory=dict)


def record(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], modules: Collection[nn.Module]
) -> Recording:
    """Run a model once, without gradients and always with the same random numbers, and watch some of its modules.

    Tensors of the model that it writes into while it runs are put back as they were.
    """
    found = Recording()
    flow = _Flow(found, _by_memory(model))
    depth = 0

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        nonlocal depth
        if depth == 0:
            with flow.paused():
                call = Observed(pytree.tree_map(copied, (args, kwargs)), random_state())
            found.calls.setdefault(module, []).append(call)
            flow.enter(module, _tensors((args, kwargs)))
        depth += 1

    def leave(module: nn.Module, _: Any, output: Any) -> None:
        nonlocal depth
        depth -= 1
        if depth == 0:
            with flow.paused():
                found.calls[module][-1].returned = pytree.tree_map(copied, output)
            flow.leave(_tensors(output))

    handles: list[Any] = []
    for module in modules:
        handles.append(module.register_forward_pre_hook(enter, prepend=True, with_kwargs=True))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        with running(model), _Watch(flow) if modules else contextlib.nullcontext():
            given = pytree.tree_map(copied, (args, kwargs))
            flow.read(_tensors(model(*given[0], **given[1])))
    finally:
        for handle in handles:
            handle.remove()
    return found


def random_state() -> list[Tensor]:
    """Return the state of the random numbers of all devices that are in use."""
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    return [torch.get_rng_state(), *devices]


def set_random_state(state: list[Tensor]) -> None:
    """Go back to a state of the random numbers."""
    torch.set_rng_state(state[0])
    if state[1:]:
        torch.cuda.set_rng_state_all(state[1:])


def _by_memory(model: nn.Module) -> dict[Any, list[str]]:
    names: dict[Any, list[str]] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        names.setdefault(memory_of(tensor), []).append(name)
    return names


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]


class _Flow:
    """Where the tensors of one forward come from, and who reads them.

    A call of a sub-module has a number; 0 is all that is outside. A tensor made in a call may be read outside only as
    what the call returns, or as a view of that; a call may read only what it is given, what it makes itself, and what
    was there before the forward.
    """

    def __init__(self, found: Recording, names: dict[Any, list[str]]) -> None:
        self.found, self.names = found, names
        self.modules: list[nn.Module | None] = [None]
        self.now = 0
        self.pauses = False
        self.given: dict[int, tuple[Tensor, int]] = {}  # what the call that runs was given, and its version
        self.made: dict[int, tuple[int, StorageWeakRef]] = {}  # storage -> the call that made it
        self.written: dict[
            int, tuple[int, set[Any]]
        ] = {}  # storage -> who wrote into it, given it; what of it returned
        self.public: set[Any] = set()  # what calls returned, and views of it

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Let something be read that the model does not read."""
        self.pauses = True
        try:
            yield
        finally:
            self.pauses = False

    def enter(self, module: nn.Module, inputs: list[Tensor]) -> None:
        self.read(inputs)
        self.given = {storage_of(x): (x, _version(x)) for x in inputs}
        self.now = len(self.modules)
        self.modules.append(module)

    def leave(self, outputs: list[Tensor]) -> None:
        for storage, (tensor, version) in self.given.items():
            if _version(tensor) != version:
                self.written[storage] = self.now, set()
        self.public.update(map(_extent, outputs))
        for tensor in outputs:
            if storage_of(tensor) in self.written:
                self.written[storage_of(tensor)][1].add(_extent(tensor))
        self.given, self.now = {}, 0

    def read(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            storage = storage_of(tensor)
            maker = self.made[storage][0] if storage in self.made else None  # None: it was there before
            if self.now and maker not in (None, self.now) and storage not in self.given:
                self._leak(self.now, "reads a tensor that is made elsewhere and is none of its inputs")
            extent = _extent(tensor)
            if maker and maker != self.now and extent not in self.public:
                self._leak(maker, "makes a tensor that is read elsewhere and is none of its outputs")
            if not self.now:
                if storage in self.written and extent not in self.written[storage][1]:
                    self._leak(self.written[storage][0], "writes into an input that is read again behind it")
                for name in self.names.get(memory_of(tensor), ()):
                    if name not in self.found.outside:
                        self.found.outside[name] = innermost(traceback.extract_stack())

    def wrote(self, given: list[Tensor], results: list[Tensor]) -> None:
        """Note what an operation made of what it was given."""
        known = {storage_of(tensor) for tensor in given}
        for tensor in results:
            storage = storage_of(tensor)
            if storage in known:
                # A view of what may be read here, or else that was told when it was read.
                if storage in self.made and self.made[storage][0] != self.now:
                    self.public.add(_extent(tensor))
                if storage in self.written and not self.now:
                    self.written[storage][1].add(_extent(tensor))
            elif storage and storage not in self.made:
                self.made[storage] = self.now, StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]

    def _leak(self, call: int, what: str) -> None:
        module = self.modules[call]
        if module is not None and module not in self.found.leaks:
            self.found.leaks[module] = f"it {what}, at {innermost(traceback.extract_stack()) or 'an unknown line'}"


def _extent(tensor: Tensor) -> Any:
    """Return what two tensors share that see the same numbers."""
    try:
        return storage_of(tensor), tensor.storage_offset(), tuple(tensor.shape), tensor.stride()
    except (NotImplementedError, RuntimeError):  # sparse and the like
        return None


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Tells which tensors operations read and make."""

    supports_higher_order_operators = True

    def __init__(self, flow: _Flow) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flow = flow

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.flow.pauses:
            return func(*args, **(kwargs or {}))
        given = _tensors((args, kwargs))
        self.flow.read(given)
        result = func(*args, **(kwargs or {}))
        self.flow.wrote(given, _tensors(result))
        return result
