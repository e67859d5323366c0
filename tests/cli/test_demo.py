"""``demo``: one command, from nothing to a network that was trained, pruned, recovered, exported and measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("sklearn")
pytest.importorskip("accelerate")

from fxprune.cli import demo
from fxprune.cli.demo_net import DigitNet
from fxprune.training import load_data

Call = Callable[..., tuple[int, str]]


def test_the_demo_leaves_a_network_that_is_small_and_right(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    code, text = call("demo", "--epochs", 2, "--seconds", 1)
    assert code == 0, text
    assert torch.get_num_threads() == threads
    out = tmp_path / "fxprune-demo"
    names = {"dense.onnx", "model.onnx", "model.safetensors", "plan.json", "report.json"}
    assert {path.name for path in out.iterdir()} == names
    report = json.loads((out / "report.json").read_text())
    dense, pruned, recovered = (report["models"][name] for name in ("dense", "pruned", "recovered"))
    assert pruned["macs"] == recovered["macs"] <= demo.KEEP * dense["macs"]
    assert pruned["params"] == recovered["params"]
    assert recovered["accuracy"] >= 0.8 > pruned["accuracy"] + 0.2
    assert report["collapse_max_relative_error"] <= 1e-5
    assert report["onnx"]["max_relative_error"] <= 1e-4
    for row in (dense, pruned, recovered):
        assert f"{row['accuracy']:.1%}" in text
    assert f"{report['latency']['dense_ms']:.3f} ms" in text
    # The file is the network of the table, and has the names of the one that was never expanded.
    test = load_data("digits").test
    images, labels = zip(*(test[index] for index in range(len(test))), strict=True)  # type: ignore[arg-type]
    session = onnxruntime.InferenceSession(out / "model.onnx")
    (logits,) = session.run(None, {session.get_inputs()[0].name: torch.stack(images).numpy()})
    assert (np.argmax(logits, 1) == np.asarray(labels)).mean() == pytest.approx(recovered["accuracy"], abs=0.01)
    assert set(load_file(out / "model.safetensors")) == set(DigitNet().state_dict())


def test_a_place_that_cannot_be_written_is_refused_before_training(call: Call, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    code, text = call("demo", "--out", file)
    assert code == 2
    assert "is a file" in text
    assert file.read_text() == "mine"


def test_a_missing_package_is_named_before_training(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = demo.importlib.util.find_spec
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None if name == "sklearn" else find(name))
    code, text = call("demo", "--out", tmp_path / "out")
    assert code == 4
    assert "scikit-learn" in " ".join(text.split())
    assert not (tmp_path / "out").exists()
