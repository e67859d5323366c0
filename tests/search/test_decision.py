"""What is measured and decided between trials, and kept."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import torch
from search import subjects

from fxprune.search.candidates import Built
from fxprune.search.decision import LATENCY, file_for, keep, kept, measured_once
from fxprune.search.fitting import Request
from fxprune.search.meters import Measuring
from fxprune.search.network import Subject, rebuild
from fxprune.search.optimum import Choice
from fxprune.search.predictor import Point
from fxprune.search.pruning import Choices

SUBJECT = Subject("search.subjects:build", torch.randn(2, 1, subjects.SIDE, subjects.SIDE))


def test_a_latency_is_measured_once_in_one_way(tmp_path: Path) -> None:
    values = iter([0.7, 0.6, 0.5])
    how = Measuring()
    assert [measured_once(tmp_path, how, lambda: next(values)) for _ in range(2)] == [0.7, 0.7]
    assert measured_once(tmp_path, dataclasses.replace(how, threads=2), lambda: next(values)) == 0.6
    (tmp_path / LATENCY).write_text('{"measuring": ')  # cut short
    assert measured_once(tmp_path, how, lambda: next(values)) == 0.5


def test_what_was_built_is_built_again(tmp_path: Path) -> None:
    choices = Choices(round_to=1)
    network = rebuild(SUBJECT, (), 10)
    network = network.without(choices.layers(network, 1))
    network = network.without(choices.channels(network, macs=0.8))
    shares = (0.8, network.width, 10 / 12)
    built = Built(Choice(*shares, 0.9, 0.5), network, Point(*shares, math.nan), 0.45)
    path = file_for(tmp_path, Request(macs=0.5), [])
    assert kept(path, SUBJECT) is None
    keep(path, {"three dimensions": built, "depth only": "not reachable"})
    found = kept(path, SUBJECT)
    assert found is not None
    assert found["depth only"] == "not reachable"
    again = found["three dimensions"]
    assert isinstance(again, Built)
    assert (again.choice, again.cost, again.point.shares) == (built.choice, built.cost, built.point.shares)
    assert (again.network.side, again.network.width) == (10, network.width)
    shapes = [
        {name: tensor.shape for name, tensor in each.traced.module.state_dict().items()}
        for each in (again.network, network)
    ]
    assert shapes[0] == shapes[1]


def test_a_decision_belongs_to_what_was_asked_and_measured(tmp_path: Path) -> None:
    first = file_for(tmp_path, Request(macs=0.5), [])
    assert file_for(tmp_path, Request(macs=0.5, epochs=(2, 30), alternatives=True), []) == first
    assert file_for(tmp_path, Request(macs=0.4), []) != first
    assert file_for(tmp_path, Request(macs=0.5, choices=Choices(importance="l1")), []) != first
