"""The trials of recovery: one from end to end, taken up again, and the arithmetic of their tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("accelerate")
pytest.importorskip("matplotlib")

from fxprune.errors import VerifyError
from tools import _recovery_latency, _recovery_tables, _recovery_trial, bench_recovery
from tools._recovery_tasks import SCALES, TASKS, data_for
from tools._recovery_trial import MAIN, VARIANTS, WIDTHS, Trial


def _words(folder: Path, *words: str) -> list[str]:
    return ["--scale", "test", "--cpu", "--out", str(folder / "r.json"), "--cache", str(folder / "cache"), *words]


def test_a_trial_from_end_to_end_that_is_not_repeated(tmp_path: Path) -> None:
    words = _words(tmp_path, "--tasks", "digits", "--nets", "resnet", "--ratios", "0.5", "--seeds", "4", "5")
    words += ["--variants", "calibrate", "finetune", "lop-sp"]
    page, picture = tmp_path / "page.md", tmp_path / "plot.png"
    page.write_text("before\n<!-- recovery:start -->\nold\n<!-- recovery:end -->\nafter\n")
    assert bench_recovery.main([*words, "--markdown", str(page), "--plot", str(picture)]) == 0
    first = json.loads((tmp_path / "r.json").read_text())["trials"]
    assert [(t["seed"], t["variant"]) for t in first] == [
        (seed, name) for seed in (4, 5) for name in ("calibrate", "finetune", "lop-sp")
    ]
    assert all(0 <= t["accuracy"] <= 1 and t["macs"] < t["dense_macs"] for t in first)
    assert [t["variant"] for t in first if "collapse_float64" in t] == ["lop-sp"] * 2
    assert bench_recovery.main(words) == 0
    assert json.loads((tmp_path / "r.json").read_text())["trials"] == first
    text = page.read_text()
    assert text.startswith("before\n<!-- recovery:start -->\n### digits, resnet")
    assert text.endswith("<!-- recovery:end -->\nafter\n")
    assert "old" not in text
    assert "### Further seeds: digits, resnet, 50% of filters removed" in text
    assert "### shapes, mobilenet\n\n*not measured*; `python tools/bench_recovery.py" in text
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_nothing_is_started_when_the_time_is_over(tmp_path: Path) -> None:
    assert bench_recovery.main(_words(tmp_path, "--budget-minutes", "0")) == 0
    assert not (tmp_path / "r.json").exists()


def test_a_collapsed_network_is_held_to_the_pruned_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(_recovery_latency, "SECONDS", 0.1)
    words = _words(tmp_path, "--tasks", "digits", "--nets", "resnet", "--ratios", "0.5", "--seeds", "4")
    page = tmp_path / "page.md"
    assert bench_recovery.main([*words, "--budget-minutes", "0", "--latency", "--markdown", str(page)]) == 0
    (found,) = json.loads((tmp_path / "r.json").read_text())["latency"]
    assert found["same_file"]
    assert 0 < found["ratio_low"] <= found["ratio"] <= found["ratio_high"]
    assert found["rounds"] >= 20
    assert "| digits, resnet, 50% of filters removed | yes |" in page.read_text()


def test_the_other_task_and_network(tmp_path: Path) -> None:
    record = _recovery_trial.run_trial(Trial("test", "shapes", "mobilenet", 0.5, 0, "lop"), tmp_path, cpu=True)
    assert record["collapse_float64"] <= 1e-9
    assert record["collapse_float32"] <= 1e-5


def test_a_collapse_that_changes_the_outputs_is_not_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_recovery_trial, "FLOAT64", 0.0)
    with pytest.raises(VerifyError, match="collapsing changed outputs"):
        _recovery_trial.run_trial(Trial("test", "digits", "resnet", 0.5, 0, "r2"), tmp_path, cpu=True)


def test_seeds_have_images_of_their_own_and_test_images_are_others() -> None:
    settings = SCALES["test"]["digits"]
    (first, test), (second, _) = (data_for("digits", settings, seed) for seed in (0, 1))
    assert len(first) == 60
    assert len(first) + len(test) == 1797
    assert [first.targets.count(label) for label in range(10)] == [6] * 10
    assert not first.images.equal(second.images)
    shown = {image.numpy().tobytes() for image in test.images}
    assert not shown & {image.numpy().tobytes() for image in first.images}


def test_all_trials_are_listed_once_and_the_hardest_come_first() -> None:
    found = bench_recovery.trials(bench_recovery._options([]))
    assert len(found) == len(set(found))
    assert {(t.task, t.net, t.ratio, t.seed, t.variant) for t in found} >= {
        (task, net, ratio, seed, name)
        for task in TASKS for net in ("resnet", "mobilenet") for ratio in (0.5, 0.7, 0.9, 0.95)
        for seed in range(5) for name in MAIN
    }  # fmt: skip
    assert {(t.task, t.net) for t in found[:60]} == {("digits", "resnet")}
    assert {t.ratio for t in found[:60]} == {0.9, 0.95}
    chosen = bench_recovery.trials(bench_recovery._options(["--nets", "mobilenet", "--variants", "r2"]))
    assert {(t.task, t.net, t.variant) for t in chosen} == {(task, "mobilenet", "r2") for task in TASKS}


def test_every_variant_has_a_title() -> None:
    assert len({_recovery_tables._title(name) for name in VARIANTS}) == len(VARIANTS)
    assert not set(WIDTHS) & set(MAIN)


def test_differences_are_paired_by_seed() -> None:
    found = _recovery_tables.paired({0: 0.5, 1: 0.7, 2: 0.9, 5: 0.0}, {0: 0.4, 1: 0.5, 2: 0.6})
    assert found is not None
    # mean 0.2, standard error 0.1 / sqrt(3), and 4.3027 is Student's t for two degrees of freedom
    assert (found.mean, found.low) == (pytest.approx(0.2), pytest.approx(0.2 - 4.3027 * 0.1 / 3**0.5, rel=1e-4))
    assert found.seeds == 3
    assert _recovery_tables.paired({0: 0.5}, {0: 0.4}) is None


def test_a_training_that_broke_off_counts_as_a_guess() -> None:
    trial: dict[str, Any] = {"task": "digits", "net": "resnet", "ratio": 0.9, "seed": 0, "variant": "lop", "error": "x"}
    assert _recovery_tables.cells([trial]) == {("digits", "resnet", 0.9, "lop"): {0: 0.1}}
