"""Layers become chains that compute the same, with more to train."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fxprune.capture import trace
from fxprune.errors import InputError
from fxprune.graph_tools import copy_module
from fxprune.passes import OverParameterize, RemoveIdentity
from fxprune.pipeline import Pipeline
from fxprune.testing import check_pass

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
IMAGE = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))


def expanded(model: nn.Module, example: Tensor, **options: Any) -> Any:
    """Return the graph module after the pass, whatever the report."""
    return Pipeline([OverParameterize(**options)])(trace(model.eval(), example)).traced.module


def state(module: nn.Module) -> dict[str, list[int]]:
    return {key: list(value.shape) for key, value in module.state_dict().items()}


# ---------------------------------------------------------------- exact for every layer


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[Any, list[int]]:
    """Return a convolution and the sizes of an input that it takes."""
    n = draw(st.integers(1, 3))
    groups, stride, dilation = draw(st.sampled_from([1, 1, 2, 3])), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    kernel = tuple(draw(st.integers(1, 2 if n == 3 else 3)) for _ in range(n))
    padding: Any = draw(st.sampled_from([0, 1, 1, "same", "valid"]))
    if padding == "same":
        stride = 1
    conv = CONVS[n - 1](
        groups * draw(st.integers(1, 3)),
        groups * draw(st.integers(1, 3)),
        kernel,
        stride=stride,
        dilation=dilation,
        groups=groups,
        bias=draw(st.booleans()),
        padding=padding,
        padding_mode=draw(st.sampled_from(["zeros", "reflect", "circular", "replicate"])) if n < 3 else "zeros",
    )
    return conv, [2, conv.in_channels, *[draw(st.integers(5, 6)) for _ in range(n)]]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(convolutions(), st.sampled_from([1, 2, 3]), st.sampled_from([0.0, 1.0]))
def test_every_convolution(made: tuple[Any, list[int]], rate: float, noise: float) -> None:
    conv, shape = made
    result = check_pass(
        OverParameterize(rate=rate, noise=noise), nn.Sequential(conv), torch.randn(shape), changed=["0"]
    )
    chain = result.traced.module.get_submodule("0")
    assert len(chain) == (2 if math.prod(conv.kernel_size) == 1 else 3)
    assert [part.bias is not None for part in chain] == [False] * (len(chain) - 1) + [conv.bias is not None]


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.integers(1, 5), st.integers(1, 5), st.booleans(), st.sampled_from([[2], [2, 3], [2, 2, 3]]))
def test_every_linear_layer(inputs: int, outputs: int, bias: bool, batch: list[int]) -> None:
    model = nn.Sequential(nn.Linear(inputs, outputs, bias=bias))
    result = check_pass(OverParameterize(rate=2), model, torch.randn(*batch, inputs), changed=["0"])
    shapes = [list(part.weight.shape) for part in result.traced.module.get_submodule("0")]
    assert shapes == [[2 * inputs, inputs], [2 * outputs, 2 * inputs], [outputs, 2 * outputs]]


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("kernel", [5, 7])
@pytest.mark.parametrize("padding", [0, 3, "same"])
def test_stacked_kernels_of_three(n: int, kernel: int, padding: Any) -> None:
    stride = 1 if padding == "same" else 2
    conv = CONVS[n - 1](2, 4, kernel, padding=padding, stride=stride, dilation=2, groups=2)
    shape = [2, 2, *[15] * n]
    pass_ = OverParameterize(rate=9, form="stacked")
    result = check_pass(pass_, nn.Sequential(conv), torch.randn(shape), changed=["0"])
    chain: Any = result.traced.module.get_submodule("0")
    assert [part.kernel_size for part in chain] == [(3,) * n] * (kernel // 2)
    assert [part.bias is not None for part in chain] == [False] * (kernel // 2 - 1) + [True]


def test_stacked_leaves_other_kernels_to_the_common_form() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Conv2d(2, 2, (5, 1)), nn.Conv2d(2, 2, 1))
    module = expanded(model, IMAGE, form="stacked")
    assert [len(module.get_submodule(path)) for path in "012"] == [3, 3, 2]


def test_the_table_of_shapes() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 6, 3), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 4, 3, groups=2), nn.Conv2d(4, 8, 1)
    )
    shapes = state(expanded(model, torch.randn(2, 4, 9, 9), rate=4))
    assert shapes == {
        "0.0.weight": [16, 4, 1, 1], "0.1.weight": [24, 16, 3, 3], "0.2.weight": [6, 24, 1, 1], "0.2.bias": [6],
        "1.0.weight": [24, 1, 1, 1], "1.1.weight": [24, 4, 3, 3], "1.2.weight": [6, 4, 1, 1], "1.2.bias": [6],
        "2.0.weight": [24, 3, 1, 1], "2.1.weight": [16, 12, 3, 3], "2.2.weight": [4, 8, 1, 1], "2.2.bias": [4],
        "3.0.weight": [32, 4, 1, 1], "3.1.weight": [8, 32, 1, 1], "3.1.bias": [8],
    }  # fmt: skip


def test_float64_is_exact_to_rounding() -> None:
    conv = nn.Conv2d(6, 8, 3, padding=1, groups=2).double()
    value = torch.randn(2, 6, 7, 7, dtype=torch.float64)
    traced = Pipeline([OverParameterize()])(trace(nn.Sequential(conv), value)).traced
    with torch.no_grad():
        assert float((traced.run((value,))[0] - conv(value)).abs().max()) < 1e-13


# ---------------------------------------------------------------- what the result is like


class Small(nn.Module):
    """A network with a norm and an activation between its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))
        self.mix = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(self.stem(x).relu()).mean((2, 3)))  # type: ignore[no-any-return]


