"""The penalty by loops and differences, its schedule, interrupted trainings, and pruning without retraining."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from fxprune.capture import Traced, trace
from fxprune.errors import InputError
from fxprune.linear.sparsity import NEAR_ZERO, PRUNED, masks_of
from fxprune.passes import CalibrateBatchNorm, FuseBatchNorm, PruneWeights
from fxprune.pipeline import Pipeline
from fxprune.training import (
    Distillation,
    Finetuned,
    Hyperspherical,
    ObjectiveLike,
    Recipe,
    TwoSided,
    evaluate,
    finetune,
)
from fxprune.training.hyperspherical import near_set
from fxprune.training.spheres import norms_of, sphere_weights
from tests.training.conftest import Convnet
from tests.training.test_finetune import Stop, _data, _equal

RECIPE = Recipe(epochs=6, batch=8, lr=0.05, save_every=1)


def _traced(dtype: torch.dtype = torch.float32) -> Traced:
    torch.manual_seed(0)
    return trace(Convnet().to(dtype).eval(), torch.randn(2, 3, 8, 8, dtype=dtype))


# ---------------------------------------------------------------- the penalty


def _plain(weight: Tensor, share: float, far_weight: float, margin: float) -> float:
    """The penalty of a layer with loops."""
    rows = [row.tolist() for row in weight.flatten(1)]
    sizes = sorted(abs(value) for row in rows for value in row)
    threshold, d = sizes[round(share * len(sizes)) - 1], len(rows[0])
    edge = margin / math.sqrt(d * (1 - share))
    near, far, kept = 0.0, 0.0, 0
    for row in rows:
        for value in row:
            if abs(value) <= threshold and abs(value) < max(abs(each) for each in row):
                near += value**2 / len(rows)
            else:
                far, kept = far + max(0.0, edge - abs(value)) ** 2, kept + 1
    return near + far_weight * d * far / kept


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_the_penalty_is_that_of_plain_loops(share: float) -> None:
    weight = F.normalize(torch.randn(6, 18, dtype=torch.float64), dim=1).reshape(6, 2, 3, 3)
    penalty = TwoSided(far_weight=0.3, margin=0.7)
    found = penalty.loss(weight, near_set(weight, share), share)
    assert found.item() == pytest.approx(_plain(weight, share, 0.3, 0.7), rel=1e-12)
    kept = F.cosine_similarity(weight.flatten(1), (weight * ~near_set(weight, share)).flatten(1))
    near = TwoSided(far_weight=0.0).loss(weight, near_set(weight, share), share)
    assert near.item() == pytest.approx(float((1 - kept.square()).mean()), rel=1e-12)


def test_its_gradient_is_that_of_differences_through_the_sphere() -> None:
    traced = _traced(torch.float64)
    method = Hyperspherical(traced, {"*": 0.6}, steps=100, penalty=TwoSided(0.5, 1.0))
    method.iteration = 50
    weights = [layer.data for layer in sphere_weights(traced.module)]
    for weight in weights:
        weight *= 2  # off the sphere, so that the normalisation is seen
    sets = method.sets()
    method.near = sets  # differences may not change who is in them
    loss: Any = method.extra_loss()
    loss.backward()
    generator = torch.Generator().manual_seed(0)
    for layer in sphere_weights(traced.module):
        assert layer.grad is not None
        for _ in range(5):
            place = tuple(int(torch.randint(size, (1,), generator=generator)) for size in layer.shape)
            values = []
            for step in (1e-6, -1e-6):
                with torch.no_grad():
                    layer[place] += step
                    values.append(float(method.extra_loss()))
                    layer[place] -= step
            assert (values[0] - values[1]) / 2e-6 == pytest.approx(float(layer.grad[place]), rel=1e-4, abs=1e-8)


def test_sets_have_their_size_and_leave_each_filter_its_largest() -> None:
    weight = torch.randn(8, 3, 3, 3)
    assert int(near_set(weight, 0.5).sum()) == 108
    assert not near_set(weight, 0.0).any()
    weight[3] *= 1e-3
    where = near_set(weight, 0.5)
    assert int(where[3].sum()) == 26
    assert bool((near_set(torch.ones(4, 5), 0.9).sum(1) == 4).all())  # ties
    assert near_set(torch.randn(5, 1), 0.5).sum() == 0


def test_the_schedule() -> None:
    method = Hyperspherical(_traced(), strength=2.0, steps=20)
    factors, frozen = [], []
    for _ in range(20):
        factors.append(method.factor)
        frozen.append(bool(method.near))
        method.after_step()
    assert factors == pytest.approx([0.2 * step for step in range(10)] + [2.0] * 10)
    assert frozen == [step >= 14 for step in range(20)]
    assert Hyperspherical(_traced(), steps=20).extra_loss() == 0
    assert Hyperspherical(_traced(), strength=0, steps=20).extra_loss() == 0
    assert Hyperspherical(_traced(), warmup=0, steps=20).factor == 1


def test_frozen_sets_stay_when_weights_move() -> None:
    method = Hyperspherical(_traced(), steps=10, freeze=0.5)
    for _ in range(5):
        method.after_step()
    before = {path: each.clone() for path, each in method.sets().items()}
    method.traced.module.get_parameter("conv2.weight").data.normal_()
    assert all(torch.equal(before[path], each) for path, each in method.sets().items())


def test_layers_and_their_shares() -> None:
    assert Hyperspherical(_traced(), 0.7).shares == {"conv2": 0.7, "head": 0.7}  # without the first convolution
    assert Hyperspherical(_traced(), 0.7, exclude="head").shares == {"conv1": 0.7, "conv2": 0.7}
    method = Hyperspherical(_traced(), {"conv1": 0.2, "conv*": 0.9})
    assert method.shares == {"conv1": 0.2, "conv2": 0.9}
    assert "share to prune is 0" in method.skipped["head"]
    assert isinstance(method, ObjectiveLike)
    share = method.sets()["conv1"].double().mean()
    assert float(share) == pytest.approx(0.2, abs=0.01)


def test_without_the_sphere_layers_stay_plain() -> None:
    traced = _traced(torch.float64)
    state = {name: value.clone() for name, value in traced.module.state_dict().items()}
    method = Hyperspherical(traced, steps=10, sphere=False)
    method.iteration = 5
    assert all(torch.equal(state[name], value) for name, value in traced.module.state_dict().items())
    weight = state["conv2.weight"] / norms_of(state["conv2.weight"]).mean()
    torch.testing.assert_close(method.directions("conv2").detach(), weight)
    method.penalty = TwoSided(far_weight=0)
    with torch.no_grad():
        before = float(method.extra_loss())
        for path in ("conv2", "head"):
            traced.module.get_parameter(f"{path}.weight").mul_(0.5)
        assert float(method.extra_loss()) == pytest.approx(before / 4)  # shrinking the layer does
    method.finish()
    assert set(masks_of(traced.module, NEAR_ZERO)) == {"conv2", "head"}


def test_under_autocast_the_penalty_is_in_float32() -> None:
    method = Hyperspherical(_traced(), steps=10)
    method.iteration = 5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = method.extra_loss()
    assert isinstance(found, Tensor)
    assert found.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"strength": -1}, "strength=-1"),
        ({"warmup": 1.5}, "warmup=1.5"),
        ({"freeze": -0.5}, "freeze=-0.5"),
        ({"amount": 1.0}, "below 1"),
        ({"amount": {"body": 0.5}}, "matches no"),
        ({"amount": 0}, "no layer has weights"),
        ({"steps": 0}, "steps is 0"),
    ],
)
def test_options_are_checked(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Hyperspherical(_traced(), **options)


def test_the_penalty_is_checked_and_steps_must_be_known() -> None:
    for options in ({"margin": 0.0}, {"margin": 1.5}, {"far_weight": -1.0}):
        with pytest.raises(InputError, match="makes no sense"):
            TwoSided(**options)
    with pytest.raises(InputError, match="give steps="):
        Hyperspherical(_traced()).extra_loss()


# ---------------------------------------------------------------- trainings


def test_a_loop_of_the_users_own_and_pruning_without_retraining() -> None:
    traced = _traced()
    model, (images, labels) = traced.module, _data(40).tensors
    sphere = Hyperspherical.begin(traced, 0.6, steps=150, strength=10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model.train()
    for _ in range(150):
        loss = F.cross_entropy(model(images), labels) + sphere.extra_loss()
        optimizer.zero_grad()
        loss.backward()
        sphere.after_backward()
        optimizer.step()
        sphere.after_step()
    model.eval()
    trained = sphere.finish()
    sizes = model.get_parameter("conv2.weight").detach().abs()
    near = masks_of(model, NEAR_ZERO)["conv2"]
    assert float(near.double().mean()) == pytest.approx(0.6, abs=0.01)
    edge = TwoSided().edge(0.6, 72)
    assert float(sizes[near].max()) < 0.3 * edge < 0.7 * edge < float(sizes[~near].quantile(0.05))  # two sides, a gap
    pruned = Pipeline([PruneWeights(criterion="trained")])(trained).traced
    (before,), (after,) = trained.run((images,)), pruned.run((images,))
    assert float((after - before).norm() / before.norm()) < 0.1
    assert bool((after.argmax(1) == labels).all())
    assert type(model.get_submodule("conv2")) is nn.Conv2d
    assert torch.equal(masks_of(pruned.module, PRUNED)["conv2"], near)


def test_an_interrupted_training_ends_bit_for_bit_where_the_other_does(tmp_path: Path) -> None:
    traced, data = _traced(), _data()

    def run(folder: str, steps: int) -> Finetuned:
        make = [lambda model: Hyperspherical.begin(traced.with_module(model), 0.5), lambda model: Stop(model, steps)]
        return finetune(traced, data, recipe=RECIPE, objectives=make, out=tmp_path / folder)

    whole = run("whole", 1000)
    for steps in (4, 9, 10):  # while the strength rises, behind it, and when the sets are frozen
        with pytest.raises(KeyboardInterrupt):
            run("cut", steps)
    resumed = run("cut", 1000)
    assert _equal(whole.module, resumed.module)
    assert [row["extra_loss"] for row in whole.history] == [row["extra_loss"] for row in resumed.history]
    ours, theirs = (masks_of(each.module, NEAR_ZERO) for each in (whole, resumed))  # type: ignore[arg-type]
    assert all(torch.equal(ours[path], theirs[path]) for path in ("conv2", "head"))
    other = [lambda model: Hyperspherical(traced.with_module(model), strength=3), lambda model: Stop(model, 9)]
    with pytest.raises(InputError, match=r"strength=1\.0, and goes on with 3"):
        finetune(traced, data, recipe=RECIPE, objectives=other, out=tmp_path / "whole")


@pytest.mark.parametrize("change", [{}, {"accumulate": 2, "ema": 0.9, "precision": "bf16"}], ids=str)
def test_finetune_hands_over_a_plain_model_with_its_sets(change: dict[str, Any]) -> None:
    traced, data = _traced(), _data()
    teacher = _traced().module
    recipe = Recipe(**{**vars(RECIPE), "save_every": 0, "epochs": 8, **change})
    result = finetune(
        traced, data, data, recipe,
        objectives=[
            lambda model: Distillation(model, teacher, layers=["conv2"], gamma=1.0),
            lambda model: Hyperspherical.begin(traced.with_module(model), 0.5),
        ],
    )  # fmt: skip
    assert result.traced is not None
    assert list(result.module.state_dict()) == list(traced.module.state_dict())
    assert type(result.module.get_submodule("conv2")) is nn.Conv2d
    assert type(result.module.get_submodule("head")) is nn.Linear
    weight = result.module.get_parameter("conv2.weight").detach()
    torch.testing.assert_close(norms_of(weight), torch.ones(12), rtol=1e-5, atol=1e-5)
    assert evaluate(result.module, data)["loss"] == pytest.approx(result.best["validation_loss"], rel=2e-2)
    pruned = Pipeline([PruneWeights(criterion="trained", form="cheap")])(result.traced)
    assert {item.place for item in pruned.report[0].changes} == {"conv2", "head"}


def test_weights_on_the_sphere_are_spared_from_decay() -> None:
    traced = _traced()
    Hyperspherical(traced)
    optimizer = Recipe(weight_decay=0.1).make_optimizer(traced.module)
    decayed = {id(weight): group["weight_decay"] for group in optimizer.param_groups for weight in group["params"]}
    names = {name for name, weight in traced.module.named_parameters() if not decayed[id(weight)]}
    assert names == {"conv2.weight", "head.weight"}


# ---------------------------------------------------------------- on images


class Small(nn.Module):
    """Three convolutions with batch norm for 8 x 8 images."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 16, 32, 32)
        self.body = nn.Sequential()
        for n in range(3):
            self.body.append(nn.Conv2d(widths[n], widths[n + 1], 3, padding=1, stride=1 + n % 2, bias=False))
            self.body.append(nn.BatchNorm2d(widths[n + 1]))
            self.body.append(nn.ReLU())
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.body(x).mean((2, 3)))
        return result


