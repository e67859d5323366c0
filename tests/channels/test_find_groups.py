"""Units written out by hand: which slices of which parameters must go together, and why the rest stays."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch
from torch import nn

from fxprune.capture import trace
from fxprune.channels import find_groups
from fxprune.channels.groups import Groups
from fxprune.errors import InputError
from tests.networks import NETWORKS, Removal, build, captured, normal, produced, zeroed

Unit = frozenset[tuple[str, int, int]]


@functools.cache
def groups_of(name: str) -> Groups:
    """Return the groups of a network; no test changes them."""
    return find_groups(captured(name)[1])


def tensors(groups: Groups) -> dict[str, torch.Tensor]:
    """Return parameters, buffers, and constants that ``forward`` makes, under the names that the graph has for them."""
    module = groups.traced.module
    return {**dict(module.named_buffers()), **module.state_dict(keep_vars=True)}


def units(name: str) -> set[Unit]:
    """Return every removable unit as a set of ``(parameter, dimension, index)``.

    Integer buffers are left out: they hold numbers of channels, and whether they shrink or are rewritten is surgery.
    A tied parameter counts once, under its first name.
    """
    groups = groups_of(name)
    state = tensors(groups)
    first: dict[int, str] = {}
    for key, value in state.items():
        first.setdefault(id(value), key)
    slices: defaultdict[int, set[tuple[str, int, int]]] = defaultdict(set)
    for key, dim in groups.parameters:
        axis = groups.axis(key, dim)
        if axis is None or not state[key].is_floating_point():
            continue
        for index, unit in enumerate(axis):
            if groups.live[unit]:
                slices[int(unit)].add((first[id(state[key])], dim, index))
    return {frozenset(unit) for unit in slices.values()}


def unit(places: str, **indices: Iterable[int]) -> Unit:
    """Return a unit from ``"stem.weight:0@rows c.weight:1@columns"`` and the indices that each word stands for."""
    slices = set()
    for place in places.split():
        where, word = place.split("@")
        name, dim = where.split(":")
        slices |= {(name, int(dim), index) for index in indices[word]}
    return frozenset(slices)


def plain(width: int, places: str) -> list[Unit]:
    """Return units of one index each, the same in every place."""
    return [frozenset((p.split(":")[0], int(p.split(":")[1]), i) for p in places.split()) for i in range(width)]


STEM = "stem.weight:0@i stem.bias:0@i"
C_TO_HEAD = "c.weight:0 c.bias:0 head.weight:1"

UNITS: dict[str, list[Unit]] = {
    "linear_chain": [
        *plain(6, "0.weight:0 0.bias:0 2.weight:1"),
        *plain(5, "2.weight:0 2.bias:0 4.weight:1"),
    ],
    "residual": [
        *plain(6, "stem.weight:0 stem.bias:0 a.weight:1 b.weight:0 b.bias:0 head.weight:1"),
        *plain(7, "a.weight:0 a.bias:0 norm.weight:0 norm.bias:0 norm.running_mean:0 norm.running_var:0 b.weight:1"),
    ],
    "concat_nested": [
        *(unit(f"{STEM} c.weight:1@both", i=[i], both=[i, 11 + i]) for i in range(5)),
        *(unit("b.weight:0@i b.bias:0@i c.weight:1@j", i=[i], j=[5 + i]) for i in range(6)),
        *plain(7, C_TO_HEAD),
    ],
    "c2f": [
        *(unit(f"{STEM} c.weight:1@i", i=[i]) for i in range(4)),
        *(unit(f"{STEM} m.weight:1@m c.weight:1@i", i=[4 + i], m=[i]) for i in range(4)),
        *(unit("m.weight:0@m m.bias:0@m c.weight:1@c", m=[i], c=[8 + i]) for i in range(4)),
        *plain(6, C_TO_HEAD),
    ],
    "split_uneven": [
        *(unit(f"{STEM} a.weight:1@j", i=[j], j=[j]) for j in range(2)),
        *(unit(f"{STEM} b.weight:1@j", i=[2 + j], j=[j]) for j in range(3)),
        *(unit(f"{STEM} c.weight:1@j", i=[5 + j], j=[j]) for j in range(4)),
        *plain(5, "a.weight:0 a.bias:0 b.weight:0 b.bias:0 c.weight:0 c.bias:0 head.weight:1"),
    ],
    "slice_constant": [
        *(
            unit(
                f"{STEM} a.weight:1@a b.weight:1@b c.weight:1@c",
                i=[i],
                a=[i] if i < 8 else [],
                b=[(2, 5, 8).index(i)] if i in (2, 5, 8) else [],
                c=[i - 7] if i >= 7 else [],
            )
            for i in range(12)
        ),
        *plain(5, "a.weight:0 a.bias:0 b.weight:0 b.bias:0 c.weight:0 c.bias:0 head.weight:1"),
    ],
    "index_list": [
        *(
            unit(f"{STEM} c.weight:1@reads", i=[i], reads=[j for j, read in enumerate([4, 2, 0, 2, 5]) if read == i])
            for i in range(6)
        ),
        *plain(5, C_TO_HEAD),
    ],
    "index_buffer": [
        *(unit(f"{STEM} c.weight:1@j", i=[i], j=[[5, 0, 3, 1, 4, 2].index(i)]) for i in range(6)),
        *plain(5, C_TO_HEAD),
    ],
    "flatten_nchw": [
        *(unit("0.weight:0@i 0.bias:0@i 4.weight:1@flat", i=[i], flat=range(4 * i, 4 * i + 4)) for i in range(5)),
        *plain(6, "4.weight:0 4.bias:0 6.weight:1"),
    ],
    "flatten_nhwc": [
        *(unit(f"{STEM} a.weight:1@flat", i=[i], flat=[i, 5 + i, 10 + i, 15 + i]) for i in range(5)),
        *plain(6, "a.weight:0 a.bias:0 head.weight:1"),
    ],
    # (g=3, c=5) becomes (c, g): five columns of three are finer than three rows of five.
    "einops_reshape": [
        *(unit(f"{STEM} a.weight:1@j", i=[c, 5 + c, 10 + c], j=[3 * c, 3 * c + 1, 3 * c + 2]) for c in range(5)),
        *plain(6, "a.weight:0 a.bias:0 head.weight:1"),
    ],
    # Two groups of four: channel j of either group goes with its twin, and they end up side by side.
    "channel_shuffle": [
        *(unit(f"{STEM} c.weight:1@j", i=[j, 4 + j], j=[2 * j, 2 * j + 1]) for j in range(4)),
        *plain(5, C_TO_HEAD),
    ],
    "shuffle_unit": [
        *(unit(f"{STEM} b.weight:0@i b.bias:0@i c.weight:1@j", i=[i], j=[2 * i, 2 * i + 1]) for i in range(4)),
        *(unit(f"{STEM} a.weight:1@a", i=[4 + i], a=[i]) for i in range(4)),
        *plain(6, "a.weight:0 a.bias:0 depth.weight:0 depth.bias:0 b.weight:1"),
        *plain(5, C_TO_HEAD),
    ],
    "pixel_shuffle": [
        *(unit(f"{STEM} c.weight:1@c", i=range(4 * c, 4 * c + 4), c=[c]) for c in range(3)),
        *plain(5, C_TO_HEAD),
    ],
    "pixel_unshuffle": [
        *(unit(f"{STEM} c.weight:1@c", i=[i], c=range(4 * i, 4 * i + 4)) for i in range(5)),
        *plain(6, C_TO_HEAD),
    ],
    "space_to_depth": [
        *(unit(f"{STEM} c.weight:1@c", i=[i], c=[i, 5 + i, 10 + i, 15 + i]) for i in range(5)),
        *plain(6, C_TO_HEAD),
    ],
    "depthwise_multiplier": [
        *(
            unit(
                f"{STEM} depth.weight:0@o depth.bias:0@o norm.weight:0@o norm.bias:0@o norm.running_mean:0@o "
                "norm.running_var:0@o c.weight:1@o",
                i=[i],
                o=[2 * i, 2 * i + 1],
            )
            for i in range(5)
        ),
        *plain(6, C_TO_HEAD),
    ],
    "grouped_conv": [
        *(unit(f"{STEM} g.weight:1@j", i=[j, 4 + j], j=[j]) for j in range(4)),
        *(unit("g.weight:0@o g.bias:0@o c.weight:1@o", o=[j, 6 + j]) for j in range(6)),
        *plain(5, C_TO_HEAD),
    ],
    # Eight groups beat two columns of the input and three of the output.
    "grouped_many": [
        *(
            unit(
                f"{STEM} g.weight:0@o g.bias:0@o c.weight:1@o",
                i=[2 * g, 2 * g + 1],
                o=range(3 * g, 3 * g + 3),
            )
            for g in range(8)
        ),
        *plain(5, C_TO_HEAD),
    ],
    "grouped_transposed": [
        *(unit(f"{STEM} up.weight:0@i", i=[j, 4 + j]) for j in range(4)),
        *(unit("up.weight:1@j up.bias:0@o c.weight:1@o", j=[j], o=[j, 3 + j]) for j in range(3)),
        *plain(5, C_TO_HEAD),
    ],
    "squeeze_excite": [
        *plain(6, "stem.weight:0 stem.bias:0 down.weight:1 up.weight:0 up.bias:0 c.weight:1"),
        *plain(4, "down.weight:0 down.bias:0 up.weight:1"),
        *plain(5, C_TO_HEAD),
    ],
    "glu": [
        *(unit(f"{STEM} c.weight:1@j", i=[j, 5 + j], j=[j]) for j in range(5)),
        *plain(6, C_TO_HEAD),
    ],
    "maxout": [
        *(unit(f"{STEM} c.weight:1@j", i=[2 * j, 2 * j + 1], j=[j]) for j in range(5)),
        *plain(6, C_TO_HEAD),
    ],
    "class_token": [
        *plain(
            6,
            "patch.weight:0 patch.bias:0 token:2 position:2 norm.weight:0 norm.bias:0 up.weight:1 down.weight:0 "
            "down.bias:0 head.weight:1",
        ),
        *plain(7, "up.weight:0 up.bias:0 down.weight:1"),
    ],
    # Whole heads: four rows in each of the three thirds of the packed projection.
    "attention_packed": [
        *(
            unit(
                "qkv.weight:0@rows qkv.bias:0@rows proj.weight:1@head",
                rows=[12 * part + 4 * h + d for part in range(3) for d in range(4)],
                head=range(4 * h, 4 * h + 4),
            )
            for h in range(3)
        ),
        *plain(7, "proj.weight:0 proj.bias:0 head.weight:1"),
    ],
    "attention_grouped": [
        *(
            unit(
                "k.weight:0@kv k.bias:0@kv v.weight:0@kv v.bias:0@kv q.weight:0@q q.bias:0@q proj.weight:1@q",
                kv=range(4 * h, 4 * h + 4),
                q=range(8 * h, 8 * h + 8),
            )
            for h in range(2)
        ),
        *plain(7, "proj.weight:0 proj.bias:0 head.weight:1"),
    ],
    "module_twice": plain(6, "stem.weight:0 stem.bias:0 shared.weight:0 shared.bias:0 shared.weight:1 head.weight:1"),
    "tied_weights": plain(6, "embed.weight:1 mix.weight:0 mix.bias:0 mix.weight:1"),
    "flip_add": [
        *(unit(f"{STEM} c.weight:1@i", i=[i, 6 - i]) for i in range(4)),
        *plain(6, C_TO_HEAD),
    ],
    "stack_branches": [
        *(unit(f"{STEM} b.weight:0@i b.bias:0@i c.weight:1@c", i=[i], c=[2 * i, 2 * i + 1]) for i in range(5)),
        *plain(6, C_TO_HEAD),
    ],
    "repeat_channels": [
        *(unit(f"{STEM} c.weight:1@c", i=[i], c=[i, 4 + i, 8 + i]) for i in range(4)),
        *plain(5, C_TO_HEAD),
    ],
    "repeat_interleave": [
        *(unit(f"{STEM} c.weight:1@c", i=[i], c=range(3 * i, 3 * i + 3)) for i in range(4)),
        *plain(5, C_TO_HEAD),
    ],
    # The same hidden unit has a row in each of the four gates and a column in the recurrence.
    "lstm": [
        unit(
            "lstm.weight_ih_l0:0@gates lstm.weight_hh_l0:0@gates lstm.bias_ih_l0:0@gates lstm.bias_hh_l0:0@gates "
            "lstm.weight_hh_l0:1@j head.weight:1@j",
            gates=[j, 5 + j, 10 + j, 15 + j],
            j=[j],
        )
        for j in range(5)
    ],
}


def show(found: Iterable[Unit]) -> list[list[tuple[str, int, int]]]:
    """Return units in an order that a difference can be read in."""
    return sorted(sorted(one) for one in found)


@pytest.mark.parametrize("name", [name for name in UNITS if NETWORKS[name].expectation.zero_keeps])
def test_units_written_by_hand_are_true_of_the_eager_model(name: str) -> None:
    """Once a unit's producers are zero, nothing depends on its other slices: the table below proves itself."""
    model, args, kwargs = build(name, torch.float64)
    matters = []
    for one in UNITS[name]:
        removed: Removal = {}
        for key, dim, index in one:
            removed.setdefault(key, {}).setdefault(dim, []).append(index)
        dead = zeroed(model, removed)
        with torch.no_grad():
            expected = dead(*args, **kwargs)
            for key, dim, index in one:
                owner, _, leaf = key.rpartition(".")
                if key in dict(dead.named_parameters()) and dim not in produced(dead.get_submodule(owner), leaf):
                    rows = dead.get_parameter(key).select(dim, index)
                    rows.copy_(normal(*rows.shape, seed=index))
            actual = dead(*args, **kwargs)
        matters.append(not torch.equal(expected, model(*args, **kwargs)))
        assert torch.allclose(actual, expected, rtol=1e-12, atol=1e-12), show([one])
    assert sum(matters) > len(matters) / 2, "some units are unread or behind a dead ReLU, but not most"


