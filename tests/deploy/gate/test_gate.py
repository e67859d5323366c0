"""Gate runs on real files, and what they say to machines."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from made_up_times import made_up

from fxprune.deploy.gate import (
    GateConfig,
    GateResult,
    Rule,
    junit,
    markdown,
    run_gate,
    update_baseline,
    workflow_commands,
)
from fxprune.deploy.gate import run as run_module
from fxprune.deploy.gate.baseline import golden_path, record_path
from fxprune.deploy.gate.checks import CHECKS, Finding
from fxprune.deploy.interleave import Settings
from fxprune.deploy.latency import Latency, compare_latency
from fxprune.errors import InputError

CONFIG = GateConfig(Settings(seconds=2, min_rounds=5))

Edit = Callable[[onnx.ModelProto], None]


def status(result: GateResult) -> dict[str, str]:
    return {finding.check: finding.status for finding in result.findings}


def edited(source: Path, target: Path, edit: Edit) -> Path:
    model = onnx.load(source)
    edit(model)
    onnx.save(model, target)
    return target


@pytest.fixture(autouse=True, scope="module")
def clock() -> Iterator[None]:
    """Verdicts follow from the work of models, and not from what else the machine does."""
    with made_up():
        yield


@pytest.fixture(scope="module")
def slower(files: dict[str, Path]) -> GateResult:
    return run_gate(files["large"], files["small"], CONFIG)


def test_a_file_passes_against_itself(files: dict[str, Path]) -> None:
    config = CONFIG.with_limit("latency", 1.5)
    result = run_gate(files["small"], files["small"], config)
    assert set(status(result).values()) == {"ok"}
    assert (result.outcome, result.exit_code) == ("pass", 0)
    assert "candidate and baseline are the same file" in result.notes
    assert list(workflow_commands(result)) == []


def test_a_slower_file_fails_and_says_why(slower: GateResult) -> None:
    assert (slower.outcome, slower.exit_code) == ("fail", 1)
    found = status(slower)
    assert found["latency"] == found["size"] == found["macs"] == found["params"] == "exceeded"
    assert found["opset"] == found["paths"] == found["reorders"] == found["blocked-convs"] == "ok"
    assert set(found) == set(CHECKS)


def test_json_has_everything(slower: GateResult) -> None:
    values = json.loads(json.dumps(slower.to_dict(), allow_nan=False))
    assert (values["schema"], values["complete"], values["outcome"], values["exit_code"]) == (1, True, "fail", 1)
    assert values["latency"]["samples"]["baseline"]["cpu_ms"]
    assert values["candidate"]["figures"]["macs"] > values["baseline"]["figures"]["macs"]
    assert values["candidate"]["kernels"]["convs"] == 3
    assert {check["check"] for check in values["checks"]} == set(CHECKS)
    assert values["machine"]["processor"]


def test_junit_has_a_case_for_each_check(slower: GateResult) -> None:
    (suite,) = ElementTree.fromstring(junit(slower))
    assert suite.get("failures") == "1"
    assert suite.get("tests") == str(len(CHECKS)) == str(len(suite))
    (failed,) = suite.findall("testcase[failure]")
    assert failed.get("name") == "latency"
    assert "limit 1.05" in str(failed.find("failure").text)  # type: ignore[union-attr]


def test_markdown_and_annotations(slower: GateResult) -> None:
    text = markdown(slower)
    assert text.startswith("### large.onnx against small.onnx: the gate failed\n")
    assert "| latency | **over** |" in text
    lines = list(workflow_commands(slower))
    assert lines[0].startswith("::error title=fxprune gate%3A latency::latency over")
    assert any(line.startswith("::warning title=fxprune gate%3A size::") for line in lines)


def test_annotations_cannot_be_broken_by_names(slower: GateResult) -> None:
    finding = Finding("paths", "warn", "exceeded", 1, 0, "100%\r\n::error::mine")
    (line,) = workflow_commands(replace(slower, findings=(finding,)))
    assert "\n" not in line
    assert line.endswith("100%25%0D%0A::error::mine (limit 0)")


def _undecided(slower: GateResult, level: str) -> GateResult:
    findings = tuple(
        replace(f, status="undecided", level=level) if f.check == "latency" else f  # type: ignore[arg-type]
        for f in slower.findings
    )
    return replace(slower, findings=findings)


def test_undecided_is_an_outcome_of_its_own(slower: GateResult) -> None:
    result = _undecided(slower, "fail")
    assert (result.outcome, result.exit_code) == ("inconclusive", 3)
    (suite,) = ElementTree.fromstring(junit(result))
    assert (suite.get("errors"), suite.get("failures")) == ("1", "0")
    assert next(iter(workflow_commands(result))).startswith("::error")
    assert "**undecided**" in markdown(result)


@pytest.mark.parametrize("level", ["warn", "report"])
def test_an_undecided_warning_passes(slower: GateResult, level: str) -> None:
    result = _undecided(slower, level)
    assert (result.outcome, result.exit_code) == ("pass", 0)
    assert next(iter(workflow_commands(result))).startswith("::warning")


def test_no_time_decides_nothing(files: dict[str, Path]) -> None:
    settings = Settings(seconds=0.01, min_rounds=2, max_rounds=2)
    result = run_gate(files["small"], files["small"], GateConfig(settings).with_limit("latency", 1.0))
    assert result.outcome in ("inconclusive", "fail", "pass")
    assert result.latency is not None
    assert result.latency.rounds == 2


def test_other_weights_are_seen_in_the_outputs(files: dict[str, Path], tmp_path: Path) -> None:
    def louder(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * 2, tensor.name))

    path = edited(files["small"], tmp_path / "louder.onnx", louder)
    strict = replace(CONFIG, rules={**CONFIG.rules, "parity": Rule("fail", 1e-4)})
    result = run_gate(path, files["small"], strict.with_limit("latency", 9))
    assert status(result)["parity"] == "exceeded"
    assert result.outcome == "fail"


def test_nan_fails(files: dict[str, Path], tmp_path: Path) -> None:
    def poison(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        values = onnx.numpy_helper.to_array(tensor).copy()
        values[...] = np.nan
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))

    path = edited(files["small"], tmp_path / "nan.onnx", poison)
    result = run_gate(path, files["small"], CONFIG.with_limit("latency", 9))
    assert status(result)["finite"] == "exceeded"
    assert result.outcome == "fail"
    assert any("candidate: output" in note for note in result.notes)
    json.dumps(result.to_dict(), allow_nan=False)
    same = run_gate(path, path, CONFIG.with_limit("latency", 9))  # the baseline has them too
    assert status(same)["finite"] == "ok"


def test_different_inputs_are_refused(files: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="different inputs and cannot be compared"):
        run_gate(files["other"], files["small"], CONFIG)


@pytest.mark.parametrize("side", [0, 1])
def test_files_that_cannot_be_read_are_refused(files: dict[str, Path], tmp_path: Path, side: int) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(files["small"].read_bytes()[:500])
    paths = [files["small"], files["small"]]
    for path, why in ((tmp_path / "none.onnx", "there is no file"), (broken, "is not an ONNX model")):
        paths[side] = path
        with pytest.raises(InputError, match=why):
            run_gate(*paths, CONFIG)


class _Interrupted:
    """Raises as Ctrl-C does when the measuring begins, or ends it early with what there is."""

    def __init__(self, partial: bool) -> None:
        self.partial = partial

    def __call__(self, *args: Any, **options: Any) -> Latency:
        if not self.partial:
            raise KeyboardInterrupt
        return replace(compare_latency(*args, **options), interrupted=True)


@pytest.mark.parametrize("partial", [False, True])
def test_an_interrupted_run_says_so(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, partial: bool) -> None:
    monkeypatch.setattr(run_module, "compare_latency", _Interrupted(partial))
    config = CONFIG.with_limit("latency", 9)
    result = run_gate(files["small"], files["small"], config, keep_interrupted=True)
    values = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert (values["complete"], values["outcome"], values["exit_code"]) == (False, "interrupted", 130)
    assert (values["latency"] is None) is not partial
    assert status(result)["latency"] == ("ok" if partial else "skipped")
    assert status(result)["macs"] == "ok"
    markdown(result), junit(result)
    if not partial:
        with pytest.raises(KeyboardInterrupt):
            run_gate(files["small"], files["small"], config)


def test_a_recorded_baseline_must_be_the_file_recorded(files: dict[str, Path], tmp_path: Path) -> None:
    baseline = tmp_path / "base.onnx"
    shutil.copyfile(files["small"], baseline)
    record = update_baseline(baseline, CONFIG)
    assert record.path == record_path(baseline)
    assert golden_path(baseline).is_file()
    assert "ms" not in json.loads(record.path.read_text())
    loose = CONFIG.with_limit("latency", 9)
    result = run_gate(files["small"], baseline, loose)
    assert result.outcome == "pass"
    assert result.parity is not None
    assert result.parity.source == "inputs of base.onnx.golden.npz"
    shutil.copyfile(files["large"], baseline)
    with pytest.raises(InputError, match=r"is not the file that base\.onnx\.json was written for"):
        run_gate(files["small"], baseline, loose)


def test_a_baseline_from_other_hardware_is_allowed(files: dict[str, Path], tmp_path: Path) -> None:
    baseline = tmp_path / "base.onnx"
    shutil.copyfile(files["small"], baseline)
    path = update_baseline(baseline, CONFIG, keep_outputs=False).path
    values = json.loads(path.read_text())
    values["features"] = ["asimd"]
    values["kernels"]["reorders"] = 99
    path.write_text(json.dumps(values))
    result = run_gate(files["small"], baseline, CONFIG.with_limit("latency", 9))
    assert result.outcome == "pass"
    assert any("other vector instructions" in note for note in result.notes)
    assert any("reorders 99 then" in note for note in result.notes)


@pytest.mark.parametrize(
    ("text", "why"),
    [("{", "is no record"), ("[]", "is no record"), ('{"schema": 9, "figures": {"sha256": ""}}', "schema 9")],
)
def test_a_damaged_record_is_refused(files: dict[str, Path], tmp_path: Path, text: str, why: str) -> None:
    baseline = tmp_path / "base.onnx"
    shutil.copyfile(files["small"], baseline)
    record_path(baseline).write_text(text)
    with pytest.raises(InputError, match=why):
        run_gate(baseline, baseline, CONFIG)
