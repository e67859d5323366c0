"""All methods together: a trial from end to end, and the arithmetic of its table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("accelerate")

from fxprune.errors import VerifyError
from tools import _papers_composition as composition
from tools import bench_papers


def test_the_whole_beside_the_plain_way(tmp_path: Path) -> None:
    out, page = tmp_path / "r.json", tmp_path / "page.md"
    words = ["--experiments", "composition", "--scale", "test", "--out", str(out), "--cache", str(tmp_path / "cache")]
    words += ["--seeds", "0", "--methods", "l1", composition.WHOLE, "--markdown", str(page)]
    assert bench_papers.main(words) == 0
    plain, whole = json.loads(out.read_text())["trials"]
    assert (plain["method"], whole["method"]) == ("l1", composition.WHOLE)
    for key in ("macs", "params", "dense", "dense_macs"):
        assert plain[key] == whole[key]
    assert plain["macs"] < 0.02 * plain["dense_macs"]
    assert plain["before"] == plain["dense"] > 0.5  # nothing was trained in front of the cut
    assert whole["before"] == whole["after"]  # nothing moves
    assert "collapse_float64" in whole
    assert whole["collapse_float64"] <= 1e-9
    assert "collapse_float64" not in plain
    assert all(record["parity"] <= composition.PARITY and record["file_bytes"] > 0 for record in (plain, whole))
    text = page.read_text()
    assert "<!-- composition:start -->\nResNet-20" in text
    assert "| l1 + sp | 2 | *not measured* |" in text
    assert f"Checks of the 2 trials: {'the same filters'}" in text


def test_other_filters_or_a_file_that_differs_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = composition.Trial("test", composition.RATIO, 1, "l1")
    with monkeypatch.context() as changed:
        changed.setattr(composition, "PARITY", -1.0)
        with pytest.raises(VerifyError, match="the file differs"):
            composition.run_trial(trial, tmp_path)
    planned = composition._planned

    def other(*args: Any) -> Any:
        with monkeypatch.context() as changed:
            changed.setattr(composition, "RATIO", 0.5)
            return planned(*args)

    monkeypatch.setattr(composition, "_planned", other)
    with pytest.raises(VerifyError, match="of the same filters"):
        composition.run_trial(trial, tmp_path)


def test_differences_are_taken_seed_by_seed() -> None:
    values = {("l1", 0): 0.5, ("l1", 1): 0.6, (composition.WHOLE, 0): 0.6, (composition.WHOLE, 1): 0.72}
    values |= {("tpp", 0): 0.1}  # has a single counterpart, which makes no interval
    rows = [{"method": method, "seed": seed, "accuracy": value} for (method, seed), value in values.items()]
    (line,) = composition._gaps(rows)
    assert line.startswith(
        f"- `{composition.WHOLE}` - `l1`: +11.0 points, 95 % interval [-1.7, +23.7], which includes 0"
    )


def test_every_way_is_tried_with_every_seed() -> None:
    trials = composition.trials("small")
    assert len({(trial.method, trial.seed) for trial in trials}) == len(composition.METHODS) * len(composition.SEEDS)
    assert {trial.method for trial in trials[: len(trials) // 7]} <= set(composition.FIRST) | {
        f"{name}, slower" for name in composition.FIRST
    }
