"""Scores against loops written out by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fxprune.errors import InputError
from fxprune.planning.importance import comparable, score

Chain = Callable[..., Any]


def members(groups: Any, number: int) -> Iterator[tuple[str, int, Tensor]]:
    """Yield every slice of a class in the parameters: name, dimension and the values."""
    parameters = dict(groups.traced.module.named_parameters())
    for name, dim in groups.parameters:
        if name in parameters:
            for index in np.flatnonzero(groups.axis(name, dim) == number):
                yield name, dim, parameters[name].detach().select(dim, int(index))


@pytest.mark.parametrize("order", [1, 2])
def test_magnitudes_combine_all_slices(chain: Chain, order: int) -> None:
    groups = chain([3, 6, 5, 2], [1, 4, 2], norm=True)
    found = score(groups, f"l{order}")
    for number in np.flatnonzero(groups.live):
        slices = torch.cat([values.flatten() for _, _, values in members(groups, int(number))])
        assert found[number] == pytest.approx(float((slices.abs() ** order).mean() ** (1 / order)), rel=1e-6)


def test_many_members_are_neither_favoured_nor_punished(chain: Chain) -> None:
    groups = chain([3, 6, 2], [1, 9])
    with torch.no_grad():
        for parameter in groups.traced.module.parameters():
            parameter.fill_(0.5)
    assert score(groups, "l2")[groups.live] == pytest.approx(0.5)


def test_lamp_scores_the_best_of_each_family_one(chain: Chain) -> None:
    groups = chain([3, 6, 5, 2])
    found, energy = score(groups, "lamp"), score(groups, "l2") ** 2
    for family in groups.families:
        for number in family:
            larger = energy[family][energy[family] >= energy[number]]
            assert found[number] == pytest.approx(energy[number] / larger.sum())
        assert found[family].max() == 1


def test_lamp_of_zero_weights_is_finite(chain: Chain) -> None:
    groups = chain([3, 6, 2])
    with torch.no_grad():
        for parameter in groups.traced.module.parameters():
            parameter.zero_()
    assert np.isfinite(score(groups, "lamp")[groups.live]).all()


def test_bn_scale_is_the_scale(chain: Chain) -> None:
    groups = chain([3, 6, 2], norm=True)
    scale = groups.traced.module.norm0.weight
    with torch.no_grad():
        scale.copy_(torch.linspace(-2, 1, 6))
    found = score(groups, "bn_scale")
    assert found[groups.families[0]] == pytest.approx(scale.detach().abs().numpy())
    assert np.isnan(found[~groups.live]).all()


def test_bn_scale_without_batchnorm_is_refused(chain: Chain) -> None:
    with pytest.raises(InputError, match="needs batch norms"):
        score(chain([3, 6, 2]), "bn_scale")


def test_taylor_is_the_squared_change_of_the_loss(chain: Chain) -> None:
    groups = chain([3, 6, 2], [1, 2])
    module = groups.traced.module
    module(torch.randn(8, 3)).square().sum().backward()
    found = score(groups, "taylor")
    parameters = dict(module.named_parameters())
    for number in groups.families[0]:
        changes = []
        for name, dim in groups.parameters:
            tensor, indices = parameters[name], np.flatnonzero(groups.axis(name, dim) == number)
            if len(indices):
                part = (tensor * tensor.grad).detach().index_select(dim, torch.from_numpy(indices))
                changes.append(float(part.sum()) ** 2)
        assert found[number] == pytest.approx(np.mean(changes), rel=1e-4)


def test_taylor_accumulates_what_the_user_accumulated(chain: Chain) -> None:
    groups = chain([3, 6, 2])
    module, x = groups.traced.module, torch.randn(8, 3)
    module(x).sum().backward()
    once = score(groups, "taylor")
    module(x).sum().backward()
    assert score(groups, "taylor")[groups.live] == pytest.approx(4 * once[groups.live], rel=1e-5)


def test_taylor_without_gradients_is_refused(chain: Chain) -> None:
    with pytest.raises(InputError, match=r"needs gradients.*backward\(\)"):
        score(chain([3, 6, 2]), "taylor")


def test_fpgm_finds_the_unit_that_others_can_replace(chain: Chain) -> None:
    groups = chain([3, 5, 2])
    layer, after = groups.traced.module.layer0, groups.traced.module.layer1
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0], [1], [2], [3], [10]]).expand(5, 3))
        after.weight.zero_()
    found = score(groups, "fpgm")[groups.families[0]]
    distance = np.abs(np.subtract.outer([0, 1, 2, 3, 10], [0, 1, 2, 3, 10])).sum(1) / 4 * np.sqrt(3)
    assert found == pytest.approx(distance / np.sqrt(3 + 2), rel=1e-5)  # per element of both layers' slices
    assert found.argmin() == 2


def test_fpgm_takes_repeated_channels_whole(chain: Chain) -> None:
    groups = chain([3, 4, 2], [1, 3])
    with torch.no_grad():
        groups.traced.module.layer0.weight.zero_()
    weight = groups.traced.module.layer1.weight.detach().reshape(2, 4, 3).movedim(1, 0).reshape(4, 6)
    distance = torch.cdist(weight, weight).sum(1) / 3
    assert score(groups, "fpgm")[groups.families[0]] == pytest.approx((distance / (3 + 6) ** 0.5).numpy(), rel=1e-5)


def test_random_is_seeded(chain: Chain) -> None:
    groups = chain([3, 6, 2])
    assert (score(groups, "random", 1) == score(groups, "random", 1)).all()
    assert (score(groups, "random", 1) != score(groups, "random", 2)).any()


def test_a_function_may_return_an_array_or_a_tensor(chain: Chain) -> None:
    groups = chain([3, 6, 2])
    values = torch.arange(len(groups.live)).float()
    assert (score(groups, lambda given: values if given is groups else None) == values.numpy()).all()
    assert comparable(lambda _: values)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda n: np.zeros(n + 1), "shape"),
        (lambda n: 1.0, "shape"),
        (lambda n: ["a"] * n, "no array of numbers"),
        (lambda n: None, "shape"),
        (lambda n: np.full(n, np.inf), "infinite"),
        (lambda n: np.full(n, np.nan), "NaN for every"),
    ],
)
def test_functions_that_return_something_else_are_refused(chain: Chain, result: Any, message: str) -> None:
    groups = chain([3, 6, 2])
    with pytest.raises(InputError, match=message):
        score(groups, lambda _: result(len(groups.live)))


def test_half_precision_counts_like_single(chain: Chain) -> None:
    groups = chain([3, 6, 2])
    single = score(groups, "l2")
    groups.traced.module.half()
    assert score(groups, "l2")[groups.live] == pytest.approx(single[groups.live], rel=1e-2)
