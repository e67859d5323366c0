"""The facts of a report as a person reads them on a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fxprune.cli.report.summary import latency_line, show


def test_what_a_person_asks_for_first(report: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    show(report, Path("out"))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for line in (
        "MACs 1.81 G 905.75 M 49.9%",
        "parameters 11.69 M 7.77 M 66.5%",
        "latency 33.22 ms 17.11 ms 51.5%",
        "float64, to the masked original 6.9e-16 1e-09",
        "ONNX file, to the graph 5.2e-07 1e-04",
        "note: one thing",
        "written to out",
    ):
        assert line in lines


def test_without_a_file_or_anything_to_count(report: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    del report["onnx"], report["latency"]
    report["ok"] = False
    report["before"]["macs"] = report["after"]["macs"] = 0
    show(report, Path("out"))
    text = capsys.readouterr().out
    assert "a check did not pass" in text
    assert "latency" not in text
    assert "ONNX" not in text


def test_latency_comes_with_its_interval(report: dict[str, Any]) -> None:
    assert latency_line(report["latency"]) == (
        "latency: 51.5% of the original's, 95% interval 51.4% to 51.6% "
        "(onnxruntime-cpu, 1 thread, batch 1, CPU time, 120 pairs)"
    )


def test_a_machine_that_was_busy_is_named(report: dict[str, Any]) -> None:
    report["latency"]["control_holds"] = False
    assert "not to be relied on: the original beside itself came out at 99.0% to 101.0%" in latency_line(
        report["latency"]
    )
