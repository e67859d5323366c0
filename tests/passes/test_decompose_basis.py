"""Layers become an orthonormal basis, scales and a mix that compute the same."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from fxprune.capture import trace
from fxprune.errors import InputError
from fxprune.graph_tools import copy_module
from fxprune.linear.basis import blocks_with_basis, is_orthonormal, singular_values, whole_blocks, with_vectors_dropped
from fxprune.linear.taps import grouped
from fxprune.passes import DecomposeBasis, MergeBasis, OverParameterize, PruneChannels, Reparameterize
from fxprune.pipeline import Pipeline, Result
from fxprune.planning import make_plan
from fxprune.testing import check_pass

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
IMAGE = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))


def decomposed(model: nn.Module, example: Tensor, **options: Any) -> Result:
    return Pipeline([DecomposeBasis(**options)])(trace(model.eval(), example))


def pays(layer: Any) -> bool:
    """Whether a single vector per group costs less than the layer."""
    rows, reads = layer.weight.shape[0] // getattr(layer, "groups", 1), layer.weight[0].numel()
    return bool(rows + reads < rows * reads)


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
        groups * draw(st.integers(1, 5)),
        groups * draw(st.integers(1, 5)),
        kernel,
        stride=stride,
        dilation=dilation,
        groups=groups,
        bias=draw(st.booleans()),
        padding=padding,
        padding_mode=draw(st.sampled_from(["zeros", "reflect", "circular", "replicate"])) if n < 3 else "zeros",
    )
    return conv, [2, conv.in_channels, *[draw(st.integers(5, 6)) for _ in range(n)]]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(convolutions())
def test_every_convolution(made: tuple[Any, list[int]]) -> None:
    conv, shape = made
    if pays(conv):
        check_parts(conv, torch.randn(shape))
    else:
        skipped = {"0": "a split could not pay"}
        check_pass(DecomposeBasis(), nn.Sequential(conv), torch.randn(shape), skipped=skipped)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.integers(3, 6), st.integers(3, 6), st.booleans(), st.sampled_from([[2], [2, 3], [2, 2, 3]]))
def test_every_linear_layer(inputs: int, outputs: int, bias: bool, batch: list[int]) -> None:
    check_parts(nn.Linear(inputs, outputs, bias=bias), torch.randn(*batch, inputs))


def check_parts(layer: Any, example: Tensor) -> None:
    """Decompose a single layer; look at the parts, and see that they are the layer again once merged."""
    model = nn.Sequential(layer)
    result = check_pass(DecomposeBasis(), model, example, changed=["0"])
    check_exact(model, result)
    block = blocks_with_basis(result.traced.module)["0"]
    assert not isinstance(block, str)
    basis, mix = block.layers
    assert block.rank == min(layer.weight.shape[0] // block.groups, layer.weight[0].numel())
    assert is_orthonormal(grouped(basis.weight, block.groups), torch.float64)
    assert basis.bias is None
    assert (mix.bias is None) == (layer.bias is None)
    assert torch.equal(block.scales, torch.ones(block.rank * block.groups, dtype=torch.float64))  # type: ignore[arg-type]
    assert all(getattr(basis, n, 0) == getattr(layer, n, 0) for n in ("stride", "dilation", "groups", "kernel_size"))
    assert all(getattr(mix, n, (1,)) == (1,) * len(getattr(mix, n, (1,))) for n in ("stride", "dilation"))
    merged: Any = Pipeline([MergeBasis(most=0)])(result.traced).traced.module.get_submodule("0")
    assert type(merged) is type(layer)
    assert float((merged.weight - layer.weight.double()).detach().abs().max()) <= 1e-12


def check_exact(model: nn.Module, result: Result) -> None:
    """Compare with the eager model on fresh inputs: to rounding in float64."""
    args, kwargs = result.traced.inputs(batch=3, seed=7)
    with torch.no_grad():
        wanted = copy.deepcopy(model).double().eval()(*args, **kwargs)
    (found,) = result.traced.run(args, kwargs)
    assert float((found - wanted).abs().max()) <= 1e-12


def test_vectors_are_sorted_and_have_a_sign() -> None:
    conv = nn.Conv2d(4, 6, 3, groups=2).double()
    module = decomposed(nn.Sequential(conv), torch.randn(2, 4, 5, 5).double()).traced.module
    (block,) = whole_blocks(module)
    vectors, mix = (grouped(layer.weight, 2).flatten(2) for layer in block.layers)
    norms = mix.norm(dim=1)
    assert (norms[:, :-1] >= norms[:, 1:]).all()
    wanted = torch.linalg.svdvals(grouped(conv.weight, 2).flatten(2))
    torch.testing.assert_close(norms, wanted)
    with torch.no_grad():
        block.scales.mul_(-2)  # type: ignore[union-attr]
    torch.testing.assert_close(singular_values(module)["0"], 2 * wanted.flatten())
    assert (vectors.gather(2, vectors.abs().argmax(2, keepdim=True)) > 0).all()


def test_directions_that_nothing_reads_get_no_vector() -> None:
    conv = nn.Conv2d(4, 6, 3)
    conv.weight.data[3:] = conv.weight.data[:3] * 2
    result = check_pass(DecomposeBasis(), nn.Sequential(conv), torch.randn(2, 4, 5, 5), changed=["0"])
    assert whole_blocks(result.traced.module)[0].rank == 3


def test_in_single_precision_to_its_rounding() -> None:
    model = Small().eval()
    result = decomposed(model, IMAGE)
    with torch.no_grad():
        wanted = model(IMAGE)
    assert float((result.traced.run((IMAGE,))[0] - wanted).abs().max()) < 1e-5 * float(wanted.abs().max())
    assert {p.dtype for p in result.traced.module.parameters()} == {torch.float32}


# ---------------------------------------------------------------- what the result is like


class Small(nn.Module):
    """A network with a residual, norms, a grouped layer and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.BatchNorm2d(8), nn.ReLU())
        self.mix = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.mix(x + self.body(x)).relu().mean((2, 3)))  # type: ignore[no-any-return]


