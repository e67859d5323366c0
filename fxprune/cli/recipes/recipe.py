"""Recipes: what ``optimize`` does, as a TOML file that can be kept beside the model.

::

    [model]
    spec = "torchvision.models:resnet18"
    input = ["1x3x224x224"]

    [plan]
    macs = 0.5

    [[passes]]
    name = "prune-channels"

    [[passes]]
    name = "fuse-batchnorm"

    [deploy]
    threads = 1

With a section ``[data]`` a step may be a training: :mod:`fxprune.cli.recipes.training`.
"""

from __future__ import annotations

import dataclasses
import inspect
import tomllib
from pathlib import Path
from typing import Any

import tomli_w

from fxprune.cli.recipes.flow import plan_source, problem_in
from fxprune.cli.recipes.lines import line_of
from fxprune.cli.recipes.options import CALIBRATE, FROM_DATA, LAYERS, PLAN, PRUNE, TRAIN, Options, PassChoice
from fxprune.cli.recipes.training import problem_with
from fxprune.errors import InputError

_SECTIONS: dict[str, dict[str, str]] = {
    "model": {"spec": "model", "args": "model_args", "input": "inputs", "weights": "weights", "seed": "seed"},
    "data": {
        "spec": "data", "args": "data_args", "size": "image_size", "channels": "image_channels", "fraction": "fraction",
        "augment": "augment", "workers": "workers",
    },
    "plan": {name: name for name in PLAN},
    "deploy": {name: name for name in ("onnx", "measure", "runtime", "threads", "seconds")},
}  # fmt: skip
"""Key in the file by section -> field of :class:`Options`."""

_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    **dict.fromkeys(("macs", "params", "channels", "latency", "seconds", "fraction"), ((int, float), "a number")),
    **dict.fromkeys(("threads", "seed", "image_size", "image_channels", "workers"), ((int,), "a whole number")),
    **dict.fromkeys(("onnx", "measure", "augment"), ((bool,), "true or false")),
    **dict.fromkeys(("inputs", "model_args", "data_args", "protect"), ((list,), "a list of texts")),
    "round_to": ((int, str), '"auto" or a whole number'),
}
_TEXT = ((str,), "a text")


@dataclasses.dataclass(frozen=True)
class _File:
    """A recipe and where its keys are, for errors."""

    path: Path
    text: str

    def error(self, table: str, key: str, problem: str) -> InputError:
        """Return an error that names the line of a key, or of the table's header where the key is not there."""
        where = f"{self.path}, line {line_of(self.text, table, key)}: " if self.text else f"{self.path}: "
        return InputError(f"{where}{problem}")


def read_recipe(path: Path) -> dict[str, Any]:
    """Return the fields of :class:`Options` that a recipe sets.

    Raises:
        InputError: The file cannot be read, is no TOML, or has a key or value that is not known; names the line.
    """
    try:
        file = _File(path, path.read_text(encoding="utf-8"))
        values = tomllib.loads(file.text)
    except OSError as error:
        raise InputError(f"the recipe {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"the recipe {path} is no text in UTF-8: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"the recipe {path} is no TOML: {error}") from error
    found: dict[str, Any] = {}
    for section, content in values.items():
        if section == "passes":
            found["passes"] = _passes(file, content)
        elif section not in _SECTIONS or not isinstance(content, dict):
            raise file.error(section, "", f"{section!r} is no section; there are {', '.join([*_SECTIONS, 'passes'])}")
        else:
            found |= _section(file, section, content)
    _check_flow(file, values, found)
    return found


def _check_flow(file: _File, values: dict[str, Any], found: dict[str, Any]) -> None:
    """Refuse steps that do not fit each other, or the other sections."""
    if "data" in values and "data" not in found:
        raise file.error("data", "", '[data] needs spec = "digits", "imagefolder:PATH" or another')
    steps = found.get("passes")
    if steps is None:
        return
    problem = problem_in(steps, data="data" in found)
    if problem:
        raise file.error(f"passes {problem.step + 1}", problem.key, problem.text)
    source = plan_source(steps)
    if values.get("plan") and source != "budget":
        why = "the training in front of it makes another plan" if source == "training" else f"there is no {PRUNE}"
        raise file.error("plan", "", f"[plan] is for {PRUNE}, and {why}; leave one of the two out")


