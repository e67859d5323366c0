"""Linear chains and branches become one layer where that is exact, and stay with a reason where it is not."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fxprune.capture import Traced, trace
from fxprune.passes import FuseBatchNorm, OverParameterize, PruneChannels, Reparameterize
from fxprune.pipeline import Pipeline
from fxprune.planning import make_plan
from fxprune.testing import check_pass

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
MODES = ["zeros", "reflect", "circular", "replicate"]
IMAGE = torch.randn(2, 4, 9, 9, generator=torch.Generator().manual_seed(0))


def awake(model: nn.Module) -> nn.Module:
    """Give norms random weights and statistics, and what is zero random values: fresh ones hide most mistakes."""
    generator = torch.Generator().manual_seed(1)
    for norm in model.modules():
        if isinstance(norm, NORMS):
            for tensor in (norm.weight, norm.running_var):
                if tensor is not None:
                    tensor.data = 0.5 + torch.rand(tensor.shape, generator=generator)
            for tensor in (norm.bias, norm.running_mean):
                if tensor is not None:
                    tensor.data = torch.randn(tensor.shape, generator=generator)
    for parameter in model.parameters():
        if not parameter.any():
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


class Net(nn.Module):
    """Layers and parameters by name, and what to do with them."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **parts: Any) -> None:
        super().__init__()
        self.compute = forward
        for name, part in parts.items():
            setattr(self, name, part)
        awake(self)

    def forward(self, x: Tensor) -> Any:
        return self.compute(self, x)


def state(module: nn.Module) -> dict[str, list[int]]:
    return {key: list(value.shape) for key, value in module.state_dict().items()}


def only_layer(result: Any) -> Any:
    """Return the one layer that is called."""
    (node,) = result.traced.module.graph.find_nodes(op="call_module")
    return result.traced.module.get_submodule(node.target)


# ---------------------------------------------------------------- expand, train, collapse


@st.composite
def layers(draw: st.DrawFn) -> tuple[Any, list[int]]:
    """Return a convolution or linear layer and the sizes of an input that it takes."""
    n = draw(st.integers(0, 3))
    if not n:
        return nn.Linear(draw(st.integers(1, 4)), 3, bias=draw(st.booleans())), [2, 4]
    groups, stride, dilation = draw(st.sampled_from([1, 1, 2, 3])), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    padding: Any = draw(st.sampled_from([0, 1, 1, "same", "valid"]))
    conv = CONVS[n - 1](
        groups * draw(st.integers(1, 3)),
        groups * draw(st.integers(1, 3)),
        tuple(draw(st.integers(1, 2 if n == 3 else 3)) for _ in range(n)),
        stride=1 if padding == "same" else stride,
        dilation=dilation,
        groups=groups,
        bias=draw(st.booleans()),
        padding=padding,
        padding_mode=draw(st.sampled_from(MODES)) if n < 3 else "zeros",
    )
    return conv, [2, conv.in_channels, *[draw(st.integers(5, 6)) for _ in range(n)]]


def after_training(module: nn.Module, example: Tensor) -> None:
    """Take some steps towards random targets."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        F.mse_loss(module(example), torch.randn_like(module(example))).backward()
        optimizer.step()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(layers(), st.sampled_from([1, 2]), st.sampled_from([torch.float64, torch.float32]))
def test_expand_train_collapse(made: tuple[Any, list[int]], rate: float, dtype: torch.dtype) -> None:
    layer, shape = made
    if isinstance(layer, nn.Linear):
        shape = [2, 3, layer.in_features]
    traced = trace(nn.Sequential(layer).to(dtype).eval(), torch.randn(shape, dtype=dtype))
    wide = Pipeline([OverParameterize(rate=rate)])(traced).traced
    (example,) = traced.args
    after_training(wide.module, example)
    value = torch.randn_like(example)
    narrow = Pipeline([Reparameterize()])(wide).traced
    (found,), (expected,) = narrow.run((value,)), wide.run((value,))
    tolerance = 1e-9 if dtype == torch.float64 else 1e-5
    assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())
    assert float((found - traced.run((value,))[0]).abs().max()) > 0, "it was trained"
    assert state(narrow.module) == state(traced.module)
    assert repr(narrow.module.get_submodule("0")) == repr(traced.module.get_submodule("0"))
    assert narrow.module.meta["fxprune.blocks"] == {}


@pytest.mark.parametrize("kernel", [5, 7])
@pytest.mark.parametrize("padding", [0, 2])
def test_stacked_kernels_collapse(kernel: int, padding: int) -> None:
    conv = nn.Conv2d(2, 4, kernel, padding=padding, stride=2, dilation=2, groups=2, padding_mode="zeros")
    traced = trace(nn.Sequential(conv).double().eval(), torch.randn(2, 2, 17, 15).double())
    wide = Pipeline([OverParameterize(rate=9, form="stacked")])(traced).traced
    after_training(wide.module, traced.args[0])
    result = Pipeline([Reparameterize()])(wide)
    assert repr(only_layer(result)) == repr(traced.module.get_submodule("0"))


class Residual(nn.Module):
    """Layers with norms, activations, a residual, and two that touch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6))
        self.deep = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.Conv2d(6, 6, 1))
        self.scale = nn.Parameter(torch.rand(6, 1, 1) + 0.5)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x).relu()
        return self.head((y + self.deep(y) * self.scale).relu().mean((2, 3)))  # type: ignore[no-any-return]


