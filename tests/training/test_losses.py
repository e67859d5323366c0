"""Distances of distillation against their formulas, written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fxprune.errors import InputError
from fxprune.training import FeatureMatching, SimilarityPreserving, SoftTargets


def _similarity_in_words(student: Tensor, teacher: Tensor) -> float:
    """The formula of the paper with loops over samples."""
    batch = student.shape[0]
    total = 0.0
    grams = []
    for features in (student.flatten(1), teacher.flatten(1)):
        gram = [[float(sum(a * b for a, b in zip(f, g, strict=True))) for g in features] for f in features]
        grams.append([[value / math.hypot(*row) for value in row] for row in gram])
    for i in range(batch):
        for j in range(batch):
            total += (grams[0][i][j] - grams[1][i][j]) ** 2
    return total / batch**2


def test_similarity_is_the_formula() -> None:
    student, teacher = torch.randn(5, 3, 2, 2, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    assert SimilarityPreserving()(student, teacher).item() == pytest.approx(_similarity_in_words(student, teacher))


def test_similarity_sees_no_scale_and_no_rotation_of_features() -> None:
    features = torch.randn(6, 7, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(7, 7, dtype=torch.float64)).Q
    assert SimilarityPreserving()(3 * features @ rotation, features).item() < 1e-20
    assert float(SimilarityPreserving()(torch.randn(6, 7), features.float())) > 1e-3


def test_similarity_has_the_right_gradient_and_none_for_the_teacher() -> None:
    student = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: SimilarityPreserving()(s, teacher), (student,))
    SimilarityPreserving()(student, teacher).backward()
    assert teacher.grad is None


def test_small_batches_count_as_zero() -> None:
    loss = SimilarityPreserving()(torch.randn(3, 8, requires_grad=True), torch.randn(3, 8))
    assert loss.item() == 0
    assert not loss.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_similarity_computes_in_float32_under_autocast(dtype: torch.dtype) -> None:
    student, teacher = 300 * torch.randn(8, 64), 300 * torch.randn(8, 64)  # a Gram matrix beyond the range of float16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = SimilarityPreserving()(student.to(dtype), teacher.to(dtype))
    assert loss.dtype == torch.float32
    exact = SimilarityPreserving()(student.to(dtype).double(), teacher.to(dtype).double())
    assert loss.item() == pytest.approx(float(exact), rel=1e-5)


def test_dead_features_give_finite_gradients() -> None:
    student = torch.zeros(4, 3, requires_grad=True)
    SimilarityPreserving()(student, torch.randn(4, 3)).backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_different_batches_are_refused() -> None:
    with pytest.raises(InputError, match="one batch"):
        SimilarityPreserving()(torch.randn(4, 3), torch.randn(5, 3))


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 3, 2)])
def test_soft_targets_are_the_divergence_times_the_squared_temperature(shape: tuple[int, ...]) -> None:
    student, teacher = torch.randn(shape).double(), torch.randn(shape).double()
    p, q = (torch.softmax(logits / 3, dim=1) for logits in (teacher, student))
    expected = 9 * (p * (p / q).log()).sum(1).mean()
    assert float(SoftTargets(3.0)(student, teacher)) == pytest.approx(float(expected))
    assert float(SoftTargets(3.0)(teacher, teacher)) == pytest.approx(0, abs=1e-12)


def test_soft_targets_refuse_what_makes_no_sense() -> None:
    with pytest.raises(InputError, match="one shape"):
        SoftTargets()(torch.randn(2, 3), torch.randn(2, 4))
    with pytest.raises(InputError, match="temperature"):
        SoftTargets(0)


def test_matching_compares_the_kept_channels() -> None:
    teacher = torch.randn(2, 5, 3, 3)
    matching = FeatureMatching((2, 5), kept=[1, 4])
    assert not list(matching.parameters())
    assert float(matching(teacher[:, [1, 4]], teacher)) == 0
    assert float(matching(teacher[:, [1, 3]], teacher)) > 0
    with pytest.raises(InputError, match="plan keeps 1"):
        FeatureMatching((2, 5), kept=[1])


@pytest.mark.parametrize(("dim", "shape"), [(1, (4, 2, 3, 3)), (-1, (4, 7, 2))])
def test_matching_learns_a_map_where_widths_differ(dim: int, shape: tuple[int, ...]) -> None:
    student = torch.randn(shape)
    matching = FeatureMatching((2, 5), dim)
    (weight,) = matching.parameters()
    truth = torch.randn(5, 2)
    teacher = torch.einsum("ts,...s->...t", truth, student.movedim(dim, -1)).movedim(-1, dim)
    optimizer = torch.optim.LBFGS([weight], line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = matching(student, teacher)
        loss.backward()
        return loss

    for _ in range(5):
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    assert torch.allclose(weight, truth, atol=1e-2)


def test_matching_refuses_other_resolutions() -> None:
    with pytest.raises(InputError, match="entry by entry"):
        FeatureMatching((2, 2))(torch.randn(2, 2, 4, 4), torch.randn(2, 2, 8, 8))
