"""A small dense model, the pruned one made from it, and one with an expanded block."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, fx, nn

from fxprune.capture import trace
from fxprune.planning import Plan, make_plan
from fxprune.surgery import cut
from fxprune.training.pairs import BLOCKS


class Convnet(nn.Module):
    """Two convolutions with batch norm, dropout, a classifier of five classes."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 12, 3, padding=1, stride=2)
        self.bn2 = nn.BatchNorm2d(12)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = self.bn2(self.conv2(x)).relu()
        result: Tensor = self.head(self.dropout(x.mean((2, 3))))
        return result


@dataclass
class Pruned:
    """A dense model, the graph cut from it, and the plan between them."""

    teacher: nn.Module
    student: fx.GraphModule
    plan: Plan


@pytest.fixture
def pruned() -> Pruned:
    dense = Convnet().eval()
    traced = trace(dense, torch.randn(2, 3, 8, 8))
    plan = make_plan(traced, macs=0.5, round_to=1)
    return Pruned(dense, cut(traced, plan).module, plan)


def expanded(student: fx.GraphModule, path: str) -> fx.GraphModule:
    """Return the student with a convolution written as two, called one after the other, as the expanding pass does."""
    student = copy.deepcopy(student)
    old = student.get_submodule(path)
    assert isinstance(old, nn.Conv2d)
    first = nn.Conv2d(old.in_channels, 2 * old.in_channels, 1, bias=False)
    last = nn.Conv2d(2 * old.in_channels, old.out_channels, 3, stride=old.stride, padding=old.padding)
    student.set_submodule(path, nn.Sequential(first, last))
    (node,) = [node for node in student.graph.nodes if node.target == path]
    with student.graph.inserting_before(node):
        between = student.graph.call_module(f"{path}.0", node.args)
        end = student.graph.call_module(f"{path}.1", (between,))
    node.replace_all_uses_with(end)
    student.graph.erase_node(node)
    student.recompile()
    student.meta[BLOCKS] = {path: f"{path}.1"}
    return student