def test_what_was_expanded_has_its_keys_again() -> None:
    model = awake(Residual()).double()
    traced = trace(model, IMAGE.double())
    wide = Pipeline([OverParameterize(rate=3)])(traced).traced
    result = Pipeline([Reparameterize(only_blocks=True)])(wide)
    assert list(state(result.traced.module).items()) == list(state(traced.module).items())
    for name, tensor in result.traced.module.state_dict().items():
        torch.testing.assert_close(tensor, model.state_dict()[name], rtol=1e-12, atol=1e-12)
    again = Reparameterize(only_blocks=True)(result.traced)
    assert not again.report[0].changes
    assert not again.report[0].skips


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_what_was_pruned_expanded_and_trained_is_the_pruned_network_again(dtype: torch.dtype, tolerance: float) -> None:
    traced = trace(awake(Residual()).to(dtype), IMAGE.to(dtype))
    pruned = Pipeline([PruneChannels(make_plan(traced, macs=0.6, round_to=1))])(traced).traced
    wide = Pipeline([OverParameterize(rate=2)])(pruned).traced
    wide.module.train()
    after_training(wide.module, IMAGE.to(dtype))
    wide.module.eval()
    narrow = Pipeline([Reparameterize(only_blocks=True)])(wide).traced
    assert list(state(narrow.module).items()) == list(state(pruned.module).items())
    (found,), (expected,) = narrow.run((IMAGE.to(dtype),)), wide.run((IMAGE.to(dtype),))
    assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())
    assert float((found - pruned.run((IMAGE.to(dtype),))[0]).abs().max()) > 0, "it was trained"


def test_a_block_that_something_came_into_stays_a_chain() -> None:
    traced = trace(nn.Sequential(nn.Conv2d(4, 4, 3)).eval(), IMAGE)
    wide = OverParameterize(rate=1)(traced).traced
    graph = wide.module.graph
    inner = next(node for node in graph.nodes if node.target == "0.1")
    with graph.inserting_after(inner):
        relu = graph.call_function(torch.ops.aten.relu.default, (inner,))
    relu.meta = dict(inner.meta)
    inner.replace_all_uses_with(relu, delete_user_cb=lambda user: user is not relu)
    (report,) = Reparameterize(only_blocks=True)(wide).report
    assert [(skip.place, skip.why) for skip in report.skips] == [
        ("0", "its layers are no chain any more: relu_default before it is no linear operation")
    ]


# ---------------------------------------------------------------- chains


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Any, Any, list[int]]:
    """Return two convolutions that fit behind each other, and the sizes of an input."""
    n = draw(st.integers(1, 2))

    def conv(inputs: int, outputs: int, groups: int, bias: bool) -> Any:
        return CONVS[n - 1](
            inputs,
            outputs,
            tuple(draw(st.integers(1, 3)) for _ in range(n)),
            stride=draw(st.integers(1, 2)),
            padding=tuple(draw(st.integers(0, 2)) for _ in range(n)),
            dilation=draw(st.integers(1, 2)),
            groups=groups,
            bias=bias,
        )

    first = conv(4, draw(st.sampled_from([4, 8])), draw(st.sampled_from([1, 2, 4])), draw(st.booleans()))
    second = conv(first.out_channels, 4, draw(st.sampled_from([1, 2, 4])), draw(st.booleans()))
    return first, second, [2, 4, *[draw(st.integers(11, 13)) for _ in range(n)]]


