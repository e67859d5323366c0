"""What bench_trials.py lets workers do: a real training of a small network, the same number of steps each time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fxprune.search import Trial


def train(trial: Trial, folder: Path) -> dict[str, Any]:
    """Train on one thread for ``options["steps"]`` steps; a pure function of the trial."""
    torch.set_num_threads(1)
    random = torch.Generator().manual_seed(trial.seed)
    torch.manual_seed(trial.seed)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3, stride=2, padding=1),
        nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4),
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    correct = 0.0
    for _ in range(trial.options["steps"]):
        labels = torch.randint(4, (32,), generator=random)
        images = torch.randn(32, 3, 32, 32, generator=random) + labels[:, None, None, None] / 4
        outputs = model(images)
        optimizer.zero_grad()
        F.cross_entropy(outputs, labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        correct = float((outputs.argmax(1) == labels).float().mean())
    return {"accuracy": correct, "threads": torch.get_num_threads()}


train(Trial(options={"steps": 2}), Path())  # torch loads half of itself at the first step: that is the worker's start
