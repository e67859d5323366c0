"""``bench``: files and models from code in one table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fxprune.cli import bench as command
from fxprune.deploy import bench as measured
from fxprune.deploy.interleave import Samples, Settings
from fxprune.errors import InputError

pytest.importorskip("matplotlib")

Call = Callable[..., tuple[int, str]]
INPUT = ("--input", "1x3x16x16")


@pytest.fixture
def exported(call: Call, model_file: Path, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.onnx"
    code, text = call("export", f"{model_file}:build", *INPUT, "--out", path)
    assert code == 0, text
    return path


def test_files_and_models_side_by_side(call: Call, model_file: Path, exported: Path, tmp_path: Path) -> None:
    report, picture = tmp_path / "b.json", tmp_path / "b.svg"
    options = ["--seconds", "2", "--json", report, "--plot", picture]
    code, text = call("bench", exported, exported, f"{model_file}:build", *INPUT, *options)
    assert code == 0, text
    for name in ("tiny.onnx ", "tiny.onnx #2 ", "tiny_model.py:build "):
        assert f"\n{name}" in text
    assert "p90" in text
    values = json.loads(report.read_text())
    assert (values["schema"], values["complete"], len(values["rows"])) == (1, True, 3)
    assert len(values["samples"]) == 4
    assert values["rows"][0]["ratio"] is None
    assert values["rows"][1]["ratio"]["low"] <= values["rows"][1]["ratio"]["high"]
    assert "<svg" in picture.read_text()


def test_a_model_from_code_on_torch(call: Call, model_file: Path) -> None:
    code, text = call("bench", f"{model_file}:build", *INPUT, "--runtime", "torch-cpu", "--seconds", "1")
    assert code == 0, text
    assert "torch-cpu, 1 thread" in text


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (["none.onnx"], 2, "there is no file none.onnx"),
        (["TINY", "--runtime", "abacus"], 2, "there is no runtime"),
        (["TINY", "--precision", "0"], 2, "precision"),
        (["TINY", "--plot", "b.doc"], 2, "should end in .png"),
        (["TINY", "--runtime", "torch-cpu"], 2, "not a .pt2 file"),
        (["TINY", "--runtime", "onnxruntime-cuda"], 4, "CUDAExecutionProvider"),
    ],
)
def test_what_cannot_be_measured(call: Call, exported: Path, words: list[str], code: int, why: str) -> None:
    found, text = call("bench", *[exported if word == "TINY" else word for word in words])
    assert found == code
    assert why in " ".join(text.split())


def test_an_interrupt_before_there_is_anything(
    call: Call, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(measured, "interleave", stop)
    code, _ = call("bench", exported, "--json", tmp_path / "b.json")
    assert code == 130
    assert json.loads((tmp_path / "b.json").read_text())["complete"] is False


def test_an_interrupt_keeps_what_there_is(
    call: Call, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = measured.interleave

    def stopped(models: Any, settings: Settings, enough: Any) -> Any:
        found = original(models, settings, lambda samples: len(samples["tiny.onnx"].wall_ms) > 20)
        return type(found)(**{**vars(found), "interrupted": True})

    monkeypatch.setattr(measured, "interleave", stopped)
    code, text = call("bench", exported, "--json", tmp_path / "b.json", "--seconds", "1")
    assert code == 130
    values = json.loads((tmp_path / "b.json").read_text())
    assert values["complete"] is False
    assert values["rounds"] >= 20
    assert "p90 needs 64 runs" in text


def test_names_are_told_apart(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "m.onnx").touch()
    one, other = str(tmp_path / "a" / "m.onnx"), str(tmp_path / "b" / "m.onnx")
    assert list(command._names([one])) == ["m.onnx"]
    assert list(command._names([one, other])) == [one, other]
    assert list(command._names([one, one])) == ["m.onnx", "m.onnx #2"]


def test_no_models_are_refused() -> None:
    with pytest.raises(InputError, match="at least one model"):
        measured.bench({}, Settings())


def test_a_control_that_does_not_hold_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    fast, slow = Samples([1.0] * 70, [1.0] * 70), Samples([1.5] * 70, [1.5] * 70)
    rules = measured.Rules("cpu")
    found = measured.Interleaved({"m": fast, measured.CONTROL: slow}, {"m": 1.0}, 1, True, 1.0, 1.0, 1.0, False, ())
    command.show(measured._bench(found, rules, Settings(), ["m"], {}))
    assert "not to be relied on: m beside itself came out at 1.500" in " ".join(capsys.readouterr().out.split())