def is_one_layer(first: Any, second: Any, shape: list[int]) -> bool:
    """Whether a chain is a convolution as long as the borders do not tell, by the response to single cells.

    This does not use the algebra under test: a convolution of the padded input gives, next to a border, what the chain
    gives for an input that goes on with zeros behind that border.
    """
    value = torch.randn(1, 4, *shape[2:], dtype=torch.float64)
    far = 24  # a multiple of every stride, so that the grid of outputs stays in place
    stride = [a * b for a, b in zip(first.stride, second.stride, strict=True)]
    chain = nn.Sequential(first, second).double()
    with torch.no_grad():
        inside = chain(value)
        outside = chain(F.pad(value, [far] * 2 * len(stride)))
        where = tuple(slice(far // s, far // s + size) for s, size in zip(stride, inside.shape[2:], strict=True))
        return bool(torch.allclose(inside, outside[..., *where], rtol=1e-9, atol=1e-9))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(pairs())
def test_two_convolutions(made: tuple[Any, Any, list[int]]) -> None:
    first, second, shape = made
    model = nn.Sequential(first, second)
    exact = is_one_layer(first, second, shape)
    traced = trace(model.double().eval(), torch.randn(shape, dtype=torch.float64))
    result = Pipeline([Reparameterize(even_if_larger=True)])(traced)
    (report,) = result.report
    assert bool(report.changes) <= exact, "the Pipeline checks values, and this that they are right at other sizes too"
    if not report.changes:
        padded = [side for side in range(len(second.padding)) if second.padding[side]]
        assert padded, "a second layer without padding always goes"
        assert first.bias is not None or any(
            first.padding[side] < first.dilation[side] * (first.kernel_size[side] - 1) for side in padded
        )


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 5), min_size=3, max_size=5), st.booleans(), st.sampled_from([[2], [2, 3]]))
def test_linear_layers_in_a_row(sizes: list[int], bias: bool, batch: list[int]) -> None:
    parts = [nn.Linear(a, b, bias=bias) for a, b in itertools.pairwise(sizes)]
    traced = trace(nn.Sequential(*parts).double().eval(), torch.randn(*batch, sizes[0]).double())
    layer: Any = only_layer(Pipeline([Reparameterize(even_if_larger=True)])(traced))
    assert (layer.in_features, layer.out_features, layer.bias is not None) == (sizes[0], sizes[-1], bias)


@st.composite
def programs(draw: st.DrawFn) -> nn.Module:
    """Return a random program of linear steps, some of which are sums of two programs that keep the size."""
    pads = st.sampled_from([nn.ZeroPad2d, nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d])

    def conv(keeps_size: bool) -> nn.Module:
        dilation, groups, bias = draw(st.sampled_from([1, 1, 2])), draw(st.sampled_from([1, 2, 4])), draw(st.booleans())
        kernel, padding, stride = draw(st.integers(1, 3)), draw(st.integers(0, 2)), draw(st.sampled_from([1, 1, 2]))
        if keeps_size:
            kernel, stride = kernel | 1, 1
            padding = dilation * (kernel - 1) // 2
        return nn.Conv2d(4, 4, kernel, stride, padding, dilation, groups, bias)

    def step(depth: int) -> nn.Module:
        kinds = ["conv", "conv", "conv", "norm", "scale", "drop"]
        kinds += ["pad", "mean", "sum", "sum", "sum"] if depth == 2 else ["sum"] * depth
        kind = draw(st.sampled_from(kinds))
        if kind == "sum":
            return Sum(program(depth - 1), program(depth - 1))
        if kind == "conv":
            return conv(depth < 2)
        if kind == "pad":
            widths = tuple(draw(st.integers(0, 2)) for _ in range(4))
            return draw(pads)(widths)  # type: ignore[no-any-return]
        if kind == "mean":
            return nn.AvgPool2d(
                draw(st.integers(2, 3)), 1, draw(st.integers(0, 1)), count_include_pad=draw(st.booleans())
            )
        return {"norm": nn.BatchNorm2d(4), "scale": Scale(), "drop": nn.Dropout()}[kind]

    def program(depth: int) -> nn.Module:
        return nn.Sequential(*[step(depth) for _ in range(draw(st.integers(1, 4 if depth == 2 else 2)))])

    return awake(program(2))


