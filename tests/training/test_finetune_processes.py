"""Trainings in processes of their own: killed without notice, and several at once."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fxprune.errors import InputError
from fxprune.training.checkpoint import load_checkpoint
from fxprune.training.trainer import CHECKPOINT, METRICS, WEIGHTS
from tests.training import programs

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).parent / "programs.py"
SECONDS = 500  # until a process that hangs is ended

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="signals and gloo over loopback are a matter of POSIX here"),
    pytest.mark.timeout(1800),
]


def _command(folder: Path, options: dict[str, Any], processes: int = 1) -> list[str]:
    launch = []
    if processes > 1:
        launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
        launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        launch += ["--num_cpu_threads_per_process", "1", "--main_process_port", "0"]  # any
    return [sys.executable, *launch, str(PROGRAM), str(folder), json.dumps(options)]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def _run(folder: Path, options: dict[str, Any], processes: int = 1) -> dict[str, torch.Tensor]:
    command = _command(folder, options, processes)
    done = subprocess.run(
        command, env=_environment(), capture_output=True, text=True, timeout=SECONDS, check=False, cwd=folder.parent
    )
    assert done.returncode == 0, done.stderr
    return load_file(folder / WEIGHTS)


def _here(folder: Path, options: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Run the same in this process, for what it is beside several."""
    programs.train(str(folder), dict(options))
    return load_file(folder / WEIGHTS)


def _kill_after(folder: Path, options: dict[str, Any], seconds: float) -> int:
    """Start a training, kill it some time after it has saved once, and return the step of the last checkpoint."""
    before = _saved(folder)
    with subprocess.Popen(_command(folder, options), env=_environment(), stderr=subprocess.DEVNULL) as process:
        start = time.monotonic()
        while _saved(folder) == before and process.poll() is None and time.monotonic() - start < SECONDS:
            time.sleep(0.005)
        time.sleep(seconds)
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it ended by itself, before it was killed"
    return int(load_checkpoint(folder / CHECKPOINT)["progress"]["step"])


def _saved(folder: Path) -> int:
    """Return when the checkpoint was written, 0 where there is none."""
    path = folder / CHECKPOINT
    return path.stat().st_mtime_ns if path.exists() else 0


def test_killed_at_random_steps_it_ends_bit_for_bit_where_the_other_does(tmp_path: Path) -> None:
    options = {"epochs": 4, "batch": 8, "lr": 0.05, "dropout": 0.2, "ema": 0.9, "save_every": 1}
    whole = _run(tmp_path / "whole", options)
    steps = []
    draw = random.Random(0)
    for seconds in (draw.uniform(0.0, 0.3), draw.uniform(0.2, 0.5)):
        steps.append(_kill_after(tmp_path / "cut", {**options, "slow": 0.05, "steps": 11}, seconds))
    assert 0 < steps[0] < steps[1] < 24
    cut = _run(tmp_path / "cut", options)
    assert list(whole) == list(cut)
    assert all(torch.equal(whole[name], cut[name]) for name in whole), steps
    rows = [
        [json.loads(line) for line in (tmp_path / name / METRICS).read_text().splitlines()] for name in ("whole", "cut")
    ]
    assert [row["train_loss"] for row in rows[0]] == [row["train_loss"] for row in rows[1]]


@pytest.mark.parametrize("accumulate", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_two_processes_are_one_with_twice_the_batch(tmp_path: Path, accumulate: int) -> None:
    options = {"epochs": 2, "lr": 0.05, "accumulate": accumulate, "clip": 1.0, "precision": None, "unused": True}
    one = _here(tmp_path / "one", {**options, "batch": 16})
    two = _run(tmp_path / "two", {**options, "batch": 8}, processes=2)
    assert list(one) == list(two)
    for name, value in one.items():
        torch.testing.assert_close(
            two[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
    rows = [
        [json.loads(line) for line in (tmp_path / name / METRICS).read_text().splitlines()] for name in ("one", "two")
    ]
    for ours, theirs in zip(*rows, strict=True):
        assert ours["step"] == theirs["step"]
        assert ours["validation_loss"] == pytest.approx(theirs["validation_loss"], rel=1e-3)
        assert ours["train_accuracy"] == pytest.approx(theirs["train_accuracy"], abs=0.03)
    with pytest.raises(InputError, match="processes was 2 and is 1"):
        _here(tmp_path / "two", {**options, "batch": 8})


def test_pruning_while_training_takes_the_same_steps_in_two_processes(tmp_path: Path) -> None:
    options = {"epochs": 10, "lr": 0.02, "schedule": "constant", "tpp": 0.5, "unused": True}
    one = _here(tmp_path / "one", {**options, "batch": 16})
    two = _run(tmp_path / "two", {**options, "batch": 8}, processes=2)
    gone = {name: [bool((row == 0).all()) for row in one[name]] for name in ("body.0.weight", "body.3.weight")}
    assert [sum(rows) for rows in gone.values()] == [4, 4]
    for name, value in one.items():
        torch.testing.assert_close(
            two[name], value, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_pruning_on_the_fly_takes_the_same_steps_in_two_processes(tmp_path: Path) -> None:
    options = {"epochs": 6, "lr": 0.02, "schedule": "constant", "sphere": 0.5}
    one = _here(tmp_path / "one", {**options, "batch": 16})
    two = _run(tmp_path / "two", {**options, "batch": 8}, processes=2)
    for name, value in one.items():
        torch.testing.assert_close(
            two[name], value, rtol=1e-3, atol=1e-3, msg=lambda text, name=name: f"{name}: {text}"
        )
    filters = one["body.3.weight"].flatten(1)
    torch.testing.assert_close(filters.norm(dim=1), torch.ones(8), rtol=1e-5, atol=1e-5)
