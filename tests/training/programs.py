"""A training as a program of its own: ``python programs.py FOLDER JSON``, to be killed or started several times."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fxprune.capture import trace
from fxprune.training import TPP, Growth, Hyperspherical, Objective, Recipe, finetune


class Net(nn.Module):
    """Convolution, batch norm and, if asked for, dropout."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
        )
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(8, 5))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.body(x).mean((2, 3)))
        return result


class Jitter(TensorDataset):
    """Images with random noise each time they are taken."""

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        image, label = super().__getitem__(index)
        return image + 0.1 * torch.randn_like(image), label


class Slow(Objective):
    """Takes its time for a number of steps, and all of it for the next: it is there to be killed in the middle."""

    def __init__(self, seconds: float, steps: int) -> None:
        self.seconds, self.steps = seconds, steps

    def after_step(self) -> None:
        self.steps -= 1
        time.sleep(self.seconds if self.steps else 600)


def train(folder: str, options: dict[str, Any]) -> None:
    """Train as the options say; they are used up."""
    torch.set_num_threads(1)
    torch.manual_seed(1)
    model = Net(options.pop("dropout", 0.0))
    if options.pop("unused", False):
        model.rests = nn.Linear(3, 3)  # as the auxiliary heads of models are, in eval mode
    labels = torch.arange(44) % 5
    data = Jitter(labels[:, None, None, None] + torch.randn(44, 3, 8, 8), labels)
    slow, steps = options.pop("slow", 0.0), options.pop("steps", -1)
    loader = DataLoader(data, batch_size=options.pop("batch"), shuffle=True)
    ratio = options.pop("tpp", 0.0)
    amount = options.pop("sphere", 0.0)
    recipe = Recipe(**options)
    if amount:
        traced = trace(model.eval(), torch.randn(2, 3, 8, 8))
        make = [lambda model: Hyperspherical.begin(traced.with_module(model), amount, strength=5)]
        finetune(traced, loader, data, recipe, objectives=make, out=folder, cpu=True)
        return
    if ratio:
        traced, growth = trace(model.eval(), torch.randn(2, 3, 8, 8)), Growth(1, 0.05, 1.0, 10, 2)
        make = [lambda model: TPP.begin(traced.with_module(model), {"body.*": ratio}, schedule=growth)]
        finetune(traced, loader, data, recipe, objectives=make, out=folder, cpu=True)
        return
    finetune(model, loader, data, recipe, objectives=[lambda model: Slow(slow, steps)], out=folder, cpu=True)


if __name__ == "__main__":
    train(sys.argv[1], json.loads(sys.argv[2]))
