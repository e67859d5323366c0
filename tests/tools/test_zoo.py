"""The zoo's own arithmetic, its bounds and its pages; pruning itself is only run in the slow tests."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torchvision")
pytest.importorskip("psutil")

import torch
from torch import nn

from tools import _zoo_check, _zoo_markdown, _zoo_models, _zoo_pool, _zoo_record, bench_prune, zoo
from tools._pool import Job


def test_catalog_is_all_of_torchvision_but_detectors_and_quantized_models():
    catalog = _zoo_models.catalog()
    assert len(catalog) >= 97
    assert not [name for name in catalog if "rcnn" in name or "quantized" in name or "ssd" in name]
    assert set(catalog.values()) == {"classification", "segmentation", "video", "optical flow"}


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("resnet18", (3, 224, 224)),
        ("inception_v3", (3, 299, 299)),
        ("swin_v2_t", (3, 256, 256)),
        ("r3d_18", (3, 16, 112, 112)),
        ("mvit_v1_b", (3, 16, 224, 224)),
        ("swin3d_t", (3, 8, 112, 112)),
        ("raft_small", (3, 128, 128)),
    ],
)
def test_input_shape(name: str, shape: tuple[int, ...]):
    assert _zoo_models.input_shape(name) == shape


def test_optical_flow_takes_a_pair_of_different_images():
    one, two = _zoo_models.make_inputs("raft_small", 2)
    assert one.shape == (2, 3, 128, 128)
    assert not torch.equal(one, two)


def test_build_is_repeatable_and_leaves_nothing_constant():
    one, two = (_zoo_models.build("shufflenet_v2_x0_5").state_dict() for _ in range(2))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not [key for key, value in one.items() if value.numel() > 1 and value.min() == value.max()]


def test_build_answers_to_its_input():
    model = _zoo_models.build("mobilenet_v3_small")
    _zoo_check.require_telling(_zoo_check.outputs(model, _zoo_models.make_inputs("mobilenet_v3_small", 2)))


def test_build_does_not_blow_up_rounding():
    model, (x,) = _zoo_models.build("mobilenet_v3_small"), _zoo_models.make_inputs("mobilenet_v3_small", 2)
    nudged = x + 1e-5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    error = _zoo_check.relative_error(_zoo_check.outputs(model, (nudged,)), _zoo_check.outputs(model, (x,)))
    assert error < 1e-3


def test_randomize_fills_a_zero_head():
    head = nn.Linear(4, 3)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    _zoo_models.randomize(head, seed=0)
    assert head.weight.unique().numel() == 12
    assert head.bias.unique().numel() == 3


def test_tensors_flattens_dicts_and_lists():
    one, two = torch.zeros(1), torch.ones(1)
    assert _zoo_models.tensors({"out": one, "aux": [two]}) == [one, two]


def test_relative_error():
    want = [torch.tensor([2.0, -4.0])]
    assert _zoo_check.relative_error([torch.tensor([2.0, -3.0])], want) == 0.25
    assert _zoo_check.relative_error([torch.tensor([2.0])], want) == float("inf")
    assert _zoo_check.relative_error([torch.tensor([2.0, float("nan")])], want) == float("inf")


@pytest.mark.parametrize(
    ("reference", "why"),
    [
        (torch.zeros(2, 3), "constant"),
        (torch.tensor([[1.0, float("nan")], [1.0, 2.0]]), "not finite"),
        (torch.tensor([[1.0, 2.0], [1.0, 2.0]]), "does not depend on the input"),
    ],
)
def test_vacuous_references_are_refused(reference: torch.Tensor, why: str):
    with pytest.raises(_zoo_check.VacuousCheckError, match=why):
        _zoo_check.require_telling([reference])


def test_mask_zeroes_rows_and_columns():
    model = nn.Linear(3, 2)
    _zoo_check.mask_parameters(model, {"weight": {0: [1], 1: [0, 2]}, "bias": {0: [1]}})
    assert (model.weight != 0).tolist() == [[False, True, False], [False, False, False]]
    assert (model.bias != 0).tolist() == [True, False]


def test_masked_layer_norm_takes_its_statistics_over_what_is_kept():
    norm, x = nn.LayerNorm(4), torch.randn(2, 4)
    _zoo_models.randomize(norm, seed=0)
    with _zoo_check.masked_layer_norm(norm, {"weight": {0: [1]}, "bias": {0: [1]}}):
        got = norm(x)
    kept = [0, 2, 3]
    want = nn.functional.layer_norm(x[:, kept], (3,), norm.weight[kept], norm.bias[kept])
    assert torch.allclose(got[:, kept], want)
    assert not got[:, 1].any()
    assert nn.functional.layer_norm(x, (4,)).shape == x.shape


def test_count_macs():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.Flatten(), nn.Linear(4 * 36, 5))
    assert _zoo_check.count_macs(model, (torch.zeros(1, 3, 8, 8),)) == 3 * 4 * 9 * 36 + 4 * 36 * 5


def record(tool: str, model: str, outcome: str = "exact", **values: object) -> _zoo_record.Record:
    return {"tool": tool, "model": model, "outcome": outcome, "detail": "", "seconds": {}, **values}


def test_records_are_replaced_and_skipped(tmp_path: Path):
    path = tmp_path / "results" / "zoo.json"
    _zoo_record.add_record(path, record("fxprune", "resnet18", "failed"))
    _zoo_record.add_record(path, record("fxprune", "resnet18"))
    assert _zoo_record.read_records(path)["fxprune/resnet18"]["outcome"] == "exact"
    assert [file.name for file in path.parent.iterdir()] == ["zoo.json"]
    command = ["--models", "resnet[13]*", "--peer", "torch-pruning", "--out", str(path)]
    chosen = zoo.choose(zoo.arguments(command))
    assert ("fxprune", "resnet18") not in chosen
    assert ("torch-pruning", "resnet18") in chosen
    assert ("fxprune", "resnet101") in chosen
    assert ("fxprune", "resnet18") in zoo.choose(zoo.arguments([*command, "--redo"]))


def test_recorder_leaves_what_it_had():
    told: list[str] = []
    recorder = _zoo_record.Recorder(lambda values: told.append(json.dumps(values)), tool="fxprune", model="resnet18")
    with pytest.raises(ValueError, match="no"), recorder.stage("plan"):
        raise ValueError("no")
    assert json.loads(told[0])["stage"] == "start"
    values = json.loads(told[-1])
    assert values["stage"] == "plan"
    assert values["seconds"]["plan"] >= 0


IN_THE_PLAN = """
import time
from tools._pool import answering
with answering() as answer:
    answer({"tool": "fxprune", "model": "resnet18", "macs": 7, "phase": "work", "stage": "plan", "phase_since": 0})
    time.sleep(600)
