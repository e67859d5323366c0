"""Values of a TOML file held against the types that Python says: what fits, what it becomes, and what was wanted."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def types_of(made_by: Callable[..., Any] | type) -> dict[str, Any]:
    """Return the parameters of a function, or of a class, with their types."""
    function = made_by.__init__ if isinstance(made_by, type) else made_by  # type: ignore[misc]
    return {name: kind for name, kind in typing.get_type_hints(function).items() if name != "return"}


def fits(value: Any, kind: Any) -> bool:
    """Whether a value from a file is of a type, or a table from which one can be made."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, part) for part in parts)
    if origin is Literal:
        return value in parts and isinstance(value, str)
    if origin is Mapping:
        return isinstance(value, dict) and all(fits(item, parts[1]) for item in value.values())
    if origin in (Sequence, Iterable, tuple, list):
        return isinstance(value, list) and all(fits(item, parts[0]) for item in value)
    if dataclasses.is_dataclass(kind):
        wanted = types_of(typing.cast(type, kind))
        return isinstance(value, dict) and all(key in wanted and fits(value[key], wanted[key]) for key in value)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return kind in _WORDS and isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def converted(value: Any, kind: Any) -> Any:
    """Return a value that fits as what Python takes: a table becomes the class that it describes."""
    parts = typing.get_args(kind) or (kind,)
    described = [part for part in parts if dataclasses.is_dataclass(part) and fits(value, part)]
    return typing.cast(type, described[0])(**value) if described else value


def in_words(kind: Any) -> str:
    """Return what of a file fits a type, for an error; empty for what only Python can hold."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(word for word in map(in_words, parts) if word))
    if origin is Literal:
        return " or ".join(f'"{part}"' for part in parts)
    if origin is Mapping:
        return f"a table of {_plural(parts[1])}"
    if origin in (Sequence, Iterable, tuple, list):
        return f"a list of {_plural(parts[0])}"
    if dataclasses.is_dataclass(kind):
        return f"a table with {', '.join(types_of(typing.cast(type, kind)))}"
    return _WORDS.get(kind, "")


def _plural(kind: Any) -> str:
    return f"{in_words(kind).split(' ', 1)[-1]}s"
