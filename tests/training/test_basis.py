"""Importances of basis vectors, and a training of scales, norms and head that drops some."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxprune.capture import Traced, trace
from fxprune.errors import BudgetError, InputError
from fxprune.linear.basis import basis_scales, whole_blocks, with_vectors_dropped
from fxprune.linear.basis_budget import choose_vectors
from fxprune.passes import DecomposeBasis, MergeBasis
from fxprune.pipeline import Pipeline
from fxprune.planning.cost import count
from fxprune.training import BasisScaling, Distillation, Recipe, basis_importance, finetune

IMAGES = torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(24) % 5


class Convnet(nn.Module):
    """Two convolutions with batch norm, one that is grouped, a classifier of five classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 12, 3, padding=1, stride=2, groups=2)
        self.bn2 = nn.BatchNorm2d(12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = self.bn2(self.conv2(x)).relu()
        result: Tensor = self.head(x.mean((2, 3)))
        return result


def network(**options: Any) -> Traced:
    torch.manual_seed(0)
    return Pipeline([DecomposeBasis(**options)])(trace(Convnet().eval(), IMAGES[:2])).traced


def batches(size: int = 8) -> list[tuple[Tensor, Tensor]]:
    return list(zip(IMAGES.split(size), LABELS.split(size), strict=True))


# ---------------------------------------------------------------- importance


def test_importance_is_squared_change_summed_over_batches() -> None:
    traced = network()
    found = basis_importance(traced, batches())
    assert list(found) == ["conv1", "conv2", "head"]
    wanted = {path: torch.zeros_like(value) for path, value in found.items()}
    for images, labels in batches():
        traced.module.zero_grad()
        F.cross_entropy(traced.module(images), labels).backward()
        for block in whole_blocks(traced.module):
            scales: Any = block.scales
            wanted[block.path] += (scales * scales.grad).detach().double() ** 2
    for path, value in found.items():
        torch.testing.assert_close(value, wanted[path], rtol=1e-5, atol=1e-12)


def test_importance_is_the_loss_without_a_vector_to_first_order() -> None:
    traced = network()
    module = traced.module.double()
    images, labels = IMAGES.double(), LABELS
    (block,) = [block for block in whole_blocks(module) if block.path == "conv1"]
    found = basis_importance(traced.with_module(module), [(images, labels)], kind="abs")["conv1"]
    scales: Any = block.scales
    for position in range(len(scales)):
        losses = []
        for factor in (1 + 1e-5, 1 - 1e-5):
            with torch.no_grad():
                scales[position] *= factor
                losses.append(float(F.cross_entropy(module(images), labels)))
                scales[position] /= factor
        assert abs(losses[0] - losses[1]) / 2e-5 == pytest.approx(float(found[position]), rel=1e-4, abs=1e-9)


def test_importance_leaves_the_model_as_it_was() -> None:
    traced = network()
    traced.module.requires_grad_(False)
    before = {name: value.clone() for name, value in traced.module.state_dict().items()}
    found = basis_importance(traced, batches(), lambda output, target: output.square().mean())
    assert all((value > 0).any() for value in found.values())
    assert not any(value.requires_grad or value.grad is not None for value in traced.module.parameters())
    assert all(torch.equal(value, before[name]) for name, value in traced.module.state_dict().items())


def test_importance_needs_a_decomposed_model_and_data() -> None:
    with pytest.raises(InputError, match="DecomposeBasis"):
        basis_importance(trace(Convnet().eval(), IMAGES[:2]), batches())
    with pytest.raises(InputError, match="no batches"):
        basis_importance(network(), [])


# ---------------------------------------------------------------- what trains


def test_scales_norms_and_head_train() -> None:
    traced = network(exclude=["head"])
    objective = BasisScaling(traced)
    trained = {name for name, value in traced.module.named_parameters() if value.requires_grad}
    assert trained == {"conv1.scales", "conv2.scales", "bn1.weight", "bn1.bias", "bn2.weight", "bn2.bias",
                       "head.weight", "head.bias"}  # fmt: skip
    objective.finish()
    assert all(value.requires_grad for value in traced.module.parameters())


def test_a_decomposed_head_trains_whole_and_others_by_pattern() -> None:
    assert {name for name in BasisScaling(network()).trained if name.startswith("head")} == {
        "head.scales", "head.basis.weight", "head.mix.weight", "head.mix.bias",
    }  # fmt: skip
    by_pattern = BasisScaling(network(), head=["conv1.mix.*"]).trained
    assert {name for name in by_pattern if "1." in name or "head" in name} == {
        "conv1.scales", "conv1.mix.weight", "conv1.mix.bias", "bn1.weight", "bn1.bias", "head.scales",
    }  # fmt: skip
    assert not [name for name in BasisScaling(network(exclude=["head"]), head=()).trained if "head" in name]
    with pytest.raises(InputError, match=r"'fc\.\*' of head matches none"):
        BasisScaling(network(), head=["fc.*"])


@pytest.mark.parametrize("decay", ["all", "weights"])
def test_scales_do_not_decay(decay: Any) -> None:
    traced = network()
    optimizer = Recipe(weight_decay=0.1, decay=decay).make_optimizer(traced.module)
    spared = {id(value) for group in optimizer.param_groups if not group["weight_decay"] for value in group["params"]}
    scales = basis_scales(traced.module)
    assert len(scales) == 3
    assert {id(scale) for scale in scales} <= spared
    assert not basis_scales(Convnet())


# ---------------------------------------------------------------- a loop of one's own


def trained(traced: Traced, objective: BasisScaling, steps: int) -> None:
    """Train by hand: the four calls."""
    weights = [value for value in traced.module.parameters() if value.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=0.05, momentum=0.9)
    for images, labels in (batches() * steps)[:steps]:
        optimizer.zero_grad()
        loss = F.cross_entropy(traced.module(images), labels) + objective.extra_loss()
        loss.backward()
        objective.after_backward()
        optimizer.step()
        objective.after_step()


def test_vectors_are_dropped_in_the_middle_and_stay_so() -> None:
    dense = trace(Convnet().eval(), IMAGES[:2])
    traced = network(exclude=["head"])
    before = {name: value.clone() for name, value in traced.module.named_parameters()}
    objective = BasisScaling(traced, params=0.6, start=1, drop_at=4)
    trained(traced, objective, 7)
    assert objective.finish() is traced
    choice = objective.choice
    assert choice is not None
    for block in whole_blocks(traced.module):
        gone = choice.dropped.get(block.path, [])
        zeros: Any = (block.scales == 0).nonzero().flatten()  # type: ignore[union-attr]
        assert zeros.tolist() == gone
    moved = {name for name, value in traced.module.named_parameters() if not torch.equal(value, before[name])}
    assert moved == objective.trained
    small = Pipeline([MergeBasis()])(traced).traced
    assert count(small).params == choice.counts.merged.params <= 0.6 * count(dense).params
    torch.testing.assert_close(small.run((IMAGES,)), traced.run((IMAGES,)), rtol=1e-4, atol=1e-5)


def test_state_goes_on() -> None:
    first, second = network(), network()
    objective = BasisScaling(first, macs=0.6, drop_at=2)
    trained(first, objective, 3)
    resumed = BasisScaling(second, macs=0.6, drop_at=2)
    resumed.load_state_dict(copy.deepcopy(objective.state_dict()))
    assert resumed.dropped == objective.dropped
    assert (resumed.steps, list(resumed.scores)) == (3, list(objective.scores))
    assert sum(int((scale == 0).sum()) for scale in basis_scales(second.module)) > 0


def test_gradients_that_are_no_numbers_count_for_nothing() -> None:
    traced = network()
    objective = BasisScaling(traced)
    for scale in basis_scales(traced.module):
        scale.grad = torch.full_like(scale, torch.inf)
    objective.after_backward()
    assert not any(score.any() for score in objective.scores.values())


def test_a_training_that_is_too_short_is_refused() -> None:
    BasisScaling(network(), params=0.6, drop_at=4).expect(4)
    BasisScaling(network(), start=9).expect(4)
    for options in ({"drop_at": 5}, {"start": 4}):
        with pytest.raises(InputError, match="the training has 4 steps"):
            BasisScaling(network(), params=0.6, **options).expect(4)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"params": 0.5, "macs": 0.5}, "one budget"),
        ({"params": 1.5}, "share to keep"),
        ({"drop_at": 5}, "needs a budget"),
        ({"params": 0.5, "start": 5, "drop_at": 5}, "do not fit"),
        ({"kind": "cubic"}, "'square' or 'abs'"),
        ({"ranking": "size"}, "'cost', 'layer', 'plain'"),
    ],
)
def test_options_are_checked(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        BasisScaling(network(), **options)


# ---------------------------------------------------------------- in the loop that ships


def test_in_finetune_and_resumed(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    traced = network(exclude=["head"])
    data = torch.utils.data.TensorDataset(IMAGES, LABELS)
    made: list[BasisScaling] = []

    def objective(model: nn.Module) -> BasisScaling:
        made.append(BasisScaling.begin(traced.with_module(model), params=0.6, drop_at=4))  # type: ignore[arg-type]
        return made[-1]

    def train(out: Path, **options: Any) -> Traced:
        recipe = Recipe(epochs=3, batch=8, lr=0.05, save_every=1)
        done = finetune(traced, data, data, recipe, objectives=[objective], cpu=True, out=out, **options)
        (finished,) = done.finished
        assert done.traced is not None
        assert finished.module is done.traced.module
        return done.traced

    masked = train(tmp_path / "whole")
    zeros: dict[str, Any] = {block.path: block.scales == 0 for block in whole_blocks(masked.module)}
    assert {path: gone.nonzero().flatten().tolist() for path, gone in zeros.items() if gone.any()} == made[0].dropped
    state, before = masked.module.state_dict(), traced.module.state_dict()
    torch.testing.assert_close(state["conv1.basis.weight"], before["conv1.basis.weight"], rtol=0, atol=0)
    small = Pipeline([MergeBasis()])(masked).traced
    assert count(small).params <= 0.6 * count(trace(Convnet().eval(), IMAGES[:2])).params

    def killed(row: Any) -> None:
        if row["epoch"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", on_epoch=killed)
    resumed = train(tmp_path / "killed")
    assert made[-1].dropped == made[0].dropped
    assert all(torch.equal(value, state[name]) for name, value in resumed.module.state_dict().items())


def test_a_training_too_short_to_drop_is_refused_by_finetune() -> None:
    pytest.importorskip("accelerate")
    traced = network()
    data = torch.utils.data.TensorDataset(IMAGES, LABELS)
    make = [lambda model: BasisScaling.begin(traced.with_module(model), params=0.6, drop_at=4)]
    with pytest.raises(InputError, match="the training has 3 steps"):
        finetune(traced, data, recipe=Recipe(epochs=1, batch=8), objectives=make, cpu=True)


def test_a_choice_replays_on_another_copy() -> None:
    traced = network(exclude=["head"])
    choice = choose_vectors(traced, basis_importance(traced, batches()), macs=0.7)
    masked = with_vectors_dropped(network(exclude=["head"]), choice.dropped)
    assert count(Pipeline([MergeBasis()])(masked).traced).macs == choice.counts.merged.macs
    with pytest.raises(BudgetError, match="one left per group"):
        choose_vectors(traced, basis_importance(traced, batches()), macs=0.01)


def test_distillation_beside_it_changes_nothing_of_it() -> None:
    traced, teacher = network(), Convnet().eval()

    def basis(model: nn.Module) -> BasisScaling:
        assert isinstance(model, fx.GraphModule)
        return BasisScaling.begin(traced.with_module(model), params=0.5)

    def distill(model: nn.Module) -> Distillation:
        return Distillation(model, teacher, layers="last", gamma=1)

    data, recipe = torch.utils.data.TensorDataset(IMAGES, LABELS), Recipe(epochs=1, batch=8, lr=0.01)
    one, other = (
        finetune(traced, data, recipe=recipe, objectives=each) for each in ([basis, distill], [distill, basis])
    )
    for name, value in one.module.state_dict().items():
        assert torch.equal(value, other.module.state_dict()[name]), name
    with Distillation(network().module, teacher, layers="last") as objective:  # its hooks only watch
        assert objective.pairs == [("conv2.mix", "conv2")]
    student = network().module
    with Distillation(student, teacher, layers="last"):
        assert len(basis_scales(student)) == 3


def test_a_state_is_of_its_options() -> None:
    state = BasisScaling(network(), params=0.5).state_dict()
    BasisScaling(network(), params=0.5).load_state_dict(state)
    options: list[dict[str, Any]] = [{"params": 0.4}, {"macs": 0.5}, {"params": 0.5, "ranking": "layer"}]
    for other in [*options, {"params": 0.5, "head": ()}]:
        with pytest.raises(InputError, match="this training began with"):
            BasisScaling(network(), **other).load_state_dict(state)
