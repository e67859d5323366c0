"""``doctor`` tells what is there, what is not, and the line that installs it."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from onnx import numpy_helper

import fxprune
from fxprune.capture import Traced
from fxprune.cli import doctor
from fxprune.cli.doctor import examine
from fxprune.deploy.runtimes import survey
from fxprune.errors import EnvironmentProblem

Start = Callable[..., "subprocess.Popen[str]"]
SECONDS = 300


def _finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        printed, said = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    return process.returncode, printed, said


def _package(folder: Path, name: str, version: str, code: str) -> Path:
    """Make a package that counts as installed wherever the folder comes first on the path."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(code)
    (folder / f"{name}-{version}.dist-info").mkdir()
    (folder / f"{name}-{version}.dist-info" / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    )
    return folder


def test_the_needs_are_those_of_the_project() -> None:
    file = Path(fxprune.__file__).parents[1] / "pyproject.toml"
    if not file.is_file():
        pytest.skip("installed without its pyproject.toml")
    listed = tomllib.loads(file.read_text())["project"]["dependencies"]
    assert dict(line.split(">=") for line in listed) == doctor.REQUIRED


def test_here(start: Start) -> None:
    code, printed, said = _finish(start("doctor"))
    assert "Traceback" not in said
    for name in doctor.REQUIRED:
        assert re.search(rf"^{name} +{re.escape(importlib.metadata.version(name))} .* ok *$", printed, re.MULTILINE)
    if code == 0:  # torchvision, the only one that may be missing or broken where the tests run at all
        assert said == ""
    assert "onnxruntime providers: " in printed
    assert "export to ONNX: ok" in printed
    lines = printed.splitlines()
    assert "  onnxruntime-cpu: ok" in lines
    for name, missing in survey().items():
        assert f"  {name}: {missing or 'ok'}" in lines


def test_runtimes_of_a_broken_package_are_not_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    doctor._show_runtimes({"numpy", "onnxruntime"})
    printed = capsys.readouterr().out
    assert "  torch-cpu: needs torch, see above" in printed
    assert "  onnxruntime-cpu: ok" in printed
    doctor._show_runtimes(set())
    assert capsys.readouterr().out == ""


def test_a_torchvision_for_another_torch(start: Start, tmp_path: Path) -> None:
    """A CPU-only torch with the registry's torchvision, which raises this error at import.

    Made with a stand-in: a package of that name, first on the path, that raises exactly that. The real one would need
    a second installation of torch.
    """
    broken = "raise RuntimeError('operator torchvision::nms does not exist')"
    code, printed, said = _finish(start("doctor", path=(_package(tmp_path, "torchvision", "0.26.0", broken),)))
    assert code == 4
    assert re.search(r"^torchvision +0.26.0 +optional +does not work *$", printed, re.MULTILINE)
    assert "RuntimeError: operator torchvision::nms does not exist" in printed
    assert "  pip install --force-reinstall torch torchvision" in printed.splitlines()
    assert said.splitlines() == ["fxprune: torchvision cannot be used here; the lines above say what to install"]


def test_a_model_of_that_torchvision_points_to_the_doctor(start: Start, tmp_path: Path) -> None:
    broken = "raise RuntimeError('operator torchvision::nms does not exist')"
    folder = _package(tmp_path, "torchvision", "0.26.0", broken)
    code, _, said = _finish(start("groups", "torchvision:resnet18", path=(folder,)))
    assert code == 2
    assert "fxprune doctor" in said
    assert "Traceback" not in said


def test_packages_that_do_not_fit_each_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is new enough for fxprune, and onnxscript too old for torch, which says so by an import that fails."""

    def old(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'onnxscript.torch_99'", name="onnxscript.torch_99")

    monkeypatch.setattr(torch.onnx, "export", old)
    version = importlib.metadata.version("onnxscript")
    with pytest.raises(EnvironmentProblem) as caught:
        doctor.diagnose()
    assert str(caught.value).startswith("models cannot be exported here: torch ")
    assert f"asks for onnxscript.torch_99 to export to ONNX, which onnxscript {version} does not" in str(caught.value)
    assert "pip install --upgrade onnxscript" in str(caught.value)
    assert "export to ONNX: fails, see below" in capsys.readouterr().out


def test_an_export_that_breaks_or_computes_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    from fxprune.deploy import onnx as deployed

    export = deployed.export_onnx

    def halved(traced: Traced, path: Path) -> None:
        export(traced, path)
        model = onnx.load(path)
        for tensor in model.graph.initializer:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) / 2, tensor.name))
        onnx.save(model, path)

    def breaks(traced: Traced, path: Path) -> None:
        raise AttributeError("module 'onnx_ir' has no attribute 'passes'")

    assert doctor._export_problem() == ""
    monkeypatch.setattr(deployed, "export_onnx", halved)
    assert doctor._export_problem().startswith("the ONNX file differs from the graph by more than 0.0001")
    monkeypatch.setattr(deployed, "export_onnx", breaks)
    assert doctor._export_problem() == "AttributeError: module 'onnx_ir' has no attribute 'passes'"


def test_packages_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _package(tmp_path, "fxprune_old", "1.9", "")
    _package(tmp_path, "fxprune_dies", "3.0", "import os; os._exit(7)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    found = [examine(name, "2.0") for name in ("fxprune-absent", "fxprune_old", "fxprune_dies")]
    assert [one.state for one in found] == ["missing", "does not work", "does not work"]
    assert [one.remedy for one in found] == [
        "pip install 'fxprune-absent>=2.0'",
        "pip install --upgrade 'fxprune_old>=2.0'",
        "pip install --force-reinstall 'fxprune_dies>=2.0'",
    ]
    assert "2.0 or newer" in found[1].problem
    assert "ends with 7" in found[2].problem
    assert examine("typer", "0.16").state == "ok"


def test_a_missing_package_fails_only_if_it_is_needed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "OPTIONAL", {"fxprune-extra": "0"})
    monkeypatch.setattr(doctor, "REQUIRED", {})
    doctor.diagnose()
    assert "  pip install fxprune-extra" in capsys.readouterr().out.splitlines()
    monkeypatch.setattr(doctor, "REQUIRED", {"fxprune-need": "1.0"})
    with pytest.raises(EnvironmentProblem, match="fxprune-need cannot be used"):
        doctor.diagnose()
    assert "  pip install 'fxprune-need>=1.0'" in capsys.readouterr().out.splitlines()
