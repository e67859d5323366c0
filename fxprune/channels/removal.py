"""From indices of parameters to classes and back: what a removal names has to be closed, and leave something."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fxprune.errors import PlanError

if TYPE_CHECKING:
    from fxprune.channels.groups import Groups

Removal = dict[str, dict[int, list[int]]]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Place = tuple[str, int]


def removal_of_classes(groups: Groups, class_ids: Iterable[int]) -> Removal:
    """Return which indices of which parameters go when these classes go."""
    gone = np.zeros(groups.size, bool)
    gone[np.fromiter(class_ids, np.int64)] = True
    removed: Removal = {}
    for (name, d), axis in _axes(groups).items():
        indices = np.flatnonzero(gone[axis]).tolist()
        if indices:
            removed.setdefault(name, {})[d] = indices
    return removed


def classes_of_removal(groups: Groups, removed: Mapping[str, Mapping[int, list[int]]]) -> Bools:
    """Return which classes a removal names, as one bool per class.

    Raises:
        PlanError: It names a parameter, dimension or index that is not there, takes something that is frozen, takes
            only a part of what has to go together, or leaves nothing of a dimension.
    """
    axes = _axes(groups)
    _check_places(removed, axes)
    marked = {place: _marks(removed, place, axis.size) for place, axis in axes.items()}
    gone = np.zeros(groups.size, bool)
    for place, axis in axes.items():
        gone[axis[marked[place]]] = True
    for (name, dim), axis in axes.items():
        marks = marked[name, dim]
        frozen = np.flatnonzero(marks & ~groups.live[axis])
        if len(frozen):
            why = groups.reason(int(axis[frozen[0]]))
            raise PlanError(
                f"The plan removes index {frozen[0]} of dimension {dim} of {name}, which cannot go: {why}. "
                "Make a new plan for this model."
            )
        missing = np.flatnonzero(gone[axis] & ~marks)
        if len(missing):
            raise PlanError(_partial((name, dim), int(missing[0]), marked, axes))
        if len(marks) and marks.all():
            raise PlanError(f"The plan removes all of dimension {dim} of {name}; at least one index has to stay.")
    return gone


def _axes(groups: Groups) -> dict[Place, Ints]:
    return {place: axis for place in groups.parameters if (axis := groups.axis(*place)) is not None}


def _marks(removed: Mapping[str, Mapping[int, list[int]]], place: Place, size: int) -> Bools:
    name, dim = place
    marks = np.zeros(size, bool)
    indices = np.array(removed.get(name, {}).get(dim, []), np.int64)
    wrong = indices[(indices < 0) | (indices >= size)]
    if len(wrong):
        raise PlanError(
            f"The plan removes index {wrong[0]} of dimension {dim} of {name}, which has {size}. "
            "It was made for another model."
        )
    marks[indices] = True
    return marks


def _check_places(removed: Mapping[str, Mapping[int, list[int]]], axes: Mapping[Place, Ints]) -> None:
    names = {name for name, _ in axes}
    for name, dims in removed.items():
        for dim, indices in dims.items():
            if indices and (name, dim) not in axes:
                what = f"dimension {dim} of {name}" if name in names else name
                raise PlanError(
                    f"The plan cuts {what}, which has no channels or is not in this model. "
                    "It was made for another model, or for another version of it."
                )


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
