"""The commands on a model that has no graph as a whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from capture.detectors import Detector, images

import fxprune
from fxprune.cli.report.html import render
from fxprune.cli.report.md import render_markdown
from fxprune.eager import apply_to

Call = Callable[..., tuple[int, str]]
INPUT = ["--input", "3x16x16,3x16x16"]
REGIONS = ("backbone", "head", "inner", "classes")


@pytest.fixture
def spec(tmp_path: Path) -> str:
    source = tmp_path / "detector.py"
    source.write_text("from capture.detectors import Detector\n\ndef build():\n    return Detector()\n")
    return f"{source}:build"


def test_optimize_writes_a_file_for_each_region(call: Call, spec: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, text = call("optimize", spec, *INPUT, "--macs", 0.5, "--seconds", 0.2, "--out", out)
    assert code == 0, text
    files = {f"model.{name}.onnx" for name in REGIONS}
    written = {"model.safetensors", "plan.json", "report.json", "report.html", "report.md"}
    assert {path.name for path in out.iterdir()} == files | written
    report = json.loads((out / "report.json").read_text())
    assert report["ok"] is True
    assert "onnx" not in report
    assert [region["name"] for region in report["regions"]] == list(REGIONS)
    assert all(region["onnx"]["max_relative_error"] <= 1e-4 for region in report["regions"])
    assert all(region["latency"]["dense_ms"] > 0 for region in report["regions"])
    assert any("no model.onnx" in note for note in report["notes"])
    assert any("detectors.py" in note and "by region" in note for note in report["notes"])
    assert "latency of the regions" in text
    for page in ((out / "report.html").read_text(encoding="utf-8"), (out / "report.md").read_text(encoding="utf-8")):
        assert "model.head.onnx" in page
        assert "all of them" in page
        assert "captured by region" in page
        assert "No ONNX file was asked for" not in page
    again = fxprune.load(out, Detector)
    model = Detector().eval()
    assert apply_to(again, model).max_relative_error <= 1e-9
    with torch.no_grad():
        assert len(model(*images())["scores"]) > 0


def test_without_measuring(call: Call, spec: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, text = call("optimize", spec, *INPUT, "--macs", 0.5, "--no-latency", "--out", out)
    assert code == 0, text
    report = json.loads((out / "report.json").read_text())
    assert not any("latency" in region for region in report["regions"])
    assert "all of them" not in render_markdown(report)
    assert "model.inner.onnx" in render(report)


def test_a_budget_of_latency_is_refused(call: Call, spec: str, tmp_path: Path) -> None:
    code, text = call("optimize", spec, *INPUT, "--latency", 0.5, "--out", tmp_path / "out")
    assert code == 2
    assert "A budget of latency" in text
    assert not (tmp_path / "out").exists()


def test_export(call: Call, spec: str, tmp_path: Path) -> None:
    code, text = call("export", spec, *INPUT, "--out", tmp_path / "net.onnx")
    assert code == 0, text
    assert {path.name for path in tmp_path.glob("*.onnx")} == {f"net.{name}.onnx" for name in REGIONS}
    assert "captured by region" in text


def test_explain(call: Call, spec: str) -> None:
    code, text = call("explain", spec, "backbone.out.weight", *INPUT)
    assert code == 0, text
    assert "returns it" in text


@pytest.mark.parametrize(("text", "sizes"), [("3x8x8,", [(3, 8, 8)]), ("3x8x8,3x4x6", [(3, 8, 8), (3, 4, 6)])])
def test_a_list_of_inputs(text: str, sizes: list[tuple[int, ...]]) -> None:
    from fxprune.capture.specs import example_inputs

    found, other = example_inputs([text, "2x5:int64"])
    assert isinstance(found, list)
    assert [tuple(tensor.shape) for tensor in found] == sizes
    assert isinstance(other, torch.Tensor)
    assert other.dtype == torch.int64


def test_the_script_makes_the_same_list(call: Call, spec: str) -> None:
    code, text = call("optimize", spec, *INPUT, "--macs", 0.5, "--print-script")
    assert code == 0, text
    image = "torch.randn([3, 16, 16], generator=generator).to(torch.float32)"
    assert f"example = ([{image}, {image}],)" in text
