"""A cut network computes what the uncut one computes without the removed channels, for every construct.

Two references that share no code: the library's masked reference, and the *eager* model with the weights that produce
the removed channels set to zero, wherever that is the same thing (``Expectation.zero_keeps``).
"""

from __future__ import annotations

import copy
import functools
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.capture import Traced, propagate, trace
from fxprune.channels import find_groups
from fxprune.channels.groups import Groups
from fxprune.errors import PlanError, VerifyError
from fxprune.surgery import cut, verify_cut
from tests.networks import NETWORKS, Removal, captured, zeroed

TOLERANCE = 1e-9
SEEDS = (0, 1)


@functools.cache
def grouped(name: str) -> tuple[nn.Module, Traced, Groups]:
    """Return a model, its capture and its groups in float64; no test changes them."""
    model, traced = captured(name, torch.float64)
    return model, traced, find_groups(traced)


def choose(groups: Groups, seed: int | None) -> Removal:
    """Return a random removal that leaves at least one unit of each family; without a seed, the largest such."""
    rng = random.Random(2 if seed is None else seed)
    chosen: list[int] = []
    for family in groups.families:
        most = len(family) - 1
        count = most if seed is None else rng.randint(min(1, most), most)
        chosen += rng.sample([int(unit) for unit in family], count)
    removal: Removal = groups.removal(chosen)
    return removal


def live_names() -> list[str]:
    """Networks that must have something to remove: all but those whose only expectation is that nothing is."""
    return [name for name, case in NETWORKS.items() if case.expectation.cut]


with_seeds = pytest.mark.parametrize("seed", [*SEEDS, None], ids=[*(f"seed{seed}" for seed in SEEDS), "most"])
every_network = pytest.mark.parametrize("name", live_names())


def pruned(name: str, seed: int | None) -> tuple[nn.Module, Traced, Traced, Removal]:
    """Return model, capture, cut capture and what was removed."""
    model, traced, groups = grouped(name)
    removed = choose(groups, seed)
    assert removed, "nothing to remove, so nothing would be tested"
    return model, traced, cut(traced, removed, groups), removed


def assert_close(actual: list[Tensor], expected: list[Tensor]) -> None:
    """Compare relative to the largest entry of each output; NaN fails."""
    assert len(actual) == len(expected) > 0
    for mine, theirs in zip(actual, expected, strict=True):
        assert mine.shape == theirs.shape
        error, scale = float((mine - theirs).abs().max()), float(theirs.abs().max())
        assert error <= TOLERANCE * scale, f"relative error {error / max(scale, 1e-300):.2e}"


def flat(outputs: Any) -> list[Tensor]:
    """Return the tensors of a nest of outputs, in order."""
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


# ---------------------------------------------------------------- against the library's masked reference


@every_network
@with_seeds
def test_equals_the_masked_reference(name: str, seed: int | None) -> None:
    _, traced, small, removed = pruned(name, seed)
    checked = verify_cut(traced, small, removed, grouped(name)[2])
    assert checked.max_relative_error <= TOLERANCE
    assert checked.dtype == "float64"


# ---------------------------------------------------------------- against zeroed weights of the eager model


@pytest.mark.parametrize("name", [name for name in live_names() if NETWORKS[name].expectation.zero_keeps])
@with_seeds
def test_equals_the_eager_model_with_zeroed_producers(name: str, seed: int | None) -> None:
    model, traced, small, removed = pruned(name, seed)
    args, kwargs = traced.inputs(batch=3, seed=5)
    with torch.no_grad():
        expected = flat(zeroed(model, removed)(*copy.deepcopy(args), **copy.deepcopy(kwargs)))
        whole = flat(model(*copy.deepcopy(args), **copy.deepcopy(kwargs)))
    assert_close(small.run(args, kwargs), expected)
    if seed is None:  # the reference is not the unpruned model by accident
        assert any(float((left - right).abs().max()) > 1e-6 for left, right in zip(expected, whole, strict=True))


# ---------------------------------------------------------------- against the eager model on the cut weights


def grafted(model: nn.Module, small: nn.Module) -> nn.Module:
    """Return a copy of the eager model that holds the cut tensors and the sizes that go with them."""
    model = copy.deepcopy(model)
    for path, module in model.named_modules():
        source = small.get_submodule(path)
        for name in [*module._parameters, *module._buffers]:
            setattr(module, name, getattr(source, name))
        for name, value in vars(source).items():
            if isinstance(value, int | tuple) and not name.startswith("_") and name in vars(module):
                setattr(module, name, value)
    return model


