"""What the tables say of one operation agrees: each is cut alone, and held to the masked reference.

A rule that keeps labels needs a rewrite where the call carries sizes or positions, a statistic has to be taken over
what is left in the reference, and a constant that a removed channel is said to hold has to be what it holds. Nobody has
to keep the tables alike by hand: an operation that one of them does not know well enough fails here.
"""

from __future__ import annotations

import contextlib
import operator
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from fxprune.capture import Traced, propagate
from fxprune.channels import Groups, find_groups
from fxprune.channels.rules import RULES
from fxprune.surgery import Kept, cut, verify_cut
from fxprune.surgery.constants import constants
from fxprune.surgery.literals import REWRITES
from tests.surgery.operations import CALLS, MODULES

aten = torch.ops.aten
NUMBERS = {"sym_size", "sym_numel", "item", "_local_scalar_dense", "_assert_scalar", "_assert_tensor_metadata"}
RAGGED = {"nonzero"}  # as many results as the data has
RANDOM = {
    "bernoulli",
    "rand_like",
    "rand",
    "randn",
    "randint",
    "empty",
    "empty_like",
    "new_empty",
}  # only shapes can be compared
NEEDS_RANDOM = {"fractional_max_pool2d", "fractional_max_pool3d"}  # reads a random number per channel
SINGLE = {"_grouped_mm"}  # has no kernel for float64
GUESSES = [("$h",), ("$h", "$g"), ("$h", "$g", "$k"), ("$h", 0.5)]
BATCHES = (2, 3)


