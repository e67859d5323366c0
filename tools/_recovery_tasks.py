"""What the trials of recovery are made on: two tasks, two kinds of networks, and how each is trained, by scale."""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from fxprune.training import load_data
from fxprune.training.data import labels_of

RATIOS = (0.5, 0.7, 0.9, 0.95)  # shares of filters that are removed
WIDTHS_AT, REASONS_AT = 0.95, 0.9  # the ratios at which these ablations are made
SEEDS = (0, 1, 2, 3, 4)
TASKS = ("digits", "shapes")
NETS = ("resnet", "mobilenet")


@dataclass(frozen=True)
class Settings:
    """One task at one scale; every number that the outcome of a trial depends on, besides its variant and seed.

    Attributes:
        width: Channels of the first stage; the later ones have two and four times as many.
        train: Images to train on, drawn anew for each seed.
        test: Images to test on; digits: all others.
        difficulty: Of the shapes.
        dense_epochs: Of the network before it is pruned.
        dense_lr: The highest rate of that.
        epochs: Of every way to recover.
        lr: The highest rate of fine-tuning.
        gamma: Weight of the similarities.
        batch: Images per step.
        weight_decay: On all parameters.
        stem_stride: Of the first convolution; 2 makes all later ones four times as cheap.
    """

    width: int
    train: int
    test: int
    difficulty: float
    dense_epochs: int
    dense_lr: float
    epochs: int
    lr: float
    gamma: float = 100.0
    batch: int = 32
    weight_decay: float = 5e-4
    stem_stride: int = 1

    @property
    def digest(self) -> str:
        """A short name of these settings; trials of others are neither mixed with them nor taken for done.

        What is at its default is left out, so that a new setting leaves older trials valid.
        """
        usual = {field.name: field.default for field in fields(self)}
        chosen = {name: value for name, value in asdict(self).items() if value != usual[name]}
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:8]


SCALES: dict[str, dict[str, Settings]] = {
    "small": {  # for one core of a shared machine
        "digits": Settings(20, 250, 0, 0.0, 40, 0.1, 30, 0.05),
        "shapes": Settings(12, 2000, 2000, 0.35, 15, 0.1, 5, 0.05, stem_stride=2),
    },
    "full": {  # for a GPU, or for a night
        "digits": Settings(32, 250, 0, 0.0, 100, 0.1, 100, 0.05, batch=64),
        "shapes": Settings(20, 10000, 5000, 0.5, 60, 0.1, 40, 0.05, batch=128),
    },
    "test": {  # for the tests of this tool
        "digits": Settings(8, 60, 0, 0.0, 1, 0.05, 1, 0.05),
        "shapes": Settings(8, 60, 40, 0.0, 1, 0.05, 1, 0.05),
    },
}


class Tensors(Dataset[tuple[Tensor, int]]):
    """Images in memory that can be taken by the batch."""

    def __init__(self, images: Tensor, labels: np.ndarray[Any, Any]) -> None:
        self.images, self.targets = images, [int(label) for label in labels]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], self.targets[index]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, int]]:
        return [self[index] for index in indices]


@functools.lru_cache(maxsize=8)
def data_for(task: str, settings: Settings, seed: int) -> tuple[Tensors, Tensors]:
    """Return training and test images. Each seed has training images of its own, as many of every class as can be."""
    if task == "shapes":
        arguments = {"train": settings.train, "validation": 1, "test": settings.test}
        found = load_data(task, arguments={**arguments, "difficulty": settings.difficulty, "seed": seed})
        train, test = _all(found.train), _all(found.test)
        return Tensors(*train), Tensors(*test)
    parts = load_data(task)
    images, labels = (
        np.concatenate(part) for part in zip(*map(_all, (parts.train, parts.validation, parts.test)), strict=True)
    )
    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)])
    place = np.concatenate([np.arange((labels == label).sum()) for label in np.unique(labels)])
    order = order[np.argsort(place, kind="stable")]  # classes take turns
    first, rest = np.sort(order[: settings.train]), np.sort(order[settings.train :])
    return tuple(Tensors(torch.from_numpy(images[index]), labels[index]) for index in (first, rest))  # type: ignore[return-value]


def _all(images: Any) -> tuple[Any, Any]:
    stacked = torch.stack([images[index][0] for index in range(len(images))])
    return (stacked, labels_of(images)) if stacked.shape[1] == 3 else (stacked.numpy(), labels_of(images))


# ---------------------------------------------------------------- networks


def build(net: str, task: str, settings: Settings, seed: int) -> nn.Module:
    """Return a network with random weights."""
    torch.manual_seed(seed)
    channels = 1 if task == "digits" else 3
    return (_ResNet if net == "resnet" else _MobileNet)(channels, settings)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs)
    )


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = _conv(inputs, outputs, 3, stride), _conv(outputs, outputs, 3)
        self.shortcut = nn.Identity() if stride == 1 and inputs == outputs else _conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.relu(self.first(x))
        return torch.relu(self.second(inner) + self.shortcut(x))


class _ResNet(nn.Module):
    """ResNet-20: three stages of three blocks."""

    def __init__(self, channels: int, settings: Settings) -> None:
        super().__init__()
        width = settings.width
        self.stem = _conv(channels, width, 3, settings.stem_stride)
        blocks, before = [], width
        for stage in range(3):
            for number in range(3):
                after = width * 2**stage
                blocks.append(_Block(before, after, 2 if stage and not number else 1))
                before = after
        self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(before, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.blocks(torch.relu(self.stem(x))).mean((2, 3)))
        return logits


class _MobileNet(nn.Module):
    """Depthwise and 1x1 convolutions in turns, as in the first MobileNet, with eight pairs."""

    def __init__(self, channels: int, settings: Settings) -> None:
        super().__init__()
        width = settings.width
        layers: list[nn.Module] = [_conv(channels, width, 3, settings.stem_stride), nn.ReLU()]
        before = width
        for factor, stride in ((1, 1), (2, 2), (2, 1), (2, 1), (4, 2), (4, 1), (4, 1), (4, 1)):
            layers += [_conv(before, before, 3, stride, before), nn.ReLU()]
            layers += [_conv(before, factor * width, 1), nn.ReLU()]
            before = factor * width
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(before, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layers(x).mean((2, 3)))
        return logits