class Sum(nn.Module):
    """One branch minus twice the other."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        return torch.sub(self.first(x), self.second(x), alpha=2)


class Scale(nn.Module):
    """A scale and a shift per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.randn(4, 1, 1)), nn.Parameter(torch.randn(1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma + self.beta


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(programs())
def test_random_programs(model: nn.Module) -> None:
    """Whatever is merged is the same function, also of images of other sizes than the example's."""
    model = model.double()
    try:
        model(torch.ones(1, 4, 8, 9, dtype=torch.float64))
    except RuntimeError:  # there is less than a kernel left
        assume(False)
    result = Pipeline([Reparameterize(even_if_larger=True)])(trace(model, IMAGE.double(), dynamic_size=True))
    for height, width in ((9, 9), (10, 13), (12, 11), (8, 17)):
        value = torch.randn(2, 4, height, width, dtype=torch.float64)
        with torch.no_grad():
            expected = model(value)
        (found,) = result.traced.run((value,))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
    assert not Reparameterize(even_if_larger=True)(result.traced).report.changed


CHAINS: dict[str, tuple[nn.Module, list[str]]] = {
    "padding on the first, with inner biases": (
        nn.Sequential(nn.Conv2d(4, 8, 1, padding=1), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 1)), ["1", "1"],
    ),
    "a norm in between": (
        nn.Sequential(nn.Conv2d(4, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)), ["0"],
    ),
    "dropout and identity in between": (
        nn.Sequential(nn.Conv2d(4, 8, 3), nn.Dropout(), nn.Identity(), nn.Conv2d(8, 4, 1)), ["0"],
    ),
    "strides": (nn.Sequential(nn.Conv2d(4, 8, 1, stride=2, bias=False), nn.Conv2d(8, 4, 1, stride=2)), ["0"]),
    "a norm behind stays": (
        nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4)), ["0"],
    ),
    "a norm before stays": (
        nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 8, 3), nn.Conv2d(8, 4, 1)), ["1"],
    ),
    "groups": (nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.Conv2d(8, 4, 1, groups=2)), ["0"]),
    "a scale": (
        Net(lambda m, x: m.c(x * m.s), c=nn.Conv2d(4, 4, 3, padding=1), s=nn.Parameter(torch.rand(4, 1, 1))), ["c"],
    ),
    "a scale behind": (
        Net(lambda m, x: m.s * m.c(x), c=nn.Conv2d(4, 4, 3), s=nn.Parameter(torch.rand(4, 1, 1))), ["c"],
    ),
    "a computed scale": (
        Net(lambda m, x: m.c(x) * m.s.view(1, -1, 1, 1).exp(), c=nn.Conv2d(4, 4, 3), s=nn.Parameter(torch.rand(4))),
        ["c"],
    ),
    "an integer divisor": (
        Net(lambda m, x: m.c(x) / m.s, c=nn.Conv2d(4, 4, 3), s=nn.Buffer(torch.tensor([3, 5, 7, 9])[:, None, None])),
        ["c"],
    ),
    "literals": (Net(lambda m, x: 2 - m.c((3 * x - 1) / 4 + 0.5), c=nn.Conv2d(4, 4, 3)), ["c"] * 5),
    "a shift by a buffer": (
        Net(lambda m, x: m.c(x) - m.s, c=nn.Conv2d(4, 4, 3, bias=False), s=nn.Buffer(torch.randn(1, 4, 1, 1))), ["c"],
    ),
    "alpha": (
        Net(lambda m, x: torch.sub(m.s, m.c(x), alpha=3), c=nn.Conv2d(4, 4, 3), s=nn.Buffer(torch.randn(4, 1, 1))),
        ["c"],
    ),
    "subtracted the other way round": (
        Net(lambda m, x: torch.rsub(m.c(x), m.s, alpha=3), c=nn.Conv2d(4, 4, 3), s=nn.Buffer(torch.randn(4, 1, 1))),
        ["c"],
    ),
    "minus": (Net(lambda m, x: -m.c(x), c=nn.Conv2d(4, 4, 3)), ["c"]),
    "reflection in front stays": (
        nn.Sequential(nn.ReflectionPad2d((1, 1, 2, 2)), nn.Conv2d(4, 8, (5, 3)), nn.Conv2d(8, 4, 1)), ["1"],
    ),
    "reflection in between": (
        nn.Sequential(nn.Conv2d(4, 8, 1), nn.ReflectionPad2d((1, 1, 2, 2)), nn.Conv2d(8, 4, (5, 3))), ["2"],
    ),
    "zeros in front of a layer that pads": (
        nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.ZeroPad2d(2), nn.Conv2d(4, 8, 3, padding=1)), ["2"],
    ),
    "full padding": (
        nn.Sequential(nn.Conv2d(4, 4, 3, padding=2, bias=False), nn.Conv2d(4, 4, 3, padding=1)), [],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CHAINS)
