"""Batch norms are folded where that is exact, and left alone with a reason where it is not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from fxprune.capture import trace
from fxprune.errors import PreconditionError
from fxprune.passes import FuseBatchNorm
from fxprune.pipeline import Pipeline
from fxprune.testing import check_pass

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
IMAGE = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def awake(model: nn.Module) -> nn.Module:
    """Give norms random weights and statistics: fresh ones hide most mistakes."""
    generator = torch.Generator().manual_seed(1)
    for norm in model.modules():
        if isinstance(norm, NORMS):
            for tensor in (norm.weight, norm.running_var):
                if tensor is not None:
                    tensor.data = 0.5 + torch.rand(tensor.shape, generator=generator)
            for tensor in (norm.bias, norm.running_mean):
                if tensor is not None:
                    tensor.data = torch.randn(tensor.shape, generator=generator)
    return model.eval()


class Net(nn.Module):
    """Layers by name, and what to do with them."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **layers: nn.Module) -> None:
        super().__init__()
        self.compute = forward
        for name, layer in layers.items():
            self.add_module(name, layer)
        awake(self)

    def forward(self, x: Tensor) -> Any:
        return self.compute(self, x)


# ---------------------------------------------------------------- behind a layer


def test_a_norm_goes_into_the_convolution_before_it() -> None:
    model = Net(lambda m, x: m.b(m.c(x)).relu(), c=nn.Conv2d(3, 4, 3, bias=False), b=nn.BatchNorm2d(4))
    result = check_pass(FuseBatchNorm(), model, IMAGE, changed=["b"])
    assert sorted(result.traced.module.state_dict()) == ["c.bias", "c.weight"]
    assert isinstance(result.traced.module.get_submodule("c").bias, nn.Parameter)


@st.composite
def layers(draw: st.DrawFn, *, padded: bool = True) -> tuple[nn.Module, int]:
    """Return any convolution, transposed or not, and its number of dimensions."""
    n, groups = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 3]))
    transposed = draw(st.booleans())
    each = st.integers(1, 2 if n == 3 else 3)
    stride, dilation = draw(each), draw(each)
    options: dict[str, Any] = {
        "stride": stride,
        "dilation": dilation,
        "groups": groups,
        "bias": draw(st.booleans()),
    }
    if padded:
        options["padding"] = draw(st.integers(0, 1))
    if transposed and padded:
        options["output_padding"] = draw(st.integers(0, max(stride, dilation) - 1))
    cls = (TRANSPOSED if transposed else CONVS)[n - 1]
    kernel = 1 if transposed and not padded else draw(each)
    if kernel == 1 and not padded and transposed:
        options["stride"] = 1
    return cls(groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2)), kernel, **options), n


@settings(max_examples=24, deadline=None, derandomize=True)
@given(layers(), st.booleans())
def test_every_convolution_takes_up_the_norm_behind_it(layer: tuple[Any, int], affine: bool) -> None:
    conv, n = layer
    model = awake(nn.Sequential(conv, NORMS[n - 1](conv.out_channels, affine=affine, eps=0.1)))
    check_pass(FuseBatchNorm(), model, torch.randn(2, conv.in_channels, *[7] * n), changed=["1"])


@settings(max_examples=12, deadline=None, derandomize=True)
@given(layers(padded=False), st.booleans())
def test_every_convolution_without_padding_takes_up_the_norm_before_it(layer: tuple[Any, int], affine: bool) -> None:
    conv, n = layer
    model = awake(nn.Sequential(NORMS[n - 1](conv.in_channels, affine=affine), conv))
    check_pass(FuseBatchNorm(), model, torch.randn(2, conv.in_channels, *[7] * n), changed=["0"])


@pytest.mark.parametrize("bias", [True, False])
def test_norms_on_both_sides_of_a_linear_layer(bias: bool) -> None:
    model = awake(nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 5, bias=bias), nn.BatchNorm1d(5)))
    check_pass(FuseBatchNorm(), model, torch.randn(3, 4), changed=["0", "2"])


@pytest.mark.parametrize("padding", [0, "valid", "same"])
def test_padding_by_name(padding: Any) -> None:
    model = awake(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1, padding=padding)))
    check_pass(FuseBatchNorm(), model, IMAGE, changed=["0"])


def test_a_norm_without_a_shift_goes_into_a_padded_convolution() -> None:
    norm = nn.BatchNorm2d(3)
    model = awake(nn.Sequential(norm, nn.Conv2d(3, 4, 3, padding=1, bias=False)))
    for tensor in (norm.running_mean, norm.bias):
        assert tensor is not None
        tensor.data.zero_()
    result = check_pass(FuseBatchNorm(), model, IMAGE, changed=["0"])
    assert list(result.traced.module.state_dict()) == ["1.weight"]


def test_a_norm_behind_a_norm_goes_too_on_either_side() -> None:
    model = awake(
        nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4))
    )
    check_pass(FuseBatchNorm(), model, IMAGE, changed=["0", "1", "3", "4"])


