"""Models captured by region: the code around the regions computes what it did, or the result is refused."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.eager import apply_to
from fxprune.eager.outputs import difference, leaves_of
from fxprune.errors import VerifyError

VECTOR = torch.randn(3, 6)


class Around(nn.Module):
    """Decides by values, so that its region has a graph and it has none; then scales what the region returns."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.region = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 6))

    def forward(self, x: Tensor) -> Any:
        y = self.region(x)
        if float(y.detach().sum()) > 1e9:
            return y
        if self.kind == "nothing":
            return {"rows": y[y.amax(1) > 1e9], "count": len(y)}
        if self.kind == "detections":
            return [{"rows": row[row > 0], "places": (row > 0).nonzero()} for row in y]
        if self.kind == "training" and self.training:
            return y, x.new_ones(2, 16) @ self.region[0].weight.new_ones(self.region[0].weight.shape)
        return (
            y
            * {
                "fields": lambda: self.region[0].out_features ** -0.5,
                "shapes": lambda: self.region[2].weight.size(1) ** -0.5,
                "numbers of parameters": lambda: 1 / sum(p.numel() for p in self.parameters()),
            }.get(self.kind, lambda: 1.0)()
        )


def pruned(model: nn.Module) -> fxprune.Traced:
    traced = fxprune.trace(copy.deepcopy(model), VECTOR)
    assert traced.regions is not None
    plan = fxprune.make_plan(traced, macs=0.5, round_to=1)
    assert plan.removed
    return fxprune.cut(traced, plan)


@pytest.mark.parametrize("kind", ["fields", "shapes", "numbers of parameters"])
def test_code_around_regions_that_reads_a_size_of_their_insides_is_refused(kind: str) -> None:
    model = Around(kind).eval()
    before = model(VECTOR)
    with pytest.raises(VerifyError, match=r"code of Around around its regions \(region\) computes something else"):
        apply_to(pruned(model), model)
    torch.testing.assert_close(model(VECTOR), before, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["plain", "detections"])
def test_code_around_regions_that_does_not_is_compared(kind: str) -> None:
    model = Around(kind).eval()
    applied = apply_to(pruned(model), model)
    assert applied.max_relative_error <= 1e-12
    assert applied.dtype == "float64"
    assert model.region[0].out_features < 16


def test_outputs_without_a_number_are_told() -> None:
    model = Around("nothing").eval()
    [note] = apply_to(pruned(model), model).notes
    assert "returned no number on the example" in note
    model = Around("plain").eval()
    assert apply_to(pruned(model), model).notes == []


def test_training_code_around_regions_is_run_too() -> None:
    model = Around("training").eval()
    with pytest.raises(VerifyError, match=r"in training mode Around runs as it was, and not with the new sizes"):
        apply_to(pruned(model), model)
    assert model.region[0].out_features == 16


@dataclass
class Boxes:
    """An output that torch's trees know nothing of."""

    rows: Tensor
    label: str = "box"


def test_outputs_of_any_kind_are_compared() -> None:
    one = [Boxes(torch.tensor([1.0, 100.0])), {"n": 2, "p": 0.5}, torch.tensor([1, 2]), None]
    leaves = list(leaves_of(one))
    assert len(leaves) == 6
    assert difference(leaves, list(leaves_of(copy.deepcopy(one)))) == 0.0
    for change, least in (
        (Boxes(torch.tensor([1.0, 100.1])), 1e-3),
        (Boxes(torch.tensor([1.0])), float("inf")),
        (Boxes(torch.tensor([1.0, float("nan")])), float("inf")),
        (Boxes(torch.tensor([1.0, 100.0]), "other"), float("inf")),
        (torch.tensor([1.0, 100.0]), float("inf")),
    ):
        assert difference(list(leaves_of([change, *one[1:]])), leaves) >= least * 0.99
    assert difference(list(leaves_of([one[0], {"n": 3, "p": 0.5}, *one[2:]])), leaves) == float("inf")
    assert difference(list(leaves_of([one[0], {"n": 2, "p": 0.6}, *one[2:]])), leaves) >= 0.19
    assert difference(list(leaves_of([*one[:2], torch.tensor([1, 3]), None])), leaves) == float("inf")


class Memory:
    """A cache of somebody's: what a forward puts into it is there in the next one."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []


class Remembering(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.region = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 6))

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        memory.seen.append(self.region(x))
        return torch.stack(memory.seen).sum(0)


def test_a_cache_that_is_given_is_the_same_for_every_run() -> None:
    model, memory = Remembering().eval(), Memory()
    memory.seen.append(torch.ones(3, 6))
    traced = fxprune.trace(copy.deepcopy(model), (VECTOR, memory))
    assert traced.regions is not None
    small = fxprune.cut(traced, fxprune.make_plan(traced, macs=0.5, round_to=1))
    assert apply_to(small, model).max_relative_error <= 1e-9
    assert len(memory.seen) == 1
