"""Layers are taken out, everything else keeps its name, and the result is the original with them silenced."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fxprune.capture import Traced, trace
from fxprune.depth import find_layers, verify_removal
from fxprune.depth.layers import Layer
from fxprune.depth.remove import remove
from fxprune.errors import VerifyError
from fxprune.graph_tools import copy_module
from tests.depth.networks import CrossAttention, Parallel, Residual, Shared, Tail, Unet, conv, ready

IMAGE = torch.randn(2, 3, 8, 8)


def without(traced: Traced, layers: list[Layer]) -> Traced:
    module = copy_module(traced.module)
    remove(module, layers)
    module.graph.lint()
    module.recompile()
    return traced.with_module(module)


def bottleneck(width: int) -> nn.Module:
    return Residual(
        nn.Sequential(conv(width, 3, 1), conv(3, 3), nn.Conv2d(3, width, 1), nn.BatchNorm2d(width)), nn.ReLU()
    )


NETWORKS = {
    "residual": lambda: (nn.Sequential(conv(3, 4), *(bottleneck(4) for _ in range(4)), Tail(4)), (IMAGE,)),
    "plain": lambda: (nn.Sequential(conv(3, 4), *(conv(4, 4) for _ in range(4)), Tail(4)), (IMAGE,)),
    "parallel": lambda: (
        nn.Sequential(nn.Linear(5, 6), *(Parallel(6, order) for order in (0, 1, 2)), nn.Linear(6, 2)),
        (torch.randn(2, 5),),
    ),
    "cross attention": lambda: (CrossAttention(layers=3), (torch.randn(2, 3, 8), torch.randn(2, 5, 8))),
    "shared": lambda: (Shared(), (torch.randn(2, 6),)),
    "u-net": lambda: (Unet(), (torch.randn(2, 3, 16, 16),)),
}
_TRACED: dict[str, Traced] = {}


def traced_network(name: str) -> Traced:
    if name not in _TRACED:
        model, example = NETWORKS[name]()
        _TRACED[name] = trace(ready(model), example)
    return _TRACED[name]


@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_any_subset_may_go(name: str, data: st.DataObject) -> None:
    traced = traced_network(name)
    layers = find_layers(traced)
    assert len(layers)
    chosen = data.draw(st.sets(st.sampled_from(layers.names), max_size=len(layers) - (name == "cross attention")))
    wanted = layers.named(chosen)
    result = without(traced, wanted)
    assert verify_removal(traced, result, wanted).max_relative_error <= 1e-9
    gone = {key for layer in wanted for key in layer.parameters}
    left, before = set(result.module.state_dict()), set(traced.module.state_dict())
    assert left <= before
    assert not gone & left
    kept = {key for layer in layers if layer not in wanted for key in layer.parameters}
    assert kept <= left


def test_the_eager_model_without_its_branches_is_the_same() -> None:
    model = ready(nn.Sequential(conv(3, 4), *(bottleneck(4) for _ in range(3)), Tail(4))).double()
    traced = trace(model, IMAGE.double())
    result = without(traced, find_layers(traced).named(["1.branch", "3.branch"]))
    model[1] = model[3] = nn.ReLU()
    assert torch.allclose(result.run((IMAGE.double(),))[0], model(IMAGE.double()), rtol=0, atol=1e-12)
    assert {key.split(".")[0] for key in result.module.state_dict()} == {"0", "2", "4"}


def test_an_activation_is_not_left_twice() -> None:
    traced = traced_network("residual")
    before = len(traced.module.graph.find_nodes(op="call_function", target=torch.ops.aten.relu.default))
    one = without(traced, find_layers(traced).named(["2.branch"]))
    after = len(one.module.graph.find_nodes(op="call_function", target=torch.ops.aten.relu.default))
    assert after == before - 3  # two within the branch, and the one behind its sum


def test_an_activation_that_does_something_stays() -> None:
    model = ready(nn.Sequential(nn.Conv2d(3, 4, 1), bottleneck(4), Tail(4)))
    traced = trace(model, IMAGE)
    layers = find_layers(traced).named(["1.branch"])
    result = without(traced, layers)
    assert result.module.graph.find_nodes(op="call_function", target=torch.ops.aten.relu.default)
    assert verify_removal(traced, result, layers).ok


def test_parameters_that_the_graph_reads_itself_go_too() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.scale = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return x + (x @ self.weight).relu() * self.scale

    traced = trace(nn.Sequential(nn.Linear(3, 4), Scaled(), Scaled(), nn.Linear(4, 2)).eval(), torch.randn(2, 3))
    layers = find_layers(traced).named(["1"])
    result = without(traced, layers)
    assert sorted(result.module.state_dict()) == ["0.bias", "0.weight", "2.scale", "2.weight", "3.bias", "3.weight"]
    assert not hasattr(result.module, "1")
    assert verify_removal(traced, result, layers).ok


def test_a_tied_weight_stays_where_it_is_read() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 4)
            self.head.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.head(x + self.a(x))

    traced = trace(Tied().eval(), torch.randn(2, 3))
    layers = find_layers(traced).named(["a"])
    assert layers[0].parameters == ("a.bias",)
    result = without(traced, layers)
    assert "head.weight" in result.module.state_dict()
    assert verify_removal(traced, result, layers).ok


def test_a_wrong_removal_is_found_and_its_node_named() -> None:
    traced = traced_network("residual")
    layers = find_layers(traced)
    other = without(traced, layers.named(["3.branch"]))
    with pytest.raises(VerifyError, match=r"with 2.branch silenced by .*the first node that differs is"):
        verify_removal(traced, other, layers.named(["2.branch"]))


def test_a_constant_reference_proves_nothing() -> None:
    model = nn.Sequential(conv(3, 4), bottleneck(4), Tail(4)).eval()
    nn.init.zeros_(model[2].fc.weight)
    nn.init.zeros_(model[2].fc.bias)
    traced = trace(model, IMAGE)
    layers = find_layers(traced).named(["1.branch"])
    with pytest.raises(VerifyError, match="proves nothing"):
        verify_removal(traced, without(traced, layers), layers)
