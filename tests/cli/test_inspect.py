"""``groups``, ``explain`` and ``export``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

Call = Callable[..., tuple[int, str]]
INPUT = ["--input", "1x3x16x16"]


def test_groups_as_json(call: Call, model_file: Path) -> None:
    code, text = call("groups", f"{model_file}:build", *INPUT, "--json")
    assert code == 0
    assert json.loads(text)["units"] == 16 + 32


def test_explain(call: Call, model_file: Path) -> None:
    code, text = call("explain", f"{model_file}:build", "7.weight", *INPUT)
    assert code == 0
    assert "the model returns it" in text.replace("\n", " ")
    code, text = call("explain", f"{model_file}:build", "7.wieght", *INPUT)
    assert code == 2
    assert "7.weight" in text


def test_export(call: Call, model_file: Path, tmp_path: Path) -> None:
    code, text = call("export", f"{model_file}:build", *INPUT, "--out", tmp_path / "m.onnx")
    assert code == 0, text
    assert (tmp_path / "m.onnx").is_file()
