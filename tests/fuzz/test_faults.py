"""What happens when a rule is wrong: the check after the cut has to notice, for every mistake of a list."""

from __future__ import annotations

import pytest
import torch

from fxprune.channels import find_groups
from fxprune.surgery import cut, verify_cut
from tests.fuzz.faults import FAULTS
from tests.networks import NETWORKS, captured, zeroed
from tests.surgery.test_cut import assert_close, choose, flat


@pytest.mark.parametrize("name", FAULTS)
def test_a_wrong_rule_is_noticed(name: str) -> None:
    """The cut or its check fails in some network, and nothing that passes differs from the eager model."""
    noticed = []
    for network in FAULTS[name].networks:
        model, traced = captured(network, torch.float64)
        for seed in (0, 1, None):
            try:
                with FAULTS[name].patch():
                    groups = find_groups(traced)
                    removed = choose(groups, seed)
                    small = cut(traced, removed, groups)
                    checked = verify_cut(traced, small, removed, groups)
            except Exception as error:  # whatever stops it
                noticed.append(f"{network}: {type(error).__name__}: {error}")
                continue
            if not checked.live:  # nothing is proved, and said so
                continue
            if removed and NETWORKS[network].expectation.zero_keeps:
                args, kwargs = traced.inputs(batch=3, seed=5)
                with torch.no_grad():
                    assert_close(small.run(args, kwargs), flat(zeroed(model, removed)(*args, **kwargs)))
    assert noticed, f"{name} changes nothing that the check notices"


def test_there_are_enough_mistakes() -> None:
    assert len(FAULTS) >= 30
