"""Multiply-accumulates of each operator, as monomials over the sizes of its dimensions.

The table is fxprune's own, not ``torch.utils.flop_counter``'s: a plan needs the cost *after* a removal that has not
happened yet, so a rule says which dimensions are multiplied instead of returning a number. A multiply-accumulate (MAC)
is one multiplication and one addition; normalisation, activations, biases, pooling and element-wise arithmetic are not
counted, as in the published figures of most models.

To add an operator, write a rule that yields one tuple of sizes per product and name the operator's schema in the
``@rule`` line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn


@dataclass(frozen=True)
class Size:
    """One factor of a product: a dimension of a node's tensor or of a parameter, or a plain number without either."""

    size: int
    dim: int = 0
    node: fx.Node | None = None
    parameter: str = ""


Sizes = tuple[Size, ...]


@dataclass(frozen=True)
class Site:
    """A node whose cost is asked for; operands and weights are found the same way for module calls and functions."""

    node: fx.Node
    module: nn.Module | None
    parameters: dict[str, str]

    def argument(self, index: int, name: str = "") -> Any:
        """Return the argument at ``index``, or given by ``name``; None when absent."""
        return self.node.args[index] if index < len(self.node.args) else self.node.kwargs.get(name)

    def dims(self, node: Any) -> Sizes:
        """Return one size per dimension of a node's tensor."""
        value = node.meta["val"]
        return tuple(Size(int(size), dim, node) for dim, size in enumerate(value.shape))

    def output(self) -> Sizes:
        """Return the sizes of the result."""
        return self.dims(self.node)

    def weight(self, index: int = 1, name: str = "weight") -> Sizes:
        """Return the sizes of a weight: the module's parameter ``name``, or the function's argument at ``index``."""
        if self.module is None:
            return self.dims(self.argument(index, name))
        tensor = getattr(self.module, name)
        full = f"{self.node.target}.{name}"
        return tuple(
            Size(int(size), dim, None, self.parameters.get(full, full)) for dim, size in enumerate(tensor.shape)
        )


Rule = Callable[[Site], Iterator[Sizes]]
FUNCTIONS: dict[str, Rule] = {}
MODULES: dict[type[nn.Module], Rule] = {}


def rule(*operators: str | type[nn.Module]) -> Callable[[Rule], Rule]:
    """Register a rule for schema names (``aten::conv2d``) and module classes; a second rule for one is an error."""

    def register(function: Rule) -> Rule:
        for operator in operators:
            table: dict[Any, Rule] = FUNCTIONS if isinstance(operator, str) else MODULES
            if operator in table:
                raise ValueError(f"{operator} has two cost rules.")
            table[operator] = function
        return function

    return register


def find(node: fx.Node, root: nn.Module) -> tuple[Rule | None, nn.Module | None]:
    """Return the rule of a node (None when it costs nothing or is unknown) and the module it calls."""
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        return next((MODULES[kind] for kind in type(module).__mro__ if kind in MODULES), None), module
    schema = getattr(node.target, "_schema", None)
    return (FUNCTIONS.get(schema.name) if node.op == "call_function" and schema is not None else None), None


@rule(nn.Conv1d, nn.Conv2d, nn.Conv3d, "aten::conv1d", "aten::conv2d", "aten::conv3d")
def convolution(site: Site) -> Iterator[Sizes]:
    """Every output element sums over its group's input channels and the kernel; the weight's own shape holds both."""
    yield site.output() + site.weight()[1:]


@rule(
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    "aten::conv_transpose1d",
    "aten::conv_transpose2d",
    "aten::conv_transpose3d",
)
def transposed_convolution(site: Site) -> Iterator[Sizes]:
    """Every *input* element is spread over its group's output channels and the kernel."""
    yield site.dims(site.argument(0, "input")) + site.weight()[1:]


@rule("aten::convolution")
def any_convolution(site: Site) -> Iterator[Sizes]:
    """The general operator, whose seventh argument says whether it is transposed."""
    yield from (transposed_convolution if site.argument(6, "transposed") else convolution)(site)


@rule("torchvision::deform_conv2d")
def deformable_convolution(site: Site) -> Iterator[Sizes]:
    """As a convolution; the bilinear sampling is not counted."""
    yield site.output() + site.weight()[1:]


@rule(
    nn.Linear,
    "aten::linear",
    "aten::mm",
    "aten::bmm",
    "aten::mv",
    "aten::dot",
    "aten::matmul",
    "aten::inner",
    "aten::vdot",
    "aten::_grouped_mm",
    "transformers::grouped_mm_fallback",
)
def contraction(site: Site) -> Iterator[Sizes]:
    """Every output element sums over the last dimension of the first operand."""
    yield site.output() + site.dims(site.argument(0))[-1:]


