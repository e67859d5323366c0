"""``find_groups``: which slices of which parameters go together, and what stays and why."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np
import numpy.typing as npt
from torch import fx

from fxprune.capture import Traced
from fxprune.channels.coupling import Explanation, build_coupling, explain
from fxprune.channels.labels import Axis
from fxprune.channels.minimums import Minimum, find_minimums
from fxprune.channels.removal import Removal, classes_of_removal, removal_of_classes
from fxprune.channels.resolve import resolve
from fxprune.channels.rules import Flow
from fxprune.errors import InputError

_QUIET = (
    "reads an input that carries no channels",
    "meets a batch, space or sequence dimension",
    "kernel taps",
    "a space dimension",
)


@dataclass(frozen=True)
class Group:
    """Parameters whose dimensions are coupled: a connected component of the coupling graph.

    Attributes:
        parameters: (name, dimension) pairs in the order of the model.
        units: Number of units that can be removed.
        frozen: Number of classes that stay.
        reason: Why those stay ("" if none does).
    """

    parameters: tuple[tuple[str, int], ...]
    units: int
    frozen: int
    reason: str


class Groups:
    """The coupled channels of one captured model; immutable. Made by :func:`find_groups`."""

    def __init__(self, traced: Traced, attention: str = "heads") -> None:
        self.traced = traced
        self._flow = Flow(traced)
        self._flow.run()
        self._classes = resolve(self._flow.labels, attention)
        self.parameters: list[tuple[str, int]] = [
            (name, d) for name, axes in self._flow.parameters.items() for d, axis in enumerate(axes) if axis is not None
        ]
        self.size = self._classes.frozen.size
        touched = np.zeros(self.size, bool)
        trained = {name for name, _ in traced.module.named_parameters()}
        for name, d in self.parameters:
            if name not in trained:  # a class of buffers alone is no channel of a layer
                continue
            touched[self._axis(name, d)] = True
        self._whole: dict[int, str] = {}  # classes that hold a whole dimension of a parameter, which cannot be emptied
        for name, d in self.parameters:
            axis = self._axis(name, d)
            if (axis == axis[0]).all():
                self._whole.setdefault(int(axis[0]), name)
        self.live: npt.NDArray[np.bool_] = touched & ~self._classes.frozen
        self.live[list(self._whole)] = False

    def _axis(self, name: str, d: int) -> Axis:
        axis = self._flow.parameters[name][d]
        assert axis is not None
        return self._classes.of[axis]

    def axis(self, name: str, dim: int) -> Axis | None:
        """Return the class id of every index of a parameter's dimension; None where it carries no channels."""
        name = self._flow.aliases.get(name, name)
        axes = self._flow.parameters.get(name)
        return None if axes is None or dim >= len(axes) or axes[dim] is None else self._axis(name, dim)

    def of(self, node: fx.Node) -> Any:
        """Return the class ids of a node's value: an array (or None) per dimension, in a list for several outputs."""
        return self._map(self._flow.env.get(node))

    def _map(self, found: Any) -> Any:
        if isinstance(found, np.ndarray):
            return self._classes.of[found]
        if isinstance(found, (list, tuple)):
            return type(found)(self._map(item) for item in found)
        return None

    def group_factor(self, node: fx.Node) -> Axis | None:
        """Return the class ids of the groups of a grouped convolution or group norm; None where there is no such."""
        return self._map(self._flow.groups.get(node))  # type: ignore[no-any-return]

    def reason(self, class_id: int) -> str:
        """Return why a class stays ("" if it can be removed)."""
        origin = int(self._classes.origin[class_id])
        if origin < 0 and class_id in self._whole:
            return f"all channels of {self._whole[class_id]} go together, and one has to stay"
        if origin < 0:
            return "" if self.live[class_id] else "no trained parameter has this channel"
        _, reason, place = self._flow.labels.frozen[origin]
        source = self._flow.sources.get(place, "")
        return f"{reason} (at {place}{', ' + source if source else ''})"

    @functools.cached_property
    def families(self) -> list[npt.NDArray[np.int64]]:
        """Live classes with the same footprint of (parameter, dimension, index count), ordered by their indices."""
        axes = [self._axis(name, d) for name, d in self.parameters]
        sizes = np.array([axis.size for axis in axes], np.int64)
        footprints = np.zeros(self.size, np.uint64)
        first = np.full(self.size, np.iinfo(np.int64).max)
        if axes:
            ids, positions = np.concatenate(axes), np.repeat(np.arange(sizes.size), sizes)
            marks = np.random.default_rng(0).integers(1, 2**63, sizes.size, dtype=np.uint64)
            np.add.at(footprints, ids, marks[positions])  # unsigned sums wrap around
            np.minimum.at(first, ids, np.arange(ids.size))
        live = np.flatnonzero(self.live)
        order = live[np.argsort(first[live], kind="stable")]
        found: dict[int, list[int]] = {}
        for class_id in order:
            found.setdefault(int(footprints[class_id]), []).append(int(class_id))
        return [np.array(ids, np.int64) for ids in found.values()]

    @functools.cached_property
    def minimums(self) -> list[Minimum]:
        """What has to be left, beyond one index of every dimension of a parameter, for operations to have a result."""
        return find_minimums(self._flow, self._classes.of, self.live)

    def removal(self, class_ids: Iterable[int]) -> Removal:
        """Return which indices of which parameters go when these classes go: the form that a plan stores."""
        return removal_of_classes(self, class_ids)

    def classes(self, removed: Mapping[str, Mapping[int, list[int]]]) -> npt.NDArray[np.bool_]:
        """Return which classes a removal names, as one bool per class.

        Raises:
            PlanError: It is not closed, names what is frozen or not there, or leaves nothing of a dimension.
        """
        return classes_of_removal(self, removed)

    @functools.cached_property
    def coupling(self) -> nx.MultiGraph:
        """The dependency graph: axes of parameters, tensors and grids as nodes, what ties them as edges."""
        return build_coupling(self._flow)

    @functools.cached_property
    def groups(self) -> list[Group]:
        """The coupled groups that have something to say: something to remove, or a reason why not."""
        found: list[Group] = []
        order = {p: i for i, p in enumerate(self.parameters)}
        for component in nx.connected_components(self.coupling):
            members = sorted((axis[1:] for axis in component if axis[0] == "parameter"), key=lambda p: order[p])
            if members:
                group = self._describe(members)
                if group.units or not group.reason.startswith(_QUIET):
                    found.append(group)
        return sorted(found, key=lambda group: order[group.parameters[0]])

    def _describe(self, members: list[tuple[str, int]]) -> Group:
        classes = np.unique(np.concatenate([self._axis(name, d) for name, d in members]))
        live = self.live[classes]
        stuck = classes[~live]
        reasons = {self.reason(int(c)): None for c in stuck[:64]}
        return Group(tuple(members), int(live.sum()), int((~live).sum()), "; ".join(reasons))

    def explain(self, parameter: str, dim: int = 0) -> Explanation:
        """Return what a parameter's dimension is coupled to, and the path to what freezes it.

        Raises:
            InputError: There is no such parameter; near names are listed.
        """
        return explain(self, self._flow, parameter, dim)


def find_groups(traced: Traced, *, attention: str = "heads") -> Groups:
    """Work out which parameter slices of a captured model must go together.

    Args:
        traced: The captured model.
        attention: What attention may lose: whole ``"heads"``, or ``"head_dim"``, the width of each head.
    """
    if attention not in ("heads", "head_dim"):
        raise InputError(f"attention can lose 'heads' or 'head_dim', not {attention!r}")
    return Groups(traced, attention)
