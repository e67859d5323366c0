"""What is pruned stays pruned: zeros zero, and means one number per filter that is trained."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fxprune.capture import Traced, trace
from fxprune.errors import InputError
from fxprune.linear.sparsity import PRUNED, fills_of, masks_of
from fxprune.linear.split import whole_weight
from fxprune.passes import PruneWeights
from fxprune.training import Finetuned, KeepPruned, Recipe, finetune
from tests.training.conftest import Convnet
from tests.training.test_finetune import Stop, _data, _equal


def _pruned(**options: Any) -> Traced:
    torch.manual_seed(0)
    traced = trace(Convnet().eval(), torch.randn(2, 3, 8, 8))
    return PruneWeights(0.6, **options)(traced).traced


def _train(traced: Traced, keep: KeepPruned, steps: int = 20) -> None:
    images, labels = _data(40).tensors
    optimizer = torch.optim.AdamW(traced.module.parameters(), lr=0.02)
    traced.module.train()
    for _ in range(steps):
        loss = F.cross_entropy(traced.module(images), labels) + keep.extra_loss()
        optimizer.zero_grad()
        loss.backward()
        keep.after_backward()
        optimizer.step()
        keep.after_step()
    traced.module.eval()


@pytest.mark.parametrize("fill", ["zero", "filter", "layer", "sign"])
def test_what_is_pruned_stays_pruned(fill: Any) -> None:
    traced = _pruned(fill=fill)
    masks = masks_of(traced.module, PRUNED)
    before = {path: traced.module.get_parameter(f"{path}.weight").detach().clone() for path in masks}
    keep = KeepPruned.begin(traced)
    _train(traced, keep)
    result = keep.finish()
    for path, mask in masks.items():
        weight = result.module.get_parameter(f"{path}.weight").detach()
        assert fills_of(weight.abs() if fill == "sign" else weight, mask) is not None
        assert bool((weight[~mask] != before[path][~mask]).all())
        assert bool((weight[mask] == 0).all()) == (fill == "zero")
        if fill != "zero":
            assert bool((weight[mask] != before[path][mask]).all())
    assert not PruneWeights(0.6, fill=fill)(result).report.changed


def test_the_gradient_of_the_number_of_a_filter_is_that_of_the_cheap_form() -> None:
    dense, cheap = _pruned(), _pruned(form="cheap")
    images = torch.randn(4, 3, 8, 8)
    for traced in (dense, cheap):
        traced.module(images).square().sum().backward()
        KeepPruned(traced).after_backward()
    for path, mask in masks_of(dense.module, PRUNED).items():
        levelled = dense.module.get_parameter(f"{path}.weight").grad
        alone = cheap.module.get_parameter(f"{path}.fill.weight").grad
        sparse = cheap.module.get_parameter(f"{path}.sparse.weight").grad
        assert levelled is not None
        assert alone is not None
        assert sparse is not None
        # The number moves kept weights too, as they are stored less it; what is left is the sum over pruned entries.
        kept = (sparse * ~mask).flatten(1).sum(1)
        torch.testing.assert_close((levelled * mask).flatten(1).sum(1), alone.flatten() - kept, rtol=1e-3, atol=1e-4)
        assert not sparse[mask].any()


def test_the_cheap_form_stays_sparse() -> None:
    traced = _pruned(form="cheap")
    masks = masks_of(traced.module, PRUNED)
    _train(traced, KeepPruned(traced))
    for path, mask in masks.items():
        assert not traced.module.get_parameter(f"{path}.sparse.weight")[mask].any()
        assert fills_of(whole_weight(traced.module, path), mask) is not None
        box = dict(traced.module.named_parameters()).get(f"{path}.box.weight")
        assert box is None or bool((box == 1).all())


def test_an_interrupted_training_ends_bit_for_bit_where_the_other_does(tmp_path: Path) -> None:
    traced, data, recipe = _pruned(), _data(), Recipe(epochs=3, batch=8, lr=0.05, ema=0.9, save_every=1)

    def run(folder: str, steps: int) -> Finetuned:
        make = [lambda model: KeepPruned.begin(traced.with_module(model)), lambda model: Stop(model, steps)]
        return finetune(traced, data, data, recipe, objectives=make, out=tmp_path / folder)

    whole = run("whole", 1000)
    with pytest.raises(KeyboardInterrupt):
        run("cut", 7)
    resumed = run("cut", 1000)
    assert _equal(whole.module, resumed.module)
    assert resumed.traced is not None
    assert not PruneWeights(0.6)(resumed.traced).report.changed


def test_there_must_be_something_that_is_pruned() -> None:
    with pytest.raises(InputError, match="no weight of this model is pruned"):
        KeepPruned(trace(Convnet().eval(), torch.randn(2, 3, 8, 8)))
    traced = copy.copy(_pruned())
    traced.module.get_parameter("conv2.weight").data.normal_()
    with pytest.raises(InputError, match="conv2 hold several values"):
        KeepPruned(traced)


def test_a_state_is_of_what_is_pruned() -> None:
    state = KeepPruned(_pruned()).state_dict()
    KeepPruned(_pruned()).load_state_dict(state)
    KeepPruned(_pruned()).load_state_dict({})  # older than options in states
    other = PruneWeights(0.5)(trace(Convnet().eval(), torch.randn(2, 3, 8, 8))).traced
    with pytest.raises(InputError, match="this training began with pruned"):
        KeepPruned(other).load_state_dict(state)