class Builder:
    """Builds a graph call by call, and what each gives at two batch sizes, which tells where the batch is."""

    def __init__(self) -> None:
        self.root, self.graph = nn.Module(), fx.Graph()
        self.values: dict[fx.Node, list[Any]] = {}
        self.made: dict[str, fx.Node] = {}
        self.outputs: list[fx.Node] = []
        self.args = []
        torch.manual_seed(0)
        layers = (nn.Conv2d, 3, (4, 4)), (nn.Conv1d, 3, (4,)), (nn.Conv3d, 3, (2, 2, 2)), (nn.Linear, 5, (3,))
        inputs = [self._input(channels, sizes) for _, channels, sizes in layers]
        for name, source in (("h", 0), ("g", 0), ("k", 0), ("s", 1), ("v", 2), ("t", 3), ("a", 3)):
            kind: Any = layers[source][0]
            self.root.add_module(name, kind(3, 8) if kind is nn.Linear else kind(3, 8, 1))
            self.made[f"${name}"] = self.call("sigmoid", self.module(name, inputs[source]))
        self.made["$x"] = inputs[0]

    def _input(self, channels: int, sizes: tuple[int, ...]) -> fx.Node:
        node = self.graph.placeholder(f"x{len(self.args)}")
        self.values[node] = [torch.randn(batch, channels, *sizes, dtype=torch.double) for batch in BATCHES]
        self.args.append(self.values[node][0])
        return node

    def module(self, name: str, source: fx.Node) -> fx.Node:
        """Call a module of the root."""
        layer = self.root.get_submodule(name).double().eval()
        node = self.graph.call_module(name, (source,))
        with torch.no_grad():
            self.values[node] = [layer(value) for value in self.values[source]]
        return node

    def call(self, name: str, *args: Any) -> fx.Node:
        """Call the overload of an operation that takes these arguments."""
        given = [self.operand(arg) for arg in args]
        packet = getattr(aten, name)
        for overload in packet.overloads():
            target = getattr(packet, overload)
            if "out" in overload.split("_") or target._schema.is_mutable:
                continue
            with contextlib.suppress(Exception):
                self.values[None] = [target(*self._of(given, at)) for at in range(len(BATCHES))]  # type: ignore[index]
                node = self.graph.call_function(target, tuple(given))
                self.values[node] = self.values.pop(None)  # type: ignore[call-overload]
                return node
        raise TypeError(f"{name} does not take {args}")

    def _of(self, found: Any, at: int) -> Any:
        if isinstance(found, fx.Node):
            return self.values[found][at]
        return [self._of(item, at) for item in found] if isinstance(found, list) else found

    def operand(self, value: Any) -> Any:
        """Return the node that an argument of a listed call stands for."""
        if isinstance(value, list):
            return [self.operand(item) for item in value]
        if isinstance(value, tuple):
            return self.call(value[0][1:], *value[1:])
        if not isinstance(value, str) or not value.startswith("$"):
            return value
        kind, _, rest = value[1:].partition(":")
        if rest:
            return self._tensor(kind, [int(size) for size in rest.split(",")])
        if value not in self.made:
            calls: dict[str, Any] = {
                "z": lambda: self.call("mean", "$h", [2, 3], True),
                "u": lambda: self.call("transpose", "$a", 1, 2),
                "m": lambda: self.call("gt", "$h", 0.5),
                "n": lambda: self.call("gt", "$g", 0.5),
                "B": lambda: self.call("sym_size", "$x", 0),
            }
            self.made[value] = calls[kind]()
        return self.made[value]

    def _tensor(self, kind: str, numbers: list[int]) -> fx.Node:
        name = f"made{len(list(self.root.parameters())) + len(list(self.root.buffers()))}"
        if kind == "i":
            self.root.register_buffer(name, torch.tensor(numbers))
        elif kind == "f":
            self.root.register_buffer(name, torch.rand(numbers, dtype=torch.double) + 0.5)
        else:
            self.root.register_parameter(name, nn.Parameter(torch.randn(numbers, dtype=torch.double)))
        node = self.graph.get_attr(name)
        self.values[node] = [getattr(self.root, name).detach()] * len(BATCHES)
        return node

    def read(self, node: fx.Node) -> None:
        """Read every number of a value with a weight of its own, so that no two can change places unnoticed."""
        one, other = self.values[node]
        if isinstance(one, (list, tuple)):
            for index in range(len(one)):
                piece = self.graph.call_function(operator.getitem, (node, index))
                self.values[piece] = [one[index], other[index]]
                self.read(piece)
            return
        if not isinstance(one, Tensor):
            return
        if one.is_complex():
            self.read(self.call("view_as_real", self.call("resolve_conj", node)))
            return
        if one.dtype != torch.double:
            node = self.call("_to_copy", node)
            node.kwargs = {"dtype": torch.double}
            self.values[node] = [one.double(), other.double()]
        sizes = [a if a == b else 1 for a, b in zip(one.shape, other.shape, strict=True)]
        weighted = self.call("mul", node, self._tensor("p", sizes)) if sizes else node
        static = [d for d, (a, b) in enumerate(zip(one.shape, other.shape, strict=True)) if a == b]
        self.outputs.append(self.call("sum", weighted, static) if static else weighted)

    def build(self) -> Traced:
        """Return the finished network, which reads the images too."""
        self.read(self.made["$h"])
        self.graph.output(tuple(self.outputs))
        module = fx.GraphModule(self.root, self.graph)
        module.graph.eliminate_dead_code()
        args = tuple(self.args)
        propagate(module, args, {})
        return Traced(module, args, {}, tuple({0: torch.export.Dim.AUTO} for _ in args))


def packets() -> list[str]:
    return sorted(key.__name__ for key in RULES if isinstance(key, torch._ops.OpOverloadPacket))


def networks(name: str) -> Iterator[tuple[Any, Traced, str]]:
    """Yield the one-operation networks of an operation: its arguments, the network, and the name of its node."""
    guesses = CALLS.get(name, GUESSES)
    for args in guesses:
        builder = Builder()
        try:
            node = builder.call(name, *args)
        except TypeError:
            if name in CALLS:
                raise
            continue
        builder.read(node)
        yield args, builder.build(), node.name


