"""Two trials at a scale for tests, and what the tables say of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from tools import _papers_tpp_nets, bench_papers


def test_the_same_filters_go_either_way(tmp_path: Path) -> None:
    out, page = tmp_path / "r.json", tmp_path / "page.md"
    words = ["--experiments", "tpp-nets", "--scale", "test", "--out", str(out), "--cache", str(tmp_path / "cache")]
    words += ["--ratios", "0.5", "--seeds", "0", "--markdown", str(page)]
    assert bench_papers.main(words) == 0
    records = json.loads(out.read_text())["trials"]
    assert [(r["net"], r["method"]) for r in records] == [
        (n, m) for n in ("resnet", "mobilenet") for m in ("l1", "tpp")
    ]
    for plain, pulled in zip(records[::2], records[1::2], strict=True):
        assert plain["macs"] == pulled["macs"] < plain["dense_macs"]
        assert plain["dense"] == pulled["dense"] == plain["before"]
        assert abs(pulled["before"] - pulled["after"]) < 1e-3  # the cut alone changes nothing
    text = page.read_text()
    assert "### ResNet-20 on digits" in text
    assert "| 50% | tpp | 1 | 25.2% |" in text
    assert "| 90% | l1 | *not measured* |" in text
    assert (tmp_path / "page-tpp-nets.png").read_bytes().startswith(b"\x89PNG")
    assert bench_papers.main(words) == 0
    assert json.loads(out.read_text())["trials"] == records  # nothing runs twice


def test_gaps_are_taken_seed_by_seed() -> None:
    rows = [
        {"method": method, "seed": seed, "tuned": base + seed / 100, "slower": base + seed / 100 - cost}
        for seed in (0, 1)
        for method, base, cost in (("l1", 0.5, 0.2), ("tpp", 0.75, 0.05))
    ]
    tuned, slower, better, less = _papers_tpp_nets._gaps(0.9, rows)
    assert tuned.startswith("- 90%: `tpp` - `l1`: +25.0 points, 95 % interval [+25.0, +25.0], which excludes 0")
    assert slower.startswith("- 90%: `tpp` - `l1`, slower: +40.0 points")
    assert better.startswith("- 90%: `tpp` - `l1`, each at its better rate: +25.0 points")
    assert "20.0 points for `l1`, 5.0 for `tpp`; the difference: +15.0 points" in less
    assert _papers_tpp_nets._gaps(0.9, rows[:2]) == []


@pytest.mark.parametrize("scale", ["small", "test"])
def test_what_is_missing_is_said(scale: str) -> None:
    missing = _papers_tpp_nets.page([], scale).count("*Not measured*")
    assert missing == 2 * len(_papers_tpp_nets.SCALES[scale])