def test_a_norm_called_twice_goes_into_both_layers() -> None:
    model = Net(
        lambda m, x: m.b(m.d(m.b(m.c(x)).relu())), c=nn.Conv2d(3, 4, 3), d=nn.Conv2d(4, 4, 3), b=nn.BatchNorm2d(4)
    )
    result = check_pass(FuseBatchNorm(), model, IMAGE, changed=["b", "b"])
    assert not any(key.startswith("b.") for key in result.traced.module.state_dict())


def test_weights_stay_trainable_or_frozen_as_they_were() -> None:
    model = awake(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False).requires_grad_(False), nn.BatchNorm2d(4)))
    module = Pipeline([FuseBatchNorm()])(trace(model, IMAGE)).traced.module
    assert not any(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_keep_their_precision(dtype: torch.dtype) -> None:
    model = awake(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))).to(dtype)
    module = Pipeline([FuseBatchNorm()])(trace(model, IMAGE.to(dtype))).traced.module
    assert {parameter.dtype for parameter in module.parameters()} == {dtype}


# ---------------------------------------------------------------- left alone


def test_one_convolution_called_twice_with_two_norms() -> None:
    model = Net(
        lambda m, x: m.b2(m.c(m.b1(m.c(x)).relu())),
        c=nn.Conv2d(3, 3, 3, padding=1),
        b1=nn.BatchNorm2d(3),
        b2=nn.BatchNorm2d(3),
    )
    check_pass(FuseBatchNorm(), model, IMAGE, skipped={"b1": "c before it is called 2 times", "b2": "called 2 times"})


class CalledTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c, self.b1, self.b2 = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b2(self.c(self.b1(self.c(x)).relu()))  # type: ignore[no-any-return]


def test_where_torch_fx_is_silently_wrong() -> None:
    """The reason for counting every use: torch's own fusion folds both norms into the one convolution."""
    model = awake(CalledTwice())
    with torch.no_grad():
        expected = model(IMAGE)
        torchs = fuse(copy.deepcopy(model))(IMAGE)
    assert float((torchs - expected).abs().max()) > 0.1
    ours = Pipeline([FuseBatchNorm()])(trace(model, IMAGE)).traced
    assert torch.equal(ours.run((IMAGE,))[0], expected)


def tied(shared: str) -> Net:
    model = Net(lambda m, x: m.b(m.c(x)) + m.d(x), c=nn.Conv2d(3, 3, 1), d=nn.Conv2d(3, 3, 1), b=nn.BatchNorm2d(3))
    setattr(model.get_submodule("d"), shared, getattr(model.c, shared))
    return model


SKIPPED = {
    "read by others": (
        Net(lambda m, x: m.b(y := m.c(x)) + y, c=nn.Conv2d(3, 4, 3), b=nn.BatchNorm2d(4)),
        IMAGE,
        {"b": "c before it is also read by add"},
    ),
    "weight tied": (tied("weight"), IMAGE, {"b": "shares its weights with d.weight"}),
    "bias tied": (tied("bias"), IMAGE, {"b": "shares its weights with d.bias"}),
    "weight read by the graph": (
        Net(lambda m, x: m.b(m.c(x)) + m.c.weight.sum(), c=nn.Conv2d(3, 4, 3), b=nn.BatchNorm2d(4)),
        IMAGE,
        {"b": "shares its weights with c_weight"},
    ),
    "no statistics": (
        Net(lambda m, x: m.b(m.c(x)), c=nn.Conv2d(3, 4, 3), b=nn.BatchNorm2d(4, track_running_stats=False)),
        IMAGE,
        {"b": "no running statistics"},
    ),
    "fed by something else": (
        Net(lambda m, x: m.b(x.relu()).sigmoid(), b=nn.BatchNorm2d(3)),
        IMAGE,
        {"b": "relu before it is no convolution or linear layer; what reads it (sigmoid) is not a single"},
    ),
    "the output reads it": (Net(lambda m, x: m.b(x), b=nn.BatchNorm2d(3)), IMAGE, {"b": "(output) is not a single"}),
    "linear on three dimensions": (
        Net(lambda m, x: m.b(m.f(x)), f=nn.Linear(6, 6), b=nn.BatchNorm1d(6)),
        torch.randn(2, 6, 6),
        {"b": "f before it has 3-dimensional values"},
    ),
    "linear on three dimensions behind": (
        Net(lambda m, x: m.f(m.b(x)), f=nn.Linear(6, 6), b=nn.BatchNorm1d(6)),
        torch.randn(2, 6, 6),
        {"b": "f behind it has 3-dimensional values"},
    ),
    "zero padding behind": (
        Net(lambda m, x: m.c(m.b(x)), c=nn.Conv2d(3, 4, 3, padding=1), b=nn.BatchNorm2d(3)),
        IMAGE,
        {"b": "c behind it pads with zeros"},
    ),
    "transposed behind": (
        Net(lambda m, x: m.c(m.b(x)), c=nn.ConvTranspose2d(3, 4, 3), b=nn.BatchNorm2d(3)),
        IMAGE,
        {"b": "covers its borders unevenly"},
    ),
    "a computed weight": (
        Net(lambda m, x: m.b(nn.functional.conv2d(x, m.c.weight * 2)), c=nn.Conv2d(3, 4, 3), b=nn.BatchNorm2d(4)),
        IMAGE,
        {"b": "conv2d before it is no convolution or linear layer"},
    ),
    "a computed norm": (
        Net(
            lambda m, x: nn.functional.batch_norm(m.c(x), m.b.running_mean, m.b.running_var, m.b.weight * 2, m.b.bias),
            c=nn.Conv2d(3, 4, 3),
            b=nn.BatchNorm2d(4),
        ),
        IMAGE,
        {"batch_norm": "no module of its own"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SKIPPED)
def test_what_is_left_alone(case: str) -> None:
    model, example, reasons = SKIPPED[case]
    check_pass(FuseBatchNorm(), model, example, skipped=reasons)


def test_weights_over_the_same_memory_are_tied_too() -> None:
    model = tied("bias")
    model.get_submodule("d").bias = nn.Parameter(model.get_parameter("c.bias").data)
    (report,) = Pipeline([FuseBatchNorm()])(trace(model, IMAGE)).report
    assert not report.changes
    assert "shares its weights with d.bias" in report.skips[0].why


def test_a_called_child_of_a_norm_survives_it() -> None:
    """Some libraries keep activation and dropout inside the norm."""
    norm = nn.BatchNorm2d(4)
    norm.drop = nn.Dropout()
    model = Net(lambda m, x: m.b.drop(m.b(m.c(x))), c=nn.Conv2d(3, 4, 3), b=norm)
    result = check_pass(FuseBatchNorm(), model, IMAGE, changed=["b"])
    assert isinstance(result.traced.module.get_submodule("b.drop"), nn.Dropout)
    assert sorted(result.traced.module.state_dict()) == ["c.bias", "c.weight"]


def test_training_mode_is_refused() -> None:
    traced = trace(awake(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))), IMAGE)
    traced.module.train()
    with pytest.raises(PreconditionError, match=r"fuse-batchnorm: 1 is in training mode.*eval\(\) first"):
        FuseBatchNorm()(traced)


