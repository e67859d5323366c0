"""A choice of layers to remove, as plain data that can be stored, compared and replayed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass, field
from typing import Any

from fxprune.capture import Traced
from fxprune.depth.find import find_layers
from fxprune.depth.layers import LEVELS, Layer, Level
from fxprune.errors import PlanError
from fxprune.planning import Cost

SCHEMA = 1
_TEXTS = ("fingerprint", "model", "level", "metric", "importance", "allocation")
_COSTS = ("before", "after")


@dataclass(frozen=True)
class LayerPlan:
    """Which layers of a model go, and how that was decided.

    Attributes:
        layers: Their names, in the order of the graph.
        fingerprint: Of the graph that the plan was made for.
        model: Class name of the model.
        level: What counts as one layer: ``layer`` or ``block`` (:func:`fxprune.depth.find_layers`).
        metric: What the budget counts: ``macs``, ``params`` or ``layers``; empty for a plan made by hand.
        keep: Share of the metric to keep.
        importance: The score's name; ``callable:NAME`` for a function.
        allocation: ``global`` or ``segments``.
        seed: Of random scores.
        scores: The score of every removable layer, by name.
        before: Cost of the original model.
        after: Cost without the layers.
        notes: What was given up to meet the budget, in plain words.
    """

    layers: tuple[str, ...]
    fingerprint: str
    model: str = ""
    level: Level = "layer"
    metric: str = ""
    keep: float = 1.0
    importance: str = ""
    allocation: str = "global"
    seed: int = 0
    scores: dict[str, float] = field(default_factory=dict)
    before: Cost = field(default_factory=lambda: Cost(0, 0, 0))
    after: Cost = field(default_factory=lambda: Cost(0, 0, 0))
    notes: tuple[str, ...] = ()

    def to_json(self, indent: int | None = None) -> str:
        """Return the plan as JSON with sorted keys; without ``indent`` it is the canonical form that is hashed."""
        values = {"schema": SCHEMA, "kind": "layers", **dataclasses.asdict(self)}
        separators = (",", ":") if indent is None else None
        return json.dumps(values, sort_keys=True, indent=indent, separators=separators, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> LayerPlan:
        """Return the plan that ``to_json`` wrote.

        Raises:
            PlanError: The text is no JSON, is of another kind or schema, lacks a field, has an unknown one or one of a
                wrong type or value.
        """
        return cls(**_read(text))

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical JSON, in hexadecimal."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def check(self, traced: Traced) -> None:
        """Raise a ``PlanError`` unless the plan was made for a graph of this structure; weights may differ."""
        found = traced.fingerprint()
        if found != self.fingerprint:
            raise PlanError(
                f"This plan of layers was made for another graph: {self.model or 'a model'} with fingerprint "
                f"{self.fingerprint[:12] or '(none)'}, but this is {traced.name} with {found[:12]}. Trace the original "
                "model with the same example shapes, make a new plan, or give the names of the layers instead of it."
            )

    def chosen(self, traced: Traced) -> list[Layer]:
        """Return the layers of the plan in the graph that it was made for.

        Raises:
            PlanError: It was made for another graph.
            InputError: It names a layer that is not there.
        """
        self.check(traced)
        return find_layers(traced, self.level).named(self.layers)


def _read(text: str | bytes) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise PlanError(f"This is no plan of layers: it cannot be read as JSON ({error}).") from error
    if not isinstance(values, dict) or values.get("kind") != "layers":
        raise PlanError("This is no plan of layers: it has no kind 'layers'. Give what LayerPlan.to_json wrote.")
    if values.get("schema") != SCHEMA or isinstance(values["schema"], bool):
        raise PlanError(
            f"This plan of layers has schema {values.get('schema')!r}, and this version of fxprune reads {SCHEMA}; use "
            "the version that wrote it."
        )
    known = {each.name for each in dataclasses.fields(LayerPlan)}
    missing, unknown = sorted(known - set(values)), sorted(set(values) - known - {"schema", "kind"})
    if missing or unknown:
        faults = [f"it lacks {', '.join(missing)}"] * bool(missing)
        faults += [f"it has unknown fields {', '.join(unknown)}"] * bool(unknown)
        raise PlanError(f"This plan of layers is damaged: {' and '.join(faults)}.")
    del values["schema"], values["kind"]
    return _checked(values)


def _checked(values: dict[str, Any]) -> dict[str, Any]:
    for name in _TEXTS:
        _require(isinstance(values[name], str), name, "text")
    _require(values["level"] in LEVELS, "level", " or ".join(map(repr, LEVELS)))
    _require(_is_number(values["keep"]) and 0 < values["keep"] <= 1, "keep", "a number in (0, 1]")
    _require(_is_whole(values["seed"]), "seed", "a whole number of at least 0")
    for name in ("layers", "notes"):
        texts = values[name]
        _require(isinstance(texts, list) and all(isinstance(item, str) for item in texts), name, "a list of texts")
        values[name] = tuple(texts)
    _require(len(set(values["layers"])) == len(values["layers"]), "layers", "a list without repetitions")
    scores = values["scores"]
    right = isinstance(scores, dict) and all(_is_number(score) for score in scores.values())
    _require(right, "scores", "an object of numbers")
    for name in _COSTS:
        cost = values[name]
        right = (
            isinstance(cost, dict) and set(cost) == {"params", "macs", "bytes"} and all(map(_is_whole, cost.values()))
        )
        _require(right, name, "an object of three whole numbers: params, macs and bytes")
        values[name] = Cost(**cost)
    return {**values, "keep": float(values["keep"])}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _require(condition: bool, name: str, what: str) -> None:
    if not condition:
        raise PlanError(f"This plan of layers is damaged: {name} must be {what}.")
