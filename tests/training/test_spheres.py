"""Layers on the unit sphere compute what the trained layers did, and are plain layers again at the end."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxprune.capture import Traced, trace
from fxprune.graph_tools import tensor_uses
from fxprune.training.spheres import SPHERES, Sphere, norms_of, retract, sphere_weights, to_plain, to_sphere, unit

IMAGE = torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Layers with a norm behind, without, with one that cannot take up a scale, and with readers besides the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8, eps=1e-2)
        self.bare = nn.Conv2d(8, 8, 3, groups=4, padding=1, padding_mode="reflect", bias=False)
        self.fixed = nn.Conv2d(8, 8, 1)
        self.no_scales = nn.BatchNorm2d(8, affine=False)
        self.both = nn.Conv2d(8, 8, 3, padding=1)
        self.other = nn.BatchNorm2d(8)
        self.dense = nn.Linear(8, 6, bias=False)
        self.last = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bare(self.norm(self.plain(x)).relu())
        x = self.no_scales(self.fixed(x)).relu()
        y = self.both(x)
        x = self.other(y) + y
        result: Tensor = self.head(self.last(self.dense(x.mean((2, 3)))).relu())
        return result


LAYERS = {"plain": True, "bare": False, "fixed": False, "both": False, "dense": True, "head": False}


def net() -> Traced:
    torch.manual_seed(0)
    model = Net().double()
    for value in model.state_dict().values():
        if value.ndim == 1:
            value.copy_(torch.rand(value.shape) + 0.1)
    return trace(model.eval(), IMAGE)


def spherical(traced: Traced) -> dict[str, bool]:
    """Make all layers of a capture hyperspherical; return of which a norm takes up the scale."""
    uses, folded = tensor_uses(traced.module), {}
    for node in list(traced.module.graph.find_nodes(op="call_module")):
        if type(traced.module.get_submodule(str(node.target))) in SPHERES:
            folded[str(node.target)] = to_sphere(traced.module, node, uses)
    return folded


def test_a_trained_net_is_the_same_function_on_the_sphere_and_back() -> None:
    traced = net()
    (expected,) = traced.run((IMAGE,))
    state = copy.deepcopy(traced.module.state_dict())
    assert spherical(traced) == LAYERS
    (found,) = traced.run((IMAGE,))
    assert float((found - expected).abs().max() / expected.abs().max()) <= 1e-12
    extra = {f"{path}.scale" for path, folded in LAYERS.items() if not folded}
    assert set(traced.module.state_dict()) - set(state) == extra
    for path in LAYERS:
        layer: Any = traced.module.get_submodule(path)
        torch.testing.assert_close(norms_of(layer.weight), torch.ones(len(layer.weight)).double())
        assert isinstance(layer, Sphere)
        assert not torch.equal(layer.weight, state[f"{path}.weight"])
    for layer in traced.module.modules():
        to_plain(layer)
    (back,) = traced.run((IMAGE,))
    assert float((back - expected).abs().max() / expected.abs().max()) <= 1e-12
    assert list(traced.module.state_dict()) == list(state)
    assert not any(isinstance(layer, Sphere) for layer in traced.module.modules())
    torch.testing.assert_close(traced.module.get_parameter("head.weight"), state["head.weight"].requires_grad_())


def test_in_training_mode_batches_of_the_running_statistics_give_the_same_too() -> None:
    traced = net()
    norm: Any = traced.module.get_submodule("norm")
    conv: Any = traced.module.get_submodule("plain")
    with torch.no_grad():  # statistics that are those of the batch
        value = conv(IMAGE)
        norm.running_mean.copy_(value.mean((0, 2, 3)))
        norm.running_var.copy_(value.var((0, 2, 3), correction=0))
        norm.momentum = 0.0
        norm.train()
        expected = norm(value)
        spherical(traced)
        torch.testing.assert_close(norm(conv(IMAGE)), expected, rtol=1e-12, atol=1e-12)


def test_the_length_of_a_weight_does_not_matter_and_gradients_are_tangent() -> None:
    traced = net()
    spherical(traced)
    (expected,) = traced.run((IMAGE,))
    for weight in sphere_weights(traced.module):
        weight.data *= 1 + torch.rand(len(weight), *[1] * (weight.ndim - 1))
    torch.testing.assert_close(traced.run((IMAGE,))[0], expected, rtol=1e-12, atol=1e-12)
    traced.module(IMAGE).square().sum().backward()
    for weight in sphere_weights(traced.module):
        assert weight.grad is not None
        inside = (weight.grad * weight.detach()).flatten(1).sum(1)
        assert float(inside.abs().max()) < 1e-10 * float(weight.grad.abs().max())
    for layer in traced.module.modules():
        retract(layer)
    torch.testing.assert_close(traced.run((IMAGE,))[0], expected, rtol=1e-12, atol=1e-12)
    assert all(float((norms_of(weight.detach()) - 1).abs().max()) < 1e-12 for weight in sphere_weights(traced.module))


def test_the_gradient_is_the_projection_of_the_one_on_the_sphere() -> None:
    weight = torch.randn(5, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    outer = torch.randn(5, 2, 3, 3, dtype=torch.float64)
    (found,) = torch.autograd.grad((unit(weight) * outer).sum(), weight)
    for row, given, gradient in zip(weight.detach().flatten(1), outer.flatten(1), found.flatten(1), strict=True):
        direction = row / row.norm()
        torch.testing.assert_close(gradient, (given - direction * (direction @ given)) / row.norm())
    assert torch.autograd.gradcheck(unit, (weight,))


def test_a_filter_of_zeros_stays_zero() -> None:
    traced = net()
    traced.module.get_parameter("plain.weight").data[2] = 0
    traced.module.get_parameter("bare.weight").data[1] = 0
    (expected,) = traced.run((IMAGE,))
    spherical(traced)
    torch.testing.assert_close(traced.run((IMAGE,))[0], expected, rtol=1e-12, atol=1e-12)
    traced.module(IMAGE).sum().backward()
    for name, index in (("plain", 2), ("bare", 1)):
        weight = traced.module.get_parameter(f"{name}.weight")
        assert weight.grad is not None
        assert bool(weight.grad.isfinite().all())
        assert not weight.grad[index].any()


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.Conv1d(4, 6, 3, stride=2), (2, 4, 9)), (nn.Conv3d(4, 6, 2, padding="same"), (2, 4, 5, 5, 5)),
     (nn.Linear(4, 6), (2, 3, 4))], ids=str,
)  # fmt: skip
def test_of_every_rank(layer: nn.Module, shape: tuple[int, ...]) -> None:
    inputs = torch.randn(shape, dtype=torch.float64)
    traced = trace(nn.Sequential(layer.double()).eval(), inputs)
    (expected,) = traced.run((inputs,))
    spherical(traced)
    torch.testing.assert_close(traced.run((inputs,))[0], expected, rtol=1e-12, atol=1e-12)
