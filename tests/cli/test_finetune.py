"""``finetune`` from end to end: prune, expand, distil, train, be killed, go on, collapse, export."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

from fxprune.cli.finetune_plan import check_plan, read_plan
from fxprune.cli.loading import capture, load_model
from fxprune.cli.shared.training import OBJECTIVES, TEACHER, say_epoch
from fxprune.training import load_data

Call = Callable[..., tuple[int, str]]
Start = Callable[..., "subprocess.Popen[str]"]
MODEL = """
import torch
from torch import nn

def build(width=16):
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(0.1), nn.Linear(512, 10),
    )
"""
DIGITS = ["--data", "digits", "--cpu", "--lr", 0.05, "--batch", 32]
SECONDS = 500  # until a process that hangs is ended


@pytest.fixture
def digits_model(tmp_path: Path) -> str:
    (tmp_path / "digits_model.py").write_text(MODEL)
    return f"{tmp_path / 'digits_model.py'}:build"


@pytest.fixture
def plan(call: Call, digits_model: str, tmp_path: Path) -> Path:
    words = ["--input", "1x1x8x8", "--macs", 0.4, "--no-latency", "--no-onnx", "--round-to", 1]
    code, text = call("optimize", digits_model, *words, "--out", tmp_path / "plan")
    assert code == 0, text
    return tmp_path / "plan"


def test_a_pruned_model_is_expanded_taught_trained_collapsed_and_exported(
    call: Call, digits_model: str, plan: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ["--plan", plan, "--over-parameterize", 2, "--distill", "--distill-similarity", 10, "--clip", 1]
    words += ["--epochs", 3]
    code, text = call("finetune", digits_model, *DIGITS, *words, "--out", out)
    assert code == 0, text
    names = {"model.onnx", "model.safetensors", "plan.json", "report.json", "training"}
    assert {path.name for path in out.iterdir()} == names
    report = json.loads((out / "report.json").read_text())
    assert report["ok"] is True
    assert report["accuracy"]["after"] >= 0.9 > report["accuracy"]["before"]
    assert f"after {report['accuracy']['after']:.2%}" in text
    assert report["onnx"]["max_relative_error"] <= 1e-4
    assert len((out / "training" / "metrics.jsonl").read_text().splitlines()) == 3
    assert "epoch 3/3: loss" in text
    before, after = (load_file(folder / "model.safetensors") for folder in (plan, out))
    assert {name: value.shape for name, value in before.items()} == {name: value.shape for name, value in after.items()}
    images, labels = zip(*(load_data("digits").test[index] for index in range(200)), strict=True)
    session = onnxruntime.InferenceSession(out / "model.onnx")
    (logits,) = session.run(None, {session.get_inputs()[0].name: torch.stack(images).numpy()})
    assert (np.argmax(logits, 1) == np.asarray(labels)).mean() >= 0.85


def test_a_folder_that_its_plan_alone_did_not_make(call: Call, digits_model: str, plan: Path, tmp_path: Path) -> None:
    report = json.loads((plan / "report.json").read_text())
    words = ["finetune", digits_model, *DIGITS, "--plan", plan, "--out", tmp_path / "out"]
    (plan / "report.json").write_text(json.dumps({**report, "steps": ["remove-layers", "prune-channels"]}))
    other = json.loads((plan / "plan.json").read_text())
    (plan / "plan.json").write_text(json.dumps({**other, "fingerprint": "0" * 64}))
    code, text = call(*words)
    assert code == 2
    assert f"the plan in {plan} is for the model behind remove-layers" in " ".join(text.split())
    assert 'a step [[passes]] with name = "train"' in " ".join(text.split())
    (plan / "report.json").write_text(json.dumps(report))
    code, text = call(*words)
    assert "made for another graph" in " ".join(text.split())
    (plan / "plan.json").unlink()
    (plan / "report.json").write_text(json.dumps({**report, "steps": ["decompose-basis", "merge-basis"]}))
    code, text = call(*words)
    assert code == 2
    assert f"{plan} has no plan: its steps were decompose-basis, merge-basis" in " ".join(text.split())
    (plan / "report.json").unlink()
    assert "give a folder that fxprune optimize wrote" in " ".join(call(*words)[1].split())


@pytest.mark.parametrize(("whose", "said"), [(TEACHER, "+ 0.5000 for its teacher"), (OBJECTIVES, "+ 0.5000 of its")])
def test_what_adds_to_the_loss_is_named(capsys: pytest.CaptureFixture[str], whose: str, said: str) -> None:
    row = {"seconds": 1.0, "epoch": 0, "train_loss": 2.0, "extra_loss": 0.5, "validation_loss": 1.0}
    say_epoch(row, 3, whose)
    assert said in capsys.readouterr().err


def test_steps_behind_the_cut_are_named(call: Call, digits_model: str, plan: Path) -> None:
    traced = capture(load_model(digits_model, [], None, 0), ["1x1x8x8"], 0)
    found = read_plan(plan)
    assert found is not None
    assert check_plan(found, traced, plan) == []
    report = json.loads((plan / "report.json").read_text())
    steps = [*report["steps"], "prune-weights", "train (keep-pruned)", "fuse-batchnorm"]
    (plan / "report.json").write_text(json.dumps({**report, "steps": steps}))
    (note,) = check_plan(found, traced, plan / "plan.json")
    assert note.endswith("prune-channels alone is carried out here; not prune-weights")


def test_it_goes_on_where_it_was_killed(
    digits_model: str,
    call: Call,
    start: Start,
    at_checkpoint: Callable[[int, signal.Signals], str],
    tmp_path: Path,
) -> None:
    words = [digits_model, *DIGITS, "--epochs", 3, "--save-every", 1, "--no-onnx"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    process = start("finetune", *words, "--out", cut, before=at_checkpoint(60, signal.SIGKILL))
    try:
        _, said = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    assert process.returncode == -signal.SIGKILL, said
    assert (cut / "training" / "checkpoint.safetensors").exists()
    assert not (cut / "report.json").exists()
    for out in (whole, cut):
        code, text = call("finetune", *words, "--out", out)
        assert code == 0, text
    one, other = (load_file(out / "model.safetensors") for out in (whole, cut))
    assert all(torch.equal(one[name], other[name]) for name in one)
    code, text = call("finetune", *words, "--epochs", 4, "--out", cut)
    assert code == 2
    assert "epochs was 3 and is 4" in text
    assert "--no-resume" in text


def test_allr_takes_its_peak_from_what_was_removed(call: Call, digits_model: str, plan: Path, tmp_path: Path) -> None:
    words = [digits_model, *DIGITS, "--plan", plan, "--epochs", 1, "--schedule", "allr", "--no-onnx", "--out"]
    code, text = call("finetune", *words, tmp_path / "out")
    assert code == 2
    assert "--original-epochs" in text
    code, text = call("finetune", *words, tmp_path / "out", "--original-epochs", 10)
    assert code == 0, text
    assert "ALLR(distance=0." in json.loads((tmp_path / "out" / "report.json").read_text())["recipe"]["schedule"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--data", "nothing"], 2, "there are no data 'nothing'"),
        (["--data", "imagefolder:{tmp}/absent"], 2, "there is no folder"),
        (["--data", "torchvision:cifar10:{tmp}"], 2, "never downloads"),
        (["--over-parameterize", 0], 2, "expansion rate"),
        (["--over-parameterize", "nan"], 2, "expansion rate"),
        (["--over-parameterize", 1.3], 2, "no whole number"),
        (["--epochs", 0], 2, "epochs is 0"),
        (["--lr", "nan"], 2, "lr is nan"),
        (["--lr", 1e30], 1, "at step"),
        (["--plan", "{tmp}"], 2, "there is no plan"),
        (["--model-arg", "width=4", "--data", "shapes", "--data-arg", "train=40"], 2, "channels"),
    ],
)
def test_what_cannot_be_done(
    call: Call, digits_model: str, tmp_path: Path, words: list[object], code: int, said: str
) -> None:
    filled = [word.format(tmp=tmp_path) if isinstance(word, str) else word for word in words]
    found, text = call("finetune", digits_model, *DIGITS, "--epochs", 1, *filled, "--out", tmp_path / "out")
    assert found == code, text
    assert said in text
    assert not (tmp_path / "out" / "report.json").exists()


def test_the_folder_of_the_plan_is_not_written_over(call: Call, digits_model: str, plan: Path) -> None:
    code, text = call("finetune", digits_model, *DIGITS, "--plan", plan, "--out", plan)
    assert code == 2
    assert "name another folder" in text


def test_without_the_extra(call: Call, digits_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    code, text = call("finetune", digits_model, *DIGITS, "--out", tmp_path / "out")
    assert code == 4
    assert "pip install 'fxprune[train]'" in text
