"""The network of the demonstration: a small residual one for 8 x 8 images of digits."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DigitNet(nn.Module):
    """A convolution, two residual blocks at each of two resolutions, and a linear layer."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = _convolution(1, width)
        self.blocks = nn.Sequential(
            _Residual(width, width), _Residual(width, width),
            _Residual(width, 2 * width, stride=2), _Residual(2 * width, 2 * width),
        )  # fmt: skip
        self.head = nn.Linear(2 * width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (batch, 10) of images (batch, 1, 8, 8)."""
        logits: Tensor = self.head(self.blocks(torch.relu(self.stem(images))).mean((2, 3)))
        return logits


class _Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.first, self.second = _convolution(inputs, outputs, stride=stride), _convolution(outputs, outputs)
        self.shortcut = nn.Identity() if inputs == outputs else _convolution(inputs, outputs, kernel=1, stride=stride)

    def forward(self, images: Tensor) -> Tensor:
        inner = self.second(torch.relu(self.first(images)))
        return torch.relu(inner + self.shortcut(images))


def _convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs))
