"""The recipes among the examples, with trainings of an epoch: each goes from end to end and says what it did."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

pytest.importorskip("sklearn")
pytest.importorskip("accelerate")

import fxprune
from fxprune.cli.recipes.recipe import read_recipe

Call = Callable[..., tuple[int, str]]
EXAMPLES = Path(fxprune.__file__).parents[1] / "examples"
GROWTH = {"interval": 1, "step": 0.2, "ceiling": 1.0, "stabilize": 300, "zero_every": 20}  # 305 steps of 4 images
METHODS = {
    "composition": ["tpp", "distillation"],
    "tpp": ["tpp"],
    "basis-scaling": ["basis-scaling"],
    "on-the-fly": ["hyperspherical"],
}

pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="installed without the repository around it")


def shortened(values: dict[str, Any]) -> str:
    """Return a recipe with less to train, and nothing to measure."""
    values["data"]["fraction"] = 0.2
    values["deploy"] = {"measure": False, "onnx": False}
    for step in values["passes"]:
        if step["name"] == "train":
            step |= {"epochs": 5 if "tpp" in step else 1, "batch": 4 if "tpp" in step else 32, "cpu": True}
        if "tpp" in step:
            step["tpp"]["schedule"] = GROWTH
        if "basis-scaling" in step:
            step["basis-scaling"]["drop_at"] = 4
    return tomli_w.dumps(values)


@pytest.mark.parametrize("name", METHODS)
def test_an_example_runs(call: Call, tmp_path: Path, name: str) -> None:
    path = EXAMPLES / f"{name}.toml"
    assert f"fxprune optimize --recipe examples/{path.name}" in path.read_text()
    short = tmp_path / "short.toml"
    short.write_text(shortened(tomllib.loads(path.read_text())))
    code, text = call("optimize", "--recipe", short, "--out", tmp_path / "out")
    assert code == 0, text
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["ok"] is True
    assert [method for training in report["trainings"] for method in training["methods"]] == METHODS[name]
    assert set(report["accuracy"]) == {"dense", "after"}
    if name == "on-the-fly":
        assert any("weights of 10 layers are pruned" in note for note in report["notes"])
    else:
        assert report["after"]["params"] < 0.6 * report["before"]["params"]


def test_every_recipe_among_the_examples_is_read() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.toml")} == set(METHODS)
    for name in METHODS:
        assert read_recipe(EXAMPLES / f"{name}.toml")["data"] == "digits"
