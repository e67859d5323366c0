"""The weights in a folder of ``fxprune optimize``: written, and read back without pickle."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, fx, nn

from fxprune.capture import Traced, trace
from fxprune.capture.specs import example_inputs
from fxprune.deploy.constants import put_constants, read_constants, read_tensors, write_constants
from fxprune.deploy.files import write_safetensors
from fxprune.errors import InputError
from fxprune.passes import PASSES, RemoveLayers
from fxprune.pipeline import Pass, Pipeline
from fxprune.planning import Plan
from fxprune.surgery import cut

PLAN, WEIGHTS, REPORT = "plan.json", "model.safetensors", "report.json"
_CUT, _LAYERS = "prune-channels", "remove-layers"
_FOR_DEPLOYMENT = ("remove-identity", "fuse-batchnorm")
"""Last passes: the weights are those in front of them."""
_OF_VALUES = ("train", "calibrate-batchnorm")
"""Steps that leave names and shapes as they are."""


def write_weights(directory: str | Path, module: fx.GraphModule) -> None:
    """Write the weights of a model, and what else its graph computes with.

    ``model.safetensors`` is its state_dict. ``constants.safetensors``, which only models have that need it, holds the
    tensors that are no part of that (:mod:`fxprune.deploy.constants`).

    Raises:
        InputError: A file cannot be written.
    """
    folder = Path(directory)
    write_safetensors(folder / WEIGHTS, module)
    write_constants(folder, module)


def load(directory: str | Path, factory: Callable[[], nn.Module], example: Any = None) -> Traced:
    """Rebuild a pruned model from its folder.

    The dense model is built, captured and cut by ``plan.json``, goes through the other passes of the recipe, then gets
    the weights of ``model.safetensors``, and of ``constants.safetensors`` the tensors that are no part of a state_dict.
    Write it into a module of your own class with :func:`fxprune.eager.apply_to`.

    Args:
        directory: What ``fxprune optimize --out`` named.
        factory: Builds the dense model; its weights do not matter, but for a model that is captured by region: it runs
            on the example, and has to call the same sub-modules as it did then.
        example: Example inputs of the shapes that the plan was made with, as :func:`fxprune.trace` takes them. None
            takes those that ``report.json`` has.

    Raises:
        InputError: A file is missing, damaged or holds other tensors; or a pass made a structure by the weights.
        PlanError: The plan was made for another model.
    """
    folder = Path(directory)
    recipe = _recipe(folder / REPORT)
    steps = list(recipe.get("passes", [{"name": _CUT}]))
    while steps and steps[-1]["name"] in _FOR_DEPLOYMENT:
        steps.pop()
    names = [entry["name"] for entry in steps]
    last = names.index(_CUT) if _CUT in names else len(steps)
    if example is None:
        section = recipe.get("model", {})
        example = example_inputs(section.get("input", []), section.get("seed", 0))
    layers = iter(_removed_layers(folder / REPORT))
    traced = _through(trace(factory().eval(), example), steps[:last], folder, layers)
    if last < len(steps):
        plan = Plan.from_json(_read(folder / PLAN))
        plan.check(traced)
        traced = cut(traced, replace(plan, compensate=None))  # only the shapes: what it left behind is in the weights
        traced = _through(traced, steps[last + 1 :], folder, layers)
    _load_weights(traced.module, folder / WEIGHTS)
    put_constants(traced.module, read_constants(folder, traced.module))
    return traced


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}); give the folder that fxprune optimize --out wrote"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text: {error}") from error


def _recipe(path: Path) -> dict[str, Any]:
    """Return the recipe of the run; without a report there were no passes before the cut that anyone knows of."""
    if not path.exists():
        return {}
    try:
        return tomllib.loads(json.loads(_read(path)).get("recipe", ""))
    except (ValueError, AttributeError, TypeError) as error:
        raise InputError(f"{path} is damaged: {error}. Restore it, or delete it and give example=") from error


def _removed_layers(path: Path) -> list[list[str]]:
    """Return which layers each remove-layers of the run took: the weights are not the ones that they were chosen by."""
    if not path.exists():
        return []
    try:
        reports = [entry for entry in json.loads(_read(path))["passes"] if entry["name"] == _LAYERS]
        return [[str(change["place"]) for change in entry["changes"]] for entry in reports]
    except (ValueError, LookupError, TypeError) as error:
        raise InputError(f"{path} is damaged: {error}. Restore it") from error


def _through(traced: Traced, steps: list[dict[str, Any]], folder: Path, layers: Iterator[list[str]]) -> Traced:
    """Run the passes that make the structure; the weights are not the ones that they ran on."""
    made: list[Pass] = []
    for entry in steps:
        if entry["name"] == "merge-basis" or (entry["name"] == "prune-weights" and entry.get("form") == "cheap"):
            raise InputError(
                f"{folder} was made with {entry['name']}, which leaves a structure that depends on the weights; load "
                f"{folder / 'model.onnx'}, or run the recipe in {REPORT} again (--print-script prints it as Python)"
            )
        if entry["name"] == _LAYERS:
            made.append(RemoveLayers(next(layers, []), level=entry.get("level", "layer")))
        elif entry["name"] not in (*_OF_VALUES, "prune-weights"):
            made.append(PASSES[entry["name"]](**{key: value for key, value in entry.items() if key != "name"}))
    return Pipeline(made, verify=False)(traced).traced if made else traced


def _load_weights(module: nn.Module, path: Path) -> None:
    found = read_tensors(path)
    aliases = _aliases(module)
    for name in found:
        if name not in aliases:
            _make_place(module, name, found[name], path)
    own = module.state_dict(keep_vars=True)
    loaded: set[int] = set()
    for name, tensor in found.items():
        target = own[name]
        if target.shape != tensor.shape:
            raise InputError(
                f"{path}: {name} has shape {tuple(tensor.shape)}, and the plan leaves {tuple(target.shape)}"
            )
        target.data.copy_(tensor)
        loaded.add(id(target))
    missing = [name for name, tensor in own.items() if id(tensor) not in loaded]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing[:5])}{' and others' if len(missing) > 5 else ''}")


def _aliases(module: nn.Module) -> set[str]:
    return set(module.state_dict(keep_vars=True))


def _make_place(module: nn.Module, name: str, tensor: Tensor, path: Path) -> None:
    """Give a layer the bias that compensation gave it."""
    owner_path, _, key = name.rpartition(".")
    try:
        owner = module.get_submodule(owner_path)
    except AttributeError:
        owner = None
    if owner is None or key not in owner._parameters:
        raise InputError(f"{path} has {name}, which this model has not; it belongs to another model")
    owner._parameters[key] = nn.Parameter(tensor.clone())
