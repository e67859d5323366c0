"""The one table of rules, and what a rule gets to work with.

A rule says how labels flow through one operation: it reads the labels of the operands, ties, splits, merges or freezes,
and returns the labels of the result. An operation without a rule freezes everything that enters it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.capture import Scaled, Traced
from fxprune.channels.labels import Axes, Axis, Labels, factor_sizes, factors_of

Rule = Callable[["Flow", fx.Node], Any]


class Held(enum.Enum):
    """What a channel holds behind an operation, where it holds the same value everywhere in front of it."""

    BIAS = "what a layer without weights gives: its bias or shift"
    PASSED = "the value that it had, as means and extremes of one value do"
    COMPUTED = "the result for that value, where no other operand brings data into the channel"
    MOVED = "the result for that value: other operands bring other channels, not other values"
    LOST = "nothing that is known"


@dataclass(frozen=True)
class Entry:
    """What the table knows of one operation.

    Attributes:
        flow: How labels flow through it.
        held: What it makes of a channel that holds one value.
    """

    flow: Rule
    held: Held


RULES: dict[Any, Entry] = {}


def rule(*keys: Any, held: Held) -> Callable[[Rule], Rule]:
    """Register a rule for operation packets, module classes or plain functions; two for one key are an error."""

    def register(function: Rule) -> Rule:
        for key in keys:
            if key in RULES:
                raise ValueError(f"two rules for {key}")
            RULES[key] = Entry(function, held)
        return function

    return register


class Flow:
    """The labels of every value of one graph while the rules walk over it.

    Attributes:
        labels: Where ties, grids and freezes are collected.
        env: Labels of every node's value: a tuple with one entry per dimension, or a list of such for several outputs.
        parameters: Labels of every parameter and buffer by name.
        groups: The group factor of grouped convolutions and group norms, by node.
        heads: Attention by node: labels of the head width whose square root scales the scores.
    """

    def __init__(self, traced: Traced) -> None:
        self.module = module = traced.module
        self.scaled = Scaled(traced)
        self.pinned = traced.regions.pinned if traced.regions is not None else {}
        self.labels = Labels()
        self.env: dict[fx.Node, Any] = {}
        self.parameters: dict[str, Axes] = {}
        self.groups: dict[fx.Node, Axis | None] = {}
        self.node: fx.Node | None = None
        self._names: dict[int, str] = {}
        self.aliases: dict[str, str] = {}  # every name of a tied tensor -> the one it is listed under
        self.sources = {n.name: _short(n.meta.get("source", "")) for n in module.graph.nodes}
        tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
        for name, tensor in tensors:
            self.aliases[name] = self._names.setdefault(id(tensor), name)

    # reading

    def axes(self, value: Any) -> Axes:
        """Return the labels of a tensor operand."""
        found = self.env[value]
        return tuple(found)

    def shape(self, node: Any) -> tuple[int, ...]:
        """Return the concrete sizes of a tensor node."""
        return tuple(int(s) for s in node.meta["val"].shape)

    def is_tensor(self, value: Any) -> bool:
        """Whether an argument is a node that holds one tensor."""
        return isinstance(value, fx.Node) and isinstance(value.meta.get("val"), Tensor)

    def tensors(self, node: fx.Node) -> list[fx.Node]:
        """Return all single-tensor operands."""
        return [n for n in node.all_input_nodes if self.is_tensor(n)]

    def parameter(self, tensor: Tensor | None, labelled: int | None = None) -> Axes:
        """Return the labels of a parameter or buffer, made at the first call.

        Args:
            tensor: The parameter or buffer.
            labelled: How many of its first dimensions get labels (None: all).
        """
        assert tensor is not None
        name = self._names[id(tensor)]
        if name not in self.parameters:
            count = tensor.ndim if labelled is None else labelled
            self.parameters[name] = tuple(
                self.labels.fresh(size) if size > 1 and d < count else None for d, size in enumerate(tensor.shape)
            )
        return self.parameters[name]

    # relating

    @property
    def place(self) -> str:
        """Where the walk is now."""
        return self.node.name if self.node is not None else "?"

    def freeze(self, axis: Axis | None, reason: str) -> None:
        """Freeze an axis at the current node."""
        self.labels.freeze(axis, reason, self.place)

    def meet(
        self, one: Axis | None, other: Axis | None, what: str = "meets a batch, space or sequence dimension"
    ) -> Axis | None:
        """Relate dimensions that are used index by index: tied if both are labelled, frozen if one is opaque."""
        if one is None or other is None or one.size != other.size:  # of unlike sizes: not index by index after all
            self.freeze(one, what)
            self.freeze(other, what)
            return None
        self.labels.tie(one, other)
        return one

    def opaque(self, value: Any) -> Any:
        """Return labels that say nothing, in the structure of a node's value."""
        if isinstance(value, Tensor):
            return (None,) * value.ndim
        if isinstance(value, (list, tuple)):
            return [self.opaque(item) for item in value]
        return None

    def freeze_all(self, node: fx.Node, reason: str) -> Any:
        """Freeze whatever enters a node, and return opaque labels for its result."""
        for operand in node.all_input_nodes:
            self._freeze_nested(self.env.get(operand), reason)
        return self.opaque(node.meta.get("val"))

    def _freeze_nested(self, found: Any, reason: str) -> None:
        if isinstance(found, (list, tuple)):
            for item in found:
                if isinstance(item, (list, tuple)):
                    self._freeze_nested(item, reason)
                else:
                    self.freeze(item, reason)

    def reshape(self, source: fx.Node, node: fx.Node) -> Axes:
        """Carry labels through a change of shape that keeps the order of elements."""
        axes, before, after = self.axes(source), self.shape(source), self.shape(node)
        if 0 in before or 0 in after:
            return (None,) * len(after)
        pieces = factor_sizes(before, after)
        if pieces is None:
            for axis in axes:
                self.freeze(axis, f"a reshape from {tuple(before)} to {tuple(after)} has no common factors")
            return (None,) * len(after)
        factors: list[Axis | None] = []
        for axis, size, parts in zip(axes, before, pieces[0], strict=True):
            if axis is None or len(parts) == 1 or size == 1:
                factors += [axis] * len(parts) if len(parts) == 1 else [None] * len(parts)
            else:
                factors += self.labels.split(axis, parts, self.place)
        factors = self._for_every_batch(source, node, factors)
        result: list[Axis | None] = []
        position = 0
        for parts in pieces[1]:
            mine = factors[position : position + len(parts)]
            position += len(parts)
            result.append(self.labels.merge(mine, parts, self.place) if len(parts) != 1 else mine[0])
        return tuple(result)

    def _for_every_batch(self, source: fx.Node, node: fx.Node, labels: list[Axis | None]) -> list[Axis | None]:
        """Freeze the factors of a reshape that lie elsewhere at another batch size, and return the others."""
        if all(axis is None for axis in labels):
            return labels
        here = factors_of(self.shape(source), self.shape(node))
        lost = set(here)
        for sizes in self.scaled.sizes(source, node):
            lost = set(here).difference(factors_of(*sizes))
            if not any(axis is not None and factor in lost for factor, axis in zip(here, labels, strict=True)):
                return labels
        reason = f"a reshape from {self.shape(source)} to {self.shape(node)} moves it elsewhere at other batch sizes"
        for factor, axis in zip(here, labels, strict=True):
            self.freeze(axis if factor in lost else None, reason)
        return [None if factor in lost else axis for factor, axis in zip(here, labels, strict=True)]

    def run(self) -> None:
        """Walk over the graph once, in order."""
        for node in self.module.graph.nodes:
            self.node = node
            self.env[node] = self._without_singles(self._visit(node))
        for name, place in self.pinned.items():
            for axis in self.parameters.get(self.aliases.get(name, name), ()):
                self.labels.freeze(axis, "the model's own code reads it outside of the captured regions", place)

    def _without_singles(self, found: Any) -> Any:
        """Freeze the only label of a dimension: without it nothing is left that could be broadcast or reshaped."""
        if isinstance(found, list):
            return [self._without_singles(item) for item in found]
        if not isinstance(found, tuple):
            return found
        for axis in found:
            if axis is not None and axis.size == 1:
                self.freeze(axis, "a single channel is picked by number")
        return tuple(None if axis is not None and axis.size == 1 else axis for axis in found)

    def _visit(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self.opaque(node.meta["val"])
        if node.op == "get_attr":
            value = self.module
            for atom in str(node.target).split("."):
                value = getattr(value, atom)
            return self.parameter(value) if isinstance(value, Tensor) else None
        if node.op == "output":
            return self.freeze_all(node, "the model returns it")
        key = key_of(node, self.module)
        found = RULES.get(key)
        if found is None:
            return self.freeze_all(node, f"no rule for {key.__name__ if node.op == 'call_module' else node.target}")
        return found.flow(self, node)

    def layer(self, node: fx.Node) -> nn.Module:
        """Return the module that a node calls."""
        return self.module.get_submodule(str(node.target))


def key_of(node: fx.Node, module: nn.Module) -> Any:
    """Return what the table lists a call under: the class of a module, the packet of an operation, or the function.

    Operations of other libraries are listed by name (``"torchvision.deform_conv2d"``), so that nothing is imported.
    """
    if node.op == "call_module":
        return type(module.get_submodule(str(node.target)))
    if not isinstance(node.target, torch._ops.OpOverload):
        return node.target
    packet = node.target.overloadpacket
    return packet if node.target.namespace == "aten" else str(packet)


def packets(*names: str) -> list[Any]:
    """Return the ATen packets of these names that this version of torch has."""
    return [getattr(torch.ops.aten, name) for name in names if hasattr(torch.ops.aten, name)]


def integer(value: Any) -> int:
    """Return an argument that the schema promises to be a number; the types of ``node.args`` do not say so."""
    return int(value)


def argument_of(node: fx.Node, name: str, default: Any = None) -> Any:
    """Return an argument of an ATen call by its name in the schema, or the schema's default."""
    for position, found in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if found.name == name:
            if position < len(node.args):
                return node.args[position]
            return node.kwargs.get(name, found.default_value if found.has_default_value() else default)
    return default


def _short(source: str) -> str:
    """Return ``file:line`` of a source line, with the last folder only."""
    parts = source.split(": ", 1)[0].replace("\\", "/").split("/")
    return "/".join(parts[-2:])
