"""Counts against published figures and against torch's own counter."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fxprune.capture import trace
from fxprune.planning.cost import Cost, count, uncounted

torchvision = pytest.importorskip("torchvision")

# (parameters, billions of multiply-accumulates at 224 x 224) as torchvision's model pages give them
PUBLISHED = {
    "resnet18": (11_689_512, 1.81),
    "resnet50": (25_557_032, 4.09),
    "mobilenet_v2": (3_504_872, 0.30),
    "googlenet": (6_624_904, 1.50),
    "vgg16": (138_357_544, 15.47),
    "densenet121": (7_978_856, 2.83),
    "vit_b_16": (86_567_656, 17.56),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_figures(name: str) -> None:
    options = {"init_weights": False} if name == "googlenet" else {}
    traced = trace(torchvision.models.get_model(name, **options).eval(), (torch.randn(1, 3, 224, 224),))
    params, giga_macs = PUBLISHED[name]
    cost = count(traced)
    assert cost.params == params
    assert round(cost.macs / 1e9, 2) == giga_macs
    assert not uncounted(traced)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "swin_t"])
def test_torch_counts_the_same(name: str) -> None:
    traced = trace(torchvision.models.get_model(name).eval(), (torch.randn(2, 3, 64, 64),))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        traced.module(*traced.args)
    assert count(traced).macs * 2 * 2 == counter.get_total_flops()  # two operations per MAC, a batch of two


class Tied(nn.Module):
    """An embedding that is also the output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 4)
        self.head = nn.Linear(4, 11, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.ones(4, dtype=torch.float64))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(ids) * self.scale.float()
        return self.head(hidden)


def test_tied_parameters_count_once_and_buffers_only_as_bytes() -> None:
    traced = trace(Tied(), (torch.zeros(2, 7, dtype=torch.int64),))
    assert count(traced) == Cost(params=44, macs=7 * 44, bytes=4 * 44 + 8 * 4)


class Table(nn.Module):
    """Computes a weight from a buffer in every call, whatever the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.make = nn.Linear(3, 5)
        self.register_buffer("grid", torch.randn(7, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.make(self.grid).T


def test_what_does_not_depend_on_the_input_is_not_divided_by_the_batch() -> None:
    traced = trace(Table(), (torch.randn(2, 5),))
    assert count(traced).macs == 5 * 7 + 7 * 3 * 5


class TrainingHead(nn.Module):
    """Has a head that only training uses."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.aux = nn.Linear(4, 3), nn.Linear(4, 100)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.aux(x) if self.training else self.body(x)


def test_what_the_graph_does_not_use_is_not_counted() -> None:
    cost = count(trace(TrainingHead().eval(), (torch.randn(2, 4),)))
    assert cost == Cost(params=15, macs=12, bytes=60)