"""


@pytest.mark.parametrize(
    ("script", "limits", "why"),
    [
        ("import time; time.sleep(60)", _zoo_pool.Limits(check=0.5), "no answer in 0.5 s"),
        ("x = b'x' * 2**29; import time; time.sleep(60)", _zoo_pool.Limits(memory=0.2), "more than 0.2 GiB"),
        ("print(1 / 0)", _zoo_pool.Limits(), "process ended with code 1"),
    ],
)
def test_bounds(monkeypatch: pytest.MonkeyPatch, script: str, limits: _zoo_pool.Limits, why: str):
    monkeypatch.setattr(_zoo_pool, "job", lambda *_: Job(("-c", script), (("fxprune", "resnet18"),)))
    (done,) = _zoo_pool.run([("fxprune", "resnet18")], 1, 1, 0, limits)
    assert (done["tool"], done["model"], done["outcome"]) == ("fxprune", "resnet18", "failed")
    assert why in done["detail"]
    assert "phase_since" not in done


def test_a_killed_worker_leaves_what_it_had(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_zoo_pool, "job", lambda *_: Job(("-c", IN_THE_PLAN), (("fxprune", "resnet18"),)))
    (done,) = _zoo_pool.run([("fxprune", "resnet18")], 1, 1, 0, _zoo_pool.Limits(work=5.0))
    assert done["macs"] == 7
    assert done["detail"] == "no answer in 5 s (in plan)"
    assert done["peak_rss_mib"] > 0


def test_a_worker_that_hangs_when_all_is_said_is_ended(monkeypatch: pytest.MonkeyPatch):
    script = IN_THE_PLAN.replace('"work"', '"done", "outcome": "exact"')
    monkeypatch.setattr(_zoo_pool, "job", lambda *_: Job(("-c", script), (("fxprune", "resnet18"),)))
    (done,) = _zoo_pool.run([("fxprune", "resnet18")], 1, 1, 0, _zoo_pool.Limits(check=0.5))
    assert (done["outcome"], done["macs"]) == ("exact", 7)
    assert "detail" not in done


@pytest.mark.parametrize(
    ("answers", "failed"),
    [
        ([], ["fxprune", "torch-pruning"]),
        ([{"tool": "fxprune", "turn": 0}], ["fxprune"]),
        ([{"tool": "fxprune", "turn": 0, "stages": {}, "error": ""}], []),
    ],
)
def test_who_does_not_end_has_an_error(monkeypatch: pytest.MonkeyPatch, answers: list[Any], failed: list[str]):
    worker = SimpleNamespace(answers=answers, why="process ended with code 1: no such model")
    monkeypatch.setattr(bench_prune, "run_one", lambda *_: worker)
    found = bench_prune.measure("resnet18", argparse.Namespace(rounds=1, threads=1, timeout=1.0))
    assert [tool for tool, runs in found.items() if any(run["error"] == worker.why for run in runs)] == failed


def test_markdown_sets_the_tools_side_by_side():
    times = {"analysis": 1.0, "plan": 1.0, "surgery": 1.0}
    page = _zoo_markdown.markdown(
        [
            record("fxprune", "resnet18", seconds=times, macs_kept=0.5, max_relative_error=1e-15, input=[3, 224, 224]),
            record("fxprune", "alexnet", "refused", detail="a | b"),
            record("torch-pruning", "resnet18", seconds={"graph": 1.0, "prune": 0.5}),
        ]
    )
    assert "| exact | 1 | 1 |" in page
    assert "| refused | 1 | 0 |" in page
    assert "How long pruning takes" not in page
    assert "| resnet18 | 3x224x224 | exact | 50.0% | 1e-15 |" in page
    assert "a \\| b" in page
    assert "seconds of both" in _zoo_markdown.markdown([record("fxprune", "alexnet")], "seconds of both")


@pytest.mark.slow
def test_torch_pruning_half(tmp_path: Path):
    pytest.importorskip("torch_pruning")
    out, page = tmp_path / "zoo.json", tmp_path / "zoo.md"
    command = ["--models", "resnet18", "--models", "shufflenet_v2_x0_5", "--only-peer", "--peer", "torch-pruning"]
    assert zoo.main([*command, "--out", str(out), "--markdown", str(page)]) == 0
    records = _zoo_record.read_records(out)
    assert records["torch-pruning/resnet18"]["outcome"] == "exact"
    assert 0.3 < records["torch-pruning/resnet18"]["macs_kept"] < 0.7
    assert records["torch-pruning/shufflenet_v2_x0_5"]["outcome"] == "failed"
    assert "| exact | 1 |" in page.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("model", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_fxprune_half(tmp_path: Path, model: str):
    out = tmp_path / "zoo.json"
    assert zoo.main(["--models", model, "--out", str(out)]) == 0
    found = _zoo_record.read_records(out)[f"fxprune/{model}"]
    assert found["outcome"] == "exact", found["detail"]
    assert found["onnx"] == "ok", found["detail"]
    assert 0.45 < found["macs_kept"] <= 0.5
    assert found["second_error"] <= _zoo_check.TOLERANCE
