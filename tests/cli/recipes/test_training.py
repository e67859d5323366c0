"""Trainings in recipes: each method from end to end on digits, the whole composition, and every mistake by its line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("sklearn")
pytest.importorskip("accelerate")

import fxprune
from fxprune.cli.optimize.going_on import keep_plan, kept_plan
from fxprune.cli.recipes.lines import line_of
from fxprune.cli.recipes.options import NOWHERE, Options, PassChoice, merge
from fxprune.cli.recipes.recipe import read_recipe, write_recipe
from fxprune.errors import InputError
from fxprune.planning import Plan
from fxprune.training import load_data

Call = Callable[..., tuple[int, str]]
Write = Callable[..., Path]
Start = Callable[..., "subprocess.Popen[str]"]
SECONDS = 500  # until a process that hangs is ended
MODEL = """
from torch import nn

def build(width=12):
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )
"""
HEAD = """
[model]
spec = "{model}:build"
weights = "dense.safetensors"

[data]
spec = "digits"
fraction = 0.4

[deploy]
measure = false
onnx = {onnx}
"""
GROWTH = "schedule = { interval = 1, step = 0.02, ceiling = 1.0, stabilize = 150, zero_every = 20 }"
TPP = f"""
[[passes]]
name = "train"
epochs = 14
batch = 32
lr = 0.005
schedule = "constant"
cpu = true
[passes.tpp]
ratios = 0.5
{GROWTH}

[[passes]]
name = "prune-channels"
"""
WHOLE = f"""
{TPP}
[[passes]]
name = "over-parameterize"
rate = 2

[[passes]]
name = "train"
epochs = 2
lr = 0.05
cpu = true
distillation = {{ gamma = 10 }}

[[passes]]
name = "reparameterize"
only_blocks = true

[[passes]]
name = "fuse-batchnorm"
"""
BASIS = """
[[passes]]
name = "decompose-basis"

[[passes]]
name = "train"
epochs = 10
lr = 0.05
cpu = true
basis-scaling = { params = 0.75, drop_at = 20 }

[[passes]]
name = "merge-basis"

[[passes]]
name = "fuse-batchnorm"
"""
SPHERE = """
[[passes]]
name = "train"
epochs = 12
lr = 0.02
cpu = true
hyperspherical = { amount = 0.5, strength = 10, penalty = { margin = 0.4 } }

[[passes]]
name = "prune-weights"
criterion = "trained"

[[passes]]
name = "calibrate-batchnorm"
batch = 100
max_batches = 5

