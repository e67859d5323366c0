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
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import tomllib
from pathlib import Path
from typing import Any

import tomli_w

from fxprune.cli.options import PRUNE, Options, PassChoice
from fxprune.errors import InputError

_SECTIONS: dict[str, dict[str, str]] = {
    "model": {"spec": "model", "args": "model_args", "input": "inputs", "weights": "weights", "seed": "seed"},
    "plan": {
        name: name
        for name in (
            "macs", "params", "channels", "latency", "importance", "allocation", "round_to", "protect", "compensate",
        )
    },
    "deploy": {name: name for name in ("onnx", "measure", "runtime", "threads", "seconds")},
}  # fmt: skip
"""Key in the file by section -> field of :class:`Options`."""

_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    **dict.fromkeys(("macs", "params", "channels", "latency", "seconds"), ((int, float), "a number")),
    **dict.fromkeys(("threads", "seed"), ((int,), "a whole number")),
    **dict.fromkeys(("onnx", "measure"), ((bool,), "true or false")),
    **dict.fromkeys(("inputs", "model_args", "protect"), ((list,), "a list of texts")),
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
        where = f"{self.path}, line {self._line(table, key)}: " if self.text else f"{self.path}: "
        return InputError(f"{where}{problem}")

    def _line(self, table: str, key: str) -> int:
        name, _, number = table.partition(" ")
        header, seen, found = re.compile(rf"\s*\[+\s*{re.escape(name)}\s*\]+"), 0, 1
        inside = False
        for line_number, line in enumerate(self.text.splitlines(), 1):
            if line.lstrip().startswith("["):
                inside = bool(header.match(line)) and (seen := seen + 1) == int(number or 1)
                found = line_number if inside else found
            elif inside and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", line):
                return line_number
        return found


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
    return found


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
    if [choice.name for choice in choices].count(PRUNE) != 1:
        raise file.error(
            "passes 1", "name", f"exactly one of the passes has to be {PRUNE!r}, which carries out the plan"
        )
    return tuple(choices)


def _problem(name: str, options: dict[str, Any]) -> tuple[str, str] | None:
    """Return the key and what is wrong with it; None where the pass can be made."""
    from fxprune.passes import PASSES

    if name not in PASSES:
        return "name", f"there is no pass {name!r}; known are {', '.join(PASSES)}"
    if name == PRUNE:
        return (next(iter(options)), f"{PRUNE} takes its options from [plan]") if options else None
    parameters = inspect.signature(PASSES[name]).parameters
    for key in options:
        if key not in parameters:
            return key, f"{name} has no option {key!r}; it takes {', '.join(parameters) or 'none'}"
    missing = [key for key, p in parameters.items() if p.default is p.empty and key not in options]
    needs_data = [key for key in missing if key in ("batches", "plan", "calibration")]
    if needs_data:
        return "name", f"{name} needs {needs_data[0]}, which a file cannot hold: use it from Python"
    try:
        PASSES[name](**options)
    except Exception as error:  # a pass refuses options in its own way
        return next(iter(options), "name"), f"{name} cannot be made with these options: {error}"
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
