"""The command line as a user meets it: what it writes, and how it refuses."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from fxprune.cli.main import app

INPUT = ["--input", "1x3x16x16"]
FILES = {"model.onnx", "model.safetensors", "plan.json", "report.json", "report.html"}


def call(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_help_answers_without_torch() -> None:
    program = (
        "import sys\nfrom fxprune.cli.main import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit:\n    pass\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_optimize_writes_a_checked_model(model_file: Path, tmp_path: Path) -> None:
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
    page = (out / "report.html").read_text()
    assert "All checks passed" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


@pytest.mark.parametrize("budget", [0, 1.5, math.nan, -1])
def test_a_budget_outside_its_range_is_refused(model_file: Path, tmp_path: Path, budget: float) -> None:
    code, text = call("optimize", f"{model_file}:build", *INPUT, f"--macs={budget}", "--out", tmp_path / "out")
    assert code == 2
    assert "share to keep" in text
    assert not (tmp_path / "out").exists()


def test_one_budget_is_needed(model_file: Path, tmp_path: Path) -> None:
    for words in ([], ["--macs", 0.5, "--params", 0.5]):
        code, text = call("optimize", f"{model_file}:build", *INPUT, *words, "--out", tmp_path / "out")
        assert code == 2
        assert "exactly one budget" in text


def test_a_budget_that_protection_makes_impossible(model_file: Path, tmp_path: Path) -> None:
    code, text = call(
        "optimize",
        f"{model_file}:build",
        *INPUT,
        "--macs",
        0.1,
        "--protect",
        "*",
        "--no-latency",
        "--out",
        tmp_path / "out",
    )
    assert code == 1, text
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("nothing", "names no model"),
        ("no.such.package:build", "no module"),
        ("{file}:missing", "no attribute"),
        ("{file}:no_model", "must return a torch.nn.Module"),
        ("{folder}/absent.py:build", "no file"),
    ],
)
def test_a_specification_that_names_no_model(model_file: Path, tmp_path: Path, spec: str, words: str) -> None:
    code, text = call("groups", spec.format(file=model_file, folder=tmp_path), *INPUT)
    assert code == 2
    assert words in text.replace("\n", " ")


def test_a_module_that_raises_at_import(tmp_path: Path) -> None:
    path = tmp_path / "raises.py"
    path.write_text("raise RuntimeError('no licence key')")
    code, text = call("groups", f"{path}:build", *INPUT)
    assert code == 2
    assert "no licence key" in text


@pytest.mark.parametrize(
    ("shape", "words"),
    [("1x4x16x16", "does not run"), ("1x3x16x16:int64", "does not run"), ("3*16", "no shape"), ("1x3:abc", "no dtype")],
)
def test_inputs_that_do_not_fit(model_file: Path, shape: str, words: str) -> None:
    code, text = call("groups", f"{model_file}:build", "--input", shape)
    assert code == 2
    assert words in text.replace("\n", " ")


def _weights(model_file: Path) -> dict[str, torch.Tensor]:
    scope: dict[str, object] = {}
    exec(model_file.read_text(), scope)
    state: dict[str, torch.Tensor] = scope["build"]().state_dict()  # type: ignore[operator]
    return state


def test_weights_that_cannot_be_used(model_file: Path, tmp_path: Path) -> None:
    state = _weights(model_file)
    save_file(state, tmp_path / "good.safetensors")
    whole = (tmp_path / "good.safetensors").read_bytes()
    (tmp_path / "short.safetensors").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "noise.safetensors").write_bytes(b"\xff" * 64)
    torch.save(state, tmp_path / "pickle.safetensors")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    torch.save({"other": torch.ones(1)}, tmp_path / "other.pt")
    torch.save(state, tmp_path / "whole.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:200])
    for name in (
        "short.safetensors",
        "noise.safetensors",
        "pickle.safetensors",
        "module.pt",
        "other.pt",
        "cut.pt",
        "none.pt",
    ):
        code, text = call("groups", f"{model_file}:build", *INPUT, "--weights", tmp_path / name)
        assert (code, name if name in text.replace("\n", "") else text) == (2, name)
        assert "Traceback" not in text
    for name in ("good.safetensors", "whole.pt"):
        assert call("groups", f"{model_file}:build", *INPUT, "--weights", tmp_path / name)[0] == 0


def test_an_output_folder_that_cannot_be_written(model_file: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    for out in (tmp_path / "taken", tmp_path / "taken" / "below"):
        code, text = call("optimize", f"{model_file}:build", *INPUT, "--macs", 0.5, "--no-onnx", "--out", out)
        assert code == 2, text
    assert (tmp_path / "taken").read_text() == "mine"


def test_another_runtime_is_not_there(model_file: Path, tmp_path: Path) -> None:
    code, text = call(
        "optimize", f"{model_file}:build", "--macs", 0.5, "--runtime", "openvino", "--out", tmp_path / "out"
    )
    assert code == 4
    assert "openvino" in text


def test_groups_as_json(model_file: Path) -> None:
    code, text = call("groups", f"{model_file}:build", *INPUT, "--json")
    assert code == 0
    assert json.loads(text)["units"] == 16 + 32


def test_explain(model_file: Path) -> None:
    code, text = call("explain", f"{model_file}:build", "7.weight", *INPUT)
    assert code == 0
    assert "the model returns it" in text.replace("\n", " ")
    code, text = call("explain", f"{model_file}:build", "7.wieght", *INPUT)
    assert code == 2
    assert "7.weight" in text


def test_export(model_file: Path, tmp_path: Path) -> None:
    code, text = call("export", f"{model_file}:build", *INPUT, "--out", tmp_path / "m.onnx")
    assert code == 0, text
    assert (tmp_path / "m.onnx").is_file()
