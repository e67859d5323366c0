"""Models, weights and inputs as they are named on the command line, and how they are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fxprune.cli.loading import load_model
from fxprune.deploy.compact import save_compact

Call = Callable[..., tuple[int, str]]
INPUT = ["--input", "1x3x16x16"]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("nothing", "names no model"),
        ("no.such.package:build", "no module"),
        ("{file}:missing", "no attribute"),
        ("{file}:no_model", "must return a torch.nn.Module"),
        ("{folder}/absent.py:build", "no file"),
    ],
)
def test_a_specification_that_names_no_model(
    call: Call, model_file: Path, tmp_path: Path, spec: str, words: str
) -> None:
    code, text = call("groups", spec.format(file=model_file, folder=tmp_path), *INPUT)
    assert code == 2
    assert words in text.replace("\n", " ")


def test_a_module_that_raises_at_import(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "raises.py"
    path.write_text("raise RuntimeError('no licence key')")
    code, text = call("groups", f"{path}:build", *INPUT)
    assert code == 2
    assert "no licence key" in text


@pytest.mark.parametrize(
    ("shape", "words"),
    [("1x4x16x16", "does not run"), ("1x3x16x16:int64", "does not run"), ("3*16", "no shape"), ("1x3:abc", "no dtype")],
)
def test_inputs_that_do_not_fit(call: Call, model_file: Path, shape: str, words: str) -> None:
    code, text = call("groups", f"{model_file}:build", "--input", shape)
    assert code == 2
    assert words in text.replace("\n", " ")


def _weights(model_file: Path) -> dict[str, torch.Tensor]:
    scope: dict[str, object] = {}
    exec(model_file.read_text(), scope)
    state: dict[str, torch.Tensor] = scope["build"]().state_dict()  # type: ignore[operator]
    return state


def test_weights_that_cannot_be_used(call: Call, model_file: Path, tmp_path: Path) -> None:
    state = _weights(model_file)
    save_file(state, tmp_path / "good.safetensors")
    whole = (tmp_path / "good.safetensors").read_bytes()
    (tmp_path / "short.safetensors").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "noise.safetensors").write_bytes(b"\xff" * 64)
    torch.save(state, tmp_path / "pickle.safetensors")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    torch.save({"other": torch.ones(1)}, tmp_path / "other.pt")
    torch.save(state, tmp_path / "whole.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:200])
    short = ("short.safetensors", "noise.safetensors", "pickle.safetensors")
    for name in (*short, "module.pt", "other.pt", "cut.pt", "none.pt"):
        code, text = call("groups", f"{model_file}:build", *INPUT, "--weights", tmp_path / name)
        assert (code, name if name in text.replace("\n", "") else text) == (2, name)
        assert "Traceback" not in text
    for name in ("good.safetensors", "whole.pt"):
        assert call("groups", f"{model_file}:build", *INPUT, "--weights", tmp_path / name)[0] == 0


def test_compact_weights_are_those_that_were_written(model_file: Path, tmp_path: Path) -> None:
    state = _weights(model_file)
    save_compact(tmp_path / "compact.safetensors", {name: torch.ones_like(value) for name, value in state.items()})
    model = load_model(f"{model_file}:build", [], tmp_path / "compact.safetensors", 0)
    assert all(bool((value == 1).all()) for value in model.state_dict().values())