def test_the_record_of_blocks_is_copied_with_the_graph() -> None:
    module = expanded(Small(), IMAGE)
    record = {"stem.0": "stem.0.2", "mix": "mix.1", "head": "head.2"}
    for copied in (module, copy_module(module), copy.deepcopy(module)):
        assert copied.meta["fxprune.blocks"] == record
    again = Pipeline([RemoveIdentity()])(trace(Small().eval(), IMAGE).with_module(module)).traced.module
    assert again.meta["fxprune.blocks"] == record
    called = [node.target for node in module.graph.find_nodes(op="call_module")]
    assert called == ["stem.0.0", "stem.0.1", "stem.0.2", "stem.1", "mix.0", "mix.1", "head.0", "head.1", "head.2"]


def test_a_second_run_leaves_blocks_and_takes_new_layers() -> None:
    traced = trace(Small().eval(), IMAGE)
    first = OverParameterize(layers=["mix"])(traced)
    assert [change.place for change in first.report[0].changes] == ["mix"]
    second = OverParameterize(layers=["mix", "head"])(first.traced)
    assert [change.place for change in second.report[0].changes] == ["head"]
    third = OverParameterize()(second.traced)
    assert [change.place for change in third.report[0].changes] == ["stem.0"]
    assert {skip.why for skip in third.report[0].skips} == {
        f"it is part of {block}, which was expanded before" for block in ("mix", "head")
    }
    assert first.traced.module.meta["fxprune.blocks"] == {"mix": "mix.1"}, "each graph has a record of its own"


def test_all_factors_get_gradients() -> None:
    module = expanded(Small().float(), IMAGE)
    module(IMAGE).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 0, name