@rule("aten::addmm", "aten::baddbmm", "aten::addmv")
def added_contraction(site: Site) -> Iterator[Sizes]:
    """As a contraction of the second and third operands."""
    yield site.output() + site.dims(site.argument(1))[-1:]


@rule("aten::addbmm")
def summed_contraction(site: Site) -> Iterator[Sizes]:
    """As ``added_contraction``, and the batch of matrices is summed as well."""
    first = site.dims(site.argument(1))
    yield (*site.output(), first[0], first[2])


@rule(nn.Bilinear, "aten::bilinear")
def bilinear(site: Site) -> Iterator[Sizes]:
    """Every output element sums over both inputs' features: first with the weight, then with each other."""
    first, second = (site.dims(site.argument(index))[-1:] for index in (0, 1))
    yield site.output() + first + second
    yield site.output() + second


@rule("aten::einsum")
def einsum(site: Site) -> Iterator[Sizes]:
    """Contract from left to right; each step costs the product of all indices that its two operands still have."""
    equation, operands = str(site.argument(0)).replace(" ", ""), list(site.argument(1))
    inputs, _, result = equation.partition("->")
    sizes: dict[str, Size] = {}
    letters = [_indices(text, site.dims(node), sizes) for text, node in zip(inputs.split(","), operands, strict=True)]
    if "->" in equation:
        kept = set(_indices(result, site.output(), {}))
    else:
        every = [letter for operand in letters for letter in operand]
        kept = {letter for letter in every if every.count(letter) == 1 or letter.startswith(".")}
    running = letters[0]
    for step, operand in enumerate(letters[1:], 2):
        wanted = kept.union(*letters[step:])
        own = [
            i for i in running if i in wanted or i in operand
        ]  # an index that only one operand has is summed away beforehand
        other = [i for i in operand if i in wanted or i in running]
        joined = list(dict.fromkeys(own + other))
        yield tuple(sizes[index] for index in joined)
        running = [index for index in joined if index in wanted]


def _indices(text: str, dims: Sizes, sizes: dict[str, Size]) -> list[str]:
    """Name the dimensions of an operand, those under an ellipsis counted from the right, and note their sizes."""
    before, dots, after = text.partition("...")
    hidden = len(dims) - len(before) - len(after) if dots else 0
    names = [*before, *(f".{hidden - index}" for index in range(hidden)), *after]
    for name, size in zip(names, dims, strict=True):
        if name not in sizes or size.size > sizes[name].size:  # a broadcast dimension of 1 gives way to the real one
            sizes[name] = size
    return names


@rule("aten::scaled_dot_product_attention")
def attention(site: Site) -> Iterator[Sizes]:
    """Two contractions: queries with keys, then the weights with the values."""
    query, key, value = (site.dims(site.argument(index, name)) for index, name in enumerate(("query", "key", "value")))
    yield query + key[-2:-1]
    yield query[:-1] + key[-2:-1] + value[-1:]


@rule(nn.LSTM, nn.GRU, nn.RNN)
def recurrent(site: Site) -> Iterator[Sizes]:
    """Every step multiplies each weight matrix once: its shape already counts the gates."""
    assert site.module is not None
    steps = site.dims(site.argument(0))[:-1]
    for name, _ in site.module.named_parameters(recurse=False):
        if name.startswith("weight"):
            yield steps + site.weight(name=name)


@rule("aten::lstm", "aten::gru", "aten::rnn_tanh", "aten::rnn_relu")
def recurrent_function(site: Site) -> Iterator[Sizes]:
    """As ``recurrent`` with the flat list of weights as third argument; biases have one dimension."""
    steps = site.dims(site.argument(0))[:-1]
    for weight in site.argument(2):
        if (
            isinstance(weight, fx.Node)
            and isinstance(weight.meta.get("val"), torch.Tensor)
            and weight.meta["val"].dim() == 2
        ):
            yield steps + site.dims(weight)


@rule("aten::lstm_cell", "aten::gru_cell", "aten::rnn_tanh_cell", "aten::rnn_relu_cell")
def recurrent_cell(site: Site) -> Iterator[Sizes]:
    """One step multiplies both weight matrices once per sample."""
    samples = site.dims(site.argument(0))[:-1]
    for weight in (site.argument(2, "w_ih"), site.argument(3, "w_hh")):
        yield samples + site.dims(weight)
