"""The table of rules itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fxprune.channels.rules import RULES, Entry, Held, rule


def test_every_rule_says_what_becomes_of_a_constant() -> None:
    assert all(isinstance(entry, Entry) and isinstance(entry.held, Held) for entry in RULES.values())
    assert {entry.held for entry in RULES.values()} == set(Held)


def test_what_the_analysis_of_constants_counts_on() -> None:
    aten = torch.ops.aten
    assert RULES[nn.BatchNorm2d].held is RULES[nn.Conv2d].held is Held.BIAS
    assert RULES[nn.PReLU].held is Held.MOVED, "its slope is no scale: without it a channel is not zero"
    assert RULES[aten.relu].held is Held.COMPUTED
    assert RULES[aten.cumsum].held is RULES[aten.dropout].held is Held.LOST, "of one value they make many"


def test_two_rules_for_one_operation_are_an_error() -> None:
    with pytest.raises(ValueError, match="two rules for"):
        rule(torch.ops.aten.relu, held=Held.LOST)(lambda flow, node: None)