@pytest.mark.parametrize("name", UNITS)
def test_units_are_exactly_those_written_by_hand(name: str) -> None:
    assert show(units(name)) == show(UNITS[name])


def test_zero_padded_shortcut_shifts_channels() -> None:
    """Padded channels may be units of their own or stay, but channel ``i`` of the stem is channel ``i + 2`` behind."""
    found = units("option_a_pad")
    for i in range(5):
        assert unit(f"{STEM} a.weight:1@i b.weight:0@o b.bias:0@o head.weight:1@o", i=[i], o=[2 + i]) in found
    for padded in (0, 1, 7, 8):
        touching = [one for one in found if ("b.weight", 0, padded) in one]
        assert touching in ([], [unit("b.weight:0@o b.bias:0@o head.weight:1@o", o=[padded])])


def test_outer_product_cuts_rows_or_columns_not_both() -> None:
    """Left over from a flattened table must be a table."""
    rows = {one for one in units("bilinear") if any(name == "a.weight" for name, _, _ in one)}
    columns = {one for one in units("bilinear") if any(name == "b.weight" for name, _, _ in one)}
    assert not rows, "seven columns of five are finer than five rows of seven"
    places = "b.weight:0@j b.bias:0@j last.weight:1@flat"
    assert columns == {unit(places, j=[j], flat=range(j, 35, 7)) for j in range(7)}


