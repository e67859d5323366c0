"""A tiny model in a file of its own, as a user would have it, and the ways to call the command line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import fxprune
from fxprune.cli.main import app

pytest.register_assert_rewrite("cli.browser")  # what it found is said where an assertion fails

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


def _heed_interrupts() -> None:
    """Take Ctrl-C as a terminal's child does, also where the tests themselves run in the background and ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def start() -> Start:
    """Start a command in a process of its own, as a shell does: alone in its process group.

    ``path`` are folders to import from, and ``before`` is code that comes before the command.
    """

    def run(*words: object, path: tuple[Path, ...] = (), before: str = "") -> subprocess.Popen[str]:
        folders = [*path, Path(fxprune.__file__).parents[1]]
        return subprocess.Popen(
            [sys.executable, "-c", f"{before}\nfrom fxprune.cli.main import main; main()", *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=_heed_interrupts,
            # As many threads as the tests' own process has: sums in another order are other weights after a training.
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, folders))},
        )

    return run


@pytest.fixture
def at_checkpoint() -> Callable[[int, signal.Signals], str]:
    """Code that comes before a command, by which it gets a signal as soon as it has kept a training so many times.

    The training cannot end before, as it could if somebody watched the folder from outside.
    """

    def code(number: int, kind: signal.Signals) -> str:
        return f"""
import itertools, os
from fxprune.training import trainer
save, calls = trainer.save_checkpoint, itertools.count(1)
def stopping(*given):
    save(*given)
    if next(calls) == {number}:
        os.kill(os.getpid(), {kind.value})
trainer.save_checkpoint = stopping
"""

    return code


@pytest.fixture
def report() -> dict[str, Any]:
    """A report with every part, as ``optimize`` puts it into ``report.json``."""
    ends = {"low": 0.99, "high": 1.01}
    return {
        "schema": 1,
        "ok": True,
        "model": "zoo:net",
        "versions": {"fxprune": "0.1.0", "torch": "2.11.0"},
        "before": {"params": 11_689_512, "macs": 1_814_073_344, "bytes": 46_758_048},
        "after": {"params": 7_773_520, "macs": 905_750_000, "bytes": 31_094_080},
        "groups": {"total": 2, "prunable": 1, "frozen": [{"parameters": ["fc.weight"], "reason": "it is returned"}]},
        "verify": {"max_relative_error": 6.9e-16, "dtype": "float64", "ok": True},
        "onnx": {"path": "model.onnx", "opset": 20, "bytes": 31_070_183, "max_relative_error": 5.2e-7,
                 "batches": [1, 3], "ok": True},
        "latency": {"runtime": "onnxruntime-cpu", "threads": 1, "batch": 1, "clock": "cpu", "dense_ms": 33.22,
                    "pruned_ms": 17.11, "ratio": 0.515, "ratio_low": 0.514, "ratio_high": 0.516, "rounds": 120,
                    "control": {"ratio": 1.0, **ends}, "wall": {"ratio": 0.52, **ends}, "control_holds": True},
        "notes": ["one thing"],
        "widths": [{"name": "conv1", "before": 64, "after": 48}, {"name": "fc", "before": 1000, "after": 1000}],
        "passes": [],
        "plan": {"hash": "0123456789abcdef0123", "importance": "l2", "allocation": "global", "round_to": 16,
                 "budget": {"macs": 0.5}},
        "seconds": {"capture": 0.6, "export": 2.4, "latency": 4.5},
    }  # fmt: skip
