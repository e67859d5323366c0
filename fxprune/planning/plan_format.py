"""Reads the JSON of a plan, trusting nothing in it."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

from fxprune.errors import PlanError
from fxprune.planning.cost import Cost

SCHEMA = 1
_TEXT = ("fingerprint", "model", "metric", "importance", "allocation")
_LISTS = ("protect", "notes")
_COSTS = ("before", "after")
_FIELDS = {"schema", "removed", "keep", "round_to", "compensate", "seed", *_TEXT, *_LISTS, *_COSTS}


def read_fields(text: str | bytes) -> dict[str, Any]:
    """Return the checked fields of a plan as keyword arguments.

    Raises:
        PlanError: see ``Plan.from_json``.
    """
    try:
        values = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise PlanError(
            f"This is no plan: it cannot be read as JSON ({error}). Give the plan.json that fxprune wrote."
        ) from error
    if not isinstance(values, dict) or "schema" not in values:
        raise PlanError(
            "This is no plan: it is JSON, but not an object with a 'schema'. Give the plan.json that fxprune wrote."
        )
    if values["schema"] != SCHEMA or isinstance(values["schema"], bool):
        raise PlanError(
            f"This plan has schema {values['schema']!r}, and this version of fxprune reads schema {SCHEMA}; "
            "use the version that wrote it."
        )
    missing, unknown = sorted(_FIELDS - set(values)), sorted(set(values) - _FIELDS)
    if missing or unknown:
        faults = [f"it lacks {', '.join(missing)}"] * bool(missing)
        faults += [f"it has unknown fields {', '.join(unknown)}"] * bool(unknown)
        raise PlanError(f"This plan is damaged: {' and '.join(faults)}.")
    del values["schema"]
    return _checked(values)


def _checked(values: dict[str, Any]) -> dict[str, Any]:
    for name in _TEXT:
        _require(isinstance(values[name], str), name, "text")
    _require(values["compensate"] in (None, "constant", "mean"), "compensate", "null, 'constant' or 'mean'")
    keep = values["keep"]
    numeric = isinstance(keep, (int, float)) and not isinstance(keep, bool)
    _require(numeric and math.isfinite(keep) and 0 < keep <= 1, "keep", "a number in (0, 1]")
    _require(_is_whole(values["round_to"]) and values["round_to"] >= 1, "round_to", "a whole number of at least 1")
    _require(isinstance(values["seed"], int) and not isinstance(values["seed"], bool), "seed", "a whole number")
    for name in _LISTS:
        _require(
            isinstance(values[name], list) and all(isinstance(item, str) for item in values[name]),
            name,
            "a list of texts",
        )
        values[name] = tuple(values[name])
    for name in _COSTS:
        cost = values[name]
        whole = (
            isinstance(cost, dict)
            and set(cost) == {"params", "macs", "bytes"}
            and all(_is_whole(number) for number in cost.values())
        )
        _require(whole, name, "an object of three whole numbers: params, macs and bytes")
        values[name] = Cost(**cost)
    values["removed"] = _removed(values["removed"])
    return {**values, "keep": float(keep)}


def _removed(value: Any) -> dict[str, dict[int, list[int]]]:
    _require(
        isinstance(value, dict) and all(isinstance(dims, dict) for dims in value.values()),
        "removed",
        "an object of objects",
    )
    removed: dict[str, dict[int, list[int]]] = {}
    for name, dims in value.items():
        for dim, indices in dims.items():
            place = f"removed[{name!r}][{dim!r}]"
            _require(
                dim.isascii() and dim.isdigit() and str(int(dim)) == dim, place, "under a dimension, a whole number"
            )
            _require(
                isinstance(indices, list) and all(map(_is_whole, indices)),
                place,
                "a list of indices, each a whole number of at least 0",
            )
            _require(
                all(a < b for a, b in itertools.pairwise(indices)), place, "in increasing order, without repetitions"
            )
            removed.setdefault(name, {})[int(dim)] = indices
    return removed


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _require(condition: bool, name: str, what: str) -> None:
    if not condition:
        raise PlanError(
            f"This plan is damaged: {name} must be {what}. Give the plan.json that fxprune wrote, unchanged."
        )
