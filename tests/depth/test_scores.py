"""Scores of layers: each against what it is defined as."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fxprune.capture import Traced, trace
from fxprune.depth import Layers, find_layers, score_layers
from fxprune.depth.measured import channel_dims, probe_accuracy
from fxprune.errors import InputError
from tests.depth.networks import Residual, Tail, conv, ready

GENERATOR = torch.Generator().manual_seed(1)
BATCHES = [
    (torch.randn(12, 3, 8, 8, generator=GENERATOR), torch.randint(0, 3, (12,), generator=GENERATOR)) for _ in range(2)
]


def network() -> nn.Sequential:
    branches = [Residual(nn.Sequential(conv(4, 4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))) for _ in range(3)]
    model = ready(nn.Sequential(conv(3, 4), *branches, Tail(4)))
    assert isinstance(model, nn.Sequential)
    return model


def scored(model: nn.Module, importance: object, **options: object) -> tuple[Traced, Layers, dict[str, float]]:
    traced = trace(model, torch.randn(2, 3, 8, 8))
    layers = find_layers(traced)
    return traced, layers, score_layers(traced, layers, importance, **options)  # type: ignore[arg-type]


def test_bn_scale_is_that_of_the_last_norm() -> None:
    model = network()
    _, _, scores = scored(model, "bn_scale")
    assert scores["2.branch"] == pytest.approx(float(model[2].branch[2].weight.detach().abs().mean()))


def test_a_layer_without_a_batch_norm_has_no_scale() -> None:
    model = nn.Sequential(
        conv(3, 4), Residual(nn.Conv2d(4, 4, 1)), Residual(nn.Sequential(*conv(4, 4))), Tail(4)
    ).eval()
    _, _, scores = scored(model, "bn_scale")
    assert list(scores) == ["2.branch"] or list(scores) == ["2.branch.0"]
    plain = nn.Sequential(nn.Conv2d(3, 4, 1), Residual(nn.Conv2d(4, 4, 1)), Tail(4)).eval()
    with pytest.raises(InputError, match="no removable layer has a batch norm"):
        scored(plain, "bn_scale")


def test_l1_grows_with_the_weights_and_not_with_the_width() -> None:
    model = network()
    _, _, before = scored(model, "l1")
    with torch.no_grad():
        model[2].branch[0][0].weight.mul_(10)
        model[2].branch[1].weight.mul_(10)
    _, _, after = scored(model, "l1")
    assert after["2.branch"] == pytest.approx(10 * before["2.branch"], rel=1e-5)
    assert after["1.branch"] == before["1.branch"]
    wide = nn.Sequential(
        nn.Conv2d(3, 64, 1), Residual(nn.Conv2d(64, 64, 3, padding=1)), Residual(nn.Conv2d(64, 64, 1)), Tail(64)
    )
    _, _, scores = scored(wide.eval(), "l1")
    one, other = scores.values()
    assert one == pytest.approx(other, rel=0.1)


def test_cka_is_zero_where_nothing_changes() -> None:
    model = network()
    nn.init.zeros_(model[2].branch[2].weight)
    nn.init.zeros_(model[2].branch[2].bias)
    _, _, scores = scored(model, "cka", batches=BATCHES)
    assert scores["2.branch"] == pytest.approx(0.0, abs=1e-9)
    assert scores["1.branch"] > 1e-3


def test_cka_against_its_definition() -> None:
    model = network()
    _, _, scores = scored(model, "cka", batches=[images for images, _ in BATCHES])
    expected = []
    for images, _ in BATCHES:
        x = model[0](images)
        y = model[1](x)
        x, y = (value.detach().flatten(1).double() for value in (x, y))
        x, y = x - x.mean(0), y - y.mean(0)
        top = (y.T @ x).norm() ** 2
        expected.append(1 - float(top / ((x.T @ x).norm() * (y.T @ y).norm())))
    assert scores["1.branch"] == pytest.approx(sum(expected) / 2, rel=1e-6)


def test_taylor_is_the_derivative_of_the_loss_by_the_branch() -> None:
    model = network().double()
    traced = trace(model, torch.randn(2, 3, 8, 8).double())
    layers = find_layers(traced)
    batches = [(images.double(), labels) for images, labels in BATCHES]
    scores = score_layers(traced, layers, "taylor", batches=batches)

    @torch.no_grad()
    def loss(factor: float, images: Tensor, labels: Tensor) -> float:
        x = model[1](model[0](images))
        x = x + factor * model[2].branch(x)
        return float(nn.functional.cross_entropy(model[4](model[3](x)), labels))

    step = 1e-5
    changes = [(loss(1 + step, *batch) - loss(1 - step, *batch)) / (2 * step) for batch in batches]
    assert scores["2.branch"] == pytest.approx(sum(change**2 for change in changes) / 2, rel=1e-4)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_taylor_of_a_sequence_is_by_what_it_changes() -> None:
    model = ready(nn.Sequential(conv(3, 4), conv(4, 4), Tail(4))).double()
    traced = trace(model, torch.randn(2, 3, 8, 8).double())
    images, labels = BATCHES[0][0].double(), BATCHES[0][1]
    scores = score_layers(traced, find_layers(traced), "taylor", batches=[(images, labels)])

    @torch.no_grad()
    def loss(factor: float) -> float:
        x = model[0](images)
        return float(nn.functional.cross_entropy(model[2](x + factor * (model[1](x) - x)), labels))

    change = (loss(1 + 1e-5) - loss(1 - 1e-5)) / 2e-5
    assert scores["1.0"] == pytest.approx(change**2, rel=1e-4)


def test_a_probe_tells_classes_apart_where_they_can_be() -> None:
    generator = torch.Generator().manual_seed(0)
    classes = torch.arange(80) % 4
    apart = torch.nn.functional.one_hot(classes, 4) + 0.01 * torch.randn(80, 4, generator=generator)
    assert probe_accuracy(apart, classes) == 1.0
    assert probe_accuracy(torch.randn(80, 4, generator=generator), classes) < 0.7
    with pytest.raises(InputError, match="of two classes or more"):
        probe_accuracy(apart, torch.zeros(80, dtype=torch.long))


def test_probe_is_the_gain_over_the_layer_in_front() -> None:
    class Blur(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 1e-3

    labels = torch.arange(64) % 2
    images = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    images[labels == 1] *= 2.0  # the mean says nothing about the class, the mean of the absolute value does
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1),
        Residual(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())),
        Residual(nn.Sequential(nn.Conv2d(4, 4, 1), Blur())),
        Tail(4),
    )
    _, _, scores = scored(model.eval(), "probe", batches=[(images, labels)])
    first, second = scores.values()
    assert first > 0.2
    assert abs(second) < 0.1


def test_channels_are_where_the_layers_read_them() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 6, 4, stride=4)
            self.block = Residual(nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6)))
            self.fc = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.block(self.stem(x).flatten(2).transpose(1, 2)).mean(1))

    traced = trace(Tokens().eval(), torch.randn(2, 3, 8, 8))
    layers = find_layers(traced)
    assert set(channel_dims(traced, layers).values()) == {-1}
    other = trace(network(), torch.randn(2, 3, 8, 8))
    assert set(channel_dims(other, find_layers(other)).values()) == {1}


def test_random_and_functions() -> None:
    model = network()
    _, layers, one = scored(model, "random", seed=3)
    assert one == scored(model, "random", seed=3)[2]
    assert one != scored(model, "random", seed=4)[2]
    assert set(one) == set(layers.names)
    _, _, own = scored(model, lambda traced, layers: [1.0, math.nan, 3.0])
    assert own == {"1.branch": 1.0, "3.branch": 3.0}
    with pytest.raises(InputError, match=r"one number per layer, shape \(3,\)"):
        scored(model, lambda traced, layers: [1.0])
    with pytest.raises(InputError, match="every score is NaN"):
        scored(model, lambda traced, layers: [math.nan] * 3)


@pytest.mark.parametrize(
    ("importance", "batches", "said"),
    [
        ("taylr", None, "Did you mean 'taylor'"),
        ("cka", None, "there are no batches"),
        ("cka", [torch.randn(1, 3, 8, 8)], "has only one"),
        ("taylor", [torch.randn(4, 3, 8, 8)], "needs labels, and batch 1"),
        ("probe", [(torch.randn(12, 3, 8, 8), torch.randn(12))], "a class for each sample"),
        ("cka", [torch.randn(4, 5, 8, 8)], "the model was captured for"),
        ("cka", [torch.full((4, 3, 8, 8), math.nan)], "is not finite on batch 1"),
    ],
)
def test_bad_data(importance: str, batches: object, said: str) -> None:
    with pytest.raises(InputError, match=said):
        scored(network(), importance, batches=batches)