# Networks with statistics or constants, where a zeroed channel is not a removed one, and whose code names no size.
@pytest.mark.parametrize(
    "name",
    [
        *("layer_norm", "layer_norm_image", "layer_norm_functional", "group_norm", "group_norm_shared", "rms_by_hand"),
        *("rms_norm", "layer_scale", "class_token", "softmax_channels", "cumsum_channels", "channel_mean", "mixer"),
        *("channel_max", "buffer_per_channel", "standardised_weight", "width_linear"),
        *("residual", "concat", "glu", "squeeze_excite", "flip_add", "tied_weights", "lstm", "bidirectional_gru"),
    ],
)
@with_seeds
def test_equals_the_eager_model_on_the_cut_weights(name: str, seed: int | None) -> None:
    model, _, small, _ = pruned(name, seed)
    args, kwargs = small.inputs(batch=3, seed=5)
    with torch.no_grad():
        expected = flat(grafted(model, small.module)(*copy.deepcopy(args), **copy.deepcopy(kwargs)))
    assert_close(small.run(args, kwargs), expected)


# ---------------------------------------------------------------- what is left


@every_network
@with_seeds
def test_state_is_the_original_without_the_removed_slices(name: str, seed: int | None) -> None:
    model, _, small, removed = pruned(name, seed)
    state, old = small.module.state_dict(), model.state_dict()
    assert sorted(state) == sorted(old)
    pointers = {key: value.data_ptr() for key, value in model.state_dict(keep_vars=True).items()}
    for key, value in old.items():
        twins = [other for other in removed if other == key or pointers.get(other) == pointers[key]]
        dims = removed[twins[0]] if twins else {}
        for dim, indices in dims.items():
            assert indices == sorted(set(indices))
            keep = [index for index in range(value.shape[dim]) if index not in set(indices)]
            assert 0 < len(keep) < value.shape[dim], "a cut parameter really shrinks, and does not vanish"
            value = value.index_select(dim, torch.tensor(keep))
        assert state[key].shape == value.shape, key
        if value.is_floating_point():  # integer buffers hold indices, which move when channels go
            assert torch.equal(state[key], value), key


# The sizes that a module states, read off its weights; the first class that fits.
SIZES: list[tuple[Any, Callable[[Any], dict[str, Any]]]] = [
    (
        nn.modules.conv._ConvTransposeNd,
        lambda m: {"in_channels": m.weight.shape[0], "out_channels": m.weight.shape[1] * m.groups},
    ),
    (nn.modules.conv._ConvNd, lambda m: {"in_channels": m.weight.shape[1] * m.groups, "out_channels": len(m.weight)}),
    (nn.Linear, lambda m: {"in_features": m.weight.shape[1], "out_features": m.weight.shape[0]}),
    (nn.modules.batchnorm._NormBase, lambda m: {"num_features": len(m.weight)}),
    (nn.LayerNorm | nn.RMSNorm, lambda m: {"normalized_shape": tuple(m.weight.shape)}),
    (nn.GroupNorm, lambda m: {"num_channels": len(m.weight)}),
    (nn.Embedding, lambda m: {"num_embeddings": m.weight.shape[0], "embedding_dim": m.weight.shape[1]}),
    (nn.RNNBase, lambda m: {"hidden_size": m.weight_hh_l0.shape[1], "input_size": m.weight_ih_l0.shape[1]}),
    (nn.PReLU, lambda m: {"num_parameters": len(m.weight)}),
]


@every_network
def test_module_attributes_agree_with_their_weights(name: str) -> None:
    """Attributes are what printing, fine-tuning and export read."""
    _, _, small, _ = pruned(name, None)
    for path, module in small.module.named_modules():
        for attribute, value in next((sizes(module) for kind, sizes in SIZES if isinstance(module, kind)), {}).items():
            actual = getattr(module, attribute)
            assert (tuple(actual) if isinstance(value, tuple) else actual) == value, f"{path}.{attribute}"


@every_network
def test_original_is_untouched(name: str) -> None:
    model, traced, groups = grouped(name)
    before, code = copy.deepcopy(model.state_dict()), traced.module.code
    small = cut(traced, choose(groups, 1), groups)
    assert traced.module.code == code
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    pointers = {value.data_ptr() for value in model.parameters()}
    assert all(value.data_ptr() not in pointers for value in small.module.parameters())