def test_chains(case: str) -> None:
    model, places = CHAINS[case]
    # A sum of kernels may be larger than what it stands for; that is tested below.
    pass_ = Reparameterize(even_if_larger=case == "full padding")
    check_pass(pass_, awake(model), IMAGE, changed=places or ["0"])


def test_reflecting_layers() -> None:
    """Capture writes padding modes out, but a graph may have layers that pad so."""
    traced = trace(nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 3, padding=1)).double().eval(), IMAGE.double())
    traced.module._modules["1"] = nn.Conv2d(8, 4, 3, padding=1, padding_mode="reflect").double()
    layer = only_layer(Pipeline([Reparameterize()])(traced))
    assert (layer.padding, layer.padding_mode) == ((1, 1), "reflect")


# ---------------------------------------------------------------- branches


@st.composite
def blocks(draw: st.DrawFn) -> tuple[nn.Module, list[int]]:
    """Return parallel branches as people train them, and the sizes of an input."""
    n, stride, channels = draw(st.integers(1, 2)), draw(st.integers(1, 2)), 4
    dilation, groups = draw(st.integers(1, 2)), draw(st.sampled_from([1, 2, 4]))
    branches: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 3))):
        kernel = tuple(draw(st.sampled_from([1, 3, 5])) for _ in range(n))
        padding = tuple(dilation * (size - 1) // 2 for size in kernel)
        conv = CONVS[n - 1](
            channels,
            channels,
            kernel,
            stride,
            padding,
            dilation,
            draw(st.sampled_from([groups, 4])),
            draw(st.booleans()),
        )
        branches.append(nn.Sequential(conv, NORMS[n - 1](channels)) if draw(st.booleans()) else conv)
    if stride == 1:
        branches += draw(st.sampled_from([[], [nn.Identity()], [NORMS[n - 1](channels)]]))
    if draw(st.booleans()):
        pool: Any = (nn.AvgPool1d, nn.AvgPool2d)[n - 1](3, stride, 1)
        branches.append(pool)
    assume(len(branches) > 1)
    return awake(Net(total, parts=nn.ModuleList(branches))), [
        2,
        channels,
        *[draw(st.integers(11, 12)) for _ in range(n)],
    ]


def total(model: Any, x: Tensor) -> Tensor:
    """Add all branches up."""
    y = model.parts[0](x)
    for part in model.parts[1:]:
        y = y + part(x)
    return y  # type: ignore[no-any-return]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(blocks())
def test_branches(made: tuple[nn.Module, list[int]]) -> None:
    model, shape = made
    traced = trace(model.double().eval(), torch.randn(shape, dtype=torch.float64))
    layer = only_layer(Pipeline([Reparameterize(even_if_larger=True)])(traced))
    parts: list[Any] = [part for part in model.modules() if isinstance(part, CONVS)]
    assert layer.kernel_size == tuple(
        max(3 if pooled(model) else 1, *(part.kernel_size[dim] for part in parts)) for dim in range(len(shape) - 2)
    ) or any(part.dilation[0] == 2 for part in parts), "no larger than the largest branch"


def pooled(model: nn.Module) -> bool:
    return any(isinstance(part, nn.AvgPool1d | nn.AvgPool2d) for part in model.modules())


class RepVGG(nn.Module):
    """3x3, 1x1 and identity, each with a norm."""

    def __init__(self, channels: int, dilation: int = 1) -> None:
        super().__init__()
        self.dense = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, bias=False), nn.BatchNorm2d(channels)
        )
        self.point = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels))
        self.same = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return (self.dense(x) + self.point(x) + self.same(x)).relu()


