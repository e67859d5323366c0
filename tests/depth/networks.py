"""Small networks with what depth is about: residual branches, plain sequences, repeating blocks, and near misses."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def ready(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give everything that would hide a mistake random values: zero weights, unit norms, tiny layer scales."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
            elif "layer_scale" in name:
                parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
        for layer in model.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.weight.copy_(torch.rand(layer.num_features, generator=generator) + 0.5)
                layer.running_mean.copy_(torch.randn(layer.num_features, generator=generator) * 0.1)
                layer.running_var.copy_(torch.rand(layer.num_features, generator=generator) + 0.5)
    return model.eval()


class Residual(nn.Module):
    """``act(x + scale * f(x))``, with whatever ``f``."""

    def __init__(self, branch: nn.Module, after: nn.Module | None = None, *, swapped: bool = False) -> None:
        super().__init__()
        self.branch = branch
        self.after = after or nn.Identity()
        self.swapped = swapped

    def forward(self, x: Tensor) -> Tensor:
        f = self.branch(x)
        return self.after(f + x if self.swapped else x + f)


def conv(inputs: int, outputs: int, kernel: int = 3, **options: int) -> nn.Sequential:
    """Convolution, batch norm, ReLU; the size stays unless it has a stride."""
    layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())


class Tail(nn.Module):
    """A head for images."""

    def __init__(self, channels: int, classes: int = 3) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))


class Parallel(nn.Module):
    """``x + attention(norm(x)) + mlp(norm(x))``, as in GPT-J; written in each of three orders."""

    def __init__(self, width: int, order: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.one, self.other = (
            nn.Linear(width, width),
            nn.Sequential(nn.Linear(width, 8), nn.GELU(), nn.Linear(8, width)),
        )
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        a, b = self.one(normed), self.other(normed)
        return (a + b + x, x + a + b, a + (x + b))[self.order]


class CrossAttention(nn.Module):
    """A decoder layer: what it attends to is computed outside, and read by every layer."""

    def __init__(self, width: int = 8, layers: int = 2) -> None:
        super().__init__()
        self.encoder = nn.Linear(width, width)
        self.attention = nn.ModuleList(nn.MultiheadAttention(width, 2, batch_first=True) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        context = self.encoder(context)
        for norm, attention in zip(self.norms, self.attention, strict=True):
            x = x + attention(norm(x), context, context, need_weights=False)[0]
        return self.head(x)


class Unet(nn.Module):
    """Two levels; values of the way down are read again on the way up."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.keep = conv(3, 8), conv(8, 8)
        self.down, self.deep = conv(8, 8, stride=2), conv(8, 8)
        self.up = nn.Upsample(scale_factor=2)
        self.join, self.last = conv(16, 8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.keep(self.one(x))
        return self.last(self.join(torch.cat([skip, self.up(self.deep(self.down(skip)))], 1)))


class Shared(nn.Module):
    """One layer called three times, as in ALBERT."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layer, self.head = (
            nn.Linear(6, 8),
            Residual(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8))),
            nn.Linear(8, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(3):
            x = self.layer(x)
        return self.head(x)
