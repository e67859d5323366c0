"""Random networks as source code: a writer that grammar rules add lines to, and the module that the lines make.

A network is written as text and then executed, so that the smallest failing one can be printed and kept as it is.
"""

from __future__ import annotations

import linecache
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

_T = TypeVar("_T")
_NAME = re.compile(r"\b[vl]\d+\b")
BATCH = 2
KINDS = ("image", "tokens", "vector", "series", "volume")
CHANNEL = {"image": 1, "tokens": 2, "vector": 1, "series": 1, "volume": 1}
"""The dimension of channels by kind: (B, C, H, W), (B, T, C), (B, C), (B, C, L), (B, C, D, H, W)."""


class Choices(Protocol):
    """Where decisions come from: a seed, or Hypothesis, which can shrink them."""

    def integer(self, low: int, high: int) -> int:
        """Return a number from low to high, both included; the lower, the simpler."""


class Seeded:
    """Decisions by a seed."""

    def __init__(self, seed: int) -> None:
        import random

        self.random = random.Random(seed)

    def integer(self, low: int, high: int) -> int:
        """Return a number from low to high."""
        return self.random.randint(low, high)


@dataclass(frozen=True)
class Value:
    """What a line of the forward pass has made; sizes are without the batch."""

    name: str
    kind: str
    sizes: tuple[int, ...]

    @property
    def channels(self) -> int:
        """How many channels it has."""
        return self.sizes[CHANNEL[self.kind] - 1]

    def of(self, channels: int) -> tuple[int, ...]:
        """Return its sizes with another number of channels."""
        sizes = list(self.sizes)
        sizes[CHANNEL[self.kind] - 1] = channels
        return tuple(sizes)


@dataclass(frozen=True)
class Operation:
    """A rule of the grammar.

    Attributes:
        name: The function's.
        kinds: Kinds of values that it takes.
        write: Adds lines; returns what they make, or None where the value does not fit.
        reads: Whether what is left of a value depends on all of its channels, so that a zero is not an absence.
        bakes: Whether the code names sizes that change with the widths.
        repeats: Whether it makes new places, by repeating values or mixing others. A parameter that tells these apart
            makes units of them, and a mean over places is then one over what is left.
    """

    name: str
    kinds: tuple[str, ...]
    write: Callable[[Writer, Value], Value | None]
    reads: bool
    bakes: bool
    repeats: bool


OPERATIONS: dict[str, Operation] = {}
_Write = Callable[["Writer", Value], "Value | None"]


def operation(
    *kinds: str,
    reads: bool = False,
    bakes: bool = False,
    repeats: bool = False,
    table: dict[str, Operation] = OPERATIONS,
) -> Callable[[_Write], _Write]:
    """Register a rule of the grammar under its own name, in the table of all networks or one of a tool's own."""

    def register(write: _Write) -> _Write:
        name = write.__name__.strip("_")
        if name in table or name in OPERATIONS:
            raise ValueError(f"there are two rules {name!r}")
        table[name] = Operation(name, kinds, write, reads, bakes, repeats)
        return write

    return register


@dataclass
class Writer:
    """The network so far."""

    choices: Choices
    values: list[Value] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    layer_names: dict[str, str] = field(default_factory=dict)
    used: list[str] = field(default_factory=list)

    def integer(self, low: int, high: int) -> int:
        """Choose a number; the lower, the simpler."""
        return self.choices.integer(low, high)

    def pick(self, options: Sequence[_T]) -> _T:
        """Choose one; the earlier, the simpler."""
        return options[self.integer(0, len(options) - 1)]

    def width(self) -> int:
        """Choose a number of channels."""
        return self.pick((4, 6, 8, 12))

    def divisor(self, *numbers: int) -> int | None:
        """Choose a number above one that divides all of these, and is less than each; None if there is none."""
        common = math.gcd(*numbers)
        fitting = [number for number in (2, 3, 4, 6) if common % number == 0 and number < common]
        return self.pick(fitting) if fitting else None

    def layer(self, code: str) -> str:
        """Add a layer, parameter or buffer, written as what is assigned to it."""
        name = f"l{len(self.layers)}"
        self.layers.append(f"self.{name} = {code}")
        return f"self.{name}"

    def buffer(self, code: str) -> str:
        """Add a buffer."""
        name = f"l{len(self.layers)}"
        self.layers.append(f'self.register_buffer("{name}", {code})')
        return f"self.{name}"

    def let(self, code: str, kind: str, sizes: Sequence[int]) -> Value:
        """Add a line to the forward pass."""
        name = f"v{len(self.lines)}"
        self.lines.append(f"{name} = {code}")
        return Value(name, kind, tuple(sizes))

    def same(self, code: str, like: Value) -> Value:
        """Add a line whose result has the sizes of another value."""
        return self.let(code, like.kind, like.sizes)

    def leave_out_unused(self, outputs: str) -> None:
        """Drop lines and layers that no output depends on; an exporter drops them too."""
        needed, lines = set(_NAME.findall(outputs)), list[str]()
        for line in reversed(self.lines):
            name, _, code = line.partition(" = ")
            if name in needed:
                needed |= set(_NAME.findall(code))
                lines.append(line)
        self.lines = lines[::-1]
        self.layers = [layer for layer in self.layers if needed & set(_NAME.findall(layer)[:1])]

    def partner(self, value: Value) -> Value | None:
        """Choose another value of the same kind and sizes."""
        fitting = [other for other in reversed(self.values) if other.kind == value.kind and other.sizes == value.sizes]
        fitting = [other for other in fitting if other.name != value.name]
        return self.pick(fitting) if fitting else None


