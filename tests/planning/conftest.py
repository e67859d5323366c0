"""A chain of linear layers with hand-made groups: planning without the channel analysis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import fx, nn

from fxprune.capture import Traced
from fxprune.channels import Minimum
from fxprune.channels.removal import classes_of_removal, removal_of_classes

Labels = NDArray[np.int64]


@dataclass
class HandGroups:
    """What planning asks of ``fxprune.channels.Groups``, given by hand."""

    traced: Traced
    axes: dict[tuple[str, int], Labels]
    nodes: dict[fx.Node, tuple[Labels | None, ...]]
    live: NDArray[np.bool_]
    families: list[Labels]
    minimums: list[Minimum] = field(default_factory=list)

    @property
    def parameters(self) -> list[tuple[str, int]]:
        return list(self.axes)

    def axis(self, name: str, dim: int) -> Labels | None:
        return self.axes.get((name, dim))

    def of(self, node: fx.Node) -> tuple[Labels | None, ...]:
        return self.nodes[node]

    def reason(self, number: int) -> str:
        return "it is an input or output of the model"

    @property
    def size(self) -> int:
        return self.live.size

    def classes(self, removed: Any) -> NDArray[np.bool_]:
        return classes_of_removal(self, removed)  # type: ignore[arg-type]

    def removal(self, class_ids: Any) -> Any:
        return removal_of_classes(self, class_ids)  # type: ignore[arg-type]


class Repeat(nn.Module):
    """Repeats every feature, as flattening repeats a channel for every position."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.repeat_interleave(self.times, -1)


def build_chain(
    widths: Sequence[int], repeats: Sequence[int] | None = None, seed: int = 0, norm: bool = False
) -> HandGroups:
    """Return the groups of linear layers ``widths[0] -> widths[1] -> ...``; ``repeats[i]`` repeats before layer ``i``.

    The classes of all inner widths are live, one family each; the model's input and output are frozen. With ``norm``
    there is a batch norm after every layer but the last.
    """
    repeats = repeats or [1] * (len(widths) - 1)
    torch.manual_seed(seed)
    ends = np.cumsum([0, *widths])
    labels = [np.arange(start, stop) for start, stop in pairwise(ends)]
    root, graph = nn.Module(), fx.Graph()
    value = torch.randn(2, widths[0])
    node = graph.placeholder("x")
    axes: dict[tuple[str, int], Labels] = {}
    nodes: dict[fx.Node, tuple[Labels | None, ...]] = {node: (None, labels[0])}
    node.meta["val"] = value
    for index, times in enumerate(repeats):
        inputs, outputs = np.repeat(labels[index], times), labels[index + 1]
        steps: list[tuple[str, nn.Module, Labels]] = [
            (f"repeat{index}", Repeat(times), inputs),
            (f"layer{index}", nn.Linear(widths[index] * times, widths[index + 1]), outputs),
        ]
        axes[f"layer{index}.weight", 0] = axes[f"layer{index}.bias", 0] = outputs
        axes[f"layer{index}.weight", 1] = inputs
        if norm and index < len(repeats) - 1:
            steps.append((f"norm{index}", nn.BatchNorm1d(widths[index + 1]), outputs))
            axes |= {(f"norm{index}.{name}", 0): outputs for name in ("weight", "bias", "running_mean", "running_var")}
        for name, layer, out in steps:
            root.add_module(name, layer)
            node = graph.call_module(name, (node,))
            value = layer(value)
            node.meta["val"] = value
            nodes[node] = (None, out)
    graph.output(node)
    live = np.zeros(ends[-1], bool)
    live[ends[1] : ends[-2]] = True
    traced = Traced(fx.GraphModule(root, graph), (torch.randn(2, widths[0]),), {}, ({0: None},), "Chain", ())
    return HandGroups(traced, axes, nodes, live, labels[1:-1])


@pytest.fixture(scope="session")
def chain() -> Callable[..., Any]:
    """Return ``build_chain``; the result is used as ``Groups``."""
    return build_chain
