"""The trials of the gate: they can be taken up, and their summary is their arithmetic."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tools import bench_gate


def _run(monkeypatch: pytest.MonkeyPatch, path: Path, *words: str) -> dict[str, Any]:
    monkeypatch.setattr(sys, "argv", ["bench_gate", "--out", str(path), "--seconds", "2", *words])
    assert bench_gate.main() == 0
    return json.loads(path.read_text())  # type: ignore[no-any-return]


@pytest.mark.slow
def test_a_run_is_taken_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "gate.json"
    first = _run(monkeypatch, path, "--same", "1", "--slower", "1", "--busy", "1", "--command", "0")
    assert {(one["kind"], one["number"]) for one in first["trials"]} == {("same", 0), ("slower", 0)}
    assert all(one["inference_seconds"] < one["seconds"] for one in first["trials"])
    more = _run(monkeypatch, path, "--same", "2", "--slower", "1", "--busy", "0", "--command", "1")
    assert more["trials"][:2] == first["trials"]
    assert len(more["trials"]) == 3
    assert more["summary"]["command"]["overhead_median"] > 0
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- gate:start -->\nold\n<!-- gate:end -->\nafter\n")
    for _ in range(2):
        _run(monkeypatch, path, "--same", "2", "--slower", "1", "--command", "1", "--markdown", str(page))
    text = page.read_text()
    assert text.startswith("before\n<!-- gate:start -->\n| | measured |")
    assert text.endswith("<!-- gate:end -->\nafter\n")
    assert "old" not in text
    assert "| 2 trials |" in text


def test_the_summary() -> None:
    trials = [
        {
            "kind": kind,
            "outcome": outcome,
            "seconds": 2.0,
            "ratio": 1.0,
            "cpu_seconds": 3.0,
            "inference_cpu_seconds": 2.0,
        }
        for kind, outcome in [("same", "pass"), ("same", "inconclusive"), ("same", "fail"), ("slower", "fail")]
    ]
    found = bench_gate.summary({"trials": trials, "commands": []})
    assert found["same"]["wrong"] == found["same"]["inconclusive"] == pytest.approx(1 / 3)
    assert (found["slower"]["wrong"], found["slower"]["fail"]) == (0, 1)
    assert found["same"]["overhead_median"] == 0.5
    assert bench_gate.summary({"trials": [], "commands": []}) == {}


def test_the_slower_model_has_a_tenth_more_work(tmp_path: Path) -> None:
    from fxprune.deploy.figures import file_figures

    macs = [file_figures(bench_gate.write_model(tmp_path / "m.onnx", n)).macs for n in bench_gate.LAYERS.values()]
    assert macs[1] == 1.1 * macs[0]  # type: ignore[operator]


def test_busy_processes_end() -> None:
    with bench_gate.busy(2):
        pass
