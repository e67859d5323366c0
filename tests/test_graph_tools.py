"""What passes are built from: copies that share tensors, and runs that change nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxprune.capture import Traced, trace
from fxprune.graph_tools import adopt, copy_module, drop_unused, tensor_uses, tensors_of

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A norm and a dropout, which behave otherwise in training mode, and a layer that is not called."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.b, self.d, self.f = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Linear(4, 5)
        self.unused = nn.Linear(2, 2)
        self.register_buffer("constant", torch.ones(2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.f(self.d(self.b(self.c(x)).relu()).mean((2, 3))).tanh()  # type: ignore[no-any-return]


@pytest.fixture
def traced() -> Traced:
    return trace(Net(), X)


def test_a_copy_shares_tensors_and_nothing_else(traced: Traced) -> None:
    copied = copy_module(traced.module)
    assert {id(tensor) for tensor in tensors_of(copied)} == {id(tensor) for tensor in tensors_of(traced.module)}
    assert not set(copied.modules()) & set(traced.module.modules())
    assert list(copied.state_dict()) == list(traced.module.state_dict())
    assert [n.name for n in copied.graph.nodes] == [n.name for n in traced.module.graph.nodes]
    assert all(
        n.meta.keys() == m.meta.keys() for n, m in zip(copied.graph.nodes, traced.module.graph.nodes, strict=True)
    )
    assert type(copied).__name__ == "Net"
    assert torch.equal(copied(X)[0], traced.module(X)[0])


def test_adopting_another_module(traced: Traced) -> None:
    other = trace(nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU()), X)
    copied = copy_module(traced.module)
    adopt(copied, other.module)
    assert list(copied.state_dict()) == ["0.weight", "0.bias"]
    assert torch.equal(copied(X), other.module(X))


def test_a_module_is_dropped_under_all_its_names_once_nothing_calls_it(traced: Traced) -> None:
    module = copy_module(traced.module)
    layer = module.get_submodule("unused")
    module.add_submodule("alias", layer)
    drop_unused(module, module.get_submodule("f"))
    assert hasattr(module, "f")
    drop_unused(module, layer)
    assert not hasattr(module, "unused")
    assert not hasattr(module, "alias")


def test_a_module_whose_tensors_the_graph_reads_stays() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.f.weight

    module = trace(Reads(), X[:, 0]).module
    drop_unused(module, module.get_submodule("f"))
    assert hasattr(module, "f")
    assert tensor_uses(module)[id(module.get_parameter("f.weight"))] == ["f.weight", "f_weight"]
