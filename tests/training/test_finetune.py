"""A training that learns, is interrupted, goes on, and says what is wrong."""

from __future__ import annotations

import copy
import json
import resource
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fxprune import passes
from fxprune.capture import Traced, trace
from fxprune.errors import EnvironmentProblem, InputError, TrainingError
from fxprune.pipeline import Pipeline
from fxprune.training import Distillation, Finetuned, Objective, Recipe, evaluate, finetune, load_data, trainer
from fxprune.training.checkpoint import load_checkpoint, save_checkpoint
from fxprune.training.processes import make_accelerator
from fxprune.training.trainer import CHECKPOINT
from tests.training.conftest import Convnet, Pruned

QUICK = Recipe(epochs=2, batch=8, lr=0.05, save_every=1)


def _data(count: int = 40, seed: int = 0) -> TensorDataset:
    """Images of one colour, whose strength is the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 5
    noise = torch.randn(count, 3, 8, 8, generator=generator)
    return TensorDataset(labels[:, None, None, None] - 2 + 0.3 * noise, labels)


def _traced() -> Traced:
    return trace(Convnet().eval(), torch.randn(2, 3, 8, 8))


def _equal(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


class Stop(Objective):
    """Ends the process, as it were, after some steps."""

    def __init__(self, model: nn.Module, steps: int) -> None:
        self.model, self.left = model, steps

    def after_step(self) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def test_it_learns_and_leaves_what_it_was_given(tmp_path: Path) -> None:
    traced = _traced()
    before = copy.deepcopy(traced.module)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    rows: list[Any] = []
    recipe = Recipe(epochs=12, batch=8, lr=0.1)
    result = finetune(traced, _data(), _data(20, 1), recipe, out=tmp_path / "run", on_epoch=rows.append)
    assert torch.equal(torch.rand(2), expected)  # the caller's generators
    assert _equal(traced.module, before)
    assert not result.module.training
    assert set(vars(result.module)) == set(vars(traced.module))
    assert result.best["validation_accuracy"] >= 0.9
    assert evaluate(result.module, _data(20, 1))["accuracy"] == pytest.approx(result.best["validation_accuracy"])
    assert result.traced is not None
    assert result.traced.module is result.module
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == list(result.history) == rows
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")
    stored = load_file(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(stored[name], value) for name, value in result.module.state_dict().items())
    assert (tmp_path / "run" / "model.safetensors").stat().st_mode & 0o777 == (
        tmp_path / "run" / "metrics.jsonl"
    ).stat().st_mode & 0o777


def test_the_seed_decides() -> None:
    traced = _traced()
    first, again, other = (
        finetune(traced, _data(), recipe=Recipe(epochs=1, batch=8, seed=seed)).module for seed in (0, 0, 1)
    )
    assert _equal(first, again)
    assert not _equal(first, other)


RECIPES = {
    "plain": QUICK,
    "adamw, mean of weights, step": Recipe(
        epochs=2, batch=8, optimizer="adamw", lr=0.01, ema=0.9, schedule="step", warmup=0.2, save_every=1
    ),
    "accumulated, clipped": Recipe(epochs=2, batch=4, accumulate=2, clip=0.5, schedule="slr", save_every=1),
    "bf16": Recipe(epochs=2, batch=8, precision="bf16", label_smoothing=0.1, save_every=1),
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_an_interrupted_training_ends_bit_for_bit_where_the_other_does(tmp_path: Path, recipe: Recipe) -> None:
    traced = _traced()  # with dropout, which draws random numbers

    def run(folder: str, objectives: tuple[Any, ...]) -> Finetuned:
        return finetune(traced, _data(), _data(20, 1), recipe, objectives=objectives, out=tmp_path / folder)

    whole = run("whole", (lambda model: Stop(model, 1000),))
    for steps in (1, 3, 2, 3):  # one after the other, in the middle of epochs and at their ends
        with pytest.raises(KeyboardInterrupt):
            run("cut", (lambda model, steps=steps: Stop(model, steps),))
    torch.manual_seed(99)
    resumed = run("cut", (lambda model: Stop(model, 1000),))
    assert _equal(whole.module, resumed.module)
    for figure in ("train_loss", "train_accuracy", "validation_loss"):
        assert [row[figure] for row in whole.history] == [row[figure] for row in resumed.history]


def test_a_finished_training_returns_at_once(tmp_path: Path) -> None:
    traced = _traced()
    first = finetune(traced, _data(), recipe=QUICK, out=tmp_path)
    again = finetune(traced, _data(), recipe=QUICK, out=tmp_path)
    assert _equal(first.module, again.module)
    assert first.history == again.history  # the seconds too
    fresh = finetune(traced, _data(), recipe=QUICK, out=tmp_path, resume=False)
    assert fresh.history != first.history
    assert _equal(fresh.module, first.module)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"recipe": Recipe(epochs=3, batch=8, lr=0.05)}, "recipe: epochs was 2 and is 3"),
        ({"train": _data(48)}, "training data: order"),
        ({"model": Convnet(width=6)}, r"model: conv1\.weight was"),
        ({"objectives": [lambda model: Objective()]}, "objectives was"),
    ],
)
def test_the_checkpoint_of_another_training_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    given = {"model": Convnet(), "train": _data(), "recipe": QUICK, "out": tmp_path}
    finetune(**given)  # type: ignore[arg-type]
    before = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(InputError, match=words):
        finetune(**given | change)  # type: ignore[arg-type]
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_a_truncated_checkpoint_is_refused_and_left(tmp_path: Path) -> None:
    model = Convnet()
    finetune(model, _data(), recipe=QUICK, out=tmp_path)
    content = (tmp_path / CHECKPOINT).read_bytes()[:-100]
    (tmp_path / CHECKPOINT).write_bytes(content)
    with pytest.raises(InputError, match="cut short"):
        finetune(model, _data(), recipe=QUICK, out=tmp_path)
    assert (tmp_path / CHECKPOINT).read_bytes() == content


def test_a_checkpoint_in_another_form_is_refused_and_left(tmp_path: Path) -> None:
    model, path = Convnet(), tmp_path / CHECKPOINT
    finetune(model, _data(), recipe=QUICK, out=tmp_path)
    tree = load_checkpoint(path)
    for other in (
        {**tree, "progress": {**tree["progress"], "phase": 1}},
        {key: value for key, value in tree.items() if key != "processes"},
        {**tree, "model": {**tree["model"], "more": torch.zeros(1)}},
    ):
        save_checkpoint(path, other)
        before = path.read_bytes()
        with pytest.raises(InputError, match=f"{CHECKPOINT} holds a training in another form"):
            finetune(model, _data(), recipe=QUICK, out=tmp_path)
        assert path.read_bytes() == before


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Full(Stop):
        def after_step(self) -> None:
            self.left -= 1
            if not self.left:
                resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))

    model = Convnet()
    whole = finetune(model, _data(), recipe=QUICK, objectives=[lambda model: Full(model, 1000)])
    try:
        with pytest.raises(InputError, match="the old file is unchanged"):
            finetune(model, _data(), recipe=QUICK, objectives=[lambda model: Full(model, 4)], out=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert load_checkpoint(tmp_path / CHECKPOINT)["progress"]["step"] == 3
    assert {path.name for path in tmp_path.iterdir()} == {CHECKPOINT}
    resumed = finetune(model, _data(), recipe=QUICK, objectives=[lambda model: Full(model, 1000)], out=tmp_path)
    assert _equal(whole.module, resumed.module)


class Spoiled(Stop):
    """Makes something infinite before the last of its steps."""

    def extra_loss(self) -> Tensor | float:
        return float("nan") if self.left == 1 and self.what == "loss" else 0.0

    def after_backward(self) -> None:
        if self.left == 1 and self.what == "gradients":
            next(self.model.parameters()).grad.fill_(float("inf"))  # type: ignore[union-attr]

    def after_step(self) -> None:
        self.left -= 1
        if not self.left and self.what == "weights":
            nn.init.constant_(next(self.model.parameters()), float("nan"))

    what = ""


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("loss", "the loss is nan at step 6"),
        ("gradients", "norm of the gradients is inf at step 6"),
        ("weights", "a weight is not finite at step 7"),
    ],
)
def test_what_is_no_number_stops_training(tmp_path: Path, what: str, words: str) -> None:
    def spoiled(model: nn.Module) -> Objective:
        objective = Spoiled(model, 7)
        objective.what = what
        return objective

    with pytest.raises(TrainingError, match=rf"{words}.*{CHECKPOINT}"):
        finetune(Convnet(), _data(), recipe=QUICK, objectives=[spoiled], out=tmp_path)
    tree = load_checkpoint(tmp_path / CHECKPOINT)
    assert tree["progress"]["step"] == 6
    assert all(value.isfinite().all() for value in tree["model"].values())


@pytest.fixture
def scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give trainings the scaler of fp16, made for the CPU here, where accelerate makes none."""

    def with_scaler(*args: Any) -> Any:
        accelerator = make_accelerator(*args)
        accelerator.scaler = torch.amp.GradScaler("cpu")
        return accelerator

    monkeypatch.setattr(trainer, "make_accelerator", with_scaler)


