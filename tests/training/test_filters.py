"""Which filters go: the smallest of each layer, what stands for them by the graph, and what must stay."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxprune.capture import Traced, trace
from fxprune.channels import find_groups
from fxprune.errors import InputError
from fxprune.training.filters import Ratios, Selection, rebuild, removal_error, select_filters, silence

IMAGE = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Swapped(nn.Module):
    """Norms are registered in another order than they are called in, and the first layer has none behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_b = nn.BatchNorm2d(10)
        self.norm_a = nn.BatchNorm2d(8)
        self.stem = nn.Conv2d(3, 6, 3)
        self.conv_b = nn.Conv2d(8, 10, 1)
        self.conv_a = nn.Conv2d(6, 8, 1)
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm_a(self.conv_a(self.stem(x).relu())).relu()
        x = self.norm_b(self.conv_b(x)).relu()
        result: Tensor = self.head(x.mean((2, 3)))
        return result


class Residual(nn.Module):
    """A stem and two blocks that add to it, and a depthwise convolution inside the second."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv1, self.norm1 = nn.Conv2d(8, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.norm2 = nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.widen, self.norm3 = nn.Conv2d(8, 12, 1, bias=False), nn.BatchNorm2d(12)
        self.depth, self.norm4 = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False), nn.BatchNorm2d(12)
        self.narrow, self.norm5 = nn.Conv2d(12, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = (x + self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))).relu()
        y = self.norm4(self.depth(self.norm3(self.widen(x)).relu())).relu()
        x = x + self.norm5(self.narrow(y))
        result: Tensor = self.head(x.mean((2, 3)))
        return result


def lively(model: nn.Module) -> nn.Module:
    """Return the model in eval mode with norms that do something."""
    generator = torch.Generator().manual_seed(1)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if value.dim() == 1:
            noise = torch.rand(value.shape, generator=generator)
            value.data.copy_(0.5 + noise if name.endswith(("weight", "var")) else noise - 0.5)
    return model.eval()


def select(model: nn.Module, ratios: Ratios, *, residual: bool = False) -> tuple[Traced, Selection]:
    torch.manual_seed(0)
    traced = trace(lively(model), IMAGE)
    return traced, select_filters(traced, find_groups(traced), ratios, residual=residual)


def test_norms_are_found_by_the_graph_and_not_by_the_order_of_modules() -> None:
    traced, found = select(Swapped(), {"*": 0.5})
    assert [each.path for each in found.filters] == ["stem", "conv_a", "conv_b"]
    assert [each.index for each in found.filters] == [0, 1, 2]
    assert found.layers == 4
    stem, a, b = found.filters
    assert stem.vectors == (("stem.bias", stem.pruned),)  # it has no norm, and takes none of a later layer
    assert a.vectors == (("conv_a.bias", a.pruned), ("norm_a.weight", a.pruned), ("norm_a.bias", a.pruned))
    assert b.vectors == (("conv_b.bias", b.pruned), ("norm_b.weight", b.pruned), ("norm_b.bias", b.pruned))
    for each in found.filters:
        sizes = traced.module.get_parameter(each.weight).abs().mean((1, 2, 3))
        assert set(each.pruned) == set(sizes.argsort()[: len(sizes) // 2].tolist())


@pytest.mark.parametrize(("share", "count"), [(0.55, 11), (0.01, 1), (0.9, 18), (0.949, 19), (0.999, 19), (0.0, 0)])
def test_how_many_go(share: float, count: int) -> None:
    model = nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 3))
    traced = trace(model, torch.randn(2, 4))
    ratios = {"0": share, "2": 0.5}  # min(ceil(r N), int(0.995 N))
    found = select_filters(traced, find_groups(traced), ratios)
    assert [len(each.pruned) for each in found.filters] == [count, 10][not count :]


def test_one_number_leaves_the_first_layer_whole() -> None:
    _, found = select(Swapped(), 0.5)
    assert [each.path for each in found.filters] == ["conv_a", "conv_b"]


def test_the_first_pattern_that_matches_counts() -> None:
    _, found = select(Swapped(), {"conv_a": 0.25, "conv_*": 0.5})
    assert [len(each.pruned) for each in found.filters] == [2, 5]


def test_residual_sums_stay_unless_asked_for() -> None:
    _, found = select(Residual(), {"*": 0.5})
    assert [each.path for each in found.filters] == ["conv1", "widen", "depth"]
    assert found.notes == ("stem keeps channels that other layers make too (residual=True removes them)",)
    assert found.filters[1].pruned == found.filters[2].pruned  # the depthwise convolution goes with what it reads
    assert [name for name, _ in found.filters[2].vectors] == ["norm4.weight", "norm4.bias"]


def test_residual_sums_go_together_by_the_first_layer() -> None:
    traced, found = select(Residual(), {"stem": 0.5}, residual=True)
    assert [each.path for each in found.filters] == ["stem", "conv2", "narrow"]
    smallest = traced.module.get_parameter("stem.weight").abs().mean((1, 2, 3)).argsort()[:4]
    assert all(set(each.pruned) == set(smallest.tolist()) for each in found.filters)
    assert [[name for name, _ in each.vectors] for each in found.filters] == [
        ["norm.weight", "norm.bias"], ["norm2.weight", "norm2.bias"], ["norm5.weight", "norm5.bias"],
    ]  # fmt: skip


def test_what_is_silent_can_be_removed_and_what_is_not_cannot() -> None:
    traced, found = select(Residual(), {"*": 0.5}, residual=True)
    removed = find_groups(traced).removal(found.classes)
    assert removal_error(traced, removed) > 1e-3
    silence(traced.module, found.filters)
    assert removal_error(traced, removed) == 0
    traced.module.get_parameter("norm1.bias").data += 1
    assert removal_error(traced, removed) > 1e-3


def test_layers_behind_which_zero_is_not_nothing_keep_their_filters() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.three = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
            self.norm, self.head = nn.GroupNorm(1, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.two(self.one(x).sigmoid())  # half of nothing is something
            x = self.three(self.norm(x).relu())  # statistics over all channels
            result: Tensor = self.head(x.relu().mean((2, 3)))
            return result

    _, found = select(Mixed(), {"*": 0.5})
    assert [each.path for each in found.filters] == ["three"]
    assert [note.split()[0] for note in found.notes] == ["one", "two"]
    with pytest.raises(InputError, match="outputs move when channels"):
        select(Mixed(), {"one": 0.5})


def test_a_norm_behind_a_concatenation_is_reached_by_all_that_enter_it() -> None:
    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(10)
            self.one, self.two, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 1), nn.Conv2d(10, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.one(x)
            x = self.norm(torch.cat([y, self.two(y)], 1)).relu()
            result: Tensor = self.head(x).mean((2, 3))
            return result

    traced, found = select(Dense(), {"one": 0.5, "two": 0.5})
    one, two = found.filters
    assert dict(one.vectors)["norm.weight"] == one.pruned
    assert dict(two.vectors)["norm.weight"] == tuple(4 + index for index in two.pruned)
    silence(traced.module, found.filters)
    assert removal_error(traced, find_groups(traced).removal(found.classes)) == 0


def test_transposed_and_grouped_convolutions() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(), nn.ConvTranspose2d(8, 12, 2), nn.ReLU(),
        nn.Conv2d(12, 8, 1, groups=4), nn.ReLU(), nn.Conv2d(8, 4, 1),
    )  # fmt: skip
    traced, found = select(model, {"*": 0.5})
    found_sizes = [(each.path, each.dim, len(each.pruned)) for each in found.filters]
    assert found_sizes == [("0", 0, 4), ("2", 1, 6), ("4", 0, 4)]
    assert found.filters[1].rows(traced.module).shape == (12, 8 * 4)
    silence(traced.module, found.filters)
    assert removal_error(traced, find_groups(traced).removal(found.classes)) == 0


def test_a_selection_comes_back_from_its_classes() -> None:
    traced, found = select(Residual(), {"*": 0.5}, residual=True)
    assert rebuild(traced, find_groups(traced), reversed(found.classes), found.notes) == found


@pytest.mark.parametrize(
    ("ratios", "words"),
    [
        (1.0, "from 0 to below 1"),
        ({"conv_a": -0.1}, "from 0 to below 1"),
        ({"conv_a": True}, "from 0 to below 1"),
        ({"layer": 0.5}, "matches no convolution or linear layer; there are stem, conv_a"),
        ({"conv_a": 0.0}, "no filter can be removed"),
        ({"head": 0.5}, "no filter can be removed"),
    ],
)
def test_ratios_that_make_no_sense(ratios: Ratios, words: str) -> None:
    with pytest.raises(InputError, match=words):
        select(Swapped(), ratios)


class Tied(nn.Module):
    """Two convolutions of one weight, with biases and norms of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.one, self.norm1 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.two, self.norm2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.two.weight = self.one.weight
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.one(self.stem(x).relu())).relu()
        x = self.norm2(self.two(x)).relu()
        result: Tensor = self.head(x.mean((2, 3)))
        return result


def test_what_stands_for_tied_filters_is_that_of_all_their_layers() -> None:
    traced, selection = select(Tied(), {"*": 0.5}, residual=True)
    stem, tied = selection.filters
    assert {name for name, _ in stem.vectors} == {"stem.bias"}
    norms = {f"norm{number}.{part}" for number in (1, 2) for part in ("weight", "bias")}
    assert {name for name, _ in tied.vectors} == {"one.bias", "two.bias", *norms}
    silence(traced.module, selection.filters)
    assert removal_error(traced, find_groups(traced).removal(selection.classes)) <= 1e-9