[[passes]]
name = "train"
epochs = 1
cpu = true
keep-pruned = {}
"""


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model in a file, and trained weights of it."""
    folder = tmp_path_factory.mktemp("dense")
    (folder / "small_net.py").write_text(MODEL)
    words = [f"{folder / 'small_net.py'}:build", "--data", "digits", "--epochs", "6", "--lr", "0.1", "--cpu"]
    words = [sys.executable, "-m", "fxprune", "finetune", *words, "--no-onnx", "--out", str(folder / "out")]
    environment = {**os.environ, "PYTHONPATH": str(Path(fxprune.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    (folder / "out" / "model.safetensors").rename(folder / "dense.safetensors")
    return folder


@pytest.fixture
def recipe(dense: Path) -> Write:
    """Write a recipe beside the dense model."""

    def written(steps: str, *, onnx: bool = True) -> Path:
        path = dense / "recipe.toml"
        path.write_text(HEAD.format(model=dense / "small_net.py", onnx=str(onnx).lower()) + steps)
        return path

    return written


def right_of_file(folder: Path) -> float:
    """Return the accuracy of the exported file on the test set."""
    images, labels = zip(*load_data("digits").test, strict=True)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    (logits,) = session.run(None, {session.get_inputs()[0].name: torch.stack(images).numpy()})
    return float((np.argmax(logits, 1) == np.asarray(labels)).mean())


def optimized(call: Call, path: Path, out: Path) -> dict[str, Any]:
    code, text = call("optimize", "--recipe", path, "--out", out)
    assert code == 0, text
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    assert report["ok"] is True
    if "onnx" in report:
        assert report["onnx"]["max_relative_error"] <= 1e-4
        assert report["accuracy"]["after"] == pytest.approx(right_of_file(out), abs=0.004)  # one may fall otherwise
    for name in ("report.html", "report.md"):
        page = (out / name).read_text(encoding="utf-8")
        assert "What was trained" in page
        assert f"{report['accuracy']['after']:.2%} in the end" in page.replace("\\", "")
    assert "trained for" in text
    return report


def test_the_whole_composition_is_one_recipe(call: Call, recipe: Write, dense: Path, tmp_path: Path) -> None:
    path, out = recipe(WHOLE), tmp_path / "out"
    report = optimized(call, path, out)
    first, second = report["trainings"]
    assert (first["name"], first["gives"], first["step"]) == ("1-tpp", "plan", 1)
    assert (second["name"], second["gives"], second["step"]) == ("2-distillation", "weights", 4)
    assert first["methods"]["tpp"]["ratios"] == 0.5
    assert first["recipe"]["lr"] == 0.005
    assert report["plan"]["importance"] == "tpp"
    assert report["plan"]["budget"] == {}
    assert report["verify"]["max_relative_error"] <= 1e-9
    assert report["after"]["macs"] < 0.5 * report["before"]["macs"]
    assert [entry["name"] for entry in report["passes"]] == ["over-parameterize", "reparameterize", "fuse-batchnorm"]
    assert report["accuracy"]["dense"] > 0.9
    assert report["accuracy"]["after"] > 0.85
    kept = load_file(out / "model.safetensors")
    was = load_file(dense / "dense.safetensors")
    assert kept.keys() == was.keys()  # collapsed: the old names
    assert kept["3.weight"].shape == (8, 12, 3, 3)
    for number in ("1-tpp", "2-distillation"):
        names = {each.name for each in (out / "training" / number).iterdir()}
        assert {"checkpoint.safetensors", "metrics.jsonl", "leads.json"} <= names
    code, text = call("optimize", "--recipe", path, "--out", out)  # all is done: it goes through at once
    assert code == 0, text
    again = json.loads((out / "report.json").read_text())
    assert again["trainings"] == report["trainings"]
    assert all(torch.equal(value, kept[name]) for name, value in load_file(out / "model.safetensors").items())
    net: dict[str, Any] = {}
    exec(MODEL, net)
    loaded = fxprune.load(out, net["build"])
    assert all(torch.equal(value, kept[name]) for name, value in loaded.module.state_dict().items())


def test_other_steps_in_front_are_another_training(call: Call, recipe: Write, tmp_path: Path) -> None:
    out = tmp_path / "out"
    optimized(call, recipe(TPP, onnx=False), out)
    changed = TPP.replace("ratios = 0.5", "ratios = 0.25")
    code, text = call("optimize", "--recipe", recipe(changed, onnx=False), "--out", out)
    assert code == 2
    assert "ratios was 0.5 and is 0.25" in text
    assert "--no-resume" in text
    code, text = call("optimize", "--recipe", recipe(changed, onnx=False), "--out", out, "--no-resume")
    assert code == 0, text
    assert json.loads((out / "report.json").read_text())["trainings"][0]["methods"]["tpp"]["ratios"] == 0.25


def test_a_basis_is_scaled_and_merged(call: Call, recipe: Write, tmp_path: Path) -> None:
    report = optimized(call, recipe(BASIS), tmp_path / "out")
    assert report["plan"] is None
    assert report["verify"] is None
    assert report["after"]["params"] <= 0.75 * report["before"]["params"]
    assert report["accuracy"]["after"] > 0.8
    assert not (tmp_path / "out" / "plan.json").exists()
    with pytest.raises(InputError, match="merge-basis"):
        fxprune.load(tmp_path / "out", torch.nn.Identity)


def test_weights_are_pruned_on_the_fly(call: Call, recipe: Write, tmp_path: Path) -> None:
    report = optimized(call, recipe(SPHERE), tmp_path / "out")
    assert [entry["name"] for entry in report["trainings"]] == ["1-hyperspherical", "2-keep-pruned"]
    assert [entry["name"] for entry in report["passes"]] == ["prune-weights", "calibrate-batchnorm"]
    assert report["accuracy"]["after"] > 0.9
    weight = load_file(tmp_path / "out" / "model.safetensors")["3.weight"].flatten(1)
    most = [int((row == row.mode().values).sum()) for row in weight]  # what stands for all that was pruned
    assert sum(most) == pytest.approx(0.5 * weight.numel(), rel=0.05)
    net: dict[str, Any] = {}
    exec(MODEL, net)
    loaded = fxprune.load(tmp_path / "out", net["build"]).module.state_dict()
    assert torch.equal(loaded["3.weight"].flatten(1), weight)


@pytest.mark.parametrize("method", ["growing-l2", "plain-l1"])
def test_the_baselines_give_plans(call: Call, recipe: Write, tmp_path: Path, method: str) -> None:
    steps = TPP.replace("passes.tpp", f"passes.{method}")
    steps = steps if method == "growing-l2" else steps.replace(GROWTH, "")
    report = optimized(call, recipe(steps, onnx=False), tmp_path / "out")
    assert report["plan"]["importance"] == method.removeprefix("plain-")
    assert report["widths"][1] == {"name": "3", "before": 16, "after": 8}


def test_plain_fine_tuning_behind_a_budget(call: Call, recipe: Write, tmp_path: Path) -> None:
    steps = """
    [plan]
    macs = 0.5
    round_to = 1
    [[passes]]
    name = "prune-channels"
    [[passes]]
    name = "train"
    epochs = 2
    lr = 0.05
    cpu = true
    """
    report = optimized(call, recipe(steps, onnx=False), tmp_path / "out")
    (only,) = report["trainings"]
    assert only["name"] == "1-plain"
    assert only["accuracy"]["after"] > only["accuracy"]["before"]
    assert report["plan"]["budget"] == {"macs": 0.5}


@pytest.mark.parametrize("steps", [WHOLE, BASIS, SPHERE], ids=["whole", "basis", "sphere"])
def test_what_is_written_is_read(recipe: Write, tmp_path: Path, steps: str) -> None:
    options = merge(read_recipe(recipe(steps)), {})
    (tmp_path / "again.toml").write_text(write_recipe(options))
    again = merge(read_recipe(tmp_path / "again.toml"), {})
    assert Options(**{**vars(again), "weights": None}) == Options(**{**vars(options), "weights": None})
    assert again.weights == (options.weights or Path()).resolve()


@pytest.mark.parametrize("steps", [WHOLE, BASIS, SPHERE], ids=["whole", "basis", "sphere"])
def test_the_script_does_the_same(call: Call, recipe: Write, tmp_path: Path, steps: str) -> None:
    steps = steps.replace('[[passes]]\nname = "fuse-batchnorm"\n', "")  # so that the weights that are kept are the last
    path = recipe(steps, onnx=False)
    code, text = call("optimize", "--recipe", path, "--out", tmp_path / "out", "--print-script")
    assert code == 0, text
    script = text[text.index("import torch") :] + 'torch.save(traced.module.state_dict(), "weights.pt")\n'
    (tmp_path / "script.py").write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(Path(fxprune.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=SECONDS,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    if (tmp_path / "out" / "plan.json").exists():
        plans = [json.loads((place / "plan.json").read_text()) for place in (tmp_path, tmp_path / "out")]
        assert plans[0] == plans[1]
    one, other = torch.load(tmp_path / "weights.pt"), load_file(tmp_path / "out" / "model.safetensors")
    assert one.keys() == other.keys()
    assert all(torch.allclose(one[name], other[name], rtol=1e-3, atol=1e-4) for name in other)


# ---------------------------------------------------------------- being stopped


def test_a_training_that_was_stopped_goes_on(
    call: Call,
    start: Start,
    at_checkpoint: Callable[[int, signal.Signals], str],
    recipe: Write,
    dense: Path,
    tmp_path: Path,
) -> None:
    path, out = recipe(WHOLE.replace("epochs = 14", "epochs = 14\nsave_every = 1"), onnx=False), tmp_path / "out"
    process = start("optimize", "--recipe", path, "--out", out, before=at_checkpoint(60, signal.SIGINT))
    try:
        _, said = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert (out / "training" / "1-tpp" / "checkpoint.safetensors").exists()
    assert f"the same command goes on from {out / 'training'}" in " ".join(said.split())
    assert [each.name for each in out.iterdir()] == ["training"]
    report = optimized(call, path, out)
    whole = optimized(call, path, tmp_path / "whole")
    assert report["accuracy"] == whole["accuracy"]
    one, other = (load_file(folder / "model.safetensors") for folder in (out, tmp_path / "whole"))
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_a_measured_plan_is_kept_for_the_same_steps(tmp_path: Path) -> None:
    steps = (PassChoice("remove-identity"), PassChoice("prune-channels"), PassChoice("train", {"epochs": 3}))
    options = Options("a:b", NOWHERE, latency=0.5, passes=steps, data="digits")
    plan = Plan({"0.weight": {0: [1, 2]}}, "f" * 8, "Net")
    assert kept_plan(tmp_path, options, 1) is None
    keep_plan(tmp_path, options, 1, plan, [[0.5, 0.45]])
    for same in (options, replace(options, passes=(*steps, PassChoice("fuse-batchnorm"))), replace(options, workers=2)):
        found = kept_plan(tmp_path, same, 1)
        assert found is not None
        assert (found[0].hash, found[1]) == (plan.hash, [[0.5, 0.45]])
    for other in (replace(options, latency=0.6), replace(options, seed=1), replace(options, passes=steps[1:])):
        assert kept_plan(tmp_path, other, 1) is None


# ---------------------------------------------------------------- mistakes

CUT = '\n[[passes]]\nname = "prune-channels"\n'
WEIGHTS = '[[passes]]\nname = "prune-weights"\namount = 0.5\n'
DECOMPOSE = '[[passes]]\nname = "decompose-basis"\n'
PLAIN = '[[passes]]\nname = "train"\n'
START = '[data]\nspec = "digits"\n[[passes]]\nname = "train"\n'
MISTAKES = {
    "an unknown method": (START + "tppp = {}\n" + CUT, "line 5: train has no option and no method 'tppp'"),
    "no table": (START + "tpp = 0.5\n" + CUT, "line 5: tpp = 0.5 is not a table of its options"),
    "an unknown option of a method": (
        START + "tpp = { ratio = 0.5 }\n" + CUT,
        "line 5: tpp has no option 'ratio'; it takes ratios, schedule",
    ),
    "an option of another type": (
        START + 'epochs = 3\n[passes.tpp]\nresidual = true\nratios = "many"\n' + CUT,
        "line 8: tpp: ratios = 'many' is not a number or a table of numbers",
    ),
    "a schedule that is not there": (
        START + 'tpp = { ratios = 0.5, schedule = "fast" }\n' + CUT,
        'line 5: tpp: schedule = \'fast\' is not "published" or "imagenet" or "short" or a table with interval',
    ),
    "a schedule of nonsense": (
        START + "tpp = { ratios = 0.5, schedule = { interval = 0 } }\n" + CUT,
        "line 5: tpp: Growth(interval=0",
    ),
    "an option that is missing": (START + "tpp = {}\n" + CUT, "line 5: tpp needs ratios: a number or a table of numb"),
    "what a file cannot hold": (START + "hyperspherical = { steps = 3 }\n", "line 5: hyperspherical has no option 'st"),
    "a text for a number": (START + 'lr = "fast"\n' + CUT, "line 5: train: lr = 'fast' is not a number"),
    "a number out of range": (START + "epochs = 0\n" + CUT, "line 5: train: epochs is 0"),
    "an unknown schedule": (START + 'schedule = "never"\n' + CUT, "train: there is no schedule 'never'"),
    "a schedule of the other command": (START + 'schedule = "allr"\n' + CUT, "line 5: the schedule 'allr' is for"),
    "no data": (
        '[[passes]]\nname = "train"\ntpp = { ratios = 0.5 }\n' + CUT,
        "line 2: train needs data: add a section",
    ),
    "data without a name": ("[data]\nfraction = 0.5\n", "line 1: [data] needs spec"),
    "two ways at once": (
        START + "tpp = { ratios = 0.5 }\nhyperspherical = {}\n" + CUT,
        "line 6: one training prunes in one way, and this one has tpp and hyperspherical",
    ),
    "two plans": (
        "[plan]\nmacs = 0.5\n" + START + "tpp = { ratios = 0.5 }\n" + CUT,
        "line 1: [plan] is for prune-channels, and the training in front of it makes another plan",
    ),
    "a plan for nothing": (
        '[plan]\nmacs = 0.5\n[[passes]]\nname = "prune-weights"\namount = 0.5\n',
        "line 1: [plan] is for prune-channels, and there is no prune-channels",
    ),
    "a plan that nothing carries out": (
        START + "tpp = { ratios = 0.5 }\n" + CUT.replace("prune-channels", "fuse-batchnorm") + CUT,
        "line 5: tpp ends with a plan that nothing carries out: the step behind it has to be prune-channels",
    ),
    "no dense teacher": (
        START + "distillation = {}\n" + CUT,
        "line 5: there is no dense teacher: distillation learns from the model as it was before anything was pruned",
    ),
    "no basis": (START + "basis-scaling = {}\n" + CUT, "line 5: basis-scaling needs the pass decompose-basis in front"),
    "nothing pruned": (START + "keep-pruned = {}\n" + CUT, "line 5: keep-pruned needs the pass prune-weights in front"),
    "no trained set": (
        '[[passes]]\nname = "prune-weights"\ncriterion = "trained"\n',
        'line 3: criterion = "trained" needs a train step with hyperspherical in front of it',
    ),
    "a trained set that was trained away": (
        START + "hyperspherical = {}\n" + PLAIN + WEIGHTS.replace("amount = 0.5", 'criterion = "trained"'),
        'line 10: criterion = "trained" takes the set that hyperspherical drove near zero, and a train step without it',
    ),
    "pruned weights that a training moves": (
        WEIGHTS + START + WEIGHTS,
        "line 7: this training would move the weights that prune-weights pruned in front of it, and none would be "
        "pruned any more: add keep-pruned = {} to it",
    ),
    "vectors that nothing takes out": (
        WEIGHTS + DECOMPOSE + START + "basis-scaling = { params = 0.5 }\n",
        "line 10: basis-scaling drives weights to where they can be taken out, and nothing takes them out: a step "
        "behind it has to be merge-basis",
    ),
    "weights that nothing takes out": (
        START + "hyperspherical = {}\n" + '[[passes]]\nname = "merge-basis"\n',
        "line 5: hyperspherical drives weights to where they can be taken out, and nothing takes them out: a step "
        "behind it has to be prune-weights",
    ),
    "only a training": (START, "line 4: nothing here makes the model smaller"),
    "an option of calibration": (
        START + CUT + '[[passes]]\nname = "calibrate-batchnorm"\nbatches = 3\n',
        "calibrate-batchnorm has no option 'batches' here; it takes batch",
    ),
    "calibration of nothing": (
        START + CUT + '[[passes]]\nname = "calibrate-batchnorm"\nmax_batches = 0\n',
        "max_batches = 0 is not a whole number of at least 1",
    ),
}


@pytest.mark.parametrize(
    "steps",
    [
        WEIGHTS + START + "keep-pruned = {}\n",
        START + "hyperspherical = { strength = 0 }\n" + CUT,
        WEIGHTS + DECOMPOSE + START + "basis-scaling = {}\n",
        DECOMPOSE + START + "basis-scaling = { macs = 0.5 }\n" + '[[passes]]\nname = "merge-basis"\n',
    ],
    ids=["kept", "the sphere alone", "no budget", "merged"],
)
def test_trainings_that_nothing_is_wrong_with(tmp_path: Path, steps: str) -> None:
    (tmp_path / "recipe.toml").write_text(steps)
    assert read_recipe(tmp_path / "recipe.toml")["passes"]


@pytest.mark.parametrize(("text", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_named_with_their_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "recipe.toml").write_text(text)
    with pytest.raises(InputError) as error:
        read_recipe(tmp_path / "recipe.toml")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("steps", "words", "code", "said"),
    [
        (TPP, ["--macs", 0.5], 2, "--macs is for a plan under a budget, and in this recipe a training makes the plan"),
        (TPP, ["--importance", "l1"], 2, "--importance is for a plan"),
        (PLAIN + TPP.replace("epochs = 14", "epochs = 1"), [], 2, "step 2: train (tpp): the schedule of TPP takes 200"),
        (TPP.replace("epochs = 14", "epochs = 1"), [], 2, "takes 200 steps, and training will have 16"),
        (BASIS.replace("drop_at = 20", "drop_at = 161"), [], 2, "step 2: train (basis-scaling): the training has 80"),
        (TPP.replace("ratios = 0.5", 'ratios = { "nothing.*" = 0.5 }'), [], 2, "nothing.*"),
        (TPP.replace("lr = 0.005", "lr = 1e30"), [], 1, "at step"),
        (SPHERE.replace("batch = 100", "batch = 5000"), [], 2, "there are 509 training images"),
    ],
)
def test_what_cannot_be_done(
    call: Call, recipe: Write, tmp_path: Path, steps: str, words: list[object], code: int, said: str
) -> None:
    found, text = call("optimize", "--recipe", recipe(steps), *words, "--out", tmp_path / "out")
    assert found == code, text
    assert said in " ".join(text.split())
    assert not (tmp_path / "out" / "report.json").exists()
    assert not said.startswith("step 2") or not (tmp_path / "out").exists()  # before any step ran


def test_without_the_extra(call: Call, recipe: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    code, text = call("optimize", "--recipe", recipe(TPP), "--out", tmp_path / "out")
    assert code == 4
    assert "pip install 'fxprune[train]'" in text


def test_several_processes_are_refused(
    call: Call, recipe: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, text = call("optimize", "--recipe", recipe(TPP), "--out", tmp_path / "out")
    assert code == 2
    assert "trains in one process" in text


def test_lines_of_keys() -> None:
    text = "[a]\nx = 1\n[[b]]\ny = 1\nt.u = 2\n[[b]]\ny = 2\n[b.t]\nu = 3\n[c]\ny = 4\n"
    places = [("a", "x", 2), ("b 1", "y", 4), ("b 2", "y", 7), ("b 1", "t.u", 5), ("b 2", "t.u", 9), ("b 2", "t.v", 8)]
    places += [("b 2", "z", 6), ("c", "y", 11), ("d", "y", 1)]
    assert [line_of(text, table, key) for table, key, _ in places] == [line for _, _, line in places]
