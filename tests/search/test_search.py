"""The whole search, on a real network that is really trained."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from made_up_times import made_up
from search import subjects
from torch import nn

from fxprune import export_onnx
from fxprune.deploy.parity import check_parity
from fxprune.depth import LayerPlan
from fxprune.errors import BudgetError, InputError, TrainingError
from fxprune.planning import Plan, count
from fxprune.search import Event, Processes, Trial
from fxprune.search.candidates import Built
from fxprune.search.fitting import Request
from fxprune.search.meters import Milliseconds
from fxprune.search.network import Subject, load_network
from fxprune.search.pruning import Choices
from fxprune.search.search import CHOSEN, SearchResult, _reached, search

CHOICES = Choices(round_to=1)
ASKED = Request(macs=0.45, epochs=(1, 2), points=2, choices=CHOICES, alternatives=True)
SUBJECT = Subject("search.subjects:build", torch.randn(2, 1, subjects.SIDE, subjects.SIDE))
DENSE = count(SUBJECT.at(subjects.SIDE)).macs


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[SearchResult, Path]:
    folder = tmp_path_factory.mktemp("search")
    return search(SUBJECT, subjects.train_and_evaluate, ASKED, folder=folder), folder


def test_the_chosen_network_meets_the_budget_and_is_what_its_point_says(found: tuple[SearchResult, Path]) -> None:
    result, _ = found
    macs = count(result.network.traced).macs
    assert macs <= 0.45 * DENSE
    assert result.chosen.cost == pytest.approx(macs / DENSE)
    assert result.chosen.result is not None
    assert result.chosen.point.accuracy == result.chosen.result.accuracy
    assert result.network.side == round(result.chosen.point.resolution * subjects.SIDE)


def test_every_dimension_has_its_points_and_costs_are_counted(found: tuple[SearchResult, Path]) -> None:
    result, _ = found
    shares = [each.point.shares for each in result.measured]
    assert shares[0] == (1.0, 1.0, 1.0)
    assert len(shares) == 1 + 3 * 2
    for dimension in range(3):
        alone = [s for s in shares[1:] if all(v == 1.0 for d, v in enumerate(s) if d != dimension)]
        assert len(alone) == 2
        assert alone[0][dimension] > alone[1][dimension]
    assert all(each.cost == each.result.macs / DENSE for each in result.measured if each.result.macs)
    assert result.fitted.law.error < 0.3


def test_what_it_is_compared_with_meets_the_same_budget(found: tuple[SearchResult, Path]) -> None:
    result, _ = found
    assert set(result.alternatives) == {"depth only", "width only", "resolution only", "uniform"}
    built = {name: each for name, each in result.alternatives.items() if isinstance(each, Built)}
    assert {"width only", "resolution only"} <= set(built)
    assert all(each.cost <= 0.45 and 0 <= each.point.accuracy <= 1 for each in built.values())
    assert built["width only"].point.depth == built["width only"].point.resolution == 1.0
    assert built["resolution only"].network.steps == ()


def test_the_network_is_rebuilt_with_its_weights_from_its_folder(found: tuple[SearchResult, Path]) -> None:
    result, folder = found
    trial = result.chosen.trial
    assert trial is not None
    (place,) = (folder / "trials").glob(f"*-{trial.key[:16]}")
    again = load_network(SUBJECT, place)
    images = torch.randn(2, 1, again.side or 1, again.side or 1)
    torch.testing.assert_close(again.traced.run((images,)), result.network.traced.run((images,)), rtol=0, atol=0)
    accuracy = subjects.train_and_evaluate(again.traced.module, again.side, 0)
    assert accuracy == result.chosen.point.accuracy


def test_it_exports(found: tuple[SearchResult, Path], tmp_path: Path) -> None:
    result, _ = found
    export_onnx(result.network.traced, tmp_path / "model.onnx")
    assert check_parity(result.network.traced, tmp_path / "model.onnx").max_relative_error < 1e-4


def test_points_along_a_dimension_start_from_the_one_before(found: tuple[SearchResult, Path]) -> None:
    result, folder = found
    trials = {each.trial.key: each for each in result.measured}
    deepest = min(result.measured, key=lambda each: each.point.depth)
    parent = trials[deepest.trial.parent or ""]
    assert parent.point.depth > deepest.point.depth
    steps = load_network(SUBJECT, next((folder / "trials").glob(f"*-{deepest.trial.key[:16]}"))).steps
    assert [type(step) for step in steps] == [LayerPlan, LayerPlan]
    narrowest = min(result.measured, key=lambda each: each.point.width)
    steps = load_network(SUBJECT, next((folder / "trials").glob(f"*-{narrowest.trial.key[:16]}"))).steps
    assert [type(step) for step in steps] == [Plan, Plan]


def test_asked_again_it_trains_nothing_and_finds_the_same(found: tuple[SearchResult, Path]) -> None:
    result, folder = found
    news: list[Event] = []
    again = search(
        SUBJECT, subjects.knows_nothing, ASKED, folder=folder, on_update=lambda event, trial: news.append(event)
    )
    assert {event.kind for event in news} == {"finished"}
    assert again.fitted.optimum == result.fitted.optimum
    assert again.chosen.point == result.chosen.point
    other = dataclasses.replace(ASKED, choices=Choices(round_to=1, importance="l1"))
    with pytest.raises(InputError, match="another search"):
        search(SUBJECT, subjects.train_and_evaluate, other, folder=folder)


def test_on_two_processes_it_finds_the_same(found: tuple[SearchResult, Path], tmp_path: Path) -> None:
    result, _ = found
    small = dataclasses.replace(ASKED, points=1, alternatives=False, dimensions=("width", "resolution"))
    alone = search(SUBJECT, subjects.train_and_evaluate, small, folder=tmp_path / "alone")
    together = search(
        SUBJECT, subjects.train_and_evaluate, small, folder=tmp_path / "together", executor=Processes(2, threads=1)
    )
    assert [each.result.outcome for each in together.measured] == [each.result.outcome for each in alone.measured]
    assert together.chosen.point == alone.chosen.point
    assert result.asked == ASKED


def test_the_callers_model_stays_as_it_is(tmp_path: Path) -> None:
    model = subjects.build()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    asked = Request(macs=0.6, epochs=(1, 1), points=1, dimensions=("width",), choices=CHOICES)
    result = search(dataclasses.replace(SUBJECT, build=model), subjects.train_and_evaluate, asked, folder=tmp_path)
    assert result.chosen.point.width < 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_dimension_whose_trials_fail_is_left_out_and_said(tmp_path: Path) -> None:
    asked = Request(macs=0.6, epochs=(1, 1), points=1, dimensions=("width", "resolution"), choices=CHOICES)
    result = search(SUBJECT, subjects.fails_when_small, asked, folder=tmp_path)
    assert next(each.error for each in result.failed).endswith("these images are too small for me")
    assert result.chosen.point.resolution == 1.0
    assert any("too small" in note for note in result.notes)


@pytest.mark.parametrize(
    ("train", "message"),
    [(subjects.knows_nothing, "number from 0 to 1"), (subjects.trains_a_copy, "in place")],
)
def test_no_accuracy_or_other_weights_end_it_with_the_reason(train: object, message: str, tmp_path: Path) -> None:
    asked = Request(macs=0.6, epochs=(1, 1), points=1, dimensions=("width",), choices=CHOICES)
    with pytest.raises(TrainingError, match=message):
        search(SUBJECT, train, asked, folder=tmp_path)  # type: ignore[arg-type]


def never(model: nn.Module, resolution: int | None, epochs: int) -> float:
    """Train nothing."""
    raise AssertionError("what is certain before training is said before training")


@pytest.mark.parametrize("dimensions", [("depth",), ("depth", "resolution")])
def test_a_budget_below_what_is_reachable_says_what_is(dimensions: tuple[str, ...], tmp_path: Path) -> None:
    """What the message says is counted: asking for it gives a network that has it, and nothing smaller is refused."""
    asked = Request(macs=0.004, epochs=(0, 0), points=1, dimensions=dimensions, choices=CHOICES)
    with pytest.raises(BudgetError, match=r"macs, counted\. Ask for at least") as caught:
        search(SUBJECT, never, asked, folder=tmp_path)
    said = re.search(r"has (\S+) of the macs.* at least ([0-9.]*[0-9])", str(caught.value))
    assert said is not None
    assert float(said[1]) <= float(said[2])
    enough = dataclasses.replace(asked, macs=float(said[2]), explore=0.004)
    result = search(SUBJECT, subjects.train_and_evaluate, enough, folder=tmp_path)
    assert count(result.network.traced).macs <= float(said[2]) * DENSE
    assert result.chosen.cost == pytest.approx(float(said[1]), rel=0.1)


def test_a_latency_that_cannot_be_reached_is_measured_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[object] = []

    def share(_: Milliseconds, traced: object) -> float:
        measured.append(traced)
        return 0.4

    monkeypatch.setattr(Milliseconds, "share", share)
    asked = Request(latency=0.3, epochs=(0, 0), points=1, dimensions=("resolution",), choices=CHOICES)
    for _ in range(2):
        with pytest.raises(BudgetError, match=r"has 0\.4 of the latency, measured\. Ask for at least 0\.42"):
            search(SUBJECT, never, asked, folder=tmp_path)
    assert len(measured) == 1  # a search that goes on does not measure it again


@pytest.mark.parametrize("dimensions", [("depth",), ("width",), ("resolution",), ("depth", "width", "resolution")])
def test_a_model_with_nothing_to_remove_is_refused(dimensions: tuple[str, ...], tmp_path: Path) -> None:
    subject = Subject(nn.Sequential(nn.Flatten(), nn.Linear(144, 4)), torch.randn(2, 1, 12, 12))
    asked = Request(macs=0.5, epochs=(0, 0), points=1, dimensions=dimensions)
    with pytest.raises(InputError, match="nothing to search over") as caught:
        search(subject, never, asked, folder=tmp_path)
    assert all(f"{dimension} is left out: " in str(caught.value) for dimension in dimensions)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "one budget"),
        ({"macs": 0.5, "latency": 0.5}, "one budget"),
        ({"macs": 1.5}, "outside"),
        ({"macs": 0.5, "epochs": (1,)}, "epochs"),
        ({"macs": 0.5, "epochs": (1, -1)}, "epochs"),
    ],
)
def test_what_cannot_be_asked_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Request(**values)  # type: ignore[arg-type]


def test_unknown_dimensions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="got height"):
        search(SUBJECT, subjects.train_and_evaluate, Request(macs=0.5, dimensions=("height",)), folder=tmp_path)


def test_candidates_lie_between_points_that_have_accuracies(found: tuple[SearchResult, Path]) -> None:
    result, _ = found
    wide = [each for each in result.measured if each.point.resolution == 1.0 and each.trial.depth > 0.3]
    space = _reached(result.space, wide)
    assert space.resolutions == ()
    assert space.widths == result.space.widths
    assert 0 < len(space.removed) < len(result.space.removed)
    assert _reached(result.space, result.measured) == result.space


def test_measured_latency_is_a_budget_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Request(latency=0.8, epochs=(0, 0), points=1, dimensions=("width", "resolution"), choices=CHOICES)
    asked = dataclasses.replace(asked, measuring=dataclasses.replace(asked.measuring, seconds=2.0))
    with made_up():  # the layers of so small a net may seem to cost nothing beside other work on the machine
        result = search(SUBJECT, subjects.train_and_evaluate, asked, folder=tmp_path)
    assert result.chosen.cost <= 0.8
    assert CHOSEN not in result.alternatives
    assert all(each.cost > 0 for each in result.measured)

    def never(*_: object) -> None:
        raise AssertionError("a search that goes on does not measure what it has chosen by")

    monkeypatch.setattr(Milliseconds, "latency", never)
    again = search(SUBJECT, subjects.knows_nothing, asked, folder=tmp_path)
    assert [each.cost for each in again.measured] == [each.cost for each in result.measured]
    assert again.fitted.optimum == result.fitted.optimum
    assert again.chosen.point == result.chosen.point
    assert again.chosen.cost == result.chosen.cost
    assert set(again.alternatives) == set(result.alternatives)


def test_names_of_trials_say_what_they_are() -> None:
    assert Trial(0.5, 0.75, 1.0).name.startswith("d0.5-w0.75-r1")
