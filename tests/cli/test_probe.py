"""``probe``: the layers of a model by their times, kept for later unless the machine was busy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fxprune.deploy import probe as measured
from fxprune.deploy.kernel_seconds import KernelTimes, kernel_seconds
from fxprune.deploy.layer_shapes import LayerShape

Call = Callable[..., tuple[int, str]]
INPUT = ("--input", "1x3x16x16")


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("FXPRUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Real times of layers, and as much waiting as a test asks for: how busy a machine is cannot be had to order."""
    waited = [0.0]

    def measure(shapes: list[LayerShape], runtime: str, threads: int) -> KernelTimes:
        return KernelTimes(kernel_seconds(shapes, runtime=runtime, threads=threads).seconds, waited[0])

    defaults = measured.probe.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "measure", measure)
    return waited


def test_every_layer_has_a_row(call: Call, model_file: Path, cache: Path, machine: list[float]) -> None:
    code, text = call("probe", f"{model_file}:build", *INPUT)
    assert code == 0, text
    for row in ("0 ", "3 ", "7 "):
        assert f"\n{row}" in text
    assert "conv 3x3" in text
    assert "linear" in text
    assert "of the timings are new; all are kept in" in text
    assert [path.suffix for path in (cache / "probes").iterdir()] == [".json"]
    code, text = call("probe", f"{model_file}:build", *INPUT)
    assert "\n0 of the timings are new" in text


def test_values_are_json(call: Call, model_file: Path, cache: Path, machine: list[float]) -> None:
    code, text = call("probe", f"{model_file}:build", *INPUT, "--json")
    assert code == 0, text
    values = json.loads(text[text.index("{") :])
    assert (values["schema"], values["doubt"]) == (1, "")
    assert [(row["kind"], row["inputs"], row["outputs"]) for row in values["layers"]] == [
        ("conv 3x3", 3, 16), ("conv 3x3", 16, 32), ("linear", 32, 5),
    ]  # fmt: skip
    assert all(row["ms"] > 0 for row in values["layers"])


def test_times_of_a_busy_machine_are_shown_and_not_kept(
    call: Call, model_file: Path, cache: Path, machine: list[float]
) -> None:
    machine[0] = 0.4
    code, text = call("probe", f"{model_file}:build", *INPUT)
    assert code == 0, text
    assert "the machine was busy while layers were timed (40% of the time was spent waiting)" in " ".join(text.split())
    assert "kept in" not in text
    assert not (cache / "probes").exists()


def test_a_runtime_that_is_not_there_is_refused(call: Call, model_file: Path, cache: Path) -> None:
    code, text = call("probe", f"{model_file}:build", *INPUT, "--runtime", "abacus")
    assert code != 0
    assert "abacus" in text
