"""A plan: which indices of which parameters go, as plain data that can be stored, compared and replayed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from fxprune.capture import Traced
from fxprune.channels import Groups
from fxprune.errors import PlanError
from fxprune.planning.cost import Cost
from fxprune.planning.cost_model import Bools
from fxprune.planning.plan_format import SCHEMA, read_fields

Removed = dict[str, dict[int, list[int]]]


@dataclass(frozen=True)
class Plan:
    """What to remove from a model, and how that was decided.

    Attributes:
        removed: parameter or buffer name -> dimension -> indices in increasing order, all counted in the original
            model.
        fingerprint: of the graph that the plan was made for.
        model: class name of the model.
        metric: what the budget counts: ``macs``, ``params``, ``channels`` or ``bytes``; empty for a plan made by hand.
        keep: share of the metric to keep.
        importance: the score's name; ``callable:NAME`` for a function.
        allocation: ``uniform``, ``global`` or ``isomorphic``.
        round_to: the multiple that was used in the end.
        compensate: what a removed channel leaves behind: None (zero), ``constant`` or ``mean``.
        seed: of random scores.
        protect: the patterns that kept parameters.
        before: cost of the original model.
        after: cost with the indices removed.
        notes: what was given up to meet the budget, in plain words.
    """

    removed: Removed
    fingerprint: str
    model: str = ""
    metric: str = ""
    keep: float = 1.0
    importance: str = ""
    allocation: str = ""
    round_to: int = 1
    compensate: str | None = None
    seed: int = 0
    protect: tuple[str, ...] = ()
    before: Cost = field(default_factory=lambda: Cost(0, 0, 0))
    after: Cost = field(default_factory=lambda: Cost(0, 0, 0))
    notes: tuple[str, ...] = ()

    def to_json(self, indent: int | None = None) -> str:
        """Return the plan as JSON with sorted keys; without ``indent`` it is the canonical form that is hashed."""
        values = {"schema": SCHEMA, **dataclasses.asdict(self)}
        separators = (",", ":") if indent is None else None
        return json.dumps(values, sort_keys=True, indent=indent, separators=separators, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Plan:
        """Return the plan that ``to_json`` wrote.

        Raises:
            PlanError: the text is no JSON, is of another schema, lacks a field, has an unknown one or one of a wrong
                type or value.
        """
        values: dict[str, Any] = read_fields(text)
        return cls(**values)

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical JSON, in hexadecimal."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def check(self, traced: Traced) -> None:
        """Raise a ``PlanError`` unless the plan was made for a graph of this structure; weights may differ."""
        found = traced.fingerprint()
        if found != self.fingerprint:
            raise PlanError(
                f"This plan was made for another graph: {self.model or 'a model'} with fingerprint "
                f"{self.fingerprint[:12] or '(none)'}, but this is {traced.name} with {found[:12]}. "
                "Trace the original model with the same example shapes, or make a new plan."
            )

    def classes(self, groups: Groups) -> Bools:
        """Return which classes the plan removes, as one bool per class of ``groups``.

        Raises:
            PlanError: the plan names a parameter, dimension or index that is not there, takes something that is frozen,
                takes only a part of what has to go together, or leaves nothing of a dimension.
        """
        return groups.classes(self.removed)
