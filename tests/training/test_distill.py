"""Distillation as an objective in a loop of the user's own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxprune.capture import trace
from fxprune.errors import InputError
from fxprune.passes import DecomposeBasis, PruneWeights
from fxprune.pipeline import Pipeline
from fxprune.training import Distillation, Objective, ObjectiveLike, SimilarityPreserving
from tests.training.conftest import Convnet, Pruned, expanded


def _hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_the_protocol_is_met() -> None:
    assert isinstance(Objective(), ObjectiveLike)
    assert issubclass(Distillation, Objective)


def test_the_users_own_loop_in_four_lines(pruned: Pruned) -> None:
    student, teacher = pruned.student.train(), pruned.teacher
    nn.init.normal_(student.get_parameter("conv2.weight"))  # far from the teacher, so that there is much to learn
    before = copy.deepcopy(teacher.state_dict())
    x, y = torch.randn(16, 3, 8, 8), torch.randint(5, (16,))
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-3)
    losses = []
    objective = Distillation(student, teacher, layers=["conv*"], gamma=3000)
    for _ in range(30):
        loss = F.cross_entropy(student(x), y)
        similarity = objective.extra_loss()
        optimizer.zero_grad()
        (loss + similarity).backward()
        objective.after_backward()
        optimizer.step()
        objective.after_step()
        losses.append(similarity.item())
    objective.finish()
    assert losses[-1] < 0.5 * losses[0]
    assert _hooks(student) == _hooks(teacher) == 0
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_loss_is_the_mean_over_layers_of_the_same_inputs(pruned: Pruned) -> None:
    student, teacher = pruned.student, pruned.teacher
    x = torch.randn(6, 3, 8, 8)
    with Distillation(student, teacher, layers=["conv1", "bn2"], gamma=10) as objective:
        student(x)
        found = objective.extra_loss()
    expected = []
    for path in ("conv1", "bn2"):
        features = []
        for model in (student, teacher):
            kept: list[Tensor] = []
            handle = model.get_submodule(path).register_forward_hook(lambda *a, kept=kept: kept.append(a[2]))
            model(x)
            handle.remove()
            features.append(kept[0])
        expected.append(10 * SimilarityPreserving()(*features))
    assert found.item() == pytest.approx(torch.stack(expected).sum().item() / 2)


def test_blocks_are_compared_with_the_dense_layer(pruned: Pruned) -> None:
    student = expanded(pruned.student, "conv2")
    objective = Distillation(student, pruned.teacher)
    assert [tuple(pair) for pair in objective.pairs] == [("conv2.1", "conv2")]
    by_name = Distillation(student, pruned.teacher, layers=["conv2", "conv1"])
    assert [tuple(pair) for pair in by_name.pairs] == [("conv2.1", "conv2"), ("conv1", "conv1")]
    assert Distillation(student, pruned.teacher, layers="last").pairs == objective.pairs
    student(torch.randn(4, 3, 8, 8))
    objective.extra_loss().backward()
    assert student.get_parameter("conv2.0.weight").grad is not None
    assert student.get_parameter("head.weight").grad is None


def test_without_blocks_the_default_says_what_to_do(pruned: Pruned) -> None:
    with pytest.raises(InputError, match="layers='last'"):
        Distillation(pruned.student, pruned.teacher)


def test_all_three_terms_add_up(pruned: Pruned) -> None:
    x = torch.randn(4, 3, 8, 8)

    def loss(**weights: float) -> float:
        with Distillation(pruned.student, pruned.teacher, layers="last", plan=pruned.plan, **weights) as objective:
            pruned.student(x)
            return objective.extra_loss().item()

    parts = [loss(gamma=5), loss(gamma=0, logits=2), loss(gamma=0, features=3)]
    assert min(parts) > 0
    assert loss(gamma=5, logits=2, features=3) == pytest.approx(sum(parts), rel=1e-5)


def test_with_a_plan_the_kept_channels_match_at_once(pruned: Pruned) -> None:
    with Distillation(pruned.student, pruned.teacher, layers=["conv1"], gamma=0, features=1, plan=pruned.plan) as kd:
        pruned.student(torch.randn(4, 3, 8, 8))
        assert not list(kd.parameters())
        assert kd.extra_loss().item() < 1e-12  # the first layer only lost filters


def test_without_a_plan_maps_are_learned_and_kept_in_the_state(pruned: Pruned) -> None:
    first = Distillation(pruned.student, pruned.teacher, layers=["conv1"], gamma=0, features=1)
    (weight,) = first.parameters()
    nn.init.normal_(weight)
    second = Distillation(pruned.student, pruned.teacher, layers=["conv1"], gamma=0, features=1)
    second.load_state_dict(first.state_dict())
    assert torch.equal(next(iter(second.parameters())), weight)


def test_a_copy_of_the_student_records_nothing(pruned: Pruned) -> None:
    objective = Distillation(pruned.student, pruned.teacher, layers="last")
    twin = copy.deepcopy(pruned.student)
    assert _hooks(twin) > 0
    twin(torch.randn(4, 3, 8, 8))
    with pytest.raises(InputError, match="through a copy"):
        objective.extra_loss()


def test_validation_between_steps_leaves_nothing_behind(pruned: Pruned) -> None:
    objective = Distillation(pruned.student, pruned.teacher, layers="last")
    with torch.no_grad():
        pruned.student(torch.randn(4, 3, 8, 8))
    with pytest.raises(InputError, match="once per forward pass"):
        objective.extra_loss()


def test_one_pass_is_counted_once(pruned: Pruned) -> None:
    objective = Distillation(pruned.student, pruned.teacher, layers="last")
    pruned.student(torch.randn(4, 3, 8, 8))
    objective.extra_loss()
    with pytest.raises(InputError, match="once per forward pass"):
        objective.extra_loss()


def test_the_teacher_keeps_its_mode_and_its_statistics(pruned: Pruned) -> None:
    pruned.teacher.train()
    mean = pruned.teacher.get_buffer("bn1.running_mean").clone()
    with Distillation(pruned.student, pruned.teacher, layers="last") as objective:
        pruned.student(torch.randn(4, 3, 8, 8))
        objective.extra_loss()
        assert not pruned.teacher.training
    assert pruned.teacher.training
    assert torch.equal(pruned.teacher.get_buffer("bn1.running_mean"), mean)
    with pytest.raises(InputError, match="closed"):
        objective.extra_loss()


def test_under_autocast(pruned: Pruned) -> None:
    x = torch.randn(8, 3, 8, 8)
    values = []
    for enabled in (False, True):
        objective = Distillation(pruned.student, pruned.teacher, layers="last", logits=1, features=1, plan=pruned.plan)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            pruned.student(x)
            values.append(objective.extra_loss())
        objective.close()
    assert values[1].dtype == torch.float32
    assert values[1].item() == pytest.approx(values[0].item(), rel=0.05)


def test_accumulated_micro_batches_are_compared_one_by_one(pruned: Pruned) -> None:
    x = torch.randn(8, 3, 8, 8)
    with Distillation(pruned.student, pruned.teacher, layers="last") as objective:
        parts = []
        for half in x.split(4):
            pruned.student(half)
            parts.append(objective.extra_loss() / 2)
            parts[-1].backward()
        pruned.student(x)
        assert objective.extra_loss().item() != pytest.approx(torch.stack(parts).sum().item(), rel=1e-3)


def test_a_layer_called_twice_is_averaged_over_its_calls() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.layer(self.layer(x).relu())
            return result

    student, teacher = Twice(), Twice()
    with Distillation(student, teacher, layers=["layer"], gamma=1) as objective:
        student(x := torch.randn(5, 4))
        found = objective.extra_loss().item()
    loss, ours, theirs = SimilarityPreserving(), student.layer(x), teacher.layer(x)
    expected = loss(ours, theirs) / 2 + loss(student(x), teacher(x)) / 2
    assert found == pytest.approx(expected.item())


@pytest.mark.parametrize(
    ("layers", "words"),
    [(["conv9"], "names no layer"), ({"conv1": "conv9"}, "teacher has no layer"), ([], "no layers were named")],
)
def test_layers_that_are_not_there(pruned: Pruned, layers: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Distillation(pruned.student, pruned.teacher, layers=layers)  # type: ignore[arg-type]


def test_a_layer_that_does_not_run_is_named() -> None:
    student = Convnet()
    student.add_module("spare", nn.Linear(2, 2))
    teacher = copy.deepcopy(student)
    with Distillation(student, teacher, layers=["spare"]) as objective:
        student(torch.randn(4, 3, 8, 8))
        with pytest.raises(InputError, match="'spare' of the student did not run"):
            objective.extra_loss()


def test_shared_parameters_and_bad_weights_are_refused(pruned: Pruned) -> None:
    with pytest.raises(InputError, match="share"):
        Distillation(pruned.teacher, pruned.teacher, layers="last")
    alias = copy.deepcopy(pruned.teacher)
    alias.get_parameter("conv1.weight").data = pruned.teacher.get_parameter("conv1.weight").data
    with pytest.raises(InputError, match=r"share conv1\.weight"):
        Distillation(alias, pruned.teacher, layers="last")
    with pytest.raises(InputError, match="gamma=-1"):
        Distillation(pruned.student, pruned.teacher, layers="last", gamma=-1)
    with pytest.raises(InputError, match="all weights"):
        Distillation(pruned.student, pruned.teacher, layers="last", gamma=0)
    with pytest.raises(InputError, match=r"give \.module"):
        Distillation("model", pruned.teacher)  # type: ignore[arg-type]


def test_layers_that_were_decomposed_or_split_are_compared_where_they_end(pruned: Pruned) -> None:
    x = torch.randn(8, 3, 8, 8)
    traced = trace(copy.deepcopy(pruned.teacher), x[:2])
    decomposed = Pipeline([DecomposeBasis(layers="conv*")])(traced).traced.module
    for layers in ("last", ["conv2"], {"conv2": "conv2"}):
        with Distillation(decomposed, pruned.teacher, layers=layers) as objective:
            assert objective.pairs == [("conv2.mix", "conv2")]
            decomposed(x)
            assert objective.extra_loss().item() == pytest.approx(0, abs=1e-6)
    split = Pipeline([PruneWeights(0.5, form="cheap")])(traced).traced.module  # all but the first convolution
    assert Distillation(split, pruned.teacher, layers="last").pairs == [("conv1", "conv1")]
    with pytest.raises(InputError, match=r"'conv2' names no layer that student and teacher share; .* are conv1, bn1"):
        Distillation(split, pruned.teacher, layers=["conv2"])


def test_a_state_is_of_its_options_and_its_teacher(pruned: Pruned) -> None:
    def begin(teacher: nn.Module = pruned.teacher, **options: Any) -> Distillation:
        return Distillation(pruned.student, teacher, **{"layers": "last", "gamma": 10, "logits": 1.0, **options})

    state = begin().state_dict()
    begin().load_state_dict(state)
    begin().load_state_dict({"matching": state["matching"]})  # older than options in states
    for change, words in (
        ({"gamma": 20}, "gamma=10, and goes on with 20"),
        ({"layers": ["conv1"]}, "layers"),
        ({"temperature": 2.0}, "temperature"),
        ({"teacher": Convnet()}, "teacher"),
    ):
        with pytest.raises(InputError, match=f"this training began with {words}"):
            begin(**change).load_state_dict(state)  # type: ignore[arg-type]
