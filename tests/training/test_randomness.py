"""States and seeds of random numbers."""

from __future__ import annotations

import json
import random

import numpy as np
import torch

from fxprune.training.randomness import capture_states, derived_seed, restore_states, seed_all, seeded


def _draw() -> list[float]:
    return [
        random.random(),
        random.gauss(0, 1),
        float(np.random.rand()),
        float(np.random.randn()),
        torch.rand(()).item(),
    ]


def test_a_derived_seed_depends_on_every_key() -> None:
    seeds = {derived_seed(*keys) for keys in [(0,), (1,), (0, 1), (1, 0), (0, 1, 2), (0, 2, 1)]}
    assert len(seeds) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derived_seed(3, 4) == derived_seed(3, 4)


def test_all_generators_repeat_after_seeding() -> None:
    seed_all(2**40 + 1)
    first = _draw()
    seed_all(2**40 + 1)
    assert _draw() == first


def test_states_come_back_in_the_middle_of_a_stream() -> None:
    seed_all(7)
    _draw()  # numpy and Python each hold a second normal number back now
    states = capture_states()
    expected = [_draw() for _ in range(3)]
    restore_states(states)
    assert [_draw() for _ in range(3)] == expected


def test_states_are_tensors_and_plain_data() -> None:
    states = capture_states()
    plain = {key: value for key, value in states.items() if not isinstance(value, torch.Tensor)}
    assert json.dumps(plain, default=lambda value: value.tolist())


def test_a_seeded_block_leaves_no_trace() -> None:
    seed_all(1)
    expected = [_draw(), _draw()]
    seed_all(1)
    first = _draw()
    with seeded(5):
        inside = _draw()
    with seeded(5):
        assert _draw() == inside
    assert [first, _draw()] == expected
