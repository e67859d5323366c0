"""Trainings among the steps of a recipe.

::

    [data]
    spec = "digits"

    [[passes]]
    name = "train"
    epochs = 90
    lr = 0.001
    schedule = "constant"
    tpp = { ratios = 0.95, schedule = "short" }

A step takes the choices of :class:`fxprune.training.Recipe`, ``cpu``, and methods of :data:`METHODS` as tables of their
options; a step without a method is plain fine-tuning. At most one method prunes; others may go with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from fxprune.cli.recipes.options import WEIGHTS
from fxprune.cli.recipes.types import converted, fits, in_words, types_of
from fxprune.errors import FxPruneError

if TYPE_CHECKING:
    from fxprune.training import Recipe

CPU = "cpu"
KEEP = "keep-pruned"


@dataclass(frozen=True)
class Method:
    """A method of :mod:`fxprune.training`.

    Attributes:
        cls: The name of its class there.
        gives: What its ``finish`` returns: a plan, which prune-channels has to carry out, a pruned model, or nothing.
        needs: The step that has to come before it.
        taken_by: The step that takes out what a training that gives a model drove there.
    """

    cls: str
    gives: Literal["plan", "model", "nothing"] = "nothing"
    needs: str = ""
    taken_by: str = ""


METHODS = {
    "tpp": Method("TPP", "plan"),
    "growing-l2": Method("GrowingL2", "plan"),
    "plain-l1": Method("PlainL1", "plan"),
    "basis-scaling": Method("BasisScaling", "model", "decompose-basis", taken_by="merge-basis"),
    "hyperspherical": Method("Hyperspherical", "model", taken_by=WEIGHTS),
    KEEP: Method("KeepPruned", needs=WEIGHTS),
    "distillation": Method("Distillation"),
}
_NOT_IN_A_FILE = ("self", "traced", "student", "teacher", "plan", "steps")  # the command gives these


def methods_of(options: Mapping[str, Any]) -> list[str]:
    """Return the methods that a training names, in its order."""
    return [key for key in options if key in METHODS]


def pruning_method(options: Mapping[str, Any]) -> str | None:
    """Return the method of a training that prunes."""
    return next((name for name in methods_of(options) if METHODS[name].gives != "nothing"), None)


def method_class(name: str) -> Any:
    """Return the class of a method."""
    import fxprune.training

    return getattr(fxprune.training, METHODS[name].cls)


def method_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a method's options as its class takes them, with those that ``fxprune finetune`` has as a default too."""
    kinds = types_of(method_class(name))
    usual: dict[str, Any] = {"gamma": 100.0} if name == "distillation" else {}
    return usual | {key: converted(value, kinds[key]) for key, value in options.items()}


def training_recipe(options: Mapping[str, Any], seed: int) -> Recipe:
    """Return how a training goes; its random numbers are those of the whole run unless it says otherwise."""
    from fxprune.training import Recipe

    chosen = {key: value for key, value in options.items() if key not in METHODS and key != CPU}
    return Recipe(**{"seed": seed, **chosen})


def problem_with(options: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the key (``method.option`` within a method) and what is wrong with it; None where nothing is."""
    from fxprune.training import Recipe

    kinds = {**types_of(Recipe), CPU: bool}
    for key, value in options.items():
        found = _method_problem(key, value) if key in METHODS else _option_problem(kinds, key, value)
        if found:
            return found
    pruning = [name for name in methods_of(options) if METHODS[name].gives != "nothing"]
    if len(pruning) > 1:
        return pruning[1], f"one training prunes in one way, and this one has {' and '.join(pruning)}: make two steps"
    try:
        training_recipe(options, 0)
    except FxPruneError as error:  # it begins with the name of what is out of range
        return next((key for key in options if str(error).startswith(f"{key} ")), "name"), f"train: {error}"
    return None


def _option_problem(kinds: Mapping[str, Any], key: str, value: Any) -> tuple[str, str] | None:
    if key not in kinds:
        text = f"train has no option and no method {key!r}; options: {', '.join(kinds)}; methods: {', '.join(METHODS)}"
        return key, text
    if key == "schedule" and value == "allr":
        return key, "the schedule 'allr' is for fxprune finetune, which knows the length of the first training"
    return None if fits(value, kinds[key]) else (key, f"train: {key} = {value!r} is not {in_words(kinds[key])}")


def _method_problem(name: str, options: Any) -> tuple[str, str] | None:
    """Return what is wrong with the options of a method, as far as can be told without the model."""
    if not isinstance(options, dict):
        return name, f"{name} = {options!r} is not a table of its options, as in {name} = {{}} for none"
    kinds = {key: kind for key, kind in types_of(method_class(name)).items() if key not in _NOT_IN_A_FILE}
    for key, value in options.items():
        if key not in kinds:
            return f"{name}.{key}", f"{name} has no option {key!r}; it takes {', '.join(kinds) or 'none'}"
        if not fits(value, kinds[key]):
            return f"{name}.{key}", f"{name}: {key} = {value!r} is not {in_words(kinds[key])}"
    missing = [key for key in _required(name) if key not in options]
    if missing:
        return name, f"{name} needs {missing[0]}: {in_words(kinds[missing[0]])}"
    try:
        method_options(name, options)
    except FxPruneError as error:  # a table that describes nothing sensible
        return name, f"{name}: {error}"
    return None


def _required(name: str) -> list[str]:
    import inspect

    parameters = inspect.signature(method_class(name)).parameters
    return [key for key, p in parameters.items() if p.default is p.empty and key not in _NOT_IN_A_FILE]