@every_network
@pytest.mark.filterwarnings("ignore:The tensor attributes .*_flat_weights")  # torch, of any recurrent module
def test_can_be_exported_again_and_run_at_another_batch_size(name: str) -> None:
    _, _, small, _ = pruned(name, 1)
    small.module.graph.lint()
    exported = torch.export.export(small.module, small.args, small.kwargs, dynamic_shapes=small.dynamic_shapes)
    for batch in (2, 5):
        args, kwargs = small.inputs(batch=batch, seed=batch)
        with torch.no_grad():
            again = flat(exported.module()(*copy.deepcopy(args), **copy.deepcopy(kwargs)))
        assert all(output.shape[0] == batch for output in again)
        assert_close(again, small.run(args, kwargs))


@every_network
def test_recorded_shapes_are_the_real_ones(name: str) -> None:
    """Every node's fake value was propagated again and agrees with what running it gives."""
    _, _, small, _ = pruned(name, 0)

    class Check(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            result = super().run_node(n)
            recorded = flat(n.meta.get("val"))
            for mine, theirs in zip(recorded, flat(result), strict=bool(recorded)):
                assert mine.shape == theirs.shape, n
                assert mine.dtype == theirs.dtype, n
            assert recorded or not flat(result) or n.op == "output", n
            return result

    args = copy.deepcopy(small.args)
    inputs = pytree.tree_leaves((args, small.kwargs))
    graph = copy.deepcopy(small.module)
    graph.graph.set_codegen(torch.fx.graph.CodeGen())
    with torch.no_grad():
        Check(graph).run(*inputs, enable_io_processing=False)


@every_network
def test_cut_network_can_be_cut_again(name: str) -> None:
    """Groups of the cut network are found like those of any network, also behind what the first cut rewrote."""
    _, _, small, _ = pruned(name, 0)
    groups = find_groups(small)
    again = choose(groups, 1)
    if not again:
        pytest.skip("the first cut left nothing to remove")
    assert verify_cut(small, cut(small, again, groups), again, groups).max_relative_error <= TOLERANCE


# Where a dimension is factored, the finer factor may change with the first cut; not in these.
@pytest.mark.parametrize(
    "name",
    [
        *("residual", "concat_nested", "c2f", "split_uneven", "slice_constant", "index_list", "index_buffer"),
        *(
            "flatten_nhwc",
            "pixel_unshuffle",
            "depthwise",
            "squeeze_excite",
            "layer_norm",
            "class_token",
            "option_a_pad",
        ),
        *("tied_weights", "lstm", "bidirectional_gru", "flip_channels", "stack_branches", "conv3d", "einsum_conv"),
        "option_a_pad",
    ],
)
def test_two_cuts_are_one(name: str) -> None:
    model, traced, small, removed = pruned(name, 2)
    groups = find_groups(small)
    again = choose(groups, 1)
    assert again
    at_once = cut(traced, compose(model, removed, again), grouped(name)[2])
    args, kwargs = traced.inputs(batch=3, seed=2)
    assert_close(cut(small, again, groups).run(args, kwargs), at_once.run(args, kwargs))


def compose(model: nn.Module, first: Removal, second: Removal) -> Removal:
    """Return one removal in the original's indices that does what two do in sequence."""
    state = model.state_dict()
    both: Removal = copy.deepcopy(first)
    for name, dims in second.items():
        for dim, indices in dims.items():
            gone = set(first.get(name, {}).get(dim, []))
            left = [index for index in range(state[name].shape[dim]) if index not in gone]
            both.setdefault(name, {})[dim] = sorted(gone | {left[index] for index in indices})
    return both


# ---------------------------------------------------------------- many random cuts of the hardest


HARDEST = (
    "c2f",
    "shuffle_unit",
    "shuffle_grouped",
    "grouped_after_concat",
    "two_group_counts",
    "two_group_counts_added",
    "attention_windowed",
    "attention_grouped",
    "bidirectional_gru",
    "slice_constant",
)


@given(seed=st.integers(2, 2**16), name=st.sampled_from(HARDEST))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_any_removal_of_the_hardest(seed: int, name: str) -> None:
    model, traced, small, removed = pruned(name, seed)
    assert verify_cut(traced, small, removed, grouped(name)[2]).max_relative_error <= TOLERANCE
    args, kwargs = traced.inputs(batch=2, seed=seed)
    with torch.no_grad():
        expected = flat(zeroed(model, removed)(*args, **kwargs))
    assert_close(small.run(args, kwargs), expected)


# ---------------------------------------------------------------- the reference itself, and refusals


def test_reference_notices_a_wrong_cut() -> None:
    """Weights in the wrong order have the right shapes: only values tell."""
    _, traced, small, removed = pruned("channel_shuffle", 1)
    twin = copy.deepcopy(small.module)
    with torch.no_grad():
        weight = twin.get_parameter("c.weight")
        weight.copy_(weight.flip(1))
    with pytest.raises(VerifyError, match=r"c|conv"):
        verify_cut(traced, small.with_module(twin), removed, grouped("channel_shuffle")[2])


def _bottleneck(bias: float) -> tuple[Traced, Traced, Removal]:
    """Return a chain with one channel left between two layers, which is alive where its sum is above ``-bias``."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)).double().eval()
    with torch.no_grad():
        model[2].weight.fill_(1.0)
        model[2].bias.fill_(bias)
    traced = trace(model, torch.full((1, 4), 0.1, dtype=torch.float64))
    groups = find_groups(traced)
    removed = groups.removal([int(unit) for family in groups.families for unit in family[:-1]])
    return traced, cut(traced, removed), removed


def test_dead_channels_prove_nothing() -> None:
    assert not verify_cut(*_bottleneck(-1e6)).live
    assert verify_cut(*_bottleneck(1.0)).live


def test_inputs_that_wake_a_dead_channel_are_compared_too() -> None:
    """Behind the ReLU that the example does not pass, a wrong column was as good as the right one."""
    traced, small, removed = _bottleneck(-0.3)
    assert verify_cut(traced, small, removed).live
    twin = copy.deepcopy(small.module)
    with torch.no_grad():
        twin.get_parameter("2.weight").mul_(2.0)
    with pytest.raises(VerifyError, match="differs"):
        verify_cut(traced, small.with_module(twin), removed)


def test_removing_nothing_changes_nothing() -> None:
    _, traced, groups = grouped("residual")
    same = cut(traced, {}, groups)
    assert_close(same.run(traced.args, traced.kwargs), traced.run(traced.args, traced.kwargs))
    assert same.fingerprint() == traced.fingerprint()


@pytest.mark.parametrize(
    ("removed", "named"),
    [
        ({"nothing.weight": {0: [1]}}, "nothing.weight"),
        ({"stem.weight": {0: [6]}}, "stem.weight"),
        ({"stem.weight": {4: [0]}}, "stem.weight"),
        ({"head.weight": {0: [0]}}, "head.weight"),
        ({"stem.weight": {2: [0]}}, "stem.weight"),
    ],
    ids=["unknown", "out of range", "no such dimension", "frozen", "no channels"],
)
def test_impossible_removals_are_refused(removed: Removal, named: str) -> None:
    _, traced, groups = grouped("residual")
    with pytest.raises(PlanError, match=named):
        cut(traced, removed, groups)


def test_emptying_a_dimension_is_refused() -> None:
    _, traced, groups = grouped("residual")
    rows = groups.axis("a.weight", 0)
    assert rows is not None
    everything = groups.removal(rows.tolist())
    with pytest.raises(PlanError, match=r"a\.weight|a\.bias"):
        cut(traced, everything, groups)


def test_part_of_a_unit_is_refused() -> None:
    """Rows without the columns that read them would be a network of another function, or none."""
    _, traced, groups = grouped("residual")
    rows = groups.axis("a.weight", 0)
    assert rows is not None
    whole = groups.removal([int(rows[2])])
    assert whole["b.weight"] == {1: [2]}
    part = {"a.weight": {0: [2]}}
    with pytest.raises(PlanError, match=r"a\.bias|b\.weight"):
        cut(traced, part, groups)


class Scrambled(nn.Module):
    """A transposition undone by a reshape: what is a channel and what a sample depends on the size of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x.transpose(1, 2)).permute(2, 0, 1).reshape(x.shape[0], 4, 3)
        return self.head(y.transpose(1, 2))  # type: ignore[no-any-return]