def test_two_group_counts_meet_in_whole_classes() -> None:
    """With groups of 6 and of 4 channels, what is removed must be the same share of every group of both."""
    for one in units("two_group_counts"):
        inputs = sorted(index for name, dim, index in one if (name, dim) == ("stem.weight", 0))
        for size in (6, 4):
            counts = {sum(index // size == group for index in inputs) for group in range(12 // size)}
            whole_groups = all(
                sum(index // size == group for index in inputs) in (0, size) for group in range(12 // size)
            )
            assert len(counts) == 1 or whole_groups, (size, inputs)


# ---------------------------------------------------------------- expectations of every network


def classes(groups: Groups, name: str, dim: int) -> np.ndarray:
    """Return the class of every index, or none where the dimension has no channels."""
    axis = groups.axis(name, dim)
    return np.zeros(0, np.int64) if axis is None else np.asarray(axis)


@pytest.mark.parametrize(
    ("name", "parameter", "dim"),
    [(name, *place) for name, case in NETWORKS.items() for place in case.expectation.cut],
)
def test_is_removable(name: str, parameter: str, dim: int) -> None:
    groups = groups_of(name)
    found = classes(groups, parameter, dim)
    assert len(found), f"{parameter} has no channels along dimension {dim}"
    assert groups.live[found].any(), {groups.reason(int(unit)) for unit in set(found.tolist())}


@pytest.mark.parametrize(
    ("name", "parameter", "dim", "why"),
    [(name, *place) for name, case in NETWORKS.items() for place in case.expectation.frozen],
)
def test_is_frozen_for_the_right_reason(name: str, parameter: str, dim: int, why: str) -> None:
    groups = groups_of(name)
    found = classes(groups, parameter, dim)
    assert not groups.live[found].any()
    if why:
        reasons = {groups.reason(int(unit)) for unit in set(found.tolist())}
        assert any(why in reason.lower() for reason in reasons), reasons


@pytest.mark.parametrize("name", NETWORKS)
def test_groups_are_consistent(name: str) -> None:
    groups = groups_of(name)
    state = tensors(groups)
    met: dict[int, set[tuple[str, int]]] = {}
    for parameter, dim in groups.parameters:
        axis = groups.axis(parameter, dim)
        assert axis is not None
        assert axis.dtype == np.int64
        assert axis.shape == (state[parameter].shape[dim],)
        for found in axis:
            met.setdefault(int(found), set()).add((parameter, dim))
    assert groups.live.dtype == np.bool_
    live = set(np.flatnonzero(groups.live).tolist())
    assert live <= set(met), "a unit without a parameter is nothing to remove"
    listed = [int(found) for family in groups.families for found in family]
    assert sorted(listed) == sorted(live), "every unit is in exactly one family"
    for family in groups.families:
        assert len({frozenset(met[int(found)]) for found in family}) == 1, "a family has one footprint"
    for found in met:
        if not groups.live[found]:
            assert groups.reason(found), "what is frozen says why"


@pytest.mark.parametrize("name", NETWORKS)
def test_analysis_is_deterministic(name: str) -> None:
    first = groups_of(name)
    again = find_groups(first.traced)
    assert again.parameters == first.parameters
    for parameter, dim in first.parameters:
        assert np.array_equal(classes(again, parameter, dim), classes(first, parameter, dim))
    assert np.array_equal(again.live, first.live)


def test_removal_is_what_axes_say() -> None:
    groups = groups_of("c2f")
    chosen = int(classes(groups, "stem.weight", 0)[5])
    assert groups.removal([chosen]) == {
        "stem.weight": {0: [5]},
        "stem.bias": {0: [5]},
        "m.weight": {1: [1]},
        "c.weight": {1: [5]},
    }
    assert groups.removal([]) == {}


@pytest.mark.parametrize(
    ("name", "parameter", "dim"),
    [
        ("residual", "stem.weight", 2),
        ("residual", "stem.weight", 3),
        ("class_token", "position", 1),
        ("class_token", "token", 1),
        ("layer_norm_image", "norm.weight", 1),
    ],
)
def test_positions_and_kernel_taps_are_not_channels(name: str, parameter: str, dim: int) -> None:
    """Such axes never meet a channel; listed as channels they would be thousands of units that nobody can remove."""
    groups = groups_of(name)
    assert not groups.live[classes(groups, parameter, dim)].any()
    assert not any((parameter, dim) in group.parameters for group in groups.groups)


# ---------------------------------------------------------------- explanations


def test_explanation_leads_to_what_froze_it() -> None:
    text = str(groups_of("argmax_channels").explain("stem.weight"))
    assert "stem.weight" in text
    assert "argmax" in text
    assert "networks/reductions.py:" in text, "the line of the model"


def test_explanation_of_an_operator_without_rule_names_it() -> None:
    text = str(groups_of("unknown_op").explain("stem.weight"))
    assert "cumprod" in text
    assert "rule" in text


def test_explanation_goes_through_other_layers() -> None:
    """The stem is frozen by an output two layers away, through a residual sum."""
    text = str(groups_of("hidden_output").explain("stem.weight"))
    assert "output" in text


def test_explanation_of_removable_channels_names_what_goes_along() -> None:
    text = str(groups_of("residual").explain("stem.weight"))
    assert "b.weight" in text
    assert "head.weight" in text


def test_explanation_of_an_unknown_parameter() -> None:
    with pytest.raises(InputError, match=r"stem\.wieght"):
        groups_of("residual").explain("stem.wieght")


@pytest.mark.parametrize(
    "noise",
    [
        lambda x: nn.functional.dropout(x, 0.1),  # whose default is training
        lambda x: x + torch.randn(x.shape[0], 8),
        lambda x: x + torch.rand_like(x),
        torch.bernoulli,
    ],
)
def test_random_numbers_for_each_channel_keep_them(noise: Callable[[torch.Tensor], torch.Tensor]) -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(torch.relu(self.second(noise(torch.sigmoid(self.first(x))))))

    groups = find_groups(trace(Noisy().eval(), normal(2, 4)))
    axis, free = groups.axis("first.weight", 0), groups.axis("second.weight", 0)
    assert axis is not None
    assert free is not None
    assert not groups.live[axis].any()
    assert groups.reason(int(axis[0])).startswith("a random number is drawn")
    assert groups.live[free].all()


def test_reading_does_not_run_the_model() -> None:
    """Analysis reads shapes only, so it works on weights that hold no numbers."""
    model, args, kwargs = build("residual")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    groups = find_groups(trace(model, args, kwargs=kwargs))
    assert int(groups.live.sum()) == int(groups_of("residual").live.sum())
