"""A graph for any batch is the model at any batch, or says that it is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxprune.capture import Traced, trace
from fxprune.errors import InputError
from tests.networks import normal


class Deciding(nn.Module):
    """Doubles what it computes where a condition on the sizes of the input holds."""

    def __init__(self, condition: Callable[[torch.Size], bool]) -> None:
        super().__init__()
        self.condition, self.layer = condition, nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return 2 * y if self.condition(x.shape) else y


def assert_same_where_it_runs(traced: Traced, model: nn.Module, x: Tensor) -> None:
    try:
        (found,) = traced.run((x,))
    except InputError:
        return
    with torch.no_grad():
        assert torch.allclose(found, model(x), atol=1e-5)


@pytest.mark.parametrize(
    ("condition", "example"),
    [
        (lambda shape: shape[0] > 1, 4),
        (lambda shape: shape[0] > 1, 1),
        (lambda shape: shape[0] > 2, 4),
        (lambda shape: shape[0] < 7, 4),
        (lambda shape: shape[0] % 2 == 0, 4),
        (lambda shape: shape[0] // 2 == 2, 4),
    ],
    ids=["several", "several, of one", "more than two", "below seven", "even", "half is two"],
)
def test_a_decision_by_the_number_of_samples_closes_the_batch(
    condition: Callable[[torch.Size], bool], example: int
) -> None:
    model = Deciding(condition).eval()
    traced = trace(model, normal(example, 3, 8, 8))
    assert not traced.batch_is_dynamic
    assert traced.batch == example
    assert any("a graph for any size is not what the model's code does" in note for note in traced.notes)
    for batch in (1, 2, 3, 4, 5, 9):
        assert_same_where_it_runs(traced, model, normal(batch, 3, 8, 8))


def test_a_number_of_samples_that_the_model_refuses_closes_nothing() -> None:
    class Pairs(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[0] % 2:
                raise ValueError("samples come in pairs")
            return x.reshape(x.shape[0] // 2, 2, 3).mean(1)

    traced = trace(Pairs(), normal(4, 3))
    assert traced.batch_is_dynamic
    assert len(traced.run((normal(6, 3),))[0]) == 3


@pytest.mark.parametrize(
    "condition", [lambda shape: shape[2] > 7, lambda shape: shape[2] // 2 == 4], ids=["above", "half is four"]
)
def test_a_decision_by_the_size_of_images_closes_it(condition: Callable[[torch.Size], bool]) -> None:
    model = Deciding(condition).eval()
    traced = trace(model, normal(2, 3, 8, 8), dynamic_size=True)
    assert traced.batch_is_dynamic
    assert any("the size of images is fixed" in note for note in traced.notes)
    for size in (6, 8, 12, 16):
        assert_same_where_it_runs(traced, model, normal(3, 3, size, size))


def test_other_sizes_than_a_graph_is_for_are_refused() -> None:
    class Halved(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.adaptive_max_pool2d(x, (x.shape[2] // 2, 4))

    traced = trace(Halved(), normal(2, 3, 8, 8))
    assert traced.run((normal(3, 3, 8, 8),))[0].shape == (3, 3, 4, 4)
    for shape in ((2, 3, 12, 8), (2, 3, 8)):
        with pytest.raises(InputError, match=r"sizes \[any, 3, 8, 8\].*dynamic_size=True"):
            traced.run((normal(*shape),))


class Around(nn.Module):
    """Decides by values, so that it is captured by region, and calls one that decides by the number of samples."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(3, 4, 1), Deciding(lambda shape: shape[0] > 2))
        self.inner[0] = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        return y if float(y.abs().max()) > 1e3 else y[:, : 1 + int(float(y.sum()) > 1e6)]


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_a_region_that_decides_by_the_number_of_samples_has_its_own(batch: int) -> None:
    model = Around().eval()
    x = normal(batch, 3, 8, 8)
    traced = trace(model, x)
    assert traced.regions is not None
    assert any(note.startswith("inner: the batch is static at") for note in traced.notes)
    with torch.no_grad():
        (found,) = traced.run((x,))
        assert torch.allclose(found, model.inner(x), atol=1e-5)
    assert not traced.batch_is_dynamic


def test_no_size_is_tried_twice() -> None:
    seen: list[int] = []

    def below(shape: torch.Size) -> bool:
        if type(shape[0]) is int:  # not an exporter's symbol
            seen.append(shape[0])
        return shape[0] < 62

    traced = trace(Deciding(lambda shape: below(shape) or shape[0] >= 62).eval(), normal(8, 3, 8, 8))
    assert traced.batch_is_dynamic  # 64, the one that breaks the guard, is eight times the batch and a size of its own
    assert sorted(seen) == [1, 8, 64]
