"""Basis scaling in small: from end to end, what its records hold, and the arithmetic of its tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("accelerate")
pytest.importorskip("matplotlib")

from fxprune.errors import VerifyError
from fxprune.linear.basis import whole_blocks
from tools import _papers_basis, _papers_basis_trial, bench_papers
from tools._papers_basis_transfer import Case, data_for, decomposed, start, tune
from tools._papers_basis_trial import METHODS, Run, Trial, run_trial

CASE = Case("test", "digits", "resnet", 1.0, 0)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def trial(method: str, ratio: float) -> Trial:
    return Trial(CASE.scale, CASE.task, CASE.net, CASE.share, ratio, CASE.seed, method)


def test_trials_from_end_to_end_that_are_not_repeated(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_papers_basis, "PLACES", _papers_basis.PLACES[:2])
    out, page = tmp_path / "r.json", tmp_path / "page.md"
    words = ["--experiments", "basis", "--scale", "test", "--out", str(out), "--cache", str(cache), "--seeds", "0"]
    words += ["--ratios", "0", "0.9", "--methods", "unpruned", "unpruned-scales", "basis", "double"]
    assert bench_papers.main([*words, "--markdown", str(page)]) == 0
    records = json.loads(out.read_text())["trials"]
    assert [r["method"] for r in records] == ["unpruned", "unpruned-scales", "basis", "double"] * 2
    assert [r["share"] for r in records] == [1.0] * 4 + [0.1] * 4
    for record in records:
        assert 0 <= record["accuracy"] <= 1
        assert record["params"] <= (1 - record["ratio"]) * record["dense_params"] + 1
        assert record["method"] == "unpruned" or record["merge_float64"] <= 1e-9
    assert bench_papers.main(words) == 0
    assert json.loads(out.read_text())["trials"] == records
    text = page.read_text()
    assert "### digits, resnet, 10% of the images" in text
    assert "| channels, then vectors | scales, norms, head |" in text
    assert "*not measured*" in text  # the other ways
    assert (tmp_path / "page-basis.png").stat().st_size > 1000


@pytest.mark.parametrize("method", [name for name in METHODS if not name.startswith("unpruned")])
def test_every_way_meets_its_share_of_the_dense_parameters(method: str, cache: Path) -> None:
    record = run_trial(trial(method, 0.7), cache)
    assert 0.2 * record["dense_params"] < record["params"] <= 0.3 * record["dense_params"]
    assert record["macs"] > 0
    assert 0 <= record["cut"] <= 1


def test_what_cannot_be_removed_is_said(cache: Path) -> None:
    record = run_trial(trial("basis", 0.99), cache)
    assert "cannot be met by dropping basis vectors" in record["error"]
    assert "accuracy" not in record


def test_classes_before_and_after_the_transfer_share_no_image() -> None:
    old, new, test = data_for(CASE)
    assert {*old.targets} == {*new.targets} == {*test.targets} == set(range(5))
    images = torch.cat([part.images for part in (old, new, test)]).flatten(1)
    assert len(images.unique(dim=0)) == len(images)


def test_a_part_of_the_images_has_every_class() -> None:
    whole = data_for(CASE)[1]
    part = data_for(Case("test", "digits", "resnet", 0.1, 0))[1]
    assert sorted(part.targets) == sorted([*range(5)] * 2)
    assert len(whole) == 100


@pytest.mark.parametrize("way", ["frozen", "scales"])
def test_single_weights_are_not_trained_unless_all_are(way: str, cache: Path) -> None:
    traced = start(CASE, cache)
    before = decomposed(traced) if way == "scales" else traced
    after = tune(CASE, before, way, 1.0).traced.module.state_dict()
    moved = {name for name, value in before.module.state_dict().items() if not torch.equal(value, after[name])}
    assert {"head.weight", "head.bias"} <= moved
    assert any(name.endswith(".scales") for name in moved) == (way == "scales")
    assert not [name for name in moved - {"head.weight"} if before.module.state_dict()[name].ndim > 1]
    assert [name for name in moved if ".0.weight" in name or "running" in name]


def test_dropped_vectors_stay_dropped_and_importances_add_up(cache: Path) -> None:
    before = decomposed(start(CASE, cache))
    path = whole_blocks(before.module)[0].path
    tuned = tune(CASE, before, "scales", 1.0, {path: [0, 2]})
    (scales,) = [block.scales for block in whole_blocks(tuned.traced.module) if block.path == path]
    assert scales is not None
    assert (scales == 0).nonzero().flatten().tolist() == [0, 2]
    tuned = tune(CASE, before, "scales", 1.0)
    assert all((tuned.last[path] < values).any() for path, values in tuned.scores.items())  # two epochs against one
    assert all((values > 0).any() for values in tuned.last.values())


def test_a_merge_that_changes_outputs_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(CASE, cache)
    traced = decomposed(start(CASE, cache))
    run.merge(traced)
    assert 0 <= run.facts["merge_float64"] < 1e-12
    monkeypatch.setattr(_papers_basis_trial, "FLOAT64", -1.0)
    with pytest.raises(VerifyError, match="merging changed outputs"):
        run.merge(traced)


def test_where_a_curve_falls_below() -> None:
    points = [(0.0, 0.99), (0.5, 0.99), (0.9, 0.95), (0.95, 0.99)]
    assert _papers_basis.crossing(points, 0.97) == pytest.approx(0.7)
    assert _papers_basis.crossing(points, 0.995) == 0.0
    assert _papers_basis.crossing(points, 0.9) == 0.95


def record(method: str, ratio: float, seed: int, accuracy: float, **more: float) -> dict[str, object]:
    settings = trial(method, ratio).case.settings.digest
    key = {**trial(method, ratio).key, "seed": seed, "settings": settings}
    return {**key, "dense_params": 1000, "params": round(1000 * (1 - ratio)), "accuracy": accuracy, **more}


def test_reach_is_taken_against_the_network_of_the_same_seed() -> None:
    records = [
        record("unpruned", 0.0, 0, 0.98), record("unpruned-scales", 0.0, 0, 0.98), record("basis", 0.9, 0, 0.96),
        record("unpruned", 0.0, 1, 0.90), record("unpruned-scales", 0.0, 1, 0.80), record("basis", 0.9, 1, 0.80),
        record("unpruned", 0.0, 2, 0.90),  # has no curve yet
    ]  # fmt: skip
    found = _papers_basis.Found(records, "test", _papers_basis.PLACES[0])
    reached, open_ended = found.reach("basis", "unpruned")
    assert reached == {0: pytest.approx(0.45), 1: 0.0}
    assert not open_ended
    reached, open_ended = found.reach("basis", "unpruned-scales")
    assert reached == {0: pytest.approx(0.45), 1: pytest.approx(0.9)}
    assert open_ended
