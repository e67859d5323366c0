"""What ``trace`` leaves as it was: what the code remembers, the inputs, weights that a first call sets up."""

from __future__ import annotations

import functools
import random
from typing import Any

import numpy as np
import pytest
import torch
from capture.detectors import normal
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from fxprune.capture import trace
from fxprune.errors import CaptureError

REMEMBERED: dict[Any, Tensor] = {}


@functools.cache
def positions(size: int) -> Tensor:
    return torch.arange(size).float()


class Remembers(nn.Module):
    """Keeps what it computes for a size in a cache of the process, and decides by a value if asked to."""

    def __init__(self, how: str, decides: bool) -> None:
        super().__init__()
        self.how, self.decides = how, decides
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)
        self.batches = Batches()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.a(x)
        if self.decides and float(y.sum()) > 1e9:
            return y
        size = y.shape[1]
        if self.how == "dictionary":
            if size not in REMEMBERED:
                REMEMBERED[size] = torch.arange(size).float()
            found = REMEMBERED[size]
        else:
            found = positions(size)
        out: Tensor = self.batches(self.b(torch.relu(y + found.reshape(1, -1, 1))))
        return out


class Batches(nn.Module):
    """Remembers something for a number of samples, so that it cannot be left open."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        if ("batch", int(x.shape[0])) not in REMEMBERED:
            REMEMBERED["batch", int(x.shape[0])] = torch.ones(int(x.shape[0]), 1, 1)
        found: Tensor = self.c(x) * REMEMBERED["batch", int(x.shape[0])]
        return found


@pytest.mark.parametrize("decides", [False, True])
@pytest.mark.parametrize("how", ["dictionary", "lru_cache"])
def test_caches_of_the_process_hold_no_fake_tensors(how: str, decides: bool) -> None:
    REMEMBERED.clear()
    positions.cache_clear()
    model = Remembers(how, decides).eval()
    x = normal(1, 5, 4)
    traced = trace(model, x)
    assert (traced.regions is not None) == decides
    assert not isinstance(positions(5), FakeTensor)
    assert REMEMBERED
    assert not any(isinstance(value, FakeTensor) for value in REMEMBERED.values())
    with torch.no_grad():
        found = model(x)
    assert not isinstance(found, FakeTensor)
    assert torch.isfinite(found).all()


class Cache:
    """An object that grows, which torch cannot look into."""

    def __init__(self) -> None:
        self.kept: list[Tensor] = []


class Grows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x: Tensor, cache: Cache) -> Tensor:
        y: Tensor = self.a(x)
        cache.kept.append(y)
        return y if float(y.sum()) > 1e9 else y + len(cache.kept)


def test_inputs_that_hold_state_are_left_as_they_were() -> None:
    cache = Cache()
    traced = trace(Grows(), (normal(2, 4), cache))
    assert traced.regions is not None
    assert cache.kept == []
    assert traced.regions.args[1].kept == []


class FirstCall(nn.Module):
    """Sets a weight up by the data of its first call."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)
        self.scale, self.ready, self.calls = nn.Parameter(torch.ones(8)), False, 0

    def forward(self, x: Tensor) -> Tensor:
        y, self.calls = self.a(x), self.calls + 1
        if not self.ready:
            with torch.no_grad():
                self.scale.copy_(1 / y.std(0))
            self.ready = True
        found: Tensor = self.b(torch.relu(y * self.scale))
        return found


class FirstMemory(nn.Module):
    """Gives a weight other memory in its first call."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.ready = nn.Linear(4, 4), False

    def forward(self, x: Tensor) -> Tensor:
        if not self.ready:
            self.layer.weight.data = self.layer.weight.data / 2
            self.ready = True
        found: Tensor = self.layer(x)
        return found


class EachMemory(nn.Module):
    """Gives a buffer other memory in each call, so that each returns something else."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.shift: Tensor
        self.register_buffer("shift", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        self.shift.data = self.shift.data * 2
        found: Tensor = self.layer(x) + self.shift
        return found


@pytest.mark.parametrize("kind", [FirstMemory, EachMemory])
def test_other_memory_is_put_back_as_well(kind: type[nn.Module]) -> None:
    model, x = kind(), normal(5, 4)
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in model.state_dict().items()}
    traced = trace(model, x)
    for name, tensor in model.state_dict().items():
        assert tensor.data_ptr() == before[name][0]
        assert torch.equal(tensor, before[name][1])
    if kind is FirstMemory:
        assert any("first call writes into layer.weight" in note for note in traced.notes)
    else:
        assert traced.regions is not None


def test_what_a_first_call_sets_up_is_put_back_and_said() -> None:
    model, x = FirstCall(), normal(5, 4)
    traced = trace(model, x)
    assert (model.ready, model.calls) == (False, 0)
    assert torch.equal(model.scale, torch.ones(8))
    assert any("first call writes into scale" in note for note in traced.notes)
    with torch.no_grad():
        model(x)
    assert not any("first call" in note for note in trace(model, x).notes)


@pytest.mark.parametrize("samples", [1, 2])
def test_random_numbers_go_on_where_they_were(samples: int) -> None:
    def drawn() -> tuple[Any, ...]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    def seed() -> None:
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)

    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(), nn.Linear(8, 2))
    seed()
    expected = drawn()
    seed()
    trace(model, torch.ones(samples, 4))  # a second one is made up for a single one
    assert drawn() == expected


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.calls = nn.Linear(4, 2), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        found: Tensor = self.a(x) * self.calls
        return found


def test_a_model_that_counts_its_calls_has_no_graph_as_a_whole() -> None:
    model = Counts()
    with pytest.raises(CaptureError, match=r"Counts .*something else in another call.*a counter or a flag"):
        trace(model, normal(2, 4), regions=False)
    traced = trace(model, normal(2, 4))
    assert traced.regions is not None
    assert list(traced.regions.paths) == ["a"]
    assert model.calls == 0


class AddsToInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x.add_(1)
        found: Tensor = self.a(x)
        return found


class AddsToView(AddsToInput):
    def forward(self, x: Tensor) -> Tensor:
        x[:, :1].mul_(2)
        found: Tensor = self.a(x)
        return found


@pytest.mark.parametrize("kind", [AddsToInput, AddsToView])
def test_writing_into_an_input_is_said(kind: type[nn.Module]) -> None:
    x = normal(2, 4)
    traced = trace(kind(), x)
    assert any("writes into its input x at" in note and "test_untouched.py" in note for note in traced.notes)
    assert torch.equal(x, normal(2, 4))
