"""What the networks are made of: a stem and a head, heads of attention."""

# Calling a module is Any to a type checker.
# mypy: disable-error-code="no-any-return"
from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def conv(inputs: int, outputs: int, kernel: int = 3, **options: Any) -> nn.Conv2d:
    """Return a convolution that keeps the spatial size."""
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


class Body(nn.Module):
    """Give a network an image stem ``3 -> width`` and a classifier ``tail -> 4`` over the mean of positions."""

    def __init__(self, width: int, tail: int) -> None:
        super().__init__()
        self.stem = conv(3, width)
        self.head = nn.Linear(tail, 4)

    def classify(self, x: Tensor) -> Tensor:
        """Return four logits of an NCHW tensor."""
        return self.head(x.mean((2, 3)))


HEAD = {"head.weight:0": "output"}
ENDS = {"stem.weight:1": "input", **HEAD}


class Heads(nn.Module):
    """Three heads of four on a width of six: projections ``q, k, v``, the output ``proj`` and a classifier."""

    heads, dim = 3, 4

    def __init__(self, kv_heads: int = 3) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, 12), nn.Linear(6, 4 * kv_heads), nn.Linear(6, 4 * kv_heads)
        self.proj, self.head = nn.Linear(12, 7), nn.Linear(7, 4)

    def split(self, x: Tensor, heads: int = 3) -> Tensor:
        """Return ``(batch, heads, tokens, dim)``."""
        return x.view(x.shape[0], x.shape[1], heads, 4).transpose(1, 2)

    def merge(self, x: Tensor) -> Tensor:
        """Return the logits of ``(batch, heads, tokens, dim)``."""
        x = x.transpose(1, 2).reshape(x.shape[0], x.shape[2], 12)
        return self.head(self.proj(x))


QKV = "q.weight:0 k.weight:0 v.weight:0 proj.weight:1 proj.weight:0"