@dataclass(frozen=True)
class Program:
    """A random network.

    Attributes:
        source: The class ``Network``, as Python.
        inputs: Sizes of the inputs, without the batch.
        operations: Rules that wrote it.
        reads: Whether a rule with ``reads`` or ``repeats`` is among them.
        bakes: Whether a rule with ``bakes`` is among them.
    """

    source: str
    inputs: tuple[tuple[int, ...], ...]
    operations: tuple[str, ...]
    reads: bool
    bakes: bool

    def build(self, seed: int = 0) -> nn.Module:
        """Return the network in float64 and evaluation mode, every parameter and statistic random.

        Fresh layers have scales of one and biases of zero, which hide most mistakes.
        """
        torch.manual_seed(seed)
        name = f"<network {abs(hash(self.source)):x}>"
        linecache.cache[name] = (len(self.source), None, self.source.splitlines(keepends=True), name)
        space: dict[str, Any] = {}
        exec(compile(self.source, name, "exec"), space)
        model: nn.Module = space["Network"]().double().eval()
        generator = torch.Generator().manual_seed(seed + 1)
        with torch.no_grad():
            for key, value in [*model.named_parameters(), *model.named_buffers()]:
                if not value.is_floating_point():
                    continue
                noise = torch.randn(value.shape, generator=generator, dtype=value.dtype)
                if key.endswith("running_var") or (value.dim() == 1 and key.endswith("weight")):
                    value.copy_(0.5 + noise.abs())
                else:
                    fan = math.prod(value.shape[1:]) if value.dim() > 1 else 10
                    value.copy_(noise / math.sqrt(max(1, fan)))
        return model

    def example(self, batch: int = BATCH, seed: int = 0) -> tuple[Tensor, ...]:
        """Return inputs."""
        generator = torch.Generator().manual_seed(seed)
        return tuple(torch.randn(batch, *sizes, generator=generator, dtype=torch.double) for sizes in self.inputs)


STARTS = {"image": (3, 6, 6), "tokens": (5, 6), "vector": (7,), "series": (3, 8), "volume": (2, 3, 4, 4)}
HEADS = {
    "image": "{}.mean((2, 3))", "tokens": "{}.mean(1)", "vector": "{}", "series": "{}.amax(2)",
    "volume": "{}.mean((2, 3, 4))",
}  # fmt: skip
_INDENT = " " * 8


def write_program(choices: Choices, most: int = 12, more: Sequence[Operation] = ()) -> Program:
    """Write a network of at most so many operations, by the rules of the grammar and some more, if any."""
    writer = Writer(choices)
    kind = writer.pick(KINDS)
    writer.values.append(Value("x0", kind, STARTS[kind]))
    inputs = [STARTS[kind]]
    if writer.integer(0, 5) == 5:
        writer.values.append(Value("x1", kind, STARTS[kind]))
        inputs.append(STARTS[kind])
    allowed = [*more, *OPERATIONS.values()]
    plain = writer.integer(0, 1) == 0  # half of the networks can be held to the reference of zeros
    if plain:
        allowed = [rule for rule in allowed if not rule.reads]
    _begin(writer)
    for _ in range(writer.integer(1, most)):
        # Mostly what was made last, else there is a heap of branches in place of a network.
        back = min(writer.pick((0, 0, 0, 0, 1, 2)), len(writer.values) - 1)
        value = writer.values[-1 - back]
        fitting = [rule for rule in allowed if value.kind in rule.kinds]
        rule = writer.pick(fitting)
        made = rule.write(writer, value)
        if made is not None:
            writer.values.append(made)
            writer.used.append(rule.name)
    return _finish(writer, inputs, {rule.name: rule for rule in (*OPERATIONS.values(), *more)})


def _begin(writer: Writer) -> None:
    """Mostly begin with a layer, because the channels of inputs stay, and so does all that they are added to."""
    value = writer.values[-1]
    if writer.integer(0, 7) < 7:
        name = "linear" if value.kind in ("tokens", "vector") else "conv"
        made = OPERATIONS[name].write(writer, value)
        assert made is not None  # these take any value
        writer.values.append(made)
        writer.used.append(name)


def _finish(writer: Writer, inputs: list[tuple[int, ...]], known: dict[str, Operation]) -> Program:
    """End in one or two heads: linear layers whose outputs stay, over what was made last and something before it."""
    ends = [writer.values[-1]]
    if len(writer.values) > 2 and writer.integer(0, 2) == 2:
        ends.append(writer.pick(writer.values[1:-1]))
    outputs = []
    for end in ends:
        head = writer.layer(f"nn.Linear({end.channels}, 4)")
        outputs.append(f"{head}({HEADS[end.kind].format(end.name)})")
    writer.leave_out_unused(" ".join(outputs))
    names = ", ".join(f"x{index}" for index in range(len(inputs)))
    lines = ["import torch", "from torch import nn", "from torch.nn import functional as F", "", ""]
    lines += ["class Network(nn.Module):", "    def __init__(self):", f"{_INDENT}super().__init__()"]
    lines += [f"{_INDENT}{line}" for line in writer.layers]
    lines += ["", f"    def forward(self, {names}):", *(f"{_INDENT}{line}" for line in writer.lines)]
    lines += [f"{_INDENT}return {', '.join(outputs)}", ""]
    rules = [known[name] for name in writer.used]
    return Program(
        "\n".join(lines), tuple(inputs), tuple(writer.used),
        any(rule.reads or rule.repeats for rule in rules), any(rule.bakes for rule in rules),
    )  # fmt: skip
