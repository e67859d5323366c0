"""The throughput of trials: from end to end, and the arithmetic of its table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tools import bench_trials


def test_from_end_to_end_and_not_again(tmp_path: Path) -> None:
    out, page = tmp_path / "r.json", tmp_path / "page.md"
    words = ["--executors", "processes", "--repetitions", "1", "--trials", "2", "--steps", "2", "--out", str(out)]
    assert bench_trials.main([*words, "--markdown", str(page)]) == 0
    records = json.loads(out.read_text())["trials"]
    assert sorted(record["workers"] for record in records) == [1, 2]
    assert all(0 < record["seconds"] < record["seconds_with_start"] for record in records)
    assert len({tuple(record["accuracies"]) for record in records}) == 1
    assert "| processes | " in page.read_text()
    assert bench_trials.main(words) == 0
    assert json.loads(out.read_text())["trials"] == records


def _record(executor: str, workers: int, repetition: int, seconds: float, each: float) -> dict[str, Any]:
    return {
        "executor": executor, "workers": workers, "repetition": repetition, "trials": 8, "seconds": seconds,
        "seconds_with_start": seconds + 10, "trial_seconds": [each] * 8,
    }  # fmt: skip


def test_ratios_are_taken_within_a_repetition() -> None:
    times = [(40, 20), (60, 40), (80, 50)]
    records = [
        _record("ray", workers, repetition, pair[workers - 1], 5 * workers**0.5)
        for repetition, pair in enumerate(times)
        for workers in (1, 2)
    ]
    records.append(_record("ray", 1, 3, 1, 1))  # without its pair
    row = bench_trials.page(records).splitlines()[-1]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:3] == ["ray", "8.0 (6.0 to 12.0)", "12.0 (9.6 to 24.0)"]
    assert cells[3:] == ["1.60 (1.50 to 2.00)", "1.50 (1.40 to 1.67)", "1.41 (1.41 to 1.41) x"]
    assert "median over 3 interleaved" in bench_trials.page(records)
    assert bench_trials.page(records[-1:]).startswith("*Not measured*; `python tools/bench_trials.py")


def test_other_results_on_other_workers_are_refused() -> None:
    with pytest.raises(RuntimeError, match="different accuracies"):
        bench_trials._check_the_same([{"accuracies": [0.5]}, {"accuracies": [0.6]}])
