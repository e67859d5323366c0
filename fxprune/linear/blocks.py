"""The record of which layers were written as several: it is in the graph module, and copied with it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

BLOCKS = "fxprune.blocks"
"""Key in a graph module's ``meta``: path of a layer that was expanded -> path of the last layer of its chain."""


def blocks_of(module: fx.GraphModule) -> dict[str, str]:
    """Return the record; empty where nothing was expanded."""
    return dict(module.meta.get(BLOCKS, {}))


def with_blocks(module: fx.GraphModule, blocks: Mapping[str, str]) -> None:
    """Replace the record by a new one; copies of the module keep theirs."""
    module.meta[BLOCKS] = dict(blocks)


def inside_a_block(module: fx.GraphModule, path: str) -> str | None:
    """Return the expanded layer that a module belongs to, or None."""
    return next((block for block in blocks_of(module) if path.startswith(f"{block}.")), None)