# ---------------------------------------------------------------- written out


class Frozen(nn.Module):
    """A batch norm of buffers, as detectors have it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(channels, generator=generator) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias, mean, var = (buffer.reshape(1, -1, 1, 1) for buffer in self.buffers())
        scale = weight * (var + 1e-5).rsqrt()
        return x * scale + (bias - mean * scale)


def test_a_frozen_norm_goes_into_the_layer_before_it() -> None:
    model = Net(lambda m, x: m.b(m.c(x)).relu(), c=nn.Conv2d(3, 4, 3, bias=False), b=Frozen(4))
    result = check_pass(FuseBatchNorm(), model, IMAGE, changed=["b"])
    assert sorted(result.traced.module.state_dict()) == ["c.bias", "c.weight"]
    assert [node.op for node in result.traced.module.graph.nodes].count("get_attr") == 0
    applied = result.apply_to(model.double())
    assert applied.removed == ["b"]
    assert isinstance(model.get_submodule("b"), nn.Identity)


def test_buffers_that_something_else_reads_stay() -> None:
    model = Net(lambda m, x: m.b(m.c(x)) * m.b.bias.sum(), c=nn.Conv2d(3, 4, 3), b=Frozen(4))
    result = check_pass(FuseBatchNorm(), model, IMAGE, changed=["b"])
    assert sorted(result.traced.module.state_dict()) == ["b.bias", "c.bias", "c.weight"]


def test_a_frozen_norm_behind_no_layer_is_skipped() -> None:
    model = Net(lambda m, x: m.b(m.c(x).relu()), c=nn.Conv2d(3, 4, 3), b=Frozen(4))
    check_pass(FuseBatchNorm(), model, IMAGE, skipped={"b": "is no convolution or linear layer"})


def test_a_trained_scale_is_no_frozen_norm() -> None:
    model = Net(lambda m, x: m.c(x) * m.b.weight.reshape(1, -1, 1, 1) + m.b.bias, c=nn.Conv2d(3, 4, 3), b=nn.Module())
    model.b.weight, model.b.bias = nn.Parameter(torch.rand(4)), nn.Parameter(torch.rand(1))
    check_pass(FuseBatchNorm(), model, IMAGE)


def test_a_constant_that_differs_from_cell_to_cell_is_no_norm() -> None:
    model = Net(lambda m, x: m.c(x) * m.b.scale + m.b.shift, c=nn.Conv2d(3, 4, 3), b=nn.Module())
    model.b.register_buffer("scale", torch.rand(1, 4, 1, 4))
    model.b.register_buffer("shift", torch.rand(1, 4, 1, 1))
    check_pass(FuseBatchNorm(), model, IMAGE)
