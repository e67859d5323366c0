"""Folders of ``optimize`` read back: the same numbers, and every damage refused."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

import fxprune
from fxprune.cli.main import app
from fxprune.eager import apply_to
from fxprune.errors import InputError, PlanError

SOURCE = """
from torch import nn


class Net(nn.Module):
    def __init__(self, classes=5):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.ReLU()
        )
        self.out = nn.Linear(24, classes)

    def forward(self, x):
        return self.out(self.body(x).mean((2, 3)))
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "net.py"
    path.write_text(SOURCE)
    return path


def imported(name: str, source: Path) -> Any:
    """Return a file as a module."""
    spec = importlib.util.spec_from_file_location(name, source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def factory(source: Path) -> Callable[..., nn.Module]:
    module = imported("net_of_results", source)
    return module.Net  # type: ignore[no-any-return]


def optimized(source: Path, out: Path, *words: object, recipe: str = "") -> Path:
    if recipe:
        (out.parent / "recipe.toml").write_text(recipe)
        words = ("--recipe", out.parent / "recipe.toml", *words)
    command = ["optimize", f"{source}:Net", "--input", "1x3x12x12", "--macs", "0.5", "--round-to", "2", "--no-latency"]
    result = CliRunner().invoke(app, [*command, "--out", str(out), *map(str, words)])
    assert result.exit_code == 0, result.output
    return out


RECIPES = {
    "plain": "",
    "norms folded before the cut": '[[passes]]\nname = "fuse-batchnorm"\n[[passes]]\nname = "prune-channels"\n',
}


@pytest.mark.parametrize("words", [(), ("--compensate", "constant")], ids=["cut", "compensated"])
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_the_same_model_comes_back(
    source: Path, factory: Callable[..., nn.Module], tmp_path: Path, recipe: str, words: tuple[str, ...]
) -> None:
    out = optimized(source, tmp_path / "out", *words, recipe=recipe)
    loaded = fxprune.load(out, factory)
    args, kwargs = loaded.inputs(batch=3)
    parity = fxprune.check_parity(loaded, out / "model.onnx")  # the file of the folder is what was checked then
    assert parity.max_relative_error <= 1e-5
    saved = load_file(out / "model.safetensors")
    state = loaded.module.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in saved.items())
    assert loaded.run(args, kwargs)[0].shape == (3, 5)


def test_it_goes_back_into_the_class(source: Path, factory: Callable[..., nn.Module], tmp_path: Path) -> None:
    out = optimized(source, tmp_path / "out")
    model = factory()
    assert apply_to(fxprune.load(out, factory), model).max_relative_error <= 1e-9
    assert model.out.in_features < 24


def test_without_a_report_the_example_is_given(source: Path, factory: Callable[..., nn.Module], tmp_path: Path) -> None:
    out = optimized(source, tmp_path / "out")
    (out / "report.json").unlink()
    assert fxprune.load(out, factory, torch.randn(1, 3, 12, 12)).batch == 2


def test_another_model_is_refused(source: Path, factory: Callable[..., nn.Module], tmp_path: Path) -> None:
    out = optimized(source, tmp_path / "out")
    with pytest.raises(PlanError, match="made for another graph"):
        fxprune.load(out, lambda: factory(classes=6))


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def _rewrite(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def run(path: Path) -> None:
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return run


DAMAGES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "no plan": ("plan.json", Path.unlink, "plan.json cannot be read"),
    "no weights": ("model.safetensors", Path.unlink, "cannot be read as safetensors"),
    "truncated weights": ("model.safetensors", _truncate, "cannot be read as safetensors"),
    "a damaged report": ("report.json", lambda path: path.write_text("{"), "report.json is damaged"),
    "a binary plan": ("plan.json", lambda path: path.write_bytes(b"\xff\xfe\x00"), "is no text"),
    "a tensor too few": ("model.safetensors", _rewrite(lambda t: t.pop("out.bias")), "lacks out.bias"),
    "a tensor too many": (
        "model.safetensors",
        _rewrite(lambda t: t.update(stranger=torch.ones(1))),
        "has stranger, which this model has not",
    ),
    "another shape": (
        "model.safetensors",
        _rewrite(lambda t: t.update({"out.bias": torch.ones(7)})),
        r"out.bias has shape \(7,\)",
    ),
}


