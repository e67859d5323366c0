"""What ``report.json`` says of the steps of a run; what comes of the file is added to it later."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fxprune.cli.recipes.options import TRAIN, WEIGHTS, PassChoice
from fxprune.cli.recipes.recipe import write_recipe
from fxprune.cli.recipes.training import methods_of
from fxprune.cli.report.coupled import coupled
from fxprune.cli.report.versions import versions

if TYPE_CHECKING:
    from fxprune.cli.optimize.steps import Cut, Run


def build_report(run: Run, captured: Any) -> dict[str, Any]:
    """Return what there is to know of the steps."""
    from fxprune.planning import count

    options, cut = run.options, run.cut
    report = {
        "schema": 1,
        "ok": cut is None or cut.check.ok,
        "model": options.model,
        "versions": versions(),
        "before": _cost(count(captured)),
        "after": _cost(count(run.stored)),
        **_of_the_cut(cut, run.budget),
        "notes": [
            *(cut.before if cut else run.traced).notes,
            *(cut.plan.notes if cut else ()),
            *_of_single_weights(run),
        ],
        "widths": _widths(cut.before, cut.after) if cut else _widths(captured, run.stored),
        "steps": [_step_name(choice) for choice in options.passes],
        "passes": run.passes,
        "recipe": write_recipe(options),
    }
    if run.trainings:
        report["trainings"] = run.trainings
    if run.splits is not None:
        from fxprune.cli.optimize.training import accuracy_of

        with run.stages.step("test", "measure accuracy on the test set"):
            models = {"dense": run.dense, "after": run.traced}
            report["accuracy"] = {name: accuracy_of(traced, run.splits) for name, traced in models.items()}
        report["data"] = options.data
    return report


def _of_the_cut(cut: Cut | None, budget: dict[str, Any]) -> dict[str, Any]:
    """Return the parts of the report that are there only where channels were cut; else None for each."""
    if cut is None:
        return {"groups": None, "verify": None, "plan": None}
    listed, plan = cut.groups.groups, cut.plan
    return {
        "groups": {
            "total": len(listed),
            "prunable": sum(g.units > 0 for g in listed),
            "frozen": [{"parameters": [n for n, _ in g.parameters], "reason": g.reason} for g in listed if not g.units],
            **coupled(cut.groups, plan.removed),
        },
        "verify": {
            "max_relative_error": cut.check.max_relative_error,
            "dtype": cut.check.dtype,
            "ok": cut.check.ok,
        },
        "plan": {
            "hash": plan.hash,
            "importance": plan.importance,
            "allocation": plan.allocation,
            "round_to": plan.round_to,
            "budget": budget,
            "trials": cut.trials,
        },
    }


def _of_single_weights(run: Run) -> list[str]:
    """Say how many single weights are pruned, which no count of parameters shows, and where they no longer are."""
    from fxprune.linear.sparsity import pruned_of

    masks, lost = pruned_of(run.stored.module)
    notes = []
    if masks:
        gone, weights = sum(int(mask.sum()) for mask in masks.values()), sum(mask.numel() for mask in masks.values())
        notes.append(
            f"{gone:,} of {weights:,} weights of {len(masks)} layers are pruned; one number for each filter stands in "
            "their places"
        )
    if lost:
        path, why = next(iter(lost.items()))
        others = f" and {len(lost) - 1} others" if len(lost) > 1 else ""
        notes.append(
            f"What {WEIGHTS} pruned in {path}{others} is not counted, and may not be pruned any more ({path}: {why}). "
            f"Put {WEIGHTS} behind the steps that change these layers, and keep-pruned into trainings behind it"
        )
    return notes


def _step_name(choice: PassChoice) -> str:
    methods = " + ".join(methods_of(choice.options)) if choice.name == TRAIN else ""
    return f"{choice.name} ({methods})" if methods else choice.name


def _cost(cost: Any) -> dict[str, int]:
    return {"params": int(cost.params), "macs": int(cost.macs), "bytes": int(cost.bytes)}


def _widths(dense: Any, pruned: Any) -> list[dict[str, Any]]:
    """Return the output widths of every layer with a weight matrix or kernel, before and after."""
    after = dict(pruned.module.named_parameters())
    return [
        {"name": name.removesuffix(".weight"), "before": int(weight.shape[0]), "after": int(after[name].shape[0])}
        for name, weight in dense.module.named_parameters()
        if weight.ndim >= 2 and name in after and name.endswith("weight")
    ]