class ACNet(nn.Module):
    """A square kernel, and one in each direction."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.square = nn.Conv2d(channels, 6, 3, stride=2, padding=1)
        self.tall, self.flat = nn.Conv2d(channels, 6, (3, 1), 2, (1, 0)), nn.Conv2d(channels, 6, (1, 3), 2, (0, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.square(x) + (self.tall(x) - self.flat(x))  # type: ignore[no-any-return]


class ResConv(nn.Module):
    """A scaled convolution on top of a scaled identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.beta = nn.Parameter(torch.rand(1, channels, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x * 0.5, self.conv(x) * self.beta, alpha=2)


@pytest.mark.parametrize("make", [RepVGG, ACNet, ResConv])
def test_a_block_takes_the_place_of_its_container(make: Callable[[int], nn.Module]) -> None:
    model = awake(nn.Sequential(nn.Sequential(make(4)), nn.ReLU()))
    result = check_pass(Reparameterize(), model, IMAGE, changed=["0.0"])
    assert {key.rpartition(".")[0] for key in state(result.traced.module)} == {"0.0"}


def test_a_dilated_block_keeps_its_dilation() -> None:
    layer = only_layer(check_pass(Reparameterize(), awake(nn.Sequential(RepVGG(4, 2))), IMAGE, changed=["0"]))
    assert (layer.kernel_size, layer.dilation, layer.padding) == ((3, 3), (2, 2), (2, 2))


def test_linear_branches() -> None:
    """A low-rank update beside a layer, merged where the layer is there anyway."""
    model = Net(lambda m, x: m.f(x) + m.b(m.a(x)) * 0.5 + x, f=nn.Linear(6, 6), a=nn.Linear(6, 2), b=nn.Linear(2, 6))
    check_pass(Reparameterize(), model, torch.randn(2, 3, 6), changed=["f"])


def test_branches_that_start_at_different_cells() -> None:
    model = Net(lambda m, x: m.c(x) + m.d(x), c=nn.Conv2d(4, 4, 2), d=nn.Conv2d(4, 4, 4, padding=1))
    check_pass(Reparameterize(), model, IMAGE, changed=["d"])
    model = Net(lambda m, x: m.c(x) + x, c=nn.Conv2d(4, 4, 2, padding="same"))
    layer = only_layer(check_pass(Reparameterize(), model, IMAGE, changed=["c"]))
    assert layer.padding == "same", "which pads one cell less in front"


def test_a_block_beside_what_the_graph_never_read_goes_to_its_main_layer() -> None:
    model = awake(nn.Sequential(RepVGG(4)))
    model.get_submodule("0").unused = nn.Parameter(torch.ones(3))  # type: ignore[assignment]
    result = check_pass(Reparameterize(), model, IMAGE, changed=["0.dense.0"])
    assert sorted(state(result.traced.module)) == ["0.dense.0.bias", "0.dense.0.weight", "0.unused"]


def test_precision_and_trainability_stay() -> None:
    model = awake(nn.Sequential(RepVGG(4))).bfloat16().requires_grad_(False)
    traced = Pipeline([Reparameterize()])(trace(model, IMAGE.bfloat16())).traced
    assert {(p.dtype, p.requires_grad) for p in traced.module.parameters()} == {(torch.bfloat16, False)}


# ---------------------------------------------------------------- left alone, with a reason


def tied() -> Net:
    model = Net(
        lambda m, x: m.d(m.c(x)) + m.e(x.relu()), c=nn.Conv2d(4, 4, 1), d=nn.Conv2d(4, 4, 1), e=nn.Conv2d(4, 4, 1)
    )
    model.e.weight = model.d.weight  # type: ignore[union-attr]
    return model


SKIPPED: dict[str, tuple[nn.Module, Tensor, dict[str, str]]] = {
    "an activation in between": (
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1)), IMAGE,
        {"0": "is an input", "2": "relu before it is no linear operation"},
    ),
    "read by others": (
        Net(lambda m, x: m.d(y := m.c(x)).relu() + y, c=nn.Conv2d(4, 4, 1), d=nn.Conv2d(4, 4, 1)), IMAGE,
        {"c": "is an input", "d": "c before it is also read by add", "add": "relu before it is no linear operation"},
    ),
    "zero padding behind a bias": (
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)), IMAGE,
        {"0": "is an input",
         "1": "no single layer together with 0: the second pads with zeros where the first gives its bias"},
    ),
    "zero padding behind a kernel": (
        nn.Sequential(nn.Conv2d(4, 4, 3, bias=False), nn.Conv2d(4, 4, 3, padding=1)), IMAGE,
        {"0": "is an input", "1": "the first, continued, would still read its input"},
    ),
    "a depthwise and a pointwise layer": (
        nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 1)), IMAGE,
        {"0": "is an input",
         "1": "one layer in place of it and 0 would cost 7,056 multiply-accumulates per sample, and they cost 2,548"},
    ),
    "groups that do not match": (
        nn.Sequential(nn.Conv2d(6, 6, 1, groups=2), nn.Conv2d(6, 6, 1, groups=3)), torch.randn(2, 6, 5, 5),
        {"0": "is an input", "1": "would cost 900 multiply-accumulates per sample, and they cost 750"},
    ),
    "a low-rank pair": (
        nn.Sequential(nn.Linear(8, 2), nn.Linear(2, 8)), torch.randn(2, 8),
        {"0": "is an input", "1": "would cost 64 multiply-accumulates per sample, and they cost 32"},
    ),
    "two flat kernels alone": (
        Net(lambda m, x: m.t(x) + m.f(x),
            t=nn.Conv2d(4, 4, (3, 1), padding=(1, 0)), f=nn.Conv2d(4, 4, (1, 3), padding=(0, 1))),
        IMAGE, {"t": "is an input", "f": "is an input", "add": "would cost"},
    ),
    "a norm without statistics": (
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False), nn.Conv2d(4, 4, 1)), IMAGE,
        {"0": "is an input", "2": "1 before it has no statistics and normalises by the batch"},
    ),
    "padding on one side": (
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReplicationPad2d((0, 1, 0, 1)), nn.Conv2d(4, 4, 2)), IMAGE,
        {"0": "is an input", "2": "one layer would have to pad (0, 0) cells in front and (1, 1) behind"},
    ),
    "padding with ones": (
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.ConstantPad2d(1, 1.0), nn.Conv2d(4, 4, 3)), IMAGE,
        {"0": "is an input", "2": "pad before it pads with 1.0"},
    ),
    "padding less than nothing": (
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.ZeroPad2d(-1), nn.Conv2d(4, 4, 3)), IMAGE,
        {"0": "is an input", "2": "pad before it pads with a negative"},
    ),
    "padding of channels": (
        Net(lambda m, x: m.d(F.pad(m.c(x), (0, 0, 0, 0, 0, 2))), c=nn.Conv2d(4, 4, 3), d=nn.Conv2d(6, 4, 1)), IMAGE,
        {"c": "is an input", "d": "pad pads other dimensions than layers do"},
    ),
    "zero padding behind a norm": (
        nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)), IMAGE,
        {"0": "is an input", "2": "the second pads with zeros where the first gives its bias"},
    ),
    "two modes of padding": (
        nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.ReflectionPad2d(1), nn.Conv2d(4, 4, 3, padding=1)), IMAGE,
        {"0": "is an input",
         "2": "no single layer together with 0, pad: the first pads in mode reflect, the second with zeros"},
    ),
    "a shift by another value": (
        Net(lambda m, x: m.c(x) + x.mean((2, 3), keepdim=True), c=nn.Conv2d(4, 4, 1)), IMAGE,
        {"c": "is an input"},
    ),
    "shared weights": (
        tied(), IMAGE,
        {"c": "is an input", "d": "shares its weights with e.weight", "e": "shares its weights with d.weight"},
    ),
    "called twice": (
        Net(lambda m, x: m.c(m.c(x)), c=nn.Conv2d(4, 4, 1)), IMAGE, {"c": "it stays as it is: it is called 2 times"},
    ),
    "different values": (
        Net(lambda m, x: m.c(x.relu()) + m.d(x.sigmoid()), c=nn.Conv2d(4, 4, 1), d=nn.Conv2d(4, 4, 1)), IMAGE,
        {"c": "relu before it", "d": "sigmoid before it", "add": "sigmoid before it is no linear operation, beside c"},
    ),
    "different strides": (
        Net(lambda m, x: m.c(x) + m.d(x), c=nn.Conv2d(4, 4, 5), d=nn.Conv2d(4, 4, 1, stride=2)), IMAGE,
        {"c": "is an input", "d": "is an input", "add": "its branches have different strides"},
    ),
    "a mean over fewer cells at the border": (
        Net(lambda m, x: m.c(x) + m.p(x),
            c=nn.Conv2d(4, 4, 3, padding=1), p=nn.AvgPool2d(3, 1, 1, count_include_pad=False)),
        IMAGE, {"c": "is an input", "add": "avg_pool2d before it takes the mean over fewer cells at the border"},
    ),
    "a constant that differs from cell to cell": (
        Net(lambda m, x: m.c(x) * m.s, c=nn.Conv2d(4, 4, 1), s=nn.Buffer(torch.rand(9, 9))), IMAGE,
        {"c": "is an input", "mul": "differs from cell to cell"},
    ),
    "a constant that others read": (
        Net(lambda m, x: m.c(x) * m.s + m.s, c=nn.Conv2d(4, 4, 1), s=nn.Parameter(torch.rand(4, 1, 1))), IMAGE,
        {"c": "is an input"},
    ),
    "a computed weight": (
        Net(lambda m, x: F.conv2d(m.c(x), m.d.weight * 2), c=nn.Conv2d(4, 4, 1), d=nn.Conv2d(4, 4, 1)), IMAGE,
        {"c": "is an input", "conv2d_1": "its weight is computed"},
    ),
    "a transposed convolution": (
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.ConvTranspose2d(4, 4, 3)), IMAGE,
        {"0": "is an input", "1": "transposed convolutions are not collapsed"},
    ),
    "an axis that is another's": (
        nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)), torch.randn(2, 4, 4),
        {"0": "is an input", "2": "1 takes another dimension for channels"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SKIPPED)