def some_of(groups: Groups, seed: int) -> list[int]:
    """Return random units, of which every family and every operation keeps enough."""
    rng = random.Random(seed)
    stays = np.ones(groups.size, bool)
    chosen = []
    for family in groups.families:
        for unit in rng.sample([int(unit) for unit in family], rng.randint(min(1, len(family) - 1), len(family) - 1)):
            stays[unit] = False
            if any(minimum.left(stays) < minimum.least for minimum in groups.minimums):
                stays[unit] = True
            else:
                chosen.append(unit)
    return chosen


def check(traced: Traced, *, exact: bool = True) -> None:
    """Cut at random and compare with the reference; compare what removed channels are said to hold."""
    groups = find_groups(traced)
    for seed in range(3):
        removed = groups.removal(some_of(groups, seed))
        small = cut(traced, removed, groups)
        if exact:
            assert verify_cut(traced, small, removed, groups).max_relative_error < 1e-9
            check_constants(traced, Kept(groups, removed))


class Recorded(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        return self.found.setdefault(n, super().run_node(n))

    found: dict[fx.Node, Any]


def check_constants(traced: Traced, kept: Kept) -> None:
    """A removed channel holds what it is said to, where the weights of the layers that make it are zero."""
    claimed = constants(traced, kept)
    state = {name: tensor.detach().clone() for name, tensor in traced.module.named_parameters()}
    for name, layer in traced.module.named_modules():
        d = 1 if "Transpose" in type(layer).__name__ else 0
        rows = kept.groups.axis(f"{name}.weight", d)
        if rows is not None and not isinstance(layer, (nn.PReLU, nn.RNNBase, nn.Embedding)):
            state[f"{name}.weight"].index_fill_(d, torch.from_numpy(np.flatnonzero(kept.gone[rows])), 0)
    for name, tensor in traced.module.named_parameters():
        tensor.data, state[name] = state[name], tensor.data
    run = Recorded(traced.module)
    run.found = {}
    with torch.no_grad():
        run.run(*traced.args)
    for name, tensor in traced.module.named_parameters():
        tensor.data = state[name]
    for node, vector in claimed.items():
        (d, mask), *_ = [(d, mask) for d, mask in enumerate(kept.masks(node)) if mask is not None]
        places = torch.from_numpy(np.flatnonzero(~mask))
        held = run.found[node].transpose(0, d)[places].reshape(len(places), -1)
        assert torch.allclose(held.double(), torch.from_numpy(vector)[places, None].expand_as(held)), node


@pytest.mark.parametrize("name", [name for name in packets() if name not in NUMBERS | RAGGED | NEEDS_RANDOM | SINGLE])
@pytest.mark.filterwarnings("ignore")
def test_an_operation_alone(name: str) -> None:
    count = 0
    for args, traced, _ in networks(name):
        count += 1
        try:
            check(traced, exact=name not in RANDOM)
        except Exception as error:
            error.add_note(f"{name}{args}")
            raise
    assert count, f"{name} needs a call in tests/surgery/operations.py"


@pytest.mark.parametrize("kind", [key for key in RULES if isinstance(key, type) and issubclass(key, nn.Module)])
def test_a_module_alone(kind: type[nn.Module]) -> None:
    for layer, source in MODULES[kind]:
        builder = Builder()
        for tensor in (*layer.parameters(), *layer.buffers()):
            if tensor.is_floating_point():
                tensor.data = torch.rand(tensor.shape, dtype=torch.double) + 0.1
        builder.root.add_module("layer", layer)
        builder.read(builder.module("layer", builder.operand(source)))
        check(builder.build())


def test_tables_know_the_same_operations() -> None:
    assert set(REWRITES) <= set(RULES), "what has no rule is frozen, and never rewritten"
    assert set(CALLS) <= {*packets(), "softmin"}, "calls of operations that have no rule"
