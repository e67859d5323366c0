"""Recipes: read, written, run, printed as Python; and every mistake named with its line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxprune.cli.recipes.options import DEFAULT_PASSES, NOWHERE, Options, PassChoice, merge
from fxprune.cli.recipes.recipe import read_recipe, write_recipe
from fxprune.errors import InputError

Call = Callable[..., tuple[int, str]]
INPUT = ["--input", "1x3x16x16"]


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


def test_a_recipe_runs(call: Call, model_file: Path, tmp_path: Path) -> None:
    recipe = written(
        tmp_path,
        f"""
        [model]
        spec = "{model_file}:build"
        input = ["1x3x16x16"]
        [plan]
        macs = 0.5
        importance = "l1"
        round_to = 2
        [[passes]]
        name = "fuse-batchnorm"
        [[passes]]
        name = "prune-channels"
        [[passes]]
        name = "over-parameterize"
        rate = 2
        [[passes]]
        name = "reparameterize"
        [deploy]
        measure = false
        """,
    )
    code, text = call("optimize", "--recipe", recipe, "--out", tmp_path / "out")
    assert code == 0, text
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["after"]["macs"] <= 0.5 * report["before"]["macs"]
    assert [entry["name"] for entry in report["passes"]] == ["fuse-batchnorm", "over-parameterize", "reparameterize"]
    assert "latency" not in report
    again = written(tmp_path, report["recipe"])
    code, text = call("optimize", "--recipe", again, "--out", tmp_path / "again")
    assert code == 0, text
    assert (tmp_path / "again" / "plan.json").read_text() == (tmp_path / "out" / "plan.json").read_text()


def test_options_go_before_the_recipe(tmp_path: Path) -> None:
    recipe = read_recipe(
        written(tmp_path, '[model]\nspec = "a:b"\nseed = 3\n[plan]\nmacs = 0.5\n[deploy]\nthreads = 2\n')
    )
    options = merge(recipe, {"params": 0.4, "threads": 1, "input": ("1x2",), "no_latency": True, "out": Path("there")})
    assert (options.macs, options.params) == (None, 0.4)
    assert (options.threads, options.seed, options.inputs, options.measure) == (1, 3, ("1x2",), False)
    assert options.out == Path("there")
    assert options.passes == DEFAULT_PASSES


def test_printing_alone_runs_nothing(call: Call, model_file: Path, tmp_path: Path) -> None:
    words = [f"{model_file}:build", *INPUT, "--macs", 0.5, "--round-to", 2, "--print-recipe"]
    code, text = call("optimize", *words)
    assert code == 0, text
    found = read_recipe(written(tmp_path, text))
    assert found["macs"] == 0.5
    assert found["round_to"] == "2"
    assert found["passes"] == DEFAULT_PASSES


def test_neither_a_folder_nor_printing(call: Call, model_file: Path) -> None:
    code, text = call("optimize", f"{model_file}:build", *INPUT, "--macs", 0.5)
    assert code == 2
    assert "--out" in text
    code, text = call("optimize", "--macs", 0.5, "--print-recipe")
    assert code == 2
    assert "name the model" in text


@pytest.mark.parametrize("of_module", [True, False])
def test_the_script_makes_the_same_plan(call: Call, model_file: Path, tmp_path: Path, of_module: bool) -> None:
    spec = f"{model_file.stem}:build" if of_module else f"{model_file}:build"
    words = [f"{model_file}:build", *INPUT, "--macs", 0.5, "--seed", 5, "--protect", "0.*", "--no-latency"]
    code, text = call("optimize", *words, "--out", tmp_path / "out", "--print-script")
    assert code == 0, text
    script = text[text.index("import torch") :].replace(f"{model_file}:build", spec)
    (tmp_path / "script.py").write_text(script)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path.cwd()), str(model_file.parent)])}
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "plan.json").read_text()) == json.loads((tmp_path / "out" / "plan.json").read_text())
    assert (tmp_path / "model.onnx").exists()


MISTAKES = {
    "no TOML": ("[plan", "no TOML"),
    "an unknown section": ("[plan]\nmacs = 0.5\n[plam]\nx = 1\n", "line 3: 'plam' is no section"),
    "a key of another kind": ("macs = 0.5\n", "'macs' is no section"),
    "an unknown key": ('[plan]\nmacs = 0.5\nimportanc = "l1"\n', "line 3: [plan] has no 'importanc'"),
    "a text for a number": ('[plan]\n\nmacs = "half"\n', "line 3: [plan] macs = 'half' is not a number"),
    "true for a number": ("[deploy]\nthreads = true\n", "line 2: [deploy] threads = True is not a whole number"),
    "a number for true": ("[deploy]\nonnx = 1\n", "line 2: [deploy] onnx = 1 is not true or false"),
    "a text for a list": ('[model]\ninput = "1x3"\n', "line 2: [model] input = '1x3' is not a list of texts"),
    "a list of numbers": ("[model]\ninput = [1]\n", "line 2: [model] input = [1] is not a list of texts"),
    "an unknown pass": (
        '[[passes]]\nname = "prune-channels"\n[[passes]]\nname = "prune"\n',
        "line 4: there is no pass",
    ),
    "a pass without a name": ("[[passes]]\nrate = 2\n", "line 1: a pass needs a name"),
    "an unknown option of a pass": (
        '[[passes]]\nname = "prune-channels"\n[[passes]]\nname = "over-parameterize"\nrates_ = 2\n',
        "line 5: over-parameterize has no option 'rates_'",
    ),
    "an option out of range": (
        '[[passes]]\nname = "prune-channels"\n[[passes]]\nname = "over-parameterize"\nrate = 0\n',
        "line 5: over-parameterize cannot be made with these options",
    ),
    "a pass that needs data": (
        '[[passes]]\nname = "prune-channels"\n[[passes]]\nname = "calibrate-batchnorm"\n',
        "line 4: calibrate-batchnorm needs data: add a section [data]",
    ),
    "layers chosen by data": (
        '[[passes]]\nname = "remove-layers"\nmacs = 0.5\nimportance = "cka"\n',
        "line 4: remove-layers with importance = 'cka' is measured on data: add a section [data]",
    ),
    "segments of layers without data": (
        '[[passes]]\nname = "remove-layers"\nmacs = 0.5\nallocation = "segments"\n',
        "line 4: remove-layers with allocation = 'segments' is measured on data",
    ),
    "layers for no budget": ('[[passes]]\nname = "remove-layers"\n', "line 2: remove-layers cannot be made"),
    "batches of layers": (
        '[[passes]]\nname = "remove-layers"\nmacs = 0.5\nbatch = 0\n',
        "line 4: remove-layers: batch = 0 is not a whole number",
    ),
    "an unknown score of layers": (
        '[[passes]]\nname = "remove-layers"\nmacs = 0.5\nimportance = "tailor"\n',
        "Did you mean 'taylor'",
    ),
    "options of the cut": ('[[passes]]\nname = "prune-channels"\nverify = false\n', "line 3: prune-channels takes its"),
    "nothing smaller": ('[[passes]]\nname = "fuse-batchnorm"\n', "line 2: nothing here makes the model smaller"),
    "two cuts": ('[[passes]]\nname = "prune-channels"\n' * 2, "line 4: prune-channels is here twice"),
    "one table of passes": ('[passes]\nname = "prune-channels"\n', "passes are written as [[passes]]"),
}


@pytest.mark.parametrize(("text", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_named_with_their_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        read_recipe(written(tmp_path, text))
    assert message in str(error.value)
    assert "recipe.toml" in str(error.value)


def test_a_recipe_that_is_not_there(call: Call, tmp_path: Path) -> None:
    code, text = call("optimize", "--recipe", tmp_path / "none.toml", "--out", tmp_path / "out")
    assert code == 2
    assert "none.toml cannot be read" in text
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="no text in UTF-8"):
        read_recipe(tmp_path / "binary.toml")


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=("C",)), min_size=1, max_size=8)


@given(
    macs=st.floats(0.01, 1.0),
    protect=st.lists(TEXTS, max_size=3).map(tuple),
    inputs=st.lists(TEXTS, max_size=2).map(tuple),
    threads=st.integers(1, 8),
    measure=st.booleans(),
    rate=st.integers(1, 8),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    macs: float,
    protect: tuple[str, ...],
    inputs: tuple[str, ...],
    threads: int,
    measure: bool,
    rate: int,
) -> None:
    passes = (PassChoice("over-parameterize", {"rate": rate}), *DEFAULT_PASSES)
    options = Options(
        "a:b", NOWHERE, inputs, macs=macs, protect=protect, threads=threads, measure=measure, passes=passes
    )
    recipe = written(tmp_path_factory.mktemp("recipe"), write_recipe(options))
    assert merge(read_recipe(recipe), {}) == options
