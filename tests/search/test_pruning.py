"""What a trial of the search does, and what is refused before there is one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from search import subjects
from torch import nn

from fxprune.cli.search.parts import keep_weights
from fxprune.errors import InputError
from fxprune.search import Trial, meters
from fxprune.search.network import Subject, rebuild, removable_layers
from fxprune.search.pruning import Choices, PruneAndTrain
from fxprune.search.search import _identity
from fxprune.search.training import DataTraining
from fxprune.training import Recipe

IMAGES = torch.randn(2, 1, subjects.SIDE, subjects.SIDE)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"layer_importance": "l3"}, "no importance 'l3' of layers"),
        ({"layer_importance": "cka"}, "taken from data"),
        ({"importance": "l3"}, "no importance 'l3'"),
        ({"importance": "taylor"}, "taken from data"),
        ({"allocation": "fair"}, "no allocation 'fair'"),
        ({"allocation": "latency"}, "single plan"),
    ],
)
def test_choices_that_no_trial_could_make_are_refused_at_once(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Choices(**values)


def test_a_builder_that_returns_one_module_has_it_left_alone() -> None:
    model = subjects.build()
    before = model[0].weight.detach().clone()
    network = rebuild(Subject(lambda: model, IMAGES), (), subjects.SIDE)
    with torch.no_grad():
        next(network.traced.module.parameters()).zero_()
    assert torch.equal(model[0].weight, before)


@pytest.mark.parametrize("level", ["layer", "block"])
def test_as_many_layers_go_as_were_asked_for(level: Any) -> None:
    network = rebuild(Subject(Blocks(), IMAGES), (), subjects.SIDE)
    here = removable_layers(network.traced, level)
    assert here >= 3
    for count in range(1, here):
        assert len(Choices(level=level).layers(network, count).layers) == count


class Blocks(nn.Module):
    """Five blocks of two residual branches each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(8, 3)
        self.parts = nn.ModuleList(nn.ModuleList([nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1)]) for _ in range(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stem(x)
        for first, second in self.parts:  # type: ignore[misc]
            y = y + first(y).relu()
            y = y + second(y).relu()
        return self.head(y.mean((2, 3)))  # type: ignore[no-any-return]


def test_what_the_state_does_not_show_makes_another_search() -> None:
    def identity(stride: int = 1, drop: float = 0.1, size: int = 12) -> str:
        torch.manual_seed(0)
        layers = [
            nn.Conv2d(1, 4, 3, stride, 1),
            nn.Dropout(drop),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 2),
        ]
        subject = Subject(nn.Sequential(*layers), torch.zeros(2, 1, 12, size))
        return _identity(rebuild(subject, (), 12))

    assert identity() == identity()
    assert len({identity(), identity(stride=2), identity(drop=0.5), identity(size=24)}) == 4
    half = Subject(subjects.build().bfloat16(), IMAGES.bfloat16())
    assert len(_identity(rebuild(half, (), subjects.SIDE))) == 64


def test_the_seed_of_a_trial_reaches_its_training(tmp_path: Path) -> None:
    training = DataTraining("digits", Recipe(batch=16), fraction=0.03)
    subject = Subject("search.subjects:build_ten", torch.randn(2, 1, 8, 8))
    found = []
    for name, seed in (("a", 0), ("b", 1), ("c", 0)):
        folder = tmp_path / name
        folder.mkdir()
        trial = Trial(epochs=1, seed=seed, options={"side": 8})
        PruneAndTrain(subject, training)(trial, folder)
        found.append((folder / "weights.safetensors").read_bytes())
    assert found[0] == found[2]
    assert found[0] != found[1]


def test_what_a_trial_writes_can_be_read_by_workers_of_others(tmp_path: Path) -> None:
    rebuild(Subject(subjects.build(), IMAGES), (), subjects.SIDE).save(tmp_path)
    (tmp_path / "other").touch()
    assert {path.stat().st_mode for path in tmp_path.iterdir()} == {(tmp_path / "other").stat().st_mode}
    assert keep_weights(subjects.build(), None, tmp_path).stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_median_within_the_budget_and_an_interval_beyond_it_is_narrowed_a_little(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is exported or timed: the latencies are made up, because the case is one of luck."""
    asked: list[float] = []
    ratios = iter([(0.495, 0.505), (0.48, 0.485)])

    class Network:
        traced = None

        def without(self, plan: object) -> Network:
            return self

    meter = meters.Milliseconds.__new__(meters.Milliseconds)

    def latency(traced: object) -> SimpleNamespace:
        ratio, high = next(ratios)
        return SimpleNamespace(ratio=ratio, ratio_low=2 * ratio - high, ratio_high=high)

    monkeypatch.setattr(meter, "latency", latency, raising=False)
    monkeypatch.setattr(meter, "_plan", lambda network, target, choices: asked.append(target), raising=False)
    found = meter.narrowed(Network(), 0.5, Choices())  # type: ignore[arg-type]
    assert isinstance(found, Network)
    assert asked == [pytest.approx(0.98)]


def test_choices_are_plain_data() -> None:
    assert dataclasses.asdict(Choices())["importance"] == "l2"