def test_names_and_shapes() -> None:
    result = check_pass(DecomposeBasis(exclude=["head"]), Small(), IMAGE, changed=["stem.0", "body.0", "mix"],
                        skipped={"head": "excluded"})  # fmt: skip
    shapes = {key: list(value.shape) for key, value in result.traced.module.state_dict().items()}
    assert {key: shape for key, shape in shapes.items() if key.startswith("body.0")} == {
        "body.0.scales": [8], "body.0.basis.weight": [8, 4, 3, 3],
        "body.0.mix.weight": [8, 4, 1, 1], "body.0.mix.bias": [8],
    }  # fmt: skip
    changes = {change.place: change.what for change in result.report[0].changes}
    assert changes["body.0"] == "4 vectors in each of 2 groups; a split pays with fewer than 3.6"
    assert changes["stem.0"] == "8 vectors; a split pays with fewer than 6.171"


def test_scales_can_always_be_trained_and_all_else_as_before() -> None:
    model = Small()
    model.mix.requires_grad_(False)
    model.mix.eval()
    module = decomposed(model, IMAGE).traced.module
    trainable = {name for name, value in module.named_parameters() if value.requires_grad}
    assert {name for name, _ in module.named_parameters()} - trainable == {
        "mix.basis.weight", "mix.mix.weight", "mix.mix.bias",
    }  # fmt: skip


