"""The loop in the README, run as it stands there."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fxprune import passes
from fxprune.capture import trace
from fxprune.pipeline import Pipeline
from tests.training.conftest import Pruned

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()


def _loop() -> str:
    found = re.search(r"### In a training loop of your own\n.*?```python\n(.*?)```", README, re.DOTALL)
    assert found is not None
    return found[1]


def test_four_lines_are_marked() -> None:
    assert re.findall(r"# (\d)", _loop()) == ["1", "2", "3", "4"]
    plain = [line for line in _loop().splitlines() if "objective" in line]
    assert len(plain) == 4


@pytest.mark.parametrize("layers", ["last", "blocks"])
def test_the_loop_trains(pruned: Pruned, layers: str) -> None:
    traced = trace(pruned.student, torch.randn(2, 3, 8, 8))
    if layers == "blocks":
        traced = Pipeline([passes.OverParameterize(rate=2)])(traced).traced
    student, teacher = copy.deepcopy(traced.module).train(), copy.deepcopy(pruned.teacher)
    before = copy.deepcopy(teacher.state_dict())
    data = TensorDataset(torch.randn(16, 3, 8, 8), torch.arange(16) % 5)
    names: dict[str, Any] = {
        "student": student, "teacher": teacher, "loader": DataLoader(data, batch_size=8),
        "criterion": nn.CrossEntropyLoss(), "optimizer": torch.optim.SGD(student.parameters(), lr=1e-3),
    }  # fmt: skip
    exec(_loop().replace('"last"', repr(layers)), names)
    head = "head.weight" if layers == "last" else "head.0.weight"
    assert not torch.equal(student.state_dict()[head], traced.module.state_dict()[head])
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert not any(layer._forward_hooks for model in (student, teacher) for layer in model.modules())
    if layers == "blocks":
        trained = traced.with_module(student.eval())
        collapsed = Pipeline([passes.Reparameterize(only_blocks=True)])(trained).traced
        assert list(collapsed.module.state_dict()) == list(pruned.student.state_dict())


def test_the_commands_are_those_of_the_command_line() -> None:
    import typer

    from fxprune.cli.main import app

    (command,) = re.findall(r"fxprune finetune MODEL (.*?--out tuned)", README, re.DOTALL)
    finetune = typer.main.get_command(app).commands["finetune"]  # type: ignore[attr-defined]
    known = {option for parameter in finetune.params for option in parameter.opts}
    assert set(re.findall(r"--[a-z-]+", command)) <= known
