"""``gate`` and ``baseline`` from a shell: exit codes, files, and what a CI system reads."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from made_up_times import made_up

import fxprune
from fxprune.deploy import runtimes
from fxprune.deploy.runtimes.ort import CPU, OnnxRuntime
from tests.cli.chains import write_chain

Call = Callable[..., tuple[int, str]]
Start = Callable[..., "subprocess.Popen[str]"]
TESTS = Path(__file__).parents[1]
QUICK = ("--seconds", "2")
SECONDS = 500  # until a process that hangs is ended


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("two")
    return write_chain(folder / "base.onnx", 4), write_chain(folder / "slow.onnx", 8)


@pytest.fixture(autouse=True)
def shell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty folder, outside of any CI system."""
    monkeypatch.chdir(tmp_path)
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def clock() -> Iterator[None]:
    """Verdicts follow from the work of models, and not from what else the machine does."""
    with made_up():
        yield


def test_passes(call: Call, two: tuple[Path, Path]) -> None:
    base, slow = two
    code, text = call("gate", base, "--baseline", slow, *QUICK)
    assert code == 0
    assert "base.onnx against slow.onnx: the gate passed" in text


def test_fails_and_writes_everything(
    call: Call, two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    base, slow = two
    page = tmp_path / "page.md"
    page.write_text("before\n")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
    code, text = call(
        "gate", slow, "--baseline", base, "--json", "g.json", "--junit", "g.xml", "--summary", "g.md", *QUICK
    )
    assert code == 1
    assert "::error title=fxprune gate%3A latency::" in text
    values = json.loads((tmp_path / "g.json").read_text())
    assert (values["schema"], values["complete"], values["exit_code"]) == (1, True, 1)
    assert ElementTree.parse(tmp_path / "g.xml").getroot()[0].get("failures") == "1"
    assert (tmp_path / "g.md").read_text().startswith("### slow.onnx against base.onnx: the gate failed")
    assert page.read_text().startswith("before\n### slow.onnx against base.onnx")


def test_undecided_is_three(call: Call, two: tuple[Path, Path], tmp_path: Path) -> None:
    base, _ = two
    (tmp_path / "fxprune.toml").write_text("[gate]\nseconds = 0.3\n[gate.checks]\nlatency = {limit = 1.0}\n")
    assert call("gate", base, "--baseline", base)[0] == 3  # no interval of equals lies on one side of one
    (tmp_path / "fxprune.toml").write_text("[gate.checks]\nlatency = 'report'\n")
    assert call("gate", base, "--baseline", base, "--max-ratio", "1.0", "--seconds", "0.3")[0] == 0


def test_the_configuration_names_the_baseline(call: Call, two: tuple[Path, Path], tmp_path: Path) -> None:
    base, slow = two
    shutil.copyfile(base, tmp_path / "base.onnx")
    (tmp_path / "pyproject.toml").write_text(
        "[tool.fxprune.gate]\nbaseline = 'base.onnx'\nseconds = 1\n[tool.fxprune.gate.checks]\nlatency = 'warn'\n"
    )
    code, text = call("gate", slow)
    assert code == 0
    assert "over (warn)" in text
    code, _ = call("baseline", "update")
    assert code == 0
    assert json.loads((tmp_path / "base.onnx.json").read_text())["figures"]["params"] == 4 * 32 * 32 * 9
    assert (tmp_path / "base.onnx.golden.npz").is_file()
    shutil.copyfile(slow, tmp_path / "base.onnx")
    code, text = call("gate", slow)
    assert code == 2
    assert "fxprune baseline update" in text


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (["BASE"], 2, "name the file to compare with"),
        (["none.onnx", "--baseline", "BASE"], 2, "there is no file none.onnx"),
        (["BASE", "--baseline", "none.onnx"], 2, "there is no file none.onnx"),
        (["BASE", "--baseline", "BASE", "--seconds", "0"], 2, "must be positive"),
        (["BASE", "--baseline", "BASE", "--max-ratio", "-1"], 2, "zero or more"),
        (["BASE", "--baseline", "BASE", "--runtime", "abacus"], 2, "there is no runtime"),
        (["BASE", "--baseline", "BASE", "--config", "none.toml"], 2, "there is no file none.toml"),
        (["BASE", "--baseline", "BASE", "--golden", "none.npz"], 2, "there is no file none.npz"),
        (["BASE", "--baseline", "BASE", "--size", "n"], 2, "name=N"),
        (["BASE", "--baseline", "BASE", "--junit", "no/such/folder.xml"], 2, "there is no such folder"),
        (["BASE", "--baseline", "BASE", "--runtime", "onnxruntime-tensorrt"], 4, "TensorrtExecutionProvider"),
    ],
)
def test_bad_usage_says_what_to_do(
    call: Call, two: tuple[Path, Path], tmp_path: Path, words: list[str], code: int, why: str
) -> None:
    given = [two[0] if word == "BASE" else word for word in words]
    found, text = call("gate", *given, "--json", "g.json")
    assert found == code
    assert why in " ".join(text.split())
    if (tmp_path / "g.json").exists():
        values = json.loads((tmp_path / "g.json").read_text())
        assert (values["complete"], values["exit_code"]) == (False, code)
        assert why in values["error"]


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_json_that_says_so(
    start: Start, two: tuple[Path, Path], tmp_path: Path, stop: signal.Signals
) -> None:
    base, _ = two
    report = tmp_path / "g.json"
    config = tmp_path / "slow.toml"
    config.write_text("[gate]\nseconds = 120\n[gate.checks]\nlatency = {limit = 1.0}\n")
    stopped = f"""
import itertools, os
from fxprune.deploy import interleave
from made_up_times import install
install()
timed, calls = interleave.timed, itertools.count()
def stopping(run, samples):
    if next(calls) == 230:
        os.kill(os.getpid(), {stop.value})
    timed(run, samples)
interleave.timed = stopping
"""
    process = start(
        "gate", base, "--baseline", base, "--json", report, "--config", config, before=stopped, path=(TESTS,)
    )
    try:
        _, said = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    assert process.returncode == 130, said
    values = json.loads(report.read_text())
    assert values["complete"] is False
    assert values["exit_code"] == 130
    assert 2 <= values["latency"]["rounds"] < 20  # what was measured until then is kept
    assert "Traceback" not in said


