"""What is left of every dimension when some classes go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import fx

from fxprune.channels import Groups

Removed = Mapping[str, Mapping[int, list[int]]]


def removal_of(plan: Any) -> dict[str, dict[int, list[int]]]:
    """Return the plain removal of a plan, or of a mapping that already is one."""
    found: Any = getattr(plan, "removed", plan)
    return {name: {int(d): list(indices) for d, indices in dims.items()} for name, dims in found.items()}


class Kept:
    """Answers, for one removal, which indices of each axis stay."""

    def __init__(self, groups: Groups, removed: dict[str, dict[int, list[int]]]) -> None:
        self.groups = groups
        self.gone = groups.classes(removed)

    def mask(self, axis: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return which indices of an axis of class ids stay."""
        return ~self.gone[axis]

    def axes(self, node: fx.Node) -> Any:
        """Return the class ids of a node's value (see ``Groups.of``)."""
        return self.groups.of(node)

    def masks(self, node: fx.Node) -> list[npt.NDArray[np.bool_] | None]:
        """Return, for each dimension of a tensor node, which indices stay; None where all of them do."""
        found = self.groups.of(node)
        return [None if axis is None or not self.gone[axis].any() else self.mask(axis) for axis in found]

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """Return the sizes of a tensor node afterwards."""
        sizes = tuple(int(s) for s in node.meta["val"].shape)
        return tuple(
            size if mask is None else int(mask.sum()) for size, mask in zip(sizes, self.masks(node), strict=True)
        )

    def groups_left(self, node: fx.Node) -> int | None:
        """Return the number of groups left to a grouped convolution, group norm or channel shuffle; None if all are."""
        factor = self.groups.group_factor(node)
        return None if factor is None or not self.gone[factor].any() else int(self.mask(factor).sum())
