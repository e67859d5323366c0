"""The cost table, against the shapes written out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from fxprune.planning.cost_rules import Site, find, rule


class Run(nn.Module):
    """Calls a function on tensors, so that it can be exported."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: torch.Tensor) -> Any:
        return self.function(*tensors)


def macs(module: nn.Module) -> int:
    """Return the sum of all products of a graph."""
    total = 0
    assert isinstance(module, fx.GraphModule)
    for node in module.graph.nodes:
        found, called = find(node, module)
        for sizes in found(Site(node, called, {})) if found else ():
            product = 1
            for size in sizes:
                product *= size.size
            total += product
    return total


def called(function: Any, *shapes: tuple[int, ...]) -> int:
    """Return the cost of one function, exported."""
    tensors = tuple(torch.randn(shape) for shape in shapes)
    return macs(torch.export.export(Run(function), tensors).module(check_guards=False))


FUNCTIONS = {
    "conv1d": (F.conv1d, ((2, 4, 9), (6, 4, 3)), 2 * 6 * 7 * 4 * 3),
    "conv2d groups": (lambda x, w: F.conv2d(x, w, groups=2), ((2, 4, 5, 5), (6, 2, 3, 3)), 2 * 6 * 9 * 2 * 9),
    "conv2d same": (lambda x, w: F.conv2d(x, w, padding="same"), ((2, 4, 5, 5), (6, 4, 3, 3)), 2 * 6 * 25 * 4 * 9),
    "conv3d": (F.conv3d, ((1, 2, 3, 4, 5), (3, 2, 1, 2, 2)), 3 * 3 * 3 * 4 * 2 * 4),
    "conv transpose": (F.conv_transpose2d, ((2, 4, 5, 5), (4, 6, 3, 3)), 2 * 4 * 25 * 6 * 9),
    "linear": (F.linear, ((2, 7, 4), (5, 4)), 2 * 7 * 5 * 4),
    "addmm": (torch.addmm, ((3,), (2, 4), (4, 3)), 2 * 3 * 4),
    "addbmm": (torch.addbmm, ((2, 3), (5, 2, 4), (5, 4, 3)), 5 * 2 * 3 * 4),
    "baddbmm": (torch.baddbmm, ((5, 2, 3), (5, 2, 4), (5, 4, 3)), 5 * 2 * 3 * 4),
    "mv": (torch.mv, ((3, 4), (4,)), 12),
    "dot": (torch.dot, ((4,), (4,)), 4),
    "matmul broadcast": (torch.matmul, ((5, 1, 2, 4), (3, 4, 6)), 5 * 3 * 2 * 6 * 4),
    "bilinear": (F.bilinear, ((2, 3), (2, 4), (5, 3, 4)), 2 * 5 * 3 * 4 + 2 * 5 * 4),
    "attention": (
        F.scaled_dot_product_attention,
        ((2, 3, 7, 4), (2, 3, 9, 4), (2, 3, 9, 5)),
        2 * 3 * 7 * 9 * (4 + 5),
    ),
    "einsum matmul": (lambda a, b: torch.einsum("bij, bkj -> bik", a, b), ((2, 3, 4), (2, 5, 4)), 2 * 3 * 5 * 4),
    "einsum implicit": (lambda a, b: torch.einsum("ij,jk", a, b), ((3, 4), (4, 5)), 60),
    "einsum ellipsis": (lambda a, b: torch.einsum("...ij,jk->...ik", a, b), ((2, 6, 3, 4), (4, 5)), 12 * 60),
    "einsum chain": (
        lambda a, b, c: torch.einsum("ij,jk,kl->il", a, b, c),
        ((2, 3), (3, 4), (4, 5)),
        2 * 3 * 4 + 2 * 4 * 5,
    ),
    "einsum lonely index": (lambda a, b: torch.einsum("ijx,jk->ik", a, b), ((2, 3, 7), (3, 4)), 2 * 3 * 4),
    "free": (lambda x: F.relu(x).sum(), ((2, 3),), 0),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str) -> None:
    function, shapes, expected = FUNCTIONS[name]
    assert called(function, *shapes) == expected


MODULES = {
    "conv": (nn.Conv2d(4, 6, 3, groups=2, padding=1), (2, 4, 5, 5), 2 * 6 * 25 * 2 * 9),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4), (2, 4, 5, 5), 2 * 8 * 9 * 9),
    "unbatched": (nn.Conv1d(4, 6, 3), (4, 9), 6 * 7 * 4 * 3),
    "transposed": (nn.ConvTranspose1d(4, 6, 3, groups=2), (2, 4, 5), 2 * 4 * 5 * 3 * 3),
    "linear": (nn.Linear(4, 6), (2, 3, 4), 2 * 3 * 4 * 6),
    "lstm": (
        nn.LSTM(4, 6, 2, bidirectional=True, batch_first=True),
        (2, 5, 4),
        2 * 5 * 2 * 24 * (4 + 6 + 12 + 6),
    ),
    "lstm projection": (nn.LSTM(4, 6, proj_size=3), (5, 2, 4), 2 * 5 * (24 * (4 + 3) + 3 * 6)),
    "gru": (nn.GRU(4, 6), (5, 2, 4), 2 * 5 * 18 * (4 + 6)),
    "embedding": (nn.Embedding(9, 4), (2, 3), 0),
}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_modules(name: str) -> None:
    module, shape, expected = MODULES[name]
    value = torch.zeros(shape, dtype=torch.int64) if name == "embedding" else torch.zeros(shape)
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = value
    node = graph.call_module("inner", (x,))
    node.meta["val"] = module(value)
    graph.output(node)
    assert macs(fx.GraphModule({"inner": module}, graph)) == expected


@pytest.mark.filterwarnings("ignore:The tensor attributes")
def test_a_recurrent_function_costs_as_much_as_the_module() -> None:
    module = nn.LSTM(4, 6, 2, bidirectional=True)
    graph = torch.export.export(module, (torch.zeros(5, 2, 4),)).module(check_guards=False)
    assert macs(graph) == 5 * 2 * 2 * 24 * (4 + 6 + 12 + 6)


def test_a_subclass_costs_as_much_as_its_class() -> None:
    class Padded(nn.Conv2d):
        pass

    graph = fx.Graph()
    node = graph.call_module("inner", (graph.placeholder("x"),))
    assert find(node, fx.GraphModule({"inner": Padded(2, 3, 1)}, graph))[0] is not None


def test_a_second_rule_is_an_error() -> None:
    with pytest.raises(ValueError, match="two cost rules"):
        rule("aten::linear")(lambda site: iter(()))
