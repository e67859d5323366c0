"""What a gate is told by ``fxprune.toml``, or by ``[tool.fxprune]`` of ``pyproject.toml``."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fxprune.deploy.gate.checks import CHECKS, LEVELS, Rule
from fxprune.deploy.interleave import Settings
from fxprune.errors import InputError

DEFAULT_RULES: Mapping[str, Rule] = MappingProxyType(
    {name: Rule(check.level, check.limit) for name, check in CHECKS.items()}
)

_MIN_SECONDS = 5.0  # a verdict could often be had sooner, but its interval is what people read and compare over time

_SETTINGS: Mapping[str, tuple[type, ...]] = {
    "runtime": (str,),
    "threads": (int,),
    "batch": (int,),
    "seconds": (int, float),
    "min_seconds": (int, float),
    "seed": (int,),
    "pin": (bool,),
    "sizes": (dict,),
}
_PATHS = ("baseline", "golden")


@dataclass(frozen=True)
class GateConfig:
    """How a gate is to judge.

    Attributes:
        settings: How to measure.
        rules: Level and limit of every check.
        baseline: The file to compare with, if the configuration names one.
        golden: An npz file of inputs to compare outputs on, likewise.
        source: The file that it was read from; "" for the defaults.
    """

    settings: Settings = field(default_factory=lambda: Settings(min_seconds=_MIN_SECONDS))
    rules: Mapping[str, Rule] = field(default_factory=lambda: DEFAULT_RULES)
    baseline: Path | None = None
    golden: Path | None = None
    source: str = ""

    def with_limit(self, check: str, limit: float) -> GateConfig:
        """Return the configuration with another limit for one check.

        Raises:
            InputError: The limit is no number that can be held against.
        """
        if not limit >= 0:
            raise InputError(f"the limit of {check} is {limit}; it must be zero or more")
        return replace(self, rules={**self.rules, check: self.rules[check]._replace(limit=limit)})


def find_config(folder: Path) -> Path | None:
    """Return the folder's ``fxprune.toml``, or its ``pyproject.toml`` if that has a table for fxprune."""
    own = folder / "fxprune.toml"
    if own.is_file():
        return own
    project = folder / "pyproject.toml"
    if project.is_file() and "fxprune" in _read(project).get("tool", {}):
        return project
    return None


def read_config(path: Path | None) -> GateConfig:
    """Read the ``[gate]`` table of a file; paths in it are relative to its folder. Without a file, the defaults.

    Raises:
        InputError: There is no such file, it is not TOML, or a key or value in it is not known; the message names the
            file and the key.
    """
    if path is None:
        return GateConfig()
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    values = _read(path)
    root = ""
    if path.name == "pyproject.toml":
        values, root = values.get("tool", {}).get("fxprune", {}), "tool.fxprune."
    return _Reader(path, f"{root}gate").config(values.get("gate", {}))


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path} cannot be read as TOML: {error}") from error


@dataclass(frozen=True)
class _Reader:
    path: Path
    table: str

    def config(self, values: Any) -> GateConfig:
        self._require(isinstance(values, dict), self.table, values, "a table")
        self._known(values, [*_SETTINGS, *_PATHS, "checks"], self.table)
        given = {key: values[key] for key in _SETTINGS if key in values}
        for key, value in given.items():
            kinds = _SETTINGS[key]
            fits = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
            self._require(fits, f"{self.table}.{key}", value, " or ".join(kind.__name__ for kind in kinds))
        for name, size in given.get("sizes", {}).items():
            self._require(type(size) is int and size > 0, f"{self.table}.sizes.{name}", size, "a size")
        paths = {key: self._path(key, values[key]) for key in _PATHS if key in values}
        try:
            settings = Settings(**{"min_seconds": _MIN_SECONDS, **given})
        except InputError as error:
            raise InputError(f"{self.path}, [{self.table}]: {error}") from error
        return GateConfig(settings, self._rules(values.get("checks", {})), **paths, source=str(self.path))

    def _path(self, key: str, value: Any) -> Path:
        self._require(isinstance(value, str) and value, f"{self.table}.{key}", value, "a path")
        return self.path.parent / str(value)

    def _rules(self, values: Any) -> Mapping[str, Rule]:
        table = f"{self.table}.checks"
        self._require(isinstance(values, dict), table, values, "a table")
        self._known(values, list(CHECKS), table)
        return {**DEFAULT_RULES, **{name: self._rule(name, value, f"{table}.{name}") for name, value in values.items()}}

    def _rule(self, name: str, value: Any, key: str) -> Rule:
        """Read ``"warn"``, or a table with a level or a limit or both."""
        if isinstance(value, str):
            value = {"level": value}
        self._require(isinstance(value, dict), key, value, "a level, or a table of level and limit")
        self._known(value, ["level", "limit"], key)
        level, limit = value.get("level", CHECKS[name].level), value.get("limit", CHECKS[name].limit)
        self._require(level in LEVELS, f"{key}.level", level, ", ".join(LEVELS))
        number = isinstance(limit, int | float) and not isinstance(limit, bool) and limit >= 0
        self._require(number, f"{key}.limit", limit, "a number from 0 up")
        return Rule(level, float(limit))

    def _known(self, values: Mapping[str, Any], known: list[str], table: str) -> None:
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(key, known, 1)
                hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
                raise InputError(f"{self.path}: there is no key {table}.{key}; {hint}")

    def _require(self, fits: Any, key: str, value: Any, wanted: str) -> None:
        if not fits:
            raise InputError(f"{self.path}: {key} is {value!r}; it must be {wanted}")