class Steep(Objective):
    """Has gradients that are not finite in some forward passes, and counts the steps."""

    def __init__(self, model: nn.Module, steep: range) -> None:
        self.model, self.steep, self.passes, self.steps = model, steep, 0, 0

    def extra_loss(self) -> Tensor:
        weight = next(self.model.parameters())
        self.passes += 1
        return (weight - weight.detach()).sum().sqrt() if self.passes - 1 in self.steep else weight.new_zeros(())

    def after_step(self) -> None:
        self.steps += 1

    def finish(self) -> int:
        return self.steps


@pytest.mark.usefixtures("scaled")
def test_a_scaler_that_skips_every_step_stops_training(tmp_path: Path) -> None:
    recipe, make = replace(QUICK, epochs=9), [lambda model: Steep(model, range(3, 1000))]
    with pytest.raises(TrainingError, match=rf"not finite even where losses are scaled by 4.9e-04.*{CHECKPOINT}"):
        finetune(Convnet(), _data(), recipe=recipe, objectives=make, out=tmp_path)
    assert all(value.isfinite().all() for value in load_checkpoint(tmp_path / CHECKPOINT)["model"].values())


@pytest.mark.usefixtures("scaled")
def test_schedules_count_the_steps_that_a_scaler_skips() -> None:
    result = finetune(Convnet(), _data(), recipe=QUICK, objectives=[lambda model: Steep(model, range(2, 4))])
    assert result.finished == (10,)
    assert result.best["step"] == 10


