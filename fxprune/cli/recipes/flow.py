"""What the steps of a recipe need of each other: a plan for the cut, data for a training, something to learn from.

Everything that can be told before the first step runs is told then, since a step may take hours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from fxprune.cli.recipes.options import CALIBRATE, LAYERS, PRUNE, TRAIN, WEIGHTS, PassChoice
from fxprune.cli.recipes.training import KEEP, METHODS, methods_of, pruning_method

PRUNES = (PRUNE, LAYERS, WEIGHTS, "merge-basis")
"""Passes behind which a model is smaller, or has fewer weights that matter."""
MEASURED = ("cka", "probe", "taylor")
"""Scores of layers that need data."""
_FOR_DEPLOYMENT = ("remove-identity", "fuse-batchnorm")


class Problem(NamedTuple):
    """What is wrong: the number of the step from 0, the key in it, and the words."""

    step: int
    key: str
    text: str


def problem_in(steps: Sequence[PassChoice], *, data: bool) -> Problem | None:
    """Return the first thing that cannot be, or None.

    Args:
        steps: In order.
        data: Whether there are data.
    """
    for number, step in enumerate(steps):
        found = _needs_data(step, data) or _needs_step(steps, number) or _needs_teacher(steps, number)
        found = found or _needs_cut(steps, number) or _cuts_once(steps, number) or _keeps_pruned(steps, number)
        if found:
            return Problem(number, *found)
    if not any(step.name in PRUNES for step in steps):
        passes = f"{', '.join(PRUNES[:-1])} or {PRUNES[-1]}"
        text = f"nothing here makes the model smaller: one of the passes has to be {passes}"
        return Problem(0, "name", text + "; to train alone there is fxprune finetune")
    return None


def plan_source(steps: Sequence[PassChoice]) -> Literal["budget", "training", "none"]:
    """Return where the plan of the cut comes from."""
    for number, step in enumerate(steps):
        if step.name == PRUNE:
            return "training" if number and _gives(steps[number - 1]) == "plan" else "budget"
    return "none"


def first_pruning(steps: Sequence[PassChoice]) -> int:
    """Return the first step that takes something from the model; what goes into it is the dense model."""
    return next((number for number, step in enumerate(steps) if _takes(step)), len(steps))


def deployment(steps: Sequence[PassChoice]) -> int:
    """Return where the last passes begin that only prepare the model for its runtime: weights are kept from there."""
    number = len(steps)
    while number and steps[number - 1].name in _FOR_DEPLOYMENT:
        number -= 1
    return number


def expanded(steps: Sequence[PassChoice], number: int) -> bool:
    """Whether layers are over-parameterised in front of a step."""
    before = [step.name for step in steps[:number] if step.name in ("over-parameterize", "reparameterize")]
    return bool(before) and before[-1] == "over-parameterize"


def measures_layers(step: PassChoice) -> bool:
    """Whether remove-layers chooses by data."""
    return step.options.get("importance") in MEASURED or step.options.get("allocation") == "segments"


def _gives(step: PassChoice) -> str:
    method = pruning_method(step.options) if step.name == TRAIN else None
    return METHODS[method].gives if method else "nothing"


def _takes(step: PassChoice) -> bool:
    return step.name in (*PRUNES, "decompose-basis") or _gives(step) != "nothing"


def _needs_data(step: PassChoice, data: bool) -> tuple[str, str] | None:
    if not data and step.name == LAYERS and measures_layers(step):
        key = "importance" if step.options.get("importance") in MEASURED else "allocation"
        return key, (
            f"{step.name} with {key} = {step.options[key]!r} is measured on data: add a section [data] with "
            'spec = "digits", "imagefolder:PATH" or another'
        )
    if data or step.name not in (TRAIN, CALIBRATE):
        return None
    return "name", f'{step.name} needs data: add a section [data] with spec = "digits", "imagefolder:PATH" or another'


def _needs_step(steps: Sequence[PassChoice], number: int) -> tuple[str, str] | None:
    """Refuse what needs another step in front of it, and does not have it."""
    step, before = steps[number], steps[:number]
    trainings = [each for each in before if each.name == TRAIN]
    if step.name == WEIGHTS and step.options.get("criterion") == "trained":
        if not any("hyperspherical" in each.options for each in trainings):
            return "criterion", 'criterion = "trained" needs a train step with hyperspherical in front of it'
        if "hyperspherical" not in trainings[-1].options:
            return "criterion", (
                'criterion = "trained" takes the set that hyperspherical drove near zero, and a train step without it '
                f"stands between, which moves these weights again: put {WEIGHTS} in front of that step, and "
                "keep-pruned = {} into it"
            )
    for name in methods_of(step.options) if step.name == TRAIN else ():
        needed = METHODS[name].needs
        if needed and needed not in [each.name for each in before]:
            return name, f"{name} needs the pass {needed} in front of it"
    return None


def _needs_teacher(steps: Sequence[PassChoice], number: int) -> tuple[str, str] | None:
    if steps[number].name != TRAIN or "distillation" not in steps[number].options or first_pruning(steps) <= number:
        return None
    return "distillation", (
        "there is no dense teacher: distillation learns from the model as it was before anything was pruned, and "
        "nothing is pruned up to here; put it behind the cut"
    )


def _needs_cut(steps: Sequence[PassChoice], number: int) -> tuple[str, str] | None:
    """Refuse a training whose result nothing carries out: it would end without a word that its budget was missed."""
    step, behind = steps[number], [each.name for each in steps[number + 1 :]]
    if _gives(step) == "nothing":
        return None
    name = str(pruning_method(step.options))
    if _gives(step) == "plan":
        if behind[:1] == [PRUNE]:
            return None
        return name, f"{name} ends with a plan that nothing carries out: the step behind it has to be {PRUNE}"
    taken_by = METHODS[name].taken_by
    if taken_by in behind or not _drops(name, step.options[name]):
        return None
    return name, (
        f"{name} drives weights to where they can be taken out, and nothing takes them out: a step behind it has to be "
        f"{taken_by}"
    )


def _drops(name: str, options: Mapping[str, Any]) -> bool:
    """Whether a method that gives a model is asked to take something from it."""
    if name == "basis-scaling":
        return "params" in options or "macs" in options
    return bool(options.get("strength", 1.0))


def _keeps_pruned(steps: Sequence[PassChoice], number: int) -> tuple[str, str] | None:
    """Refuse a training that would make pruned weights dense again."""
    if steps[number].name != TRAIN or KEEP in methods_of(steps[number].options):
        return None
    for step in reversed(steps[:number]):
        if step.name == "decompose-basis":  # of which layers is not known here; the report says what is lost
            return None
        if step.name == WEIGHTS:
            return "name", (
                f"this training would move the weights that {WEIGHTS} pruned in front of it, and none would be pruned "
                f"any more: add {KEEP} = {{}} to it, or put {WEIGHTS} behind it"
            )
    return None


def _cuts_once(steps: Sequence[PassChoice], number: int) -> tuple[str, str] | None:
    if steps[number].name != PRUNE or PRUNE not in [step.name for step in steps[:number]]:
        return None
    return "name", f"{PRUNE} is here twice, and a run carries out one plan; make the second cut in a run of its own"