@pytest.mark.parametrize("again", [False, True], ids=["captured", "propagated again"])
def test_channels_that_another_batch_would_find_elsewhere_stay(again: bool) -> None:
    traced = trace(Scrambled().double(), torch.randn(2, 4, 3, dtype=torch.float64))
    if again:
        propagate(traced.module, traced.args, traced.kwargs)
    groups = find_groups(traced)
    assert not groups.live.any()
    assert r"a reshape from (4, 2, 3) to (2, 4, 3) moves it elsewhere" in groups.explain("a.weight").reason


def test_is_checked_at_another_batch_size_than_it_was_worked_out_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check does not lean on the analysis, which is made to look at the example's batch alone."""
    traced = trace(Scrambled().double(), torch.randn(2, 4, 3, dtype=torch.float64))
    monkeypatch.setattr("fxprune.channels.rules.table.Flow._for_every_batch", lambda flow, one, other, labels: labels)
    groups = find_groups(traced)
    removed = choose(groups, 0)
    with pytest.raises(VerifyError, match="reshape"):
        verify_cut(traced, cut(traced, removed, groups), removed, groups)


class Pieces(nn.Module):
    """Statistics over a slice of the channels."""

    def __init__(self, statistic: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.statistic, self.stem, self.head = statistic, nn.Linear(3, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x) * self.statistic(x[:, :2])  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("statistic", "gone"),
    [
        (lambda piece: piece.mean(1, keepdim=True), [0, 1]),
        (lambda piece: piece.amax(1, keepdim=True), [0, 1]),
        (lambda piece: piece.softmax(1).sum(1, keepdim=True), [0, 1]),
        (lambda piece: piece.var(1, keepdim=True), [1]),
    ],
    ids=["mean", "amax", "softmax", "var"],
)
def test_a_statistic_of_nothing_is_refused(statistic: Callable[[Tensor], Tensor], gone: list[int]) -> None:
    traced = trace(Pieces(statistic).double(), torch.randn(2, 3, dtype=torch.float64))
    groups = find_groups(traced)
    axis = groups.axis("stem.weight", 0)
    assert axis is not None
    with pytest.raises(PlanError, match="keep more of these channels"):
        cut(traced, groups.removal(axis[gone].tolist()), groups)