def test_the_gradient_of_scales_is_that_of_finite_differences() -> None:
    module = decomposed(Small().double(), IMAGE.double()).traced.module
    blocks = whole_blocks(module)
    target = torch.tensor([1, 3])

    def loss() -> Tensor:
        return F.cross_entropy(module(IMAGE.double()), target)

    found = torch.autograd.grad(loss(), [block.scales for block in blocks])  # type: ignore[arg-type]
    step = 1e-5
    for block, gradient in zip(blocks, found, strict=True):
        scales = block.scales
        assert scales is not None
        for position in range(scales.numel()):
            ends = []
            for sign in (1, -1):
                with torch.no_grad():
                    scales[position] += sign * step
                    ends.append(float(loss()))
                    scales[position] -= sign * step
            assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(float(gradient[position]), rel=1e-5, abs=1e-9)


def test_the_record_is_copied_with_the_graph() -> None:
    module = decomposed(Small(), IMAGE).traced.module
    for twin in (copy.deepcopy(module), copy_module(module)):
        assert [block.path for block in whole_blocks(twin)] == ["stem.0", "body.0", "mix", "head"]


def test_reparameterize_merges_it_too_and_it_can_be_decomposed_again() -> None:
    traced = Pipeline([DecomposeBasis(), Reparameterize()])(trace(Small().double().eval(), IMAGE.double())).traced
    names = {name for name, _ in traced.module.named_parameters()}
    assert names == {name for name, _ in Small().named_parameters()}
    assert not MergeBasis()(traced).report[0].skips
    again = Pipeline([DecomposeBasis()])(traced)
    assert [change.place for change in again.report[0].changes] == ["stem.0", "body.0", "mix", "head"]
    assert not again.report[0].skips


# ---------------------------------------------------------------- what is left alone


