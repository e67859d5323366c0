"""Moves keep widths at multiples, and their order is what the allocation says."""

from __future__ import annotations

import numpy as np
import pytest

from fxprune.errors import InputError
from fxprune.planning.moves import Family, build_moves, check_allocation, normalised


def family(first: int, scores: list[float], total: int | None = None, narrowest: int = 1) -> Family:
    return Family(np.arange(first, first + len(scores)), np.array(scores, float), total or len(scores), narrowest)


@pytest.mark.parametrize(
    ("total", "movable", "narrowest", "step", "cuts"),
    [
        (64, 64, 1, 16, [0, 16, 32, 48]),
        (24, 24, 1, 16, [0, 8]),
        (16, 16, 1, 16, [0]),
        (12, 12, 1, 16, [0]),
        (4, 4, 64, 16, [0, 1, 2, 3]),  # attention heads of 64: any number of heads is a multiple of 16
        (8, 8, 24, 16, [0, 2, 4, 6]),  # heads of 24: two are 48
        (5, 5, 1, 1, [0, 1, 2, 3, 4]),
        (64, 20, 1, 16, [0, 16]),  # only twenty units may go
        (1, 1, 1, 1, [0]),
    ],
)
def test_kept_counts_are_whole_or_multiples(
    total: int, movable: int, narrowest: int, step: int, cuts: list[int]
) -> None:
    assert family(0, [0.0] * movable, total, narrowest).chunks(step) == cuts


def test_global_ranks_all_units() -> None:
    moves = build_moves([family(0, [1, 4, 9]), family(10, [2, 3, 9])], 1, "global", [0, 0])
    assert moves.classes.tolist() == [0, 10, 11, 1]
    assert moves.family.tolist() == [0, 1, 1, 0]


def test_uniform_takes_the_same_share_of_every_family() -> None:
    moves = build_moves([family(0, [0, 0, 0, 0]), family(10, [7, 7, 7, 7])], 2, "uniform", [0, 0])
    assert moves.classes.tolist() == [0, 1, 10, 11]
    moves = build_moves([family(0, [0] * 5), family(10, [7] * 5)], 1, "uniform", [0, 0])
    assert moves.family.tolist() == [0, 1] * 4


def test_isomorphic_ranks_within_a_pool_and_cuts_pools_alike() -> None:
    families = [family(0, [1, 5, 9]), family(10, [2, 3, 9]), family(20, [70, 80, 90])]
    moves = build_moves(families, 1, "isomorphic", [0, 0, 1])
    inside = [int(number) for number in moves.classes if number < 20]
    assert inside == [0, 10, 11, 1]
    assert moves.classes.tolist().index(20) == 1  # a sixth of the other pool is below, a third above


def test_the_order_within_a_family_survives_equal_scores() -> None:
    scores = [0.1 * 3] * 40
    moves = build_moves([family(0, scores), family(100, scores)], 3, "global", [0, 0])
    for number in (0, 1):
        own = moves.classes[np.repeat(moves.family == number, np.diff(moves.start))]
        assert (np.diff(own) == 1).all()


def test_nothing_to_move() -> None:
    assert len(build_moves([family(0, [1.0])], 1, "global", [0])) == 0
    assert len(build_moves([], 1, "isomorphic", [])) == 0


def test_normalised_scores_have_mean_one() -> None:
    result = normalised([family(0, [1, 3]), family(5, [0, 0]), family(9, [], 4)])
    assert result[0].scores.tolist() == [0.5, 1.5]
    assert result[1].scores.tolist() == [0, 0]


def test_unknown_allocations_are_refused() -> None:
    with pytest.raises(InputError, match="global, isomorphic, latency, uniform"):
        check_allocation("local")
