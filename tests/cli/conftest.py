"""A tiny model in a file of its own, as a user would have it, and the ways to call the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

import fxprune
from fxprune.cli.main import app

MODEL = """
import torch
from torch import nn

def build(width=16):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, 32, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5),
    )

def no_model():
    return 3
"""

Call = Callable[..., tuple[int, str]]
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny_model.py"
    path.write_text(MODEL)
    return path


@pytest.fixture
def call() -> Call:
    """Run a command in this process; gives its exit code and all that it said."""

    def run(*words: object) -> tuple[int, str]:
        result = CliRunner().invoke(app, [str(word) for word in words])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output

    return run


@pytest.fixture
def start() -> Start:
    """Start a command in a process of its own, as a shell does: alone in its process group."""

    def run(*words: object, path: tuple[Path, ...] = ()) -> subprocess.Popen[str]:
        folders = [*path, Path(fxprune.__file__).parents[1]]
        return subprocess.Popen(
            [sys.executable, "-c", "from fxprune.cli.main import main; main()", *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))},
        )

    return run
