"""Decorrelation against loops and a closed form; and whole trainings, in foreign loops and interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from fxprune import passes
from fxprune.capture import Traced, trace
from fxprune.errors import InputError
from fxprune.pipeline import Pipeline
from fxprune.training import TPP, Finetuned, Growth, Recipe, evaluate, finetune
from fxprune.training.tpp import gram_loss
from tests.training.test_filters import Residual, Swapped
from tests.training.test_finetune import Stop, _data, _equal

QUICK = Growth(interval=1, step=0.02, stabilize=30, zero_every=3)
RECIPE = Recipe(epochs=8, batch=4, lr=0.02, schedule="constant", save_every=1)


def _traced(model: nn.Module) -> Traced:
    torch.manual_seed(0)
    return trace(model.eval(), torch.randn(2, 3, 8, 8))


def _plain(weight: Tensor, pruned: list[int], groups: int, orthonormal: bool) -> float:
    """The loss of the published code, with loops instead of matrices."""
    count, total = len(weight), 0.0
    for i in range(count):
        for j in range(count):
            if i * groups // count != j * groups // count:
                continue
            product = float(sum(a * b for a, b in zip(weight[i].flatten(), weight[j].flatten(), strict=True)))
            if orthonormal:
                total += (product - (i == j and i not in pruned)) ** 2
            elif i in pruned or j in pruned:
                total += product**2
    return total / count**2


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("target", ["kept", "orthonormal"])
def test_the_loss_is_that_of_plain_loops(groups: int, target: Any) -> None:
    generator = torch.Generator().manual_seed(groups)
    weight = torch.randn(6, 2, 3, 3, dtype=torch.float64, generator=generator)
    pruned = torch.tensor([True, False, False, True, False, True])
    found = gram_loss(weight.flatten(1), pruned, groups, target)
    assert found.dtype == torch.float64
    assert found.item() == pytest.approx(_plain(weight, [0, 3, 5], groups, target == "orthonormal"), rel=1e-12)


def test_the_loss_is_that_of_the_published_code_gradients_too() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(7, 18, dtype=torch.float64, generator=generator, requires_grad=True)
    pruned = torch.tensor([0, 1, 1, 0, 0, 0, 1]).bool()
    gram = rows @ rows.T
    wanted = gram.detach().clone()
    wanted[pruned], wanted[:, pruned] = 0, 0
    expected = F.mse_loss(gram, wanted)
    found = gram_loss(rows, pruned)
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    (ours,) = torch.autograd.grad(found, rows)
    (theirs,) = torch.autograd.grad(expected, rows)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    stay = (~pruned).double()
    closed = 4 / 7**2 * ((rows @ rows.T) * (1 - stay[:, None] * stay)) @ rows
    torch.testing.assert_close(ours, closed, rtol=1e-12, atol=1e-12)
    assert bool((ours[~pruned].abs() > 0).any())  # kept filters are moved by their products with pruned ones


def test_only_pairs_of_kept_filters_are_free() -> None:
    rows = torch.eye(4, dtype=torch.float64)[[0, 0, 1, 1]]
    kept, mixed = torch.tensor([False, False, True, True]), torch.tensor([True, False, False, False])
    assert gram_loss(rows, torch.zeros(4, dtype=torch.bool)).item() == 0
    assert gram_loss(rows, kept).item() == pytest.approx(4 / 16)  # the pruned pair with itself
    assert gram_loss(rows, mixed).item() == pytest.approx(3 / 16)  # itself, and both ways with its twin


def test_the_loss_grows_and_is_summed_over_layers() -> None:
    traced = _traced(Swapped())
    tpp = TPP(traced, {"*": 0.5}, schedule=QUICK, decorrelate=10)
    assert tpp.extra_loss() == 0
    tpp.iteration = 5
    expected = 0.0
    for each in tpp.selection.filters:
        expected += _plain(traced.module.get_parameter(each.weight).detach().double(), list(each.pruned), 1, False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = tpp.extra_loss()
    assert isinstance(found, Tensor)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(10 * 0.1 * expected, rel=1e-5)
    assert TPP(traced, {"*": 0.5}, schedule=QUICK, decorrelate=0).extra_loss() == 0


def test_scales_and_shifts_are_driven_to_zero_through_the_users_of_a_layer() -> None:
    traced = _traced(Swapped())  # its norms are registered in another order than they are called
    tpp = TPP(traced, {"conv_a": 0.5}, schedule=Growth(interval=1, step=0.01, stabilize=500, zero_every=200))
    module, (each,) = traced.module.train(), tpp.selection.filters
    gone = list(each.pruned)
    stay = [index for index in range(8) if index not in gone]
    optimizer = torch.optim.SGD(module.parameters(), lr=0.02, momentum=0.9)
    images, labels = _data(40).tensors
    for _ in range(250):  # before anything is set to zero
        loss = F.cross_entropy(module(images), labels % 4) + tpp.extra_loss()
        optimizer.zero_grad()
        loss.backward()
        tpp.after_backward()
        optimizer.step()
        tpp.after_step()
    weights = {name: value.detach().abs() for name, value in module.named_parameters()}
    scale, shift = weights["norm_a.weight"], weights["norm_a.bias"]
    assert float(scale[gone].max()) < 1e-4 < 0.1 < float(scale[stay].min())
    assert 0 < float(shift[gone].max()) < 1e-4
    assert 0 < float(weights[each.weight][gone].max()) < 1e-4
    assert float(weights["norm_b.weight"].min()) > 0.1  # first in the order of modules


@pytest.mark.parametrize("residual", [False, True])
def test_a_loop_of_the_users_own(residual: bool) -> None:
    traced = _traced(Residual())
    model, data = traced.module, _data(40)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    images, labels = data.tensors[0], data.tensors[1] % 4
    tpp = TPP.begin(traced, {"*": 0.5}, schedule=QUICK, residual=residual)
    model.train()
    while not tpp.done:
        loss = F.cross_entropy(model(images), labels) + tpp.extra_loss()
        optimizer.zero_grad()
        loss.backward()
        tpp.after_backward()
        optimizer.step()
        tpp.after_step()
    plan = tpp.finish()
    smaller = Pipeline([passes.PruneChannels(plan)])(traced).traced
    model.eval()
    with torch.no_grad():
        before, after = model(images), smaller.module.eval()(images)
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)
    assert (before.argmax(1) == labels).float().mean() > 0.8
    assert plan.after.params < 0.7 * plan.before.params
    assert (smaller.module.get_parameter("stem.weight").shape[0] == 4) == residual


@pytest.mark.parametrize("change", [{}, {"accumulate": 2, "ema": 0.9, "precision": "bf16", "epochs": 16}], ids=str)
def test_finetune_hands_over_a_plan_that_moves_nothing(change: dict[str, Any]) -> None:
    traced, data, recipe = _traced(Residual()), _four(), Recipe(**{**vars(RECIPE), "save_every": 0, **change})
    result = finetune(
        traced, data, data, recipe, objectives=[lambda model: TPP.begin(traced.with_module(model), 0.5, schedule=QUICK)]
    )
    (plan,) = result.finished
    assert result.traced is not None
    smaller = Pipeline([passes.PruneChannels(plan)])(result.traced).traced
    ours, theirs = evaluate(smaller.module, data), evaluate(result.module, data)
    assert ours["accuracy"] == theirs["accuracy"] == pytest.approx(result.best["validation_accuracy"], abs=0.03)
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    assert result.best is result.history[-1]


def _four() -> TensorDataset:
    images, labels = _data(40).tensors
    return TensorDataset(images, labels % 4)


def test_an_interrupted_training_ends_bit_for_bit_where_the_other_does(tmp_path: Path) -> None:
    traced, data = _traced(Residual()), _four()

    def run(folder: str, steps: int) -> Finetuned:
        make = [
            lambda model: TPP.begin(traced.with_module(model), 0.5, schedule=QUICK),
            lambda model: Stop(model, steps),
        ]
        return finetune(traced, data, recipe=RECIPE, objectives=make, out=tmp_path / folder)

    whole = run("whole", 1000)
    for steps in (12, 45, 13):  # while the penalty grows, and while layers are being set to zero
        with pytest.raises(KeyboardInterrupt):
            run("cut", steps)
    resumed = run("cut", 1000)
    assert _equal(whole.module, resumed.module)
    assert whole.finished[0] == resumed.finished[0]
    assert [row["extra_loss"] for row in whole.history] == [row["extra_loss"] for row in resumed.history]


def test_a_training_that_is_too_short_is_refused_before_it_starts(tmp_path: Path) -> None:
    traced = _traced(Residual())
    with pytest.raises(InputError, match="takes 80 steps, and training will have 10"):
        finetune(
            traced, _four(), recipe=Recipe(epochs=1, batch=4), out=tmp_path / "run",
            objectives=[lambda model: TPP.begin(traced.with_module(model), 0.5, schedule=QUICK)],
        )  # fmt: skip
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("options", [{"decorrelate": -1.0}, {"decorrelate": float("inf")}, {"target": "identity"}])
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="decorrelate="):
        TPP(_traced(Swapped()), 0.5, **options)
