"""Small captured models and their files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up_times import Clock, made_up
from torch import Tensor, fx, nn

from fxprune.capture.traced import Traced
from fxprune.deploy.onnx import export_onnx


class Convnet(nn.Module):
    """Convolution, batch norm, pool, linear, dropout."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU())
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(self.features(x).mean((2, 3))))


Capture = Callable[..., Traced]


@pytest.fixture
def capture() -> Capture:
    """Capture a module by symbolic tracing, with a dynamic batch of all inputs unless told otherwise."""

    def capture(module: nn.Module, *args: Any, dynamic: bool = True) -> Traced:
        auto = torch.export.Dim.DYNAMIC
        shapes = tuple({0: auto} if isinstance(arg, Tensor) else None for arg in args) if dynamic else None
        return Traced(fx.symbolic_trace(module.eval()), args, dynamic_shapes=shapes, name=type(module).__name__)

    return capture


@pytest.fixture
def convnet(capture: Capture) -> Traced:
    return capture(Convnet(), torch.randn(2, 3, 8, 8))


@pytest.fixture
def clock() -> Iterator[Clock]:
    """Times follow from the work of models alone."""
    with made_up() as clock:
        yield clock


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """ONNX files for latency: ``small`` does about a sixth of the work of ``large``; ``other`` takes another shape."""
    folder = tmp_path_factory.mktemp("files")
    auto = torch.export.Dim.DYNAMIC
    made = {}
    for name, width, size in (("small", 16, 32), ("large", 48, 32), ("other", 16, 24)):
        body = nn.Sequential(nn.Conv2d(3, width, 3), nn.Conv2d(width, width, 3), nn.ReLU(), nn.Conv2d(width, width, 3))
        traced = Traced(fx.symbolic_trace(body.eval()), (torch.randn(2, 3, size, size),), dynamic_shapes=({0: auto},))
        made[name] = export_onnx(traced, folder / f"{name}.onnx").path
    return made