def _with_labels(labels: list[int]) -> TensorDataset:
    return TensorDataset(torch.randn(len(labels), 3, 8, 8), torch.tensor(labels))


class Listed(TensorDataset):
    """Lists its labels, as torchvision's sets do."""

    @property
    def targets(self) -> list[int]:
        labels: list[int] = self.tensors[1].tolist()
        return labels


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (_with_labels([]), "hold no batch: 0 samples"),
        (_with_labels([0, 1, 5, 2] * 3), "a label is 5, but the model has 5 outputs"),
        (_with_labels([0, 1, -1, 2] * 3), "a label is -1"),
        (_with_labels([2] * 12), "all 12 training samples are of one class"),
        (Listed(torch.randn(4, 3, 8, 8), torch.ones(4, dtype=torch.long)), "all 4 training samples are of one class"),
        (TensorDataset(torch.randn(4, 3, 8, 8)), "must be a pair of inputs and targets"),
    ],
)
def test_data_that_cannot_be_learned_from(tmp_path: Path, data: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        finetune(Convnet(), data, recipe=QUICK, out=tmp_path)
    assert not (tmp_path / CHECKPOINT).exists()


IMAGES, CLASSES = torch.randn(9, 3, 8, 8), torch.arange(9) % 5


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (CLASSES.float(), r"float32 of shape \(8,\), and shares of classes .* \(8, 5\)"),
        (CLASSES[:, None], r"int64 of shape \(8, 1\), and class numbers .* \(8,\)"),
        (torch.rand(9, 4), r"of shape \(8, 4\)"),
        (CLASSES > 2, "targets are torch.bool"),
        (["a"] * 9, "targets are a (tuple|list), and cross-entropy takes"),
    ],
)
def test_targets_that_are_no_classes_of_the_output(targets: Any, words: str) -> None:
    data: Any = list(zip(IMAGES, targets, strict=True))
    with pytest.raises(InputError, match=words):
        finetune(Convnet(), data, recipe=QUICK)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_classes_may_be_integers_of_any_size(dtype: torch.dtype) -> None:
    model = Convnet()
    one, other = (finetune(model, TensorDataset(IMAGES, each), recipe=QUICK) for each in (CLASSES, CLASSES.to(dtype)))
    assert _equal(one.module, other.module)
    assert one.best["train_accuracy"] == other.best["train_accuracy"]


