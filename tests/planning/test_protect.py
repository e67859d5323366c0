"""Patterns over parameter names keep output channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from torch import nn

from fxprune.errors import InputError
from fxprune.planning.protect import parse_patterns, protected

Chain = Callable[..., Any]


def test_the_output_side_of_a_parameter_is_kept(chain: Chain) -> None:
    groups = chain([3, 6, 5, 2])
    assert np.flatnonzero(protected(groups, ("layer1.weight",))).tolist() == groups.families[1].tolist()
    assert protected(groups, ("layer*.bias",))[groups.live].all()
    assert not protected(groups, ()).any()


@pytest.mark.parametrize("layer", [nn.Embedding(6, 3), nn.ConvTranspose1d(6, 3, 1)])
def test_the_output_side_of_some_layers_is_the_second_dimension(chain: Chain, layer: nn.Module) -> None:
    groups = chain([3, 6, 2])
    groups.traced.module.layer0 = layer
    groups.axes["layer0.weight", 1] = groups.axes["layer0.weight", 0][:3]
    assert np.flatnonzero(protected(groups, ("layer0.weight",))).tolist() == groups.families[0][:3].tolist()


def test_tied_parameters_are_found_under_both_names(chain: Chain) -> None:
    groups = chain([3, 6, 3, 6, 2])
    module = groups.traced.module
    module.layer2.weight = module.layer0.weight
    for dim in (0, 1):
        del groups.axes["layer2.weight", dim]
    assert (protected(groups, ("layer2.weight",)) == protected(groups, ("layer0.weight",))).all()


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("layer1", "layer1.weight"),
        ("LAYER0.*", "layer0.weight"),
        ("laier0.weight", "layer0.weight"),
        ("head.*", "layer"),
    ],
)
def test_a_pattern_that_matches_nothing_names_what_is_near(chain: Chain, pattern: str, message: str) -> None:
    with pytest.raises(InputError, match=f"matches no parameter.*{message}"):
        protected(chain([3, 6, 2, 2]), (pattern,))


def test_patterns_are_texts() -> None:
    assert parse_patterns("head.*") == ("head.*",)
    assert parse_patterns(["a", "b"]) == ("a", "b")
    for wrong in ([1], 1, [None]):
        with pytest.raises(InputError, match="glob patterns"):
            parse_patterns(wrong)  # type: ignore[arg-type]
