"""A small residual network and a training of it, at the top of a module so that workers of any kind can import them."""

# Calling a module is Any to a type checker.
# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

import functools

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

SIDE = 12


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1)
        same = stride == 1 and inputs == outputs
        self.skip = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.norm(self.first(x)))) + self.skip(x))


def build() -> nn.Module:
    """Return the network with weights that are always the same."""
    torch.manual_seed(3)
    blocks = [Block(8, 8, 1), Block(8, 8, 1), Block(8, 16, 2), Block(16, 16, 1), Block(16, 16, 1)]
    stem = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))


def build_ten() -> nn.Module:
    """Return a network that tells ten classes apart."""
    torch.manual_seed(4)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


@functools.cache
def images() -> tuple[Tensor, Tensor]:
    """Return bars at four angles with noise, and which angle each has."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(96) % 4
    axis = torch.linspace(-1, 1, SIDE)
    angle = labels[:, None, None] * torch.pi / 4
    distance = (axis[:, None] * angle.cos() + axis[None, :] * angle.sin()).abs()
    return (distance < 0.3).float()[:, None] + 0.3 * torch.randn(96, 1, SIDE, SIDE, generator=generator), labels


def train_and_evaluate(model: nn.Module, resolution: int | None, epochs: int) -> float:
    """Train on the first 64 images, and return the accuracy on the others."""
    assert isinstance(model, fx.GraphModule)
    given, labels = images()
    if resolution is not None:
        given = F.interpolate(given, (resolution, resolution), mode="bilinear", antialias=True)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    model.train()
    for _ in range(4 * epochs):
        for part in torch.randperm(64).reshape(2, 32):
            optimizer.zero_grad()
            F.cross_entropy(model(given[part]), labels[part]).backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        return float((model(given[64:]).argmax(1) == labels[64:]).double().mean())


def fails_when_small(model: nn.Module, resolution: int | None, epochs: int) -> float:
    """Train, but not on small images."""
    if resolution is not None and resolution < SIDE:
        raise RuntimeError("these images are too small for me")
    return train_and_evaluate(model, resolution, epochs)


def knows_nothing(model: nn.Module, resolution: int | None, epochs: int) -> float:
    """Return no number."""
    return float("nan")


def trains_a_copy(model: nn.Module, resolution: int | None, epochs: int) -> float:
    """Put other parameters into the model."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.weight = nn.Parameter(layer.weight.detach().clone())
    return 0.5