class Odd(nn.Module):
    """Layers that cannot be replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Conv2d(3, 3, 3, padding=1)
        self.normed = parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
        self.depthwise = nn.Conv2d(4, 4, 3, groups=4)
        self.up = nn.ConvTranspose2d(4, 4, 2)
        self.tied = nn.Conv2d(4, 4, 2)
        self.other = nn.Conv2d(4, 4, 2)
        self.other.weight = self.tied.weight
        self.broken = nn.Linear(4, 4)
        self.broken.weight.data[0, 0] = torch.inf
        self.head = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.depthwise(self.normed(self.twice(self.twice(x))))
        x = self.other(self.tied(self.up(x))).mean((2, 3))
        return self.head(x), self.broken(x)


def test_every_reason_to_leave_a_layer() -> None:
    skipped = {
        "twice": "called 2 times",
        "conv2d_2": "its weight is computed",
        "depthwise": "it is depthwise: a split could not pay: one vector in each group would take 40 weights, and the "
        "layer has 36",
        "up": "transposed",
        "tied": "shares its weights",
        "other": "shares its weights",
        "broken": "not finite",
        "head": "one vector would take 5 weights, and the layer has 4",
    }
    traced = trace(Odd().eval(), IMAGE)
    report = DecomposeBasis()(traced).report[0]
    found = {skip.place: skip.why for skip in report.skips}
    assert not report.changes
    assert found.keys() == skipped.keys()
    assert not [place for place, why in skipped.items() if why not in found[place]]


def test_hooks_and_expanded_layers_are_left_alone() -> None:
    traced = Pipeline([OverParameterize(layers=["body.0"], rate=2)])(trace(Small().eval(), IMAGE)).traced
    traced.module.mix.register_forward_hook(lambda *_: None)  # type: ignore[operator, union-attr]
    found = {skip.place: skip.why for skip in DecomposeBasis(exclude=["head"])(traced).report[0].skips}
    assert "forward hooks" in found["mix"]
    assert "part of body.0, which was expanded" in found["body.0.1"]


def test_layers_are_chosen_by_pattern() -> None:
    assert [c.place for c in decomposed(Small(), IMAGE, layers="body.*").report[0].changes] == ["body.0"]
    with pytest.raises(InputError, match="'boddy' of exclude matches no"):
        decomposed(Small(), IMAGE, exclude=["boddy"])
    with pytest.raises(InputError, match="takes glob patterns"):
        DecomposeBasis(layers=[3])  # type: ignore[list-item]


# ---------------------------------------------------------------- with channels pruned


def test_channels_of_a_basis_are_cut_and_it_is_orthonormal_again() -> None:
    first = decomposed(Small().double(), IMAGE.double(), exclude=["head"])
    plan = make_plan(first.traced, macs=0.6, round_to=1, protect=["*.basis.weight"])
    assert any(1 in plan.removed.get(f"{path}.basis.weight", {}) for path in ("body.0", "mix"))
    assert not any(name.endswith("scales") for name in plan.removed)
    cut = Pipeline([PruneChannels(plan)])(first.traced).traced
    again = Pipeline([DecomposeBasis(exclude=["head"], reorthonormalize=True)])(cut)
    assert {change.place: change.what for change in again.report[0].changes}["mix"].startswith("decomposed anew: 8 -> ")
    for block in whole_blocks(again.traced.module):
        assert is_orthonormal(grouped(block.layers[0].weight, block.groups), torch.float64)
        assert block.rank <= block.layers[1].weight.shape[0] // block.groups
    assert not DecomposeBasis(reorthonormalize=True, exclude=["head"])(again.traced).report.changed
    assert not DecomposeBasis(exclude=["head"])(cut).report.changed


def test_trained_scales_go_into_a_new_decomposition() -> None:
    traced = decomposed(Small().double(), IMAGE.double()).traced
    traced = with_vectors_dropped(traced, {"mix": [0, 5]})
    for block in whole_blocks(traced.module):
        with torch.no_grad():
            block.scales.mul_(torch.linspace(0.5, 2, len(block.scales)))  # type: ignore[union-attr, arg-type]
            block.layers[0].weight[:, 0] *= 1.5  # not orthonormal any more
    again = Pipeline([DecomposeBasis(reorthonormalize=True)])(traced).traced
    (mix,) = [block for block in whole_blocks(again.module) if block.path == "mix"]
    assert mix.rank == 6
    assert all((block.scales == 1).all() for block in whole_blocks(again.module))  # type: ignore[union-attr]


def test_to_a_plan_a_vector_is_a_unit_like_a_channel() -> None:
    traced = decomposed(Small().double(), IMAGE.double(), exclude=["head"]).traced
    traced.module.requires_grad_(False)
    for block in whole_blocks(traced.module):
        block.scales.requires_grad_(True)  # type: ignore[union-attr]
    F.cross_entropy(traced.module(IMAGE.double()), torch.tensor([1, 3])).backward()
    plan = make_plan(traced, params=0.8, round_to=1, importance="taylor", protect=["*.mix.weight"])
    gone = {name: cuts[0] for name, cuts in plan.removed.items() if name.endswith("scales")}
    assert gone
    assert {name.rpartition(".")[0] for name in gone} == {"stem.0", "body.0", "mix"} & {
        name.removesuffix(".mix.weight") for name in plan.removed
    }
    masked = with_vectors_dropped(traced, {name.removesuffix(".scales"): cut for name, cut in gone.items()})
    cut = Pipeline([PruneChannels(plan)])(traced).traced
    value = torch.randn(3, 3, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(cut.run((value,)), masked.run((value,)), rtol=1e-12, atol=1e-12)


def test_what_cut_channels_leave_behind_goes_into_the_basis_and_is_merged() -> None:
    model = Small().double()
    model.stem[1].bias.data.fill_(1.0)  # type: ignore[operator, union-attr]
    first = decomposed(model, IMAGE.double(), exclude=["head"])
    plan = make_plan(first.traced, macs=0.7, round_to=1, protect=["*.basis.weight"], compensate="constant")
    result = Pipeline([PruneChannels(plan), MergeBasis()])(first.traced)
    assert any("takes up what the removed channels leave" in change.what for change in result.report[0].changes)
    assert not [name for name in result.traced.module.state_dict() if name.endswith("basis.bias")]
