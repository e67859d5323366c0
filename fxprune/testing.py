"""Helpers for tests of passes: this library's, and its users' own."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.capture import Traced, trace
from fxprune.distance import distance, top
from fxprune.graph_tools import wide
from fxprune.pipeline import Keeps, Pass, Pipeline, Result


def check_pass(
    pass_: Pass,
    module: nn.Module,
    example: Any,
    *,
    changed: Collection[str] = (),
    skipped: Mapping[str, str] | None = None,
) -> Result:
    """Run a pass on a model, and hold it to everything that a pass has to do.

    The model runs in float64 and eval mode. Checked are: the places of all changes and skips, that a second run changes
    nothing, that the model itself is untouched, that the Pipeline finds the pass's claim true, and that the result can
    be captured again. Where the pass keeps the outputs, these are compared with the model's own, at a second batch size
    too if the batch is dynamic.

    Args:
        pass_: The pass.
        module: The model; it is copied.
        example: One input or a tuple of inputs.
        changed: Places of all changes, in any order.
        skipped: Place of every skip -> a part of its reason.

    Raises:
        AssertionError: The pass did something else.
        VerifyError: It did not keep what it claims to.
    """
    model = copy.deepcopy(module).double().eval()
    traced = trace(model, pytree.tree_map(wide, example))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    result = Pipeline([pass_])(traced)
    _check_report(result, changed, skipped or {})
    again = pass_(result.traced)
    assert not again.report.changed, f"a second run changed something again:\n{again}"
    now = model.state_dict()
    assert list(now) == list(state), "the pass changed the state_dict of the model that it was given"
    wrong = [key for key, value in state.items() if not torch.equal(now[key], value)]
    assert not wrong, f"the pass wrote into {wrong} of the model that it was given"
    if pass_.keeps is Keeps.OUTPUTS:
        for batch in (None, 3) if traced.batch_is_dynamic else (None,):
            _check_outputs(model, traced, result.traced, batch)
    torch.export.export(result.traced.module, traced.args, traced.kwargs)
    return result


def _check_report(result: Result, changed: Collection[str], skipped: Mapping[str, str]) -> None:
    (report,) = result.report
    places = sorted(change.place for change in report.changes)
    assert places == sorted(changed), f"expected changes at {sorted(changed)}, and got\n{report}"
    assert {skip.place for skip in report.skips} == set(skipped), (
        f"expected skips at {sorted(skipped)}, and got\n{report}"
    )
    for skip in report.skips:
        assert skipped[skip.place] in skip.why, f"{skipped[skip.place]!r} is not in the reason\n{report}"


def _check_outputs(model: nn.Module, before: Traced, after: Traced, batch: int | None) -> None:
    args, kwargs = before.inputs(batch=batch, seed=1)
    with torch.no_grad():
        expected = [leaf for leaf in pytree.tree_leaves(model(*args, **kwargs)) if isinstance(leaf, Tensor)]
    found = after.run(args, kwargs)
    assert len(found) == len(expected)
    for new, old in zip(found, expected, strict=True):
        assert new.shape == old.shape
        assert new.dtype == old.dtype
        gap, largest = distance(new, old), top(old)
        assert gap <= 1e-9 * largest, f"an output differs by {gap:.1e}; its largest value is {largest:.1e}"