def test_frozen_layers_stay_frozen() -> None:
    model = Small().requires_grad_(False)
    assert not any(parameter.requires_grad for parameter in expanded(model, IMAGE).parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_keep_their_precision(dtype: torch.dtype) -> None:
    model = Small().to(dtype)
    assert {parameter.dtype for parameter in expanded(model, IMAGE.to(dtype)).parameters()} == {dtype}


class Mixed(nn.Module):
    """Half of the layers are in another precision than the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.rest = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
        self.last = nn.Linear(4, 4).bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.rest(x).bfloat16())  # type: ignore[no-any-return]


def test_each_layer_keeps_its_own_precision() -> None:
    module = OverParameterize()(trace(Mixed().eval(), torch.randn(2, 4))).traced.module
    for name, parameter in module.named_parameters():
        assert parameter.dtype == (torch.bfloat16 if name.startswith("last") else torch.float32), name


def test_a_seed_gives_the_same_weights_whatever_else_is_expanded() -> None:
    everything, one = expanded(Small(), IMAGE, seed=3), expanded(Small(), IMAGE, seed=3, layers="mix")
    assert torch.equal(everything.get_parameter("mix.0.weight"), one.get_parameter("mix.0.weight"))
    other = expanded(Small(), IMAGE, seed=4)
    assert not torch.equal(everything.get_parameter("mix.0.weight"), other.get_parameter("mix.0.weight"))


def test_rates_for_some_layers() -> None:
    module = expanded(Small(), IMAGE, rate=2, rates={"*": 3, "head": 1.0}, exclude=["stem.*"])
    assert state(module)["mix.0.weight"] == [12, 4, 1, 1]
    assert state(module)["head.0.weight"] == [4, 4]
    assert state(module)["stem.0.weight"] == [4, 3, 3, 3]


# ---------------------------------------------------------------- why there is noise


def effective(factors: list[Tensor]) -> Tensor:
    """Multiply 1x1, 3x3 and 1x1 weights out, in plain tensor products."""
    first, middle, last = factors
    return torch.einsum("oq,qpab,pi->oiab", last[..., 0, 0], middle, first[..., 0, 0])


def trained(rate: float, noise: float, steps: int = 25) -> Tensor:
    """Return the effective weight after some steps of SGD with momentum and weight decay."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False)).double()
    inputs, targets = torch.randn(8, 3, 6, 6).double(), torch.randn(8, 4, 6, 6).double()
    module = expanded(model, inputs, rate=rate, noise=noise)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        F.mse_loss(module(inputs), targets).backward()
        optimizer.step()
    return effective([module.get_parameter(f"0.{i}.weight").detach() for i in range(3)])


def test_without_noise_width_does_not_matter_and_with_noise_it_does() -> None:
    narrow, wide = trained(1, 0), trained(4, 0)
    scale = float(narrow.abs().max())
    assert float((wide - narrow).abs().max()) < 1e-12 * scale
    assert float((trained(4, 1) - narrow).abs().max()) > 0.01 * scale
    assert float((trained(1, 1) - narrow).abs().max()) < 1e-12 * scale, "at rate 1 there is no null space"


# ---------------------------------------------------------------- left alone, with a reason


class Own(nn.Conv2d):
    """A convolution that does more than one."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c, self.d, self.e = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.e.weight = self.d.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.c(x).relu()) + self.d(x) + self.e(x)  # type: ignore[no-any-return]


def test_layers_called_twice_and_tied_layers_stay() -> None:
    reasons = {"c": "called 2 times", "d": "shares its weights with e.weight", "e": "shares its weights with d.weight"}
    check_pass(OverParameterize(), Twice(), IMAGE, skipped=reasons)


def test_weights_that_the_graph_reads_stay() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(x) * self.c.weight.norm()  # type: ignore[no-any-return]

    check_pass(OverParameterize(), Reads(), IMAGE, skipped={"c": "shares its weights with c_weight"})


def test_parametrised_layers_stay() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.Conv2d(4, 4, 3))
    check_pass(OverParameterize(), model, IMAGE, changed=["1"], skipped={"conv2d": "its weight is computed"})


def test_transposed_and_excluded_layers_stay() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    skipped = {"0": "transposed", "1": "it is excluded"}
    check_pass(OverParameterize(exclude="1"), model, IMAGE, changed=["2"], skipped=skipped)


def replaced(layer: nn.Module) -> Any:
    """Return a capture whose only layer was put there by hand."""
    traced = trace(nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), IMAGE)
    traced.module._modules["0"] = layer.eval()
    return traced


def test_layers_that_are_not_what_they_seem_stay() -> None:
    hooked = nn.Conv2d(3, 4, 3)
    hooked.register_forward_hook(lambda *_: None)
    holding = nn.Conv2d(3, 4, 3)
    holding.drop = nn.Dropout()
    for layer, reason in (
        (Own(3, 4, 3), "it is a Own, which may do more than Conv2d"),
        (hooked, "forward hooks"),
        (holding, "holds other modules"),
    ):
        (report,) = OverParameterize()(replaced(layer)).report
        assert not report.changes
        assert reason in report.skips[0].why


# ---------------------------------------------------------------- options that cannot be


@pytest.mark.parametrize("rate", [0, -1, 0.5, math.nan, math.inf, True, "4"])
def test_rates_that_hold_no_layer(rate: Any) -> None:
    with pytest.raises(InputError, match="at least 1"):
        OverParameterize(rate=rate)
    with pytest.raises(InputError, match=r"rates\['head'\]"):
        OverParameterize(rates={"head": rate})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": -1}, "noise is -1"),
        ({"noise": math.nan}, "noise is nan"),
        ({"form": "2-k-2"}, "form is '2-k-2'"),
        ({"layers": [3]}, "layers takes glob patterns"),
    ],
)
def test_other_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        OverParameterize(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 1.5}, "stem.0 has 3 input channels per group, and 1.5 times that is no whole number"),
        ({"layers": ["haed"]}, "the pattern 'haed' of layers matches no .* layers are stem.0, mix, head"),
        ({"exclude": ["haed"]}, "'haed' of exclude"),
        ({"rates": {"haed": 2}}, "'haed' of rates"),
    ],
)
def test_options_that_do_not_fit_the_model(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        OverParameterize(**options)(trace(Small().eval(), IMAGE))


def test_a_stacked_chain_that_is_too_narrow() -> None:
    with pytest.raises(InputError, match=r"0 has 3 inputs .* at least \[12\] channels .* rate of 2 gives \[6\]"):
        expanded(nn.Sequential(nn.Conv2d(3, 4, 5)), IMAGE, rate=2, form="stacked")