@pytest.mark.parametrize(("name", "damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_damage_is_refused(
    source: Path,
    factory: Callable[..., nn.Module],
    tmp_path: Path,
    name: str,
    damage: Callable[[Path], object],
    message: str,
) -> None:
    out = optimized(source, tmp_path / "out", "--no-onnx")
    damage(out / name)
    with pytest.raises(InputError, match=message):
        fxprune.load(out, factory)


DEEP = """
from torch import nn


class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)

    def forward(self, x):
        return (x + self.norm(self.conv(x))).relu()


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 8, 3), Branch(), Branch(), Branch(), nn.Flatten(), nn.Linear(800, 4))
"""


REMOVALS = ['layers = ["2.conv"]', 'layers = 0.4\nimportance = "random"']


@pytest.mark.parametrize("options", REMOVALS, ids=["names", "budget"])
def test_without_the_layers_that_were_chosen_by_other_weights(tmp_path: Path, options: str) -> None:
    source = tmp_path / "deep.py"
    source.write_text(DEEP)
    module = imported("deep_of_results", source)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'[[passes]]\nname = "remove-layers"\n{options}\n[[passes]]\nname = "fuse-batchnorm"\n')
    words = [
        "optimize",
        f"{source}:Net",
        "--input",
        "1x3x12x12",
        "--recipe",
        recipe,
        "--no-latency",
        "--out",
        tmp_path / "out",
    ]
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == 0, result.output
    loaded = fxprune.load(tmp_path / "out", module.Net)
    assert fxprune.check_parity(loaded, tmp_path / "out" / "model.onnx").max_relative_error <= 1e-5
    model = module.Net().eval()
    assert apply_to(loaded, model).removed
    assert set(model.state_dict()) == set(loaded.module.state_dict())


CONSTANTS = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 4)
        self.register_buffer("scale", torch.rand(16) + 0.5, persistent=False)
        self.shift = torch.rand(16)
        self.register_buffer("turned", torch.arange(16).flip(0), persistent=False)

    def forward(self, x):
        y = self.b((self.a(x).relu() * self.scale + self.shift)[:, self.turned]).relu()
        return self.out(y * (1 + y.mean(1, keepdim=True)))
"""


@pytest.fixture
def random_constants(tmp_path: Path) -> tuple[Path, Callable[[], nn.Module]]:
    """Return a folder of a model that draws tensors which are not in its state_dict, and the model's factory."""
    source = tmp_path / "constants.py"
    source.write_text(CONSTANTS)
    module = imported("constants_of_results", source)
    words = ["optimize", f"{source}:Net", "--input", "2x6", "--macs", "0.5", "--round-to", "1", "--no-latency"]
    result = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    return tmp_path / "out", module.Net


def test_tensors_outside_of_the_state_dict_come_back(
    random_constants: tuple[Path, Callable[[], nn.Module]],
) -> None:
    out, factory = random_constants
    torch.manual_seed(77)  # other constants than those of the run
    loaded = fxprune.load(out, factory)
    assert fxprune.check_parity(loaded, out / "model.onnx").max_relative_error <= 1e-5
    assert {"scale", "shift"} <= set(load_file(out / "constants.safetensors"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, "constants.safetensors is missing, and has to hold .*scale"),
        (_rewrite(lambda t: t.pop("scale")), "constants.safetensors lacks scale: tensors that the model computes with"),
        (_rewrite(lambda t: t.update(scale=torch.ones(3))), r"scale is torch.float32 of shape \(3,\), and this model"),
        (_rewrite(lambda t: t.update(stranger=torch.ones(3))), "has stranger, which this model has not"),
        (_truncate, "cannot be read as safetensors"),
    ],
    ids=["no file", "a tensor too few", "another shape", "a tensor too many", "truncated"],
)
def test_damaged_constants_are_refused(
    random_constants: tuple[Path, Callable[[], nn.Module]], damage: Callable[[Path], object], message: str
) -> None:
    out, factory = random_constants
    damage(out / "constants.safetensors")
    with pytest.raises(InputError, match=message):
        fxprune.load(out, factory)