def test_digits_pruned_without_retraining() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    images = torch.tensor(digits.images[:, None], dtype=torch.float32) / 8 - 1
    labels = torch.tensor(digits.target)
    train, test = TensorDataset(images[:1200], labels[:1200]), TensorDataset(images[1200:], labels[1200:])
    torch.manual_seed(0)
    traced = trace(Small().eval(), images[:2])
    recipe = Recipe(epochs=6, batch=64, lr=0.1, save_every=0)
    dense = finetune(traced, train, recipe=recipe).traced
    assert dense is not None

    def begin(model: Any) -> Hyperspherical:
        return Hyperspherical.begin(dense.with_module(model), 0.7, strength=10)

    trained = finetune(dense, train, recipe=recipe, objectives=[begin]).traced
    assert trained is not None

    def accuracy(model: Traced, *steps: Any) -> float:
        return evaluate(Pipeline(steps)(model).traced.module, test)["accuracy"]

    whole, plain = accuracy(trained), accuracy(dense)
    zero = accuracy(dense, PruneWeights(0.7, fill="zero"))
    ours = accuracy(trained, PruneWeights(criterion="trained"))
    assert min(whole, plain) > 0.88
    assert ours > whole - 0.02
    assert ours - whole > zero - plain + 0.03
    for form in ("dense", "cheap"):
        prune, calibrate = PruneWeights(criterion="trained", form=form), CalibrateBatchNorm([images[:512]])  # type: ignore[arg-type]
        assert accuracy(trained, prune, calibrate, FuseBatchNorm()) > whole - 0.02


def test_layers_that_are_not_trained_stay_as_they_are() -> None:
    traced = _traced()
    weight = traced.module.get_parameter("conv2.weight").requires_grad_(False)
    before = weight.detach().clone()
    sphere = Hyperspherical.begin(traced, 0.5, steps=10)
    assert "conv2" not in sphere.shares
    assert sphere.skipped["conv2"].startswith("its weight is not trained")
    assert torch.equal(weight, before)
    with pytest.raises(InputError, match=r"no layer has weights to drive to zero: .*conv2: its weight is not trained"):
        Hyperspherical.begin(traced, {"conv2": 0.5}, steps=10)


def test_weights_of_one_size_are_no_more_than_the_share() -> None:
    for weight in (torch.full((8, 8, 3, 3), 0.1), torch.tensor([[0.0, 0.0, 0.0, 0.0, 2.0, 2.0, 3.0, 1.0]])):
        near = near_set(weight, 0.25)
        assert int(near.sum()) == round(0.25 * weight.numel())
        assert float(weight[near].abs().max()) <= float(weight[~near].abs().min())
