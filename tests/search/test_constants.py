"""Tensors that a network computes with and its state_dict does not hold: the same on every worker, or refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fxprune.errors import InputError
from fxprune.search.fitting import Request
from fxprune.search.network import Network, Subject, load_network, rebuild
from fxprune.search.pruning import Choices
from fxprune.search.saved import FINAL_WEIGHTS, load
from fxprune.search.search import search

SIDE = 12
IMAGES = torch.randn(2, 3, SIDE, SIDE)
CALLS = itertools.count(1)


class Net(nn.Module):
    """Scales and shifts channels by tensors that are in no state_dict, and rows by the size of the image."""

    def __init__(self, seed: int, side: int = SIDE) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.a, self.b, self.out = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 1), nn.Linear(16, 4)
        self.register_buffer("scale", torch.rand(16, 1, 1, generator=generator) + 0.5, persistent=False)
        self.shift = torch.rand(16, 1, 1, generator=generator)
        self.register_buffer("rows", torch.linspace(0, 1, side), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu() * self.scale + self.shift + self.rows[:, None]
        return self.out((self.b(y).relu() * y).mean((2, 3)))


def steady() -> nn.Module:
    return Net(5)


def steady_at(side: int) -> nn.Module:
    return Net(5, side)


def random() -> nn.Module:
    return Net(next(CALLS))


def random_at(side: int) -> nn.Module:
    return Net(next(CALLS), side)


@pytest.fixture
def narrow() -> Network:
    """A network with half of its channels, and with other weights than it was built with."""
    whole = rebuild(Subject(steady_at, IMAGES, by_side=True), (), SIDE)
    small = whole.without(Choices(round_to=1).channels(whole, channels=0.5))
    with torch.no_grad():
        for parameter in small.traced.module.parameters():
            parameter.add_(0.1)
    return small


def test_a_network_comes_back_with_its_constants(narrow: Network, tmp_path: Path) -> None:
    narrow.save(tmp_path)
    constants = load_file(tmp_path / "constants.safetensors")
    assert constants.keys() == {"scale", "shift", "rows"}
    assert len(constants["scale"]) < 16
    assert not constants.keys() & load_file(tmp_path / "weights.safetensors").keys()
    again = load_network(Subject(steady, IMAGES), tmp_path)
    torch.testing.assert_close(again.traced.run((IMAGES,)), narrow.traced.run((IMAGES,)), rtol=0, atol=0)
    narrow.save(tmp_path, FINAL_WEIGHTS)
    final = load(tmp_path, steady, IMAGES)
    torch.testing.assert_close(final.traced.run((IMAGES,)), narrow.traced.run((IMAGES,)), rtol=0, atol=0)


def test_at_another_size_the_constants_are_those_of_that_size(narrow: Network, tmp_path: Path) -> None:
    narrow.save(tmp_path)
    smaller = load_network(Subject(steady_at, IMAGES, by_side=True), tmp_path, 8)
    assert smaller.traced.module.get_buffer("rows").tolist() == pytest.approx(torch.linspace(0, 1, 8).tolist())
    torch.testing.assert_close(smaller.traced.module.get_buffer("scale"), narrow.traced.module.get_buffer("scale"))
    with pytest.raises(InputError, match=r"makes other values of scale, shift than were written to .*constants"):
        load_network(Subject(random_at, IMAGES, by_side=True), tmp_path, 8)


@pytest.mark.parametrize("build", [random, random_at])
def test_a_factory_that_draws_them_anew_is_refused(
    narrow: Network, tmp_path: Path, build: Callable[..., nn.Module]
) -> None:
    subject = Subject(build, IMAGES, by_side=build is random_at)
    narrow.save(tmp_path)
    with pytest.raises(InputError, match=r"makes other values of scale, shift than were written to .*constants"):
        load_network(subject, tmp_path)


def test_a_search_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    def train(model: nn.Module, resolution: int | None, epochs: int) -> float:
        raise AssertionError("it was trained")

    with pytest.raises(InputError, match="makes other values of scale, shift than were made just before"):
        search(Subject(random, IMAGES), train, Request(macs=0.5), folder=tmp_path / "search")


def test_a_constant_that_is_off_in_its_last_bits_is_taken_over(narrow: Network, tmp_path: Path) -> None:
    """Another machine may compute it otherwise."""
    narrow.save(tmp_path)
    path = tmp_path / "constants.safetensors"
    constants = load_file(path)
    save_file({name: tensor * (1 + 2e-7) for name, tensor in constants.items()}, path)
    again = load_network(Subject(steady, IMAGES), tmp_path)
    wanted = constants["scale"] * (1 + 2e-7)
    assert not torch.equal(wanted, constants["scale"])
    assert torch.equal(again.traced.module.get_buffer("scale"), wanted)
    save_file({name: tensor * (1 + 1e-4) for name, tensor in constants.items()}, path)
    with pytest.raises(InputError, match="makes other values of"):
        load_network(Subject(steady, IMAGES), tmp_path)


def test_a_folder_without_the_file_is_refused(narrow: Network, tmp_path: Path) -> None:
    narrow.save(tmp_path)
    (tmp_path / "constants.safetensors").unlink()
    with pytest.raises(InputError, match=r"constants.safetensors is missing, and has to hold .*scale"):
        load_network(Subject(steady, IMAGES), tmp_path)


class Tied(nn.Module):
    """One matrix and one running value under two names each."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.b.weight = self.a.weight
        self.register_buffer("one", torch.zeros(6))
        self.register_buffer("two", self.one)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu() + self.one) * (1 + self.two)


def test_what_is_tied_is_written_once_and_comes_back_tied(tmp_path: Path) -> None:
    given = torch.randn(2, 6)
    network = rebuild(Subject(Tied, given), (), None)
    module = network.traced.module
    with torch.no_grad():
        for tensor in {id(t): t for t in module.state_dict(keep_vars=True).values()}.values():
            tensor.add_(0.5)
    network.save(tmp_path)
    assert load_file(tmp_path / "weights.safetensors").keys() == {"a.weight", "a.bias", "b.bias", "one"}
    assert not (tmp_path / "constants.safetensors").exists()
    again = load_network(Subject(Tied, given), tmp_path)
    torch.testing.assert_close(again.traced.run((given,)), network.traced.run((given,)), rtol=0, atol=0)
