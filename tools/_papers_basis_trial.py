"""One trial of basis scaling: pre-train on five classes, transfer to five others, remove parameters, train on, merge.

All ways to prune have the same number of epochs: half before and half behind the cut, or a third before, between and
behind two cuts. They differ in what is removed (channels, basis vectors, or both) and in what is trained: all weights,
or never single weights (norms, the new head, and scales where there are some).
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fxprune.capture import Traced
from fxprune.channels import find_groups
from fxprune.errors import BudgetError, VerifyError
from fxprune.linear.basis import singular_values, with_vectors_dropped
from fxprune.linear.basis_budget import Ranking, choose_vectors
from fxprune.linear.basis_costs import BasisCosts
from fxprune.passes import MergeBasis, PruneChannels
from fxprune.pipeline import Pipeline
from fxprune.planning import count, make_plan
from fxprune.planning.importance import Scores, taylor
from fxprune.training import basis_importance, evaluate
from tools._papers_basis_transfer import HALF, THIRD, Case, Tuned, adapted, batches, data_for, decomposed, start, tune
from tools._papers_trials import Keyed, Numbers

FLOAT64 = 1e-9  # what merging may change, of the largest output


@dataclass(frozen=True)
class Trial(Keyed):
    """A case, a way to prune, and the share of the parameters that goes."""

    experiment = "basis"

    scale: str
    task: str
    net: str
    share: float
    ratio: float
    seed: int
    method: str

    @property
    def case(self) -> Case:
        """What is transferred to what."""
        return Case(self.scale, self.task, self.net, self.share, self.seed)

    @property
    def settings(self) -> Numbers:
        """The numbers of its scale."""
        return self.case.settings


def run_trial(trial: Trial, cache: Path) -> dict[str, Any]:
    """Transfer, prune and train on, and return what was found."""
    began, case = time.process_time(), trial.case
    _, _, test = data_for(case)
    record: dict[str, Any] = {**trial.key, "dense_params": count(start(case, cache)).params}
    run = Run(case, cache)
    try:
        result = METHODS[trial.method](run, 1 - trial.ratio)
    except BudgetError as error:
        record["error"] = str(error)
    else:
        record |= {"params": count(result).params, "macs": count(result).macs, **run.facts}
        record["accuracy"] = evaluate(result.module, test)["accuracy"]
    record["cpu_seconds"] = round(time.process_time() - began, 1)
    return record


# ---------------------------------------------------------------- ways to prune


class Run:
    """One trial under way: what the ways to prune have in common, and what they note."""

    def __init__(self, case: Case, cache: Path) -> None:
        self.case, self.cache, self.facts = case, cache, dict[str, float]()
        self.dense = count(start(case, cache)).params

    def adapted(self, way: str, part: float = HALF) -> Tuned:
        """Return the network before the first cut."""
        return adapted(self.case, way, part, self.cache)

    def tune(self, traced: Traced, way: str, part: float = HALF, dropped: Any = None) -> Tuned:
        """Train on behind a cut."""
        return tune(self.case, traced, way, part, dropped)

    def share(self, traced: Traced, keep: float) -> float:
        """Return what share of a network's parameters is a share of the dense network's."""
        return keep * self.dense / count(traced).params

    def note(self, traced: Traced) -> None:
        """Note the accuracy right after the last cut."""
        self.facts["cut"] = evaluate(traced.module, data_for(self.case)[2])["accuracy"]

    def cut(self, traced: Traced, keep: float) -> Traced:
        """Remove channels by the squared first-order change of the loss, summed over batches in eval mode."""
        scored = traced.with_module(copy.deepcopy(traced.module))
        scored.module.eval().requires_grad_(True)
        groups = find_groups(scored)
        scores: Scores = np.zeros(len(groups.live))
        for images, labels in batches(self.case):
            scored.module.zero_grad()
            torch.autograd.backward(F.cross_entropy(scored.module(images), labels))
            scores = scores + taylor(groups)
        plan = make_plan(
            scored, params=self.share(traced, keep), importance=lambda _: scores, round_to=1, groups=groups
        )
        return Pipeline([PruneChannels(plan, allow_constant=True)])(traced).traced

    def drop(
        self, tuned: Traced, scores: Mapping[str, Tensor], keep: float, ranking: Ranking | None = None
    ) -> tuple[Traced, dict[str, list[int]]]:
        """Set the scales of the least important vectors to zero; ``keep`` is a share of the dense parameters."""
        single = BasisCosts(tuned).counts({}).single.params
        share, ranking = min(1.0, keep * self.dense / single), ranking or self.case.settings.ranking
        choice = choose_vectors(tuned, scores, params=share, ranking=ranking)
        return with_vectors_dropped(tuned, choice.dropped), choice.dropped

    def merge(self, traced: Traced) -> Traced:
        """Remove what is zero; see that in float64 nothing else changes."""
        merged = Pipeline([MergeBasis()])(traced).traced
        images = data_for(self.case)[2].images[:100].double()
        double = traced.with_module(copy.deepcopy(traced.module).double())
        double = dataclasses.replace(double, args=tuple(arg.double() for arg in traced.args))
        (was,), (now,) = (each.run((images,)) for each in (double, MergeBasis()(double).traced))
        error = float((was - now).abs().max() / was.abs().max())
        self.facts["merge_float64"] = max(error, self.facts.get("merge_float64", 0.0))
        if not error <= FLOAT64:
            raise VerifyError(f"merging changed outputs by {error:.1e} of the largest; {FLOAT64:.0e} is allowed")
        return merged


def _unpruned(run: Run, way: str) -> Traced:
    tuned = run.tune(run.adapted(way).traced, way).traced
    return run.merge(tuned) if way == "scales" else tuned


def _channels(run: Run, keep: float, way: str) -> Traced:
    before = run.adapted(way).traced
    cut = run.cut(run.merge(before) if way == "scales" else before, keep)
    run.note(cut)
    tuned = run.tune(decomposed(cut) if way == "scales" else cut, way).traced
    return run.merge(tuned) if way == "scales" else tuned


def _basis(run: Run, keep: float, kind: str = "taylor", ranking: Ranking | None = None) -> Traced:
    """Drop vectors from the network with trained scales, and train scales on."""
    tuned = run.adapted("scales")
    scores: Mapping[str, Tensor] = {
        "taylor": tuned.scores,
        "last": tuned.last,
        "singular": {path: values**2 for path, values in singular_values(tuned.traced.module).items()},
    }[kind]
    dropped, which = run.drop(tuned.traced, scores, keep, ranking)
    run.note(dropped)
    return run.merge(run.tune(dropped, "scales", dropped=which).traced)


def _basis_then(run: Run, keep: float, way: str) -> Traced:
    """Drop vectors from a network without scales, and train it on in two layers or one."""
    whole = decomposed(run.adapted(way).traced)
    dropped, _ = run.drop(whole, basis_importance(whole, batches(run.case)), keep)
    merged = run.merge(dropped)
    run.note(merged)
    return run.tune(merged, way).traced


def _double(run: Run, keep: float) -> Traced:
    """Channels, then vectors."""
    cut = run.cut(run.merge(run.adapted("scales", THIRD).traced), keep**run.case.settings.channels)
    tuned = run.tune(decomposed(cut), "scales", THIRD)
    dropped, which = run.drop(tuned.traced, tuned.scores, keep)
    run.note(dropped)
    return run.merge(run.tune(dropped, "scales", THIRD, which).traced)


def _double_reverse(run: Run, keep: float) -> Traced:
    """Vectors, then channels."""
    before = run.adapted("scales", THIRD)
    dropped, which = run.drop(before.traced, before.scores, keep ** (1 - run.case.settings.channels))
    cut = run.cut(run.merge(run.tune(dropped, "scales", THIRD, which).traced), keep)
    run.note(cut)
    return run.merge(run.tune(decomposed(cut), "scales", THIRD).traced)


METHODS: dict[str, Callable[[Run, float], Traced]] = {
    "unpruned": lambda run, _: _unpruned(run, "all"),
    "unpruned-frozen": lambda run, _: _unpruned(run, "frozen"),
    "unpruned-scales": lambda run, _: _unpruned(run, "scales"),
    "channels": lambda run, keep: _channels(run, keep, "all"),
    "channels-frozen": lambda run, keep: _channels(run, keep, "frozen"),
    "channels-scales": lambda run, keep: _channels(run, keep, "scales"),
    "basis": _basis,
    "double": _double,
    "double-reverse": _double_reverse,
    "basis-all": lambda run, keep: _basis_then(run, keep, "all"),
    "basis-layer": lambda run, keep: _basis(run, keep, ranking="layer"),
    "basis-plain": lambda run, keep: _basis(run, keep, ranking="plain"),
    "basis-last": lambda run, keep: _basis(run, keep, "last"),
    "basis-singular": lambda run, keep: _basis(run, keep, "singular"),
    "basis-fixed": lambda run, keep: _basis_then(run, keep, "frozen"),
}
