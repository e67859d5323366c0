"""The regions of a model as files: one each, equal to their graphs, and the model runs on them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from capture.detectors import Detector, Kinds, images, normal
from torch import nn

import fxprune
from fxprune import passes
from fxprune.capture import Traced
from fxprune.capture.regions import Call, hosted
from fxprune.deploy.regions import export_regions
from fxprune.errors import InputError


@pytest.fixture(scope="module")
def detector() -> Detector:
    torch.manual_seed(0)
    return Detector().eval()


@pytest.fixture(scope="module")
def traced(detector: Detector) -> Traced:
    return fxprune.trace(detector, images())


def test_a_file_for_each_region_equal_to_its_graph(traced: Traced, tmp_path: Path) -> None:
    files = export_regions(traced, tmp_path, metadata={"model": "detector"})
    names = [f"model.{name}.onnx" for name in ("backbone", "head", "inner", "classes")]
    assert [file.export.path.name for file in files] == names
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert all(file.check().max_relative_error <= 1e-5 for file in files)
    backbone, head, *_ = files
    assert list(backbone.inputs.values()) == ["[0][0]"]
    assert list(backbone.outputs.values()) == ["['near']", "['rest'][0]", "['rest'][1]['far']"]
    assert list(head.inputs.values()) == ["[0][0]", "[1]['scale']"]
    session = onnxruntime.InferenceSession(head.export.path)
    assert session.get_inputs()[0].shape == ["batch", 8, "size_0_2", "size_0_3"]
    assert session.get_modelmeta().custom_metadata_map["region"] == "head"
    assert head.times == pytest.approx(1 + 1 / 4 + 1 / 16, rel=1e-2)


def test_the_model_runs_on_sessions_of_the_files(traced: Traced, detector: Detector, tmp_path: Path) -> None:
    plan = fxprune.make_plan(traced, macs=0.5)
    result = fxprune.Pipeline([passes.PruneChannels(plan), passes.FuseBatchNorm()])(traced)
    model = copy.deepcopy(detector)
    result.apply_to(model)
    sessions = {
        file.call.name: onnxruntime.InferenceSession(file.export.path)
        for file in export_regions(result.traced, tmp_path)
    }

    def run(call: Call, leaves: list[Any]) -> list[Any]:
        session = sessions[call.name]
        feeds = {given.name: leaf.numpy() for given, leaf in zip(session.get_inputs(), leaves, strict=True)}
        return [torch.from_numpy(value) for value in session.run(None, feeds)]

    with torch.no_grad():
        expected = model(*images())
        with hosted(model, traced, run):
            found = model(*images())
    assert len(expected["scores"]) > 50
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4)


def test_other_kinds_of_calls_have_files_of_their_own(tmp_path: Path) -> None:
    files = export_regions(fxprune.trace(Kinds(), normal(2, 6)), tmp_path, stem="net")
    assert [file.export.path.name for file in files] == ["net.block.onnx", "net.block-2.onnx", "net.fixed.onnx"]
    errors = [file.check().max_relative_error for file in files]
    assert max(errors) <= 1e-5
    assert list(files[0].inputs.values()) == ["[0][0]"]


@pytest.mark.usefixtures("clock")
def test_a_region_is_measured_beside_the_dense_one(traced: Traced, tmp_path: Path) -> None:
    files = export_regions(traced, tmp_path)
    found = files[1].measure(files[1], seconds=0.3, min_rounds=5)
    assert found.batch == 2
    assert found.ratio == pytest.approx(1, rel=0.02)


def test_a_model_that_was_captured_whole(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="use export_onnx"):
        export_regions(fxprune.trace(nn.Linear(4, 3), normal(2, 4)), tmp_path)


def test_a_single_sample_is_measured_as_one(tmp_path: Path) -> None:
    one, *_ = export_regions(fxprune.trace(Detector().eval(), images(1)), tmp_path)
    assert one.traced.batch == 2
    assert (one.batch, one.times) == (1, 1.0)
