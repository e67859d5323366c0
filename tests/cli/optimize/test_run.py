"""``optimize`` from end to end: what it writes, and that it writes nothing when it is stopped."""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from made_up_times import made_up
from safetensors.torch import load_file

from fxprune.cli.optimize.run import COMPACT
from fxprune.cli.report.budget import hold_to_budget
from fxprune.deploy.compact import load_compact

Call = Callable[..., tuple[int, str]]
INPUT = ["--input", "1x3x16x16"]
FILES = {"model.onnx", "model.safetensors", "plan.json", "report.json", "report.html", "report.md"}
SECONDS = 500  # until a process that hangs is ended


def test_optimize_writes_a_checked_model(call: Call, model_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, text = call("optimize", f"{model_file}:build", *INPUT, "--macs", 0.5, "--seconds", 0.5, "--out", out)
    assert code == 0, text
    assert {path.name for path in out.iterdir()} == FILES
    report = json.loads((out / "report.json").read_text())
    assert report["schema"] == 1
    assert report["ok"] is True
    assert report["after"]["macs"] <= 0.5 * report["before"]["macs"]
    assert report["verify"]["max_relative_error"] <= 1e-9
    assert report["onnx"]["max_relative_error"] <= 1e-4
    assert report["latency"]["ratio_low"] <= report["latency"]["ratio"] <= report["latency"]["ratio_high"]
    assert load_file(out / "model.safetensors")["0.weight"].shape[0] < 16
    assert "All checks passed" in (out / "report.html").read_text(encoding="utf-8")


def test_pruned_weights_are_written_without_them_too(call: Call, model_file: Path, tmp_path: Path) -> None:
    recipe, out = tmp_path / "recipe.toml", tmp_path / "out"
    words = ["--recipe", recipe, "--no-latency", "--no-onnx", "--out"]
    head = f'[model]\nspec = "{model_file}:build"\ninput = ["1x3x16x16"]\n'
    head += '[[passes]]\nname = "prune-weights"\namount = 0.75\nexclude = []\n'
    recipe.write_text(head)
    code, text = call("optimize", *words, out)
    assert code == 0, text
    report, plain = json.loads((out / "report.json").read_text()), load_file(out / "model.safetensors")
    small = load_compact(out / COMPACT)
    assert all(torch.equal(small[name], plain[name]) for name in {**small, **plain})
    sizes = [(out / name).stat().st_size for name in (COMPACT, "model.safetensors")]
    assert [report["compact"]["bytes"], report["compact"]["plain_bytes"]] == sizes
    assert sizes[0] < 0.5 * sizes[1]
    for said in (text, (out / "report.md").read_text(), (out / "report.html").read_text()):
        assert f"{sizes[0]:,} bytes" in said
    recipe.write_text(head + '[[passes]]\nname = "decompose-basis"\n[[passes]]\nname = "merge-basis"\nmost = 0.0\n')
    code, text = call("optimize", *words, tmp_path / "dense")
    assert code == 0, text
    assert "is not counted, and may not be pruned any more" in " ".join(text.split())
    assert "are pruned;" not in text
    assert not (tmp_path / "dense" / COMPACT).exists()


def test_a_full_disk_is_said_in_one_paragraph(call: Call, model_file: Path, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    words = [f"{model_file}:build", *INPUT, "--macs", 0.5, "--no-latency", "--no-onnx", "--out", tmp_path / "out"]
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        code, text = call("optimize", *words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 2, text
    assert "model.safetensors: File too large" in " ".join(text.split()).replace("- ", "-")
    assert not (tmp_path / "out").exists()


def test_a_budget_of_measured_latency(call: Call, tmp_path: Path) -> None:
    source = tmp_path / "net.py"
    source.write_text(
        "from torch import nn\n\ndef build():\n    return nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), "
        "nn.Conv2d(64, 128, 3), nn.ReLU(), nn.Conv2d(128, 64, 3), nn.Flatten(), nn.Linear(64 * 18 * 18, 10))\n"
    )
    out = tmp_path / "out"
    words = ["--input", "1x3x24x24", "--latency", 0.6, "--seconds", 1.5, "--out", out]
    with made_up():
        code, text = call("optimize", f"{source}:build", *words)
    assert code == 0, text
    assert "asked for" in text
    report = json.loads((out / "report.json").read_text())
    assert report["plan"]["budget"] == {"latency": 0.6}
    assert report["plan"]["allocation"] == "latency"
    assert report["plan"]["trials"]
    assert 0.5 < report["latency"]["ratio"] <= 0.6  # the budget is held by the trials; this is one more measurement
    assert any("Measured latency" in note for note in report["notes"])


@pytest.mark.parametrize(
    ("low", "high", "passes", "says"),
    [
        (0.45, 0.49, True, ""),
        (0.48, 0.52, True, "not clearly within"),
        (0.51, 0.53, False, "is over the budget of 0.5"),
    ],
)
def test_the_last_measurement_is_held_to_the_budget(low: float, high: float, passes: bool, says: str) -> None:
    report = {"ok": True, "notes": [], "latency": {"ratio": (low + high) / 2, "ratio_low": low, "ratio_high": high}}
    hold_to_budget(report, 0.5)
    assert report["ok"] is passes
    assert (says in report["notes"][0]) if says else report["notes"] == []


def test_compensation(call: Call, model_file: Path, tmp_path: Path) -> None:
    words = ["--macs", 0.5, "--compensate", "constant", "--no-latency", "--out", tmp_path / "out"]
    code, text = call("optimize", f"{model_file}:build", *INPUT, *words)
    assert code == 0, text
    assert json.loads((tmp_path / "out" / "plan.json").read_text())["compensate"] == "constant"
    words = ["--macs", 0.5, "--compensate", "mean", "--out", tmp_path / "other"]
    code, text = call("optimize", f"{model_file}:build", *INPUT, *words)
    assert code == 2
    assert "calibration" in text


@pytest.mark.parametrize("budget", [0, 1.5, math.nan, -1])
def test_a_budget_outside_its_range_is_refused(call: Call, model_file: Path, tmp_path: Path, budget: float) -> None:
    code, text = call("optimize", f"{model_file}:build", *INPUT, f"--macs={budget}", "--out", tmp_path / "out")
    assert code == 2
    assert "share to keep" in text
    assert not (tmp_path / "out").exists()


def test_one_budget_is_needed(call: Call, model_file: Path, tmp_path: Path) -> None:
    for words in ([], ["--macs", 0.5, "--params", 0.5]):
        code, text = call("optimize", f"{model_file}:build", *INPUT, *words, "--out", tmp_path / "out")
        assert code == 2
        assert "exactly one budget" in text


def test_a_budget_that_protection_makes_impossible(call: Call, model_file: Path, tmp_path: Path) -> None:
    words = ["--macs", 0.1, "--protect", "*", "--no-latency", "--out", tmp_path / "out"]
    code, text = call("optimize", f"{model_file}:build", *INPUT, *words)
    assert code == 1, text
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".fxprune*"))


def test_an_output_folder_that_cannot_be_written(call: Call, model_file: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    for out in (tmp_path / "taken", tmp_path / "taken" / "below"):
        code, text = call("optimize", f"{model_file}:build", *INPUT, "--macs", 0.5, "--no-onnx", "--out", out)
        assert code == 2, text
    assert (tmp_path / "taken").read_text() == "mine"


def test_another_runtime_is_not_there(call: Call, model_file: Path, tmp_path: Path) -> None:
    code, text = call(
        "optimize", f"{model_file}:build", "--macs", 0.5, "--runtime", "openvino", "--out", tmp_path / "out"
    )
    assert code == 4
    assert "openvino" in text


@pytest.mark.skipif(os.name == "nt", reason="signals to a process group are a matter of POSIX")
@pytest.mark.parametrize(("stage", "there"), [("capture the graph", True), ("run remove-identity", False)])
def test_ctrl_c_leaves_things_as_they_were(
    model_file: Path, tmp_path: Path, start: Callable[..., subprocess.Popen[str]], stage: str, there: bool
) -> None:
    out = tmp_path / "out"
    if there:
        out.mkdir()
        (out / "report.json").write_text("old")
    waits = "import time; from fxprune.deploy import onnx; onnx.export_onnx = lambda *_, **__: time.sleep(600)"
    words = ["--input", "1x3x16x16", "--macs", 0.5, "--out", out]
    process = start("optimize", f"{model_file}:build", *words, before=waits)  # it does not end before it is stopped
    limit = threading.Timer(SECONDS, process.kill)
    limit.start()
    try:
        assert process.stderr is not None
        seen = next(line for line in process.stderr if stage in line)  # the stage is over, and the next is at work
        os.killpg(process.pid, signal.SIGINT)
        printed, rest = process.communicate()
    finally:
        limit.cancel()
        process.kill()
        process.wait()
    assert seen
    assert process.returncode == 130
    assert printed == ""
    assert rest.splitlines()[-1] == f"fxprune: interrupted; nothing was written to {out}"
    assert "Traceback" not in rest
    assert not list(tmp_path.glob(".*"))
    assert [path.read_text() for path in out.iterdir()] == ["old"] if there else not out.exists()
