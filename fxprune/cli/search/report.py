"""What ``report.json`` says of a search; what comes of the final file is added to it later."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxprune.cli.report.versions import versions

if TYPE_CHECKING:
    from fxprune.capture import Traced
    from fxprune.cli.search.job import Job
    from fxprune.search import Trial, TrialResult
    from fxprune.search.candidates import Built
    from fxprune.search.fitting import Fitted, Measured
    from fxprune.search.network import Network
    from fxprune.search.search import SearchResult

AXES = ("depth", "width", "resolution")
_MUCH = 0.03  # of accuracy, by which a smaller network is better than the whole one


def build_report(job: Job, found: SearchResult, dense: Traced, network: Network) -> dict[str, Any]:
    """Return what there is to know of a search.

    Args:
        job: What was asked for.
        found: What was found.
        dense: The dense model.
        network: The final one, as it is exported.
    """
    before, after = _cost(dense), _cost(network.traced)
    asked = _described(job)
    met = found.chosen.cost <= found.asked.budget * (1 + 1e-9)
    if found.asked.metric == "macs":  # counted once more, on what is exported
        met = after["macs"] <= found.asked.budget * before["macs"] * (1 + 1e-9)
    notes = [*network.traced.notes, *found.notes, *_doubts(found)]
    return {
        "schema": 1,
        "ok": met,
        "met": met,
        "model": job.options.model,
        "input": [job.spec],
        "side_arg": job.options.side_arg,
        "versions": versions(),
        "asked": asked,
        "before": before,
        "after": after,
        "space": asdict(found.space),
        "points": [_point(each, found) for each in found.measured],
        "failed": _failed(found),
        "fitted": _fitted(found.fitted),
        "chosen": _built(found.chosen),
        "alternatives": {
            name: {"reason": built} if isinstance(built, str) else _built(built)
            for name, built in found.alternatives.items()
        },
        "notes": list(dict.fromkeys(notes)),
    }


def _described(job: Job) -> dict[str, Any]:
    """Return what was asked for, as plain data."""
    options, asked = job.options, job.asked
    return {
        "budget": {asked.metric: asked.budget}, "epochs": list(asked.epochs), "points": asked.points,
        "dimensions": list(asked.dimensions), "choices": json.loads(json.dumps(asdict(asked.choices))),
        "measuring": asdict(asked.measuring), "alternatives": asked.alternatives, "noise": asked.noise,
        "seed": asked.seed, "data": options.data, "train": options.train, "fraction": options.fraction,
        "recipe": job.data.recipe.describe() if job.data else None,
        "executor": job.executor.label if job.executor else "this process",
    }  # fmt: skip


def _doubts(found: SearchResult) -> list[str]:
    """Say where the points speak of something else than size."""
    whole, notes = found.measured[0].point.accuracy, []
    better = max(each.point.accuracy for each in found.measured) - whole
    if better > _MUCH:
        notes.append(
            f"Smaller networks came out better than the whole one, by up to {100 * better:.1f} points: each starts "
            "from the one before it and so was trained for longer, and the dense model was not trained to its end. The "
            "fit takes that for an advantage of small networks; train the dense model first (--weights), or for more "
            "--epochs."
        )
    notes += _better(found)
    predicted = found.chosen.choice.accuracy
    if not 0 <= predicted <= 1:
        notes.append(
            f"The accuracy that is predicted of the chosen network, {predicted:.1%}, is none that a network can have: "
            "the points scatter too much, or are too few, for what lies between them."
        )
    return notes


def _better(found: SearchResult) -> list[str]:
    """Say which network of the same budget came out better on the images that choose."""
    reached = {
        name: built.point.accuracy
        for name, built in found.alternatives.items()
        if not isinstance(built, str) and built.point.accuracy > found.chosen.point.accuracy
    }
    if not reached:
        return []
    best = max(reached, key=lambda name: reached[name])
    single = best.removesuffix(" only")
    take = f"; the same command with --dimensions {single} takes it, and trains nothing anew" if single != best else ""
    return [
        f"{best} came out better than what was predicted to be best: {reached[best]:.1%} against "
        f"{found.chosen.point.accuracy:.1%} on the validation set, in one training each{take}."
    ]


def file_of(job: Job, trial: Trial) -> Path:
    """Return the folder of a trial."""
    from fxprune.search.store import TRIALS
    from fxprune.search.trials import folder_of

    return folder_of(job.options.folder / TRIALS, trial)


def _cost(traced: Traced) -> dict[str, int]:
    from fxprune.planning import count

    cost = count(traced)
    return {"params": int(cost.params), "macs": int(cost.macs), "bytes": int(cost.bytes)}


def _point(each: Measured, found: SearchResult) -> dict[str, Any]:
    point, result = each.point, each.result
    return {
        **_shares(point.shares), "accuracy": point.accuracy, "cost": each.cost, "side": _whole(result.resolution),
        "layers": result.figures["layers"], "predicted": found.fitted.predictor(*point.shares),
        **_run(each.trial, result),
    }  # fmt: skip


def _built(built: Built) -> dict[str, Any]:
    from fxprune.depth import LayerPlan
    from fxprune.search.network import depth_of, macs_of

    choice, traced = built.choice, built.network.traced
    return {
        **_shares(built.point.shares),
        "accuracy": None if math.isnan(built.point.accuracy) else built.point.accuracy,
        "cost": built.cost,
        "side": built.network.side,
        "depth_layers": depth_of(traced),
        "layers": sum(len(step.layers) for step in built.network.steps if isinstance(step, LayerPlan)),
        "macs": macs_of(traced),
        "params": sum(parameter.numel() for parameter in traced.module.parameters()),
        "predicted": {**_shares(choice.shares), "accuracy": choice.accuracy, "cost": choice.cost},
        **(_run(built.trial, built.result) if built.trial is not None and built.result is not None else {}),
    }


def _run(trial: Trial, result: TrialResult) -> dict[str, Any]:
    """Return what there is to know of how a trial ran."""
    return {
        "trial": trial.key[:16], "name": trial.name, "parent": trial.parent and trial.parent[:16],
        "epochs": trial.epochs, "seconds": result.seconds, "worker": result.worker, "attempts": result.attempts,
        "macs": _whole(result.macs), "params": _whole(result.params), "error": result.error,
    }  # fmt: skip


def _failed(found: SearchResult) -> list[dict[str, Any]]:
    """Return the trials that failed: along the dimensions, and of the alternatives."""
    from fxprune.search.search import plan_trials

    trials = {trial.key: trial for trial in plan_trials(found.space, found.asked)}
    rows = [(trials[result.key], result) for result in found.failed]
    for built in found.alternatives.values():
        if not isinstance(built, str) and built.trial and built.result and built.result.status != "done":
            rows.append((built.trial, built.result))
    return [{**_shares((t.depth, t.width, t.resolution)), **_run(t, result)} for t, result in rows]


def _fitted(fitted: Fitted) -> dict[str, Any]:
    optimum, steady = fitted.optimum, fitted.stability
    return {
        "factors": {axis: [float(c) for c in factor] for axis, factor in zip(AXES, _factors(fitted), strict=True)},
        "degree": fitted.degree,
        "errors": {name: None if math.isnan(error) else error for name, error in fitted.errors.items()},
        "exponents": _shares(fitted.law.exponents),
        "exponents_error": fitted.law.error,
        "optimum": {**_shares(optimum.shares), "accuracy": optimum.accuracy, "cost": optimum.cost},
        "stability": {
            "noise": steady.noise, "mean": _shares(steady.mean), "std": _shares(steady.std),
            "accuracy": steady.accuracy,
        },
    }  # fmt: skip


def _factors(fitted: Fitted) -> Any:
    from fxprune.search.predictor import Specialised

    assert isinstance(fitted.predictor, Specialised)  # what ``fit`` returns
    return fitted.predictor.factors


def _shares(values: tuple[float, float, float]) -> dict[str, float]:
    return dict(zip(AXES, map(float, values), strict=True))


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)
