"""The experiments on papers: from end to end, taken up again, and the arithmetic of their tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("accelerate")

from tools import _papers_tpp, bench_papers


def test_trials_from_end_to_end_that_are_not_repeated(tmp_path: Path) -> None:
    out, page = tmp_path / "r.json", tmp_path / "page.md"
    page.write_text("before\n<!-- tpp:start -->\nold\n<!-- tpp:end -->\nafter\n")
    words = ["--experiments", "tpp", "--scale", "test", "--out", str(out), "--cache", str(tmp_path / "cache")]
    words += ["--ratios", "0.5", "--seeds", "0", "--methods", "l1", "growing-l2", "tpp"]
    assert bench_papers.main([*words, "--markdown", str(page)]) == 0
    records = json.loads(out.read_text())["trials"]
    assert [record["method"] for record in records] == ["l1", "growing-l2", "tpp"]
    assert len({record["params"] for record in records}) == 1
    assert all(record["before"] == record["after"] for record in records[1:])  # nothing moves
    assert all(0 <= record["tuned_0.01"] <= 1 and record["params"] < record["dense_params"] for record in records)
    assert bench_papers.main(words) == 0
    assert json.loads(out.read_text())["trials"] == records
    text = page.read_text()
    assert text.startswith("before\n<!-- tpp:start -->\nDigits")
    assert text.endswith("<!-- tpp:end -->\nafter\n")
    assert "old" not in text
    assert "### 90% of the filters removed\n\n*Not measured*; `python tools/bench_papers.py" in text
    assert "| l1-long | *not measured* |" in text


def test_nothing_is_started_when_the_time_is_over(tmp_path: Path) -> None:
    words = ["--experiments", "tpp", "--scale", "test", "--out", str(tmp_path / "r.json"), "--budget-minutes", "0"]
    assert bench_papers.main([*words, "--markdown", str(tmp_path / "new" / "page.md")]) == 0
    assert not (tmp_path / "r.json").exists()
    assert (tmp_path / "new" / "page.md").read_text().count("*Not measured*") == len(_papers_tpp.RATIOS)


def test_a_new_page_has_the_markers_of_all_experiments(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    words = ["--experiments", "tpp", "fly", "--scale", "test", "--out", str(tmp_path / "r.json")]
    for _ in range(2):
        assert bench_papers.main([*words, "--budget-minutes", "0", "--markdown", str(page)]) == 0
    lines = page.read_text().splitlines()
    assert [line for line in lines if line.startswith("<!--")] == [
        f"<!-- {name}:{which} -->" for name in ("tpp", "fly") for which in ("start", "end")
    ]


def test_gaps_are_taken_seed_by_seed() -> None:
    low, high = _papers_tpp.interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))
    rows = [
        {"method": method, "seed": seed, "tuned_0.01": base + 0.01 * seed, "tuned_0.001": base}
        for method, base in (("tpp", 0.8), ("l1", 0.7))
        for seed in (0, 1)
    ]
    rows.append({"method": "l1", "seed": 2, "tuned_0.01": 0.0, "tuned_0.001": 0.0})  # has no counterpart yet
    first = _papers_tpp._gaps(rows)[0]
    assert first.startswith("- `tpp` - `l1` at 0.01: +10.0 points, 95 % interval [+10.0, +10.0], which excludes 0 (2 s")


def test_what_the_lower_rate_costs_and_what_the_cut_moves() -> None:
    rows = [
        {"method": method, "seed": seed, "tuned_0.01": 0.9, "tuned_0.001": low, "before": 0.5, "after": 0.5 - moved}
        for method, low, moved in (("l1", 0.5, 0.4), ("tpp", 0.8, 0.0), ("growing-l2", 0.8, 0.002))
        for seed in (0, 1)
    ]
    (line,) = _papers_tpp._sensitivity(rows)
    assert line.startswith(
        "- What the lower rate costs: 40.0 points for `l1`, 10.0 for `tpp`; the difference: +30.0 po"
    )
    assert line.endswith("95 % interval [+30.0, +30.0], which excludes 0 (2 seeds)")
    assert _papers_tpp._mechanism(rows) == [
        "- The cut moves accuracy by at most 0.2 points where filters were pulled to zero"
    ]
    assert _papers_tpp._sensitivity(rows[:3]) == _papers_tpp._mechanism(rows[:2]) == []
