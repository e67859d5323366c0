"""The made-up images: reproducible, balanced, and harder where they should be."""

from __future__ import annotations

import numpy as np
import pytest

from fxprune.errors import InputError
from fxprune.training.shapes import SHAPES, SIDE, make_shapes


def test_they_are_a_function_of_the_seed() -> None:
    images, labels = make_shapes(40, seed=3)
    again, same = make_shapes(40, seed=3)
    other, _ = make_shapes(40, seed=4)
    assert images.shape == (40, 3, SIDE, SIDE)
    assert images.dtype == np.uint8
    assert np.array_equal(images, again)
    assert np.array_equal(labels, same)
    assert not np.array_equal(images, other)


def test_classes_are_equally_frequent() -> None:
    _, labels = make_shapes(105)
    counts = np.bincount(labels, minlength=len(SHAPES))
    assert counts.max() - counts.min() <= 1


def test_difficulty_makes_them_harder_to_tell_apart() -> None:
    """Nearest neighbours on grey edges find the class of easy images, and hardly that of hard ones."""

    def accuracy(difficulty: float) -> float:
        images, labels = make_shapes(500, seed=1, difficulty=difficulty)
        grey = images.mean(1)
        edges = np.abs(np.diff(grey, axis=1))[:, :, 1:] + np.abs(np.diff(grey, axis=2))[:, 1:]
        flat = edges.reshape(len(edges), -1)
        flat = flat / np.linalg.norm(flat, axis=1, keepdims=True)
        nearest = (flat[400:] @ flat[:400].T).argmax(1)
        return float((labels[:400][nearest] == labels[400:]).mean())

    easy, hard = accuracy(0.0), accuracy(0.8)
    assert easy > 0.8
    assert 0.02 < hard < 0.5


@pytest.mark.parametrize("difficulty", [-0.1, 1.1, float("nan")])
def test_the_knob_has_ends(difficulty: float) -> None:
    with pytest.raises(InputError, match="difficulty"):
        make_shapes(1, difficulty=difficulty)


def test_a_negative_count_is_refused() -> None:
    with pytest.raises(InputError, match="count"):
        make_shapes(-1)
    assert len(make_shapes(0)[0]) == 0
