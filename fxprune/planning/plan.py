"""A plan: which indices of which parameters go, as plain data that can be stored, compared and replayed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fxprune.capture import Traced
from fxprune.channels import Groups
from fxprune.errors import PlanError
from fxprune.planning.cost import Cost
from fxprune.planning.cost_model import Bools, Ints
from fxprune.planning.plan_format import SCHEMA, read_fields

Removed = dict[str, dict[int, list[int]]]
Place = tuple[str, int]


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
        axes = {place: labels for place in groups.parameters if (labels := groups.axis(*place)) is not None}
        marked = {place: self._marks(place, labels) for place, labels in axes.items()}
        self._check_places(axes)
        gone = np.zeros(len(groups.live), bool)
        for place, labels in axes.items():
            gone[labels[marked[place]]] = True
        for (name, dim), labels in axes.items():
            marks = marked[name, dim]
            frozen = np.flatnonzero(marks & ~groups.live[labels])
            if len(frozen):
                why = groups.reason(int(labels[frozen[0]]))
                raise PlanError(
                    f"The plan removes index {frozen[0]} of dimension {dim} of {name}, which cannot go: {why}. "
                    "Make a new plan for this model."
                )
            missing = np.flatnonzero(gone[labels] & ~marks)
            if len(missing):
                raise PlanError(_partial((name, dim), int(missing[0]), marked, axes))
            if len(marks) and marks.all():
                raise PlanError(f"The plan removes all of dimension {dim} of {name}; at least one index has to stay.")
        return gone

    def _marks(self, place: Place, labels: Ints) -> Bools:
        name, dim = place
        marks = np.zeros(len(labels), bool)
        indices = np.array(self.removed.get(name, {}).get(dim, []), np.int64)
        wrong = indices[(indices < 0) | (indices >= len(labels))]
        if len(wrong):
            raise PlanError(
                f"The plan removes index {wrong[0]} of dimension {dim} of {name}, which has {len(labels)}. "
                "It was made for another model."
            )
        marks[indices] = True
        return marks

    def _check_places(self, axes: dict[Place, Ints]) -> None:
        names = {name for name, _ in axes}
        for name, dims in self.removed.items():
            for dim, indices in dims.items():
                if indices and (name, dim) not in axes:
                    what = f"dimension {dim} of {name}" if name in names else name
                    raise PlanError(
                        f"The plan cuts {what}, which has no channels or is not in this model. "
                        "It was made for another model, or for another version of it."
                    )


def removed_indices(groups: Groups, gone: Bools) -> Removed:
    """Return the indices of every parameter and buffer whose class is marked in ``gone``."""
    removed: Removed = {}
    for name, dim in groups.parameters:
        labels = groups.axis(name, dim)
        indices = [] if labels is None else np.flatnonzero(gone[labels]).tolist()
        if indices:
            removed.setdefault(name, {})[dim] = indices
    return removed


def _partial(place: Place, index: int, marked: dict[Place, Bools], axes: dict[Place, Ints]) -> str:
    """Say which index was left out, and which removed one it goes together with."""
    number = axes[place][index]
    for (other, dim), labels in axes.items():
        hits = np.flatnonzero(marked[other, dim] & (labels == number))
        if len(hits):
            break
    return (
        f"The plan is not closed: it removes index {hits[0]} of dimension {dim} of {other}, which goes together with "
        f"index {index} of dimension {place[1]} of {place[0]}, but keeps that. Add it to the plan, or make a new plan."
    )
