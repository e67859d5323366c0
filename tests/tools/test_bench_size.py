"""The measurements of size, on sizes that take no time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tools import bench_size


def test_each_measurement_and_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[tuple[str, Any]] = [("chains", 10), ("plan", "test"), ("stream", "test")]
    monkeypatch.setattr(bench_size, "JOBS", jobs)
    apart = bench_size._apart

    def first_apart(kind: str, what: Any) -> dict[str, Any]:  # one process shows what a process does
        return apart(kind, what) if kind == "chains" else {**bench_size.MEASURES[kind](what), "peak_bytes": 2**30}

    monkeypatch.setattr(bench_size, "_apart", first_apart)
    out, page = tmp_path / "size.json", tmp_path / "page.md"
    assert bench_size.main(["--out", str(out), "--markdown", str(page)]) == 0
    found = json.loads(out.read_text())
    assert min(found["chains"]["10"][stage] for stage in ("analysis", "capture", "peak_bytes")) > 0
    assert found["plan"]["test"]["kept"] <= 0.5
    streamed = found["stream"]["test"]
    assert streamed["error"] <= 1e-9
    assert streamed["out_bytes"] < streamed["dense_bytes"]
    assert page.read_text().startswith("<!-- size:start -->\n| layers in a row |")
    monkeypatch.setattr(bench_size, "_apart", lambda *_: pytest.fail("it was measured already"))
    assert bench_size.main(["--out", str(out)]) == 0


def test_a_measurement_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="stream 9 failed"):
        bench_size._apart("stream", 9)