class Odd(nn.Module):
    """Fails, or learns nothing, in the way that is asked for."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.fc, self.norm = way, nn.Linear(192, 5), nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.fc(x.flatten(1)))
        return {"number": y[:, 0], "detached": y.detach()}.get(self.way, y)


@pytest.mark.parametrize(
    ("way", "loss", "words"),
    [
        ("number", None, r"the model returns \(8,\) for a batch"),
        ("detached", None, "does not depend on any parameter"),
        ("norm", None, r"batch of the data \(torch.float32 \(1, 3, 8, 8\)\): Expected more than 1 .* drop_last=True$"),
        ("", lambda y, _: y, r"loss function returns a tensor of shape \(8, 5\)"),
        ("", lambda y, _: 1.0, "loss function returns a float"),
    ],
)
def test_models_and_losses_that_cannot_be_trained(way: str, loss: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        finetune(Odd(way), TensorDataset(IMAGES, CLASSES), recipe=replace(QUICK, seed=1), loss=loss)
    with pytest.raises(InputError, match=r"\(8, 3, 4, 8\)\): (addmm: )?mat1 and mat2 shapes cannot be multiplied"):
        finetune(Odd(""), TensorDataset(IMAGES[:, :, :4], CLASSES), recipe=QUICK)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named_and_the_last_checkpoint_stays(tmp_path: Path, workers: int) -> None:
    places = [tmp_path / "images" / "ab"[index % 2] / f"{index}.png" for index in range(40)]
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (0, 90, 0)).save(place)
    splits = load_data(f"folder:{tmp_path / 'images'}", size=8)
    loader = DataLoader(
        splits.train, batch_size=2, num_workers=workers, multiprocessing_context="fork" if workers else None
    )
    last = splits.train.dataset.samples[splits.train.indices[-1]][0]  # type: ignore[attr-defined]
    Path(last).write_bytes(Path(last).read_bytes()[:40])
    with pytest.raises(InputError, match=rf"{last} cannot be read"):
        finetune(Convnet(), loader, recipe=Recipe(epochs=1, save_every=1), out=tmp_path / "run")
    assert load_checkpoint(tmp_path / "run" / CHECKPOINT)["progress"]["step"] == len(loader) - 1


def test_early_stopping_keeps_the_best_epoch(tmp_path: Path) -> None:
    train, held = _data(), _data(20, 1)
    wrong = TensorDataset(held.tensors[0], (held.tensors[1] + 2) % 5)
    recipe = Recipe(epochs=30, batch=8, lr=0.05, patience=2, schedule="constant")
    result = finetune(Convnet(), train, wrong, recipe, out=tmp_path)
    assert len(result.history) == result.best["epoch"] + 3 < 30
    assert evaluate(result.module, wrong)["loss"] == pytest.approx(result.best["validation_loss"])


def test_accumulated_gradients_are_those_of_a_larger_batch() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    large, small = (
        finetune(model, _data(22), recipe=Recipe(epochs=2, batch=batch, accumulate=times, clip=1.0)).module
        for batch, times in ((8, 1), (4, 2))
    )
    assert not _equal(large, model)
    for one, other in zip(large.parameters(), small.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


class Noted(Objective):
    """Writes down when it is called, and trains a parameter of its own."""

    def __init__(self, model: nn.Module, calls: list[str]) -> None:
        self.calls, self.weight, self.model = calls, nn.Parameter(torch.zeros(2)), model

    def extra_loss(self) -> Tensor:
        self.calls.append("loss")
        return (self.weight - 1).square().sum()

    def after_backward(self) -> None:
        self.calls.append("backward")
        assert next(self.model.parameters()).grad is not None

    def after_step(self) -> None:
        self.calls.append("step")

    def finish(self) -> None:
        self.calls.append("finish")

    def parameters(self) -> Iterator[nn.Parameter]:
        yield self.weight

    def close(self) -> None:
        self.calls.append("close")


def test_objectives_are_called_in_order_and_their_parameters_are_trained() -> None:
    calls: list[str] = []
    made: list[Noted] = []

    def make(model: nn.Module) -> Noted:
        made.append(Noted(model, calls))
        return made[0]

    recipe = Recipe(epochs=1, batch=8, accumulate=2, lr=0.1)
    result = finetune(Convnet(), _data(32), recipe=recipe, objectives=[make])
    assert calls == ["loss", "loss", "backward", "step"] * 2 + ["finish", "close"]
    assert made[0].weight.min() > 0
    assert result.history[0]["extra_loss"] > 0


def test_an_objective_instead_of_a_function_of_the_model() -> None:
    with pytest.raises(InputError, match=r"lambda model: Objective\(model"):
        finetune(Convnet(), _data(), recipe=QUICK, objectives=[Objective()])  # type: ignore[list-item]


def test_hooks_are_gone_also_where_training_fails(pruned: Pruned) -> None:
    def make(student: nn.Module) -> Distillation:
        return Distillation(student, pruned.teacher, layers="last")

    with pytest.raises(KeyboardInterrupt):
        finetune(pruned.student, _data(), recipe=QUICK, objectives=[make, lambda model: Stop(model, 2)])
    assert not any(layer._forward_hooks for layer in pruned.teacher.modules())


def test_an_expanded_model_learns_from_its_teacher_and_is_collapsed(pruned: Pruned, tmp_path: Path) -> None:
    traced = trace(pruned.student, torch.randn(2, 3, 8, 8))
    expanded = Pipeline([passes.OverParameterize(rate=2)])(traced).traced

    def make(student: nn.Module) -> Distillation:
        return Distillation(student, pruned.teacher, gamma=100, logits=1)

    result = finetune(expanded, _data(), _data(20, 1), QUICK, objectives=[make], out=tmp_path)
    assert result.traced is not None
    collapsed = Pipeline([passes.Reparameterize(only_blocks=True)])(result.traced).traced
    assert list(collapsed.module.state_dict()) == list(traced.module.state_dict())
    x = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(collapsed.module(x), result.module(x), rtol=1e-4, atol=1e-5)


def test_decay_may_leave_out_norms_and_biases() -> None:
    model = Convnet()
    decays = {
        id(weight): group["weight_decay"]
        for group in Recipe(decay="weights", weight_decay=0.1).make_optimizer(model).param_groups
        for weight in group["params"]
    }
    found = {name: decays[id(weight)] for name, weight in model.named_parameters()}
    assert {name for name, decay in found.items() if decay} == {"conv1.weight", "conv2.weight", "head.weight"}
    (group,) = Recipe(weight_decay=0.1).make_optimizer(model).param_groups
    assert len(group["params"]) == len(found)


def test_a_loss_of_ones_own_and_inputs_by_name(tmp_path: Path) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 1)

        def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
            return {"value": self.layer(torch.stack([left, right], 1))[:, 0]}

    values = torch.randn(64, 2)
    data = [{"left": left, "right": right, "labels": left - 2 * right} for left, right in values]

    def loss(output: dict[str, Tensor], target: Tensor) -> Tensor:
        return (output["value"] - target).square().mean()

    result = finetune(Named(), data, data, Recipe(epochs=20, lr=0.1, batch=16), loss=loss)
    assert evaluate(result.module, data, loss=loss)["loss"] < 1e-3
    assert "validation_accuracy" not in result.best


def test_any_loader(tmp_path: Path) -> None:
    loader = DataLoader(_data(), batch_size=10, shuffle=True, collate_fn=_upside_down)
    result = finetune(Convnet(), loader, recipe=QUICK)
    assert result.history[0]["step"] == 4


def _upside_down(samples: list[Any]) -> Any:
    images, labels = torch.utils.data.default_collate(samples)
    return images.flip(2), labels


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"lr": 0.0}, "lr is 0"),
        ({"ema": 1.0}, "ema is 1"),
        ({"optimizer": "adam"}, "sgd, adamw"),
        ({"precision": "fp8"}, "no, bf16, fp16"),
        ({"schedule": "cosin"}, "no schedule"),
        ({"schedule": 3}, "schedule is 3"),
        ({"lr": True}, "lr is True"),
        ({"momentum": None}, "momentum is None"),
        ({"batch": 1.5}, "batch is 1.5"),
    ],
)
def test_recipes_out_of_range(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Recipe(**options)


def test_fp16_needs_a_gpu() -> None:
    with pytest.raises(InputError, match="fp16 needs a GPU"):
        finetune(Convnet(), _data(), recipe=Recipe(precision="fp16"), cpu=True)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(EnvironmentProblem, match=r"pip install 'fxprune\[train\]'"):
        finetune(Convnet(), _data(), recipe=QUICK)


def test_a_launch_that_starts_one_process_of_several_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(InputError, match="starts a single process"):
        finetune(Convnet(), _data(), recipe=QUICK)


def test_nothing_to_train() -> None:
    model = Convnet().requires_grad_(False)
    with pytest.raises(InputError, match="no parameters that can be trained"):
        finetune(model, _data(), recipe=QUICK)


def test_a_progress_bar_where_there_is_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    finetune(Convnet(), _data(), recipe=QUICK)
    assert "epoch 2/2, loss" in capsys.readouterr().err


class Scheduled(Objective):
    """Is done only at the end, and has something to show."""

    keeps_last = True

    def __init__(self, model: nn.Module, needs: int) -> None:
        self.model, self.needs = model, needs

    def expect(self, steps: int) -> None:
        if steps < self.needs:
            raise InputError(f"{self.needs} steps are needed, and there will be {steps}")

    def finish(self) -> str:
        return "done"


def test_an_objective_may_want_the_last_weights_and_hands_over_its_result() -> None:
    recipe = Recipe(epochs=4, batch=8, lr=1.0, patience=1)  # so high a rate that epochs get worse
    traced, made = _traced(), []

    def make(model: nn.Module) -> Objective:
        made.append(Scheduled(model, needs=20))
        return made[-1]

    result = finetune(traced, _data(), _data(20, 1), recipe, objectives=[make, lambda model: Objective()])
    assert len(result.history) == 4
    assert result.best is result.history[-1]
    assert result.finished == ("done", None)
    with pytest.raises(InputError, match="21 steps are needed, and there will be 20"):
        finetune(traced, _data(), recipe=recipe, objectives=[lambda model: Scheduled(model, needs=21)])
