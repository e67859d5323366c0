"""A graph for any batch is the model at any batch, or says that it is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxprune.capture import Traced, trace
from fxprune.capture.inputs import inputs_of
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
        (lambda shape: shape[0] == 9, 4),
        (lambda shape: shape[0] % 9 == 0, 2),
        (lambda shape: shape[0] >= 300, 4),
    ],
    ids=["several", "several, of one", "more than two", "below seven", "even", "half is two", "nine", "nines", "many"],
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


class Doubling(nn.Module):
    """Doubles what it computes for more than three samples; takes inputs of two rows for each sample as well."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        for z in more:
            y = y + self.layer(z).reshape(x.shape[0], 2, 4).sum(1)
        return 2 * y if x.shape[0] > 3 else y


@pytest.mark.parametrize("batch", [2, 4])
def test_inputs_with_several_rows_for_each_sample_keep_them(batch: int) -> None:
    model = Doubling().eval()
    traced = trace(model, (normal(batch, 6), normal(2 * batch, 6)))
    assert not traced.batch_is_dynamic
    assert any("with a batch of" in note for note in traced.notes)


def test_a_single_sample_that_not_all_inputs_have_asks_for_two() -> None:
    model = Doubling().eval()
    traced = trace(model, (normal(1, 6), normal(2, 6)))
    assert traced.notes == (
        "the batch is static at 1: a size of one cannot be left open, and not all inputs have it; give two samples",
    )


def test_inputs_of_fewer_rows_than_samples_are_no_obstacle() -> None:
    class Edges(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 4)

        def forward(self, x: Tensor, edges: Tensor) -> Tensor:
            y: Tensor = self.layer(x)
            return y.index_add(0, edges[1], y[edges[0]])

    model, edges = Edges().eval(), torch.tensor([[0, 1], [1, 2]])
    traced = trace(model, (normal(7, 6), edges))
    assert traced.batch_is_dynamic
    x = normal(9, 6)
    assert torch.allclose(traced.run((x, edges))[0], model(x, edges).detach(), atol=1e-5)


def test_batches_that_are_independent_are_tried_each_alone() -> None:
    class Prompted(nn.Module):
        """Doubles what it computes where there are more prompts than samples and one."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 4)

        def forward(self, x: Tensor, prompts: Tensor) -> Tensor:
            y: Tensor = self.layer(x) + self.layer(prompts).sum()
            return 2 * y if prompts.shape[0] > x.shape[0] + 1 else y

    traced = trace(Prompted().eval(), (normal(4, 6), normal(5, 6)))
    assert not traced.batch_is_dynamic
    assert any("with a batch of 6" in note for note in traced.notes)


class Noisy(nn.Module):
    """Adds noise to what another computes."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        return y + torch.randn_like(y)


@pytest.mark.parametrize("decides", [False, True])
def test_a_model_that_draws_random_numbers_is_run_elsewhere_with_the_same(decides: bool) -> None:
    model = Noisy(Doubling() if decides else nn.Linear(6, 4)).eval()
    traced = trace(model, normal(2, 6))
    assert traced.batch_is_dynamic is not decides


@pytest.mark.parametrize(
    "condition",
    [
        lambda shape: shape[2] > 7,
        lambda shape: shape[2] // 2 == 4,
        lambda shape: shape[2] == shape[3],
        lambda shape: shape[2] > shape[3],
        lambda shape: shape[2] == 11,
    ],
    ids=["above", "half is four", "square", "portrait", "eleven"],
)
def test_a_decision_by_the_size_of_images_closes_it(condition: Callable[[torch.Size], bool]) -> None:
    model = Deciding(condition).eval()
    traced = trace(model, normal(2, 3, 8, 8), dynamic_size=True)
    assert traced.batch_is_dynamic
    assert any("the size of images is fixed" in note for note in traced.notes)
    for size in ((6, 6), (8, 8), (12, 12), (16, 16), (12, 8), (8, 12), (11, 8)):
        assert_same_where_it_runs(traced, model, normal(3, 3, *size))


class Pairs(nn.Module):
    """Takes two samples."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = x
        return torch.stack([first + second, first - second])


@pytest.mark.parametrize("model", [Pairs(), Deciding(lambda shape: shape[0] > 3)], ids=["the exporter", "a try"])
def test_a_size_that_closes_with_the_batch_is_told(model: nn.Module) -> None:
    traced = trace(model.eval(), normal(2, 3, 8, 8), dynamic_size=True)
    assert traced.dynamic_shapes is None
    assert [note.partition(":")[0] for note in traced.notes] == [
        "the batch is static at 2", "the size of images is fixed too",
    ]  # fmt: skip
    assert not any("fixed too" in note for note in trace(model.eval(), normal(2, 3, 8, 8)).notes)


def test_other_sizes_than_a_graph_is_for_are_refused() -> None:
    class Halved(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.adaptive_max_pool2d(x, (x.shape[2] // 2, 4))

    traced = trace(Halved(), normal(2, 3, 8, 8))
    assert traced.run((normal(3, 3, 8, 8),))[0].shape == (3, 3, 4, 4)
    for shape in ((2, 3, 12, 8), (2, 3, 8)):
        with pytest.raises(InputError, match=r"sizes \[any, 3, 8, 8\].*dynamic_size=True"):
            traced.run((normal(*shape),))


def test_data_may_have_the_sizes_that_are_open() -> None:
    batch = normal(3, 3, 12, 6)
    traced = trace(nn.Conv2d(3, 4, 3), normal(2, 3, 8, 8), dynamic_size=True)
    assert inputs_of(traced, batch, "a batch")[0][0] is batch
    traced = trace(nn.Conv2d(3, 4, 3), normal(2, 3, 8, 8))
    with pytest.raises(InputError, match=r"torch.float32 of sizes \[any, 3, 8, 8\]"):
        inputs_of(traced, batch, "a batch")


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


class Levels(nn.Module):
    """Decides by values, and calls one that decides by the size of what it is given, at several sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Deciding(lambda shape: shape[2] > 20)

    def forward(self, x: Tensor) -> Tensor:
        levels = [self.inner(F.interpolate(x, scale_factor=scale)).mean((2, 3)) for scale in (1, 2)]
        y: Tensor = torch.cat(levels, 1)
        return y if float(y.abs().max()) > 1e3 else y[:, : 4 + int(float(y.sum()) > 1e6)]


def test_a_region_that_decides_by_another_size_takes_no_other() -> None:
    traced = trace(Levels().eval(), normal(2, 3, 8, 8))
    assert traced.regions is not None
    assert [call.free for call in traced.regions.calls] == [((0,),), ((0,),)]
    traced = trace(Levels().eval(), normal(2, 3, 16, 16))  # below 20 and above
    assert traced.regions is not None
    assert [call.free for call in traced.regions.calls] == [((0,),), ((0,),)]


def test_no_size_is_tried_twice() -> None:
    seen: list[int] = []

    def below(shape: torch.Size) -> bool:
        if type(shape[0]) is int:  # not an exporter's symbol
            seen.append(shape[0])
        return shape[0] < 62

    traced = trace(Deciding(lambda shape: below(shape) or shape[0] >= 62).eval(), normal(8, 3, 8, 8))
    assert traced.batch_is_dynamic  # 64 breaks the guard, and is eight times the batch as well
    assert sorted(seen) == [1, 8, 62, 64]
