"""Which vectors go under a budget, counted as they will be merged."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fxprune.capture import Traced, trace
from fxprune.errors import BudgetError, InputError
from fxprune.linear.basis import Block, whole_blocks, with_vectors_dropped
from fxprune.linear.basis_budget import choose_vectors
from fxprune.passes import DecomposeBasis, MergeBasis
from fxprune.pipeline import Pipeline
from fxprune.planning.cost import count

DENSE = trace(
    nn.Sequential(
        nn.Conv2d(4, 12, 3), nn.ReLU(), nn.Conv2d(12, 12, 3, groups=2), nn.BatchNorm2d(12), nn.Conv2d(12, 8, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 6),
    ).double().eval(),
    torch.randn(2, 4, 8, 8, dtype=torch.float64),
)  # fmt: skip
SPLIT = DecomposeBasis()(DENSE).traced


def scores(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        block.path: torch.rand(len(block.scales), generator=generator)  # type: ignore[arg-type]
        for block in whole_blocks(SPLIT.module)
    }


def after(dropped: dict[str, list[int]], traced: Traced = SPLIT) -> Traced:
    return Pipeline([MergeBasis()])(with_vectors_dropped(traced, dropped)).traced


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(0, 100), st.sampled_from(["params", "macs"]), st.floats(0.4, 1.0))
def test_counts_are_those_of_the_merged_model(seed: int, metric: str, keep: float) -> None:
    choice = choose_vectors(SPLIT, scores(seed), **{metric: keep})  # type: ignore[arg-type]
    cost, dense, split = count(after(choice.dropped)), count(DENSE), count(SPLIT)
    assert (cost.params, cost.macs) == (choice.counts.merged.params, choice.counts.merged.macs)
    assert (dense.params, dense.macs) == (choice.counts.single.params, choice.counts.single.macs)
    assert choice.counts.split.params <= split.params
    assert getattr(cost, metric) <= keep * getattr(dense, metric)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(0, 100), st.floats(0.4, 0.9))
def test_nothing_is_dropped_in_vain(seed: int, keep: float) -> None:
    choice = choose_vectors(SPLIT, scores(seed), params=keep)
    for block in whole_blocks(SPLIT.module):
        gone = len(choice.dropped.get(block.path, [])) // block.groups
        assert not gone or block.pays(block.rank - gone)
        if gone:  # one more vector in each group would not fit
            ranks = {path: len(positions) for path, positions in choice.dropped.items()}
            ranks[block.path] -= block.groups
            fewer = {p: scores_sorted(choice.dropped[p], seed, p)[:n] for p, n in ranks.items()}
            assert count(after(fewer)).params > keep * count(DENSE).params


def scores_sorted(positions: list[int], seed: int, path: str) -> list[int]:
    """Return dropped positions, the least important of each group first."""
    (block,) = [block for block in whole_blocks(SPLIT.module) if block.path == path]
    by_group = [[p for p in positions if p // block.rank == group] for group in range(block.groups)]
    ordered = [sorted(group, key=lambda p: float(scores(seed)[path][p])) for group in by_group]
    return [position for column in zip(*ordered, strict=True) for position in column]


def test_the_least_important_go_in_each_group() -> None:
    given_scores = scores(3)
    choice = choose_vectors(SPLIT, {"2": given_scores["2"]}, params=0.8)
    (block,) = [block for block in whole_blocks(SPLIT.module) if block.path == "2"]
    gone = choice.dropped["2"]
    for group in range(2):
        mine = given_scores["2"][group * block.rank : (group + 1) * block.rank]
        lowest = mine.argsort()[: len(gone) // 2] + group * block.rank
        assert sorted(lowest.tolist()) == [p for p in gone if p // block.rank == group]
    assert set(choice.dropped) == {"2"}


def test_layers_can_be_ranked_by_shares_of_their_norm_or_as_they_are() -> None:
    large = {path: value * (1000 if path == "0" else 1) for path, value in scores(1).items()}
    by_layer = choose_vectors(SPLIT, large, params=0.6, ranking="layer")
    assert by_layer == choose_vectors(SPLIT, scores(1), params=0.6, ranking="layer")
    assert "0" in by_layer.dropped
    assert "0" not in choose_vectors(SPLIT, large, params=0.6, ranking="plain").dropped
    with pytest.raises(InputError, match="ranking is 'size'; basis vectors are ranked by 'cost', 'layer', 'plain'"):
        choose_vectors(SPLIT, large, params=0.6, ranking="size")  # type: ignore[arg-type]


@pytest.mark.parametrize("metric", ["params", "macs"])
def test_what_loses_least_for_what_it_saves_goes_first(metric: str) -> None:
    blocks = whole_blocks(SPLIT.module)

    def cost(block: Block) -> float:
        """Return what one vector costs."""
        whole = Pipeline([MergeBasis()])(with_vectors_dropped(SPLIT, kept(2))).traced
        less = {**kept(2), block.path: kept(1)[block.path]}
        return float(getattr(count(whole), metric) - getattr(count(after(less)), metric)) / block.groups

    def kept(ranks: int) -> dict[str, list[int]]:
        """Return the vectors to drop so that so many per group are left: the split pays in every layer."""
        return {
            block.path: [p for p in range(block.groups * block.rank) if p % block.rank >= ranks] for block in blocks
        }

    # The dearest vectors are worth less per unit of cost than all others, although each is worth more.
    costs = {block.path: cost(block) for block in blocks}
    dearest = max(costs, key=lambda path: costs[path])
    given_scores = {
        block.path: torch.full(
            (block.groups * block.rank,), (0.9 if block.path == dearest else 1.0) * costs[block.path]
        )
        for block in blocks
    }
    dropped = choose_vectors(SPLIT, given_scores, **{metric: 0.85}).dropped  # type: ignore[arg-type]
    assert list(dropped) == [dearest]
    assert dearest not in choose_vectors(SPLIT, given_scores, **{metric: 0.85}, ranking="plain").dropped  # type: ignore[arg-type]


def test_without_merging_the_split_is_counted_as_it_is() -> None:
    choice = choose_vectors(SPLIT, scores(2), params=0.9, merge=False)
    assert choice.counts.split.params <= 0.9 * choice.counts.single.params
    assert choice.counts.merged.params <= choice.counts.split.params


def test_what_is_zero_already_goes_first() -> None:
    masked = with_vectors_dropped(SPLIT, {"0": [2, 5, 7]})
    choice = choose_vectors(masked, scores(0), params=0.7)
    assert {2, 5, 7} <= set(choice.dropped["0"])


def test_a_whole_budget_drops_nothing() -> None:
    choice = choose_vectors(SPLIT, scores(0), macs=1.0)
    assert choice.dropped == {}
    assert choice.counts.merged == choice.counts.single


def test_refusals() -> None:
    with pytest.raises(BudgetError, match="cannot be met by dropping basis vectors"):
        choose_vectors(SPLIT, scores(0), params=0.05)
    with pytest.raises(InputError, match="exactly one budget"):
        choose_vectors(SPLIT, scores(0))
    with pytest.raises(InputError, match="no decomposed layer"):
        choose_vectors(SPLIT, {"9": torch.ones(3)}, params=0.5)
    for wrong in (torch.ones(3), torch.full((12,), torch.nan), -torch.ones(12)):
        with pytest.raises(InputError, match="finite numbers of at least 0"):
            choose_vectors(SPLIT, {"0": wrong}, params=0.5)
