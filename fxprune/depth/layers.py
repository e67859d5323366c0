"""What a removable layer is, and the collection of those that a graph has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from fxprune.errors import InputError
from fxprune.report import Skip

Kind = Literal["branch", "sequence", "block"]
Level = Literal["layer", "block"]
LEVELS: tuple[Level, ...] = ("layer", "block")


@dataclass(frozen=True)
class Layer:
    """A part of a graph that can be removed without changing any shape.

    Attributes:
        name: The module path that its layers have in common, for people; ``PATH#2`` is the second of one path.
        kind: ``branch``: a summand beside a skip that is an identity, which becomes zero. ``sequence``: a convolution
            that keeps its input's shape, with its norm and activation. ``block``: one of several alike in a row. Of the
            last two the value becomes that of their input.
        source: The node that is read by what is removed: the value that stands for a sequence or a block.
        output: The node whose value changes: the sum, or the last node of a sequence or block.
        summand: Of a branch, its last node, which the sum reads; empty otherwise.
        nodes: Every node that is computed for the layer alone, in order.
        parameters: The parameters that nothing else uses.
        params: How many elements these have.
        macs: Multiply-accumulates of one sample that are saved.
    """

    name: str
    kind: Kind
    source: str
    output: str
    summand: str
    nodes: tuple[str, ...]
    parameters: tuple[str, ...]
    params: int
    macs: int

    @property
    def effect(self) -> str:
        """What removing it does, in words."""
        if self.kind == "branch":
            return f"adds nothing to {self.output} any more"
        return f"passes its input on as {self.output}"

    def holds(self, other: Layer) -> bool:
        """Whether another layer is a part of this one."""
        return self is not other and set(other.nodes) < set(self.nodes)


@dataclass(frozen=True)
class Layers(Sequence[Layer]):
    """The removable layers of a graph, in its order.

    Attributes:
        found: The layers.
        refused: Places that look like one and are none, and why.
        level: Whether blocks count as one layer each (``block``), or each of the branches within them (``layer``).
    """

    found: tuple[Layer, ...]
    refused: tuple[Skip, ...]
    level: Level

    def __getitem__(self, index: int) -> Layer:  # type: ignore[override]
        return self.found[index]

    def __len__(self) -> int:
        return len(self.found)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.found)

    @property
    def names(self) -> list[str]:
        """The names of all layers, in order."""
        return [layer.name for layer in self.found]

    def named(self, names: Iterable[str]) -> list[Layer]:
        """Return the layers of some names, in the order of the graph.

        Raises:
            InputError: A name is none of theirs; the message has the nearest, or why that place is no removable layer.
        """
        by_name, wanted = {layer.name: layer for layer in self.found}, list(dict.fromkeys(names))
        for name in wanted:
            if name not in by_name:
                raise InputError(self._unknown(name))
        return [layer for layer in self.found if layer.name in wanted]

    def _unknown(self, name: str) -> str:
        reason = next((skip.why for skip in self.refused if skip.place == name), "")
        if reason:
            return f"{name} cannot be removed: {reason}."
        if not self.found:
            return f"There is no removable layer {name!r}, nor any other. {self.why_none()}"
        near = get_close_matches(name, self.names, 3, 0.4) or self.names[:3]
        return (
            f"There is no removable layer {name!r} at level {self.level!r}. Nearest are "
            f"{', '.join(near)}; fxprune.depth.find_layers(traced).names has all {len(self.found)}."
        )

    def why_none(self, most: int = 3) -> str:
        """Return the nearest misses, for an error that says why nothing can go."""
        if not self.refused:
            return (
                "It has no sum with an identity as one summand, no convolution that keeps its input's shape, and "
                "no block that repeats."
            )
        shown = "; ".join(f"{skip.place}: {skip.why}" for skip in self.refused[:most])
        more = f" (and {len(self.refused) - most} more)" if len(self.refused) > most else ""
        return f"The nearest misses: {shown}{more}."

    def __str__(self) -> str:
        lines = [f"{len(self.found)} removable layers at level {self.level!r}"]
        lines += [
            f"  {layer.name} ({layer.kind}): {layer.params:,} parameters, {layer.macs:,} multiply-accumulates"
            for layer in self.found
        ]
        lines += [f"  - {skip.place}: {skip.why}" for skip in self.refused]
        return "\n".join(lines)


def outermost(layers: Iterable[Layer]) -> list[Layer]:
    """Return the layers that are no part of another one of them."""
    layers = list(layers)
    return [layer for layer in layers if not any(other.holds(layer) for other in layers)]
