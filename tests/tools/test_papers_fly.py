"""The experiment on pruning on the fly: from end to end, what it says of weights, and the words of its tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("sklearn")
pytest.importorskip("accelerate")
pytest.importorskip("matplotlib")

from fxprune.capture import Traced, trace
from fxprune.linear.sparsity import NEAR_ZERO, note_masks
from tools import _papers_fly, bench_papers
from tools._papers_fly_trial import BINS, CURVE, TARGETS, Trial, histogram, prune, sides
from tools._recovery_tables import Difference


def net() -> Traced:
    """A first convolution, which is left whole, and one of 64 filters of 256 weights that is not."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 256, 1, bias=False), nn.Conv2d(256, 64, 1, bias=False))
    return trace(model.eval(), torch.randn(2, 3, 4, 4))


def weight_of(traced: Traced) -> nn.Parameter:
    return traced.module.get_parameter("1.weight")


def test_trials_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_papers_fly, "PLACES", (_papers_fly.ABLATED,))
    out, page = tmp_path / "r.json", tmp_path / "page.md"
    words = ["--experiments", "fly", "--scale", "test", "--out", str(out), "--cache", str(tmp_path / "cache")]
    words += ["--ratios", "0", "0.9", "--seeds", "0", "--methods", "plain", "fly", "prune-first"]
    assert bench_papers.main([*words, "--markdown", str(page)]) == 0
    records = json.loads(out.read_text())["trials"]
    assert [record["method"] for record in records] == ["plain", "fly", "prune-first"]
    for record in records:
        whole = record["method"] != "prune-first"
        assert len(record["pruned"]["zero"]) == len(record["pruned"]["zero + bn"]) == (len(CURVE) if whole else 1)
        assert all(0 <= value <= 1 for values in record["pruned"].values() for value in values.values())
        assert record["bytes"]["zero"]["0.9"] < 0.4 * record["bytes"]["dense"]
        assert len(record["histogram"]) == BINS
    plain, _, first = records
    assert set(plain["pruned"]["filter"]) == {str(ratio) for ratio in TARGETS}
    assert first["pruned"]["zero"]["0.9"] == first["unpruned"]  # its weights are zero since before it was trained
    assert len({sum(record["histogram"]) for record in records}) == 1  # all weights that can go are in it
    assert (tmp_path / "page-fly.png").read_bytes().startswith(b"\x89PNG")
    text = page.read_text()
    assert "Seeds: 1; " in text
    assert "| sphere alone | *not measured* |" in text
    assert bench_papers.main(words) == 0
    assert json.loads(out.read_text())["trials"] == records


def test_a_page_without_records_says_so(tmp_path: Path) -> None:
    text = _papers_fly.page([], "small")
    assert text.count("*Not measured*; `python tools/bench_papers.py") == len(_papers_fly.PLACES)
    _papers_fly.plot([], "small", tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 0


def test_each_trial_is_made_once() -> None:
    found = _papers_fly.trials("small")
    assert len(found) == len(set(found)) == 5 * (len(_papers_fly.PLACES) * 7 + 5)


def test_sides_of_weights_that_are_parted_and_of_random_ones() -> None:
    traced = net()
    random = sides(traced, 0.75)
    assert 0.05 < random["energy"] < 0.5  # of uniform weights: 0.75^3
    assert random["energy"] == pytest.approx(0.75**3, abs=0.02)
    assert random["band"] == pytest.approx(0.5 / 3**0.5, abs=0.02)  # edge 1, between 1/4 and 3/4, of up to sqrt(3)
    with torch.no_grad():
        kept = torch.arange(256).reshape(1, 256, 1, 1) % 4 == 0
        weight_of(traced).copy_(torch.where(kept, weight_of(traced).sign(), 0.01))
    parted = sides(traced, 0.75)
    assert parted["band"] == 0
    assert parted["energy"] == pytest.approx(0.75 * 0.01**2 / (0.25 + 0.75 * 0.01**2), rel=1e-3)
    counts = histogram(traced)
    assert sum(counts) == 64 * 256
    assert counts[BINS // 2] == 64 * 192  # 0.02, just above zero
    assert sum(counts[BINS // 2 + 1 : BINS // 2 + 14]) == 0  # up to the others, at 2


@pytest.mark.parametrize(
    ("ratio", "method", "trained"), [(0.5, "fly", True), (0.7, "fly", False), (0, "sphere", False)]
)
def test_the_trained_set_goes_at_its_own_ratio(ratio: float, method: str, trained: bool) -> None:
    traced = net()
    largest = weight_of(traced).abs() > weight_of(traced).abs().median()
    note_masks(traced.module, NEAR_ZERO, {"1": largest})
    found = weight_of(prune(Trial("test", "digits", "resnet", ratio, 0, method), traced, 0.5, "zero")) == 0
    assert torch.equal(found, largest) == trained
    assert float(found.double().mean()) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("lost", "ratio", "said"),
    [
        (Difference(-0.001, -0.003, 0.001, 5), 0.5, "0.5: yes, by its whole interval"),
        (Difference(-0.004, -0.006, -0.002, 5), 0.5, "0.5: yes, by its mean"),
        (Difference(-0.006, -0.007, -0.005, 5), 0.5, "0.5: no"),
        (Difference(-0.006, -0.007, -0.005, 5), 0.7, "3.5: yes, by its whole interval"),
        (Difference(-0.006, -0.007, -0.005, 5), 0.9, ""),
        (None, 0.5, ""),
    ],
)
def test_the_bounds_of_the_claim(lost: Difference | None, ratio: float, said: str) -> None:
    assert _papers_fly._verdict(lost, ratio) == said


def test_gaps_are_taken_seed_by_seed() -> None:
    ours = [{"seed": seed, "unpruned": value} for seed, value in ((0, 0.5), (1, 0.7), (3, 0.9))]
    theirs = [{"seed": seed, "unpruned": value} for seed, value in ((1, 0.6), (0, 0.4), (2, 0.0))]
    gap = _papers_fly._gap(ours, _papers_fly._unpruned, theirs, _papers_fly._unpruned)
    assert gap is not None
    assert gap.seeds == 2
    assert (gap.low, gap.mean, gap.high) == pytest.approx((0.1, 0.1, 0.1))
    assert str(gap) == "**+10.0** (+10.0 to +10.0)"