def test_what_is_left_alone(case: str) -> None:
    model, example, reasons = SKIPPED[case]
    check_pass(Reparameterize(), awake(model), example, skipped=reasons)


def test_a_weight_that_the_graph_reads_is_left_alone() -> None:
    model = Net(lambda m, x: (m.d(m.c(x)), m.c.weight.sum()), c=nn.Conv2d(4, 8, 1), d=nn.Conv2d(8, 4, 1))
    expected = {"c": "shares its weights with c_weight", "d": "c before it stays as it is: it shares its weights"}
    check_pass(Reparameterize(), model, IMAGE, skipped=expected)


@pytest.mark.parametrize("hooked", ["0", "1", "2"])
def test_hooks_are_left_alone(hooked: str) -> None:
    """What is hooked after capture may do anything."""
    traced = trace(nn.Sequential(nn.Conv2d(4, 8, 1), nn.Dropout(), nn.Conv2d(8, 4, 1)).eval(), IMAGE)
    if not isinstance(traced.module.get_submodule("1"), nn.Dropout):
        pytest.fail("the capture has no dropout to hook")
    traced.module.get_submodule(hooked).register_forward_hook(lambda layer, args, output: output.relu())
    (report,) = Reparameterize()(traced).report
    assert not report.changes
    assert any("forward hooks" in skip.why for skip in report.skips)