def test_complex_weights_are_compared_in_double_precision() -> None:
    class Spectrum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.hidden, self.head = nn.Linear(8, 8), nn.Linear(8, 6), nn.Linear(6, 4)
            self.filter = nn.Parameter(torch.randn(5, 5, dtype=torch.complex64))

        def forward(self, x: Tensor) -> Tensor:
            x = torch.fft.irfft(torch.fft.rfft(self.stem(x)) @ self.filter)
            return self.head(torch.relu(self.hidden(x)))  # type: ignore[no-any-return]

    traced = trace(Spectrum(), torch.randn(2, 8))
    groups = find_groups(traced)
    removed = choose(groups, 0)
    assert removed
    assert verify_cut(traced, cut(traced, removed, groups), removed, groups).max_relative_error <= TOLERANCE


class Placed(nn.Module):
    """Moves what a layer computes by an operation that is given, between that layer and the next."""

    def __init__(self, move: Callable[[Tensor, Tensor], Tensor], width: int = 6) -> None:
        super().__init__()
        self.move = move
        self.stem, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(width, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.move(self.stem(x), x))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("move", "width", "units"),
    [
        (lambda y, x: y.roll(x.shape[2] // 2, 2), 6, 6),
        (lambda y, x: y.roll(x.shape[0], 1), 6, 0),
        (lambda y, x: y.narrow(1, x.shape[0], 3), 3, 0),
        (lambda y, x: y.narrow(1, -2, 2), 2, 0),
        (lambda y, x: y.narrow(2, 0, x.shape[2] // 2), 6, 6),
    ],
    ids=["roll of rows", "roll of channels", "narrow of channels", "narrow from the end", "narrow of rows"],
)
def test_places_that_are_sizes_of_the_input(move: Callable[[Tensor, Tensor], Tensor], width: int, units: int) -> None:
    traced = trace(Placed(move, width).double(), torch.randn(2, 3, 6, 6, dtype=torch.float64), dynamic_size=True)
    groups = find_groups(traced)
    assert groups.explain("stem.weight").units == units
    removed = groups.removal(range(0) if not units else [int(groups.families[0][0])])
    small = cut(traced, removed, groups)
    assert verify_cut(traced, small, removed, groups).max_relative_error <= TOLERANCE


def test_channels_stay_innermost_in_memory() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3)).to(memory_format=torch.channels_last)
    traced = trace(model, torch.randn(2, 3, 6, 6))
    groups = find_groups(traced)
    small = cut(traced, groups.removal([int(groups.families[0][0])]), groups).module
    weights = [small.get_parameter(name) for name in ("0.weight", "2.weight")]
    assert [weight.shape[:2] for weight in weights] == [(5, 3), (4, 5)]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
