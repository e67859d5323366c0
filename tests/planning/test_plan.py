"""A plan as data: it survives JSON, and refuses what is damaged, partial or meant for another model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fxprune.errors import PlanError
from fxprune.planning import Cost, Plan, make_plan

Chain = Callable[..., Any]
PLAN = Plan(
    {"a.weight": {0: [1, 4], 1: [0]}, "a.bias": {0: [1, 4]}},
    "f" * 64,
    model="Net",
    metric="macs",
    keep=0.5,
    protect=("head.*",),
    before=Cost(100, 1000, 400),
    after=Cost(50, 480, 200),
    notes=("rounded to 8",),
)


def test_json_round_trip() -> None:
    for indent in (None, 2):
        again = Plan.from_json(PLAN.to_json(indent))
        assert again == PLAN
        assert again.hash == PLAN.hash


def test_json_is_canonical() -> None:
    other = dataclasses.replace(PLAN, removed=dict(reversed(PLAN.removed.items())))
    assert other.to_json() == PLAN.to_json()
    assert dataclasses.replace(PLAN, seed=1).hash != PLAN.hash


removals = st.dictionaries(
    st.text(max_size=8), st.dictionaries(st.integers(0, 4), st.sets(st.integers(0, 999)).map(sorted)), max_size=4
)


@settings(max_examples=50, deadline=None)
@given(removed=removals, notes=st.lists(st.text()), keep=st.floats(1e-6, 1.0), seed=st.integers(0, 2**40))
def test_json_round_trip_of_anything(removed: Any, notes: list[str], keep: float, seed: int) -> None:
    removed = {name: dims for name, dims in removed.items() if dims}
    plan = Plan(removed, "0", keep=keep, seed=seed, notes=tuple(notes))
    assert Plan.from_json(plan.to_json()) == plan


def damaged(**changes: Any) -> str:
    return json.dumps({**json.loads(PLAN.to_json()), **changes})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read as JSON"),
        ("{", "cannot be read as JSON"),
        (b"\xff\xfe\x00", "cannot be read as JSON"),
        ("[" * 100000, "cannot be read as JSON"),
        ("[]", "not an object"),
        ("{}", "not an object"),
        (damaged(schema=2), "schema 2"),
        (damaged(schema=True), "schema True"),
        (damaged(extra=1), "unknown fields extra"),
        ('{"schema": 1}', "it lacks after"),
        (damaged(keep=2), "keep must be"),
        (damaged(keep="0.5"), "keep must be"),
        (damaged(keep=float("nan")), "keep must be"),
        (damaged(round_to=0), "round_to must be"),
        (damaged(seed=1.5), "seed must be"),
        (damaged(notes="text"), "notes must be"),
        (damaged(protect=[1]), "protect must be"),
        (damaged(compensate="all"), "compensate must be"),
        (damaged(compensate=[]), "compensate must be"),
        (damaged(model=None), "model must be"),
        (damaged(before={"params": 1}), "before must be"),
        (damaged(after={"params": 1, "macs": 1.5, "bytes": 2}), "after must be"),
        (damaged(removed=[]), "removed must be"),
        (damaged(removed={"a": [1]}), "removed must be"),
        (damaged(removed={"a": {"x": [1]}}), "whole number"),
        (damaged(removed={"a": {"01": [1]}}), "whole number"),
        (damaged(removed={"a": {"0": 1}}), "list of indices"),
        (damaged(removed={"a": {"0": [True]}}), "list of indices"),
        (damaged(removed={"a": {"0": [-1]}}), "list of indices"),
        (damaged(removed={"a": {"0": [10**30]}}), "list of indices"),
        (damaged(removed={"a": {"0": [2, 2]}}), "increasing"),
    ],
)
def test_damaged_files_are_refused(text: str | bytes, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Plan.from_json(text)


def test_a_plan_refuses_another_model(chain: Chain) -> None:
    groups = chain([4, 16, 4])
    plan = make_plan(groups.traced, groups=groups, macs=0.5)
    plan.check(chain([4, 16, 4], seed=1).traced)
    with pytest.raises(PlanError, match="made for another graph: Chain"):
        plan.check(chain([4, 17, 4]).traced)


def test_classes_are_those_that_were_removed(chain: Chain) -> None:
    groups = chain([4, 16, 4], [1, 3])
    plan = make_plan(groups.traced, groups=groups, macs=0.5)
    gone = plan.classes(groups)
    assert gone.sum() == len(plan.removed["layer0.weight"][0]) > 0
    assert len(plan.removed["layer1.weight"][1]) == 3 * gone.sum()
    assert Plan({}, "").classes(groups).sum() == 0


def closed(groups: Any, family: int, count: int) -> dict[str, dict[int, list[int]]]:
    """Return the removal of the first units of a family, everywhere."""
    chosen = groups.families[family][:count]
    removed: dict[str, dict[int, list[int]]] = {}
    for name, dim in groups.parameters:
        indices = np.flatnonzero(np.isin(groups.axis(name, dim), chosen)).tolist()
        if indices:
            removed.setdefault(name, {})[dim] = indices
    return removed


def test_a_part_of_what_goes_together_is_refused(chain: Chain) -> None:
    groups = chain([4, 6, 4], [1, 2])
    removed = closed(groups, 0, 2)
    assert Plan(removed, "").classes(groups).sum() == 2
    del removed["layer0.bias"]
    with pytest.raises(
        PlanError, match=r"removes index 0 of dimension 0 of layer0.weight.*index 0 of dimension 0 of layer0.bias"
    ):
        Plan(removed, "").classes(groups)


def test_half_of_a_repeated_channel_is_refused(chain: Chain) -> None:
    groups = chain([4, 6, 4], [1, 2])
    removed = closed(groups, 0, 1)
    removed["layer1.weight"][1].remove(1)
    with pytest.raises(PlanError, match=r"index 1 of dimension 1 of layer1.weight"):
        Plan(removed, "").classes(groups)


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ({"layer0.weight": {1: [0]}}, "cannot go: it is an input or output"),
        ({"layer9.weight": {0: [0]}}, "layer9.weight, which has no channels"),
        ({"layer0.weight": {2: [0]}}, "dimension 2 of layer0.weight, which has no channels"),
        ({"layer0.weight": {0: [6]}}, "which has 6"),
        ({"layer0.weight": {0: [-1]}}, "which has 6"),
    ],
)
def test_places_that_cannot_be_cut_are_refused(chain: Chain, removed: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Plan(removed, "").classes(chain([4, 6, 4]))


def test_removing_everything_is_refused(chain: Chain) -> None:
    groups = chain([4, 6, 4])
    with pytest.raises(PlanError, match="at least one index"):
        Plan(closed(groups, 0, 6), "").classes(groups)