def test_layers_of_different_precision_are_left_alone() -> None:
    model = awake(nn.Sequential(nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)))
    traced = trace(model.bfloat16(), IMAGE.bfloat16())
    traced.module.get_submodule("1").float()
    (report,) = Reparameterize()(traced).report
    assert not report.changes
    assert "their weights are torch.bfloat16, torch.float32" in report.skips[0].why


def test_training_mode_is_left_alone() -> None:
    model = awake(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)))
    traced = trace(model, IMAGE)
    traced.module.train()
    (report,) = Reparameterize()(traced).report
    assert not report.changes
    assert "1 before it is in training mode and normalises by the batch" in report.skips[0].why


# ---------------------------------------------------------------- networks that people train


def traced_model(name: str, size: int) -> tuple[nn.Module, Traced]:
    timm = pytest.importorskip("timm", reason="timm builds the networks, and is in the extra 'dev'")
    model = awake(timm.create_model(name, pretrained=False)).double()
    return model, trace(model, torch.randn(2, 3, size, size, dtype=torch.float64))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "size", "blocks"),
    [
        ("repvgg_a0", 32, 22),
        ("mobileone_s0", 32, 43),
        ("repghostnet_050", 32, 32),
        ("repvit_m1", 32, 24),
        ("fastvit_t8", 256, 30),
    ],
)
def test_networks_of_timm(name: str, size: int, blocks: int) -> None:
    """As many layers as timm's own code leaves, and the same outputs."""
    from timm.utils.model import reparameterize_model

    model, traced = traced_model(name, size)
    result = Reparameterize()(traced)
    assert result.report.changed == blocks
    with torch.no_grad():
        (expected,), (value,) = [model(traced.args[0])], traced.args
        theirs = reparameterize_model(copy.deepcopy(model))
    (found,) = result.traced.run((value,))
    assert float((found - expected).abs().max()) <= 1e-9 * float(expected.abs().max())
    assert how_many(result.traced.module) == how_many(theirs)
    assert not Reparameterize()(result.traced).report.changed
    fused = Pipeline([FuseBatchNorm()], verify=False)(result.traced).traced
    assert not any(isinstance(part, NORMS) for part in fused.module.modules()), "the plain net"
    (found,) = fused.run((value,))
    assert float((found - expected).abs().max()) <= 1e-9 * float(expected.abs().max())


def how_many(module: nn.Module) -> list[int]:
    """Return how many convolutions and linear layers there are."""
    return [sum(isinstance(part, kind) for part in module.modules()) for kind in (nn.Conv2d, nn.Linear)]