class _Fallen(OnnxRuntime):
    """Claims a GPU, and gets sessions on the CPU, as onnxruntime-gpu does where CUDA does not load."""

    def available(self) -> str:
        return ""

    def create(self, path: Path, options: Any) -> Any:
        return OnnxRuntime("onnxruntime-cpu", CPU).create(path, options)


def test_a_silent_fallback_is_four_and_names_the_nodes(
    call: Call, two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    fallen = _Fallen("onnxruntime-cuda", "CUDAExecutionProvider", "cuda", package="onnxruntime-gpu")
    monkeypatch.setattr(runtimes, "_ALL", (fallen,))
    code, text = call("gate", two[0], "--baseline", two[0], "--runtime", "onnxruntime-cuda")
    assert code == 4
    said = " ".join(text.split())  # as this onnxruntime calls them, and with changes of layout where it counts those
    assert re.search(r"would run \d nodes of the model without CUDAExecutionProvider: .*\w+ \(Conv\)", said), said


def test_it_runs_without_torch(two: tuple[Path, Path]) -> None:
    base, slow = two
    words = ["gate", str(base), "--baseline", str(slow), *QUICK]
    program = (
        "import sys\nfrom made_up_times import install\nfrom fxprune.cli.main import app\ninstall()\n"
        f"try:\n    app({words})\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "assert 'torch' not in sys.modules"
    )
    root = Path(fxprune.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(TESTS)])}
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, env=environment, timeout=SECONDS)