def _section(file: _File, section: str, content: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in content.items():
        field = _SECTIONS[section].get(key)
        if field is None:
            raise file.error(section, key, f"[{section}] has no {key!r}; it takes {', '.join(_SECTIONS[section])}")
        kinds, what = _KINDS.get(field, _TEXT)
        right = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
        if not right or (kinds == (list,) and not all(isinstance(part, str) for part in value)):
            raise file.error(section, key, f"[{section}] {key} = {value!r} is not {what}")
        found[field] = _converted(file, field, value)
    return found


def _converted(file: _File, field: str, value: Any) -> Any:
    if field == "weights":
        return file.path.parent / value  # a recipe can be moved together with what it names
    if field == "round_to":
        return str(value)
    return tuple(value) if isinstance(value, list) else value


def _passes(file: _File, content: Any) -> tuple[PassChoice, ...]:
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise file.error("passes", "", "passes are written as [[passes]], one table for each")
    choices = []
    for number, entry in enumerate(content, 1):
        options = {key: value for key, value in entry.items() if key != "name"}
        name = entry.get("name")
        if not isinstance(name, str):
            raise file.error(f"passes {number}", "name", 'a pass needs a name, as in name = "fuse-batchnorm"')
        problem = _problem(name, options)
        if problem:
            key, text = problem
            raise file.error(f"passes {number}", key, text)
        choices.append(PassChoice(name, options))
    return tuple(choices)


def _problem(name: str, options: dict[str, Any]) -> tuple[str, str] | None:
    """Return the key and what is wrong with it; None where the pass can be made."""
    from fxprune.passes import PASSES

    if name == TRAIN:
        return problem_with(options)
    if name not in PASSES:
        return "name", f"there is no pass {name!r}; known are {', '.join(PASSES)}, and {TRAIN}"
    if name == PRUNE:
        return (next(iter(options)), f"{PRUNE} takes its options from [plan]") if options else None
    if name == CALIBRATE:
        return _calibration_problem(options)
    parameters = list(inspect.signature(PASSES[name]).parameters)
    if name == LAYERS:
        parameters = [key for key in parameters if key not in ("batches", "loss")] + list(FROM_DATA)
    for key in options:
        if key not in parameters:
            return key, f"{name} has no option {key!r}; it takes {', '.join(parameters) or 'none'}"
    if name == LAYERS and (problem := _not_whole(name, options)):
        return problem
    try:
        PASSES[name](**{key: value for key, value in options.items() if key not in FROM_DATA or name != LAYERS})
    except Exception as error:  # a pass refuses options in its own way
        return next(iter(options), "name"), f"{name} cannot be made with these options: {error}"
    return None


def _calibration_problem(options: dict[str, Any]) -> tuple[str, str] | None:
    """Return what is wrong with the options of calibrate-batchnorm, whose batches are of the section [data]."""
    for key in options:
        if key not in FROM_DATA:
            return key, f"{CALIBRATE} has no option {key!r} here; it takes batch (images in each), max_batches"
    return _not_whole(CALIBRATE, options)


def _not_whole(name: str, options: dict[str, Any]) -> tuple[str, str] | None:
    """Return which of the numbers of images and batches is none, and what is wrong with it."""
    for key in FROM_DATA:
        value = options.get(key, 1)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            return key, f"{name}: {key} = {value!r} is not a whole number of at least 1"
    return None


# ---------------------------------------------------------------- writing


def write_recipe(options: Options) -> str:
    """Return the recipe of a run, as TOML; what is left at its default is left out, but for the passes."""
    defaults = {field.name: field.default for field in dataclasses.fields(Options)}
    values: dict[str, Any] = {}
    for section, keys in _SECTIONS.items():
        chosen = {
            key: _plain(getattr(options, field))
            for key, field in keys.items()
            if getattr(options, field) != defaults[field]
        }
        if chosen:
            values[section] = chosen
    values["passes"] = [{"name": choice.name, **choice.options} for choice in options.passes]
    return tomli_w.dumps(values)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value.resolve())
    return list(value) if isinstance(value, tuple) else value
